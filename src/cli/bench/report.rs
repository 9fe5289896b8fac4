//! What was measured, for people: one line an epoch, at most 80 columns.

use std::fmt::Write as _;
use std::time::Duration;

use super::comparison::median_ratio;
use super::measurement::{Measurement, Row};
use super::plan::{Means, PageCache, Plan, Preset, Subject};
use crate::cli::status::{COLUMNS, wrap};
use crate::units::format_bytes;

/// What `--preset published` is compared with, in MiB/s, cold and warm.
pub(super) const PUBLISHED_MIB_PER_S: (f64, f64) = (70.0, 250.0);
/// Where those are from.
pub(super) const PUBLISHED_SOURCE: &str =
    "published by the field: an object cache server with its SDK on a VM with 2 vCPU";

/// What was found out about the subject before the clock started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// What is read, as the user would name it.
    pub(super) what: String,
    /// `fuse.warmfs`, `ext4`; empty for a URI.
    pub(super) fs_type: String,
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// What a reader of the figures should know.
    pub(super) notes: Vec<String>,
}

/// What stands above the table.
pub(super) fn heading(plan: &Plan, found: &Found) -> String {
    let mut text = found.what.clone();
    if !found.fs_type.is_empty() {
        let _ = write!(text, " ({})", found.fs_type);
    }
    let files = if found.files == 1 { "file" } else { "files" };
    let reading = &plan.reading;
    let order = match (reading.random, reading.shuffled) {
        (Some(bytes), _) => format!("random reads of {}", format_bytes(bytes)),
        (None, true) => format!("shuffled (seed {})", reading.seed),
        (None, false) => "in order of name".to_owned(),
    };
    let order = if reading.mapped { format!("{order}, mapped") } else { order };
    let cache = match reading.page_cache {
        PageCache::Keep => "kept",
        PageCache::Drop => "dropped before each epoch past the first",
    };
    let readers: Vec<String> = {
        let mut readers: Vec<usize> = plan.series.iter().map(|series| series.readers).collect();
        readers.dedup();
        readers.iter().map(usize::to_string).collect()
    };
    let _ = write!(
        text,
        "\n{} {files}, {}; {order}\nreaders: {}; page cache: {cache}",
        found.files,
        format_bytes(found.bytes),
        readers.join(", "),
    );
    for note in &found.notes {
        let _ = write!(text, "\n{}", wrap(note, COLUMNS).join("\n"));
    }
    text.push('\n');
    text
}

/// The head of the table.
pub(super) fn header(plan: &Plan) -> String {
    let items = if plan.reading.random.is_some() { "reads/s" } else { "files/s" };
    columns(&[
        "", "MiB/s", items, "p50 ms", "p95 ms", "p99 ms", "batch s", "GETs", "fetched", "CPU s",
    ])
}

/// A line of the table.
pub(super) fn line(row: &Row) -> String {
    let Measurement { latency, first_batch, cost, .. } = &row.figures;
    let ms = |time: Duration| number(time.as_secs_f64() * 1_000.0);
    let remote = cost.remote;
    columns(&[
        &row.name,
        &number(row.figures.mib_per_s()),
        &number(row.figures.items_per_s()),
        &ms(latency.p50),
        &ms(latency.p95),
        &ms(latency.p99),
        &number(first_batch.as_secs_f64()),
        &remote.map_or("-".to_owned(), |remote| remote.get.requests.to_string()),
        &remote.map_or("-".to_owned(), |remote| format_bytes(remote.get.bytes)),
        &row.figures.cpu_s_per_gib().map_or("-".to_owned(), number),
    ])
}

/// What stands below a row and its copy, in the column of MiB/s.
pub(super) fn ratio_line(ratio: f64) -> String {
    let mut fields = [""; 10];
    let shown = number(ratio);
    (fields[0], fields[1]) = ("- ratio", shown.as_str());
    columns(&fields).trim_end().to_owned()
}

/// What stands below the table.
pub(super) fn footing(plan: &Plan, rows: &[Row]) -> String {
    let item = if plan.reading.random.is_some() { "read" } else { "file" };
    let remote = match remote_of(rows) {
        "nobody" => "GETs, fetched: not known, since this is no mount of ours".to_owned(),
        who => format!("GETs, fetched: requests and bytes from the remote, as {who} counted"),
    };
    let mut paragraphs = vec![
        format!(
            "p50, p95, p99: from the open of a {item} to its last byte; batch: until {} were read",
            plan.reading.batch
        ),
        remote,
        format!("CPU s: CPU seconds for each GiB read, of {}", cpu_of(plan, rows)),
    ];
    if plan.preset == Some(Preset::Published) {
        let (cold, warm) = PUBLISHED_MIB_PER_S;
        paragraphs.push(format!(
            "For comparison: {cold:.0} MiB/s cold and {warm:.0} MiB/s warm with 20 readers of \
             10 MiB objects, {PUBLISHED_SOURCE}"
        ));
    }
    if let (Some(dir), Some(ratio)) = (&plan.compare_with, median_ratio(rows)) {
        paragraphs.push(format!(
            "ratio: MiB/s by those of the copy in {}; the median is {}, without first epochs if \
             there are later ones",
            dir.display(),
            number(ratio)
        ));
    }
    let mut text = String::new();
    for paragraph in paragraphs {
        let _ = write!(text, "\n{}", wrap(&paragraph, COLUMNS - 2).join("\n  "));
    }
    text
}

/// Whose CPU time is counted.
pub(super) fn cpu_of(plan: &Plan, rows: &[Row]) -> &'static str {
    let daemon = rows.iter().any(|row| row.figures.cost.daemon_cpu.is_some());
    match (daemon, &plan.subject) {
        (true, Subject::Generated) => "this process, the store in it, and the daemon",
        (true, _) => "this process and the daemon",
        (false, Subject::Generated) => "this process and the store in it",
        (false, _) => "this process alone",
    }
}

/// Who counted what was asked of the remote.
pub(super) fn remote_of(rows: &[Row]) -> &'static str {
    let mut counted = rows.iter().filter(|row| row.figures.cost.remote.is_some());
    let direct = counted.clone().any(|row| row.means == Means::Direct);
    match (direct, counted.any(|row| row.means != Means::Direct)) {
        (true, true) => "this process (direct) and the daemon",
        (true, false) => "this process",
        (false, true) => "the daemon, for all its mounts",
        (false, false) => "nobody",
    }
}

/// The name to the left, the others in columns of their own.
fn columns(fields: &[&str; 10]) -> String {
    const WIDTHS: [usize; 9] = [7, 8, 8, 8, 8, 8, 7, 9, 6];
    let mut text = format!("{:<11}", fields[0]);
    for (field, width) in fields[1..].iter().zip(WIDTHS) {
        let _ = write!(text, "{field:>width$}");
    }
    text
}

/// Three significant digits, or all that are before the point.
fn number(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.9995 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::measurement::tests::row;
    use super::*;
    use crate::cli::bench::tests::plan;
    use crate::control::wire::RemoteStatus;

    #[test]
    fn the_text_fits_eighty_columns() {
        let plan = plan(&["--preset", "published"]);
        let found = Found { what: "s3://a/b".to_owned(), files: 1, bytes: 5, ..Found::default() };
        let mut rows = [
            row("128 r., 100", 1_000_000, Duration::from_secs(3_600)),
            row("cold", 1, Duration::ZERO),
        ];
        let mut remote = RemoteStatus::default();
        (remote.get.requests, remote.get.bytes) = (999_999, 999 << 30);
        rows[0].figures.cost.remote = Some(remote);
        rows[1].figures.cost.remote = Some(RemoteStatus::default());
        rows[1].means = Means::Direct;
        rows[0].figures.cost.daemon_cpu = Some(Duration::from_secs(10_000));
        let text = [
            heading(&plan, &found),
            header(&plan),
            line(&rows[0]),
            line(&rows[1]),
            footing(&plan, &rows),
        ];
        for line in text.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
        let one_line = text[4].replace("\n  ", " ");
        assert!(one_line.contains("70 MiB/s cold and 250 MiB/s warm"), "{one_line}");
        rows[1].figures.cost.remote = None;
        assert!(line(&rows[1]).contains(" - "), "{:?}", line(&rows[1]));
    }

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let shown = [0.0, 0.01234, 0.99951, 9.994, 9.996, 99.96, 1234.6].map(number);
        assert_eq!(shown, ["0.000", "0.012", "1.00", "9.99", "10.0", "100", "1235"]);
    }
}
