//! The hidden verb behind `mount`: this process becomes a daemon.
//!
//! Its stdout is a pipe to the command that started it. One line says what
//! became of the start; then the pipe is closed and nothing of the caller's
//! is held any more.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::logging::{self, LogFormat};
use super::run_daemon;
use crate::config::{CacheOptions, DaemonOptions};
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::supervision::{Kept, Supervisor};
use crate::daemon::{self, StartError, Supervision, read_through};

#[derive(Debug, Args)]
pub(super) struct DaemonArgs {
    /// Stdin leads to a supervisor.
    #[arg(long)]
    supervised: bool,
    #[arg(long)]
    pub(super) cache_dir: PathBuf,
    #[arg(long, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
    /// In bytes.
    #[arg(long)]
    cache_size: Option<u64>,
    /// In bytes.
    #[arg(long)]
    memory_limit: Option<u64>,
    /// In bytes.
    #[arg(long)]
    metadata_memory: Option<u64>,
    #[arg(long)]
    metrics_listen: Option<SocketAddr>,
}

impl DaemonArgs {
    /// Those of a cache.
    pub(super) fn of(
        cache: &CacheOptions,
        daemon: &DaemonOptions,
        log_format: LogFormat,
    ) -> DaemonArgs {
        DaemonArgs {
            supervised: false,
            cache_dir: cache.dir.clone(),
            log_format,
            cache_size: cache.size,
            memory_limit: cache.memory,
            metadata_memory: cache.metadata,
            metrics_listen: daemon.metrics_listen,
        }
    }

    /// As a command line has them, but for the supervision.
    pub(super) fn to_args(&self) -> Vec<OsString> {
        let mut args = vec!["--cache-dir".into(), self.cache_dir.clone().into_os_string()];
        args.extend(["--log-format".into(), self.log_format.name().into()]);
        for (name, value) in [
            ("--cache-size", self.cache_size),
            ("--memory-limit", self.memory_limit),
            ("--metadata-memory", self.metadata_memory),
        ] {
            if let Some(bytes) = value {
                args.extend([name.into(), bytes.to_string().into()]);
            }
        }
        if let Some(address) = self.metrics_listen {
            args.extend(["--metrics-listen".into(), address.to_string().into()]);
        }
        args
    }
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
    logging::init(None, args.log_format, &args.cache_dir);
    let cache = CacheOptions {
        dir: args.cache_dir,
        size: args.cache_size,
        memory: args.memory_limit,
        metadata: args.metadata_memory,
    };
    let options = DaemonOptions { metrics_listen: args.metrics_listen };
    let supervision = if args.supervised { supervision()? } else { Supervision::default() };
    let mounts = supervision.resume.mounts.kept.clone();
    run_daemon(async {
        hear_hang_ups();
        let open = |cache| async move { read_through::open(&cache).await };
        match daemon::start(cache, options, supervision, open).await {
            Ok(running) => {
                announce(&Readiness::Listening(running.socket));
                running.finished.await.map_err(|error| {
                    tracing::error!("the daemon broke: {error}");
                    let message = format!("a defect in warmfs: {error}");
                    ErrorReply::new(ErrorCode::Internal, message).with_hint("please report it")
                })
            }
            Err(StartError::AlreadyServed(socket)) => {
                announce(&Readiness::AlreadyServed(socket.clone()));
                hand_over(&socket, mounts).await
            }
            Err(StartError::Failed(error)) => {
                announce(&Readiness::Failed(error.clone()));
                Err(error)
            }
        }
    })
}

/// Has SIGHUP look again at what is to be logged.
pub(super) fn hear_hang_ups() {
    match signal(SignalKind::hangup()) {
        Ok(mut hang_up) => {
            tokio::spawn(async move {
                while hang_up.recv().await.is_some() {
                    logging::reread();
                }
            });
        }
        Err(error) => tracing::warn!("cannot handle SIGHUP: {error}"),
    }
}

fn supervision() -> Result<Supervision, ErrorReply> {
    let (supervisor, resume) = Supervisor::at_stdin().map_err(|error| {
        let message = format!("there is no supervisor: {error}");
        ErrorReply::new(ErrorCode::Environment, message).with_hint("use `warmfs mount`")
    })?;
    Ok(Supervision { supervisor: Arc::new(supervisor), resume })
}

/// Gives the mounts of a daemon that died to one that was started meanwhile.
async fn hand_over(socket: &Path, mounts: Vec<Kept>) -> Result<(), ErrorReply> {
    for kept in mounts {
        let dir = kept.request.place().to_owned();
        // None: it ended already, and the next try serves by itself.
        let client = Client::connect(socket).await?.ok_or_else(|| {
            ErrorReply::new(ErrorCode::ShuttingDown, "the other daemon ended in this moment")
        })?;
        if let Err(error) = client.mount(&kept.request).await {
            tracing::error!("{} is not mounted again: {error}", dir.display());
            daemon::clear_dead(&dir, &kept.created);
        }
    }
    Ok(())
}

/// Tells the caller and lets go of it. A caller that is gone already is no
/// concern: without a request the daemon soon exits.
fn announce(readiness: &Readiness) {
    if let Ok(mut line) = serde_json::to_vec(readiness) {
        line.push(b'\n');
        let mut stdout = std::io::stdout().lock();
        let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
    }
    let_go_of_stdout();
}

/// Has stdout lead nowhere: who reads the pipe waits for its end.
pub(super) fn let_go_of_stdout() {
    match File::options().write(true).open("/dev/null") {
        Ok(null) => {
            if let Err(error) = nix::unistd::dup2_stdout(&null) {
                tracing::warn!("the caller's pipe stays open: {error}");
            }
        }
        Err(error) => tracing::warn!("the caller's pipe stays open: /dev/null: {error}"),
    }
}
