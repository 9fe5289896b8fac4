//! How many requests a second a store gets: a pure policy, handed the clock.
//!
//! A store that says 503 or 429 accepts some rate and no more. Requests past it
//! cost an attempt each and bring nothing, so the rate is found and kept:
//!
//! - Unlimited until the store throttles. One refusal among many answers is
//!   noise; refusals of more than [`TOLERATED`] of a second's requests are not.
//! - The first limit is what the store accepted lately. It grows fast until the
//!   store refuses again, which shows where the limit is; from then on slowly,
//!   [`GROWTH`] a second, and each refusal cuts it. It grows only while it is
//!   used up.
//! - After a cut nothing is sent for [`FIRST_HOLD`], then one request at a time as
//!   a probe, more and more seldom, up to [`HOLD_MAX`], until one is accepted: a
//!   store that counts by the second refuses all until the second is over. What
//!   was sent before a cut does not count against the rate after it.
//! - `Retry-After` holds everybody back, not only who was told.
//! - After [`SEARCH_AFTER`] without a refusal the store has more to give: the
//!   rate grows fast again. After [`FORGET_AFTER`] there is no limit any more.

use std::time::{Duration, Instant};

/// Refusals that are borne without a cut, as a part of the requests: a cut costs
/// more throughput than that, and 10 % is what may be sent in vain.
const TOLERATED: f64 = 0.03;

/// What a cut leaves of the rate: less than a tenth below what the store accepts.
const CUT: f64 = 0.93;

/// What a cut leaves of a rate that is far from what the store accepts.
const DEEP_CUT: f64 = 0.7;

/// For how long a rate must have held to be compared with what was accepted in
/// the last second; short of a second, or a store that counts by it is missed.
const MEASURED_AFTER: Duration = Duration::from_millis(800);

/// Growth a second: three to four seconds from a cut back to where it was.
const GROWTH: f64 = 0.02;

/// Growth a second while the limit is unknown, or known to be higher.
const FAST_GROWTH: f64 = 1.0;

/// Longer than the rate takes to grow back after a cut.
const SEARCH_AFTER: Duration = Duration::from_secs(5);

/// Stores that throttle do so as long as the load lasts, with pauses of seconds.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Requests a second that any store takes; holds do what is left to do.
const RATE_MIN: f64 = 10.0;

/// Silence after a cut: long enough that what is under way is answered.
const FIRST_HOLD: Duration = Duration::from_millis(100);

/// So many probes are made at one distance before it grows: within a second,
/// which is what stores count by, they are close together.
const PROBES_EACH: u32 = 5;

/// How often it is looked whether a probe was answered.
const PROBE_LOOK: Duration = Duration::from_millis(10);

/// Longest silence that we choose ourselves: what comes back is noticed in a second.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// Longest `Retry-After` that is obeyed; see [`super::retry`].
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// How late a request may be sent and the next still be on time: several ticks
/// of the timer.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The first limit is measured over this, or more: bursts are not rates.
const MEASURED_MIN: Duration = Duration::from_millis(500);

/// The time over which answers are counted, in slots.
const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 10;

/// The rate at which one endpoint is asked.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<Limit>,
    /// The store's own wish: nothing is sent before this.
    wished_until: Option<Instant>,
    probing: Option<Probing>,
    last_refusal: Option<Instant>,
    answers: Recent,
}

#[derive(Debug)]
struct Limit {
    per_s: f64,
    /// When the next request is due.
    next: Instant,
    /// Requests had to wait since the rate grew last.
    is_used_up: bool,
    /// Where the store's limit is has not been seen yet.
    is_search: bool,
    grown_at: Instant,
    /// What was sent before this is answered for an earlier rate.
    cut_at: Instant,
    lowered_at: Instant,
}

/// After a cut: whether the store accepts anything.
#[derive(Debug)]
struct Probing {
    until: Instant,
    /// Probes refused in a row.
    refused: u32,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Pace {
            limit: None,
            wished_until: None,
            probing: None,
            last_refusal: None,
            answers: Recent::new(now),
        }
    }

    /// Takes leave to send a request now, or says when to ask again.
    pub(super) fn try_send(&mut self, now: Instant) -> Result<(), Instant> {
        self.forget(now);
        if let Some(until) = self.wished_until {
            if now < until {
                return Err(until);
            }
            self.wished_until = None;
        }
        if let Some(probing) = &mut self.probing {
            if now < probing.until {
                return Err(probing.until.min(now + PROBE_LOOK));
            }
            // This is the probe; the next, should it never be answered:
            probing.until = now + HOLD_MAX;
            return Ok(());
        }
        let Some(limit) = &mut self.limit else { return Ok(()) };
        limit.grow(now, self.last_refusal);
        if now < limit.next {
            limit.is_used_up = true;
            return Err(limit.next);
        }
        let earliest = now.checked_sub(CATCH_UP).unwrap_or(now);
        limit.next = limit.next.max(earliest) + Duration::from_secs_f64(1.0 / limit.per_s);
        Ok(())
    }

    /// The store answered a request that was sent at `sent` as it should.
    pub(super) fn accepted(&mut self, sent: Instant, now: Instant) {
        self.answers.add(now, 1, 0);
        if self.limit.as_ref().is_some_and(|limit| sent >= limit.cut_at) {
            self.probing = None;
        }
    }

    /// The store refused a request that was sent at `sent`.
    pub(super) fn refused(&mut self, sent: Instant, now: Instant, retry_after: Option<Duration>) {
        self.answers.add(now, 0, 1);
        self.last_refusal = Some(now);
        if let Some(wish) = retry_after {
            let until = now + wish.min(RETRY_AFTER_MAX);
            self.wished_until = Some(self.wished_until.map_or(until, |held| held.max(until)));
        }
        // It is the cut's reason, not its result.
        if self.limit.as_ref().is_some_and(|limit| sent < limit.cut_at) {
            return;
        }
        let (accepted, refused) = self.answers.sums(now);
        if self.probing.is_none() && refused < 2.0_f64.max(TOLERATED * (accepted + refused)) {
            return;
        }
        self.cut(now, accepted);
        let row = self.probing.as_ref().map_or(0, |probing| probing.refused);
        let silence = (FIRST_HOLD * (row / PROBES_EACH).max(1)).min(HOLD_MAX);
        self.probing = Some(Probing { until: now + silence, refused: row + 1 });
    }

    /// Lowers the rate; `accepted` is what the store accepted in the last second.
    fn cut(&mut self, now: Instant, accepted: f64) {
        let Some(limit) = &mut self.limit else {
            let span = self.answers.span(now).max(MEASURED_MIN);
            self.limit = Some(Limit {
                per_s: (accepted / span.as_secs_f64()).max(RATE_MIN),
                next: now,
                is_used_up: false,
                is_search: true,
                grown_at: now,
                cut_at: now,
                lowered_at: now,
            });
            return;
        };
        limit.cut_at = now;
        limit.grown_at = now;
        // Refused again and again, it is not the rate that is wrong.
        if self.probing.is_some() {
            return;
        }
        let is_measured = now >= limit.lowered_at + MEASURED_AFTER;
        let measured = if is_measured { accepted } else { f64::MAX };
        limit.lowered_at = now;
        let cut = measured.clamp(limit.per_s * DEEP_CUT, limit.per_s * CUT);
        limit.per_s = cut.max(RATE_MIN);
        limit.is_search = false;
    }

    fn forget(&mut self, now: Instant) {
        if self.last_refusal.is_some_and(|at| now >= at + FORGET_AFTER) {
            self.limit = None;
            self.probing = None;
            self.last_refusal = None;
        }
    }

    /// Requests a second, if the store bounds them.
    pub(super) fn rate(&self) -> Option<f64> {
        self.limit.as_ref().map(|limit| limit.per_s)
    }

    /// Whether the store refused requests lately.
    pub(super) fn is_throttled(&self, now: Instant) -> bool {
        let is_held = self.wished_until.is_some_and(|until| now < until);
        is_held || self.last_refusal.is_some_and(|at| now < at + SEARCH_AFTER)
    }
}

impl Limit {
    fn grow(&mut self, now: Instant, last_refusal: Option<Instant>) {
        let passed = now.saturating_duration_since(self.grown_at).as_secs_f64();
        if std::mem::take(&mut self.is_used_up) {
            let is_low = last_refusal.is_none_or(|at| now >= at + SEARCH_AFTER);
            let growth = if is_low || self.is_search { FAST_GROWTH } else { GROWTH };
            // After an idle time the rate goes on where it was.
            self.per_s *= 1.0 + growth * passed.min(1.0);
        }
        self.grown_at = now;
    }
}

/// Answers of the last second.
#[derive(Debug)]
struct Recent {
    /// When counting began after a silence.
    since: Instant,
    slots: [(f64, f64); SLOTS],
    /// When the latest slot began, and which it is.
    began: Instant,
    at: usize,
}

impl Recent {
    fn new(now: Instant) -> Self {
        Recent { since: now, slots: [(0.0, 0.0); SLOTS], began: now, at: 0 }
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_millis() / SLOT.as_millis();
        for _ in 0..passed.min(SLOTS as u128) {
            self.at = (self.at + 1) % SLOTS;
            self.slots[self.at] = (0.0, 0.0);
        }
        if passed >= SLOTS as u128 {
            self.since = now;
        }
        self.began += SLOT * u32::try_from(passed).unwrap_or(u32::MAX);
    }

    /// For how long answers have come, up to a second.
    fn span(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since).min(SLOT * SLOTS as u32)
    }

    fn add(&mut self, now: Instant, accepted: u32, refused: u32) {
        self.advance(now);
        self.slots[self.at].0 += f64::from(accepted);
        self.slots[self.at].1 += f64::from(refused);
    }

    fn sums(&mut self, now: Instant) -> (f64, f64) {
        self.advance(now);
        self.slots.iter().fold((0.0, 0.0), |sum, slot| (sum.0 + slot.0, sum.1 + slot.1))
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
