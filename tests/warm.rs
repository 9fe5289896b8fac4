//! Files fetched before they are read, by the real binary over the embedded
//! store: what is asked of the store is counted in its own log.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};
use serde_json::Value;
use warmfs::embedded_store::{EmbeddedStore, Fault, FaultRule, Op, StoreOptions};

/// Enough requests in flight for several at once, few enough for a test.
const TTFB: Duration = Duration::from_millis(10);

const FILES: usize = 400;
const FILE_BYTES: usize = 40 << 10;

fn store() -> Store {
    Store::with(StoreOptions { ttfb: TTFB, ..StoreOptions::default() })
}

fn put_files(store: &EmbeddedStore, folder: &str, count: usize, size: usize) -> Vec<String> {
    let keys: Vec<String> = (0..count).map(|i| format!("{folder}{i:05}")).collect();
    for (i, key) in keys.iter().enumerate() {
        store.put(BUCKET, key.as_str(), noise(i as u64, size));
    }
    keys
}

fn shuffled(keys: &[String]) -> Vec<String> {
    let mut keys = keys.to_vec();
    fastrand::Rng::with_seed(7).shuffle(&mut keys);
    keys
}

/// Reads every file once, `readers` at a time, in the order given.
fn read_all(mount: &Path, keys: &[String], readers: usize) {
    let queue = Mutex::new(keys.iter());
    std::thread::scope(|scope| {
        for _ in 0..readers {
            scope.spawn(|| {
                loop {
                    let Some(key) = queue.lock().unwrap().next() else { return };
                    fs::read(mount.join(key)).unwrap();
                }
            });
        }
    });
}

fn warming(warmfs: &Warmfs) -> Value {
    warmfs.status()["mounts"][0]["warming"].clone()
}

/// Until nothing more is fetched by itself.
fn wait_until_idle(warmfs: &Warmfs) {
    eventually("nothing is fetched ahead", || warming(warmfs)["state"] != "fetching");
}

fn prefetched(warmfs: &Warmfs) -> u64 {
    warmfs.status()["prefetched"]["objects"].as_u64().unwrap()
}

/// One that takes too long may be asked again: 1 %.
fn assert_one_get_each(gets: u64, files: usize) {
    let files = files as u64;
    assert!((files..=files + files / 100).contains(&gets), "{gets} GETs for {files} files");
}

#[test]
fn a_shuffled_epoch_asks_once_for_each_file() {
    let store = store();
    let keys = put_files(&store, "train/", FILES, FILE_BYTES);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_eq!(fs::read_dir(mount.join("train")).unwrap().count(), FILES);
    read_all(&mount, &shuffled(&keys), 8);
    wait_until_idle(&warmfs);
    let counts = store.counts();
    assert_one_get_each(counts.get.requests, FILES);
    assert!(counts.get.bytes <= (FILES * FILE_BYTES * 51 / 50) as u64, "{counts:?}");
    assert_eq!(counts.head.requests, 0);
    assert!(prefetched(&warmfs) > FILES as u64 / 2, "{}", prefetched(&warmfs));
    assert_eq!(warming(&warmfs)["of_objects"], FILES as u64);
}

#[test]
fn who_reads_in_order_finds_what_comes_next() {
    let store = store();
    let keys = put_files(&store, "a/", FILES, FILE_BYTES);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_eq!(fs::read_dir(mount.join("a")).unwrap().count(), FILES);
    // The reader begins in the middle, and stops.
    read_all(&mount, &keys[200..210], 1);
    eventually("files after the reader are there", || prefetched(&warmfs) >= 20);
    wait_until_idle(&warmfs);
    let gets = store.counts().get.requests;
    assert!(gets < 200, "{gets} for ten files that were read");
    read_all(&mount, &keys[210..220], 1);
    assert!(store.counts().get.requests < 200);
    let before: Vec<_> = keys[..180].iter().map(|key| blocks(&mount.join(key))).collect();
    assert!(before.iter().all(|blocks| *blocks <= 1), "nothing before the reader");
}

fn blocks(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap())
}

#[test]
fn grep_through_many_small_folders_is_ahead_of_itself() {
    let store = store();
    let mut keys = Vec::new();
    for folder in 0..60 {
        keys.extend(put_files(&store, &format!("src/{folder:03}/"), 6, 4 << 10));
    }
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    let output = std::process::Command::new("grep")
        .args(["-r", "-c", "nothing that is there"])
        .arg(&mount)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    wait_until_idle(&warmfs);
    let counts = store.counts();
    assert_one_get_each(counts.get.requests, keys.len());
    assert_eq!(counts.head.requests, 0);
    assert!(prefetched(&warmfs) > 100, "{}", prefetched(&warmfs));
}

#[test]
fn a_class_folder_each_is_one_dataset() {
    let store = store();
    let mut keys = Vec::new();
    for class in 0..100 {
        keys.extend(put_files(&store, &format!("train/n{class:04}/"), 6, FILE_BYTES));
    }
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    read_all(&mount, &shuffled(&keys), 8);
    wait_until_idle(&warmfs);
    let counts = store.counts();
    assert_one_get_each(counts.get.requests, keys.len());
    assert!(prefetched(&warmfs) > keys.len() as u64 / 4, "{}", prefetched(&warmfs));
}

#[test]
fn three_files_opened_by_hand_are_three_objects() {
    let store = store();
    let keys = put_files(&store, "a/", FILES, FILE_BYTES);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_eq!(fs::read_dir(mount.join("a")).unwrap().count(), FILES);
    read_all(&mount, &keys[..3], 1);
    assert_eq!(warming(&warmfs)["state"], "waiting");
    assert_eq!(store.counts().get.requests, 3);
    assert_eq!(prefetched(&warmfs), 0);
}

#[test]
fn headers_of_large_files_are_headers() {
    const SIZE: usize = 2 << 20;
    let store = store();
    let keys = put_files(&store, "a/", 50, SIZE);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    for key in &keys {
        let mut header = vec![0; 64 << 10];
        File::open(mount.join(key)).unwrap().read_exact(&mut header).unwrap();
    }
    assert_eq!(warming(&warmfs)["state"], "waiting");
    assert_eq!(prefetched(&warmfs), 0);
}

#[test]
fn off_fetches_what_is_read() {
    let store = store();
    let keys = put_files(&store, "a/", 100, FILE_BYTES);
    let warmfs = store.warmfs();
    let mount = mount_warm(&warmfs, "off", &[]);
    assert_eq!(fs::read_dir(mount.join("a")).unwrap().count(), 100);
    read_all(&mount, &keys[..50], 4);
    assert_eq!(store.counts().get.requests, 50);
    assert_eq!(warming(&warmfs)["state"], "off");
}

#[test]
fn all_fetches_everything_by_itself() {
    let store = store();
    let mut bytes = 0;
    for folder in ["", "a/", "a/b/", "c/"] {
        bytes += put_files(&store, folder, 30, FILE_BYTES).len() * FILE_BYTES;
    }
    let warmfs = store.warmfs();
    mount_warm(&warmfs, "all", &[]);
    eventually("all of it is there", || {
        warming(&warmfs)["state"] == "done"
            && warmfs.status()["cache"]["dataset_cached_bytes"] == bytes
    });
    let counts = store.counts();
    assert_eq!((counts.get.requests, counts.get.bytes), (120, bytes as u64));
    assert_eq!(counts.head.requests, 0);
    assert_eq!(warming(&warmfs)["objects"], 120);
    assert_eq!(warming(&warmfs)["of_objects"], 120);
}

#[test]
fn all_that_does_not_fit_is_said_and_left() {
    let store = store();
    let keys = put_files(&store, "a/", 64, 1 << 20);
    let warmfs = store.warmfs();
    let mount = mount_warm(&warmfs, "all", &["--cache-size", "24M"]);
    eventually("it is said", || warming(&warmfs)["all_is_too_large"] == true);
    assert_eq!(store.counts().get.requests, 0);
    // As auto from now on, and never so much that something has to go.
    read_all(&mount, &keys[..12], 1);
    eventually("there is no room", || warming(&warmfs)["state"] == "full");
    let status = warmfs.status();
    assert_eq!(status["evictions"]["objects"], 0);
    assert!(prefetched(&warmfs) > 0);
    assert!(status["cache"]["used_bytes"].as_u64() <= status["cache"]["limit_bytes"].as_u64());
}

/// `--warm all` of 100 files, of which the store answers some with `rule` at first:
/// what it is once all of them are cached.
fn warm_all_in_spite_of(rule: FaultRule) -> (Store, Warmfs) {
    let store = store();
    let keys = put_files(&store, "a/", 100, FILE_BYTES);
    store.set_faults(vec![rule]);
    let warmfs = store.warmfs();
    mount_warm(&warmfs, "all", &[]);
    eventually("all of it is there", || {
        let cached = warmfs.status()["cache"]["dataset_cached_bytes"].as_u64();
        warming(&warmfs)["state"] == "done" && cached == Some((keys.len() * FILE_BYTES) as u64)
    });
    assert_eq!(warming(&warmfs)["objects"], keys.len() as u64);
    (store, warmfs)
}

#[test]
fn an_object_that_fails_is_fetched_after_the_others() {
    let fault = Fault::Status { status: 500, code: "InternalError".into(), retry_after_s: None };
    // All attempts of the first time.
    let rule =
        FaultRule { key_contains: "a/00003".to_owned(), ..FaultRule::next(5, Op::Get, fault) };
    let (store, _warmfs) = warm_all_in_spite_of(rule);
    assert_eq!(store.counts().get.requests, 100 + 5);
}

#[test]
fn a_store_that_throttles_gets_its_objects_warmed_and_its_readers_served() {
    const REFUSED: u64 = 50;
    let busy = Fault::Status { status: 503, code: "SlowDown".into(), retry_after_s: None };
    let rule = FaultRule { skip: 20, ..FaultRule::next(REFUSED, Op::Get, busy) };
    let (store, warmfs) = warm_all_in_spite_of(rule);
    assert_eq!(store.counts().get.requests, 100 + REFUSED, "each object came once");
    assert_eq!(warmfs.status()["remote"]["throttled"], REFUSED);
    let read = fs::read(warmfs.path("mount/a/00099")).unwrap();
    assert!(read == noise(99, FILE_BYTES));
}

#[test]
fn nothing_is_fetched_ahead_past_the_cap() {
    const CAP: u64 = 1 << 20;
    let store = store();
    put_files(&store, "a/", 100, FILE_BYTES);
    let warmfs = store.warmfs();
    mount_warm(&warmfs, "all", &["--max-download", "1M"]);
    eventually("it says so", || warming(&warmfs)["state"] == "download-cap");
    eventually("as much came as may", || {
        let fetched = store.counts().get.bytes;
        assert!(fetched <= CAP, "{fetched}");
        fetched + FILE_BYTES as u64 > CAP
    });
}

#[test]
fn listing_all_ends_with_its_mount() {
    const FOLDERS: u64 = 2_000;
    let store = store();
    for folder in 0..FOLDERS {
        store.put(BUCKET, format!("all/{folder:05}/a"), noise(folder, 10));
    }
    store.put(BUCKET, "other/a", noise(1, 10));
    let warmfs = store.warmfs();
    warmfs.mount_uri("s3://bucket/other", "other");
    warmfs.mount_with("s3://bucket/all", "mount", &["--warm", "all"]);
    eventually("it lists", || store.counts().list.requests > 20);
    warmfs.unmount("mount");
    eventually("nothing more is listed", || {
        let before = store.counts().list.requests;
        (0..20).all(|_| warmfs.status().is_object() && store.counts().list.requests == before)
    });
    let lists = store.counts().list.requests;
    assert!(lists < FOLDERS, "{lists}");
}

fn mount_warm(warmfs: &Warmfs, what: &str, options: &[&str]) -> PathBuf {
    warmfs.mount_with("s3://bucket", "mount", &[&["--warm", what], options].concat())
}
