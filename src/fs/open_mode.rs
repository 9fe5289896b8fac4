//! How files are opened towards the kernel. The contract of each mode is in
//! `docs/kernel.md`, and `tests/kernel_contract.rs` holds it to it.
//!
//! The kernel refuses to mix passthrough and cached handles of one inode, so
//! the way an inode was opened first stays until its last handle is closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cache::{CachedObject, NodeId};
use crate::config::OpenModeOption;

/// How a mount opens files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Each OPEN is answered, and the page cache kept over it.
    KeepCache,
    /// OPEN, OPENDIR and FLUSH are answered with ENOSYS once and never come again.
    NoOpen,
    /// Complete, verified files are read by the kernel from the backing file.
    Passthrough,
}

impl OpenMode {
    /// The mode for an option, and why.
    pub fn choose(option: OpenModeOption) -> (OpenMode, &'static str) {
        match option {
            // The simplest right one: it needs no privilege, works on every
            // kernel, and each handle holds its object.
            OpenModeOption::Auto => (OpenMode::KeepCache, "default"),
            OpenModeOption::KeepCache => (OpenMode::KeepCache, "asked for"),
            OpenModeOption::NoOpen => (OpenMode::NoOpen, "asked for"),
            OpenModeOption::Passthrough => (OpenMode::Passthrough, "asked for"),
        }
    }
}

impl fmt::Display for OpenMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenMode::KeepCache => "keep-cache",
            OpenMode::NoOpen => "no-open",
            OpenMode::Passthrough => "passthrough",
        })
    }
}

/// Objects with open handles: each holds its object in memory, and `B`, the
/// kernel's hold on a backing file, where the inode is passed through.
#[derive(Debug)]
pub(super) struct OpenNodes<B>(Mutex<HashMap<NodeId, OpenNode<B>>>);

#[derive(Debug)]
struct OpenNode<B> {
    object: Arc<CachedObject>,
    handles: u64,
    backing: Option<Arc<B>>,
}

impl<B> OpenNodes<B> {
    pub(super) fn new() -> Self {
        OpenNodes(Mutex::new(HashMap::new()))
    }

    /// One more handle of `node`. The first one decides, with `register`,
    /// whether the inode is passed through.
    pub(super) fn open(
        &self,
        node: NodeId,
        object: &Arc<CachedObject>,
        register: impl FnOnce(&CachedObject) -> Option<B>,
    ) -> Option<Arc<B>> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match nodes.entry(node) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let backing = register(object).map(Arc::new);
                vacant.insert(OpenNode { object: object.clone(), handles: 0, backing })
            }
        };
        open.handles += 1;
        open.backing.clone()
    }

    /// One handle of `node` less.
    pub(super) fn release(&self, node: NodeId) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut open) = nodes.entry(node) else { return };
        open.get_mut().handles -= 1;
        if open.get().handles == 0 {
            let last = open.remove();
            drop(nodes); // The object's own drop takes locks of the store.
            drop(last);
        }
    }

    /// The object of an open node.
    pub(super) fn object(&self, node: NodeId) -> Option<Arc<CachedObject>> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node).map(|open| open.object.clone())
    }
}
