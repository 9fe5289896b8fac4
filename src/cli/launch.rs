//! Starts a daemon in the background: by running this program again, not by
//! forking a process that has threads.
//!
//! The daemon gets a session of its own, so that an interrupt to the caller's
//! process group or a closing terminal does not reach it; none of the caller's
//! descriptors; and none of its secrets, which travel over the socket. Where an automount
//! has it started there is neither terminal nor interrupt, and it stays in the group.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::args::MountPlan;
use super::daemon::{DaemonArgs, Readiness};
use super::logging;
use crate::config::CallerEnv;
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::{log_file, mountinfo, preflight};

/// How long a daemon may take to listen: it may wait 10 s for one that is
/// saving its index, and check an index after a crash.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest line a starting daemon sends, in bytes.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// How long a daemon whose first mount failed may take to exit.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A daemon, and the process if it was started here.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) client: Client,
    child: Option<Child>,
}

impl Launched {
    /// A daemon that was running already.
    pub(super) fn found(client: Client) -> Self {
        Launched { client, child: None }
    }

    /// After a failed mount: waits for the daemon to be gone again.
    pub(super) async fn settle(self) {
        if let Some(mut child) = self.child {
            let _ = tokio::time::timeout(EXIT_TIMEOUT, child.wait()).await;
        }
    }
}

/// Starts the daemon of the plan's cache directory and waits until it listens.
pub(super) async fn launch(plan: &MountPlan) -> Result<Launched, ErrorReply> {
    create_cache_dir(plan)?;
    let log_path = plan.log_file.clone().unwrap_or_else(|| log_file(&plan.cache));
    let mut child = command(plan)
        .stderr(logging::open(&log_path)?)
        .spawn()
        .map_err(|error| failed(format!("cannot start the daemon: {error}")))?;
    let silent = || {
        failed("the daemon did not start".to_owned())
            .with_hint(format!("see {}", log_path.display()))
    };
    let stdout = child.stdout.take().ok_or_else(silent)?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout.take(LINE_BYTES_MAX));
    let read = tokio::time::timeout(START_TIMEOUT, reader.read_line(&mut line)).await;
    if !matches!(read, Ok(Ok(_))) {
        // The supervisor passes it on.
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        return Err(silent());
    }
    let (socket, child) = match serde_json::from_str(&line) {
        Ok(Readiness::Listening(socket)) => (socket, Some(child)),
        Ok(Readiness::AlreadyServed(socket)) => (socket, None),
        Ok(Readiness::Failed(error)) => return Err(error),
        Err(_) => return Err(silent()),
    };
    match Client::connect(&socket).await? {
        Some(client) => Ok(Launched { client, child }),
        None => Err(ErrorReply::new(ErrorCode::ShuttingDown, "the daemon ended at once")
            .with_hint(format!("see {}", log_path.display()))),
    }
}

/// Creates the cache directory, for its owner alone.
pub(super) fn create_cache_dir(plan: &MountPlan) -> Result<(), ErrorReply> {
    let dir = &plan.cache.dir;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        let why = preflight::describe(&error);
        failed(format!("cannot create the cache directory {}: {why}", dir.display()))
            .with_hint("choose another with --cache-dir")
    })
}

fn command(plan: &MountPlan) -> Command {
    let mut command = Command::new(own_program());
    let verb = if plan.is_supervised { "supervise" } else { "daemon" };
    let args = DaemonArgs::of(&plan.cache, &plan.daemon, plan.log_format);
    command.arg0("warmfs").arg(verb).args(args.to_args());
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_secret(name)) {
        command.env_remove(name);
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    let leave = if is_awaited(plan) { leave_descriptors } else { leave_caller };
    // SAFETY: between fork and exec only async-signal-safe system calls are
    // made, and nothing is allocated.
    unsafe { command.pre_exec(leave) };
    command
}

/// Whether an automount waits for one of the mounts. It lets nobody pass before that is there
/// but the process group that it waits for, so the daemon has to stay in that.
fn is_awaited(plan: &MountPlan) -> bool {
    let at = |dir| mountinfo::topmost_at(dir).ok().flatten();
    let mut dirs = plan.requests().filter_map(|request| request.dir.as_deref());
    dirs.any(|dir| at(dir).is_some_and(|mount| mount.waits_for_us()))
}

/// This program, also if its file was replaced by an update meanwhile.
pub(super) fn own_program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// All of the clouds' variables go over the socket, so that none is read from the
/// daemon's environment by mistake. Those of containers name the credentials
/// of the machine, not of the caller.
fn is_secret(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    CallerEnv::may_be_secret(&name) && !name.starts_with("AWS_CONTAINER_")
}

fn leave_caller() -> io::Result<()> {
    nix::unistd::setsid()?;
    leave_descriptors()
}

fn leave_descriptors() -> io::Result<()> {
    // Marked, not closed: std reports a failed exec through one of them.
    // SAFETY: plain system calls on this process's own descriptors.
    unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
        if libc::close_range(3, libc::c_uint::MAX, flags) != 0 {
            // Kernels before 5.11. A caller with more open is rare.
            for fd in 3..1024 {
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
    }
    Ok(())
}

fn failed(message: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::Environment, message)
}
