//! Evict, verify, pin, unpin and refresh: jobs that may take long, told about line by
//! line, and stopped when nobody listens or the daemon exits.
//!
//! Without a daemon, [`Offline`] does what needs no mount in the caller's own
//! process, which holds the cache's lock meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::engine::Engine;
use super::look::Rows;
use super::serve::{StartError, say_who_holds, take_lock};
use super::table::{Entry, shutting_down};
use super::{Daemon, internal};
use crate::cache::{NodeId, PrefetchOrder, Progress, Scope, Tree};
use crate::config::CacheOptions;
use crate::control::cache_lock::CacheLock;
use crate::control::wire::{
    ErrorCode, ErrorReply, EvictReply, PinReply, PrefetchReply, PrefetchRequest, ProgressReport,
    RefreshReply, StopPrefetchReply, UnpinReply, UpkeepLine, UpkeepReply, UpkeepRequest,
    VerifyReply,
};

/// Jobs at once. Each is bound by the one disk or the one remote that all of
/// them use, so more would only take longer each.
const JOBS_MAX: usize = 4;

/// Of `ls` and `du`, which wait for whoever reads what they tell.
const LOOKS_MAX: usize = 32;

/// How often a job tells how far it is: often enough for a bar that moves, and
/// to see soon that the client went away.
const BEAT: Duration = Duration::from_millis(250);

/// Lines that a client may leave unread. It misses some progress then; rows wait.
const LINES_MAX: usize = 8;

/// How long an exit waits for jobs that were told to stop. They look at that
/// after every object or chunk.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The jobs under way.
#[derive(Clone, Debug)]
pub(super) struct Jobs {
    work: Arc<Semaphore>,
    looks: Arc<Semaphore>,
    /// Those that go on without a client take no place of the others'.
    prefetches: Arc<Semaphore>,
    detached: Arc<Mutex<Detached>>,
}

/// Prefetches that no client waits for.
#[derive(Debug, Default)]
struct Detached {
    next_id: u64,
    jobs: BTreeMap<u64, (ProgressReport, oneshot::Sender<()>)>,
}

impl Default for Jobs {
    fn default() -> Self {
        let slots = |max| Arc::new(Semaphore::new(max));
        Jobs {
            work: slots(JOBS_MAX),
            looks: slots(LOOKS_MAX),
            prefetches: slots(JOBS_MAX),
            detached: Arc::default(),
        }
    }
}

impl Jobs {
    fn begin(&self, request: &UpkeepRequest) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let (slots, max) = match request {
            UpkeepRequest::Ls(_) | UpkeepRequest::Du(_) | UpkeepRequest::StopPrefetch(_) => {
                (&self.looks, LOOKS_MAX)
            }
            _ => (&self.work, JOBS_MAX),
        };
        Arc::clone(slots).try_acquire_owned().map_err(|_| {
            let message = format!("{max} such commands are running, the most at once");
            ErrorReply::new(ErrorCode::Busy, message).with_hint("wait for one to end")
        })
    }

    /// How far the prefetches are that nobody waits for.
    pub(super) fn prefetching(&self) -> Vec<ProgressReport> {
        self.detached().jobs.values().map(|(report, _)| *report).collect()
    }

    fn detached(&self) -> MutexGuard<'_, Detached> {
        self.detached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends them, and says how many there were.
    fn stop_detached(&self) -> u64 {
        std::mem::take(&mut self.detached().jobs).len() as u64
    }

    /// Notes a job that no client waits for.
    fn note_detached(&self) -> (u64, oneshot::Receiver<()>) {
        let (stop, stopped) = oneshot::channel();
        let mut detached = self.detached();
        detached.next_id += 1;
        let id = detached.next_id;
        detached.jobs.insert(id, (ProgressReport::default(), stop));
        (id, stopped)
    }

    /// Is the client of such a job, until it is done or stopped.
    async fn follow(
        self,
        mut lines: mpsc::Receiver<UpkeepLine>,
        (id, stopped): (u64, oneshot::Receiver<()>),
    ) {
        let told = async {
            while let Some(line) = lines.recv().await {
                match line {
                    UpkeepLine::Progress(report) => {
                        if let Some((known, _)) = self.detached().jobs.get_mut(&id) {
                            *known = report;
                        }
                    }
                    UpkeepLine::Done(reply) => tracing::info!("prefetched: {reply:?}"),
                    UpkeepLine::Error(error) => tracing::warn!("not all was prefetched: {error}"),
                    UpkeepLine::Rows(_) => {}
                }
            }
        };
        tokio::select! {
            () = told => {}
            // Its sender is dropped. So are the lines, which ends the job.
            _ = stopped => tracing::info!("a prefetch was stopped"),
        }
        self.detached().jobs.remove(&id);
    }

    /// Returns once none is left, or too much time has passed.
    pub(super) async fn ended(&self) {
        let all = async {
            let _work = self.work.acquire_many(JOBS_MAX as u32).await;
            let _looks = self.looks.acquire_many(LOOKS_MAX as u32).await;
            let _prefetches = self.prefetches.acquire_many(JOBS_MAX as u32).await;
        };
        if tokio::time::timeout(END_TIMEOUT, all).await.is_err() {
            tracing::warn!("a command still runs; the cache is closed under it");
        }
    }
}

impl Daemon {
    /// Starts a job, and gives the lines that it sends.
    pub(super) fn start_upkeep(
        &self,
        request: UpkeepRequest,
    ) -> Result<mpsc::Receiver<UpkeepLine>, ErrorReply> {
        if self.table.is_closed() {
            return Err(shutting_down());
        }
        if let UpkeepRequest::Prefetch(PrefetchRequest { detached: true, .. }) = &request {
            return self.detach(request);
        }
        let slot = self.jobs.begin(&request)?;
        Ok(self.start_job(request, slot))
    }

    fn start_job(
        &self,
        request: UpkeepRequest,
        slot: OwnedSemaphorePermit,
    ) -> mpsc::Receiver<UpkeepLine> {
        let (lines, receiver) = mpsc::channel(LINES_MAX);
        let daemon = self.clone();
        tokio::spawn(async move {
            daemon.run_upkeep(request, &lines).await;
            drop(slot);
        });
        receiver
    }

    /// Starts a prefetch that goes on without its client.
    fn detach(&self, request: UpkeepRequest) -> Result<mpsc::Receiver<UpkeepLine>, ErrorReply> {
        let UpkeepRequest::Prefetch(request) = request else {
            return self.start_upkeep(request);
        };
        let attached = UpkeepRequest::Prefetch(PrefetchRequest { detached: false, ..request });
        let slot = Arc::clone(&self.jobs.prefetches).try_acquire_owned().map_err(|_| {
            let message = format!("{JOBS_MAX} prefetches go on already, the most at once");
            ErrorReply::new(ErrorCode::Busy, message)
                .with_hint("wait for one, or end them with `warmfs prefetch --stop`")
        })?;
        let lines = self.start_job(attached, slot);
        tokio::spawn(self.jobs.clone().follow(lines, self.jobs.note_detached()));
        let (answer, receiver) = mpsc::channel(1);
        let reply = PrefetchReply { detached: true, ..PrefetchReply::default() };
        let _ = answer.try_send(UpkeepLine::Done(UpkeepReply::Prefetch(reply)));
        Ok(receiver)
    }

    async fn run_upkeep(&self, request: UpkeepRequest, lines: &mpsc::Sender<UpkeepLine>) {
        let progress = Arc::new(Progress::default());
        // In a task of its own, so that lines go out whatever it waits for.
        let job = tokio::spawn({
            let (daemon, progress, lines) = (self.clone(), Arc::clone(&progress), lines.clone());
            async move { daemon.carry_out(request, &progress, &lines).await }
        });
        let mut job = pin!(job);
        let mut closed = self.table.closed();
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let done = loop {
            tokio::select! {
                result = &mut job => break Some(result),
                () = lines.closed() => break None,
                _ = closed.wait_for(|closed| *closed) => {
                    let _ = lines.try_send(UpkeepLine::Error(shutting_down()));
                    break None;
                }
                _ = beat.tick() => {
                    if lines.capacity() > 1 {
                        let _ = lines.try_send(UpkeepLine::Progress(report(&progress)));
                    }
                }
            }
        };
        let Some(result) = done else {
            progress.cancel();
            let _ = job.await;
            return;
        };
        let line = match result.unwrap_or_else(|error| Err(internal(&error))) {
            Ok(reply) => UpkeepLine::Done(reply),
            Err(error) => UpkeepLine::Error(error),
        };
        // Rows may fill the queue; who reads no line goes away some day.
        let _ = lines.send(line).await;
    }

    async fn carry_out(
        &self,
        request: UpkeepRequest,
        progress: &Arc<Progress>,
        lines: &mpsc::Sender<UpkeepLine>,
    ) -> Result<UpkeepReply, ErrorReply> {
        let engine = &self.engine;
        Ok(match request {
            UpkeepRequest::Evict(request) => {
                let scope = self.scope(request.path.as_deref()).await?;
                let age = request.older_than_s.map(Duration::from_secs);
                let done = engine.evict(&scope, age, progress).await?;
                UpkeepReply::Evict(EvictReply {
                    objects: done.objects,
                    bytes: done.bytes,
                    in_use: done.in_use,
                    pinned: done.pinned,
                })
            }
            UpkeepRequest::Verify(request) => {
                let scope = self.scope(request.path.as_deref()).await?;
                let done = engine.verify(&scope, request.remote, progress).await?;
                UpkeepReply::Verify(VerifyReply {
                    objects: done.objects,
                    bytes: done.bytes,
                    damaged_chunks: done.damaged_chunks,
                    repaired_chunks: done.repaired_chunks,
                    same_objects: done.same_objects,
                    differing_objects: done.differing_objects,
                    unverifiable_objects: done.unverifiable_objects,
                })
            }
            UpkeepRequest::Pin(request) => {
                let (tree, node) = self.find(&request.path).await?;
                let done = engine.pin(&tree, node, progress).await?;
                UpkeepReply::Pin(PinReply {
                    objects: done.objects,
                    bytes: done.bytes,
                    cached_bytes: done.cached_bytes,
                })
            }
            UpkeepRequest::Unpin(request) => {
                let (tree, node) = self.find(&request.path).await?;
                let was_pinned = engine.unpin(&tree, node).await?;
                UpkeepReply::Unpin(UnpinReply { was_pinned })
            }
            UpkeepRequest::Prefetch(request) => {
                UpkeepReply::Prefetch(self.prefetch(&request, progress).await?)
            }
            UpkeepRequest::StopPrefetch(_) => {
                let stopped = self.jobs.stop_detached();
                UpkeepReply::StopPrefetch(StopPrefetchReply { stopped })
            }
            UpkeepRequest::Refresh(request) => {
                let mut reply = RefreshReply::default();
                for (tree, node) in self.tops(request.path.as_deref()).await? {
                    let done = engine.refresh(&tree, node, progress).await?;
                    reply.folders += done.folders;
                    reply.objects += done.objects;
                }
                UpkeepReply::Refresh(reply)
            }
            UpkeepRequest::Export(request) => {
                UpkeepReply::Export(self.export(&request, progress).await?)
            }
            UpkeepRequest::Ls(request) => {
                UpkeepReply::Rows(self.ls(&request, Rows::to(lines), progress).await?)
            }
            UpkeepRequest::Du(request) => {
                UpkeepReply::Rows(self.du(&request, Rows::to(lines), progress).await?)
            }
        })
    }

    async fn prefetch(
        &self,
        request: &PrefetchRequest,
        progress: &Arc<Progress>,
    ) -> Result<PrefetchReply, ErrorReply> {
        let mut reply = PrefetchReply::default();
        let mut tops = Vec::with_capacity(request.paths.len());
        let mut last: Option<Arc<Entry>> = None;
        for path in &request.paths {
            if progress.is_cancelled() {
                break;
            }
            // Names come by the thousand, mostly of one mount.
            let entry = match (&last, self.mounts_above(path).into_iter().next()) {
                (Some(last), Some(now)) if Arc::ptr_eq(last, &now) => now,
                _ => self.mount_of(path).await?,
            };
            match self.find_in(&entry, path).await {
                Ok(found) => tops.push(found),
                Err(error) if error.code == ErrorCode::NotFound => {
                    reply.missing += 1;
                    reply.first_missing.get_or_insert_with(|| path.clone());
                }
                Err(error) => return Err(error),
            }
            last = Some(entry);
        }
        let order = if request.shuffled { PrefetchOrder::Shuffled } else { PrefetchOrder::Listed };
        let done = self.engine.prefetch(&tops, order, progress).await?;
        Ok(PrefetchReply {
            objects: done.objects,
            bytes: done.bytes,
            cached_bytes: done.cached_bytes,
            unfit: done.unfit,
            capped: done.capped,
            ..reply
        })
    }

    async fn scope(&self, path: Option<&Path>) -> Result<Scope, ErrorReply> {
        let Some(path) = path else { return Ok(Scope::Everything) };
        let (tree, node) = self.find(path).await?;
        Ok(Scope::Below(tree, node))
    }

    /// What `path` is, or the tops of all mounts.
    pub(super) async fn tops(
        &self,
        path: Option<&Path>,
    ) -> Result<Vec<(Arc<Tree>, NodeId)>, ErrorReply> {
        if let Some(path) = path {
            return Ok(vec![self.find(path).await?]);
        }
        let mut tops = Vec::new();
        for entry in self.table.all().iter().filter(|entry| !entry.is_detached()) {
            tops.extend(entry.mount.find("").await?);
        }
        if tops.is_empty() {
            return Err(ErrorReply::new(ErrorCode::NotMounted, "nothing is mounted")
                .with_hint("a mount looks by itself at what is older than --metadata-ttl"));
        }
        Ok(tops)
    }

    /// What `path` is, which the kernel is not asked about.
    pub(super) async fn find(&self, path: &Path) -> Result<(Arc<Tree>, NodeId), ErrorReply> {
        let entry = self.mount_of(path).await?;
        self.find_in(&entry, path).await
    }

    pub(super) async fn mount_of(&self, path: &Path) -> Result<Arc<Entry>, ErrorReply> {
        self.mount_above(path).await?.ok_or_else(|| {
            let message = format!("{} is in no mount of this cache", path.display());
            ErrorReply::new(ErrorCode::NotMounted, message).with_hint("`warmfs status` lists them")
        })
    }

    pub(super) async fn find_in(
        &self,
        entry: &Entry,
        path: &Path,
    ) -> Result<(Arc<Tree>, NodeId), ErrorReply> {
        let shown = path.display();
        let rest = path.strip_prefix(&entry.dir).ok().and_then(Path::to_str).unwrap_or_default();
        entry.mount.find(rest).await?.ok_or_else(|| {
            ErrorReply::new(ErrorCode::NotFound, format!("{shown} does not exist"))
                .with_hint(format!("`ls {}` shows what does", entry.dir.display()))
        })
    }

    /// The mounts that `path` is in, the innermost first.
    fn mounts_above(&self, path: &Path) -> Vec<Arc<Entry>> {
        let mut above = self.table.all();
        above.retain(|entry| path.starts_with(&entry.dir) && !entry.is_detached());
        above.sort_by_key(|entry| std::cmp::Reverse(entry.dir.as_os_str().len()));
        above
    }

    /// The innermost mount that `path` is in.
    async fn mount_above(&self, path: &Path) -> Result<Option<Arc<Entry>>, ErrorReply> {
        for entry in self.mounts_above(path) {
            if self.is_attached(&entry).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

fn report(progress: &Progress) -> ProgressReport {
    ProgressReport {
        objects_done: progress.objects_done.load(Ordering::Relaxed),
        objects_total: progress.objects_total.load(Ordering::Relaxed),
        bytes_done: progress.bytes_done.load(Ordering::Relaxed),
        bytes_total: progress.bytes_total.load(Ordering::Relaxed),
    }
}

/// A cache without a daemon, held by this process.
pub struct Offline {
    daemon: Daemon,
    lock: CacheLock,
}

impl Offline {
    /// Takes the cache's lock and opens its engine.
    ///
    /// # Errors
    /// If a daemon serves the cache, or it cannot be used.
    pub async fn open<F>(
        cache: CacheOptions,
        open_engine: impl FnOnce(CacheOptions) -> F,
    ) -> Result<Offline, StartError>
    where
        F: Future<Output = Result<Arc<dyn Engine>, ErrorReply>>,
    {
        let mut lock = take_lock(&cache).await?;
        say_who_holds(&mut lock, &cache)?;
        let engine = open_engine(cache.clone()).await?;
        Ok(Offline { daemon: Daemon::new(cache, engine, &super::Supervision::default()), lock })
    }

    /// Runs a command and hands on the lines before the last. Dropped, it stops.
    ///
    /// # Errors
    /// Those of the command.
    pub async fn run(
        &self,
        request: &UpkeepRequest,
        on_line: &mut (dyn FnMut(UpkeepLine) + Send),
    ) -> Result<UpkeepReply, ErrorReply> {
        let mut lines = self.daemon.start_upkeep(request.clone())?;
        loop {
            match lines.recv().await {
                Some(UpkeepLine::Done(reply)) => return Ok(reply),
                Some(UpkeepLine::Error(error)) => return Err(error),
                Some(line) => on_line(line),
                None => return Err(shutting_down()),
            }
        }
    }

    /// Waits for what still runs, saves, and lets go of the cache.
    pub async fn close(mut self) {
        self.daemon.table.close();
        self.daemon.jobs.ended().await;
        self.daemon.engine.shutdown().await;
        if let Err(error) = self.lock.clear_record() {
            tracing::warn!("cannot clear the cache's lock: {error}");
        }
    }
}
