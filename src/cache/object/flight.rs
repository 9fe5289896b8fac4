//! One request for a run of an object's chunks: begun, flown, landed. Bytes go
//! to those who wait first, then to the disk.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::chunk_map::{CHUNK_BYTES, chunk_range};
use super::super::fetch::Admission;
use super::super::flight::{Boarding, Flight, Pilot};
use super::super::lock;
use super::super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::super::writer::{Job, Lag, Unwritten};
use super::{CachedObject, Chunk, State};
use crate::admission::Class;
use crate::remote::RemoteError;
use crate::remote::client::InFlight;

/// One request of a fill: an object that is fetched whole, or as much of a larger one.
const FILL_CHUNKS: u32 = (WHOLE_OBJECT_MAX_BYTES / CHUNK_BYTES) as u32;

/// Chunks of a flight that are written at once, if it has so many: readers do not
/// wait for it, and fewer and larger writes cost less.
const WRITE_CHUNKS: usize = 16;

/// How often a reader that waits for memory looks whether a disk that hangs holds it.
const RELIEF_INTERVAL: Duration = Duration::from_millis(100);

/// What came of filling an object.
#[derive(Clone, Copy, Debug)]
pub(in crate::cache) struct Fill {
    /// Bytes that were asked for: not those that a reader asked for himself.
    pub asked: u64,
    /// Nothing was left to ask for.
    pub is_whole: bool,
}

impl CachedObject {
    /// Fetches what is missing, before anybody asks for it, and returns once it
    /// has come. A run is not in flight before it may be, so that a reader who
    /// comes first asks for itself. Ends early when nothing is kept any more, or
    /// nothing more may be fetched that nobody waits for.
    pub(in crate::cache) async fn fill(self: &Arc<Self>) -> Result<Fill, RemoteError> {
        self.fill_those(|_| true, Class::Prefetch).await
    }

    /// As [`CachedObject::fill`], of these chunks only, which somebody did read: what is
    /// in the cache gives way to them.
    pub(in crate::cache) async fn fill_chunks(
        self: &Arc<Self>,
        chunks: &BTreeSet<u32>,
    ) -> Result<Fill, RemoteError> {
        self.fill_those(|chunk| chunks.contains(&chunk), Class::Ahead).await
    }

    async fn fill_those(
        self: &Arc<Self>,
        is_wanted: impl Fn(u32) -> bool,
        class: Class,
    ) -> Result<Fill, RemoteError> {
        let mut flights = Vec::new();
        let mut fill = Fill { asked: 0, is_whole: false };
        let mut from = 0;
        while self.is_doomed() || self.store.may_prefetch() {
            let is_missing =
                |state: &State, chunk| is_wanted(chunk) && Self::is_missing(state, chunk);
            let missing = self.missing_run(&lock(&self.state), from, is_missing);
            let Some(run) = missing.filter(|_| !self.is_doomed()) else {
                fill.is_whole = true;
                break;
            };
            let bytes = self.bytes_of(&run);
            let mut admission =
                self.store.fetcher().admit(Class::Prefetch, bytes, &self.remote).await;
            if !admission.reserve(bytes, &self.remote) {
                break;
            }
            from = run.end;
            let mut state = lock(&self.state);
            if run.clone().all(|chunk| Self::is_missing(&state, chunk)) {
                let flight = self.start(&mut state, run, Some(admission));
                flight.urgency().raise(class);
                flights.push(flight);
                fill.asked += bytes;
            } else {
                from = run.start; // A reader was faster with some of it.
            }
        }
        for flight in flights {
            flight.arrived().await?;
        }
        Ok(fill)
    }

    /// The first chunks from `from` on that are to be had by nobody yet, as many
    /// as one request asks for.
    fn missing_run(
        &self,
        state: &State,
        from: u32,
        is_missing: impl Fn(&State, u32) -> bool,
    ) -> Option<Range<u32>> {
        let chunks = from..self.chunks().end;
        let start = chunks.clone().find(|chunk| is_missing(state, *chunk))?;
        let most = chunks.end.min(start + FILL_CHUNKS);
        let end = (start..most).find(|chunk| !is_missing(state, *chunk)).unwrap_or(most);
        Some(start..end)
    }

    pub(super) fn bytes_of(&self, chunks: &Range<u32>) -> u64 {
        chunk_range(chunks.end - 1, self.meta.size).end
            - chunk_range(chunks.start, self.meta.size).start
    }

    /// Sends a request for `chunks`, once it may go out; at once if it was admitted.
    pub(super) fn start(
        self: &Arc<Self>,
        state: &mut State,
        chunks: Range<u32>,
        mut admitted: Option<Admission>,
    ) -> Arc<Flight> {
        let bytes = self.bytes_of(&chunks);
        let class = admitted.as_ref().map_or(Class::Demand, Admission::class);
        // At once for a reader too, so that what is planned beside it sees it. If
        // there are not so many, whether he is refused turns out when it is sent.
        let reserved = match &mut admitted {
            Some(admission) => admission.take_reserved(),
            None => self.remote.reserve(bytes),
        };
        let (flight, boarding) = Flight::new(chunks, self.meta.size, class);
        state.flights.insert(flight.clone());
        let landing = Landing::of(self.clone(), flight.clone());
        self.store.spawn(async move {
            let admission = match admitted {
                Some(admission) => admission,
                None => landing.object.admit(bytes).await,
            };
            landing.fly(boarding, admission, reserved).await;
        });
        flight
    }

    async fn admit(&self, bytes: u64) -> Admission {
        let admission = self.store.fetcher().admit(Class::Demand, bytes, &self.remote);
        let mut admission = std::pin::pin!(admission);
        loop {
            tokio::select! {
                biased;
                admission = &mut admission => return admission,
                // While memory waits for a disk that hangs, none would come.
                () = tokio::time::sleep(RELIEF_INTERVAL) => self.store.relieve(bytes),
            }
        }
    }
}

/// The bytes of a flight on their way to the disk. The flight stays in its
/// object's list, where its readers find it, until all of them are there and
/// were read, or their memory is wanted.
struct Landing {
    object: Arc<CachedObject>,
    flight: Arc<Flight>,
    landed: Mutex<Landed>,
}

#[derive(Default)]
struct Landed {
    /// In order.
    chunks: Vec<(Chunk, Unwritten)>,
    /// Somebody will write them.
    is_queued: bool,
}

impl Landing {
    fn of(object: Arc<CachedObject>, flight: Arc<Flight>) -> Arc<Self> {
        Arc::new(Landing { object, flight, landed: Mutex::default() })
    }

    async fn fly(
        self: &Arc<Self>,
        boarding: Boarding,
        admission: Admission,
        reserved: Option<InFlight>,
    ) {
        let mut pilot = self.object.store.fetcher().board(boarding, admission);
        if let Err(error) = self.bring(&mut pilot, reserved).await {
            tracing::debug!(key = ?self.object.meta.key.0, %error, "a fetch failed");
            // First out of the list, then the verdict: who looks now starts anew.
            self.unlist();
            pilot.fail(error);
        }
        self.write_from(1);
    }

    /// Brings the bytes, to those who wait and to the queue for the disk.
    async fn bring(
        self: &Arc<Self>,
        pilot: &mut Pilot,
        reserved: Option<InFlight>,
    ) -> Result<(), RemoteError> {
        let size = self.object.meta.size;
        let chunks = self.flight.chunks().clone();
        let range = self.flight.range().clone();
        let urgency = self.flight.urgency().clone();
        let reader = self.object.remote.get_range(self.object.meta.clone(), range, urgency);
        let mut reader = reader.with_reserved(reserved);
        let mut chunk = chunks.start;
        while let Some(bytes) = reader.next().await? {
            pilot.append(&bytes);
            while chunk < chunks.end {
                let place = self.flight.place(&chunk_range(chunk, size));
                if place.end > pilot.block().filled() {
                    break;
                }
                // Now, while the processor has it at hand.
                let crc = crc32c::crc32c(pilot.block().get(place));
                self.landed(Chunk { number: chunk, crc });
                chunk += 1;
            }
            // Last: who has been served finds its chunk counted as on its way to the disk.
            pilot.announce();
        }
        Ok(())
    }

    /// A chunk came: it is kept, unless the disk is too far behind.
    fn landed(self: &Arc<Self>, chunk: Chunk) {
        let store = &self.object.store;
        if store.writer().lag() == Lag::Keep {
            self.pass_by(chunk.number);
            store.fill_when_idle(&self.object, chunk.number);
            store.relieve(self.bytes_of(chunk.number));
            return;
        }
        let unwritten = store.writer().landed(self.bytes_of(chunk.number));
        lock(&self.landed).chunks.push((chunk, unwritten));
        self.write_from(WRITE_CHUNKS);
    }

    /// Has what came written, if it is so many chunks and nobody is at it.
    fn write_from(self: &Arc<Self>, chunks: usize) {
        let mut landed = lock(&self.landed);
        let is_due = landed.chunks.len() >= chunks;
        if is_due && !std::mem::replace(&mut landed.is_queued, true) {
            drop(landed);
            self.object.store.writer().push(Box::new(self.clone()));
        }
    }

    /// The next chunks to write.
    fn take(&self) -> Vec<(Chunk, Unwritten)> {
        let mut landed = lock(&self.landed);
        landed.is_queued = !landed.chunks.is_empty();
        std::mem::take(&mut landed.chunks)
    }

    /// Writes chunks that follow one another, as far as there is room, and passes
    /// the others by.
    fn keep(&self, run: &[Chunk]) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let Some(block) = self.flight.block() else { return };
        let size = self.object.meta.size;
        let range = chunk_range(first.number, size).start..chunk_range(last.number, size).end;
        let bytes = block.get(self.flight.place(&range));
        if self.object.keep(run, bytes, self.flight.is_for_reader()) {
            return;
        }
        match run {
            [chunk] => self.pass_by(chunk.number),
            _ => {
                let (first, rest) = run.split_at(run.len() / 2);
                self.keep(first);
                self.keep(rest);
            }
        }
    }

    fn pass_by(&self, chunk: u32) {
        self.flight.pass_by();
        self.object.store.metrics().passed_by_bytes.add(self.bytes_of(chunk));
    }

    fn bytes_of(&self, chunk: u32) -> u64 {
        self.object.bytes_of(&(chunk..chunk + 1))
    }

    fn unlist(&self) {
        lock(&self.object.state).flights.remove(&self.flight);
    }
}

impl Job for Arc<Landing> {
    /// Writes what has come, and what comes meanwhile.
    fn run(self: Box<Self>) {
        loop {
            let chunks = self.take();
            if chunks.is_empty() {
                return;
            }
            let mut run: Vec<Chunk> = Vec::with_capacity(chunks.len());
            for (chunk, _) in &chunks {
                // After damage, or a failed flight, two flights may bring it.
                let is_kept = self.object.is_kept(chunk.number);
                let follows = run.last().is_none_or(|last| last.number + 1 == chunk.number);
                if is_kept || !follows {
                    self.keep(&std::mem::take(&mut run));
                }
                if !is_kept {
                    run.push(*chunk);
                }
            }
            self.keep(&run);
        }
    }

    /// Its memory is wanted, and the disk does not come to it.
    fn give_up(self: Box<Self>) {
        let Landed { chunks, .. } = std::mem::take(&mut *lock(&self.landed));
        for (chunk, _) in chunks {
            self.pass_by(chunk.number);
            self.object.store.fill_when_idle(&self.object, chunk.number);
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        // Nobody writes any more, and nothing is left to be written unless the
        // writer ended abnormally.
        if !lock(&self.landed).chunks.is_empty() {
            self.flight.pass_by();
        }
        self.object.store.fetcher().retire(&self.flight);
        if self.flight.is_gone() {
            self.unlist();
        }
    }
}
