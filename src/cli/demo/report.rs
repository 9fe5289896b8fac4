//! The table and the chart, in plain text of at most 80 columns.

use std::fmt::Write as _;
use std::time::Duration;

use super::epoch::{BATCH_FILES, EpochResult};

const NAME_WIDTH: usize = 30;
const BAR_WIDTH: usize = 38;

/// One row: what was read, and how that went.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) result: EpochResult,
    /// GETs that the store answered meanwhile.
    pub(super) gets: u64,
    /// Whether a GET here means that the cache failed.
    pub(super) must_be_local: bool,
}

impl Row {
    fn mib_per_s(&self) -> f64 {
        self.result.bytes as f64 / f64::from(1 << 20) / seconds(self.result.elapsed)
    }

    fn files_per_s(&self) -> f64 {
        self.result.files as f64 / seconds(self.result.elapsed)
    }
}

/// Never zero, since rates are divided by it.
fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64().max(1e-9)
}

/// The head of the table.
pub(super) fn header() -> String {
    let batch = format!("first {BATCH_FILES}");
    format!(
        "{:<NAME_WIDTH$} {:>8} {:>8} {:>9} {:>9} {:>7}",
        "epoch", "seconds", "MiB/s", "files/s", batch, "GETs"
    )
}

/// A line of the table.
pub(super) fn line(row: &Row) -> String {
    format!(
        "{:<NAME_WIDTH$} {:>8.2} {:>8.0} {:>9.0} {:>7.3} s {:>7}",
        row.name,
        seconds(row.result.elapsed),
        row.mib_per_s(),
        row.files_per_s(),
        seconds(row.result.first_batch),
        row.gets
    )
}

pub(super) fn chart(rows: &[Row]) -> String {
    let most = rows.iter().map(Row::mib_per_s).fold(1e-9, f64::max);
    let mut text = String::from("MiB/s\n");
    for row in rows {
        // Between 0 and the width; a bar is never invisible.
        let length = (row.mib_per_s() / most * BAR_WIDTH as f64).round() as usize;
        let bar = "#".repeat(length.clamp(1, BAR_WIDTH));
        let _ = writeln!(text, "{:<NAME_WIDTH$} {bar} {:.0}", row.name, row.mib_per_s());
    }
    text
}

/// What went wrong, a line each: wrong files, and GETs where all was local.
pub(super) fn failures(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        let told = row.result.failures.iter();
        lines.extend(told.map(|failure| format!("{}: {failure}", row.name)));
        let untold = row.result.failed - row.result.failures.len();
        if untold > 0 {
            lines.push(format!("{}: and {untold} more files", row.name));
        }
        if row.must_be_local && row.gets > 0 {
            lines.push(format!("{}: {} GETs, though all was cached", row.name, row.gets));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, millis: u64, gets: u64) -> Row {
        let result = EpochResult {
            elapsed: Duration::from_millis(millis),
            first_batch: Duration::from_millis(millis / 10),
            files: 2_020,
            bytes: 415 << 20,
            ..EpochResult::default()
        };
        Row { name, result, gets, must_be_local: true }
    }

    #[test]
    fn text_fits_eighty_columns() {
        let rows = [
            row("remounted, page cache dropped", 900_000, 999_999),
            row("plain disk, page cache dropped", 1, 0),
            row("no time at all", 0, 0),
        ];
        let chart_text = chart(&rows[..2]);
        let table = [header(), line(&rows[0]), line(&rows[1])];
        for line in table.iter().map(String::as_str).chain(chart_text.lines()) {
            assert!(line.len() <= 80, "{}: {line}", line.len());
        }
        assert!(chart(&rows).contains("# 0\n"), "{}", chart(&rows));
    }

    #[test]
    fn wrong_files_and_gets_are_failures() {
        let mut rows = [row("copy", 1, 5), row("epoch 2", 1, 0), row("remounted", 1, 0)];
        rows[0].must_be_local = false;
        assert!(failures(&rows).is_empty());
        rows[1].gets = 3;
        rows[2].result.failed = 7;
        rows[2].result.failures = vec!["a: byte 0 is wrong".into()];
        let expected = [
            "epoch 2: 3 GETs, though all was cached",
            "remounted: a: byte 0 is wrong",
            "remounted: and 6 more files",
        ];
        assert_eq!(failures(&rows), expected);
    }
}
