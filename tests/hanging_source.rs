//! A `file:///` source that hangs. It is a mount of another warmfs, whose store stops to
//! answer and whose daemon is then stopped: what it had read of the kernel's requests by
//! then no signal ends.

mod common;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::embedded_store::{Fault, FaultRule, Op};

/// Readers that hang at once: enough for others to be refused, and fewer than threads.
const READERS: usize = 48;

/// A reader gives up after a minute at most, and an unmount does.
const LIMIT: Duration = Duration::from_secs(180);

/// The source's store, the source, and who reads from it.
struct Setup {
    // The mount first, the store last.
    warmfs: Warmfs,
    source: Warmfs,
    store: Store,
    folder: PathBuf,
    dir: PathBuf,
}

impl Setup {
    fn new() -> Setup {
        let store = Store::start();
        for n in 0..READERS {
            store.put(BUCKET, format!("data/{n}"), noise(n as u64, 10_000));
        }
        store.put(BUCKET, "other/file", noise(1, 10));
        let mut source = Warmfs::with_limit(LIMIT);
        source.set_env("WARMFS_ENDPOINT_URL", &store.url());
        source.set_env("WARMFS_WARM", "off");
        let folder = source.mount_with("s3://bucket", "mnt", &["--no-sign-request"]);
        let mut warmfs = Warmfs::with_limit(LIMIT);
        warmfs.set_env("WARMFS_WARM", "off");
        let dir = warmfs.mount_uri(&format!("file://{}/data", folder.display()), "mount");
        warmfs.mount("beside");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), READERS);
        Setup { warmfs, source, store, folder, dir }
    }

    fn signal_source(&self, signal: Signal) {
        let daemon = self.source.daemon().expect("the source's daemon runs");
        kill(Pid::from_raw(daemon as i32), signal).unwrap();
    }

    /// Has the source hang, and all readers in it.
    fn hang(&self) -> Vec<JoinHandle<io::Result<Vec<u8>>>> {
        let silent = [Op::Get, Op::List, Op::Head];
        let silent = silent.map(|op| FaultRule::next(u64::MAX, op, Fault::NoAnswer));
        self.store.set_faults(silent.to_vec());
        self.store.reset_log();
        let readers = (0..READERS).map(|n| {
            let path = self.dir.join(n.to_string());
            std::thread::spawn(move || fs::read(path))
        });
        let readers = readers.collect();
        eventually("the source waits for its store", || {
            self.store.counts().get.requests >= READERS as u64
        });
        self.signal_source(Signal::SIGSTOP);
        readers
    }

    fn assert_all_fail(&self, readers: Vec<JoinHandle<io::Result<Vec<u8>>>>) {
        for reader in readers {
            let error = reader.join().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
        }
    }
}

#[test]
fn a_source_that_hangs_fails_its_readers_in_time_and_heals() {
    let s = Setup::new();
    let readers = s.hang();
    // What else the daemon does goes on.
    let beside = s.warmfs.path("beside");
    assert_eq!(fs::read_to_string(beside.join("hello")).unwrap(), "hello, world");
    assert_eq!(s.warmfs.status()["mounts"].as_array().unwrap().len(), 2);
    let other = format!("file://{}/other", s.folder.display());
    let line = s.warmfs.fails(&["mount", &other, s.warmfs.path("other").to_str().unwrap()]);
    assert!(line.contains("no answer within 10 s; see to the server or program"), "{line}");
    assert!(!s.warmfs.path("other").exists());
    s.assert_all_fail(readers);
    // So many hang by now that nobody waits for another.
    let error = fs::read(s.dir.join("0")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(s.warmfs.log().contains("it hangs; see to the server or program"));

    s.store.set_faults(Vec::new());
    s.signal_source(Signal::SIGCONT);
    eventually("all of it can be read again", || {
        (0..READERS).all(|n| {
            let bytes = fs::read(s.dir.join(n.to_string()));
            bytes.is_ok_and(|bytes| bytes == noise(n as u64, 10_000))
        })
    });
    s.warmfs.unmount("mount");
    s.warmfs.unmount("beside");
}

#[test]
fn a_daemon_ends_although_calls_into_its_source_hang() {
    let s = Setup::new();
    s.assert_all_fail(s.hang());
    s.warmfs.unmount("mount");
    s.warmfs.unmount("beside");
    s.warmfs.assert_nothing_left(&["mount", "beside"]);
    // The cache is free for the next one, which knows nothing of it.
    let beside = s.warmfs.mount("beside");
    assert_eq!(fs::read_to_string(beside.join("hello")).unwrap(), "hello, world");
    s.warmfs.unmount("beside");
    s.signal_source(Signal::SIGCONT);
}
