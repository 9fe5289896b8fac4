//! Requests on their way: single flight, and what may be in flight at once.
//!
//! A [`Flight`] is one GET for a run of chunks. Whoever needs some of its bytes
//! takes a [`Seat`] on it instead of asking again, and is served from its memory
//! the moment they are there; the disk comes after.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::watch;

use super::block::{Block, Filler, Pool};
use super::chunk_map::chunk_range;
use super::lock;
use super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::recent::Recent;
use crate::admission::{Class, Permit, PrioritySemaphore, Urgency};
use crate::remote::client::{InFlight, RemoteClient};
use crate::remote::{ErrorKind, RemoteError};

/// Of the memory, the parts that readahead and prefetch may fill: a reader
/// always finds some soon.
const AHEAD_PART: f64 = 0.75;
const PREFETCH_PART: f64 = 0.5;

/// Of the memory, 1 in so many bytes holds what waits for its reader: the rest is for
/// what is on its way, and for buffers to be at hand when it comes.
const RECENT_PART: u64 = 4;

/// Beside those in use, buffers at hand may take 1 in so many bytes: those of another
/// size than the one that is wanted would go back to the kernel for it, and new pages
/// cost more than all else that is done with their bytes.
const POOLED_PART: u64 = 8;

/// The bound on the bytes in memory, from before the first of a request comes
/// until the last of it is on disk and was read. One for the whole daemon; how
/// many requests may be in flight is the endpoint's.
#[derive(Debug)]
pub(super) struct Fetcher {
    memory: Arc<PrioritySemaphore>,
    pool: Arc<Pool>,
    recent: Recent,
}

/// The right to have one request in flight, and its bytes in memory.
#[derive(Debug)]
pub(super) struct Admission {
    class: Class,
    request: Permit,
    memory: Permit,
    /// What is set aside for it of what may be downloaded.
    reserved: Option<InFlight>,
}

impl Admission {
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Sets its bytes aside of what may be downloaded; `false` if there are not so many.
    pub(super) fn reserve(&mut self, bytes: u64, remote: &RemoteClient) -> bool {
        self.reserved = remote.reserve(bytes);
        self.reserved.is_some()
    }

    /// What was set aside, for the request that goes out now.
    pub(super) fn take_reserved(&mut self) -> Option<InFlight> {
        self.reserved.take()
    }

    /// Gives back the memory of `bytes` that came and went.
    pub(super) fn went(&mut self, bytes: usize) {
        drop(self.memory.split(bytes as u64));
    }
}

impl Fetcher {
    pub(super) fn new(memory_bytes: u64) -> Self {
        let part = |part: f64| (memory_bytes as f64 * part) as u64;
        let limits = [memory_bytes, part(AHEAD_PART), part(PREFETCH_PART)];
        let memory = PrioritySemaphore::new(limits);
        let pool = Pool::new(memory.clone(), memory_bytes + memory_bytes / POOLED_PART);
        Fetcher { memory, pool, recent: Recent::new(memory_bytes / RECENT_PART) }
    }

    /// Waits until a request of `bytes` may go out.
    pub(super) async fn admit(&self, class: Class, bytes: u64, remote: &RemoteClient) -> Admission {
        let bytes = Pool::rounded(bytes);
        let admission = |request, memory| Admission { class, request, memory, reserved: None };
        loop {
            // The request first: who waits for its endpoint holds no memory that
            // requests to another one could have.
            let request = remote.requests().acquire(class, 1).await;
            if let Some(memory) = self.try_memory(class, bytes) {
                return admission(request, memory);
            }
            if class != Class::Prefetch {
                let memory = self.wait_for_memory(class, bytes).await;
                return admission(request, memory);
            }
            // Nobody waits for a request that a prefetch holds while it waits.
            drop(request);
            let memory = self.wait_for_memory(class, bytes).await;
            if let Some(request) = remote.requests().try_acquire(class, 1) {
                return admission(request, memory);
            }
        }
    }

    async fn wait_for_memory(&self, class: Class, bytes: u64) -> Permit {
        let mut memory = std::pin::pin!(self.memory.acquire(class, bytes));
        if let Poll::Ready(memory) = futures::poll!(&mut memory) {
            return memory;
        }
        // In line now, so that nothing more is kept for later readers: what was
        // kept before that must go too.
        self.recent.give_way(class, bytes);
        memory.await
    }

    /// Lets a request ahead of the reader go out at once, or not at all:
    /// readahead never queues, so that a reader never waits behind it.
    pub(super) fn try_admit_ahead(&self, bytes: u64, remote: &RemoteClient) -> Option<Admission> {
        let class = Class::Ahead;
        let request = remote.requests().try_acquire(class, 1)?;
        let reserved = Some(remote.reserve(bytes)?);
        // Last: others give way to it.
        let memory = self.try_memory(class, Pool::rounded(bytes))?;
        Some(Admission { class, request, memory, reserved })
    }

    /// Lets a flight from the disk take off, ahead of its reader, or not at all.
    pub(super) fn try_from_disk(&self, boarding: Boarding) -> Option<Pilot> {
        let range = boarding.flight.range();
        let bytes = range.end - range.start;
        let memory = self.try_memory(Class::Ahead, Pool::rounded(bytes))?;
        Some(boarding.with_memory(self, memory, None))
    }

    /// Memory, if need be of what has been read or can be read from the disk.
    fn try_memory(&self, class: Class, bytes: u64) -> Option<Permit> {
        self.memory.try_acquire(class, bytes).or_else(|| {
            self.recent.give_way(class, bytes);
            self.memory.try_acquire(class, bytes)
        })
    }

    /// An empty block for an answer of `bytes` from the disk.
    pub(super) fn answer(&self, bytes: u64) -> Filler {
        self.pool.answer(bytes)
    }

    /// Whether a reader waits for memory.
    pub(super) fn is_short(&self) -> bool {
        self.memory.has_waiters(Class::Demand)
    }

    /// All bytes of a flight came, and are on disk if they will ever be.
    pub(super) fn retire(&self, flight: &Arc<Flight>) {
        flight.retire();
        if flight.is_gone() || (flight.is_kept() && flight.is_read_through()) {
            flight.forget();
            return;
        }
        self.recent.insert(flight.clone());
        // Only now: who gets in line after this finds it there.
        let range = flight.range();
        self.relieve(range.end - range.start);
    }

    /// Where somebody waits for memory, about `bytes` of what lies there go to him.
    pub(super) fn relieve(&self, bytes: u64) {
        let waiting = [Class::Demand, Class::Ahead, Class::Prefetch]
            .into_iter()
            .find(|class| self.memory.has_waiters(*class));
        if let Some(class) = waiting {
            self.recent.give_way(class, bytes);
        }
    }

    /// Gives up what nobody came for.
    pub(super) fn forget_old(&self, now: Instant) {
        self.recent.forget_old(now);
        self.pool.trim();
        // What was too fresh when somebody got in line for its memory.
        self.relieve(WHOLE_OBJECT_MAX_BYTES);
    }
}

/// One request for a run of chunks, its bytes, and those who wait for them.
#[derive(Debug)]
pub(super) struct Flight {
    chunks: Range<u32>,
    /// The bytes of the object that it brings.
    range: Range<u64>,
    source: Source,
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

/// Where the bytes of a flight come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Remote,
    /// The backing file, ahead of a reader: past the page cache nobody else does that.
    Disk,
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
    _request: Option<Permit>,
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
        Self::from(Source::Remote, chunks, size, class)
    }

    /// One that brings them from the disk, ahead of their reader.
    pub(super) fn from_disk(chunks: Range<u32>, size: u64) -> (Arc<Flight>, Boarding) {
        Self::from(Source::Disk, chunks, size, Class::Ahead)
    }

    fn from(
        source: Source,
        chunks: Range<u32>,
        size: u64,
        class: Class,
    ) -> (Arc<Flight>, Boarding) {
        let (sender, progress) = watch::channel(0);
        let range = chunk_range(chunks.start, size).start..chunk_range(chunks.end - 1, size).end;
        let flight = Arc::new(Flight {
            chunks,
            unread: AtomicU64::new(range.end - range.start),
            range,
            source,
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

    /// Where its bytes come from.
    pub(super) fn source(&self) -> Source {
        self.source
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
    fn retire(&self) {
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
    pub(super) fn admitted(self, fetcher: &Fetcher, admission: Admission) -> Pilot {
        let Admission { request, memory, .. } = admission;
        self.with_memory(fetcher, memory, Some(request))
    }

    fn with_memory(self, fetcher: &Fetcher, memory: Permit, request: Option<Permit>) -> Pilot {
        let Boarding { flight, progress } = self;
        let bytes = flight.range.end - flight.range.start;
        let filler = fetcher.pool.block(bytes, memory);
        lock(&flight.state).block = Some(filler.block().clone());
        Pilot { flight, filler, progress, _request: request }
    }
}

impl Pilot {
    /// Where the bytes go.
    pub(super) fn filler(&mut self) -> &mut Filler {
        &mut self.filler
    }

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

    /// Removes those from the disk: it is not trusted any more.
    pub(super) fn remove_from_disk(&mut self) {
        self.0.retain(|_, flight| flight.source == Source::Remote);
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

    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 8 * CHUNK_BYTES;

    fn remote() -> RemoteClient {
        let remote = Arc::new(crate::remote::scripted::ScriptedRemote::new());
        RemoteClient::new(remote, Arc::default())
    }

    /// A flight with all it needs, of which nothing has come.
    async fn flown(fetcher: &Fetcher, chunks: Range<u32>, class: Class) -> (Arc<Flight>, Pilot) {
        let (flight, boarding) = Flight::new(chunks, SIZE, class);
        let bytes = flight.range().end - flight.range().start;
        let admission = fetcher.admit(Class::Demand, bytes, &remote()).await;
        (flight, boarding.admitted(fetcher, admission))
    }

    fn bring(pilot: &mut Pilot, chunks: usize) {
        pilot.append(&vec![7; chunks * CHUNK_BYTES as usize]);
        pilot.announce();
    }

    /// A flight that has landed, and which nobody has read.
    async fn landed(fetcher: &Fetcher, class: Class) -> Arc<Flight> {
        let (flight, mut pilot) = flown(fetcher, 0..8, class).await;
        bring(&mut pilot, 8);
        drop(pilot);
        fetcher.retire(&flight);
        flight
    }

    #[tokio::test]
    async fn waiters_get_what_has_come_and_failures_after() {
        let fetcher = Fetcher::new(64 * MIB);
        let (flight, mut pilot) = flown(&fetcher, 4..7, Class::Ahead).await;
        let waiters: Vec<_> = (4..7)
            .map(|chunk| {
                let seat = flight.seat().unwrap();
                tokio::spawn(async move { seat.bytes(&chunk_range(chunk, SIZE)).await })
            })
            .collect();
        bring(&mut pilot, 2);
        pilot.fail(RemoteError::new(ErrorKind::Changed, "changed"));
        let mut results = Vec::new();
        for waiter in waiters {
            results.push(waiter.await.unwrap());
        }
        assert_eq!(results[0].as_ref().unwrap().len() as u64, CHUNK_BYTES);
        assert!(results[1].is_ok());
        assert_eq!(results[2].as_ref().unwrap_err().kind, ErrorKind::Changed);
        assert!(flight.is_gone() && flight.seat().is_none(), "who comes now asks anew");
    }

    #[tokio::test]
    async fn a_lost_pilot_fails_the_flight() {
        let (flight, pilot) = flown(&Fetcher::new(64 * MIB), 0..1, Class::Demand).await;
        drop(pilot);
        assert_eq!(flight.arrived().await.unwrap_err().kind, ErrorKind::Transient);
        let (flight, boarding) = Flight::new(0..1, SIZE, Class::Demand);
        drop(boarding);
        assert_eq!(flight.arrived().await.unwrap_err().kind, ErrorKind::Transient);
    }

    #[tokio::test]
    async fn readahead_leaves_room_for_demand() {
        let (fetcher, remote) = (Fetcher::new(64 * MIB), remote());
        let mut ahead = Vec::new();
        while let Some(admission) = fetcher.try_admit_ahead(4 * MIB, &remote) {
            ahead.push(admission);
        }
        assert_eq!(ahead.len(), 12, "three quarters of 64 MiB");
        drop(fetcher.admit(Class::Demand, 4 * MIB, &remote).await);
        ahead.pop();
        assert!(fetcher.try_admit_ahead(4 * MIB, &remote).is_some());
    }

    #[tokio::test]
    async fn bytes_on_their_way_to_the_disk_hold_memory_and_no_request() {
        let (fetcher, remote) = (Fetcher::new(1024 * MIB), remote());
        let mut writing = Vec::new();
        for _ in 0..1_000 {
            let (_, boarding) = Flight::new(0..1, SIZE, Class::Demand);
            let admission = fetcher.admit(Class::Demand, 1, &remote).await;
            writing.push(boarding.admitted(&fetcher, admission).block().clone());
        }
        assert!(fetcher.try_admit_ahead(1, &remote).is_some());
        assert_eq!(fetcher.memory.used(), 1_000 * CHUNK_BYTES);
    }

    #[tokio::test]
    async fn what_was_read_gives_its_memory_back_at_once_and_what_was_not_stays() {
        let fetcher = Fetcher::new(64 * MIB);
        let flight = landed(&fetcher, Class::Ahead).await;
        let first = flight.seat().unwrap().bytes(&(0..3 * CHUNK_BYTES)).await.unwrap();
        assert!(!flight.is_gone(), "its reader has not had all of it");
        let seat = flight.seat().unwrap();
        let rest = seat.bytes_now(&(3 * CHUNK_BYTES..SIZE)).unwrap();
        drop(seat);
        assert!(flight.is_gone());
        assert_eq!(fetcher.memory.used(), SIZE, "an answer is on its way");
        drop((first, rest));
        assert_eq!(fetcher.memory.used(), 0);
    }

    #[tokio::test]
    async fn what_lies_in_memory_gives_way_to_demand_but_not_under_a_reader() {
        let fetcher = Fetcher::new(16 * MIB);
        let all = fetcher.memory.acquire(Class::Demand, 14 * MIB).await;
        let kept = landed(&fetcher, Class::Ahead).await;
        let read = landed(&fetcher, Class::Ahead).await;
        let seat = read.seat().unwrap();
        drop(fetcher.admit(Class::Demand, SIZE, &remote()).await);
        assert!(kept.is_gone() && !read.is_gone());
        assert!(seat.bytes(&(0..1)).await.is_ok());
        drop((all, seat));
    }

    #[tokio::test]
    async fn readahead_spares_what_came_only_now_for_a_reader() {
        let fetcher = Fetcher::new(16 * MIB);
        let most = fetcher.memory.acquire(Class::Demand, 11 * MIB).await;
        let fresh = landed(&fetcher, Class::Ahead).await;
        assert!(fetcher.try_admit_ahead(SIZE, &remote()).is_none());
        assert!(!fresh.is_gone());
        drop(most);
        let most = fetcher.memory.acquire(Class::Demand, 11 * MIB - SIZE).await;
        let nobodys = landed(&fetcher, Class::Prefetch).await;
        assert!(fetcher.try_admit_ahead(SIZE, &remote()).is_some());
        assert!(nobodys.is_gone() && !fresh.is_gone());
        drop(most);
    }

    #[tokio::test]
    async fn what_is_nowhere_else_gives_way_last() {
        let fetcher = Fetcher::new(16 * MIB);
        let all = fetcher.memory.acquire(Class::Demand, 14 * MIB).await;
        let (unkept, mut pilot) = flown(&fetcher, 0..8, Class::Ahead).await;
        bring(&mut pilot, 8);
        drop(pilot);
        unkept.pass_by();
        fetcher.retire(&unkept);
        let kept = landed(&fetcher, Class::Prefetch).await;
        drop(fetcher.admit(Class::Demand, 2 * CHUNK_BYTES + MIB / 2, &remote()).await);
        assert!(kept.is_gone() && !unkept.is_gone());
        drop(fetcher.admit(Class::Demand, 2 * MIB, &remote()).await);
        assert!(unkept.is_gone());
        drop(all);
    }

    #[tokio::test]
    async fn who_waits_for_memory_gets_that_of_the_next_to_land() {
        let fetcher = Arc::new(Fetcher::new(16 * MIB));
        let all = fetcher.memory.acquire(Class::Demand, 14 * MIB).await;
        let (first, mut pilot) = flown(&fetcher, 0..8, Class::Ahead).await;
        let (second, mut unkept) = flown(&fetcher, 0..8, Class::Ahead).await;
        second.pass_by();
        let waiting = tokio::spawn({
            let fetcher = fetcher.clone();
            async move { fetcher.admit(Class::Demand, 2 * MIB - CHUNK_BYTES, &remote()).await }
        });
        while !fetcher.is_short() {
            tokio::task::yield_now().await;
        }
        for (flight, pilot) in [(&first, &mut pilot), (&second, &mut unkept)] {
            bring(pilot, 8);
            fetcher.retire(flight);
        }
        drop((pilot, unkept));
        drop(waiting.await.unwrap());
        assert!(first.is_gone() && second.is_gone());
        drop(all);
    }

    #[tokio::test]
    async fn nobody_holds_memory_who_does_not_come() {
        let fetcher = Fetcher::new(64 * MIB);
        let flight = landed(&fetcher, Class::Ahead).await;
        let now = Instant::now();
        fetcher.forget_old(now);
        assert!(!flight.is_gone());
        fetcher.forget_old(now + std::time::Duration::from_secs(60));
        assert!(flight.is_gone());
        assert_eq!(fetcher.memory.used(), 0);
    }

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
