//! The hidden verb behind `mount`: this process becomes a daemon.
//!
//! Its stdout is a pipe to the command that started it. One line says what
//! became of the start; then the pipe is closed and nothing of the caller's
//! is held any more.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{logging, run_daemon};
use crate::config::CacheOptions;
use crate::control::wire::ErrorReply;
use crate::daemon::{self, StartError, read_through};

#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    #[arg(long)]
    cache_dir: PathBuf,
    /// In bytes.
    #[arg(long)]
    cache_size: Option<u64>,
    /// In bytes.
    #[arg(long)]
    memory_limit: Option<u64>,
    /// In bytes.
    #[arg(long)]
    metadata_memory: Option<u64>,
}

/// The line on the pipe.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Readiness {
    /// It listens at this socket.
    Listening(PathBuf),
    /// Another daemon does.
    AlreadyServed(PathBuf),
    /// It cannot run.
    Failed(ErrorReply),
}

/// Serves until the last mount is gone.
pub(super) fn run(args: DaemonArgs) -> Result<(), ErrorReply> {
    logging::init(None);
    let cache = CacheOptions {
        dir: args.cache_dir,
        size: args.cache_size,
        memory: args.memory_limit,
        metadata: args.metadata_memory,
    };
    run_daemon(async {
        let started =
            daemon::start(cache, |cache| async move { read_through::open(&cache).await }).await;
        match started {
            Ok(running) => {
                announce(&Readiness::Listening(running.socket));
                if let Err(error) = running.finished.await {
                    tracing::error!("the daemon broke: {error}");
                }
                Ok(())
            }
            Err(StartError::AlreadyServed(socket)) => {
                announce(&Readiness::AlreadyServed(socket));
                Ok(())
            }
            Err(StartError::Failed(error)) => {
                announce(&Readiness::Failed(error.clone()));
                Err(error)
            }
        }
    })
}

/// Tells the caller and lets go of it. A caller that is gone already is no
/// concern: without a request the daemon soon exits.
fn announce(readiness: &Readiness) {
    if let Ok(mut line) = serde_json::to_vec(readiness) {
        line.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
    match File::options().write(true).open("/dev/null") {
        Ok(null) => {
            if let Err(error) = nix::unistd::dup2_stdout(&null) {
                tracing::warn!("the caller's pipe stays open: {error}");
            }
        }
        Err(error) => tracing::warn!("the caller's pipe stays open: /dev/null: {error}"),
    }
}
