//! Epochs beside those over a copy of the same files. Pure.

use super::measurement::Row;
use super::plan::Means;

/// An epoch, and the same over the copy right after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair<'a> {
    pub(super) read: &'a Row,
    copy: &'a Row,
}

impl Pair<'_> {
    /// How many times as fast as the copy.
    pub(super) fn ratio(&self) -> f64 {
        self.read.figures.mib_per_s() / self.copy.figures.mib_per_s()
    }
}

/// The pairs among `rows`, in order.
pub(super) fn pairs(rows: &[Row]) -> impl Iterator<Item = Pair<'_>> {
    let neighbours = rows.iter().zip(rows.iter().skip(1));
    neighbours.filter(|(_, copy)| copy.means == Means::Copy).map(|(read, copy)| Pair { read, copy })
}

/// The median ratio of the epochs past the first: that one may fill a cache. Of
/// first ones where there are no others; `None` without a pair.
pub(super) fn median_ratio(rows: &[Row]) -> Option<f64> {
    let has_later = pairs(rows).any(|pair| pair.read.epoch > 1);
    let counted = pairs(rows).filter(|pair| pair.read.epoch > 1 || !has_later);
    let mut ratios: Vec<f64> = counted.map(|pair| pair.ratio()).collect();
    ratios.sort_by(f64::total_cmp);
    let (lower, upper) = (ratios.get(ratios.len().saturating_sub(1) / 2)?, ratios.len() / 2);
    Some((lower + ratios[upper]) / 2.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::measurement::tests::row;
    use super::*;

    /// An epoch that took as many milliseconds, and its copy 100.
    fn pair(epoch: u16, ms: u64) -> [Row; 2] {
        let read = Row { epoch, ..row("read", 10, Duration::from_millis(ms)) };
        let copy = row("copy", 10, Duration::from_millis(100));
        [read, Row { epoch, means: Means::Copy, ..copy }]
    }

    fn is_about(ratio: Option<f64>, expected: f64) -> bool {
        ratio.is_some_and(|ratio| (ratio - expected).abs() < 1e-9)
    }

    #[test]
    fn a_ratio_is_of_neighbours() {
        let rows = [pair(1, 1_000), pair(2, 200)].concat();
        let found: Vec<(u16, f64)> = pairs(&rows).map(|p| (p.read.epoch, p.ratio())).collect();
        assert!(found.iter().map(|(epoch, _)| *epoch).eq([1, 2]), "{found:?}");
        assert!((found[0].1 - 0.1).abs() < 1e-9 && (found[1].1 - 0.5).abs() < 1e-9, "{found:?}");
        assert_eq!(pairs(&rows[..1]).count(), 0);
    }

    #[test]
    fn the_median_is_of_later_epochs_where_there_are_any() {
        let rows = |took: &[u64]| -> Vec<Row> {
            let numbered = (1..).zip(took);
            numbered.flat_map(|(epoch, ms)| pair(epoch, *ms)).collect()
        };
        assert!(is_about(median_ratio(&rows(&[1_000])), 0.1));
        assert!(is_about(median_ratio(&rows(&[1_000, 100, 400, 200])), 0.5));
        assert!(is_about(median_ratio(&rows(&[1_000, 200, 1_000])), 0.3));
        assert_eq!(median_ratio(&[]), None);
    }
}
