//! Upkeep that a user asks for: evict, verify, pin, refresh.
//!
//! Each runs to its end or until [`Progress::cancel`], tells how far it is by
//! [`Progress`], and leaves the cache whole wherever it stops.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::watch;

use super::audit::Verdict;
use super::budget::Excess;
use super::record::{EntryRow, NodeId, NodeRow};
use super::standing::Memo;
use super::store::{Checked, Readers, USED_GRAIN_MS};
use super::{Cache, CacheError, CachedObject, Node, NodeKind, Tree};

/// Objects removed in one transaction: few enough that a reader's rows do not
/// wait long behind them.
const EVICT_BATCH: usize = 256;

/// Objects verified side by side: enough to keep a disk busy.
const VERIFIED_AT_ONCE: usize = 4;

/// Objects that a pin fetches side by side. Small ones are bound by the round
/// trip; what is in flight in all is bounded elsewhere.
pub(super) const FETCHED_AT_ONCE: usize = 32;

/// Objects in a row of which the store says nothing: it is asked about no other.
const UNASKED_MAX: u64 = 16;

/// Folders that are listed again side by side.
const LISTED_AT_ONCE: usize = 32;

/// Bytes that a pin reads at once.
const FETCH_STEP_BYTES: u64 = 1 << 20;

/// What an upkeep command is about.
#[derive(Clone, Debug)]
pub enum Scope {
    /// All that the cache holds, of whatever remote.
    Everything,
    /// A node of a mounted tree and everything below it.
    Below(Arc<Tree>, NodeId),
}

/// How far a command is. Totals grow while they are found out.
#[derive(Debug, Default)]
pub struct Progress {
    /// Objects done with.
    pub objects_done: AtomicU64,
    /// Objects to do, as far as it is known.
    pub objects_total: AtomicU64,
    /// Bytes done with.
    pub bytes_done: AtomicU64,
    /// Bytes to do, as far as it is known.
    pub bytes_total: AtomicU64,
    cancelled: watch::Sender<bool>,
}

impl Progress {
    /// Asks the command to stop soon.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }
}

/// What [`Cache::evict`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// Objects that are no longer in the cache.
    pub objects: u64,
    /// Bytes of disk they held.
    pub bytes: u64,
    /// Objects left because somebody has them open.
    pub in_use: u64,
    /// Objects left because they are pinned.
    pub pinned: u64,
}

/// What [`Cache::verify`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Objects looked at.
    pub objects: u64,
    /// Bytes compared with their checksums.
    pub bytes: u64,
    /// Chunks that were damaged or missing.
    pub damaged_chunks: u64,
    /// Of these, fetched again. The others are dropped: their remote is not
    /// mounted or cannot be reached, and the next read fetches them.
    pub repaired_chunks: u64,
    /// Whole objects that are as their store says.
    pub same_objects: u64,
    /// Those that are not. They are dropped, unless they were before.
    pub differing_objects: u64,
    /// Those of which the store does not say, or cannot be asked: its remote may not be
    /// mounted.
    pub unverifiable_objects: u64,
}

/// What [`Cache::refresh`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Folders that were listed or looked into again.
    pub folders: u64,
    /// Objects in them, and in all that lies below.
    pub objects: u64,
}

/// What [`Cache::pin`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Objects that are pinned by it.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of them that are in the cache now. Fewer than `bytes` if the
    /// command was cancelled, or if the cache had no room.
    pub cached_bytes: u64,
}

impl Progress {
    /// Returns once it was asked to stop.
    pub async fn cancelled(&self) {
        // It cannot close: this holds its sender.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    pub(super) fn expect(&self, objects: u64, bytes: u64) {
        self.objects_total.fetch_add(objects, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn done(&self, objects: u64, bytes: u64) {
        self.objects_done.fetch_add(objects, Ordering::Relaxed);
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// An object that the cache holds something of.
#[derive(Clone, Copy, Debug)]
struct Held {
    node: NodeId,
    bytes: u64,
    used_ms: u64,
}

impl Cache {
    /// Removes what `scope` has in the cache, but for what is pinned or open;
    /// with `older_than` only what was not read for so long (to the hour).
    pub async fn evict(
        self: &Arc<Self>,
        scope: &Scope,
        older_than: Option<Duration>,
        progress: &Arc<Progress>,
    ) -> Result<Evicted, CacheError> {
        let mut held = self.held(scope).await?;
        if let Some(age) = older_than {
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            let newest_ms = self.clock.current_ms().saturating_sub(age_ms);
            // Its row may be so much behind its last use.
            let grain_ms = USED_GRAIN_MS.min(age_ms);
            held.retain(|held| held.used_ms.saturating_add(grain_ms) <= newest_ms);
        }
        progress.expect(held.len() as u64, held.iter().map(|held| held.bytes).sum());
        let cache = self.clone();
        let progress = progress.clone();
        self.blocking(move || {
            let mut total = Evicted::default();
            let mut memo = Memo::default();
            for batch in held.chunks(EVICT_BATCH) {
                if progress.is_cancelled() {
                    break;
                }
                let mut nodes = Vec::with_capacity(batch.len());
                for held in batch {
                    let standing =
                        cache.store.places().standing(&cache.index, held.node, &mut memo)?;
                    if standing.pinned {
                        total.pinned += 1;
                    } else {
                        nodes.push(held.node);
                    }
                }
                let removed = cache.store.remove(&nodes, Readers::Spare)?;
                total.objects += removed.objects;
                total.bytes += removed.bytes;
                total.in_use += removed.in_use;
                let metrics = cache.store.metrics();
                metrics.evicted_objects.add(removed.objects);
                metrics.evicted_bytes.add(removed.bytes);
                progress.done(batch.len() as u64, batch.iter().map(|held| held.bytes).sum());
            }
            Ok(total)
        })
        .await
    }

    /// Compares every chunk that `scope` has in the cache with its checksum;
    /// what is damaged is fetched again, or dropped where that cannot be. With `remote`
    /// whole objects are compared with what their store says, too.
    pub async fn verify(
        self: &Arc<Self>,
        scope: &Scope,
        remote: bool,
        progress: &Arc<Progress>,
    ) -> Result<Verified, CacheError> {
        let held = self.held(scope).await?;
        progress.expect(held.len() as u64, held.iter().map(|held| held.bytes).sum());
        let trees = self.trees_by_bucket();
        let (trees, mut total) = (&trees, Verified::default());
        let unasked = &AtomicU64::new(0);
        let mut checks = stream::iter(held)
            .map(|held| async move {
                self.verify_one(held.node, remote, trees, unasked).await.map(|one| (held, one))
            })
            .buffer_unordered(VERIFIED_AT_ONCE);
        while let Some(checked) = next(&mut checks, progress).await {
            let (held, one) = checked?;
            progress.done(1, held.bytes);
            total.objects += 1;
            total.bytes += one.bytes;
            total.damaged_chunks += one.damaged_chunks;
            total.repaired_chunks += one.repaired_chunks;
            total.same_objects += one.same_objects;
            total.differing_objects += one.differing_objects;
            total.unverifiable_objects += one.unverifiable_objects;
        }
        Ok(total)
    }

    async fn verify_one(
        self: &Arc<Self>,
        node: NodeId,
        remote: bool,
        trees: &HashMap<NodeId, Arc<Tree>>,
        unasked: &AtomicU64,
    ) -> Result<Verified, CacheError> {
        let cache = self.clone();
        let bucket = self.blocking(move || cache.bucket_of(node)).await?;
        let known = match bucket.and_then(|bucket| trees.get(&bucket)) {
            Some(tree) => tree.node(node)?.map(|known| (tree, known)),
            None => None,
        };
        if let Some((tree, known)) = known {
            let before = self.index.object(node)?.map_or(0, |row| row.present_bytes);
            let Some(object) = tree.open(&known)? else { return Ok(Verified::default()) };
            let mut found = object.verify(before).await;
            if remote {
                // Each waits for as long as a reader would.
                let verdict = match unasked.load(Ordering::Relaxed) < UNASKED_MAX {
                    true => object.compare().await,
                    false => Verdict::Unasked,
                };
                match verdict {
                    Verdict::Unasked => unasked.fetch_add(1, Ordering::Relaxed),
                    _ => unasked.swap(0, Ordering::Relaxed),
                };
                match verdict {
                    Verdict::Same => found.same_objects = 1,
                    Verdict::Differs => found.differing_objects = 1,
                    Verdict::Unverifiable | Verdict::Unasked => found.unverifiable_objects = 1,
                    Verdict::Gone => {}
                }
            }
            return Ok(found);
        }
        // Nobody can fetch it: its remote is not mounted.
        let cache = self.clone();
        let checked = self.blocking(move || cache.store.check_unloaded(node)).await?;
        let Checked { bytes, damaged_chunks } = checked;
        let unverifiable_objects = u64::from(remote);
        Ok(Verified { bytes, damaged_chunks, unverifiable_objects, ..Verified::default() })
    }

    /// Fetches an object, or every object below a folder, and keeps it from
    /// being evicted until it is unpinned; over restarts too, and also what
    /// comes to the folder later, once it is read.
    pub async fn pin(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Pinned, CacheError> {
        let (parent, name) = self.pin_key(node).await?;
        let cache = self.clone();
        self.blocking(move || {
            cache.index.write_durably(|write| write.put_pin(parent, &name))?;
            cache.store.places().pin(parent, &name);
            Ok(())
        })
        .await?;
        let objects = self.list_objects(tree, node, progress).await?;
        let mut total = Pinned { objects: objects.len() as u64, ..Pinned::default() };
        total.bytes = objects.iter().map(|(_, size)| size).sum();
        let mut fetches = stream::iter(objects.clone())
            .map(|(node, size)| async move {
                let fetched = self.fetch_pinned(tree, node, size, progress).await;
                progress.done(1, 0);
                fetched
            })
            .buffer_unordered(FETCHED_AT_ONCE);
        let mut last_error = None;
        while let Some(fetched) = next(&mut fetches, progress).await {
            // The others are fetched all the same.
            last_error = fetched.err().or(last_error);
        }
        drop(fetches);
        let cache = self.clone();
        total.cached_bytes = self
            .blocking(move || {
                cache.store.settle();
                Ok(objects.iter().map(|(node, _)| cache.store.present_bytes(*node)).sum())
            })
            .await?;
        match last_error {
            Some(error) => Err(error),
            None => Ok(total),
        }
    }

    /// Lists a folder anew, or that of an object, and each folder below it that was
    /// listed before. Of the others what is known is asked for again.
    pub async fn refresh(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Refreshed, CacheError> {
        let top = match tree.node(node)? {
            Some(Node { kind: NodeKind::Object(_), parent, .. }) => parent,
            _ => node,
        };
        let list = move |tree: Arc<Tree>, folder| async move {
            match folder == top || tree.was_listed(folder)? {
                true => tree.list_anew(folder).await,
                false => tree.ask_anew(folder).await,
            }
        };
        let mut total = Refreshed::default();
        let mut listings = std::pin::pin!(descend(tree.clone(), top, list));
        while let Some(listed) = next(&mut listings, progress).await {
            listed?;
            total.folders += 1;
            progress.done(1, 0);
        }
        total.objects = tree.rollup(top)?.objects;
        Ok(total)
    }

    /// Undoes [`Cache::pin`]; `false` if the node was not pinned itself.
    pub async fn unpin(
        self: &Arc<Self>,
        _tree: &Arc<Tree>,
        node: NodeId,
    ) -> Result<bool, CacheError> {
        let (parent, name) = self.pin_key(node).await?;
        let cache = self.clone();
        self.blocking(move || {
            cache.index.write_durably(|write| write.remove_pin(parent, &name))?;
            Ok(cache.store.places().unpin(parent, &name))
        })
        .await
    }

    /// A pin holds for a name, whatever version of an object it leads to.
    async fn pin_key(self: &Arc<Self>, node: NodeId) -> Result<(NodeId, String), CacheError> {
        let cache = self.clone();
        self.blocking(move || match cache.index.node(node)? {
            Some(NodeRow::Current { parent, name } | NodeRow::Superseded { parent, name, .. }) => {
                Ok((parent, name))
            }
            None => Ok((node, String::new())), // The root of a bucket.
        })
        .await
    }

    /// Reads an object once, unless the cache has it or has no room for it.
    async fn fetch_pinned(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        node: NodeId,
        size: u64,
        progress: &Arc<Progress>,
    ) -> Result<(), CacheError> {
        let missing = size.saturating_sub(self.store.present_bytes(node));
        let cache = self.clone();
        let wanted = Excess { bytes: missing, files: 1 };
        let fits = self.blocking(move || Ok(cache.store.has_room_for(wanted, true))).await?;
        if missing == 0 || !fits || progress.is_cancelled() {
            progress.done(0, size);
            return Ok(());
        }
        let Some(known) = tree.node(node)? else { return Ok(()) };
        let Some(object) = tree.open(&known)? else { return Ok(()) };
        object.opened();
        let mut at = 0;
        while at < size && !progress.is_cancelled() {
            let read = object.read(at, FETCH_STEP_BYTES).await?.data.len() as u64;
            progress.done(0, read);
            at += read.max(1);
        }
        Ok(())
    }

    /// Every object at or below `node`, with its size. Lists what is not listed.
    pub(super) async fn list_objects(
        self: &Arc<Self>,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Vec<(NodeId, u64)>, CacheError> {
        let mut objects = Vec::new();
        let mut folders = Vec::new();
        match tree.node(node)?.map(|known| known.kind) {
            Some(NodeKind::Object(attr)) => objects.push((node, attr.size)),
            Some(NodeKind::Folder { .. }) => folders.push(node),
            None => {}
        }
        progress.expect(objects.len() as u64, objects.iter().map(|(_, size)| size).sum());
        while let Some(folder) = folders.pop() {
            if progress.is_cancelled() {
                break;
            }
            tree.ensure_listed(folder).await?;
            let mut after: Option<String> = None;
            loop {
                let children = tree.children(folder, after.as_deref(), EVICT_BATCH)?;
                let Some(last) = children.last() else { break };
                after = Some(last.name.clone());
                for child in children {
                    match child.kind {
                        NodeKind::Folder { .. } => folders.push(child.id),
                        NodeKind::Object(attr) => {
                            progress.expect(1, attr.size);
                            objects.push((child.id, attr.size));
                        }
                    }
                }
            }
        }
        Ok(objects)
    }

    /// What the cache holds of `scope`, as the index has it once all is flushed.
    async fn held(self: &Arc<Self>, scope: &Scope) -> Result<Vec<Held>, CacheError> {
        let cache = self.clone();
        let scope = scope.clone();
        self.blocking(move || {
            cache.store.settle();
            cache.store.flush()?;
            match scope {
                Scope::Everything => cache.all_held(),
                Scope::Below(_, node) => cache.held_below(node),
            }
        })
        .await
    }

    fn all_held(&self) -> Result<Vec<Held>, CacheError> {
        let mut all = Vec::new();
        let mut after = NodeId(0);
        loop {
            let rows = self.index.objects_after(after, EVICT_BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(all) };
            after = *last;
            all.extend(rows.into_iter().filter_map(|(node, row)| {
                row.map(|row| Held { node, bytes: row.present_bytes, used_ms: row.used_ms })
            }));
        }
    }

    fn held_below(&self, node: NodeId) -> Result<Vec<Held>, CacheError> {
        let mut all = Vec::new();
        let look = |node: NodeId, all: &mut Vec<Held>| {
            let row = self.index.object(node)?;
            all.extend(row.map(|row| Held {
                node,
                bytes: row.present_bytes,
                used_ms: row.used_ms,
            }));
            Ok::<_, CacheError>(())
        };
        look(node, &mut all)?;
        let mut folders = vec![node];
        while let Some(folder) = folders.pop() {
            let mut after: Option<String> = None;
            loop {
                let batch = self.index.entries_after(folder, after.as_deref(), EVICT_BATCH)?;
                let Some((last, _)) = batch.last() else { break };
                after = Some(last.clone());
                for (_, EntryRow { node, object, .. }) in batch {
                    match object {
                        Some(_) => look(node, &mut all)?,
                        None => folders.push(node),
                    }
                }
            }
        }
        Ok(all)
    }

    /// The bucket that a node is in, if it can still be looked up.
    fn bucket_of(&self, node: NodeId) -> Result<Option<NodeId>, CacheError> {
        let mut at = node;
        loop {
            at = match self.index.node(at)? {
                Some(NodeRow::Current { parent, .. }) if parent != at => parent,
                Some(_) => return Ok(None),
                None => return Ok(Some(at)),
            }
        }
    }

    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, CacheError> + Send + 'static,
    ) -> Result<T, CacheError> {
        let task = self.runtime.spawn_blocking(work);
        task.await.unwrap_or_else(|error| {
            Err(CacheError::Io(format!("upkeep ended abnormally: {error}")))
        })
    }
}

/// Does something with each folder from `top` down, several side by side: with what lies
/// in one once that was done with it. A folder that fails leads no further.
pub(super) fn descend<F>(
    tree: Arc<Tree>,
    top: NodeId,
    work: impl Fn(Arc<Tree>, NodeId) -> F,
) -> impl Stream<Item = Result<(), CacheError>>
where
    F: Future<Output = Result<(), CacheError>>,
{
    let visit = move |folder| {
        let (tree, worked) = (tree.clone(), work(tree.clone(), folder));
        async move {
            worked.await?;
            let runtime = tree.runtime.clone();
            let folders = runtime.spawn_blocking(move || tree.folders_in(folder)).await;
            folders.unwrap_or_else(|error| Err(CacheError::Io(error.to_string())))
        }
    };
    let begun = (visit, vec![top], FuturesUnordered::new());
    stream::unfold(begun, |(visit, mut pending, mut visits)| async move {
        while visits.len() < LISTED_AT_ONCE
            && let Some(folder) = pending.pop()
        {
            visits.push(visit(folder));
        }
        let visited = visits.next().await?.map(|folders| pending.extend(folders));
        Some((visited, (visit, pending, visits)))
    })
}

/// The next of `items`, or `None` once the command is to stop: nothing that is
/// slow is waited for then.
pub(super) async fn next<T>(
    items: &mut (impl Stream<Item = T> + Unpin),
    progress: &Progress,
) -> Option<T> {
    tokio::select! {
        biased;
        () = progress.cancelled() => None,
        item = items.next() => item,
    }
}

impl CachedObject {
    /// Compares every chunk on disk with its checksum, and fetches what is
    /// damaged again. `expected` bytes of it were in the cache by its row.
    async fn verify(self: &Arc<Self>, expected: u64) -> Verified {
        let mut found = Verified::default();
        for chunk in self.chunks() {
            match self.verify_chunk(chunk).await {
                Some(Ok(bytes)) => found.bytes += bytes,
                Some(Err(bytes)) => {
                    found.bytes += bytes;
                    found.damaged_chunks += 1;
                    found.repaired_chunks += u64::from(self.fetch_chunk(chunk).await);
                }
                // All of it was there, and its file is not: it was lost as a whole.
                None if expected == self.size() => {
                    found.damaged_chunks += 1;
                    found.repaired_chunks += u64::from(self.fetch_chunk(chunk).await);
                }
                None => {}
            }
        }
        found
    }
}
