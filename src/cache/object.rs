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

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Bytes, BytesMut};

use super::backing_file::BackingFile;
use super::budget::disk_bytes;
use super::chunk_map::{CHUNK_BYTES, ChunkMap, Presence, chunk_count, chunk_range};
use super::fetch::{Admission, Flight, Landed, Pilot};
use super::index::Write;
use super::listing::to_ns;
use super::pass_by::PASS_BY_WINDOW_BYTES;
use super::readahead::{Plan, Readahead, WINDOW_MAX_BYTES};
use super::record::{FileId, Fingerprint, GROUP_CHUNKS, Location, NodeId, ObjectAttr, ObjectRow};
use super::store::Store;
use super::{CacheError, Event, kill_point, lock};
use crate::remote::client::RemoteClient;
use crate::remote::{ErrorKind, ObjectMeta, RemoteError};

/// How often a read looks again for bytes that moved (from memory to disk) or
/// turned out damaged while it was looking. Each round settles one chunk.
const ROUNDS_MAX: usize = 64;

/// Bytes read before the policy of eviction hears of it again: often enough to
/// tell what is read, too rarely to cost anything.
const TOUCH_BYTES: u64 = 1 << 20;

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
    pub data: Vec<u8>,
    /// Bytes of `data` that waited for the remote.
    pub miss_bytes: u64,
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

    /// Looks at the file before it is opened again. If somebody else touched
    /// it, every chunk is checked before its next use. `false` if it has no
    /// name any more: it is lost with the last who has it open.
    pub(super) fn recheck(&self) -> bool {
        let Some(file) = self.file.get() else { return true };
        if self.lost.load(Ordering::Relaxed) {
            return false;
        }
        if self.is_doomed() {
            return true;
        }
        let mut state = lock(&self.state);
        let Ok(Some(now)) = file.fingerprint() else { return false };
        self.distrust_if_touched(&mut state, file, &now);
        true
    }

    /// Compares the file with what we left. Only its size and its inode can be
    /// told while we write to it ourselves.
    fn distrust_if_touched(&self, state: &mut State, file: &BackingFile, now: &Fingerprint) {
        let touched = match &state.fingerprint {
            Some(known) if state.writes == 0 => known != now,
            _ => now.size != self.meta.size,
        };
        if !touched {
            return;
        }
        tracing::warn!(key = ?self.meta.key.0, "somebody touched the file of a cached object; it is checked");
        self.distrust(state);
        if now.size != self.meta.size
            && let Err(error) = file.restore_size(self.meta.size)
        {
            self.store.health().failed(&error);
        }
        state.fingerprint = None;
    }

    /// Every chunk is checked before its next use.
    pub(super) fn distrust_all(&self) {
        self.distrust(&mut lock(&self.state));
    }

    fn distrust(&self, state: &mut State) {
        self.complete.store(false, Ordering::Release);
        state.map.distrust();
        state.doubts += 1;
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
        let mut outcome = ReadOutcome::default();
        outcome.data.reserve_exact((end - offset) as usize);
        for _ in 0..ROUNDS_MAX {
            let from = offset + outcome.data.len() as u64;
            let pieces = {
                let mut state = lock(&self.state);
                self.plan(&mut state, from, end);
                self.pieces(&state, from, end)
            };
            for piece in pieces {
                if !self.append(piece, &mut outcome).await? {
                    break;
                }
            }
            if outcome.data.len() as u64 == end - offset {
                return Ok(outcome);
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
        out: &mut ReadOutcome,
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
                Landed::OnDisk => {
                    let bytes = range.end - range.start;
                    let read = self.append_from_file(range, out).await;
                    out.miss_bytes += if read { bytes } else { 0 };
                    return Ok(read);
                }
            },
        };
        let start = u64::from(chunk) * CHUNK_BYTES;
        let slice = &bytes[(range.start - start) as usize..(range.end - start) as usize];
        out.data.extend_from_slice(slice);
        Ok(true)
    }

    async fn append_from_file(self: &Arc<Self>, range: Range<u64>, out: &mut ReadOutcome) -> bool {
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
        let window_max = if keeping { WINDOW_MAX_BYTES } else { PASS_BY_WINDOW_BYTES };
        let Plan { range, part } = state.readahead.on_read(from, end - from, window_max);
        let demand = chunks_of(from, end);
        let part = ((part / CHUNK_BYTES) as u32).max(1);
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
            } else if let Some(admission) = self.store.fetcher().try_admit_ahead(bytes) {
                self.start(state, chunks, bytes, Some(admission));
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

    fn start(
        self: &Arc<Self>,
        state: &mut State,
        chunks: Range<u32>,
        bytes: u64,
        ahead: Option<Admission>,
    ) {
        let (flight, pilot) = Flight::new(chunks);
        state.flights.push(flight);
        let object = self.clone();
        self.store.spawn(async move {
            let flight = pilot.flight().clone();
            let mut admission = match ahead {
                Some(admission) => Some(admission),
                None => object.store.fetcher().admit(bytes).await,
            };
            let result = object.fly(&pilot, admission.as_mut()).await;
            // First out of the list, then the verdict: who looks now starts anew.
            lock(&object.state).flights.retain(|f| !Arc::ptr_eq(f, &flight));
            if let Err(error) = result {
                tracing::debug!(key = ?object.meta.key.0, %error, "a fetch failed");
                pilot.fail(error);
            }
            drop(admission);
        });
    }

    /// Brings the bytes of one flight: to those who wait first, then to disk.
    async fn fly(
        self: &Arc<Self>,
        pilot: &Pilot,
        admission: Option<&mut Admission>,
    ) -> Result<(), RemoteError> {
        let chunks = pilot.flight().chunks().clone();
        let range = chunk_range(chunks.start, self.meta.size).start
            ..chunk_range(chunks.end - 1, self.meta.size).end;
        let mut reader = self.remote.get_range(self.meta.clone(), range);
        let mut chunk = chunks.start;
        let mut wanted = chunk_len(chunk, self.meta.size);
        let mut partial = BytesMut::with_capacity(wanted);
        let mut landed: Vec<(u32, Bytes)> = Vec::new();
        let mut keeping: Option<tokio::task::JoinHandle<()>> = None;
        let result = loop {
            let mut bytes = match reader.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            while !bytes.is_empty() && chunk < chunks.end {
                let take = bytes.len().min(wanted - partial.len());
                partial.extend_from_slice(&bytes.split_to(take));
                if partial.len() < wanted {
                    continue;
                }
                let whole = std::mem::take(&mut partial).freeze();
                self.store.chunk_landed();
                pilot.deliver(chunk, whole.clone());
                landed.push((chunk, whole));
                chunk += 1;
                if chunk < chunks.end {
                    wanted = chunk_len(chunk, self.meta.size);
                    partial.reserve(wanted);
                }
            }
            // One write at a time, behind the network: the next batch gathers meanwhile.
            if !landed.is_empty() && keeping.as_ref().is_none_or(|task| task.is_finished()) {
                keeping = Some(self.keep_in_background(pilot, std::mem::take(&mut landed)));
            }
        };
        drop(reader);
        if let Some(admission) = admission {
            admission.request_done();
        }
        if let Some(task) = keeping {
            self.joined(task).await;
        }
        if !landed.is_empty() {
            let task = self.keep_in_background(pilot, landed);
            self.joined(task).await;
        }
        result
    }

    async fn joined(&self, task: tokio::task::JoinHandle<()>) {
        if let Err(error) = task.await {
            tracing::error!(%error, "writing to the cache ended abnormally");
        }
    }

    fn keep_in_background(
        self: &Arc<Self>,
        pilot: &Pilot,
        landed: Vec<(u32, Bytes)>,
    ) -> tokio::task::JoinHandle<()> {
        let object = self.clone();
        let flight = pilot.flight().clone();
        self.store.write_blocking(move || {
            for (chunk, bytes) in landed {
                if object.is_kept(chunk) || object.keep(chunk, &bytes) {
                    flight.on_disk(chunk);
                } else {
                    object.store.pass_by(object.node, chunk, bytes);
                }
                object.store.chunk_settled();
            }
        })
    }

    /// A chunk went past the disk when it came. It is kept now if it can be: as
    /// long as it is in memory nobody fetches it, who would keep it.
    fn keep_passed(self: &Arc<Self>, chunk: u32, bytes: &Bytes) {
        if self.is_doomed() || !self.store.is_keeping() {
            return;
        }
        let (object, bytes) = (self.clone(), bytes.clone());
        // Whoever reads the chunk next tries again.
        self.store.try_write_blocking(move || {
            if object.is_kept(chunk) || object.keep(chunk, &bytes) {
                object.store.kept_after_all(object.node, chunk);
            }
        });
    }

    /// Whether a chunk is on disk already: after damage, two flights may bring it.
    fn is_kept(&self, chunk: u32) -> bool {
        lock(&self.state).map.presence(chunk) == Presence::Verified
    }

    /// Writes a chunk and notes that it is there; `false` if it cannot be kept.
    fn keep(self: &Arc<Self>, chunk: u32, bytes: &Bytes) -> bool {
        let disk = disk_bytes(bytes.len() as u64);
        if self.is_doomed() || !self.store.reserve(disk) {
            return false;
        }
        let offset = chunk_range(chunk, self.meta.size).start;
        let file = match self.writable_file() {
            Ok(Some(file)) => file,
            refused => {
                self.store.release(disk);
                if let Err(error) = refused {
                    self.store.disk_failed(&error);
                }
                return false;
            }
        };
        {
            let mut state = lock(&self.state);
            state.writes += 1;
            state.fingerprint = None;
        }
        let written = file.write(bytes, offset);
        kill_point::reach("chunk-written");
        let crc = crc32c::crc32c(bytes);
        let mut state = lock(&self.state);
        state.writes -= 1;
        if let Err(error) = written {
            // Perhaps a part of it: what it takes of the disk stays paid for.
            let is_new = state.map.presence(chunk) == Presence::Absent && state.loose.insert(chunk);
            drop(state);
            if !is_new {
                self.store.release(disk);
            }
            self.store.disk_failed(&error);
            return false;
        }
        let first = state.map.present_bytes() == 0;
        let was_paid = state.loose.remove(&chunk);
        let added = state.map.insert(chunk, crc, true);
        state.dirty_groups.insert(chunk / GROUP_CHUNKS);
        let complete = state.map.is_complete();
        self.complete.store(complete, Ordering::Release);
        drop(state);
        if was_paid || !added {
            self.store.release(disk);
        }
        if first {
            self.store.count_held(true);
            self.store.set_held(self.node, true);
        }
        kill_point::reach("chunk-noted");
        self.store.mark_dirty(self);
        self.store.health().works();
        self.store.chunk_written(disk);
        if complete {
            self.store.emit(Event::Blocks(self.node));
        }
        true
    }

    /// The file, created if need be; `None` once the object is doomed, and
    /// where no more files may be made.
    fn writable_file(&self) -> std::io::Result<Option<&BackingFile>> {
        if let Some(file) = self.file.get() {
            return Ok((!self.is_doomed()).then_some(file));
        }
        // Before the lock: others may have to be evicted for it.
        if !self.store.reserve_file() {
            return Ok(None);
        }
        let _writing = lock(&self.writing);
        if self.is_doomed() || self.file.get().is_some() {
            self.store.release_file();
            return Ok(self.file.get().filter(|_| !self.is_doomed()));
        }
        kill_point::reach("file-uncreated");
        let path = self.file_id.path(self.store.data_dir());
        let file = BackingFile::create(&path, self.meta.size)?;
        kill_point::reach("file-created");
        Ok(Some(self.file.get_or_init(|| file)))
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

    /// What was written to the index is not there: all of it is to be written again.
    pub(super) fn redirty(&self) {
        let groups = chunk_count(self.meta.size).div_ceil(GROUP_CHUNKS);
        let mut state = lock(&self.state);
        state.dirty_groups.extend(0..groups);
        state.stale_rows = true;
    }

    /// Writes what changed since the last time to the index.
    pub(super) fn write_rows(&self, write: &mut Write<'_>, boot: u128) -> Result<(), CacheError> {
        if std::mem::take(&mut lock(&self.state).stale_rows) {
            write.remove_object(self.node)?;
        }
        let Some(file) = self.file.get() else { return Ok(()) };
        let (groups, row) = {
            let mut state = lock(&self.state);
            let now = file.fingerprint().map_err(|e| CacheError::Io(e.to_string()))?;
            // Without a name it is lost; its bytes go with its last reader.
            let Some(now) = now else {
                self.lost.store(true, Ordering::Relaxed);
                self.doomed.store(true, Ordering::Relaxed);
                return write.remove_object(self.node).map(drop);
            };
            self.distrust_if_touched(&mut state, file, &now);
            if state.writes == 0 && now.size == self.meta.size {
                state.fingerprint = Some(now);
            }
            let dirty = std::mem::take(&mut state.dirty_groups);
            let groups: Vec<_> = dirty.into_iter().map(|g| (g, state.map.group_row(g))).collect();
            let row = ObjectRow {
                location: Location::OwnFile(self.file_id),
                size: self.meta.size,
                version: self.meta.version.clone(),
                present_bytes: state.map.present_bytes(),
                fingerprint: now,
                verified_boot: state.map.is_all_verified().then_some(boot),
                used_ms: self.used_ms.load(Ordering::Relaxed),
            };
            (groups, row)
        };
        for (group, row) in groups {
            write.put_chunk_group(self.node, group, &row)?;
        }
        kill_point::reach("flush-between-rows");
        write.put_object(self.node, &row)?;
        kill_point::reach("flush-object-written");
        Ok(())
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

fn chunk_len(chunk: u32, size: u64) -> usize {
    let range = chunk_range(chunk, size);
    (range.end - range.start) as usize
}
