//! The daemon is killed at every named place of the store's life, and at
//! random moments; the machine loses its power. Whatever was under way: the
//! same mount command brings the folder back, every byte is right, and what
//! was cached a second before is still cached.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use common::readers::{read_all, start_doomed};
use common::store::{BUCKET, Store};
use common::tree::{Tree, noise};
use common::{Warmfs, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::cache::{CHUNK_BYTES, kill_point};
use warmfs::embedded_store::{Fault, FaultRule, Op, StoreOptions};

/// Kills at random moments in `./check`, and in `./check --full`.
const RANDOM_KILLS: u64 = 20;
const RANDOM_KILLS_FULL: u64 = 200;

/// Trees a cache holds before a new one is begun, so that the long test does
/// not fill the disk.
const TREES_MAX: u64 = 20;

/// For all kills of one cache, on a loaded machine with two cores.
const LONG: Duration = Duration::from_secs(240);

/// Names a listing gives at once, so that folders take several pages.
const PAGE_KEYS: usize = 16;

/// File systems take a block or two more for a file than its bytes.
const SLACK_BYTES: u64 = 512 << 10;

/// Files that no index knows are found and removed behind the mount.
const SWEEPS_ORPHANS: bool = true;

/// What leads to a place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    /// A mount on an empty cache, and an epoch.
    Cold,
    /// A mount on a filled cache whose index is lost.
    LostIndex,
    /// A mount on a filled cache whose index is damaged.
    DamagedIndex,
    /// An epoch after objects were replaced that are cached.
    Replaced,
    /// A mount after such an epoch.
    AfterReplaced,
    /// A clean end.
    Unmount,
}

/// Each place, what leads there, and the passes at which the daemon dies.
const CASES: &[(&str, Life, &[u64])] = &[
    ("index-damaged-aside", Life::DamagedIndex, &[1]),
    ("index-schema-written", Life::LostIndex, &[1]),
    ("orphan-found", Life::LostIndex, &[1, 3]),
    ("index-uncommitted", Life::Cold, &[1, 9]),
    ("listing-page-written", Life::Cold, &[1, 3]),
    ("file-uncreated", Life::Cold, &[1, 20]),
    ("file-created", Life::Cold, &[1, 20]),
    ("chunk-written", Life::Cold, &[1, 25]),
    ("chunk-noted", Life::Cold, &[1, 25]),
    ("flush-begun", Life::Cold, &[1]),
    ("flush-between-rows", Life::Cold, &[1, 15]),
    ("flush-object-written", Life::Cold, &[1, 15]),
    ("flush-uncommitted", Life::Cold, &[1]),
    ("flush-committed", Life::Cold, &[1]),
    ("remove-begun", Life::Replaced, &[1]),
    ("remove-rows-removed", Life::Replaced, &[1]),
    ("remove-file-removed", Life::Replaced, &[1, 4]),
    ("leftover-discarded", Life::AfterReplaced, &[1]),
    ("close-begun", Life::Unmount, &[1]),
    ("close-settled", Life::Unmount, &[1]),
    ("close-synced", Life::Unmount, &[1]),
    ("close-done", Life::Unmount, &[1]),
    ("mount-made", Life::Cold, &[1]),
];

/// Small files, files around the bounds of chunks, and large ones.
fn tree(seed: u64, large_bytes: usize) -> Tree {
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    let mut tree = Tree { files: [].into() };
    let sizes = [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 9 * chunk + 5];
    for (n, size) in sizes.into_iter().enumerate() {
        tree.files.insert(format!("sizes/{n}"), noise(seed + n as u64, size));
    }
    for n in 0..40 {
        tree.files.insert(format!("many/{n:02}"), noise(seed + 100 + n, 300 * n as usize));
    }
    for n in 0..2 {
        tree.files.insert(format!("large/{n}"), noise(seed + 200 + n, large_bytes));
    }
    tree
}

fn small_pages() -> Store {
    Store::with(StoreOptions { page_keys_max: PAGE_KEYS, ..StoreOptions::default() })
}

/// One cache in whose life the daemon dies.
struct Stage<'a> {
    store: &'a Store,
    warmfs: Warmfs,
    tree: Tree,
    ttl: &'static str,
}

impl<'a> Stage<'a> {
    fn new(store: &'a Store, tree: Tree) -> Self {
        store.put_tree("data/", &tree);
        let mut warmfs = store.warmfs();
        // Another one would die at the same place.
        warmfs.set_env("WARMFS_NO_SUPERVISOR", "true");
        Stage { store, warmfs, tree, ttl: "1h" }
    }

    fn dir(&self) -> PathBuf {
        self.warmfs.path("mount")
    }

    /// The mount command, whatever becomes of it.
    fn try_mount(&self) -> Output {
        let dir = self.dir();
        self.warmfs.run(&[
            "mount",
            "s3://bucket/data",
            dir.to_str().unwrap(),
            "--metadata-ttl",
            self.ttl,
        ])
    }

    fn mount(&self) {
        let output = self.try_mount();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}\n{}", self.warmfs.log());
    }

    fn die_at(&mut self, place: &str) {
        self.warmfs.set_env("WARMFS_KILL_POINT", place);
    }

    /// A cache that holds the tree, closed cleanly.
    fn fill(&self) {
        self.mount();
        read_all(&self.dir(), &self.tree, 1);
        self.warmfs.unmount("mount");
        eventually("the daemon is gone", || self.warmfs.daemon().is_none());
    }

    /// Other content for some objects.
    fn replace_some(&mut self) {
        for (n, (name, bytes)) in self.tree.files.iter_mut().enumerate() {
            if n % 3 == 0 {
                *bytes = noise(9_000 + n as u64, bytes.len() + 1);
                self.store.put(BUCKET, format!("data/{name}"), bytes.clone());
            }
        }
        // An old listing is asked for again at once.
        self.ttl = "0s";
    }

    /// Leads a daemon through `life` until it dies at `place`.
    fn die(&mut self, life: Life, place: &str) {
        let index = self.warmfs.cache().join("index.redb");
        match life {
            Life::Cold | Life::Unmount => {}
            Life::LostIndex => {
                self.fill();
                fs::remove_file(&index).unwrap();
            }
            Life::DamagedIndex => {
                self.fill();
                File::options()
                    .write(true)
                    .open(&index)
                    .unwrap()
                    .write_all_at(&[0; 4096], 0)
                    .unwrap();
            }
            Life::Replaced => {
                self.fill();
                self.replace_some();
            }
            Life::AfterReplaced => {
                self.fill();
                self.replace_some();
                self.fill();
            }
        }
        self.die_at(place);
        if self.try_mount().status.success() {
            let readers = start_doomed(&self.dir(), &self.tree, 1);
            if life == Life::Unmount {
                eventually("the epoch is over", || readers.is_over());
                // Cut off by the end of the daemon, or not.
                self.warmfs.run(&["unmount", self.dir().to_str().unwrap()]);
            }
            eventually(&format!("the daemon died at {place}"), || self.has_died());
            // The mount command starts another daemon where the first died early.
            if let Some(daemon) = self.warmfs.daemon() {
                let _ = kill(Pid::from_raw(daemon as i32), Signal::SIGKILL);
            }
            eventually("every daemon is gone", || self.warmfs.daemon().is_none());
            readers.join();
        }
        assert!(self.has_died(), "the daemon did not come to {place}");
        self.die_at("");
    }

    fn has_died(&self) -> bool {
        self.warmfs.log().contains("killed at")
    }

    /// The same command mounts again; everything is right, and nothing is lost
    /// or left over.
    fn check_recovery(&self, what: &str) {
        self.mount();
        read_all(&self.dir(), &self.tree, 2);
        let status = self.warmfs.status();
        assert_eq!(status["cache"]["state"], "ok", "{what}");
        if SWEEPS_ORPHANS {
            eventually(&format!("{what}: unknown files are removed"), || self.has_no_orphans());
        }
        self.warmfs.unmount("mount");
    }

    fn has_no_orphans(&self) -> bool {
        let used = self.warmfs.status()["cache"]["used_bytes"].as_u64().unwrap();
        let cache = self.warmfs.cache();
        let on_disk = disk_bytes(&cache.join("data")) + disk_bytes(&cache.join("index.redb"));
        on_disk <= used + SLACK_BYTES && !cache.join("data.orphaned").exists()
    }
}

/// Disk that the files at or below `path` take.
fn disk_bytes(path: &Path) -> u64 {
    files_below(path).iter().filter_map(|file| file.metadata().ok()).map(|m| m.blocks() * 512).sum()
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    entries.flat_map(|entry| files_below(&entry.unwrap().path())).collect()
}

#[test]
fn every_kill_point_has_its_case() {
    let cases: BTreeSet<_> = CASES.iter().map(|(name, ..)| *name).collect();
    assert_eq!(cases, kill_point::NAMES.iter().copied().collect());
}

fn killed_in(lives: &[Life]) {
    for (name, life, passes) in CASES.iter().filter(|(_, life, _)| lives.contains(life)) {
        for pass in *passes {
            let place = format!("{name}:{pass}");
            let store = small_pages();
            let mut stage = Stage::new(&store, tree(1, 5 << 20));
            stage.die(*life, &place);
            stage.check_recovery(&place);
        }
    }
}

#[test]
fn killed_while_an_index_is_lost_everything_is_right() {
    killed_in(&[Life::LostIndex, Life::DamagedIndex]);
}

#[test]
fn killed_in_a_cold_epoch_everything_is_right() {
    killed_in(&[Life::Cold]);
}

#[test]
fn killed_while_versions_are_replaced_everything_is_right() {
    killed_in(&[Life::Replaced, Life::AfterReplaced]);
}

#[test]
fn killed_at_the_end_everything_is_right() {
    killed_in(&[Life::Unmount]);
}

#[test]
fn what_was_cached_a_second_before_a_kill_is_cached_after() {
    let store = Store::start();
    let mut stage = Stage::new(&store, tree(1, 20 << 20));
    // Only what was read is counted.
    stage.warmfs.set_env("WARMFS_WARM", "off");
    let (half, rest): (Vec<_>, Vec<_>) =
        stage.tree.files.clone().into_iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let take = |part: Vec<(usize, (String, Bytes))>| Tree {
        files: part.into_iter().map(|(_, file)| file).collect(),
    };
    let (half, rest) = (take(half), take(rest));
    let index = stage.warmfs.cache().join("index.redb");
    stage.mount();
    read_all(&stage.dir(), &half, 1);
    eventually("what was read is on disk", || {
        let cached = stage.warmfs.status()["cache"]["objects"].as_u64().unwrap();
        cached == half.filled()
    });
    eventually("the index is at rest for a second", || {
        let changed = index.metadata().unwrap().modified().unwrap();
        changed.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
    });
    let readers = start_doomed(&stage.dir(), &rest, 1);
    stage.warmfs.crash();
    readers.join();
    stage.mount();
    store.reset_log();
    read_all(&stage.dir(), &half, 2);
    let gets: Vec<_> = store.log().into_iter().filter(|request| request.op == Op::Get).collect();
    assert!(gets.is_empty(), "{gets:?}");
    assert_eq!(stage.warmfs.status()["repairs"], 0);
    read_all(&stage.dir(), &rest, 3);
    stage.warmfs.unmount("mount");
}

/// What ends the daemon in the middle of an epoch.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Kill,
    /// Whatever was not synced is lost, or half lost.
    PowerCut,
}

/// Kills at random moments of cold epochs, the cache kept.
fn random_kills(rounds: u64, end: End) {
    let seed = std::env::var("WARMFS_TEST_SEED")
        .map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("WARMFS_TEST_SEED={seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut left = rounds;
    while left > 0 {
        let now = left.min(TREES_MAX);
        kills_of_one_cache(now, end, &mut dice);
        left -= now;
    }
}

fn kills_of_one_cache(rounds: u64, end: End, dice: &mut fastrand::Rng) {
    // Slow enough that an epoch sees several flushes of the index.
    let store = Store::with(StoreOptions {
        page_keys_max: PAGE_KEYS,
        ttfb: Duration::from_millis(5),
        rate_bytes_per_s_per_connection: Some(8 << 20),
        ..StoreOptions::default()
    });
    let mut warmfs = Warmfs::with_limit(LONG);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    let mut trees: Vec<(PathBuf, Tree)> = Vec::new();
    for round in 0..rounds {
        let tree = tree(round * 1_000, 3 << 20);
        store.put_tree(&format!("{round}/"), &tree);
        let since = SystemTime::now();
        let dir = warmfs.mount_uri(&format!("s3://{BUCKET}/{round}"), &format!("mount{round}"));
        store.reset_log();
        let readers = start_doomed(&dir, &tree, dice.u64(..1 << 60));
        // A moment by progress, not by the clock: as random on a slow machine.
        let moment = dice.u64(..tree.bytes());
        eventually("so much is fetched", || store.counts().get.bytes >= moment);
        warmfs.crash();
        readers.join();
        trees.push((dir, tree));
        if end == End::PowerCut {
            lose_unsynced(&warmfs.cache().join("data"), since, dice);
            warmfs.set_env("WARMFS_TEST_BOOT_ID", &dice.u128(..).to_string());
        }
        let (dir, tree) = &trees[trees.len() - 1];
        warmfs.mount_uri(&format!("s3://{BUCKET}/{round}"), &format!("mount{round}"));
        read_all(dir, tree, dice.u64(..1 << 60));
        assert_eq!(warmfs.status()["cache"]["state"], "ok");
    }
    // What was cached over many kills and is only opened now is right too.
    for (round, (dir, tree)) in trees.iter().enumerate() {
        warmfs.mount_uri(&format!("s3://{BUCKET}/{round}"), &format!("mount{round}"));
        read_all(dir, tree, dice.u64(..1 << 60));
    }
}

/// What a power cut leaves of files that were written after `since` and never
/// synced: any of their pages may be missing or half there, their size and
/// times may be old or new, and they may not be there at all.
fn lose_unsynced(data: &Path, since: SystemTime, dice: &mut fastrand::Rng) {
    const PAGE: u64 = 4096;
    for path in files_below(data) {
        let Ok(file) = File::options().write(true).open(&path) else { continue };
        let metadata = file.metadata().unwrap();
        let modified = metadata.modified().unwrap();
        if modified < since || metadata.len() == 0 || dice.bool() {
            continue;
        }
        match dice.u8(..8) {
            0 => fs::remove_file(&path).unwrap(),
            1 => file.set_len(dice.u64(..metadata.len()) / PAGE * PAGE).unwrap(),
            _ => {
                for _ in 0..dice.u64(1..20) {
                    let page = dice.u64(..metadata.len().div_ceil(PAGE)) * PAGE;
                    // Whole, or torn at a sector.
                    let sectors = if dice.bool() { 8 } else { dice.u64(1..8) };
                    let bytes = (sectors * 512).min(metadata.len() - page);
                    file.write_all_at(&vec![0; bytes as usize], page).unwrap();
                }
            }
        }
        if dice.bool() {
            file.set_times(FileTimes::new().set_modified(modified)).unwrap();
        }
    }
}

#[test]
fn killed_at_random_moments_everything_is_right() {
    random_kills(RANDOM_KILLS, End::Kill);
}

#[test]
fn without_power_at_random_moments_everything_is_right() {
    random_kills(RANDOM_KILLS, End::PowerCut);
}

#[test]
#[ignore = "minutes long; part of ./check --full"]
fn killed_at_many_random_moments_everything_is_right() {
    random_kills(RANDOM_KILLS_FULL, End::Kill);
}

#[test]
#[ignore = "minutes long; part of ./check --full"]
fn without_power_at_many_random_moments_everything_is_right() {
    random_kills(RANDOM_KILLS_FULL, End::PowerCut);
}

/// The kernel keeps the thread that tells it of a change until the lookup
/// under way in that folder is answered, and it keeps it over a SIGKILL.
#[test]
fn killed_while_the_kernel_waits_with_a_notification_the_daemon_dies() {
    let store = small_pages();
    let mut stage = Stage::new(&store, tree(1, 1 << 20));
    stage.mount();
    fs::metadata(stage.dir().join("many/00")).unwrap();
    stage.replace_some();
    let replaced = noise(1, 1);
    store.put(BUCKET, "data/many/00", replaced.clone());
    stage.tree.files.insert("many/00".to_owned(), replaced);
    // Lookups in the folder wait for ever, while it is listed behind them.
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::Head, Fault::NoAnswer)]);
    let lookups: Vec<_> = (1..8)
        .map(|n| stage.dir().join(format!("many/0{n}")))
        .map(|path| std::thread::spawn(move || fs::metadata(path)))
        .collect();
    let daemon = stage.warmfs.daemon().unwrap();
    eventually("a notification waits", || is_notification_stuck(daemon));
    stage.warmfs.crash();
    for lookup in lookups {
        // One that came after the listing was answered by it.
        if let Err(error) = lookup.join().unwrap() {
            let errno = error.raw_os_error();
            assert!(matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED)), "{error}");
        }
    }
    store.set_faults(Vec::new());
    stage.check_recovery("killed in a notification");
}

/// Whether the thread that notifies the kernel is in an uninterruptible wait.
fn is_notification_stuck(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
    stats.into_iter().any(|stat| stat.contains("(notify) D"))
}
