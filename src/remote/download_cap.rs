//! `--max-download`: how many bytes a mount may cost.
//!
//! Past the cap nothing is fetched that nobody waits for; with
//! `--max-download-strict` readers are refused too, and what is cached stays
//! readable. Bytes in flight count as received, and what is fetched ahead sets
//! its own aside before it is asked for: it never passes the cap. A range that was
//! begun is read to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{ErrorKind, Key, RemoteError};
use crate::config::TrafficOptions;

/// The bytes of one mount, and their cap.
#[derive(Debug, Default)]
pub(super) struct DownloadCap {
    cap: Option<u64>,
    is_strict: bool,
    received: AtomicU64,
    in_flight: AtomicU64,
    was_told: AtomicBool,
}

/// Bytes that were received, and what the cap says to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Download {
    /// Body bytes received by this mount.
    pub bytes: u64,
    /// `--max-download`.
    pub cap: Option<u64>,
    /// Whether nothing is fetched ahead any more.
    pub is_reached: bool,
}

/// Bytes of one range that are still to come.
#[derive(Debug)]
pub struct InFlight {
    of: Arc<DownloadCap>,
    bytes: u64,
}

impl DownloadCap {
    pub(super) fn new(traffic: &TrafficOptions) -> Arc<Self> {
        Arc::new(DownloadCap {
            cap: traffic.max_download,
            is_strict: traffic.max_download_strict,
            ..DownloadCap::default()
        })
    }

    /// Whether the cap, and what is in flight to it, leave so many bytes.
    pub(super) fn leaves(&self, bytes: u64) -> bool {
        let sum = self.received.load(Ordering::Relaxed) + self.in_flight.load(Ordering::Relaxed);
        self.cap.is_none_or(|cap| sum.saturating_add(bytes) <= cap)
    }

    /// Sets bytes aside that nobody waits for, if the cap leaves so many.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Option<InFlight> {
        let Some(cap) = self.cap else { return Some(self.count(bytes)) };
        // Bytes count as received before they cease to be in flight: asked in this order
        // none are missed.
        let with_it = |in_flight: u64| {
            let received = self.received.load(Ordering::Acquire);
            let in_flight = in_flight.saturating_add(bytes);
            (received.saturating_add(in_flight) <= cap).then_some(in_flight)
        };
        let counted = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, with_it);
        counted.is_ok().then(|| InFlight { of: self.clone(), bytes })
    }

    /// Whether the cap is reached by what was received.
    pub(super) fn is_full(&self) -> bool {
        self.cap.is_some_and(|cap| self.received.load(Ordering::Relaxed) >= cap)
    }

    pub(super) fn state(&self) -> Download {
        let bytes = self.received.load(Ordering::Relaxed);
        Download { bytes, cap: self.cap, is_reached: self.is_full() }
    }

    /// Begins with a range of so many bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Capped`] past a strict cap.
    pub(super) fn begin(self: &Arc<Self>, key: &Key, bytes: u64) -> Result<InFlight, RemoteError> {
        if self.is_strict && !self.leaves(1) {
            let message = format!(
                "GET {}: not asked for: the mount's --max-download of {} bytes is used up, and \
                 --max-download-strict refuses what is not cached",
                key.0,
                self.cap.unwrap_or_default(),
            );
            return Err(RemoteError::new(ErrorKind::Capped, message));
        }
        Ok(self.count(bytes))
    }

    fn count(self: &Arc<Self>, bytes: u64) -> InFlight {
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        InFlight { of: self.clone(), bytes }
    }

    /// Counts bytes that came.
    pub(super) fn receive(&self, bytes: u64) {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_reached = self.cap.is_some_and(|cap| received >= cap);
        if is_reached && !self.was_told.swap(true, Ordering::Relaxed) {
            let then = match self.is_strict {
                true => "what is not cached is refused from now on (--max-download-strict)",
                false => "nothing is fetched ahead any more, readers still get what they ask for",
            };
            tracing::warn!(received, cap = self.cap, "--max-download is reached: {then}");
        }
    }
}

impl InFlight {
    /// So many bytes of the range came.
    pub(super) fn received(&mut self, bytes: u64) {
        let expected = bytes.min(self.bytes);
        self.of.receive(bytes);
        self.bytes -= expected;
        self.of.in_flight.fetch_sub(expected, Ordering::Release);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.of.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cap(max_download: Option<u64>, max_download_strict: bool) -> Arc<DownloadCap> {
        let traffic =
            TrafficOptions { max_download, max_download_strict, ..TrafficOptions::default() };
        DownloadCap::new(&traffic)
    }

    fn key() -> Key {
        Key("data/a\nb".into())
    }

    #[test]
    fn what_is_in_flight_counts_and_what_broke_off_does_not() {
        let cap = cap(Some(100), false);
        let mut first = cap.begin(&key(), 60).unwrap();
        assert!(cap.leaves(40) && !cap.leaves(41));
        let second = cap.begin(&key(), 40).unwrap();
        assert!(!cap.leaves(1));
        first.received(60);
        drop(second);
        assert!(cap.leaves(40));
        assert_eq!(cap.state(), Download { bytes: 60, cap: Some(100), is_reached: false });
        let mut third = cap.begin(&key(), 40).unwrap();
        third.received(41);
        drop((first, third));
        assert_eq!(cap.state(), Download { bytes: 101, cap: Some(100), is_reached: true });
        assert_eq!(cap.in_flight.load(Ordering::Relaxed), 0);
        cap.begin(&key(), 10).unwrap();
    }

    #[test]
    fn what_nobody_waits_for_stays_below_the_cap() {
        let cap = cap(Some(100), true);
        let first = cap.reserve(60).unwrap();
        assert!(cap.reserve(41).is_none() && cap.leaves(40), "what was refused is not held");
        let mut second = cap.reserve(40).unwrap();
        assert!(cap.reserve(1).is_none());
        second.received(40);
        drop((first, second));
        assert!(cap.leaves(60) && cap.reserve(61).is_none());
    }

    #[test]
    fn a_strict_cap_refuses_with_key_and_reason() {
        let cap = cap(Some(100), true);
        let held = cap.begin(&key(), 100).unwrap();
        let error = cap.begin(&key(), 1).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Capped);
        assert!(!error.is_retryable());
        assert!(error.message.contains("data/a b") && error.message.contains("--max-download"));
        drop(held);
        cap.begin(&key(), 1).unwrap();
    }

    #[test]
    fn without_a_cap_bytes_are_only_counted() {
        let cap = cap(None, false);
        cap.begin(&key(), u64::MAX / 2).unwrap().received(7);
        assert!(cap.leaves(u64::MAX) && cap.reserve(u64::MAX / 2).is_some());
        assert_eq!(cap.state().bytes, 7);
    }
}
