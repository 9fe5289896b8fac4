//! Children: each with a time limit, its CPU and memory, and an end by pid.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Failure, failed, work};
use crate::common::{Watchdog, poll};

/// For a child to end once it was asked to: caches are written out then.
const END_MAX: Duration = Duration::from_secs(20);
/// What is quoted of a child that failed.
const SAID_BYTES_MAX: usize = 400;

/// A child that runs until it is stopped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    /// Last, so that a child it kills is still there to be waited for.
    watchdog: Watchdog,
}

/// What a process took so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
}

impl Running {
    /// Starts `command` with its output in `log`. After `limit` it is killed,
    /// and FUSE mounts below `dir` are aborted with it.
    pub(crate) fn start(
        command: &mut Command,
        log: &Path,
        dir: &Path,
        limit: Duration,
    ) -> Result<Running, Failure> {
        let child = spawn(command, log)?;
        let watchdog = Watchdog::new(limit);
        watchdog.watch_pid(child.id());
        watchdog.watch_dir(dir);
        Ok(Running { child, log: log.to_owned(), watchdog })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for something the child brings about.
    pub(crate) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        is_so: impl Fn() -> bool,
    ) -> Result<(), Failure> {
        let ended = std::cell::RefCell::new(&mut self.child);
        let gone = || matches!(ended.borrow_mut().try_wait(), Ok(Some(_)));
        if poll(limit, || is_so() || gone()) && is_so() {
            return Ok(());
        }
        Err(format!("{what} did not come: {}", said(&self.log)))
    }

    pub(crate) fn usage(&self) -> Usage {
        usage(self.pid())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid() as i32), signal);
    }
}

impl Running {
    /// Asks it to end, and makes it.
    pub(crate) fn end(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.signal(Signal::SIGTERM);
        let child = std::cell::RefCell::new(&mut self.child);
        if !poll(END_MAX, || !matches!(child.borrow_mut().try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        work::ended(self.child.id());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// A command that ran to its end.
pub(crate) struct Ran {
    pub(crate) took: Duration,
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
}

/// Runs `command` to its end, or to that of `limit`.
pub(crate) fn run(command: &mut Command, log: &Path, limit: Duration) -> Result<Ran, Failure> {
    let began = Instant::now();
    let child = spawn(command, log)?;
    let watchdog = Watchdog::new(limit);
    watchdog.watch_pid(child.id());
    let pid = child.id();
    let (mut status, mut usage) = (0, MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: both outlive the call; all zeros is a valid rusage.
    let (waited, usage) = unsafe {
        (libc::wait4(pid as i32, &raw mut status, 0, usage.as_mut_ptr()), usage.assume_init())
    };
    let took = began.elapsed();
    work::ended(pid);
    let status = ExitStatus::from_raw(status);
    if waited < 0 || !status.success() {
        return Err(format!("{status}: {}", said(log)));
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu_s = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    Ok(Ran { took, cpu_s, peak_rss_mib: usage.ru_maxrss as f64 / 1024.0 })
}

fn spawn(command: &mut Command, log: &Path) -> Result<Child, Failure> {
    let output = File::create(log).map_err(failed("a log"))?;
    let errors = output.try_clone().map_err(failed("a log"))?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors);
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.spawn().map_err(failed(&program))?;
    work::started(child.id());
    Ok(child)
}

/// The end of a log, in one line.
pub(crate) fn said(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut text = lines[lines.len().saturating_sub(2)..].join("; ");
    while text.len() > SAID_BYTES_MAX {
        text.pop();
    }
    if text.is_empty() { "it said nothing".to_owned() } else { text }
}

/// CPU time and peak memory of a process, its threads included.
pub(crate) fn usage(pid: u32) -> Usage {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything, come state and 10 more before utime.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<f64>().ok());
    // SAFETY: no pointers.
    let per_s = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Usage { cpu_s: ticks / per_s, peak_rss_mib: kib.unwrap_or(0.0) / 1024.0 }
}

/// The processes that `pid`'s first thread started.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}
