//! Bytes that came and wait for their reader in memory.
//!
//! What was fetched ahead is written to disk before its reader comes; served from
//! memory it need not be read back. And what could not be kept on disk, for a full
//! cache or a failing disk, is nowhere else: a request brings more than one read of
//! the kernel asks for. All of it gives way when memory is wanted, and nobody who
//! stops reading holds it for long.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::fetch::Flight;
use super::lock;
use crate::admission::Class;

/// Readahead does not take the memory of what came this short a time ago: its
/// reader is on its way, and would have to read it from the disk.
const FRESH: Duration = Duration::from_millis(500);

/// A reader that has not come after this long reads from the disk.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// The same for what is not on disk, and would have to be fetched again.
const UNKEPT_FOR: Duration = Duration::from_secs(30);

/// Given back at once, at least: looking for it goes through all that is here.
const GIVE_WAY_MIN_BYTES: u64 = 2 << 20;

/// Flights that have landed, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<Entry>>);

#[derive(Debug)]
struct Entry {
    flight: Arc<Flight>,
    since: Instant,
}

impl Recent {
    pub(super) fn insert(&self, flight: Arc<Flight>) {
        let mut entries = lock(&self.0);
        while entries.front().is_some_and(|entry| entry.flight.is_gone()) {
            entries.pop_front();
        }
        entries.push_back(Entry { flight, since: Instant::now() });
    }

    /// Gives back about `bytes` that somebody of `class` wants: what is on disk or was
    /// read first, and to demand also what is neither.
    pub(super) fn give_way(&self, class: Class, bytes: u64) {
        let now = Instant::now();
        let most = bytes.max(GIVE_WAY_MIN_BYTES);
        let freed = self.forget(most, |entry| {
            let is_spare = entry.flight.is_kept() || entry.flight.is_read_through();
            is_spare && entry.may_go(class, now)
        });
        if class == Class::Demand && freed < bytes {
            self.forget(bytes - freed, |_| true);
        }
    }

    /// Gives back what nobody came for in time.
    pub(super) fn forget_old(&self, now: Instant) {
        self.forget(u64::MAX, |entry| {
            let limit = if entry.flight.is_kept() { KEPT_FOR } else { UNKEPT_FOR };
            now.saturating_duration_since(entry.since) > limit
        });
    }

    /// Forgets `bytes` of those that `may_go`; returns how many.
    fn forget(&self, bytes: u64, may_go: impl Fn(&Entry) -> bool) -> u64 {
        let mut going = Vec::new();
        let mut sum = 0;
        lock(&self.0).retain(|entry| {
            if entry.flight.is_gone() {
                return false;
            }
            if sum < bytes && may_go(entry) && entry.flight.is_free() {
                let range = entry.flight.range();
                sum += range.end - range.start;
                going.push(entry.flight.clone());
            }
            true
        });
        // After the lock: the memory goes to who waits for it. What somebody began to
        // read just now is not gone after this, and looked at again the next time.
        going
            .iter()
            .filter(|flight| flight.forget())
            .map(|flight| flight.range())
            .fold(0, |sum, range| sum + (range.end - range.start))
    }
}

impl Entry {
    fn may_go(&self, class: Class, now: Instant) -> bool {
        let is_fresh = now.saturating_duration_since(self.since) < FRESH;
        class == Class::Demand || !(self.flight.is_for_reader() && is_fresh)
    }
}
