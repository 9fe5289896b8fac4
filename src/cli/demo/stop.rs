//! Ending early: signals, and a watchdog against hanging for ever.
//!
//! The demo's own thread looks at [`Stop`] wherever it waits, and cleans up
//! once it is set. If that does not come to an end either, or a second signal
//! arrives, the mount is torn off and the process ends at once.

use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::mounted;

/// Nothing moved for so long: it hangs. Above the time limits of `warmfs mount`
/// and `warmfs unmount`, and enough for a slow disk to write the dataset out.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Cleaning up, with both of those in it, takes no longer than this.
const CLEAN_UP_MAX: Duration = Duration::from_secs(60);

/// Whether to go on, shared by all threads of the demo.
#[derive(Debug, Default)]
pub(super) struct Stop {
    reason: OnceLock<Reason>,
    progress: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// For a person.
    pub(super) message: String,
    /// What the process ends with.
    pub(super) exit_code: u8,
}

/// The demo is to end; [`Stop::reason`] says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped;

impl Stop {
    /// Sets the reason, unless there is one.
    pub(super) fn set(&self, message: impl Into<String>, exit_code: u8) {
        let _ = self.reason.set(Reason { message: message.into(), exit_code });
    }

    pub(super) fn reason(&self) -> Option<&Reason> {
        self.reason.get()
    }

    pub(super) fn check(&self) -> Result<(), Stopped> {
        if self.reason.get().is_some() { Err(Stopped) } else { Ok(()) }
    }

    /// Something moved: so many bytes, or 1 for a step that has none.
    pub(super) fn progress(&self, amount: u64) {
        self.progress.fetch_add(amount, Ordering::Relaxed);
    }

    /// Ends once there is a reason.
    pub(super) async fn wait(&self) {
        while self.check().is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sets `stop` on SIGINT, SIGTERM or SIGHUP; on a second one tears the mount
/// at `mount_dir` off and ends the process. Needs a tokio runtime.
pub(super) fn stop_on_signals(stop: Arc<Stop>, mount_dir: PathBuf) -> std::io::Result<()> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    for kind in kinds {
        let signal = signal(kind)?;
        tokio::spawn(on_signal(signal, kind, stop.clone(), mount_dir.clone()));
    }
    Ok(())
}

async fn on_signal(mut signal: Signal, kind: SignalKind, stop: Arc<Stop>, mount_dir: PathBuf) {
    // As a shell reports it. Signal numbers are small.
    let exit_code = 128 + u8::try_from(kind.as_raw_value()).unwrap_or(0);
    while signal.recv().await.is_some() {
        if stop.check().is_err() {
            tear_off(mount_dir.clone(), exit_code).await;
        }
        stop.set("interrupted", exit_code);
    }
}

/// Sets `stop` when nothing moves any more, and ends the process when cleaning
/// up hangs as well.
pub(super) async fn watch(stop: Arc<Stop>, mount_dir: PathBuf) {
    let mut moved = (stop.progress.load(Ordering::Relaxed), Instant::now());
    let mut stopped_at = None;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let progress = stop.progress.load(Ordering::Relaxed);
        if progress != moved.0 {
            moved = (progress, Instant::now());
        }
        if moved.1.elapsed() > STALL_MAX {
            stop.set(format!("nothing moved for {} s", STALL_MAX.as_secs()), 1);
        }
        if let Some(reason) = stop.reason() {
            let stopped_at: &mut Instant = stopped_at.get_or_insert_with(Instant::now);
            if stopped_at.elapsed() > CLEAN_UP_MAX {
                tear_off(mount_dir.clone(), reason.exit_code).await;
            }
        }
    }
}

async fn tear_off(mount_dir: PathBuf, exit_code: u8) {
    let torn = tokio::task::spawn_blocking(move || mounted::tear_off(&mount_dir));
    // Even that may hang, in a kernel that is unwell.
    let _ = tokio::time::timeout(Duration::from_secs(5), torn).await;
    process::exit(i32::from(exit_code));
}
