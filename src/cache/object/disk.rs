//! What of an object is on disk: chunks kept, the file watched, rows written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::backing_file::BackingFile;
use super::super::budget::disk_bytes;
use super::super::chunk_map::{Presence, chunk_count, chunk_len, chunk_range};
use super::super::flight::Flight;
use super::super::index::Write;
use super::super::record::{Fingerprint, GROUP_CHUNKS, Location, ObjectRow};
use super::super::writer::Job;
use super::super::{CacheError, Event, kill_point, lock};
use super::{CachedObject, Chunk, State};

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

    /// Some of the flight's chunks went past the disk when they came. They are kept
    /// now if they can be: as long as they are in memory nobody fetches them, who
    /// would keep them. Whoever reads them next tries again.
    pub(super) fn keep_passed(self: &Arc<Self>, flight: &Arc<Flight>) {
        if flight.is_kept() || self.is_doomed() || !self.store.is_keeping() {
            return;
        }
        if self.store.writer().is_idle() {
            self.keep_later(flight);
        }
    }

    /// As [`CachedObject::keep_passed`], with all that is in memory still.
    pub(in crate::cache) fn keep_all_passed(self: &Arc<Self>) {
        let flights: Vec<_> = {
            let state = lock(&self.state);
            state.flights.all().filter(|flight| !flight.is_kept()).cloned().collect()
        };
        flights.iter().for_each(|flight| self.keep_later(flight));
    }

    fn keep_later(self: &Arc<Self>, flight: &Arc<Flight>) {
        let late = Late { object: self.clone(), flight: flight.clone() };
        self.store.writer().push(Box::new(late));
    }

    /// Whether a chunk is on disk already: after damage, two flights may bring it.
    pub(super) fn is_kept(&self, chunk: u32) -> bool {
        lock(&self.state).map.presence(chunk) == Presence::Verified
    }

    /// Writes chunks that follow one another, whose bytes these are, and notes that
    /// they are there; `false` if they cannot be kept. What is in the cache gives way
    /// to them only if they are `for_reader`.
    pub(super) fn keep(self: &Arc<Self>, run: &[Chunk], bytes: &[u8], for_reader: bool) -> bool {
        let Some(first) = run.first() else { return true };
        let disk = self.disk_bytes_of_chunks(run);
        if self.is_doomed() || !self.store.reserve(disk, for_reader) {
            return false;
        }
        let offset = chunk_range(first.number, self.meta.size).start;
        let file = match self.writable_file(for_reader) {
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
        let written = file.write(bytes, offset, self.store.way_to_disk());
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
            self.became_whole();
        }
        true
    }

    fn disk_bytes_of_chunks(&self, run: &[Chunk]) -> u64 {
        run.iter().map(|chunk| disk_bytes(chunk_len(chunk.number, self.meta.size) as u64)).sum()
    }

    /// Notes chunks whose bytes are in the file, their disk reserved. If `doubts`
    /// came up since, the disk may have lost them again.
    fn written(&self, run: &[Chunk], doubts: u64) {
        let mut unused = 0;
        let mut state = lock(&self.state);
        state.writes -= 1;
        let is_first = state.map.present_bytes() == 0;
        let is_sure = state.doubts == doubts;
        for chunk in run {
            let was_paid = state.loose.remove(&chunk.number);
            let added = state.map.insert(chunk.number, chunk.crc, is_sure);
            state.dirty_groups.insert(chunk.number / GROUP_CHUNKS);
            if was_paid || !added {
                unused += self.disk_bytes_of_chunks(&[*chunk]);
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
    fn partly_written(&self, run: &[Chunk]) {
        let mut unused = 0;
        let mut state = lock(&self.state);
        state.writes -= 1;
        for chunk in run {
            let is_new = state.map.presence(chunk.number) == Presence::Absent
                && state.loose.insert(chunk.number);
            unused += if is_new { 0 } else { self.disk_bytes_of_chunks(&[*chunk]) };
        }
        drop(state);
        self.store.release(unused);
    }

    /// The file, created if need be; `None` once the object is doomed, and
    /// where no more files may be made, or not without evicting others.
    fn writable_file(&self, may_evict: bool) -> std::io::Result<Option<&BackingFile>> {
        if let Some(file) = self.file.get() {
            return Ok((!self.is_doomed()).then_some(file));
        }
        // Before the lock: others may have to be evicted for it.
        if !self.store.reserve_file(may_evict) {
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

/// A flight whose chunks went past the disk, to be written after all.
struct Late {
    object: Arc<CachedObject>,
    flight: Arc<Flight>,
}

impl Job for Late {
    fn run(self: Box<Self>) {
        let (object, flight) = (&self.object, &self.flight);
        // A reader may have had all of it meanwhile, and its memory be gone.
        let Some(block) = flight.block() else { return self.give_up() };
        let mut are_kept = true;
        for number in flight.chunks().clone() {
            let place = flight.place(&chunk_range(number, object.meta.size));
            if place.end > block.filled() {
                return; // It is still on its way, and sees to itself.
            }
            let bytes = block.get(place);
            let chunk = Chunk { number, crc: crc32c::crc32c(bytes) };
            let for_reader = flight.is_for_reader();
            are_kept &= object.is_kept(number) || object.keep(&[chunk], bytes, for_reader);
        }
        if are_kept {
            flight.was_kept();
        }
    }

    fn give_up(self: Box<Self>) {
        let chunks = self.flight.chunks().clone();
        for chunk in chunks.filter(|chunk| !self.object.is_kept(*chunk)) {
            self.object.store.fill_when_idle(&self.object, chunk);
        }
    }
}
