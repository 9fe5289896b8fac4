//! The index: what is known of remotes, and what the cache holds.
//!
//! Owns `index.redb` in the cache directory. Rules:
//!
//! - One process opens it. Losing it empties the cache and loses nothing else.
//! - Rows are keyed (parent, name), since the order of full keys is not the
//!   order of a directory. Keys are absolute in their bucket, so that mounts of
//!   several prefixes share what they cache.
//! - Writes become visible at once and durable with the next [`Index::sync`],
//!   which the store calls about twice a second. No reader waits for a disk.
//! - No transaction outlives one call: a long reader pins pages.
//! - An I/O error latches redb until the file is opened again, so it is opened
//!   again: what was not durable is lost, and asked of the remote once more.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use redb::{
    Database, DatabaseError, Durability, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction,
};

use super::CacheError;
use super::record::{
    ChunkGroupRow, EntryRow, FolderRow, NodeId, NodeRow, ObjectRow, RollupDelta, RowKey, decode,
    encode,
};
use crate::remote::RemoteId;

/// Version of the tables below. Another one on disk is set aside.
const SCHEMA: u64 = 1;

/// Page cache of the index. Enough for the upper levels of a tree of millions
/// of rows; redb's own default of 1 GiB is more than our whole budget.
const PAGE_CACHE_BYTES: usize = 32 << 20;

/// Node ids are reserved durably in blocks, so that none is ever used twice
/// although most transactions are not durable by themselves.
const NODE_ID_BLOCK: u64 = 1 << 20;

/// Ids below are left to the file system (1 is the root of every mount).
const FIRST_NODE_ID: u64 = 16;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REMOTES: TableDefinition<'_, &str, u64> = TableDefinition::new("remotes");
const NODES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("nodes");
const ENTRIES: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("entries");
const FOLDERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("folders");
const OBJECTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("objects");
const CHUNKS: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("chunks");
const SUPERSEDED: TableDefinition<'_, u64, ()> = TableDefinition::new("superseded");

const TAG_NODE: u8 = 1;
const TAG_ENTRY: u8 = 2;
const TAG_FOLDER: u8 = 3;
const TAG_OBJECT: u8 = 4;
const TAG_CHUNKS: u8 = 5;

/// What the cache holds in all, kept beside the rows so that nothing scans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Objects with at least one chunk.
    pub objects: u64,
    /// Bytes of disk their chunks take, in whole blocks.
    pub disk_bytes: u64,
}

/// The open index.
#[derive(Debug)]
pub(super) struct Index {
    /// `None` once closed, and after a failure until it can be opened again.
    db: RwLock<Option<Database>>,
    closed: AtomicBool,
    /// Something was written that is not durable yet.
    pending: AtomicBool,
    /// Latest time in any row.
    newest_ms: AtomicU64,
    path: PathBuf,
    next_node: AtomicU64,
    /// First id that is not reserved on disk.
    reserved: AtomicU64,
}

/// An index that was opened, and whether what it described is gone.
pub(super) struct Opened {
    pub index: Index,
    /// The index was created anew: files of the store belong to nobody.
    pub fresh: bool,
}

impl Index {
    /// Opens `path`, or creates it. One that is damaged or of another schema
    /// is set aside, and an empty one takes its place. One that somebody else
    /// holds open, or that cannot be read just now, is left where it is.
    pub(super) fn open(path: &Path) -> Result<Opened, CacheError> {
        let existed = path.exists();
        match Self::try_open(path) {
            Ok(opened) => Ok(opened),
            Err(reason) if existed && is_damaged(&reason) => {
                let aside = path.with_extension("redb.damaged");
                tracing::warn!(%reason, "the cache index cannot be used and is set aside; the cache starts empty");
                std::fs::rename(path, &aside).map_err(CacheError::io(&aside))?;
                super::kill_point::reach("index-damaged-aside");
                Self::try_open(path).map_err(|e| CacheError::Index(e.to_string()))
            }
            Err(reason) => Err(CacheError::Index(format!("{}: {reason}", path.display()))),
        }
    }

    fn try_open(path: &Path) -> Result<Opened, redb::Error> {
        let db = open_database(path)?;
        let Prepared { next_node, newest_ms, fresh } = Self::prepare(&db)?;
        let index = Index {
            db: RwLock::new(Some(db)),
            closed: AtomicBool::new(false),
            pending: AtomicBool::new(false),
            newest_ms: AtomicU64::new(newest_ms),
            path: path.to_owned(),
            next_node: AtomicU64::new(next_node),
            reserved: AtomicU64::new(next_node + NODE_ID_BLOCK),
        };
        Ok(Opened { index, fresh })
    }

    /// Makes sure of every table, and reserves node ids.
    fn prepare(db: &Database) -> Result<Prepared, redb::Error> {
        let txn = begin_durable(db)?;
        let prepared;
        {
            let mut meta = txn.open_table(META)?;
            let schema = meta.get("schema")?.map(|v| v.value());
            if schema.is_some_and(|found| found != SCHEMA) {
                return Err(redb::Error::Corrupted(format!("schema {schema:?}, not {SCHEMA}")));
            }
            let next_node = meta.get("next_node")?.map_or(FIRST_NODE_ID, |v| v.value());
            let newest_ms = meta.get("newest_ms")?.map_or(0, |v| v.value());
            prepared = Prepared { next_node, newest_ms, fresh: schema.is_none() };
            meta.insert("schema", SCHEMA)?;
            meta.insert("next_node", next_node + NODE_ID_BLOCK)?;
            txn.open_table(REMOTES)?;
            txn.open_table(NODES)?;
            txn.open_table(ENTRIES)?;
            txn.open_table(FOLDERS)?;
            txn.open_table(OBJECTS)?;
            txn.open_table(CHUNKS)?;
            txn.open_table(SUPERSEDED)?;
        }
        txn.commit()?;
        super::kill_point::reach("index-schema-written");
        Ok(prepared)
    }

    /// The latest time in any row. Clocks go back; what came later must not
    /// seem to have come earlier for that.
    pub(super) fn newest_ms(&self) -> u64 {
        self.newest_ms.load(Ordering::Relaxed)
    }

    /// Lets go of the file, so that it can be opened again whoever still holds
    /// this. Everything fails from now on.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        *self.db.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Runs `work` on the open database. If redb fails, opens it again for the next call.
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let result = {
            let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
            match &*db {
                Some(db) => work(db),
                None => Err(CacheError::Index("it is not open".to_owned())),
            }
        };
        if matches!(result, Err(CacheError::Index(_))) && !self.closed.load(Ordering::Relaxed) {
            self.reopen();
        }
        result
    }

    fn reopen(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been here first; and not every error is the disk's.
        let works = |db: &Database| db.begin_write().is_ok_and(|txn| txn.abort().is_ok());
        if self.closed.load(Ordering::Relaxed) || db.as_ref().is_some_and(works) {
            return;
        }
        *db = None; // Before it is opened again: it holds a lock on the file.
        match open_database(&self.path) {
            Ok(opened) => *db = Some(opened),
            Err(error) => tracing::warn!(%error, "the cache index cannot be opened again"),
        }
    }

    fn read<T>(
        &self,
        read: impl Fn(&ReadTransaction) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let run = |db: &Database| read(&db.begin_read()?);
        match self.with_database(run) {
            Err(CacheError::Index(_)) => self.with_database(run),
            result => result,
        }
    }

    /// Bytes of disk the index itself takes.
    pub(super) fn disk_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.path).map_or(0, |m| m.blocks() * 512)
    }

    /// Runs `change` in one transaction, visible when this returns. Blocks
    /// while another write runs: not for a FUSE or async thread.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let result = self.write_with(Durability::None, change);
        self.pending.store(true, Ordering::Relaxed);
        result
    }

    /// As [`Index::write`], and everything written so far is on disk when this returns.
    pub(super) fn write_durably<T>(
        &self,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        self.pending.store(false, Ordering::Relaxed);
        let result = self.write_with(Durability::Immediate, change);
        if result.is_err() {
            self.pending.store(true, Ordering::Relaxed);
        }
        result
    }

    fn write_with<T>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        self.with_database(|db| {
            let mut txn = begin_durable(db)?;
            txn.set_durability(durability).map_err(|e| CacheError::Index(e.to_string()))?;
            let result = {
                let mut write = Write {
                    index: self,
                    nodes: txn.open_table(NODES)?,
                    entries: txn.open_table(ENTRIES)?,
                    folders: txn.open_table(FOLDERS)?,
                    objects: txn.open_table(OBJECTS)?,
                    chunks: txn.open_table(CHUNKS)?,
                    superseded: txn.open_table(SUPERSEDED)?,
                    remotes: txn.open_table(REMOTES)?,
                    meta: txn.open_table(META)?,
                };
                let result = change(&mut write)?;
                write.meta.insert("newest_ms", self.newest_ms())?;
                result
            };
            super::kill_point::reach("index-uncommitted");
            txn.commit()?;
            Ok(result)
        })
    }

    /// Makes everything written so far durable, if anything is not.
    pub(super) fn sync_pending(&self) -> Result<(), CacheError> {
        if self.pending.load(Ordering::Relaxed) { self.sync() } else { Ok(()) }
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<(), CacheError> {
        self.write_durably(|write| {
            // redb has nothing to persist in a transaction without a change.
            let syncs = write.meta.get("syncs")?.map_or(0, |v| v.value());
            write.meta.insert("syncs", syncs + 1)?;
            Ok(())
        })
    }

    /// The row of a node.
    pub(super) fn node(&self, node: NodeId) -> Result<Option<NodeRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(NODES)?.get(node.0)?;
            Ok(row.and_then(|v| decode(&RowKey(TAG_NODE, node.0, &[]), v.value())))
        })
    }

    /// What `parent` has under `name`.
    pub(super) fn entry(&self, parent: NodeId, name: &str) -> Result<Option<EntryRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(ENTRIES)?.get((parent.0, name))?;
            Ok(row.and_then(|v| decode(&entry_key(parent, name), v.value())))
        })
    }

    /// Up to `limit` entries of `parent` after the name `after`, in order.
    pub(super) fn entries_after(
        &self,
        parent: NodeId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, EntryRow)>, CacheError> {
        self.read(|txn| entries_after(&txn.open_table(ENTRIES)?, parent, after, limit))
    }

    /// The row of a folder.
    pub(super) fn folder(&self, node: NodeId) -> Result<Option<FolderRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(FOLDERS)?.get(node.0)?;
            Ok(row.and_then(|v| decode(&RowKey(TAG_FOLDER, node.0, &[]), v.value())))
        })
    }

    /// What the cache holds of a node.
    pub(super) fn object(&self, node: NodeId) -> Result<Option<ObjectRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(OBJECTS)?.get(node.0)?;
            Ok(row.and_then(|v| decode(&RowKey(TAG_OBJECT, node.0, &[]), v.value())))
        })
    }

    /// The chunk groups of a node; damaged ones are left out.
    pub(super) fn chunk_groups(
        &self,
        node: NodeId,
    ) -> Result<Vec<(u32, ChunkGroupRow)>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(CHUNKS)?;
            let mut groups = Vec::new();
            for row in table.range((node.0, 0)..=(node.0, u32::MAX))? {
                let (key, value) = row?;
                let group = key.value().1;
                if let Some(row) = decode(&chunks_key(node, &group.to_le_bytes()), value.value()) {
                    groups.push((group, row));
                }
            }
            Ok(groups)
        })
    }

    /// What the cache holds in all.
    pub(super) fn totals(&self) -> Result<Totals, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(META)?;
            let get = |key| Ok::<_, CacheError>(table.get(key)?.map_or(0, |v| v.value()));
            Ok(Totals { objects: get("objects")?, disk_bytes: get("disk_bytes")? })
        })
    }

    /// Nodes that are no longer anybody's current version.
    pub(super) fn superseded(&self) -> Result<Vec<NodeId>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(SUPERSEDED)?;
            let nodes = table.iter()?.map(|row| Ok(NodeId(row?.0.value())));
            nodes.collect()
        })
    }
}

/// A write transaction with every table open, and the few compound changes.
pub(super) struct Write<'txn> {
    index: &'txn Index,
    nodes: redb::Table<'txn, u64, &'static [u8]>,
    entries: redb::Table<'txn, (u64, &'static str), &'static [u8]>,
    folders: redb::Table<'txn, u64, &'static [u8]>,
    objects: redb::Table<'txn, u64, &'static [u8]>,
    chunks: redb::Table<'txn, (u64, u32), &'static [u8]>,
    superseded: redb::Table<'txn, u64, ()>,
    remotes: redb::Table<'txn, &'static str, u64>,
    meta: redb::Table<'txn, &'static str, u64>,
}

impl Write<'_> {
    /// An id that no node has had.
    pub(super) fn allocate_node(&mut self) -> Result<NodeId, CacheError> {
        let id = self.index.next_node.fetch_add(1, Ordering::Relaxed);
        if id >= self.index.reserved.load(Ordering::Relaxed) {
            // Only as durable as this transaction: the block after the next
            // one is reserved, so that a lost transaction costs no id twice.
            let reserved = id + 2 * NODE_ID_BLOCK;
            self.meta.insert("next_node", reserved)?;
            self.index.reserved.store(id + NODE_ID_BLOCK, Ordering::Relaxed);
        }
        Ok(NodeId(id))
    }

    /// The node of a bucket, created when it is met first.
    pub(super) fn bucket(&mut self, remote: &RemoteId, now_ms: u64) -> Result<NodeId, CacheError> {
        if let Some(node) = self.remotes.get(remote.0.as_str())?.map(|v| v.value()) {
            return Ok(NodeId(node));
        }
        let node = self.allocate_node()?;
        self.remotes.insert(remote.0.as_str(), node.0)?;
        self.put_folder(node, &FolderRow { changed_ms: now_ms, ..FolderRow::default() })?;
        Ok(node)
    }

    pub(super) fn node(&self, node: NodeId) -> Result<Option<NodeRow>, CacheError> {
        let row = self.nodes.get(node.0)?;
        Ok(row.and_then(|v| decode(&RowKey(TAG_NODE, node.0, &[]), v.value())))
    }

    pub(super) fn put_node(&mut self, node: NodeId, row: &NodeRow) -> Result<(), CacheError> {
        let bytes = encode(&RowKey(TAG_NODE, node.0, &[]), row);
        self.nodes.insert(node.0, bytes.as_slice())?;
        if matches!(row, NodeRow::Superseded { .. }) {
            self.superseded.insert(node.0, ())?;
        }
        Ok(())
    }

    pub(super) fn entry(&self, parent: NodeId, name: &str) -> Result<Option<EntryRow>, CacheError> {
        let row = self.entries.get((parent.0, name))?;
        Ok(row.and_then(|v| decode(&entry_key(parent, name), v.value())))
    }

    pub(super) fn put_entry(
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

    pub(super) fn remove_entry(&mut self, parent: NodeId, name: &str) -> Result<(), CacheError> {
        self.entries.remove((parent.0, name))?;
        Ok(())
    }

    pub(super) fn entries_after(
        &self,
        parent: NodeId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, EntryRow)>, CacheError> {
        entries_after(&self.entries, parent, after, limit)
    }

    pub(super) fn folder(&self, node: NodeId) -> Result<FolderRow, CacheError> {
        let row = self.folders.get(node.0)?;
        let row = row.and_then(|v| decode(&RowKey(TAG_FOLDER, node.0, &[]), v.value()));
        Ok(row.unwrap_or_default())
    }

    pub(super) fn put_folder(&mut self, node: NodeId, row: &FolderRow) -> Result<(), CacheError> {
        let newest_ms = row.changed_ms.max(row.listed_ms.unwrap_or(0));
        self.index.newest_ms.fetch_max(newest_ms, Ordering::Relaxed);
        let bytes = encode(&RowKey(TAG_FOLDER, node.0, &[]), row);
        self.folders.insert(node.0, bytes.as_slice())?;
        Ok(())
    }

    pub(super) fn remove_folder(&mut self, node: NodeId) -> Result<(), CacheError> {
        self.folders.remove(node.0)?;
        Ok(())
    }

    pub(super) fn object(&self, node: NodeId) -> Result<Option<ObjectRow>, CacheError> {
        let row = self.objects.get(node.0)?;
        Ok(row.and_then(|v| decode(&RowKey(TAG_OBJECT, node.0, &[]), v.value())))
    }

    /// Writes what the cache holds of a node; sums follow in every folder above.
    pub(super) fn put_object(&mut self, node: NodeId, row: &ObjectRow) -> Result<(), CacheError> {
        let before = self.object(node)?;
        let bytes = encode(&RowKey(TAG_OBJECT, node.0, &[]), row);
        self.objects.insert(node.0, bytes.as_slice())?;
        self.account(node, before.as_ref(), Some(row))
    }

    /// Forgets what the cache holds of a node; returns what that was.
    pub(super) fn remove_object(&mut self, node: NodeId) -> Result<Option<ObjectRow>, CacheError> {
        let before = self.object(node)?;
        self.objects.remove(node.0)?;
        self.chunks.retain_in((node.0, 0)..=(node.0, u32::MAX), |_, _| false)?;
        self.account(node, before.as_ref(), None)?;
        Ok(before)
    }

    /// Whether nobody can look this node up any more.
    pub(super) fn is_superseded(&self, node: NodeId) -> Result<bool, CacheError> {
        Ok(matches!(self.node(node)?, Some(NodeRow::Superseded { .. })))
    }

    /// Removes a superseded node for good.
    pub(super) fn remove_node(&mut self, node: NodeId) -> Result<(), CacheError> {
        self.nodes.remove(node.0)?;
        self.superseded.remove(node.0)?;
        Ok(())
    }

    pub(super) fn put_chunk_group(
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
        let disk = |row: Option<&ObjectRow>| super::budget::disk_bytes(bytes(row));
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
    pub(super) fn roll_up(&mut self, folder: NodeId, delta: RollupDelta) -> Result<(), CacheError> {
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

/// What an index that was opened says of itself.
struct Prepared {
    /// The first node id of those reserved.
    next_node: u64,
    newest_ms: u64,
    /// The tables are new.
    fresh: bool,
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    #[cfg(test)]
    if let Some(recorded) = super::power_loss_tests::open_recorded(path) {
        return Ok(recorded);
    }
    Database::builder().set_cache_size(PAGE_CACHE_BYTES).create(path)
}

/// Whether an index file itself is at fault. What the machine refuses (a full
/// disk, too many open files) says nothing of what the file holds: the cache
/// must not be emptied for it.
fn is_damaged(error: &redb::Error) -> bool {
    match error {
        // redb's own verdicts on a file come as I/O errors too, without a number.
        redb::Error::Io(error) => error.raw_os_error().is_none(),
        redb::Error::DatabaseAlreadyOpen
        | redb::Error::PreviousIo
        | redb::Error::TransactionInProgress => false,
        _ => true,
    }
}

fn begin_durable(db: &Database) -> Result<WriteTransaction, redb::TransactionError> {
    let mut txn = db.begin_write()?;
    // The index opens in a millisecond after a crash instead of walking the file.
    txn.set_quick_repair(true);
    Ok(txn)
}

fn entry_key<'a>(parent: NodeId, name: &'a str) -> RowKey<'a> {
    RowKey(TAG_ENTRY, parent.0, name.as_bytes())
}

fn chunks_key<'a>(node: NodeId, group: &'a [u8; 4]) -> RowKey<'a> {
    RowKey(TAG_CHUNKS, node.0, group)
}

fn entries_after(
    table: &impl ReadableTable<(u64, &'static str), &'static [u8]>,
    parent: NodeId,
    after: Option<&str>,
    limit: usize,
) -> Result<Vec<(String, EntryRow)>, CacheError> {
    use std::ops::Bound;
    let start = match after {
        Some(name) => Bound::Excluded((parent.0, name)),
        None => Bound::Included((parent.0, "")),
    };
    let end = Bound::Excluded((parent.0 + 1, ""));
    let mut entries = Vec::new();
    for row in table.range::<(u64, &str)>((start, end))?.take(limit) {
        let (key, value) = row?;
        let name = key.value().1;
        if let Some(row) = decode(&entry_key(parent, name), value.value()) {
            entries.push((name.to_owned(), row));
        }
    }
    Ok(entries)
}
