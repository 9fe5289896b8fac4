//! Requests on their way: single flight, and what may be in flight at once.
//!
//! A [`Flight`] is one GET for a run of chunks. Whoever needs one of its chunks
//! waits on the flight instead of asking again, and is served from memory the
//! moment the chunk is whole; the disk comes after.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::admission::{Class, Permit, PrioritySemaphore, Urgency};
use crate::remote::client::{InFlight, RemoteClient};
use crate::remote::{ErrorKind, RemoteError};

/// Of the memory, the parts that readahead and prefetch may fill: a reader
/// always finds some soon.
const AHEAD_PART: f64 = 0.75;
const PREFETCH_PART: f64 = 0.5;

/// The bound on the bytes in flight, in memory from before the first byte comes
/// until they are on disk. One for the whole daemon; how many requests may be in
/// flight is the endpoint's.
#[derive(Debug)]
pub(super) struct Fetcher {
    memory: Arc<PrioritySemaphore>,
}

/// The right to have one request in flight, and its bytes in memory after it.
#[derive(Debug)]
pub(super) struct Admission {
    class: Class,
    _request: Permit,
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

    /// The memory of `bytes` that came: they outlive the request on their way to the disk.
    pub(super) fn memory_of(&mut self, bytes: usize) -> Permit {
        self.memory.split(bytes as u64)
    }
}

impl Fetcher {
    pub(super) fn new(memory_bytes: u64) -> Self {
        let part = |part: f64| (memory_bytes as f64 * part) as u64;
        let limits = [memory_bytes, part(AHEAD_PART), part(PREFETCH_PART)];
        Fetcher { memory: PrioritySemaphore::new(limits) }
    }

    /// Waits until a request of `bytes` may go out.
    pub(super) async fn admit(&self, class: Class, bytes: u64, remote: &RemoteClient) -> Admission {
        // Memory first: who holds a request never waits for more.
        let memory = self.memory.acquire(class, bytes).await;
        let request = remote.requests().acquire(class, 1).await;
        Admission { class, _request: request, memory, reserved: None }
    }

    /// Lets a request ahead of the reader go out at once, or not at all:
    /// readahead never queues, so that a reader never waits behind it.
    pub(super) fn try_admit_ahead(&self, bytes: u64, remote: &RemoteClient) -> Option<Admission> {
        let class = Class::Ahead;
        let memory = self.memory.try_acquire(class, bytes)?;
        let request = remote.requests().try_acquire(class, 1)?;
        let reserved = Some(remote.reserve(bytes)?);
        Some(Admission { class, _request: request, memory, reserved })
    }
}

/// One request for a run of chunks, and those who wait for it.
#[derive(Debug)]
pub(super) struct Flight {
    chunks: Range<u32>,
    urgency: Urgency,
    slots: Mutex<Vec<Slot>>,
    failure: OnceLock<RemoteError>,
    progress: watch::Receiver<()>,
}

#[derive(Clone, Debug)]
enum Slot {
    Waiting,
    Memory(Bytes),
    OnDisk,
}

/// What a flight has for one who waits.
#[derive(Debug)]
pub(super) enum Landed {
    /// The whole chunk.
    Memory(Bytes),
    /// The chunk is on disk by now.
    OnDisk,
}

/// The side of a flight that brings the bytes. Dropped without an outcome, it
/// fails the flight, so that nobody waits for ever.
#[derive(Debug)]
pub(super) struct Pilot {
    flight: Arc<Flight>,
    progress: watch::Sender<()>,
}

impl Flight {
    pub(super) fn new(chunks: Range<u32>, class: Class) -> (Arc<Flight>, Pilot) {
        let (sender, progress) = watch::channel(());
        let slots = vec![Slot::Waiting; chunks.len()];
        let flight = Arc::new(Flight {
            chunks,
            urgency: class.into(),
            slots: Mutex::new(slots),
            failure: OnceLock::new(),
            progress,
        });
        (flight.clone(), Pilot { flight, progress: sender })
    }

    pub(super) fn chunks(&self) -> &Range<u32> {
        &self.chunks
    }

    pub(super) fn covers(&self, chunk: u32) -> bool {
        self.chunks.contains(&chunk)
    }

    /// What it is flown for.
    pub(super) fn urgency(&self) -> &Urgency {
        &self.urgency
    }

    /// Waits for one chunk of this flight.
    pub(super) async fn chunk(&self, chunk: u32) -> Result<Landed, RemoteError> {
        let mut progress = self.progress.clone();
        let mut open = true;
        loop {
            progress.mark_unchanged();
            match super::lock(&self.slots)[(chunk - self.chunks.start) as usize].clone() {
                Slot::Memory(bytes) => return Ok(Landed::Memory(bytes)),
                Slot::OnDisk => return Ok(Landed::OnDisk),
                Slot::Waiting => {}
            }
            if let Some(error) = self.failure.get() {
                return Err(error.clone());
            }
            if !open {
                return Err(RemoteError::new(ErrorKind::Transient, "a fetch was interrupted"));
            }
            open = progress.changed().await.is_ok();
        }
    }

    /// The same for a reader: the flight is urgent now, whatever it was begun for.
    pub(super) async fn chunk_for_reader(&self, chunk: u32) -> Result<Landed, RemoteError> {
        self.urgency.raise(Class::Demand);
        self.chunk(chunk).await
    }

    /// A chunk is on disk: who comes later reads it there, and its memory is given back.
    pub(super) fn on_disk(&self, chunk: u32) {
        super::lock(&self.slots)[(chunk - self.chunks.start) as usize] = Slot::OnDisk;
    }
}

impl Pilot {
    /// A whole chunk arrived: wakes those who wait for it.
    pub(super) fn deliver(&self, chunk: u32, bytes: Bytes) {
        let at = (chunk - self.flight.chunks.start) as usize;
        super::lock(&self.flight.slots)[at] = Slot::Memory(bytes);
        self.progress.send_replace(());
    }

    /// The flight ends early: those who still wait get `error`.
    pub(super) fn fail(self, error: RemoteError) {
        // Set once: a flight has one pilot.
        let _ = self.flight.failure.set(error);
        self.progress.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_get_each_chunk_as_it_lands_and_failures_after() {
        let (flight, pilot) = Flight::new(4..7, Class::Demand);
        let waiters: Vec<_> = (4..7)
            .map(|chunk| {
                let flight = flight.clone();
                tokio::spawn(async move { flight.chunk(chunk).await })
            })
            .collect();
        pilot.deliver(4, Bytes::from_static(b"four"));
        pilot.deliver(5, Bytes::from_static(b"five"));
        flight.on_disk(5);
        pilot.fail(RemoteError::new(ErrorKind::Changed, "changed"));
        let mut results = Vec::new();
        for waiter in waiters {
            results.push(waiter.await.unwrap());
        }
        assert!(matches!(&results[0], Ok(Landed::Memory(bytes)) if bytes == "four"));
        assert!(results[1].is_ok());
        assert_eq!(results[2].as_ref().unwrap_err().kind, ErrorKind::Changed);
        assert!(matches!(flight.chunk(5).await, Ok(Landed::OnDisk)));
    }

    #[tokio::test]
    async fn a_lost_pilot_fails_the_flight() {
        let (flight, pilot) = Flight::new(0..1, Class::Demand);
        drop(pilot);
        assert_eq!(flight.chunk(0).await.unwrap_err().kind, ErrorKind::Transient);
    }

    fn remote() -> RemoteClient {
        let remote = Arc::new(crate::remote::scripted::ScriptedRemote::new());
        RemoteClient::new(remote, Arc::default())
    }

    #[tokio::test]
    async fn readahead_leaves_room_for_demand() {
        let (fetcher, remote) = (Fetcher::new(64 << 20), remote());
        let mut ahead = Vec::new();
        while let Some(admission) = fetcher.try_admit_ahead(4 << 20, &remote) {
            ahead.push(admission);
        }
        assert_eq!(ahead.len(), 12, "three quarters of 64 MiB");
        drop(fetcher.admit(Class::Demand, 4 << 20, &remote).await);
        ahead.pop();
        assert!(fetcher.try_admit_ahead(4 << 20, &remote).is_some());
    }

    #[tokio::test]
    async fn bytes_on_their_way_to_the_disk_hold_no_request() {
        let (fetcher, remote) = (Fetcher::new(64 << 20), remote());
        let mut writing = Vec::new();
        for _ in 0..1_000 {
            let mut admission = fetcher.admit(Class::Demand, 1, &remote).await;
            writing.push(admission.memory_of(1));
        }
        assert!(fetcher.try_admit_ahead(1, &remote).is_some());
    }
}
