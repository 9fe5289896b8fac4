//! The write side of the index: one transaction, every table open, and the few
//! compound changes that keep sums and rows together.

use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};

use super::{
    CHUNKS, ENTRIES, FOLDERS, Index, META, NODE_ID_BLOCK, NODES, OBJECTS, PINS, REMOTES, Root,
    SUPERSEDED, TAG_FOLDER, TAG_NODE, chunks_key, decode_name, entries_after, entry_key,
    object_key,
};
use crate::cache::CacheError;
use crate::cache::listing::FolderUpdate;
use crate::cache::record::{
    ChunkGroupRow, EntryRow, FileId, FolderRow, Location, NodeId, NodeRow, ObjectRow, RollupDelta,
    RowKey, encode,
};
use crate::remote::RemoteId;

/// A write transaction with every table open, and the few compound changes.
pub(in crate::cache) struct Write<'txn> {
    index: &'txn Index,
    nodes: redb::Table<'txn, u64, &'static [u8]>,
    entries: redb::Table<'txn, (u64, &'static str), &'static [u8]>,
    folders: redb::Table<'txn, u64, &'static [u8]>,
    objects: redb::Table<'txn, u64, &'static [u8]>,
    chunks: redb::Table<'txn, (u64, u32), &'static [u8]>,
    superseded: redb::Table<'txn, u64, ()>,
    remotes: redb::Table<'txn, &'static str, u64>,
    pins: redb::Table<'txn, (u64, &'static str), ()>,
    meta: redb::Table<'txn, &'static str, u64>,
    /// Ids below are reserved once this is committed.
    reserved: Option<u64>,
}

impl<'txn> Write<'txn> {
    pub(in crate::cache) fn begin(
        index: &'txn Index,
        txn: &'txn WriteTransaction,
    ) -> Result<Self, CacheError> {
        Ok(Write {
            index,
            nodes: txn.open_table(NODES)?,
            entries: txn.open_table(ENTRIES)?,
            folders: txn.open_table(FOLDERS)?,
            objects: txn.open_table(OBJECTS)?,
            chunks: txn.open_table(CHUNKS)?,
            superseded: txn.open_table(SUPERSEDED)?,
            remotes: txn.open_table(REMOTES)?,
            pins: txn.open_table(PINS)?,
            meta: txn.open_table(META)?,
            reserved: None,
        })
    }

    /// Closes the tables. Returns up to where node ids are reserved by this.
    pub(in crate::cache) fn end(mut self) -> Result<Option<u64>, CacheError> {
        self.meta.insert("newest_ms", self.index.newest_ms())?;
        Ok(self.reserved)
    }
}

impl Write<'_> {
    /// Makes sure that there is something to commit: redb persists nothing in
    /// an empty transaction.
    pub(in crate::cache) fn count_sync(&mut self) -> Result<(), CacheError> {
        let syncs = self.meta.get("syncs")?.map_or(0, |v| v.value());
        self.meta.insert("syncs", syncs + 1)?;
        Ok(())
    }

    /// Nothing that was written in this boot is taken on trust any more.
    pub(in crate::cache) fn put_distrusted_boot(&mut self, boot: u128) -> Result<(), CacheError> {
        self.meta.insert("distrusted_high", (boot >> 64) as u64)?;
        self.meta.insert("distrusted_low", boot as u64)?;
        Ok(())
    }

    /// An id that no node has had.
    pub(in crate::cache) fn allocate_node(&mut self) -> Result<NodeId, CacheError> {
        let id = self.index.next_node.fetch_add(1, Ordering::Relaxed);
        if id >= self.reserved.unwrap_or_else(|| self.index.reserved.load(Ordering::Relaxed)) {
            // Only as durable as this transaction: the block after the next
            // one is reserved, so that a lost transaction costs no id twice.
            self.meta.insert("next_node", id + 2 * NODE_ID_BLOCK)?;
            self.reserved = Some(id + NODE_ID_BLOCK);
        }
        Ok(NodeId(id))
    }

    /// Puts a mount's place back, under the same nodes. What the index has of
    /// it stays; the folders on the way are listed again.
    pub(in crate::cache) fn put_root(&mut self, root: &Root) -> Result<(), CacheError> {
        let bucket = self.remotes.get(root.remote.0.as_str())?.map(|v| NodeId(v.value()));
        if bucket != Some(root.bucket) {
            if let Some(other) = bucket {
                self.empty_folder(other)?;
                self.remove_folder(other)?;
            }
            self.remotes.insert(root.remote.0.as_str(), root.bucket.0)?;
        }
        self.refresh_folder(root.bucket)?;
        let mut parent = root.bucket;
        for (name, node) in &root.path {
            if self.is_superseded(*node)? {
                break; // It was gone already, and its name may be another folder's.
            }
            self.put_root_folder(parent, name, *node)?;
            parent = *node;
        }
        Ok(())
    }

    fn put_root_folder(
        &mut self,
        parent: NodeId,
        name: &str,
        node: NodeId,
    ) -> Result<(), CacheError> {
        let known = self.entry(parent, name)?.map(|entry| entry.node);
        if known != Some(node) {
            if known.is_some() {
                // Another node of the time before the mount. Its rows and files
                // go as those of a folder do that the remote has no more.
                let mut update = FolderUpdate::begin(self, parent, self.index.newest_ms() + 1)?;
                update.put_absent(name)?;
                update.end()?;
            }
            self.put_entry(parent, name, &EntryRow { node, seen_ms: 0, object: None })?;
        }
        if self.node(node)?.is_none() {
            self.put_node(node, &NodeRow::Current { parent, name: name.to_owned() })?;
        }
        self.refresh_folder(node)
    }

    /// The folder is there, and is listed before its listing is believed.
    fn refresh_folder(&mut self, node: NodeId) -> Result<(), CacheError> {
        let row = self.folder(node)?;
        let changed_ms = self.index.newest_ms() + 1;
        self.put_folder(node, &FolderRow { listed_ms: row.listed_ms.map(|_| 0), changed_ms, ..row })
    }

    /// Nothing in the folder can be looked up any more.
    fn empty_folder(&mut self, node: NodeId) -> Result<(), CacheError> {
        let mut after: Option<String> = None;
        loop {
            let batch = self.entries_after(node, after.as_deref(), 1024)?;
            let Some((last, _)) = batch.last() else { return Ok(()) };
            after = Some(last.clone());
            let mut update = FolderUpdate::begin(self, node, self.index.newest_ms() + 1)?;
            batch.iter().try_for_each(|(name, _)| update.put_absent(name))?;
            update.end()?;
        }
    }

    /// `name` in `parent` is never evicted any more, with all below it.
    pub(in crate::cache) fn put_pin(
        &mut self,
        parent: NodeId,
        name: &str,
    ) -> Result<(), CacheError> {
        self.pins.insert((parent.0, name), ())?;
        Ok(())
    }

    pub(in crate::cache) fn remove_pin(
        &mut self,
        parent: NodeId,
        name: &str,
    ) -> Result<(), CacheError> {
        self.pins.remove((parent.0, name))?;
        Ok(())
    }

    /// The node of a bucket, created when it is met first.
    pub(in crate::cache) fn bucket(
        &mut self,
        remote: &RemoteId,
        now_ms: u64,
    ) -> Result<NodeId, CacheError> {
        if let Some(node) = self.remotes.get(remote.0.as_str())?.map(|v| v.value()) {
            return Ok(NodeId(node));
        }
        let node = self.allocate_node()?;
        self.remotes.insert(remote.0.as_str(), node.0)?;
        self.put_folder(node, &FolderRow { changed_ms: now_ms, ..FolderRow::default() })?;
        Ok(node)
    }

    pub(in crate::cache) fn node(&self, node: NodeId) -> Result<Option<NodeRow>, CacheError> {
        let row = self.nodes.get(node.0)?;
        row.map(|v| decode_name(&RowKey(TAG_NODE, node.0, &[]), v.value())).transpose()
    }

    pub(in crate::cache) fn put_node(
        &mut self,
        node: NodeId,
        row: &NodeRow,
    ) -> Result<(), CacheError> {
        let bytes = encode(&RowKey(TAG_NODE, node.0, &[]), row);
        self.nodes.insert(node.0, bytes.as_slice())?;
        if matches!(row, NodeRow::Superseded { .. }) {
            self.superseded.insert(node.0, ())?;
        }
        Ok(())
    }

    pub(in crate::cache) fn entry(
        &self,
        parent: NodeId,
        name: &str,
    ) -> Result<Option<EntryRow>, CacheError> {
        let row = self.entries.get((parent.0, name))?;
        row.map(|v| decode_name(&entry_key(parent, name), v.value())).transpose()
    }

    pub(in crate::cache) fn put_entry(
        &mut self,
        parent: NodeId,
        name: &str,
        row: &EntryRow,
    ) -> Result<(), CacheError> {
        self.index.newest_ms.fetch_max(row.seen_ms, Ordering::Relaxed);
        let bytes = encode(&entry_key(parent, name), row);
        self.entries.insert((parent.0, name), bytes.as_slice())?;
        Ok(())
    }

    pub(in crate::cache) fn remove_entry(
        &mut self,
        parent: NodeId,
        name: &str,
    ) -> Result<(), CacheError> {
        self.entries.remove((parent.0, name))?;
        Ok(())
    }

    pub(in crate::cache) fn entries_after(
        &self,
        parent: NodeId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, EntryRow)>, CacheError> {
        entries_after(&self.entries, parent, after, limit)
    }

    pub(in crate::cache) fn folder(&self, node: NodeId) -> Result<FolderRow, CacheError> {
        let row = self.folders.get(node.0)?;
        let row = row.map(|v| decode_name(&RowKey(TAG_FOLDER, node.0, &[]), v.value()));
        Ok(row.transpose()?.unwrap_or_default())
    }

    pub(in crate::cache) fn put_folder(
        &mut self,
        node: NodeId,
        row: &FolderRow,
    ) -> Result<(), CacheError> {
        let newest_ms = row.changed_ms.max(row.listed_ms.unwrap_or(0));
        self.index.newest_ms.fetch_max(newest_ms, Ordering::Relaxed);
        let bytes = encode(&RowKey(TAG_FOLDER, node.0, &[]), row);
        self.folders.insert(node.0, bytes.as_slice())?;
        Ok(())
    }

    pub(in crate::cache) fn remove_folder(&mut self, node: NodeId) -> Result<(), CacheError> {
        self.folders.remove(node.0)?;
        Ok(())
    }

    pub(in crate::cache) fn object(&self, node: NodeId) -> Result<Option<ObjectRow>, CacheError> {
        let row = self.objects.get(node.0)?;
        Ok(row.and_then(|v| self.index.decode_or_absent(&object_key(node), v.value())))
    }

    /// Writes what the cache holds of a node; sums follow in every folder above.
    pub(in crate::cache) fn put_object(
        &mut self,
        node: NodeId,
        row: &ObjectRow,
    ) -> Result<(), CacheError> {
        let before = self.object(node)?;
        let bytes = encode(&object_key(node), row);
        self.objects.insert(node.0, bytes.as_slice())?;
        self.account(node, before.as_ref(), Some(row))
    }

    /// Forgets what the cache holds of a node; returns what that was.
    pub(in crate::cache) fn remove_object(
        &mut self,
        node: NodeId,
    ) -> Result<Option<ObjectRow>, CacheError> {
        let before = self.object(node)?;
        self.objects.remove(node.0)?;
        self.chunks.retain_in((node.0, 0)..=(node.0, u32::MAX), |_, _| false)?;
        self.account(node, before.as_ref(), None)?;
        Ok(before)
    }

    /// As [`Write::remove_object`], if what the cache holds lies in `file`.
    pub(in crate::cache) fn remove_object_in(
        &mut self,
        node: NodeId,
        file: FileId,
    ) -> Result<(), CacheError> {
        match self.object(node)? {
            Some(ObjectRow { location: Location::OwnFile(other), .. }) if other != file => Ok(()),
            _ => self.remove_object(node).map(drop),
        }
    }

    /// Whether nobody can look this node up any more.
    pub(in crate::cache) fn is_superseded(&self, node: NodeId) -> Result<bool, CacheError> {
        Ok(matches!(self.node(node)?, Some(NodeRow::Superseded { .. })))
    }

    /// Removes a superseded node for good.
    pub(in crate::cache) fn remove_node(&mut self, node: NodeId) -> Result<(), CacheError> {
        self.nodes.remove(node.0)?;
        self.superseded.remove(node.0)?;
        Ok(())
    }

    pub(in crate::cache) fn put_chunk_group(
        &mut self,
        node: NodeId,
        group: u32,
        row: &ChunkGroupRow,
    ) -> Result<(), CacheError> {
        let bytes = encode(&chunks_key(node, &group.to_le_bytes()), row);
        self.chunks.insert((node.0, group), bytes.as_slice())?;
        Ok(())
    }

    fn account(
        &mut self,
        node: NodeId,
        before: Option<&ObjectRow>,
        after: Option<&ObjectRow>,
    ) -> Result<(), CacheError> {
        let bytes = |row: Option<&ObjectRow>| row.map_or(0, |r| r.present_bytes);
        let disk = |row: Option<&ObjectRow>| crate::cache::budget::disk_bytes(bytes(row));
        let add = |table: &mut redb::Table<'_, &'static str, u64>, key, plus: u64, minus: u64| {
            let value = table.get(key)?.map_or(0, |v| v.value());
            table.insert(key, (value + plus).saturating_sub(minus))?;
            Ok::<_, CacheError>(())
        };
        let count = |row: Option<&ObjectRow>| u64::from(bytes(row) > 0);
        add(&mut self.meta, "objects", count(after), count(before))?;
        add(&mut self.meta, "disk_bytes", disk(after), disk(before))?;
        let delta = bytes(after).cast_signed() - bytes(before).cast_signed();
        // What a superseded node holds was taken out of the sums when it was superseded.
        if let Some(NodeRow::Current { parent, .. }) = self.node(node)? {
            self.roll_up(parent, RollupDelta { cached_bytes: delta, ..RollupDelta::default() })?;
        }
        Ok(())
    }

    /// Adds `delta` to the sums of `folder` and of every folder above it.
    pub(in crate::cache) fn roll_up(
        &mut self,
        folder: NodeId,
        delta: RollupDelta,
    ) -> Result<(), CacheError> {
        if delta == RollupDelta::default() {
            return Ok(());
        }
        let mut at = Some(folder);
        // A key has at most 1,024 bytes, so no chain of folders is longer.
        for _ in 0..1024 {
            let Some(node) = at else { break };
            let mut row = self.folder(node)?;
            row.rollup.apply(delta);
            self.put_folder(node, &row)?;
            at = match self.node(node)? {
                Some(NodeRow::Current { parent, .. }) => Some(parent),
                _ => None,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::cache::record::Rollup;
    use crate::remote::{Key, ObjectMeta, Version};

    const LISTED_MS: u64 = 1000;

    /// An index with one object in a folder that is mounted, and what it has.
    struct Filled {
        _dir: tempfile::TempDir,
        index: Index,
        root: Root,
        entry: EntryRow,
    }

    impl Filled {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let index =
                Index::open(&dir.path().join("index.redb"), crate::cache::index::PAGE_CACHE_BYTES)
                    .unwrap()
                    .index;
            let remote = RemoteId("scripted://x".into());
            let (root, entry) = index.write(|write| fill(write, remote)).unwrap();
            Filled { _dir: dir, index, root, entry }
        }

        fn put(&self, root: &Root) {
            self.index.write(|write| write.put_root(root)).unwrap();
        }

        fn folder(&self, node: NodeId) -> FolderRow {
            self.index.folder(node).unwrap().unwrap()
        }

        fn is_superseded(&self, node: NodeId) -> bool {
            matches!(self.index.node(node), Ok(Some(NodeRow::Superseded { .. })))
        }
    }

    fn fill(write: &mut Write<'_>, remote: RemoteId) -> Result<(Root, EntryRow), CacheError> {
        let bucket = write.bucket(&remote, 1)?;
        let mut update = FolderUpdate::begin(write, bucket, LISTED_MS)?;
        let folder = update.put_folder("d")?;
        update.finish_listing()?;
        update.end()?;
        let object = ObjectMeta {
            key: Key("d/a".to_owned()),
            size: 5,
            version: Version("v1".to_owned()),
            mtime: UNIX_EPOCH,
        };
        let mut update = FolderUpdate::begin(write, folder, LISTED_MS)?;
        update.put_object("a", &object)?;
        update.end()?;
        let Some(entry) = write.entry(folder, "a")? else { panic!("it was put") };
        Ok((Root { remote, bucket, path: vec![("d".to_owned(), folder)] }, entry))
    }

    #[test]
    fn a_root_that_is_put_again_keeps_all_that_is_below_it() {
        let filled = Filled::new();
        let (bucket, folder) = (filled.root.bucket, filled.root.path[0].1);
        let before = (filled.folder(bucket), filled.folder(folder));
        filled.put(&filled.root);
        let after = (filled.folder(bucket), filled.folder(folder));
        assert_eq!(after.0.rollup, Rollup { objects: 1, bytes: 5, ..Rollup::default() });
        assert_eq!(after.1.rollup, before.1.rollup);
        assert_eq!(filled.index.entry(folder, "a").unwrap(), Some(filled.entry.clone()));
        // Listed again if it was listed at all, and seen to have changed.
        assert_eq!((before.0.listed_ms, after.0.listed_ms), (Some(LISTED_MS), Some(0)));
        assert_eq!((before.1.listed_ms, after.1.listed_ms), (None, None));
        assert!(after.0.changed_ms > LISTED_MS && after.1.changed_ms > LISTED_MS);
    }

    #[test]
    fn a_root_of_other_nodes_takes_their_place() {
        let filled = Filled::new();
        let (bucket, folder) = (filled.root.bucket, filled.root.path[0].1);
        let other = NodeId(folder.0 + 1000);
        filled.put(&Root { path: vec![("d".to_owned(), other)], ..filled.root.clone() });
        assert_eq!(filled.index.entry(bucket, "d").unwrap().unwrap().node, other);
        assert_eq!(filled.folder(bucket).rollup, Rollup::default());
        assert_eq!(filled.folder(other).rollup, Rollup::default());
        assert!(filled.is_superseded(folder) && filled.is_superseded(filled.entry.node));
        let superseded = filled.index.superseded().unwrap();
        assert!(superseded.contains(&folder) && superseded.contains(&filled.entry.node));
        // It does not come back.
        filled.put(&filled.root);
        assert_eq!(filled.index.entry(bucket, "d").unwrap().unwrap().node, other);
    }

    #[test]
    fn a_bucket_of_another_node_takes_its_place() {
        let filled = Filled::new();
        let (bucket, folder) = (filled.root.bucket, filled.root.path[0].1);
        let other = NodeId(folder.0 + 1000);
        filled.put(&Root { bucket: other, path: Vec::new(), ..filled.root.clone() });
        let found = filled.index.write(|write| write.bucket(&filled.root.remote, 1)).unwrap();
        assert_eq!(found, other);
        assert_eq!(filled.index.folder(bucket).unwrap(), None);
        assert!(filled.is_superseded(folder) && filled.is_superseded(filled.entry.node));
    }

    #[test]
    fn an_error_of_a_change_itself_is_no_failed_commit() {
        let filled = Filled::new();
        for _ in 0..=crate::cache::index::FAILED_COMMITS_MAX {
            let failed = |_: &mut Write<'_>| Err::<(), _>(CacheError::Io("a file".to_owned()));
            filled.index.write_durably(failed).unwrap_err();
        }
        assert!(!filled.index.is_in_memory());
    }
}
