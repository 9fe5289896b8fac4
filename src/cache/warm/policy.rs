//! Which folders are being gone through, and how much of what is left in them
//! may be fetched ahead. Pure: no I/O, and time is handed in.
//!
//! It hears of each object that was read through, with the folders above it. A
//! folder is *gone through* once enough of its objects were read, in listing
//! order or not, in a short time; so is everything below a folder once enough of
//! its child folders are. What is gone through is a [`Scope`], and may be
//! fetched in proportion to what was read of it: who stops reading pays for no
//! more than that.
//!
//! What tells nothing: an object that was read in part (a header), and one that
//! is read again. An object so small that the kernel reads all of it for one
//! byte tells half as much as a larger one.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use lru::LruCache;

use super::super::record::NodeId;

/// The kernel may read so much of a file for a header of up to 128 KiB: its first
/// readahead is twice what is asked for.
const WHOLE_BY_KERNEL_BYTES: u64 = 256 << 10;

/// Larger objects are left to readahead, which fills the line by itself.
pub(super) const OBJECT_MAX_BYTES: u64 = 64 << 20;

/// What an object that was read through tells.
const POINTS: u32 = 2;
const POINTS_IF_SMALL: u32 = 1;

/// Enough where objects follow each other in listing order: four, or eight small
/// ones. Three are what somebody opens by hand.
const POINTS_IN_ORDER: u32 = 8;

/// Enough in any order: eight, or sixteen small ones.
const POINTS_SHUFFLED: u32 = 16;

/// Child folders that were read from, in listing order, before their parent is
/// gone through; and in any order: two may be all there are (train, validation).
const FOLDERS_IN_ORDER: u32 = 3;
const FOLDERS_SHUFFLED: usize = 4;

/// How far apart objects may be read that follow each other: readers side by
/// side finish in any order.
pub(super) const NEAR: u64 = 16;

/// Reads remembered of a folder: enough for [`POINTS_SHUFFLED`], twice.
const RECENT_MAX: usize = 32;

/// What was read longer ago tells nothing: somebody looks around.
const SPAN_MS: u64 = 60_000;

/// Folders that are watched at once. Of a thousand classes all have to be.
const WATCHED_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Scopes remembered; the one read from longest ago is forgotten.
const SCOPES_MAX: usize = 64;

/// What may be fetched of a scope at first, and then for each byte or object
/// that was read: more for one that its reader had to wait for.
const START_BYTES: u64 = 4 << 20;
const START_OBJECTS: u64 = 32;
const AHEAD_OF_HIT: u64 = 4;
const AHEAD_OF_MISS: u64 = 8;

/// Misses in a scope that was fetched to its end before it is looked through
/// again: more than were under way when it ended.
const MISSES_AGAIN: u32 = 256;

/// An object was read to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read<'a> {
    pub object: NodeId,
    /// The folder it is in, the one above, and so on up to the mount.
    pub path: &'a [NodeId],
    pub size: u64,
    /// The reader waited for the remote.
    pub missed: bool,
    /// The folder was listed, so that ids grow in listing order; but for names that
    /// came later, which tell as much as those read in any order. To know their place
    /// would take a look into the listing for each read.
    pub listed: bool,
    pub at_ms: u64,
}

/// Where in a scope to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// After the object that was read last.
    AfterReader,
    /// From the start.
    FromStart,
}

/// What a read means for what is fetched ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Nothing,
    /// This scope is gone through, from now on or anew; those named are part of it.
    Started { scope: NodeId, below: bool, order: Order, replaces: Vec<NodeId> },
    /// The reader is here in a scope that is fetched in its order.
    Moved { scope: NodeId },
}

/// Something that is gone through.
#[derive(Clone, Debug)]
struct Scope {
    root: NodeId,
    /// The folders above it.
    above: Vec<NodeId>,
    /// All that is below, and not just the objects in it.
    below: bool,
    order: Order,
    /// Where the reader began, if in order.
    began: NodeId,
    may_fetch: Amount,
    fetched: Amount,
    exhausted: bool,
    misses: u32,
    last_ms: u64,
}

/// Bytes and objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    objects: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64, objects: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.objects = self.objects.saturating_add(objects);
    }
}

/// What was read of a folder lately.
#[derive(Debug, Default)]
struct Watch {
    recent: VecDeque<Recent>,
    /// Points of objects, or folders, that followed each other, and the last of them.
    run: u32,
    front: Option<NodeId>,
}

#[derive(Clone, Copy, Debug)]
struct Recent {
    object: NodeId,
    /// The object, or the folder in the watched one that it is below.
    member: NodeId,
    points: u32,
    size: u64,
    at_ms: u64,
}

/// The policy of one mount.
#[derive(Debug)]
pub(super) struct Policy {
    /// Folders by what was read in them, and (`true`) below their children.
    watched: LruCache<(NodeId, bool), Watch>,
    scopes: Vec<Scope>,
}

impl Policy {
    pub(super) fn new() -> Self {
        Policy { watched: LruCache::new(WATCHED_MAX), scopes: Vec::new() }
    }

    /// An object was read through.
    pub(super) fn read(&mut self, read: &Read<'_>) -> Verdict {
        if read.size == 0 || read.size > OBJECT_MAX_BYTES || read.path.is_empty() {
            return Verdict::Nothing;
        }
        let covering = self.covering(read.path);
        let mut found = None;
        for (level, &folder) in read.path.iter().enumerate() {
            let member = if level == 0 { read.object } else { read.path[level - 1] };
            let key = (folder, level > 0);
            let watch = self.watched.get_or_insert_mut(key, Watch::default);
            let order = watch.note(read, member, level > 0);
            let is_new = covering.is_none_or(|(_, at)| level > at);
            if let (Some(order), true, None) = (order, is_new && read.missed, &found) {
                found = Some((level, order, watch.ahead()));
            }
        }
        if let Some((level, order, ahead)) = found {
            return self.start(read, level, order, ahead);
        }
        match covering {
            Some((scope, _)) => self.read_in_scope(scope, read),
            None => Verdict::Nothing,
        }
    }

    /// The scope that an object of these folders is in, and how far above it.
    fn covering(&self, path: &[NodeId]) -> Option<(usize, usize)> {
        path.iter().enumerate().find_map(|(level, folder)| {
            let scope = self
                .scopes
                .iter()
                .position(|scope| scope.root == *folder && (level == 0 || scope.below))?;
            Some((scope, level))
        })
    }

    /// Everything below `root` is to be fetched, whoever reads.
    pub(super) fn fetch_all(&mut self, root: NodeId) {
        self.scopes.clear();
        let everything = Amount { bytes: u64::MAX, objects: u64::MAX };
        self.scopes.push(Scope {
            root,
            above: Vec::new(),
            below: true,
            order: Order::FromStart,
            began: root,
            may_fetch: everything,
            fetched: Amount::default(),
            exhausted: false,
            misses: 0,
            last_ms: 0,
        });
    }

    fn start(&mut self, read: &Read<'_>, level: usize, order: Order, ahead: Amount) -> Verdict {
        let root = read.path[level];
        let mut scope = Scope {
            root,
            above: read.path[level + 1..].to_vec(),
            below: level > 0,
            order,
            began: read.object,
            may_fetch: Amount { bytes: START_BYTES, objects: START_OBJECTS },
            fetched: Amount::default(),
            exhausted: false,
            misses: 0,
            last_ms: read.at_ms,
        };
        scope.may_fetch.add(ahead.bytes * AHEAD_OF_MISS, ahead.objects * AHEAD_OF_MISS);
        let mut replaces = Vec::new();
        self.scopes.retain(|part| {
            let is_part = part.root == root || (scope.below && part.above.contains(&root));
            if is_part {
                scope.may_fetch.add(part.may_fetch.bytes, part.may_fetch.objects);
                scope.fetched.add(part.fetched.bytes, part.fetched.objects);
                replaces.push(part.root);
            }
            !is_part
        });
        if self.scopes.len() >= SCOPES_MAX
            && let Some(oldest) = (0..self.scopes.len()).min_by_key(|i| self.scopes[*i].last_ms)
        {
            replaces.push(self.scopes.swap_remove(oldest).root);
        }
        let verdict = Verdict::Started { scope: root, below: scope.below, order, replaces };
        self.scopes.push(scope);
        verdict
    }

    fn read_in_scope(&mut self, at: usize, read: &Read<'_>) -> Verdict {
        let scope = &mut self.scopes[at];
        let ahead = if read.missed { AHEAD_OF_MISS } else { AHEAD_OF_HIT };
        scope.may_fetch.add(read.size * ahead, ahead);
        scope.last_ms = read.at_ms;
        if !read.missed {
            return Verdict::Nothing;
        }
        // Ids tell the order in one folder, and of folders that were listed in order.
        let is_behind = read.object.0 + NEAR < scope.began.0;
        if scope.order == Order::AfterReader && !is_behind && !scope.exhausted {
            return Verdict::Moved { scope: scope.root };
        }
        scope.misses += u32::from(scope.exhausted);
        let is_again = scope.exhausted && scope.misses >= MISSES_AGAIN;
        let is_shuffled = scope.order == Order::AfterReader && is_behind;
        if !is_again && !is_shuffled {
            return Verdict::Nothing;
        }
        scope.order = Order::FromStart;
        scope.exhausted = false;
        scope.misses = 0;
        Verdict::Started {
            scope: scope.root,
            below: scope.below,
            order: Order::FromStart,
            replaces: Vec::new(),
        }
    }

    /// The scope to fetch from next: the one that was read from last, of those
    /// that are `ready`.
    pub(super) fn wanted(&self, ready: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let has_right = |scope: &&Scope| {
            !scope.exhausted
                && ready(scope.root)
                && scope.fetched.bytes < scope.may_fetch.bytes
                && scope.fetched.objects < scope.may_fetch.objects
        };
        self.scopes.iter().filter(has_right).max_by_key(|scope| scope.last_ms).map(|s| s.root)
    }

    /// Objects of a scope are about to be fetched.
    pub(super) fn fetching(&mut self, scope: NodeId, bytes: u64) {
        if let Some(scope) = self.scopes.iter_mut().find(|known| known.root == scope) {
            scope.fetched.add(bytes, 1);
        }
    }

    /// An object of a scope is still to be fetched after all.
    pub(super) fn not_fetched(&mut self, scope: NodeId, bytes: u64) {
        if let Some(scope) = self.scopes.iter_mut().find(|known| known.root == scope) {
            scope.fetched.bytes = scope.fetched.bytes.saturating_sub(bytes);
            scope.fetched.objects = scope.fetched.objects.saturating_sub(1);
            scope.exhausted = false;
        }
    }

    /// Nothing is left to fetch in a scope.
    pub(super) fn exhausted(&mut self, scope: NodeId) {
        if let Some(scope) = self.scopes.iter_mut().find(|known| known.root == scope) {
            scope.exhausted = true;
            scope.misses = 0;
        }
    }

    /// Whether all that is gone through was fetched; `None` if nothing is.
    pub(super) fn is_done(&self) -> Option<bool> {
        (!self.scopes.is_empty()).then(|| self.scopes.iter().all(|scope| scope.exhausted))
    }

    /// The folders that are gone through.
    pub(super) fn scopes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.scopes.iter().map(|scope| scope.root)
    }
}

impl Watch {
    /// Notes a read; whether the folder is gone through by now, and how.
    fn note(&mut self, read: &Read<'_>, member: NodeId, are_folders: bool) -> Option<Order> {
        let is_old = |recent: &Recent| read.at_ms.saturating_sub(recent.at_ms) > SPAN_MS;
        if self.recent.back().is_some_and(is_old) {
            self.run = 0;
            self.front = None;
        }
        self.recent.retain(|recent| !is_old(recent));
        if self.recent.iter().any(|recent| recent.object == read.object) {
            return None;
        }
        let points = if read.size <= WHOLE_BY_KERNEL_BYTES { POINTS_IF_SMALL } else { POINTS };
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        let (object, size, at_ms) = (read.object, read.size, read.at_ms);
        self.recent.push_back(Recent { object, member, points, size, at_ms });
        self.follow(member, points, are_folders, read.listed);
        let sum: u32 = self.recent.iter().map(|recent| recent.points).sum();
        match are_folders {
            false if self.run >= POINTS_IN_ORDER => Some(Order::AfterReader),
            true if self.run >= FOLDERS_IN_ORDER && sum >= POINTS_IN_ORDER => {
                Some(Order::AfterReader)
            }
            false if sum >= POINTS_SHUFFLED => Some(Order::FromStart),
            true if sum >= POINTS_SHUFFLED && self.folders() >= FOLDERS_SHUFFLED => {
                Some(Order::FromStart)
            }
            _ => None,
        }
    }

    /// Whether `member` goes on where the others stopped.
    fn follow(&mut self, member: NodeId, points: u32, are_folders: bool, listed: bool) {
        let worth = if are_folders { 1 } else { points };
        match self.front.filter(|_| listed) {
            Some(front) if front.0.abs_diff(member.0) <= NEAR => {
                // A folder may be read from again and again, in turn with others.
                if !are_folders || member > front {
                    self.run += worth;
                }
                self.front = Some(front.max(member));
            }
            _ => {
                self.run = if listed { worth } else { 0 };
                self.front = Some(member);
            }
        }
    }

    fn folders(&self) -> usize {
        let mut folders: Vec<NodeId> = self.recent.iter().map(|recent| recent.member).collect();
        folders.sort_unstable();
        folders.dedup();
        folders.len()
    }

    /// What was read to get here.
    fn ahead(&self) -> Amount {
        let bytes = self.recent.iter().map(|recent| recent.size).sum();
        Amount { bytes, objects: self.recent.len() as u64 }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
