//! A daemon's life: take the lock, open the engine, listen, serve until the
//! last mount is gone or a signal says so, save, let go.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Daemon;
use super::engine::Engine;
use super::supervision::{Resume, Supervisor};
use crate::config::{CacheOptions, DaemonOptions};
use crate::control::cache_lock::{self, CacheLock, LockRecord};
use crate::control::client::Client;
use crate::control::exposition;
use crate::control::runtime_dir;
use crate::control::server::Listener;
use crate::control::wire::{ErrorCode, ErrorReply};

/// How long a starting daemon waits for one that is saving its index.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it looks. The kernel tells of a freed lock only those that block
/// for it, and a blocked thread could not be given up.
const LOCK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a daemon stays without a mount request after its start: whoever
/// started it sends one at once, or was interrupted.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long mounts under way may hold up an exit.
const PENDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another one serves the cache directory: use that.
    #[error("the daemon at {} serves this cache", .0.display())]
    AlreadyServed(PathBuf),
    /// It cannot run here.
    #[error(transparent)]
    Failed(#[from] ErrorReply),
}

/// Who starts another daemon if this one dies, and what it begins with; nobody and
/// nothing by default.
#[derive(Debug, Default)]
pub struct Supervision {
    /// Who is told what becomes of the mounts.
    pub supervisor: Arc<Supervisor>,
    /// What this daemon begins with.
    pub resume: Resume,
}

/// A daemon that accepts requests.
#[derive(Debug)]
pub struct Running {
    /// Where it listens.
    pub socket: PathBuf,
    /// Becomes true when its end begins.
    pub closing: watch::Receiver<bool>,
    /// Resolves when it has saved everything and let go of the cache.
    pub finished: JoinHandle<()>,
}

/// Starts a daemon in this process. It ends by itself with its last mount, on
/// SIGINT and on SIGTERM.
///
/// # Errors
/// If the cache is served by another daemon or cannot be used, or there is no
/// place for the socket. Nothing keeps running.
pub async fn start<F>(
    cache: CacheOptions,
    options: DaemonOptions,
    supervision: Supervision,
    open_engine: impl FnOnce(CacheOptions) -> F,
) -> Result<Running, StartError>
where
    F: Future<Output = Result<Arc<dyn Engine>, ErrorReply>>,
{
    let mut lock = take_lock(&cache).await?;
    // Before the engine: a machine without a place for sockets opens no cache.
    let socket = runtime_dir::socket_path(&cache.dir)?;
    let signals = Signals::new().map_err(|error| failed("cannot handle signals", &error))?;
    let engine = open_engine(cache.clone()).await?;
    let record = LockRecord {
        pid: std::process::id(),
        socket: socket.clone(),
        supervisor: supervision.resume.supervisor,
    };
    let listener = match listen(&record, &mut lock, &cache.dir) {
        Ok(listener) => listener,
        Err(error) => {
            engine.shutdown().await;
            return Err(error.into());
        }
    };
    let is_first = supervision.resume.mounts.is_empty();
    let metrics = match (listen_for_metrics(&options).await, is_first) {
        (Ok(metrics), _) => metrics,
        (Err(error), true) => {
            engine.shutdown().await;
            return Err(error.into());
        }
        // Somebody took the place of the daemon that died. Its mounts come first.
        (Err(error), false) => {
            tracing::error!("{error}");
            None
        }
    };
    tracing::info!("serving {} at {}", cache.dir.display(), socket.display());
    let mut daemon = Daemon::new(cache, engine, &supervision);
    let metrics_at = metrics.as_ref().and_then(|metrics| metrics.local_addr().ok());
    daemon.metrics_listen = (options.metrics_listen, metrics_at);
    daemon.restore(supervision.resume.mounts).await;
    if let Some(metrics) = metrics {
        let service = Arc::new(daemon.clone());
        tokio::spawn(exposition::serve(metrics, service, daemon.table.closed()));
    }
    let closing = daemon.table.closed();
    let finished = tokio::spawn(run(daemon, listener, signals, lock));
    Ok(Running { socket, closing, finished })
}

async fn listen_for_metrics(options: &DaemonOptions) -> Result<Option<TcpListener>, ErrorReply> {
    let Some(address) = options.metrics_listen else { return Ok(None) };
    let listener = TcpListener::bind(address).await.map_err(|error| {
        failed(&format!("cannot listen for metrics at {address}"), &error)
            .with_hint("choose another address with --metrics-listen")
    })?;
    Ok(Some(listener))
}

/// Binds the socket and says in the lock where it is.
fn listen(
    record: &LockRecord,
    lock: &mut CacheLock,
    cache_dir: &Path,
) -> Result<Listener, ErrorReply> {
    let socket = &record.socket;
    let listener = Listener::bind(socket)
        .map_err(|error| failed(&format!("cannot listen at {}", socket.display()), &error))
        .map_err(|reply| reply.with_hint("set XDG_RUNTIME_DIR to a folder that you may write"))?;
    write_record(lock, record, cache_dir)?;
    Ok(listener)
}

/// Says in the lock which process holds it, although nothing listens there:
/// who waits for it in vain can be told.
pub(super) fn say_who_holds(lock: &mut CacheLock, cache: &CacheOptions) -> Result<(), ErrorReply> {
    let socket = runtime_dir::socket_path(&cache.dir)?;
    let record = LockRecord { pid: std::process::id(), socket, supervisor: 0 };
    write_record(lock, &record, &cache.dir)
}

fn write_record(
    lock: &mut CacheLock,
    record: &LockRecord,
    cache_dir: &Path,
) -> Result<(), ErrorReply> {
    lock.write_record(record).map_err(|error| lock_failed("write", cache_dir, &error))
}

async fn run(daemon: Daemon, listener: Listener, mut signals: Signals, mut lock: CacheLock) {
    let mut closed = daemon.table.closed();
    let server = tokio::spawn(listener.serve(Arc::new(daemon.clone()), daemon.table.closed()));
    let idle_at_start = async {
        tokio::time::sleep(FIRST_REQUEST_TIMEOUT).await;
        daemon.table.close_if_idle();
        std::future::pending::<()>().await
    };
    tokio::select! {
        _ = closed.wait_for(|closed| *closed) => tracing::info!("nothing is mounted any more"),
        name = signals.next() => tracing::info!("{name}: unmounting everything"),
        () = idle_at_start => {}
        () = daemon.take_samples() => {}
    }
    daemon.table.close();
    let pending = poll_until(PENDING_TIMEOUT, || !daemon.table.has_pending());
    pending.await;
    daemon.remove_all().await;
    if let Err(error) = server.await {
        tracing::error!("the control server broke: {error}");
    }
    daemon.jobs.ended().await;
    daemon.engine.shutdown().await;
    if let Err(error) = lock.clear_record() {
        tracing::warn!("cannot clear the cache's lock: {error}");
    }
    drop(lock);
    tracing::info!("done");
}

pub(super) async fn take_lock(cache: &CacheOptions) -> Result<CacheLock, StartError> {
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match CacheLock::try_take(&cache.dir) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) => {}
            Err(error) => return Err(lock_failed("take", &cache.dir, &error).into()),
        }
        if let Some(client) = Client::of_cache(&cache.dir).await? {
            return Err(StartError::AlreadyServed(client.socket().to_owned()));
        }
        if Instant::now() >= deadline {
            let holder = match cache_lock::read_record(&cache.dir) {
                Some(record) => format!("process {}", record.pid),
                None => "another process".to_owned(),
            };
            let message =
                format!("{holder} holds the cache {} and does not answer", cache.dir.display());
            return Err(ErrorReply::new(ErrorCode::Environment, message)
                .with_hint("wait for it to end, or end it")
                .into());
        }
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

/// Waits for a condition that nothing announces; gives up in the end.
async fn poll_until(limit: Duration, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() && Instant::now() < deadline {
        tokio::time::sleep(LOCK_INTERVAL).await;
    }
}

fn failed(what: &str, error: &io::Error) -> ErrorReply {
    let why = super::preflight::describe(error);
    ErrorReply::new(ErrorCode::Environment, format!("{what}: {why}"))
}

fn lock_failed(what: &str, cache_dir: &Path, error: &io::Error) -> ErrorReply {
    failed(&format!("cannot {what} the lock of the cache {}", cache_dir.display()), error)
        .with_hint("see whether its disk is full, or choose another one with --cache-dir")
}

struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// Received and dropped: a closing terminal is no reason to unmount.
    _hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            _hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
        }
    }
}
