//! Bodies that leave at the pace of a connection.
//!
//! A frame of `n` bytes leaves `n / rate` seconds after the frame before it:
//! waiting comes before sending, so that a body takes as long as its bytes do,
//! with the last byte no earlier than on a line of that rate. Time without a
//! body earns nothing: two requests in a row get no burst.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use super::log::Entry;

/// Frames of unpaced bodies: large enough that a frame's cost vanishes, small
/// enough that the log of an aborted request is near the truth.
const FRAME_BYTES_MAX: usize = 256 << 10;
/// Frames of slow bodies: what a few segments of TCP carry.
const FRAME_BYTES_MIN: usize = 16 << 10;
/// A paced body has a frame each 5 ms or so: several ticks of the timer, which
/// counts in milliseconds.
const FRAMES_PER_S: u64 = 200;
/// A frame that was late (timer tick, busy core, slow reader) may be made up
/// for by this much, or late frames would lower the rate; more would be a burst.
const CATCH_UP_MAX: Duration = Duration::from_millis(20);
/// Time for what was sent to leave before the connection is broken off.
const BREAK_OFF_DELAY: Duration = Duration::from_millis(20);

/// When the bytes of one connection may leave.
#[derive(Debug)]
pub(super) struct Pacer {
    bytes_per_s: u64,
    /// When the bytes before have left.
    free_at: Option<Instant>,
}

pub(super) type SharedPacer = Arc<Mutex<Pacer>>;

pub(super) fn shared_pacer(bytes_per_s: u64) -> SharedPacer {
    Arc::new(Mutex::new(Pacer::new(bytes_per_s)))
}

impl Pacer {
    fn new(bytes_per_s: u64) -> Self {
        Pacer { bytes_per_s: bytes_per_s.max(1), free_at: None }
    }

    /// A body begins: the time since the one before is lost.
    fn begin(&mut self, now: Instant) {
        self.free_at = Some(self.free_at.map_or(now, |free_at| free_at.max(now)));
    }

    /// When the next `bytes` may leave.
    fn departure(&mut self, now: Instant, bytes: usize) -> Instant {
        let earliest = now.checked_sub(CATCH_UP_MAX).unwrap_or(now);
        let start = self.free_at.map_or(now, |free_at| free_at.max(earliest));
        let departure = start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        self.free_at = Some(departure);
        departure
    }

    fn frame_bytes(&self) -> usize {
        let wanted = usize::try_from(self.bytes_per_s / FRAMES_PER_S).unwrap_or(FRAME_BYTES_MAX);
        wanted.clamp(FRAME_BYTES_MIN, FRAME_BYTES_MAX)
    }
}

/// How a body ends.
#[derive(Clone, Debug)]
pub(super) enum Ending {
    /// With all its bytes.
    Whole,
    /// Short of its announced length, with the connection.
    BreakOff {
        /// Set first, if the connection is to be reset rather than closed.
        reset: Option<Arc<AtomicBool>>,
    },
    /// Never.
    Stall,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct StoreBody {
    /// Bytes that will be sent.
    rest: Bytes,
    /// Bytes announced and not sent yet.
    announced: u64,
    ending: Ending,
    pacer: Option<SharedPacer>,
    begun: bool,
    /// What is being waited for: the departure of a frame, or the end.
    waiting: Option<(Wait, Pin<Box<Sleep>>)>,
    entry: Arc<Entry>,
}

#[derive(Debug)]
enum Wait {
    Departure(Bytes),
    BreakOff,
}

impl StoreBody {
    /// All of `bytes`.
    pub(super) fn whole(bytes: Bytes, pacer: Option<SharedPacer>, entry: Arc<Entry>) -> Self {
        let announced = bytes.len() as u64;
        StoreBody {
            rest: bytes,
            announced,
            ending: Ending::Whole,
            pacer,
            begun: false,
            waiting: None,
            entry,
        }
    }

    /// Only the first `sent` bytes, though all are announced.
    pub(super) fn ending_after(mut self, sent: u64, ending: Ending) -> Self {
        self.rest.truncate(usize::try_from(sent).unwrap_or(usize::MAX));
        self.ending = ending;
        self
    }

    /// Cuts the next frame off and says when it may leave.
    fn next_frame(&mut self) -> (Bytes, Option<Instant>) {
        let Some(pacer) = &self.pacer else {
            return (self.rest.split_to(self.rest.len().min(FRAME_BYTES_MAX)), None);
        };
        let mut pacer = pacer.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if !std::mem::replace(&mut self.begun, true) {
            pacer.begin(now);
        }
        let frame = self.rest.split_to(self.rest.len().min(pacer.frame_bytes()));
        let departure = pacer.departure(now, frame.len());
        (frame, (departure > now).then_some(departure))
    }

    fn send(&mut self, frame: Bytes) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        self.announced -= frame.len() as u64;
        self.entry.sent(frame.len());
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

impl Body for StoreBody {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            if let Some((_, sleep)) = &mut self.waiting {
                ready!(sleep.as_mut().poll(cx));
            }
            match self.waiting.take() {
                Some((Wait::Departure(frame), _)) => return self.send(frame),
                Some((Wait::BreakOff, _)) => {
                    if let Ending::BreakOff { reset: Some(reset) } = &self.ending {
                        reset.store(true, Ordering::Release);
                    }
                    return Poll::Ready(Some(Err(BrokenOff)));
                }
                None => {}
            }
            if !self.rest.is_empty() {
                let (frame, departure) = self.next_frame();
                let Some(departure) = departure else { return self.send(frame) };
                let sleep = Box::pin(tokio::time::sleep_until(departure.into()));
                self.waiting = Some((Wait::Departure(frame), sleep));
                continue;
            }
            match &self.ending {
                Ending::Whole => return Poll::Ready(None),
                // The connection's reading side still sees the client leave.
                Ending::Stall => return Poll::Pending,
                Ending::BreakOff { .. } => {
                    let sleep = Box::pin(tokio::time::sleep(BREAK_OFF_DELAY));
                    self.waiting = Some((Wait::BreakOff, sleep));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.announced == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.announced)
    }
}

/// A body that was broken off on purpose.
#[derive(Debug)]
pub(super) struct BrokenOff;

impl fmt::Display for BrokenOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("broken off by a fault rule")
    }
}

impl std::error::Error for BrokenOff {}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 50_000_000;

    fn after(start: Instant, instant: Instant) -> f64 {
        instant.duration_since(start).as_secs_f64()
    }

    #[test]
    fn a_body_takes_as_long_as_its_bytes() {
        let start = Instant::now();
        let mut pacer = Pacer::new(RATE);
        pacer.begin(start);
        let (mut now, mut sent) = (start, 0);
        while sent < 10 << 20 {
            // The timer is up to a millisecond late, each time.
            let departure = pacer.departure(now, pacer.frame_bytes());
            now = now.max(departure) + Duration::from_micros(900);
            sent += pacer.frame_bytes();
        }
        let ideal = sent as f64 / RATE as f64;
        assert!((ideal..ideal + 0.001).contains(&after(start, now)), "{}", after(start, now));
    }

    #[test]
    fn idle_time_earns_nothing() {
        let start = Instant::now();
        let mut pacer = Pacer::new(RATE);
        pacer.begin(start);
        assert_eq!(after(start, pacer.departure(start, 50_000)), 0.001);
        let later = start + Duration::from_secs(10);
        pacer.begin(later);
        assert_eq!(after(later, pacer.departure(later, 5_000_000)), 0.1);
        // At once afterwards: behind the body before, not beside it.
        pacer.begin(later);
        assert_eq!(after(later, pacer.departure(later, 5_000_000)), 0.2);
    }

    #[test]
    fn a_slow_reader_gets_no_burst_either() {
        let start = Instant::now();
        let mut pacer = Pacer::new(RATE);
        pacer.begin(start);
        pacer.departure(start, 250_000);
        let later = start + Duration::from_secs(10);
        let early: usize =
            (0..100).take_while(|_| pacer.departure(later, 250_000) <= later).count();
        assert_eq!(early, 4, "frames in the 20 ms that may be made up for");
    }
}
