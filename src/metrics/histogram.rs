//! How long things take: counts in fixed steps, each twice the one before.
//!
//! Written to by every read and every request, so it costs two relaxed additions
//! and allocates nothing. What is read while others write may miss the last of
//! them, and is never torn: the count is the sum of the steps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bound of the first step: less than any read that passes the kernel takes.
const FIRST_US: u64 = 16;

/// Steps with an upper bound: the last one ends at 134 s, which is past every limit
/// of a request. One more counts what takes longer.
pub const BOUNDS: usize = 24;

/// Times, by their length.
#[derive(Debug)]
pub struct Histogram {
    steps: [AtomicU64; BOUNDS + 1],
    /// Of all, in nanoseconds: enough for 584 years.
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { steps: std::array::from_fn(|_| AtomicU64::new(0)), sum_ns: AtomicU64::new(0) }
    }
}

/// A histogram at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    steps: [u64; BOUNDS + 1],
    sum_ns: u64,
}

impl Histogram {
    /// Something took so long.
    pub fn observe(&self, took: Duration) {
        self.steps[step_of(took)].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// What was observed so far.
    pub fn times(&self) -> Times {
        Times {
            steps: std::array::from_fn(|step| self.steps[step].load(Ordering::Relaxed)),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

impl Times {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.steps.iter().sum()
    }

    /// All of them, one after the other.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// The upper bound of each step, and how many took that long or less. What took
    /// longer than the last bound is in [`Times::count`] only.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut sum = 0;
        self.steps.iter().take(BOUNDS).enumerate().map(move |(step, count)| {
            sum += count;
            (bound(step), sum)
        })
    }

    /// The time that a `part` of them took at most, 0.99 for the 99th percentile: exact
    /// to the step, and in between as if they were spread evenly in it. `None` if there
    /// was none.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let rank = (self.count() as f64 * part).ceil().max(1.0);
        let mut below = 0.0;
        for (step, count) in self.steps.iter().enumerate() {
            let count = *count as f64;
            if count > 0.0 && below + count >= rank {
                let from = step.checked_sub(1).map_or(Duration::ZERO, bound);
                // Of those beyond the last bound only that is known.
                let to = if step < BOUNDS { bound(step) } else { from };
                return Some(from + (to - from).mul_f64((rank - below) / count));
            }
            below += count;
        }
        None
    }
}

fn bound(step: usize) -> Duration {
    Duration::from_micros(FIRST_US << step)
}

/// The first step whose bound is not below `took`.
fn step_of(took: Duration) -> usize {
    let us = u64::try_from(took.as_nanos().div_ceil(1_000)).unwrap_or(u64::MAX);
    let firsts = us.div_ceil(FIRST_US).max(1);
    (firsts.next_power_of_two().trailing_zeros() as usize).min(BOUNDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn each_time_counts_in_the_first_step_that_holds_it() {
        for step in 0..BOUNDS {
            assert_eq!(step_of(bound(step)), step);
            assert_eq!(step_of(bound(step) + Duration::from_nanos(1)), step + 1);
        }
        assert_eq!(step_of(Duration::ZERO), 0);
        assert_eq!(step_of(Duration::MAX), BOUNDS);
    }

    #[test]
    fn counts_and_sums_are_those_of_what_was_observed() {
        let histogram = Histogram::default();
        assert_eq!(histogram.times().quantile(0.5), None);
        for took in [US, 16 * US, 17 * US, 1_000 * US, Duration::from_secs(1_000)] {
            histogram.observe(took);
        }
        let times = histogram.times();
        assert_eq!(times.count(), 5);
        assert_eq!(times.sum(), Duration::from_secs(1_000) + 1_034 * US);
        let cumulative: Vec<_> = times.cumulative().collect();
        assert_eq!(cumulative[0], (16 * US, 2));
        assert_eq!(cumulative[1], (32 * US, 3));
        assert_eq!(cumulative[BOUNDS - 1].1, 4, "what is beyond is in the count only");
    }

    #[test]
    fn quantiles_are_exact_to_the_step() {
        let histogram = Histogram::default();
        for ms in 1..=1_000 {
            histogram.observe(ms * 1_000 * US);
        }
        let times = histogram.times();
        for (part, exact_ms) in [(0.5, 500.0), (0.9, 900.0), (0.99, 990.0)] {
            let ms = times.quantile(part).unwrap().as_secs_f64() * 1e3;
            assert!((exact_ms / 2.0..exact_ms * 2.0).contains(&ms), "{part}: {ms}");
        }
        let far = Histogram::default();
        far.observe(Duration::MAX);
        assert_eq!(far.times().quantile(0.99), Some(bound(BOUNDS - 1)));
    }
}
