//! What the store does now and then: rows written, the disk followed and tried
//! again, another index met, files that nobody knows looked for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use super::super::{CacheError, kill_point, lock};
use super::{DIRTY_MAX, Store, UNFLUSHED_MAX_BYTES};

impl Store {
    /// Writes what changed to the index, durably. Blocks.
    pub(in crate::cache) fn flush(&self) -> Result<(), CacheError> {
        let _turn = lock(&self.flushing);
        let unflushed = self.unflushed.load(Ordering::Relaxed);
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        kill_point::reach("flush-begun");
        let trust = self.trust();
        let unwritten = self.take_unwritten();
        // An index in memory is the wrong one to tell: it does not outlive us.
        let distrust =
            !self.index.is_in_memory() && self.untold_distrust.swap(false, Ordering::Relaxed);
        let written = if dirty.is_empty() && unwritten.is_empty() && !distrust {
            self.index.sync_pending()
        } else {
            self.index.write_durably(|write| {
                if distrust {
                    write.put_distrusted_boot(self.boot)?;
                }
                for (node, file) in &unwritten {
                    write.remove_object_in(*node, *file)?;
                }
                for object in dirty.values().filter(|object| !object.is_doomed()) {
                    object.write_rows(write, trust)?;
                }
                kill_point::reach("flush-uncommitted");
                Ok(())
            })
        };
        self.settle_unwritten(unwritten, written.is_ok());
        if distrust && written.is_err() {
            self.untold_distrust.store(true, Ordering::Relaxed);
        }
        match &written {
            Ok(()) => {
                kill_point::reach("flush-committed");
                self.unflushed.fetch_sub(unflushed, Ordering::Relaxed);
            }
            // What cannot be noted is not kept: it would only gather in memory.
            Err(error) => {
                self.disk_failed(&match error {
                    CacheError::NoRoom(_) => std::io::Error::from_raw_os_error(libc::ENOSPC),
                    error => std::io::Error::other(error.clone()),
                });
                for object in dirty.values() {
                    object.redirty();
                    self.mark_dirty(object);
                }
            }
        }
        self.metrics.repairs.add(self.index.take_damaged_rows());
        // The index may have grown.
        self.look_at_disk();
        written
    }

    pub(super) fn trust(&self) -> u128 {
        *lock(&self.trust)
    }

    /// The disk failed: a write that it took may be lost all the same, without
    /// a word, once its page is. Every chunk is checked before its next use.
    pub(super) fn lose_trust(&self) {
        self.untold_distrust.store(true, Ordering::Relaxed);
        *lock(&self.trust) = fastrand::u128(..);
        // Who is loaded with the old trust is in `live` after this.
        self.loading.iter().for_each(|loading| drop(lock(loading)));
        let live: Vec<_> = lock(&self.live).values().filter_map(Weak::upgrade).collect();
        for object in live {
            object.distrust_all();
        }
        // Rows that were written meanwhile may say more than is known.
        *lock(&self.trust) = fastrand::u128(..);
    }

    /// `bytes` of a chunk are on disk. Blocks where the index is far behind.
    pub(in crate::cache) fn chunk_written(&self, bytes: u64) {
        let unflushed = self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_behind = unflushed > self.unflushed_max() || lock(&self.dirty).len() > DIRTY_MAX;
        if is_behind && let Err(error) = self.flush() {
            tracing::debug!(%error, "the index is behind what is on disk");
        }
    }

    /// Bytes on disk of which the index may not know.
    pub(super) fn unflushed_max(&self) -> u64 {
        UNFLUSHED_MAX_BYTES.min(self.budget.limit() / 8)
    }

    /// What has to be done now and then: the disk followed, rows written. Blocks.
    pub(in crate::cache) fn keep_house(&self) -> Result<(), CacheError> {
        if self.losses_met.load(Ordering::Relaxed) != self.index.losses() {
            self.meet_other_index()?;
        }
        self.follow_disk();
        if self.index.is_in_memory() && self.health.trouble().is_none() {
            self.health.failed(&std::io::Error::other("the cache index cannot be written"));
        }
        if self.health.trouble().is_some() && !self.health.is_pausing() {
            self.probe_disk();
        }
        self.fill_unkept();
        self.flush()
    }

    /// Fetches what was not kept for a disk that was behind, now that it has
    /// nothing else to do.
    fn fill_unkept(&self) {
        if !self.writer.is_idle() || !self.may_prefetch() {
            return;
        }
        let unkept = std::mem::take(&mut *lock(&self.unkept)).objects;
        let unkept: Vec<_> = unkept
            .into_values()
            .filter_map(|(object, chunks)| Some((object.upgrade()?, chunks)))
            .collect();
        if unkept.is_empty() {
            return;
        }
        let Some(store) = self.me.upgrade() else { return };
        self.spawn(async move {
            for (object, chunks) in unkept {
                object.keep_all_passed();
                match object.fill_chunks(&chunks).await {
                    // The disk fell behind again.
                    Ok(fill) if !fill.is_whole => {
                        chunks.iter().for_each(|chunk| store.fill_when_idle(&object, *chunk));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "what was not kept cannot be fetched now");
                    }
                }
            }
        });
    }

    /// Finds out whether the disk works again, although nobody writes to it.
    pub(super) fn probe_disk(&self) {
        let path = self.data_dir.join("probe");
        let probed = std::fs::write(&path, [0; 4096])
            .and_then(|()| std::fs::File::open(&path)?.sync_all())
            .and_then(|()| self.index.return_to_file().map_err(std::io::Error::other))
            .and_then(|()| self.index.sync().map_err(std::io::Error::other));
        // What is left of it goes with the next sweep.
        let _ = std::fs::remove_file(&path);
        match probed {
            Ok(()) => self.health.works(),
            Err(error) => self.health.failed(&error),
        }
    }

    /// The index is not the one that it was: what is in memory of objects is
    /// about nodes that may not be there. Those who read go on with the files
    /// they have open, and what is kept is what the index knows now.
    pub(super) fn meet_other_index(&self) -> Result<(), CacheError> {
        let losses = self.index.losses();
        let totals = self.index.totals()?;
        self.places.set_pins(self.index.pins()?);
        let live: Vec<_> =
            lock(&self.live).drain().filter_map(|(_, object)| object.upgrade()).collect();
        let files: Vec<_> = live.iter().map(|object| object.doom()).collect();
        let dirty = std::mem::take(&mut *lock(&self.dirty));
        drop(dirty); // After the lock: their drop takes another one.
        self.forget_idle();
        // Somebody reads them, perhaps chunks of which no row tells: their files
        // are theirs from now on, and nobody else's to trim or to write to.
        for (object, file) in live.iter().zip(files) {
            if let Some(file) = file.filter(|_| Arc::strong_count(object) > 1) {
                self.unlink(&file.path(&self.data_dir));
            }
        }
        self.room.forget(self.budget.for_objects());
        self.losses_met.store(losses, Ordering::Relaxed);
        // From here on they are what their readers hold, and go with them.
        let used: u64 = live.iter().map(|object| object.disk_bytes()).sum();
        let held = live.iter().filter(|object| object.present_bytes() > 0).count();
        self.budget.set_used(totals.disk_bytes + used);
        self.held.store(totals.objects + held as u64, Ordering::Relaxed);
        drop(live);
        if self.index.is_in_memory() {
            // The file may come back, and with it all that it knows.
            self.health.failed(&std::io::Error::other("the cache index cannot be written"));
        } else {
            self.metrics.repairs.add(1);
            self.sweep_later(u64::MAX);
        }
        Ok(())
    }

    /// Looks for files that nobody knows, soon. Until that is done, `held_back`
    /// bytes of the budget are not given out: so much may be in such files.
    pub(in crate::cache) fn sweep_later(&self, held_back: u64) {
        self.budget.hold_back(held_back);
        let number = self.sweeps.fetch_add(1, Ordering::Relaxed) + 1;
        let Some(store) = self.me.upgrade() else { return };
        let sweep = std::thread::Builder::new().name("sweep".into()).spawn(move || {
            // Whatever breaks it, the cache must keep again after it.
            let swept = catch_unwind(AssertUnwindSafe(|| store.sweep())).unwrap_or_default();
            // A later one has yet to find what this one was too early for.
            if store.sweeps.load(Ordering::Relaxed) == number {
                store.surplus.store(swept.surplus_bytes, Ordering::Relaxed);
                store.look_at_disk();
                store.budget.hold_back(0);
            }
        });
        if let Err(error) = sweep {
            tracing::warn!(%error, "files that the cache index does not know stay");
            self.budget.hold_back(0);
        }
    }
}
