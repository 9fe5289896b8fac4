//! evict, verify, pin and unpin by the real binary: what leaves the cache and
//! what stays, what is repaired, and how commands end early.

mod common;

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::machine::has_passthrough;
use common::store::{BUCKET, Store};
use common::tree::{assert_same, noise};
use common::{Warmfs, eventually, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use warmfs::control::cache_lock;
use warmfs::control::wire::{UpkeepLine, UpkeepReply};
use warmfs::embedded_store::StoreOptions;

/// Of each object: some chunks, and a bit.
const SIZE: usize = 600 << 10;

/// A bucket of four objects in two folders, mounted.
struct Rig {
    // Before the store, which must go last.
    warmfs: Warmfs,
    mount: PathBuf,
    store: Store,
}

const NAMES: [&str; 4] = ["a/one", "a/two", "b/three", "top"];

fn content(name: &str) -> Bytes {
    noise(NAMES.iter().position(|known| *known == name).unwrap() as u64, SIZE)
}

impl Rig {
    fn new() -> Rig {
        Rig::with(StoreOptions::default())
    }

    fn with(options: StoreOptions) -> Rig {
        Rig::with_mode(options, "auto")
    }

    fn with_mode(options: StoreOptions, mode: &str) -> Rig {
        let store = Store::with(options);
        for name in NAMES {
            store.put(BUCKET, name, content(name));
        }
        let warmfs = store.warmfs();
        let mount = warmfs.mount_with("s3://bucket", "mount", &["--open-mode", mode]);
        Rig { warmfs, mount, store }
    }

    fn path(&self, name: &str) -> String {
        self.mount.join(name).to_str().unwrap().to_owned()
    }

    /// Reads an object past what the kernel keeps of it, and checks it.
    fn read(&self, name: &str) {
        let file = File::open(self.mount.join(name)).unwrap();
        drop_page_cache(&file);
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        assert_same(&bytes, &content(name), name);
    }

    /// Reads everything, and returns once it is on disk.
    fn warm(&self) {
        for name in NAMES {
            self.read(name);
        }
        self.wait_for_bytes(NAMES.len());
    }

    /// Returns once so many whole objects are on disk, and no more.
    fn wait_for_bytes(&self, objects: usize) {
        let expected = (objects * SIZE) as u64;
        eventually(&format!("{objects} objects are on disk"), || {
            let held = data_bytes(&self.warmfs);
            held >= expected && held < expected + SIZE as u64 / 2
        });
    }

    /// GETs that `action` costs.
    fn gets(&self, action: impl FnOnce()) -> u64 {
        let before = self.store.counts().get.requests;
        action();
        self.store.counts().get.requests - before
    }

    fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        serde_json::from_str(&self.warmfs.ok(&all)).unwrap()
    }
}

fn drop_page_cache(file: &File) {
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(file, 0, 0, advice).unwrap();
}

/// Every file below the cache's `data`.
fn data_files(warmfs: &Warmfs) -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&warmfs.cache().join("data"), &mut files);
    files
}

/// Disk that objects take.
fn data_bytes(warmfs: &Warmfs) -> u64 {
    let of = |path: &PathBuf| fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
    data_files(warmfs).iter().map(of).sum()
}

#[test]
fn evict_takes_a_file_a_folder_or_all() {
    let rig = Rig::new();
    rig.warm();
    let said = rig.warmfs.ok(&["evict", &rig.path("a/one")]);
    assert!(said.starts_with("evicted 1 object, "), "{said}");
    rig.wait_for_bytes(3);
    assert_eq!(rig.gets(|| rig.read("a/two")), 0, "its neighbour stays");
    assert!(rig.gets(|| rig.read("a/one")) > 0);
    rig.wait_for_bytes(4);

    let done = rig.json(&["evict", &rig.path("a")]);
    assert_eq!(done["command"], "evict");
    assert_eq!(done["objects"], 2);
    assert!(done["bytes"].as_u64().unwrap() >= 2 * SIZE as u64, "{done}");
    rig.wait_for_bytes(2);
    assert_eq!(rig.json(&["evict", "s3://bucket/b"])["objects"], 1);
    rig.wait_for_bytes(1);
    assert_eq!(rig.warmfs.ok(&["evict", &rig.path("b")]), "evicted nothing\n");

    rig.warm();
    assert_eq!(rig.json(&["evict", &rig.path("")])["objects"], 4, "the mount point is all of it");
    rig.wait_for_bytes(0);
    rig.warm();
    assert_eq!(rig.json(&["evict", "--all"])["objects"], 4);
    rig.wait_for_bytes(0);
    rig.warm();
}

#[test]
fn evict_leaves_what_is_open() {
    // In cached mode nobody is told what is open: what was evicted is fetched again.
    if !has_passthrough("evict_leaves_what_is_open") {
        return;
    }
    let rig = Rig::with_mode(StoreOptions::default(), "passthrough");
    rig.warm();
    let file = File::open(rig.mount.join("a/one")).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    let done = rig.json(&["evict", "--all"]);
    assert_eq!((&done["objects"], &done["in_use"]), (&3.into(), &1.into()), "{done}");
    rig.wait_for_bytes(1);
    let no_gets = rig.gets(|| {
        drop_page_cache(&file);
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes).unwrap();
        assert_same(&bytes, &content("a/one"), "open all the time");
    });
    assert_eq!(no_gets, 0);
    drop(file);
    eventually("the closed file can go", || rig.json(&["evict", "--all"])["in_use"] == 0);
    rig.wait_for_bytes(0);
}

#[test]
fn evict_older_than_leaves_what_was_read_since() {
    let rig = Rig::new();
    rig.warm();
    assert_eq!(rig.json(&["evict", "--older-than", "1h"])["objects"], 0);
    rig.wait_for_bytes(4);
    assert_eq!(rig.json(&["evict", &rig.path("a"), "--older-than", "1h"])["objects"], 0);
    assert_eq!(rig.json(&["evict", &rig.path("a"), "--older-than", "0s"])["objects"], 2);
    rig.wait_for_bytes(2);
    assert_eq!(rig.json(&["evict", "--older-than", "0s"])["objects"], 2);
    rig.wait_for_bytes(0);
}

#[test]
fn what_is_pinned_is_fetched_and_stays() {
    let rig = Rig::new();
    let fetched = rig.gets(|| {
        let done = rig.json(&["pin", &rig.path("a")]);
        let bytes = 2 * SIZE as u64;
        assert_eq!((&done["command"], &done["objects"]), (&"pin".into(), &2.into()));
        assert_eq!((&done["bytes"], &done["cached_bytes"]), (&bytes.into(), &bytes.into()));
    });
    assert!(fetched >= 2, "{fetched}");
    rig.wait_for_bytes(2);
    let read = || {
        rig.read("a/one");
        rig.read("a/two");
    };
    assert_eq!(rig.gets(read), 0);
    rig.read("top");
    rig.wait_for_bytes(3);

    rig.warmfs.unmount("mount");
    rig.warmfs.mount_uri("s3://bucket", "mount");
    let done = rig.json(&["evict", "--all"]);
    assert_eq!((&done["objects"], &done["pinned"]), (&1.into(), &2.into()), "{done}");
    assert_eq!(rig.gets(read), 0, "after a remount, and after evicting all else");

    let line = rig.warmfs.fails(&["unpin", &rig.path("a/one")]);
    assert!(line.contains("not pinned itself"), "{line}");
    let said = rig.warmfs.ok(&["unpin", &rig.path("a")]);
    assert!(said.starts_with("unpinned "), "{said}");
    eventually("all can go", || {
        rig.json(&["evict", "--all"]);
        data_bytes(&rig.warmfs) == 0
    });
    assert!(rig.gets(read) >= 2);
}

#[test]
fn a_pin_says_what_does_not_fit() {
    let store = Store::start();
    for n in 0..4 {
        store.put(BUCKET, format!("big/{n}"), noise(n, 8 << 20));
    }
    let warmfs = store.warmfs();
    let mount = warmfs.path("mount");
    warmfs.ok(&["mount", "s3://bucket", mount.to_str().unwrap(), "--cache-size", "20M"]);
    let said = warmfs.ok(&["pin", mount.to_str().unwrap()]);
    assert!(said.starts_with("pinned 4 objects, 32.0 MiB, of which "), "{said}");
    assert!(said.contains("--cache-size"), "{said}");
    for n in 0..4 {
        let bytes = fs::read(mount.join(format!("big/{n}"))).unwrap();
        assert_same(&bytes, &noise(n, 8 << 20), "streamed");
    }
}

/// Flips a byte in the middle of a file of the cache.
fn damage(file: &Path) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1_000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1_000).unwrap();
}

#[test]
fn verify_repairs_what_is_damaged() {
    let rig = Rig::new();
    rig.warm();
    let all = rig.json(&["verify"]);
    assert_eq!((&all["command"], &all["objects"]), (&"verify".into(), &4.into()), "{all}");
    assert_eq!(all["bytes"], 4 * SIZE as u64);
    assert_eq!(all["damaged_chunks"], 0);
    assert_eq!(rig.json(&["verify", &rig.path("a")])["objects"], 2);
    assert_eq!(rig.json(&["verify", &rig.path("top")])["objects"], 1);

    damage(&data_files(&rig.warmfs)[0]);
    let done = rig.json(&["verify"]);
    assert_eq!((&done["damaged_chunks"], &done["repaired_chunks"]), (&1.into(), &1.into()));
    let said = rig.warmfs.ok(&["verify"]);
    assert!(
        said.starts_with("checked 4 objects, ") && said.contains("nothing is damaged"),
        "{said}"
    );
    let read_all = || NAMES.iter().for_each(|name| rig.read(name));
    assert_eq!(rig.gets(read_all), 0, "it was repaired on disk");
}

#[test]
fn without_a_daemon_the_cache_is_kept_in_order_too() {
    let rig = Rig::new();
    rig.warm();
    rig.warmfs.unmount("mount");
    assert_eq!(rig.json(&["verify"])["objects"], 4);
    damage(&data_files(&rig.warmfs)[0]);
    let done = rig.json(&["verify"]);
    // There is no remote to fetch from.
    assert_eq!((&done["damaged_chunks"], &done["repaired_chunks"]), (&1.into(), &0.into()));
    let said = rig.warmfs.ok(&["verify"]);
    assert!(said.contains("nothing is damaged"), "{said}");
    rig.warmfs.assert_nothing_left(&["mount"]);
    assert_eq!(cache_lock::read_record(&rig.warmfs.cache()), None);

    rig.warmfs.mount_uri("s3://bucket", "mount");
    assert!(rig.gets(|| NAMES.iter().for_each(|name| rig.read(name))) > 0, "the dropped chunk");
    rig.wait_for_bytes(4);
    rig.warmfs.unmount("mount");
    assert_eq!(rig.json(&["evict", "--older-than", "1h"])["objects"], 0);
    assert_eq!(rig.json(&["evict", "--all"])["objects"], 4);
    assert_eq!(data_bytes(&rig.warmfs), 0);
    rig.warmfs.mount_uri("s3://bucket", "mount");
    rig.warm();
}

#[test]
fn progress_comes_line_by_line() {
    let rig = Rig::new();
    rig.warm();
    let socket = cache_lock::read_record(&rig.warmfs.cache()).unwrap().socket;
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(common::STEP_TIMEOUT)).unwrap();
    let request = "POST /v1/verify HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                   content-length: 2\r\n\r\n{}";
    stream.write_all(request.as_bytes()).unwrap();
    let text: Vec<String> = BufReader::new(stream).lines().map(Result::unwrap).collect();
    assert!(text[0].starts_with("HTTP/1.1 200"), "{text:?}");
    assert!(text.iter().any(|line| line == "content-type: application/x-ndjson"), "{text:?}");
    let lines: Vec<UpkeepLine> =
        text.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert!(matches!(lines.first(), Some(UpkeepLine::Progress(_))), "{text:?}");
    match lines.last() {
        Some(UpkeepLine::Done(UpkeepReply::Verify(done))) => assert_eq!(done.objects, 4),
        other => panic!("{other:?}"),
    }
}

/// Starts a pin of a mount whose store is slow, and returns once it fetches.
fn slow_pin(rig: &Rig) -> Child {
    let mut command = rig.warmfs.command(&["pin", &rig.path("")]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    rig.warmfs.watchdog().watch_pid(child.id());
    eventually("it fetches", || rig.store.counts().get.requests > 0);
    child
}

fn slow() -> StoreOptions {
    // An object takes some 10 s: long after every test here has its answer.
    let rate_bytes_per_s_per_connection = Some(SIZE as u64 / 10);
    StoreOptions { rate_bytes_per_s_per_connection, ..StoreOptions::default() }
}

#[test]
fn an_interrupt_stops_the_job() {
    let rig = Rig::with(slow());
    for n in 0..400 {
        rig.store.put(BUCKET, format!("many/{n:03}"), noise(n, SIZE));
    }
    let mut child = slow_pin(&rig);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(wait(&mut child).code(), Some(130));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("warmfs: interrupted after ") && said.contains("is kept"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // What was on its way may still come; nothing new is asked for.
    let last = Cell::new(0);
    eventually("no more requests come", || {
        std::thread::sleep(Duration::from_millis(500));
        let now = rig.store.counts().get.requests;
        last.replace(now) == now
    });
    assert!(last.get() < 404, "it was stopped before its end");
}

#[test]
fn commands_run_side_by_side() {
    let rig = Rig::with(slow());
    let mut child = slow_pin(&rig);
    assert_eq!(rig.json(&["evict", &rig.path("b"), "--older-than", "1h"])["objects"], 0);
    rig.json(&["verify"]);
    assert!(child.try_wait().unwrap().is_none(), "it still pins");
    // The last mount goes: so does the daemon, and the command is told.
    rig.warmfs.ok(&["unmount", "--lazy", &rig.path("")]);
    assert_eq!(wait(&mut child).code(), Some(1));
}

#[test]
fn bad_inputs_are_one_line_with_a_next_step() {
    let rig = Rig::new();
    for verb in ["evict", "verify", "pin", "unpin"] {
        let line = rig.warmfs.fails(&[verb, &rig.path("missing/deep")]);
        assert!(line.contains("does not exist") && line.contains("ls "), "{line}");
        let line = rig.warmfs.fails(&[verb, "/usr/share"]);
        assert!(line.contains("in no mount") && line.contains("warmfs mount"), "{line}");
        let line = rig.warmfs.fails(&[verb, "s3://other/x"]);
        assert!(line.contains("s3://other/x is not mounted"), "{line}");
    }
    for args in [&["evict"][..], &["pin"], &["unpin"], &["evict", "--all", "/x"]] {
        assert_eq!(rig.warmfs.run(args).status.code(), Some(2), "{args:?}");
    }
    rig.warmfs.unmount("mount");
    let line = rig.warmfs.fails(&["evict", &rig.path("a")]);
    assert!(line.contains("mount it first"), "{line}");
    let nowhere = rig.warmfs.path("nowhere");
    let line = rig.warmfs.fails(&["verify", "--cache-dir", nowhere.to_str().unwrap()]);
    assert!(line.contains("there is no cache") && line.contains("--cache-dir"), "{line}");
    assert!(!nowhere.exists());
}

#[test]
fn a_dead_mount_does_not_hang_a_command() {
    let rig = Rig::new();
    rig.warm();
    rig.warmfs.crash();
    // A name that the kernel does not know: it would have to ask.
    let line = rig.warmfs.fails(&["evict", &rig.path("never/seen")]);
    assert!(line.contains("in no mount"), "{line}");
    rig.json(&["verify"]);
}
