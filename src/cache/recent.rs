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

use super::flight::Flight;
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

/// Flights that have landed, the oldest first, and how many bytes of them are kept.
#[derive(Debug)]
pub(super) struct Recent {
    entries: Mutex<VecDeque<Entry>>,
    bytes_max: u64,
}

#[derive(Debug)]
struct Entry {
    flight: Arc<Flight>,
    since: Instant,
}

impl Recent {
    /// Keeps `bytes_max` at most.
    pub(super) fn new(bytes_max: u64) -> Self {
        Recent { entries: Mutex::default(), bytes_max }
    }

    pub(super) fn insert(&self, flight: Arc<Flight>) {
        let bytes: u64 = {
            let mut entries = lock(&self.entries);
            entries.retain(|entry| !entry.flight.is_gone());
            entries.push_back(Entry { flight, since: Instant::now() });
            entries.iter().map(|entry| entry.flight.range().end - entry.flight.range().start).sum()
        };
        let too_many = bytes.saturating_sub(self.bytes_max);
        if too_many > 0 {
            self.make_room(too_many, too_many, |_| true);
        }
    }

    /// Gives back about `bytes` that somebody of `class` wants: what is on disk or was
    /// read first, and to demand also what is neither.
    pub(super) fn give_way(&self, class: Class, bytes: u64) {
        let now = Instant::now();
        let unkept = if class == Class::Demand { bytes } else { 0 };
        let most = bytes.max(GIVE_WAY_MIN_BYTES);
        self.make_room(most, unkept, |entry| entry.may_go(class, now));
    }

    /// Forgets `bytes` of what is on disk or was read, and `may_go`; where that is less
    /// than `unkept`, the rest of it of the others.
    fn make_room(&self, bytes: u64, unkept: u64, may_go: impl Fn(&Entry) -> bool) {
        let is_spare = |entry: &Entry| entry.flight.is_kept() || entry.flight.is_read_through();
        let freed = self.forget(bytes, |entry| is_spare(entry) && may_go(entry));
        if freed < unkept {
            self.forget(unkept - freed, |_| true);
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
        lock(&self.entries).retain(|entry| {
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
