//! When a cluster is not asked at all for a while: a pure policy.

use std::time::Duration;

use tokio::time::Instant;

use super::Why;
use crate::remote::{ErrorKind, RemoteError};

/// After this many attempts in a row that reached nobody it is not tried for a while:
/// one node that went away is no cluster that did, and others answer in between.
const FAILURES: u32 = 3;

/// How long. Each read that tries in vain waits for up to three seconds.
const AVOIDED: Duration = Duration::from_secs(5);

/// How long it is left alone when it asks for fewer requests, if it does not say.
const THROTTLED: Duration = Duration::from_secs(1);

/// And at most, whatever it says.
const THROTTLED_MAX: Duration = Duration::from_secs(10);

/// How a cluster answered lately.
#[derive(Debug, Default)]
pub(super) struct Reachable {
    in_vain: u32,
    avoided: Option<(Instant, Why)>,
}

impl Reachable {
    /// What came of a request.
    pub(super) fn answered(&mut self, error: Option<&RemoteError>, now: Instant) {
        match error.map(|error| &error.kind) {
            Some(ErrorKind::Unreachable) => {
                self.in_vain += 1;
                if self.in_vain >= FAILURES {
                    self.avoided = Some((now + AVOIDED, Why::Unreachable));
                }
            }
            Some(ErrorKind::Throttled { retry_after }) => {
                let rest = retry_after.unwrap_or(THROTTLED).min(THROTTLED_MAX);
                self.avoided = Some((now + rest, Why::Throttled));
            }
            _ => self.in_vain = 0,
        }
    }

    /// Why to ask the origin at once, if that is so.
    pub(super) fn avoided(&self, now: Instant) -> Option<Why> {
        self.avoided.filter(|(until, _)| now < *until).map(|(_, why)| why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_gone_is_left_alone_and_tried_again() {
        let gone = RemoteError::new(ErrorKind::Unreachable, "no connection");
        let (mut cluster, now) = (Reachable::default(), Instant::now());
        for _ in 0..FAILURES - 1 {
            cluster.answered(Some(&gone), now);
        }
        assert_eq!(cluster.avoided(now), None);
        cluster.answered(None, now);
        cluster.answered(Some(&gone), now);
        assert_eq!(cluster.avoided(now), None, "others were reached");
        for _ in 1..FAILURES {
            cluster.answered(Some(&gone), now);
        }
        assert_eq!(cluster.avoided(now), Some(Why::Unreachable));
        assert_eq!(cluster.avoided(now + AVOIDED), None);
        // One more in vain is enough now.
        cluster.answered(Some(&gone), now + AVOIDED);
        assert_eq!(cluster.avoided(now + AVOIDED), Some(Why::Unreachable));
    }

    #[test]
    fn a_cluster_that_throttles_is_left_alone_as_it_asks() {
        for (retry_after, rest) in
            [(None, THROTTLED), (Some(3), Duration::from_secs(3)), (Some(600), THROTTLED_MAX)]
        {
            let retry_after = retry_after.map(Duration::from_secs);
            let error = RemoteError::new(ErrorKind::Throttled { retry_after }, "429");
            let (mut cluster, now) = (Reachable::default(), Instant::now());
            cluster.answered(Some(&error), now);
            assert_eq!(
                cluster.avoided(now + rest - Duration::from_millis(1)),
                Some(Why::Throttled)
            );
            assert_eq!(cluster.avoided(now + rest), None);
        }
    }
}
