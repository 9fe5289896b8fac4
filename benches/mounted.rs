//! Every figure that has a unit of time, over real mounts of the real binary:
//! `./check --bench`. Prints target and result, medians of [`RUNS`]; exits with
//! 1 if a target is missed. The store is the embedded one, in this process, so
//! store, readers and daemon share the machine's cores.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use warmfs::embedded_store::{Batch, Dataset, EmbeddedStore, StoreOptions};

const RUNS: usize = 3;
const MIB: f64 = 1048576.0;

/// A store as a cloud has it: 30 ms to the first byte, 50 MB/s a connection.
const CLOUD: (Duration, Option<u64>) = (Duration::from_millis(30), Some(50_000_000));
const LOOPBACK: (Duration, Option<u64>) = (Duration::ZERO, None);

fn main() -> ExitCode {
    let mut missed = 0;
    println!("{:<58} {:>12} {:>12}", "figure (median of 3)", "target", "result");
    for figure in figures() {
        let met = if figure.at_least {
            figure.result >= figure.target
        } else {
            figure.result <= figure.target
        };
        let sign = if figure.at_least { ">=" } else { "<=" };
        let verdict = if met { "" } else { "  MISSED" };
        println!(
            "{:<58} {sign} {:>9.1} {:>12.1} {}{verdict}",
            figure.name, figure.target, figure.result, figure.unit
        );
        missed += u32::from(!met);
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Figure {
    name: &'static str,
    target: f64,
    at_least: bool,
    result: f64,
    unit: &'static str,
}

fn figures() -> Vec<Figure> {
    let mut figures = Vec::new();
    let at_least =
        |name, target, result, unit| Figure { name, target, at_least: true, result, unit };
    let at_most =
        |name, target, result, unit| Figure { name, target, at_least: false, result, unit };

    let bench = Bench::new(CLOUD, 1, 256 << 20);
    let cold = median(|| bench.cold(|mount| mount.epoch(1).mib_per_s));
    figures.push(at_least("1 reader, 1 x 256 MiB, 30 ms + 50 MB/s, cold", 200.0, cold, "MiB/s"));
    let first = median(|| bench.cold(|mount| mount.first_byte_ms()));
    figures.push(at_most("first byte of a cold object at 30 ms", 100.0, first, "ms"));

    let bench = Bench::new(LOOPBACK, 200, 10 << 20);
    let (mut cold, mut warm, mut rss, mut start) = (vec![], vec![], vec![], vec![]);
    for _ in 0..RUNS {
        bench.cold(|mount| {
            start.push(mount.start.as_secs_f64() * 1000.0);
            cold.push(mount.epoch(20).mib_per_s);
            rss.push(mount.peak_rss_mib());
            warm.push(mount.epoch(20).mib_per_s);
            0.0
        });
    }
    figures.push(at_least(
        "20 readers, 200 x 10 MiB, loopback, cold",
        250.0,
        middle(cold),
        "MiB/s",
    ));
    figures.push(at_least("the same, epoch 2", 1000.0, middle(warm), "MiB/s"));
    figures.push(at_most("daemon's peak RSS in that cold epoch", 300.0, middle(rss), "MiB"));
    figures.push(at_most("`warmfs mount` returns after", 1000.0, middle(start), "ms"));
    figures
}

fn median(mut run: impl FnMut() -> f64) -> f64 {
    middle((0..RUNS).map(|_| run()).collect())
}

fn middle(mut results: Vec<f64>) -> f64 {
    results.sort_by(f64::total_cmp);
    results[results.len() / 2]
}

/// A store with objects, to be mounted with an empty cache again and again.
struct Bench {
    runtime: tokio::runtime::Runtime,
    store: EmbeddedStore,
    keys: Vec<String>,
    bytes: u64,
}

impl Bench {
    fn new((ttfb, rate): (Duration, Option<u64>), count: usize, size: usize) -> Bench {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let options =
            StoreOptions { ttfb, rate_bytes_per_s_per_connection: rate, ..StoreOptions::default() };
        let store = runtime.block_on(EmbeddedStore::start(options)).expect("a loopback port");
        let none = Batch { count: 0, size: 0 };
        let dataset = Dataset::generate(none, Batch { count, size });
        for (key, bytes) in &dataset.files {
            store.put("bench", key, bytes.clone());
        }
        let keys = dataset.files.iter().map(|(key, _)| key.clone()).collect();
        Bench { runtime, bytes: dataset.total_bytes(), store, keys }
    }

    fn cold(&self, run: impl FnOnce(&Mount<'_>) -> f64) -> f64 {
        let _guard = self.runtime.enter();
        let mount = Mount::new(self);
        run(&mount)
    }
}

/// A mount with an empty cache; unmounted, and its cache removed, when dropped.
struct Mount<'a> {
    bench: &'a Bench,
    home: tempfile::TempDir,
    dir: PathBuf,
    start: Duration,
}

struct Epoch {
    mib_per_s: f64,
}

fn warmfs(home: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_warmfs"))
        .args(args)
        .env("XDG_RUNTIME_DIR", home)
        .env("WARMFS_CACHE_DIR", home.join("cache"))
        .output()
        .expect("warmfs runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl<'a> Mount<'a> {
    fn new(bench: &'a Bench) -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let dir = home.path().join("mnt");
        let began = Instant::now();
        let url = bench.store.url();
        let path = dir.to_str().expect("a plain path");
        warmfs(
            home.path(),
            &["mount", "s3://bench", path, "--endpoint-url", &url, "--no-sign-request"],
        );
        Mount { bench, home, dir, start: began.elapsed() }
    }

    /// Reads every file once, `readers` at a time.
    fn epoch(&self, readers: usize) -> Epoch {
        let queue = Mutex::new(self.bench.keys.iter());
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(|| {
                    let mut buffer = vec![0; 1 << 20];
                    loop {
                        let Some(key) = queue.lock().expect("no reader panics").next() else {
                            return;
                        };
                        let mut file =
                            File::open(self.dir.join(key)).expect("a file of the dataset");
                        while file.read(&mut buffer).expect("its bytes") > 0 {}
                    }
                });
            }
        });
        Epoch { mib_per_s: self.bench.bytes as f64 / MIB / began.elapsed().as_secs_f64() }
    }

    fn first_byte_ms(&self) -> f64 {
        let path = self.dir.join(&self.bench.keys[0]);
        let began = Instant::now();
        let mut byte = [0];
        File::open(path).and_then(|mut file| file.read_exact(&mut byte)).expect("one byte");
        began.elapsed().as_secs_f64() * 1000.0
    }

    fn peak_rss_mib(&self) -> f64 {
        let path = self.dir.to_str().expect("a plain path");
        let status: serde_json::Value =
            serde_json::from_str(&warmfs(self.home.path(), &["status", path, "--json"]))
                .expect("status is JSON");
        let status = std::fs::read_to_string(format!("/proc/{}/status", status["pid"]))
            .expect("the daemon runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        peak.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        warmfs(self.home.path(), &["unmount", self.dir.to_str().expect("a plain path")]);
    }
}
