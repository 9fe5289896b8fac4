//! The index while its disk fails: kept in memory, so that names are found and
//! reads stream through. What it knew is asked of the remote once more.
//!
//! The file is left as it is, and gone back to as soon as it can be written.
//! Node ids go on from where they were, there and back: none is used twice.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::Database;
use redb::backends::InMemoryBackend;

use super::{
    FIRST_NODE_ID, Index, NODE_ID_BLOCK, Prepared, is_damaged, open_checked, open_database,
    prepare, set_aside,
};
use crate::cache::CacheError;

/// Durable commits that may fail in a row before the file is given up for now.
/// One may: the machine was out of descriptors, say.
pub(super) const FAILED_COMMITS_MAX: u64 = 2;

/// The same where there is no room: eviction makes some within a second or two.
pub(super) const FULL_COMMITS_MAX: u64 = 16;

impl Index {
    /// Whether the file cannot be used just now: nothing that is written here
    /// outlives this process.
    pub(in crate::cache) fn is_in_memory(&self) -> bool {
        self.in_memory.load(Ordering::Relaxed)
    }

    /// An index in memory, in place of a file that cannot be used.
    pub(super) fn begin_in_memory(&self) -> Option<Database> {
        let begun = Database::builder()
            .set_cache_size(self.page_cache_bytes)
            .create_with_backend(InMemoryBackend::new())
            .map_err(redb::Error::from)
            .and_then(|db| prepare(db, self.next_node.load(Ordering::Relaxed)))
            .map_err(CacheError::from)
            .and_then(|(db, prepared)| {
                self.put_roots(&db)?;
                Ok((db, prepared))
            });
        match begun {
            Ok((db, prepared)) => {
                self.in_memory.store(true, Ordering::Relaxed);
                self.begin_anew(&prepared);
                tracing::warn!("the cache index goes on in memory until its disk works again");
                Some(db)
            }
            Err(error) => {
                tracing::error!(%error, "no index can be made in memory");
                None
            }
        }
    }

    /// Durable commits fail although the file can be opened.
    pub(super) fn leave_file(&self) {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) || self.is_in_memory() {
            return;
        }
        self.openings.fetch_add(1, Ordering::Relaxed);
        *db = None;
        *db = self.begin_in_memory();
    }

    /// Goes back to the file, if it can be written again. Blocks, for as long
    /// as it takes to check all of it.
    pub(in crate::cache) fn return_to_file(&self) -> Result<(), CacheError> {
        if !self.is_in_memory() || self.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let next_node = self.next_node.load(Ordering::Relaxed).max(FIRST_NODE_ID);
        let opened = open_checked(&self.path, &self.sums, self.page_cache_bytes)
            .and_then(|db| prepare(db, next_node));
        let (db, prepared) = match opened {
            Err(reason) if is_damaged(&reason) => {
                set_aside(&self.path, &reason)?;
                open_database(&self.path, &self.sums, self.page_cache_bytes)
                    .and_then(|db| prepare(db, next_node))?
            }
            opened => opened?,
        };
        // Shows that it can be written, too.
        self.put_roots(&db)?;
        let mut current = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if self.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.openings.fetch_add(1, Ordering::Relaxed);
        *current = Some(db);
        self.in_memory.store(false, Ordering::Relaxed);
        self.begin_anew(&prepared);
        tracing::info!("the cache index is back on its disk");
        Ok(())
    }

    /// Another database than before takes over.
    pub(super) fn begin_anew(&self, prepared: &Prepared) {
        self.next_node.fetch_max(prepared.next_node, Ordering::Relaxed);
        self.reserved.store(prepared.next_node + NODE_ID_BLOCK, Ordering::Relaxed);
        self.alarms.store(0, Ordering::Relaxed);
        self.failed_commits.store(0, Ordering::Relaxed);
        self.losses.fetch_add(1, Ordering::Relaxed);
    }
}
