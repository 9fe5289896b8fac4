//! One folder for everything a run makes: the store's objects on a tmpfs of its
//! own (dropping the page cache must not make the *store* cold), and the mounts
//! and caches of peers on the disk around it.
//!
//! It is cleaned up when dropped, and on Ctrl-C: mounts below it are aborted,
//! processes started for it are killed by pid, and the folder is removed.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::WaitStatus::StillAlive;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use super::{Failure, failed};
use crate::common::{abort_mounts, is_mounted, poll};

/// The magic number of a tmpfs, as statfs(2) tells it.
const TMPFS: i64 = 0x0102_1994;

/// For one process to end when everything is cleaned up.
const CLEAN_UP_MAX: Duration = Duration::from_secs(3);

/// What a Ctrl-C must end. A run has one work folder.
static LIVE: Mutex<Live> = Mutex::new(Live { root: None, pids: Vec::new() });

struct Live {
    root: Option<PathBuf>,
    pids: Vec<u32>,
}

pub(crate) struct Work {
    root: PathBuf,
    next: AtomicU32,
}

impl Work {
    /// Makes the folder in `$TMPDIR` and its tmpfs. Needs root.
    pub(crate) fn new() -> Result<Work, Failure> {
        if !nix::unistd::Uid::effective().is_root() {
            return Err("needs root: it mounts a tmpfs and drops the page cache".to_owned());
        }
        let root = tempfile::Builder::new().prefix("warmfs-bench-").tempdir();
        let root = root.map_err(failed("a work folder"))?.keep();
        let root = root.canonicalize().map_err(failed("a work folder"))?;
        live().root = Some(root.clone());
        end_on_ctrl_c();
        let work = Work { root, next: AtomicU32::new(0) };
        let store = work.store();
        fs::create_dir(&store).map_err(failed("a folder for the store"))?;
        let none: Option<&str> = None;
        mount(Some("tmpfs"), &store, Some("tmpfs"), MsFlags::empty(), none)
            .map_err(failed("a tmpfs for the store's objects"))?;
        Ok(work)
    }

    /// Where the store's objects and its configuration lie.
    pub(crate) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// A new folder on disk.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let folder = self.root.join(format!("{number}-{name}"));
        fs::create_dir(&folder).expect("a new folder on disk");
        folder
    }

    /// Whether what looks like the disk is memory: then no figure of a cache is one.
    pub(crate) fn is_in_memory(&self) -> bool {
        nix::sys::statfs::statfs(&self.root).is_ok_and(|fs| fs.filesystem_type().0 == TMPFS)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        clean_up();
    }
}

/// A process that must not outlive the run.
pub(crate) fn started(pid: u32) {
    live().pids.push(pid);
}

/// A process that was waited for: its pid may be another's from now on.
pub(crate) fn ended(pid: u32) {
    live().pids.retain(|known| *known != pid);
}

/// Removes a folder of a peer, whatever is still mounted in it.
pub(crate) fn remove(folder: &Path) {
    abort_mounts(folder);
    // What a killed peer leaves behind goes with the work folder at the latest.
    let _ = fs::remove_dir_all(folder);
}

/// Writes out the files below `folder` and empties the page cache, which drops
/// clean pages only. Not by sync(2): that waits for everything that anybody on the
/// machine writes, for minutes on a busy one.
pub(crate) fn drop_page_cache(folder: &Path) -> Result<(), Failure> {
    write_out(folder).map_err(failed("writing a cache out"))?;
    fs::write("/proc/sys/vm/drop_caches", "1").map_err(failed("drop_caches"))
}

fn write_out(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() && !is_mounted(&path) {
            write_out(&path)?;
        } else if kind.is_file() {
            let Ok(file) = fs::File::open(&path) else { continue };
            let all = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
            // SAFETY: a valid descriptor and no pointers.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, all) };
        }
    }
    Ok(())
}

fn live() -> std::sync::MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clean_up() {
    let mut live = live();
    let Some(root) = live.root.take() else { return };
    abort_mounts(&root);
    let pids: Vec<Pid> = live.pids.drain(..).map(|pid| Pid::from_raw(pid as i32)).collect();
    for pid in &pids {
        // Asked first: nginx takes its workers along, SIGKILL would leave them.
        let _ = kill(*pid, Signal::SIGTERM);
    }
    for pid in pids {
        let ended = || !matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(StillAlive));
        if !poll(CLEAN_UP_MAX, ended) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    let _ = umount2(&root.join("store"), MntFlags::MNT_DETACH);
    let _ = fs::remove_dir_all(&root);
}

/// A thread waits for SIGINT and SIGTERM and cleans up: what takes locks and
/// removes files cannot run in a signal handler.
fn end_on_ctrl_c() {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime for signals").block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
            let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        eprintln!("interrupted: cleaning up");
        clean_up();
        std::process::exit(130);
    });
    // A closed pipe is an error of println!, not a silent death without cleaning up.
    // SAFETY: ignoring a signal installs no handler.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
}

/// What the machine is, in one line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 =
        memory.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).unwrap_or_default();
    format!("{cores} cores, {} GiB, kernel {}", kib >> 20, kernel.trim())
}

/// The first line of what a program says about itself.
pub(crate) fn says(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| {
            // nginx tells its version on stderr.
            let text = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
        },
    )
}
