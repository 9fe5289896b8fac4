//! How far a command is: a bar on a terminal, now and then a line elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::output::terminal_size;
use crate::control::wire::ProgressReport;
use crate::units::format_bytes;

/// Between two lines where there is no terminal: a log is read later.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Characters of the bar itself.
const BAR_CELLS: u64 = 20;

/// Shows progress on stderr.
pub(super) struct Display {
    verb: &'static str,
    how: How,
    /// Columns that were written to last.
    drawn: usize,
    latest: ProgressReport,
    since: Instant,
}

enum How {
    Nothing,
    Bar,
    Lines,
}

impl Display {
    /// Shows nothing if the command prints JSON: it is a program that reads.
    pub(super) fn new(verb: &'static str, json: bool) -> Display {
        let how = match (json, std::io::stderr().is_terminal()) {
            (true, _) => How::Nothing,
            (false, true) => How::Bar,
            (false, false) => How::Lines,
        };
        Display { verb, how, drawn: 0, latest: ProgressReport::default(), since: Instant::now() }
    }

    /// Shows a bar on a terminal, and nothing elsewhere.
    pub(super) fn on_terminal(verb: &'static str, json: bool) -> Display {
        Display::new(verb, json || !std::io::stderr().is_terminal())
    }

    /// Shows a report, or leaves it at the last one.
    pub(super) fn show(&mut self, report: ProgressReport) {
        self.latest = report;
        match self.how {
            How::Nothing => {}
            How::Bar => {
                let text = format!("{:<7} [{}] {}", self.verb, bar(&report), figures(&report));
                self.draw(&text);
            }
            How::Lines if self.since.elapsed() < LINE_INTERVAL => {}
            How::Lines => {
                self.since = Instant::now();
                let text = figures(&report);
                let _ = writeln!(std::io::stderr(), "warmfs: {}: {text}", self.verb);
            }
        }
    }

    /// What was reported last.
    pub(super) fn latest(&self) -> &ProgressReport {
        &self.latest
    }

    /// Takes the bar away: what is printed next stands in its place.
    pub(super) fn clear(&mut self) {
        if self.drawn > 0 {
            self.draw("");
        }
    }

    /// Writes over the current line, cut to the terminal's width: a line that
    /// wraps cannot be written over.
    fn draw(&mut self, text: &str) {
        let text: String = text.chars().take(columns().saturating_sub(1)).collect();
        let width = text.chars().count();
        let rest = " ".repeat(self.drawn.saturating_sub(width));
        let home = if text.is_empty() { "\r" } else { "" };
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "\r{text}{rest}{home}").and_then(|()| stderr.flush());
        self.drawn = width;
    }
}

/// `3 of 12 objects, 1.20 of 3.40 GiB`, and less where totals are not known.
pub(super) fn figures(report: &ProgressReport) -> String {
    // Totals are found out while it runs, so they may lag.
    let objects = report.objects_total.max(report.objects_done);
    let bytes = report.bytes_total.max(report.bytes_done);
    let mut text = format!("{} of {}", report.objects_done, count(objects, "object"));
    if bytes > 0 {
        let done = format_bytes(report.bytes_done);
        text.push_str(&format!(", {done} of {}", format_bytes(bytes)));
    }
    text
}

fn bar(report: &ProgressReport) -> String {
    let (done, total) = match report.bytes_total {
        0 => (report.objects_done, report.objects_total),
        total => (report.bytes_done, total),
    };
    let full = u128::from(done.min(total)) * u128::from(BAR_CELLS);
    let full = full.checked_div(u128::from(total)).unwrap_or(0) as usize;
    format!("{}{}", "#".repeat(full), "-".repeat(BAR_CELLS as usize - full))
}

/// The width of the terminal behind stderr; 80 if it does not tell.
fn columns() -> usize {
    terminal_size(libc::STDERR_FILENO).map_or(80, |(columns, _)| columns)
}

/// `1 object`, `2 objects`.
pub(super) fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(done: u64, total: u64, bytes_done: u64, bytes_total: u64) -> ProgressReport {
        ProgressReport { objects_done: done, objects_total: total, bytes_done, bytes_total }
    }

    #[test]
    fn figures_and_bar_hold_for_any_numbers() {
        let text = figures(&report(3, 12, 1 << 30, 4 << 30));
        assert_eq!(text, "3 of 12 objects, 1.00 GiB of 4.00 GiB");
        assert_eq!(figures(&report(0, 0, 0, 0)), "0 of 0 objects");
        assert_eq!(figures(&report(2, 1, 0, 0)), "2 of 2 objects");
        assert_eq!(bar(&report(0, 0, 0, 0)), "-".repeat(20));
        assert_eq!(bar(&report(1, 2, 0, 0)), format!("{}{}", "#".repeat(10), "-".repeat(10)));
        assert_eq!(bar(&report(1, 2, u64::MAX, u64::MAX)), "#".repeat(20));
        assert_eq!(bar(&report(1, 2, 9, 3)), "#".repeat(20));
    }
}
