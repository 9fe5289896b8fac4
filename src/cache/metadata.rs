//! A bucket prefix as a tree of nodes.
//!
//! Answers come from the index while they are fresh (`--metadata-ttl`) and
//! from the remote else: a folder by listing it, single-flight; a name in a
//! folder that was never listed by HEAD and LIST side by side, so that opening
//! one file of a huge folder does not list it. Listings outlive the mount.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant, UNIX_EPOCH};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::given::Given;
use super::hint::Hinter;
use super::index::Index;
use super::list_ahead::Walk;
use super::lister::Listings;
use super::listing::Changes;
use super::object::CachedObject;
use super::record::{EntryRow, FolderRow, NodeId, NodeRow, ObjectAttr, Rollup};
use super::store::Store;
use super::warm::Warmer;
use super::{CacheError, Clock, Event, lock};
use crate::admission::Class;
use crate::remote::client::RemoteClient;
use crate::remote::{Key, ObjectMeta, VersionGuard};

/// Folders whose point lookups are counted.
const COUNTED_FOLDERS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// After the remote could not list a folder, known listings stand this long
/// before it is asked again: each request that finds one too old would wait
/// through every retry.
const LISTING_PAUSE: Duration = Duration::from_secs(3);

/// Folders above each other at most: a key has at most 1,024 bytes.
const DEPTH_MAX: usize = 1024;

/// A mounted prefix.
#[derive(Debug)]
pub struct Tree {
    pub(super) me: Weak<Tree>,
    pub(super) index: Arc<Index>,
    pub(super) store: Arc<Store>,
    pub(super) remote: Arc<RemoteClient>,
    pub(super) clock: Arc<Clock>,
    pub(super) runtime: Handle,
    pub(super) bucket: NodeId,
    pub(super) root: NodeId,
    pub(super) ttl: Duration,
    pub(super) given: Arc<Given>,
    pub(super) listings: Listings,
    pub(super) walk: Mutex<Walk>,
    pub(super) point_lookups: Mutex<LruCache<NodeId, u32>>,
    /// When the remote last could not list; `None` once it could again.
    pub(super) listing_failed: Mutex<Option<Instant>>,
    /// When the remote last refused to list.
    pub(super) refused: Mutex<Option<Instant>>,
    /// Fetches ahead, unless that is off.
    pub(super) warmer: OnceLock<Warmer>,
    /// Goes along the order that readers told.
    pub(super) hinter: OnceLock<Hinter>,
    /// Nobody can reach it any more.
    pub(super) ended: watch::Sender<bool>,
}

/// A folder or an object version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id, for ever.
    pub id: NodeId,
    /// The folder it is in; itself for the root of a bucket.
    pub parent: NodeId,
    /// Its name there.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// How long this is to be trusted from now on.
    pub valid_for: Duration,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A folder.
    Folder {
        /// When its listing last changed, nanoseconds since the epoch.
        mtime_ns: u64,
        /// How long its listing is still to be trusted: zero if it is too
        /// old, `None` if it was never listed.
        listed_for: Option<Duration>,
    },
    /// One version of an object.
    Object(ObjectAttr),
}

/// How much of a listing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All names.
    Whole,
    /// All names before this one; the rest is on its way.
    Below(String),
}

/// What is known about a name without asking the remote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Child {
    /// It is this.
    Known(Node),
    /// There is none, for so long.
    Absent(Duration),
    /// The remote must be asked.
    Unknown,
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.store.places().unmount(self.root);
    }
}

impl Tree {
    pub(super) fn counted_folders() -> Mutex<LruCache<NodeId, u32>> {
        Mutex::new(LruCache::new(COUNTED_FOLDERS_MAX))
    }

    /// The mount is gone: nothing more is listed or fetched ahead for it.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    /// The folder that is mounted.
    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Files that the kernel may read without another word.
    pub fn given(&self) -> &Given {
        &self.given
    }

    /// The objects' store.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// A node, whether it is current or was replaced. Does not ask the remote.
    pub fn node(&self, id: NodeId) -> Result<Option<Node>, CacheError> {
        let row = match self.index.node(id)? {
            Some(row) => row,
            None if id == self.bucket => {
                return self.folder_node(id, id, String::new(), self.ttl).map(Some);
            }
            None => return Ok(None),
        };
        match row {
            NodeRow::Superseded { parent, name, attr } => {
                let kind = match attr {
                    Some(attr) => NodeKind::Object(attr),
                    None => NodeKind::Folder { mtime_ns: 0, listed_for: None },
                };
                Ok(Some(Node { id, parent, name, kind, valid_for: self.ttl }))
            }
            NodeRow::Current { parent, name } => {
                let Some(entry) = self.index.entry(parent, &name)? else { return Ok(None) };
                if entry.node != id {
                    return Ok(None);
                }
                let valid_for = self.entry_valid_for(parent, &entry)?;
                self.entry_node(parent, name, entry, valid_for).map(Some)
            }
        }
    }

    /// Whether the folder's listing is known and fresh.
    pub fn is_listed(&self, folder: NodeId) -> Result<bool, CacheError> {
        let row = self.index.folder(folder)?.unwrap_or_default();
        Ok(self.listing_valid_for(&row).is_some_and(|valid_for| !valid_for.is_zero()))
    }

    /// Lists the folder unless its listing is fresh.
    pub async fn ensure_listed(&self, folder: NodeId) -> Result<(), CacheError> {
        if self.is_listed(folder)? {
            return Ok(());
        }
        self.refresh(folder, Class::Demand).await
    }

    /// As [`Tree::ensure_listed`], for nobody who waits.
    pub(super) async fn ensure_listed_ahead(&self, folder: NodeId) -> Result<(), CacheError> {
        if self.is_listed(folder)? {
            return Ok(());
        }
        self.refresh(folder, Class::Prefetch).await
    }

    /// Lists the folder, as it is from now on.
    pub(super) async fn list_anew(&self, folder: NodeId) -> Result<(), CacheError> {
        if let Some(mut before) = self.listings.under_way(folder, Class::Demand) {
            // It may have been past what changed.
            let _ = before.done().await;
        }
        self.listing(folder, Class::Demand).done().await
    }

    /// The folders in a folder, as far as they are known. Blocks.
    pub fn folders_in(&self, folder: NodeId) -> Result<Vec<NodeId>, CacheError> {
        let mut folders = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let entries = self.index.entries_after(folder, after.as_deref(), 1024)?;
            let Some((last, _)) = entries.last() else { return Ok(folders) };
            after = Some(last.clone());
            let is_folder = |entry: &EntryRow| entry.object.is_none();
            folders.extend(
                entries.iter().filter(|(_, entry)| is_folder(entry)).map(|(_, entry)| entry.node),
            );
        }
    }

    /// Lists the folder. A listing that is known already stands in for one
    /// that the remote cannot give just now.
    pub(super) async fn refresh(&self, folder: NodeId, class: Class) -> Result<(), CacheError> {
        if self.is_listing_paused() && self.was_listed(folder)? {
            return Ok(());
        }
        let Err(error) = self.listing(folder, class).done().await else { return Ok(()) };
        if is_passing(&error) && self.was_listed(folder)? {
            return Ok(());
        }
        Err(error)
    }

    /// Whether the folder's listing is shown although it may be too old, while a new one
    /// is on its way: nobody waits for what hardly ever differs. Not where it is known
    /// to differ, nor for who trusts nothing (a TTL of zero).
    pub fn shows_old(&self, folder: NodeId) -> Result<bool, CacheError> {
        let listed_ms = self.index.folder(folder)?.and_then(|row| row.listed_ms);
        Ok(!self.ttl.is_zero() && listed_ms.is_some_and(|ms| ms > 0))
    }

    /// Has the folder listed anew behind those who read it, if its listing is too old.
    pub fn revalidate(&self, folder: NodeId) {
        let is_fresh = self.is_listed(folder).unwrap_or(true);
        let is_pausing = lock(&self.refused).is_some_and(|at| at.elapsed() < LISTING_PAUSE);
        if !is_fresh && !is_pausing && !self.is_listing_paused() {
            drop(self.listing(folder, Class::Ahead)); // Runs by itself.
        }
    }

    pub(super) fn is_listing_paused(&self) -> bool {
        lock(&self.listing_failed).is_some_and(|at| at.elapsed() < LISTING_PAUSE)
    }

    /// Whether the folder was ever listed, however long ago.
    pub fn was_listed(&self, folder: NodeId) -> Result<bool, CacheError> {
        Ok(self.index.folder(folder)?.is_some_and(|row| row.listed_ms.is_some()))
    }

    /// The node at `path`, relative to the root of the tree; empty for the
    /// root itself. Asks the remote where it must.
    pub async fn resolve(&self, path: &str) -> Result<Option<Node>, CacheError> {
        let mut node = self.node(self.root)?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Some(parent) = node else { return Ok(None) };
            node = match self.lookup(parent.id, name).await? {
                Child::Known(child) => Some(child),
                Child::Absent(_) | Child::Unknown => None,
            };
        }
        Ok(node)
    }

    /// The sums over everything known below a folder.
    pub fn rollup(&self, folder: NodeId) -> Result<Rollup, CacheError> {
        Ok(self.index.folder(folder)?.unwrap_or_default().rollup)
    }

    /// How much of the listing of `folder` can be read after the name `after`, at
    /// least one more entry if there is one: waits for that to come.
    pub async fn extent(&self, folder: NodeId, after: &str) -> Result<Extent, CacheError> {
        // The index may be lost amid a listing, and the folder be gone after one.
        for _ in 0..2 {
            if self.was_listed(folder)? {
                // Whoever is past the beginning goes on with what it began.
                if after.is_empty() && !self.shows_old(folder)? {
                    self.ensure_listed(folder).await?;
                }
                return Ok(Extent::Whole);
            }
            let mut listing = self.first_listing(folder, Class::Demand);
            let mut seen = after.to_owned();
            while let Some(below) = listing.known_past(&seen).await? {
                let next = self.index.entries_after(folder, Some(after), 1)?;
                if next.first().is_some_and(|(name, _)| *name < below) {
                    return Ok(Extent::Below(below));
                }
                seen = below;
            }
            if self.was_listed(folder)? {
                return Ok(Extent::Whole);
            }
        }
        Ok(Extent::Whole)
    }

    /// Up to `limit` entries of a folder after the name `after`, as they are known.
    pub fn children(
        &self,
        folder: NodeId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Node>, CacheError> {
        let row = self.index.folder(folder)?.unwrap_or_default();
        let listed_for = self.listing_valid_for(&row).unwrap_or_default();
        let entries = self.index.entries_after(folder, after, limit)?;
        let nodes = entries.into_iter().map(|(name, entry)| {
            let valid_for = match row.listed_ms {
                Some(listed_ms) if entry.seen_ms <= listed_ms => listed_for,
                _ => listed_for.max(self.seen_valid_for(&entry)),
            };
            self.entry_node(folder, name, entry, valid_for)
        });
        nodes.collect()
    }

    /// The bytes of an object node. `None` if the node is no object.
    pub fn open(&self, node: &Node) -> Result<Option<Arc<CachedObject>>, CacheError> {
        if let (NodeKind::Object(_), Some(object)) = (&node.kind, self.store.unharmed(node.id)) {
            return Ok(Some(object));
        }
        self.open_in(node, &self.prefix(node.parent)?)
    }

    /// As [`Tree::open`], for who knows the prefix of the folder it is in.
    pub(super) fn open_in(
        &self,
        node: &Node,
        prefix: &str,
    ) -> Result<Option<Arc<CachedObject>>, CacheError> {
        let meta = meta_of(node, prefix);
        Ok(meta.map(|meta| self.store.object(node.id, &meta, &self.remote)))
    }

    /// The object of a node that the index knew and lost, for who has kept the
    /// node and the prefix of its folder. Nothing of it is kept: its name is to be
    /// looked up again, and means another node then.
    pub fn open_lost(&self, node: &Node, prefix: &str) -> Option<Arc<CachedObject>> {
        let meta = meta_of(node, prefix)?;
        self.store.emit(Event::Entry(node.parent, node.name.clone()));
        Some(self.store.lost_object(node.id, &meta, &self.remote))
    }

    /// The remote no longer has the version that `node` stands for: what is
    /// known of it is looked up again at the next use.
    pub async fn expire(&self, node: &Node) -> Result<(), CacheError> {
        let (id, parent, name) = (node.id, node.parent, node.name.clone());
        self.write(move |index| {
            index.write(|write| {
                // What came after this version is not made doubtful by its end.
                let entry = write.entry(parent, &name)?.filter(|entry| entry.node == id);
                let Some(entry) = entry else { return Ok(Changes::default()) };
                let mut folder = write.folder(parent)?;
                folder.listed_ms = folder.listed_ms.map(|_| 0);
                write.put_folder(parent, &folder)?;
                write.put_entry(parent, &name, &EntryRow { seen_ms: 0, ..entry })?;
                Ok(Changes {
                    names: vec![(parent, name.clone())],
                    folders: vec![parent],
                    ..Changes::default()
                })
            })
        })
        .await
    }

    /// The folder that a node is in; `None` for the root of a bucket, and for
    /// what was replaced.
    pub(super) fn parent(&self, id: NodeId) -> Result<Option<NodeId>, CacheError> {
        Ok(match self.index.node(id)? {
            Some(NodeRow::Current { parent, .. }) => Some(parent),
            Some(NodeRow::Superseded { .. }) | None => None,
        })
    }

    /// The key of an object; of a folder its prefix.
    pub fn key(&self, node: &Node) -> Result<String, CacheError> {
        match &node.kind {
            NodeKind::Folder { .. } => self.prefix(node.id),
            NodeKind::Object(attr) => {
                let name = attr.key_name.as_ref().unwrap_or(&node.name);
                Ok(self.prefix(node.parent)? + name)
            }
        }
    }

    /// Whether versions of its objects are etags.
    pub fn versions_are_etags(&self) -> bool {
        self.remote.capabilities().version_guard == VersionGuard::IfMatch
    }

    /// The prefix of the keys in a folder: empty, or ending in `/`.
    pub fn prefix(&self, folder: NodeId) -> Result<String, CacheError> {
        let mut parts = Vec::new();
        let mut at = folder;
        while at != self.bucket && parts.len() < DEPTH_MAX {
            match self.index.node(at)? {
                Some(
                    NodeRow::Current { parent, name } | NodeRow::Superseded { parent, name, .. },
                ) => {
                    parts.push(name);
                    at = parent;
                }
                None => return Err(CacheError::Unknown(at)),
            }
        }
        Ok(parts.iter().rev().fold(String::new(), |prefix, part| prefix + part + "/"))
    }

    /// Changes the index where it blocks nobody, and tells what changed.
    pub(super) async fn write(
        &self,
        change: impl FnOnce(&Index) -> Result<Changes, CacheError> + Send + 'static,
    ) -> Result<(), CacheError> {
        let Some(tree) = self.me.upgrade() else { unreachable!("a method runs on a live tree") };
        let task = self.runtime.spawn_blocking(move || tree.announce(change(&tree.index)?));
        task.await.unwrap_or_else(|error| {
            Err(CacheError::Index(format!("a change ended abnormally: {error}")))
        })
    }

    /// Tells what changed. Blocks.
    pub(super) fn announce(&self, changes: Changes) -> Result<(), CacheError> {
        self.store.discard(&changes.superseded)?;
        for (parent, name) in changes.names {
            self.store.emit(Event::Entry(parent, name));
        }
        for folder in changes.folders {
            self.store.emit(Event::Folder(folder));
        }
        for (parent, name) in self.store.absences().take(changes.came) {
            self.store.emit(Event::Entry(parent, name));
        }
        Ok(())
    }

    pub(super) fn entry_node(
        &self,
        parent: NodeId,
        name: String,
        entry: EntryRow,
        valid_for: Duration,
    ) -> Result<Node, CacheError> {
        match entry.object {
            Some(attr) => {
                Ok(Node { id: entry.node, parent, name, kind: NodeKind::Object(attr), valid_for })
            }
            None => self.folder_node(entry.node, parent, name, valid_for),
        }
    }

    fn folder_node(
        &self,
        id: NodeId,
        parent: NodeId,
        name: String,
        valid_for: Duration,
    ) -> Result<Node, CacheError> {
        let row = self.index.folder(id)?.unwrap_or_default();
        let listed_for = self.listing_valid_for(&row);
        let mtime_ns = row.changed_ms.saturating_mul(1_000_000);
        Ok(Node { id, parent, name, kind: NodeKind::Folder { mtime_ns, listed_for }, valid_for })
    }

    fn entry_valid_for(&self, parent: NodeId, entry: &EntryRow) -> Result<Duration, CacheError> {
        let folder = self.index.folder(parent)?.unwrap_or_default();
        Ok(self.listing_valid_for(&folder).unwrap_or_default().max(self.seen_valid_for(entry)))
    }

    pub(super) fn listing_valid_for(&self, folder: &FolderRow) -> Option<Duration> {
        folder.listed_ms.map(|listed_ms| self.valid_for(listed_ms))
    }

    pub(super) fn seen_valid_for(&self, entry: &EntryRow) -> Duration {
        self.valid_for(entry.seen_ms)
    }

    fn valid_for(&self, since_ms: u64) -> Duration {
        let age = Duration::from_millis(self.clock.current_ms().saturating_sub(since_ms));
        self.ttl.saturating_sub(age)
    }
}

/// Whether the remote may do later what it could not do now.
pub(super) fn is_passing(error: &CacheError) -> bool {
    matches!(error, CacheError::Remote(error) if error.is_retryable())
}
/// An object as the remote has it; `None` for a folder.
fn meta_of(node: &Node, prefix: &str) -> Option<ObjectMeta> {
    let NodeKind::Object(attr) = &node.kind else { return None };
    let name = attr.key_name.as_ref().unwrap_or(&node.name);
    Some(ObjectMeta {
        key: Key(format!("{prefix}{name}")),
        size: attr.size,
        version: attr.version.clone(),
        mtime: UNIX_EPOCH + Duration::from_nanos(attr.mtime_ns),
    })
}
