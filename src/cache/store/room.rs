//! Room on the cache disk: reserved for chunks, made by evicting objects.
//!
//! Three kinds of objects give way, in this order: those below no mount; those
//! that were not read since the start, once that is long ago; those that the
//! policy ([`Recency`]) takes for dead. With force, when the disk itself runs
//! out, all of these and then what was read longest ago. What is pinned or in
//! use never does.
//!
//! An object goes as a whole, by unlink: whoever has the file open, or mapped
//! through the kernel, reads on. Its rows go first, durably, so that no row
//! promises bytes that are gone; unless the index itself has no room.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::budget::{Disk, Excess, disk_bytes};
use super::super::disk_health::{is_full, is_short_of_descriptors};
use super::super::evict::Recency;
use super::super::object::CachedObject;
use super::super::record::{FileId, Location, NodeId, ObjectRow};
use super::super::standing::Memo;
use super::super::{CHUNK_BYTES, CacheError, Event, kill_point, lock};
use super::Store;

/// How often the disk is asked what it has left.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Disk that objects leave to the index to grow into, at least: a copy of the
/// pages that one commit rewrites, and the state of redb's own allocator.
const INDEX_GROWTH_BYTES: u64 = 1 << 20;

/// What a file's name takes in its folder, and what folders take with few in them.
const FOLDER_BYTES_PER_FILE: u64 = 64;
const FOLDER_BYTES_MIN: u64 = 64 << 10;

/// Evicted at once at most: one durable commit frees so much, and nobody waits
/// longer than that takes.
const BATCH_BYTES_MAX: u64 = 64 << 20;

/// Objects evicted in one transaction.
const BATCH_OBJECTS_MAX: usize = 256;

/// How often room is made for a chunk that others take before it.
const RESERVE_TRIES: usize = 4;

/// Rows read at once in search of objects that may go.
const SCAN_ROWS: usize = 1024;

/// Batches evicted in a row where the disk runs out, before others get a turn.
const FORCED_BATCHES_MAX: usize = 64;

/// Of the budget, 1 in so many is not filled by what nobody asked for.
const SPARED_PART: u64 = 64;

/// The state of eviction.
#[derive(Debug)]
pub(super) struct Room {
    pub recency: Mutex<Recency>,
    /// Bytes read since the start; tells that there was time for something to age.
    read_bytes: AtomicU64,
    /// One evicts at a time; the others wait and find room.
    search: Mutex<Search>,
    looked: Mutex<Option<Instant>>,
    /// Nodes whose rows are about to go: whoever loads one finds nothing.
    leaving: Mutex<HashSet<NodeId>>,
    /// Rows that are to go with the next flush.
    unwritten: Mutex<Vec<(NodeId, FileId)>>,
}

/// How far rows were searched for objects that may go.
#[derive(Debug, Default)]
struct Search {
    /// What the search was for: it begins again when that changes.
    loosened: u64,
    /// Up to here, nothing below no mount is left.
    unmounted: Cursor,
    /// Up to here, nothing that was not read since the start is left.
    untouched: Cursor,
    /// Nothing could go when so many bytes had been read.
    fruitless_at: Option<u64>,
}

#[derive(Debug, Default)]
struct Cursor {
    after: NodeId,
    exhausted: bool,
}

/// An object that goes, and what of it is on disk.
struct Leaver {
    node: NodeId,
    file: FileId,
    /// Bytes of the budget that nobody else gives back.
    unowned_bytes: u64,
    held_bytes: u64,
    /// Rows that are about another file of it are to go, too.
    any_rows: bool,
    /// Its drop gives its bytes back.
    live: Option<std::sync::Arc<CachedObject>>,
}

/// What became of objects that were to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct Removed {
    pub objects: u64,
    pub bytes: u64,
    /// Left, because somebody reads them.
    pub in_use: u64,
    /// Those that were there at all, and went.
    pub gone: u64,
}

/// Whom the removal of an object may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cache) enum Readers {
    /// Leave what is being read.
    Spare,
    /// Remove the file; those who read it keep it open.
    Outlive,
}

impl Room {
    pub(super) fn new(limit: u64) -> Self {
        Room {
            recency: Mutex::new(Recency::new(limit)),
            read_bytes: AtomicU64::new(0),
            search: Mutex::default(),
            looked: Mutex::default(),
            leaving: Mutex::default(),
            unwritten: Mutex::default(),
        }
    }

    /// Nothing is known of how objects are read: others are there now.
    pub(super) fn forget(&self, limit: u64) {
        *lock(&self.recency) = Recency::new(limit);
        lock(&self.unwritten).clear();
        lock(&self.leaving).clear();
    }

    pub(super) fn is_leaving(&self, node: NodeId) -> bool {
        lock(&self.leaving).contains(&node)
    }

    pub(super) fn set_leaving(&self, node: NodeId, leaving: bool) {
        let mut all = lock(&self.leaving);
        if leaving {
            all.insert(node)
        } else {
            all.remove(&node)
        };
    }
}

impl Store {
    /// `bytes` of an object were read; 0: it was opened.
    pub(in crate::cache) fn touch(&self, node: NodeId, bytes: u64) {
        self.room.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        lock(&self.room.recency).touch(node, bytes);
    }

    /// Takes disk for chunks, or says no; evicts to have it if it `may_evict`. Blocks.
    pub(in crate::cache) fn reserve(&self, bytes: u64, may_evict: bool) -> bool {
        if self.health.is_pausing()
            || self.index.is_in_memory()
            || self.closed.load(Ordering::Relaxed)
        {
            return false;
        }
        let mut reserved = self.budget.reserve(bytes);
        if !may_evict {
            return reserved;
        }
        for _ in 0..RESERVE_TRIES {
            let is_met = || self.budget.has_room(bytes);
            if reserved || !self.make_room(Excess { bytes, files: 0 }, false, is_met) {
                break;
            }
            // Others may have been faster.
            reserved = self.budget.reserve(bytes);
        }
        if !reserved {
            self.full.store(true, Ordering::Relaxed);
        }
        reserved
    }

    /// Takes the right to make a file, or says no; evicts to have it if it
    /// `may_evict`. Blocks.
    pub(in crate::cache) fn reserve_file(&self, may_evict: bool) -> bool {
        self.budget.reserve_file()
            || (may_evict
                && self.make_room(Excess { bytes: 0, files: 1 }, false, || self.budget.has_files())
                && self.budget.reserve_file())
    }

    pub(in crate::cache) fn release(&self, bytes: u64) {
        self.budget.release(bytes);
    }

    /// A write to the cache disk failed. A full disk is looked at at once:
    /// others may have filled it, and then it is for us to give way.
    pub(in crate::cache) fn disk_failed(&self, error: &std::io::Error) {
        if is_short_of_descriptors(error) {
            return self.shortage.met(error);
        }
        self.health.failed(error);
        if is_full(error) {
            // A quota shows in no statvfs: what failed is what there is.
            if error.raw_os_error() == Some(libc::EDQUOT) {
                self.budget.meet_quota();
            }
            *lock(&self.room.looked) = None;
        } else {
            self.lose_trust();
        }
    }

    /// Looks at the disk, if it is time, and gives way where others need room.
    pub(super) fn follow_disk(&self) {
        {
            let mut looked = lock(&self.room.looked);
            if looked.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                return;
            }
            *looked = Some(Instant::now());
        }
        // Each batch is a commit; what is left is for the next look.
        for _ in 0..FORCED_BATCHES_MAX {
            let excess = self.look_at_disk();
            if excess.is_none() {
                break;
            }
            if self.index.is_in_memory() {
                self.unlink_blindly(excess);
                break;
            }
            if !self.make_room(excess, true, || false) {
                break;
            }
        }
        let has_room = self.budget.has_room(CHUNK_BYTES);
        if has_room {
            self.health.has_room_again();
        }
        self.full.store(!has_room && !self.may_evict(), Ordering::Relaxed);
    }

    /// Removes files although no index tells which: it may be back only when
    /// there is room for it. Whose rows it has is found missing then.
    fn unlink_blindly(&self, excess: Excess) {
        let mut freed = Excess::default();
        for folder in super::sweep::entries(&self.data_dir) {
            for entry in super::sweep::entries(&folder.path()) {
                if freed.bytes >= excess.bytes && freed.files >= excess.files {
                    return;
                }
                freed.bytes += super::sweep::blocks_of(&entry);
                freed.files += 1;
                self.unlink(&entry.path());
                self.metrics.evicted_objects.add(1);
            }
        }
    }

    /// Asks the disk what it has left. Returns what has to go.
    pub(super) fn look_at_disk(&self) -> Excess {
        let index = self.overhead_bytes();
        let share = index + (index / 8).max(INDEX_GROWTH_BYTES);
        // Who cannot be asked is found out by writing.
        let Ok(disk) = Disk::of(&self.data_dir) else { return Excess::default() };
        let excess = self.budget.look(disk, index, share);
        lock(&self.room.recency).set_budget(self.budget.for_objects());
        excess
    }

    /// Bytes of disk that are no object's: the index, the log, the folders that
    /// the objects' files are in.
    pub(in crate::cache) fn overhead_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let beside = self.data_dir.parent().map(std::fs::read_dir);
        let files =
            beside.into_iter().flatten().flatten().flatten().filter_map(|e| e.metadata().ok());
        let files: u64 = files.map(|meta| meta.blocks() * 512).sum();
        let folders = self.held_objects() * FOLDER_BYTES_PER_FILE + FOLDER_BYTES_MIN;
        files + folders + self.surplus.load(Ordering::Relaxed)
    }

    pub(super) fn may_evict(&self) -> bool {
        let search = lock(&self.room.search);
        search.loosened != self.places.loosened() || search.fruitless_at.is_none()
    }

    /// What may be filled with bytes that nobody asked for yet: nothing gives way
    /// to them, and what readers fetch meanwhile finds some room, too.
    pub(in crate::cache) fn room_bytes(&self) -> u64 {
        if !self.budget.has_files() {
            return 0;
        }
        let all = self.budget.for_objects();
        all.saturating_sub(self.budget.used()).saturating_sub(all / SPARED_PART)
    }

    /// Bytes that objects may take in all.
    pub(in crate::cache) fn object_limit_bytes(&self) -> u64 {
        self.budget.for_objects()
    }

    /// Whether there is room, or is by giving up what is no longer read; by `force`, for
    /// what a user wants kept whatever it costs, also what is read.
    pub(in crate::cache) fn has_room_for(&self, wanted: Excess, force: bool) -> bool {
        let has_room = || self.budget.has_room(wanted.bytes) && self.budget.has_files();
        while !has_room() {
            let free = self.budget.for_objects().saturating_sub(self.budget.used());
            let short = Excess { bytes: wanted.bytes.saturating_sub(free), ..wanted };
            let can_be = self.budget.for_objects() >= wanted.bytes;
            if !can_be || !self.make_room(short, force, has_room) {
                return false;
            }
        }
        true
    }

    /// Evicts `wanted`, unless `is_met` by now; `false` if it could not.
    fn make_room(&self, wanted: Excess, force: bool, is_met: impl Fn() -> bool) -> bool {
        let mut search = lock(&self.room.search);
        if is_met() {
            return true; // Somebody else evicted meanwhile.
        }
        let loosened = self.places.loosened();
        if search.loosened != loosened {
            *search = Search { loosened, ..Search::default() };
        }
        let read_bytes = self.room.read_bytes.load(Ordering::Relaxed);
        if !force
            && search
                .fruitless_at
                .is_some_and(|at| read_bytes - at < self.budget.for_objects() / 256)
        {
            return false;
        }
        search.fruitless_at = None;
        let evicted = self.evict_some(&mut search, wanted, force).unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing can be evicted");
            Removed::default()
        });
        if evicted.gone == 0 {
            search.fruitless_at = Some(read_bytes);
        }
        evicted.gone > 0
    }

    fn evict_some(
        &self,
        search: &mut Search,
        wanted: Excess,
        force: bool,
    ) -> Result<Removed, CacheError> {
        let batch = wanted.bytes.max((self.budget.limit() / 128).min(BATCH_BYTES_MAX));
        let mut memo = Memo::default();
        let mut total = Removed::default();
        while total.bytes < batch && (total.objects as usize) < BATCH_OBJECTS_MAX {
            let victims = self.victims(search, &mut memo, force, batch - total.bytes)?;
            if victims.is_empty() {
                break;
            }
            let removed = self.remove(&victims, Readers::Spare)?;
            total.objects += removed.objects;
            total.bytes += removed.bytes;
            total.gone += removed.gone;
            if removed.gone == 0 {
                break; // None of them could go: the next ones may be the same.
            }
        }
        self.metrics.evicted_objects.add(total.objects);
        self.metrics.evicted_bytes.add(total.bytes);
        Ok(total)
    }

    /// The next objects to go. Empty if there are none.
    fn victims(
        &self,
        search: &mut Search,
        memo: &mut Memo,
        force: bool,
        bytes: u64,
    ) -> Result<Vec<NodeId>, CacheError> {
        let unmounted = |store: &Store, node: NodeId, memo: &mut Memo| {
            let standing = store.places.standing(&store.index, node, memo)?;
            Ok(!standing.mounted && !standing.pinned)
        };
        let victims = self.scan(&mut search.unmounted, memo, bytes, unmounted)?;
        if !victims.is_empty() {
            return Ok(victims);
        }
        let untouched = |store: &Store, node: NodeId, memo: &mut Memo| {
            let touched = lock(&store.room.recency).was_touched(node);
            Ok(!touched && !store.places.standing(&store.index, node, memo)?.pinned)
        };
        let is_dead = lock(&self.room.recency).untouched_is_dead();
        if is_dead {
            let victims = self.scan(&mut search.untouched, memo, bytes, untouched)?;
            if !victims.is_empty() {
                return Ok(victims);
            }
        }
        let victims = self.least_recent(memo, bytes, false)?;
        if !victims.is_empty() || !force {
            return Ok(victims);
        }
        let victims = self.scan(&mut search.untouched, memo, bytes, untouched)?;
        if !victims.is_empty() {
            return Ok(victims);
        }
        self.least_recent(memo, bytes, true)
    }

    /// Objects that were read longest ago: those that are dead, or with
    /// `force` any. They hold about `bytes`.
    fn least_recent(
        &self,
        memo: &mut Memo,
        bytes: u64,
        force: bool,
    ) -> Result<Vec<NodeId>, CacheError> {
        let mut victims: Vec<NodeId> = Vec::new();
        let mut sum = 0;
        while sum < bytes && victims.len() < BATCH_OBJECTS_MAX {
            let victim = lock(&self.room.recency).victim(force, |node| {
                let standing = self.places.standing(&self.index, node, memo);
                victims.contains(&node)
                    || self.is_in_use(node)
                    || standing.is_ok_and(|standing| standing.pinned)
            });
            let Some(node) = victim else { break };
            victims.push(node);
            sum += disk_bytes(self.present_bytes(node));
        }
        Ok(victims)
    }

    /// Goes on through the rows of objects and picks those that may go.
    fn scan(
        &self,
        cursor: &mut Cursor,
        memo: &mut Memo,
        bytes: u64,
        may_go: impl Fn(&Store, NodeId, &mut Memo) -> Result<bool, CacheError>,
    ) -> Result<Vec<NodeId>, CacheError> {
        let mut victims = Vec::new();
        let mut sum = 0;
        while !cursor.exhausted && sum < bytes && victims.len() < BATCH_OBJECTS_MAX {
            let rows = self.index.objects_after(cursor.after, SCAN_ROWS)?;
            cursor.exhausted = rows.is_empty();
            for (node, row) in rows {
                if sum >= bytes || victims.len() >= BATCH_OBJECTS_MAX {
                    break;
                }
                cursor.after = node;
                if !self.is_in_use(node) && may_go(self, node, memo)? {
                    sum += row.map_or(0, |row| disk_bytes(row.present_bytes));
                    victims.push(node);
                }
            }
        }
        Ok(victims)
    }

    /// Whether somebody reads the object, or has it open.
    fn is_in_use(&self, node: NodeId) -> bool {
        self.live(node).is_some_and(|object| !self.is_ours_alone(&object, node))
    }

    /// Whether nobody but the store itself, and the caller, holds the object.
    fn is_ours_alone(&self, object: &std::sync::Arc<CachedObject>, node: NodeId) -> bool {
        let idle = usize::from(lock(&self.idle).contains(&node));
        let dirty = usize::from(lock(&self.dirty).contains_key(&node));
        std::sync::Arc::strong_count(object) <= 1 + idle + dirty
    }

    /// Takes objects out of the cache: rows first, durably, then files. Blocks.
    pub(in crate::cache) fn remove(
        &self,
        nodes: &[NodeId],
        readers: Readers,
    ) -> Result<Removed, CacheError> {
        let mut removed = Removed::default();
        let mut leavers = Vec::with_capacity(nodes.len());
        let mut result = Ok(());
        for node in nodes {
            match self.take_leave(*node, readers) {
                Ok(Leave::Gone(leaver)) => leavers.push(leaver),
                Ok(Leave::InUse) => removed.in_use += 1,
                Ok(Leave::Nothing) => lock(&self.room.recency).set_held(*node, false),
                Err(error) => {
                    result = Err(error); // Those that took their leave go all the same.
                    break;
                }
            }
        }
        kill_point::reach("remove-begun");
        let rows = match leavers.is_empty() {
            true => Ok(()),
            false => self.index.write_durably(|write| {
                leavers.iter().try_for_each(|leaver| match leaver.any_rows {
                    true => write.remove_object(leaver.node).map(drop),
                    false => write.remove_object_in(leaver.node, leaver.file),
                })
            }),
        };
        kill_point::reach("remove-rows-removed");
        let rows_are_gone = rows.is_ok();
        for leaver in leavers {
            removed.gone += 1;
            removed.objects += u64::from(leaver.held_bytes > 0);
            removed.bytes += leaver.held_bytes;
            self.bury(leaver, rows_are_gone);
        }
        if removed.bytes > 0 {
            self.full.store(false, Ordering::Relaxed);
        }
        result.map(|()| removed)
    }

    /// Nobody finds the object from now on.
    fn take_leave(&self, node: NodeId, readers: Readers) -> Result<Leave, CacheError> {
        let _loading = lock(self.loading_lock(node));
        let Some(live) = self.live(node) else {
            if self.room.is_leaving(node) {
                return Ok(Leave::Nothing); // Somebody else sees to it.
            }
            let Some(row) = self.index.object(node)? else { return Ok(Leave::Nothing) };
            self.room.set_leaving(node, true);
            let ObjectRow { location: Location::OwnFile(file), present_bytes, .. } = row;
            let bytes = disk_bytes(present_bytes);
            return Ok(Leave::Gone(Leaver {
                node,
                file,
                unowned_bytes: bytes,
                held_bytes: bytes,
                any_rows: false,
                live: None,
            }));
        };
        if readers == Readers::Spare && !self.is_ours_alone(&live, node) {
            return Ok(Leave::InUse);
        }
        let held_bytes = live.disk_bytes();
        let Some(file) = live.doom() else { return Ok(Leave::Nothing) };
        self.room.set_leaving(node, true);
        lock(&self.live).remove(&node);
        let dirty = lock(&self.dirty).remove(&node);
        let idle = lock(&self.idle).pop(&node);
        drop((dirty, idle)); // After the locks; `live` holds it still.
        let any_rows = live.has_stale_rows();
        let live = Some(live);
        Ok(Leave::Gone(Leaver { node, file, unowned_bytes: 0, held_bytes, any_rows, live }))
    }

    /// Removes the file of an object that took its leave. Where its rows could
    /// not be removed (there may be no room even for that), they go with the
    /// next flush: until then nobody finds the object by them.
    fn bury(&self, leaver: Leaver, rows_are_gone: bool) {
        self.unlink(&leaver.file.path(&self.data_dir));
        kill_point::reach("remove-file-removed");
        self.budget.release(leaver.unowned_bytes);
        if leaver.unowned_bytes > 0 {
            self.count_held(false);
        }
        lock(&self.room.recency).set_held(leaver.node, false);
        // Its bytes are given back here, unless somebody reads it.
        drop(leaver.live);
        if rows_are_gone {
            self.room.set_leaving(leaver.node, false);
        } else {
            self.remove_rows_later(leaver.node, leaver.file);
        }
        self.emit(Event::Blocks(leaver.node));
    }

    /// The rows of a node whose file is gone go with the next flush. Nobody
    /// finds the object by them from now on.
    pub(super) fn remove_rows_later(&self, node: NodeId, file: FileId) {
        self.room.set_leaving(node, true);
        lock(&self.room.unwritten).push((node, file));
    }

    /// Rows that could not be removed when their files were.
    pub(super) fn take_unwritten(&self) -> Vec<(NodeId, FileId)> {
        std::mem::take(&mut lock(&self.room.unwritten))
    }

    /// They are gone (`true`), or are still to go.
    pub(super) fn settle_unwritten(&self, rows: Vec<(NodeId, FileId)>, gone: bool) {
        if gone {
            rows.iter().for_each(|(node, _)| self.room.set_leaving(*node, false));
        } else {
            lock(&self.room.unwritten).extend(rows);
        }
    }

    /// Removes a file of the store. What cannot be removed is found by the sweep.
    pub(super) fn unlink(&self, file: &Path) {
        match std::fs::remove_file(file) {
            Ok(()) => self.budget.release_file(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "cannot remove a file of the cache");
            }
        }
    }
}

enum Leave {
    Gone(Leaver),
    InUse,
    Nothing,
}
