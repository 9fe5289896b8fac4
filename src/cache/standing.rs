//! What an object's place in the tree says about keeping it: whether it lies
//! below a mount, and whether it or a folder above it is pinned.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::index::Index;
use super::record::{NodeId, NodeRow};
use super::{CacheError, lock};

/// Folders above each other at most: a key has at most 1,024 bytes.
const DEPTH_MAX: usize = 1024;

/// Mounts and pins.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: Mutex<Known>,
    /// Raised when something became evictable that was not.
    loosened: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    /// Folders that are mounted, and how often.
    mounted: HashMap<NodeId, usize>,
    /// Names in folders; the root of a bucket is the empty name in itself.
    pins: HashSet<(NodeId, String)>,
}

/// What is so of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub mounted: bool,
    pub pinned: bool,
}

/// What was found out of folders, for as long as many nodes are asked about.
#[derive(Debug, Default)]
pub(super) struct Memo(HashMap<NodeId, Standing>);

impl Places {
    pub(super) fn set_pins(&self, pins: impl IntoIterator<Item = (NodeId, String)>) {
        lock(&self.known).pins = pins.into_iter().collect();
        self.loosen();
    }

    pub(super) fn pin(&self, parent: NodeId, name: &str) {
        lock(&self.known).pins.insert((parent, name.to_owned()));
    }

    /// `false` if it was not pinned.
    pub(super) fn unpin(&self, parent: NodeId, name: &str) -> bool {
        let removed = lock(&self.known).pins.remove(&(parent, name.to_owned()));
        self.loosen();
        removed
    }

    pub(super) fn mount(&self, root: NodeId) {
        *lock(&self.known).mounted.entry(root).or_default() += 1;
    }

    pub(super) fn unmount(&self, root: NodeId) {
        let mut known = lock(&self.known);
        if let Some(count) = known.mounted.get_mut(&root) {
            *count -= 1;
            if *count == 0 {
                known.mounted.remove(&root);
            }
        }
        drop(known);
        self.loosen();
    }

    /// Folders that are mounted.
    pub(super) fn mounted(&self) -> Vec<NodeId> {
        lock(&self.known).mounted.keys().copied().collect()
    }

    /// Names that are pinned.
    pub(super) fn pins(&self) -> u64 {
        lock(&self.known).pins.len() as u64
    }

    fn loosen(&self) {
        self.loosened.fetch_add(1, Ordering::Relaxed);
    }

    /// Differs from before if something may be evicted now that could not be.
    pub(super) fn loosened(&self) -> u64 {
        self.loosened.load(Ordering::Relaxed)
    }

    /// Where `node` stands. What nobody can look up any more stands nowhere.
    pub(super) fn standing(
        &self,
        index: &Index,
        node: NodeId,
        memo: &mut Memo,
    ) -> Result<Standing, CacheError> {
        let mut below = Vec::new();
        let mut at = node;
        let mut standing = loop {
            if let Some(known) = memo.0.get(&at) {
                break *known;
            }
            let known = lock(&self.known);
            let own = Standing {
                mounted: known.mounted.contains_key(&at),
                pinned: known.pins.contains(&(at, String::new())),
            };
            drop(known);
            let Some(NodeRow::Current { parent, name }) = index.node(at)? else {
                memo.0.insert(at, own);
                break own;
            };
            let pinned = own.pinned || lock(&self.known).pins.contains(&(parent, name));
            below.push((at, Standing { pinned, ..own }));
            at = parent;
            if below.len() > DEPTH_MAX {
                break Standing::default();
            }
        };
        for (at, own) in below.into_iter().rev() {
            standing.mounted |= own.mounted;
            standing.pinned |= own.pinned;
            // Objects are asked about once; folders again and again.
            if at != node {
                memo.0.insert(at, standing);
            }
        }
        Ok(standing)
    }
}
