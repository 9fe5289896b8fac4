//! Datasets that are read again and again through a mount, and what an epoch
//! cost the remote and the disk.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;

use super::Warmfs;
use super::store::{BUCKET, Store};
use super::tree::noise;

/// Bytes that all objects are cut from: enough that no two of them are alike.
const POOL_BYTES: usize = 64 << 20;

/// As much as the kernel asks for at once.
const READ_BYTES: usize = 128 << 10;

/// Objects in the store, and what each must read as.
#[derive(Clone)]
pub struct Objects {
    /// Keys and bytes.
    pub files: Vec<(String, Bytes)>,
}

impl Objects {
    /// Puts `count` objects below `prefix` (ending in `/`, or empty). Sizes
    /// are drawn from `sizes` in whole blocks of a disk, so that what they
    /// take there is what they measure.
    pub fn put(store: &Store, prefix: &str, count: usize, sizes: std::ops::Range<usize>) -> Self {
        let pool = pool();
        let mut rng = fastrand::Rng::with_seed(count as u64);
        let mut files = Vec::new();
        for n in 0..count {
            let size = rng.usize(sizes.clone()).next_multiple_of(4096);
            // An odd place for each: bytes of a neighbour never pass for its own.
            let at = rng.usize(0..POOL_BYTES - size);
            let (key, bytes) = (format!("{prefix}{n:05}"), pool.slice(at..at + size));
            let etag = format!("{at:x}-{size:x}");
            store.put_with_etag(BUCKET, key.clone(), bytes.clone(), etag);
            files.push((key, bytes));
        }
        Objects { files }
    }

    /// Bytes of all.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The same in an order of its own.
    pub fn shuffled(&self, seed: u64) -> Self {
        let mut shuffled = self.clone();
        fastrand::Rng::with_seed(seed).shuffle(&mut shuffled.files);
        shuffled
    }

    /// Reads all below `root` in order, `readers` at a time, where `root`
    /// shows what lies below `prefix`. Every read reaches the daemon. Panics
    /// with what was wrong or failed.
    pub fn read(&self, root: &Path, prefix: &str, readers: usize) {
        self.read_beside(root, prefix, readers, |_| {});
    }

    /// The same, telling `at` how many files were begun.
    pub fn read_beside(
        &self,
        root: &Path,
        prefix: &str,
        readers: usize,
        at: impl Fn(usize) + Sync,
    ) {
        let queue = Mutex::new(self.files.iter().enumerate());
        let wrong = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| {
                    loop {
                        let Some((n, (key, bytes))) = queue.lock().unwrap().next() else { return };
                        at(n);
                        let path = root.join(key.strip_prefix(prefix).unwrap());
                        if let Err(error) = compare(&path, bytes) {
                            wrong.lock().unwrap().push(format!("{key}: {error}"));
                        }
                    }
                });
            }
        });
        let wrong = wrong.into_inner().unwrap();
        assert!(
            wrong.is_empty(),
            "{} of {}: {:?}",
            wrong.len(),
            self.files.len(),
            &wrong[..wrong.len().min(5)]
        );
    }
}

/// One pool for all tests of a process.
fn pool() -> Bytes {
    static POOL: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    POOL.get_or_init(|| noise(7, POOL_BYTES)).clone()
}

/// Reads a file past the kernel's pages and compares it.
pub fn compare(path: &Path, expected: &[u8]) -> Result<(), String> {
    let file = File::open(path).map_err(|error| format!("open: {error}"))?;
    compare_open(&file, expected)
}

/// The same for an open file.
pub fn compare_open(file: &File, expected: &[u8]) -> Result<(), String> {
    drop_pages(file).map_err(|error| format!("fadvise: {error}"))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at as u64);
        let n = read.map_err(|error| format!("read at {at}: {error}"))?;
        if n == 0 {
            break;
        }
        if expected.get(at..at + n) != Some(&buffer[..n]) {
            return Err(format!("wrong bytes within {at}..{}", at + n));
        }
        at += n;
    }
    if at == expected.len() { Ok(()) } else { Err(format!("ends at {at}")) }
}

/// Drops what the kernel has of a file, so that the next read is the daemon's.
pub fn drop_pages(file: &File) -> io::Result<()> {
    // SAFETY: a call on an open descriptor that takes no pointer.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Bytes of disk below `dir` and of `dir`, as `du` counts. Files come and go
/// while it looks.
pub fn du(dir: &Path) -> u64 {
    let mut bytes = fs::symlink_metadata(dir).map_or(0, |meta| meta.blocks() * 512);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        bytes += if meta.is_dir() { du(&entry.path()) } else { meta.blocks() * 512 };
    }
    bytes
}

/// Files below `dir`.
pub fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => count_files(&entry.path()),
            _ => 1,
        })
        .sum()
}

/// Looks at something again and again until it is dropped or asked.
pub struct Sampler {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Sampler {
    /// Keeps the largest figure.
    pub fn largest(look: impl Fn() -> u64 + Send + 'static) -> Sampler {
        Sampler::fold(look, 0, u64::max)
    }

    /// Keeps the smallest figure.
    pub fn smallest(look: impl Fn() -> u64 + Send + 'static) -> Sampler {
        Sampler::fold(look, u64::MAX, u64::min)
    }

    fn fold(
        look: impl Fn() -> u64 + Send + 'static,
        first: u64,
        keep: fn(u64, u64) -> u64,
    ) -> Sampler {
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let thread = std::thread::spawn(move || {
            let mut kept = first;
            while !stop.load(Ordering::Relaxed) {
                kept = keep(kept, look());
                // Often enough to see a file grow, seldom enough to let it.
                std::thread::sleep(Duration::from_millis(3));
            }
            keep(kept, look())
        });
        Sampler { done, thread: Some(thread) }
    }

    /// The figure.
    pub fn end(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// What one epoch cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Bytes of the dataset.
    pub dataset: u64,
    /// Bytes of GET bodies.
    pub fetched: u64,
    /// Bytes of objects in the cache when it began.
    pub cached: u64,
    /// Bytes that the kernel asked the daemon for.
    pub asked: u64,
}

impl Cost {
    /// Bytes that did not have to come from the store.
    pub fn hit_rate(&self) -> f64 {
        1.0 - self.fetched as f64 / self.dataset as f64
    }
}

/// Runs an epoch over `objects` in the mount `root` of `prefix`, which is the
/// daemon's `nth` mount, and says what it cost.
pub fn epoch(
    (store, warmfs): (&Store, &Warmfs),
    objects: &Objects,
    (root, prefix, nth): (&PathBuf, &str, usize),
    readers: usize,
) -> Cost {
    let before = warmfs.status();
    let asked = |status: &serde_json::Value| {
        let reads = &status["mounts"][nth]["reads"];
        reads["hit_bytes"].as_u64().unwrap() + reads["miss_bytes"].as_u64().unwrap()
    };
    let index = fs::metadata(warmfs.cache().join("index.redb")).map_or(0, |m| m.blocks() * 512);
    let used = before["cache"]["used_bytes"].as_u64().unwrap();
    let fetched = store.counts().get.bytes;
    objects.read(root, prefix, readers);
    Cost {
        dataset: objects.bytes(),
        fetched: store.counts().get.bytes - fetched,
        cached: used.saturating_sub(index),
        asked: asked(&warmfs.status()) - asked(&before),
    }
}
