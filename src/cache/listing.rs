//! What a listing, or a single answer, changes in the index.
//!
//! A folder is listed page by page. Every entry carries the start time of the
//! request that last saw it; when the last page is in, entries that were not
//! seen since the listing began are gone from the remote. Nothing but the
//! pages is held in memory.

use std::time::{SystemTime, UNIX_EPOCH};

use super::CacheError;
use super::index::Write;
use super::names;
use super::record::{EntryRow, FolderRow, NodeId, NodeRow, ObjectAttr, Rollup, RollupDelta};
use crate::remote::{ListPage, ObjectMeta};

/// What changed, for those who hold copies of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Names that now mean something else, or nothing.
    pub names: Vec<(NodeId, String)>,
    /// Names of a folder that was listed before, without these.
    pub came: Vec<(NodeId, String)>,
    /// Folders whose listing differs from before.
    pub folders: Vec<NodeId>,
    /// Object versions that are no longer current.
    pub superseded: Vec<NodeId>,
}

impl Changes {
    pub(super) fn add(&mut self, other: Changes) {
        self.names.extend(other.names);
        self.folders.extend(other.folders);
        self.superseded.extend(other.superseded);
        self.came.extend(other.came);
    }
}

/// Nanoseconds since the epoch, as rows keep times. Times before it are zero.
pub(super) fn to_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

const NS_PER_S: u64 = 1_000_000_000;

/// Whether two answers are about one content. Times do not tell: HEAD has them
/// in seconds where LIST may have more, and a store keeps the etag of content
/// that is uploaded again.
fn is_same_version(a: &ObjectAttr, b: &ObjectAttr) -> bool {
    a.size == b.size && a.version == b.version && a.key_name == b.key_name
}

/// One folder being brought up to date inside a write transaction.
pub(super) struct FolderUpdate<'w, 'txn> {
    write: &'w mut Write<'txn>,
    folder: NodeId,
    row: FolderRow,
    /// Start of the request whose answer is applied.
    seen_ms: u64,
    is_listing: bool,
    delta: RollupDelta,
    /// Somebody may hold a copy of what differs: a listing was known before, or was
    /// followed.
    was_seen: bool,
    differs: bool,
    changes: Changes,
}

impl<'w, 'txn> FolderUpdate<'w, 'txn> {
    /// Begins to apply an answer to a request that began at `seen_ms`.
    pub(super) fn begin(
        write: &'w mut Write<'txn>,
        folder: NodeId,
        seen_ms: u64,
    ) -> Result<Self, CacheError> {
        let row = write.folder(folder)?;
        let was_seen = row.listed_ms.is_some();
        Ok(FolderUpdate {
            write,
            folder,
            row,
            seen_ms,
            is_listing: false,
            delta: RollupDelta::default(),
            was_seen,
            differs: false,
            changes: Changes::default(),
        })
    }

    /// Writes the folder's own row and the sums above it.
    pub(super) fn end(mut self) -> Result<Changes, CacheError> {
        // The first listing changes nothing that anybody saw: a new mtime would
        // cost the kernel its copy, and `tar` would find the folder changed.
        if self.differs && self.was_seen {
            // Strictly later, whatever the clock does: directory caches compare for equality.
            self.row.changed_ms = self.seen_ms.max(self.row.changed_ms + 1);
            self.changes.folders.push(self.folder);
        }
        self.write.put_folder(self.folder, &self.row)?;
        self.write.roll_up(self.folder, self.delta)?;
        Ok(self.changes)
    }

    /// Applies one page of this folder's listing, whose keys begin with `prefix`.
    pub(super) fn page(&mut self, prefix: &str, page: &ListPage) -> Result<(), CacheError> {
        self.is_listing = true;
        // Folders first: they take the names that objects of the page share with them.
        for folder in &page.prefixes {
            let name = folder.strip_prefix(prefix).and_then(|name| name.strip_suffix('/'));
            match name {
                Some(name) if names::is_showable(name) => self.see_folder(name)?,
                _ => self.hide(),
            }
        }
        for object in &page.objects {
            let Some(name) = object.key.0.strip_prefix(prefix) else {
                tracing::warn!(key = ?object.key.0, prefix, "the listing names a key outside its prefix; ignored");
                continue;
            };
            if name.is_empty() && object.size == 0 {
                continue; // This folder's own marker.
            }
            if names::is_showable(name) {
                self.put_object(name, object)?;
            } else {
                self.hide();
            }
        }
        Ok(())
    }

    /// The listing that began at `seen_ms` was read to its end. Where that is
    /// not enough to name everything, the folder is left as listed long ago.
    pub(super) fn finish_listing(&mut self) -> Result<(), CacheError> {
        self.row.listed_ms = Some(self.seen_ms);
        let mut list_again = false;
        let mut after: Option<String> = None;
        loop {
            let batch = self.write.entries_after(self.folder, after.as_deref(), 1024)?;
            let Some((last, _)) = batch.last() else { break };
            after = Some(last.clone());
            for (name, entry) in batch {
                if entry.seen_ms >= self.seen_ms {
                    continue;
                }
                self.remove(&name, &entry)?;
                // Who followed this listing may have seen it.
                self.was_seen = true;
                if entry.object.is_none() {
                    // What was hidden while the folder seemed to be there
                    // may have a name now; only another listing tells.
                    list_again |= !self.uncover(&name)? && self.row.hidden > 0;
                }
            }
        }
        if list_again {
            self.row.listed_ms = Some(0);
        }
        Ok(())
    }

    /// Starts the count of hidden keys anew, for the first page of a listing.
    pub(super) fn reset_hidden(&mut self) {
        self.set_hidden(0);
    }

    /// So many keys of this folder cannot be shown.
    pub(super) fn set_hidden(&mut self, keys: u64) {
        self.delta.hidden += keys.cast_signed() - self.row.hidden.cast_signed();
        self.row.hidden = keys;
    }

    /// The remote has no `name` here, neither object nor folder.
    pub(super) fn put_absent(&mut self, name: &str) -> Result<(), CacheError> {
        match self.write.entry(self.folder, name)? {
            Some(entry) if entry.seen_ms <= self.seen_ms => self.remove(name, &entry),
            _ => Ok(()),
        }
    }

    /// The remote has no folder `name` here; an object it may have.
    pub(super) fn put_no_folder(&mut self, name: &str) -> Result<(), CacheError> {
        match self.write.entry(self.folder, name)? {
            Some(entry @ EntryRow { object: None, .. }) if entry.seen_ms <= self.seen_ms => {
                self.remove(name, &entry)?;
                self.uncover(name).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// The remote has this object here.
    pub(super) fn put_object(&mut self, name: &str, meta: &ObjectMeta) -> Result<(), CacheError> {
        let attr = ObjectAttr {
            size: meta.size,
            mtime_ns: to_ns(meta.mtime),
            version: meta.version.clone(),
            key_name: None,
        };
        match self.write.entry(self.folder, name)? {
            Some(EntryRow { object: None, .. }) => self.put_beside(name, attr, self.seen_ms),
            found => self.place_object(name, attr, self.seen_ms, found),
        }
    }

    /// A key of this folder cannot be shown. Counted by listings only: single
    /// answers come again and again.
    fn hide(&mut self) {
        if self.is_listing {
            self.row.hidden += 1;
            self.delta.hidden += 1;
        }
    }

    /// The object `name`, seen at `seen_ms`, stands beside the folder `name`:
    /// it is shown under another name, unless something else has that one.
    fn put_beside(&mut self, name: &str, attr: ObjectAttr, seen_ms: u64) -> Result<(), CacheError> {
        let attr = ObjectAttr { key_name: Some(name.to_owned()), ..attr };
        let Some(shown) = names::beside_folder(name) else {
            self.hide();
            return Ok(());
        };
        match self.write.entry(self.folder, &shown)? {
            Some(EntryRow { object: None, .. }) => {
                self.hide();
                Ok(())
            }
            Some(EntryRow { object: Some(other), seen_ms: other_seen_ms, .. })
                if other.key_name.is_none() && other_seen_ms >= seen_ms =>
            {
                self.hide();
                Ok(())
            }
            found => self.place_object(&shown, attr, seen_ms, found),
        }
    }

    /// A folder gave up `name`: the object that stood beside it takes the name
    /// back. Returns whether there was one.
    fn uncover(&mut self, name: &str) -> Result<bool, CacheError> {
        let Some(shown) = names::beside_folder(name) else { return Ok(false) };
        let Some(entry) = self.write.entry(self.folder, &shown)? else { return Ok(false) };
        let Some(attr) = &entry.object else { return Ok(false) };
        // What this listing has not seen is removed by it.
        let is_gone = self.row.listed_ms == Some(self.seen_ms) && entry.seen_ms < self.seen_ms;
        if attr.key_name.as_deref() != Some(name) || is_gone {
            return Ok(false);
        }
        // Under a new node: a place in the folder is told by the node before it.
        self.remove(&shown, &entry)?;
        let attr = ObjectAttr { key_name: None, ..attr.clone() };
        self.insert_seen(name, Some(attr), entry.seen_ms)?;
        Ok(true)
    }

    /// The remote had a folder of this name here, unless a later listing did
    /// not find it.
    pub(super) fn see_folder(&mut self, name: &str) -> Result<(), CacheError> {
        let is_outdated = self.row.listed_ms.is_some_and(|listed| listed > self.seen_ms)
            && self.write.entry(self.folder, name)?.is_none();
        if is_outdated { Ok(()) } else { self.put_folder(name).map(drop) }
    }

    /// There is a folder of this name here; returns its node.
    pub(super) fn put_folder(&mut self, name: &str) -> Result<NodeId, CacheError> {
        match self.write.entry(self.folder, name)? {
            Some(entry @ EntryRow { object: None, .. }) => {
                let node = entry.node;
                let entry = EntryRow { seen_ms: entry.seen_ms.max(self.seen_ms), ..entry };
                self.write.put_entry(self.folder, name, &entry)?;
                return Ok(node);
            }
            Some(entry) => {
                // A folder takes the name over; the object stays reachable beside
                // it, under a new node: a place in the folder is told by the node
                // before it, so a node that moves would hide or repeat others.
                self.remove(name, &entry)?;
                match entry.object {
                    // Its own name is another one, which a folder has already.
                    Some(ObjectAttr { key_name: Some(_), .. }) => self.hide(),
                    Some(attr) => self.put_beside(name, attr, entry.seen_ms)?,
                    None => {}
                }
            }
            None => {}
        }
        let node = self.insert(name, None)?;
        let row = FolderRow { changed_ms: self.seen_ms, ..FolderRow::default() };
        self.write.put_folder(node, &row)?;
        Ok(node)
    }

    /// Puts an object where the folder has `found`.
    fn place_object(
        &mut self,
        name: &str,
        attr: ObjectAttr,
        seen_ms: u64,
        found: Option<EntryRow>,
    ) -> Result<(), CacheError> {
        match found {
            Some(entry) => {
                if let Some(before) = &entry.object
                    && is_same_version(before, &attr)
                {
                    if before.mtime_ns / NS_PER_S != attr.mtime_ns / NS_PER_S {
                        self.changes.names.push((self.folder, name.to_owned()));
                        self.differs = true;
                    }
                    let entry = EntryRow {
                        seen_ms: entry.seen_ms.max(seen_ms),
                        object: Some(attr),
                        ..entry
                    };
                    return self.write.put_entry(self.folder, name, &entry);
                }
                if entry.seen_ms > seen_ms {
                    return Ok(()); // A later answer is there already.
                }
                self.remove(name, &entry)?;
                if entry.object.is_some_and(|before| before.key_name.is_some())
                    && attr.key_name.is_none()
                {
                    self.hide(); // It stood beside a folder, and lost that name too.
                }
            }
            // A later listing did not find it.
            None if self.row.listed_ms.is_some_and(|listed| listed > seen_ms) => return Ok(()),
            None => {}
        }
        self.insert_seen(name, Some(attr), seen_ms).map(drop)
    }

    fn insert(&mut self, name: &str, object: Option<ObjectAttr>) -> Result<NodeId, CacheError> {
        self.insert_seen(name, object, self.seen_ms)
    }

    fn insert_seen(
        &mut self,
        name: &str,
        object: Option<ObjectAttr>,
        seen_ms: u64,
    ) -> Result<NodeId, CacheError> {
        let node = self.write.allocate_node()?;
        if self.was_seen {
            self.changes.came.push((self.folder, name.to_owned()));
        }
        if let Some(attr) = &object {
            self.delta.objects += 1;
            self.delta.bytes = self.delta.bytes.saturating_add_unsigned(attr.size);
        }
        self.write
            .put_node(node, &NodeRow::Current { parent: self.folder, name: name.to_owned() })?;
        let entry = EntryRow { node, seen_ms, object };
        self.write.put_entry(self.folder, name, &entry)?;
        self.differs = true;
        Ok(node)
    }

    fn remove(&mut self, name: &str, entry: &EntryRow) -> Result<(), CacheError> {
        self.write.remove_entry(self.folder, name)?;
        self.changes.names.push((self.folder, name.to_owned()));
        self.differs = true;
        match entry.object.clone() {
            Some(attr) => self.supersede(entry.node, name, attr),
            None => self.remove_subtree(entry.node, name),
        }
    }

    fn supersede(&mut self, node: NodeId, name: &str, attr: ObjectAttr) -> Result<(), CacheError> {
        let cached = self.write.object(node)?.map_or(0, |row| row.present_bytes);
        self.delta.objects -= 1;
        self.delta.bytes = self.delta.bytes.saturating_sub_unsigned(attr.size);
        self.delta.cached_bytes -= cached.cast_signed();
        let row =
            NodeRow::Superseded { parent: self.folder, name: name.to_owned(), attr: Some(attr) };
        self.write.put_node(node, &row)?;
        self.changes.superseded.push(node);
        Ok(())
    }

    fn remove_subtree(&mut self, folder: NodeId, name: &str) -> Result<(), CacheError> {
        let Rollup { objects, bytes, cached_bytes, hidden } = self.write.folder(folder)?.rollup;
        self.delta.objects -= objects.cast_signed();
        self.delta.bytes = self.delta.bytes.saturating_sub_unsigned(bytes);
        self.delta.cached_bytes -= cached_bytes.cast_signed();
        self.delta.hidden -= hidden.cast_signed();
        let row = NodeRow::Superseded { parent: self.folder, name: name.to_owned(), attr: None };
        self.write.put_node(folder, &row)?;
        let mut pending = vec![folder];
        while let Some(parent) = pending.pop() {
            loop {
                let batch = self.write.entries_after(parent, None, 1024)?;
                if batch.is_empty() {
                    break;
                }
                for (name, entry) in batch {
                    self.write.remove_entry(parent, &name)?;
                    if entry.object.is_none() {
                        pending.push(entry.node);
                    } else {
                        self.changes.superseded.push(entry.node);
                    }
                    let row = NodeRow::Superseded { parent, name, attr: entry.object };
                    self.write.put_node(entry.node, &row)?;
                }
            }
            self.write.remove_folder(parent)?;
        }
        Ok(())
    }
}
