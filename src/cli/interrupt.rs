//! SIGINT and SIGTERM, for commands that stop in order.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control::wire::{ErrorCode, ErrorReply};

/// Both signals; from now on they do not end the process by themselves.
pub(super) struct Interrupt(Signal, Signal);

impl Interrupt {
    pub(super) fn new() -> Result<Interrupt, ErrorReply> {
        let failed = |error| {
            ErrorReply::new(ErrorCode::Environment, format!("cannot handle signals: {error}"))
        };
        let interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let terminate = signal(SignalKind::terminate()).map_err(failed)?;
        Ok(Interrupt(interrupt, terminate))
    }

    /// Returns with the next signal, and gives the exit code that shells give it.
    pub(super) async fn received(&mut self) -> u8 {
        tokio::select! {
            _ = self.0.recv() => 130,
            _ = self.1.recv() => 143,
        }
    }
}
