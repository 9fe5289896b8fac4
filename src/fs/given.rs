//! Files that were named to the kernel, for the day on which the index is lost.
//!
//! In cached mode the kernel reads what it knows by name without another word,
//! for as long as the name is good. A node that the index does not know any more
//! would be ESTALE to a program that did nothing wrong.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;

use crate::cache::{Node, NodeId, NodeKind};

/// Files remembered, the last ones named: some 16 MB. A dataset of more has
/// ESTALE for the rest, where the index is lost, until their names are old.
const GIVEN_MAX: NonZeroUsize = NonZeroUsize::new(64 << 10).unwrap();

/// The files, and the prefix of the folder that each is in.
#[derive(Debug)]
pub(super) struct Given(Mutex<LruCache<NodeId, (Node, Arc<str>)>>);

impl Given {
    pub(super) fn new() -> Self {
        // Grows as it is used.
        let mut files = LruCache::unbounded();
        files.resize(GIVEN_MAX);
        Given(Mutex::new(files))
    }

    /// The kernel is told of `nodes`, in the folder of `prefix`.
    pub(super) fn give(&self, prefix: &str, nodes: impl Iterator<Item = Node>) {
        let prefix: Arc<str> = prefix.into();
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for node in nodes.filter(|node| matches!(node.kind, NodeKind::Object(_))) {
            files.push(node.id, (node, prefix.clone()));
        }
    }

    /// A file, as the kernel was told of it.
    pub(super) fn get(&self, node: NodeId) -> Option<(Node, Arc<str>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}
