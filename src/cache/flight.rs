//! Requests on their way, as their readers see them: single flight.
//!
//! A [`Flight`] is one GET for a run of chunks. Whoever needs some of its bytes
//! takes a [`Seat`] on it instead of asking again, and is served from its memory
//! the moment they are there; the disk comes after.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;

use super::block::{Block, Filler, Pool};
use super::chunk_map::chunk_range;
use super::fetch::Admission;
use super::lock;
use crate::admission::{Class, Permit, Urgency};
use crate::remote::{ErrorKind, RemoteError};

/// One request for a run of chunks, its bytes, and those who wait for them.
#[derive(Debug)]
pub(super) struct Flight {
    chunks: Range<u32>,
    /// The bytes of the object that it brings.
    range: Range<u64>,
    urgency: Urgency,
    state: Mutex<State>,
    failure: OnceLock<RemoteError>,
    /// How many bytes have come.
    progress: watch::Receiver<usize>,
    /// Bytes that no reader has had.
    unread: AtomicU64,
    /// Its bytes are no longer in memory: whoever finds it looks elsewhere.
    is_gone: AtomicBool,
    /// Some of it is not on disk, and will not be.
    is_unkept: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    block: Option<Arc<Block>>,
    /// Who has a seat: as long as somebody has, its bytes stay.
    seats: u32,
    /// All its bytes came, and went where they go.
    is_retired: bool,
}

/// A reader's claim to some bytes of a flight.
#[derive(Debug)]
pub(super) struct Seat(Arc<Flight>);

/// The side of a flight that brings the bytes. Dropped without an outcome, it
/// fails the flight, so that nobody waits for ever.
#[derive(Debug)]
pub(super) struct Pilot {
    flight: Arc<Flight>,
    filler: Filler,
    progress: watch::Sender<usize>,
    _request: Permit,
}

/// A flight that waits for its admission.
#[derive(Debug)]
pub(super) struct Boarding {
    flight: Arc<Flight>,
    progress: watch::Sender<usize>,
}

impl Flight {
    /// A flight for `chunks` of an object of `size` bytes.
    pub(super) fn new(chunks: Range<u32>, size: u64, class: Class) -> (Arc<Flight>, Boarding) {
        let (sender, progress) = watch::channel(0);
        let range = chunk_range(chunks.start, size).start..chunk_range(chunks.end - 1, size).end;
        let flight = Arc::new(Flight {
            chunks,
            unread: AtomicU64::new(range.end - range.start),
            range,
            urgency: class.into(),
            state: Mutex::default(),
            failure: OnceLock::new(),
            progress,
            is_gone: AtomicBool::new(false),
            is_unkept: AtomicBool::new(false),
        });
        (flight.clone(), Boarding { flight, progress: sender })
    }

    pub(super) fn chunks(&self) -> &Range<u32> {
        &self.chunks
    }

    /// The bytes of the object that it brings.
    pub(super) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// What it is flown for.
    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// Whether a reader wants it, or is on its way to it.
    pub(super) fn is_for_reader(&self) -> bool {
        self.urgency.class() != Class::Prefetch
    }

    /// Whether its bytes are in memory no more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// Some of its chunks are not kept on disk.
    pub(super) fn pass_by(&self) {
        self.is_unkept.store(true, Ordering::Relaxed);
    }

    /// What was passed by is on disk after all.
    pub(super) fn was_kept(&self) {
        self.is_unkept.store(false, Ordering::Relaxed);
        if self.is_read_through() {
            self.forget();
        }
    }

    /// Whether all of it is on disk, or on its way there.
    pub(super) fn is_kept(&self) -> bool {
        !self.is_unkept.load(Ordering::Relaxed)
    }

    /// Whether each of its bytes was read, as far as that can be told.
    pub(super) fn is_read_through(&self) -> bool {
        self.unread.load(Ordering::Relaxed) == 0
    }

    /// A reader's claim to its bytes; `None` if they are gone. From now on the flight
    /// is urgent, whatever it was begun for.
    pub(super) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let mut state = lock(&self.state);
        if self.is_gone() {
            return None;
        }
        state.seats += 1;
        self.urgency.raise(Class::Demand);
        Some(Seat(self.clone()))
    }

    /// Returns once all its bytes have come, or it failed.
    pub(super) async fn arrived(&self) -> Result<(), RemoteError> {
        self.wait((self.range.end - self.range.start) as usize).await
    }

    async fn wait(&self, bytes: usize) -> Result<(), RemoteError> {
        let mut progress = self.progress.clone();
        match progress.wait_for(|came| *came >= bytes).await {
            Ok(_) => Ok(()),
            Err(_) => Err(self.failure.get().cloned().unwrap_or_else(|| {
                RemoteError::new(ErrorKind::Transient, "a fetch was interrupted")
            })),
        }
    }

    /// The bytes of chunks that have come, unless they are gone.
    pub(super) fn block(&self) -> Option<Arc<Block>> {
        lock(&self.state).block.clone()
    }

    /// Where a byte of the object lies in the block.
    pub(super) fn place(&self, range: &Range<u64>) -> Range<usize> {
        (range.start - self.range.start) as usize..(range.end - self.range.start) as usize
    }

    /// All of it came, and went where it goes.
    pub(super) fn retire(&self) {
        lock(&self.state).is_retired = true;
    }

    /// Whether nobody has a seat on it, or is still to write it.
    pub(super) fn is_free(&self) -> bool {
        let state = lock(&self.state);
        state.is_retired && state.seats == 0
    }

    /// Gives its memory back; `false` if it cannot yet, since somebody has a seat
    /// or it is still to be written.
    pub(super) fn forget(&self) -> bool {
        let mut state = lock(&self.state);
        let may_go = state.is_retired && state.seats == 0;
        let block = if may_go {
            self.is_gone.store(true, Ordering::Release);
            state.block.take()
        } else {
            None
        };
        drop(state);
        drop(block); // After the lock: its memory goes to who waits for it.
        may_go
    }

    /// It failed: nobody finds it any more. What has come stays with who has a seat.
    fn give_up(&self) {
        let _state = lock(&self.state);
        self.is_gone.store(true, Ordering::Release);
    }
}

impl Seat {
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.0
    }

    /// The bytes `range` of the object, which the flight brings, once they are there.
    pub(super) async fn bytes(&self, range: &Range<u64>) -> Result<Bytes, RemoteError> {
        let flight = &self.0;
        let place = flight.place(range);
        flight.wait(place.end).await?;
        flight.read(place).ok_or_else(|| {
            RemoteError::new(ErrorKind::Transient, "what came was given up while it was wanted")
        })
    }

    /// The same, if they are there.
    pub(super) fn bytes_now(&self, range: &Range<u64>) -> Option<Bytes> {
        self.is_there(range).then(|| self.0.read(self.0.place(range))).flatten()
    }

    /// Whether they are there.
    pub(super) fn is_there(&self, range: &Range<u64>) -> bool {
        *self.0.progress.borrow() >= self.0.place(range).end
    }
}

impl Flight {
    fn read(&self, place: Range<usize>) -> Option<Bytes> {
        let bytes = place.len() as u64;
        let slice = self.block()?.slice(place);
        self.unread.update(Ordering::Relaxed, Ordering::Relaxed, |n| n.saturating_sub(bytes));
        Some(slice)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.0.state).seats -= 1;
        if self.0.is_gone() || (self.0.is_read_through() && self.0.is_kept()) {
            self.0.forget();
        }
    }
}

impl Boarding {
    /// It may go out: its bytes have a place now.
    pub(super) fn admitted(self, pool: &Arc<Pool>, admission: Admission) -> Pilot {
        let Boarding { flight, progress } = self;
        let (request, memory) = admission.into_parts();
        let bytes = flight.range.end - flight.range.start;
        let filler = pool.block(bytes, memory);
        lock(&flight.state).block = Some(filler.block().clone());
        Pilot { flight, filler, progress, _request: request }
    }
}

impl Pilot {
    /// More bytes came.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.filler.append(bytes);
    }

    /// Bytes that have come.
    pub(super) fn block(&self) -> &Arc<Block> {
        self.filler.block()
    }

    /// Wakes those who wait for what has come.
    pub(super) fn announce(&self) {
        self.progress.send_replace(self.block().filled());
    }

    /// The flight ends early: those who still wait get `error`.
    pub(super) fn fail(self, error: RemoteError) {
        // Set once: a flight has one pilot. Who waits hears of it by its drop.
        let _ = self.flight.failure.set(error);
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        let bytes = self.flight.range.end - self.flight.range.start;
        if (self.block().filled() as u64) < bytes {
            self.flight.give_up();
        }
    }
}

/// The flights of one object that its readers find: none overlaps another.
#[derive(Debug, Default)]
pub(super) struct Flights(std::collections::BTreeMap<u32, Arc<Flight>>);

impl Flights {
    /// The flight that has `chunk`, or will have.
    pub(super) fn covering(&self, chunk: u32) -> Option<&Arc<Flight>> {
        let (_, flight) = self.0.range(..=chunk).next_back()?;
        (flight.chunks.contains(&chunk) && !flight.is_gone()).then_some(flight)
    }

    /// Adds one for chunks that no other covers.
    pub(super) fn insert(&mut self, flight: Arc<Flight>) {
        self.0.retain(|_, flight| !flight.is_gone());
        self.0.insert(flight.chunks.start, flight);
    }

    /// Removes a flight.
    pub(super) fn remove(&mut self, flight: &Arc<Flight>) {
        let first = flight.chunks.start;
        if self.0.get(&first).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            self.0.remove(&first);
        }
    }

    /// Removes the one that has `chunk`.
    pub(super) fn remove_covering(&mut self, chunk: u32) {
        if let Some(flight) = self.covering(chunk).cloned() {
            self.remove(&flight);
        }
    }

    /// Those whose bytes are in memory, or on their way there.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Flight>> {
        self.0.values().filter(|flight| !flight.is_gone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CHUNK_BYTES;

    #[test]
    fn flights_are_found_by_their_chunks_until_they_are_gone() {
        let flight = |chunks: Range<u32>| Flight::new(chunks, 100 * CHUNK_BYTES, Class::Ahead).0;
        let mut flights = Flights::default();
        let (first, second) = (flight(0..8), flight(8..10));
        flights.insert(first.clone());
        flights.insert(second.clone());
        let found = |flights: &Flights, chunk| flights.covering(chunk).map(|f| f.chunks().clone());
        assert_eq!(found(&flights, 7), Some(0..8));
        assert_eq!(found(&flights, 8), Some(8..10));
        assert_eq!(found(&flights, 10), None);
        second.give_up();
        assert_eq!(found(&flights, 9), None);
        flights.remove(&first);
        flights.insert(flight(0..16));
        assert_eq!(found(&flights, 9), Some(0..16), "the one that is gone hides nobody");
        flights.remove_covering(12);
        assert_eq!(flights.all().count(), 0);
    }
}
