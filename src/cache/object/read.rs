//! Reading: where each stretch of a read comes from, and what is fetched for it
//! and for the reads that follow.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::chunk_map::{CHUNK_BYTES, Presence, chunk_range};
use super::super::fetch::{Flight, Landed};
use super::super::lock;
use super::super::pass_by::PASS_BY_WINDOW_BYTES;
use super::super::readahead::{Plan, WINDOW_MAX_BYTES};
use super::super::writer::Lag;
use super::{CachedObject, State, chunks_of};
use crate::remote::{ErrorKind, RemoteError};

/// How often a read looks again for bytes that moved (from memory to disk) or
/// turned out damaged while it was looking. Each round settles one chunk.
const ROUNDS_MAX: usize = 64;

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
            Piece::Flight { flight, chunk, range } => match flight.chunk_for_reader(chunk).await? {
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
        // What is not kept is of no use behind its reader.
        let start = if is_prompt { range.start } else { from };
        // The first request has bytes that nobody waits for, too.
        let first = part.min(range.end - range.start);
        let range = match self.remote.may_speculate(first) {
            true => start..range.end,
            false => from..end,
        };
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

    pub(super) fn is_missing(&self, state: &State, chunk: u32) -> bool {
        state.map.presence(chunk) == Presence::Absent
            && !state.flights.iter().any(|flight| flight.covers(chunk))
            && self.store.passing_by(self.node, chunk).is_none()
    }
}
