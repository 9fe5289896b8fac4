//! `warmfs prefetch`: the real binary, a mount, and what the store was asked for.

mod common;

use std::fs;
use std::io::Write;
use std::process::Stdio;

use bytes::Bytes;
use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::embedded_store::StoreOptions;

const OBJECTS: usize = 40;
const BYTES: usize = 300_000;

fn fill(store: &Store) {
    for n in 0..OBJECTS {
        let folder = if n % 2 == 0 { "even" } else { "odd" };
        store.put(BUCKET, format!("data/{folder}/{n:02}"), noise(n as u64, BYTES));
    }
    store.put(BUCKET, "data/large", noise(99, 20 << 20));
}

fn mounted(warmfs: &Warmfs, options: &[&str]) -> String {
    let options = [&["--warm", "off"], options].concat();
    warmfs.mount_with("s3://bucket/data", "mount", &options).display().to_string()
}

fn gets(store: &Store) -> u64 {
    store.counts().get.requests
}

#[test]
fn folders_files_and_lists_are_fetched_once() {
    let store = Store::start();
    fill(&store);
    let warmfs = store.warmfs();
    let dir = mounted(&warmfs, &["--cache-size", "1G"]);
    let said = warmfs.ok(&["prefetch", &format!("{dir}/even"), "--wait"]);
    assert!(said.starts_with("prefetched 20 objects, 5.72 MiB"), "{said}");
    assert_eq!(gets(&store), 20);
    assert_eq!(warmfs.ok(&["prefetch", &format!("{dir}/even"), "--wait"]), said);
    assert_eq!(gets(&store), 20, "it is all there");
    for n in (0..OBJECTS).step_by(2) {
        let bytes = fs::read(format!("{dir}/even/{n:02}")).unwrap();
        assert_eq!(bytes, noise(n as u64, BYTES));
    }
    assert_eq!(gets(&store), 20);

    // Names by a list, a URI among them; one is wrong, and the others are fetched.
    let names = format!("{dir}/odd/01\n\ns3://bucket/data/odd/03\n{dir}/odd/none\n{dir}/odd/05\n");
    let mut child = warmfs
        .command(&["prefetch", "--from", "-", "--order", "shuffled", "--wait"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("1 path does not exist, such as") && said.contains("odd/none"), "{said}");
    assert_eq!(gets(&store), 23);

    let json = warmfs.ok(&["prefetch", &dir, "--wait", "--json"]);
    let done: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(done["command"], "prefetch");
    assert_eq!(done["objects"], OBJECTS + 1);
    assert_eq!(done["cached_bytes"], done["bytes"]);
    assert_eq!(done["unfit"], 0);
    eventually("the index has it all", || {
        warmfs.status()["cache"]["dataset_cached_bytes"] == done["bytes"]
    });
    let status = warmfs.status();
    assert_eq!(status["remote"]["get"]["requests"], gets(&store), "as the store counted");
}

#[test]
fn what_does_not_fit_is_said() {
    let store = Store::start();
    fill(&store);
    let warmfs = store.warmfs();
    let dir = mounted(&warmfs, &["--cache-size", "8M"]);
    let said = warmfs.ok(&["prefetch", &dir, "--wait"]);
    assert!(said.contains("did not fit") && said.contains("--cache-size"), "{said}");
    let used = warmfs.status()["cache"]["used_bytes"].as_u64().unwrap();
    assert!((4 << 20..=8 << 20).contains(&used), "{used}");
    assert_eq!(fs::read(format!("{dir}/large")).unwrap(), noise(99, 20 << 20));
}

/// A cache whose room is less than an object and more than half of one is full, too.
#[test]
fn whatever_room_is_left_a_prefetch_ends() {
    let store = Store::start();
    fill(&store);
    for rest in 0..4 {
        let warmfs = store.warmfs();
        let size = format!("{}", (4 << 20) + rest * BYTES / 4);
        let dir = mounted(&warmfs, &["--cache-size", &size]);
        for n in 0..OBJECTS {
            let folder = if n % 2 == 0 { "even" } else { "odd" };
            warmfs.ok(&["prefetch", &format!("{dir}/{folder}/{n:02}"), "--wait"]);
        }
        warmfs.unmount("mount");
    }
}

#[test]
fn a_prefetch_goes_on_in_the_background_until_it_is_stopped() {
    let options =
        StoreOptions { rate_bytes_per_s_per_connection: Some(1 << 20), ..StoreOptions::default() };
    let store = Store::with(options);
    fill(&store);
    let warmfs = store.warmfs();
    let dir = mounted(&warmfs, &["--cache-size", "1G"]);
    assert!(warmfs.ok(&["prefetch", &format!("{dir}/large")]).contains("--stop ends it"));
    eventually("it is under way", || warmfs.status()["prefetching"][0]["bytes_total"] == 20 << 20);
    assert!(warmfs.ok(&["status"]).contains("prefetching"), "{}", warmfs.ok(&["status"]));
    assert!(warmfs.ok(&["prefetch", "--stop"]).contains("stopped 1 prefetch"));
    eventually("it has ended", || warmfs.status()["prefetching"].as_array().unwrap().is_empty());
    assert!(warmfs.ok(&["prefetch", "--stop"]).contains("nothing was being prefetched"));
    // An unmount does not wait for one.
    warmfs.ok(&["prefetch", &dir]);
    warmfs.unmount("mount");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn an_interrupted_prefetch_goes_on_where_it_was() {
    let options =
        StoreOptions { ttfb: std::time::Duration::from_millis(50), ..StoreOptions::default() };
    let store = Store::with(options);
    for n in 0..400 {
        store.put(BUCKET, format!("data/{n}"), Bytes::from(vec![1; 1000]));
    }
    let warmfs = store.warmfs();
    let dir = mounted(&warmfs, &["--cache-size", "1G"]);
    let mut child =
        warmfs.command(&["prefetch", &dir, "--wait"]).stderr(Stdio::piped()).spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    eventually("some of it is there", || gets(&store) > 40);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(wait(&mut child).code(), Some(130));
    // What was under way comes to its end, or is asked for again.
    warmfs.ok(&["prefetch", &dir, "--wait"]);
    assert!((400..=440).contains(&gets(&store)), "{}", gets(&store));
}

#[test]
fn bad_input_is_one_line() {
    let store = Store::start();
    fill(&store);
    let warmfs = store.warmfs();
    let dir = mounted(&warmfs, &[]);
    let none = format!("{dir}/none");
    for (args, word) in [
        (&["prefetch", "/etc", "--wait"][..], "in no mount"),
        (&["prefetch", "s3://other/x"], "is not mounted"),
        (&["prefetch", "--from", "/no/such/file"], "cannot read names"),
        (&["prefetch", "--from", "/dev/null"], "no file was named"),
        (&["prefetch", &none, "--wait"], "does not exist"),
    ] {
        let line = warmfs.fails(args);
        assert!(line.contains(word), "{args:?}: {line}");
    }
    warmfs.unmount("mount");
    let line = warmfs.fails(&["prefetch", &dir]);
    assert!(line.contains("in no mount"), "{line}");
}
