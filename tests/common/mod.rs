//! What tests with real mounts share: a watchdog, and warmfs with a cache, a
//! home and a runtime directory of its own.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod ais;
pub mod azurite;
pub mod dir_stream;
pub mod epoch;
pub mod filled;
pub mod fronts;
pub mod gcs;
pub mod image;
pub mod machine;
pub mod moto;
pub mod namespace;
pub mod readers;
pub mod server;
pub mod socket;
pub mod store;
pub mod stub;
pub mod tree;

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::config::CallerEnv;
use warmfs::control::cache_lock::{self, CacheLock, LockRecord};
use warmfs::daemon::{kernel, mountinfo};

/// Longer than any test takes on a loaded machine with two cores.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(90);

/// For one step of a test.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// Fails a test that hangs, and frees what it hangs on. A thread that waits in
/// the kernel for a FUSE answer cannot be killed; its connection can be aborted.
pub struct Watchdog {
    shared: Arc<(Mutex<Watched>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Watched {
    /// Mounts at or below these are aborted.
    dirs: Vec<PathBuf>,
    /// These are killed.
    pids: Vec<Pid>,
    done: bool,
    fired: bool,
}

impl Watchdog {
    /// Watches for `limit`, until dropped.
    pub fn new(limit: Duration) -> Watchdog {
        let shared: Arc<(Mutex<Watched>, Condvar)> = Arc::default();
        let watching = Arc::clone(&shared);
        let thread = std::thread::spawn(move || watch(&watching, limit));
        Watchdog { shared, thread: Some(thread) }
    }

    /// Mounts at or below `dir` belong to the test.
    pub fn watch_dir(&self, dir: &Path) {
        self.watched().dirs.push(dir.to_owned());
    }

    /// The process belongs to the test.
    pub fn watch_pid(&self, pid: u32) {
        self.watched().pids.push(Pid::from_raw(pid as i32));
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.watched().done = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.watched().fired && !std::thread::panicking() {
            panic!("the watchdog ended this test");
        }
    }
}

fn watch(shared: &(Mutex<Watched>, Condvar), limit: Duration) {
    let (watched, changed) = shared;
    let guard = watched.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = changed.wait_timeout_while(guard, limit, |watched| !watched.done);
    let (mut guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
    if !timeout.timed_out() {
        return;
    }
    guard.fired = true;
    eprintln!("watchdog: nothing for {} s, aborting mounts", limit.as_secs());
    for pid in &guard.pids {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    for dir in &guard.dirs {
        abort_mounts(dir);
    }
    let waited = changed.wait_timeout_while(guard, STEP_TIMEOUT, |watched| !watched.done);
    if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
        eprintln!("watchdog: the test still hangs");
        std::process::abort();
    }
}

/// Ends every FUSE mount at or below `dir`, whatever its state.
pub fn abort_mounts(dir: &Path) {
    let mounts = mountinfo::read().unwrap_or_default();
    for mount in mounts.iter().rev().filter(|mount| mount.is_fuse() && mount.dir.starts_with(dir)) {
        abort_connection(mount.device.1);
        let _ = umount2(&mount.dir, MntFlags::MNT_DETACH);
        let _ = kernel::unmount(&mount.dir, true);
    }
}

fn abort_connection(minor: u32) {
    let connections = Path::new("/sys/fs/fuse/connections");
    if fs::read_dir(connections).is_ok_and(|mut entries| entries.next().is_none()) {
        let none: Option<&str> = None;
        let _ = nix::mount::mount(
            none,
            connections,
            Some("fusectl"),
            nix::mount::MsFlags::empty(),
            none,
        );
    }
    let _ = fs::write(connections.join(minor.to_string()).join("abort"), "1");
}

/// warmfs with everything of its own. Dropping it unmounts and ends whatever
/// is left.
pub struct Warmfs {
    watchdog: Watchdog,
    tmp: tempfile::TempDir,
    env: Vec<(String, String)>,
    binary: PathBuf,
}

impl Warmfs {
    /// A home without a cache yet, and a source folder with a few files.
    pub fn new() -> Warmfs {
        Warmfs::with_limit(TEST_TIMEOUT)
    }

    /// The same for a test that may take up to `limit`.
    pub fn with_limit(limit: Duration) -> Warmfs {
        let tmp = tempfile::tempdir().unwrap();
        for dir in ["run", "source/folder"] {
            fs::create_dir_all(tmp.path().join(dir)).unwrap();
        }
        fs::write(tmp.path().join("source/hello"), "hello, world").unwrap();
        fs::write(tmp.path().join("source/folder/inner"), "inner").unwrap();
        let watchdog = Watchdog::new(limit);
        let binary = PathBuf::from(env!("CARGO_BIN_EXE_warmfs"));
        let warmfs = Warmfs { watchdog, tmp, env: Vec::new(), binary };
        warmfs.watchdog.watch_dir(&warmfs.path(""));
        warmfs
    }

    /// A path in this test's own directory, canonical.
    pub fn path(&self, name: &str) -> PathBuf {
        let base = self.tmp.path().canonicalize().unwrap();
        if name.is_empty() { base } else { base.join(name) }
    }

    /// The cache directory: the default one of this home.
    pub fn cache(&self) -> PathBuf {
        self.path("home/.cache/warmfs")
    }

    /// The URI of the source folder.
    pub fn source(&self) -> String {
        format!("file://{}", self.path("source").display())
    }

    /// The watchdog of this test.
    pub fn watchdog(&self) -> &Watchdog {
        &self.watchdog
    }

    /// Sets a variable for every command from now on.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Another binary than the one built with the test: one that stays as it is
    /// for hours.
    pub fn set_binary(&mut self, binary: &Path) {
        self.binary = binary.to_owned();
    }

    /// The binary with this test's environment.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let is_plain = ["HOME", "PATH", "PWD"].contains(&&*text);
            if text.starts_with("WARMFS_") || (!is_plain && CallerEnv::is_taken(&text)) {
                command.env_remove(name);
            }
        }
        command.args(args).stdin(Stdio::null());
        command.env("HOME", self.path("home")).env("XDG_RUNTIME_DIR", self.path("run"));
        // The machine a test runs on may have a metadata service with credentials.
        command.env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("CLOUDSDK_CORE_CHECK_GCE_METADATA", "false");
        command.env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1");
        // Tests count requests, and on a busy machine every answer is late.
        command.env("WARMFS_NO_HEDGE", "true");
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        self.watch_daemon();
        output
    }

    /// Runs a command that must succeed, and gives its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "warmfs {args:?}: {stderr}\n{}", self.log());
        assert_eq!(stderr, "", "warmfs {args:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail with one line, and gives that line.
    pub fn fails(&self, args: &[&str]) -> String {
        self.fails_as(&mut self.command(args))
    }

    /// The same for a command that the test made itself.
    pub fn fails_as(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        self.watch_daemon();
        let args: Vec<_> = command.get_args().collect();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "warmfs {args:?}: {stderr}");
        assert!(stderr.starts_with("warmfs: ") && stderr.lines().count() == 1, "{stderr}");
        assert_eq!(output.stdout, b"");
        stderr
    }

    /// Mounts the source folder at `name`.
    pub fn mount(&self, name: &str) -> PathBuf {
        self.mount_uri(&self.source(), name)
    }

    /// Mounts anything at `name`.
    pub fn mount_uri(&self, uri: &str, name: &str) -> PathBuf {
        let dir = self.path(name);
        self.ok(&["mount", uri, dir.to_str().unwrap()]);
        dir
    }

    /// Mounts anything at `name` with more options.
    pub fn mount_with(&self, uri: &str, name: &str, options: &[&str]) -> PathBuf {
        let dir = self.path(name);
        let mut args = vec!["mount", uri, dir.to_str().unwrap()];
        args.extend(options);
        self.ok(&args);
        dir
    }

    /// Unmounts `name`.
    pub fn unmount(&self, name: &str) {
        self.ok(&["unmount", self.path(name).to_str().unwrap()]);
    }

    /// `status --json`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// The daemon's process; `None` if none holds the cache.
    pub fn daemon(&self) -> Option<u32> {
        self.record().map(|record| record.pid)
    }

    /// What the daemon says of itself; `None` if none holds the cache.
    pub fn record(&self) -> Option<LockRecord> {
        let record = cache_lock::read_record(&self.cache())?;
        let free = CacheLock::try_take(&self.cache()).ok()?.is_some();
        (!free).then_some(record)
    }

    /// Asserts that no daemon, mount, socket or mount point is left.
    pub fn assert_nothing_left(&self, dirs: &[&str]) {
        if self.cache().exists() {
            assert!(CacheLock::try_take(&self.cache()).unwrap().is_some(), "the cache is locked");
        }
        for dir in dirs {
            assert!(!is_mounted(&self.path(dir)), "{dir} is mounted");
            assert!(!self.path(dir).exists(), "{dir} exists");
        }
        let sockets = fs::read_dir(self.path("run/warmfs")).map_or(0, Iterator::count);
        assert_eq!(sockets, 0, "a socket is left");
    }

    /// Kills the daemon and who would start it again, as the kernel does when memory
    /// runs out, and returns once they are gone. The mounts stay behind, dead.
    pub fn crash(&self) {
        self.record().expect("a daemon runs").signal(Signal::SIGKILL);
        eventually("the killed daemon is gone", || self.daemon().is_none());
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.cache().join("warmfs.log")).unwrap_or_default()
    }

    /// Watches the daemon that a command of another kind may have started.
    pub fn watch_daemon(&self) {
        if let Some(record) = self.record() {
            let supervisor = (record.supervisor > 0).then_some(record.supervisor);
            for pid in supervisor.into_iter().chain([record.pid]) {
                self.watchdog.watch_pid(pid);
            }
        }
    }
}

impl Drop for Warmfs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        abort_mounts(&self.path(""));
        if let Some(record) = self.record() {
            record.signal(Signal::SIGTERM);
            if !poll(STEP_TIMEOUT, || self.daemon().is_none()) {
                record.signal(Signal::SIGKILL);
            }
        }
    }
}

/// Whether a path is a mount point.
pub fn is_mounted(dir: &Path) -> bool {
    mountinfo::topmost_at(dir).unwrap().is_some()
}

/// Waits for something that nothing announces; panics if it does not come.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    assert!(poll(STEP_TIMEOUT, condition), "not within {} s: {what}", STEP_TIMEOUT.as_secs());
}

/// Whether it comes within `limit`.
pub fn poll(limit: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits for a child within [`STEP_TIMEOUT`]; kills it and panics otherwise.
pub fn wait(child: &mut Child) -> std::process::ExitStatus {
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("process {} does not end", child.id());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads until the other side has closed, which must happen within
/// [`STEP_TIMEOUT`]. A pty whose last holder went answers EIO: also an end.
pub fn read_to_hang_up(file: &mut (impl io::Read + AsRawFd)) -> Vec<u8> {
    let mut all = Vec::new();
    let deadline = Instant::now() + STEP_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fd = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid descriptor, which outlives the call.
        let ready = unsafe { libc::poll(&raw mut fd, 1, left.as_millis() as libc::c_int) };
        assert!(
            ready > 0,
            "somebody still holds the other side: {:?}",
            String::from_utf8_lossy(&all)
        );
        let mut buffer = [0; 4_096];
        match file.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return all,
            Err(error) => panic!("{error}"),
        }
    }
}
