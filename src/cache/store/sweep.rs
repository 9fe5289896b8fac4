//! The sweep: finds files that no row names, and removes them.
//!
//! They are left by a process that was killed between making a file and the
//! row about it, by a power cut that undid an unlink, by an index that was
//! lost, or by somebody who put them there. Runs in the background after each
//! start: nothing waits for it, and nothing scans the folder before the cache
//! serves.

use std::fs::{self, DirEntry};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use super::super::backing_file::BackingFile;
use super::super::budget::disk_bytes;
use super::super::chunk_map::ChunkMap;
use super::super::record::{FileId, Location, NodeId, ObjectRow};
use super::super::{CacheError, kill_point, lock};
use super::Store;

/// Blocks that a file may have beyond its chunks before it is looked into: the
/// file system's own, for the map of a fragmented file.
const METADATA_BYTES: u64 = 8192;

/// What the sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct Swept {
    pub files: u64,
    pub bytes: u64,
    /// Bytes of disk that known files take beyond their chunks.
    pub surplus_bytes: u64,
}

impl Store {
    /// Looks at every file of the store, and removes what is nobody's. Blocks,
    /// for seconds where there are millions; ends early once the store is closed.
    pub(in crate::cache) fn sweep(&self) -> Swept {
        let mut swept = Swept::default();
        let losses = self.index.losses();
        for entry in entries(&self.data_dir) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => {
                    if !self.sweep_folder(&entry.path(), losses, &mut swept) {
                        return swept;
                    }
                }
                Ok(_) => self.sweep_away(&entry, &mut swept),
                Err(_) => {}
            }
        }
        if swept.files > 0 {
            tracing::info!(
                swept.files,
                swept.bytes,
                "files that the cache index does not know were removed"
            );
        }
        swept
    }

    /// `false` once the store is closed, or has another index than it had.
    fn sweep_folder(&self, folder: &Path, losses: u64, swept: &mut Swept) -> bool {
        for entry in entries(folder) {
            // An index in memory knows nothing of what is on disk.
            if self.closed.load(Ordering::Relaxed) || self.index.is_in_memory() {
                return false;
            }
            let id = entry.file_name().to_str().and_then(FileId::of_name);
            let id = id.filter(|id| id.path(&self.data_dir) == entry.path());
            let known = id.map(|id| self.is_known(id, &entry));
            // After the question: it may have been put to another index.
            if self.index.losses() != losses {
                return false;
            }
            match known {
                Some(Ok(Some(surplus))) => swept.surplus_bytes += surplus,
                // What cannot be told now is left for another time.
                Some(Err(error)) => tracing::debug!(%error, "a file of the cache cannot be told"),
                Some(Ok(None)) | None => self.sweep_away(&entry, swept),
            }
        }
        true
    }

    /// What a file takes beyond its chunks if it belongs to an object. Once it
    /// does not, it never will: no two files have the same id.
    fn is_known(&self, id: FileId, entry: &DirEntry) -> Result<Option<u64>, CacheError> {
        let _loading = lock(self.loading_lock(id.node));
        if let Some(live) = self.live(id.node) {
            return Ok(live.is_in_file(id).then_some(0));
        }
        let row = self.index.object(id.node)?;
        let row = row.filter(|row| row.location == Location::OwnFile(id));
        Ok(row.map(|row| self.trim(id.node, &row, entry)))
    }

    /// Gives back what was written to a file after its row: no row accounts for
    /// it. Returns what it takes all the same.
    fn trim(&self, node: NodeId, row: &ObjectRow, entry: &DirEntry) -> u64 {
        let surplus = || blocks_of(entry).saturating_sub(disk_bytes(row.present_bytes));
        if surplus() <= METADATA_BYTES {
            return surplus();
        }
        let trimmed = self.index.chunk_groups(node).and_then(|groups| {
            let map = ChunkMap::load(row.size, &groups, false);
            let path = entry.path();
            let file = BackingFile::open(&path).map_err(CacheError::io(&path))?;
            file.punch_absent(&map, row.size).map_err(CacheError::io(&path))
        });
        if let Err(error) = trimmed {
            tracing::debug!(%error, "a file of the cache keeps more than is known of it");
        }
        surplus()
    }

    fn sweep_away(&self, entry: &DirEntry, swept: &mut Swept) {
        kill_point::reach("orphan-found");
        let path = entry.path();
        swept.files += 1;
        swept.bytes += blocks_of(entry);
        // A link is removed, never followed.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                if let Err(error) = fs::remove_dir_all(&path) {
                    tracing::warn!(%error, "cannot remove a folder that is not the cache's");
                }
            }
            _ => self.unlink(&path),
        }
    }
}

/// Bytes of disk that a file takes.
pub(super) fn blocks_of(entry: &DirEntry) -> u64 {
    entry.metadata().map_or(0, |meta| meta.blocks() * 512)
}

/// What a folder holds; nothing if it cannot be read.
pub(super) fn entries(folder: &Path) -> impl Iterator<Item = DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}
