//! The cache: what is known of remotes, and the bytes of their objects on disk.
//!
//! Knows objects, versions and chunks, not inodes, and needs no mount. Owns
//! the cache directory: `index.redb`, `data/`, and nothing else in it.
//!
//! [`Tree`] answers what is in a folder, [`Store`] brings the bytes of an
//! object; [`Event`]s tell whoever holds copies (the kernel) what changed.

mod attach;
mod backing_file;
mod budget;
mod chunk_map;
pub mod evict;
mod fetch;
mod index;
mod listing;
mod metadata;
mod names;
mod object;
mod pass_by;
mod readahead;
mod record;
mod store;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;

pub use attach::AttachError;
pub use chunk_map::CHUNK_BYTES;
pub use metadata::{Child, Node, NodeKind, Tree};
pub use object::{CachedObject, ReadOutcome};
pub use record::{NodeId, ObjectAttr, Rollup};
pub use store::{Store, Subscription};

use crate::config::CacheOptions;
use crate::remote::RemoteError;
use budget::Budget;
use index::{Index, Opened};

/// The open cache. One per cache directory and process.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    index: Arc<Index>,
    store: Arc<Store>,
    clock: Arc<Clock>,
    runtime: Handle,
}

/// What the cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFigures {
    /// Bytes of disk taken, the index included.
    pub used_bytes: u64,
    /// Bytes of disk it may take.
    pub limit_bytes: u64,
    /// Objects with at least one chunk.
    pub objects: u64,
}

/// Something changed of which the kernel may hold a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A name means something else now, or nothing.
    Entry(NodeId, String),
    /// A folder's listing changed, and with it its mtime.
    Folder(NodeId),
    /// An object is all in the cache: its block count is final.
    Completed(NodeId),
}

/// Why the cache could not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The remote could not.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The index could not: it is damaged, or its disk fails.
    #[error("cache index: {0}")]
    Index(String),
    /// A file of the cache could not be used.
    #[error("{0}")]
    Io(String),
}

impl CacheError {
    fn io(path: &Path) -> impl Fn(std::io::Error) -> CacheError {
        move |error| CacheError::Io(format!("{}: {error}", path.display()))
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for CacheError {
            fn from(error: redb::$error) -> Self {
                CacheError::Index(error.to_string())
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
        let orphans = dir.join("data.orphaned");
        let Opened { index, fresh } = Index::open(&dir.join("index.redb"))?;
        if fresh {
            set_aside(&data, &orphans)?;
        }
        remove_in_background(orphans)?;
        let create = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data);
        create.map_err(CacheError::io(&data))?;
        let index = Arc::new(index);
        let totals = index.totals()?;
        let index_bytes = index.disk_bytes();
        let limit = match options.size {
            Some(size) => size,
            None => budget::default_limit(dir, totals.disk_bytes + index_bytes)
                .map_err(CacheError::io(dir))?,
        };
        let budget = Budget::new(limit, totals.disk_bytes);
        let held = totals.objects;
        let store = Store::new(runtime.clone(), data, index.clone(), boot, budget, held);
        let superseded = index.superseded()?;
        let clock = Arc::new(Clock::after(index.newest_ms()));
        let cache = Arc::new(Cache { dir: dir.clone(), index, store, clock, runtime });
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
        let index_bytes = self.index.disk_bytes();
        let budget = self.store.budget();
        CacheFigures {
            used_bytes: budget.used() + index_bytes,
            limit_bytes: budget.limit(),
            objects: self.store.held_objects(),
        }
    }

    /// Writes everything to the index, durably, and lets go of it. Blocks.
    /// Called before the directory's lock is given up. What is still open can
    /// be read on, but nothing more is found or kept.
    pub fn close(&self) {
        self.store.settle();
        if let Err(error) = self.store.flush().and_then(|()| self.index.sync()) {
            tracing::warn!(%error, "the last changes did not reach the cache index");
        }
        self.store.close();
        self.index.close();
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
                self.index.write(|w| leftover.iter().try_for_each(|node| w.remove_node(*node)))
            })
        };
        if let Err(error) = removed.and_then(|()| self.store.flush()) {
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

/// Moves files that no index knows out of the way.
fn set_aside(data: &Path, orphans: &Path) -> Result<(), CacheError> {
    match std::fs::rename(data, orphans) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(_) => std::fs::remove_dir_all(data).map_err(CacheError::io(data)),
    }
}

/// Removes what was set aside, perhaps by an earlier life that ended before it
/// had removed all of it.
fn remove_in_background(orphans: PathBuf) -> Result<(), CacheError> {
    if !orphans.exists() {
        return Ok(());
    }
    let gone = orphans.clone();
    let remove = std::thread::Builder::new().name("orphans".into()).spawn(move || {
        if let Err(error) = std::fs::remove_dir_all(&gone) {
            tracing::warn!(%error, "cannot remove files of a lost index");
        }
    });
    remove.map(drop).map_err(CacheError::io(&orphans))
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
#[path = "tests.rs"]
mod tests;
