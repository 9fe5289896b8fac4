//! A cache that holds much: the mount serves at once, whatever lies in it,
//! and what does not belong there goes behind its back. `benches/large_cache.rs`
//! measures the same with 1.3 M objects.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::epoch::count_files;
use common::store::Store;
use common::{Warmfs, eventually, filled, is_mounted};
use warmfs::embedded_store::Op;

/// The bound for 1.3 M objects; fewer must not need more.
const RSS_MAX_BYTES: u64 = 150_000_000;

/// A store that has none of the objects, and a cache that has them all.
fn filled_cache(count: usize) -> (Warmfs, Store) {
    let store = Store::start();
    let warmfs = store.warmfs();
    filled::fill(&warmfs.cache(), &store, count);
    (warmfs, store)
}

fn assert_served(mount: &Path, store: &Store, count: usize) {
    for n in [0, count / 2, count - 1] {
        assert_eq!(fs::read(mount.join(filled::key(n))).unwrap(), filled::OBJECT);
    }
    assert_eq!(store.counts().get.requests, 0);
}

#[test]
fn a_cache_of_many_objects_is_served_from_at_once() {
    const COUNT: usize = 20_000;
    let (warmfs, store) = filled_cache(COUNT);
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_served(&mount, &store, COUNT);
    // To see that there is something; all else is known.
    let lists = store.log().into_iter().filter(|request| request.op == Op::List);
    assert_eq!(lists.filter(|list| !list.key.is_empty()).count(), 0);
    let status = warmfs.status();
    assert_eq!(status["cache"]["objects"], COUNT);
    let peak = filled::peak_rss_bytes(status["pid"].as_u64().unwrap());
    assert!(peak < RSS_MAX_BYTES, "{peak}");
    warmfs.unmount("mount");
}

#[test]
fn files_that_the_index_does_not_know_are_removed_while_the_mount_serves() {
    const COUNT: usize = 2_000;
    let (warmfs, store) = filled_cache(COUNT);
    let data = warmfs.cache().join("data");
    let outside = warmfs.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("mine"), "not the cache's").unwrap();
    let known = known_files(&data);
    assert_eq!(known.len(), COUNT);
    let strays = strew(&data, known[0].parent().unwrap(), &outside);

    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_served(&mount, &store, COUNT);
    eventually("the strays are gone", || {
        strays.iter().all(|stray| fs::symlink_metadata(stray).is_err())
    });
    assert_eq!(fs::read_to_string(outside.join("mine")).unwrap(), "not the cache's");
    assert_eq!(known_files(&data), known, "what the index knows stays");
    assert_eq!(count_files(&data), COUNT);
    assert_eq!(warmfs.status()["repairs"], 0);

    // Also behind the back of the kernel's pages.
    warmfs.unmount("mount");
    assert!(!is_mounted(&mount));
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_served(&mount, &store, COUNT);
    warmfs.unmount("mount");
}

/// Puts what does not belong there into the data folder.
fn strew(data: &Path, beside_known: &Path, outside: &Path) -> Vec<PathBuf> {
    let remote = beside_known.parent().unwrap();
    let files = [
        data.join("a file at the top"),
        remote.join("a file among the folders"),
        beside_known.join("short"),
        beside_known.join("0123456789abcdef0123456789abcdef"),
        beside_known.join("0123456789abcdef0123456789abcd"),
        data.join("some/nested/folder/file"),
        data.join("00000000/00/0123456789abcdef0123456789abcd"),
        remote.join("zz/file"),
    ];
    for file in &files {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "stray").unwrap();
    }
    let links = [data.join("link"), beside_known.join("link"), data.join("some/nested/link")];
    for link in &links[..2] {
        symlink(outside.join("mine"), link).unwrap();
    }
    symlink(outside, &links[2]).unwrap();
    [&files[..], &links].concat()
}

fn known_files(data: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}
