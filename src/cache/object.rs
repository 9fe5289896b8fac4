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

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;

use super::backing_file::BackingFile;
use super::budget::disk_bytes;
use super::chunk_map::{CHUNK_BYTES, ChunkMap, Presence, chunk_count, chunk_len, chunk_range};
use super::fetch::{Flight, Landed};
use super::listing::to_ns;
use super::lock;
use super::pass_by::PASS_BY_WINDOW_BYTES;
use super::readahead::{Plan, Readahead, WINDOW_MAX_BYTES};
use super::record::{FileId, Fingerprint, GROUP_CHUNKS, NodeId, ObjectAttr};
use super::store::Store;
use super::writer::Lag;
use crate::remote::client::RemoteClient;
use crate::remote::{ErrorKind, ObjectMeta, RemoteError};

/// How often a read looks again for bytes that moved (from memory to disk) or
/// turned out damaged while it was looking. Each round settles one chunk.
const ROUNDS_MAX: usize = 64;

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
}

#[derive(Debug)]
struct State {
    map: ChunkMap,
    flights: Vec<Arc<Flight>>,
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

/// Bytes for a reader, and where they came from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The bytes; shorter than asked for only at the end of the object.
    pub data: Bytes,
    /// Bytes of `data` that waited for the remote.
    pub miss_bytes: u64,
}

/// A read being put together. One that lies within a chunk is not copied.
struct Assembly {
    wanted: usize,
    whole: Bytes,
    data: Vec<u8>,
    miss_bytes: u64,
}

impl Assembly {
    fn new(wanted: usize) -> Self {
        Assembly { wanted, whole: Bytes::new(), data: Vec::new(), miss_bytes: 0 }
    }

    fn len(&self) -> usize {
        self.whole.len() + self.data.len()
    }

    fn push(&mut self, bytes: Bytes) {
        if bytes.len() == self.wanted {
            self.whole = bytes;
            return;
        }
        self.data.reserve_exact(self.wanted - self.data.len());
        self.data.extend_from_slice(&bytes);
    }

    fn finish(self) -> ReadOutcome {
        let data = if self.whole.is_empty() { self.data.into() } else { self.whole };
        ReadOutcome { data, miss_bytes: self.miss_bytes }
    }
}

/// Where one stretch of a read comes from.
#[derive(Debug)]
enum Piece {
    /// Verified bytes of the backing file.
    File(Range<u64>),
    /// Part of a chunk in the backing file that must be checked first.
    Check { chunk: u32, crc: u32, range: Range<u64> },
    /// Part of a chunk that is in memory.
    Memory { chunk: u32, bytes: Bytes, range: Range<u64> },
    /// Part of a chunk that is being fetched.
    Flight { flight: Arc<Flight>, chunk: u32, range: Range<u64> },
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
                flights: Vec::new(),
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

    /// Fills `buf` from `offset`, if that needs neither the remote nor the
    /// disk. For FUSE threads, which wait for neither.
    pub fn read_if_in_memory(self: &Arc<Self>, offset: u64, buf: &mut [u8]) -> bool {
        let Some(file) = self.file.get() else { return false };
        if !self.complete.load(Ordering::Acquire) {
            let end = offset + buf.len() as u64;
            let mut state = lock(&self.state);
            let ready =
                chunks_of(offset, end).all(|chunk| state.map.presence(chunk) == Presence::Verified);
            if !ready {
                return false;
            }
            // A reader that only hits must still move its window along.
            self.plan(&mut state, offset, end);
        }
        let read = file.read_if_in_memory(buf, offset);
        if read {
            self.was_read(buf.len() as u64);
        }
        read
    }

    /// Reads up to `len` bytes at `offset`.
    pub async fn read(self: &Arc<Self>, offset: u64, len: u64) -> Result<ReadOutcome, RemoteError> {
        let end = offset.saturating_add(len).min(self.meta.size);
        if offset >= end {
            return Ok(ReadOutcome::default());
        }
        self.was_read(end - offset);
        let mut read = Assembly::new((end - offset) as usize);
        for _ in 0..ROUNDS_MAX {
            let from = offset + read.len() as u64;
            let pieces = {
                let mut state = lock(&self.state);
                self.plan(&mut state, from, end);
                self.pieces(&state, from, end)
            };
            for piece in pieces {
                if !self.append(piece, &mut read).await? {
                    break;
                }
            }
            if read.len() == read.wanted {
                return Ok(read.finish());
            }
        }
        Err(RemoteError::new(
            ErrorKind::Transient,
            format!("{:?} keeps slipping out of the cache while it is read", self.meta.key.0),
        ))
    }

    /// Adds one piece to what was read; `false` if it is no longer there.
    async fn append(
        self: &Arc<Self>,
        piece: Piece,
        out: &mut Assembly,
    ) -> Result<bool, RemoteError> {
        let (chunk, bytes, range) = match piece {
            Piece::File(range) => return Ok(self.append_from_file(range, out).await),
            Piece::Check { chunk, crc, range } => match self.checked_chunk(chunk, crc).await {
                Some(bytes) => (chunk, bytes, range),
                None => return Ok(false),
            },
            Piece::Memory { chunk, bytes, range } => {
                self.keep_passed(chunk, &bytes);
                (chunk, bytes, range)
            }
            Piece::Flight { flight, chunk, range } => match flight.chunk(chunk).await? {
                Landed::Memory(bytes) => {
                    out.miss_bytes += range.end - range.start;
                    (chunk, bytes, range)
                }
                // Or was a moment ago: whether it can be trusted is for the map to say.
                Landed::OnDisk => {
                    out.miss_bytes += range.end - range.start;
                    return Ok(false);
                }
            },
        };
        let start = u64::from(chunk) * CHUNK_BYTES;
        out.push(bytes.slice((range.start - start) as usize..(range.end - start) as usize));
        Ok(true)
    }

    async fn append_from_file(self: &Arc<Self>, range: Range<u64>, out: &mut Assembly) -> bool {
        let object = self.clone();
        let mut data = std::mem::take(&mut out.data);
        let before = data.len();
        let at = range.start;
        let (data, read) = self
            .store
            .read_blocking(move || {
                data.resize(before + (range.end - range.start) as usize, 0);
                let read = match object.file.get() {
                    Some(file) => file.read(&mut data[before..], range.start),
                    None => Err(std::io::ErrorKind::NotFound.into()),
                };
                if read.is_err() {
                    data.truncate(before);
                }
                (data, read)
            })
            .await;
        out.data = data;
        match read {
            Ok(()) => true,
            Err(error) => {
                // A file that is shorter than it was grows holes where it is
                // written again: nothing in it is taken on trust any more.
                tracing::warn!(key = ?self.meta.key.0, at, %error, "a cached object cannot be read; it is checked");
                self.distrust(&mut lock(&self.state));
                false
            }
        }
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
            state.map.remove(chunk);
            // Its disk stays taken: a hole punched now might hit the bytes that
            // are fetched in its place.
            state.loose.insert(chunk);
            // A flight that brought this chunk says that it is on disk.
            state.flights.retain(|flight| !flight.covers(chunk));
            state.dirty_groups.insert(chunk / GROUP_CHUNKS);
            let emptied = state.map.present_bytes() == 0;
            drop(state);
            if emptied {
                self.store.count_held(false);
            }
            self.store.metrics().repairs.add(1);
            self.store.mark_dirty(self);
        }
    }

    /// Where each stretch of `from..end` is to be had now. Fetches for what is
    /// missing were started by [`CachedObject::plan`].
    fn pieces(&self, state: &State, from: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for chunk in chunks_of(from, end) {
            let whole = chunk_range(chunk, self.meta.size);
            let range = whole.start.max(from)..whole.end.min(end);
            match state.map.presence(chunk) {
                Presence::Verified => match pieces.last_mut() {
                    Some(Piece::File(before)) => before.end = range.end,
                    _ => pieces.push(Piece::File(range)),
                },
                Presence::Unverified { crc } => pieces.push(Piece::Check { chunk, crc, range }),
                Presence::Absent => {
                    if let Some(flight) = state.flights.iter().find(|f| f.covers(chunk)) {
                        pieces.push(Piece::Flight { flight: flight.clone(), chunk, range });
                    } else if let Some(bytes) = self.store.passing_by(self.node, chunk) {
                        pieces.push(Piece::Memory { chunk, bytes, range });
                    } else {
                        break; // Pushed out of memory this moment; the next round asks again.
                    }
                }
            }
        }
        pieces
    }

    /// Starts whatever fetches a read of `from..end` calls for.
    fn plan(self: &Arc<Self>, state: &mut State, from: u64, end: u64) {
        let keeping = !self.doomed.load(Ordering::Relaxed) && self.store.is_keeping();
        let is_prompt = keeping && self.store.writer().lag() < Lag::Ahead;
        let window_max = if is_prompt { WINDOW_MAX_BYTES } else { PASS_BY_WINDOW_BYTES };
        let Plan { range, part } = state.readahead.on_read(from, end - from, window_max);
        let demand = chunks_of(from, end);
        let part = ((part / CHUNK_BYTES) as u32).max(1);
        // What is not kept is of no use behind its reader.
        let start = if is_prompt { range.start } else { from };
        let range = match self.remote.may_speculate() {
            true => start..range.end,
            false => from..end,
        };
        let mut chunk = chunks_of(range.start, range.end).start;
        let until = chunks_of(range.start, range.end).end;
        while chunk < until {
            if !self.is_missing(state, chunk) {
                chunk += 1;
                continue;
            }
            let mut run = chunk + 1;
            while run < until && run - chunk < part && self.is_missing(state, run) {
                run += 1;
            }
            let chunks = chunk..run;
            let bytes =
                chunk_range(run - 1, self.meta.size).end - chunk_range(chunk, self.meta.size).start;
            if chunks.start < demand.end && demand.start < chunks.end {
                self.start(state, chunks, bytes, None);
            } else if let Some(admission) =
                self.store.fetcher().try_admit_ahead(bytes, &self.remote)
            {
                self.start(state, chunks, bytes, Some(admission));
            } else if chunk < demand.start {
                chunk = demand.start;
                continue;
            } else {
                state.readahead.refused(u64::from(chunk) * CHUNK_BYTES);
                break;
            }
            chunk = run;
        }
    }

    fn is_missing(&self, state: &State, chunk: u32) -> bool {
        state.map.presence(chunk) == Presence::Absent
            && !state.flights.iter().any(|flight| flight.covers(chunk))
            && self.store.passing_by(self.node, chunk).is_none()
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

    pub(super) fn node(&self) -> NodeId {
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
