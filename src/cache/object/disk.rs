//! What of an object is on disk: chunks kept, the file watched, rows written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::backing_file::BackingFile;
use super::super::budget::disk_bytes;
use super::super::chunk_map::{Presence, chunk_count, chunk_range};
use super::super::index::Write;
use super::super::record::{Fingerprint, GROUP_CHUNKS, Location, ObjectRow};
use super::super::{CacheError, Event, kill_point, lock};
use super::{CachedObject, State};

impl CachedObject {
    /// Looks at the file before it is opened again. If somebody else touched
    /// it, every chunk is checked before its next use. `false` if it has no
    /// name any more: it is lost with the last who has it open.
    pub(in crate::cache) fn recheck(&self) -> bool {
        let Some(file) = self.file.get() else { return true };
        if self.lost.load(Ordering::Relaxed) {
            return false;
        }
        if self.is_doomed() {
            return true;
        }
        let mut state = lock(&self.state);
        let Ok(Some(now)) = file.fingerprint() else { return false };
        self.distrust_if_touched(&mut state, file, &now);
        true
    }

    /// Compares the file with what we left. Only its size and its inode can be
    /// told while we write to it ourselves.
    pub(super) fn distrust_if_touched(
        &self,
        state: &mut State,
        file: &BackingFile,
        now: &Fingerprint,
    ) {
        let touched = match &state.fingerprint {
            Some(known) if state.writes == 0 => known != now,
            _ => now.size != self.meta.size,
        };
        if !touched {
            return;
        }
        tracing::warn!(key = ?self.meta.key.0, "somebody touched the file of a cached object; it is checked");
        self.distrust(state);
        if now.size != self.meta.size
            && let Err(error) = file.restore_size(self.meta.size)
        {
            self.store.health().failed(&error);
        }
        state.fingerprint = None;
    }

    /// Every chunk is checked before its next use.
    pub(in crate::cache) fn distrust_all(&self) {
        self.distrust(&mut lock(&self.state));
    }

    pub(super) fn distrust(&self, state: &mut State) {
        self.complete.store(false, Ordering::Release);
        state.map.distrust();
        state.doubts += 1;
    }

    /// A chunk went past the disk when it came. It is kept now if it can be: as
    /// long as it is in memory nobody fetches it, who would keep it.
    pub(super) fn keep_passed(self: &Arc<Self>, chunk: u32, bytes: &Bytes) {
        if self.is_doomed() || !self.store.is_keeping() {
            return;
        }
        let (object, bytes) = (self.clone(), bytes.clone());
        // Whoever reads the chunk next tries again.
        self.store.writer().push_if_idle(Box::new(move || object.keep_after_all(chunk, bytes)));
    }

    /// As [`CachedObject::keep_passed`], with all chunks that are in memory still.
    pub(in crate::cache) fn keep_all_passed(self: &Arc<Self>) {
        for chunk in self.chunks() {
            let Some(bytes) = self.store.passing_by(self.node, chunk) else { continue };
            let object = self.clone();
            self.store.writer().push(Box::new(move || object.keep_after_all(chunk, bytes)));
        }
    }

    fn keep_after_all(self: &Arc<Self>, chunk: u32, bytes: Bytes) {
        if self.is_kept(chunk) || self.keep(&[(chunk, bytes)]) {
            self.store.kept_after_all(self.node, chunk);
        }
    }

    /// Whether a chunk is on disk already: after damage, two flights may bring it.
    pub(super) fn is_kept(&self, chunk: u32) -> bool {
        lock(&self.state).map.presence(chunk) == Presence::Verified
    }

    /// Writes chunks that follow one another and notes that they are there;
    /// `false` if they cannot be kept.
    pub(super) fn keep(self: &Arc<Self>, run: &[(u32, Bytes)]) -> bool {
        let Some((first, _)) = run.first() else { return true };
        let disk = run.iter().map(|(_, bytes)| disk_bytes(bytes.len() as u64)).sum();
        if self.is_doomed() || !self.store.reserve(disk) {
            return false;
        }
        let offset = chunk_range(*first, self.meta.size).start;
        let file = match self.writable_file() {
            Ok(Some(file)) => file,
            refused => {
                self.store.release(disk);
                if let Err(error) = refused {
                    self.store.disk_failed(&error);
                }
                return false;
            }
        };
        let doubts = {
            let mut state = lock(&self.state);
            state.writes += 1;
            state.fingerprint = None;
            state.doubts
        };
        let written = file.write(run.iter().map(|(_, bytes)| bytes), offset);
        kill_point::reach("chunk-written");
        if let Err(error) = written {
            self.partly_written(run);
            self.store.disk_failed(&error);
            return false;
        }
        self.written(run, doubts);
        kill_point::reach("chunk-noted");
        self.store.mark_dirty(self);
        self.store.health().works();
        self.store.chunk_written(disk);
        if self.complete.load(Ordering::Acquire) {
            self.store.emit(Event::Blocks(self.node));
        }
        true
    }

    /// Notes chunks whose bytes are in the file, their disk reserved. If `doubts`
    /// came up since, the disk may have lost them again.
    fn written(&self, run: &[(u32, Bytes)], doubts: u64) {
        let sums: Vec<u32> = run.iter().map(|(_, bytes)| crc32c::crc32c(bytes)).collect();
        let mut unused = 0;
        let mut state = lock(&self.state);
        state.writes -= 1;
        let is_first = state.map.present_bytes() == 0;
        let is_sure = state.doubts == doubts;
        for ((chunk, bytes), crc) in run.iter().zip(sums) {
            let was_paid = state.loose.remove(chunk);
            let added = state.map.insert(*chunk, crc, is_sure);
            state.dirty_groups.insert(chunk / GROUP_CHUNKS);
            if was_paid || !added {
                unused += disk_bytes(bytes.len() as u64);
            }
        }
        self.complete.store(state.map.is_complete(), Ordering::Release);
        drop(state);
        self.store.release(unused);
        if is_first {
            self.store.count_held(true);
            self.store.set_held(self.node, true);
        }
    }

    /// Perhaps some bytes of these chunks are in the file: what they take of
    /// the disk stays paid for.
    fn partly_written(&self, run: &[(u32, Bytes)]) {
        let mut unused = 0;
        let mut state = lock(&self.state);
        state.writes -= 1;
        for (chunk, bytes) in run {
            let is_new =
                state.map.presence(*chunk) == Presence::Absent && state.loose.insert(*chunk);
            unused += if is_new { 0 } else { disk_bytes(bytes.len() as u64) };
        }
        drop(state);
        self.store.release(unused);
    }

    /// The file, created if need be; `None` once the object is doomed, and
    /// where no more files may be made.
    pub(super) fn writable_file(&self) -> std::io::Result<Option<&BackingFile>> {
        if let Some(file) = self.file.get() {
            return Ok((!self.is_doomed()).then_some(file));
        }
        // Before the lock: others may have to be evicted for it.
        if !self.store.reserve_file() {
            return Ok(None);
        }
        let _writing = lock(&self.writing);
        if self.is_doomed() || self.file.get().is_some() {
            self.store.release_file();
            return Ok(self.file.get().filter(|_| !self.is_doomed()));
        }
        kill_point::reach("file-uncreated");
        let path = self.file_id.path(self.store.data_dir());
        let file = BackingFile::create(&path, self.meta.size)?;
        kill_point::reach("file-created");
        Ok(Some(self.file.get_or_init(|| file)))
    }

    /// What was written to the index is not there: all of it is to be written again.
    pub(in crate::cache) fn redirty(&self) {
        let groups = chunk_count(self.meta.size).div_ceil(GROUP_CHUNKS);
        let mut state = lock(&self.state);
        state.dirty_groups.extend(0..groups);
        state.stale_rows = true;
    }

    /// Writes what changed since the last time to the index.
    pub(in crate::cache) fn write_rows(
        &self,
        write: &mut Write<'_>,
        boot: u128,
    ) -> Result<(), CacheError> {
        if std::mem::take(&mut lock(&self.state).stale_rows) {
            write.remove_object(self.node)?;
        }
        let Some(file) = self.file.get() else { return Ok(()) };
        let (groups, row) = {
            let mut state = lock(&self.state);
            let now = file.fingerprint().map_err(|e| CacheError::Io(e.to_string()))?;
            // Without a name it is lost; its bytes go with its last reader.
            let Some(now) = now else {
                self.lost.store(true, Ordering::Relaxed);
                self.doomed.store(true, Ordering::Relaxed);
                return write.remove_object(self.node).map(drop);
            };
            self.distrust_if_touched(&mut state, file, &now);
            if state.writes == 0 && now.size == self.meta.size {
                state.fingerprint = Some(now);
            }
            let dirty = std::mem::take(&mut state.dirty_groups);
            let groups: Vec<_> = dirty.into_iter().map(|g| (g, state.map.group_row(g))).collect();
            let row = ObjectRow {
                location: Location::OwnFile(self.file_id),
                size: self.meta.size,
                version: self.meta.version.clone(),
                present_bytes: state.map.present_bytes(),
                fingerprint: now,
                verified_boot: state.map.is_all_verified().then_some(boot),
                used_ms: self.used_ms.load(Ordering::Relaxed),
            };
            (groups, row)
        };
        for (group, row) in groups {
            write.put_chunk_group(self.node, group, &row)?;
        }
        kill_point::reach("flush-between-rows");
        write.put_object(self.node, &row)?;
        kill_point::reach("flush-object-written");
        Ok(())
    }
}
