//! How long `warmfs mount` takes over a cache of 1.3 M objects, and what
//! memory: `cargo bench --bench large_cache [-- COUNT]`. Prints target and
//! result, the median of [`RUNS`]; exits with 1 if a target is missed. Filling
//! the cache takes minutes and 5 GB of disk.

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::store::Store;
use common::{Warmfs, filled};

const RUNS: usize = 5;

/// As ImageNet has.
const OBJECTS: usize = 1_300_000;

const MOUNT_MS_MAX: f64 = 1_000.0;
const RSS_MB_MAX: f64 = 150.0;

/// For filling and all runs.
const LIMIT: Duration = Duration::from_secs(3_600);

fn main() -> ExitCode {
    // Cargo passes options of its own.
    let count = std::env::args().find_map(|arg| arg.parse().ok()).unwrap_or(OBJECTS);
    let store = Store::start();
    let mut warmfs = Warmfs::with_limit(LIMIT);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    let began = Instant::now();
    filled::fill(&warmfs.cache(), &store, count);
    let took = began.elapsed().as_secs_f64();
    println!("{count} objects cached in {took:.0} s, {:.0} a second", count as f64 / took);
    let runs: Vec<(f64, f64)> = (0..RUNS).map(|_| run(&warmfs, count)).collect();
    let mount_ms = middle(runs.iter().map(|run| run.0));
    let rss_mb = middle(runs.iter().map(|run| run.1));
    println!("{:<58} {:>12} {:>12}", "figure (median of 5)", "target", "result");
    println!("{:<58} <= {MOUNT_MS_MAX:>9.1} {mount_ms:>12.1} ms", "mount until an object is read");
    println!("{:<58} <= {RSS_MB_MAX:>9.1} {rss_mb:>12.1} MB", "peak RSS of the daemon by then");
    let met = mount_ms <= MOUNT_MS_MAX && rss_mb <= RSS_MB_MAX;
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Milliseconds until a cached object was read, and megabytes by then.
fn run(warmfs: &Warmfs, count: usize) -> (f64, f64) {
    let began = Instant::now();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_read(&mount, count / 2);
    let mount_ms = began.elapsed().as_secs_f64() * 1000.0;
    assert_read(&mount, count - 1);
    let peak = filled::peak_rss_bytes(warmfs.status()["pid"].as_u64().expect("a pid"));
    warmfs.unmount("mount");
    common::eventually("the daemon ends", || warmfs.daemon().is_none());
    (mount_ms, peak as f64 / 1e6)
}

fn assert_read(mount: &Path, n: usize) {
    let bytes = std::fs::read(mount.join(filled::key(n))).expect("a cached object");
    assert_eq!(bytes, filled::OBJECT);
}

fn middle(results: impl Iterator<Item = f64>) -> f64 {
    let mut results: Vec<f64> = results.collect();
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}
