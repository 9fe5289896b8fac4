//! What a mount holds and what of it is cached, for `ls` and `du`: from the index,
//! without a word to the kernel.

use std::sync::Arc;

use super::CacheError;
use super::metadata::{Node, NodeKind, Tree};
use super::names;
use super::record::{NodeId, Rollup};
use super::upkeep::{Progress, descend, next};
use crate::remote::pages::Pages;
use crate::remote::{ListRequest, Version};

/// A file or folder, and what of it is cached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its node; `None` for a key that has no name in the mount.
    pub node: Option<NodeId>,
    /// Its name, or what follows the folder's prefix in its key.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Objects, their bytes, and the bytes of them that are cached: its own or, of a
    /// folder, all that is known below.
    pub sums: Rollup,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// The version of an object.
    pub version: Option<Version>,
}

/// How far hidden keys were looked for.
#[derive(Debug, Default)]
pub struct HiddenPages {
    before: Pages,
    next: Option<String>,
    /// There are no more.
    pub is_last: bool,
}

impl Tree {
    /// What a node is. Blocks.
    pub fn look_at(&self, node: &Node) -> Result<Look, CacheError> {
        let cached_bytes = match &node.kind {
            NodeKind::Object(_) => self.store.present_bytes(node.id),
            NodeKind::Folder { .. } => 0,
        };
        self.look(node, cached_bytes)
    }

    /// Up to `limit` entries of a folder after the name `after`. Blocks.
    pub fn look_in(
        &self,
        folder: NodeId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Look>, CacheError> {
        let children = self.children(folder, after, limit)?;
        let ids: Vec<NodeId> = children.iter().map(|node| node.id).collect();
        let present = self.store.present_bytes_of(&ids);
        children.iter().zip(present).map(|(node, present)| self.look(node, present)).collect()
    }

    fn look(&self, node: &Node, cached_bytes: u64) -> Result<Look, CacheError> {
        let (is_folder, sums, mtime_ns, version) = match &node.kind {
            NodeKind::Folder { mtime_ns, .. } => (true, self.rollup(node.id)?, *mtime_ns, None),
            NodeKind::Object(attr) => {
                let sums =
                    Rollup { objects: 1, bytes: attr.size, cached_bytes, ..Rollup::default() };
                (false, sums, attr.mtime_ns, Some(attr.version.clone()))
            }
        };
        let name = node.name.clone();
        Ok(Look { node: Some(node.id), name, is_folder, sums, mtime_ns, version })
    }

    /// Brings the sums of folders up to what is on disk. Blocks.
    pub fn sum_up(&self) -> Result<(), CacheError> {
        self.store.flush()
    }

    /// Lists `folder` and all below it that is not listed. Of several failures the first
    /// one is told, and the others are listed all the same.
    pub async fn list_below(
        self: &Arc<Self>,
        folder: NodeId,
        progress: &Progress,
    ) -> Result<(), CacheError> {
        let list = |tree: Arc<Tree>, folder| async move { tree.ensure_listed(folder).await };
        let mut listings = std::pin::pin!(descend(self.clone(), folder, list));
        let mut failure = None;
        while let Some(listed) = next(&mut listings, progress).await {
            failure = failure.or(listed.err());
            progress.done(1, 0);
        }
        failure.map_or(Ok(()), Err)
    }

    /// The keys directly in a folder that have no name in the mount, of the next page of
    /// its listing: `pages` are those before it. Asks the remote.
    pub async fn hidden(
        &self,
        folder: NodeId,
        pages: &mut HiddenPages,
    ) -> Result<Vec<Look>, CacheError> {
        let prefix = self.prefix(folder)?;
        let mut hidden = Vec::new();
        let request = ListRequest {
            prefix: prefix.clone(),
            continuation: pages.next.take(),
            ..ListRequest::default()
        };
        let page = self.remote.list(&request).await?;
        pages.before.check(&prefix, &page)?;
        for object in &page.objects {
            let Some(name) = object.key.0.strip_prefix(&prefix) else { continue };
            let is_marker = name.is_empty() && object.size == 0;
            if !is_marker && !self.is_shown(folder, name)? {
                hidden.push(Look {
                    node: None,
                    name: name.to_owned(),
                    is_folder: false,
                    sums: Rollup { objects: 1, bytes: object.size, ..Rollup::default() },
                    mtime_ns: super::listing::to_ns(object.mtime),
                    version: Some(object.version.clone()),
                });
            }
        }
        for below in &page.prefixes {
            let name = below.strip_prefix(&prefix).unwrap_or(below);
            if !name.strip_suffix('/').is_some_and(names::is_showable) {
                hidden.push(Look {
                    node: None,
                    name: name.to_owned(),
                    is_folder: true,
                    sums: Rollup::default(),
                    mtime_ns: 0,
                    version: None,
                });
            }
        }
        pages.is_last = page.next.is_none();
        pages.next = page.next;
        Ok(hidden)
    }

    /// Whether an object of this name is shown under it, or beside a folder.
    fn is_shown(&self, folder: NodeId, name: &str) -> Result<bool, CacheError> {
        if !names::is_showable(name) {
            return Ok(false);
        }
        let is_folder = |entry: &super::record::EntryRow| entry.object.is_none();
        if !self.index.entry(folder, name)?.as_ref().is_some_and(is_folder) {
            return Ok(true);
        }
        let Some(beside) = names::beside_folder(name) else { return Ok(false) };
        let entry = self.index.entry(folder, &beside)?;
        let key_name = entry.and_then(|entry| entry.object).and_then(|attr| attr.key_name);
        Ok(key_name.as_deref() == Some(name))
    }
}
