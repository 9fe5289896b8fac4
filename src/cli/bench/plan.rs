//! What is to be measured, decided before anything is touched. Pure.

use std::path::PathBuf;

use clap::ValueEnum;

/// Everything that the options say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) subject: Subject,
    pub(super) series: Vec<Series>,
    pub(super) reading: Reading,
    pub(super) preset: Option<Preset>,
    /// Where the same files lie once more, to be read in turn with them.
    pub(super) compare_with: Option<PathBuf>,
}

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A folder or file that is there.
    Folder(PathBuf),
    /// A remote.
    Uri(String),
    /// A store in this process with data made up.
    Generated,
}

/// Epochs one after the other, under equal circumstances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) means: Means,
    pub(super) readers: usize,
    pub(super) epochs: Vec<Epoch>,
}

/// What a series reads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Means {
    /// Whatever serves the folder.
    Folder,
    /// A mount made for the series.
    Mount,
    /// The fetcher, without a mount.
    Direct,
    /// The same files elsewhere.
    Copy,
}

/// One pass over the dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    /// From 1.
    pub(super) number: u16,
    pub(super) name: String,
}

/// How the dataset is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) shuffled: bool,
    pub(super) seed: u64,
    pub(super) page_cache: PageCache,
    pub(super) limit: Limit,
    /// Bytes in one read call, or copied out of a mapping at once.
    pub(super) block: u64,
    /// Whole files are mapped, not read.
    pub(super) mapped: bool,
    /// Reads of so many bytes at random places, instead of whole files.
    pub(super) random: Option<u64>,
    /// Bytes that the random reads of one epoch come to, at most.
    pub(super) random_bytes_max: Option<u64>,
    /// Files in a batch.
    pub(super) batch: u64,
}

/// The part of the dataset that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Limit {
    /// Whether one more file, of `size`, is within it. The first always is.
    pub(super) fn take(&self, taken: &mut Limit, size: u64) -> bool {
        let within = taken.files < self.files && taken.bytes.saturating_add(size) <= self.bytes;
        if within || taken.files == 0 {
            taken.files += 1;
            taken.bytes = taken.bytes.saturating_add(size);
            return true;
        }
        false
    }
}

/// `--page-cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PageCache {
    /// As the epoch before left it.
    Keep,
    /// Dropped before each epoch past the first.
    Drop,
}

/// `--preset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum Preset {
    /// 20 readers of 10 MiB objects: direct, cold and warm.
    Published,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_the_first_file_and_then_what_fits() {
        let taking = |files, bytes, sizes: &[u64]| {
            let (limit, mut taken) = (Limit { files, bytes }, Limit { files: 0, bytes: 0 });
            sizes.iter().take_while(|size| limit.take(&mut taken, **size)).count()
        };
        assert_eq!(taking(2, u64::MAX, &[1, 1, 1]), 2);
        assert_eq!(taking(9, 5, &[3, 2, 1]), 2);
        assert_eq!(taking(9, 5, &[7, 1]), 1);
        assert_eq!(taking(9, u64::MAX, &[u64::MAX, u64::MAX]), 2);
    }
}
