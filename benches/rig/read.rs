//! The one reader that all are measured with: threads that open a file, read it
//! to its end in MiB pieces, close it, and take the next.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::data::Object;
use super::stats::percentile;
use super::{Failure, MIB};

/// What one read(2) asks for, as a data loader does.
const BUFFER_BYTES: usize = 1 << 20;
/// Files that make the first batch.
const BATCH_FILES: usize = 32;

/// One pass over a set.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    pub(crate) seconds: f64,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Until the first batch was read.
    pub(crate) first_batch_s: f64,
    /// Open to last byte of each file, in milliseconds; none for a copy.
    pub(crate) latencies_ms: Vec<f64>,
}

impl Epoch {
    pub(crate) fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / MIB / self.seconds
    }

    pub(crate) fn files_per_s(&self) -> f64 {
        self.files as f64 / self.seconds
    }

    pub(crate) fn latency_ms(&self, share: f64) -> f64 {
        percentile(&self.latencies_ms, share)
    }

    /// The same pass, begun so much earlier.
    pub(crate) fn after(mut self, before: Duration) -> Epoch {
        self.seconds += before.as_secs_f64();
        self.first_batch_s += before.as_secs_f64();
        self
    }
}

/// In which order files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    ByName,
    /// The same for all peers of a round.
    Shuffled {
        seed: u64,
    },
}

impl Order {
    pub(crate) fn apply(self, mut objects: Vec<Object>) -> Vec<Object> {
        if let Order::Shuffled { seed } = self {
            fastrand::Rng::with_seed(seed).shuffle(&mut objects);
        }
        objects
    }
}

/// The same as [`epoch`], after a walk of `folder` that counts too: a data loader
/// knows its files from a listing.
pub(crate) fn walk_and_epoch(
    folder: &Path,
    objects: &[Object],
    readers: usize,
) -> Result<Epoch, Failure> {
    let began = Instant::now();
    let found = walk(folder).map_err(|error| format!("listing: {error}"))?;
    if found < objects.len() {
        return Err(format!("a listing shows {found} files of {}", objects.len()));
    }
    let walked = began.elapsed();
    Ok(epoch(folder, objects, readers)?.after(walked))
}

/// How many files lie below `folder`.
pub(crate) fn walk(folder: &Path) -> std::io::Result<usize> {
    let mut files = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { walk(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// Reads `objects` below `folder`, `readers` at a time.
pub(crate) fn epoch(folder: &Path, objects: &[Object], readers: usize) -> Result<Epoch, Failure> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(Instant, Duration)>> = Mutex::default();
    let failure: Mutex<Option<Failure>> = Mutex::default();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                let mut buffer = vec![0; BUFFER_BYTES];
                while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let opened = Instant::now();
                    if let Err(error) = read_whole(folder, object, &mut buffer) {
                        *failure.lock().expect("no reader panics") = Some(error);
                        // The others stop after the file they read.
                        next.store(objects.len(), Ordering::Relaxed);
                        return;
                    }
                    done.lock().expect("no reader panics").push((Instant::now(), opened.elapsed()));
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    if let Some(failure) = failure.into_inner().expect("no reader panics") {
        return Err(failure);
    }
    let done = done.into_inner().expect("no reader panics");
    let batch = done.get(BATCH_FILES - 1).or(done.last());
    Ok(Epoch {
        seconds,
        files: objects.len(),
        bytes: objects.iter().map(|object| object.size).sum(),
        first_batch_s: batch.map_or(0.0, |(at, _)| at.duration_since(began).as_secs_f64()),
        latencies_ms: done.iter().map(|(_, took)| took.as_secs_f64() * 1_000.0).collect(),
    })
}

fn read_whole(folder: &Path, object: &Object, buffer: &mut [u8]) -> Result<(), Failure> {
    let name = &object.name;
    let mut file =
        File::open(folder.join(name)).map_err(|error| format!("open {name}: {error}"))?;
    let mut size = 0;
    loop {
        match file.read(buffer).map_err(|error| format!("read {name}: {error}"))? {
            0 => break,
            n => size += n as u64,
        }
    }
    if size == object.size {
        Ok(())
    } else {
        Err(format!("read {name}: {size} bytes instead of {}", object.size))
    }
}
