//! How much disk the cache may take, and how much it has.
//!
//! Space is reserved before it is written, so the limit is never overshot. The
//! limit is what the user gave, or less where the disk does not have it: it
//! follows what other programs leave free, looked at each second.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// File systems give space in blocks of this size; a chunk's tail takes a whole one.
const BLOCK: u64 = 4096;

/// Left free for others where no `--cache-size` is given: the larger of this
/// many bytes and a tenth of the file system.
const RESERVE_BYTES: u64 = 5_000_000_000;

/// Left free where one is given, at most: what another program may write
/// between two looks at the disk. On small disks a 32nd of it.
const FLOOR_BYTES: u64 = 1 << 30;

/// Inodes left to others, at most; on small disks a twentieth of them.
const FLOOR_FILES: u64 = 10_000;

/// Bytes of disk that `bytes` of an object's chunks take.
pub(super) fn disk_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

/// What a file system has, as `statvfs` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that we may still write.
    pub free: u64,
    /// Its inodes; 0 where they are not counted.
    pub files: u64,
    /// Inodes that we may still take.
    pub free_files: u64,
}

impl Disk {
    /// What the file system of `dir` has.
    ///
    /// # Errors
    /// If it does not tell.
    pub fn of(dir: &Path) -> std::io::Result<Disk> {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        let block = stat.fragment_size();
        Ok(Disk {
            total: stat.blocks() * block,
            free: stat.blocks_available() * block,
            files: stat.files(),
            free_files: stat.files_available(),
        })
    }

    /// Bytes that are left to others where no `--cache-size` is given.
    pub fn reserve(&self) -> u64 {
        RESERVE_BYTES.max(self.total / 10)
    }

    /// Inodes that are left to others.
    pub fn floor_files(&self) -> u64 {
        FLOOR_FILES.min(self.files / 20)
    }
}

/// The cache's share of its disk.
#[derive(Debug)]
pub(super) struct Budget {
    /// `--cache-size`.
    given: Option<u64>,
    /// Bytes of objects on disk, and those reserved for the next ones.
    used: AtomicU64,
    /// Bytes of disk that no object may take: the index's, and some to grow into.
    index: AtomicU64,
    /// What all of it may take, by the last look at the disk.
    limit: AtomicU64,
    /// Files that may still be made, by the last look at the disk.
    files: AtomicU64,
    /// Bytes of `limit` that are not given out for now.
    held_back: AtomicU64,
    /// What a quota allows, as far as it was met.
    quota: AtomicU64,
    /// What the disk had left, by the last look at it.
    free: AtomicU64,
}

/// What there is too much of, by the last look at the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Excess {
    pub bytes: u64,
    pub files: u64,
}

impl Excess {
    pub(super) fn is_none(self) -> bool {
        self == Excess::default()
    }
}

impl Budget {
    /// Nothing may be taken before the first [`Budget::look`].
    pub(super) fn new(given: Option<u64>, used: u64) -> Self {
        Budget {
            given,
            used: AtomicU64::new(used),
            index: AtomicU64::new(0),
            limit: AtomicU64::new(0),
            files: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
            quota: AtomicU64::new(u64::MAX),
            free: AtomicU64::new(0),
        }
    }

    /// A quota, which no `statvfs` shows, refused more than there is now.
    pub(super) fn meet_quota(&self) {
        let held = self.used() + self.index.load(Ordering::Relaxed);
        self.quota.store(held - held / 64, Ordering::Relaxed);
    }

    /// Follows the disk: what may be taken changes with what others leave. What
    /// is no object takes `index` bytes and may grow to `index_share`. Returns
    /// what has to go.
    pub(super) fn look(&self, disk: Disk, index: u64, index_share: u64) -> Excess {
        self.free.store(disk.free, Ordering::Relaxed);
        let reserve = match self.given {
            Some(_) => FLOOR_BYTES.min(disk.total / 32),
            None => disk.reserve(),
        };
        let used = self.used();
        let by_disk = (used + index + disk.free).saturating_sub(reserve);
        // Quotas are raised, and others' files go: try for a little more each time.
        let raise = |quota: u64| quota.saturating_add(quota / 1024);
        let quota = self.quota.update(Ordering::Relaxed, Ordering::Relaxed, raise);
        let limit = by_disk.min(self.given.unwrap_or(u64::MAX)).min(quota);
        self.limit.store(limit, Ordering::Relaxed);
        self.index.store(index_share, Ordering::Relaxed);
        let floor_files = disk.floor_files();
        let files = if disk.files == 0 { u64::MAX } else { disk.free_files };
        self.files.store(files.saturating_sub(floor_files), Ordering::Relaxed);
        Excess {
            // More than we have, perhaps, where others took it all.
            bytes: (used + index_share)
                .saturating_sub(limit)
                .max(reserve.saturating_sub(disk.free)),
            files: floor_files.saturating_sub(files),
        }
    }

    /// Takes `bytes` of disk, or nothing if that would pass the limit.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let room = self.for_objects();
        let taken = self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= room)
        });
        taken.is_ok()
    }

    /// Gives `bytes` back.
    pub(super) fn release(&self, bytes: u64) {
        self.used.update(Ordering::Relaxed, Ordering::Relaxed, |used| used.saturating_sub(bytes));
    }

    /// Takes the right to make a file, if there is one.
    pub(super) fn reserve_file(&self) -> bool {
        let take = |files: u64| files.checked_sub(1);
        self.files.try_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// A file was removed.
    pub(super) fn release_file(&self) {
        let give = |files: u64| files.saturating_add(1);
        self.files.update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// Gives out `bytes` less than the limit, until told otherwise: there may
    /// be so much on disk of which the index does not know.
    pub(super) fn hold_back(&self, bytes: u64) {
        self.held_back.store(bytes, Ordering::Relaxed);
    }

    /// What objects may take in all.
    pub(super) fn for_objects(&self) -> u64 {
        let not_theirs = self
            .index
            .load(Ordering::Relaxed)
            .saturating_add(self.held_back.load(Ordering::Relaxed));
        self.limit().saturating_sub(not_theirs)
    }

    /// Whether another file may be made.
    pub(super) fn has_files(&self) -> bool {
        self.files.load(Ordering::Relaxed) > 0
    }

    /// Whether `bytes` more would be given.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.used().saturating_add(bytes) <= self.for_objects()
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Sets what is used, where it had to be counted anew.
    pub(super) fn set_used(&self, bytes: u64) {
        self.used.store(bytes, Ordering::Relaxed);
    }

    /// What the disk has left for anybody, by the last look at it.
    pub(super) fn disk_free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn disk(total: u64, free: u64) -> Disk {
        Disk { total, free, files: 0, free_files: 0 }
    }

    #[test]
    fn never_passes_the_limit() {
        let budget = Budget::new(Some(10_000), 4_096);
        assert!(!budget.reserve(1), "nothing before the disk was looked at");
        assert!(budget.look(disk(100 * GB, 50 * GB), 0, 0).is_none());
        assert!(!budget.reserve(5_905));
        assert!(budget.reserve(5_904));
        assert!(!budget.reserve(1));
        budget.release(1);
        assert!(budget.reserve(1));
        assert!(!budget.reserve(u64::MAX));
        assert_eq!(budget.used(), 10_000);
        budget.look(disk(100 * GB, 50 * GB), 0, 20_000);
        assert!(!budget.has_room(0));
    }

    #[test]
    fn follows_what_others_leave_free() {
        let budget = Budget::new(None, 10 * GB);
        assert!(budget.look(disk(60 * GB, 40 * GB), 0, 0).is_none());
        assert_eq!(budget.limit(), 44 * GB);
        let excess = budget.look(disk(60 * GB, 2 * GB), GB, GB);
        assert_eq!(excess, Excess { bytes: 4 * GB, files: 0 });
        assert_eq!(budget.limit(), 7 * GB);
    }

    #[test]
    fn an_explicit_size_is_obeyed_on_a_small_disk() {
        let default = Budget::new(None, 0);
        default.look(disk(GB, GB), 0, 0);
        assert!(!default.has_room(1));
        let given = Budget::new(Some(GB / 2), 0);
        given.look(disk(GB, GB), 0, 0);
        assert!(given.has_room(GB / 2) && !given.has_room(GB / 2 + 1));
        let beyond = Budget::new(Some(2 * GB), 0);
        beyond.look(disk(GB, GB), 0, 0);
        assert_eq!(beyond.limit(), GB - GB / 32);
    }

    #[test]
    fn files_run_out_like_bytes() {
        let budget = Budget::new(None, 0);
        let few = |free_files| Disk { files: 1000, free_files, ..disk(100 * GB, 100 * GB) };
        assert!(budget.look(few(51), 0, 0).is_none());
        assert!(budget.reserve_file() && !budget.reserve_file());
        budget.release_file();
        assert!(budget.reserve_file());
        assert_eq!(budget.look(few(40), 0, 0).files, 10);
        budget.look(disk(GB, GB), 0, 0);
        assert!(budget.reserve_file());
    }

    #[test]
    fn a_quota_that_was_met_is_kept_below() {
        let budget = Budget::new(Some(GB), 64_000);
        budget.look(disk(100 * GB, 100 * GB), 0, 0);
        budget.meet_quota();
        assert_eq!(budget.look(disk(100 * GB, 100 * GB), 0, 0).bytes, 1000);
        budget.release(1000);
        for _ in 0..100 {
            budget.look(disk(100 * GB, 100 * GB), 0, 0);
        }
        assert!(budget.has_room(1000), "it is tried again after a while");
    }

    #[test]
    fn what_is_held_back_is_not_given() {
        let budget = Budget::new(Some(1000), 0);
        budget.look(disk(GB, GB), 0, 0);
        budget.hold_back(900);
        assert!(!budget.has_room(101));
        budget.hold_back(0);
        assert!(budget.has_room(1000));
    }
}
