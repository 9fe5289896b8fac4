//! One version of one object, as its readers see it.
//!
//! A read takes each chunk from where it is: the backing file, a fetch that is
//! under way, memory on the way past a full disk, or else a new fetch. Bytes
//! from the file are checked against their checksum before the first use if
//! anything could have touched them since they were written; a chunk that
//! fails is dropped, counted and fetched again, never an error to the reader.
//!
//! Lock order: `writing` before `state`. Neither is held across an await or
//! while the file is read or written.

mod disk;
mod flight;
mod read;

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use super::backing_file::BackingFile;
use super::budget::disk_bytes;
use super::chunk_map::{CHUNK_BYTES, ChunkMap, Presence, chunk_count, chunk_len, chunk_range};
use super::flight::Flights;
use super::listing::to_ns;
use super::readahead::Readahead;
use super::record::{FileId, Fingerprint, GROUP_CHUNKS, NodeId, ObjectAttr};
use super::store::Store;
use super::{Event, lock};
use crate::remote::ObjectMeta;
use crate::remote::client::RemoteClient;
pub(super) use flight::Fill;
pub use read::{AtHand, ReadOutcome};

/// Bytes read before the policy of eviction hears of it again: often enough to
/// tell what is read, too rarely to cost anything.
const TOUCH_BYTES: u64 = 1 << 20;

/// All but one part in so many is as good as all: formats have trailers and
/// paddings that their readers do not look at.
const READ_THROUGH_PART: u64 = 16;

/// An object that somebody reads, or read lately.
#[derive(Debug)]
pub struct CachedObject {
    node: NodeId,
    meta: ObjectMeta,
    remote: Arc<RemoteClient>,
    store: Arc<Store>,
    file_id: FileId,
    file: OnceLock<BackingFile>,
    /// Held while the file is created or given up, so that nobody truncates
    /// another's bytes or brings a file back that was removed.
    writing: Mutex<()>,
    state: Mutex<State>,
    /// Every chunk is on disk and verified: reads need no lock.
    complete: AtomicBool,
    /// Replaced or evicted: nothing more is kept, the file is gone.
    doomed: AtomicBool,
    /// Its file has no name any more: who opens it next begins anew.
    lost: AtomicBool,
    /// When its row says that it was used.
    used_ms: AtomicU64,
    /// Bytes read of which the policy has not heard.
    untold_bytes: AtomicU64,
    /// Bytes read since it is in memory, and whether any were waited for.
    read_bytes: AtomicU64,
    missed: AtomicBool,
    /// It is complete, and whoever compares it with the store was told.
    is_told: AtomicBool,
}

#[derive(Debug)]
struct State {
    map: ChunkMap,
    flights: Flights,
    readahead: Readahead,
    dirty_groups: BTreeSet<u32>,
    /// The index's rows may be about another file: they go before new ones
    /// are written. Until then their fingerprint gives them away.
    stale_rows: bool,
    /// What the file looked like after all that was written to it by us:
    /// unknown while we write, and until the next flush.
    fingerprint: Option<Fingerprint>,
    /// Writes to the file that are under way.
    writes: u32,
    /// Absent chunks whose disk is taken all the same, and paid for: it is not
    /// given back before the file goes, or the next sweep trims it. A hole
    /// punched here might hit what a successor writes.
    loose: BTreeSet<u32>,
    /// How often all was distrusted: a check that began before one counts for nothing.
    doubts: u64,
}

impl State {
    /// Takes a chunk out of the cache.
    fn take_out(&mut self, chunk: u32) {
        if self.map.remove(chunk) {
            // Its disk stays taken: a hole punched now might hit the bytes that are
            // fetched in its place.
            self.loose.insert(chunk);
            // What is in memory of it would keep it from being written again.
            self.flights.remove_covering(chunk);
            self.dirty_groups.insert(chunk / GROUP_CHUNKS);
        }
    }
}

/// A chunk whose bytes came, and their checksum.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    number: u32,
    crc: u32,
}

/// What the index had of an object when it was loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    pub file_id: FileId,
    /// The file, and what it looks like.
    pub file: Option<(BackingFile, Fingerprint)>,
    pub map: ChunkMap,
    pub used_ms: u64,
    /// Rows are there, and what they tell of is not.
    pub stale_rows: bool,
    /// Nobody can look the node up any more: nothing is kept of it.
    pub doomed: bool,
}

impl Loaded {
    /// An object of which the cache has nothing.
    pub(super) fn nothing(node: NodeId, size: u64) -> Self {
        Loaded {
            file_id: FileId::draw(node),
            file: None,
            map: ChunkMap::new(size),
            used_ms: 0,
            stale_rows: false,
            doomed: false,
        }
    }
}

impl CachedObject {
    pub(super) fn new(
        node: NodeId,
        meta: ObjectMeta,
        remote: Arc<RemoteClient>,
        store: Arc<Store>,
        loaded: Loaded,
    ) -> Self {
        let size = meta.size;
        let complete = loaded.map.is_complete();
        let (file, fingerprint) = loaded.file.unzip();
        CachedObject {
            node,
            meta,
            remote,
            store,
            file_id: loaded.file_id,
            file: file.map_or_else(OnceLock::new, OnceLock::from),
            writing: Mutex::new(()),
            state: Mutex::new(State {
                map: loaded.map,
                flights: Flights::default(),
                readahead: Readahead::new(size),
                dirty_groups: BTreeSet::new(),
                stale_rows: loaded.stale_rows,
                fingerprint,
                writes: 0,
                loose: BTreeSet::new(),
                doubts: 0,
            }),
            complete: AtomicBool::new(complete),
            doomed: AtomicBool::new(loaded.doomed),
            lost: AtomicBool::new(false),
            used_ms: AtomicU64::new(loaded.used_ms),
            untold_bytes: AtomicU64::new(0),
            read_bytes: AtomicU64::new(0),
            missed: AtomicBool::new(false),
            is_told: AtomicBool::new(false),
        }
    }

    /// Somebody opens the object.
    pub fn opened(self: &Arc<Self>) {
        let untold = self.untold_bytes.swap(0, Ordering::Relaxed);
        self.store.touch(self.node, untold);
        if let Some(now_ms) = self.store.used_since(self.used_ms.load(Ordering::Relaxed)) {
            self.used_ms.store(now_ms, Ordering::Relaxed);
            if self.present_bytes() > 0 {
                self.store.mark_dirty(self);
            }
        }
    }

    /// Somebody read `bytes` of it.
    fn was_read(&self, bytes: u64) {
        let untold = self.untold_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if untold >= TOUCH_BYTES.min(self.meta.size) {
            self.untold_bytes.store(0, Ordering::Relaxed);
            self.store.touch(self.node, untold);
        }
    }

    /// `bytes` of it were read, `missed` if they were waited for. Whether with
    /// these it was read to its end, or nearly: once, for as long as it is in memory.
    pub(super) fn is_read_through(&self, bytes: u64, missed: bool) -> bool {
        if missed {
            self.missed.store(true, Ordering::Relaxed);
        }
        let enough = self.meta.size - self.meta.size / READ_THROUGH_PART;
        let before = self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        before < enough && before.saturating_add(bytes) >= enough
    }

    /// Whether a reader waited for some of it.
    pub(super) fn was_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.meta.size
    }

    /// Size, time and version, as the remote has them.
    pub fn attr(&self) -> ObjectAttr {
        ObjectAttr {
            size: self.meta.size,
            mtime_ns: to_ns(self.meta.mtime),
            version: self.meta.version.clone(),
            key_name: None,
        }
    }

    /// Bytes in the cache.
    pub fn present_bytes(&self) -> u64 {
        lock(&self.state).map.present_bytes()
    }

    /// The backing file, if it holds the whole object and every chunk was
    /// verified: only then may the kernel read it without us.
    pub fn complete_file(&self) -> Option<&std::fs::File> {
        if !self.complete.load(Ordering::Acquire) {
            return None;
        }
        self.file.get().map(BackingFile::as_file)
    }

    /// Reads a chunk whole and compares its checksum.
    async fn checked_chunk(self: &Arc<Self>, chunk: u32, crc: u32) -> Option<Bytes> {
        let object = self.clone();
        let range = chunk_range(chunk, self.meta.size);
        let doubts = lock(&self.state).doubts;
        let bytes = self
            .store
            .read_blocking(move || {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                object.file.get()?.read(&mut bytes, range.start).ok()?;
                (crc32c::crc32c(&bytes) == crc).then_some(bytes)
            })
            .await;
        match bytes {
            Some(bytes) => {
                let all_verified = {
                    let mut state = lock(&self.state);
                    if state.doubts == doubts {
                        state.map.mark_verified(chunk);
                    }
                    self.complete.store(state.map.is_complete(), Ordering::Release);
                    state.map.is_all_verified()
                };
                if all_verified {
                    // The row may now say that this boot has seen all of it.
                    self.store.mark_dirty(self);
                }
                Some(Bytes::from(bytes))
            }
            None => {
                tracing::warn!(key = ?self.meta.key.0, chunk, "a cached chunk is damaged; it is fetched again");
                self.drop_damaged(chunk, crc);
                None
            }
        }
    }

    /// Every chunk of it.
    pub(super) fn chunks(&self) -> Range<u32> {
        0..chunk_count(self.meta.size)
    }

    /// Compares a chunk on disk with its checksum, whatever is believed of it;
    /// `None` if it is not there, else its bytes, as an error if it is damaged.
    pub(super) async fn verify_chunk(self: &Arc<Self>, chunk: u32) -> Option<Result<u64, u64>> {
        let crc = {
            let mut state = lock(&self.state);
            let crc = state.map.crc(chunk)?;
            state.map.distrust_chunk(chunk);
            self.complete.store(false, Ordering::Release);
            crc
        };
        let bytes = chunk_len(chunk, self.meta.size) as u64;
        Some(self.checked_chunk(chunk, crc).await.map(|_| bytes).ok_or(bytes))
    }

    /// Brings a chunk into the cache; `false` if it could not be fetched.
    pub(super) async fn fetch_chunk(self: &Arc<Self>, chunk: u32) -> bool {
        let range = chunk_range(chunk, self.meta.size);
        self.read(range.start, range.end - range.start).await.is_ok()
    }

    /// Takes a chunk that failed its check out of the cache, unless another
    /// reader did so first, and perhaps brought it back since.
    fn drop_damaged(self: &Arc<Self>, chunk: u32, crc: u32) {
        let mut state = lock(&self.state);
        if state.map.presence(chunk) == (Presence::Unverified { crc }) {
            state.take_out(chunk);
            let emptied = state.map.present_bytes() == 0;
            drop(state);
            if emptied {
                self.store.count_held(false);
            }
            self.store.metrics().repairs.add(1);
            self.store.mark_dirty(self);
        }
    }

    /// Takes all of it out of the cache, and has the kernel forget what it read of it: each
    /// chunk is as it came, and all of them are not what the store has.
    pub(super) fn drop_all(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        let held = state.map.present_bytes() > 0;
        self.distrust(&mut state);
        self.chunks().for_each(|chunk| state.take_out(chunk));
        drop(state);
        self.is_told.store(false, Ordering::Relaxed);
        if held {
            self.store.count_held(false);
        }
        self.store.mark_dirty(self);
        self.store.emit(Event::Contents(self.node));
    }

    /// The checksum of all of it, out of those of its chunks; `None` if some are missing.
    pub(super) fn whole_crc32c(&self) -> Option<u32> {
        let crcs: Vec<u32> = {
            let state = lock(&self.state);
            if !state.map.is_complete() {
                return None;
            }
            self.chunks().map(|chunk| state.map.crc(chunk)).collect::<Option<_>>()?
        };
        let chunks = self.chunks().zip(crcs);
        Some(chunks.fold(0, |whole, (chunk, crc)| {
            crc32c::crc32c_combine(whole, crc, chunk_len(chunk, self.meta.size))
        }))
    }

    /// Bytes of its file, if all of it is there. Blocks.
    pub(super) fn read_whole(&self, range: &Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let file = self.file.get().filter(|_| self.complete.load(Ordering::Acquire))?;
        file.read(&mut bytes, range.start).ok()?;
        Some(bytes)
    }

    /// It became complete: it is compared with what the store says, if the mount asks
    /// for that and it was not yet.
    fn became_whole(&self) {
        if self.remote.verifies() && !self.is_told.swap(true, Ordering::Relaxed) {
            self.store.compare_later(self.node, &self.meta, &self.remote);
        }
    }

    pub(super) fn remote(&self) -> &Arc<RemoteClient> {
        &self.remote
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The object, as the remote has it.
    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// Bytes of disk it takes.
    pub(super) fn disk_bytes(&self) -> u64 {
        let state = lock(&self.state);
        self.disk_bytes_of(&state)
    }

    fn disk_bytes_of(&self, state: &State) -> u64 {
        let loose = state.loose.iter().map(|chunk| chunk_len(*chunk, self.meta.size) as u64);
        disk_bytes(state.map.present_bytes()) + loose.map(disk_bytes).sum::<u64>()
    }

    /// The file that its bytes lie, or will lie, in.
    pub(super) fn file_id(&self) -> FileId {
        self.file_id
    }

    /// Whether the index may have rows about another file of it.
    pub(super) fn has_stale_rows(&self) -> bool {
        lock(&self.state).stale_rows
    }

    /// Whether its bytes lie, or will lie, in this file.
    pub(super) fn is_in_file(&self, id: FileId) -> bool {
        self.file_id == id && !self.is_doomed()
    }

    /// Its node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::Relaxed)
    }

    /// The object was replaced: nothing more is kept of it. Its drop gives
    /// back the disk it holds. Returns its file, which the caller removes;
    /// `None` if it was doomed already.
    pub(super) fn doom(&self) -> Option<FileId> {
        let _writing = lock(&self.writing);
        (!self.doomed.swap(true, Ordering::Relaxed)).then_some(self.file_id)
    }
}

impl Drop for CachedObject {
    fn drop(&mut self) {
        let freed = self.is_doomed().then(|| self.disk_bytes());
        self.store.dropped(self.node, freed, self.present_bytes() > 0);
    }
}

/// The chunks that the bytes `from..end` touch.
fn chunks_of(from: u64, end: u64) -> Range<u32> {
    (from / CHUNK_BYTES) as u32..end.div_ceil(CHUNK_BYTES) as u32
}
