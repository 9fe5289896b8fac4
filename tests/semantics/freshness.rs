//! How long what is known is shown, and what a change in the store looks like.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use warmfs::embedded_store::{Fault, FaultRule, Op};

use crate::common::epoch::compare;
use crate::common::eventually;
use crate::common::store::{BUCKET, Store};
use crate::common::tree::noise;
use crate::{mount_data, mount_data_with, names, put_keys, requests, set, walk};

fn refresh(warmfs: &crate::common::Warmfs, dir: &Path) {
    warmfs.ok(&["refresh", dir.to_str().unwrap()]);
}

fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// S9: within the TTL.
#[test]
fn what_is_known_is_not_asked_for_again() {
    let store = Store::start();
    put_keys(&store, &["data/a/1", "data/a/2", "data/b/deep/3", "data/top"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let look = || {
        let all = walk(&mount);
        assert!(all.iter().all(|path| fs::metadata(path).is_ok()));
        for absent in ["none", "a/none", "b/deep/none"] {
            assert!(is_absent(&mount.join(absent)));
        }
        for file in all.iter().filter(|path| path.is_file()) {
            let key = format!("data/{}", file.strip_prefix(&mount).unwrap().display());
            compare(file, key.as_bytes()).unwrap();
        }
    };
    look();
    let before = requests(&store);
    look();
    assert_eq!(requests(&store), before);

    // The next mount asks how the bucket is reached, and whether there is anything.
    warmfs.unmount("mount");
    mount_data(&warmfs);
    let mounted = requests(&store);
    assert_eq!(mounted, before + 2);
    look();
    assert_eq!(requests(&store), mounted);
    // What changes meanwhile is not seen.
    put_keys(&store, &["data/a/new"]);
    store.delete(BUCKET, "data/a/1");
    assert_eq!(names(&mount.join("a")), set(["1", "2"]));
    assert!(is_absent(&mount.join("a/new")));
    warmfs.unmount("mount");
}

/// S11: a TTL of zero.
#[test]
fn without_a_ttl_each_look_is_at_the_store() {
    let store = Store::start();
    put_keys(&store, &["data/a", "data/b"]);
    let warmfs = store.warmfs();
    let mount = mount_data_with(&warmfs, &["--metadata-ttl", "0"]);
    for round in 0..3 {
        assert_eq!(names(&mount), set(["a", "b"]));
        assert!(is_absent(&mount.join("c")));
        put_keys(&store, &["data/c"]);
        store.put(BUCKET, "data/a", Bytes::from(vec![b'a'; 10 + round]));
        store.delete(BUCKET, "data/b");
        assert_eq!(fs::read_to_string(mount.join("c")).unwrap(), "data/c");
        assert_eq!(fs::metadata(mount.join("a")).unwrap().len(), 10 + round as u64);
        assert_eq!(fs::read(mount.join("a")).unwrap(), vec![b'a'; 10 + round]);
        assert!(is_absent(&mount.join("b")));
        assert_eq!(names(&mount), set(["a", "c"]));
        put_keys(&store, &["data/b"]);
        store.delete(BUCKET, "data/c");
    }
    warmfs.unmount("mount");
}

/// S12: names that are not there.
#[test]
fn an_absence_is_kept_for_as_long_as_it_is_known() {
    let store = Store::start();
    put_keys(&store, &["data/listed/x", "data/unlisted/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(names(&mount.join("listed")), set(["x"]));
    let other = warmfs.mount_with("s3://bucket/data/listed", "other", &["--warm", "off"]);
    assert!(is_absent(&other.join("later")));
    let later = |folder: &str| mount.join(folder).join("later");
    assert!(is_absent(&later("listed")) && is_absent(&later("unlisted")));
    put_keys(&store, &["data/listed/later", "data/unlisted/later"]);
    eventually("a folder that was not listed", || !is_absent(&later("unlisted")));
    assert!(is_absent(&later("listed")));
    // In every mount, whichever of them is refreshed.
    assert!(is_absent(&other.join("later")));
    refresh(&warmfs, &mount);
    eventually("a refresh shows it", || !is_absent(&later("listed")));
    eventually("in the other one too", || !is_absent(&other.join("later")));
    warmfs.unmount("other");
    warmfs.unmount("mount");
}

/// S16: deleted in the store.
#[test]
fn a_deleted_object_is_there_for_as_long_as_its_name() {
    const BYTES: usize = 300_000;
    let store = Store::start();
    for key in ["data/cached", "data/not"] {
        store.put(BUCKET, key, noise(1, BYTES));
    }
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    compare(&mount.join("cached"), &noise(1, BYTES)).unwrap();
    eventually("it is kept", || warmfs.status()["cache"]["objects"] == 1);
    for key in ["data/cached", "data/not"] {
        store.delete(BUCKET, key);
    }
    assert_eq!(names(&mount), set(["cached", "not"]));
    compare(&mount.join("cached"), &noise(1, BYTES)).unwrap();
    let mut file = File::open(mount.join("not")).unwrap();
    let error = file.read(&mut [0; 100]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
    // Who found out has told the others.
    drop(file);
    eventually("the names are gone", || names(&mount).is_empty());
    assert!(is_absent(&mount.join("not")));
    warmfs.unmount("mount");
}

/// S17: a store that does not answer.
#[test]
fn what_is_known_stays_while_the_store_fails() {
    let store = Store::start();
    put_keys(&store, &["data/folder/a", "data/folder/b"]);
    let warmfs = store.warmfs();
    // Everything is too old at once.
    let mount = mount_data_with(&warmfs, &["--metadata-ttl", "1"]);
    compare(&mount.join("folder/a"), b"data/folder/a").unwrap();
    assert_eq!(names(&mount.join("folder")), set(["a", "b"]));
    let fails = |op| {
        let code = "InternalError".to_owned();
        FaultRule::next(u64::MAX, op, Fault::Status { status: 500, code, retry_after_s: None })
    };
    store.set_faults(vec![fails(Op::List), fails(Op::Head)]);
    let lists = store.counts().list.requests;
    eventually("the TTL is over, and the store was asked", || {
        assert_eq!(names(&mount.join("folder")), set(["a", "b"]));
        assert_eq!(fs::metadata(mount.join("folder/b")).unwrap().len(), 13);
        compare(&mount.join("folder/a"), b"data/folder/a").unwrap();
        store.counts().list.requests > lists
    });
    store.set_faults(Vec::new());
    put_keys(&store, &["data/folder/c"]);
    eventually("it goes on", || names(&mount.join("folder")) == set(["a", "b", "c"]));
    warmfs.unmount("mount");
}

/// S20: what the store refuses.
#[test]
fn a_store_that_says_no_is_told_from_one_that_cannot() {
    let store = Store::start();
    put_keys(&store, &["data/a", "data/folder/b"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let says_no = |op| {
        let code = "AccessDenied".to_owned();
        FaultRule::next(u64::MAX, op, Fault::Status { status: 403, code, retry_after_s: None })
    };
    store.set_faults([Op::Get, Op::Head, Op::List].map(says_no).to_vec());
    let errno = |result: io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(errno(fs::read(mount.join("a")).map(drop)), libc::EACCES);
    assert_eq!(
        errno(fs::read_dir(mount.join("folder")).unwrap().try_for_each(|e| e.map(drop))),
        libc::EACCES
    );
    assert_eq!(errno(fs::metadata(mount.join("folder/b")).map(drop)), libc::EACCES);
    store.set_faults(Vec::new());
    assert_eq!(fs::read_to_string(mount.join("a")).unwrap(), "data/a");
    assert_eq!(fs::read_to_string(mount.join("folder/b")).unwrap(), "data/folder/b");
    warmfs.unmount("mount");
}
