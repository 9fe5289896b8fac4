//! One pass over the dataset: shuffled, by several readers, every byte compared.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::stop::{Stop, Stopped};

/// Keys, and what each must hold.
pub(super) type Files = Arc<[(String, Bytes)]>;

/// A first batch, as a training loop would wait for it.
pub(super) const BATCH_FILES: usize = 32;
/// Bytes a reader asks for at a time: what it compares stays in its core's cache.
const READ_BYTES: usize = 1 << 20;
/// Wrong files that are told one by one.
const FAILURES_TOLD_MAX: usize = 5;
/// Time that readers get to close their files when the demo is stopped.
const LEAVE_MAX: Duration = Duration::from_secs(2);
/// How often a wait looks whether it is still wanted.
const POLL: Duration = Duration::from_millis(50);

/// What one pass took, and what was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EpochResult {
    pub(super) elapsed: Duration,
    /// Until [`BATCH_FILES`] files were read (all, if there are fewer).
    pub(super) first_batch: Duration,
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Files that were missing, unreadable or not what they should be.
    pub(super) failed: usize,
    /// The first few of those, a line each.
    pub(super) failures: Vec<String>,
}

/// What the readers of one epoch share.
struct Pass {
    /// Where each key is, in the order of reading.
    order: Vec<usize>,
    next: AtomicUsize,
    files: Files,
    started: Instant,
    result: Mutex<EpochResult>,
    stop: Arc<Stop>,
}

/// Reads every file of `files` under `dir` once, in an order that `seed`
/// determines, with `readers` threads.
///
/// Wrong files are counted, not errors. The error is that the demo was
/// stopped; a reader may then still hang in a read that nobody answers.
pub(super) fn epoch(
    dir: &Path,
    files: &Files,
    readers: usize,
    seed: u64,
    stop: &Arc<Stop>,
) -> Result<EpochResult, Stopped> {
    let mut order: Vec<usize> = (0..files.len()).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let pass = Arc::new(Pass {
        order,
        next: AtomicUsize::new(0),
        files: files.clone(),
        started: Instant::now(),
        result: Mutex::default(),
        stop: stop.clone(),
    });
    // Threads of their own rather than scoped ones: a scope would wait for a
    // reader that hangs in the kernel.
    let (done, all_done) = mpsc::channel::<()>();
    for _ in 0..readers.max(1) {
        let (pass, dir, done) = (pass.clone(), dir.to_owned(), done.clone());
        thread::spawn(move || {
            pass.read_on(&dir);
            drop(done);
        });
    }
    drop(done);
    let mut left_at = None;
    while let Err(RecvTimeoutError::Timeout) = all_done.recv_timeout(POLL) {
        if stop.check().is_err() {
            let left_at: &mut Instant = left_at.get_or_insert_with(Instant::now);
            if left_at.elapsed() > LEAVE_MAX {
                return Err(Stopped);
            }
        }
    }
    stop.check()?;
    let result = pass.result.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(result.clone())
}

impl Pass {
    /// One reader: takes files until none is left.
    fn read_on(&self, dir: &Path) {
        let mut buffer = vec![0; READ_BYTES];
        while self.stop.check().is_ok() {
            let turn = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&index) = self.order.get(turn) else { return };
            let (key, expected) = &self.files[index];
            let outcome = compare(&dir.join(key), expected, &mut buffer, &self.stop);
            self.finished(key, expected.len(), outcome);
        }
    }

    fn finished(&self, key: &str, bytes: usize, outcome: Result<(), String>) {
        let mut result = self.result.lock().unwrap_or_else(PoisonError::into_inner);
        result.elapsed = self.started.elapsed();
        result.files += 1;
        result.bytes += bytes as u64;
        if result.files <= BATCH_FILES {
            result.first_batch = result.elapsed;
        }
        if let Err(problem) = outcome {
            result.failed += 1;
            if result.failures.len() < FAILURES_TOLD_MAX {
                result.failures.push(format!("{key}: {problem}"));
            }
        }
    }
}

/// Reads a file to its end and compares it as it comes.
fn compare(path: &Path, expected: &[u8], buffer: &mut [u8], stop: &Stop) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let mut at = 0;
    loop {
        let read = match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(|error| format!("at byte {at}: {error}"))?,
        };
        let (got, rest) = (&buffer[..read], &expected[at..]);
        if read == 0 && rest.is_empty() {
            return Ok(());
        }
        if read == 0 {
            return Err(format!("ends after {at} of {} bytes", expected.len()));
        }
        if read > rest.len() {
            return Err(format!("is longer than {} bytes", expected.len()));
        }
        if got != &rest[..read] {
            let equal = got.iter().zip(rest).take_while(|(a, b)| a == b).count();
            return Err(format!("byte {} is wrong", at + equal));
        }
        at += read;
        stop.progress(read as u64);
        if stop.check().is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::embedded_store::{Batch, Dataset};

    fn folder() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let small = Batch { count: 40, size: 1_000 };
        let dataset = Dataset::generate(small, Batch { count: 2, size: (2 << 20) + 1 });
        for (key, body) in &dataset.files {
            let path = dir.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, body).unwrap();
        }
        (dir, dataset.files.into())
    }

    fn read(dir: &tempfile::TempDir, files: &Files) -> EpochResult {
        epoch(dir.path(), files, 4, 1, &Arc::new(Stop::default())).unwrap()
    }

    #[test]
    fn a_whole_folder_has_nothing_wrong() {
        let (dir, files) = folder();
        let result = read(&dir, &files);
        assert_eq!((result.files, result.failed), (42, 0));
        assert_eq!(result.bytes, 40 * 1_000 + 2 * ((2 << 20) + 1));
        assert!(result.first_batch <= result.elapsed && result.first_batch > Duration::ZERO);
    }

    #[test]
    fn one_wrong_byte_is_found_wherever_it_is() {
        let (dir, files) = folder();
        for at in [0, (1 << 20) - 1, 1 << 20, 2 << 20] {
            let (key, body) = &files[41];
            let mut wrong = body.to_vec();
            wrong[at] ^= 1;
            fs::write(dir.path().join(key), wrong).unwrap();
            let result = read(&dir, &files);
            assert_eq!(result.failures, [format!("{key}: byte {at} is wrong")]);
        }
    }

    #[test]
    fn missing_short_and_long_files_are_found() {
        let (dir, files) = folder();
        let path = |i: usize| dir.path().join(&files[i].0);
        fs::remove_file(path(0)).unwrap();
        fs::write(path(1), &files[1].1[..999]).unwrap();
        fs::write(path(2), [&files[2].1[..], b"x"].concat()).unwrap();
        let mut result = read(&dir, &files);
        result.failures.sort();
        assert_eq!(result.failed, 3);
        assert!(result.failures[0].contains("No such file"), "{:?}", result.failures);
        assert!(result.failures[1].ends_with("ends after 999 of 1000 bytes"));
        assert!(result.failures[2].ends_with("is longer than 1000 bytes"));
    }

    #[test]
    fn a_stopped_epoch_is_no_result() {
        let (dir, files) = folder();
        let stop = Arc::new(Stop::default());
        stop.set("enough", 130);
        assert_eq!(epoch(dir.path(), &files, 4, 1, &stop), Err(Stopped));
    }
}
