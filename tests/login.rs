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

/// A command that prints the key in a file, and counts its runs.
fn key_command(dir: &Path, life_s: u64) -> String {
    let dir = dir.display();
    format!(
        r#"echo run >> {dir}/runs; test -f {dir}/key || {{ echo 'log in first' >&2; exit 7; }}
        printf '{{"AccessKeyId":"%s","SecretAccessKey":"hidden","Expiration":%s}}' \
            "$(cat {dir}/key)" $(( $(date +%s) + {life_s} ))"#
    )
}

#[test]
fn a_command_gives_credentials_again_and_again() {
    let access = Access::Key("AKIDGOOD".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    for name in ["data/a", "data/b", "data/c", "data/d"] {
        store.put(BUCKET, name, Bytes::from(name.to_owned()));
    }
    let warmfs = store.warmfs();
    let dir = tempfile::tempdir().unwrap();
    let runs = || fs::read_to_string(dir.path().join("runs")).unwrap().lines().count();
    let key = |key: &str| fs::write(dir.path().join("key"), key).unwrap();
    let command = key_command(dir.path(), 3600);
    let options = ["--warm", "off", "--metadata-ttl", "inf", "--credential-command", &command];

    // Its failure is the mount's: what was named is never replaced by no credentials.
    let mut args = vec!["mount", "s3://bucket/data", "mount"];
    args.extend(options);
    let said = warmfs.fails_as(warmfs.command(&args).current_dir(dir.path()));
    assert!(said.contains("--credential-command") && said.contains("log in first"), "{said}");
    assert_eq!((runs(), store.counts().list.requests), (1, 0));

    key("AKIDGOOD");
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    assert_eq!(fs::read(mount.join("a")).unwrap(), b"data/a");
    assert_eq!(runs(), 2, "once, and kept");

    // The store refuses what it has: the command is asked once more, behind nobody's back.
    let expired =
        Fault::Status { status: 400, code: "ExpiredToken".to_owned(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(1, Op::Get, expired.clone())]);
    assert_eq!(fs::read(mount.join("b")).unwrap(), b"data/b");
    assert_eq!(runs(), 3);

    // What is pushed comes first.
    fs::remove_file(dir.path().join("key")).unwrap();
    let renew = |json| {
        let mut renew = warmfs.command(&["renew", mount.to_str().unwrap()]);
        renew.env("WARMFS_CREDENTIALS", json);
        renew
    };
    let json = r#"{"AccessKeyId":"AKIDGOOD","SecretAccessKey":"hidden"}"#;
    assert!(renew(json).status().unwrap().success());
    assert_eq!(fs::read(mount.join("c")).unwrap(), b"data/c");
    assert_eq!(runs(), 3);
    let said = warmfs.fails_as(&mut renew("hidden"));
    assert!(said.contains("WARMFS_CREDENTIALS: that is no key set"), "{said}");

    // Pushed credentials that end are not asked for again; new ones heal the mount.
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::Get, expired)]);
    assert_eq!(errno(&mount.join("d")), Some(libc::EACCES));
    store.set_faults(Vec::new());
    assert!(renew(json).status().unwrap().success());
    assert_eq!(fs::read(mount.join("d")).unwrap(), b"data/d");
    assert_eq!(runs(), 3);
    assert!(!warmfs.log().contains("hidden"));
}

#[test]
fn credentials_are_renewed_before_they_end() {
    let store = Store::with(StoreOptions {
        access: Access::Key("AKIDGOOD".to_owned()),
        ..StoreOptions::default()
    });
    store.put(BUCKET, "data/a", Bytes::from("a"));
    let warmfs = store.warmfs();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "AKIDGOOD").unwrap();
    let runs = || fs::read_to_string(dir.path().join("runs")).unwrap().lines().count();
    // Of such a life the last 2 s are for renewal.
    let command = key_command(dir.path(), 8);
    let options = ["--warm", "off", "--metadata-ttl", "0s", "--credential-command", &command];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    common::eventually("a second run, behind the readers", || {
        assert_eq!(fs::read_dir(&mount).unwrap().count(), 1);
        runs() >= 2
    });
    assert!(warmfs.status()["mounts"][0]["refusal"].is_null());
}
