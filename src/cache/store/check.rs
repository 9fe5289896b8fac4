//! Checks of objects that nobody can fetch: their remote is not mounted. What
//! is damaged is dropped.

use std::io;

use super::super::backing_file::BackingFile;
use super::super::budget::disk_bytes;
use super::super::chunk_map::{CHUNK_BYTES, ChunkMap, chunk_count, chunk_range};
use super::super::record::{GROUP_CHUNKS, Location, NodeId, ObjectRow};
use super::super::{CacheError, lock};
use super::{Readers, Store};

/// What a check of one object found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cache) struct Checked {
    pub bytes: u64,
    pub damaged_chunks: u64,
}

/// What became of an object in which damage was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mended {
    /// It has lost the damaged chunks.
    Yes,
    /// Its file cannot be brought in order: all of it is to go.
    No,
    /// It is another one by now, or somebody has it.
    Overtaken,
}

impl Store {
    /// Compares what is on disk of an object that is not in memory with its
    /// checksums. Blocks. Holds up nobody who opens objects, but to drop what
    /// is damaged.
    pub(in crate::cache) fn check_unloaded(&self, node: NodeId) -> Result<Checked, CacheError> {
        if self.live(node).is_some() || self.room.is_leaving(node) {
            return Ok(Checked::default()); // Mounted this moment: it is checked when read.
        }
        let Some(row) = self.index.object(node)? else { return Ok(Checked::default()) };
        let trust = self.trust(); // Before reading: the disk may fail meanwhile.
        let groups = self.index.chunk_groups(node)?;
        let mut map = ChunkMap::load(row.size, &groups, false);
        let Location::OwnFile(id) = row.location;
        let path = id.path(&self.data_dir);
        let file = match BackingFile::open_to_read(&path) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // It says nothing of the file.
            Err(error) => return Err(CacheError::io(&path)(error)),
        };
        let (checked, damaged) = match &file {
            Some(file) => find_damage(file, &row, &map),
            None => {
                let damaged_chunks = u64::from(map.present_chunks());
                (Checked { bytes: 0, damaged_chunks }, Vec::new())
            }
        };
        if file.is_some() && damaged.is_empty() {
            return Ok(checked);
        }
        match self.drop_damaged(node, &row, &mut map, &damaged, trust)? {
            Mended::Yes => {}
            Mended::No => drop(self.remove(&[node], Readers::Spare)?),
            // Evicted, perhaps, while it was read: that is no damage.
            Mended::Overtaken => return Ok(Checked { damaged_chunks: 0, ..checked }),
        }
        self.metrics.repairs.add(checked.damaged_chunks);
        Ok(checked)
    }

    /// Takes `damaged` out of an object, unless it is no longer as `row` has it.
    fn drop_damaged(
        &self,
        node: NodeId,
        row: &ObjectRow,
        map: &mut ChunkMap,
        damaged: &[u32],
        trust: u128,
    ) -> Result<Mended, CacheError> {
        let _loading = lock(self.loading_lock(node));
        let is_free = self.live(node).is_none() && !self.room.is_leaving(node);
        // Whatever was written since, the row has another fingerprint for it.
        if !is_free || self.index.object(node)?.as_ref() != Some(row) {
            return Ok(Mended::Overtaken);
        }
        let Location::OwnFile(id) = row.location;
        let path = id.path(&self.data_dir);
        let file = match BackingFile::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Mended::No),
            Err(error) => return Err(CacheError::io(&path)(error)),
        };
        for chunk in damaged {
            map.remove(*chunk);
        }
        let mended = file
            .restore_size(row.size)
            .and_then(|()| file.punch_absent(map, row.size))
            .and_then(|()| file.fingerprint());
        let Ok(Some(fingerprint)) = mended else { return Ok(Mended::No) };
        let after = ObjectRow {
            present_bytes: map.present_bytes(),
            fingerprint,
            verified_boot: Some(trust),
            ..row.clone()
        };
        self.index.write_durably(|write| {
            for chunk in damaged {
                let group = chunk / GROUP_CHUNKS;
                write.put_chunk_group(node, group, &map.group_row(group))?;
            }
            write.put_object(node, &after)
        })?;
        let bytes = [row, &after].map(|row| disk_bytes(row.present_bytes));
        self.budget.release(bytes[0].saturating_sub(bytes[1]));
        if after.present_bytes == 0 {
            self.count_held(false);
        }
        Ok(Mended::Yes)
    }
}

/// Reads what is there of an object. Tells which chunks are not what was written.
fn find_damage(file: &BackingFile, row: &ObjectRow, map: &ChunkMap) -> (Checked, Vec<u32>) {
    let mut checked = Checked::default();
    let mut damaged = Vec::new();
    let mut buffer = vec![0; CHUNK_BYTES as usize];
    for chunk in 0..chunk_count(row.size) {
        let Some(crc) = map.crc(chunk) else { continue };
        let range = chunk_range(chunk, row.size);
        let bytes = &mut buffer[..(range.end - range.start) as usize];
        checked.bytes += bytes.len() as u64;
        if file.read(bytes, range.start).is_err() || crc32c::crc32c(bytes) != crc {
            damaged.push(chunk);
        }
    }
    checked.damaged_chunks = damaged.len() as u64;
    (checked, damaged)
}
