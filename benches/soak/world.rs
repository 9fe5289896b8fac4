//! What all threads of the soak share: the mount and its daemon's lives, what
//! was done to it, and what was found.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant};

use crate::Options;
use crate::common::{Warmfs, poll};
use crate::dataset::Objects;
use crate::report::{Life, Sample};

/// As short as the kernel's own trust in attributes: changes are soon seen.
const METADATA_TTL: Duration = Duration::from_secs(2);

/// A version that was replaced so long before an OPEN may still be what is
/// opened: the TTL, and a listing that a busy machine took long over.
pub(crate) const STALE_MAX: Duration =
    METADATA_TTL.checked_add(Duration::from_secs(5)).expect("a few seconds");

/// Lines about one kind of what is wrong; beyond it they are only counted.
const FINDINGS_MAX: u64 = 100;

/// A daemon that was killed, or told to go, is gone by then on any machine.
const GONE_MAX: Duration = Duration::from_secs(120);

/// A mount may fail for reasons of the moment (the machine is busy); more than
/// so often is a failure.
const MOUNT_TRIES: u32 = 3;

/// What happened last, for the report of a wrong byte.
#[derive(Clone, Copy)]
pub(crate) enum Event {
    Kill,
    Evict,
    Change,
    Damage,
}

const EVENTS: [&str; 4] = ["kill", "evict", "change", "damage"];

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) warmfs: Warmfs,
    pub(crate) objects: Objects,
    pub(crate) dir: PathBuf,
    pub(crate) began: Instant,
    stop: AtomicBool,
    /// Odd while there is no daemon.
    epoch: AtomicU32,
    /// Held for reading by who has a file open, for writing by who damages.
    pub(crate) quiet: RwLock<()>,
    /// Somebody waits for all to close what they hold.
    pub(crate) wants_quiet: AtomicBool,
    /// Held while a command runs. Between a kill and the remount none may:
    /// it would hold the cache for itself.
    pub(crate) commands: Mutex<()>,
    /// What each reader has open.
    pub(crate) open: Vec<AtomicU64>,
    /// Objects that were damaged and are to be read next.
    pub(crate) urgent: Mutex<Vec<usize>>,
    last: Mutex<[Option<Instant>; EVENTS.len()]>,
    pub(crate) found: Found,
    pub(crate) lives: Mutex<Vec<Life>>,
    pub(crate) samples: Mutex<Vec<Sample>>,
}

/// What was counted.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) opens: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) wrong_bytes: AtomicU64,
    /// What must not be, wrong bytes among them.
    pub(crate) failures: AtomicU64,
    pub(crate) stale_ms_max: AtomicU64,
    pub(crate) slowest_mount_ms: AtomicU64,
    /// By what it was; errors that are due to what was done to the mount.
    pub(crate) counts: Mutex<BTreeMap<String, u64>>,
    pub(crate) unexpected: Mutex<BTreeMap<String, u64>>,
}

impl World {
    pub(crate) fn new(options: Options, warmfs: Warmfs, objects: Objects) -> World {
        World {
            dir: warmfs.path("mount"),
            open: (0..options.readers).map(|_| AtomicU64::new(0)).collect(),
            options,
            warmfs,
            objects,
            began: Instant::now(),
            stop: AtomicBool::new(false),
            epoch: AtomicU32::new(1),
            quiet: RwLock::new(()),
            wants_quiet: AtomicBool::new(false),
            commands: Mutex::new(()),
            urgent: Mutex::default(),
            last: Mutex::default(),
            found: Found::default(),
            lives: Mutex::default(),
            samples: Mutex::default(),
        }
    }

    /// Half of what the objects take.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.options.dataset_bytes / 2
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.began.elapsed() >= self.options.duration()
    }

    /// Sleeps, but not beyond the end.
    pub(crate) fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        while !self.is_over() && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
    }

    /// Ends the others if `work` panics.
    pub(crate) fn guard(&self, work: impl FnOnce()) {
        struct Stop<'a>(&'a World);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.stop.store(true, Ordering::Relaxed);
                }
            }
        }
        let _stop = Stop(self);
        work();
    }

    /// Changes whenever the daemon goes or comes.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.epoch().is_multiple_of(2)
    }

    /// Keeps the readers to their rate.
    pub(crate) fn read_bytes(&self, bytes: usize) {
        self.found.reads.fetch_add(1, Ordering::Relaxed);
        let all = self.found.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(rate) = self.options.rate_bytes_per_s {
            let due = Duration::from_secs_f64(all as f64 / rate as f64);
            self.pause(due.saturating_sub(self.began.elapsed()));
        }
    }

    pub(crate) fn happened(&self, event: Event) {
        lock(&self.last)[event as usize] = Some(Instant::now());
    }

    pub(crate) fn count(&self, what: &str) {
        *lock(&self.found.counts).entry(what.to_owned()).or_default() += 1;
    }

    /// Something that must not be.
    pub(crate) fn fail(&self, kind: &str, what: &str) {
        self.found.failures.fetch_add(1, Ordering::Relaxed);
        let mut unexpected = lock(&self.found.unexpected);
        let count = unexpected.entry(kind.to_owned()).or_default();
        *count += 1;
        if *count > FINDINGS_MAX {
            return;
        }
        drop(unexpected);
        let mut text = format!("{:7.1} s {kind}: {what}", self.began.elapsed().as_secs_f64());
        text.push_str(&format!("; life {}", lock(&self.lives).len()));
        for (name, at) in EVENTS.iter().zip(*lock(&self.last)) {
            if let Some(at) = at {
                text.push_str(&format!(", {name} {:.2} s ago", at.elapsed().as_secs_f64()));
            }
        }
        println!("{text}");
    }

    /// Mounts; says whether it did.
    pub(crate) fn mount(&self) -> bool {
        let size = self.cache_bytes().to_string();
        let ttl = format!("{}s", METADATA_TTL.as_secs());
        let dir = self.dir.to_str().expect("a plain path");
        let args = [
            "mount",
            "s3://bucket",
            dir,
            "--no-sign-request",
            "--metadata-ttl",
            &ttl,
            "--cache-size",
            &size,
            "--open-mode",
            &self.options.open_mode,
        ];
        for _ in 0..MOUNT_TRIES {
            let began = Instant::now();
            let output = self.warmfs.run(&args);
            if output.status.success() {
                let took = began.elapsed().as_millis() as u64;
                self.found.slowest_mount_ms.fetch_max(took, Ordering::Relaxed);
                let pid = self.warmfs.daemon().unwrap_or_default();
                lock(&self.lives).push(Life::new(pid, self.began.elapsed()));
                self.epoch.fetch_add(1, Ordering::SeqCst);
                return true;
            }
            self.fail("mount", &said(&output));
            std::thread::sleep(Duration::from_secs(1));
        }
        self.stop.store(true, Ordering::Relaxed);
        false
    }

    /// Kills the daemon and mounts again.
    pub(crate) fn kill(&self) {
        crate::report::note_status(self);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.happened(Event::Kill);
        let pid = lock(&self.lives).last().map_or(0, |life| life.pid);
        let pid = nix::unistd::Pid::from_raw(pid as i32);
        if let Err(error) = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL) {
            self.fail("kill", &error.to_string());
        }
        self.count("kills");
        if !poll(GONE_MAX, || self.warmfs.daemon().is_none()) {
            self.fail("kill", "the killed daemon is not gone");
        }
        let _none_runs = lock(&self.commands);
        self.mount();
    }

    /// Unmounts, and waits for the daemon's end.
    pub(crate) fn finish(&self) {
        crate::report::note_status(self);
        let output = self.warmfs.run(&["unmount", self.dir.to_str().expect("a plain path")]);
        if !output.status.success() {
            self.fail("unmount", &said(&output));
        }
        if !poll(GONE_MAX, || self.warmfs.daemon().is_none()) {
            self.fail("unmount", "the daemon does not end");
        }
    }
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
