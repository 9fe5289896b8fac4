//! Objects that came as a whole, compared with what their store says of them:
//! `--verify-remote`.
//!
//! A chunk's checksum is of what came. That it is what the store holds, only the store's
//! own checksum of all of it tells. It is asked for behind the readers, last in line, once
//! for each object that becomes complete; where it is a CRC-32C those of the chunks are put
//! together, and no byte is read again.
//!
//! An object that differs is dropped: its bytes are fetched anew by whoever reads it next.
//! If it differs again, the store's checksum may be what is wrong (some let who writes
//! choose it), so it is kept from then on, and the status says so. No read fails for it.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use super::lock;
use super::object::CachedObject;
use super::record::NodeId;
use super::store::Store;
use crate::remote::ObjectMeta;
use crate::remote::checksum::{Algorithm, Checksum, Digest};
use crate::remote::client::RemoteClient;

/// Objects that are compared side by side. Each takes a request's time, of which most is
/// waited: several hundred a second, as many as small objects come.
const COMPARED_AT_ONCE: usize = 16;

/// Objects that wait to be compared, some hundred bytes each. Those that find no place are
/// counted; readers do not wait for it.
const WAITING_MAX: usize = 16_384;

/// Objects remembered that differed once. Past these the first time counts as the second.
const DIFFERED_MAX: usize = 4_096;

/// Bytes read at once of an object whose checksum needs them.
const STEP_BYTES: u64 = 1 << 20;

/// What came of it since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Objects that are as their store says.
    pub same: u64,
    /// Objects of which their store does not say, or could not be asked.
    pub unverifiable: u64,
    /// Objects that were not compared, since too many waited.
    pub skipped: u64,
    /// Objects that differed, and were dropped.
    pub dropped: u64,
    /// Objects that differed once more, and are kept as they came.
    pub disputed: u64,
    /// The key of the last one that differed.
    pub last: Option<String>,
}

/// Objects to compare, and what came of those before.
#[derive(Debug, Default)]
pub(super) struct Audit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Whole>,
    workers: usize,
    differed: HashSet<NodeId>,
    found: Audited,
}

/// An object that is complete. Not the object itself: each has a descriptor.
#[derive(Debug)]
struct Whole {
    node: NodeId,
    meta: ObjectMeta,
    remote: Arc<RemoteClient>,
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    Unverifiable,
    /// The store did not answer, so nothing is known.
    Unasked,
    /// Not all of it is there: evicted meanwhile, or another version by now.
    Gone,
    Differs,
}

impl Audit {
    /// What came of it so far.
    pub(super) fn found(&self) -> Audited {
        lock(&self.0).found.clone()
    }

    /// Whether an object that differs does so for the first time.
    fn differs(&self, node: NodeId, key: &str) -> bool {
        let mut state = lock(&self.0);
        let is_first = state.differed.len() < DIFFERED_MAX && state.differed.insert(node);
        let counter = if is_first { &mut state.found.dropped } else { &mut state.found.disputed };
        *counter += 1;
        state.found.last = Some(key.to_owned());
        is_first
    }
}

impl Store {
    /// All of an object came: it is compared, once there is time.
    pub(super) fn compare_later(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        remote: &Arc<RemoteClient>,
    ) {
        let Some(store) = self.me() else { return };
        let mut state = lock(&self.audit().0);
        if state.waiting.len() == WAITING_MAX {
            state.found.skipped += 1;
            return;
        }
        let whole = Whole { node, meta: meta.clone(), remote: remote.clone() };
        state.waiting.push_back(whole);
        if state.workers < COMPARED_AT_ONCE {
            state.workers += 1;
            drop(state);
            self.spawn(async move { compare_all(&store).await });
        }
    }
}

/// Compares what waits until nothing does.
async fn compare_all(store: &Arc<Store>) {
    loop {
        let whole = {
            let mut state = lock(&store.audit().0);
            let next = if store.is_closed() { None } else { state.waiting.pop_front() };
            let Some(whole) = next else {
                state.workers -= 1;
                return;
            };
            whole
        };
        compare(store, &whole).await;
    }
}

/// Compares an object, counts it, and drops it if it differs.
async fn compare(store: &Arc<Store>, whole: &Whole) -> Verdict {
    let Whole { node, meta, remote } = whole;
    let said = remote.checksum(meta).await;
    let is_answered = said.is_ok();
    let said = said.unwrap_or_else(|error| {
        tracing::debug!(%error, "a checksum cannot be asked for");
        None
    });
    let Some(said) = said else {
        lock(&store.audit().0).found.unverifiable += 1;
        return if is_answered { Verdict::Unverifiable } else { Verdict::Unasked };
    };
    let object = {
        let (store, meta, remote, node) = (store.clone(), meta.clone(), remote.clone(), *node);
        store.clone().read_blocking(move || store.object(node, &meta, &remote)).await
    };
    match object.checksum(said.algorithm).await {
        None => Verdict::Gone,
        Some(found) if found == said => {
            lock(&store.audit().0).found.same += 1;
            Verdict::Same
        }
        Some(_) => {
            differs(store, object, &said).await;
            Verdict::Differs
        }
    }
}

async fn differs(store: &Arc<Store>, object: Arc<CachedObject>, said: &Checksum) {
    let key = object.meta().key.0.clone();
    if store.audit().differs(object.node(), &key) {
        tracing::warn!(?key, %said, "an object is not what its store says; it is fetched again");
        store.read_blocking(move || object.drop_all()).await;
    } else {
        tracing::warn!(?key, %said, "an object is not what its store says, twice; it is kept as it came");
    }
}

impl CachedObject {
    /// Compares it now, whether that was done before or not. Nobody else asks for it.
    pub(super) async fn compare(self: &Arc<Self>) -> Verdict {
        if self.complete_file().is_none() {
            return Verdict::Gone;
        }
        let (node, meta, remote) = (self.node(), self.meta().clone(), self.remote().clone());
        compare(self.store(), &Whole { node, meta, remote }).await
    }

    /// The checksum of all of it; `None` if not all of it is there, or can be read.
    async fn checksum(self: &Arc<Self>, algorithm: Algorithm) -> Option<Checksum> {
        let object = self.clone();
        let store = self.store();
        if algorithm == Algorithm::Crc32c {
            let crc = store.read_blocking(move || object.whole_crc32c()).await;
            return crc.map(Checksum::of_crc32c);
        }
        let mut digest = Digest::new(algorithm);
        for start in (0..self.size()).step_by(STEP_BYTES as usize) {
            let range = start..self.size().min(start + STEP_BYTES);
            let object = self.clone();
            let step = move || {
                let bytes = object.read_whole(&range)?;
                digest.update(&bytes);
                Some(digest)
            };
            // A step at a time: readers of the disk have their turn between two.
            digest = store.read_blocking(step).await?;
        }
        Some(digest.finish())
    }
}
