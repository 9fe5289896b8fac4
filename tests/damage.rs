//! Files of the cache directory are damaged while nobody looks: readers get
//! the right bytes and no error, and what was damaged counts as repaired.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::readers::read_all;
use common::store::Store;
use common::tree::{Tree, noise};
use common::{Warmfs, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::cache::CHUNK_BYTES;

/// Bits flipped in the index, one a mount.
const INDEX_FLIPS: usize = 40;

/// Mounts at which a bit of a lock's record is wrong.
const LOCK_FLIPS: usize = 6;

/// For tests of many mounts, on a loaded machine with two cores.
const LONG: Duration = Duration::from_secs(240);

/// When a file is damaged.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// After a clean end.
    Stopped,
    /// After the daemon was killed.
    Killed,
    /// While the daemon runs, but no reader has the file open.
    Mounted,
}

/// What becomes of a backing file. Each of these has the file of its name to
/// damage; those of `swapped` and `other` change places.
const DAMAGES: &[&str] =
    &["flipped", "truncated", "emptied", "deleted", "zeroed", "replaced", "swapped", "other"];

/// Of these, a daemon that has the file open sees the damage.
const SEEN_WHILE_OPEN: u64 = 4;

/// A tree in a cache.
struct Rig<'a> {
    store: &'a Store,
    warmfs: Warmfs,
    tree: Tree,
}

impl<'a> Rig<'a> {
    fn new(store: &'a Store, tree: Tree) -> Self {
        store.put_tree("data/", &tree);
        let mut warmfs = Warmfs::with_limit(LONG);
        warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
        Rig { store, warmfs, tree }
    }

    fn dir(&self) -> PathBuf {
        self.warmfs.path("mount")
    }

    fn mount(&self) {
        self.warmfs.mount_uri("s3://bucket/data", "mount");
    }

    /// Everything reads right, and the daemon is content.
    fn check(&self, seed: u64) {
        read_all(&self.dir(), &self.tree, seed);
        assert_eq!(self.warmfs.status()["cache"]["state"], "ok");
    }

    /// Mounts and caches everything, durably.
    fn fill(&self) {
        self.mount();
        self.check(1);
        let index = self.warmfs.cache().join("index.redb");
        eventually("what was read is on disk", || {
            self.warmfs.status()["cache"]["objects"] == self.tree.filled()
        });
        eventually("the index is at rest for a second", || {
            let changed = index.metadata().unwrap().modified().unwrap();
            changed.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
        });
    }

    fn end(&self, when: When) {
        match when {
            When::Stopped => {
                self.warmfs.unmount("mount");
                eventually("the daemon is gone", || self.warmfs.daemon().is_none());
            }
            When::Killed => self.warmfs.crash(),
            When::Mounted => self.forget_pages(),
        }
    }

    /// The kernel's copies go, so that the next read reaches the daemon.
    fn forget_pages(&self) {
        for name in self.tree.files.keys() {
            let file = File::open(self.dir().join(name)).unwrap();
            // SAFETY: a plain system call on an open descriptor.
            let result =
                unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
            assert_eq!(result, 0);
        }
    }

    fn repairs(&self) -> u64 {
        self.warmfs.status()["repairs"].as_u64().unwrap()
    }

    /// The backing file of each object, told by its content.
    fn backing_files(&self) -> BTreeMap<String, PathBuf> {
        let mut found = BTreeMap::new();
        for path in files_below(&self.warmfs.cache().join("data")) {
            let bytes = fs::read(&path).unwrap();
            let name = self.tree.files.iter().find(|(_, expected)| **expected == bytes);
            found.insert(name.expect("a whole object").0.clone(), path);
        }
        found
    }
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    entries.flat_map(|entry| files_below(&entry.unwrap().path())).collect()
}

/// One file for each damage, and one that is left alone.
fn victims() -> Tree {
    let size = 3 * CHUNK_BYTES as usize + 1_234;
    let names = DAMAGES.iter().copied().chain(["untouched"]);
    let file = |(n, name): (usize, &str)| (name.to_owned(), noise(n as u64, size));
    Tree { files: names.enumerate().map(file).collect() }
}

fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
}

fn damage(files: &BTreeMap<String, PathBuf>, keep_mtime: bool) {
    let modified = |path: &Path| path.metadata().unwrap().modified().unwrap();
    let before: Vec<_> = files.values().map(|path| (path, modified(path))).collect();
    let size = files["flipped"].metadata().unwrap().len();
    let write = |name: &str| File::options().write(true).open(&files[name]).unwrap();
    flip(&files["flipped"], size * 4 + 3);
    write("truncated").set_len(size / 2).unwrap();
    // As a tool may that keeps the size: all holes.
    write("emptied").set_len(0).unwrap();
    write("emptied").set_len(size).unwrap();
    write("zeroed").write_all_at(&vec![0; size as usize], 0).unwrap();
    fs::remove_file(&files["deleted"]).unwrap();
    let beside = files["replaced"].with_extension("new");
    fs::write(&beside, noise(77, size as usize)).unwrap();
    fs::rename(&beside, &files["replaced"]).unwrap();
    let aside = files["swapped"].with_extension("aside");
    fs::rename(&files["swapped"], &aside).unwrap();
    fs::rename(&files["other"], &files["swapped"]).unwrap();
    fs::rename(&aside, &files["other"]).unwrap();
    if keep_mtime {
        for (path, modified) in before {
            let Ok(file) = File::options().write(true).open(path) else { continue };
            file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        }
    }
}

fn damaged_backing_files(when: When) {
    for keep_mtime in [false, true] {
        let store = Store::start();
        let rig = Rig::new(&store, victims());
        rig.fill();
        let files = rig.backing_files();
        assert_eq!(files.len(), rig.tree.files.len());
        rig.end(when);
        damage(&files, keep_mtime);
        rig.store.reset_log();
        if when != When::Mounted {
            rig.mount();
        }
        rig.check(2);
        let seen = if when == When::Mounted { SEEN_WHILE_OPEN } else { DAMAGES.len() as u64 };
        assert!(rig.repairs() >= seen, "{when:?}: {} repairs", rig.repairs());
        let fetched = store.log().iter().any(|request| request.key == "data/untouched");
        assert!(!fetched, "{when:?}: what is right is not fetched again");
        // What was hidden by an open file is seen now; the rest is repaired for good.
        rig.end(When::Stopped);
        rig.mount();
        rig.check(3);
        rig.end(When::Stopped);
        store.reset_log();
        rig.mount();
        rig.check(4);
        assert_eq!(store.counts().get.requests, 0, "{when:?}: repaired once");
        assert_eq!(rig.repairs(), 0);
        rig.end(When::Stopped);
    }
}

#[test]
fn damaged_after_a_clean_end_backing_files_are_repaired() {
    damaged_backing_files(When::Stopped);
}

#[test]
fn damaged_after_a_kill_backing_files_are_repaired() {
    damaged_backing_files(When::Killed);
}

#[test]
fn damaged_while_mounted_backing_files_are_repaired() {
    damaged_backing_files(When::Mounted);
}

/// Many small objects: more rows than bytes.
fn many_rows() -> Tree {
    let mut files = BTreeMap::new();
    for n in 0..60 {
        files.insert(format!("folder{}/{n:02}", n % 5), noise(n, 700 * n as usize));
    }
    files.insert("large".to_owned(), noise(99, 5 * CHUNK_BYTES as usize + 9));
    Tree { files }
}

fn dice() -> fastrand::Rng {
    let seed = std::env::var("WARMFS_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("WARMFS_TEST_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// A bit to flip: somewhere, or where something is.
fn some_bit(bytes: &[u8], dice: &mut fastrand::Rng) -> u64 {
    let used: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let at =
        if dice.u8(..4) == 0 { dice.usize(..bytes.len()) } else { used[dice.usize(..used.len())] };
    at as u64 * 8 + dice.u64(..8)
}

/// A filled cache whose index is damaged again and again, as `end` left it.
fn damaged_index(end: When, flips: usize) {
    let mut dice = dice();
    let store = Store::start();
    let rig = Rig::new(&store, many_rows());
    let index = rig.warmfs.cache().join("index.redb");
    rig.fill();
    rig.end(end);
    let whole = fs::read(&index).unwrap();
    for round in 0..flips {
        fs::write(&index, &whole).unwrap();
        let bit = some_bit(&whole, &mut dice);
        println!("{end:?}, round {round}: bit {bit}");
        flip(&index, bit);
        rig.mount();
        rig.check(dice.u64(..1 << 60));
        rig.end(When::Stopped);
    }
    for cut in [0, 1, 4096, whole.len() / 2, whole.len() - 1] {
        println!("{end:?}: cut to {cut}");
        fs::write(&index, &whole[..cut]).unwrap();
        rig.mount();
        rig.check(dice.u64(..1 << 60));
        rig.end(When::Stopped);
    }
    fs::write(&index, vec![0; whole.len()]).unwrap();
    rig.mount();
    rig.check(5);
    assert!(rig.warmfs.log().contains("is set aside"), "{}", rig.warmfs.log());
    rig.end(When::Stopped);
}

#[test]
fn damaged_after_a_clean_end_the_index_is_used_or_set_aside() {
    damaged_index(When::Stopped, INDEX_FLIPS / 2);
}

#[test]
fn damaged_after_a_kill_the_index_is_used_or_set_aside() {
    damaged_index(When::Killed, INDEX_FLIPS / 2);
}

#[test]
fn damaged_while_mounted_the_index_hurts_no_reader() {
    let mut dice = dice();
    for _ in 0..3 {
        let store = Store::start();
        let rig = Rig::new(&store, many_rows());
        let index = rig.warmfs.cache().join("index.redb");
        // Opened anew, redb has nothing of it in memory.
        rig.fill();
        rig.end(When::Stopped);
        rig.mount();
        let bytes = fs::read(&index).unwrap();
        for _ in 0..INDEX_FLIPS {
            flip(&index, some_bit(&bytes, &mut dice));
        }
        read_all(&rig.dir(), &rig.tree, 2);
        rig.end(When::Mounted);
        read_all(&rig.dir(), &rig.tree, 3);
        rig.warmfs.crash();
        rig.mount();
        rig.check(4);
        rig.end(When::Stopped);
    }
}

#[test]
fn damaged_beside_the_store_files_hurt_no_reader() {
    let mut dice = dice();
    let store = Store::start();
    let rig = Rig::new(&store, victims());
    rig.fill();
    let lock = rig.warmfs.cache().join("lock");
    for round in 0..LOCK_FLIPS {
        let end = if round % 2 == 0 { When::Killed } else { When::Stopped };
        rig.end(end);
        for name in ["lock", "warmfs.log"] {
            let path = rig.warmfs.cache().join(name);
            let bit = some_bit(&fs::read(&path).unwrap(), &mut dice);
            println!("{end:?}: {name}, bit {bit}");
            flip(&path, bit);
        }
        rig.mount();
        rig.check(2);
        assert_eq!(rig.repairs(), 0);
    }
    for text in [&b""[..], b"{", b"{\"pid\":1,\"socket\":\"/dev/null\"}"] {
        rig.end(When::Stopped);
        fs::write(&lock, text).unwrap();
        rig.mount();
        rig.check(3);
    }
    // While it is held, nobody finds the daemon any more; its readers do not care.
    let daemon = rig.warmfs.daemon().unwrap();
    fs::write(&lock, "").unwrap();
    rig.end(When::Mounted);
    read_all(&rig.dir(), &rig.tree, 4);
    kill(Pid::from_raw(daemon as i32), Signal::SIGKILL).unwrap();
    eventually("the daemon is gone", || fs::read_dir(rig.dir()).is_err());
    for socket in files_below(&rig.warmfs.path("run/warmfs")) {
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "no socket").unwrap();
    }
    rig.mount();
    rig.check(5);
    rig.end(When::Stopped);
}
