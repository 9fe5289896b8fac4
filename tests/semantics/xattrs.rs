//! `user.warmfs.*`: which object a file is.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;

use crate::common::machine::{is_root, skip};
use crate::common::store::{BUCKET, Store};
use crate::common::tree::noise;
use crate::common::{Warmfs, eventually};
use crate::{c_path, errno, mount_data, names, put_keys, set};

const NAMES: [&str; 5] = ["key", "url", "version", "etag", "cached"];

/// The value of an attribute, or an error number.
fn get(path: &Path, name: &str) -> Result<String, i32> {
    let (path, name) = (c_path(path), CString::new(name).unwrap());
    let mut value = vec![0_u8; 2_000];
    // SAFETY: two strings that end in NUL, and a buffer of the length that is told.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    match errno(len as i64) {
        0 => {
            value.truncate(len as usize);
            Ok(String::from_utf8(value).unwrap())
        }
        error => Err(error),
    }
}

fn ours(path: &Path, name: &str) -> Result<String, i32> {
    get(path, &format!("user.warmfs.{name}"))
}

/// The names that a file lists, or an error number.
fn list(path: &Path) -> Result<String, i32> {
    let path = c_path(path);
    let mut names = vec![0_u8; 2_000];
    // SAFETY: a string that ends in NUL, and a buffer of the length that is told.
    let len = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    match errno(len as i64) {
        0 => Ok(String::from_utf8_lossy(&names[..len as usize]).into_owned()),
        error => Err(error),
    }
}

/// S36: what each of them says.
#[test]
fn attributes_tell_which_object_a_file_is() {
    const BYTES: usize = 9 << 20;
    let store = Store::start();
    let etag = store.put(BUCKET, "data/a b/%20.bin", noise(1, BYTES));
    put_keys(&store, &["data/beside", "data/beside/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let path = mount.join("a b/%20.bin");
    let all = |path: &Path| NAMES.map(|name| ours(path, name));
    let value = |text: &str| Ok(text.to_owned());
    let none: Result<String, i32> = Err(libc::ENODATA);
    let cold = format!("0/{BYTES}");
    let (key, url) = (value("data/a b/%20.bin"), value("s3://bucket/data/a b/%20.bin"));
    assert_eq!(all(&path), [key, url, value(&etag), value(&etag), value(&cold)]);
    // The key, and not the name that it has here.
    let beside = mount.join("beside~object");
    assert_eq!(ours(&beside, "key"), value("data/beside"));
    assert_eq!(ours(&beside, "url"), value("s3://bucket/data/beside"));
    // A folder is a prefix, whose sums are known once it is listed.
    assert_eq!(ours(&mount.join("beside"), "cached"), value("0/0"));
    assert_eq!(names(&mount.join("beside")), set(["x"]));
    let (key, url) = (value("data/beside/"), value("s3://bucket/data/beside"));
    assert_eq!(all(&mount.join("beside")), [key, url, none.clone(), none.clone(), value("0/13")]);
    assert_eq!(ours(&mount, "key"), value("data/"));
    assert_eq!(ours(&mount, "url"), value("s3://bucket/data"));

    // What is cached, in bytes, as it comes.
    let file = File::open(&path).unwrap();
    // SAFETY: a call on an open descriptor that takes no pointer.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
    file.read_exact_at(&mut [0; 100], 5 << 20).unwrap();
    let cached = |path: &Path| {
        let text = ours(path, "cached").unwrap();
        let (cached, size) = text.split_once('/').unwrap();
        (cached.parse::<usize>().unwrap(), size.parse::<usize>().unwrap())
    };
    eventually("some of it", || cached(&path).0 > 0);
    assert!(cached(&path).0 < BYTES, "{:?}", cached(&path));
    fs::read(&path).unwrap();
    eventually("all of it", || cached(&path) == (BYTES, BYTES));
    eventually("the folder has it too", || cached(&mount.join("a b")) == (BYTES, BYTES));

    // An overwritten object is another file, with another version.
    let new = store.put(BUCKET, "data/a b/%20.bin", Bytes::from_static(b"new"));
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    eventually("the new version", || ours(&path, "etag") == value(&new));
    assert_eq!(ours(&path, "cached"), value("0/3"));
    drop(file);
    warmfs.unmount("mount");
}

/// S36: of a folder that plays a bucket.
#[test]
fn attributes_of_a_local_folder_have_no_etag() {
    let warmfs = Warmfs::new();
    let mount = warmfs.mount("mount");
    let path = mount.join("folder/inner");
    assert_eq!(ours(&path, "key").unwrap(), "folder/inner");
    assert_eq!(ours(&path, "url").unwrap(), format!("{}/folder/inner", warmfs.source()));
    assert!(ours(&path, "version").unwrap().starts_with("5-"));
    assert_eq!(ours(&path, "etag"), Err(libc::ENODATA));
    assert_eq!(ours(&mount, "url").unwrap(), warmfs.source());
    assert_eq!(ours(&mount, "key").unwrap(), "");
    warmfs.unmount("mount");
}

/// S37, S38: no other names.
#[test]
fn no_name_is_listed_and_others_are_absent() {
    let store = Store::start();
    put_keys(&store, &["data/folder/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    for path in [mount.clone(), mount.join("folder"), mount.join("folder/x")] {
        assert_eq!(list(&path), Err(libc::EOPNOTSUPP));
        for name in ["user.any", "user.warmfs.", "user.warmfs.other", "user.mime_type"] {
            assert_eq!(get(&path, name), Err(libc::ENODATA), "{name}");
        }
        for name in [
            "system.posix_acl_access",
            "system.posix_acl_default",
            "security.capability",
            "security.ima",
            "trusted.overlay.opaque",
        ] {
            // Of this namespace the kernel says so by itself to who may not ask.
            let is_hidden = name.starts_with("trusted.") && !is_root();
            let error = if is_hidden { libc::ENODATA } else { libc::EOPNOTSUPP };
            assert_eq!(get(&path, name), Err(error), "{name}");
        }
        let set = |flags: i32| {
            let (path, name, value) = (c_path(&path), c"user.warmfs.key", [0_u8; 1]);
            // SAFETY: two strings that end in NUL, and a buffer of the length that is told.
            errno(unsafe {
                libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), 1, flags)
            })
        };
        assert_eq!([set(0), set(libc::XATTR_REPLACE)], [libc::EROFS; 2]);
        // SAFETY: two strings that end in NUL.
        let removed =
            unsafe { libc::removexattr(c_path(&path).as_ptr(), c"user.warmfs.key".as_ptr()) };
        assert_eq!(errno(removed), libc::EROFS);
    }
    // As `getxattr` has it: the length for no buffer, ERANGE for too little of one.
    let path = c_path(&mount.join("folder/x"));
    let get = |len: usize| {
        let mut value = [0_u8; 100];
        // SAFETY: two strings that end in NUL, and a buffer that is longer than told.
        unsafe {
            let name = c"user.warmfs.key".as_ptr();
            libc::getxattr(path.as_ptr(), name, value.as_mut_ptr().cast(), len)
        }
    };
    assert_eq!([get(0), get(13), get(100)], [13; 3]);
    assert_eq!(errno(get(12) as i64), libc::ERANGE);
    warmfs.unmount("mount");
}

/// S37: what copies everything.
#[test]
fn copies_take_no_attribute_along_and_miss_none() {
    let store = Store::start();
    put_keys(&store, &["data/folder/x", "data/y"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let (from, tar) = (mount.join("."), warmfs.path("tar"));
    let from = from.to_str().unwrap();
    let tar = tar.to_str().unwrap();
    for (what, args) in [
        ("cp", &["-a", from, "COPY"][..]),
        ("cp", &["-a", "--preserve=all", from, "COPY"]),
        ("rsync", &["-aX", from, "COPY"]),
        ("tar", &["--xattrs", "-cf", tar, "-C", from, "."]),
        ("tar", &["--xattrs", "-xf", tar, "-C", "COPY"]),
    ] {
        let copy = warmfs.path("copy");
        let is_copied = args.contains(&"COPY");
        if is_copied {
            let _ = fs::remove_dir_all(&copy);
            fs::create_dir(&copy).unwrap();
        }
        let args = args.iter().map(|arg| match *arg {
            "COPY" => copy.to_str().unwrap(),
            arg => arg,
        });
        let output = match Command::new(what).args(args).env("LC_ALL", "C").output() {
            Ok(output) => output,
            Err(error) => panic!("{what} cannot be run ({error}): run ./check, which installs it"),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        // As of any file system that has none, and of no other kind.
        let is_expected = |line: &str| line.ends_with("flistxattr: Operation not supported");
        let is_odd = |line: &str| !(what == "tar" && is_expected(line));
        assert!(output.status.success() && !said.lines().any(is_odd), "{what}: {said}");
        if !is_copied {
            continue;
        }
        assert_eq!(fs::read_to_string(copy.join("folder/x")).unwrap(), "data/folder/x");
        match list(&copy.join("folder/x")) {
            Ok(names) => assert!(!names.contains("warmfs"), "{what}: {names:?}"),
            Err(_) => skip(&format!("attributes of what {what} copies"), "no xattrs here"),
        }
    }
    warmfs.unmount("mount");
}
