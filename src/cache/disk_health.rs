//! Whether the cache disk works: what failed last, and when to try it again; and
//! whether there are descriptors for its files.

use std::io::Error;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lock;

/// After a write failed, reads stream through this long before the disk is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// The state of the cache disk.
#[derive(Debug, Default)]
pub(super) struct DiskHealth {
    /// Looked at by each read, which must not take a lock for it.
    failing: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

#[derive(Debug)]
struct Failure {
    at: Instant,
    error: String,
    is_full: bool,
}

/// A lack of descriptors is shown this long after it was met last.
const SHORTAGE_SHOWN: Duration = Duration::from_secs(60);

/// Whether this process may open more files. One that is not cached for it says nothing
/// of the disk, and what has its file already is written as ever.
#[derive(Debug, Default)]
pub(super) struct Shortage(Mutex<Option<(Instant, String)>>);

impl Shortage {
    /// A file could not be opened for it.
    pub(super) fn met(&self, error: &Error) {
        if self.words().is_none() {
            tracing::warn!(%error, "the cache may open no more files; new reads stream through");
        }
        *lock(&self.0) = Some((Instant::now(), error.to_string()));
    }

    /// What is wrong, in words.
    pub(super) fn words(&self) -> Option<String> {
        let met = lock(&self.0);
        let (_, error) = met.as_ref().filter(|(at, _)| at.elapsed() < SHORTAGE_SHOWN)?;
        let advice = "a higher `ulimit -n` would let the cache keep them";
        Some(format!("new reads stream through, {advice}: {error}"))
    }
}

/// Whether an error says that there is no room, rather than that the disk is bad.
pub(super) fn is_full(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Whether an error says that too many files are open, and nothing of the disk.
pub(super) fn is_short_of_descriptors(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

impl DiskHealth {
    /// A write failed.
    pub(super) fn failed(&self, error: &Error) {
        let mut failure = lock(&self.failure);
        if failure.is_none() {
            tracing::warn!(%error, "cannot write to the cache disk; reads stream through");
        }
        *failure =
            Some(Failure { at: Instant::now(), error: error.to_string(), is_full: is_full(error) });
        self.failing.store(true, Ordering::Relaxed);
    }

    /// Whether the disk is left alone for now.
    pub(super) fn is_pausing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
            && lock(&self.failure).as_ref().is_some_and(|failure| failure.at.elapsed() < PAUSE)
    }

    /// A write succeeded.
    pub(super) fn works(&self) {
        if self.failing.swap(false, Ordering::Relaxed) && lock(&self.failure).take().is_some() {
            tracing::info!("the cache disk works again");
        }
    }

    /// There is room: if that was all that was wrong, it is over.
    pub(super) fn has_room_again(&self) {
        let was_full = lock(&self.failure).as_ref().is_some_and(|failure| failure.is_full);
        if was_full {
            self.works();
        }
    }

    /// What is wrong, in words.
    pub(super) fn trouble(&self) -> Option<String> {
        lock(&self.failure).as_ref().map(|Failure { error, is_full, .. }| match is_full {
            true => format!("cache disk is full, new reads stream through: {error}"),
            false => format!("cache disk fails, reads stream through: {error}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_descriptors_is_shown_with_what_to_do() {
        let shortage = Shortage::default();
        assert_eq!(shortage.words(), None);
        shortage.met(&Error::from_raw_os_error(libc::EMFILE));
        let words = shortage.words().unwrap();
        assert!(words.contains("ulimit -n") && words.contains("Too many open files"), "{words}");
    }

    #[test]
    fn trouble_lasts_until_a_write_succeeds() {
        let health = DiskHealth::default();
        assert!(!health.is_pausing() && health.trouble().is_none());
        health.failed(&Error::from_raw_os_error(libc::EIO));
        assert!(health.is_pausing());
        assert!(health.trouble().unwrap().contains("fails"));
        health.failed(&Error::from_raw_os_error(libc::EDQUOT));
        assert!(health.trouble().unwrap().contains("full"));
        health.works();
        assert!(!health.is_pausing() && health.trouble().is_none());
    }
}
