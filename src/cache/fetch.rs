//! What may be in flight at once, and in memory.

use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::block::{Filler, Pool};
use super::flight::{Boarding, Flight, Pilot};
use super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::recent::Recent;
use crate::admission::{Class, Load, Permit, PrioritySemaphore};
use crate::remote::client::{InFlight, RemoteClient};

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

    /// The request, and the memory of its bytes.
    pub(super) fn into_parts(self) -> (Permit, Permit) {
        (self.request, self.memory)
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

    /// Memory, if need be of what has been read or can be read from the disk.
    fn try_memory(&self, class: Class, bytes: u64) -> Option<Permit> {
        self.memory.try_acquire(class, bytes).or_else(|| {
            self.recent.give_way(class, bytes);
            self.memory.try_acquire(class, bytes)
        })
    }

    /// Lets a flight go out: its bytes have a place now.
    pub(super) fn board(&self, boarding: Boarding, admission: Admission) -> Pilot {
        boarding.admitted(&self.pool, admission)
    }

    /// An empty block for an answer of `bytes` from the disk.
    pub(super) fn answer(&self, bytes: u64) -> Filler {
        self.pool.answer(bytes)
    }

    /// The memory in use, and who waits for some.
    pub(super) fn memory(&self) -> Load {
        self.memory.load()
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

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::cache::CHUNK_BYTES;
    use crate::cache::chunk_map::chunk_range;
    use crate::remote::{ErrorKind, RemoteError};

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
        (flight, fetcher.board(boarding, admission))
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
            writing.push(fetcher.board(boarding, admission).block().clone());
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
}
