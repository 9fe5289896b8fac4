//! Credentials that end while a mount lives, and new ones for it.

mod common;

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use common::store::{BUCKET, Store};
use warmfs::embedded_store::{Access, Fault, FaultRule, Op, StoreOptions};

fn errno(path: &Path) -> Option<i32> {
    fs::read(path).err().and_then(|error: io::Error| error.raw_os_error())
}

#[test]
fn credentials_that_end_cost_what_is_not_cached_until_there_are_new_ones() {
    let access = Access::Key("AKIDGOOD".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    for name in ["data/cached", "data/other", "data/third"] {
        store.put(BUCKET, name, Bytes::from(name.to_owned()));
    }
    let mut warmfs = store.warmfs();
    warmfs.set_env("AWS_ACCESS_KEY_ID", "AKIDGOOD");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "a secret");
    let options = ["--warm", "off", "--metadata-ttl", "inf"];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    let dir = mount.to_str().unwrap().to_owned();
    assert_eq!(fs::read(mount.join("cached")).unwrap(), b"data/cached");
    let refusal = || warmfs.status()["mounts"][0]["refusal"].clone();
    assert!(refusal().is_null());

    let expired =
        Fault::Status { status: 400, code: "ExpiredToken".to_owned(), retry_after_s: None };
    let ops = [Op::Get, Op::Head, Op::List];
    store.set_faults(ops.map(|op| FaultRule::next(u64::MAX, op, expired.clone())).into());
    store.reset_log();
    assert_eq!(errno(&mount.join("other")), Some(libc::EACCES));
    // Once for each READ: the kernel sends a second one for the page that was asked for.
    assert!(store.counts().get.requests <= 2, "{:?}", store.counts());
    assert_eq!(fs::read(mount.join("cached")).unwrap(), b"data/cached");
    let text = refusal();
    assert!(text.as_str().is_some_and(|text| text.contains("ExpiredToken")), "{text}");
    let shown = warmfs.ok(&["status"]);
    assert!(shown.contains("warmfs renew"), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");

    // Others that do not work leave the mount as it is.
    store.set_faults(Vec::new());
    let mut bad = warmfs.command(&["renew", &dir]);
    let said = warmfs.fails_as(bad.env("AWS_ACCESS_KEY_ID", "AKIDOTHER"));
    assert!(said.contains("keeps the credentials it has"), "{said}");
    assert_eq!(fs::read(mount.join("third")).unwrap(), b"data/third");
    assert!(refusal().is_null());

    // New ones heal it, and so does the mount command again.
    store.set_faults(ops.map(|op| FaultRule::next(u64::MAX, op, expired.clone())).into());
    assert_eq!(errno(&mount.join("other")), Some(libc::EACCES));
    store.set_faults(Vec::new());
    warmfs.ok(&["renew", &dir]);
    assert!(refusal().is_null());
    assert_eq!(fs::read(mount.join("other")).unwrap(), b"data/other");
    warmfs.mount_with("s3://bucket/data", "mount", &options);
    warmfs.unmount("mount");
    assert!(warmfs.fails(&["renew", &dir]).contains("no daemon serves"));
    assert!(!warmfs.log().contains("a secret"));
}
