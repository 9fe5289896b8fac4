//! When a failed request is made again: a pure policy, handed the dice.
//!
//! Exponential backoff with full jitter: the wait is anywhere between nothing
//! and the bound, because twenty readers that failed together must not come
//! back together. Which errors are worth a retry is [`super::RemoteError`]'s
//! knowledge; how long a request may take is [`super::client`]'s.

use std::time::Duration;

/// Attempts for one request, the first included. Five ride out a store's
/// restart of a front end (a second or two); more only delay the message.
const ATTEMPTS: u32 = 5;

/// Bound of the first wait. S3 advises clients to start near 100 ms.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Bound of any wait that we chose ourselves: with five attempts the waits sum
/// to 1.5 s at most, and this keeps other numbers of attempts sane.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Longest `Retry-After` obeyed in full. A reader hangs for that long, so a
/// store that asks for minutes is asked again after this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How often and how soon a request is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Attempts in all, the first included.
    pub attempts: u32,
    /// Bound of the wait after the first attempt; doubles with each further one.
    pub first_delay: Duration,
    /// Bound of every wait, `Retry-After` aside.
    pub max_delay: Duration,
    /// Bound of what a store's `Retry-After` can ask for.
    pub max_retry_after: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff {
            attempts: ATTEMPTS,
            first_delay: FIRST_DELAY,
            max_delay: MAX_DELAY,
            max_retry_after: MAX_RETRY_AFTER,
        }
    }
}

impl Backoff {
    /// How long to wait after the failure of attempt number `attempt` (the
    /// first is 1), or `None` if that was the last.
    ///
    /// `dice` is uniform in `0.0..1.0`. `retry_after` is the store's own wish:
    /// the wait is never shorter than it, up to [`Backoff::max_retry_after`],
    /// and jitter comes on top.
    pub fn delay(
        &self,
        attempt: u32,
        retry_after: Option<Duration>,
        dice: f64,
    ) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(30);
        let bound = self.first_delay.saturating_mul(1 << doublings).min(self.max_delay);
        let jitter = bound.mul_f64(dice.clamp(0.0, 1.0));
        let floor = retry_after.unwrap_or_default().min(self.max_retry_after);
        Some(floor + jitter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn waits_double_up_to_the_bound_and_attempts_end() {
        let backoff = Backoff { attempts: 9, ..Backoff::default() };
        let waits: Vec<_> = (1..=9).map(|n| backoff.delay(n, None, 1.0)).collect();
        let ms = [100, 200, 400, 800, 1600, 3200, 5000, 5000];
        let mut expected: Vec<_> = ms.iter().map(|&ms| Some(ms * MS)).collect();
        expected.push(None);
        assert_eq!(waits, expected);
    }

    #[test]
    fn the_dice_spread_the_wait_over_the_whole_bound() {
        let backoff = Backoff::default();
        assert_eq!(backoff.delay(3, None, 0.0), Some(Duration::ZERO));
        assert_eq!(backoff.delay(3, None, 0.5), Some(200 * MS));
    }

    #[test]
    fn the_stores_wish_is_a_floor_with_a_cap() {
        let backoff = Backoff::default();
        let wish = Some(Duration::from_secs(2));
        assert_eq!(backoff.delay(1, wish, 0.0), Some(2000 * MS));
        assert_eq!(backoff.delay(1, wish, 1.0), Some(2100 * MS));
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(backoff.delay(1, hour, 0.0), Some(MAX_RETRY_AFTER));
        assert_eq!(backoff.delay(ATTEMPTS, wish, 0.0), None);
    }

    #[test]
    fn no_number_of_attempts_overflows() {
        let backoff = Backoff { attempts: u32::MAX, ..Backoff::default() };
        assert_eq!(backoff.delay(u32::MAX - 1, None, 1.0), Some(MAX_DELAY));
        assert_eq!(backoff.delay(0, None, 7.0), Some(FIRST_DELAY));
    }
}
