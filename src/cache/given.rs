//! Files that were named to the kernel, for the day on which the index is lost.
//!
//! In cached mode the kernel reads what it knows by name without another word,
//! for as long as the name is good. A node that the index does not know any more
//! would be ESTALE to a program that did nothing wrong. All mounts share one list.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;

use super::{Node, NodeId, NodeKind, lock};

/// Memory that one of them takes, about.
const FILE_BYTES: usize = 256;

/// The files, and the prefix of the folder that each is in.
#[derive(Debug)]
pub struct Given(Mutex<LruCache<NodeId, (Node, Arc<str>)>>);

impl Given {
    /// Remembers those that were named last, in about so many bytes. A dataset of more
    /// has ESTALE for the rest, where the index is lost, until their names are old.
    pub(super) fn new(bytes: usize) -> Self {
        // Grows as it is used.
        let mut files = LruCache::unbounded();
        files.resize(NonZeroUsize::new(bytes / FILE_BYTES).unwrap_or(NonZeroUsize::MIN));
        Given(Mutex::new(files))
    }

    /// The kernel is told of `nodes`, in the folder of `prefix`.
    pub fn give(&self, prefix: &str, nodes: impl Iterator<Item = Node>) {
        let prefix: Arc<str> = prefix.into();
        let mut files = lock(&self.0);
        for node in nodes.filter(|node| matches!(node.kind, NodeKind::Object(_))) {
            files.push(node.id, (node, prefix.clone()));
        }
    }

    /// A file, as the kernel was told of it.
    pub fn get(&self, node: NodeId) -> Option<(Node, Arc<str>)> {
        lock(&self.0).get(&node).cloned()
    }
}
