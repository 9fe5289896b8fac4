//! A cache that is too small for what is read: what is kept, what gives way,
//! and who notices. Hits are counted from the store's side.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use common::epoch::{
    Cost, Objects, Sampler, compare, compare_open, count_files, drop_pages, du, epoch,
};
use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};

const MIB: u64 = 1 << 20;

/// The cache, index included: half of each dataset here, and large enough
/// that the index takes little of it.
const BUDGET: u64 = 80 * MIB;

const EPOCHS: u64 = 5;

/// The issue's: 0.95 of what fits. LRU has 0.15 shuffled and 0 in fixed order.
const HIT_RATE: f64 = 0.475;

/// A store, and a cache of [`BUDGET`] over it.
struct Rig {
    warmfs: Warmfs,
    store: Store,
}

impl Rig {
    fn new() -> Rig {
        let store = Store::start();
        Rig { warmfs: store.warmfs(), store }
    }

    fn mount(&self, uri: &str, name: &str) -> PathBuf {
        // So that every read reaches the daemon, and is counted.
        let options = ["--cache-size", &BUDGET.to_string(), "--open-mode", "cached"];
        self.warmfs.mount_with(uri, name, &options)
    }

    /// Unmounts, and mounts with another daemon.
    fn remount(&self, uri: &str, name: &str) -> PathBuf {
        self.warmfs.unmount(name);
        eventually("the daemon ends with its last mount", || self.warmfs.daemon().is_none());
        self.mount(uri, name)
    }

    /// One epoch with two readers, seen to have reached the daemon.
    fn epoch(&self, objects: &Objects, mount: (&PathBuf, &str, usize)) -> Cost {
        let cost = epoch((&self.store, &self.warmfs), objects, mount, 2);
        // The kernel keeps a page now and then that was being touched.
        assert!(cost.asked >= cost.dataset / 100 * 99, "the kernel's pages answered: {cost:?}");
        cost
    }
}

/// Objects of 128 to 256 KiB, twice the budget.
fn small(store: &Store, prefix: &str) -> Objects {
    twice_the_budget(Objects::put(store, prefix, 854, 128 << 10..256 << 10))
}

/// Objects of 4 MiB, twice the budget.
fn large(store: &Store, prefix: &str) -> Objects {
    twice_the_budget(Objects::put(store, prefix, 40, (4 << 20) - 1..4 << 20))
}

fn twice_the_budget(objects: Objects) -> Objects {
    let ratio = objects.bytes() as f64 / BUDGET as f64;
    assert!((1.97..2.03).contains(&ratio), "{ratio}");
    objects
}

/// Whether an epoch finds the daemon of the one before.
///
/// A daemon that streams past a full cache keeps the latest 64 MiB in memory.
/// In shuffled order, and at this size, that alone gives LRU a good hit rate:
/// only what a new daemon finds was kept on purpose. In fixed order it is of
/// no use to anybody.
#[derive(Clone, Copy, PartialEq)]
enum Daemon {
    Same,
    New,
}

/// Five epochs, each in the order that `order` gives the objects in it.
fn five_epochs(
    daemon: Daemon,
    dataset: impl Fn(&Store, &str) -> Objects,
    order: impl Fn(&Objects, u64) -> Objects,
) {
    let rig = Rig::new();
    let objects = dataset(&rig.store, "data/");
    let mut mount = rig.mount("s3://bucket", "mount");
    let cache = rig.warmfs.cache();
    let largest = Sampler::largest(move || du(&cache));
    let mut costs = Vec::new();
    for n in 0..EPOCHS {
        costs.push(rig.epoch(&order(&objects, n), (&mount, "", 0)));
        if daemon == Daemon::New {
            mount = rig.remount("s3://bucket", "mount");
        }
    }
    let largest = largest.end();
    eprintln!("{costs:?}, du {largest}");
    assert!(largest <= BUDGET, "du was {largest}, the limit is {BUDGET}");
    for cost in &costs[1..] {
        assert!(cost.hit_rate() >= HIT_RATE, "{:?}: {costs:?}", cost.hit_rate());
        let least = cost.dataset.saturating_sub(cost.cached);
        assert!(cost.fetched as f64 <= 1.05 * least as f64, "{cost:?} of {costs:?}");
    }
    rig.warmfs.unmount("mount");
}

#[test]
fn small_objects_shuffled() {
    five_epochs(Daemon::New, small, Objects::shuffled);
}

#[test]
fn small_objects_in_fixed_order() {
    five_epochs(Daemon::Same, small, |objects, _| objects.clone());
}

#[test]
fn large_objects_shuffled() {
    five_epochs(Daemon::Same, large, Objects::shuffled);
}

#[test]
fn large_objects_in_fixed_order() {
    five_epochs(Daemon::New, large, |objects, _| objects.clone());
}

/// Epochs over `old` and then over `new`; what the third over `new` cost.
fn third_after_switch(
    rig: &Rig,
    (old, from): (&Objects, (&PathBuf, &str, usize)),
    (new, to): (&Objects, (&PathBuf, &str, usize)),
) -> Cost {
    for n in 0..3 {
        rig.epoch(&old.shuffled(n), from);
    }
    // In fixed order: see `Daemon`. Of small objects: with 40 large ones the
    // policy is sure of the last few per cent in the third epoch only.
    let costs: Vec<Cost> = (0..3).map(|_| rig.epoch(new, to)).collect();
    eprintln!("after the switch: {costs:?}");
    costs[2]
}

fn assert_owns(cost: Cost) {
    assert!(cost.hit_rate() >= HIT_RATE, "{:?}: {cost:?}", cost.hit_rate());
}

#[test]
fn another_folder_of_the_mount_owns_the_budget_after_two_epochs() {
    let rig = Rig::new();
    let (old, new) = (small(&rig.store, "old/"), small(&rig.store, "new/"));
    let mount = rig.mount("s3://bucket", "mount");
    assert_owns(third_after_switch(&rig, (&old, (&mount, "", 0)), (&new, (&mount, "", 0))));
    rig.warmfs.unmount("mount");
}

#[test]
fn another_mount_owns_the_budget_after_two_epochs() {
    let rig = Rig::new();
    let (old, new) = (large(&rig.store, "old/"), small(&rig.store, "new/"));
    let from = rig.mount("s3://bucket/old", "old");
    let to = rig.mount("s3://bucket/new", "new");
    assert_owns(third_after_switch(&rig, (&old, (&from, "old/", 0)), (&new, (&to, "new/", 1))));
    rig.warmfs.unmount("old");
    rig.warmfs.unmount("new");
}

#[test]
fn another_mount_of_another_daemon_owns_the_budget_after_two_epochs() {
    let rig = Rig::new();
    let (old, new) = (large(&rig.store, "old/"), small(&rig.store, "new/"));
    let from = rig.mount("s3://bucket/old", "old");
    for n in 0..3 {
        rig.epoch(&old.shuffled(n), (&from, "old/", 0));
    }
    rig.warmfs.unmount("old");
    eventually("the daemon ends with its last mount", || rig.warmfs.daemon().is_none());
    let mut to = rig.mount("s3://bucket/new", "new");
    let mut costs = Vec::new();
    for n in 0..3 {
        costs.push(rig.epoch(&new.shuffled(n), (&to, "new/", 0)));
        to = rig.remount("s3://bucket/new", "new");
    }
    eprintln!("after the switch: {costs:?}");
    assert_owns(costs[2]);
    rig.warmfs.unmount("new");
}

#[test]
fn a_new_dataset_that_fits_is_all_there_after_two_epochs() {
    let rig = Rig::new();
    let old = small(&rig.store, "old/");
    let new = Objects::put(&rig.store, "new/", 365, 128 << 10..256 << 10);
    // Less than the budget, and more than the memory that reads pass by in.
    assert!((66 * MIB..72 * MIB).contains(&new.bytes()), "{}", new.bytes());
    let mount = rig.mount("s3://bucket", "mount");
    let cost = third_after_switch(&rig, (&old, (&mount, "", 0)), (&new, (&mount, "", 0)));
    assert_eq!(cost.fetched, 0, "{cost:?}");
    rig.warmfs.unmount("mount");
}

/// A file's pages as a program maps them.
struct Mapped {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapped {
    fn new(file: &File, len: usize) -> Mapped {
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(null, len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Mapped { at, len }
    }

    /// Every byte, as touching it shows it. A page that cannot be had is an
    /// error here, where touching it would end the process.
    fn bytes(&self) -> std::io::Result<Vec<u8>> {
        // SAFETY: a name that ends in NUL; the descriptor is owned by the file.
        let mut copy = unsafe {
            let fd = libc::memfd_create(c"copy".as_ptr(), libc::MFD_CLOEXEC);
            assert!(fd >= 0);
            File::from_raw_fd(fd)
        };
        // SAFETY: mapped for this length until dropped, and nobody writes to it.
        copy.write_all(unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) })?;
        let mut bytes = Vec::new();
        copy.rewind()?;
        copy.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Forgets what was touched, so that it must be had again.
    fn forget(&self) {
        // SAFETY: our own mapping of a file, whose pages come back from it.
        unsafe { libc::madvise(self.at, self.len, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: our own mapping, used no more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

/// Files that are open and mapped while all else, and perhaps they, give way.
fn held_while_evicting(mode: &str) {
    let rig = Rig::new();
    // Of the size of a cold one among the held: more than readahead brings at once.
    let held = Objects::put(&rig.store, "held/", 3, (6 << 20) + 4097..7 << 20);
    let (old, new) = (small(&rig.store, "old/"), large(&rig.store, "new/"));
    let options = ["--cache-size", &BUDGET.to_string(), "--open-mode", mode];
    let dir = rig.warmfs.path("mount");
    let mut args = vec!["mount", "s3://bucket", dir.to_str().unwrap()];
    args.extend(options);
    let mount = dir.clone();
    rig.warmfs.run(&args);
    let shown = rig.warmfs.status()["mounts"][0]["mode"].as_str().unwrap().to_owned();
    if shown != mode {
        eprintln!("SKIPPED, missing: {mode}; this machine gives {shown}");
        return;
    }
    let path = |n: usize| mount.join(&held.files[n].0);
    let bytes = |n: usize| &held.files[n].1;
    // The third is read in part only before the others come.
    for n in [0, 1] {
        compare(&path(n), bytes(n)).unwrap();
    }
    eventually("what is held is in the cache", || rig.warmfs.status()["cache"]["objects"] == 2);
    let files: Vec<File> = (0..3).map(|n| File::open(path(n)).unwrap()).collect();
    files[2].read_exact_at(&mut [0; 4096], MIB).unwrap();
    let mapped = Mapped::new(&files[1], bytes(1).len());
    assert!(mapped.bytes().unwrap() == bytes(1)[..]);

    // What is no longer read gives way to what is read again.
    let epochs = [(0, &old), (1, &old), (2, &new), (3, &new), (4, &new)];
    for (n, objects) in epochs {
        objects.shuffled(n).read(&mount, "", 2);
        for (n, file) in files.iter().enumerate() {
            compare_open(file, bytes(n)).unwrap();
        }
        mapped.forget();
        let _ = drop_pages(&files[1]);
        assert!(mapped.bytes().unwrap() == bytes(1)[..], "the mapping shows other bytes");
    }
    let evicted = rig.warmfs.status()["evictions"]["objects"].as_u64().unwrap();
    assert!(evicted > 0, "nothing was evicted: nobody could be disturbed");
    drop((files, mapped));
    for n in 0..3 {
        compare(&path(n), bytes(n)).unwrap();
    }
    rig.warmfs.unmount("mount");
}

#[test]
fn open_and_mapped_files_are_not_disturbed_in_cached_mode() {
    held_while_evicting("cached");
}

#[test]
fn open_and_mapped_files_are_not_disturbed_with_passthrough() {
    held_while_evicting("passthrough");
}

#[test]
fn the_file_of_a_replaced_version_goes_with_its_last_reader() {
    let rig = Rig::new();
    let (old, new) = (noise(1, 6 << 20), noise(2, 6 << 20));
    for key in ["whole", "part"] {
        rig.store.put(BUCKET, key, old.clone());
    }
    let options = ["--metadata-ttl", "1s", "--open-mode", "cached"];
    let mount = rig.warmfs.mount_with("s3://bucket", "mount", &options);
    let (whole, part) = (mount.join("whole"), mount.join("part"));
    compare(&whole, &old).unwrap();
    let files = [File::open(&whole).unwrap(), File::open(&part).unwrap()];
    files[1].read_exact_at(&mut [0; 4096], 0).unwrap();
    let data = rig.warmfs.cache().join("data");
    eventually("both are cached", || count_files(&data) == 2);

    for key in ["whole", "part"] {
        rig.store.put(BUCKET, key, new.clone());
    }
    eventually("the names mean the new version", || {
        [&whole, &part].iter().all(|path| compare(path, &new).is_ok())
    });
    for file in &files {
        let _ = drop_pages(file);
        assert_old_or_stale(file, &old);
    }
    drop(files);
    eventually("two files, of the new version", || count_files(&data) == 2);
    eventually("their bytes are given back", || du(&data) <= 2 * new.len() as u64 + 2 * MIB);
    compare(&whole, &new).unwrap();
    compare(&part, &new).unwrap();
    rig.warmfs.unmount("mount");
}

fn assert_old_or_stale(file: &File, old: &[u8]) {
    let mut buffer = vec![0; 128 << 10];
    for at in (0..old.len()).step_by(buffer.len()) {
        match file.read_exact_at(&mut buffer, at as u64) {
            Ok(()) => assert!(old[at..at + buffer.len()] == buffer, "other bytes at {at}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}"),
        }
    }
}

#[test]
fn a_smaller_limit_shrinks_the_cache() {
    let rig = Rig::new();
    let objects = Objects::put(&rig.store, "data/", 300, 128 << 10..256 << 10);
    let mount = rig.mount("s3://bucket", "mount");
    objects.read(&mount, "", 2);
    let all = objects.files.len();
    eventually("all is cached", || rig.warmfs.status()["cache"]["objects"] == all);
    rig.warmfs.unmount("mount");
    eventually("the daemon ends with its last mount", || rig.warmfs.daemon().is_none());

    let limit = 20 * MIB;
    let options = ["--cache-size", &limit.to_string(), "--open-mode", "cached"];
    rig.warmfs.mount_with("s3://bucket", "mount", &options);
    let shown = rig.warmfs.status()["cache"]["limit_bytes"].as_u64().unwrap();
    assert_eq!(shown, limit);
    let cache = rig.warmfs.cache();
    eventually("the cache shrinks", || du(&cache) <= limit);
    assert!(kept(&cache) > limit / 2, "and not to nothing");
    let largest = Sampler::largest(move || du(&cache));
    for n in 0..2 {
        objects.shuffled(n).read(&mount, "", 2);
    }
    let largest = largest.end();
    assert!(largest <= limit, "du was {largest}, the limit is {limit}");
    let used = rig.warmfs.status()["cache"]["used_bytes"].as_u64().unwrap();
    assert!(used <= limit, "{used}");
    rig.warmfs.unmount("mount");
}

fn kept(cache: &Path) -> u64 {
    assert!(fs::metadata(cache).is_ok());
    du(&cache.join("data"))
}
