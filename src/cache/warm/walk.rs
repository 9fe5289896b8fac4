//! Where the objects of a scope are: its folders, gone through in listing order,
//! a page at a time. What is cached already is left out.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;

use super::super::CacheError;
use super::super::metadata::{Node, NodeKind, Tree};
use super::super::record::NodeId;
use super::policy::{NEAR, OBJECT_MAX_BYTES};

/// Entries read from the index at once: a millisecond's work.
const PAGE: usize = 256;

/// Folders of which it is remembered how far they were gone through.
const PASSED_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// How far into what is to come folders are listed before it is their turn.
const LISTED_AHEAD_ITEMS: usize = 64;

/// A way through a scope.
#[derive(Debug)]
pub(super) struct Walk {
    items: VecDeque<Item>,
    /// The folders in it, too.
    below: bool,
    /// Objects of any size; else only those that readahead does not serve well.
    any_size: bool,
    /// By folder, up to which object it was gone through.
    passed: LruCache<NodeId, NodeId>,
}

#[derive(Debug)]
enum Item {
    Object(Target),
    /// What follows `after` in a folder, or all of it.
    Rest {
        folder: NodeId,
        after: Option<String>,
        prefix: Arc<str>,
        known: bool,
    },
}

/// An object that is to be fetched.
#[derive(Debug)]
pub(super) struct Target {
    pub node: Node,
    pub size: u64,
    /// The keys' beginning of its folder.
    pub prefix: Arc<str>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    Object(Target),
    /// This folder has to be listed first.
    List(NodeId),
    /// Ask again: a page of the listing was read.
    More,
    End,
}

impl Walk {
    /// Through all of `scope`.
    pub(super) fn new(
        tree: &Tree,
        scope: NodeId,
        below: bool,
        any_size: bool,
    ) -> Result<Walk, CacheError> {
        let passed = LruCache::new(PASSED_MAX);
        let mut walk = Walk { items: VecDeque::new(), below, any_size, passed };
        let prefix = tree.prefix(scope)?.into();
        walk.items.push_back(Item::Rest { folder: scope, after: None, prefix, known: false });
        Ok(walk)
    }

    /// Goes on after `object`, which a reader had to wait for, unless the walk is
    /// past it. `path` leads from its folder to the scope.
    pub(super) fn go_on_after(
        &mut self,
        tree: &Tree,
        object: NodeId,
        path: &[NodeId],
    ) -> Result<(), CacheError> {
        let Some(folder) = path.first() else { return Ok(()) };
        if self.passed.peek(folder).is_some_and(|passed| *passed >= object) {
            // What lies behind the reader was read, or is not wanted.
            while let Some(Item::Object(Target { node, .. })) = self.items.front()
                && node.parent == *folder
                && node.id.0 + NEAR < object.0
            {
                self.items.pop_front();
            }
            return Ok(());
        }
        self.items.clear();
        let mut at = object;
        for folder in path {
            let Some(node) = tree.node(at)? else { return Ok(()) };
            if self.below || at == object {
                let prefix = tree.prefix(*folder)?.into();
                let after = Some(node.name);
                self.items.push_back(Item::Rest { folder: *folder, after, prefix, known: false });
            }
            at = *folder;
        }
        self.passed.put(path[0], object);
        Ok(())
    }

    /// The next object that the cache does not hold.
    pub(super) fn next(&mut self, tree: &Tree) -> Result<Next, CacheError> {
        match self.items.pop_front() {
            None => Ok(Next::End),
            Some(Item::Object(target)) => Ok(Next::Object(target)),
            Some(Item::Rest { folder, after, prefix, known }) => {
                if !known && !tree.was_listed(folder)? {
                    self.items.push_front(Item::Rest { folder, after, prefix, known });
                    return Ok(Next::List(folder));
                }
                self.expand(tree, folder, after.as_deref(), &prefix)?;
                Ok(Next::More)
            }
        }
    }

    /// The object that was next is so again.
    pub(super) fn put_back(&mut self, target: Target) {
        self.items.push_front(Item::Object(target));
    }

    /// The object has its turn again after all others.
    pub(super) fn put_off(&mut self, target: Target) {
        self.items.push_back(Item::Object(target));
    }

    /// Puts one page of a folder in the place of what is left of it.
    fn expand(
        &mut self,
        tree: &Tree,
        folder: NodeId,
        after: Option<&str>,
        prefix: &Arc<str>,
    ) -> Result<(), CacheError> {
        let children = tree.children(folder, after, PAGE)?;
        if let (Some(last), PAGE) = (children.last(), children.len()) {
            let after = Some(last.name.clone());
            let prefix = prefix.clone();
            self.items.push_front(Item::Rest { folder, after, prefix, known: true });
        }
        let mut passed = self.passed.get(&folder).copied().unwrap_or_default();
        for node in children.into_iter().rev() {
            let size = match &node.kind {
                NodeKind::Folder { .. } if self.below => {
                    let prefix = format!("{prefix}{}/", node.name).into();
                    let folder = node.id;
                    self.items.push_front(Item::Rest { folder, after: None, prefix, known: false });
                    continue;
                }
                NodeKind::Folder { .. } => continue,
                NodeKind::Object(attr) => attr.size,
            };
            passed = passed.max(node.id);
            let is_wanted = size > 0 && (self.any_size || size <= OBJECT_MAX_BYTES);
            if is_wanted && tree.store().present_bytes(node.id) < size {
                self.items.push_front(Item::Object(Target { node, size, prefix: prefix.clone() }));
            }
        }
        self.passed.put(folder, passed);
        Ok(())
    }

    /// Folders that were never listed and whose turn comes soon.
    pub(super) fn unlisted<'a>(&'a self, tree: &'a Tree) -> impl Iterator<Item = NodeId> + 'a {
        self.items.iter().take(LISTED_AHEAD_ITEMS).filter_map(|item| match item {
            Item::Rest { folder, known: false, .. } => {
                tree.was_listed(*folder).is_ok_and(|listed| !listed).then_some(*folder)
            }
            _ => None,
        })
    }

    /// A folder was listed, or cannot be.
    pub(super) fn was_listed(&mut self, listed: NodeId, well: bool) {
        if well {
            for item in &mut self.items {
                if let Item::Rest { folder, known, .. } = item {
                    *known |= *folder == listed;
                }
            }
        } else {
            self.items
                .retain(|item| !matches!(item, Item::Rest { folder, .. } if *folder == listed));
        }
    }
}
