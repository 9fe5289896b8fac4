//! The figures of one epoch. Pure.

use std::time::Duration;

use super::meter::Counters;
use super::pass::{TICK, Tally};
use super::plan::Means;

const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// One epoch that was measured.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) means: Means,
    pub(super) readers: usize,
    /// From 1, within its series.
    pub(super) epoch: u16,
    pub(super) figures: Measurement,
}

/// What it came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measurement {
    /// From the first reader's first open to the last byte of all.
    pub(super) elapsed: Duration,
    /// Files read, or random reads.
    pub(super) items: u64,
    pub(super) bytes: u64,
    /// From the open to the last byte of an item.
    pub(super) latency: Latency,
    /// Until as many items were read as a batch has.
    pub(super) first_batch: Duration,
    /// Bytes in each [`TICK`].
    pub(super) ticks: Vec<u64>,
    /// What was counted meanwhile.
    pub(super) cost: Counters,
}

/// Percentiles: of 100 items, 99 took no longer than `p99`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latency {
    pub(super) p50: Duration,
    pub(super) p95: Duration,
    pub(super) p99: Duration,
    pub(super) max: Duration,
}

impl Measurement {
    pub(super) fn new(tally: Tally, first_batch: Duration, cost: Counters) -> Self {
        let mut latencies = tally.latencies_us;
        latencies.sort_unstable();
        Measurement {
            elapsed: tally.elapsed,
            items: latencies.len() as u64,
            bytes: tally.bytes,
            latency: Latency::of(&latencies),
            first_batch,
            ticks: tally.ticks,
            cost,
        }
    }

    pub(super) fn mib_per_s(&self) -> f64 {
        self.bytes as f64 / MIB / seconds(self.elapsed)
    }

    pub(super) fn items_per_s(&self) -> f64 {
        self.items as f64 / seconds(self.elapsed)
    }

    /// CPU seconds of all that is counted, for each GiB read; `None` if nothing was.
    pub(super) fn cpu_s_per_gib(&self) -> Option<f64> {
        (self.bytes > 0).then(|| self.cost.cpu().as_secs_f64() / (self.bytes as f64 / GIB))
    }

    /// MiB/s over time in at most `points` steps of equal length, and that length
    /// in seconds. The last step may be cut short by the end: its rate is of the
    /// time that there was.
    pub(super) fn timeline(&self, points: usize) -> (f64, Vec<f64>) {
        let merged = self.ticks.len().div_ceil(points.max(1)).max(1);
        let step = TICK.as_secs_f64() * merged as f64;
        let rates = self.ticks.chunks(merged).enumerate().map(|(at, ticks)| {
            let left = seconds(self.elapsed) - at as f64 * step;
            ticks.iter().sum::<u64>() as f64 / MIB / left.clamp(TICK.as_secs_f64() / 10.0, step)
        });
        (step, rates.collect())
    }
}

impl Latency {
    /// By nearest rank; `sorted` is in microseconds.
    fn of(sorted: &[u64]) -> Self {
        let rank = |percent: usize| {
            let at = (sorted.len() * percent).div_ceil(100).max(1);
            Duration::from_micros(sorted.get(at - 1).copied().unwrap_or(0))
        };
        Latency { p50: rank(50), p95: rank(95), p99: rank(99), max: rank(100) }
    }
}

/// Never zero, since rates are divided by it.
fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().max(1e-6)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `items` of 1 MiB each, a millisecond apart.
    pub(in crate::cli::bench) fn row(name: &str, items: u64, elapsed: Duration) -> Row {
        let ticks = (elapsed.as_millis() / TICK.as_millis()) as u64 + 1;
        let tally = Tally {
            latencies_us: (1..=items).map(|item| item * 1_000).collect(),
            bytes: items << 20,
            ticks: vec![(items << 20) / ticks; ticks as usize],
            elapsed,
        };
        let figures = Measurement::new(tally, elapsed / 10, Counters::default());
        Row { name: name.to_owned(), means: Means::Mount, readers: 8, epoch: 1, figures }
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let ms = Duration::from_millis;
        let of = |n: u64| row("x", n, ms(100)).figures.latency;
        assert_eq!(of(100), Latency { p50: ms(50), p95: ms(95), p99: ms(99), max: ms(100) });
        assert_eq!(of(1), Latency { p50: ms(1), p95: ms(1), p99: ms(1), max: ms(1) });
        assert_eq!(of(3), Latency { p50: ms(2), p95: ms(3), p99: ms(3), max: ms(3) });
        assert_eq!(of(0), Latency::default());
    }

    #[test]
    fn rates_are_of_the_time_that_passed() {
        let row = row("x", 200, Duration::from_secs(2)).figures;
        assert!((row.mib_per_s() - 100.0).abs() < 1e-9, "{}", row.mib_per_s());
        assert!((row.items_per_s() - 100.0).abs() < 1e-9);
        assert_eq!(row.cpu_s_per_gib(), Some(0.0));
        let nothing = Measurement { bytes: 0, elapsed: Duration::ZERO, ..row };
        assert_eq!((nothing.mib_per_s(), nothing.cpu_s_per_gib()), (0.0, None));
    }

    #[test]
    fn a_timeline_has_few_points_and_all_bytes() {
        let mut figures = row("x", 1, Duration::from_millis(1_050)).figures;
        figures.ticks = vec![1 << 20; 11];
        let (step, rates) = figures.timeline(100);
        assert!((step - 0.1).abs() < 1e-9 && rates.len() == 11);
        assert!((rates[0] - 10.0).abs() < 1e-9 && (rates[10] - 20.0).abs() < 1e-6, "{rates:?}");
        let (step, rates) = figures.timeline(4);
        assert!((step - 0.3).abs() < 1e-9 && rates.len() == 4);
        assert!((rates[0] - 10.0).abs() < 1e-9);
        figures.ticks.clear();
        assert_eq!(figures.timeline(4).1, Vec::<f64>::new());
    }
}
