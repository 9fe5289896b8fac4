//! What there is to read, and in which order. The order is pure: equal seeds
//! give equal epochs on any machine.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::plan::{Limit, Reading};

/// Folders within folders that are looked into: deeper than any dataset, and
/// few enough descriptors and stack.
const DEPTH_MAX: usize = 64;

/// Random reads in one epoch: an hour at 1,000 a second, and bounded memory for
/// their times.
const RANDOM_READS_MAX: u64 = 4_000_000;

/// A file to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileEntry {
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

/// The plain files below `root` in order of name, links not followed, up to
/// `limit`; `root` itself if it is a file.
///
/// # Errors
/// With the path that could not be looked at.
pub(super) fn walk(root: &Path, limit: Limit) -> Result<Vec<FileEntry>, (PathBuf, io::Error)> {
    let mut walk = Walk { limit, taken: Limit { files: 0, bytes: 0 }, files: Vec::new() };
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    let meta = fs::metadata(root).map_err(at(root))?;
    if meta.is_dir() {
        walk.folder(root, 0)?;
    } else {
        walk.file(root.to_owned(), meta.len());
    }
    Ok(walk.files)
}

struct Walk {
    limit: Limit,
    taken: Limit,
    files: Vec<FileEntry>,
}

impl Walk {
    /// `false` once there is enough.
    fn folder(&mut self, dir: &Path, depth: usize) -> Result<bool, (PathBuf, io::Error)> {
        let failed = |error| (dir.to_owned(), error);
        if depth == DEPTH_MAX {
            return Err(failed(io::Error::from_raw_os_error(libc::ELOOP)));
        }
        let entries = fs::read_dir(dir).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut entries = entries.map_err(failed)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let looked = |error| (path.clone(), error);
            let kind = entry.file_type().map_err(looked)?;
            let goes_on = if kind.is_dir() {
                self.folder(&path, depth + 1)?
            } else if kind.is_file() {
                let size = entry.metadata().map_err(looked)?.len();
                self.file(path, size)
            } else {
                true
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn file(&mut self, path: PathBuf, size: u64) -> bool {
        let taken = self.limit.take(&mut self.taken, size);
        if taken {
            self.files.push(FileEntry { path, size });
        }
        taken
    }
}

/// The files of `root` as they lie below `dir`.
///
/// # Errors
/// With the first that is no file there, or not as long.
pub(super) fn copies(
    files: &[FileEntry],
    root: &Path,
    dir: &Path,
) -> Result<Vec<FileEntry>, (PathBuf, io::Error)> {
    let copy = |file: &FileEntry| {
        let path = match file.path.strip_prefix(root) {
            // The root is a file itself.
            Ok(rest) if rest.as_os_str().is_empty() => {
                dir.join(root.file_name().unwrap_or_default())
            }
            Ok(rest) => dir.join(rest),
            Err(_) => dir.join(&file.path),
        };
        let size = match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => meta.len(),
            Ok(_) => return Err((path, io::Error::other("not a file"))),
            Err(error) => return Err((path, error)),
        };
        if size != file.size {
            let message =
                format!("it has {size} bytes, and {} has {}", file.path.display(), file.size);
            return Err((path, io::Error::other(message)));
        }
        Ok(FileEntry { path, size })
    };
    files.iter().map(copy).collect()
}

/// One thing to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// Where the file is in the dataset.
    pub(super) file: usize,
    /// These bytes of it; all, if there is no range.
    pub(super) range: Option<Range<u64>>,
}

/// The items of one epoch, in order.
#[derive(Debug)]
pub(super) enum Work {
    Whole(Vec<usize>),
    Random { sizes: Vec<u64>, block_ends: Vec<u64>, block: u64, reads: u64, seed: u64 },
}

impl Work {
    /// The work of epoch `number` over files of these sizes.
    pub(super) fn draw(sizes: &[u64], reading: &Reading, number: u16) -> Work {
        let seed = reading.seed.wrapping_add(u64::from(number) - 1);
        let Some(block) = reading.random else {
            let mut order: Vec<usize> = (0..sizes.len()).collect();
            if reading.shuffled {
                fastrand::Rng::with_seed(seed).shuffle(&mut order);
            }
            return Work::Whole(order);
        };
        let mut blocks = 0;
        let ends = sizes.iter().map(|size| {
            blocks += size.div_ceil(block);
            blocks
        });
        let block_ends: Vec<u64> = ends.collect();
        let wanted = reading.random_bytes_max.map_or(u64::MAX, |bytes| bytes.div_ceil(block));
        let reads = blocks.min(wanted).min(RANDOM_READS_MAX);
        Work::Random { sizes: sizes.to_vec(), block_ends, block, reads, seed }
    }

    /// How many items there are.
    pub(super) fn len(&self) -> u64 {
        match self {
            Work::Whole(order) => order.len() as u64,
            Work::Random { reads, .. } => *reads,
        }
    }

    /// Item number `turn`, if there are so many.
    pub(super) fn at(&self, turn: u64) -> Option<Item> {
        match self {
            Work::Whole(order) => {
                let file = *order.get(usize::try_from(turn).ok()?)?;
                Some(Item { file, range: None })
            }
            Work::Random { sizes, block_ends, block, reads, seed } => {
                let blocks = *block_ends.last().filter(|_| turn < *reads)?;
                // Drawn from the turn, whichever reader takes it. Odd, so that
                // turns and seeds fall apart.
                let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(turn);
                let at = fastrand::Rng::with_seed(mixed).u64(..blocks);
                let file = block_ends.partition_point(|end| *end <= at);
                let first = if file == 0 { 0 } else { block_ends[file - 1] };
                let start = (at - first) * block;
                Some(Item { file, range: Some(start..(start + block).min(sizes[file])) })
            }
        }
    }

    /// Bytes that all items have together, as far as it is known beforehand.
    pub(super) fn bytes(&self, sizes: &[u64]) -> u64 {
        match self {
            Work::Whole(_) => sizes.iter().sum(),
            Work::Random { block, reads, .. } => block * reads,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::plan::PageCache;
    use super::*;

    const ALL: Limit = Limit { files: u64::MAX, bytes: u64::MAX };

    fn reading(shuffled: bool, random: Option<u64>) -> Reading {
        Reading {
            shuffled,
            seed: 7,
            page_cache: PageCache::Keep,
            limit: ALL,
            block: 1 << 20,
            mapped: false,
            random,
            random_bytes_max: None,
            batch: 32,
        }
    }

    #[test]
    fn files_come_in_order_of_name_without_links() {
        let dir = tempfile::tempdir().unwrap();
        for (name, size) in [("b/2", 2), ("b/1", 1), ("a", 3), ("c", 4)] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; size]).unwrap();
        }
        symlink(dir.path(), dir.path().join("again")).unwrap();
        symlink(dir.path().join("c"), dir.path().join("link")).unwrap();
        let names = |limit| -> Vec<String> {
            let files = walk(dir.path(), limit).unwrap();
            let name = |file: FileEntry| {
                let path = file.path.strip_prefix(dir.path()).unwrap().to_owned();
                format!("{}={}", path.display(), file.size)
            };
            files.into_iter().map(name).collect()
        };
        assert_eq!(names(ALL), ["a=3", "b/1=1", "b/2=2", "c=4"]);
        assert_eq!(names(Limit { files: 2, ..ALL }), ["a=3", "b/1=1"]);
        assert_eq!(names(Limit { bytes: 6, ..ALL }), ["a=3", "b/1=1", "b/2=2"]);
        let one = walk(&dir.path().join("c"), ALL).unwrap();
        assert_eq!((one.len(), one[0].size), (1, 4));
        let (path, error) = walk(&dir.path().join("none"), ALL).unwrap_err();
        assert!(path.ends_with("none") && error.kind() == io::ErrorKind::NotFound);
    }

    #[test]
    fn a_copy_has_every_file_at_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let (root, copy) = (dir.path().join("root"), dir.path().join("copy"));
        for path in ["root/a/b", "root/c", "copy/a/b"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "12345").unwrap();
        }
        let files = walk(&root, ALL).unwrap();
        let compared = || copies(&files, &root, &copy);
        let (path, error) = compared().unwrap_err();
        assert!(path == copy.join("c") && error.kind() == io::ErrorKind::NotFound);
        fs::create_dir(copy.join("c")).unwrap();
        assert!(compared().unwrap_err().1.to_string().contains("not a file"));
        fs::remove_dir(copy.join("c")).unwrap();
        fs::write(copy.join("c"), "1234").unwrap();
        let (_, error) = compared().unwrap_err();
        assert!(error.to_string().starts_with("it has 4 bytes, and "), "{error}");
        fs::write(copy.join("c"), "54321").unwrap();
        fs::write(copy.join("more"), "").unwrap();
        let paths: Vec<PathBuf> = compared().unwrap().into_iter().map(|file| file.path).collect();
        assert_eq!(paths, [copy.join("a/b"), copy.join("c")]);
        // One file is found by its name.
        let (root, file) = (root.join("c"), walk(&root.join("c"), ALL).unwrap());
        assert_eq!(copies(&file, &root, &copy).unwrap()[0].path, copy.join("c"));
    }

    #[test]
    fn an_epoch_has_every_file_once_in_an_order_of_its_own() {
        let sizes = vec![5; 100];
        let order = |shuffled, number| -> Vec<usize> {
            let work = Work::draw(&sizes, &reading(shuffled, None), number);
            (0..work.len()).map(|turn| work.at(turn).unwrap().file).collect()
        };
        let in_order: Vec<usize> = (0..100).collect();
        assert_eq!(order(false, 2), in_order);
        let (first, second) = (order(true, 1), order(true, 2));
        assert_eq!(order(true, 1), first);
        assert_ne!(first, second);
        for mut shuffled in [first, second] {
            assert_ne!(shuffled, in_order);
            shuffled.sort_unstable();
            assert_eq!(shuffled, in_order);
        }
        let work = Work::draw(&sizes, &reading(true, None), 1);
        assert_eq!((work.at(100), work.bytes(&sizes)), (None, 500));
    }

    #[test]
    fn random_reads_lie_within_files_and_favour_large_ones() {
        let sizes = [0, 10, 1_000, 25];
        let work = Work::draw(&sizes, &reading(true, Some(10)), 1);
        assert_eq!(work.len(), 1 + 100 + 3);
        let mut by_file = [0; 4];
        for turn in 0..work.len() {
            let item = work.at(turn).unwrap();
            let range = item.range.unwrap();
            assert!(range.start < range.end && range.end <= sizes[item.file]);
            assert!(range.end - range.start <= 10 && range.start.is_multiple_of(10));
            by_file[item.file] += 1;
        }
        assert!(by_file[0] == 0 && by_file[2] > 80, "{by_file:?}");
        assert_eq!(work.at(work.len()), None);
        let mut few = reading(true, Some(10));
        few.random_bytes_max = Some(25);
        assert_eq!(Work::draw(&sizes, &few, 1).len(), 3);
        assert_eq!(Work::draw(&[0], &few, 1).at(0), None);
    }
}
