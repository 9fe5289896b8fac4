//! `warmfs ls` and `warmfs du` against real mounts: what they say is what the store has
//! and what plain `du` counts.

mod common;

use std::fs;

use bytes::Bytes;
use common::eventually;
use common::store::{BUCKET, Store};
use warmfs::embedded_store::{Fault, FaultRule, Op};

const CHUNK: usize = 128 << 10;

fn filled() -> Store {
    let store = Store::start();
    for (key, bytes) in [
        ("data/a/1.bin", 2 * CHUNK),
        ("data/a/2.bin", CHUNK),
        ("data/a/deep/3.bin", 10),
        ("data/b/4.bin", 5),
        ("data/top.bin", 7),
        ("data/a", 3),
        ("data/x//y", 1),
        ("data/..", 4),
    ] {
        store.put(BUCKET, key, Bytes::from(vec![7; bytes]));
    }
    store
}

#[test]
fn ls_shows_names_sizes_and_what_is_cached() {
    let store = filled();
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let dir = mount.to_str().unwrap();
    assert_eq!(warmfs.ok(&["ls", dir]), "a/\na~object\nb/\ntop.bin\nx/\n");
    let uri = warmfs.ok(&["ls", "s3://bucket/data/a"]);
    assert_eq!(uri, "1.bin\n2.bin\ndeep/\n");
    fs::read(mount.join("a/1.bin")).unwrap();
    let cached = || warmfs.ok(&["ls", "--cached", &format!("{dir}/a")]) == "1.bin\n";
    eventually("what was read is cached", cached);
    assert_eq!(warmfs.ok(&["ls", "--not-cached", &format!("{dir}/a")]), "2.bin\ndeep/\n");
    let long = warmfs.ok(&["ls", "-l", &format!("{dir}/a")]);
    let line = long.lines().next().unwrap();
    assert!(
        line.contains("256 KiB") && line.contains("100 %") && line.ends_with("1.bin"),
        "{long}"
    );
    assert_eq!(warmfs.ok(&["ls", &format!("{dir}/top.bin")]), "top.bin\n");
    let json = warmfs.ok(&["ls", "--json", &format!("{dir}/a")]);
    let first: serde_json::Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((first["name"].as_str(), first["bytes"].as_u64()), (Some("1.bin"), Some(262_144)));
    assert_eq!(warmfs.ok(&["ls", "--hidden", dir]), "..\n");
    assert_eq!(warmfs.ok(&["ls", "--hidden", &format!("{dir}/x")]), "/\n");
    assert_eq!(warmfs.ok(&["ls", "--hidden", &format!("{dir}/top.bin")]), "");
    assert!(warmfs.fails(&["ls", &format!("{dir}/none")]).contains("does not exist"));
    warmfs.unmount("mount");
}

#[test]
fn du_sums_up_what_is_there_and_what_is_cached() {
    let store = filled();
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let dir = mount.to_str().unwrap();
    let sums = |depth: &str| -> Vec<(String, u64, u64, u64)> {
        let json = warmfs.ok(&["du", "--json", "-d", depth, dir]);
        let rows = json.lines().map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let number = |name: &str| row[name].as_u64().unwrap();
            let name = row["name"].as_str().unwrap().to_owned();
            (name, number("objects"), number("bytes"), number("cached_bytes"))
        });
        rows.collect()
    };
    let chunk = CHUNK as u64;
    let row = |name: &str, objects, bytes, cached| (name.to_owned(), objects, bytes, cached);
    // Nothing was listed before: it is, for this.
    let all = row("", 6, 3 * chunk + 10 + 5 + 7 + 3, 0);
    assert_eq!(sums("0"), std::slice::from_ref(&all));
    fs::read(mount.join("a/1.bin")).unwrap();
    eventually("what was read is counted", || sums("0")[0].3 == 2 * chunk);
    let with_cached = |name, objects, bytes| row(name, objects, bytes, 2 * chunk);
    assert_eq!(
        sums("2"),
        [
            row("a/deep", 1, 10, 0),
            with_cached("a", 3, 3 * chunk + 10),
            row("b", 1, 5, 0),
            row("x", 0, 0, 0),
            with_cached("", all.1, all.2),
        ]
    );
    let lists = store.counts().list.requests;
    let one = warmfs.ok(&["du", &format!("{dir}/top.bin")]);
    assert!(one.contains("1 object"), "{one}");
    assert_eq!(store.counts().list.requests, lists, "an object is no folder");
    let text = warmfs.ok(&["du", "-d", "1", dir]);
    assert!(text.lines().next().unwrap().contains("256 KiB of"), "{text}");
    warmfs.unmount("mount");
}

#[test]
fn what_is_known_is_shown_although_the_rest_cannot_be() {
    let store = filled();
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let dir = mount.to_str().unwrap();
    assert_eq!(warmfs.ok(&["ls", &format!("{dir}/b")]), "4.bin\n");
    let denied =
        Fault::Status { status: 403, code: "AccessDenied".to_owned(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::List, denied)]);
    let output = warmfs.run(&["du", "-d", "1", dir]);
    assert!(!output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.ends_with("  b")), "{text}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    warmfs.unmount("mount");
}

#[test]
fn names_of_any_length_and_with_any_character_are_one_line_each() {
    let store = Store::start();
    for n in 0..600 {
        let name = format!("data/{n:03}\n{}", "\u{1}".repeat(240));
        store.put(BUCKET, name, Bytes::from_static(b"x"));
    }
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let text = warmfs.ok(&["ls", mount.to_str().unwrap()]);
    assert_eq!(text.lines().count(), 600);
    assert!(!text.contains('\u{1}'), "nothing that steers a terminal");
    warmfs.unmount("mount");
}

#[test]
fn a_refresh_shows_the_kernel_what_changed() {
    let store = filled();
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(mount.join(folder)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("b"), ["4.bin"]);
    assert_eq!(fs::read(mount.join("b/4.bin")).unwrap(), [7; 5]);
    store.put(BUCKET, "data/b/5.bin", Bytes::from_static(b"new"));
    store.put(BUCKET, "data/b/4.bin", Bytes::from_static(b"other"));
    assert_eq!(names("b"), ["4.bin"], "within the TTL");
    assert!(warmfs.ok(&["refresh", mount.to_str().unwrap()]).starts_with("refreshed 4 folders"));
    eventually("the kernel was told", || names("b") == ["4.bin", "5.bin"]);
    assert_eq!(fs::read(mount.join("b/5.bin")).unwrap(), b"new");
    eventually("the name leads to the new version", || {
        fs::read(mount.join("b/4.bin")).unwrap() == b"other"
    });
    assert!(warmfs.ok(&["refresh", "s3://bucket/data/b"]).starts_with("refreshed 1 folder:"));
    warmfs.unmount("mount");
    assert!(warmfs.fails(&["refresh", mount.to_str().unwrap()]).contains("no mount"));
}
