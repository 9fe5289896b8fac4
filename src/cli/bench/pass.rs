//! What the readers of one epoch share, and what they write down.
//!
//! A reader takes the next item from a common counter, as workers of a loader
//! do, and keeps its own tally: readers share no lock while the clock runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::dataset::{Item, Work};
use super::stop::Stop;
use crate::control::wire::ErrorReply;

/// How finely bytes are told apart in time. A warm epoch is over in less than a
/// second, and a day of these is 7 MB a reader.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// One epoch while it runs.
#[derive(Debug)]
pub(super) struct Pass {
    work: Work,
    batch: u64,
    next: AtomicU64,
    finished: AtomicU64,
    bytes: AtomicU64,
    started: OnceLock<Instant>,
    first_batch: OnceLock<Duration>,
    failure: OnceLock<ErrorReply>,
    stop: Arc<Stop>,
}

/// What one reader did, or all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// From the open to the last byte, of each item, in microseconds.
    pub(super) latencies_us: Vec<u64>,
    pub(super) bytes: u64,
    /// Bytes that came in each [`TICK`] since the start.
    pub(super) ticks: Vec<u64>,
    /// From the start to the end of the last item.
    pub(super) elapsed: Duration,
}

impl Pass {
    pub(super) fn new(work: Work, batch: u64, stop: Arc<Stop>) -> Arc<Pass> {
        let batch = batch.min(work.len());
        Arc::new(Pass {
            work,
            batch,
            next: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            started: OnceLock::new(),
            first_batch: OnceLock::new(),
            failure: OnceLock::new(),
            stop,
        })
    }

    /// When the first reader began.
    fn started(&self) -> Instant {
        *self.started.get_or_init(Instant::now)
    }

    /// The next item and when it was begun; none once it is over, however.
    pub(super) fn next(&self) -> Option<(Item, Instant)> {
        self.started();
        if self.is_over() {
            return None;
        }
        let item = self.work.at(self.next.fetch_add(1, Ordering::Relaxed))?;
        Some((item, Instant::now()))
    }

    /// Whether readers are to leave, although there may be more to read.
    pub(super) fn is_over(&self) -> bool {
        self.stop.code().is_some() || self.failure.get().is_some()
    }

    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Bytes arrived.
    pub(super) fn came(&self, tally: &mut Tally, bytes: u64) {
        let tick = self.started().elapsed().as_millis() / TICK.as_millis();
        let tick = usize::try_from(tick).unwrap_or(usize::MAX - 1);
        if tally.ticks.len() <= tick {
            tally.ticks.resize(tick + 1, 0);
        }
        tally.ticks[tick] += bytes;
        tally.bytes += bytes;
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The last byte of an item arrived.
    pub(super) fn done(&self, tally: &mut Tally, begun: Instant) {
        let now = Instant::now();
        let took = now.duration_since(begun).as_micros();
        tally.latencies_us.push(u64::try_from(took).unwrap_or(u64::MAX));
        tally.elapsed = now.duration_since(self.started());
        if self.finished.fetch_add(1, Ordering::Relaxed) + 1 == self.batch {
            let _ = self.first_batch.set(tally.elapsed);
        }
    }

    /// An item could not be read: the first failure ends the epoch.
    pub(super) fn fail(&self, error: ErrorReply) {
        let _ = self.failure.set(error);
    }

    pub(super) fn failure(&self) -> Option<&ErrorReply> {
        self.failure.get()
    }

    /// Items done, and bytes.
    pub(super) fn so_far(&self) -> (u64, u64) {
        (self.finished.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    pub(super) fn first_batch(&self) -> Duration {
        self.first_batch.get().copied().unwrap_or_default()
    }

    pub(super) fn items(&self) -> u64 {
        self.work.len()
    }
}

impl Tally {
    /// Adds what another reader of the same epoch did.
    pub(super) fn add(&mut self, other: Tally) {
        self.latencies_us.extend(other.latencies_us);
        self.bytes += other.bytes;
        self.elapsed = self.elapsed.max(other.elapsed);
        if self.ticks.len() < other.ticks.len() {
            self.ticks.resize(other.ticks.len(), 0);
        }
        for (sum, bytes) in self.ticks.iter_mut().zip(other.ticks) {
            *sum += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(items: usize, batch: u64) -> Arc<Pass> {
        Pass::new(Work::Whole((0..items).collect()), batch, Arc::default())
    }

    #[test]
    fn every_item_is_taken_once_and_the_batch_is_told() {
        let pass = pass(5, 3);
        let mut tally = Tally::default();
        let mut batches = Vec::new();
        while let Some((item, begun)) = pass.next() {
            pass.came(&mut tally, 10 + item.file as u64);
            pass.done(&mut tally, begun);
            batches.push(pass.first_batch.get().is_some());
        }
        assert_eq!(batches, [false, false, true, true, true]);
        assert_eq!((tally.latencies_us.len(), tally.bytes), (5, 60));
        assert_eq!(tally.ticks.iter().sum::<u64>(), 60);
        assert_eq!(pass.so_far(), (5, 60));
        assert!(pass.first_batch() <= tally.elapsed);
    }

    #[test]
    fn a_failure_or_a_stop_is_the_last_of_it() {
        let failed = pass(5, 3);
        failed.fail(crate::cli::bench::invalid("first"));
        failed.fail(crate::cli::bench::invalid("second"));
        assert!(failed.next().is_none());
        assert_eq!(failed.failure().unwrap().message, "first");
        let stopped = pass(5, 3);
        stopped.stop().set(130);
        assert!(stopped.next().is_none() && stopped.failure().is_none());
    }

    #[test]
    fn a_batch_is_never_more_than_there_is() {
        let pass = pass(2, 32);
        let mut tally = Tally::default();
        while let Some((_, begun)) = pass.next() {
            pass.done(&mut tally, begun);
        }
        assert!(pass.first_batch.get().is_some());
    }

    #[test]
    fn tallies_add_up() {
        let tally = |latency, ticks: &[u64], ms| Tally {
            latencies_us: vec![latency],
            bytes: ticks.iter().sum(),
            ticks: ticks.to_vec(),
            elapsed: Duration::from_millis(ms),
        };
        let mut sum = tally(1, &[1, 2], 150);
        sum.add(tally(2, &[3, 4, 5], 250));
        sum.add(tally(3, &[], 50));
        let mut expected = tally(1, &[4, 6, 5], 250);
        expected.latencies_us = vec![1, 2, 3];
        assert_eq!(sum, expected);
    }
}
