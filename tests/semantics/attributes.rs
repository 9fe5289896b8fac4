//! What `stat` and `statfs` say.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Uid};

use crate::common::store::{BUCKET, Store};
use crate::common::{Warmfs, eventually};
use crate::{errno_of, mount_data, mount_data_with, names, put_keys, set, walk};

fn stat(path: &Path) -> Metadata {
    fs::symlink_metadata(path).unwrap()
}

fn times(stat: &Metadata) -> [(i64, i64); 3] {
    [
        (stat.mtime(), stat.mtime_nsec()),
        (stat.ctime(), stat.ctime_nsec()),
        (stat.atime(), stat.atime_nsec()),
    ]
}

/// S21, S22, S23, S25: mode, owner, links and sizes.
#[test]
fn stat_shows_what_was_asked_for() {
    let store = Store::start();
    store.put(BUCKET, "data/file", Bytes::from(vec![1; 200_001]));
    store.put(BUCKET, "data/empty", Bytes::new());
    put_keys(&store, &["data/folder/deep/x", "data/folder/deeper/y"]);
    let warmfs = store.warmfs();
    let (me, mine) = (Uid::current().as_raw(), Gid::current().as_raw());
    let asked = ["--file-mode", "0640", "--dir-mode", "0751", "--uid", "1234", "--gid", "56"];
    for (options, modes, owner) in
        [(&[][..], (0o444, 0o555), (me, mine)), (&asked[..], (0o640, 0o751), (1234, 56))]
    {
        let mount = mount_data_with(&warmfs, options);
        let stats = walk(&mount).into_iter().map(|path| stat(&path));
        for stat in stats {
            let (kind, mode, links) = match stat.is_dir() {
                true => (libc::S_IFDIR, modes.1, 2),
                false => (libc::S_IFREG, modes.0, 1),
            };
            assert_eq!((stat.mode(), stat.nlink()), (kind | mode, links));
            assert_eq!((stat.uid(), stat.gid()), owner);
            assert_eq!(stat.blksize(), 128 << 10);
            assert_eq!(stat.rdev(), 0);
        }
        let size = |name: &str| stat(&mount.join(name)).len();
        assert_eq!([size("file"), size("empty"), size("folder")], [200_001, 0, 4096]);
        warmfs.unmount("mount");
    }
}

/// S22: two links are no promise that there are no folders below.
#[test]
fn find_goes_down_into_folders_of_two_links() {
    let store = Store::start();
    put_keys(&store, &["data/a/b/c/x", "data/a/b/d/y", "data/a/z", "data/e/f/g"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let find = |args: &[&str]| {
        let output = Command::new("find").arg(&mount).args(args).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    for _ in ["cold", "warm"] {
        assert_eq!([find(&[]), find(&["-type", "d"]), find(&["-type", "f"])], [11, 7, 4]);
        assert_eq!([find(&["-noleaf"]), find(&["-ls"])], [11, 11]);
    }
    warmfs.unmount("mount");
}

/// S26: the times of a file.
#[test]
fn the_time_of_a_file_is_its_objects() {
    let warmfs = Warmfs::new();
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let source = warmfs.path("source/hello");
    File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
    let mount = warmfs.mount("mount");
    for _ in ["cold", "warm"] {
        let stat = stat(&mount.join("hello"));
        assert_eq!(times(&stat), [(1_234_567_890, 123_456_789); 3]);
        assert_eq!(fs::read_to_string(mount.join("hello")).unwrap(), "hello, world");
    }
    warmfs.unmount("mount");

    // A bucket tells whole seconds.
    let store = Store::start();
    let before = SystemTime::now() - Duration::from_secs(1);
    put_keys(&store, &["data/x"]);
    let after = SystemTime::now();
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let modified = stat(&mount.join("x")).modified().unwrap();
    assert!(modified >= before && modified <= after, "{before:?} {modified:?} {after:?}");
    assert_eq!(stat(&mount.join("x")).mtime_nsec(), 0);
    warmfs.unmount("mount");
}

/// S27: inode numbers, over remounts and daemons.
#[test]
fn an_inode_number_is_for_ever() {
    let store = Store::start();
    put_keys(&store, &["data/a/b/x", "data/a/y", "data/a", "data/z"]);
    let warmfs = store.warmfs();
    let inodes = |mount: &Path| -> Vec<(PathBuf, u64)> {
        walk(mount).into_iter().map(|path| (path.clone(), stat(&path).ino())).collect()
    };
    let mount = mount_data(&warmfs);
    let first = inodes(&mount);
    assert_eq!(first.len(), 7);
    assert_eq!(first[0], (mount.clone(), 1));
    assert_eq!(first.iter().map(|(_, ino)| ino).collect::<BTreeSet<_>>().len(), 7);
    for (dir, _) in first.iter().filter(|(path, _)| path.is_dir()) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            assert_eq!(entry.ino(), stat(&entry.path()).ino(), "{:?}", entry.path());
        }
    }
    let daemon = warmfs.daemon();
    warmfs.unmount("mount");
    mount_data(&warmfs);
    assert_ne!(warmfs.daemon(), daemon);
    assert_eq!(inodes(&mount), first);
    warmfs.crash();
    mount_data(&warmfs);
    assert_eq!(inodes(&mount), first);
    // Also where it is looked up in another mount.
    let other = warmfs.mount_uri("s3://bucket", "other");
    assert_eq!(stat(&other.join("data/z")).ino(), stat(&mount.join("z")).ino());
    warmfs.unmount("other");
    warmfs.unmount("mount");
}

/// S28: the time of a folder.
#[test]
fn a_folders_time_changes_with_its_listing_and_only_then() {
    let store = Store::start();
    put_keys(&store, &["data/dir/a", "data/dir/b", "data/dir/sub/x", "data/other/y"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let time = |folder: &str| times(&stat(&mount.join(folder)))[0];
    let folders = ["", "dir", "dir/sub", "other"];
    let all = || folders.map(time);
    let look = || {
        for path in walk(&mount).iter().filter(|path| path.is_file()) {
            fs::read(path).unwrap();
        }
    };
    let before = all();
    assert_eq!(times(&stat(&mount.join("dir"))), [before[1]; 3]);
    look();
    assert_eq!(all(), before, "looked at");
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    look();
    assert_eq!(all(), before, "listed again, and nothing new");
    warmfs.unmount("mount");
    mount_data(&warmfs);
    look();
    assert_eq!(all(), before, "mounted again");

    // Each change in `dir`, and in no other folder.
    let (put, delete) = (
        |key: &str| put_keys(&store, &[key]),
        |key: &str| {
            store.delete(BUCKET, key);
        },
    );
    let overwrite = |key: &str| drop(store.put(BUCKET, key, Bytes::from_static(b"other")));
    let changes: [(&str, &dyn Fn()); 5] = [
        ("an object came", &|| put("data/dir/c")),
        ("one went", &|| delete("data/dir/a")),
        ("one is another", &|| overwrite("data/dir/b")),
        ("a folder came", &|| put("data/dir/new/z")),
        ("a folder went", &|| delete("data/dir/new/z")),
    ];
    for (what, change) in changes {
        let before = all();
        change();
        warmfs.ok(&["refresh", mount.to_str().unwrap()]);
        eventually(what, || time("dir") > before[1]);
        // What the kernel has been told by now is not all that it will be told.
        warmfs.unmount("mount");
        mount_data(&warmfs);
        let after = all();
        assert!(after[1] > before[1], "{what}");
        assert_eq!([after[0], after[2], after[3]], [before[0], before[2], before[3]], "{what}");
    }
    // What happens below a folder is no change of it.
    let before = all();
    put_keys(&store, &["data/dir/sub/more"]);
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    eventually("it is seen", || time("dir/sub") > before[2]);
    assert_eq!([time(""), time("dir"), time("other")], [before[0], before[1], before[3]]);
    warmfs.unmount("mount");
}

/// S29: what `df` shows.
#[test]
fn statfs_shows_the_dataset_and_what_of_it_is_not_cached() {
    const BLOCK: u64 = 4096;
    let store = Store::start();
    for n in 0..10 {
        store.put(BUCKET, format!("data/{n}"), Bytes::from(vec![n; 100_000]));
    }
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let all = || statvfs(&mount).unwrap();
    assert_eq!((all().fragment_size(), all().block_size()), (BLOCK, BLOCK));
    assert_eq!(all().blocks(), 1_000_000_u64.div_ceil(BLOCK));
    assert_eq!(all().blocks_free(), 1_000_000 / BLOCK);
    assert_eq!((all().files(), all().files_free()), (10, 0));
    assert_eq!(all().name_max(), 255);
    assert!(all().flags().contains(FsFlags::ST_RDONLY));
    for n in 0..4 {
        fs::read(mount.join(n.to_string())).unwrap();
    }
    eventually("what was read is no more free", || all().blocks_free() == 600_000 / BLOCK);
    assert_eq!(all().blocks_available(), all().blocks_free());
    warmfs.unmount("mount");
}

/// S30: files, folders, and nothing else.
#[test]
fn there_are_no_links_and_no_devices() {
    let store = Store::start();
    put_keys(&store, &["data/*", "data/link", "data/a", "data/a/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    for path in walk(&mount) {
        let kind = stat(&path).file_type();
        assert!(kind.is_file() || kind.is_dir(), "{path:?}");
        assert_eq!(stat(&path).ino(), fs::metadata(&path).unwrap().ino());
        assert_eq!(errno_of(fs::read_link(&path)), libc::EINVAL, "{path:?}");
        assert_eq!(path.canonicalize().unwrap(), path);
    }
    assert!(stat(&mount.join("*")).is_file());
    warmfs.unmount("mount");

    // A folder that plays a bucket: what a link leads to is the object.
    let source = warmfs.path("source");
    symlink("hello", source.join("to-file")).unwrap();
    symlink("folder", source.join("to-folder")).unwrap();
    symlink("nowhere", source.join("dangling")).unwrap();
    nix::unistd::mkfifo(&source.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mount = warmfs.mount("local");
    assert_eq!(names(&mount), set(["folder", "hello", "to-file"]));
    let kind = stat(&mount.join("to-file")).file_type();
    assert!(kind.is_file() && !kind.is_fifo());
    assert_eq!(fs::read_to_string(mount.join("to-file")).unwrap(), "hello, world");
    warmfs.unmount("local");
}
