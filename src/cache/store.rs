//! The store: objects on disk, what they may take, and what is known of them.
//!
//! Owns `data/` in the cache directory (one sparse file an object, see
//! [`super::backing_file`]) and the rows about it in the index. Changes gather
//! in memory and reach the index every [`FLUSH_INTERVAL`] in one durable
//! transaction, never on a reader's path: a chunk is written first and noted
//! after, so what the index says is there was written in this boot, or is
//! checked before use. What it may take of the disk is in [`room`], what
//! nobody knows any more in [`sweep`].

mod check;
mod housekeeping;
mod load;
mod room;
mod sweep;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::absences::Absences;
use super::audit::{Audit, Audited};
use super::backing_file::{Way, descriptors_max};
use super::budget::Budget;
use super::disk_health::{DiskHealth, Shortage};
use super::fetch::Fetcher;
use super::index::Index;
use super::memory::{self, MEMORY_MIN_BYTES};
use super::object::CachedObject;
use super::record::NodeId;
use super::standing::Places;
use super::writer::{Backlog, Lag, Writer};
use super::{CHUNK_BYTES, CacheError, Clock, Event, lock};
use crate::admission::Load;
use crate::metrics::CacheMetrics;
pub(super) use check::Checked;
pub(super) use room::Readers;
use room::Room;

/// What was cached this long before a SIGKILL is found again.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(400);

/// Objects kept open although nobody reads them: saves the index look-up and
/// the open of a file that is opened again and again. Each costs one fd, and half
/// of those are for objects that somebody reads.
const IDLE_OBJECTS_MAX: u64 = 1024;

/// Blocking reads of the cache disk at once: enough for 20 readers, few enough
/// to leave threads for the index.
const DISK_READS_MAX: usize = 24;

/// Bytes that may be on disk before the index knows of them, on a cache of any
/// size that matters; an eighth of a smaller one. After a SIGKILL so much is
/// there that has to be fetched again.
const UNFLUSHED_MAX_BYTES: u64 = 64 << 20;

/// Objects whose rows wait to be written. Each has its file open.
const DIRTY_MAX: usize = 1024;

/// Chunks remembered that were not kept for a slow disk, 8 GiB of them. Others are
/// fetched when they are read again.
const UNKEPT_CHUNKS_MAX: usize = 65_536;

/// How exact `used_ms` is: a row is not written again for less.
pub(super) const USED_GRAIN_MS: u64 = 3_600_000;

/// Of the memory, so many eighths hold bytes in flight; the rest is what comes on top of
/// them and is not counted one by one: the buffers of the HTTP client, 256 KiB a
/// connection, and answers being put together.
const BLOCKS_EIGHTHS: u64 = 5;

/// Readahead of what is not kept, at most: what gives way before it is read must
/// be fetched again.
const PASS_BY_WINDOW_MAX_BYTES: u64 = 4 << 20;

/// So many readers find their windows of it in memory.
const PASS_BY_READERS: u64 = 64;

/// Longest that closing waits for bytes that were fetched to be on disk.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Locks under which objects are loaded, so that an object is loaded once and
/// not while it is being discarded. By node, so that cold opens run side by side.
const LOADING_LOCKS: usize = 16;

/// Events a subscriber may be behind; later ones are dropped. They only make
/// the kernel forget early what it forgets by itself with its TTL.
const EVENTS_MAX: usize = 16_384;

fn idle_objects_max() -> NonZeroUsize {
    let max = IDLE_OBJECTS_MAX.min(descriptors_max() / 2);
    usize::try_from(max).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

/// What is on its way between the remote, the readers and the disk, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnTheWay {
    /// Bytes in memory, of the part of the limit that is for them, and who waits.
    pub memory: Load,
    /// `--memory-limit`, or its default, in bytes.
    pub memory_limit: u64,
    /// What waits for the disk.
    pub backlog: Backlog,
}

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
    /// The boot of the machine.
    boot: u128,
    /// Nothing that was written in this boot is trusted any more, and the index
    /// does not know it yet.
    untold_distrust: AtomicBool,
    /// What rows call the time in which their chunks were seen to be good: the
    /// boot of the machine, until its disk fails.
    trust: Mutex<u128>,
    clock: Arc<Clock>,
    budget: Budget,
    room: Room,
    places: Places,
    absences: Absences,
    health: DiskHealth,
    shortage: Shortage,
    fetcher: Fetcher,
    /// `--memory-limit`, or its default.
    memory_limit: u64,
    pass_by_window: u64,
    disk_reads: Arc<Semaphore>,
    writer: Arc<Writer>,
    unkept: Mutex<Unkept>,
    metrics: CacheMetrics,
    audit: Audit,
    /// Objects with at least one chunk on disk.
    held: AtomicU64,
    /// Taken before any other lock but the search for room, and held while the
    /// index is read.
    loading: [Mutex<()>; LOADING_LOCKS],
    live: Mutex<HashMap<NodeId, Weak<CachedObject>>>,
    idle: Mutex<LruCache<NodeId, Arc<CachedObject>>>,
    dirty: Mutex<HashMap<NodeId, Arc<CachedObject>>>,
    /// Objects of which nothing is kept, the last ones that were opened. In cached mode
    /// each READ asks for its object anew, and would fetch from the beginning.
    passing: Mutex<VecDeque<(Instant, Arc<CachedObject>)>>,
    /// Some mount passes backing files through.
    are_pages_read: AtomicBool,
    /// Nothing is kept in memory any more: objects hold the store, and must
    /// not be held by it for ever.
    closed: AtomicBool,
    /// There was no room for another chunk when it was last looked at.
    full: AtomicBool,
    /// One flush at a time.
    flushing: Mutex<()>,
    /// Bytes written to the disk since the last one.
    unflushed: AtomicU64,
    /// Bytes of disk that files took beyond their chunks when they were swept.
    surplus: AtomicU64,
    /// Sweeps that were begun.
    sweeps: AtomicU64,
    /// How often the index had lost everything when this was last looked at.
    losses_met: AtomicU64,
    subscribers: Mutex<Vec<Weak<mpsc::SyncSender<Event>>>>,
}

/// Chunks that were not kept, for a disk that was behind.
#[derive(Debug, Default)]
struct Unkept {
    objects: HashMap<NodeId, (Weak<CachedObject>, BTreeSet<u32>)>,
    chunks: usize,
}

/// What a store is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub runtime: Handle,
    pub data_dir: PathBuf,
    pub index: Arc<Index>,
    pub clock: Arc<Clock>,
    pub boot: u128,
    /// `--cache-size`.
    pub limit: Option<u64>,
    /// `--memory-limit`.
    pub memory: Option<u64>,
}

impl Store {
    /// A store over what the index knows. Nothing is scanned.
    pub(super) fn new(parts: Parts) -> Result<Arc<Self>, CacheError> {
        let Parts { runtime, data_dir, index, clock, boot, limit, memory } = parts;
        let memory = memory.unwrap_or_else(memory::default_limit).max(MEMORY_MIN_BYTES);
        let blocks = memory / 8 * BLOCKS_EIGHTHS;
        let writer = Writer::new(runtime.clone(), blocks);
        let totals = index.totals()?;
        // The disk failed in this boot: what it took before may be lost.
        let trust = if index.distrusted_boot()? == Some(boot) { fastrand::u128(..) } else { boot };
        let places = Places::default();
        places.set_pins(index.pins()?);
        let store = Arc::new_cyclic(|me| Store {
            me: me.clone(),
            runtime,
            data_dir,
            index,
            boot,
            untold_distrust: AtomicBool::new(false),
            trust: Mutex::new(trust),
            clock,
            budget: Budget::new(limit, totals.disk_bytes),
            room: Room::new(limit.unwrap_or(u64::MAX)),
            places,
            absences: Absences::new(),
            health: DiskHealth::default(),
            shortage: Shortage::default(),
            fetcher: Fetcher::new(blocks),
            memory_limit: memory,
            pass_by_window: pass_by_window(blocks),
            disk_reads: Arc::new(Semaphore::new(DISK_READS_MAX)),
            writer,
            unkept: Mutex::default(),
            metrics: CacheMetrics::default(),
            audit: Audit::default(),
            held: AtomicU64::new(totals.objects),
            loading: std::array::from_fn(|_| Mutex::default()),
            live: Mutex::default(),
            idle: Mutex::new(LruCache::new(idle_objects_max())),
            dirty: Mutex::default(),
            passing: Mutex::default(),
            are_pages_read: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            flushing: Mutex::default(),
            unflushed: AtomicU64::new(0),
            surplus: AtomicU64::new(0),
            sweeps: AtomicU64::new(0),
            losses_met: AtomicU64::new(0),
            subscribers: Mutex::default(),
        });
        store.look_at_disk();
        Ok(store)
    }

    /// Waits until what was fetched is on disk. Blocks.
    pub(super) fn settle(&self) {
        self.writer.settle(SETTLE_LIMIT);
    }

    /// Keeps nothing in memory from now on. Objects that are read live on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.forget_idle();
        self.forget_passing(None);
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
        self.remove(nodes, Readers::Outlive).map(drop)
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

    /// An object leaves memory; `freed` is the disk it held if its file is gone,
    /// and `held` whether it was counted among those held.
    pub(super) fn dropped(&self, node: NodeId, freed: Option<u64>, held: bool) {
        let mut live = lock(&self.live);
        if live.get(&node).is_some_and(|object| object.strong_count() == 0) {
            live.remove(&node);
        }
        drop(live);
        if let Some(bytes) = freed {
            self.budget.release(bytes);
            if held {
                self.count_held(false);
            }
        }
    }

    /// Whether fetched bytes are being kept on disk, as far as it is known:
    /// each read asks, and must not ask the file system in its turn.
    pub(super) fn is_keeping(&self) -> bool {
        !self.health.is_pausing() && !self.full.load(Ordering::Relaxed)
    }

    /// Whether bytes may be fetched that nobody waits for, as far as the disk goes.
    pub(super) fn may_prefetch(&self) -> bool {
        self.is_keeping() && self.keeps_up()
    }

    /// The same for who makes room for them.
    pub(super) fn keeps_up(&self) -> bool {
        !self.health.is_pausing() && self.writer.lag() < Lag::Prefetch
    }

    /// A chunk was not kept, since the disk was behind: it is fetched again once the
    /// disk has nothing to do.
    pub(super) fn fill_when_idle(&self, object: &Arc<CachedObject>, chunk: u32) {
        let mut unkept = lock(&self.unkept);
        if unkept.chunks < UNKEPT_CHUNKS_MAX {
            let (_, chunks) = unkept
                .objects
                .entry(object.node())
                .or_insert_with(|| (Arc::downgrade(object), BTreeSet::new()));
            let is_new = chunks.insert(chunk);
            unkept.chunks += usize::from(is_new);
        }
    }

    /// How the store is doing, in words: of several, what weighs most.
    pub fn state(&self) -> String {
        if let Some(trouble) = self.health.trouble().or_else(|| self.shortage.words()) {
            return trouble;
        }
        if !self.budget.has_room(CHUNK_BYTES) && !self.may_evict() {
            return match self.budget.limit() {
                0 => "no room on the cache disk, reads stream through".to_owned(),
                _ => "full, what is cached stays and the rest streams through".to_owned(),
            };
        }
        if !lock(&self.unkept).objects.is_empty() {
            return "the disk is slower than the remote, some of what is read is kept later"
                .to_owned();
        }
        "ok".to_owned()
    }

    /// When the object was used, if that is news to its row.
    pub(super) fn used_since(&self, used_ms: u64) -> Option<u64> {
        let now_ms = self.clock.current_ms();
        (now_ms >= used_ms.saturating_add(USED_GRAIN_MS)).then_some(now_ms)
    }

    pub(super) fn health(&self) -> &DiskHealth {
        &self.health
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn set_held(&self, node: NodeId, held: bool) {
        lock(&self.room.recency).set_held(node, held);
    }

    /// How far ahead of a reader is fetched what is not kept.
    pub(super) fn pass_by_window(&self) -> u64 {
        self.pass_by_window
    }

    /// Where readers wait for memory, what lies there goes to them; and if the disk
    /// hangs, what waits for it, too.
    pub(super) fn relieve(&self, bytes: u64) {
        if self.fetcher.is_short() {
            self.writer.give_up_queued(Instant::now());
        }
        self.fetcher.relieve(bytes);
    }

    /// Gives up what nobody came for in time.
    pub(super) fn forget_old(&self) {
        let now = Instant::now();
        self.forget_passing(Some(now));
        self.fetcher.forget_old(now);
    }

    pub(super) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    pub(super) fn release_file(&self) {
        self.budget.release_file();
    }

    /// A file on the disk that the backing files lie on: the index, which every
    /// cache has.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn sample_file(&self) -> std::io::Result<std::fs::File> {
        std::fs::File::open(self.data_dir.with_file_name("index.redb"))
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

    /// What came of comparing objects with what their stores say.
    pub fn audited(&self) -> Audited {
        self.audit.found()
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What is on its way between the remote, the readers and the disk.
    pub fn on_the_way(&self) -> OnTheWay {
        OnTheWay {
            memory: self.fetcher.memory(),
            memory_limit: self.memory_limit,
            backlog: self.writer.backlog(),
        }
    }

    pub(super) fn me(&self) -> Option<Arc<Store>> {
        self.me.upgrade()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn mark_dirty(&self, object: &Arc<CachedObject>) {
        let mut dirty = lock(&self.dirty);
        if self.closed.load(Ordering::Relaxed) || object.is_doomed() {
            return;
        }
        let before = dirty.insert(object.node(), object.clone());
        drop(dirty);
        drop(before); // After the lock: it may be another one, and its drop takes one.
    }

    /// What somebody was told is not there, by whichever mount.
    pub(super) fn absences(&self) -> &Absences {
        &self.absences
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

    /// The right to read the disk, if fewer do than may.
    pub(super) fn try_disk_read(&self) -> Option<OwnedSemaphorePermit> {
        self.disk_reads.clone().try_acquire_owned().ok()
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

    /// How what is written gets to the disk: past the page cache as long as the disk
    /// keeps up, and nobody but us reads it from there.
    pub(super) fn way_to_disk(&self) -> Way {
        let is_direct = self.writer.is_prompt() && !self.are_pages_read();
        if is_direct { Way::Direct } else { Way::Cached }
    }

    /// The kernel reads backing files without us: what is written is to be in their
    /// pages for it. Where reads come through us, they end in pages of the mount.
    pub fn pages_are_read(&self) {
        self.are_pages_read.store(true, Ordering::Relaxed);
    }

    pub(super) fn are_pages_read(&self) -> bool {
        self.are_pages_read.load(Ordering::Relaxed)
    }

    /// Writes to the disk.
    pub(super) fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }
}

fn pass_by_window(memory_bytes: u64) -> u64 {
    let share = memory_bytes / PASS_BY_READERS / CHUNK_BYTES * CHUNK_BYTES;
    share.clamp(CHUNK_BYTES, PASS_BY_WINDOW_MAX_BYTES)
}
