//! Listing and walking a million files: `cargo bench --bench walk`. A store of
//! 1.3 million keys in 1,000 folders, and one of a million in one folder, 30 ms a
//! page of 1,000; `--quick` takes a hundredth of it. `--only capped` walks ten million
//! keys with little memory for them; it is not run unless it is named.
//!
//! The store is the embedded one, in this process: it makes its pages as they are
//! asked for, since key ranges begin anywhere, and its CPU counts against us.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../mounted/figure.rs"]
mod figure;
#[path = "../rig/mod.rs"]
mod rig;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::Warmfs;
use common::store::{BUCKET, Store};
use figure::{Figure, Target};
use rig::stats::Samples;
use warmfs::embedded_store::StoreOptions;

/// To a page of a listing.
const PAGE: Duration = Duration::from_millis(30);
/// For one dataset.
const LIMIT: Duration = Duration::from_secs(1_800);

const FOLDERS: usize = 1_000;
const FILES_PER_FOLDER: usize = 1_300;
const FLAT_FILES: usize = 1_000_000;
const CAPPED_FOLDERS: usize = 1_000;
const CAPPED_FILES_PER_FOLDER: usize = 10_000;
/// Of these, a copy on disk is made to compare with.
const COMPARED_FOLDERS: usize = 100;

/// What is measured together, of one part in so many of the data.
type Group = (&'static str, fn(usize) -> Vec<Figure>);

const GROUPS: [Group; 2] = [("folders", folders), ("flat", flat)];
const CAPPED: Group = ("capped", capped);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (part, only) = match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (1, ""),
        ["--quick"] => (100, ""),
        ["--only", only] => (1, *only),
        ["--quick", "--only", only] => (100, *only),
        _ => {
            eprintln!("cargo bench --bench walk -- [--quick] [--only folders|flat|capped]");
            return ExitCode::FAILURE;
        }
    };
    println!("{}", rig::work::machine());
    println!("{}", Figure::header());
    let mut missed = 0;
    let all: &[Group] = if only == CAPPED.0 { &[CAPPED] } else { &GROUPS };
    for (_, group) in all.iter().filter(|(name, _)| name.contains(only)) {
        for figure in group(part) {
            println!("{figure}");
            missed += usize::from(!figure.is_met());
        }
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A store whose pages take [`PAGE`], and a warmfs that reads from it.
fn stage() -> (Store, Warmfs) {
    let store = Store::with(StoreOptions {
        list_page_delay: Some(PAGE),
        ttfb: PAGE,
        ..StoreOptions::default()
    });
    let mut warmfs = Warmfs::with_limit(LIMIT);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    (store, warmfs)
}

fn mount(warmfs: &Warmfs, uri: &str) -> std::path::PathBuf {
    warmfs.mount_with(uri, "mount", &["--warm", "off", "--open-mode", "cached"])
}

/// Many folders.
fn folders(part: usize) -> Vec<Figure> {
    let (store, warmfs) = stage();
    let folders = FOLDERS / part;
    for folder in 0..folders {
        for file in 0..FILES_PER_FOLDER {
            store.put(BUCKET, format!("data/n{folder:08}/n{folder:08}_{file}.JPEG"), Bytes::new());
        }
    }
    let files = folders * FILES_PER_FOLDER;
    let dir = mount(&warmfs, "s3://bucket/data");
    let first =
        timed(|| assert_eq!(lines(Command::new("find").arg(&dir).args(["-type", "f"])), files));
    let lists = store.counts().list.requests;
    let rss = rss_bytes(&warmfs);
    store.reset_log();
    let walked =
        timed(|| assert_eq!(lines(Command::new("find").arg(&dir).args(["-type", "f"])), files));
    warmfs.unmount("mount");
    // A mount looks by itself whether there is anything.
    let dir = mount(&warmfs, "s3://bucket/data");
    let by_mounts = store.counts().list.requests;
    let second =
        timed(|| assert_eq!(lines(Command::new("find").arg(&dir).args(["-type", "f"])), files));
    warmfs.unmount("mount");
    let dir = mount(&warmfs, "s3://bucket/data");
    let by_mounts = 2 * by_mounts;
    let python = timed(|| assert_eq!(image_folder(&dir), files));
    let later_lists = store.counts().list.requests - by_mounts;
    let file = warmfs.path("index");
    let file = file.to_str().unwrap();
    let exported = timed(|| drop(warmfs.ok(&["index", "export", file])));
    let file_bytes = fs::metadata(file).unwrap().len();
    let imported = import(&store, file, files);
    let mut figures = vec![
        seconds("find -type f, 1,000 folders, first mount", 15.0, first),
        Figure::new(
            "  LIST requests",
            Target::AtMost((folders * FILES_PER_FOLDER.div_ceil(1_000) + folders + 2) as f64),
            one(lists as f64),
            "",
        ),
        Figure::new(
            "  RSS, bytes a file above 100 MB",
            Target::AtMost(200.0),
            one((rss as f64 - 1e8) / files as f64),
            "",
        ),
        Figure::new("  again in the same mount", Target::Stated, one(walked.as_secs_f64()), "s"),
        seconds("find -type f, second mount", 3.0, second),
        seconds("ImageFolder scan from Python, another mount", 5.0, python),
        Figure::new(
            "  LIST requests of all later walks",
            Target::AtMost(0.0),
            one(later_lists as f64),
            "",
        ),
    ];
    figures.extend([
        Figure::new("index export", Target::Stated, one(exported.as_secs_f64()), "s"),
        Figure::new("  bytes a file", Target::Stated, one(file_bytes as f64 / files as f64), ""),
        Figure::new("mount --index", Target::Stated, one(imported.0.as_secs_f64()), "s"),
        Figure::new("  find -type f", Target::Stated, one(imported.1.as_secs_f64()), "s"),
        Figure::new("  LIST requests", Target::AtMost(1.0), one(imported.2 as f64), ""),
    ]);
    figures.extend(compared(&warmfs, &dir, COMPARED_FOLDERS / part.min(COMPARED_FOLDERS)));
    warmfs.unmount("mount");
    figures
}

/// Another machine mounts with the index file: what the mount and a walk take, and the
/// LIST requests of both.
fn import(store: &Store, file: &str, files: usize) -> (Duration, Duration, u64) {
    let mut other = Warmfs::with_limit(LIMIT);
    other.set_env("WARMFS_ENDPOINT_URL", &store.url());
    store.reset_log();
    let options = ["--warm", "off", "--open-mode", "cached", "--index", file];
    let began = Instant::now();
    let dir = other.mount_with("s3://bucket/data", "mount", &options);
    let mounted = began.elapsed();
    let walked =
        timed(|| assert_eq!(lines(Command::new("find").arg(&dir).args(["-type", "f"])), files));
    other.unmount("mount");
    (mounted, walked, store.counts().list.requests)
}

/// Ten million keys, and as little memory for what is known of them as may be asked for.
fn capped(part: usize) -> Vec<Figure> {
    let (store, warmfs) = stage();
    let folders = CAPPED_FOLDERS / part;
    for folder in 0..folders {
        for file in 0..CAPPED_FILES_PER_FOLDER {
            store.put(BUCKET, format!("data/{folder:04}/{file:05}"), Bytes::new());
        }
    }
    let files = folders * CAPPED_FILES_PER_FOLDER;
    let options = ["--warm", "off", "--open-mode", "cached", "--metadata-memory", "8M"];
    let dir = warmfs.mount_with("s3://bucket/data", "mount", &options);
    let before = rss_bytes(&warmfs);
    let find = || assert_eq!(lines(Command::new("find").arg(&dir).args(["-type", "f"])), files);
    let (first, again) = (timed(find), timed(find));
    let (rss, peak) = (rss_bytes(&warmfs), status_bytes(&warmfs, "VmHWM:"));
    warmfs.unmount("mount");
    let mib = |bytes: u64| one(bytes as f64 / f64::from(1 << 20));
    vec![
        Figure::new(
            "find -type f over 10,000,000, first mount",
            Target::Stated,
            one(first.as_secs_f64()),
            "s",
        ),
        Figure::new("  again", Target::Stated, one(again.as_secs_f64()), "s"),
        Figure::new("  RSS before", Target::Stated, mib(before), "MiB"),
        Figure::new("  RSS after", Target::Stated, mib(rss), "MiB"),
        Figure::new("  RSS at most", Target::Stated, mib(peak), "MiB"),
        Figure::new(
            "  bytes a file above 100 MB",
            Target::AtMost(200.0),
            one((rss as f64 - 1e8) / files as f64),
            "",
        ),
    ]
}

/// Warm walks beside ones over the same names on disk.
fn compared(warmfs: &Warmfs, dir: &Path, folders: usize) -> Vec<Figure> {
    let copy = warmfs.path("copy");
    for folder in (0..folders).map(|n| format!("n{n:08}")) {
        fs::create_dir_all(copy.join(&folder)).unwrap();
        for file in 0..FILES_PER_FOLDER {
            fs::write(copy.join(format!("{folder}/{folder}_{file}.JPEG")), b"").unwrap();
        }
    }
    let mut ratios = [Samples::default(), Samples::default()];
    for round in 0..6 {
        for (n, program) in [["find", "-ls"], ["du", "-s"]].iter().enumerate() {
            let [ours, disk] = [dir, &copy].map(|root| {
                timed(|| {
                    let mut command = Command::new(program[0]);
                    if program[0] == "du" {
                        command.arg(program[1]);
                    }
                    command.args((0..folders).map(|n| root.join(format!("n{n:08}"))));
                    if program[0] == "find" {
                        command.arg(program[1]);
                    }
                    lines(&mut command);
                })
            });
            // The first one is not warm.
            if round > 0 {
                ratios[n].push(disk.as_secs_f64() / ours.as_secs_f64());
            }
        }
    }
    let [find, du] = ratios;
    vec![
        Figure::new("find -ls warm, of ext4", Target::AtLeast(0.5), find, "x"),
        Figure::new("du -s warm, of ext4", Target::AtLeast(0.5), du, "x"),
    ]
}

/// One folder.
fn flat(part: usize) -> Vec<Figure> {
    let (store, warmfs) = stage();
    let files = FLAT_FILES / part;
    for file in 0..files {
        store.put(BUCKET, format!("data/{file:08}.jpg"), Bytes::new());
    }
    let dir = mount(&warmfs, "s3://bucket/");
    let known = dir.join(format!("data/{:08}.jpg", files / 2));
    fs::metadata(dir.join("data")).unwrap();
    store.reset_log();
    let opened = timed(|| drop(fs::File::open(&known).unwrap()));
    let counts = store.counts();
    let asked = counts.head.requests + counts.list.requests;
    store.reset_log();
    let began = Instant::now();
    let mut listing = fs::read_dir(dir.join("data")).unwrap();
    listing.next().unwrap().unwrap();
    let first_entry = began.elapsed();
    assert_eq!(listing.count() + 1, files);
    let first = began.elapsed();
    let lists = store.counts().list.requests;
    let rss = rss_bytes(&warmfs);
    warmfs.unmount("mount");
    let dir = mount(&warmfs, "s3://bucket/");
    store.reset_log();
    let second =
        timed(|| assert_eq!(lines(Command::new("ls").arg("-f").arg(dir.join("data"))), files + 2));
    let later = store.counts().list.requests;
    warmfs.unmount("mount");
    vec![
        Figure::new(
            "open of a known name in an unlisted folder: requests",
            Target::AtMost(2.0),
            one(asked as f64),
            "",
        ),
        Figure::new(
            "  time, round trips",
            Target::AtMost(1.5),
            one(opened.as_secs_f64() / PAGE.as_secs_f64()),
            "",
        ),
        seconds("ls -f of 1,000,000 in one folder, first mount", 20.0, first),
        Figure::new(
            "  first entry",
            Target::AtMost(200.0),
            one(first_entry.as_secs_f64() * 1e3),
            "ms",
        ),
        Figure::new("  LIST requests", Target::Stated, one(lists as f64), ""),
        Figure::new(
            "  RSS, bytes a file above 100 MB",
            Target::AtMost(200.0),
            one((rss as f64 - 1e8) / files as f64),
            "",
        ),
        seconds("ls -f, second mount", 4.0, second),
        Figure::new("  LIST requests", Target::AtMost(0.0), one(later as f64), ""),
    ]
}

fn one(value: f64) -> Samples {
    std::iter::once(value).collect()
}

fn seconds(name: &str, target: f64, took: Duration) -> Figure {
    Figure::new(name, Target::AtMost(target), one(took.as_secs_f64()), "s")
}

fn timed(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    run();
    began.elapsed()
}

/// The lines that a command prints.
fn lines(command: &mut Command) -> usize {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut lines = 0;
    loop {
        match output.read(&mut buffer).unwrap() {
            0 => break,
            n => lines += buffer[..n].iter().filter(|byte| **byte == b'\n').count(),
        }
    }
    assert!(child.wait().unwrap().success());
    lines
}

/// The files that torchvision's `ImageFolder` finds: its walk, without torch.
fn image_folder(dir: &Path) -> usize {
    const WALK: &str = "
import os, sys
root = sys.argv[1]
found = 0
for entry in sorted(e.name for e in os.scandir(root) if e.is_dir()):
    for folder, _, names in sorted(os.walk(os.path.join(root, entry), followlinks=True)):
        found += sum(name.lower().endswith(('.jpeg', '.jpg', '.png')) for name in sorted(names))
print(found)
";
    let output = Command::new("python3").args(["-c", WALK]).arg(dir).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// Memory of the daemon.
fn rss_bytes(warmfs: &Warmfs) -> u64 {
    status_bytes(warmfs, "VmRSS:")
}

/// A figure of the daemon's in /proc.
fn status_bytes(warmfs: &Warmfs, name: &str) -> u64 {
    let pid = warmfs.daemon().expect("a daemon");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
