//! The index: what is known of remotes, and what the cache holds.
//!
//! Owns `index.redb` and `index.sums` in the cache directory. Rules:
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
//! - Where it cannot be opened again, it goes on in memory (see [`memory`]).
//! - Every page that redb reads is compared to a checksum of ours, which lies
//!   beside the index: redb checks its own only when it repairs.
//! - Damage found at run time is met as at the start: the file is set aside and
//!   an empty index takes its place. Mounts keep their roots, and no node id is
//!   used twice. redb panics over some damaged pages, so panics count as damage.

mod checked_file;
mod memory;
mod sums;
#[cfg(test)]
mod sums_tests;
mod write;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{
    Database, Durability, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition,
    WriteTransaction,
};
use serde::de::DeserializeOwned;

use super::record::{
    ChunkGroupRow, EntryRow, FolderRow, NodeId, NodeRow, ObjectRow, RowKey, decode,
};
use super::{CacheError, boot_id, kill_point, lock};
use crate::remote::RemoteId;
use checked_file::CheckedFile;
use memory::{FAILED_COMMITS_MAX, FULL_COMMITS_MAX};
use sums::{Left, Sums};
pub(super) use write::Write;

/// Version of the tables below. Another one on disk is set aside.
const SCHEMA: u64 = 3;

/// How often one index file may be reported as damaged and found sound before
/// it is set aside all the same: its checksums say nothing of a defect of ours.
const FALSE_ALARMS_MAX: u64 = 3;

/// Page cache of the index where nobody says so. Enough for the upper levels of a tree of
/// millions of rows; redb's own default of 1 GiB is more than our whole budget.
pub(super) const PAGE_CACHE_BYTES: usize = 32 << 20;

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
const PINS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("pins");

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
    page_cache_bytes: usize,
    next_node: AtomicU64,
    /// First id that is not reserved on disk.
    reserved: AtomicU64,
    /// How often what it held was lost since it was opened.
    losses: AtomicU64,
    /// Reports of damage in the file as it is now.
    alarms: AtomicU64,
    /// The file cannot be used for now.
    in_memory: AtomicBool,
    /// Durable commits that failed, since one did not.
    failed_commits: AtomicU64,
    /// Rows of objects that were found damaged, and read as absent.
    damaged_rows: AtomicU64,
    /// Where mounts stand: put back when what the index held is lost.
    roots: Mutex<Vec<Root>>,
    /// How often the file was opened again.
    openings: AtomicU64,
    /// What is known of the file's pages.
    sums: Arc<Sums>,
}

/// A bucket, and a folder in it that is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    pub remote: RemoteId,
    pub bucket: NodeId,
    /// The folders from the bucket down, by name.
    pub path: Vec<(String, NodeId)>,
}

/// An index that was opened, and what of the store it describes.
pub(super) struct Opened {
    pub index: Index,
    /// The index was created anew: files of the store belong to nobody.
    pub fresh: bool,
    /// The one who had it open last closed it.
    pub clean: bool,
}

impl Index {
    /// Opens `path`, or creates it. One that is damaged or of another schema
    /// is set aside, and an empty one takes its place. One that somebody else
    /// holds open, or that cannot be read just now, is left where it is.
    pub(super) fn open(path: &Path, page_cache_bytes: usize) -> Result<Opened, CacheError> {
        let existed = path.exists();
        let failed = |error: redb::Error| CacheError::Index(format!("{}: {error}", path.display()));
        let boot = kill_point::pretended_boot().unwrap_or_else(boot_id);
        let (sums, left) = Sums::load(path, boot);
        let sums = Arc::new(sums);
        let prepare = |db| prepare(db, FIRST_NODE_ID);
        // Before anybody waits for it: what is met later is lost under a reader.
        let is_known = match left {
            Left::Closed => true,
            Left::Open => sums.match_all(),
            Left::Nothing => false,
        };
        let opened = match existed && !is_known {
            true => open_checked(path, &sums, page_cache_bytes).and_then(prepare),
            false => match open_database(path, &sums, page_cache_bytes).and_then(prepare) {
                // It may be the sums that are damaged.
                Err(reason) if existed && is_damaged(&reason) => {
                    open_checked(path, &sums, page_cache_bytes).and_then(prepare)
                }
                opened => opened,
            },
        };
        let (db, prepared) = match opened {
            Err(reason) if existed && is_damaged(&reason) => {
                set_aside(path, &reason)?;
                open_database(path, &sums, page_cache_bytes).and_then(prepare).map_err(failed)?
            }
            opened => opened.map_err(failed)?,
        };
        sums.keep();
        let Prepared { next_node, newest_ms, fresh } = prepared;
        let index = Index {
            db: RwLock::new(Some(db)),
            closed: AtomicBool::new(false),
            pending: AtomicBool::new(false),
            newest_ms: AtomicU64::new(newest_ms),
            path: path.to_owned(),
            page_cache_bytes,
            next_node: AtomicU64::new(next_node),
            reserved: AtomicU64::new(next_node + NODE_ID_BLOCK),
            losses: AtomicU64::new(0),
            alarms: AtomicU64::new(0),
            in_memory: AtomicBool::new(false),
            failed_commits: AtomicU64::new(0),
            damaged_rows: AtomicU64::new(0),
            roots: Mutex::default(),
            openings: AtomicU64::new(0),
            sums,
        };
        Ok(Opened { index, fresh, clean: left == Left::Closed })
    }

    /// The latest time in any row. Clocks go back; what came later must not
    /// seem to have come earlier for that.
    pub(super) fn newest_ms(&self) -> u64 {
        self.newest_ms.load(Ordering::Relaxed)
    }

    /// How often everything was lost since the start: who holds what it read
    /// before holds what is no longer there.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Damaged rows found since this was last asked.
    pub(super) fn take_damaged_rows(&self) -> u64 {
        self.damaged_rows.swap(0, Ordering::Relaxed)
    }

    /// A mount stands here.
    pub(super) fn add_root(&self, root: Root) {
        let mut roots = lock(&self.roots);
        if !roots.contains(&root) {
            roots.push(root);
        }
    }

    /// Lets go of the file, so that it can be opened again whoever still holds
    /// this; notes that it was left in order, if it is `clean`. Everything
    /// fails from now on.
    pub(super) fn close(&self, clean: bool) -> Result<(), CacheError> {
        let synced = self.sync();
        self.closed.store(true, Ordering::Relaxed);
        let db = self.db.write().unwrap_or_else(PoisonError::into_inner).take();
        // Its drop tidies up, and may meet damage doing so.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(db)));
        let in_order = clean && synced.is_ok() && dropped.is_ok();
        self.sums.close(in_order && !self.is_in_memory());
        synced
    }

    /// Runs `work` on the open database. If redb fails, opens it again for the next call.
    fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let opening;
        let result = {
            let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
            opening = self.openings.load(Ordering::Relaxed);
            match &*db {
                Some(db) => catch_unwind(AssertUnwindSafe(|| work(db))).unwrap_or_else(|_| {
                    Err(CacheError::Damaged("reading it ended abnormally".to_owned()))
                }),
                None => Err(CacheError::Index("it is not open".to_owned())),
            }
        };
        match &result {
            Err(CacheError::Damaged(reason)) => self.reopen(Some(reason), opening),
            Err(CacheError::Index(_) | CacheError::NoRoom(_)) => self.reopen(None, opening),
            _ => {}
        }
        result
    }

    /// Opens the file again; with a `reason` to think that it is damaged, it is
    /// checked as a whole. Everything may be lost by that. Once for all callers
    /// that met the same failure, whatever each of them was told of it.
    fn reopen(&self, reason: Option<&str>, opening: u64) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) || self.openings.load(Ordering::Relaxed) != opening {
            return;
        }
        // redb tells the first one only.
        let reason = reason.or(self.sums.is_doubted().then_some("a page of it is damaged"));
        // Not every error is the disk's.
        let works = |db: &Database| db.begin_write().is_ok_and(|txn| txn.abort().is_ok());
        if reason.is_none() && db.as_ref().is_some_and(works) {
            return;
        }
        // Before it is opened again: it holds a lock on the file.
        self.openings.fetch_add(1, Ordering::Relaxed);
        let broken = db.take();
        let _ = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        let opened = match reason {
            Some(reason) => self.open_checked(reason),
            None => open_database(&self.path, &self.sums, self.page_cache_bytes),
        };
        *db = match opened {
            _ if self.is_in_memory() => self.begin_in_memory(), // It was there that something broke.
            Ok(opened) => Some(opened),
            Err(error) if is_damaged(&error) => {
                self.start_anew(&error).or_else(|| self.begin_in_memory())
            }
            Err(error) => {
                tracing::warn!(%error, "the cache index cannot be opened again");
                self.begin_in_memory()
            }
        };
    }

    fn open_checked(&self, reason: &str) -> Result<Database, redb::Error> {
        tracing::warn!(reason, "the cache index seems damaged; it is checked");
        if self.alarms.fetch_add(1, Ordering::Relaxed) >= FALSE_ALARMS_MAX {
            return Err(redb::Error::Corrupted(reason.to_owned()));
        }
        open_checked(&self.path, &self.sums, self.page_cache_bytes)
    }

    /// An empty index in place of a damaged one, with the roots of all mounts.
    fn start_anew(&self, reason: &redb::Error) -> Option<Database> {
        let next_node = self.next_node.load(Ordering::Relaxed);
        let begun = set_aside(&self.path, reason).and_then(|()| {
            let opened = open_database(&self.path, &self.sums, self.page_cache_bytes)
                .and_then(|db| prepare(db, next_node))?;
            self.put_roots(&opened.0)?;
            Ok(opened)
        });
        match begun {
            Ok((db, prepared)) => {
                self.begin_anew(&prepared);
                Some(db)
            }
            Err(error) => {
                tracing::warn!(%error, "no new cache index can be made");
                None
            }
        }
    }

    fn put_roots(&self, db: &Database) -> Result<(), CacheError> {
        let roots = lock(&self.roots).clone();
        self.transact(db, Durability::Immediate, |write| {
            roots.iter().try_for_each(|root| write.put_root(root))
        })
    }

    fn read<T>(
        &self,
        read: impl Fn(&ReadTransaction) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let run = |db: &Database| read(&db.begin_read()?);
        match self.with_database(run) {
            Err(error) if error.is_of_index() => self.with_database(run),
            result => result,
        }
    }

    /// A row of an object, which reads as absent if it is damaged: its bytes
    /// are fetched again.
    fn decode_or_absent<T: DeserializeOwned>(&self, key: &RowKey<'_>, bytes: &[u8]) -> Option<T> {
        let row = decode(key, bytes);
        if row.is_none() {
            self.damaged_rows.fetch_add(1, Ordering::Relaxed);
        }
        row
    }

    /// Runs `change` in one transaction, visible when this returns. Blocks
    /// while another write runs: not for a FUSE or async thread.
    pub(super) fn write<T>(
        &self,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let result = self.with_database(|db| self.transact(db, Durability::None, change));
        self.pending.store(true, Ordering::Relaxed);
        result
    }

    /// As [`Index::write`], and everything written so far is on disk when this returns.
    pub(super) fn write_durably<T>(
        &self,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        self.pending.store(false, Ordering::Relaxed);
        let result = self.with_database(|db| self.transact(db, Durability::Immediate, change));
        match &result {
            Ok(_) => self.failed_commits.store(0, Ordering::Relaxed),
            // A failure of `change` itself says nothing of the file.
            Err(error) if !error.is_of_index() => self.pending.store(true, Ordering::Relaxed),
            Err(error) => {
                self.pending.store(true, Ordering::Relaxed);
                let failed = self.failed_commits.fetch_add(1, Ordering::Relaxed) + 1;
                let max = match error {
                    CacheError::NoRoom(_) => FULL_COMMITS_MAX,
                    _ => FAILED_COMMITS_MAX,
                };
                if failed >= max {
                    self.leave_file();
                }
            }
        }
        result
    }

    fn transact<T>(
        &self,
        db: &Database,
        durability: Durability,
        change: impl FnOnce(&mut Write<'_>) -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        let mut txn = begin_durable(db)?;
        txn.set_durability(durability).map_err(|e| CacheError::Index(e.to_string()))?;
        let mut write = Write::begin(self, &txn)?;
        let result = change(&mut write)?;
        let reserved = write.end()?;
        kill_point::reach("index-uncommitted");
        txn.commit()?;
        // Not before: ids of a block that was never reserved would come again.
        if let Some(reserved) = reserved {
            self.reserved.fetch_max(reserved, Ordering::Relaxed);
        }
        Ok(result)
    }

    /// Makes everything written so far durable, if anything is not.
    pub(super) fn sync_pending(&self) -> Result<(), CacheError> {
        if self.pending.load(Ordering::Relaxed) { self.sync() } else { Ok(()) }
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<(), CacheError> {
        self.write_durably(|write| write.count_sync())
    }

    /// The row of a node.
    pub(super) fn node(&self, node: NodeId) -> Result<Option<NodeRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(NODES)?.get(node.0)?;
            row.map(|v| decode_name(&RowKey(TAG_NODE, node.0, &[]), v.value())).transpose()
        })
    }

    /// What `parent` has under `name`.
    pub(super) fn entry(&self, parent: NodeId, name: &str) -> Result<Option<EntryRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(ENTRIES)?.get((parent.0, name))?;
            row.map(|v| decode_name(&entry_key(parent, name), v.value())).transpose()
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
            row.map(|v| decode_name(&RowKey(TAG_FOLDER, node.0, &[]), v.value())).transpose()
        })
    }

    /// What the cache holds of a node.
    pub(super) fn object(&self, node: NodeId) -> Result<Option<ObjectRow>, CacheError> {
        self.read(|txn| {
            let row = txn.open_table(OBJECTS)?.get(node.0)?;
            Ok(row.and_then(|v| self.decode_or_absent(&object_key(node), v.value())))
        })
    }

    /// Bytes that the cache holds of each of these, in their order.
    pub(super) fn present_bytes_of(&self, nodes: &[NodeId]) -> Result<Vec<u64>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(OBJECTS)?;
            let bytes = nodes.iter().map(|node| {
                let row = table.get(node.0)?.and_then(|v| {
                    self.decode_or_absent::<ObjectRow>(&object_key(*node), v.value())
                });
                Ok(row.map_or(0, |row| row.present_bytes))
            });
            bytes.collect()
        })
    }

    /// Up to `limit` objects that the cache holds something of, after `after`,
    /// by node. A damaged row is passed over.
    pub(super) fn objects_after(
        &self,
        after: NodeId,
        limit: usize,
    ) -> Result<Vec<(NodeId, Option<ObjectRow>)>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(OBJECTS)?;
            let rows = table.range(after.0 + 1..)?.take(limit).map(|row| {
                let (key, value) = row?;
                let node = NodeId(key.value());
                Ok((node, self.decode_or_absent(&object_key(node), value.value())))
            });
            rows.collect()
        })
    }

    /// The boot of the machine whose disk failed last.
    pub(super) fn distrusted_boot(&self) -> Result<Option<u128>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(META)?;
            let half = |key| Ok::<_, CacheError>(table.get(key)?.map(|v| u128::from(v.value())));
            let (high, low) = (half("distrusted_high")?, half("distrusted_low")?);
            Ok(high.zip(low).map(|(high, low)| high << 64 | low))
        })
    }

    /// What is pinned: names in folders.
    pub(super) fn pins(&self) -> Result<Vec<(NodeId, String)>, CacheError> {
        self.read(|txn| {
            let table = txn.open_table(PINS)?;
            let pins = table.iter()?.map(|row| {
                let (key, _) = row?;
                let (parent, name) = key.value();
                Ok((NodeId(parent), name.to_owned()))
            });
            pins.collect()
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
                let key = group.to_le_bytes();
                let row = self.decode_or_absent(&chunks_key(node, &key), value.value());
                groups.extend(row.map(|row| (group, row)));
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

/// What an index that was opened says of itself.
struct Prepared {
    /// The first node id of those reserved.
    next_node: u64,
    newest_ms: u64,
    /// The tables are new.
    fresh: bool,
}

/// Opens an index of which nobody can say what happened to it, and reads all
/// of it: a page that is damaged may hide rows without a sign.
fn open_checked(
    path: &Path,
    sums: &Arc<Sums>,
    page_cache_bytes: usize,
) -> Result<Database, redb::Error> {
    // Of what redb finds right, it is the sum that was wrong.
    sums.forget();
    let checked = catch_unwind(AssertUnwindSafe(|| {
        let mut db = open_database(path, sums, page_cache_bytes)?;
        match db.check_integrity()? {
            true => Ok(db),
            false => Err(redb::Error::Corrupted("its checksums do not match".to_owned())),
        }
    }));
    let panicked = || redb::Error::Corrupted("checking it ended abnormally".to_owned());
    checked.unwrap_or_else(|_| Err(panicked()))
}

fn open_database(
    path: &Path,
    sums: &Arc<Sums>,
    page_cache_bytes: usize,
) -> Result<Database, redb::Error> {
    let open = || {
        let file = CheckedFile::open(path, sums.clone())?;
        Ok(Database::builder().set_cache_size(page_cache_bytes).create_with_backend(file)?)
    };
    // A damaged file may make it panic, as everywhere.
    let panicked = || redb::Error::Corrupted("opening it ended abnormally".to_owned());
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(panicked()))
}

/// Makes sure of every table, and reserves node ids from `first_node` on, or
/// from where they were reserved last.
fn prepare(db: Database, first_node: u64) -> Result<(Database, Prepared), redb::Error> {
    let prepared = catch_unwind(AssertUnwindSafe(|| prepare_tables(&db, first_node)));
    let prepared = prepared
        .unwrap_or_else(|_| Err(redb::Error::Corrupted("reading it ended abnormally".to_owned())));
    Ok((db, prepared?))
}

fn prepare_tables(db: &Database, first_node: u64) -> Result<Prepared, redb::Error> {
    let txn = begin_durable(db)?;
    let prepared;
    {
        let mut meta = txn.open_table(META)?;
        let schema = meta.get("schema")?.map(|v| v.value());
        if schema.is_some_and(|found| found != SCHEMA) {
            return Err(redb::Error::Corrupted(format!("schema {schema:?}, not {SCHEMA}")));
        }
        let next_node = meta.get("next_node")?.map_or(0, |v| v.value()).max(first_node);
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
        txn.open_table(PINS)?;
    }
    txn.commit()?;
    Ok(prepared)
}

/// Where a damaged index is kept, for whoever wants to know what happened. One:
/// it takes disk.
fn damaged_path(path: &Path) -> PathBuf {
    path.with_extension("redb.damaged")
}

fn set_aside(path: &Path, reason: &redb::Error) -> Result<(), CacheError> {
    tracing::warn!(%reason, "the cache index cannot be used and is set aside; the cache starts empty");
    let aside = damaged_path(path);
    kill_point::reach("index-damaged-aside");
    match std::fs::rename(path, &aside) {
        // Somebody removed it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.map_err(CacheError::io(&aside)),
    }
}

/// Whether an index file itself is at fault. What the machine refuses (a full
/// disk, too many open files) says nothing of what the file holds: the cache
/// must not be emptied for it.
pub(super) fn is_damaged(error: &redb::Error) -> bool {
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

fn object_key(node: NodeId) -> RowKey<'static> {
    RowKey(TAG_OBJECT, node.0, &[])
}

fn chunks_key<'a>(node: NodeId, group: &'a [u8; 4]) -> RowKey<'a> {
    RowKey(TAG_CHUNKS, node.0, group)
}

/// A row that says what a folder holds. Without it, files that are there would
/// seem not to be: the index as a whole is no good any more.
fn decode_name<T: DeserializeOwned>(key: &RowKey<'_>, bytes: &[u8]) -> Result<T, CacheError> {
    decode(key, bytes).ok_or_else(|| CacheError::Damaged(format!("a row of node {}", key.1)))
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
    let rows = table.range::<(u64, &str)>((start, end))?.take(limit).map(|row| {
        let (key, value) = row?;
        let name = key.value().1;
        Ok((name.to_owned(), decode_name(&entry_key(parent, name), value.value())?))
    });
    rows.collect()
}
