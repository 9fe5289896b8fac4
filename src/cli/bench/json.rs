//! What was measured, for programs: `--json`. Fields are added, never renamed,
//! and [`BENCH_SCHEMA`] is raised if one changes its meaning. The whole is
//! described in `docs/benchmarking.md`.

use std::time::Duration;

use serde::Serialize;

use super::comparison::{Pair, median_ratio, pairs};
use super::measurement::Row;
use super::plan::{Means, PageCache, Plan, Preset, Subject};
use super::report::{Found, PUBLISHED_MIB_PER_S, PUBLISHED_SOURCE, cpu_of, remote_of};
use crate::control::wire::RemoteStatus;

/// The version of [`Report`].
const BENCH_SCHEMA: u32 = 1;

/// Steps of a timeline: more than any plot has pixels for.
const TIMELINE_STEPS: usize = 600;

/// The whole object.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    schema: u32,
    version: &'static str,
    subject: SubjectReport<'a>,
    options: Options,
    dataset: DatasetReport,
    counted: Counted,
    epochs: Vec<EpochReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<ComparisonReport<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<Published>,
}

#[derive(Debug, Serialize)]
struct SubjectReport<'a> {
    kind: &'static str,
    what: &'a str,
    fs_type: Option<&'a str>,
    notes: &'a [String],
}

#[derive(Debug, Serialize)]
struct Options {
    order: &'static str,
    seed: u64,
    page_cache: &'static str,
    block_bytes: u64,
    random_bytes: Option<u64>,
    mmap: bool,
    batch_files: u64,
}

#[derive(Debug, Serialize)]
struct DatasetReport {
    files: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Counted {
    remote: &'static str,
    cpu: &'static str,
}

#[derive(Debug, Serialize)]
struct EpochReport<'a> {
    name: &'a str,
    means: &'static str,
    readers: usize,
    epoch: u16,
    elapsed_s: f64,
    files: u64,
    bytes: u64,
    mib_per_s: f64,
    files_per_s: f64,
    latency_ms: LatencyReport,
    first_batch_s: f64,
    remote: Option<RemoteStatus>,
    cpu: CpuReport,
    timeline: Timeline,
}

#[derive(Debug, Serialize)]
struct LatencyReport {
    p50: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct CpuReport {
    bench_s: f64,
    daemon_s: Option<f64>,
    s_per_gib: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Timeline {
    step_s: f64,
    mib_per_s: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct ComparisonReport<'a> {
    with: String,
    ratios: Vec<RatioReport<'a>>,
    median_ratio: Option<f64>,
}

#[derive(Debug, Serialize)]
struct RatioReport<'a> {
    name: &'a str,
    readers: usize,
    epoch: u16,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Published {
    cold_mib_per_s: f64,
    warm_mib_per_s: f64,
    source: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(plan: &Plan, found: &'a Found, rows: &'a [Row]) -> Self {
        let reading = &plan.reading;
        let (cold_mib_per_s, warm_mib_per_s) = PUBLISHED_MIB_PER_S;
        Report {
            schema: BENCH_SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            subject: SubjectReport {
                kind: match plan.subject {
                    Subject::Folder(_) => "folder",
                    Subject::Uri(_) => "uri",
                    Subject::Generated => "generated",
                },
                what: &found.what,
                fs_type: Some(found.fs_type.as_str()).filter(|name| !name.is_empty()),
                notes: &found.notes,
            },
            options: Options {
                order: match (reading.random, reading.shuffled) {
                    (Some(_), _) => "random",
                    (None, true) => "shuffled",
                    (None, false) => "sequential",
                },
                seed: reading.seed,
                page_cache: match reading.page_cache {
                    PageCache::Keep => "keep",
                    PageCache::Drop => "drop",
                },
                block_bytes: reading.block,
                random_bytes: reading.random,
                mmap: reading.mapped,
                batch_files: reading.batch,
            },
            dataset: DatasetReport { files: found.files, bytes: found.bytes },
            counted: Counted { remote: remote_of(rows), cpu: cpu_of(plan, rows) },
            epochs: rows.iter().map(epoch).collect(),
            comparison: plan.compare_with.as_ref().map(|dir| ComparisonReport {
                with: dir.display().to_string(),
                ratios: pairs(rows).map(ratio).collect(),
                median_ratio: median_ratio(rows),
            }),
            published: (plan.preset == Some(Preset::Published)).then_some(Published {
                cold_mib_per_s,
                warm_mib_per_s,
                source: PUBLISHED_SOURCE,
            }),
        }
    }
}

fn ratio<'a>(pair: Pair<'a>) -> RatioReport<'a> {
    let Row { name, readers, epoch, .. } = pair.read;
    RatioReport { name, readers: *readers, epoch: *epoch, ratio: pair.ratio() }
}

fn epoch(row: &Row) -> EpochReport<'_> {
    let figures = &row.figures;
    let ms = |time: Duration| time.as_secs_f64() * 1_000.0;
    let (step_s, mib_per_s) = figures.timeline(TIMELINE_STEPS);
    EpochReport {
        name: &row.name,
        means: match row.means {
            Means::Folder => "folder",
            Means::Mount => "mount",
            Means::Direct => "direct",
            Means::Copy => "copy",
        },
        readers: row.readers,
        epoch: row.epoch,
        elapsed_s: figures.elapsed.as_secs_f64(),
        files: figures.items,
        bytes: figures.bytes,
        mib_per_s: figures.mib_per_s(),
        files_per_s: figures.items_per_s(),
        latency_ms: LatencyReport {
            p50: ms(figures.latency.p50),
            p95: ms(figures.latency.p95),
            p99: ms(figures.latency.p99),
            max: ms(figures.latency.max),
        },
        first_batch_s: figures.first_batch.as_secs_f64(),
        remote: figures.cost.remote,
        cpu: CpuReport {
            bench_s: figures.cost.own_cpu.as_secs_f64(),
            daemon_s: figures.cost.daemon_cpu.map(|time| time.as_secs_f64()),
            s_per_gib: figures.cpu_s_per_gib(),
        },
        timeline: Timeline { step_s, mib_per_s },
    }
}
