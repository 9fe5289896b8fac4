//! One request for a run of an object's chunks: begun, flown, landed. Bytes go
//! to those who wait first, then to the disk.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};

use super::super::chunk_map::{CHUNK_BYTES, chunk_len, chunk_range};
use super::super::fetch::{Admission, Flight, Pilot};
use super::super::lock;
use super::super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::super::writer::Lag;
use super::{CachedObject, State};
use crate::admission::{Class, Permit};
use crate::remote::RemoteError;
use crate::remote::client::InFlight;

/// One request of a fill: an object that is fetched whole, or as much of a larger one.
const FILL_CHUNKS: u32 = (WHOLE_OBJECT_MAX_BYTES / CHUNK_BYTES) as u32;

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
        let mut flights = Vec::new();
        let mut fill = Fill { asked: 0, is_whole: false };
        let mut from = 0;
        while self.is_doomed() || self.store.may_prefetch() {
            let missing = self.missing_run(&lock(&self.state), from);
            let Some(run) = missing.filter(|_| !self.is_doomed()) else {
                fill.is_whole = true;
                break;
            };
            let bytes = chunk_range(run.end - 1, self.meta.size).end
                - chunk_range(run.start, self.meta.size).start;
            let mut admission =
                self.store.fetcher().admit(Class::Prefetch, bytes, &self.remote).await;
            if !admission.reserve(bytes, &self.remote) {
                break;
            }
            from = run.end;
            let mut state = lock(&self.state);
            if run.clone().all(|chunk| self.is_missing(&state, chunk)) {
                flights.push(self.start(&mut state, run, bytes, Some(admission)));
                fill.asked += bytes;
            } else {
                from = run.start; // A reader was faster with some of it.
            }
        }
        for flight in flights {
            flight.chunk(flight.chunks().end - 1).await?;
        }
        Ok(fill)
    }

    /// The first chunks from `from` on that are to be had by nobody yet, as many
    /// as one request asks for.
    fn missing_run(&self, state: &State, from: u32) -> Option<Range<u32>> {
        let chunks = from..self.chunks().end;
        let start = chunks.clone().find(|chunk| self.is_missing(state, *chunk))?;
        let end = (start..chunks.end.min(start + FILL_CHUNKS))
            .find(|chunk| !self.is_missing(state, *chunk))
            .unwrap_or(chunks.end.min(start + FILL_CHUNKS));
        Some(start..end)
    }

    /// Sends a request for `chunks`, once it may go out.
    pub(super) fn start(
        self: &Arc<Self>,
        state: &mut State,
        chunks: Range<u32>,
        bytes: u64,
        mut ahead: Option<Admission>,
    ) -> Arc<Flight> {
        let class = ahead.as_ref().map_or(Class::Demand, Admission::class);
        // At once for a reader too, so that what is planned beside it sees it. If
        // there are not so many, whether he is refused turns out when it is sent.
        let reserved = match &mut ahead {
            Some(admission) => admission.take_reserved(),
            None => self.remote.reserve(bytes),
        };
        let (flight, pilot) = Flight::new(chunks, class);
        state.flights.push(flight.clone());
        let landing = Landing::of(self.clone(), flight.clone());
        self.store.spawn(async move {
            let object = &landing.object;
            let mut admission = match ahead {
                Some(admission) => admission,
                None => object.store.fetcher().admit(Class::Demand, bytes, &object.remote).await,
            };
            if let Err(error) = landing.fly(&pilot, &mut admission, reserved).await {
                tracing::debug!(key = ?object.meta.key.0, %error, "a fetch failed");
                // First out of the list, then the verdict: who looks now starts anew.
                landing.unlist();
                pilot.fail(error);
            }
        });
        flight
    }
}

/// The bytes of a flight on their way to the disk. The flight stays in its
/// object's list, where its readers find it, until all of them are there.
struct Landing {
    object: Arc<CachedObject>,
    flight: Arc<Flight>,
    landed: Mutex<Landed>,
}

#[derive(Default)]
struct Landed {
    /// In order, and with the memory that each takes.
    chunks: Vec<(u32, Bytes, Permit)>,
    /// Somebody will write them.
    is_queued: bool,
}

impl Landing {
    fn of(object: Arc<CachedObject>, flight: Arc<Flight>) -> Arc<Self> {
        Arc::new(Landing { object, flight, landed: Mutex::default() })
    }

    /// Brings the bytes: to those who wait first, then on their way to disk.
    async fn fly(
        self: &Arc<Self>,
        pilot: &Pilot,
        admission: &mut Admission,
        reserved: Option<InFlight>,
    ) -> Result<(), RemoteError> {
        let size = self.object.meta.size;
        let chunks = self.flight.chunks().clone();
        let range = chunk_range(chunks.start, size).start..chunk_range(chunks.end - 1, size).end;
        let urgency = self.flight.urgency().clone();
        let reader = self.object.remote.get_range(self.object.meta.clone(), range, urgency);
        let mut reader = reader.with_reserved(reserved);
        let mut chunk = chunks.start;
        let mut wanted = chunk_len(chunk, size);
        let mut partial = BytesMut::new();
        while let Some(mut bytes) = reader.next().await? {
            while !bytes.is_empty() && chunk < chunks.end {
                let take = bytes.len().min(wanted - partial.len());
                let whole = if take == wanted {
                    bytes.split_to(take)
                } else {
                    partial.reserve(wanted - partial.len());
                    partial.extend_from_slice(&bytes.split_to(take));
                    if partial.len() < wanted {
                        continue;
                    }
                    std::mem::take(&mut partial).freeze()
                };
                pilot.deliver(chunk, whole.clone());
                self.landed(chunk, whole, admission.memory_of(wanted));
                chunk += 1;
                if chunk < chunks.end {
                    wanted = chunk_len(chunk, size);
                }
            }
        }
        Ok(())
    }

    /// A chunk came: it is kept, unless the disk is too far behind.
    fn landed(self: &Arc<Self>, chunk: u32, bytes: Bytes, memory: Permit) {
        let store = &self.object.store;
        if store.writer().lag() == Lag::Keep {
            store.pass_by(self.object.node, chunk, bytes);
            store.fill_when_idle(&self.object);
            return;
        }
        store.writer().landed(bytes.len());
        let mut landed = lock(&self.landed);
        landed.chunks.push((chunk, bytes, memory));
        if !std::mem::replace(&mut landed.is_queued, true) {
            drop(landed);
            let landing = self.clone();
            store.writer().push(Box::new(move || landing.write()));
        }
    }

    /// Writes what has come, and what comes meanwhile. Blocks.
    fn write(&self) {
        loop {
            let chunks = {
                let mut landed = lock(&self.landed);
                landed.is_queued = !landed.chunks.is_empty();
                std::mem::take(&mut landed.chunks)
            };
            if chunks.is_empty() {
                return;
            }
            let (mut run, mut memory) = (Vec::new(), Vec::new());
            for (chunk, bytes, permit) in chunks {
                memory.push(permit);
                let follows = run.last().is_none_or(|(before, _)| before + 1 == chunk);
                if !follows {
                    self.keep(std::mem::take(&mut run));
                }
                // After damage, or a failed flight, two flights may bring it.
                if self.object.is_kept(chunk) {
                    self.settle(chunk, &bytes);
                } else {
                    run.push((chunk, bytes));
                }
            }
            self.keep(run);
        }
    }

    /// Writes chunks that follow one another, or else passes them by.
    fn keep(&self, run: Vec<(u32, Bytes)>) {
        let is_kept = self.object.keep(&run);
        for (chunk, bytes) in run {
            if !is_kept {
                self.object.store.pass_by(self.object.node, chunk, bytes.clone());
            }
            self.settle(chunk, &bytes);
        }
    }

    /// A chunk is on disk, or passed by.
    fn settle(&self, chunk: u32, bytes: &Bytes) {
        if self.object.is_kept(chunk) {
            self.flight.on_disk(chunk);
        }
        self.object.store.writer().settled(bytes.len());
    }

    fn unlist(&self) {
        lock(&self.object.state).flights.retain(|flight| !Arc::ptr_eq(flight, &self.flight));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.unlist();
    }
}
