//! Ending early: a signal asks everything to stop and be cleared away, a second
//! one ends the process at once.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often a wait looks whether it is still wanted.
pub(super) const POLL: Duration = Duration::from_millis(50);

/// The exit code once it is to end; 0 until then.
#[derive(Debug, Default)]
pub(super) struct Stop(AtomicU8);

impl Stop {
    pub(super) fn set(&self, code: u8) {
        self.0.store(code, Ordering::Relaxed);
    }

    pub(super) fn code(&self) -> Option<u8> {
        Some(self.0.load(Ordering::Relaxed)).filter(|code| *code != 0)
    }

    /// Ends once it is set.
    pub(super) async fn wait(&self) {
        while self.code().is_none() {
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Sets `stop` on SIGINT, SIGTERM and SIGHUP. Needs a runtime.
///
/// # Errors
/// If signals cannot be handled.
pub(super) fn on_signals(stop: &Arc<Stop>) -> io::Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        tokio::spawn(on_signal(signal(kind)?, kind, stop.clone()));
    }
    Ok(())
}

async fn on_signal(mut signal: Signal, kind: SignalKind, stop: Arc<Stop>) {
    // As a shell reports it. Signal numbers are small.
    let code = 128 + u8::try_from(kind.as_raw_value()).unwrap_or(0);
    while signal.recv().await.is_some() {
        if stop.code().is_some() {
            process::exit(i32::from(code));
        }
        stop.set(code);
    }
}
