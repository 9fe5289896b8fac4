//! Folders that are listed ahead of a walk.
//!
//! `find` and its like read one folder after the other, and each waits a round trip for
//! its listing. Once a reader goes from folder to folder faster than people do, the
//! folders that come next are listed before they are asked for: siblings by name, and
//! what lies in those that were listed ahead.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::metadata::Tree;
use super::record::{EntryRow, NodeId, NodeRow};
use super::{CacheError, lock};
use crate::admission::Class;

/// Folders listed ahead that no reader has come to yet, at most.
const AHEAD_MAX: usize = 256;

/// Of these, siblings of one folder: as many as make up for a round trip of a tenth of
/// a second at 300 folders a second.
const WINDOW_MAX: usize = 32;

/// Steps after which a walk counts as one.
const STEPS_MIN: u32 = 2;

/// After a pause of this length a walk begins anew.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Entries looked through for one more sibling, at most.
const SCAN_MAX: usize = 512;

/// Folders of which it is known how far their siblings were taken.
const REACHED_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How readers go through the folders of a mount.
#[derive(Debug)]
pub(super) struct Walk {
    steps: u32,
    /// From above down: the folders that are gone through, and what was read last of each.
    trail: Vec<Step>,
    last_at: Option<Instant>,
    /// Folders that were listed ahead and not read yet.
    ahead: HashMap<NodeId, Ahead>,
    next_turn: u64,
    /// Up to which name the folders in a folder were taken.
    reached: LruCache<NodeId, String>,
}

#[derive(Debug)]
struct Step {
    parent: NodeId,
    folder: NodeId,
    name: String,
}

#[derive(Clone, Copy, Debug)]
struct Ahead {
    parent: NodeId,
    /// In the order in which readers are to come to them.
    turn: u64,
}

impl Default for Walk {
    fn default() -> Self {
        Walk {
            steps: 0,
            trail: Vec::new(),
            last_at: None,
            ahead: HashMap::new(),
            next_turn: 0,
            reached: LruCache::new(REACHED_MAX),
        }
    }
}

impl Walk {
    /// A reader begins with `folder`, which is in `parent` under `name`. How many more of
    /// the folders that come after it there are to be listed.
    fn step(&mut self, folder: NodeId, parent: NodeId, name: &str, now: Instant) -> usize {
        let was_ahead = self.ahead.remove(&folder);
        if let Some(Ahead { turn, .. }) = was_ahead {
            // Whom a reader passed by it does not come back to.
            self.ahead.retain(|_, other| other.parent != parent || other.turn > turn);
        }
        let is_prompt =
            self.last_at.is_some_and(|at| now.saturating_duration_since(at) < PAUSE_MAX);
        self.last_at = Some(now);
        let is_next = match self.trail.iter().position(|step| step.parent == parent) {
            // The next one in this folder, perhaps after what lies in the one before.
            Some(at) => {
                let is_after = *name > *self.trail[at].name;
                self.trail.truncate(at);
                is_after
            }
            None => self.trail.last().is_some_and(|last| last.folder == parent),
        };
        let follows = is_prompt && (was_ahead.is_some() || is_next);
        if !follows || !is_next {
            self.trail.clear();
        }
        self.trail.push(Step { parent, folder, name: name.to_owned() });
        if !follows {
            self.steps = 0;
            self.ahead.clear();
            self.reached.clear();
            return 0;
        }
        self.steps += 1;
        if self.steps < STEPS_MIN {
            return 0;
        }
        let window = WINDOW_MAX.min(1 << self.steps.min(8));
        let siblings = self.ahead.values().filter(|other| other.parent == parent).count();
        window.saturating_sub(siblings).min(self.room())
    }

    /// A reader is still at it.
    fn goes_on(&mut self, now: Instant) {
        self.last_at = self.last_at.map(|_| now);
    }

    fn room(&self) -> usize {
        AHEAD_MAX.saturating_sub(self.ahead.len())
    }

    fn add(&mut self, parent: NodeId, folders: &[NodeId]) {
        for folder in folders {
            self.ahead.insert(*folder, Ahead { parent, turn: self.next_turn });
            self.next_turn += 1;
        }
    }

    /// A folder was listed. How many of those in it are to be listed, too.
    fn listed(&self, folder: NodeId) -> usize {
        if self.ahead.contains_key(&folder) { self.room().min(WINDOW_MAX) } else { 0 }
    }
}

impl Tree {
    /// A reader goes on with the folder it is at.
    pub fn walk_goes_on(&self) {
        lock(&self.walk).goes_on(Instant::now());
    }

    /// A reader begins with `folder`: what it comes to next may be listed now.
    pub fn walk_to(&self, folder: NodeId) {
        if let Err(error) = self.list_ahead_of(folder) {
            tracing::debug!(%error, "nothing is listed ahead");
        }
    }

    fn list_ahead_of(&self, folder: NodeId) -> Result<(), CacheError> {
        let (parent, name) = match self.index.node(folder)? {
            Some(NodeRow::Current { parent, name }) if folder != self.root => (parent, name),
            _ => (folder, String::new()),
        };
        let (wanted, mut after) = {
            let mut walk = lock(&self.walk);
            let wanted = walk.step(folder, parent, &name, Instant::now());
            (wanted, walk.reached.get(&parent).cloned().unwrap_or_default())
        };
        if wanted == 0 || folder == self.root {
            return Ok(());
        }
        after = after.max(name);
        let mut found = Vec::new();
        let mut scanned = 0;
        while found.len() < wanted && scanned < SCAN_MAX {
            let entries = self.index.entries_after(parent, Some(&after), 2 * wanted)?;
            let Some((last, _)) = entries.last() else { break };
            after.clone_from(last);
            scanned += entries.len();
            for (name, entry) in entries {
                if found.len() == wanted {
                    break;
                }
                after = name;
                found.extend(self.unlisted(&entry)?);
            }
        }
        self.begin_ahead(parent, &found, Some(after));
        Ok(())
    }

    /// A folder has been listed, in which these are: if it was ahead of its reader, they
    /// are next.
    pub(super) fn was_listed_now(&self, folder: NodeId, mut folders: Vec<String>) {
        let wanted = lock(&self.walk).listed(folder);
        if wanted == 0 {
            return;
        }
        folders.sort();
        let mut found = Vec::new();
        for name in folders.iter().take(wanted) {
            let entry = self.index.entry(folder, name);
            let Ok(Some(entry)) = entry else { continue };
            found.extend(self.unlisted(&entry).ok().flatten());
        }
        self.begin_ahead(
            folder,
            &found,
            folders.get(..wanted.min(folders.len())).and_then(<[_]>::last).cloned(),
        );
    }

    fn begin_ahead(&self, parent: NodeId, folders: &[NodeId], reached: Option<String>) {
        {
            let mut walk = lock(&self.walk);
            walk.add(parent, folders);
            if let Some(reached) = reached {
                walk.reached.put(parent, reached);
            }
        }
        for folder in folders {
            drop(self.first_listing(*folder, Class::Ahead)); // Runs by itself.
        }
    }

    /// The node of a folder that was never listed.
    fn unlisted(&self, entry: &EntryRow) -> Result<Option<NodeId>, CacheError> {
        let is_known = entry.object.is_some() || self.was_listed(entry.node)?;
        Ok((!is_known).then_some(entry.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: NodeId = NodeId(1);

    fn step(walk: &mut Walk, n: u64, parent: NodeId, now: Instant) -> usize {
        walk.step(NodeId(n), parent, &format!("{n:06}"), now)
    }

    fn add(walk: &mut Walk, count: u64, parent: NodeId) {
        let from = 1_000 * parent.0;
        let folders: Vec<NodeId> = (from..from + count).map(NodeId).collect();
        walk.add(parent, &folders);
    }

    #[test]
    fn who_goes_from_folder_to_folder_finds_ever_more_of_them_listed() {
        let mut walk = Walk::default();
        let now = Instant::now();
        let wanted: Vec<_> = (10..17).map(|n| step(&mut walk, n, PARENT, now)).collect();
        assert_eq!(wanted, [0, 0, 4, 8, 16, 32, 32]);
        add(&mut walk, 30, PARENT);
        assert_eq!(step(&mut walk, 17, PARENT, now), 2);
        assert_eq!(step(&mut walk, 1_000, PARENT, now), 3, "one of them was read");
        assert_eq!(step(&mut walk, 1_010, PARENT, now), 13, "and ten were passed by");
        assert_eq!(step(&mut walk, 5, NodeId(1_010), now), 32, "what lies in it");
        assert_eq!(step(&mut walk, 2_000, PARENT, now), 13, "and back again");
        assert_eq!(step(&mut walk, 1_009, NodeId(16), now), 0, "it lies elsewhere");
    }

    #[test]
    fn who_looks_around_pays_for_what_is_looked_at() {
        let mut walk = Walk::default();
        let now = Instant::now();
        for n in 0..10 {
            assert_eq!(step(&mut walk, 10 + n, PARENT, now + PAUSE_MAX * n as u32), 0, "slowly");
        }
        for n in [70, 3, 41, 5, 60] {
            assert_eq!(step(&mut walk, n, PARENT, now), 0, "in no order");
        }
    }

    #[test]
    fn a_folder_that_takes_long_to_read_is_no_pause() {
        let mut walk = Walk::default();
        let now = Instant::now();
        (10..12).for_each(|n| _ = step(&mut walk, n, PARENT, now));
        walk.goes_on(now + PAUSE_MAX * 20);
        assert_eq!(step(&mut walk, 30, PARENT, now + PAUSE_MAX * 20), 4);
    }

    #[test]
    fn no_more_is_listed_ahead_than_is_worth_it() {
        let mut walk = Walk::default();
        let now = Instant::now();
        (10..20).for_each(|n| _ = step(&mut walk, n, PARENT, now));
        for parent in 2..10 {
            add(&mut walk, 32, NodeId(parent));
        }
        assert_eq!(step(&mut walk, 20, PARENT, now), 0);
        assert_eq!((walk.listed(NodeId(2_000)), walk.listed(NodeId(20))), (0, 0));
        walk.ahead.remove(&NodeId(2_001));
        assert_eq!((walk.listed(NodeId(2_000)), walk.listed(NodeId(20))), (1, 0));
    }
}
