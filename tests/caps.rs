//! What a mount may cost its user, by the real binary: the store counts it.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::epoch::compare;
use common::store::{BUCKET, Store};
use common::tree::noise;
use serde_json::Value;

const MIB: usize = 1 << 20;

fn put_files(store: &Store, count: usize) -> Vec<(String, Bytes)> {
    let file = |n: usize| (format!("{n:03}"), noise(n as u64, MIB));
    let files: Vec<_> = (0..count).map(file).collect();
    for (name, bytes) in &files {
        store.put(BUCKET, name.as_str(), bytes.clone());
    }
    files
}

#[test]
fn past_a_strict_cap_readers_are_refused_what_is_not_cached() {
    let store = Store::start();
    let files = put_files(&store, 8);
    let warmfs = store.warmfs();
    let options = ["--max-download", "3M", "--max-download-strict"];
    let mount = warmfs.mount_with("s3://bucket", "mount", &options);
    for (name, bytes) in &files[..3] {
        compare(&mount.join(name), bytes).unwrap();
    }
    for (name, _) in &files[3..] {
        let error = fs::read(mount.join(name)).map(drop).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
    }
    // What is cached stays readable, past the kernel's pages too.
    for (name, bytes) in &files[..3] {
        compare(&mount.join(name), bytes).unwrap();
    }
    assert_eq!(store.counts().get.bytes, 3 * MIB as u64);
    assert_eq!(fs::read_dir(&mount).unwrap().count(), 8, "names cost no download");
    let download: &Value = &warmfs.status()["mounts"][0]["download"];
    assert_eq!((&download["bytes"], &download["reached"]), (&(3 * MIB).into(), &true.into()));
    assert!(warmfs.log().contains("--max-download-strict refuses"), "{}", warmfs.log());
}

#[test]
fn a_cap_of_nothing_is_a_mount_of_what_is_cached() {
    let store = Store::start();
    let files = put_files(&store, 2);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    compare(&mount.join(&files[0].0), &files[0].1).unwrap();
    common::eventually("it is kept", || warmfs.status()["cache"]["objects"] == 1);
    warmfs.unmount("mount");
    let options = ["--max-download", "0", "--max-download-strict"];
    let mount = warmfs.mount_with("s3://bucket", "mount", &options);
    compare(&mount.join(&files[0].0), &files[0].1).unwrap();
    let error = fs::read(mount.join(&files[1].0)).map(drop).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
    assert_eq!(store.counts().get.requests, 1);
}

#[test]
fn a_bandwidth_is_kept_with_readers_readahead_and_warming() {
    const RATE: usize = 4 * MIB;
    let store = Store::start();
    let files = put_files(&store, 12);
    let warmfs = store.warmfs();
    let began = Instant::now();
    let mount = warmfs.mount_with("s3://bucket", "mount", &["--max-bandwidth", "4M", "--warm=all"]);
    let wanted = warmfs.status()["cache"]["dataset_bytes"].clone();
    compare(&mount.join(&files[11].0), &files[11].1).unwrap();
    common::eventually("all of it is there", || {
        warmfs.status()["cache"]["dataset_cached_bytes"] == wanted
    });
    assert_eq!(store.counts().get.bytes, 12 * MIB as u64);
    // A floor: a busy machine only makes it longer. Sockets had some bytes before.
    let least = Duration::from_secs_f64((12 - 4) as f64 * MIB as f64 / RATE as f64);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[test]
fn caps_that_let_nothing_through_are_refused() {
    let warmfs = common::Warmfs::new();
    let (source, dir) = (warmfs.source(), warmfs.path("mount"));
    for (option, words) in [
        ("--max-bandwidth=0", ["nothing would ever come", "leave it out"]),
        ("--max-requests=0", ["nothing would ever be asked for", "leave it out"]),
        ("--memory-limit=0", ["too little", "16M"]),
    ] {
        let output = warmfs.command(&["mount", &source, dir.to_str().unwrap(), option]).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        let line = text.lines().next().unwrap_or_default();
        assert!(words.iter().all(|word| line.contains(word)), "{text}");
    }
    assert!(!dir.exists());
}
