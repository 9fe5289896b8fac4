//! The cache: what is known of remotes, and the bytes of their objects on disk.
//!
//! Knows objects, versions and chunks, not inodes, and needs no mount. Owns
//! in the cache directory: `index.redb`, `index.sums`, `index.redb.damaged`
//! (one that was set aside) and `data/`, and nothing else.
//!
//! [`Tree`] answers what is in a folder, [`Store`] brings the bytes of an
//! object; [`Event`]s tell whoever holds copies (the kernel) what changed.

mod absences;
mod attach;
mod audit;
mod backing_file;
mod block;
mod budget;
mod chunk_map;
mod direct;
mod disk_health;
pub mod evict;
mod fetch;
mod flight;
mod given;
mod hint;
mod index;
mod index_file;
pub mod kill_point;
mod list_ahead;
mod lister;
mod listing;
mod look;
mod lookup;
mod memory;
mod metadata;
mod names;
mod object;
mod prefetch;
mod readahead;
mod recent;
mod record;
mod segments;
mod standing;
mod store;
mod upkeep;
mod warm;
mod writer;

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

pub use attach::AttachError;
pub use audit::Audited;
pub use budget::Disk;
pub use chunk_map::CHUNK_BYTES;
pub use direct::Direct;
pub use given::Given;
pub use hint::{HintError, Hinted};
pub use index_file::{Exported, Imported, IndexFileError};
pub use look::{HiddenPages, Look};
pub use metadata::{Child, Extent, Node, NodeKind, Tree};
pub use object::{AtHand, CachedObject, ReadOutcome};
pub use prefetch::{PrefetchOrder, Prefetched};
pub use record::{NodeId, ObjectAttr, Rollup};
pub use store::{OnTheWay, Store, Subscription};
pub use upkeep::{Evicted, Pinned, Progress, Refreshed, Scope, Verified};
pub use warm::{Doing, Warming};
pub use writer::Backlog;

use crate::config::CacheOptions;
use crate::remote::RemoteError;
use index::{Index, Opened};
use record::NodeRow;
use standing::Memo;
use store::Parts;

/// Memory for what is known of files, where nobody says so: two parts for pages of the
/// index, one for files that were named to the kernel.
const METADATA_BYTES: usize = index::PAGE_CACHE_BYTES / 2 * 3;

/// The open cache. One per cache directory and process.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    index: Arc<Index>,
    store: Arc<Store>,
    clock: Arc<Clock>,
    runtime: Handle,
    /// Mounted trees.
    trees: Mutex<Vec<Weak<Tree>>>,
    given: Arc<Given>,
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFigures {
    /// Bytes of disk taken, the index and all else included.
    pub used_bytes: u64,
    /// Of these, objects' own.
    pub object_bytes: u64,
    /// Bytes of disk it may take.
    pub limit_bytes: u64,
    /// Objects with at least one chunk.
    pub objects: u64,
    /// Bytes of all objects below the mounts, as far as they are listed.
    pub dataset_bytes: u64,
    /// Of these, in the cache.
    pub dataset_cached_bytes: u64,
    /// Bytes of disk that objects may take; the rest is the index's.
    pub object_limit_bytes: u64,
    /// Files and folders that are pinned.
    pub pins: u64,
    /// Keys below the mounts that no path can name, as far as they are listed.
    pub hidden_keys: u64,
    /// What the disk had left for anybody, within the last second.
    pub disk_free_bytes: u64,
}

impl CacheFigures {
    /// The part of an epoch's bytes that comes from the cache once it is warm:
    /// what does not fit is streamed. `None` while nothing is listed.
    pub fn expected_hit_rate(&self) -> Option<f64> {
        let fits = self.object_limit_bytes as f64 / self.dataset_bytes as f64;
        (self.dataset_bytes > 0).then_some(fits.min(1.0))
    }
}

/// Something changed of which the kernel may hold a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A name means something else now, or nothing.
    Entry(NodeId, String),
    /// A folder's listing changed, and with it its mtime.
    Folder(NodeId),
    /// An object is all in the cache, or no longer in it: its block count changed.
    Blocks(NodeId),
    /// What came of an object was not what its store has: its pages must go.
    Contents(NodeId),
}

/// Why the cache could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The remote could not.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The index could not: its disk fails.
    #[error("cache index: {0}")]
    Index(String),
    /// The index could not: there is no room on its disk.
    #[error("cache index: {0}")]
    NoRoom(String),
    /// The index is damaged. It is set aside by whoever finds out.
    #[error("cache index: damaged: {0}")]
    Damaged(String),
    /// Nothing is known of a node any more: the index that knew it was lost.
    #[error("node {} is not known any more", .0.0)]
    Unknown(NodeId),
    /// A file of the cache could not be used.
    #[error("{0}")]
    Io(String),
}

impl CacheError {
    /// Whether the index failed, and by now may work again, or another one does.
    fn is_of_index(&self) -> bool {
        matches!(self, CacheError::Index(_) | CacheError::NoRoom(_) | CacheError::Damaged(_))
    }

    fn io(path: &Path) -> impl Fn(std::io::Error) -> CacheError {
        move |error| CacheError::Io(format!("{}: {error}", path.display()))
    }
}

impl From<redb::Error> for CacheError {
    fn from(error: redb::Error) -> Self {
        let text = error.to_string();
        match &error {
            redb::Error::Io(error) if disk_health::is_full(error) => CacheError::NoRoom(text),
            error if index::is_damaged(error) => CacheError::Damaged(text),
            _ => CacheError::Index(text),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for CacheError {
            fn from(error: redb::$error) -> Self {
                redb::Error::from(error).into()
            }
        })*
    };
}
from_redb!(DatabaseError, TransactionError, TableError, StorageError, CommitError);

impl Cache {
    /// Opens the cache in `options.dir`, or begins one. The caller holds the
    /// directory's lock. Blocks for milliseconds, whatever the cache holds.
    pub fn open(options: &CacheOptions, runtime: Handle) -> Result<Arc<Cache>, CacheError> {
        Self::open_in_boot(options, runtime, boot_id())
    }

    /// As [`Cache::open`], in a given boot of the machine.
    fn open_in_boot(
        options: &CacheOptions,
        runtime: Handle,
        boot: u128,
    ) -> Result<Arc<Cache>, CacheError> {
        let dir = &options.dir;
        let data = dir.join("data");
        let boot = kill_point::pretended_boot().unwrap_or(boot);
        let metadata = options.metadata.map_or(METADATA_BYTES, |bytes| bytes as usize);
        let names = metadata / 3;
        let pages = metadata - names;
        let Opened { index, fresh, clean } = Index::open(&dir.join("index.redb"), pages)?;
        kill_point::reach("index-schema-written");
        let create = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data);
        create.map_err(CacheError::io(&data))?;
        let index = Arc::new(index);
        let superseded = index.superseded()?;
        let clock = Arc::new(Clock::after(index.newest_ms()));
        let store = Store::new(Parts {
            runtime: runtime.clone(),
            data_dir: data.clone(),
            index: index.clone(),
            clock: clock.clone(),
            boot,
            limit: options.size,
            memory: options.memory,
        })?;
        match std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) {
            // Nothing of all that is there is known: who tells how much it is?
            // The same after a life that may have ended amid anything.
            true if fresh || !clean => store.sweep_later(u64::MAX),
            _ => store.sweep_later(0),
        }
        let trees = Mutex::default();
        let given = Arc::new(Given::new(names));
        let cache =
            Arc::new(Cache { dir: dir.clone(), index, store, clock, runtime, trees, given });
        cache.start_housekeeping(superseded);
        Ok(cache)
    }

    /// The folder everything lies in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The objects.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the cache holds.
    pub fn figures(&self) -> CacheFigures {
        let budget = self.store.budget();
        let dataset = self.dataset();
        CacheFigures {
            used_bytes: budget.used() + self.store.overhead_bytes(),
            object_bytes: budget.used(),
            limit_bytes: budget.limit(),
            objects: self.store.held_objects(),
            dataset_bytes: dataset.bytes,
            dataset_cached_bytes: dataset.cached_bytes,
            object_limit_bytes: budget.for_objects(),
            pins: self.store.places().pins(),
            hidden_keys: dataset.hidden,
            disk_free_bytes: budget.disk_free(),
        }
    }

    /// The sums of all that is mounted. A mount within another counts once.
    fn dataset(&self) -> Rollup {
        let mounted = self.store.places().mounted();
        let mut sum = Rollup::default();
        for root in mounted {
            let above = self.index.node(root).ok().flatten();
            let is_within = matches!(above, Some(NodeRow::Current { parent, .. })
                if self.store.places().standing(&self.index, parent, &mut Memo::default()).is_ok_and(|s| s.mounted));
            if let (false, Ok(Some(row))) = (is_within, self.index.folder(root)) {
                sum.objects += row.rollup.objects;
                sum.bytes += row.rollup.bytes;
                sum.cached_bytes += row.rollup.cached_bytes;
                sum.hidden += row.rollup.hidden;
            }
        }
        sum
    }

    /// Writes everything to the index, durably, and lets go of it. Blocks.
    /// Called before the directory's lock is given up. What is still open can
    /// be read on, but nothing more is found or kept.
    pub fn close(&self) {
        kill_point::reach("close-begun");
        self.store.settle();
        kill_point::reach("close-settled");
        let flushed = self.store.flush();
        kill_point::reach("close-synced");
        self.store.close();
        // What was not flushed makes this no clean end.
        let closed = self.index.close(flushed.is_ok());
        if let Err(error) = flushed.and(closed) {
            tracing::warn!(%error, "the last changes did not reach the cache index");
        }
        kill_point::reach("close-done");
    }

    /// A mounted tree of each bucket: its remote serves all of the bucket.
    fn trees_by_bucket(&self) -> HashMap<NodeId, Arc<Tree>> {
        let mut trees = lock(&self.trees);
        trees.retain(|tree| tree.strong_count() > 0);
        trees.iter().filter_map(Weak::upgrade).map(|tree| (tree.bucket, tree)).collect()
    }

    fn start_housekeeping(self: &Arc<Self>, superseded: Vec<NodeId>) {
        let cache = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut tick = tokio::time::interval(store::FLUSH_INTERVAL);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut leftover = superseded;
            loop {
                tick.tick().await;
                let Some(cache) = cache.upgrade() else { return };
                cache.store.forget_old(); // Whatever the disk does.
                let leftover = std::mem::take(&mut leftover);
                let task = tokio::task::spawn_blocking(move || cache.keep_house(&leftover));
                if let Err(error) = task.await {
                    tracing::error!(%error, "housekeeping of the cache ended abnormally");
                }
            }
        });
    }

    /// Flushes what changed, and removes what an earlier life left behind.
    fn keep_house(&self, leftover: &[NodeId]) {
        let removed = if leftover.is_empty() {
            Ok(())
        } else {
            self.store.discard(leftover).and_then(|()| {
                kill_point::reach("leftover-discarded");
                self.index.write(|w| leftover.iter().try_for_each(|node| w.remove_node(*node)))
            })
        };
        if let Err(error) = removed.and_then(|()| self.store.keep_house()) {
            tracing::warn!(%error, "the cache index cannot be written; it is tried again");
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Objects hold the store: without this, the two would never go.
        self.store.close();
    }
}

/// Milliseconds since the epoch, as rows keep times. They never go back, over
/// restarts either, and two requests never seem to have begun at once: what
/// was seen later always has the later time, whatever the machine's clock does.
#[derive(Debug)]
struct Clock {
    opened: Instant,
    opened_ms: u64,
    last_ms: AtomicU64,
}

impl Clock {
    /// A clock that goes on after `newest_ms`.
    fn after(newest_ms: u64) -> Self {
        let opened_ms = wall_ms().max(newest_ms + 1);
        Clock { opened: Instant::now(), opened_ms, last_ms: AtomicU64::new(opened_ms) }
    }

    /// The time, to tell the age of a row.
    fn current_ms(&self) -> u64 {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        wall_ms().max(self.opened_ms.saturating_add(elapsed))
    }

    /// The time at which a request begins; later than any before.
    fn next_ms(&self) -> u64 {
        let current = self.current_ms();
        let next = |last: u64| Some(current.max(last + 1));
        match self.last_ms.try_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(last) | Err(last) => current.max(last + 1),
        }
    }
}

fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

/// Tells one boot of the machine from another.
fn boot_id() -> u128 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Where /proc is hidden, every start may follow a boot: all is checked again.
    u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap_or_else(|_| fastrand::u128(..))
}

/// Locks a mutex whose data stays consistent whatever panicked while it was held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
mod power_loss_tests;
