//! How long an endpoint takes, and what follows for hedges and time limits: a
//! pure policy.
//!
//! The times of the latest [`SAMPLES`] GETs are kept: to the beginning of the
//! answer, and the longest wait within a body. A request that was given up
//! counts with the time that it had lasted, so that a store which becomes slow
//! is given more time. Before [`SAMPLES_MIN`] nothing follows from them.

use std::time::Duration;

/// A second or so of small files at the speed of a store, or the last few
/// hundred MiB of large ones.
const SAMPLES: usize = 256;

/// With fewer the 95th percentile is a guess.
const SAMPLES_MIN: usize = 20;

/// The percentiles are found again after so many samples.
const FRESH: usize = 16;

/// A hedge is due when a GET takes this much longer than 19 of 20 do.
const HEDGE_FACTOR: f64 = 1.5;

/// Sooner no hedge is sent: what a nearby store takes this long for is mostly
/// our own machine being busy, and hedges would make it worse.
const HEDGE_MIN: Duration = Duration::from_millis(40);

/// Times the 99th percentile after which a connection is given up for another.
const LIMIT_FACTOR: f64 = 4.0;

/// No connection is given up sooner: a lost packet is sent again within a second.
const LIMIT_MIN: Duration = Duration::from_millis(1_500);

/// What an endpoint's answers took lately.
#[derive(Debug, Default)]
pub(super) struct Latency {
    first_bytes: Samples,
    gaps: Samples,
}

impl Latency {
    /// A GET took so long until its answer began.
    pub(super) fn first_byte(&mut self, took: Duration) {
        self.first_bytes.add(took);
    }

    /// The longest wait within a body was this.
    pub(super) fn gap(&mut self, took: Duration) {
        self.gaps.add(took);
    }

    /// How long to wait for the beginning of an answer before another GET is
    /// sent for the same bytes.
    pub(super) fn hedge_answer_after(&self) -> Option<Duration> {
        Some(self.first_bytes.known()?.p95.mul_f64(HEDGE_FACTOR).max(HEDGE_MIN))
    }

    /// The same for the next bytes of a body. A new GET costs the time to its
    /// first byte too, so it is never sent sooner than that.
    pub(super) fn hedge_body_after(&self) -> Option<Duration> {
        let gap = self.gaps.known()?.p95.mul_f64(HEDGE_FACTOR);
        Some(self.usual()?.max(gap).max(HEDGE_MIN))
    }

    /// How long to wait for the beginning of an answer, at most `longest`.
    pub(super) fn answer_limit(&self, longest: Duration) -> Duration {
        limit(&self.first_bytes, longest)
    }

    /// How long a body may bring nothing, at most `longest`.
    pub(super) fn stall_limit(&self, longest: Duration) -> Duration {
        limit(&self.gaps, longest)
    }

    /// What nearly every request takes, once that is known.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.first_bytes.known().map(|known| known.p95)
    }
}

fn limit(samples: &Samples, longest: Duration) -> Duration {
    match samples.known() {
        Some(known) => known.p99.mul_f64(LIMIT_FACTOR).max(LIMIT_MIN).min(longest),
        None => longest,
    }
}

/// The latest times, and their percentiles.
#[derive(Debug, Default)]
struct Samples {
    times: Vec<Duration>,
    next: usize,
    /// Added since `known` was found.
    added: usize,
    known: Option<Percentiles>,
}

#[derive(Clone, Copy, Debug)]
struct Percentiles {
    p95: Duration,
    p99: Duration,
}

impl Samples {
    fn add(&mut self, took: Duration) {
        if self.times.len() < SAMPLES {
            self.times.push(took);
        } else {
            self.times[self.next] = took;
            self.next = (self.next + 1) % SAMPLES;
        }
        self.added += 1;
        if self.times.len() >= SAMPLES_MIN && (self.known.is_none() || self.added >= FRESH) {
            self.added = 0;
            let mut sorted = self.times.clone();
            sorted.sort_unstable();
            let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1];
            self.known = Some(Percentiles { p95: at(95), p99: at(99) });
        }
    }

    fn known(&self) -> Option<Percentiles> {
        self.known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_secs(5);

    fn latency(times: impl IntoIterator<Item = u32>) -> Latency {
        let mut latency = Latency::default();
        for ms in times {
            latency.first_byte(ms * MS);
            latency.gap(ms * MS);
        }
        latency
    }

    #[test]
    fn nothing_follows_from_a_few_samples() {
        let few = latency(std::iter::repeat_n(30, SAMPLES_MIN - 1));
        assert_eq!(few.hedge_answer_after(), None);
        assert_eq!(few.hedge_body_after(), None);
        assert_eq!(few.answer_limit(LONGEST), LONGEST);
        assert!(latency(std::iter::repeat_n(30, SAMPLES_MIN)).hedge_answer_after().is_some());
    }

    #[test]
    fn hedges_follow_the_95th_percentile_and_limits_the_99th() {
        let latency = latency((1..=240).map(|n| if n % 100 == 0 { 5_000 } else { 30 + n % 5 }));
        assert_eq!(latency.hedge_answer_after(), Some(51 * MS));
        assert_eq!(latency.answer_limit(LONGEST), LIMIT_MIN);
        assert_eq!(latency.usual(), Some(34 * MS));
    }

    #[test]
    fn near_and_far_stores_keep_the_bounds() {
        let near = latency(std::iter::repeat_n(1, 300));
        assert_eq!(near.hedge_answer_after(), Some(HEDGE_MIN));
        assert_eq!(near.stall_limit(LONGEST), LIMIT_MIN);
        let far = latency(std::iter::repeat_n(900, 300));
        assert_eq!(far.stall_limit(LONGEST), 3_600 * MS);
        assert_eq!(latency(std::iter::repeat_n(3_000, 300)).stall_limit(LONGEST), LONGEST);
    }

    #[test]
    fn a_store_that_becomes_slow_is_given_time() {
        let mut latency = latency(std::iter::repeat_n(30, 1_000));
        for _ in 0..SAMPLES {
            latency.first_byte(2_000 * MS);
        }
        assert_eq!(latency.answer_limit(2 * LONGEST), 8_000 * MS);
        assert_eq!(latency.hedge_answer_after(), Some(3_000 * MS));
    }
}
