//! A mount made by the tool itself, in processes of its own, as a user makes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::daemon::mountinfo::topmost_at;

/// The longest that `mount`, `unmount` or `status` may take.
const COMMAND_MAX: Duration = Duration::from_secs(15);
/// The longest that a daemon may take to end, after its last mount or a signal.
const DAEMON_END_MAX: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// What is mounted where, and by which program.
#[derive(Clone, Debug)]
pub(super) struct MountPlan {
    /// The `warmfs` program.
    pub(super) program: PathBuf,
    pub(super) uri: String,
    pub(super) endpoint_url: String,
    /// Canonical, so that it can be found in the table of mounts.
    pub(super) dir: PathBuf,
    pub(super) cache_dir: PathBuf,
    pub(super) cache_size_bytes: u64,
    /// Where the output of the commands goes.
    pub(super) log_dir: PathBuf,
}

/// A mount that is taken down when this is dropped.
#[derive(Debug)]
pub(super) struct Mounted<'a> {
    plan: &'a MountPlan,
    daemon: Option<Pid>,
    unmounted: bool,
}

impl MountPlan {
    /// Runs `warmfs mount` and waits for it to return.
    pub(super) fn mount(&self) -> Result<Mounted<'_>, String> {
        // First, so that a mount that fails half way is taken down too.
        let mut mounted = Mounted { plan: self, daemon: None, unmounted: false };
        let mut mount = self.command("mount");
        mount.arg(&self.uri).arg(&self.dir);
        mount.args(["--endpoint-url", &self.endpoint_url, "--no-sign-request"]);
        mount.arg("--cache-dir").arg(&self.cache_dir);
        mount.args(["--cache-size", &self.cache_size_bytes.to_string()]);
        self.run("mount", mount)?;
        let mut status = self.command("status");
        status.arg(&self.dir).arg("--json");
        mounted.daemon = self.run("status", status).ok().and_then(|json| daemon_pid(&json));
        Ok(mounted)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(verb);
        // The demo's options are all on its command line.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("WARMFS_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a command and returns its output; the error is its last line.
    fn run(&self, verb: &str, mut command: Command) -> Result<String, String> {
        let wrong = |error: io::Error| format!("warmfs {verb}: {error}");
        let out = self.log_dir.join(format!("{verb}.out"));
        let err = self.log_dir.join(format!("{verb}.err"));
        // Files, not pipes: a daemon that kept one open would hold us up.
        command.stdin(Stdio::null());
        command.stdout(File::create(&out).map_err(wrong)?);
        command.stderr(File::create(&err).map_err(wrong)?);
        let status = run_limited(&mut command, COMMAND_MAX).map_err(wrong)?;
        if status.success() {
            return fs::read_to_string(out).map_err(wrong);
        }
        let said = fs::read_to_string(err).unwrap_or_default();
        let line = said.lines().rev().find(|line| !line.trim().is_empty());
        Err(format!("warmfs {verb}: {}", line.map_or(status.to_string(), str::to_owned)))
    }
}

impl Mounted<'_> {
    /// Runs `warmfs unmount` and waits for the daemon to end.
    pub(super) fn unmount(mut self) -> Result<(), String> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<(), String> {
        self.unmounted = true;
        let mut unmount = self.plan.command("unmount");
        unmount.arg(&self.plan.dir);
        let unmounted = self.plan.run("unmount", unmount);
        if is_mounted(&self.plan.dir) {
            tear_off(&self.plan.dir);
        }
        // Unknown if the mount failed; it may be starting all the same.
        let found = daemons_of(&self.plan.program, &self.plan.cache_dir);
        for daemon in self.daemon.into_iter().chain(found) {
            end_daemon(daemon, &self.plan.program);
        }
        unmounted.map(drop)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if !self.unmounted {
            // Whoever drops it early has a better error to tell.
            let _ = self.take_down();
        }
    }
}

fn run_limited(command: &mut Command, limit: Duration) -> io::Result<ExitStatus> {
    // Out of the terminal's reach: Ctrl-C is for the demo, which cleans up.
    let mut child = command.process_group(0).spawn()?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            // With whatever it runs in turn.
            let group = i32::try_from(child.id()).map(Pid::from_raw);
            if !group.is_ok_and(|group| killpg(group, Signal::SIGKILL).is_ok()) {
                child.kill()?;
            }
            child.wait()?;
            let message = format!("took longer than {} s", limit.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        thread::sleep(POLL);
    }
}

fn daemon_pid(status: &str) -> Option<Pid> {
    let status: serde_json::Value = serde_json::from_str(status).ok()?;
    let pid = i32::try_from(status.get("pid")?.as_i64()?).ok()?;
    // 0 and below mean groups to kill(2), 1 is init.
    (pid > 1).then(|| Pid::from_raw(pid))
}

/// Other processes of `program` with the demo's own cache directory among
/// their arguments.
fn daemons_of(program: &Path, cache_dir: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.map(Pid::from_raw).filter(|&pid| {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments.split(|&byte| byte == 0).any(|arg| arg == cache_dir.as_os_str().as_bytes())
            && pid != Pid::this()
            && runs(pid, program)
    });
    ours.collect()
}

/// Waits for the daemon to end by itself, then asks it to, then makes it.
fn end_daemon(daemon: Pid, program: &Path) {
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
        // Looked at each time: the id may be another process's by now.
        if !runs(daemon, program) {
            return;
        }
        if let Some(signal) = signal {
            let _ = kill(daemon, signal);
        }
        let since = Instant::now();
        while runs(daemon, program) && since.elapsed() < DAEMON_END_MAX {
            thread::sleep(POLL);
        }
    }
}

fn runs(pid: Pid, program: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)
}

/// Whether something is mounted at `dir`. Asks the kernel's table, not the
/// directory: a mount that hangs would not answer.
pub(in crate::cli) fn is_mounted(dir: &Path) -> bool {
    topmost_at(dir).is_ok_and(|mount| mount.is_some())
}

/// Takes a mount down by force: aborts its connection, so that whoever waits
/// for it gets an error, and detaches it.
pub(in crate::cli) fn tear_off(dir: &Path) {
    // Each time round takes one of the mounts that lie over one another here.
    for _ in 0..4 {
        let Ok(Some(mount)) = topmost_at(dir) else { return };
        // FUSE has no device of its own; numbers of real ones mean others here.
        if let (0, minor) = mount.device {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
        if umount2(dir, MntFlags::MNT_DETACH).is_err() {
            // Not root: the helper may do it for us.
            let mut helper = Command::new("fusermount3");
            helper.arg("-uz").arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
            let _ = run_limited(&mut helper, Duration::from_secs(3));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_those_of_single_processes() {
        assert_eq!(daemon_pid(r#"{"schema":1,"pid":42}"#), Some(Pid::from_raw(42)));
        for wrong in ["", "{}", r#"{"pid":0}"#, r#"{"pid":-1}"#, r#"{"pid":1}"#, "[]"] {
            assert_eq!(daemon_pid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn daemons_are_found_by_their_cache() {
        let dir = tempfile::tempdir().unwrap();
        let shell = fs::canonicalize("/bin/sh").unwrap();
        // The shell has more to do, so that it does not become what it runs.
        let script = "read line; true";
        let mut daemon = Command::new(&shell)
            .args(["-c", script, "sh"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
        let found = || daemons_of(&shell, dir.path());
        while found().is_empty() {
            thread::sleep(POLL);
        }
        assert_eq!(found(), [pid]);
        assert_eq!(daemons_of(&shell, Path::new("/elsewhere")), []);
        kill(pid, Signal::SIGKILL).unwrap();
        daemon.wait().unwrap();
        assert_eq!(found(), []);
    }

    #[test]
    fn commands_are_limited_in_time() {
        let ended = run_limited(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(run_limited(&mut Command::new("true"), COMMAND_MAX).unwrap().success());
    }
}
