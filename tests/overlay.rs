//! The mount as the lower layer of an overlayfs, as whoever wants a dataset that seems
//! to be writable has it. With `--open-mode cached` the mount costs it no level.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::image::Image;
use common::machine::{is_root, skip};
use common::store::Store;
use common::tree::{Tree, assert_same};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// For what is written: much less than the dataset has.
const DISK_BYTES: u64 = 32 << 20;

/// An overlayfs; gone when dropped. Declare it after the mount below it.
struct Overlay {
    dir: PathBuf,
}

impl Overlay {
    fn mount(dir: &Path, lower: &Path, disk: &Path) -> Overlay {
        let (upper, work) = (disk.join("upper"), disk.join("work"));
        for dir in [dir, &upper, &work] {
            fs::create_dir(dir).unwrap();
        }
        let [lower, upper, work] = [lower, &upper, &work].map(|path| path.to_str().unwrap());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let (kind, options) = (Some("overlay"), Some(options.as_str()));
        mount(kind, dir, kind, MsFlags::empty(), options).unwrap();
        Overlay { dir: dir.to_owned() }
    }

    fn unmount(self) {
        umount2(&self.dir, MntFlags::empty()).unwrap();
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // Lazily, and in vain where it is gone: a test that failed may hold files still.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

/// What `diff -r` says of two folders.
fn diff(one: &Path, other: &Path) -> String {
    let output = Command::new("diff").arg("-r").args([one, other]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn an_overlay_shows_the_mount_and_keeps_what_is_written_to_itself() {
    if !is_root() {
        return skip("an overlay on the mount", "only root mounts one");
    }
    let store = Store::start();
    let tree = Tree::of_all_sizes(0);
    store.put_tree("data/", &tree);
    let warmfs = store.warmfs();
    let Some(disk) = Image::ext4(DISK_BYTES, &[], "defaults") else { return };
    let source = warmfs.path("as-it-is");
    tree.write_to(&source);
    let lower = warmfs.mount_with("s3://bucket/data", "mount", &["--open-mode", "cached"]);
    let overlay = Overlay::mount(&warmfs.path("merged"), &lower, &disk.dir());
    let merged = overlay.dir.clone();
    for round in ["cold", "warm"] {
        assert_eq!(diff(&source, &merged), "", "{round}");
    }

    // Copied up: for a write, for a mode, and not at all for what is removed.
    let path = |name: &str| merged.join(name);
    let large = "a/of-5242897";
    let mut file = OpenOptions::new().append(true).open(path(large)).unwrap();
    file.write_all(b"more").unwrap();
    drop(file);
    let more = [&tree.files[large][..], b"more"].concat();
    assert_same(&fs::read(path(large)).unwrap(), &more, "appended to");
    fs::set_permissions(path("a/of-1"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::metadata(path("a/of-1")).unwrap().permissions().mode() & 0o777, 0o600);
    fs::remove_file(path("a/of-2")).unwrap();
    fs::write(path("many/new"), "new").unwrap();
    fs::remove_dir_all(path("odd")).unwrap();

    let changed = Tree { files: tree.files.clone() };
    let mut files = changed.files;
    files.insert(large.to_owned(), more.into());
    files.insert("many/new".to_owned(), "new".into());
    files.retain(|name, _| name != "a/of-2" && !name.starts_with("odd/"));
    let changed = Tree { files };
    changed.assert_equals(&merged, "through the overlay");
    // Not by what the kernel has in memory.
    overlay.unmount();
    assert_eq!(diff(&source, &lower), "", "nothing is written below");
    fs::remove_dir(&merged).unwrap();
    let upper = disk.dir().join("upper");
    assert!(upper.join(large).is_file() && !upper.join("a/of-0").exists());
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn an_unmount_below_an_overlay_takes_nothing_away_from_it() {
    if !is_root() {
        return skip("an unmount below an overlay", "only root mounts one");
    }
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    let Some(disk) = Image::ext4(DISK_BYTES, &[], "defaults") else { return };
    let lower = warmfs.mount_with("s3://bucket/data", "mount", &["--open-mode", "cached"]);
    let overlay = Overlay::mount(&warmfs.path("merged"), &lower, &disk.dir());
    let read = |name: &str| fs::read_to_string(overlay.dir.join(name)).unwrap();
    assert_eq!(read("hello"), "data/hello");
    let told = warmfs.ok(&["unmount", "--lazy", lower.to_str().unwrap()]);
    assert!(told.contains("detached"), "{told}");
    assert_eq!(read("folder/inner"), "data/folder/inner");
    overlay.unmount();
    common::eventually("the daemon ends", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}
