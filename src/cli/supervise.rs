//! The hidden verb between `mount` and the daemon: a small process that starts the
//! daemon, and another one with the same mounts when it dies.
//!
//! A daemon dies when the machine runs out of memory, or of a defect. Its mounts are dead
//! then, and are given back at the same places by the next one; what was open in them
//! is lost. A daemon that ends by itself ends its supervisor, and so does a signal,
//! which is passed on. A daemon that dies again and again is given up, and nothing is
//! left mounted.
//!
//! This process holds requests with credentials, and nobody reads its memory.

use std::collections::VecDeque;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::daemon::{DaemonArgs, let_go_of_stdout};
use super::launch::own_program;
use super::{client_runtime, logging, report};
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::supervision::{Change, Mounts, RESUME_LIMIT, Resume};
use crate::daemon::{clear_dead, prepare_to_hold_secrets};

/// Daemons started within [`WINDOW`] before the next one is not any more: more than
/// whoever is out of memory now and then needs, and few enough that a daemon which dies
/// at once is not started all day.
const RESTARTS_MAX: usize = 100;
const WINDOW: Duration = Duration::from_secs(600);

/// Daemons that die one after the other wait a little longer each time, so that a
/// defect takes half a minute to be given up. Whoever reads waits with them: the
/// longest pause leaves a mount dead for less than a second.
const AT_ONCE: usize = 3;
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(250);
const IN_A_ROW: Duration = Duration::from_secs(60);

/// Time for what a daemon said before it died to be read. It lies in the socket; only a
/// process that the daemon left behind could keep that open.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);

/// Supervises a daemon until it ends.
pub(super) fn run(args: &DaemonArgs) -> ExitCode {
    logging::init(None, args.log_format, &args.cache_dir);
    // What the daemon inherits besides is to be the caller's.
    prepare_to_hold_secrets();
    let status = client_runtime().and_then(|runtime| runtime.block_on(supervise(args)));
    match status {
        Ok(status) => ExitCode::from(u8::from(!status.success())),
        Err(error) => report(Err(error)),
    }
}

async fn supervise(args: &DaemonArgs) -> Result<ExitStatus, ErrorReply> {
    let mut signals = Signals::new().map_err(|error| failed("cannot handle signals", &error))?;
    let mut resume = Resume { supervisor: std::process::id(), ..Resume::default() };
    let mut restarts = Restarts::default();
    loop {
        let ended = match Daemon::start(args, &resume) {
            Ok(mut daemon) => {
                let_go_of_stdout();
                daemon.watch(&mut resume.mounts, &mut signals).await
            }
            Err(error) => Err(error),
        };
        let is_over = match &ended {
            Ok(status) => status.success() || resume.mounts.is_empty(),
            Err(_) => resume.mounts.is_empty(),
        };
        if is_over {
            return ended;
        }
        // That it cannot be started passes as well: there is no memory, or no process left.
        let reason = match &ended {
            Ok(status) => describe(*status),
            Err(error) => error.to_string(),
        };
        if signals.is_told_to_end {
            give_up(&resume.mounts);
            return ended;
        }
        let Some(pause) = restarts.next(Instant::now()) else {
            tracing::error!("the daemon died too often, last by {reason}: its mounts are removed");
            give_up(&resume.mounts);
            return ended;
        };
        resume.restarts += 1;
        tracing::warn!(restarts = resume.restarts, "the daemon died, {reason}: starting another");
        resume.reason = Some(reason);
        tokio::time::sleep(pause).await;
    }
}

/// Leaves nothing dead behind.
fn give_up(mounts: &Mounts) {
    for mount in &mounts.kept {
        clear_dead(mount.request.place(), &mount.created);
    }
    for (dir, created) in &mounts.pending {
        clear_dead(dir, created);
    }
}

/// One daemon.
struct Daemon {
    child: Child,
    lines: Lines<BufReader<UnixStream>>,
}

impl Daemon {
    fn start(args: &DaemonArgs, resume: &Resume) -> Result<Daemon, ErrorReply> {
        let start = || -> std::io::Result<Daemon> {
            let (ours, theirs) = StdUnixStream::pair()?;
            let mut command = Command::new(own_program());
            command.arg0("warmfs").arg("daemon").args(args.to_args()).arg("--supervised");
            let mut line = serde_json::to_vec(resume)?;
            line.push(b'\n');
            let child = command.stdin(OwnedFd::from(theirs)).spawn()?;
            // The command holds the daemon's end, which is to be closed with the daemon.
            drop(command);
            // It fits the socket, or is written while the daemon reads. One that is dead
            // already is found below.
            ours.set_write_timeout(Some(RESUME_LIMIT))?;
            if let Err(error) = (&ours).write_all(&line) {
                tracing::warn!(%error, "the daemon does not take its mounts");
            }
            ours.set_nonblocking(true)?;
            let lines = BufReader::new(UnixStream::from_std(ours)?).lines();
            Ok(Daemon { child, lines })
        };
        start().map_err(|error| failed("cannot start the daemon", &error))
    }

    /// Notes what becomes of the mounts, until the daemon is gone.
    async fn watch(
        &mut self,
        mounts: &mut Mounts,
        signals: &mut Signals,
    ) -> Result<ExitStatus, ErrorReply> {
        let mut hears = true;
        loop {
            tokio::select! {
                line = self.lines.next_line(), if hears => hears = note(line.ok().flatten(), mounts),
                status = self.child.wait() => {
                    let status = status.map_err(|error| failed("cannot wait", &error))?;
                    let rest = async {
                        while note(self.lines.next_line().await.ok().flatten(), mounts) {}
                    };
                    let _ = timeout(DRAIN_LIMIT, rest).await;
                    return Ok(status);
                }
                signal = signals.next() => {
                    if signal == Signal::SIGHUP {
                        logging::reread();
                    }
                    if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
                        let _ = kill(Pid::from_raw(pid), signal);
                    }
                }
            }
        }
    }
}

/// Notes a line; `false` once there are no more.
fn note(line: Option<String>, mounts: &mut Mounts) -> bool {
    let Some(line) = line else { return false };
    match serde_json::from_str::<Change>(&line) {
        Ok(change) => change.apply(mounts),
        // No part of it: it may hold a secret.
        Err(_) => tracing::error!("the daemon said something that cannot be understood"),
    }
    true
}

/// What ends the supervisor, by its daemon.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    is_told_to_end: bool,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            is_told_to_end: false,
        })
    }

    async fn next(&mut self) -> Signal {
        let signal = tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        };
        self.is_told_to_end |= signal != Signal::SIGHUP;
        signal
    }
}

/// When daemons were started.
#[derive(Debug, Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// How long to wait before the next start; `None` if there is to be none.
    fn next(&mut self, now: Instant) -> Option<Duration> {
        self.0.retain(|at| now - *at < WINDOW);
        if self.0.len() >= RESTARTS_MAX {
            return None;
        }
        let in_a_row = self.0.iter().filter(|at| now - **at < IN_A_ROW).count();
        self.0.push_back(now);
        let step = u32::try_from(in_a_row.saturating_sub(AT_ONCE)).unwrap_or(u32::MAX);
        Some(PAUSE.saturating_mul(step).min(PAUSE_MAX))
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal().map(Signal::try_from) {
        Some(Ok(Signal::SIGKILL)) => "killed (out of memory?)".to_owned(),
        Some(Ok(signal)) => format!("ended by {signal}"),
        _ => status.to_string(),
    }
}

fn failed(what: &str, error: &std::io::Error) -> ErrorReply {
    ErrorReply::new(ErrorCode::Environment, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_started_at_once_and_not_for_ever() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        // Killed now and then.
        for n in 0..100 {
            assert_eq!(restarts.next(start + n * IN_A_ROW), Some(Duration::ZERO));
        }
        // Dies of a defect at once.
        let mut restarts = Restarts::default();
        let pauses: Vec<_> = std::iter::from_fn(|| restarts.next(start)).collect();
        assert_eq!(pauses.len(), RESTARTS_MAX);
        assert_eq!(pauses[..AT_ONCE + 2][AT_ONCE..], [Duration::ZERO, PAUSE]);
        assert_eq!(*pauses.last().unwrap(), PAUSE_MAX);
        assert!(restarts.next(start + WINDOW).is_some());
    }

    #[test]
    fn a_death_is_told_by_its_signal() {
        assert!(describe(ExitStatus::from_raw(9)).contains("memory"));
        assert_eq!(describe(ExitStatus::from_raw(11)), "ended by SIGSEGV");
        assert_eq!(describe(ExitStatus::from_raw(256)), "exit status: 1");
    }
}
