//! Objects in memory: found there, or loaded from the index and their file.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use super::super::backing_file::BackingFile;
use super::super::budget::disk_bytes;
use super::super::chunk_map::ChunkMap;
use super::super::disk_health::is_short_of_descriptors;
use super::super::lock;
use super::super::object::{CachedObject, Loaded};
use super::super::record::{Location, NodeId, NodeRow, ObjectRow};
use super::{LOADING_LOCKS, Store};
use crate::remote::ObjectMeta;
use crate::remote::client::RemoteClient;

/// Objects that are not kept, and are in memory all the same: how many, and for how long
/// after they were opened.
const PASSING_MAX: usize = 16;
const PASSING_FOR: Duration = Duration::from_secs(5);

/// Why an object cannot be read from where its row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unusable {
    /// Some of it is not there.
    Lost,
    /// It may be there; that cannot be told now.
    Now,
}

impl Store {
    /// The object of `node`, ready to be opened. There is one per node at a
    /// time. What somebody did to its file since it was last opened is noticed
    /// here.
    pub fn object(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        remote: &Arc<RemoteClient>,
    ) -> Arc<CachedObject> {
        self.object_from(node, meta, remote, || self.load(node, meta))
    }

    /// As [`Store::object`], of a node that the index does not know any more.
    pub(in crate::cache) fn lost_object(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        remote: &Arc<RemoteClient>,
    ) -> Arc<CachedObject> {
        let lost = || Loaded { doomed: true, ..Loaded::nothing(node, meta.size) };
        self.object_from(node, meta, remote, lost)
    }

    fn object_from(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        remote: &Arc<RemoteClient>,
        load: impl FnOnce() -> Loaded,
    ) -> Arc<CachedObject> {
        if let Some(object) = self.unharmed(node) {
            return object;
        }
        let loading = lock(self.loading_lock(node));
        if let Some(object) = self.live(node) {
            return object;
        }
        let losses = self.index.losses();
        let mut loaded = load();
        // Another index took over meanwhile: what was found is of no index now.
        loaded.doomed |= self.index.losses() != losses;
        let is_doomed = loaded.doomed;
        let (stale_rows, held) = (loaded.stale_rows, loaded.map.present_bytes() > 0);
        let Some(me) = self.me.upgrade() else { unreachable!("a method runs on a live store") };
        let object = Arc::new(CachedObject::new(node, meta.clone(), remote.clone(), me, loaded));
        lock(&self.live).insert(node, Arc::downgrade(&object));
        if stale_rows {
            self.mark_dirty(&object);
            self.room.set_leaving(node, false);
        }
        let mut idle = lock(&self.idle);
        let open = !self.closed.load(Ordering::Relaxed);
        let pushed_out = if open && !is_doomed { idle.push(node, object.clone()) } else { None };
        drop(idle);
        let passed = is_doomed.then(|| self.hold_for_a_moment(&object)).flatten();
        // Not before: who discards the object now must find it among the idle ones.
        drop(loading);
        drop((pushed_out, passed)); // After the locks: their drop takes another one.
        if held {
            lock(&self.room.recency).set_held(node, true);
        }
        object
    }

    /// Holds on to an object that is not kept; gives the one that it takes the place of.
    fn hold_for_a_moment(&self, object: &Arc<CachedObject>) -> Option<Arc<CachedObject>> {
        let mut passing = lock(&self.passing);
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        passing.push_back((Instant::now(), object.clone()));
        let is_full = passing.len() > PASSING_MAX;
        is_full.then(|| passing.pop_front()).flatten().map(|(_, object)| object)
    }

    /// Lets go of what is not kept and was opened a while before `now`, or of all of it:
    /// the next one to open it may fare better.
    pub(super) fn forget_passing(&self, now: Option<Instant>) {
        let is_old = |at| now.is_none_or(|now| now.saturating_duration_since(at) >= PASSING_FOR);
        let mut old = Vec::new();
        let mut passing = lock(&self.passing);
        while passing.front().is_some_and(|(at, _)| is_old(*at)) {
            old.extend(passing.pop_front());
        }
        drop(passing);
        drop(old); // After the lock: their drop takes another one.
    }

    /// The object in memory, to be opened again: unless its file is gone.
    pub fn unharmed(&self, node: NodeId) -> Option<Arc<CachedObject>> {
        let object = self.live(node)?;
        if object.recheck() {
            return Some(object);
        }
        tracing::warn!(key = ?object.meta().key.0, "the file of a cached object was removed; it is fetched again");
        self.metrics.repairs.add(1);
        object.doom();
        self.remove_rows_later(node, object.file_id());
        lock(&self.room.recency).set_held(node, false);
        let _loading = lock(self.loading_lock(node));
        let mut live = lock(&self.live);
        if live.get(&node).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&object))) {
            live.remove(&node);
        }
        drop(live);
        let dirty = lock(&self.dirty).remove(&node);
        let idle = lock(&self.idle).pop(&node);
        drop((dirty, idle)); // After the locks; `object` holds it still.
        None
    }

    pub(in crate::cache) fn loading_lock(&self, node: NodeId) -> &Mutex<()> {
        &self.loading[node.0 as usize % LOADING_LOCKS]
    }

    /// The object of `node`, if it is in memory.
    pub fn live(&self, node: NodeId) -> Option<Arc<CachedObject>> {
        lock(&self.live).get(&node).and_then(Weak::upgrade)
    }

    /// Bytes of `node` in the cache.
    pub fn present_bytes(&self, node: NodeId) -> u64 {
        match self.live(node) {
            Some(object) => object.present_bytes(),
            None => self.index.object(node).ok().flatten().map_or(0, |row| row.present_bytes),
        }
    }

    /// As [`Store::present_bytes`], of many at once.
    pub fn present_bytes_of(&self, nodes: &[NodeId]) -> Vec<u64> {
        let held: Vec<_> = {
            let live = lock(&self.live);
            nodes.iter().map(|node| live.get(node).and_then(Weak::upgrade)).collect()
        };
        let others: Vec<NodeId> = nodes
            .iter()
            .zip(&held)
            .filter(|(_, object)| object.is_none())
            .map(|(node, _)| *node)
            .collect();
        let rows = self.index.present_bytes_of(&others).unwrap_or_default();
        let mut rows = rows.into_iter();
        let mut of = |object: &Option<Arc<CachedObject>>| match object {
            Some(object) => object.present_bytes(),
            None => rows.next().unwrap_or(0),
        };
        held.iter().map(&mut of).collect()
    }

    fn load(&self, node: NodeId, meta: &ObjectMeta) -> Loaded {
        // A replaced version can still be opened by who knows its node. Its
        // rows and its file are about to go, or are gone.
        if matches!(self.index.node(node), Ok(Some(NodeRow::Superseded { .. }))) {
            return Loaded { doomed: true, ..Loaded::nothing(node, meta.size) };
        }
        if self.room.is_leaving(node) {
            return Loaded { stale_rows: true, ..Loaded::nothing(node, meta.size) };
        }
        match self.index.object(node) {
            Ok(Some(row)) => self.load_file(node, meta, &row).unwrap_or_else(|unusable| {
                if unusable == Unusable::Now {
                    return Loaded { doomed: true, ..Loaded::nothing(node, meta.size) };
                }
                tracing::warn!(key = ?meta.key.0, "the cache lost what it had of an object; it is fetched again");
                self.metrics.repairs.add(1);
                self.budget.release(disk_bytes(row.present_bytes));
                if row.present_bytes > 0 {
                    self.count_held(false);
                }
                lock(&self.room.recency).set_held(node, false);
                let Location::OwnFile(file) = row.location;
                self.unlink(&file.path(&self.data_dir));
                Loaded { stale_rows: true, ..Loaded::nothing(node, meta.size) }
            }),
            Ok(None) => Loaded::nothing(node, meta.size),
            // There may be rows: what is kept now would stand beside them.
            Err(error) => {
                tracing::warn!(%error, "what the cache has of an object cannot be told");
                Loaded { doomed: true, ..Loaded::nothing(node, meta.size) }
            }
        }
    }

    /// What a node's row promises.
    fn load_file(
        &self,
        node: NodeId,
        meta: &ObjectMeta,
        row: &ObjectRow,
    ) -> Result<Loaded, Unusable> {
        let Location::OwnFile(file_id) = row.location;
        let path = file_id.path(&self.data_dir);
        let unusable = |error: std::io::Error| {
            match error.kind() {
                std::io::ErrorKind::NotFound => return Unusable::Lost,
                _ if is_short_of_descriptors(&error) => self.shortage.met(&error),
                _ => {
                    tracing::warn!(key = ?meta.key.0, %error, "the file of a cached object cannot be opened now")
                }
            }
            Unusable::Now
        };
        let file = BackingFile::open(&path).map_err(unusable)?;
        let mut fingerprint = file.fingerprint().map_err(unusable)?.ok_or(Unusable::Lost)?;
        let untouched = fingerprint == row.fingerprint;
        let trusted = untouched && row.verified_boot == Some(self.trust());
        let groups = self.index.chunk_groups(node).map_err(|error| {
            tracing::warn!(%error, "what the cache has of an object cannot be told");
            Unusable::Now
        })?;
        let map = ChunkMap::load(meta.size, &groups, trusted);
        if !untouched {
            // Cut short, or written to after its row: no row accounts for that.
            let trimmed = file.restore_size(meta.size).and_then(|()| {
                file.punch_absent(&map, meta.size)?;
                file.fingerprint()
            });
            fingerprint = trimmed.map_err(unusable)?.ok_or(Unusable::Lost)?;
        }
        let whole = row.size == meta.size
            && row.version == meta.version
            && map.present_bytes() == row.present_bytes;
        if !whole {
            return Err(Unusable::Lost);
        }
        Ok(Loaded {
            file_id,
            file: Some((file, fingerprint)),
            map,
            used_ms: row.used_ms,
            stale_rows: false,
            doomed: false,
        })
    }
}
