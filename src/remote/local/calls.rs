//! Which calls into a folder hang, and whether another one may be made: a policy that is
//! handed the clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls that hang before others are refused: with so many readers each has its full
/// patience, and half of the threads are left to try with.
pub(super) const HANGING_MAX: usize = 32;

/// A call that takes longer hangs. It is how long the client waits for an answer.
pub(super) const HANGS_AFTER: Duration = Duration::from_secs(10);

/// The calls under way.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// When each began, in that order.
    begun: BTreeMap<u64, Instant>,
    next: u64,
}

/// Whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Free,
    /// To see whether anything answers again; it must not wait for others.
    Trial,
    Refused {
        hanging: usize,
    },
}

impl Calls {
    pub(super) fn begin(&mut self, now: Instant) -> u64 {
        self.next += 1;
        self.begun.insert(self.next, now);
        self.next
    }

    pub(super) fn end(&mut self, call: u64) {
        self.begun.remove(&call);
    }

    /// A trial is due after as long again as everything has hung, so that a day without
    /// an answer costs a dozen of threads.
    pub(super) fn entry(&self, now: Instant) -> Entry {
        let age = |begun: &Instant| now.duration_since(*begun);
        let hanging = self.begun.values().filter(|begun| age(begun) >= HANGS_AFTER).count();
        if hanging < HANGING_MAX {
            return Entry::Free;
        }
        let mut ages = self.begun.values().map(age);
        let oldest = ages.next().unwrap_or_default();
        let youngest = ages.next_back().unwrap_or(oldest);
        match youngest >= oldest / 2 {
            true => Entry::Trial,
            false => Entry::Refused { hanging },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn nothing_is_refused_before_many_hang() {
        let (mut calls, start) = (Calls::default(), Instant::now());
        for _ in 1..HANGING_MAX {
            calls.begin(start);
        }
        assert_eq!(calls.entry(start + 1000 * SECOND), Entry::Free);
        let last = calls.begin(start + 990 * SECOND);
        assert_eq!(calls.entry(start + 999 * SECOND), Entry::Free);
        assert_eq!(calls.entry(start + 1000 * SECOND), Entry::Refused { hanging: HANGING_MAX });
        calls.end(last);
        assert_eq!(calls.entry(start + 1000 * SECOND), Entry::Free);
    }

    #[test]
    fn a_day_of_silence_costs_a_dozen_trials() {
        let (mut calls, start) = (Calls::default(), Instant::now());
        for _ in 0..HANGING_MAX {
            calls.begin(start);
        }
        let mut trials = Vec::new();
        for second in 10..24 * 60 * 60 {
            let now = start + second * SECOND;
            if calls.entry(now) == Entry::Trial {
                calls.begin(now);
                trials.push(second);
            }
        }
        assert_eq!(trials[..4], [10, 20, 40, 80]);
        assert_eq!(trials.len(), 14);
        // All answer, and nothing is left of it.
        calls.begun.clear();
        assert_eq!(calls.entry(start), Entry::Free);
    }
}
