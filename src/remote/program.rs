//! Runs a program that prints credentials: without a shell, with the environment that
//! is named, for a bounded time and with bounded output. What it prints never gets into
//! a message; what it complains of does, one line of it.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::answer::late;
use super::error::one_line;
use super::{ErrorKind, RemoteError};

/// Most bytes that are read of what it prints, and of its complaints: a token has a few
/// thousand.
const PRINTED_BYTES_MAX: u64 = 64 << 10;

/// What a program said before it ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) printed: Vec<u8>,
    /// The last line of its complaints, which names the error where a trace comes first.
    pub(super) complaint: String,
}

/// Runs `command` to its end. What it started itself ends with it.
///
/// # Errors
/// [`ErrorKind::Credentials`] when it cannot be run, [`ErrorKind::Transient`] when it
/// takes longer than `limit`.
pub(super) async fn run(
    mut command: Command,
    what: &str,
    limit: Duration,
) -> Result<Ended, RemoteError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let failed = |error: std::io::Error| {
        let message = format!("{what}: it cannot be run: {error}; install it, or see to its PATH");
        RemoteError::new(ErrorKind::Credentials, message)
    };
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(failed)?;
    let group = Group(child.id());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let all = async {
        let (printed, complaints) = tokio::join!(beginning(stdout), beginning(stderr));
        (child.wait().await, printed, complaints)
    };
    let (status, printed, complaints) = timeout(limit, all).await.map_err(|_| late(what, limit))?;
    drop(group);
    let complaints = String::from_utf8_lossy(&complaints);
    let complaint = one_line(complaints.trim().lines().last().unwrap_or_default());
    Ok(Ended { status: status.map_err(failed)?, printed, complaint })
}

/// The first bytes of a pipe. The rest goes nowhere, so that the writer comes to an end.
async fn beginning(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let Some(mut pipe) = pipe else { return bytes };
    // What cannot be read is not there, and missed by whoever parses it.
    let _ = (&mut pipe).take(PRINTED_BYTES_MAX).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    bytes
}

/// A program and what it started; killed when dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.and_then(|id| i32::try_from(id).ok()) {
            // No such group is what one hopes for.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn what_it_prints_is_bounded_and_it_ends_all_the_same() {
        let ended = run(shell("yes | head -c 1000000; echo a >&2; echo b >&2; exit 3"), "x", LONG);
        let ended = ended.await.unwrap();
        assert_eq!(ended.printed.len() as u64, PRINTED_BYTES_MAX);
        assert_eq!((ended.status.code(), ended.complaint.as_str()), (Some(3), "b"));
    }

    #[tokio::test]
    async fn one_that_hangs_ends_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("sleep 600 > {} & wait", fifo.display());
        let limit = Duration::from_millis(300);
        let hung = tokio::spawn(async move { run(shell(&script), "what", limit).await.err() });
        // Both ends are open once `sleep` runs; the end of the file says that it is gone.
        let read = tokio::task::spawn_blocking(move || std::fs::read(fifo).unwrap());
        let error = hung.await.unwrap().unwrap();
        assert_eq!(error.kind, ErrorKind::Transient, "{error}");
        assert!(read.await.unwrap().is_empty());
    }

    const LONG: Duration = Duration::from_secs(60);
}
