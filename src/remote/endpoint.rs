//! What all mounts of one remote share: requests in flight, the pace at which
//! the store is asked, what it takes to answer, and the hedges.
//!
//! The policies are pure ([`super::pace`], [`super::latency`], [`super::hedge`]);
//! here they meet the clock.
//!
//! Requests in flight stay at [`REQUESTS_MAX`] as long as the store accepts them:
//! more were not faster on any line that was measured, and fewer never were. Once
//! it throttles there are only as many as its rate needs, so that those who wait
//! are served by class and not in the order in which they came.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::hedge::Budget;
use super::latency::Latency;
use super::pace::Pace;
use super::{ErrorKind, RemoteError, RemoteId};
use crate::admission::PrioritySemaphore;

/// GETs in flight at once. HTTP/1.1 over many connections fills a line that few
/// cannot; more than this costs memory and gains nothing on two cores.
const REQUESTS_MAX: u64 = 96;

/// Fewest in flight to a store that throttles: a probe and some that are late.
const REQUESTS_MIN: u64 = 8;

/// Of the requests in flight, what readahead and prefetch may make up.
const AHEAD_PART: f64 = 5.0 / 6.0;
const PREFETCH_PART: f64 = 2.0 / 3.0;

/// Taken for the time of an answer until that is known.
const USUAL: Duration = Duration::from_millis(100);

/// A remote, as all its clients see it.
#[derive(Debug)]
pub struct Endpoint {
    requests: Arc<PrioritySemaphore>,
    state: Mutex<State>,
    /// Who waits for the pace; first come, first served.
    line: tokio::sync::Mutex<()>,
    is_hedging: bool,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    latency: Latency,
    hedges: Budget,
    requests_max: u64,
}

/// The endpoints in use.
#[derive(Debug, Default)]
pub struct Endpoints(Mutex<HashMap<RemoteId, Weak<Endpoint>>>);

impl Endpoints {
    /// The endpoint of a remote, shared by all who ask for it.
    pub fn of(&self, id: &RemoteId) -> Arc<Endpoint> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = known.get(id).and_then(Weak::upgrade) {
            return endpoint;
        }
        known.retain(|_, endpoint| endpoint.strong_count() > 0);
        let endpoint = Endpoint::new(true);
        known.insert(id.clone(), Arc::downgrade(&endpoint));
        endpoint
    }
}

impl Endpoint {
    pub(super) fn new(is_hedging: bool) -> Arc<Self> {
        let state = State {
            pace: Pace::new(Instant::now().into_std()),
            latency: Latency::default(),
            hedges: Budget::default(),
            requests_max: REQUESTS_MAX,
        };
        Arc::new(Endpoint {
            requests: PrioritySemaphore::new(by_class(REQUESTS_MAX)),
            state: Mutex::new(state),
            line: tokio::sync::Mutex::new(()),
            is_hedging,
        })
    }

    /// GETs in flight.
    pub(super) fn requests(&self) -> &Arc<PrioritySemaphore> {
        &self.requests
    }

    /// Waits until a request may be sent, which is the moment returned.
    pub(super) async fn leave(&self) -> Instant {
        let _line = self.line.lock().await;
        loop {
            let now = Instant::now();
            let turn = {
                let mut state = self.lock();
                let turn = state.pace.try_send(now.into_std());
                self.fit_requests(&mut state);
                turn
            };
            match turn {
                Ok(()) => return now,
                Err(until) => tokio::time::sleep_until(Instant::from_std(until)).await,
            }
        }
    }

    /// What came of a request that was sent at `sent`.
    pub(super) fn answered(&self, sent: Instant, error: Option<&RemoteError>) {
        let (sent, now) = (sent.into_std(), Instant::now().into_std());
        let mut state = self.lock();
        match error.map(|error| &error.kind) {
            Some(ErrorKind::Throttled { retry_after }) => {
                if !state.pace.is_throttled(now) {
                    tracing::info!("the store asks for fewer requests");
                }
                state.pace.refused(sent, now, *retry_after);
                self.fit_requests(&mut state);
            }
            // No answer of the store, or none about how much it is asked.
            Some(ErrorKind::Transient | ErrorKind::Unreachable) => {}
            _ => state.pace.accepted(sent, now),
        }
    }

    /// A GET's answer began, or was given up, after this time.
    pub(super) fn first_byte(&self, took: Duration) {
        self.lock().latency.first_byte(took);
    }

    /// The longest wait within a body.
    pub(super) fn gap(&self, took: Duration) {
        self.lock().latency.gap(took);
    }

    pub(super) fn answer_limit(&self, longest: Duration) -> Duration {
        self.lock().latency.answer_limit(longest)
    }

    pub(super) fn stall_limit(&self, longest: Duration) -> Duration {
        self.lock().latency.stall_limit(longest)
    }

    /// When a GET is late enough to be sent once more.
    pub(super) fn hedge_after(&self, has_begun: bool) -> Option<Duration> {
        if !self.is_hedging {
            return None;
        }
        let state = self.lock();
        match has_begun {
            true => state.latency.hedge_body_after(),
            false => state.latency.hedge_answer_after(),
        }
    }

    /// A GET is sent, not as a hedge.
    pub(super) fn count_get(&self) {
        self.lock().hedges.get();
    }

    /// Takes leave to send a GET once more.
    pub(super) fn take_hedge(&self) -> bool {
        let mut state = self.lock();
        !state.pace.is_throttled(Instant::now().into_std()) && state.hedges.take()
    }

    /// A hedge was not needed.
    pub(super) fn hedge_in_vain(&self) {
        self.lock().hedges.in_vain();
    }

    /// As many requests in flight as the pace needs.
    fn fit_requests(&self, state: &mut State) {
        let usual = state.latency.usual().unwrap_or(USUAL);
        let wanted = requests_for(state.pace.rate(), usual);
        if wanted != state.requests_max {
            state.requests_max = wanted;
            self.requests.set_limits(by_class(wanted));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Twice what is in flight at this rate (Little's law).
fn requests_for(per_s: Option<f64>, usual: Duration) -> u64 {
    match per_s {
        Some(per_s) => {
            let needed = (2.0 * per_s * usual.as_secs_f64()).ceil();
            (needed as u64).clamp(REQUESTS_MIN, REQUESTS_MAX)
        }
        None => REQUESTS_MAX,
    }
}

/// Limits of demand, readahead and prefetch when `max` may be in flight.
pub(super) fn by_class(max: u64) -> [u64; 3] {
    let part = |part: f64| ((max as f64 * part) as u64).max(1);
    [max, part(AHEAD_PART), part(PREFETCH_PART)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Class;

    #[test]
    fn mounts_of_one_remote_share_its_endpoint() {
        let endpoints = Endpoints::default();
        let id = |name: &str| RemoteId(name.to_owned());
        let first = endpoints.of(&id("a"));
        assert!(Arc::ptr_eq(&first, &endpoints.of(&id("a"))));
        assert!(!Arc::ptr_eq(&first, &endpoints.of(&id("b"))));
        drop(first);
        endpoints.of(&id("c"));
        assert_eq!(endpoints.0.lock().unwrap().len(), 1, "what nobody uses is forgotten");
    }

    #[test]
    fn requests_in_flight_follow_the_rate() {
        assert_eq!(by_class(REQUESTS_MAX), [96, 80, 64]);
        assert_eq!(by_class(1), [1, 1, 1]);
        let ms = Duration::from_millis;
        assert_eq!(requests_for(None, ms(30)), REQUESTS_MAX);
        assert_eq!(requests_for(Some(50.0), ms(30)), REQUESTS_MIN);
        assert_eq!(requests_for(Some(500.0), ms(40)), 40);
        assert_eq!(requests_for(Some(1e9), ms(40)), REQUESTS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_lowers_the_requests_in_flight_and_is_forgotten() {
        let endpoint = Endpoint::new(true);
        let sent = endpoint.leave().await;
        let slow_down = RemoteError::new(ErrorKind::Throttled { retry_after: None }, "503");
        for _ in 0..10 {
            endpoint.answered(sent, Some(&slow_down));
        }
        for _ in 0..1_000 {
            endpoint.count_get();
        }
        assert!(!endpoint.take_hedge(), "a hedge is one more request");
        let held: Vec<_> =
            std::iter::from_fn(|| endpoint.requests().try_acquire(Class::Demand, 1)).collect();
        assert_eq!(held.len() as u64, REQUESTS_MIN);
        drop(held);
        tokio::time::advance(Duration::from_secs(61)).await;
        endpoint.leave().await;
        assert!(endpoint.requests().try_acquire(Class::Demand, REQUESTS_MAX).is_some());
        assert!(endpoint.take_hedge());
    }
}
