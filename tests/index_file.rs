//! `warmfs index export` and `mount --index`: one lists, the others do not.

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::eventually;
use common::store::{BUCKET, Store};
use warmfs::embedded_store::{Fault, FaultRule, Op};

fn filled() -> Store {
    let store = Store::start();
    for folder in 0..20 {
        for n in 0..50 {
            let key = format!("data/{folder:02}/{n:03}.bin");
            store.put(BUCKET, key.clone(), Bytes::from(key));
        }
    }
    for key in ["data/a b/é%2F", "data/x", "data/x/y", "data/..", "other/file"] {
        store.put(BUCKET, key, Bytes::from(key.to_owned()));
    }
    store
}

/// Paths and sizes of every file below `dir`.
fn tree(dir: &Path) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => pending.push(entry.path()),
                false => {
                    let path = entry.path().strip_prefix(dir).unwrap().display().to_string();
                    files.push((path, entry.metadata().unwrap().len()));
                }
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_team_lists_once() {
    let store = filled();
    let first = store.warmfs();
    let mount = first.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let file = first.path("team.index");
    let file = file.to_str().unwrap();
    let said = first.ok(&["index", "export", file]);
    assert!(said.starts_with("exported 1003 objects in 23 folders to "), "{said}");
    let expected = tree(&mount);
    assert_eq!(expected.len(), 1003);
    first.unmount("mount");
    store.put(BUCKET, "team/data.index", Bytes::from(fs::read(file).unwrap()));

    // From a file.
    let second = store.warmfs();
    store.reset_log();
    let mount = second.mount_with("s3://bucket/data", "mount", &["--warm", "off", "--index", file]);
    assert_eq!(tree(&mount), expected);
    assert_eq!(fs::read(mount.join("07/003.bin")).unwrap(), b"data/07/003.bin");
    assert_eq!(fs::read(mount.join("x~object")).unwrap(), b"data/x");
    let counts = store.counts();
    // By which the bucket was reached.
    assert_eq!(counts.list.requests, 1, "{counts:?}");
    assert_eq!((counts.head.requests, counts.get.requests), (0, 2), "{counts:?}");
    assert_eq!(second.ok(&["ls", "--hidden", mount.to_str().unwrap()]), "..\n");
    // What comes later is seen as always.
    store.put(BUCKET, "data/07/new", Bytes::from_static(b"new"));
    second.ok(&["refresh", mount.to_str().unwrap()]);
    eventually("a refresh shows what is new", || mount.join("07/new").exists());
    second.unmount("mount");

    // From the bucket, into another part of it; the index outlives the mount.
    let third = store.warmfs();
    let uri = "s3://bucket/team/data.index";
    store.reset_log();
    let options = ["--warm", "off", "--index", uri];
    let mount = third.mount_with("s3://bucket/data/07", "mount", &options);
    assert_eq!(tree(&mount).len(), 50);
    let counts = store.counts();
    let made = (counts.list.requests, counts.head.requests, counts.get.requests);
    assert_eq!(made, (1, 1, 1), "{counts:?}");
    third.unmount("mount");
}

#[test]
fn what_cannot_be_used_is_told_in_a_line() {
    let store = filled();
    store.put(BUCKET, "empty", Bytes::new());
    let warmfs = store.warmfs();
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--warm", "off"]);
    let export = |file: &Path, path: Option<&str>| {
        let mut args = vec!["index", "export", file.to_str().unwrap()];
        args.extend(path);
        warmfs.fails(&args)
    };
    let file = warmfs.path("an.index");
    let denied =
        Fault::Status { status: 403, code: "AccessDenied".to_owned(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::List, denied)]);
    assert!(export(&file, mount.to_str()).contains("the remote failed"));
    store.set_faults(Vec::new());
    assert!(export(&warmfs.path("no/folder/i"), None).contains("no such file"));
    let text = export(&warmfs.path("home"), None);
    assert!(text.contains("is a directory"), "{text}");
    warmfs.mount_with("s3://bucket/other", "second", &["--warm", "off"]);
    assert!(export(&file, None).contains("name one"));
    assert!(!file.exists());
    let left: Vec<_> = fs::read_dir(warmfs.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("partial"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    warmfs.ok(&["index", "export", file.to_str().unwrap(), "s3://bucket/other"]);
    let good = warmfs.path("good");
    warmfs.ok(&["index", "export", good.to_str().unwrap(), mount.to_str().unwrap()]);
    warmfs.unmount("second");
    warmfs.unmount("mount");

    let text = warmfs.path("text");
    fs::write(&text, "hello\n").unwrap();
    let cut = warmfs.path("cut");
    let whole = fs::read(&good).unwrap();
    fs::write(&cut, &whole[..whole.len() - 20]).unwrap();
    for (index, why) in [
        ("/nowhere/at.all", "no such file"),
        ("/dev/null", "not a file"),
        ("/", "not a file"),
        (text.to_str().unwrap(), "does not begin an index file"),
        (cut.to_str().unwrap(), "cut off"),
        (file.to_str().unwrap(), "not of s3://"),
        ("s3://bucket", "names a bucket"),
        ("s3://bucket/none", "404"),
        ("s3://bucket/empty", "empty"),
        ("ftp://bucket/x", "not supported"),
    ] {
        let dir = warmfs.path("mount");
        let dir = dir.to_str().unwrap();
        let said = warmfs.fails(&["mount", "s3://bucket/data", dir, "--index", index]);
        assert!(said.contains("cannot use --index") && said.contains(why), "{index}: {said}");
    }
    warmfs.assert_nothing_left(&["mount"]);
}
