//! The task that fetches ahead of a mount's readers.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use lru::LruCache;
use tokio::sync::{mpsc, watch};

use super::super::metadata::Tree;
use super::super::object::Fill;
use super::super::readahead::WHOLE_OBJECT_MAX_BYTES;
use super::super::record::NodeId;
use super::super::{CacheError, lock};
use super::pace::Pace;
use super::policy::{Order, Policy, Read, Verdict};
use super::walk::{Next, Target, Walk};
use super::{All, Doing, Heard, State, survey};
use crate::remote::{ErrorKind, RemoteError};

/// Listings that are asked for at once.
const LISTINGS_MAX: usize = 8;

/// Folders whose way to the mount is remembered.
const PATHS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Reads heard of in one turn.
const HEARD_AT_ONCE: usize = 64;

/// How long nothing is fetched after the remote failed: doubled each time, up to
/// the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often it is looked whether there is room, or a right to fetch, again: a
/// disk that was behind is idle soon.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Folders above each other at most: a key has at most 1,024 bytes.
const DEPTH_MAX: usize = 1024;

/// Pages of listings read in one turn of the task, which others wait for.
const PAGES_IN_TURN: u32 = 4;

/// What the last block of a file may take beyond its bytes.
const BLOCK_BYTES: u64 = 4096;

/// When the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Once something happens.
    Wait,
    /// At once.
    GoOn,
    /// When what holds it up may have changed.
    HeldUp,
}

/// A fetch that has ended.
struct Filled {
    scope: NodeId,
    target: Target,
    took: Duration,
    result: Result<Fill, RemoteError>,
}

/// A folder that was listed, or could not be.
struct Listed {
    folder: NodeId,
    well: bool,
}

/// The state of the task.
pub(super) struct Run {
    tree: Weak<Tree>,
    state: Arc<Mutex<State>>,
    wants_all: bool,
    began: Instant,
    policy: Policy,
    pace: Pace,
    walks: HashMap<NodeId, Walk>,
    paths: LruCache<NodeId, Arc<[NodeId]>>,
    fills: FuturesUnordered<BoxFuture<'static, Filled>>,
    filling_bytes: u64,
    listings: FuturesUnordered<BoxFuture<'static, Listed>>,
    /// Folders that are being listed, and the scopes that wait for one.
    listing: HashSet<NodeId>,
    waiting: HashMap<NodeId, NodeId>,
    pause: Duration,
    paused_until: Option<Instant>,
}

impl Run {
    pub(super) fn new(tree: Weak<Tree>, state: Arc<Mutex<State>>, wants_all: bool) -> Run {
        Run {
            tree,
            state,
            wants_all,
            began: Instant::now(),
            policy: Policy::new(),
            pace: Pace::new(Instant::now()),
            walks: HashMap::new(),
            paths: LruCache::new(PATHS_MAX),
            fills: FuturesUnordered::new(),
            filling_bytes: 0,
            listings: FuturesUnordered::new(),
            listing: HashSet::new(),
            waiting: HashMap::new(),
            pause: PAUSE_MIN,
            paused_until: None,
        }
    }

    /// Runs until the mount ends: what it waits for then is let go of.
    pub(super) async fn run(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        mut ended: watch::Receiver<bool>,
    ) {
        let mut survey: Option<BoxFuture<'static, ()>> = None;
        if self.wants_all {
            lock(&self.state).all = All::Listing;
            survey = Some(Box::pin(survey::list_all(self.tree.clone())));
        }
        let mut news = Vec::with_capacity(HEARD_AT_ONCE);
        let mut next = Turn::Wait;
        loop {
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                count = heard.recv_many(&mut news, HEARD_AT_ONCE) => if count == 0 { return },
                Some(filled) = self.fills.next() => self.filled(filled),
                Some(listed) = self.listings.next() => self.listed(listed),
                () = surveyed(&mut survey), if survey.is_some() => {
                    survey = None;
                    self.decide_on_all();
                }
                () = tokio::task::yield_now(), if next == Turn::GoOn => {}
                () = tokio::time::sleep(LOOK_INTERVAL), if next == Turn::HeldUp => {}
            }
            let Some(tree) = self.tree.upgrade() else { return };
            while let Some(Some(filled)) = self.fills.next().now_or_never() {
                self.filled(filled);
            }
            // Both read the index: 0.4 ms a page of a listing and what is cached of it,
            // and 4 ms were seen where its pages came from the disk.
            next = tokio::task::block_in_place(|| {
                self.hear_all(&tree, &mut news);
                self.go_on(&tree)
            });
        }
    }

    fn hear_all(&mut self, tree: &Tree, news: &mut Vec<Heard>) {
        for heard in news.drain(..) {
            if let Err(error) = self.hear(tree, heard) {
                tracing::debug!(%error, "what was read cannot be told");
            }
        }
    }

    /// An object was read through.
    fn hear(&mut self, tree: &Tree, heard: Heard) -> Result<(), CacheError> {
        let Some(path) = self.path(tree, heard.object)? else { return Ok(()) };
        let read = Read {
            object: heard.object,
            path: &path,
            size: heard.size,
            missed: heard.missed,
            listed: tree.was_listed(path[0])?,
            at_ms: u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let up_to = |scope: NodeId| {
            let at = path.iter().position(|folder| *folder == scope);
            &path[..=at.unwrap_or(0)]
        };
        match self.policy.read(&read) {
            Verdict::Nothing => {}
            Verdict::Started { scope, below, order, replaces } => {
                tracing::debug!(?scope, below, ?order, "a folder is being gone through");
                for replaced in replaces {
                    self.walks.remove(&replaced);
                    self.waiting.remove(&replaced);
                }
                let mut walk = Walk::new(tree, scope, below, false)?;
                if order == Order::AfterReader {
                    walk.go_on_after(tree, heard.object, up_to(scope))?;
                }
                self.walks.insert(scope, walk);
                lock(&self.state).scopes = self.policy.scopes().collect();
            }
            Verdict::Moved { scope } => {
                if let Some(walk) = self.walks.get_mut(&scope) {
                    walk.go_on_after(tree, heard.object, up_to(scope))?;
                }
            }
        }
        Ok(())
    }

    /// The folders above an object, up to the mount. `None` if it is not there any more.
    fn path(&mut self, tree: &Tree, object: NodeId) -> Result<Option<Arc<[NodeId]>>, CacheError> {
        let Some(folder) = tree.parent(object)? else { return Ok(None) };
        if let Some(path) = self.paths.get(&folder) {
            return Ok(Some(path.clone()));
        }
        let mut path = vec![folder];
        let mut at = folder;
        while at != tree.root() {
            let Some(above) = tree.parent(at)?.filter(|_| path.len() < DEPTH_MAX) else {
                return Ok(None);
            };
            path.push(above);
            at = above;
        }
        let path: Arc<[NodeId]> = path.into();
        self.paths.put(folder, path.clone());
        Ok(Some(path))
    }

    /// Starts what may be fetched now.
    fn go_on(&mut self, tree: &Arc<Tree>) -> Turn {
        let mut pages = 0;
        let (turn, doing) = loop {
            let ready = |scope: NodeId| !self.waiting.contains_key(&scope);
            let Some(scope) = self.policy.wanted(ready) else {
                break (Turn::Wait, self.idle());
            };
            if self.is_failing() && !self.fills.is_empty() {
                break (Turn::Wait, Doing::RemoteFails);
            }
            if !self.pace.has_room(self.fills.len(), self.filling_bytes) {
                break (Turn::Wait, Doing::Fetching);
            }
            if let Some(why) = self.held_up(tree, 0) {
                break (Turn::HeldUp, why);
            }
            let Some(walk) = self.walks.get_mut(&scope) else {
                self.policy.exhausted(scope);
                continue;
            };
            match walk.next(tree) {
                Ok(Next::Object(target)) => {
                    if let Some(why) = self.fill(tree, scope, target) {
                        break (Turn::HeldUp, why);
                    }
                }
                Ok(Next::List(folder)) => self.list(tree, scope, folder),
                Ok(Next::More) if pages < PAGES_IN_TURN => pages += 1,
                Ok(Next::More) => break (Turn::GoOn, Doing::Fetching),
                Ok(Next::End) => self.policy.exhausted(scope),
                Err(error) => {
                    tracing::debug!(%error, "what to fetch ahead cannot be told");
                    self.policy.exhausted(scope);
                }
            }
        };
        lock(&self.state).doing = doing;
        turn
    }

    /// Whether nothing came since the remote failed: then one object finds out
    /// whether it works again, and not all that may be fetched at once.
    fn is_failing(&self) -> bool {
        self.pause > PAUSE_MIN
    }

    fn idle(&self) -> Doing {
        let is_surveying = lock(&self.state).all == All::Listing;
        match (self.fills.is_empty() && self.listings.is_empty(), self.policy.is_done()) {
            (false, _) => Doing::Fetching,
            (true, None) if is_surveying => Doing::Listing,
            (true, None) => Doing::Waiting,
            (true, Some(true)) => Doing::Done,
            (true, Some(false)) => Doing::Ahead,
        }
    }

    /// Why `bytes` more may not be fetched ahead just now.
    fn held_up(&self, tree: &Tree, bytes: u64) -> Option<Doing> {
        let store = tree.store();
        if tree.is_hinted() {
            Some(Doing::Waiting) // What comes next is known better.
        } else if self.paused_until.is_some_and(|until| Instant::now() < until) {
            Some(Doing::RemoteFails)
        } else if !tree.remote.may_speculate(bytes.clamp(1, WHOLE_OBJECT_MAX_BYTES)) {
            Some(Doing::Capped) // Not even the first request of it.
        } else if store.room_bytes() <= self.filling_bytes.saturating_add(bytes) {
            Some(Doing::Full)
        } else if !store.is_keeping() {
            Some(Doing::NotKeeping)
        } else if !store.may_prefetch() {
            Some(Doing::DiskBehind)
        } else {
            None
        }
    }

    /// Fetches an object, or says why not.
    fn fill(&mut self, tree: &Tree, scope: NodeId, target: Target) -> Option<Doing> {
        let size = target.size;
        if let Some(why) = self.held_up(tree, size) {
            if let Some(walk) = self.walks.get_mut(&scope) {
                walk.put_back(target);
            }
            return Some(why);
        }
        let object = match tree.open_in(&target.node, &target.prefix) {
            Ok(Some(object)) if object.present_bytes() < size => object,
            Ok(_) => return None,
            Err(error) => {
                tracing::debug!(%error, "an object cannot be fetched ahead");
                return None;
            }
        };
        self.policy.fetching(scope, size);
        self.filling_bytes += size;
        let fill = async move {
            let began = Instant::now();
            let result = object.fill().await;
            Filled { scope, target, took: began.elapsed(), result }
        };
        self.fills.push(Box::pin(fill));
        None
    }

    fn filled(&mut self, filled: Filled) {
        let Filled { scope, target, took, result } = filled;
        self.filling_bytes -= target.size;
        match result {
            Ok(fill) => {
                // Else its reader was faster.
                if fill.asked > 0 {
                    self.came(&target, fill, took);
                }
                if !fill.is_whole {
                    self.again(scope, target, Walk::put_back);
                }
            }
            Err(error) => {
                tracing::debug!(%error, "an object was not fetched ahead");
                self.failed(scope, target, &error);
            }
        }
    }

    fn came(&mut self, target: &Target, fill: Fill, took: Duration) {
        self.pause = PAUSE_MIN;
        if fill.asked == target.size {
            self.pace.came(fill.asked, took, Instant::now());
        }
        self.count(u64::from(fill.is_whole), fill.asked);
    }

    fn failed(&mut self, scope: NodeId, target: Target, error: &RemoteError) {
        // Who reads it tells what is wrong.
        let is_gone = matches!(error.kind, ErrorKind::NotFound | ErrorKind::Changed);
        if is_gone {
            return;
        }
        let is_pausing = self.paused_until.is_some_and(|until| Instant::now() < until);
        if !is_pausing {
            self.paused_until = Some(Instant::now() + self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
        // A store that refuses one object may give all others.
        let is_refused = matches!(error.kind, ErrorKind::Denied | ErrorKind::Invalid);
        if !is_refused {
            // After all others: it may be the only one that cannot be fetched.
            self.again(scope, target, Walk::put_off);
        }
    }

    /// An object was not fetched to its end: it has its turn again. Where another
    /// way leads through the scope by now, that finds it too.
    fn again(&mut self, scope: NodeId, target: Target, put: fn(&mut Walk, Target)) {
        if let Some(walk) = self.walks.get_mut(&scope) {
            self.policy.not_fetched(scope, target.size);
            put(walk, target);
        }
    }

    fn count(&self, objects: u64, bytes: u64) {
        let mut state = lock(&self.state);
        state.objects += objects;
        state.bytes += bytes;
        drop(state);
        if let Some(tree) = self.tree.upgrade() {
            let metrics = tree.store().metrics();
            metrics.prefetched_objects.add(objects);
            metrics.prefetched_bytes.add(bytes);
        }
    }

    /// Has a folder listed that the scope waits for, and those that come after it.
    fn list(&mut self, tree: &Arc<Tree>, scope: NodeId, folder: NodeId) {
        self.waiting.insert(scope, folder);
        let Some(walk) = self.walks.get(&scope) else { return };
        let others: Vec<NodeId> = walk.unlisted(tree).take(LISTINGS_MAX).collect();
        for folder in [folder].into_iter().chain(others) {
            let is_first = self.waiting.get(&scope) == Some(&folder);
            if (self.listing.len() < LISTINGS_MAX || is_first) && self.listing.insert(folder) {
                let tree = tree.clone();
                let listing = async move {
                    let listed = tree.ensure_listed_ahead(folder).await;
                    if let Err(error) = &listed {
                        tracing::debug!(%error, "a folder cannot be listed ahead");
                    }
                    Listed { folder, well: listed.is_ok() }
                };
                self.listings.push(Box::pin(listing));
            }
        }
    }

    fn listed(&mut self, Listed { folder, well }: Listed) {
        self.listing.remove(&folder);
        self.waiting.retain(|_, waits_for| *waits_for != folder);
        for walk in self.walks.values_mut() {
            walk.was_listed(folder, well);
        }
    }

    /// Everything is listed: whether there is room for it.
    fn decide_on_all(&mut self) {
        let Some(tree) = self.tree.upgrade() else { return };
        let root = tree.root();
        let fits = tree.rollup(root).is_ok_and(|all| {
            let missing = all.bytes.saturating_sub(all.cached_bytes);
            // The last block of each is not full.
            missing.saturating_add(all.objects * BLOCK_BYTES) <= tree.store().room_bytes()
        });
        let walk = fits.then(|| Walk::new(&tree, root, true, true).ok()).flatten();
        let mut state = lock(&self.state);
        let Some(walk) = walk else {
            tracing::warn!(
                "not all of the mount fits the cache: files are fetched ahead as with `--warm auto`"
            );
            state.all = All::TooLarge;
            return;
        };
        state.all = All::Fits;
        self.policy.fetch_all(root);
        self.waiting.clear();
        self.walks = HashMap::from([(root, walk)]);
        state.scopes = vec![root];
    }
}

async fn surveyed(survey: &mut Option<BoxFuture<'static, ()>>) {
    match survey {
        Some(survey) => survey.await,
        None => std::future::pending().await,
    }
}
