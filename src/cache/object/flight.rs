//! One request for a run of an object's chunks: begun, flown, landed. Bytes go
//! to those who wait first, then to the disk.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::chunk_map::{CHUNK_BYTES, chunk_len, chunk_range};
use super::super::fetch::{Admission, Flight, Pilot};
use super::super::lock;
use super::super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::{CachedObject, State};
use crate::admission::Class;
use crate::remote::RemoteError;

/// One request of a fill: an object that is fetched whole, or as much of a larger one.
const FILL_CHUNKS: u32 = (WHOLE_OBJECT_MAX_BYTES / CHUNK_BYTES) as u32;

impl CachedObject {
    /// Fetches what is missing, before anybody asks for it, and returns once it
    /// has come. A run is not in flight before it may be, so that a reader who
    /// comes first asks for itself. Ends early when nothing is kept any more, or
    /// nothing more may be fetched that nobody waits for.
    pub async fn fill(self: &Arc<Self>) -> Result<(), RemoteError> {
        let mut flights = Vec::new();
        let mut from = 0;
        while !self.is_doomed() && self.store.is_keeping() && self.remote.may_speculate() {
            let Some(run) = self.missing_run(&lock(&self.state), from) else { break };
            let bytes = chunk_range(run.end - 1, self.meta.size).end
                - chunk_range(run.start, self.meta.size).start;
            let admission = self.store.fetcher().admit(Class::Prefetch, bytes, &self.remote).await;
            from = run.end;
            let mut state = lock(&self.state);
            if run.clone().all(|chunk| self.is_missing(&state, chunk)) {
                flights.push(self.start(&mut state, run, bytes, Some(admission)));
            } else {
                from = run.start; // A reader was faster with some of it.
            }
        }
        for flight in flights {
            flight.chunk(flight.chunks().end - 1).await?;
        }
        Ok(())
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

    pub(super) fn start(
        self: &Arc<Self>,
        state: &mut State,
        chunks: Range<u32>,
        bytes: u64,
        ahead: Option<Admission>,
    ) -> Arc<Flight> {
        let (flight, pilot) = Flight::new(chunks);
        state.flights.push(flight.clone());
        let object = self.clone();
        self.store.spawn(async move {
            let flight = pilot.flight().clone();
            let mut admission = match ahead {
                Some(admission) => admission,
                None => object.store.fetcher().admit(Class::Demand, bytes, &object.remote).await,
            };
            let result = object.fly(&pilot, &mut admission).await;
            // First out of the list, then the verdict: who looks now starts anew.
            lock(&object.state).flights.retain(|f| !Arc::ptr_eq(f, &flight));
            if let Err(error) = result {
                tracing::debug!(key = ?object.meta.key.0, %error, "a fetch failed");
                pilot.fail(error);
            }
            drop(admission);
        });
        flight
    }

    /// Brings the bytes of one flight: to those who wait first, then to disk.
    pub(super) async fn fly(
        self: &Arc<Self>,
        pilot: &Pilot,
        admission: &mut Admission,
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
        admission.request_done();
        if let Some(task) = keeping {
            self.joined(task).await;
        }
        if !landed.is_empty() {
            let task = self.keep_in_background(pilot, landed);
            self.joined(task).await;
        }
        result
    }

    pub(super) async fn joined(&self, task: tokio::task::JoinHandle<()>) {
        if let Err(error) = task.await {
            tracing::error!(%error, "writing to the cache ended abnormally");
        }
    }

    pub(super) fn keep_in_background(
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
}
