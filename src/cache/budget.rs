//! How much disk the cache may take, and how much it has.
//!
//! Space is reserved before it is written, so the limit is never overshot.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// File systems give space in blocks of this size; a chunk's tail takes a whole one.
const BLOCK: u64 = 4096;

/// Left free for others where no `--cache-size` is given: the larger of this
/// many bytes and a tenth of the file system.
const RESERVE_BYTES: u64 = 5_000_000_000;

/// Bytes of disk that `bytes` of an object's chunks take.
pub(super) fn disk_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

/// The cache's share of its disk.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    used: AtomicU64,
}

impl Budget {
    pub(super) fn new(limit: u64, used: u64) -> Self {
        Budget { limit, used: AtomicU64::new(used) }
    }

    /// Takes `bytes` of disk, or nothing if they and the index, which takes
    /// `index_bytes` by now, would pass the limit.
    pub(super) fn reserve(&self, bytes: u64, index_bytes: u64) -> bool {
        let limit = self.limit.saturating_sub(index_bytes);
        let taken = self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= limit)
        });
        taken.is_ok()
    }

    /// Gives `bytes` back.
    pub(super) fn release(&self, bytes: u64) {
        self.used.update(Ordering::Relaxed, Ordering::Relaxed, |used| used.saturating_sub(bytes));
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }
}

/// Disk left to the index where others fill the file system: it must be able
/// to note changes long after there is no room for another chunk.
const INDEX_ROOM_BYTES: u64 = 64 << 20;

/// Whether the file system of `dir` has room for `bytes` and then for the index.
pub(super) fn disk_has_room(dir: &Path, bytes: u64) -> bool {
    // Who cannot be asked is found out by writing.
    let Ok(stat) = nix::sys::statvfs::statvfs(dir) else { return true };
    let block = stat.fragment_size();
    let room = INDEX_ROOM_BYTES.min(stat.blocks() * block / 8);
    stat.blocks_available() * block >= bytes + room
}

/// The limit where the user gave none: what is free and what the cache has
/// already, less the reserve.
pub(super) fn default_limit(dir: &Path, used: u64) -> std::io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    let block = stat.fragment_size();
    let free = stat.blocks_available() * block;
    let reserve = RESERVE_BYTES.max(stat.blocks() * block / 10);
    Ok((free + used).saturating_sub(reserve))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_passes_the_limit() {
        let budget = Budget::new(10_000, 4_096);
        assert!(!budget.reserve(5_905, 0));
        assert!(!budget.reserve(5_904, 1));
        assert!(!budget.reserve(1, 20_000));
        assert!(budget.reserve(5_904, 0));
        assert!(!budget.reserve(1, 0));
        budget.release(1);
        assert!(budget.reserve(1, 0));
        assert!(!budget.reserve(u64::MAX, 0));
        assert_eq!(budget.used(), 10_000);
    }
}
