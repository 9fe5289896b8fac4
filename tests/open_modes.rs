//! The open modes on machines that are short of something: of privilege, of a
//! `/sys` that can be written, of a plain file system for the cache, of
//! descriptors; and with backing files that somebody else damages. Readers get
//! the right bytes in each, and `status` says which mode it is and why.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use common::epoch::{compare, compare_open};
use common::machine::{has_passthrough, is_root, skip};
use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Modes that a user may ask for.
const OPTIONS: [&str; 3] = ["auto", "cached", "passthrough"];

/// Larger than where passthrough begins to pay, and no multiple of anything.
const LARGE: usize = (6 << 20) + 4_097;

const NO_PRIVILEGE: &str = "no privilege (CAP_SYS_ADMIN)";

/// A store, and a warmfs that mounts its bucket.
struct Rig {
    warmfs: Warmfs,
    store: Store,
    files: BTreeMap<&'static str, Bytes>,
}

impl Rig {
    /// Files of these sizes.
    fn new(sizes: &[(&'static str, usize)]) -> Rig {
        let store = Store::start();
        let warmfs = store.warmfs();
        let mut rig = Rig { warmfs, store, files: BTreeMap::new() };
        for (seed, (name, size)) in sizes.iter().enumerate() {
            rig.put(name, noise(seed as u64, *size));
        }
        rig
    }

    fn put(&mut self, name: &'static str, bytes: Bytes) {
        self.store.put(BUCKET, format!("data/{name}"), bytes.clone());
        self.files.insert(name, bytes);
    }

    fn mount(&self, option: &str) {
        self.mount_with(option, &[]);
    }

    /// Its warnings are not this test's to judge.
    fn mount_with(&self, option: &str, more: &[&str]) {
        let dir = self.dir();
        let mut args = vec!["mount", "s3://bucket/data", dir.to_str().unwrap()];
        args.extend(["--open-mode", option]);
        args.extend(more);
        self.warmfs.ok(&args);
    }

    fn dir(&self) -> PathBuf {
        self.warmfs.path("mount")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    fn unmount(&self) {
        self.warmfs.unmount("mount");
        eventually("the daemon is gone", || self.warmfs.daemon().is_none());
    }

    /// Every file, past the kernel's pages.
    fn epoch(&self) {
        for (name, bytes) in &self.files {
            compare(&self.path(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// Reads until all of it is in the cache.
    fn fill(&self) {
        self.epoch();
        eventually("all of it is cached", || {
            let cache = &self.warmfs.status()["cache"];
            cache["dataset_cached_bytes"] == cache["dataset_bytes"]
                && cache["objects"] == self.files.len()
        });
    }

    /// Waits until the index has seen the backing files as they are now: what
    /// somebody does to them before that is taken for our own doing.
    fn rest(&self) {
        let index = self.warmfs.cache().join("index.redb");
        let begun = SystemTime::now();
        eventually("the index is at rest for a second", || {
            let changed = index.metadata().unwrap().modified().unwrap().max(begun);
            changed.elapsed().is_ok_and(|age| age > Duration::from_secs(1))
        });
    }

    /// The mode and why, as `status` has them.
    fn mode(&self) -> (String, String) {
        mode_of(&self.warmfs.status())
    }

    fn count(&self, op: &str) -> u64 {
        self.warmfs.status()["mounts"][0]["fuse"]["ops"][op].as_u64().unwrap_or(0)
    }

    /// Whether files are read without a READ, pages or none. What was open
    /// before it was complete is closed behind who closed it.
    fn assert_passes_through(&self, expected: bool) {
        let passes = || {
            let before = self.count("read");
            self.epoch();
            self.count("read") == before
        };
        match expected {
            true => eventually("files are passed through", passes),
            false => assert!(!passes(), "files are passed through"),
        }
    }

    fn requests(&self) -> u64 {
        self.store.counts().get.requests
    }

    /// The backing file of an object, told by its content.
    fn backing_file(&self, name: &str) -> PathBuf {
        let found = files_below(&self.warmfs.cache().join("data"));
        let is_of = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == self.files[name]);
        found.into_iter().find(is_of).expect("a whole object")
    }
}

fn mode_of(status: &serde_json::Value) -> (String, String) {
    let text = |name: &str| status["mounts"][0][name].as_str().unwrap().to_owned();
    (text("mode"), text("mode_reason"))
}

fn files_below(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return vec![path.to_owned()] };
    entries.flat_map(|entry| files_below(&entry.unwrap().path())).collect()
}

fn pair(mode: &str, reason: &str) -> (String, String) {
    (mode.to_owned(), reason.to_owned())
}

// ---------------------------------------------------------------------------
// What auto chooses
// ---------------------------------------------------------------------------

#[test]
fn auto_goes_by_the_size_of_the_files() {
    let can_pass = has_passthrough("auto_goes_by_the_size_of_the_files");
    let passed = |reason: &str| match (can_pass, is_root()) {
        (true, _) => pair("passthrough", reason),
        (false, true) => pair("cached", "this kernel has no passthrough"),
        (false, false) => pair("cached", NO_PRIVILEGE),
    };
    // Enough small ones among the large make opening them what counts.
    for (sizes, small, reason) in [
        (&[("a", LARGE), ("b", LARGE)][..], false, "large files (mean 6.00 MiB)"),
        (&[("a", 70 << 10), ("b", 150 << 10)], true, "small files (mean 110 KiB)"),
        (&[("a", LARGE), ("b", 1), ("c", 1), ("d", 1)], true, "small files (mean 1.50 MiB)"),
    ] {
        let rig = Rig::new(sizes);
        rig.mount("auto");
        let expected = match small && can_pass {
            true => pair("cached", reason),
            false => passed(reason),
        };
        let before = rig.mode();
        assert_eq!(before.0, expected.0, "{before:?}");
        assert_eq!(before.1.contains("settled when a file is opened"), can_pass, "{before:?}");
        rig.fill();
        assert_eq!(rig.mode(), expected);
        rig.assert_passes_through(expected.0 == "passthrough");
        if expected.0 == "cached" {
            assert_eq!((rig.count("open"), rig.count("release")), (1, 0));
        }
        rig.unmount();
    }
}

#[test]
fn auto_stays_with_what_it_chose() {
    let mut rig = Rig::new(&[("a", 1_000)]);
    rig.mount_with("auto", &["--metadata-ttl", "1s"]);
    rig.fill();
    let chosen = rig.mode();
    rig.put("larger", noise(5, 2 * LARGE));
    eventually("the listing is as it is now", || rig.path("larger").exists());
    fs::read_dir(rig.dir()).unwrap().for_each(drop);
    rig.fill();
    assert_eq!(rig.mode(), chosen);
    rig.assert_passes_through(false);
    // The next mount knows better.
    rig.unmount();
    rig.mount("auto");
    rig.fill();
    let passes = has_passthrough("auto_stays_with_what_it_chose");
    assert_eq!(rig.mode().0, if passes { "passthrough" } else { "cached" });
    rig.unmount();
}

// ---------------------------------------------------------------------------
// Machines
// ---------------------------------------------------------------------------

/// Another program, with the environment that `warmfs` has.
fn with_env_of(warmfs: &Command, program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, value) in warmfs.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Mounts, reads twice, asks for the status and unmounts, in namespaces of its
/// own after `prepare`. `None` if the machine does not give them.
fn session_in(
    rig: &Rig,
    option: &str,
    unshare: &[&str],
    prepare: &str,
) -> Option<serde_json::Value> {
    let warmfs = rig.warmfs.command(&[]);
    let run = |script: &str| -> Output {
        let mut command = with_env_of(&warmfs, "unshare");
        command.args(unshare).args(["--mount", "sh", "-euc", script, "sh"]);
        command.arg(warmfs.get_program()).arg(rig.dir()).arg(option);
        command.output().unwrap()
    };
    let prepared = run(prepare);
    if !prepared.status.success() {
        skip(&format!("{unshare:?}, {prepare:?}"), &String::from_utf8_lossy(&prepared.stderr));
        return None;
    }
    let output = run(&format!(
        r#"{prepare}
        "$1" mount s3://bucket/data "$2" --open-mode "$3" >/dev/null
        for epoch in 1 2; do cat "$2"/* | sha256sum >&2; done
        "$1" status --json
        "$1" unmount "$2" >/dev/null"#
    ));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{option}: {stderr}\n{}", rig.warmfs.log());
    let all: Vec<u8> = rig.files.values().flatten().copied().collect();
    let sum = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    assert_eq!(stderr.lines().map(sum).collect::<Vec<_>>(), vec![sha256(&all); 2], "{option}");
    eventually("the daemon is gone", || rig.warmfs.daemon().is_none());
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

/// As the program of that name has it.
fn sha256(bytes: &[u8]) -> String {
    let tmp = tempfile::NamedTempFile::new().unwrap();
    fs::write(tmp.path(), bytes).unwrap();
    let output = Command::new("sha256sum").arg(tmp.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Warnings of the log about passthrough.
fn warnings(rig: &Rig) -> usize {
    rig.warmfs.log().lines().filter(|line| line.contains("not passed through")).count()
}

#[test]
fn a_read_only_sys_costs_nothing_but_readahead() {
    if !is_root() {
        return skip("a read-only /sys", "it needs root");
    }
    let can_pass = has_passthrough("a_read_only_sys_costs_nothing_but_readahead");
    for option in OPTIONS {
        let rig = Rig::new(&[("a", 1_000), ("b", 2 * LARGE)]);
        let prepare = "mount -o remount,bind,ro /sys; ! sh -c ': > /sys/probe' 2>/dev/null";
        let Some(status) = session_in(&rig, option, &[], prepare) else { return };
        let expected = if option != "cached" && can_pass { "passthrough" } else { "cached" };
        assert_eq!(mode_of(&status).0, expected, "{status}");
        assert_eq!(status["cache"]["state"], "ok");
    }
}

/// Root of a user namespace has every capability there, and none that counts
/// here: the kernel offers passthrough and refuses it.
#[test]
fn passthrough_that_is_offered_and_refused_is_cached() {
    for option in OPTIONS {
        let rig = Rig::new(&[("a", 1_000), ("b", 2 * LARGE)]);
        let own = ["--user", "--map-root-user"];
        let Some(status) = session_in(&rig, option, &own, "true") else { return };
        let (mode, reason) = mode_of(&status);
        assert_eq!(mode, "cached");
        match option {
            "cached" => assert_eq!(reason, "asked for"),
            _ => assert!(reason.contains(NO_PRIVILEGE), "{reason}"),
        }
        assert_eq!(warnings(&rig), usize::from(option == "passthrough"), "{}", rig.warmfs.log());
        assert_eq!(status["mounts"][0]["fuse"]["ops"]["open"], 1, "{status}");
    }
}

/// An overlayfs. Unmounted when dropped; declare it before the `Warmfs` whose
/// cache it holds.
struct Overlay {
    tmp: tempfile::TempDir,
}

impl Overlay {
    /// `None`, and a loud line, where the machine does not let us.
    fn new() -> Option<Overlay> {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        for dir in ["lower", "upper", "work", "merged"] {
            fs::create_dir(at(dir)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower").display(),
            at("upper").display(),
            at("work").display()
        );
        let (what, flags) = (Some("overlay"), MsFlags::empty());
        match mount(what, &at("merged"), what, flags, Some(options.as_str())) {
            Ok(()) => Some(Overlay { tmp }),
            Err(error) => {
                skip("a cache on overlayfs", &error.to_string());
                None
            }
        }
    }

    fn dir(&self) -> PathBuf {
        self.tmp.path().join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.dir(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_cache_on_overlayfs_has_every_mode() {
    let can_pass = has_passthrough("a_cache_on_overlayfs_has_every_mode");
    for option in OPTIONS {
        let Some(overlay) = Overlay::new() else { return };
        let rig = Rig::new(&[("a", 1_000), ("b", 2 * LARGE)]);
        fs::create_dir(rig.warmfs.path("home")).unwrap();
        symlink(overlay.dir(), rig.warmfs.path("home/.cache")).unwrap();
        for _ in 0..2 {
            rig.mount(option);
            rig.fill();
            let expected = if option != "cached" && can_pass { "passthrough" } else { "cached" };
            assert_eq!(rig.mode().0, expected, "{option}: {:?}", rig.mode());
            rig.assert_passes_through(expected == "passthrough");
            rig.unmount();
        }
        assert_eq!(warnings(&rig), 0);
    }
}

// ---------------------------------------------------------------------------
// Trouble
// ---------------------------------------------------------------------------

/// What somebody does to a backing file that nobody has open.
fn harm(path: &Path, how: &str) {
    let write = || File::options().write(true).open(path).unwrap();
    match how {
        "deleted" => fs::remove_file(path).unwrap(),
        "truncated" => write().set_len(LARGE as u64 / 2).unwrap(),
        "emptied" => write().set_len(0).unwrap(),
        "changed" => write().write_all_at(b"other bytes", 1 << 20).unwrap(),
        _ => unreachable!("{how}"),
    }
}

#[test]
fn a_backing_file_that_was_harmed_between_opens_is_mended() {
    has_passthrough("a_backing_file_that_was_harmed_between_opens_is_mended");
    for option in ["cached", "passthrough"] {
        let rig = Rig::new(&[("a", LARGE), ("b", LARGE)]);
        rig.mount(option);
        rig.fill();
        let chosen = rig.mode();
        for how in ["deleted", "truncated", "emptied", "changed"] {
            rig.fill();
            rig.rest();
            harm(&rig.backing_file("a"), how);
            let before = rig.requests();
            rig.fill();
            assert!(rig.requests() > before, "{option}, {how}: it was fetched again");
            assert_eq!(rig.mode(), chosen);
        }
        rig.assert_passes_through(chosen.0 == "passthrough");
        assert!(rig.warmfs.status()["repairs"].as_u64().unwrap() >= 3);
        rig.unmount();
    }
}

#[test]
fn a_backing_file_that_is_deleted_while_it_is_open_is_read_on() {
    has_passthrough("a_backing_file_that_is_deleted_while_it_is_open_is_read_on");
    for option in ["cached", "passthrough"] {
        let rig = Rig::new(&[("a", LARGE), ("b", LARGE)]);
        rig.mount(option);
        rig.fill();
        rig.rest();
        let held = File::open(rig.path("a")).unwrap();
        compare_open(&held, &rig.files["a"]).unwrap();
        harm(&rig.backing_file("a"), "deleted");
        for _ in 0..2 {
            compare_open(&held, &rig.files["a"]).unwrap();
            // The kernel wants it as the first handle has it.
            rig.epoch();
        }
        drop(held);
        rig.fill();
        assert_eq!(rig.warmfs.status()["cache"]["state"], "ok");
        rig.unmount();
    }
}

/// Descriptors that a daemon may have, and files that are open at once.
const DESCRIPTORS: usize = 512;
const OPEN_FILES: usize = 450;

#[test]
fn too_few_descriptors_cost_fetches_and_no_error() {
    has_passthrough("too_few_descriptors_cost_fetches_and_no_error");
    let name = |n: usize| format!("f{n:03}");
    for option in ["cached", "passthrough"] {
        let mut rig = Rig::new(&[]);
        for n in 0..OPEN_FILES {
            rig.put(String::leak(name(n)), noise(n as u64, 20_000));
        }
        let script = format!("ulimit -n {DESCRIPTORS}; exec \"$0\" \"$@\"");
        let warmfs = rig.warmfs.command(&[]);
        let mut command = with_env_of(&warmfs, "sh");
        command.args(["-c", &script]).arg(warmfs.get_program());
        command.args(["mount", "s3://bucket/data"]).arg(rig.dir()).args(["--open-mode", option]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // All of them open at once, twice over.
        for round in 0..2 {
            let held: Vec<File> =
                (0..OPEN_FILES).map(|n| File::open(rig.path(&name(n))).unwrap()).collect();
            for (n, file) in held.iter().enumerate() {
                compare_open(file, &rig.files[&*name(n)])
                    .unwrap_or_else(|error| panic!("{option}, {n}: {error}\n{}", rig.warmfs.log()));
            }
            // In cached mode the daemon holds none for longer than it likes. Here it has them
            // all while they are open, and what comes last cannot be kept.
            if round == 0 && rig.mode().0 == "passthrough" {
                eventually("status says what is wrong", || {
                    let status = rig.warmfs.status();
                    status["cache"]["state"].as_str().unwrap().contains("Too many open files")
                });
            }
        }
        let log = rig.warmfs.log();
        let told = log.lines().filter(|line| line.contains("Too many open files")).count();
        assert!(told < OPEN_FILES / 10, "a line when it begins, and none for each file: {log}");
        rig.unmount();
    }
}

// ---------------------------------------------------------------------------
// Changes of the store
// ---------------------------------------------------------------------------

/// Each look at a name gives one version whole, and soon the new one.
#[test]
fn an_overwritten_object_is_seen_whole_and_its_old_handle_is_no_mix() {
    has_passthrough("an_overwritten_object_is_seen_whole_and_its_old_handle_is_no_mix");
    for option in ["cached", "passthrough"] {
        let mut rig = Rig::new(&[("a", LARGE), ("b", LARGE)]);
        rig.mount_with(option, &["--metadata-ttl", "1s"]);
        rig.fill();
        let mode = rig.mode().0;
        rig.assert_passes_through(mode == "passthrough");
        let held = File::open(rig.path("a")).unwrap();
        let old = rig.files["a"].clone();
        compare_open(&held, &old).unwrap();
        rig.put("a", noise(99, LARGE + 70_000));
        let begun = Instant::now();
        eventually("the new version is read", || {
            let found = fs::read(rig.path("a"));
            // It may be replaced between the open and the end.
            let is_stale = |error: &std::io::Error| error.raw_os_error() == Some(libc::ESTALE);
            match found {
                Ok(bytes) if bytes == rig.files["a"] => true,
                Ok(bytes) => {
                    assert!(bytes == old, "{mode}: neither the old version nor the new one");
                    false
                }
                Err(error) => {
                    assert!(is_stale(&error), "{mode}: {error}");
                    false
                }
            }
        });
        // No assert, for a machine may be slow: 1 s of TTL, and no more than 1 s over it.
        println!("{mode}: seen {} ms after it was overwritten", begun.elapsed().as_millis());
        for _ in 0..2 {
            match compare_open(&held, &old) {
                Ok(()) => {}
                Err(error) => assert!(error.contains("os error 116"), "{mode}: {error}"),
            }
        }
        drop(held);
        rig.epoch();
        rig.unmount();
    }
}
