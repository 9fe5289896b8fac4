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

    /// Puts a mount's place back into an empty index, under the same nodes.
    pub(in crate::cache) fn put_root(&mut self, root: &Root) -> Result<(), CacheError> {
        let row = FolderRow { changed_ms: self.index.newest_ms() + 1, ..FolderRow::default() };
        self.remotes.insert(root.remote.0.as_str(), root.bucket.0)?;
        self.put_folder(root.bucket, &row)?;
        let mut parent = root.bucket;
        for (name, node) in &root.path {
            self.put_node(*node, &NodeRow::Current { parent, name: name.clone() })?;
            self.put_entry(parent, name, &EntryRow { node: *node, seen_ms: 0, object: None })?;
            self.put_folder(*node, &row)?;
            parent = *node;
        }
        Ok(())
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
