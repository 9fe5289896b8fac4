//! Views: files that are read at the daemon's socket, beside mounts and without any.

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::socket::{Connection, Opened};
use common::store::{BUCKET, Store};
use common::tree::{assert_same, noise};
use common::{Warmfs, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use warmfs::embedded_store::{Fault, FaultRule, Op};

const URI: &str = "s3://bucket/data";

/// What the daemon has, as `src/daemon/reads.rs` says.
const ANSWERED_MAX: usize = 64;
const WAITING_MAX: usize = 256;
const READ_BYTES_MAX: u64 = 16 << 20;

const LARGE: usize = (20 << 20) + 12_345;

/// A few files, one of which is larger than a read may be.
fn filled() -> Store {
    let store = Store::start();
    store.put(BUCKET, "data/large", noise(1, LARGE));
    store.put(BUCKET, "data/a/small", noise(2, 100_000));
    store.put(BUCKET, "data/a/other", noise(3, 5_000_000));
    store.put(BUCKET, "data/empty", Bytes::new());
    store
}

/// A view of the files, that fetches nothing ahead of its readers' files.
fn view(warmfs: &Warmfs) -> String {
    let said = warmfs.ok(&["mount", "--no-fuse", URI, "--warm", "off"]);
    assert!(said.starts_with(URI) && said.contains("Python"), "{said}");
    URI.to_owned()
}

fn at(name: &str) -> String {
    format!("{URI}/{name}")
}

fn gets(store: &Store) -> u64 {
    store.counts().get.requests
}

#[test]
fn a_view_reads_what_a_mount_cached_and_the_other_way_round() {
    let store = filled();
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with(URI, "mount", &["--warm", "off"]);
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);

    // Cold, on one connection, and then warm.
    let large = socket.open(&at("large")).unwrap();
    assert_eq!(large.size, LARGE as u64);
    assert_same(&socket.read_all(&large).unwrap(), &noise(1, LARGE), "cold");
    let cold = gets(&store);
    assert!(cold > 1, "it is fetched in parts, ahead of its reader");
    assert_same(&socket.read_all(&large).unwrap(), &noise(1, LARGE), "warm");
    assert_same(&fs::read(mount.join("large")).unwrap(), &noise(1, LARGE), "through the kernel");
    assert_eq!(gets(&store), cold);

    // What the kernel read first.
    assert_same(&fs::read(mount.join("a/other")).unwrap(), &noise(3, 5_000_000), "mount");
    let cold = gets(&store);
    let other = socket.open(&at("a/other")).unwrap();
    assert_same(&socket.read_all(&other).unwrap(), &noise(3, 5_000_000), "view");
    // A path in the mount leads to the same file.
    let by_path = socket.open(mount.join("a/other").to_str().unwrap()).unwrap();
    assert_eq!(by_path.ino, other.ino);
    assert_same(
        &socket.read(&by_path, 4_999_990, 100).unwrap(),
        &noise(3, 5_000_000)[4_999_990..],
        "",
    );
    assert_eq!(gets(&store), cold);

    let status = warmfs.status();
    let [_, view] = status["mounts"].as_array().unwrap().as_slice() else { panic!("{status}") };
    assert_eq!((&view["uri"], &view["dir"]), (&json!(URI), &json!(URI)));
    assert_eq!((&view["view"], &view["mode"]), (&json!(true), &json!("socket")));
    let (hits, misses) = (&view["reads"]["hit_bytes"], &view["reads"]["miss_bytes"]);
    assert_eq!(hits.as_u64().unwrap() + misses.as_u64().unwrap(), 2 * LARGE as u64 + 5_000_000);
    assert!(misses.as_u64().unwrap() > 0 && hits.as_u64().unwrap() > LARGE as u64);
    assert!(warmfs.ok(&["status", URI]).contains("no folder"));

    // It holds the daemon, and is ended by its name.
    warmfs.unmount("mount");
    assert_eq!(socket.read(&large, 0, 10).unwrap().len(), 10);
    warmfs.ok(&["unmount", &format!("{URI}/")]);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn a_folder_that_shows_another_bucket_is_not_read_for_the_first() {
    let store = filled();
    store.put(BUCKET, "other/large", noise(9, 1_000));
    let warmfs = store.warmfs();
    view(&warmfs);
    let mount = warmfs.mount_with(URI, "mount", &["--warm", "off"]);
    let mut socket = Connection::to(&warmfs);
    let large = socket.open(mount.join("large").to_str().unwrap()).unwrap();
    assert_eq!(socket.read(&large, 0, 10).unwrap().len(), 10);
    warmfs.unmount("mount");
    warmfs.mount_with("s3://bucket/other", "mount", &["--warm", "off"]);
    // What an inode number names is there: it is another mount's.
    assert_eq!(socket.read(&large, 0, 10).unwrap_err(), "not-mounted");
    let other = socket.open(mount.join("large").to_str().unwrap()).unwrap();
    assert_eq!((other.uri.as_str(), other.size), ("s3://bucket/other", 1_000));
    assert_same(&socket.read_all(&other).unwrap(), &noise(9, 1_000), "the other one");
    warmfs.unmount("mount");
    warmfs.ok(&["unmount", URI]);
}

#[test]
fn the_verbs_take_a_views_uri() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    assert_eq!(warmfs.ok(&["ls", URI]), "a/\nempty\nlarge\n");
    assert_eq!(warmfs.ok(&["ls", &at("a")]), "other\nsmall\n");
    warmfs.ok(&["prefetch", "--wait", &at("a")]);
    assert_eq!(warmfs.ok(&["ls", "--cached", &at("a")]), "other\nsmall\n");
    let fetched = gets(&store);
    let mut socket = Connection::to(&warmfs);
    let small = socket.open(&at("a/small")).unwrap();
    assert_same(&socket.read_all(&small).unwrap(), &noise(2, 100_000), "prefetched");
    assert_eq!(gets(&store), fetched);
    warmfs.ok(&["pin", &at("large")]);
    let sums = warmfs.ok(&["du", URI]);
    assert!(sums.contains("24.9 MiB of   24.9 MiB"), "{sums}");
    warmfs.ok(&["evict", URI]);
    assert_eq!(warmfs.ok(&["ls", "--cached", URI]), "empty\nlarge\n", "what is pinned stays");
    warmfs.ok(&["renew", URI]);
    let order = json!({"dir": URI, "order": "o", "first": 0, "paths": ["a/small", "large"]});
    assert_eq!(socket.ask("/v1/hint", &order).unwrap().0, 200);
    warmfs.ok(&["refresh", &at("a")]);

    // The same again is success; with other options it is not.
    view(&warmfs);
    let refused = warmfs.fails(&["mount", "--no-fuse", URI, "--warm", "all"]);
    assert!(refused.contains("with other options: `warmfs unmount s3://"), "{refused}");
    let refused = warmfs.fails(&["mount", "--no-fuse", URI, warmfs.path("x").to_str().unwrap()]);
    assert!(refused.contains("--no-fuse there is no folder"), "{refused}");
    let refused = warmfs.fails(&["ls", &at("none")]);
    assert!(refused.contains("does not exist"), "{refused}");
    warmfs.ok(&["unmount", URI]);
    warmfs.assert_nothing_left(&[]);
}

#[test]
fn a_changed_object_is_stale_and_never_of_two_versions() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);
    let old = socket.open(&at("large")).unwrap();
    assert_same(&socket.read(&old, 0, 1_000).unwrap(), &noise(1, LARGE)[..1_000], "before");
    store.put(BUCKET, "data/large", noise(9, LARGE));
    // Far behind what was fetched ahead.
    let last = LARGE as u64 - 1_000;
    assert_eq!(socket.read(&old, last, 1_000).unwrap_err(), "stale");
    // What is cached is served as what it was.
    assert_same(&socket.read(&old, 0, 1_000).unwrap(), &noise(1, LARGE)[..1_000], "after");
    let new = socket.open(&at("large")).unwrap();
    assert_ne!((new.ino, &new.version), (old.ino, &old.version));
    assert_same(&socket.read_all(&new).unwrap(), &noise(9, LARGE), "opened again");

    // Of an inode another version is not there, nor of another inode this one.
    let mixed = Opened { version: old.version.clone(), ..new.clone() };
    assert_eq!(socket.read(&mixed, 0, 1).unwrap_err(), "stale");
    let unknown = Opened { ino: 1 << 60, ..new };
    assert_eq!(socket.read(&unknown, 0, 1).unwrap_err(), "stale");
    warmfs.ok(&["unmount", URI]);
}

#[test]
fn what_cannot_be_read_is_said_in_a_word() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);
    let large = socket.open(&at("large")).unwrap();
    assert_eq!(socket.read(&large, 0, READ_BYTES_MAX + 1).unwrap_err(), "invalid");
    let whole = socket.read(&large, 1, READ_BYTES_MAX).unwrap();
    assert_same(&whole, &noise(1, LARGE)[1..=READ_BYTES_MAX as usize], "as much as may be");
    for offset in [LARGE as u64, LARGE as u64 + 1, u64::MAX] {
        assert_eq!(socket.read(&large, offset, 100).unwrap(), b"", "at {offset}");
    }
    assert_eq!(socket.read(&large, 7, 0).unwrap(), b"");
    let empty = socket.open(&at("empty")).unwrap();
    assert_eq!(socket.read(&empty, 0, 100).unwrap(), b"");
    let folder = socket.open(&at("a")).unwrap();
    assert_eq!(socket.read(&folder, 0, 1).unwrap_err(), "invalid");
    let top = socket.open(URI).unwrap();
    assert_eq!(socket.read(&top, 0, 1).unwrap_err(), "invalid");
    assert_eq!(socket.open(&at("none")).unwrap_err(), "not-found");
    assert_eq!(socket.open(&at("a/../large")).unwrap_err(), "not-found", "no key's name");
    assert_eq!(socket.open("s3://bucket/other").unwrap_err(), "not-mounted");
    let elsewhere = Opened { dir: "/no/mount".to_owned(), ..large.clone() };
    assert_eq!(socket.read(&elsewhere, 0, 1).unwrap_err(), "not-mounted");
    // A remote that fails is not a file that changed.
    let no = Fault::Status { status: 403, code: "AccessDenied".to_owned(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::Get, no)]);
    let other = socket.open(&at("a/other")).unwrap();
    assert_eq!(socket.read(&other, 0, 1).unwrap_err(), "denied");
    warmfs.ok(&["unmount", URI]);
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[test]
fn clients_that_go_away_leave_nothing() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);
    let large = socket.open(&at("large")).unwrap();
    socket.read_all(&large).unwrap();
    let pid = warmfs.daemon().unwrap();
    let before = descriptors(pid);
    // As many as there are turns, each in the middle of its answer.
    for _ in 0..ANSWERED_MAX + 1 {
        let mut dies = Connection::to(&warmfs);
        dies.send("/v1/read", &large.range(0, READ_BYTES_MAX)).unwrap();
        assert_eq!(dies.head().unwrap(), (200, READ_BYTES_MAX));
    }
    eventually("their connections are closed", || descriptors(pid) <= before);
    let mut others: Vec<_> = (0..ANSWERED_MAX).map(|_| Connection::to(&warmfs)).collect();
    for other in &mut others {
        assert_eq!(other.read(&large, 0, READ_BYTES_MAX).unwrap().len() as u64, READ_BYTES_MAX);
    }
    warmfs.ok(&["unmount", URI]);
}

#[test]
fn more_readers_than_turns_wait_and_more_than_places_are_told() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);
    let small = socket.open(&at("a/small")).unwrap();
    socket.read_all(&small).unwrap();
    let large = socket.open(&at("large")).unwrap();
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::Get, Fault::NoAnswer)]);
    let ask = || {
        let mut one = Connection::to(&warmfs);
        one.send("/v1/read", &large.range(0, 1)).unwrap();
        one
    };
    let mut waiting: Vec<_> = (0..ANSWERED_MAX + WAITING_MAX).map(|_| ask()).collect();
    // The requests before may still be on their way.
    let mut told = None;
    while told.is_none() && waiting.len() < ANSWERED_MAX + 2 * WAITING_MAX {
        let mut one = ask();
        if one.is_answered() {
            told = Some(one);
        } else {
            waiting.push(one);
        }
    }
    let (status, length) = told.expect("somebody is told").head().unwrap();
    assert_eq!((status, length > 0), (409, true));
    // Others are answered all the while.
    assert_eq!(warmfs.status()["mounts"][0]["uri"], URI);
    // They all die, those that are answered and those that wait for it.
    drop(waiting);
    eventually("the next one has its turn", || {
        Connection::to(&warmfs).read(&small, 0, 1).is_ok_and(|bytes| bytes.len() == 1)
    });
    warmfs.ok(&["unmount", URI]);
}

#[test]
fn a_daemon_that_dies_gives_its_views_back() {
    let store = filled();
    let warmfs = store.warmfs();
    view(&warmfs);
    let mut socket = Connection::to(&warmfs);
    let large = socket.open(&at("large")).unwrap();
    socket.read_all(&large).unwrap();
    eventually("what was read is in the index", || {
        warmfs.status()["cache"]["dataset_cached_bytes"].as_u64() == Some(LARGE as u64)
    });
    store.reset_log();
    let before = warmfs.daemon().unwrap();
    kill(Pid::from_raw(before as i32), Signal::SIGKILL).unwrap();
    eventually("another daemon", || warmfs.daemon().is_some_and(|pid| pid != before));
    let mut socket = Connection::to(&warmfs);
    // The file is known by the same number.
    assert_same(&socket.read_all(&large).unwrap(), &noise(1, LARGE), "after a death");
    assert_eq!(gets(&store), 0);
    let other = socket.open(&at("a/other")).unwrap();
    assert_same(&socket.read_all(&other).unwrap(), &noise(3, 5_000_000), "not cached yet");
    assert_eq!(warmfs.status()["restarts"]["count"], 1);
    warmfs.ok(&["unmount", URI]);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    assert!(!Path::new(&format!("/proc/{before}")).exists());
    warmfs.assert_nothing_left(&[]);
}
