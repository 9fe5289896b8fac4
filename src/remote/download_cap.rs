//! `--max-download`: how many bytes a mount may cost.
//!
//! Past the cap nothing is fetched that nobody waits for; with
//! `--max-download-strict` readers are refused too, and what is cached stays
//! readable. Bytes in flight count as received: what is fetched ahead stops
//! before the cap, not some hundred MiB after it. A range that was begun is read
//! to its end.

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
pub(super) struct InFlight {
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

    /// Whether the cap, or what is in flight to it, leaves nothing.
    pub(super) fn is_used_up(&self) -> bool {
        let sum = self.received.load(Ordering::Relaxed) + self.in_flight.load(Ordering::Relaxed);
        self.cap.is_some_and(|cap| sum >= cap)
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
        if self.is_strict && self.is_used_up() {
            let message = format!(
                "GET {}: not asked for: the mount's --max-download of {} bytes is used up, and \
                 --max-download-strict refuses what is not cached",
                key.0,
                self.cap.unwrap_or_default(),
            );
            return Err(RemoteError::new(ErrorKind::Capped, message));
        }
        self.in_flight.fetch_add(bytes, Ordering::Relaxed);
        Ok(InFlight { of: self.clone(), bytes })
    }

    fn receive(&self, bytes: u64) {
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
        self.of.in_flight.fetch_sub(expected, Ordering::Relaxed);
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
        assert!(!cap.is_used_up());
        let second = cap.begin(&key(), 40).unwrap();
        assert!(cap.is_used_up());
        first.received(60);
        drop(second);
        assert!(!cap.is_used_up());
        assert_eq!(cap.state(), Download { bytes: 60, cap: Some(100), is_reached: false });
        let mut third = cap.begin(&key(), 40).unwrap();
        third.received(41);
        drop((first, third));
        assert_eq!(cap.state(), Download { bytes: 101, cap: Some(100), is_reached: true });
        assert_eq!(cap.in_flight.load(Ordering::Relaxed), 0);
        cap.begin(&key(), 10).unwrap();
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
        assert!(!cap.is_used_up());
        assert_eq!(cap.state().bytes, 7);
    }
}
