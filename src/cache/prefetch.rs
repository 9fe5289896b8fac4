//! Prefetching: objects that a user wants in the cache before they are read.
//!
//! What is there already is not fetched again, so that the same command goes on where it
//! was ended. Room is made as for a reader: by what is no longer read. What does not fit
//! is left out, and the user is told. Requests, memory and the disk are the readers'
//! first, as with [`super::warm`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};

use super::budget::Excess;
use super::upkeep::{FETCHED_AT_ONCE, next};
use super::{Cache, CacheError, NodeId, NodeKind, Progress, Tree};

/// How often it is looked how far an object is, or whether one may be fetched again.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long the cache may keep nothing before it is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Objects in a row that the remote fails for: it is not they.
const FAILURES_MAX: u64 = 16;

/// The order in which objects are fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefetchOrder {
    /// As they were named, and folders as they are listed.
    #[default]
    Listed,
    /// Any other.
    Shuffled,
}

/// What [`Cache::prefetch`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Objects that were wanted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of them that are in the cache now.
    pub cached_bytes: u64,
    /// Objects that were left out, since there is no room for them.
    pub unfit: u64,
    /// `--max-download` was reached.
    pub capped: bool,
}

/// An object to fetch.
#[derive(Clone, Debug)]
struct Target {
    tree: Arc<Tree>,
    node: NodeId,
    size: u64,
}

/// What all fetches of a command share.
struct Run<'a> {
    cache: &'a Arc<Cache>,
    progress: &'a Progress,
    /// Bytes under way, for which room has to be there.
    filling_bytes: AtomicU64,
    unfit: AtomicU64,
    capped: AtomicU64,
    failures: AtomicU64,
}

impl Cache {
    /// Fetches every object that `tops` are or hold.
    ///
    /// # Errors
    /// The last failure of the remote; what could be fetched is there.
    pub async fn prefetch(
        self: &Arc<Self>,
        tops: &[(Arc<Tree>, NodeId)],
        order: PrefetchOrder,
        progress: &Arc<Progress>,
    ) -> Result<Prefetched, CacheError> {
        let mut targets = Vec::new();
        for (tree, top) in tops {
            let objects = self.list_objects(tree, *top, progress).await?;
            let target = |(node, size)| Target { tree: tree.clone(), node, size };
            targets.extend(objects.into_iter().map(target));
        }
        if order == PrefetchOrder::Shuffled {
            fastrand::shuffle(&mut targets);
        }
        let run = Run {
            cache: self,
            progress,
            filling_bytes: AtomicU64::new(0),
            unfit: AtomicU64::new(0),
            capped: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        let shared = &run;
        let mut fetches = stream::iter(targets.clone())
            .map(|target| async move { shared.fetch(&target).await })
            .buffer_unordered(FETCHED_AT_ONCE);
        let mut last_error = None;
        while let Some(fetched) = next(&mut fetches, progress).await {
            last_error = fetched.err().or(last_error);
            if run.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
                break;
            }
        }
        drop(fetches);
        if let Some(error) = last_error {
            return Err(error);
        }
        let mut done = Prefetched {
            objects: targets.len() as u64,
            bytes: targets.iter().map(|target| target.size).sum(),
            unfit: run.unfit.into_inner(),
            capped: run.capped.into_inner() > 0,
            ..Prefetched::default()
        };
        done.cached_bytes = self.present_of(targets).await?;
        Ok(done)
    }

    async fn present_of(self: &Arc<Self>, targets: Vec<Target>) -> Result<u64, CacheError> {
        let cache = self.clone();
        self.blocking(move || {
            cache.store.settle();
            Ok(targets.iter().map(|target| cache.store.present_bytes(target.node)).sum())
        })
        .await
    }
}

impl Run<'_> {
    async fn fetch(&self, target: &Target) -> Result<(), CacheError> {
        let mut told = 0;
        let fetched = self.fetch_telling(target, &mut told).await;
        self.progress.done(1, target.size.saturating_sub(told));
        match &fetched {
            Ok(()) => self.failures.store(0, Ordering::Relaxed),
            Err(_) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        fetched
    }

    async fn fetch_telling(&self, target: &Target, told: &mut u64) -> Result<(), CacheError> {
        let Target { tree, node, size } = target;
        let Some(known) =
            tree.node(*node)?.filter(|known| matches!(known.kind, NodeKind::Object(_)))
        else {
            return Ok(()); // It is gone.
        };
        let began = Instant::now();
        while !self.progress.is_cancelled() {
            let missing = size.saturating_sub(self.cache.store.present_bytes(*node));
            if missing == 0 {
                return Ok(());
            }
            if !tree.remote.may_speculate(1) {
                self.capped.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            if !self.has_room(missing).await? {
                self.unfit.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            let Some(object) = tree.open(&known)? else { return Ok(()) };
            let _filling = Filling::begin(&self.filling_bytes, missing);
            let mut fill = std::pin::pin!(object.fill());
            let filled = loop {
                tokio::select! {
                    filled = &mut fill => break filled,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {
                        let now = object.present_bytes().min(*size);
                        self.progress.done(0, now.saturating_sub(*told));
                        *told = now.max(*told);
                    }
                }
            };
            if filled?.is_whole {
                return Ok(());
            }
            // The disk is behind, or nothing is kept just now.
            if began.elapsed() > PATIENCE && !self.cache.store.is_keeping() {
                return Err(CacheError::Io("the cache keeps nothing just now".to_owned()));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    /// Whether there is room for this and for all that is under way.
    async fn has_room(&self, missing: u64) -> Result<bool, CacheError> {
        let bytes = missing.saturating_add(self.filling_bytes.load(Ordering::Relaxed));
        let cache = self.cache.clone();
        let room = move || Ok(cache.store.has_room_for(Excess { bytes, files: 1 }, false));
        self.cache.blocking(room).await
    }
}

/// Bytes under way, until dropped.
struct Filling<'a> {
    all: &'a AtomicU64,
    bytes: u64,
}

impl<'a> Filling<'a> {
    fn begin(all: &'a AtomicU64, bytes: u64) -> Self {
        all.fetch_add(bytes, Ordering::Relaxed);
        Filling { all, bytes }
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
