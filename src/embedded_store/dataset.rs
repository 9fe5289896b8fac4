//! Generated datasets: deterministic, incompressible, nearly free of memory.

use bytes::Bytes;

/// Offsets that objects can begin at, and so the most objects in a dataset. A
/// power of two, and [`STRIDE`] is odd: no offset comes twice before all have.
const OFFSETS: usize = 16 << 20;
/// From the offset of one object to the next. Odd and far from any block size,
/// so that a block read from the wrong place never has the right bytes.
const STRIDE: usize = 7_919;
/// Files in a folder.
const FOLDER_FILES: usize = 100;
const SEED: u64 = 0x77_61_72_6d_66_73;

/// So many objects of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of objects.
    pub count: usize,
    /// Bytes in each.
    pub size: usize,
}

/// Keys and contents.
///
/// Contents are slices of one pseudo-random buffer at offsets of their own: a
/// dataset costs 16 MiB and the size of its largest object, whatever it holds.
/// No two objects have the same content, provided they hold 16 bytes or more.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Key and content, in key order within each batch.
    pub files: Vec<(String, Bytes)>,
}

impl Dataset {
    /// `small/000/file-00001.bin` and so on, a hundred a folder, then
    /// `large/big-00.bin` and so on. Equal arguments give equal bytes.
    pub fn generate(small: Batch, large: Batch) -> Self {
        let mut buffer = vec![0; OFFSETS + small.size.max(large.size)];
        fastrand::Rng::with_seed(SEED).fill(&mut buffer);
        let buffer = Bytes::from(buffer);
        let content = |index: usize, size: usize| {
            let offset = (index + 1) * STRIDE % OFFSETS;
            buffer.slice(offset..offset + size)
        };
        let small_files = (0..small.count).map(|i| {
            let key = format!("small/{:03}/file-{i:05}.bin", i / FOLDER_FILES);
            (key, content(i, small.size))
        });
        let large_files = (0..large.count)
            .map(|i| (format!("large/big-{i:02}.bin"), content(small.count + i, large.size)));
        Dataset { files: small_files.chain(large_files).collect() }
    }

    /// Bytes in all objects together.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|(_, body)| body.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_content_is_its_own_and_the_same_each_time() {
        let small = Batch { count: 5_000, size: 40 };
        let large = Batch { count: 3, size: 1 << 20 };
        let dataset = Dataset::generate(small, large);
        let contents: HashSet<_> = dataset.files.iter().map(|(_, body)| body).collect();
        let keys: HashSet<_> = dataset.files.iter().map(|(key, _)| key).collect();
        assert_eq!((contents.len(), keys.len()), (5_003, 5_003));
        assert_eq!(dataset.total_bytes(), 5_000 * 40 + (3 << 20));
        assert_eq!(dataset.files[1].0, "small/000/file-00001.bin");
        assert_eq!(dataset.files[5_000].0, "large/big-00.bin");
        assert_eq!(Dataset::generate(small, large).files, dataset.files);
    }
}
