//! `--max-bandwidth`: when the next bytes may be asked for.
//!
//! A bucket of time: bytes that came move the moment at which the line is free
//! again. Whoever wants more waits for it before it asks its connection, by
//! class; TCP tells the store. The size of a piece is known only once it has come, so what
//! pieces have lately is charged first and set right after: otherwise as many
//! pieces as there are connections would come at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::admission::{PrioritySemaphore, Urgency};

/// What an idle line saves up: several ticks of the timer.
const BURST: Duration = Duration::from_millis(50);

/// Longest sleep before the bucket is looked at again: pieces smaller than
/// expected free the line sooner, and somebody more urgent may have come.
const LOOK: Duration = Duration::from_millis(20);

/// A piece, before any came: what a socket's buffer has in it.
const FIRST_PIECE: f64 = 64.0 * 1024.0;

/// Weight of the latest piece in what is expected of the next.
const WEIGHT: f64 = 0.1;

/// A bound on the bytes a second.
#[derive(Debug)]
pub(super) struct Bandwidth {
    bucket: Mutex<Bucket>,
    /// Who waits for the line: one at a time, by class.
    line: Arc<PrioritySemaphore>,
}

/// The right to receive one piece.
#[derive(Debug)]
pub(super) struct Turn {
    of: Arc<Bandwidth>,
    charged: f64,
}

#[derive(Debug)]
struct Bucket {
    bytes_per_s: f64,
    free_at: Instant,
    piece: f64,
}

impl Bandwidth {
    pub(super) fn new(bytes_per_s: u64, now: Instant) -> Arc<Self> {
        let bucket =
            Bucket { bytes_per_s: bytes_per_s.max(1) as f64, free_at: now, piece: FIRST_PIECE };
        Arc::new(Bandwidth { bucket: Mutex::new(bucket), line: PrioritySemaphore::new([1; 3]) })
    }

    /// Waits until the next piece may be asked for.
    pub(super) async fn turn(self: &Arc<Self>, urgency: &Urgency) -> Turn {
        let mut line = self.line.acquire_as(urgency, 1).await;
        loop {
            if self.line.has_more_urgent(urgency.class()) {
                drop(line);
                line = self.line.acquire_as(urgency, 1).await;
            }
            let now = Instant::now();
            let charged = self.lock().charge(now);
            match charged {
                Ok(charged) => return Turn { of: self.clone(), charged },
                Err(free_at) => tokio::time::sleep_until(free_at.min(now + LOOK)).await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Bucket> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// The piece came and has so many bytes.
    pub(super) fn received(mut self, bytes: u64) {
        let charged = std::mem::take(&mut self.charged);
        self.of.lock().set_right(charged, bytes as f64);
    }
}

impl Drop for Turn {
    /// Nothing came.
    fn drop(&mut self) {
        self.of.lock().give_back(self.charged);
    }
}

impl Bucket {
    /// Charges for a piece if the line is free, or says when it will be.
    fn charge(&mut self, now: Instant) -> Result<f64, Instant> {
        if self.free_at > now {
            return Err(self.free_at);
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.free_at = self.free_at.max(earliest) + self.time(self.piece);
        Ok(self.piece)
    }

    fn set_right(&mut self, charged: f64, bytes: f64) {
        self.piece += WEIGHT * (bytes - self.piece);
        if bytes >= charged {
            self.free_at += self.time(bytes - charged);
        } else {
            self.give_back(charged - bytes);
        }
    }

    fn give_back(&mut self, bytes: f64) {
        self.free_at = self.free_at.checked_sub(self.time(bytes)).unwrap_or(self.free_at);
    }

    fn time(&self, bytes: f64) -> Duration {
        Duration::from_secs_f64(bytes / self.bytes_per_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Class;

    /// Bytes that so many connections receive in ten seconds, each with pieces
    /// of up to `piece` bytes after a wait of the line's own.
    async fn received(bytes_per_s: u64, connections: u64, piece: u64) -> u64 {
        let bandwidth = Bandwidth::new(bytes_per_s, Instant::now());
        let end = Instant::now() + Duration::from_secs(10);
        let mut readers = tokio::task::JoinSet::new();
        for seed in 0..connections {
            let bandwidth = bandwidth.clone();
            readers.spawn(async move {
                let mut rng = fastrand::Rng::with_seed(seed);
                let mut sum = 0;
                let urgency = Urgency::from(Class::Demand);
                while Instant::now() < end {
                    let turn = bandwidth.turn(&urgency).await;
                    tokio::time::sleep(Duration::from_millis(rng.u64(..10))).await;
                    let bytes = rng.u64(1..=piece);
                    turn.received(bytes);
                    sum += bytes;
                }
                sum
            });
        }
        readers.join_all().await.into_iter().sum()
    }

    #[tokio::test(start_paused = true)]
    async fn the_cap_is_kept_and_used_with_any_number_of_connections() {
        for rate in [1 << 20, 20 << 20, 200 << 20_u64] {
            for (connections, piece) in [(1, 512 << 10), (8, 16 << 10), (96, 256 << 10)] {
                // What these connections could carry: a piece each 5 ms or so.
                if connections * piece / 2 * 200 < rate * 2 {
                    continue;
                }
                let sum = received(rate, connections, piece).await as f64;
                let part = sum / (rate as f64 * 10.0);
                println!("{rate} B/s, {connections} x {piece}: {part:.3}");
                // The last pieces of each may come after the end.
                let last = (connections * piece) as f64 / (rate as f64 * 10.0);
                assert!((0.95..=1.05 + last).contains(&part), "{rate} {connections}: {part}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_not_used_is_given_back() {
        let bandwidth = Bandwidth::new(1 << 10, Instant::now());
        let start = Instant::now();
        for _ in 0..100 {
            drop(bandwidth.turn(&Class::Demand.into()).await);
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
}
