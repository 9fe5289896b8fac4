//! `warmfs unmount`: asks the daemon that serves the folder, or cleans up
//! after one that died.

use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{client_runtime, output, status};
use crate::control::cache_lock::{self, CacheLock};
use crate::control::wire::{ErrorCode, ErrorReply, UnmountRequest};
use crate::daemon::{kernel, mountinfo, preflight, unmount_failed};

/// How long a daemon may take to save its index.
const EXIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often to look whether it has let go of its cache.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long it may take to end after that. It does not while a call into a `file:///`
/// source hangs, which no signal ends; nothing depends on it any more.
const END_LIMIT: Duration = Duration::from_secs(3);

/// Unmount a folder; returns once the cache is saved
#[derive(Debug, Args)]
pub(super) struct UnmountArgs {
    /// The mount point; after --no-fuse the URI
    dir: PathBuf,
    /// Detach it although files are open; they stay readable
    #[arg(short, long)]
    lazy: bool,
}

/// Unmounts, and waits for the daemon if that was its last mount.
pub(super) fn run(args: UnmountArgs) -> Result<(), ErrorReply> {
    let dir = preflight::resolve_place(&args.dir)?;
    client_runtime()?.block_on(async {
        let Some((client, _)) = status::find_mount(&dir).await? else {
            return without_daemon(&dir, args.lazy);
        };
        // Before the request, while the process is certain to be that daemon.
        let pid = client.daemon().pid;
        let process = open_process(pid);
        let request = UnmountRequest { dir: dir.clone(), lazy: args.lazy };
        let reply = client.unmount(&request).await?;
        if reply.still_in_use {
            let dir = dir.display();
            return output::line(&format!("{dir} is detached; its open files stay readable"));
        }
        match process {
            Some(process) if reply.daemon_exits => {
                wait_for_exit(&process, pid, &client.daemon().cache_dir)
            }
            _ => Ok(()),
        }
    })
}

/// For a mount whose daemon died, or is out of this user's reach.
fn without_daemon(dir: &Path, lazy: bool) -> Result<(), ErrorReply> {
    let not_ours = || {
        let message = format!("{} is not a warmfs mount", dir.display());
        ErrorReply::new(ErrorCode::NotMounted, message).with_hint("`warmfs status` lists them")
    };
    let found = mountinfo::topmost_at(dir).map_err(|error| {
        ErrorReply::new(ErrorCode::Environment, format!("cannot read mounts: {error}"))
    })?;
    if !found.is_some_and(|mount| mount.is_warmfs()) {
        return Err(not_ours());
    }
    let lazy = lazy || kernel::is_stale(dir);
    let unmounted = kernel::unmount(dir, lazy);
    unmounted.map_err(|error| match unmount_failed(dir, &error) {
        busy if busy.code == ErrorCode::Busy => busy,
        denied => status::not_served(dir, denied),
    })
}

/// A handle on a process; `None` where the kernel has none (before 5.3).
fn open_process(pid: u32) -> Option<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).ok()?;
    // SAFETY: takes no pointers; a result of 0 and above is a new descriptor
    // that nothing else owns.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: see above.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// With the process goes its lock on the cache: the next mount finds it free.
fn wait_for_exit(process: &OwnedFd, pid: u32, cache_dir: &Path) -> Result<(), ErrorReply> {
    let start = Instant::now();
    let mut free_since = None;
    let interval = PollTimeout::try_from(LOOK_INTERVAL).unwrap_or(PollTimeout::MAX);
    while start.elapsed() < EXIT_TIMEOUT {
        let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
        if !matches!(poll(&mut fds, interval), Ok(0)) {
            return Ok(());
        }
        if free_since.is_none() && has_let_go(cache_dir, pid) {
            free_since = Some(Instant::now());
        }
        if free_since.is_some_and(|since| since.elapsed() >= END_LIMIT) {
            return Ok(());
        }
    }
    let message = format!("unmounted, but the daemon (process {pid}) has not ended");
    Err(ErrorReply::new(ErrorCode::Environment, message).with_hint("see its log"))
}

/// Whether a daemon has cleared its record and dropped its lock, which is its last act.
fn has_let_go(cache_dir: &Path, pid: u32) -> bool {
    cache_lock::read_record(cache_dir).is_none_or(|record| record.pid != pid)
        && matches!(CacheLock::try_take(cache_dir), Ok(Some(_)))
}
