//! Samples of the daemon while it runs, and the report at the end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::world::{World, lock};

const MIB: f64 = 1048576.0;

/// Samples in a short run; in a long one they are [`SAMPLE_MAX`] apart.
const SAMPLES_MIN: u32 = 120;
const SAMPLE_MAX: Duration = Duration::from_secs(10);

/// A daemon that lived shorter is still warming up: in its first minutes its
/// table of files that are kept open fills, and so do an allocator's arenas.
const LONG_LIFE: Duration = Duration::from_secs(300);

/// Growth from the first to the last quarter of a long life that is none: what
/// is in flight differs from moment to moment.
const RSS_GROWTH_MAX_MIB: f64 = 32.0;
const FDS_GROWTH_MAX: f64 = 128.0;

/// Of any daemon at any time: the target of docs/performance.md, and the 1,024
/// files that are kept open, those in use, and connections.
const RSS_MAX_MIB: f64 = 300.0;
const FDS_MAX: f64 = 1536.0;

/// Walks of the cache, which is not still meanwhile, before `du` is too much.
const DU_TRIES: usize = 5;

/// Lines of the daemon's log that are shown.
const LOG_LINES: usize = 20;

/// A daemon, and its counters when they were seen last.
pub(crate) struct Life {
    pub(crate) pid: u32,
    began: Duration,
    evictions: u64,
    repairs: u64,
    gets: u64,
    hwm_mib: f64,
}

impl Life {
    pub(crate) fn new(pid: u32, began: Duration) -> Life {
        Life { pid, began, evictions: 0, repairs: 0, gets: 0, hwm_mib: 0.0 }
    }
}

pub(crate) struct Sample {
    at: Duration,
    life: usize,
    rss_mib: f64,
    fds: f64,
    threads: f64,
    du: u64,
    used: u64,
    limit: u64,
}

/// The daemon's state, if it can be had.
pub(crate) fn status(world: &World) -> Option<serde_json::Value> {
    let output = world.warmfs.run(&["status", "--json"]);
    serde_json::from_slice(&output.stdout).ok()
}

/// Keeps the counters of the life that may end next.
pub(crate) fn note_status(world: &World) -> Option<serde_json::Value> {
    let status = status(world)?;
    let mut lives = lock(&world.lives);
    let life = lives.last_mut().filter(|life| status["pid"] == life.pid)?;
    life.evictions = status["evictions"]["objects"].as_u64()?;
    life.repairs = status["repairs"].as_u64()?;
    life.gets = status["remote"]["get"]["requests"].as_u64()?;
    life.hwm_mib = proc_status(life.pid, "VmHWM:")? / 1024.0;
    drop(lives);
    let state = status["cache"]["state"].as_str()?;
    match state {
        "ok" => {}
        // As it must be with a dataset twice as large.
        full if full.starts_with("full") => world.count("samples of a full cache"),
        other => world.fail("cache state", other),
    }
    Some(status)
}

/// Samples until the time is up.
pub(crate) fn sample(world: &World, _: fastrand::Rng) {
    let every = (world.options.duration() / SAMPLES_MIN).min(SAMPLE_MAX);
    println!("     s life  rss/MiB  fds threads used/MiB  du/MiB   read/MiB   wrong failures");
    while !world.is_over() {
        world.pause(every);
        let Some(sample) = sample_once(world) else { continue };
        let found = &world.found;
        println!(
            "{:6.0} {:4} {:8.1} {:4} {:7} {:8.1} {:7.1} {:10.0} {:7} {:8}",
            world.began.elapsed().as_secs_f64(),
            sample.life,
            sample.rss_mib,
            sample.fds,
            sample.threads,
            sample.used as f64 / MIB,
            sample.du as f64 / MIB,
            found.bytes.load(Ordering::Relaxed) as f64 / MIB,
            found.wrong_bytes.load(Ordering::Relaxed),
            found.failures.load(Ordering::Relaxed),
        );
        lock(&world.samples).push(sample);
    }
}

/// `None` where the daemon is being replaced.
fn sample_once(world: &World) -> Option<Sample> {
    let epoch = world.epoch();
    let status = note_status(world)?;
    let pid = status["pid"].as_u64()? as u32;
    let life = lock(&world.lives).len();
    let count = |dir: &str| Some(fs::read_dir(format!("/proc/{pid}/{dir}")).ok()?.count() as f64);
    let limit = world.cache_bytes();
    let du = (0..DU_TRIES).map(|_| du(&world.warmfs.cache())).find(|du| *du <= limit);
    let sample = Sample {
        at: world.began.elapsed(),
        life,
        rss_mib: proc_status(pid, "VmRSS:")? / 1024.0,
        fds: count("fd")?,
        threads: count("task")?,
        du: du.unwrap_or_else(|| self::du(&world.warmfs.cache())),
        used: status["cache"]["used_bytes"].as_u64()?,
        limit: status["cache"]["limit_bytes"].as_u64()?,
    };
    if sample.du > limit {
        world.fail("du", &format!("{} of {limit} bytes", sample.du));
    }
    (world.epoch() == epoch).then_some(sample)
}

fn proc_status(pid: u32, label: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes that all below `path` takes; what goes meanwhile takes none.
fn du(path: &Path) -> u64 {
    let own = fs::symlink_metadata(path).map_or(0, |metadata| metadata.blocks() * 512);
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    own + entries.map(|entry| du(&entry.path())).sum::<u64>()
}

/// Files that hold objects.
pub(crate) fn backing_files(cache: &Path) -> Vec<PathBuf> {
    fn below(path: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(path) else { return found.push(path.to_owned()) };
        for entry in entries.flatten() {
            below(&entry.path(), found);
        }
    }
    let mut found = Vec::new();
    below(&cache.join("data"), &mut found);
    found
}

/// Prints what came out; says whether nothing was wrong.
pub(crate) fn report(world: &World) -> bool {
    let found = &world.found;
    let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    println!("\nsoak of {:.1} minutes, seed {}", world.options.minutes, world.options.seed);
    let bytes = get(&found.bytes) as f64 / MIB;
    let (opens, reads) = (get(&found.opens), get(&found.reads));
    println!("compared           {bytes:.0} MiB in {reads} reads of {opens} opens");
    println!("wrong bytes        {}", get(&found.wrong_bytes));
    println!("stalest at open    {} ms", get(&found.stale_ms_max));
    println!("slowest mount      {} ms", get(&found.slowest_mount_ms));
    let remote = world.objects.store().counts();
    let mib = remote.get.bytes as f64 / MIB;
    println!("asked of the store {} GET ({mib:.0} MiB)", remote.get.requests);
    println!("                   {} LIST, {} HEAD", remote.list.requests, remote.head.requests);
    let lives = lock(&world.lives);
    let sum = |of: fn(&Life) -> u64| lives.iter().map(of).sum::<u64>();
    println!("lives              {}", lives.len());
    println!("evicted objects    {}", sum(|life| life.evictions));
    println!("repaired chunks    {}", sum(|life| life.repairs));
    println!("GETs, by daemons   {}", sum(|life| life.gets));
    for (what, count) in lock(&found.counts).iter() {
        println!("{count:>8}  {what}");
    }
    drop(lives);
    report_growth(world);
    report_log(world);
    for (what, count) in lock(&found.unexpected).iter() {
        println!("{count:>8}  UNEXPECTED {what}");
    }
    let is_right = get(&found.failures) == 0 && get(&found.wrong_bytes) == 0 && reads > 0;
    println!("{}", if is_right { "PASSED" } else { "FAILED" });
    is_right
}

/// First and last quarter of each daemon's samples, and the largest of all.
fn report_growth(world: &World) {
    let samples = lock(&world.samples);
    let lives: Vec<(f64, f64)> =
        lock(&world.lives).iter().map(|life| (life.began.as_secs_f64(), life.hwm_mib)).collect();
    println!("life  from/s samples  rss/MiB first, last quarter   peak   fds first, last");
    for (n, (began, hwm)) in lives.iter().enumerate() {
        let own: Vec<&Sample> = samples.iter().filter(|sample| sample.life == n + 1).collect();
        let rss = quarters(&own, |sample| sample.rss_mib);
        let fds = quarters(&own, |sample| sample.fds);
        println!(
            "{:4} {began:7.0} {:7} {:14.1} {:13.1} {hwm:10.1} {:11} {:5}",
            n + 1,
            own.len(),
            rss.0,
            rss.1,
            fds.0,
            fds.1
        );
        let lived = own.last().map_or(0.0, |last| last.at.as_secs_f64() - began);
        if lived < LONG_LIFE.as_secs_f64() {
            continue;
        }
        if rss.1 > rss.0 + RSS_GROWTH_MAX_MIB {
            world.fail("growth", &format!("resident memory {:.1} -> {:.1} MiB", rss.0, rss.1));
        }
        if fds.1 > fds.0 + FDS_GROWTH_MAX {
            world.fail("growth", &format!("descriptors {} -> {}", fds.0, fds.1));
        }
    }
    let largest = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(0.0, f64::max);
    let limit = samples.iter().map(|sample| sample.limit).min().unwrap_or_default();
    let rss = lives.iter().map(|(_, hwm)| *hwm).fold(0.0, f64::max);
    let fds = largest(|sample| sample.fds);
    if rss > RSS_MAX_MIB || fds > FDS_MAX {
        world.fail("growth", &format!("{rss:.1} MiB resident, {fds} descriptors"));
    }
    println!("largest: {rss:.1} MiB resident,");
    println!("  {fds} descriptors,");
    println!("  {} threads,", largest(|sample| sample.threads));
    println!("  used {:.1} MiB,", largest(|sample| sample.used as f64) / MIB);
    println!(
        "  du {:.1} MiB of {:.1}",
        largest(|sample| sample.du as f64) / MIB,
        limit as f64 / MIB
    );
}

/// Medians of the first and the last quarter.
fn quarters(samples: &[&Sample], of: fn(&Sample) -> f64) -> (f64, f64) {
    let quarter = samples.len().div_ceil(4);
    let median = |part: &[&Sample]| {
        let mut values: Vec<f64> = part.iter().map(|sample| of(sample)).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    (median(&samples[..quarter]), median(&samples[samples.len() - quarter..]))
}

/// What the daemons complained about; a panic is a failure.
fn report_log(world: &World) {
    let log = world.warmfs.log();
    let lines: Vec<&str> = log.lines().collect();
    let bad: Vec<&&str> =
        lines.iter().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    println!("log: {} lines, {} warnings", lines.len(), bad.len());
    for line in &bad[bad.len().saturating_sub(LOG_LINES)..] {
        println!("  {line}");
    }
    for line in lines.iter().filter(|line| line.contains("panicked")) {
        world.fail("panic", line);
    }
}
