//! One request for a run of an object's chunks: begun, flown, landed. Bytes go
//! to those who wait first, then to the disk.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::super::chunk_map::{chunk_len, chunk_range};
use super::super::fetch::{Admission, Flight, Pilot};
use super::super::lock;
use super::{CachedObject, State};
use crate::remote::RemoteError;

impl CachedObject {
    pub(super) fn start(
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
    pub(super) async fn fly(
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
