//! How long `warmfs mount` takes over a cache of 1.3 M objects, and what
//! memory; and how long `warmfs status` does, with nothing else to do and beside
//! readers of what is not cached: `cargo bench --bench large_cache [-- COUNT]`.
//! Prints target and result; exits with 1 if a target is missed. Filling the cache
//! takes minutes and 5 GB of disk.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::store::Store;
use common::{Warmfs, filled};

const RUNS: usize = 5;

/// As ImageNet has.
const OBJECTS: usize = 1_300_000;

const MOUNT_MS_MAX: f64 = 1_000.0;
const STATUS_MS_MAX: f64 = 50.0;

/// How often `status` is asked.
const STATUS_RUNS: usize = 50;

/// Readers of cold objects beside it: more objects than they get through.
const READERS: usize = 20;
const COLD_OBJECTS: usize = 1_500;
const COLD_BYTES: usize = 8 << 20;
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
    let met = status_is_prompt(&warmfs, &store) && met;
    if met { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints how long `warmfs status` takes, from its start to its end, and whether that is
/// what was aimed at.
fn status_is_prompt(warmfs: &Warmfs, store: &Store) -> bool {
    store.create_bucket("cold");
    let bytes = Bytes::from(vec![7; COLD_BYTES]);
    for n in 0..COLD_OBJECTS {
        store.put("cold", n.to_string(), bytes.clone());
    }
    warmfs.mount_uri("s3://bucket", "mount");
    let cold = warmfs.mount_with("s3://cold", "cold", &["--warm", "off"]);
    let ask = |what: &str| {
        let median = time(what, || drop(warmfs.ok(&["status"])));
        // What of it is the daemon's, and what a process takes that does nothing.
        time("  of this the daemon's answer", || ask_socket(warmfs));
        time("  of this a process (--version)", || drop(warmfs.ok(&["--version"])));
        median <= STATUS_MS_MAX
    };
    let idle = ask("status, nothing else to do");
    let (next, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let busy = std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= COLD_OBJECTS {
                        return;
                    }
                    let read = std::fs::read(cold.join(n.to_string())).expect("a cold object");
                    assert_eq!(read.len(), COLD_BYTES);
                }
            });
        }
        let busy = ask("status beside 20 cold readers");
        done.store(true, Ordering::Relaxed);
        busy
    });
    println!("{} of {COLD_OBJECTS} cold objects read meanwhile", next.into_inner());
    warmfs.unmount("cold");
    warmfs.unmount("mount");
    idle && busy
}

/// Prints how many milliseconds something takes, and gives the median.
fn time(what: &str, work: impl Fn()) -> f64 {
    let times: Vec<f64> = (0..STATUS_RUNS)
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    let most = times.iter().copied().fold(0.0, f64::max);
    let median = middle(times.into_iter());
    println!("{what:<58} <= {STATUS_MS_MAX:>9.1} {median:>12.1} ms (at most {most:.1})");
    median
}

/// Asks for the state without a command.
fn ask_socket(warmfs: &Warmfs) {
    let socket = warmfs.record().expect("a daemon").socket;
    let mut stream = UnixStream::connect(socket).expect("it listens");
    stream
        .write_all(b"GET /v1/status HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
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
