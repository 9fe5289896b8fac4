//! What happened in the last minute and hour.
//!
//! One task takes a sample of the totals each second. Kept are what each of the last
//! 60 seconds and 60 minutes brought: some 8 KiB.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::wire::{RatesStatus, SampleStatus};

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Samples of a second, and of a minute, that are kept.
const SECONDS: usize = 60;
const MINUTES: usize = 60;

/// Counters that only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) hit_bytes: u64,
    pub(super) miss_bytes: u64,
    pub(super) failed_reads: u64,
    pub(super) remote_bytes: u64,
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) evicted_objects: u64,
    pub(super) evicted_bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rates(Mutex<State>);

#[derive(Debug)]
struct State {
    sampled: Instant,
    totals: Totals,
    seconds: VecDeque<SampleStatus>,
    /// The last one is still being added to.
    minutes: VecDeque<SampleStatus>,
}

impl Rates {
    pub(super) fn new(now: Instant) -> Rates {
        Rates(Mutex::new(State {
            sampled: now,
            totals: Totals::default(),
            seconds: VecDeque::with_capacity(SECONDS),
            minutes: VecDeque::with_capacity(MINUTES),
        }))
    }

    /// Takes a sample.
    pub(super) fn sample(&self, now: Instant, totals: Totals) {
        let mut state = self.lock();
        let seconds = now.saturating_duration_since(state.sampled).as_secs_f64();
        let sample = totals.since(&state.totals, seconds);
        (state.sampled, state.totals) = (now, totals);
        push(&mut state.seconds, sample, SECONDS);
        match state.minutes.back_mut() {
            Some(minute) if minute.seconds < 60.0 => add(minute, &sample),
            _ => push(&mut state.minutes, sample, MINUTES),
        }
    }

    pub(super) fn status(&self) -> RatesStatus {
        let state = self.lock();
        RatesStatus {
            minute: sum(&state.seconds),
            hour: sum(&state.minutes),
            seconds: state.seconds.iter().copied().collect(),
        }
    }

    /// Each change is whole after a panic, or of one sample.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    fn since(&self, before: &Totals, seconds: f64) -> SampleStatus {
        SampleStatus {
            seconds,
            hit_bytes: self.hit_bytes.saturating_sub(before.hit_bytes),
            miss_bytes: self.miss_bytes.saturating_sub(before.miss_bytes),
            failed_reads: self.failed_reads.saturating_sub(before.failed_reads),
            remote_bytes: self.remote_bytes.saturating_sub(before.remote_bytes),
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            evicted_objects: self.evicted_objects.saturating_sub(before.evicted_objects),
            evicted_bytes: self.evicted_bytes.saturating_sub(before.evicted_bytes),
        }
    }
}

fn push(samples: &mut VecDeque<SampleStatus>, sample: SampleStatus, most: usize) {
    if samples.len() == most {
        samples.pop_front();
    }
    samples.push_back(sample);
}

fn sum(samples: &VecDeque<SampleStatus>) -> SampleStatus {
    let mut sum = SampleStatus::default();
    samples.iter().for_each(|sample| add(&mut sum, sample));
    sum
}

fn add(sum: &mut SampleStatus, more: &SampleStatus) {
    sum.seconds += more.seconds;
    sum.hit_bytes += more.hit_bytes;
    sum.miss_bytes += more.miss_bytes;
    sum.failed_reads += more.failed_reads;
    sum.remote_bytes += more.remote_bytes;
    sum.requests += more.requests;
    sum.errors += more.errors;
    sum.evicted_objects += more.evicted_objects;
    sum.evicted_bytes += more.evicted_bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_and_an_hour_hold_what_came_in_them() {
        let start = Instant::now();
        let rates = Rates::new(start);
        let mut totals = Totals::default();
        for second in 1..=5_000 {
            totals.hit_bytes += 10;
            totals.requests += 1;
            rates.sample(start + Duration::from_secs(second), totals);
        }
        let status = rates.status();
        assert_eq!(status.seconds.len(), SECONDS);
        assert_eq!((status.minute.hit_bytes, status.minute.requests), (600, 60));
        assert!((status.minute.seconds - 60.0).abs() < 1e-6);
        // 59 whole minutes and the one that is being added to.
        assert_eq!(status.hour.hit_bytes, 10 * (59 * 60 + 5_000 % 60));
        assert!((status.hour.seconds - (59 * 60 + 5_000 % 60) as f64).abs() < 1e-6);
    }

    #[test]
    fn what_shrank_is_no_rate_and_a_late_sample_says_how_late() {
        let start = Instant::now();
        let rates = Rates::new(start);
        rates.sample(start + INTERVAL, Totals { errors: 5, ..Totals::default() });
        rates.sample(start + 4 * INTERVAL, Totals { evicted_bytes: 9, ..Totals::default() });
        let minute = rates.status().minute;
        assert_eq!((minute.errors, minute.evicted_bytes), (5, 9));
        assert!((minute.seconds - 4.0).abs() < 1e-6);
    }
}
