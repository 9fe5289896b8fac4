//! Which name a key has.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;

use crate::common::Warmfs;
use crate::common::eventually;
use crate::common::store::{BUCKET, Store};
use crate::{mount_data, names, put_keys, requests, set};

fn hidden_keys(warmfs: &Warmfs) -> u64 {
    warmfs.status()["cache"]["hidden_keys"].as_u64().unwrap()
}

/// S1: whatever a name is made of.
#[test]
fn a_name_is_what_the_key_says() {
    let longest = "x".repeat(255);
    let keys = [
        "with space",
        " leading and trailing ",
        "'single' \"double\" `back`",
        "back\\slash",
        "%41 %2F 100%",
        "+plus&amp;",
        "*",
        "?[a-z]{1,2}",
        "-rf",
        ".hidden",
        "...",
        "~object",
        "new\nline",
        "\u{1b}[2J\u{7}\u{9b}31m",
        "a",
        "A",
        "é",
        "e\u{301}",
        "日本語 🗄",
        "\u{202e}right to left",
        &longest,
    ];
    let store = Store::start();
    for key in keys {
        put_keys(&store, &[&format!("data/{key}"), &format!("data/folder {key}/{key}")]);
    }
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let folder = |key: &str| format!("folder {key}");
    // The longest name has no room for more.
    let folders = keys.iter().map(|key| folder(key)).filter(|name| name.len() <= 255);
    assert_eq!(names(&mount), keys.map(str::to_owned).into_iter().chain(folders).collect());
    for key in keys {
        let read = |path: &str| fs::read_to_string(mount.join(path)).unwrap();
        assert_eq!(read(key), format!("data/{key}"));
        let inner = format!("{}/{key}", folder(key));
        if folder(key).len() <= 255 {
            assert_eq!(names(&mount.join(folder(key))), set([key]));
            assert_eq!(read(&inner), format!("data/{inner}"));
        }
    }
    warmfs.unmount("mount");
}

/// S2, S3: an object and a folder of one name.
#[test]
fn a_folder_has_the_name_and_the_object_stands_beside_it() {
    let store = Store::start();
    put_keys(&store, &["data/a", "data/a/x", "data/b"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(names(&mount), set(["a", "a~object", "b"]));
    assert_eq!(names(&mount.join("a")), set(["x"]));
    assert_eq!(fs::read_to_string(mount.join("a~object")).unwrap(), "data/a");
    assert_eq!(fs::read_to_string(mount.join("a/x")).unwrap(), "data/a/x");
    assert_eq!(hidden_keys(&warmfs), 0);

    store.delete(BUCKET, "data/a/x");
    put_keys(&store, &["data/b/y"]);
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    eventually("the names are those of now", || names(&mount) == set(["a", "b", "b~object"]));
    eventually("a is a file", || fs::read_to_string(mount.join("a")).is_ok_and(|a| a == "data/a"));
    assert_eq!(fs::read_to_string(mount.join("b~object")).unwrap(), "data/b");
    warmfs.unmount("mount");
}

/// S2: without a listing, by name alone.
#[test]
fn an_object_beside_a_folder_is_found_by_its_name() {
    let store = Store::start();
    put_keys(&store, &["data/deep/a", "data/deep/a/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(fs::read_to_string(mount.join("deep/a~object")).unwrap(), "data/deep/a");
    assert!(fs::metadata(mount.join("deep/a")).unwrap().is_dir());
    assert!(fs::metadata(mount.join("deep/x~object")).is_err());
    warmfs.unmount("mount");
}

/// S4: the other name is taken as well.
#[test]
fn an_object_whose_names_are_both_taken_is_hidden() {
    let store = Store::start();
    put_keys(&store, &["data/a", "data/a/x", "data/a~object"]);
    put_keys(&store, &["data/b", "data/b/x", "data/b~object/y"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(names(&mount), set(["a", "a~object", "b", "b~object"]));
    assert_eq!(fs::read_to_string(mount.join("a~object")).unwrap(), "data/a~object");
    assert_eq!(names(&mount.join("b~object")), set(["y"]));
    assert_eq!(hidden_keys(&warmfs), 2);
    assert_eq!(warmfs.ok(&["ls", "--hidden", mount.to_str().unwrap()]), "a\nb\n");
    warmfs.unmount("mount");
}

/// S5: keys that end in a slash.
#[test]
fn a_marker_is_its_folder() {
    let store = Store::start();
    for key in ["data/", "data/empty/", "data/with/", "data/with/marker/"] {
        store.put(BUCKET, key, Bytes::new());
    }
    put_keys(&store, &["data/with/file", "data/bytes/", "data/both/", "data/both/file"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(names(&mount), set(["both", "bytes", "empty", "with"]));
    for (folder, inner) in [
        ("empty", set([])),
        ("with", set(["file", "marker"])),
        ("with/marker", set([])),
        ("bytes", set([])),
        ("both", set(["file"])),
    ] {
        assert_eq!(names(&mount.join(folder)), inner, "{folder}");
    }
    assert_eq!(hidden_keys(&warmfs), 2, "those with bytes");
    let hidden =
        |folder: &str| warmfs.ok(&["ls", "--hidden", mount.join(folder).to_str().unwrap()]);
    assert_eq!([hidden("bytes"), hidden("both"), hidden("with")], ["./\n", "./\n", ""]);
    warmfs.unmount("mount");
}

/// S6, S7: what no path can name, and who tells of it.
#[test]
fn what_no_path_can_name_is_hidden_and_told() {
    let too_long = "l".repeat(256);
    let store = Store::start();
    for key in [
        "/empty",
        "//empty",
        ".",
        "..",
        "./dot",
        "../dot",
        "nul\0",
        "nul\0/below",
        &too_long,
        &format!("{too_long}/below"),
        "plain",
        "folder/./x",
        "folder/plain",
    ] {
        put_keys(&store, &[&format!("data/{key}")]);
    }
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    assert_eq!(hidden_keys(&warmfs), 9, "a folder is one, whatever is below it");
    assert_eq!(names(&mount), set(["folder", "plain"]));
    assert_eq!(names(&mount.join("folder")), set(["plain"]));
    assert_eq!(hidden_keys(&warmfs), 10, "more was listed");
    assert!(warmfs.ok(&["status"]).contains("10 keys that no path can name"));
    let hidden = |folder: &str| {
        let text = warmfs.ok(&["ls", "--hidden", mount.join(folder).to_str().unwrap()]);
        text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    let (long, long_folder) = (&too_long, format!("{too_long}/"));
    let above = ["/", ".", "./", "..", "../", "nul\\u0000", "nul\\u0000/", long, &long_folder];
    assert_eq!(hidden(""), set(above));
    assert_eq!(hidden("folder"), set(["./"]));

    // It is known over a remount, and goes with the keys.
    warmfs.unmount("mount");
    mount_data(&warmfs);
    assert_eq!(hidden_keys(&warmfs), 10);
    for key in ["data/folder/./x", "data/folder/plain", "data/.."] {
        store.delete(BUCKET, key);
    }
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    assert_eq!(hidden_keys(&warmfs), 8);
    warmfs.unmount("mount");
}

/// S6, S7, S8: names of bytes that are no text.
#[test]
fn a_name_that_is_not_utf8_does_not_exist() {
    let odd = OsStr::from_bytes(b"caf\xe9");
    let store = Store::start();
    put_keys(&store, &["data/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let before = requests(&store);
    for path in [mount.join(odd), mount.join(odd).join("x")] {
        let error = fs::metadata(path).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
    assert_eq!(requests(&store), before);
    warmfs.unmount("mount");

    // No bucket has such a key; a folder may.
    fs::write(warmfs.path("source").join(odd), "x").unwrap();
    fs::create_dir(warmfs.path("source/folder").join(odd)).unwrap();
    let mount = warmfs.mount("local");
    assert_eq!(names(&mount), set(["folder", "hello"]));
    assert_eq!(names(&mount.join("folder")), set(["inner"]));
    assert!(fs::metadata(mount.join(odd)).is_err());
    assert_eq!(hidden_keys(&warmfs), 2);
    let hidden = warmfs.ok(&["ls", "--hidden", mount.to_str().unwrap()]);
    assert_eq!(hidden, "caf\u{fffd}\\u0000\n");
    warmfs.unmount("local");
}
