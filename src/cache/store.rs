//! The store: objects on disk, what they may take, and what is known of them.
//!
//! Owns `data/` in the cache directory (one sparse file an object, see
//! [`super::backing_file`]) and the rows about it in the index. Changes gather
//! in memory and reach the index every [`FLUSH_INTERVAL`] in one durable
//! transaction, never on a reader's path: a chunk is written first and noted
//! after, so what the index says is there was written in this boot, or is
//! checked before use.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::backing_file::BackingFile;
use super::budget::{Budget, disk_bytes, disk_has_room};
use super::chunk_map::ChunkMap;
use super::fetch::Fetcher;
use super::index::Index;
use super::object::{CachedObject, Loaded};
use super::pass_by::PassBy;
use super::record::{Location, NodeId, NodeRow, ObjectRow};
use super::{CacheError, Event, lock};
use crate::metrics::CacheMetrics;
use crate::remote::ObjectMeta;
use crate::remote::client::RemoteClient;

/// What was cached this long before a SIGKILL is found again.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(400);

/// Objects kept open although nobody reads them: saves the index look-up and
/// the open of a file that is opened again and again. Each costs one fd.
const IDLE_OBJECTS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Blocking reads of the cache disk at once: enough for 20 readers, few enough
/// to leave threads for the index.
const DISK_READS_MAX: usize = 24;

/// Blocking writes at once. More only queue in the kernel.
const DISK_WRITES_MAX: usize = 8;

/// After a write failed, reads stream through this long before the disk is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// Disk that objects leave to the index to grow into, at least: a copy of the
/// pages that one commit rewrites, and the state of redb's own allocator.
const INDEX_GROWTH_BYTES: u64 = 1 << 20;

/// Longest that closing waits for bytes that were fetched to be on disk.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Locks under which objects are loaded, so that an object is loaded once and
/// not while it is being discarded. By node, so that cold opens run side by side.
const LOADING_LOCKS: usize = 16;

/// Events a subscriber may be behind; later ones are dropped. They only make
/// the kernel forget early what it forgets by itself with its TTL.
const EVENTS_MAX: usize = 16_384;

/// Keeps events coming. When it is dropped, their receiver sees the end.
#[derive(Debug)]
pub struct Subscription(
    #[expect(dead_code, reason = "held for the channel to stay open")] Arc<mpsc::SyncSender<Event>>,
);

/// Objects, by node.
#[derive(Debug)]
pub struct Store {
    me: Weak<Store>,
    runtime: Handle,
    data_dir: PathBuf,
    index: Arc<Index>,
    boot: u128,
    budget: Budget,
    fetcher: Fetcher,
    passing: PassBy,
    disk_reads: Arc<Semaphore>,
    disk_writes: Arc<Semaphore>,
    metrics: CacheMetrics,
    /// Objects with at least one chunk on disk.
    held: AtomicU64,
    /// Taken before any other lock, and held while the index is read.
    loading: [Mutex<()>; LOADING_LOCKS],
    live: Mutex<HashMap<NodeId, Weak<CachedObject>>>,
    idle: Mutex<LruCache<NodeId, Arc<CachedObject>>>,
    dirty: Mutex<HashMap<NodeId, Arc<CachedObject>>>,
    /// Chunks that were fetched and are neither on disk nor passed by yet.
    landed: Mutex<usize>,
    settled: Condvar,
    /// Nothing is kept in memory any more: objects hold the store, and must
    /// not be held by it for ever.
    closed: AtomicBool,
    /// There was no room for another chunk when it was last looked at.
    full: AtomicBool,
    failing: AtomicBool,
    failure: Mutex<Option<(Instant, String)>>,
    subscribers: Mutex<Vec<Weak<mpsc::SyncSender<Event>>>>,
}

impl Store {
    pub(super) fn new(
        runtime: Handle,
        data_dir: PathBuf,
        index: Arc<Index>,
        boot: u128,
        budget: Budget,
        held: u64,
    ) -> Arc<Self> {
        let store = Arc::new_cyclic(|me| Store {
            me: me.clone(),
            runtime,
            data_dir,
            index,
            boot,
            budget,
            fetcher: Fetcher::new(),
            passing: PassBy::new(),
            disk_reads: Arc::new(Semaphore::new(DISK_READS_MAX)),
            disk_writes: Arc::new(Semaphore::new(DISK_WRITES_MAX)),
            metrics: CacheMetrics::default(),
            held: AtomicU64::new(held),
            loading: std::array::from_fn(|_| Mutex::default()),
            live: Mutex::default(),
            idle: Mutex::new(LruCache::new(IDLE_OBJECTS_MAX)),
            dirty: Mutex::default(),
            landed: Mutex::default(),
            settled: Condvar::new(),
            closed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            failure: Mutex::default(),
            subscribers: Mutex::default(),
        });
        store.look_for_room();
        store
    }

    /// The object of `node`, ready to be read. There is one per node at a time.
    pub fn object(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        remote: &Arc<RemoteClient>,
    ) -> Arc<CachedObject> {
        if let Some(object) = self.live(node) {
            return object;
        }
        let loading = lock(self.loading_lock(node));
        if let Some(object) = self.live(node) {
            return object;
        }
        let loaded = self.load(node, meta);
        let stale_rows = loaded.stale_rows;
        let Some(me) = self.me.upgrade() else { unreachable!("a method runs on a live store") };
        let object = Arc::new(CachedObject::new(node, meta.clone(), remote.clone(), me, loaded));
        lock(&self.live).insert(node, Arc::downgrade(&object));
        if stale_rows {
            self.mark_dirty(&object);
        }
        let mut idle = lock(&self.idle);
        let open = !self.closed.load(Ordering::Relaxed);
        let pushed_out = if open { idle.push(node, object.clone()) } else { None };
        drop(idle);
        // Not before: who discards the object now must find it among the idle ones.
        drop(loading);
        drop(pushed_out); // After the locks: its drop takes another one.
        object
    }

    fn loading_lock(&self, node: NodeId) -> &Mutex<()> {
        &self.loading[node.0 as usize % LOADING_LOCKS]
    }

    /// The object of `node`, if it is in memory.
    pub fn live(&self, node: NodeId) -> Option<Arc<CachedObject>> {
        lock(&self.live).get(&node).and_then(Weak::upgrade)
    }

    /// Bytes of `node` in the cache.
    pub fn present_bytes(&self, node: NodeId) -> u64 {
        match self.live(node) {
            Some(object) => object.present_bytes(),
            None => self.index.object(node).ok().flatten().map_or(0, |row| row.present_bytes),
        }
    }

    fn load(&self, node: NodeId, meta: &ObjectMeta) -> Loaded {
        let nothing =
            Loaded { file: None, map: ChunkMap::new(meta.size), stale_rows: false, doomed: false };
        // A replaced version can still be opened by who knows its node. Its
        // rows and its file are about to go, or are gone.
        if matches!(self.index.node(node), Ok(Some(NodeRow::Superseded { .. }))) {
            return Loaded { doomed: true, ..nothing };
        }
        let Some(row) = self.index.object(node).ok().flatten() else { return nothing };
        self.load_file(node, meta, &row).unwrap_or_else(|| {
            tracing::warn!(key = ?meta.key.0, "the cache lost what it had of an object; it is fetched again");
            self.metrics.repairs.add(1);
            self.budget.release(disk_bytes(row.present_bytes));
            if row.present_bytes > 0 {
                self.count_held(false);
            }
            Loaded { stale_rows: true, ..nothing }
        })
    }

    /// What a node's row promises; `None` if any of it is missing.
    fn load_file(&self, node: NodeId, meta: &ObjectMeta, row: &ObjectRow) -> Option<Loaded> {
        let Location::OwnFile(id) = row.location;
        let file = BackingFile::open(&id.path(&self.data_dir)).ok()?;
        let untouched = file.fingerprint().is_ok_and(|now| now == row.fingerprint);
        let trusted = untouched && row.verified_boot == Some(self.boot);
        let groups = self.index.chunk_groups(node).ok()?;
        let map = ChunkMap::load(meta.size, &groups, trusted);
        let whole = row.size == meta.size
            && row.version == meta.version
            && map.present_bytes() == row.present_bytes;
        whole.then_some(Loaded { file: Some(file), map, stale_rows: false, doomed: false })
    }

    /// Writes what changed to the index, durably. Blocks.
    pub(super) fn flush(&self) -> Result<(), CacheError> {
        self.look_for_room();
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        if dirty.is_empty() {
            return self.index.sync_pending();
        }
        super::kill_point::reach("flush-begun");
        let written = self.index.write_durably(|write| {
            for object in dirty.values().filter(|object| !object.is_doomed()) {
                object.write_rows(write, self.boot)?;
                super::kill_point::reach("flush-object-written");
            }
            super::kill_point::reach("flush-uncommitted");
            Ok(())
        });
        super::kill_point::reach("flush-committed");
        if let Err(error) = &written {
            // What cannot be noted is not kept: it would only gather in memory.
            self.disk_failed(&std::io::Error::other(error.clone()));
            for object in dirty.values() {
                object.redirty();
                self.mark_dirty(object);
            }
        }
        written
    }

    /// A chunk was fetched, and is on its way to the disk.
    pub(super) fn chunk_landed(&self) {
        *lock(&self.landed) += 1;
    }

    /// A chunk is on disk, or passed by.
    pub(super) fn chunk_settled(&self) {
        *lock(&self.landed) -= 1;
        self.settled.notify_all();
    }

    /// Waits until what was fetched is on disk. Blocks.
    pub(super) fn settle(&self) {
        let wait = self.settled.wait_timeout_while(lock(&self.landed), SETTLE_LIMIT, |n| *n > 0);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
    }

    /// Keeps nothing in memory from now on. Objects that are read live on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.forget_idle();
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        drop(dirty); // After the lock: their drop takes another one.
    }

    /// Lets go of every object that nobody reads.
    pub(super) fn forget_idle(&self) {
        let mut idle = Vec::new();
        while let Some((_, object)) = lock(&self.idle).pop_lru() {
            idle.push(object);
        }
    }

    /// Object versions that nobody can look up any more: their files go at
    /// once, their bytes when the last reader is gone. Blocks.
    pub(super) fn discard(&self, nodes: &[NodeId]) -> Result<(), CacheError> {
        if nodes.is_empty() {
            return Ok(());
        }
        super::kill_point::reach("discard-begun");
        let mut doomed = HashMap::new();
        for node in nodes {
            let live = {
                let _loading = lock(self.loading_lock(*node));
                let live = self.live(*node);
                if let Some(file) = live.as_ref().and_then(|object| object.doom()) {
                    doomed.insert(*node, file);
                }
                live
            };
            let dirty = lock(&self.dirty).remove(node);
            let idle = lock(&self.idle).pop(node);
            drop((live, dirty, idle)); // After the locks: their drop takes another one.
        }
        // In a transaction of its own after the objects are doomed: a flush
        // that was faster has written its rows by then, and none comes after.
        let rows = self.index.write(|write| {
            nodes.iter().map(|node| write.remove_object(*node)).collect::<Result<Vec<_>, _>>()
        });
        super::kill_point::reach("discard-rows-removed");
        let mut result = Ok(());
        let rows = rows.unwrap_or_else(|error| {
            result = Err(error);
            Vec::new()
        });
        for (node, row) in nodes.iter().zip(rows) {
            let Some(row) = row else { continue };
            let Location::OwnFile(file) = row.location;
            // The bytes of an object that was in memory are given back by its drop.
            if doomed.insert(*node, file).is_none() {
                self.budget.release(disk_bytes(row.present_bytes));
                if row.present_bytes > 0 {
                    self.count_held(false);
                }
            }
        }
        for file in doomed.into_values().map(|id| id.path(&self.data_dir)) {
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(file = %file.display(), %error, "cannot remove the file of a replaced object");
                }
                _ => {}
            }
            super::kill_point::reach("discard-file-removed");
        }
        result
    }

    /// Objects with at least one chunk on disk.
    pub fn held_objects(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// An object got its first chunk (`true`) or lost its last.
    pub(super) fn count_held(&self, more: bool) {
        let change = |held: u64| if more { held + 1 } else { held.saturating_sub(1) };
        self.held.update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// An object leaves memory; `freed` is the disk it held if its file is gone.
    pub(super) fn dropped(&self, node: NodeId, freed: Option<u64>) {
        let mut live = lock(&self.live);
        if live.get(&node).is_some_and(|object| object.strong_count() == 0) {
            live.remove(&node);
        }
        drop(live);
        if let Some(bytes) = freed.filter(|bytes| *bytes > 0) {
            self.budget.release(bytes);
            self.count_held(false);
        }
    }

    /// Whether fetched bytes are being kept on disk, as far as it is known:
    /// each read asks, and must not ask the file system in its turn.
    pub(super) fn is_keeping(&self) -> bool {
        !self.is_pausing() && !self.full.load(Ordering::Relaxed)
    }

    fn look_for_room(&self) {
        self.full.store(self.is_full(), Ordering::Relaxed);
    }

    /// Disk that no object may take: the index's, with room for it to grow.
    fn index_share(&self) -> u64 {
        let bytes = self.index.disk_bytes();
        bytes + (bytes / 8).max(INDEX_GROWTH_BYTES)
    }

    fn is_full(&self) -> bool {
        let used = self.budget.used() + self.index_share();
        used + super::CHUNK_BYTES > self.budget.limit()
            || !disk_has_room(&self.data_dir, super::CHUNK_BYTES)
    }

    fn is_pausing(&self) -> bool {
        if !self.failing.load(Ordering::Relaxed) {
            return false;
        }
        let mut failure = lock(&self.failure);
        let pausing = failure.as_ref().is_some_and(|(at, _)| at.elapsed() < DISK_PAUSE);
        if !pausing {
            *failure = None;
            self.failing.store(false, Ordering::Relaxed);
        }
        pausing
    }

    /// How the store is doing, in words.
    pub fn state(&self) -> String {
        if self.is_pausing()
            && let Some((_, error)) = &*lock(&self.failure)
        {
            return format!("cache disk fails, reads stream through: {error}");
        }
        if self.is_full() {
            return "full, reads of new objects stream through".to_owned();
        }
        "ok".to_owned()
    }

    /// Takes disk for a chunk, or says no.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        if self.is_pausing() {
            return false;
        }
        let has_room =
            disk_has_room(&self.data_dir, bytes) && self.budget.reserve(bytes, self.index_share());
        if !has_room {
            self.full.store(true, Ordering::Relaxed);
        }
        has_room
    }

    pub(super) fn release(&self, bytes: u64) {
        self.budget.release(bytes);
    }

    /// A write to the cache disk failed: reads stream through for a while.
    pub(super) fn disk_failed(&self, error: &std::io::Error) {
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            tracing::warn!(%error, "cannot write to the cache disk; reads stream through");
        }
        *failure = Some((Instant::now(), error.to_string()));
        self.failing.store(true, Ordering::Relaxed);
    }

    pub(super) fn passing_by(&self, node: NodeId, chunk: u32) -> Option<Bytes> {
        self.passing.get(node, chunk)
    }

    pub(super) fn pass_by(&self, node: NodeId, chunk: u32, bytes: Bytes) {
        self.metrics.passed_by_bytes.add(bytes.len() as u64);
        self.passing.insert(node, chunk, bytes);
    }

    pub(super) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Counters of the cache.
    pub fn metrics(&self) -> &CacheMetrics {
        &self.metrics
    }

    pub(super) fn mark_dirty(&self, object: &Arc<CachedObject>) {
        let mut dirty = lock(&self.dirty);
        if !self.closed.load(Ordering::Relaxed) {
            dirty.entry(object.node()).or_insert_with(|| object.clone());
        }
    }

    /// Events from now on, for as long as the subscription is held.
    pub fn subscribe(&self) -> (Subscription, mpsc::Receiver<Event>) {
        let (sender, receiver) = mpsc::sync_channel(EVENTS_MAX);
        let sender = Arc::new(sender);
        lock(&self.subscribers).push(Arc::downgrade(&sender));
        (Subscription(sender), receiver)
    }

    pub(super) fn emit(&self, event: Event) {
        lock(&self.subscribers).retain(|subscriber| {
            let Some(sender) = subscriber.upgrade() else { return false };
            !matches!(sender.try_send(event.clone()), Err(mpsc::TrySendError::Disconnected(_)))
        });
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Runs a read of the disk where it blocks nobody else.
    pub(super) async fn read_blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let permit = self.disk_reads.clone().acquire_owned().await;
        let task = self.runtime.spawn_blocking(move || {
            let result = read();
            drop(permit);
            result
        });
        match task.await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Runs a write to the disk where it blocks nobody else.
    pub(super) fn write_blocking(
        &self,
        write: impl FnOnce() + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let permits = self.disk_writes.clone();
        let runtime = self.runtime.clone();
        self.runtime.spawn(async move {
            let permit = permits.acquire_owned().await;
            let task = runtime.spawn_blocking(move || {
                write();
                drop(permit);
            });
            if let Err(error) = task.await {
                std::panic::resume_unwind(error.into_panic());
            }
        })
    }
}
