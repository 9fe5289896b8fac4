//! `warmfs bench` with the real binary, real mounts and a store whose log tells
//! what was asked of it. What is checked are counts, never times.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use serde_json::Value;
use warmfs::embedded_store::{Fault, FaultRule, Op, StoreOptions};

use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually, wait};

const URI: &str = "s3://bucket/data";

/// Files of the dataset, and their bytes. One is empty, one is larger than a request.
const FILES: u64 = 32;
const BYTES: u64 = 30 * 100_000 + (9 << 20);

fn filled(options: StoreOptions) -> Store {
    let store = Store::with(options);
    for n in 0..30 {
        store.put(BUCKET, format!("data/{}/{n:02}", n % 3), noise(n, 100_000));
    }
    store.put(BUCKET, "data/empty", Bytes::new());
    store.put(BUCKET, "data/large", noise(99, 9 << 20));
    // None of these is shown by a mount, or read by anything.
    store.put(BUCKET, "data/marker/", Bytes::new());
    store.put(BUCKET, "data/a//b", noise(98, 1_000));
    store.put(BUCKET, "other", noise(97, 1_000));
    store
}

/// A warmfs whose temporary folders are its own.
fn of(store: &Store) -> (Warmfs, PathBuf) {
    let mut warmfs = store.warmfs();
    let tmp = warmfs.path("tmp");
    fs::create_dir(&tmp).unwrap();
    warmfs.set_env("TMPDIR", tmp.to_str().unwrap());
    (warmfs, tmp)
}

fn json(warmfs: &Warmfs, args: &[&str]) -> Value {
    let mut all = vec!["bench", "--json"];
    all.extend(args);
    let report: Value = serde_json::from_str(&warmfs.ok(&all)).unwrap();
    assert_eq!(report["schema"], 1);
    report
}

/// What each epoch has under `pointer`.
fn each(report: &Value, pointer: &str) -> Vec<Value> {
    let epochs = report["epochs"].as_array().unwrap();
    epochs.iter().map(|epoch| epoch.pointer(pointer).expect(pointer).clone()).collect()
}

fn assert_nothing_left(warmfs: &Warmfs, tmp: &Path) {
    let left: Vec<_> = fs::read_dir(tmp).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
    let mounts = warmfs::daemon::mountinfo::read().unwrap();
    assert!(mounts.iter().all(|mount| !mount.dir.starts_with(tmp)), "a mount is left");
    warmfs.assert_nothing_left(&[]);
}

#[test]
fn a_mount_is_measured_as_the_store_saw_it() {
    let store = filled(StoreOptions::default());
    let (warmfs, _) = of(&store);
    let mount = warmfs.mount_uri(URI, "mnt");
    let plot = warmfs.path("plot.svg");
    let at = mount.to_str().unwrap();
    let report = json(&warmfs, &[at, "--readers", "4", "--plot", plot.to_str().unwrap()]);
    assert_eq!(
        (&report["dataset"]["files"], &report["dataset"]["bytes"]),
        (&FILES.into(), &BYTES.into())
    );
    assert_eq!(report["subject"]["fs_type"], "fuse.warmfs");
    assert_eq!(each(&report, "/name"), ["epoch 1", "epoch 2"]);
    assert_eq!(each(&report, "/files"), [FILES, FILES]);
    assert_eq!(each(&report, "/bytes"), [BYTES, BYTES]);
    let counts = store.counts();
    assert_eq!(each(&report, "/remote/get/requests"), [counts.get.requests, 0]);
    assert_eq!(each(&report, "/remote/get/bytes"), [counts.get.bytes, 0]);
    for figure in
        ["/mib_per_s", "/files_per_s", "/latency_ms/p50", "/first_batch_s", "/cpu/s_per_gib"]
    {
        assert!(each(&report, figure).iter().all(|value| value.as_f64() > Some(0.0)), "{figure}");
    }
    for epoch in report["epochs"].as_array().unwrap() {
        let latency = |name: &str| epoch["latency_ms"][name].as_f64().unwrap();
        assert!(latency("p50") <= latency("p95") && latency("p95") <= latency("p99"));
        assert!(latency("p99") <= latency("max"), "{epoch}");
        assert!(epoch["first_batch_s"].as_f64() <= epoch["elapsed_s"].as_f64());
        assert!(epoch["cpu"]["daemon_s"].is_f64(), "{epoch}");
        assert!(!epoch["timeline"]["mib_per_s"].as_array().unwrap().is_empty());
    }
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains(">epoch 1</text>") && svg.contains(">epoch 2</text>"), "{svg}");
    warmfs.unmount("mnt");
}

#[test]
fn a_mount_is_compared_with_a_copy_in_turn() {
    let store = filled(StoreOptions::default());
    let (warmfs, tmp) = of(&store);
    let mount = warmfs.mount_uri(URI, "mnt");
    let (copy, plot) = (warmfs.path("copy"), warmfs.path("plot.svg"));
    copy_tree(&mount, &copy);
    let (at, with) = (mount.to_str().unwrap(), copy.to_str().unwrap());
    let comparing = |more: &[&str]| {
        let args = [&[at, "--compare-with", with, "--epochs", "3"], more].concat();
        let report = json(&warmfs, &args);
        assert_eq!(
            each(&report, "/means"),
            ["folder", "copy", "folder", "copy", "folder", "copy"],
            "{more:?}"
        );
        assert_eq!(each(&report, "/epoch"), [1, 1, 2, 2, 3, 3]);
        let bytes = each(&report, "/bytes");
        assert!(bytes.chunks(2).all(|pair| pair[0] == pair[1]), "{bytes:?}");
        assert!(
            report["epochs"][1]["remote"].is_null() && report["epochs"][0]["remote"].is_object()
        );
        let mib_per_s = each(&report, "/mib_per_s");
        let rate = |at: usize| mib_per_s[at].as_f64().unwrap();
        let comparison = &report["comparison"];
        let ratios = comparison["ratios"].as_array().unwrap();
        for (n, ratio) in ratios.iter().enumerate() {
            let expected = rate(2 * n) / rate(2 * n + 1);
            assert!((ratio["ratio"].as_f64().unwrap() - expected).abs() < 1e-6, "{comparison}");
        }
        assert_eq!((ratios.len(), &ratios[2]["name"]), (3, &"epoch 3".into()));
        let later =
            (ratios[1]["ratio"].as_f64().unwrap() + ratios[2]["ratio"].as_f64().unwrap()) / 2.0;
        assert!((comparison["median_ratio"].as_f64().unwrap() - later).abs() < 1e-6);
        assert_eq!(comparison["with"], with);
        bytes
    };
    assert_eq!(comparing(&["--plot", plot.to_str().unwrap()]), [BYTES; 6]);
    assert_eq!(fs::read_to_string(plot).unwrap().matches(">copy</text>").count(), 3);
    assert_eq!(comparing(&["--mmap"]), [BYTES; 6]);
    comparing(&["--random", "4k", "--max-bytes", "400k", "--readers", "2"]);
    if Uid::effective().is_root() {
        comparing(&["--page-cache", "drop"]);
    }
    let text = warmfs.ok(&["bench", at, "--compare-with", with]);
    assert_eq!(text.matches("\n- ratio ").count(), 2, "{text}");
    let one_line = text.replace("\n  ", " ");
    assert!(text.contains("\ncompared with ") && one_line.contains("the median is "), "{text}");
    // A mount of its own is compared as well.
    let report = json(&warmfs, &[URI, "--compare-with", with]);
    assert_eq!(each(&report, "/means"), ["mount", "copy", "mount", "copy"]);

    let gets = store.counts().get.requests;
    fs::write(copy.join("1/04"), "short").unwrap();
    let line = warmfs.fails(&["bench", at, "--compare-with", with]);
    assert!(line.contains("copy/1/04: it has 5 bytes, and "), "{line}");
    fs::remove_file(copy.join("1/04")).unwrap();
    let line = warmfs.fails(&["bench", URI, "--compare-with", with]);
    assert!(line.contains("copy/1/04: no such file or directory"), "{line}");
    let line = warmfs.fails(&["bench", URI, "--compare-with", "/no/such/folder"]);
    assert!(line.contains("cannot compare with /no/such/folder"), "{line}");
    assert_eq!(store.counts().get.requests, gets, "nothing was read");
    warmfs.unmount("mnt");
    assert_nothing_left(&warmfs, &tmp);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[test]
fn direct_reads_each_byte_from_the_store_in_each_epoch() {
    let store = filled(StoreOptions::default());
    let (warmfs, tmp) = of(&store);
    let report = json(&warmfs, &[URI, "--direct", "--epochs", "2", "--readers", "3"]);
    assert_eq!(each(&report, "/files"), [FILES, FILES]);
    assert_eq!(each(&report, "/bytes"), [BYTES, BYTES]);
    assert_eq!(each(&report, "/remote/get/bytes"), [BYTES, BYTES]);
    let counts = store.counts();
    let requests = each(&report, "/remote/get/requests");
    let requests: u64 = requests.iter().map(|value| value.as_u64().unwrap()).sum();
    assert_eq!((counts.get.requests, counts.get.bytes), (requests, 2 * BYTES));
    // A GET a file, two for the large one at least, none for the empty one.
    assert!(requests >= 2 * 32, "{requests}");
    assert_eq!(counts.head.requests, 0);
    assert!(each(&report, "/cpu/daemon_s").iter().all(Value::is_null));
    assert_nothing_left(&warmfs, &tmp);
}

#[test]
fn a_uri_is_mounted_for_the_run_alone() {
    let store = filled(StoreOptions::default());
    let (warmfs, tmp) = of(&store);
    let report = json(&warmfs, &[URI, "--order", "sequential"]);
    assert_eq!(each(&report, "/bytes"), [BYTES, BYTES]);
    assert_eq!(each(&report, "/remote/get/requests"), [store.counts().get.requests, 0]);
    assert!(store.counts().get.requests > 0);
    assert_nothing_left(&warmfs, &tmp);

    // A cache that was named stays, and is warm the next time.
    let cache = warmfs.path("cache");
    let named = [URI, "--epochs", "1", "--cache-dir", cache.to_str().unwrap()];
    json(&warmfs, &named);
    assert!(cache.join("index.redb").exists());
    let again = json(&warmfs, &named);
    assert_eq!(each(&again, "/remote/get/requests"), [0]);
    assert_nothing_left(&warmfs, &tmp);
}

#[test]
fn a_plain_folder_has_no_requests() {
    let warmfs = Warmfs::new();
    let source = warmfs.path("source");
    let text = warmfs.ok(&["bench", source.to_str().unwrap(), "--epochs", "3"]);
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("epoch ")).collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert!(rows.iter().all(|row| row.contains(" - ")), "{text}");
    assert!(text.contains("2 files, 17 B") && text.contains("no mount of ours"), "{text}");

    let report = json(&warmfs, &[source.to_str().unwrap(), "--sweep"]);
    assert_eq!(each(&report, "/readers"), [1, 2, 4, 8, 16, 32, 64]);
    assert_eq!(each(&report, "/bytes"), [17; 7]);
    assert!(each(&report, "/remote").iter().all(Value::is_null));
}

#[test]
fn the_dataset_is_limited_and_read_at_random() {
    let store = filled(StoreOptions::default());
    let (warmfs, _) = of(&store);
    let mount = warmfs.mount_uri(URI, "mnt");
    let at = mount.to_str().unwrap();
    let few = json(&warmfs, &[at, "--files", "4", "--epochs", "1"]);
    assert_eq!(few["dataset"]["bytes"], 400_000);
    let small = json(&warmfs, &[at, "--max-bytes", "250000", "--epochs", "1"]);
    assert_eq!(small["dataset"]["files"], 2);
    let random = ["--random", "4k", "--max-bytes", "400k", "--page-cache", "drop"];
    let random = [&[at][..], &random].concat();
    if Uid::effective().is_root() {
        let report = json(&warmfs, &random);
        assert_eq!(report["dataset"]["files"], FILES);
        assert_eq!(each(&report, "/files"), [100, 100]);
        let bytes = each(&report, "/bytes");
        assert!(bytes.iter().all(|bytes| (380_000..=409_600).contains(&bytes.as_u64().unwrap())));
    }
    warmfs.unmount("mnt");
}

#[test]
fn the_preset_stands_beside_what_was_published() {
    let store = Store::start();
    let (warmfs, tmp) = of(&store);
    let plot = warmfs.path("plot.svg");
    let args = ["bench", "--preset", "published", "--files", "3", "--plot", plot.to_str().unwrap()];
    let text = warmfs.ok(&args);
    let fetched = |name: &str| {
        let row = text.lines().find(|line| line.starts_with(name)).expect(name);
        row.split_whitespace().nth(7).unwrap().parse::<u64>().unwrap()
    };
    assert!(fetched("direct ") >= 3 && fetched("cold ") >= 3, "{text}");
    assert_eq!(fetched("warm "), 0);
    assert!(text.contains("For comparison: 70 MiB/s cold and 250 MiB/s warm"), "{text}");
    assert!(text.contains("generated data"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let svg = fs::read_to_string(plot).unwrap();
    for name in ["direct", "cold", "warm", "published, cold", "published, warm"] {
        assert!(svg.contains(&format!(">{name}</text>")), "{name}");
    }
    assert_eq!(store.counts().get.requests, 0, "it has a store of its own");
    assert_nothing_left(&warmfs, &tmp);
}

#[test]
fn what_cannot_be_measured_is_told_in_one_line() {
    let store = filled(StoreOptions::default());
    let (warmfs, tmp) = of(&store);
    fs::create_dir(warmfs.path("empty")).unwrap();
    let empty = warmfs.path("empty");
    let folder = warmfs.path("source");
    let (empty, folder) = (empty.to_str().unwrap(), folder.to_str().unwrap());
    for (args, words) in [
        (&["/no/such/folder"][..], "cannot read /no/such/folder: no such file or directory"),
        (&[empty], "holds no files to read: name a folder"),
        (&[folder, "--direct"], "is a path: use s3://"),
        (&[folder, "--preset", "published"], "is a path: use s3://"),
        (&["ftp://bucket"], "not supported"),
        (&["ftp://bucket", "--direct"], "not supported"),
        (&["s3://bucket/nothing"], "holds no objects"),
        (&["s3://bucket/nothing", "--direct"], "holds no files to read"),
        (&["s3://no-such-bucket", "--direct"], "no-such-bucket"),
        (&[folder, "--plot", "/no/such/plot.svg"], "cannot write the plot /no/such/plot.svg"),
    ] {
        let line = warmfs.fails(&[&["bench"], args].concat());
        assert!(line.contains(words), "{args:?}: {line}");
    }
    if Uid::effective().is_root() {
        let mut command = warmfs.command(&["bench", "/", "--page-cache", "drop"]);
        let nobody = 65_534;
        let line = warmfs.fails_as(command.uid_and_gid(nobody));
        assert!(line.contains("permission denied: run as root"), "{line}");
    }
    assert_nothing_left(&warmfs, &tmp);
}

/// `Command::uid` and `gid` in one.
trait AsUser {
    fn uid_and_gid(&mut self, id: u32) -> &mut Command;
}

impl AsUser for Command {
    fn uid_and_gid(&mut self, id: u32) -> &mut Command {
        use std::os::unix::process::CommandExt;
        self.uid(id).gid(id)
    }
}

#[test]
fn a_read_that_fails_ends_the_run() {
    let store = filled(StoreOptions::default());
    let (warmfs, tmp) = of(&store);
    let denied = Fault::Status { status: 403, code: "AccessDenied".into(), retry_after_s: None };
    let mut rule = FaultRule::next(u64::MAX, Op::Get, denied);
    rule.key_contains = "data/1/04".to_owned();
    store.set_faults(vec![rule]);
    let line = warmfs.fails_as(&mut warmfs.command(&["bench", URI, "--direct", "--json"]));
    assert!(line.contains("cannot read data/1/04"), "{line}");
    let line = warmfs.fails_as(&mut warmfs.command(&["bench", URI, "--json"]));
    assert!(line.contains("/1/04: permission denied (EACCES)"), "{line}");
    assert_nothing_left(&warmfs, &tmp);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let store =
            filled(StoreOptions { ttfb: Duration::from_millis(5), ..StoreOptions::default() });
        let (warmfs, tmp) = of(&store);
        let code = interrupted(&warmfs, signal, || store.counts().get.requests > 10);
        assert_eq!(code, 128 + signal as i32);
        assert_nothing_left(&warmfs, &tmp);
    }
}

#[test]
fn a_run_interrupted_while_it_mounts_leaves_nothing() {
    // The mount waits for its first listing for longer than the test may take.
    let list_page_delay = Some(Duration::from_secs(300));
    let store = filled(StoreOptions { list_page_delay, ..StoreOptions::default() });
    let (warmfs, tmp) = of(&store);
    let code = interrupted(&warmfs, Signal::SIGINT, || store.counts().list.requests > 0);
    assert_eq!(code, 130);
    assert_nothing_left(&warmfs, &tmp);
}

/// Sends `signal` to a run without end once `when` is true, and gives its exit code.
fn interrupted(warmfs: &Warmfs, signal: Signal, when: impl Fn() -> bool) -> i32 {
    let mut command = warmfs.command(&["bench", URI, "--epochs", "1000", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    eventually("it is under way", when);
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let status = wait(&mut child);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(stderr, "warmfs: interrupted\n");
    status.code().unwrap()
}
