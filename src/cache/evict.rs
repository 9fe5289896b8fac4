//! Which objects may go when the cache is full. Pure: no clock, disk or lock.
//!
//! Time is counted in bytes read. A re-read of an object that was last read at
//! `L` shows that objects as old as `L` are still read. The oldest `L` of the
//! latest re-reads is the *horizon*: what was last read before it is dead, and
//! may go; while nothing is dead, what is there stays and the rest streams.
//!
//! In fixed order every `L` is one epoch ago, and nothing unread is older. In
//! shuffled order every `L` is uniform over the epoch before, as are those of
//! the objects not read yet; their oldest lies a little before the oldest of
//! `n` re-reads, about a gap of spread / `n`. A dataset that is no longer read
//! lies before the horizon as soon as the one after it is read a second time.
//!
//! What was tried besides is in `docs/eviction.md`, with its figures.
//!
//! Memory: 17 bytes a bucket of the map and 16 an entry of the queue, both
//! doubling: see [`Recency`].

use std::collections::{HashMap, VecDeque};

use super::record::NodeId;

/// Re-reads remembered. Of uniform ones the oldest is then off by 0.4 % of the
/// range. More would make each look for a victim dearer.
const REREADS_MAX: usize = 256;

/// Re-reads needed to know anything, and kept however old they are: the oldest
/// of fewer says little. Few, for datasets of 20 objects.
const REREADS_MIN: usize = 4;

/// After so many re-reads and nothing that was read for the first time, what
/// was not read since the start is not going to be.
const REREADS_ALONE: usize = 32;

/// Gaps between the oldest re-read and the horizon. An object not read yet is
/// older than that for one in e^4.
const GAPS: u64 = 4;

/// Reads of an object nearer to each other than this part of the budget are
/// one visit, and no re-read. Capped: less lies in the page cache anyway.
const VISIT_PART: u64 = 64;
const VISIT_BYTES_MAX: u64 = 256 << 20;

/// Nor are reads of an object between which so many of the same length fit:
/// as many readers may read side by side.
const VISIT_READS: u64 = 32;

/// Objects remembered that the cache does not hold. Beyond it every second one
/// is forgotten, by its hash: those left are as good a sample.
const GHOSTS_MAX: usize = 1 << 20;

/// Objects in use that one look for a victim passes over.
const SKIPS_MAX: usize = 1024;

/// Entries the queue may have beyond half as many again as objects are held.
const STALE_MIN: usize = 1024;

/// What is known of how objects are read, and which may go.
#[derive(Debug)]
pub struct Recency {
    budget: u64,
    /// Bytes read so far.
    clock: u64,
    seen: HashMap<NodeId, Seen>,
    held: usize,
    /// Held objects by the time of a read, oldest first. An entry that is not
    /// about the latest read is stale.
    queue: VecDeque<(u64, NodeId)>,
    rereads: VecDeque<Reread>,
    /// When an object was last read for the first time.
    newest_first: u64,
    /// Ghosts remembered are one in 2^this.
    thinned: u32,
}

/// When an object was last read, in the lowest bit whether it is held, and in the
/// next whether it was never read: it came before its reader.
#[derive(Clone, Copy, Debug)]
struct Seen(u64);

impl Seen {
    fn new(last: u64, held: bool) -> Self {
        Seen(last << 2 | u64::from(held))
    }

    /// Held, and not read yet.
    fn unread(now: u64) -> Self {
        Seen(now << 2 | 0b11)
    }

    fn is_unread(self) -> bool {
        self.0 & 0b10 != 0
    }

    fn last(self) -> u64 {
        self.0 >> 2
    }

    fn is_held(self) -> bool {
        self.0 & 1 == 1
    }
}

/// An object was read at `at`, and before that at `last`.
#[derive(Clone, Copy, Debug)]
struct Reread {
    at: u64,
    last: u64,
}

impl Recency {
    /// Knows nothing yet.
    pub fn new(budget_bytes: u64) -> Self {
        Recency {
            budget: budget_bytes,
            clock: 0,
            seen: HashMap::new(),
            held: 0,
            queue: VecDeque::new(),
            rereads: VecDeque::with_capacity(REREADS_MAX + 1),
            newest_first: 0,
            thinned: 0,
        }
    }

    /// The budget changed.
    pub fn set_budget(&mut self, budget_bytes: u64) {
        self.budget = budget_bytes;
    }

    /// `bytes` of an object were read (0: it was opened only), held or not.
    pub fn touch(&mut self, node: NodeId, bytes: u64) {
        let before = self.seen.get(&node).copied();
        match before {
            // Its first read, and no second one: that it was fetched some time
            // ago says nothing of how far apart reads are.
            Some(before) if before.is_unread() => self.newest_first = self.clock,
            Some(before) => self.note_reread(before.last(), bytes),
            None if self.is_remembered(node) => self.newest_first = self.clock,
            None => {}
        }
        self.clock += bytes;
        let held = before.is_some_and(Seen::is_held);
        if held {
            let is_new = before.is_none_or(|before| before.last() != self.clock);
            if is_new {
                self.enqueue(self.clock, node);
            } else if !before.is_some_and(Seen::is_unread) {
                return;
            }
        }
        if before.is_some() || self.is_remembered(node) {
            self.seen.insert(node, Seen::new(self.clock, held));
            self.thin_ghosts();
        }
    }

    /// The cache holds something of the object, or nothing any more. One that
    /// was never touched is as old as if it were read now; its first read is
    /// still to come.
    pub fn set_held(&mut self, node: NodeId, held: bool) {
        let before = self.seen.get(&node).copied();
        if before.is_some_and(Seen::is_held) == held {
            return;
        }
        let last = before.map_or(self.clock, Seen::last);
        let seen = match before {
            None if held => Seen::unread(last),
            _ => Seen::new(last, held),
        };
        self.seen.insert(node, seen);
        if held {
            self.held += 1;
            self.enqueue(last, node);
        } else {
            self.held -= 1;
            self.thin_ghosts();
        }
    }

    /// Age in bytes read beyond which an object is no longer read; `None` while
    /// that is unknown.
    pub fn dead_age(&self) -> Option<u64> {
        self.horizon().map(|horizon| self.clock - horizon)
    }

    /// A held object that is no longer read, the one read longest ago first;
    /// with `force` also one that is. None that is `in_use` (leased, pinned):
    /// that counts as being read now. Removes nothing: the caller calls
    /// [`Recency::set_held`] once it is gone.
    ///
    /// Looks at a bounded number of objects in use: the next call goes on.
    pub fn victim(
        &mut self,
        force: bool,
        mut in_use: impl FnMut(NodeId) -> bool,
    ) -> Option<NodeId> {
        let horizon = if force { u64::MAX } else { self.horizon()? };
        let mut skips = SKIPS_MAX.min(self.held);
        while let Some(&(last, node)) = self.queue.front() {
            if !self.is_latest(last, node) {
                self.queue.pop_front();
                continue;
            }
            if last >= horizon {
                return None;
            }
            if !in_use(node) {
                return Some(node);
            }
            if skips == 0 {
                return None;
            }
            skips -= 1;
            self.queue.pop_front();
            self.seen.insert(node, Seen::new(self.clock, true));
            self.queue.push_back((self.clock, node));
        }
        None
    }

    /// Whether an object that was held before the start, and not touched since,
    /// may go.
    pub fn untouched_is_dead(&self) -> bool {
        let Some(horizon) = self.horizon() else { return false };
        let alone = self.rereads.iter().rev().take_while(|reread| reread.at > self.newest_first);
        horizon > 0 || alone.count() >= REREADS_ALONE.min(self.rereads.len())
    }

    /// Whether an object that is held was touched. Of others some are forgotten.
    pub fn was_touched(&self, node: NodeId) -> bool {
        self.seen.contains_key(&node)
    }

    /// The time before which what was last read is dead.
    fn horizon(&self) -> Option<u64> {
        if self.rereads.len() < REREADS_MIN {
            return None;
        }
        let lasts = || self.rereads.iter().map(|reread| reread.last);
        let oldest = lasts().min()?;
        let spread = lasts().max()? - oldest;
        // Where some objects are read more often than others, the older half
        // of the range is about the others.
        let half = lasts().filter(|last| last - oldest <= spread / 2).count() as u64;
        Some(oldest.saturating_sub(spread / (2 * half) * GAPS))
    }

    fn note_reread(&mut self, last: u64, bytes: u64) {
        let visit = (self.budget / VISIT_PART).min(VISIT_BYTES_MAX).max(bytes * VISIT_READS);
        if self.clock - last <= visit {
            return;
        }
        self.rereads.push_back(Reread { at: self.clock, last });
        // From before anything that is read now was read the last time: about
        // another dataset, perhaps.
        let recent = self.rereads.iter().rev().take(REREADS_MIN);
        let since = recent.map(|reread| reread.last).min().unwrap_or(0);
        while self.rereads.len() > REREADS_MAX
            || self.rereads.len() > REREADS_MIN && self.rereads[0].at < since
        {
            self.rereads.pop_front();
        }
    }

    fn is_latest(&self, last: u64, node: NodeId) -> bool {
        self.seen.get(&node).is_some_and(|seen| seen.is_held() && seen.last() == last)
    }

    fn enqueue(&mut self, last: u64, node: NodeId) {
        if self.queue.len() >= self.held + self.held / 2 + STALE_MIN {
            let mut queue = std::mem::take(&mut self.queue);
            queue.retain(|(last, node)| self.is_latest(*last, *node));
            self.queue = queue;
        }
        self.queue.push_back((last, node));
    }

    /// Whether a ghost is among those remembered.
    fn is_remembered(&self, node: NodeId) -> bool {
        // Fibonacci hashing: ids of one folder lie side by side.
        let hash = node.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash.leading_zeros() >= self.thinned
    }

    fn thin_ghosts(&mut self) {
        if self.seen.len() - self.held > GHOSTS_MAX {
            self.thinned += 1;
            let mut seen = std::mem::take(&mut self.seen);
            seen.retain(|node, seen| seen.is_held() || self.is_remembered(*node));
            self.seen = seen;
        }
    }
}
