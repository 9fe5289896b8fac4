//! Checks of objects that nobody can fetch: their remote is not mounted. What
//! is damaged is dropped.

use super::super::backing_file::BackingFile;
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

impl Store {
    /// Compares what is on disk of an object that is not in memory with its
    /// checksums. Blocks.
    pub(in crate::cache) fn check_unloaded(&self, node: NodeId) -> Result<Checked, CacheError> {
        let checked = {
            let _loading = lock(self.loading_lock(node));
            if self.live(node).is_some() {
                return Ok(Checked::default()); // Mounted this moment: it is checked when read.
            }
            let Some(row) = self.index.object(node)? else { return Ok(Checked::default()) };
            let groups = self.index.chunk_groups(node)?;
            let mut map = ChunkMap::load(row.size, &groups, false);
            let expected = u64::from(map.present_chunks());
            match self.check_file(node, &row, &mut map) {
                Some(result) => return result,
                None => Checked { bytes: 0, damaged_chunks: expected },
            }
        };
        // Its file is gone or cannot be read: so is the object.
        self.metrics.repairs.add(checked.damaged_chunks);
        self.remove(&[node], Readers::Spare)?;
        Ok(checked)
    }

    /// `None` if the file cannot be used at all.
    fn check_file(
        &self,
        node: NodeId,
        row: &ObjectRow,
        map: &mut ChunkMap,
    ) -> Option<Result<Checked, CacheError>> {
        let Location::OwnFile(id) = row.location;
        let file = BackingFile::open(&id.path(&self.data_dir)).ok()?;
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
        if damaged.is_empty() {
            return Some(Ok(checked));
        }
        checked.damaged_chunks = damaged.len() as u64;
        self.metrics.repairs.add(checked.damaged_chunks);
        let before = row.present_bytes;
        for chunk in &damaged {
            map.remove(*chunk);
        }
        file.restore_size(row.size).and_then(|()| file.punch_absent(map, row.size)).ok()?;
        let fingerprint = file.fingerprint().ok()??;
        let row = ObjectRow {
            present_bytes: map.present_bytes(),
            fingerprint,
            verified_boot: Some(self.trust()),
            ..row.clone()
        };
        let written = self.index.write_durably(|write| {
            for chunk in &damaged {
                let group = chunk / GROUP_CHUNKS;
                write.put_chunk_group(node, group, &map.group_row(group))?;
            }
            write.put_object(node, &row)
        });
        let given_back = super::disk_bytes(before) - super::disk_bytes(row.present_bytes);
        Some(written.map(|()| {
            self.budget.release(given_back);
            if row.present_bytes == 0 {
                self.count_held(false);
            }
            checked
        }))
    }
}
