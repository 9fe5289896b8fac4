//! The process behind the mounts: one per cache directory, any number of
//! mounts.
//!
//! It starts with the first mount and exits with the last, whoever unmounts
//! it, saving the index on the way. It owns the cache's lock, its socket, and
//! the mount points it created; see [`table`] for who may end what. Everything
//! about files is the [`engine`]'s.

pub mod direct;
pub mod doctor;
pub mod engine;
mod holders;
mod index_file;
pub mod kernel;
mod look;
mod mount_point;
pub mod mountinfo;
pub mod preflight;
mod process;
mod prometheus;
mod rates;
pub mod read_through;
mod reads;
mod serve;
mod status;
pub mod supervision;
mod table;
mod trouble;
pub mod upkeep;
pub mod walk;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::cache::kill_point;
use crate::config::{CacheOptions, CallerEnv, MountRequest};
use crate::control::server::{Reading, Service};
use crate::control::wire::{
    ErrorCode, ErrorReply, HintRequest, MountReply, Ping, ReadRequest, RenewRequest, RestartStatus,
    StatReply, StatRequest, StatusReply, UnmountReply, UnmountRequest, UpkeepLine, UpkeepRequest,
    WaitRequest,
};
use engine::{Before, Engine};
use mount_point::MountPoint;
pub use mount_point::clear_dead;
pub use process::{logs_to, prepare_to_hold_secrets};
use rates::{Rates, Totals};
pub use serve::{Running, StartError, Supervision, start};
use supervision::{Change, Kept, Mounts, Supervisor};
use table::{Entry, Table};
use upkeep::Jobs;

/// How long an unmounted session may take to end: the kernel's part is done,
/// the rest is the engine's threads.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a mount that is made again may take: a folder on a file system that hangs
/// holds up no other mount.
const RESTORE_LIMIT: Duration = Duration::from_secs(5);

/// How long a look at the figures may take before those of the last one are given.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// How long an unmount waits for a lazily detached mount before it reports
/// that files are still open. Without any the end comes in milliseconds.
const DETACH_GRACE: Duration = Duration::from_millis(500);

/// The mounts of one cache directory.
#[derive(Clone)]
struct Daemon {
    cache: CacheOptions,
    engine: Arc<dyn Engine>,
    table: Arc<Table>,
    jobs: Jobs,
    supervisor: Arc<Supervisor>,
    restarts: Arc<RestartStatus>,
    since: Instant,
    rates: Arc<Rates>,
    /// `--metrics-listen`, and where that came to be.
    metrics_listen: (Option<SocketAddr>, Option<SocketAddr>),
    looking: Arc<AsyncMutex<Looking>>,
}

/// The look at all figures: some are on the cache's disk, which may hang.
#[derive(Default)]
struct Looking {
    /// The one that is under way. A disk that hangs costs one thread, not one a question.
    under_way: Option<JoinHandle<StatusReply>>,
    last: Option<StatusReply>,
}

#[async_trait]
impl Service for Daemon {
    fn ping(&self) -> Ping {
        Ping {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cache_dir: self.cache.dir.clone(),
            cache_size: self.cache.size,
            memory_limit: self.cache.memory,
            metadata_memory: self.cache.metadata,
            log_file: process::log_file(),
            metrics_listen: self.metrics_listen.0,
        }
    }

    async fn status(&self) -> StatusReply {
        self.look().await
    }

    async fn metrics(&self) -> String {
        let status = self.look().await;
        prometheus::text(self, &status)
    }

    /// Runs to its end although the client may go away. A client that was
    /// interrupted gets no mount behind its back: it is undone.
    async fn mount(&self, request: MountRequest) -> Result<MountReply, ErrorReply> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let daemon = self.clone();
        tokio::spawn(async move {
            let dir = request.place().to_owned();
            let pending = match daemon.table.begin() {
                Ok(pending) => pending,
                Err(error) => return drop(answer.send(Err(error))),
            };
            let result = daemon.add_mount(request).await;
            let added = result.as_ref().is_ok_and(|reply| !reply.existed);
            drop(pending);
            if answer.send(result).is_err() && added {
                tracing::info!("the client went away, so {} is unmounted", dir.display());
                let _ = daemon.remove_mount(UnmountRequest { dir, lazy: true }).await;
            }
        });
        answered.await.unwrap_or_else(|_| {
            Err(ErrorReply::new(ErrorCode::Internal, "the mount request was lost")
                .with_hint("see the daemon's log"))
        })
    }

    async fn unmount(&self, request: UnmountRequest) -> Result<UnmountReply, ErrorReply> {
        let daemon = self.clone();
        let task = tokio::spawn(async move { daemon.remove_mount(request).await });
        task.await.unwrap_or_else(|error| Err(internal(&error)))
    }

    async fn wait(&self, request: WaitRequest) -> Result<(), ErrorReply> {
        let entry = self.table.at(&request.dir).ok_or_else(|| not_mounted(&request.dir))?;
        entry.gone().await;
        Ok(())
    }

    async fn renew(&self, request: RenewRequest) -> Result<(), ErrorReply> {
        let entry = self.table.at(&request.dir).ok_or_else(|| not_mounted(&request.dir))?;
        self.renew(&entry, &request.env).await
    }

    async fn hint(&self, request: HintRequest) -> Result<(), ErrorReply> {
        let entry = self.table.at(&request.dir).ok_or_else(|| not_mounted(&request.dir))?;
        if request.order.is_empty() {
            return Ok(());
        }
        entry.mount.hint(&request).await
    }

    async fn stat(&self, request: StatRequest) -> Result<StatReply, ErrorReply> {
        self.stat_path(&request.path).await
    }

    async fn read(&self, request: ReadRequest) -> Result<Reading, ErrorReply> {
        self.start_reading(&request).await
    }

    async fn upkeep(
        &self,
        request: UpkeepRequest,
    ) -> Result<mpsc::Receiver<UpkeepLine>, ErrorReply> {
        self.start_upkeep(request)
    }
}

impl Daemon {
    fn new(cache: CacheOptions, engine: Arc<dyn Engine>, supervision: &Supervision) -> Self {
        let restarts = RestartStatus {
            count: supervision.resume.restarts,
            reason: supervision.resume.reason.clone(),
        };
        Daemon {
            cache,
            engine,
            table: Arc::default(),
            jobs: Jobs::default(),
            supervisor: supervision.supervisor.clone(),
            restarts: Arc::new(restarts),
            since: Instant::now(),
            rates: Arc::new(Rates::new(Instant::now())),
            metrics_listen: (None, None),
            looking: Arc::default(),
        }
    }

    /// Takes a sample of the totals each second, for as long as it is polled, and tells the
    /// supervisor what caps count.
    async fn take_samples(&self) {
        let mut interval = tokio::time::interval(rates::INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let totals = self.totals();
            self.table.all().iter().for_each(|entry| entry.tell_download());
            self.rates.sample(Instant::now(), totals);
        }
    }

    fn totals(&self) -> Totals {
        let (remote, cache) = (self.engine.remote_metrics(), self.engine.cache_metrics());
        let kinds = [&remote.get, &remote.list, &remote.head];
        let reads = self.table.reads();
        Totals {
            hit_bytes: reads.hit_bytes,
            miss_bytes: reads.miss_bytes,
            failed_reads: reads.failed,
            remote_bytes: remote.get.bytes.get(),
            requests: kinds.iter().map(|kind| kind.requests.get()).sum(),
            errors: kinds.iter().map(|kind| kind.errors.get()).sum(),
            evicted_objects: cache.evicted_objects.get(),
            evicted_bytes: cache.evicted_bytes.get(),
        }
    }

    /// All figures, or those of the last look while the cache's disk does not answer.
    async fn look(&self) -> StatusReply {
        let mut looking = self.looking.lock().await;
        let daemon = self.clone();
        let under_way = looking
            .under_way
            .take()
            .unwrap_or_else(|| tokio::task::spawn_blocking(move || status::collect(&daemon)));
        let mut under_way = under_way;
        let looked = tokio::time::timeout(LOOK_LIMIT, &mut under_way).await;
        if let Ok(Ok(status)) = looked {
            looking.last = Some(status.clone());
            return status;
        }
        if looked.is_err() {
            looking.under_way = Some(under_way);
        }
        looking.last.clone().unwrap_or_default()
    }

    async fn renew(&self, entry: &Entry, env: &CallerEnv) -> Result<(), ErrorReply> {
        entry.mount.renew(env).await?;
        self.supervisor.tell(&Change::Renewed { dir: entry.dir.clone(), env: env.clone() });
        Ok(())
    }

    /// Makes the mounts that a daemon had which died.
    async fn restore(&self, mounts: Mounts) {
        let Mounts { kept: mounts, pending } = mounts;
        let supervisor = self.supervisor.clone();
        let cleared = blocking(move || {
            for (dir, created) in pending {
                clear_dead(&dir, &created);
                supervisor.tell_gone(&dir);
            }
        });
        let _ = tokio::time::timeout(RESTORE_LIMIT, cleared).await;
        let restored = mounts.into_iter().map(|kept| async move {
            let dir = kept.request.place().to_owned();
            let restored = tokio::time::timeout(RESTORE_LIMIT, self.restore_one(kept)).await;
            let hangs =
                || Err(ErrorReply::new(ErrorCode::Environment, "its folder does not answer"));
            if let Err(error) = restored.unwrap_or_else(|_| hangs()) {
                tracing::error!("{} is not mounted again: {error}", dir.display());
                self.supervisor.tell_gone(&dir);
            }
        });
        futures::future::join_all(restored).await;
    }

    async fn restore_one(&self, kept: Kept) -> Result<(), ErrorReply> {
        let Kept { request, remote, created, downloaded_bytes, is_restoring } = kept.clone();
        let before = Before { remote, downloaded_bytes };
        let uri = preflight::check_uri(&request)?.to_string();
        let (dir, cache_dir) = (request.dir.clone(), self.cache.dir.clone());
        let (place, supervisor) = (request.place().to_owned(), self.supervisor.clone());
        let prepare = move || {
            let Some(dir) = dir else { return Ok(MountPoint::none(&place)) };
            // Unmounted meanwhile, by whoever found it dead.
            if !is_restoring && !mount_point::is_dead(&dir) {
                let message = "it was unmounted meanwhile";
                return Err(ErrorReply::new(ErrorCode::NotMounted, message));
            }
            supervisor.tell(&Change::Restoring(dir.clone()));
            MountPoint::prepare_again(&dir, &cache_dir, created)
        };
        let point = blocking(prepare).await??;
        let mount = self.engine.mount(&request, Some(before)).await?;
        self.supervisor.tell(&Change::Mounted(Box::new(Kept { is_restoring: false, ..kept })));
        tracing::info!("{uri} is mounted {} again, {}", where_of(&request.dir), mount.mode());
        self.keep(Entry::new(request, uri, mount, point, self.supervisor.clone())).await
    }

    /// Adds a mount to the table, or undoes it.
    async fn keep(&self, entry: Entry) -> Result<(), ErrorReply> {
        let Err((error, entry)) = self.table.insert(entry) else { return Ok(()) };
        // Told to exit while the mount was being made.
        let undo = move || {
            let _ = entry.mount.unmount(true);
            entry.detach();
        };
        let _ = blocking(undo).await;
        Err(error)
    }

    async fn add_mount(&self, request: MountRequest) -> Result<MountReply, ErrorReply> {
        let mut request = request;
        let parsed = preflight::check_uri(&request)?;
        let uri = parsed.to_string();
        match &request.dir {
            Some(dir) if !dir.is_absolute() => {
                let message = format!("{} is not an absolute path", dir.display());
                return Err(ErrorReply::new(ErrorCode::Invalid, message));
            }
            Some(dir) => preflight::check_source(&parsed, dir).await?,
            // It is known by this.
            None => request.uri.clone_from(&uri),
        }
        let dir = request.place().to_owned();
        let _turn = self.table.lock_dir(&dir).await;
        if let Some(reply) = self.find_same(&request, &uri).await? {
            return Ok(reply);
        }
        let point = self.prepare_point(&request).await?;
        let created = point.created().to_owned();
        self.supervisor.tell(&Change::Mounting { dir: dir.clone(), created });
        let mount = match self.engine.mount(&request, None).await {
            Ok(mount) => mount,
            Err(error) => {
                tracing::warn!("{uri} was not mounted {}: {error}", where_of(&request.dir));
                blocking(move || point.remove()).await?;
                self.supervisor.tell_gone(&dir);
                return Err(error);
            }
        };
        kill_point::reach("mount-made");
        tracing::info!("{uri} is mounted {}, {}", where_of(&request.dir), mount.mode());
        let kept = Kept {
            // What an index file says is in the index by now.
            request: MountRequest { index: None, ..request.clone() },
            remote: mount.remote(),
            created: point.created().to_owned(),
            downloaded_bytes: 0,
            is_restoring: false,
        };
        // Before it can end, which is told too.
        self.supervisor.tell(&Change::Mounted(Box::new(kept)));
        self.keep(Entry::new(request, uri.clone(), mount, point, self.supervisor.clone())).await?;
        Ok(MountReply { uri, dir, existed: false })
    }

    async fn prepare_point(&self, request: &MountRequest) -> Result<MountPoint, ErrorReply> {
        let Some(dir) = request.dir.clone() else {
            return Ok(MountPoint::none(request.place()));
        };
        let cache_dir = self.cache.dir.clone();
        blocking(move || MountPoint::prepare(&dir, &cache_dir)).await?
    }

    /// Whether the mount is there already. It asks with the credentials of this request
    /// from now on.
    async fn find_same(
        &self,
        request: &MountRequest,
        uri: &str,
    ) -> Result<Option<MountReply>, ErrorReply> {
        let Some(entry) = self.table.at(request.place()) else { return Ok(None) };
        if !self.is_attached(&entry).await? {
            return Ok(None);
        }
        if entry.uri == uri && entry.options == request.options {
            self.renew(&entry, &request.env).await?;
            let dir = request.place().to_owned();
            return Ok(Some(MountReply { uri: uri.to_owned(), dir, existed: true }));
        }
        let dir = request.place().display();
        let message = match (entry.is_view, entry.uri == uri) {
            (true, _) => format!("{dir} is in use with other options"),
            (false, true) => format!("{dir} is in use by {uri} with other options"),
            (false, false) => format!("{dir} is in use by {}", entry.uri),
        };
        Err(ErrorReply::new(ErrorCode::MountPoint, message)
            .with_hint(format!("`warmfs unmount {dir}` first")))
    }

    /// Whether the folder still leads to the mount; notes it if not. Whatever
    /// is mounted there then is somebody else's and must not be unmounted.
    async fn is_attached(&self, entry: &Arc<Entry>) -> Result<bool, ErrorReply> {
        let entry = Arc::clone(entry);
        blocking(move || {
            let attached = !entry.is_detached() && entry.mount.is_attached();
            if !attached {
                entry.detach();
            }
            attached
        })
        .await
    }

    async fn remove_mount(&self, request: UnmountRequest) -> Result<UnmountReply, ErrorReply> {
        let _turn = self.table.lock_dir(&request.dir).await;
        let entry = self.table.at(&request.dir).ok_or_else(|| not_mounted(&request.dir))?;
        if !self.is_attached(&entry).await? {
            return Err(not_mounted(&request.dir));
        }
        let mount = Arc::clone(&entry.mount);
        match blocking(move || mount.unmount(request.lazy)).await? {
            Ok(()) => {}
            // Unmounted from outside in this very moment: its end is on the way.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            Err(error) => return Err(blocking(move || unmount_failed(&entry.dir, &error)).await?),
        }
        let patience = if request.lazy { DETACH_GRACE } else { END_TIMEOUT };
        let ended = tokio::time::timeout(patience, entry.gone()).await.is_ok();
        if !ended {
            blocking(move || entry.detach()).await?;
        }
        Ok(UnmountReply { daemon_exits: self.table.is_closed(), still_in_use: !ended })
    }

    /// Unmounts everything for an exit: politely, then lazily.
    async fn remove_all(&self) {
        for entry in self.table.all() {
            if !self.is_attached(&entry).await.unwrap_or(false) {
                continue;
            }
            let of = Arc::clone(&entry);
            let polite_then_lazy = move || {
                let Err(error) = of.mount.unmount(false) else { return Ok(()) };
                tracing::warn!("{}; it is detached", unmount_failed(&of.dir, &error).message);
                of.mount.unmount(true)
            };
            match blocking(polite_then_lazy).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!("{} stays mounted: {error}", entry.dir.display());
                }
                Err(error) => tracing::error!("{error}"),
            }
            let _ = tokio::time::timeout(DETACH_GRACE, entry.gone()).await;
            let _ = blocking(move || entry.detach()).await;
        }
    }
}

/// Runs what may block on a kernel or a disk beside the runtime's threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ErrorReply> {
    tokio::task::spawn_blocking(work).await.map_err(|error| internal(&error))
}

fn internal(error: &tokio::task::JoinError) -> ErrorReply {
    ErrorReply::new(ErrorCode::Internal, format!("a defect in warmfs: {error}"))
        .with_hint("please report it, with the daemon's log")
}

/// Why an unmount of `dir` failed, naming who keeps it busy if it can be told.
/// Looks through /proc, within a bounded time.
pub fn unmount_failed(dir: &Path, error: &io::Error) -> ErrorReply {
    let shown = dir.display();
    if error.kind() != io::ErrorKind::ResourceBusy {
        let message = format!("cannot unmount {shown}, {}", preflight::describe(error));
        return ErrorReply::new(ErrorCode::Denied, message)
            .with_hint(format!("try `umount {shown}` as root"));
    }
    let user = match holders::find(dir) {
        Some(holder) => format!("process {} ({}) uses it", holder.pid, holder.name),
        None => "it is in use".to_owned(),
    };
    ErrorReply::new(ErrorCode::Busy, format!("{shown} is busy, {user}"))
        .with_hint(format!("end that, or detach it with `warmfs unmount --lazy {shown}`"))
}

/// Where a mount is, as the log has it.
fn where_of(dir: &Option<PathBuf>) -> String {
    match dir {
        Some(dir) => format!("at {}", dir.display()),
        None => "without a folder".to_owned(),
    }
}

fn not_mounted(dir: &Path) -> ErrorReply {
    let message = format!("{} is not a warmfs mount", dir.display());
    ErrorReply::new(ErrorCode::NotMounted, message)
}

/// `<cache>/warmfs.log`, unless `--log-file` says otherwise.
pub fn log_file(cache: &CacheOptions) -> PathBuf {
    cache.dir.join("warmfs.log")
}
