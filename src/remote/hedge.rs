//! How many GETs may be sent twice: a pure policy.
//!
//! A GET that takes unusually long (see [`super::latency`]) is sent once more,
//! and whichever brings bytes first is read on. Each GET earns a part of a hedge,
//! so that hedges stay below [`EARNED`] of the GETs; and a hedge that brought
//! nothing costs as much as several, so that where hedging does not help (a
//! machine that is busy itself) it stays below a hundredth.

/// Part of a hedge that a GET earns. One in a hundred GETs stalls on a bad day;
/// four in a hundred more requests are nothing to a store.
const EARNED: f64 = 0.04;

/// Hedges that can be saved up: what is in flight when a front end dies.
const SAVED_MAX: f64 = 10.0;

/// What a hedge in vain costs besides itself.
const IN_VAIN: f64 = 4.0;

/// Most that is owed: after 500 GETs it is tried again.
const OWED_MAX: f64 = -19.0;

/// The hedges that may be sent.
#[derive(Debug, Default)]
pub(super) struct Budget {
    saved: f64,
}

impl Budget {
    /// A GET was sent, for the first time.
    pub(super) fn get(&mut self) {
        self.saved = (self.saved + EARNED).min(SAVED_MAX);
    }

    /// Takes leave to send a GET once more.
    pub(super) fn take(&mut self) -> bool {
        let takes = self.saved >= 1.0;
        self.saved -= f64::from(u8::from(takes));
        takes
    }

    /// A hedge was not needed.
    pub(super) fn in_vain(&mut self) {
        self.saved = (self.saved - IN_VAIN).max(OWED_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::latency::Latency;
    use super::*;

    const MS: f64 = 0.001;

    struct Outcome {
        p50: f64,
        p99: f64,
        hedges: usize,
    }

    /// GETs that take what `takes` says, one after the other.
    fn simulate(gets: usize, mut takes: impl FnMut() -> f64) -> Outcome {
        let (mut latency, mut budget) = (Latency::default(), Budget::default());
        let (mut times, mut hedges) = (Vec::new(), 0);
        for _ in 0..gets {
            budget.get();
            let first = takes();
            let after = latency.hedge_answer_after().map(|after| after.as_secs_f64());
            let mut took = first;
            if let Some(after) = after.filter(|after| first > *after && budget.take()) {
                hedges += 1;
                let second = after + takes();
                took = first.min(second);
                if first <= second {
                    budget.in_vain();
                }
                latency.first_byte(Duration::from_secs_f64(took - after));
            }
            latency.first_byte(Duration::from_secs_f64(took));
            times.push(took);
        }
        times.sort_by(f64::total_cmp);
        Outcome { p50: times[gets / 2], p99: times[gets * 99 / 100], hedges }
    }

    #[test]
    fn one_stall_in_a_hundred_is_hidden() {
        let mut rng = fastrand::Rng::with_seed(1);
        let out = simulate(20_000, || match rng.u32(..100) {
            0 => 5.0,
            _ => (30.0 + 6.0 * rng.f64()) * MS,
        });
        println!("stalls: p50 {} p99 {} hedges {}", out.p50, out.p99, out.hedges);
        assert!(out.p99 <= 3.0 * out.p50, "{} {}", out.p50, out.p99);
        assert!((150..=800).contains(&out.hedges), "{}", out.hedges);
    }

    #[test]
    fn a_store_that_stalls_often_is_not_asked_twice_for_it() {
        let mut rng = fastrand::Rng::with_seed(1);
        let out = simulate(20_000, || if rng.u32(..4) == 0 { 5.0 } else { 30.0 * MS });
        assert!(out.hedges <= 800, "{}", out.hedges);
    }

    #[test]
    fn a_long_tail_without_stalls_costs_next_to_nothing() {
        let mut rng = fastrand::Rng::with_seed(1);
        // As a busy machine has it: the wait is the machine's, so the hedge waits too.
        let out = simulate(20_000, || {
            let busy = if rng.u32(..20) == 0 { 200.0 } else { 0.0 };
            (5.0 + 40.0 * rng.f64() * rng.f64() + busy) * MS
        });
        println!("tail: p50 {} p99 {} hedges {}", out.p50, out.p99, out.hedges);
        assert!(out.hedges <= 800, "{}", out.hedges);
        let mut budget = Budget::default();
        let mut hedges = 0;
        for _ in 0..10_000 {
            budget.get();
            if budget.take() {
                hedges += 1;
                budget.in_vain();
            }
        }
        assert!(hedges <= 80, "{hedges} of 10,000 in vain");
    }
}
