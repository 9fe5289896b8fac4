//! Reading: where each stretch of a read comes from, and what is fetched for it
//! and for the reads that follow.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::block::Filler;
use super::super::chunk_map::{CHUNK_BYTES, Presence, chunk_range};
use super::super::flight::Seat;
use super::super::lock;
use super::super::readahead::{Plan, WINDOW_MAX_BYTES};
use super::super::writer::Lag;
use super::{CachedObject, State, chunks_of};
use crate::remote::{ErrorKind, RemoteError};

/// How often in a row a read looks in vain for bytes that moved (from memory to disk) or
/// turned out damaged while it was looking.
const ROUNDS_MAX: usize = 64;

/// Of a large object's file, so much is in the page cache until it is dropped behind the
/// reader: twice the largest piece that the kernel keeps it in.
const DROP_STEP_BYTES: u64 = 4 << 20;

/// Bytes for a reader, and where they came from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The bytes; shorter than asked for only at the end of the object.
    pub data: Bytes,
    /// Bytes of `data` that waited for the remote.
    pub miss_bytes: u64,
}

/// Bytes that are at hand.
#[derive(Debug)]
pub enum AtHand {
    /// So many, in the buffer that was given.
    Copied(usize),
    /// In memory already; `miss_bytes` of them are not on disk yet.
    Shared {
        /// The bytes.
        data: Bytes,
        /// Those that came from the remote.
        miss_bytes: u64,
    },
}

/// A read being put together. One that lies within a flight is not copied.
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
    /// In memory, or on its way there; so much of it is not on disk.
    Flight { seat: Seat, range: Range<u64>, miss_bytes: u64 },
}

impl Piece {
    fn is_waited_for(&self) -> bool {
        match self {
            Piece::File(_) | Piece::Check { .. } => true,
            Piece::Flight { seat, range, .. } => !seat.is_there(range),
        }
    }
}

impl CachedObject {
    /// The bytes from `offset` on for which `buf` has room, if that needs neither
    /// the remote nor the disk. For FUSE threads, which wait for neither. All of
    /// them lie within the object.
    pub fn read_at_hand(self: &Arc<Self>, offset: u64, buf: &mut [u8]) -> Option<AtHand> {
        let range = offset..offset + buf.len() as u64;
        let mut state = lock(&self.state);
        let shared = match Self::seat_for(&state, &range) {
            Some(seat) => {
                let (data, miss_bytes) =
                    (seat.bytes_now(&range)?, self.missing_bytes(&state, &range));
                Some((seat, AtHand::Shared { data, miss_bytes }))
            }
            None => None,
        };
        if !self.complete.load(Ordering::Acquire) {
            let mut chunks = chunks_of(range.start, range.end);
            let is_on_disk = |chunk| state.map.presence(chunk) == Presence::Verified;
            if shared.is_none() && !chunks.all(is_on_disk) {
                return None;
            }
        }
        if !self.complete.load(Ordering::Acquire) {
            // A reader that only hits must still move its window along.
            self.plan(&mut state, range.start, range.end);
        }
        drop(state);
        let at_hand = match shared {
            Some((seat, shared)) => {
                self.keep_passed(seat.flight());
                shared
            }
            None if self.file.get()?.read_if_in_memory(buf, offset) => {
                self.drop_behind(&range);
                AtHand::Copied(buf.len())
            }
            None => return None,
        };
        self.was_read(range.end - range.start);
        Some(at_hand)
    }

    /// Bytes of `range` that are not on disk.
    fn missing_bytes(&self, state: &State, range: &Range<u64>) -> u64 {
        let missing = |chunk: &u32| state.map.presence(*chunk) == Presence::Absent;
        let bytes_in = |chunk| {
            let whole = chunk_range(chunk, self.meta.size);
            whole.end.min(range.end) - whole.start.max(range.start)
        };
        chunks_of(range.start, range.end).filter(missing).map(bytes_in).sum()
    }

    /// A seat on the flight that has all of `range`.
    fn seat_for(state: &State, range: &Range<u64>) -> Option<Seat> {
        let flight = state.flights.covering((range.start / CHUNK_BYTES) as u32)?;
        (range.end <= flight.range().end).then(|| flight.seat()).flatten()
    }

    /// Reads up to `len` bytes at `offset`.
    pub async fn read(self: &Arc<Self>, offset: u64, len: u64) -> Result<ReadOutcome, RemoteError> {
        let end = offset.saturating_add(len).min(self.meta.size);
        if offset >= end {
            return Ok(ReadOutcome::default());
        }
        self.was_read(end - offset);
        let mut read = Assembly::new((end - offset) as usize);
        let mut rounds = 0;
        while rounds < ROUNDS_MAX {
            let from = offset + read.len() as u64;
            let pieces = {
                let mut state = lock(&self.state);
                if !self.complete.load(Ordering::Acquire) {
                    self.plan(&mut state, from, end);
                }
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
            rounds = if offset + read.len() as u64 > from { 0 } else { rounds + 1 };
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
        let bytes = match piece {
            Piece::File(range) => return Ok(self.append_from_file(range, out).await),
            Piece::Check { chunk, crc, range } => match self.checked_chunk(chunk, crc).await {
                Some(bytes) => {
                    let start = u64::from(chunk) * CHUNK_BYTES;
                    bytes.slice((range.start - start) as usize..(range.end - start) as usize)
                }
                None => return Ok(false),
            },
            Piece::Flight { seat, range, miss_bytes } => {
                let bytes = seat.bytes(&range).await?;
                out.miss_bytes += miss_bytes;
                self.keep_passed(seat.flight());
                bytes
            }
        };
        out.push(bytes);
        Ok(true)
    }

    async fn append_from_file(self: &Arc<Self>, range: Range<u64>, out: &mut Assembly) -> bool {
        let object = self.clone();
        let read = self.store.read_blocking(move || object.read_file(&range)).await;
        read.map(|bytes| out.push(bytes)).is_some()
    }

    /// Bytes of the backing file; `None` if it cannot be read. Blocks.
    fn read_file(&self, range: &Range<u64>) -> Option<Bytes> {
        let bytes = range.end - range.start;
        let mut filler = self.store.fetcher().answer(bytes);
        self.read_file_into(&mut filler, range).ok()?;
        Some(filler.block().slice(0..bytes as usize))
    }

    fn read_file_into(&self, filler: &mut Filler, range: &Range<u64>) -> std::io::Result<()> {
        let read = match self.file.get() {
            Some(file) => {
                let read = file.read_into(filler, range);
                self.drop_behind(range);
                read
            }
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        read.inspect_err(|error| {
            // A file that is shorter than it was grows holes where it is written
            // again: nothing in it is taken on trust any more.
            let (key, at) = (&self.meta.key.0, range.start);
            tracing::warn!(?key, at, %error, "a cached object cannot be read; it is checked");
            self.distrust(&mut lock(&self.state));
        })
    }

    /// Drops from the page cache what of a large object is behind its reader, once `range`
    /// was read: the kernel keeps pages of the mount, and would have the same bytes twice.
    /// In large steps: it has several pages in one piece, which goes as a whole or not at
    /// all.
    fn drop_behind(&self, range: &Range<u64>) {
        let size = self.meta.size;
        if size < DROP_STEP_BYTES || self.store.are_pages_read() {
            return;
        }
        let end = if range.end == size { size } else { range.end - range.end % DROP_STEP_BYTES };
        let from = range.start - range.start % DROP_STEP_BYTES;
        if let Some(file) = self.file.get().filter(|_| from < end) {
            file.drop_pages(&(from..end));
        }
    }

    /// Up to `len` bytes from `offset` on, if all of them are on disk: to be read by
    /// what is returned, which blocks, and gives `None` if they cannot be had there
    /// after all. `None` also while enough others read.
    pub fn read_on_disk(
        self: &Arc<Self>,
        offset: u64,
        len: u64,
    ) -> Option<impl FnOnce() -> Option<Bytes> + Send + 'static> {
        let range = offset..offset.saturating_add(len).min(self.meta.size);
        let is_on_disk = {
            let state = lock(&self.state);
            // What is in memory already is waited for.
            chunks_of(range.start, range.end).all(|chunk| {
                state.map.presence(chunk) == Presence::Verified
                    && state.flights.covering(chunk).is_none()
            })
        };
        let turn = is_on_disk.then(|| self.store.try_disk_read()).flatten()?;
        let object = self.clone();
        Some(move || {
            let bytes = object.read_file(&range)?;
            drop(turn);
            object.was_read(range.end - range.start);
            Some(bytes)
        })
    }

    /// Where each stretch of `from..end` is to be had now, up to the first that is to be
    /// waited for: who waits holds no seat on another flight, whose memory the one he
    /// waits for may need. Fetches for what is missing were started by [`CachedObject::plan`].
    fn pieces(&self, state: &State, from: u64, end: u64) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for chunk in chunks_of(from, end) {
            let whole = chunk_range(chunk, self.meta.size);
            let range = whole.start.max(from)..whole.end.min(end);
            let presence = state.map.presence(chunk);
            if let Some(flight) = state.flights.covering(chunk) {
                let is_miss = presence == Presence::Absent;
                let missing = if is_miss { range.end - range.start } else { 0 };
                if let Some(Piece::Flight { seat, range: before, miss_bytes }) = pieces.last_mut()
                    && Arc::ptr_eq(seat.flight(), flight)
                {
                    before.end = range.end;
                    *miss_bytes += missing;
                    continue;
                }
                if pieces.last().is_some_and(Piece::is_waited_for) {
                    break;
                }
                // Unless its memory goes this moment.
                if let Some(seat) = flight.seat() {
                    pieces.push(Piece::Flight { seat, range, miss_bytes: missing });
                    continue;
                }
            }
            if let (Presence::Verified, Some(Piece::File(before))) = (presence, pieces.last_mut()) {
                before.end = range.end;
                continue;
            }
            if pieces.last().is_some_and(Piece::is_waited_for) {
                break;
            }
            match presence {
                Presence::Verified => pieces.push(Piece::File(range)),
                Presence::Unverified { crc } => pieces.push(Piece::Check { chunk, crc, range }),
                // Given up this moment; the next round asks again.
                Presence::Absent => break,
            }
        }
        pieces
    }

    /// Starts whatever fetches a read of `from..end` calls for.
    fn plan(self: &Arc<Self>, state: &mut State, from: u64, end: u64) {
        let keeping = !self.doomed.load(Ordering::Relaxed) && self.store.is_keeping();
        let is_prompt = keeping && self.store.writer().lag() < Lag::Ahead;
        let window_max = if is_prompt { WINDOW_MAX_BYTES } else { self.store.pass_by_window() };
        let Plan { range, part } = state.readahead.on_read(from, end - from, window_max);
        let demand = chunks_of(from, end);
        // The first request has bytes that nobody waits for, too.
        let first = part.min(range.end - range.start);
        let part = ((part / CHUNK_BYTES) as u32).max(1);
        let range = match self.remote.may_speculate(first) {
            true if is_prompt => range,
            // What is not kept is of no use behind its reader, nor far ahead of it.
            true => from..range.end.min(end + window_max),
            false => from..end,
        };
        let Range { start: mut chunk, end: until } = chunks_of(range.start, range.end);
        while chunk < until {
            if let Some(next) = Self::found_until(state, chunk) {
                chunk = next;
                continue;
            }
            let mut run = chunk + 1;
            while run < until && run - chunk < part && Self::is_missing(state, run) {
                run += 1;
            }
            let chunks = chunk..run;
            if chunks.start < demand.end && demand.start < chunks.end {
                self.start(state, chunks, None);
            } else if let Some(admission) =
                self.store.fetcher().try_admit_ahead(self.bytes_of(&chunks), &self.remote)
            {
                self.start(state, chunks, Some(admission));
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

    /// Where to look on after a chunk that is there, or will be; `None` if it is not.
    fn found_until(state: &State, chunk: u32) -> Option<u32> {
        match state.flights.covering(chunk) {
            Some(flight) => Some(flight.chunks().end),
            None => (state.map.presence(chunk) != Presence::Absent).then_some(chunk + 1),
        }
    }

    pub(super) fn is_missing(state: &State, chunk: u32) -> bool {
        Self::found_until(state, chunk).is_none()
    }
}
