//! How many objects to fetch at once. Pure.
//!
//! What a line, a store or this machine's cores cannot carry waits in some queue,
//! and readers wait in the same one. A queue shows in the time that a fetch takes:
//! where that is well above the shortest of late, fewer are sent at once, and the
//! same number comes through.

use std::time::{Duration, Instant};

/// As many as a line with a long way wants: 1,000 objects a second at 30 ms.
const AT_ONCE_MIN: f64 = 30.0;

/// And at most, on a busy machine: with 64 the p99 of those who read meanwhile was 1.66
/// times what it is without warming, with this 1.51; 1,369 and 1,261 objects a second.
const AT_ONCE_MAX: f64 = 42.0;

/// Bytes on their way at once: what a line of 1 GB/s carries in 30 ms. More takes
/// from readers what they could have, and gains nothing.
const BYTES_AT_ONCE: u64 = 32 << 20;

/// Objects of more bytes take their time for that.
const COMPARED_BYTES_MAX: u64 = 512 << 10;

/// So many times the shortest time is no queue yet, and so much on top of it: on
/// loopback all times are short.
const SLOWER: f64 = 1.5;
const SLACK: Duration = Duration::from_millis(3);

/// What one fetch counts in the mean.
const WEIGHT: f64 = 0.05;

/// Each step down is by so much; up it is one.
const BACK_OFF: f64 = 0.9;

/// The shortest time is that of the last one or two of these.
const WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(in crate::cache) struct Pace {
    at_once: f64,
    mean_s: f64,
    shortest_s: [f64; 2],
    window_began: Instant,
    /// Fetches since the last step: those sent before it tell nothing of it.
    since_step: f64,
}

impl Pace {
    pub(in crate::cache) fn new(now: Instant) -> Self {
        let shortest_s = [f64::INFINITY; 2];
        Pace { at_once: AT_ONCE_MIN, mean_s: 0.0, shortest_s, window_began: now, since_step: 0.0 }
    }

    /// Whether one more may be fetched beside so many.
    pub(in crate::cache) fn has_room(&self, objects: usize, bytes: u64) -> bool {
        objects < self.at_once as usize && bytes < BYTES_AT_ONCE
    }

    /// An object of `bytes` came, after `took`.
    pub(in crate::cache) fn came(&mut self, bytes: u64, took: Duration, now: Instant) {
        if bytes > COMPARED_BYTES_MAX {
            return;
        }
        if now.duration_since(self.window_began) > WINDOW {
            self.shortest_s = [f64::INFINITY, self.shortest_s[0]];
            self.window_began = now;
        }
        let took_s = took.as_secs_f64();
        self.shortest_s[0] = self.shortest_s[0].min(took_s);
        self.mean_s = match self.mean_s {
            0.0 => took_s,
            mean_s => mean_s + (took_s - mean_s) * WEIGHT,
        };
        self.since_step += 1.0;
        if self.since_step < self.at_once {
            return;
        }
        self.since_step = 0.0;
        let shortest_s = self.shortest_s[0].min(self.shortest_s[1]);
        let is_queueing = self.mean_s > shortest_s * SLOWER + SLACK.as_secs_f64();
        let next = if is_queueing { self.at_once * BACK_OFF } else { self.at_once + 1.0 };
        self.at_once = next.clamp(AT_ONCE_MIN, AT_ONCE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store that answers after `round_trip` and carries `per_s` objects.
    fn settle(round_trip_ms: f64, per_s: f64) -> usize {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        // The first ones meet no queue.
        pace.came(100, Duration::from_secs_f64(round_trip_ms / 1000.0), now);
        for _ in 0..10_000 {
            let carried_ms = pace.at_once / per_s * 1000.0;
            let took = Duration::from_secs_f64(round_trip_ms.max(carried_ms) / 1000.0);
            pace.came(100, took, now);
        }
        pace.at_once as usize
    }

    #[test]
    fn it_sends_as_many_as_come_through_without_a_queue() {
        assert_eq!(settle(30.0, 1e6), AT_ONCE_MAX as usize, "a line that is never full");
        let few = settle(30.0, 750.0);
        assert!((30..=37).contains(&few), "{few}: more than 36 take half as long again");
        assert_eq!(settle(1.0, 500.0), AT_ONCE_MIN as usize, "cores that are busy");
    }

    #[test]
    fn a_few_large_objects_are_enough() {
        let pace = Pace::new(Instant::now());
        assert!(pace.has_room(29, 0) && !pace.has_room(30, 0));
        assert!(pace.has_room(3, 31 << 20) && !pace.has_room(4, 32 << 20));
    }

    #[test]
    fn large_objects_say_nothing() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.came(100, Duration::from_millis(1), now);
        for _ in 0..1_000 {
            pace.came(COMPARED_BYTES_MAX + 1, Duration::from_secs(1), now);
        }
        assert_eq!((pace.at_once, pace.since_step), (AT_ONCE_MIN, 1.0));
    }

    #[test]
    fn what_was_short_long_ago_is_forgotten() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.came(100, Duration::from_millis(1), now);
        for _ in 0..3 {
            now += WINDOW + Duration::from_secs(1);
            for _ in 0..500 {
                pace.came(100, Duration::from_millis(100), now);
            }
        }
        assert!(pace.at_once > AT_ONCE_MIN, "it is the store that is farther now");
    }
}
