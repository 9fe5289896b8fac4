//! Which chunks of an object are on disk, and their checksums. Pure.

use std::collections::BTreeMap;

use super::record::{ChunkGroupRow, GROUP_CHUNKS};

/// The unit of presence and of checksums. Small, so that readers of random
/// records fetch little more than they read; requests to the remote are
/// coalesced to much more.
pub const CHUNK_BYTES: u64 = 128 << 10;

/// Number of chunks in an object of `size` bytes.
pub(super) fn chunk_count(size: u64) -> u32 {
    // S3's largest object (5 TiB; 50 TB since 2025) stays far below 2^32 chunks.
    u32::try_from(size.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX)
}

/// Where chunk `chunk` of an object of `size` bytes begins and ends.
pub(super) fn chunk_range(chunk: u32, size: u64) -> std::ops::Range<u64> {
    let start = u64::from(chunk) * CHUNK_BYTES;
    start..(start + CHUNK_BYTES).min(size)
}

/// Number of bytes of chunk `chunk` of an object of `size` bytes.
pub(super) fn chunk_len(chunk: u32, size: u64) -> usize {
    let range = chunk_range(chunk, size);
    (range.end - range.start) as usize
}

/// The state of one chunk on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Not there.
    Absent,
    /// Written once, but not known to be unharmed: check before use.
    Unverified {
        /// Checksum its bytes must have.
        crc: u32,
    },
    /// There and right.
    Verified,
}

/// Presence of every chunk of one object.
#[derive(Debug)]
pub(super) struct ChunkMap {
    size: u64,
    chunks: u32,
    /// Those with anything present, by number. An object's size is what a store
    /// says: a chunk far out must not cost memory for all that are before it.
    groups: BTreeMap<u32, Group>,
    present_count: u32,
    verified_count: u32,
    present_bytes: u64,
}

impl ChunkMap {
    /// A map with nothing present.
    pub(super) fn new(size: u64) -> Self {
        ChunkMap {
            size,
            chunks: chunk_count(size),
            groups: BTreeMap::new(),
            present_count: 0,
            verified_count: 0,
            present_bytes: 0,
        }
    }

    /// A map as its rows tell it; `trusted` if the chunks need no check.
    pub(super) fn load(size: u64, groups: &[(u32, ChunkGroupRow)], trusted: bool) -> Self {
        let mut map = ChunkMap::new(size);
        for (group, row) in groups {
            let mut crcs = row.crcs.iter();
            for bit in 0..GROUP_CHUNKS {
                let byte = row.present.get(bit as usize / 8).copied().unwrap_or(0);
                if byte >> (bit % 8) & 1 == 1
                    && let Some(crc) = crcs.next()
                    && let Some(first) = group.checked_mul(GROUP_CHUNKS)
                    && let chunk = first + bit
                    && chunk < map.chunks
                {
                    map.insert(chunk, *crc, trusted);
                }
            }
        }
        map
    }

    /// The row of one group of chunks.
    pub(super) fn group_row(&self, group: u32) -> ChunkGroupRow {
        let first = group * GROUP_CHUNKS;
        let end = first.saturating_add(GROUP_CHUNKS).min(self.chunks);
        let mut row = ChunkGroupRow {
            present: vec![0; end.saturating_sub(first).div_ceil(8) as usize],
            crcs: Vec::new(),
        };
        let Some(group) = self.groups.get(&group) else { return row };
        for bit in 0..end.saturating_sub(first) {
            if group.present.get(bit) {
                row.present[bit as usize / 8] |= 1 << (bit % 8);
                row.crcs.push(group.crcs[bit as usize]);
            }
        }
        row
    }

    pub(super) fn presence(&self, chunk: u32) -> Presence {
        let (group, bit) = place(chunk);
        match self.groups.get(&group) {
            Some(group) if group.verified.get(bit) => Presence::Verified,
            Some(group) if group.present.get(bit) => {
                Presence::Unverified { crc: group.crcs[bit as usize] }
            }
            _ => Presence::Absent,
        }
    }

    /// Chunk `chunk` was written, and its bytes have this checksum. Returns
    /// whether it was absent before.
    pub(super) fn insert(&mut self, chunk: u32, crc: u32, verified: bool) -> bool {
        let (group, bit) = place(chunk);
        let group = self.groups.entry(group).or_default();
        if group.crcs.len() <= bit as usize {
            group.crcs.resize(bit as usize + 1, 0);
        }
        group.crcs[bit as usize] = crc;
        let added = group.present.set(bit, true);
        if added {
            self.present_count += 1;
            let range = chunk_range(chunk, self.size);
            self.present_bytes += range.end - range.start;
        }
        if verified {
            self.mark_verified(chunk);
        }
        added
    }

    /// Somebody touched the file: every chunk is to be checked before its next use.
    pub(super) fn distrust(&mut self) {
        for group in self.groups.values_mut() {
            group.verified = Bitmap::default();
        }
        self.verified_count = 0;
    }

    /// A chunk is to be checked before its next use.
    pub(super) fn distrust_chunk(&mut self, chunk: u32) {
        let (group, bit) = place(chunk);
        let group = self.groups.get_mut(&group);
        let was_verified = group.is_some_and(|group| group.verified.set(bit, false));
        self.verified_count -= u32::from(was_verified);
    }

    /// The checksum that a present chunk must have.
    pub(super) fn crc(&self, chunk: u32) -> Option<u32> {
        let (group, bit) = place(chunk);
        let group = self.groups.get(&group).filter(|group| group.present.get(bit))?;
        Some(group.crcs[bit as usize])
    }

    /// A present chunk was checked.
    pub(super) fn mark_verified(&mut self, chunk: u32) {
        let (group, bit) = place(chunk);
        if let Some(group) = self.groups.get_mut(&group)
            && group.present.get(bit)
            && group.verified.set(bit, true)
        {
            self.verified_count += 1;
        }
    }

    /// Chunk `chunk` is not usable; returns whether it was present.
    pub(super) fn remove(&mut self, chunk: u32) -> bool {
        let (group, bit) = place(chunk);
        let Some(group) = self.groups.get_mut(&group) else { return false };
        if !group.present.set(bit, false) {
            return false;
        }
        let was_verified = group.verified.set(bit, false);
        self.present_count -= 1;
        let range = chunk_range(chunk, self.size);
        self.present_bytes -= range.end - range.start;
        self.verified_count -= u32::from(was_verified);
        true
    }

    /// Every chunk is present and verified.
    pub(super) fn is_complete(&self) -> bool {
        self.verified_count == self.chunks
    }

    /// Every present chunk is verified.
    pub(super) fn is_all_verified(&self) -> bool {
        self.verified_count == self.present_count
    }

    /// Chunks that are present.
    pub(super) fn present_chunks(&self) -> u32 {
        self.present_count
    }

    /// Bytes of the object that are present.
    pub(super) fn present_bytes(&self) -> u64 {
        self.present_bytes
    }
}

/// Up to [`GROUP_CHUNKS`] chunks, with as much memory as the last one present asks for.
#[derive(Debug, Default)]
struct Group {
    present: Bitmap,
    verified: Bitmap,
    crcs: Vec<u32>,
}

/// A chunk's group, and its number in it.
fn place(chunk: u32) -> (u32, u32) {
    (chunk / GROUP_CHUNKS, chunk % GROUP_CHUNKS)
}

#[derive(Debug, Default)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn get(&self, bit: u32) -> bool {
        self.0.get(bit as usize / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Sets a bit to `value`; returns whether that changed it.
    fn set(&mut self, bit: u32, value: bool) -> bool {
        if self.get(bit) == value {
            return false;
        }
        let word = bit as usize / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] ^= 1 << (bit % 64);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_bring_back_what_was_there() {
        let size = CHUNK_BYTES * 2500 + 7;
        let mut map = ChunkMap::new(size);
        for chunk in [0, 1, 63, 64, 1023, 1024, 2049, 2500] {
            map.insert(chunk, chunk * 3, true);
        }
        map.remove(64);
        let groups: Vec<_> = (0..3).map(|g| (g, map.group_row(g))).collect();
        let loaded = ChunkMap::load(size, &groups, false);
        assert_eq!(loaded.present_bytes(), map.present_bytes());
        assert_eq!(loaded.present_bytes(), 6 * CHUNK_BYTES + 7);
        for chunk in 0..2501 {
            match map.presence(chunk) {
                Presence::Verified => {
                    assert_eq!(loaded.presence(chunk), Presence::Unverified { crc: chunk * 3 });
                }
                other => assert_eq!(loaded.presence(chunk), other),
            }
        }
        assert!(!loaded.is_all_verified() && map.is_all_verified());
    }

    #[test]
    fn complete_means_every_chunk_verified() {
        let mut map = ChunkMap::new(CHUNK_BYTES + 1);
        assert!(!map.is_complete());
        map.insert(0, 1, true);
        map.insert(1, 2, false);
        assert!(!map.is_complete());
        map.mark_verified(1);
        assert!(map.is_complete());
        map.distrust();
        assert!(!map.is_complete() && !map.is_all_verified());
        assert_eq!(map.presence(0), Presence::Unverified { crc: 1 });
        map.remove(0);
        assert!(!map.is_complete());
        assert!(ChunkMap::new(0).is_complete());
    }

    #[test]
    fn a_row_that_claims_too_much_is_cut() {
        let row = ChunkGroupRow { present: vec![0xff; 200], crcs: vec![1; 3000] };
        let map = ChunkMap::load(CHUNK_BYTES * 2, &[(0, row.clone()), (7, row)], true);
        assert_eq!(map.present_bytes(), CHUNK_BYTES * 2);
    }
}
