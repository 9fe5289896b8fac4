//! The contract with the kernel, as `docs/kernel.md` states it: each mode is
//! mounted over a local folder, used by ordinary system calls, and held to the
//! table by the counters of what reached the file system.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::dir_stream::DirStream;
use common::machine::{has_passthrough, is_root, skip};
use common::{STEP_TIMEOUT, TEST_TIMEOUT, Warmfs, Watchdog, abort_mounts, eventually};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{User, Whence, lseek};
use warmfs::cache::Cache;
use warmfs::config::{CacheOptions, MountOptions, OpenModeOption};
use warmfs::daemon::kernel;
use warmfs::fs::FileSystem;
use warmfs::fs::open_mode::OpenMode;
use warmfs::fs::session::MountSession;
use warmfs::metrics::{MountMetrics, RemoteMetrics};
use warmfs::remote::client::RemoteClient;
use warmfs::remote::local::LocalRemote;

use OpenModeOption::{Auto, Cached, Passthrough};

/// Nothing goes stale within a test.
const LONG: Duration = Duration::from_secs(3_600);

/// Everything goes stale within a test.
const SHORT: Duration = Duration::from_millis(300);

/// What the mount is told that it shows.
const URI: &str = "file:///x";

/// Size of the files of most tests: small, no multiple of anything.
const SMALL: usize = 110 * 1024 + 7;

// ---------------------------------------------------------------------------
// The bench: a mount of this process, and what its use costs
// ---------------------------------------------------------------------------

/// A mount of a folder of its own.
struct Mount {
    metrics: Arc<MountMetrics>,
    session: MountSession,
    cache: Arc<Cache>,
    runtime: Option<tokio::runtime::Runtime>,
    /// Open files that the test itself holds.
    held: AtomicU64,
    base: PathBuf,
    _watchdog: Watchdog,
    _tmp: tempfile::TempDir,
}

impl Mount {
    /// Mounts what `fill` puts in a folder.
    fn new(mode: OpenModeOption, ttl: Duration, fill: impl FnOnce(&Path)) -> Mount {
        Self::on_kernel(u64::MAX, mode, ttl, fill)
    }

    /// The same on a kernel that offers no more than these flags of INIT.
    fn on_kernel(
        init_flags: u64,
        mode: OpenModeOption,
        ttl: Duration,
        fill: impl FnOnce(&Path),
    ) -> Mount {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().canonicalize().unwrap();
        let watchdog = Watchdog::new(TEST_TIMEOUT);
        watchdog.watch_dir(&base);
        for dir in ["source", "cache", "mnt"] {
            fs::create_dir(base.join(dir)).unwrap();
        }
        fill(&base.join("source"));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let options = CacheOptions {
            dir: base.join("cache"),
            size: Some(1 << 30),
            memory: None,
            metadata: None,
        };
        let cache = Cache::open(&options, handle.clone()).unwrap();
        let remote = runtime.block_on(LocalRemote::open(&base.join("source"))).unwrap();
        let remote = Arc::new(remote);
        let remote = Arc::new(RemoteClient::new(remote, Arc::new(RemoteMetrics::default())));
        let tree = runtime.block_on(cache.attach(remote, "", ttl)).unwrap();
        let metrics = Arc::new(MountMetrics::default());
        let fs = FileSystem::new(tree, URI.to_owned(), mount_options(mode, ttl), metrics.clone());
        let mnt = base.join("mnt");
        let session = MountSession::start_with(fs, &mnt, handle, init_flags).unwrap();
        let (runtime, held) = (Some(runtime), AtomicU64::new(0));
        Mount { metrics, session, cache, runtime, held, base, _watchdog: watchdog, _tmp: tmp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.join("mnt").join(name)
    }

    fn source(&self, name: &str) -> PathBuf {
        self.base.join("source").join(name)
    }

    fn ops(&self) -> BTreeMap<&'static str, u64> {
        self.metrics.fuse_ops.all().into_iter().collect()
    }

    /// Waits for RELEASE, which the kernel sends behind `close`.
    fn settle(&self) {
        if self.session.mode() == OpenMode::Cached {
            return; // It sends none.
        }
        let held = self.held.load(Ordering::Relaxed);
        eventually("every file that was closed is released", || {
            let ops = self.ops();
            ops["release"] + held == ops["open"]
        });
    }

    /// Says that the test keeps so many files open from now on.
    fn hold(&self, handles: u64) {
        self.held.store(handles, Ordering::Relaxed);
    }

    /// The messages that `work` and its end cost. FORGET comes whenever the
    /// kernel is short of memory, and is left out.
    fn cost(&self, work: impl FnOnce()) -> BTreeMap<&'static str, u64> {
        self.settle();
        let before = self.ops();
        work();
        self.settle();
        let grown = self.ops().into_iter().map(|(op, count)| (op, count - before[op]));
        grown.filter(|(op, count)| *count > 0 && *op != "forget").collect()
    }

    /// Asserts that some repetition of `work` soon costs exactly this. What is
    /// told to the kernel (that an object is complete) comes behind the reader.
    fn soon_costs(&self, expected: &[(&'static str, u64)], work: impl Fn()) {
        let expected: BTreeMap<_, _> = expected.iter().copied().collect();
        eventually(&format!("{}: {expected:?}", self.mode()), || self.cost(&work) == expected);
    }

    fn mode(&self) -> String {
        self.session.mode().to_string()
    }

    /// Waits until all of a file is in the cache, as `stat` shows it.
    fn wait_complete(&self, name: &str) {
        eventually("st_blocks is the size", || is_complete(&self.path(name)));
        self.settle();
    }

    fn unmount(&self) {
        eventually("it can be unmounted", || kernel::unmount(self.session.dir(), false).is_ok());
        self.wait_ended();
    }

    fn wait_ended(&self) {
        let runtime = self.runtime.as_ref().unwrap();
        let ended = async { tokio::time::timeout(STEP_TIMEOUT, self.session.ended()).await };
        runtime.block_on(ended).expect("the session ends");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a test that failed may hold files still.
        let _ = kernel::unmount(self.session.dir(), true);
        abort_mounts(&self.base);
        self.cache.close();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(STEP_TIMEOUT);
        }
    }
}

fn mount_options(open_mode: OpenModeOption, metadata_ttl: Duration) -> MountOptions {
    MountOptions { metadata_ttl, open_mode, ..MountOptions::default() }
}

/// Every mode that this machine can have.
fn modes(what: &str) -> Vec<OpenModeOption> {
    let mut modes = vec![Cached];
    modes.extend(has_passthrough(what).then_some(Passthrough));
    modes
}

/// Bytes that differ with the seed, at every offset.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Fills `folder` with `count` files f0, f1, ...
fn files(folder: &Path, count: u64) {
    for n in 0..count {
        fs::write(folder.join(format!("f{n}")), content(n, SMALL)).unwrap();
    }
}

/// Reads and checks f0..: one epoch.
fn epoch(mount: &Mount, count: u64) {
    for n in 0..count {
        let bytes = fs::read(mount.path(&format!("f{n}"))).unwrap();
        assert!(bytes == content(n, SMALL), "{}: f{n} differs", mount.mode());
    }
}

/// Replaces a file of the source as an upload does: at once, with a new version.
fn put(path: &Path, bytes: &[u8]) {
    let draft = path.parent().unwrap().parent().unwrap().join("draft");
    fs::write(&draft, bytes).unwrap();
    fs::rename(draft, path).unwrap();
}

fn is_complete(path: &Path) -> bool {
    let stat = fs::metadata(path).unwrap();
    stat.blocks() == stat.len().div_ceil(512)
}

/// Takes a file's pages out of the page cache; the test holds no mapping.
fn drop_pages(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let names: BTreeSet<String> = entries.iter().cloned().collect();
    assert_eq!(names.len(), entries.len(), "a name is listed twice");
    names
}

/// A private, read-only mapping of a whole file.
struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(file: &File) -> Mapping {
        let len = file.metadata().unwrap().len() as usize;
        // SAFETY: a fresh mapping wherever the kernel likes, unmapped on drop.
        let at = unsafe {
            let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
            libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0)
        };
        assert_ne!(at, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Mapping { at, len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for `len` bytes until dropped, and nobody truncates the file.
        unsafe { std::slice::from_raw_parts(self.at.cast(), self.len) }
    }

    /// The next look at the bytes faults them in again.
    fn forget_pages(&self) {
        // SAFETY: the range is this mapping, which is never written to.
        assert_eq!(unsafe { libc::madvise(self.at, self.len, libc::MADV_DONTNEED) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, once.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

// ---------------------------------------------------------------------------
// Open, read, close
// ---------------------------------------------------------------------------

/// The first FLUSH is answered with ENOSYS and is the last one. Before that
/// answer another may be under way: the mounts of other tests in this process
/// begin with a copy of its descriptors, which they close.
const FLUSHES: u64 = 2;

#[test]
fn what_was_open_before_it_was_complete_is_kept_in_the_page_cache() {
    const NAME: &str = "what_was_open_before_it_was_complete_is_kept_in_the_page_cache";
    if !has_passthrough(NAME) {
        return;
    }
    let mount = Mount::new(Passthrough, LONG, |source| files(source, 4));
    // With a handle from before, no later one is passed through.
    let held: Vec<File> =
        (0..4).map(|n| File::open(mount.path(&format!("f{n}"))).unwrap()).collect();
    mount.hold(4);
    let cold = mount.cost(|| epoch(&mount, 4));
    assert_eq!((cold["open"], cold["release"]), (4, 4), "{cold:?}");
    // None, when such a copy of `held` was closed before.
    let flushes = cold.get("flush").copied().unwrap_or(0);
    assert!(flushes <= FLUSHES, "the first FLUSH is the last: {cold:?}");
    assert!(cold["read"] >= 4, "{cold:?}");
    mount.soon_costs(&[("open", 4), ("release", 4)], || epoch(&mount, 4));
    // Without its pages a file is read again, from the cache.
    drop_pages(&held[0]);
    assert!(mount.cost(|| epoch(&mount, 1))["read"] > 0);
    drop(held);
    mount.hold(0);
}

#[test]
fn cached_asks_once_and_then_a_warm_file_costs_nothing() {
    let mount = Mount::new(Cached, LONG, |source| {
        files(source, 4);
        fs::create_dir(source.join("sub")).unwrap();
        files(&source.join("sub"), 2);
    });
    let cold = mount.cost(|| epoch(&mount, 4));
    assert_eq!((cold["open"], cold["lookup"]), (1, 4), "{cold:?}");
    assert!(cold["flush"] <= FLUSHES, "{cold:?}");
    assert!(cold["read"] >= 4, "{cold:?}");
    let warm = mount.cost(|| epoch(&mount, 4));
    assert!(warm.keys().all(|op| *op == "getattr"), "{warm:?}");
    assert!(warm.values().all(|count| *count <= 8), "{warm:?}");
    mount.soon_costs(&[], || epoch(&mount, 4));
    names(&mount.path(""));
    names(&mount.path("sub"));
    fs::read(mount.path("sub/f1")).unwrap();
    mount.soon_costs(&[], || {
        names(&mount.path(""));
        names(&mount.path("sub"));
        fs::read(mount.path("sub/f1")).unwrap();
    });
    let ops = mount.ops();
    assert_eq!((ops["open"], ops["opendir"]), (1, 1), "{ops:?}");
    assert!(ops["flush"] <= FLUSHES, "{ops:?}");
    assert_eq!((ops["release"], ops["releasedir"]), (0, 0), "{ops:?}");
}

#[test]
fn passthrough_reads_nothing_once_a_file_is_complete() {
    if !has_passthrough("passthrough_reads_nothing_once_a_file_is_complete") {
        return;
    }
    let mount = Mount::new(Passthrough, LONG, |source| files(source, 4));
    let cold = mount.cost(|| epoch(&mount, 4));
    assert_eq!((cold["open"], cold["release"]), (4, 4), "{cold:?}");
    assert!(cold["flush"] <= FLUSHES, "{cold:?}");
    assert!(cold["read"] >= 4, "{cold:?}");
    for n in 0..4 {
        mount.wait_complete(&format!("f{n}"));
    }
    mount.soon_costs(&[("open", 4), ("release", 4)], || epoch(&mount, 4));
    // Not the page cache's doing: it is emptied before each read.
    let without_pages = || {
        let file = File::open(mount.path("f2")).unwrap();
        for _ in 0..3 {
            drop_pages(&file);
            assert!(read_all(&file).unwrap() == content(2, SMALL));
        }
    };
    mount.soon_costs(&[("open", 1), ("release", 1)], without_pages);
}

#[test]
fn a_second_open_reads_as_the_first_one_does() {
    if !has_passthrough("a_second_open_reads_as_the_first_one_does") {
        return;
    }
    let mount = Mount::new(Passthrough, LONG, |source| files(source, 1));
    let read_fresh = |file: &File| {
        drop_pages(file);
        read_all(file).unwrap() == content(0, SMALL)
    };
    // The first handle came before the file was complete: it is cached, and
    // so is every other until the last of them is closed.
    let first = File::open(mount.path("f0")).unwrap();
    mount.hold(1);
    assert!(read_fresh(&first));
    mount.wait_complete("f0");
    let second = File::open(mount.path("f0")).unwrap();
    mount.hold(2);
    assert!(mount.cost(|| assert!(read_fresh(&second)))["read"] > 0);
    drop(first);
    mount.hold(1);
    assert!(mount.cost(|| assert!(read_fresh(&second)))["read"] > 0);
    let third = File::open(mount.path("f0")).unwrap();
    mount.hold(2);
    assert!(read_fresh(&third) && read_fresh(&second));
    drop((second, third));
    mount.hold(0);
    mount.settle();
    // From here on each is passed through, side by side.
    let first = File::open(mount.path("f0")).unwrap();
    let second = File::open(mount.path("f0")).unwrap();
    mount.hold(2);
    mount.soon_costs(&[], || assert!(read_fresh(&first) && read_fresh(&second)));
    drop(first);
    mount.hold(1);
    mount.soon_costs(&[], || assert!(read_fresh(&second)));
    drop(second);
    mount.hold(0);
}

#[test]
fn a_mapping_outlives_close_in_every_mode() {
    for mode in modes("a_mapping_outlives_close_in_every_mode") {
        let len = 3 * (1 << 20) + 5;
        let mount = Mount::new(mode, LONG, |source| {
            fs::write(source.join("big"), content(1, len)).unwrap();
        });
        for round in ["cold", "warm"] {
            let file = File::open(mount.path("big")).unwrap();
            let mapping = Mapping::new(&file);
            mount.hold(1);
            let released = mount.ops()["release"];
            drop(file);
            // The kernel maps the backing file itself where it passes a file
            // through: the handle is released, and the mapping stays good.
            let passed = mode == Passthrough && round == "warm";
            if passed {
                mount.hold(0);
                mount.settle();
            }
            assert!(mapping.bytes() == content(1, len), "{}, {round}", mount.mode());
            mapping.forget_pages();
            assert!(mapping.bytes() == content(1, len), "{}, {round}", mount.mode());
            if !passed {
                // The mapping holds the handle, and with it the lease.
                assert_eq!(mount.ops()["release"], released);
            }
            drop(mapping);
            mount.hold(0);
            mount.wait_complete("big");
        }
        if mode == Passthrough {
            // Faults of a passed-through file are the backing file's own.
            mount.soon_costs(&[("open", 1), ("release", 1)], || {
                let file = File::open(mount.path("big")).unwrap();
                drop_pages(&file);
                let mapping = Mapping::new(&file);
                drop(file);
                assert!(mapping.bytes() == content(1, len));
            });
        }
    }
}

#[test]
fn direct_reads_equal_the_source() {
    #[repr(align(4096))]
    struct Aligned([u8; 1 << 20]);
    for mode in modes("direct_reads_equal_the_source") {
        let len = (1 << 20) - 4_096;
        let mount = Mount::new(mode, LONG, |source| {
            fs::write(source.join("f"), content(9, len)).unwrap();
        });
        let read = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(libc::O_DIRECT).open(mount.path("f"));
            let mut buffer = Box::new(Aligned([0; 1 << 20]));
            let got = file.unwrap().read_at(&mut buffer.0, 0).unwrap();
            assert!(buffer.0[..got] == content(9, len), "{}: {got} bytes", mount.mode());
        };
        assert!(mount.cost(read)["read"] > 0);
        mount.wait_complete("f");
        match mode {
            Passthrough => mount.soon_costs(&[("open", 1), ("release", 1)], read),
            // Past the page cache each read is the daemon's.
            _ => assert!(mount.cost(read)["read"] > 0),
        }
    }
}

// ---------------------------------------------------------------------------
// What changes behind the kernel's back
// ---------------------------------------------------------------------------

#[test]
fn a_changed_object_is_a_new_inode_and_the_old_handle_keeps_its_own() {
    for mode in modes("a_changed_object_is_a_new_inode_and_the_old_handle_keeps_its_own") {
        let mount = Mount::new(mode, SHORT, |source| files(source, 1));
        epoch(&mount, 1);
        mount.wait_complete("f0");
        // The name is looked up when its attributes are final: that must not
        // make the name so.
        eventually("the name is looked up again", || {
            mount.cost(|| drop(fs::metadata(mount.path("f0")))).contains_key("lookup")
        });
        let old = File::open(mount.path("f0")).unwrap();
        mount.hold(1);
        assert!(read_all(&old).unwrap() == content(0, SMALL));
        let old_ino = old.metadata().unwrap().ino();

        let new = content(77, SMALL + 100);
        put(&mount.source("f0"), &new);
        eventually("the new bytes are read", || fs::read(mount.path("f0")).unwrap() == new);
        assert_ne!(fs::metadata(mount.path("f0")).unwrap().ino(), old_ino);

        // In the page cache, and then without it.
        for _ in 0..2 {
            match read_all(&old) {
                Ok(bytes) => assert!(bytes == content(0, SMALL), "{}: a mix", mount.mode()),
                // No handle holds the old version here.
                Err(error) if mode == Cached => {
                    assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
                }
                Err(error) => panic!("{}: a cached version is gone: {error}", mount.mode()),
            }
            drop_pages(&old);
        }
        drop(old);
        mount.hold(0);
        assert!(fs::read(mount.path("f0")).unwrap() == new);
    }
}

#[test]
fn an_object_that_changes_before_it_is_cached_is_stale_to_its_handle() {
    for mode in modes("an_object_that_changes_before_it_is_cached_is_stale_to_its_handle") {
        let mount = Mount::new(mode, LONG, |source| files(source, 1));
        let old = File::open(mount.path("f0")).unwrap();
        mount.hold(1);
        let new = content(78, SMALL + 1);
        put(&mount.source("f0"), &new);
        let error = read_all(&old).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{}: {error}", mount.mode());
        drop(old);
        mount.hold(0);
        // The failure is what tells: no TTL has to pass.
        eventually("the new bytes", || fs::read(mount.path("f0")).is_ok_and(|b| b == new));
    }
}

#[test]
fn a_kept_listing_goes_when_the_folder_changes() {
    for mode in modes("a_kept_listing_goes_when_the_folder_changes") {
        let mount = Mount::new(mode, SHORT, |source| {
            for dir in ["", "sub", "sub/deep"] {
                fs::create_dir_all(source.join(dir)).unwrap();
                files(&source.join(dir), 3);
            }
        });
        // Nothing but listings from here on: no LOOKUP may help.
        let held = nix::dir::Dir::open(
            &mount.path("sub"),
            nix::fcntl::OFlag::O_RDONLY,
            nix::sys::stat::Mode::empty(),
        );
        let mut held = held.unwrap();
        for (round, dir) in ["", "sub", "sub/deep", "sub"].into_iter().enumerate() {
            for _ in 0..3 {
                assert_eq!(names(&mount.path(dir)), names(&mount.source(dir)));
            }
            fs::write(mount.source(dir).join(format!("new{round}")), "new").unwrap();
            if round < 3 {
                fs::remove_file(mount.source(dir).join("f1")).unwrap();
            }
            eventually(&format!("{}: {dir:?} as it is now", mount.mode()), || {
                names(&mount.path(dir)) == names(&mount.source(dir))
            });
        }
        // A folder that is held open is seen anew by who begins anew.
        fs::remove_file(mount.source("sub/f2")).unwrap();
        fs::write(mount.source("sub/newest"), "").unwrap();
        let deadline = std::cell::RefCell::new(&mut held);
        eventually(&format!("{}: the held folder", mount.mode()), || {
            let mut dir = deadline.borrow_mut();
            let names: Vec<_> =
                dir.iter().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.contains(&"newest".to_owned()) && !names.contains(&"f2".to_owned())
        });
    }
}

#[test]
fn an_unchanged_folder_keeps_its_mtime_and_its_copy_in_the_kernel() {
    for mode in modes("an_unchanged_folder_keeps_its_mtime_and_its_copy_in_the_kernel") {
        let mount = Mount::new(mode, LONG, |source| {
            fs::create_dir(source.join("sub")).unwrap();
            files(&source.join("sub"), 3);
        });
        let mtime = || fs::metadata(mount.path("sub")).unwrap().modified().unwrap();
        let before = mtime();
        let first = mount.cost(|| drop(names(&mount.path("sub"))));
        assert_eq!(first["opendir"], 1, "{first:?}");
        assert!(first["readdirplus"] >= 1, "READDIRPLUS at the beginning: {first:?}");
        let second = mount.cost(|| drop(names(&mount.path("sub"))));
        assert_eq!(second, BTreeMap::new(), "{}", mount.mode());
        assert_eq!(mtime(), before, "listing a folder is no change");
    }
}

#[test]
fn names_are_kept_and_so_is_their_absence() {
    for mode in modes("names_are_kept_and_so_is_their_absence") {
        let mount = Mount::new(mode, LONG, |source| files(source, 1));
        let absent = |name: &str| {
            let error = fs::metadata(mount.path(name)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
        };
        assert_eq!(mount.cost(|| absent("no")), BTreeMap::from([("lookup", 1)]));
        assert_eq!(mount.cost(|| absent("no")), BTreeMap::new());
        let stat = || assert!(fs::metadata(mount.path("f0")).unwrap().is_file());
        // A GETATTR besides, if more than a second passes before the answer is used.
        assert_eq!(mount.cost(stat)["lookup"], 1);
        epoch(&mount, 1);
        mount.wait_complete("f0");
        mount.soon_costs(&[], stat);

        let mount = Mount::new(mode, SHORT, |source| files(source, 1));
        assert!(!mount.path("later").exists());
        fs::write(mount.source("later"), "here").unwrap();
        eventually("an absence goes stale", || {
            fs::read(mount.path("later")).is_ok_and(|bytes| bytes == b"here")
        });
        fs::remove_file(mount.source("later")).unwrap();
        eventually("a name goes stale", || !mount.path("later").exists());
    }
}

// ---------------------------------------------------------------------------
// Folders
// ---------------------------------------------------------------------------

#[test]
fn a_large_folder_is_listed_exactly_once() {
    for mode in modes("a_large_folder_is_listed_exactly_once") {
        let mount = Mount::new(mode, LONG, |source| {
            fs::create_dir(source.join("many")).unwrap();
            for n in 0..5_000 {
                fs::write(source.join(format!("many/file-{n:05}")), "").unwrap();
            }
        });
        for _ in 0..2 {
            assert_eq!(names(&mount.path("many")), names(&mount.source("many")));
        }
        let again = mount.cost(|| assert_eq!(names(&mount.path("many")).len(), 5_000));
        assert!(!again.contains_key("readdir") && !again.contains_key("readdirplus"), "{again:?}");
    }
}

#[test]
fn a_position_in_a_folder_stays_right_when_entries_vanish() {
    for mode in modes("a_position_in_a_folder_stays_right_when_entries_vanish") {
        let name = |n: usize| format!("entry-{n:04}");
        let mount = Mount::new(mode, SHORT, |source| {
            (0..600).for_each(|n| fs::write(source.join(name(n)), "x").unwrap());
        });
        let stream = DirStream::open(&mount.path(""));
        let before: Vec<String> = std::iter::from_fn(|| stream.next()).take(102).collect();
        assert_eq!(before[2..], (0..100).map(name).collect::<Vec<_>>());
        let at = stream.tell();
        assert_eq!(stream.rest(), (100..600).map(name).collect::<Vec<_>>());
        // Before it, after it, and the entry it was told at.
        for n in [3, 50, 99, 100, 101, 300, 599] {
            fs::remove_file(mount.source(&name(n))).unwrap();
        }
        eventually("all of it is gone", || {
            [3, 99, 599].iter().all(|n| !mount.path(&name(*n)).exists())
        });
        let left = (102..599).filter(|n| *n != 300).map(name).collect::<Vec<_>>();
        // The kernel is told of the change behind the one who sees it.
        eventually(&format!("{}: the rest", mount.mode()), || {
            stream.seek(at);
            stream.rest() == left
        });
    }
}

// ---------------------------------------------------------------------------
// Everything else a program may ask
// ---------------------------------------------------------------------------

#[test]
fn a_file_has_no_holes_and_lseek_asks_once() {
    for mode in modes("a_file_has_no_holes_and_lseek_asks_once") {
        let mount = Mount::new(mode, LONG, |source| files(source, 2));
        let size = SMALL as i64;
        for round in ["cold", "warm"] {
            for name in ["f0", "f1"] {
                let file = File::open(mount.path(name)).unwrap();
                assert_eq!(lseek(&file, 0, Whence::SeekHole), Ok(size), "{round}");
                assert_eq!(lseek(&file, 7, Whence::SeekData), Ok(7), "{round}");
                assert_eq!(lseek(&file, 4_096, Whence::SeekHole), Ok(size), "{round}");
                assert_eq!(lseek(&file, size, Whence::SeekData), Err(nix::errno::Errno::ENXIO));
            }
            epoch(&mount, 2);
            mount.wait_complete("f0");
        }
        assert_eq!(mount.ops()["lseek"], 1, "{}", mount.mode());
    }
}

#[test]
fn blocks_show_what_is_cached_and_never_none() {
    for mode in modes("blocks_show_what_is_cached_and_never_none") {
        let mount = Mount::new(mode, LONG, |source| {
            files(source, 1);
            fs::write(source.join("empty"), "").unwrap();
        });
        let blocks = |name: &str| fs::metadata(mount.path(name)).unwrap().blocks();
        assert_eq!((blocks("f0"), blocks("empty")), (1, 0));
        epoch(&mount, 1);
        mount.wait_complete("f0");
        let full = SMALL.div_ceil(512) as u64;
        assert_eq!(blocks("f0"), full);
        let du = |args: &[&str]| {
            let output = Command::new("du").args(args).arg(mount.path("f0")).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(du(&["--block-size=512"]), full);
        assert_eq!(du(&["--apparent-size", "--block-size=1"]), SMALL as u64);
    }
}

#[test]
fn nothing_can_be_written() {
    for mode in modes("nothing_can_be_written") {
        let mount = Mount::new(mode, LONG, |source| {
            fs::create_dir(source.join("sub")).unwrap();
            files(source, 1);
        });
        let refused = |what: &str, result: io::Result<()>| {
            let error = result.expect_err(what);
            assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{what}: {error}");
        };
        let (file, new) = (mount.path("f0"), mount.path("new"));
        refused("create", File::create(&new).map(drop));
        refused("write", OpenOptions::new().write(true).open(&file).map(drop));
        refused("append", OpenOptions::new().append(true).open(&file).map(drop));
        refused("read and write", OpenOptions::new().read(true).write(true).open(&file).map(drop));
        refused("truncate", File::create(&file).map(drop));
        refused("mkdir", fs::create_dir(&new));
        refused("rmdir", fs::remove_dir(mount.path("sub")));
        refused("unlink", fs::remove_file(&file));
        refused("rename", fs::rename(&file, &new));
        refused("chmod", fs::set_permissions(&file, Permissions::from_mode(0o600)));
        refused("symlink", std::os::unix::fs::symlink("f0", &new));
        epoch(&mount, 1);
        assert_eq!(names(&mount.path("")), ["f0", "sub"].map(str::to_owned).into());
    }
}

#[test]
fn extended_attributes_are_listed_once_and_asked_for_each_time() {
    for mode in modes("extended_attributes_are_listed_once_and_asked_for_each_time") {
        let mount = Mount::new(mode, LONG, |source| files(source, 2));
        let path = |name: &str| CString::new(mount.path(name).as_os_str().as_bytes()).unwrap();
        let errno = || io::Error::last_os_error().raw_os_error().unwrap();
        for name in ["f0", "f1", "f0"] {
            // SAFETY: a string that ends in NUL, and no buffer.
            let len = unsafe { libc::listxattr(path(name).as_ptr(), std::ptr::null_mut(), 0) };
            assert_eq!((len, errno()), (-1, libc::EOPNOTSUPP));
        }
        assert_eq!(mount.ops()["listxattr"], 1);
        let get = |name: &str, xattr: &CStr| {
            // SAFETY: both strings end in NUL, and no buffer is given.
            let len = unsafe {
                libc::getxattr(path(name).as_ptr(), xattr.as_ptr(), std::ptr::null_mut(), 0)
            };
            (len, errno())
        };
        for (asked, name) in (1..).zip(["f0", "f1", "f0"]) {
            assert_eq!(get(name, c"user.any"), (-1, libc::ENODATA));
            assert_eq!(get(name, c"system.posix_acl_access"), (-1, libc::EOPNOTSUPP));
            assert_eq!(mount.ops()["getxattr"], 2 * asked);
        }
        epoch(&mount, 2);
        assert_eq!(mount.ops()["access"], 0, "the kernel checks permissions itself");
        assert_eq!(mount.ops()["getxattr"], 6, "and asks for no ACL to read");
        let statfs = mount.cost(|| {
            nix::sys::statvfs::statvfs(&mount.path("")).unwrap();
        });
        assert_eq!(statfs, BTreeMap::from([("statfs", 1)]));
    }
}

#[test]
fn an_unmount_sends_nothing_and_ends_the_session() {
    for mode in modes("an_unmount_sends_nothing_and_ends_the_session") {
        let mount = Mount::new(mode, LONG, |source| files(source, 2));
        epoch(&mount, 2);
        mount.settle();
        let before = mount.ops();
        mount.unmount();
        assert_eq!(mount.ops(), before);
        assert!(names(&mount.base.join("mnt")).is_empty());
    }
}

#[test]
fn the_mount_is_as_it_was_asked_for() {
    for mode in modes("the_mount_is_as_it_was_asked_for") {
        let mount = Mount::new(mode, LONG, |source| files(source, 1));
        let dir = mount.session.dir().to_str().unwrap().to_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(&dir)).unwrap();
        let (_, super_block) = line.split_once(" - fuse.warmfs ").unwrap();
        let options: Vec<&str> = super_block.split(' ').nth(1).unwrap().split(',').collect();
        assert!(options.contains(&"ro"), "in the superblock: {line}");
        assert!(options.contains(&"default_permissions"), "{line}");
        assert!(line.split(' ').nth(5).unwrap().split(',').any(|o| o == "noatime"), "{line}");
        if !is_root() {
            skip("the kernel's readahead", "only root sets it");
            continue;
        }
        let device = mount.session.device();
        let (major, minor) = (libc::major(device), libc::minor(device));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        assert_eq!(fs::read_to_string(path).unwrap().trim(), "1024");
    }
}

/// What kernels offer in INIT that asks nothing of how they are built:
/// `fs/fuse/inode.c` of each. The last one has passthrough, as a control.
const KERNELS: [(&str, u64); 5] = [
    // Nothing of all this: each OPEN and OPENDIR is to be answered.
    ("of long ago", 0),
    ("5.15", INIT_5_15),
    // INIT_EXT, SECURITY_CTX
    ("6.1", INIT_5_15 | 1 << 30 | 1 << 32),
    // CREATE_SUPP_GROUP, HAS_EXPIRE_ONLY, DIRECT_IO_ALLOW_MMAP
    ("6.6", INIT_5_15 | 1 << 30 | 1 << 32 | 0b111 << 34),
    // PASSTHROUGH, NO_EXPORT_SUPPORT, HAS_RESEND
    ("6.9", INIT_5_15 | 1 << 30 | 1 << 32 | 0b111 << 34 | 0b111 << 37),
];

/// Bits 0 to 25 without FILE_OPS, which none has offered yet; HANDLE_KILLPRIV_V2
/// and SETXATTR_EXT.
const INIT_5_15: u64 = ((1 << 26) - 1) & !(1 << 2) | 1 << 28 | 1 << 29;

#[test]
fn older_kernels_read_the_same() {
    let can_pass = has_passthrough("older_kernels_read_the_same, with 6.9");
    for (kernel, init_flags) in KERNELS {
        for option in [Auto, Cached, Passthrough] {
            let fill = |source: &Path| {
                files(source, 3);
                fs::create_dir(source.join("sub")).unwrap();
                fs::write(source.join("sub/big"), content(9, 3 << 20)).unwrap();
            };
            let mount = Mount::on_kernel(init_flags, option, LONG, fill);
            for _ in 0..2 {
                epoch(&mount, 3);
                assert!(fs::read(mount.path("sub/big")).unwrap() == content(9, 3 << 20));
                assert_eq!(names(&mount.path("")).len(), 4);
                (0..3).for_each(|n| mount.wait_complete(&format!("f{n}")));
            }
            let passes = option == Passthrough && kernel == "6.9" && can_pass;
            let shown = if passes { "passthrough" } else { "cached" };
            let reason = mount.session.file_system().mode_reason();
            assert_eq!(mount.mode(), shown, "{kernel}, {option:?}: {reason}");
            if option != Cached && kernel != "6.9" && is_root() {
                assert!(reason.ends_with("this kernel has no passthrough"), "{kernel}: {reason}");
            }
            let releases = || {
                let ops = mount.ops();
                (ops["release"] > 0, ops["releasedir"] > 0)
            };
            let expected = (passes || init_flags == 0, init_flags == 0);
            eventually(&format!("{kernel}: {expected:?}"), || releases() == expected);
        }
    }
}

// ---------------------------------------------------------------------------
// What is left behind
// ---------------------------------------------------------------------------

#[test]
fn twenty_mounts_leave_no_descriptor_and_no_thread() {
    // Other tests of this process would be counted too: in a process of its own.
    const CHILD: &str = "KERNEL_CONTRACT_COUNTS_ALONE";
    const NAME: &str = "twenty_mounts_leave_no_descriptor_and_no_thread";
    if std::env::var_os(CHILD).is_none() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let child = child.args(["--exact", NAME, "--nocapture"]).env(CHILD, "1");
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let count = |dir: &str| fs::read_dir(dir).unwrap().count();
    let modes = modes(NAME);
    let used = |mode: OpenModeOption| {
        let mount = Mount::new(mode, LONG, |source| files(source, 3));
        epoch(&mount, 3);
        names(&mount.path(""));
        // What is still being kept when a cache is closed would hold it open.
        (0..3).for_each(|n| mount.wait_complete(&format!("f{n}")));
        mount.unmount();
    };
    modes.iter().for_each(|mode| used(*mode)); // What a process opens once.
    let now = || (count("/proc/self/fd"), count("/proc/self/task"));
    let before = now();
    (0..20).for_each(|n| used(modes[n % modes.len()]));
    eventually(&format!("as many descriptors and threads as {before:?}"), || {
        let now = now();
        now.0 <= before.0 && now.1 <= before.1
    });
}

// ---------------------------------------------------------------------------
// The real binary
// ---------------------------------------------------------------------------

/// Mounts with the binary, reads two epochs and returns `mounts[0]` of status.
fn two_epochs(warmfs: &Warmfs, mode: &str, user: Option<&User>) -> serde_json::Value {
    let run = |args: &[&str]| {
        let mut command = warmfs.command(args);
        if let Some(user) = user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let output = command.output().unwrap();
        if let Some(pid) = warmfs.daemon() {
            warmfs.watchdog().watch_pid(pid);
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}\n{}", warmfs.log());
        String::from_utf8(output.stdout).unwrap()
    };
    // What the user sees, read as the user: not even root looks into a
    // mount that is somebody else's.
    let read = |path: &Path| {
        let mut command = Command::new("cat");
        if let Some(user) = user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let output = command.arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let dir = warmfs.path("user/mnt");
    let at = dir.to_str().unwrap();
    run(&["mount", &warmfs.source(), at, "--open-mode", mode]);
    let status = || -> serde_json::Value {
        let status: serde_json::Value = serde_json::from_str(&run(&["status", "--json"])).unwrap();
        status["mounts"][0].clone()
    };
    let epoch = || assert_eq!(read(&dir.join("hello")), b"hello, world");
    epoch();
    let released = |status: &serde_json::Value| {
        let count = |op: &str| status["fuse"]["ops"][op].as_u64().unwrap_or(0);
        status["mode"] == "cached" || count("open") == count("release")
    };
    eventually("the file is released", || released(&status()));
    let cold = status();
    assert!(cold["fuse"]["ops"]["read"].as_u64().unwrap() > 0, "{cold}");
    epoch();
    eventually("the file is released", || released(&status()));
    let warm = status();
    assert_eq!(warm["fuse"]["ops"]["read"], cold["fuse"]["ops"]["read"], "{mode}: {warm}");
    run(&["unmount", at]);
    warm
}

#[test]
fn the_binary_keeps_the_contract_of_each_mode() {
    for mode in modes("the_binary_keeps_the_contract_of_each_mode") {
        let (name, opens) = match mode {
            Passthrough => ("passthrough", 2),
            _ => ("cached", 1),
        };
        let warmfs = Warmfs::new();
        let warm = two_epochs(&warmfs, name, None);
        assert_eq!((&warm["mode"], &warm["mode_reason"]), (&name.into(), &"asked for".into()));
        assert_eq!(warm["fuse"]["ops"]["open"], opens, "{warm}");
    }
}

#[test]
fn a_user_without_privilege_has_every_mode_but_passthrough() {
    let nobody = if is_root() {
        // As a distribution sets it up, where a container may not have.
        fs::set_permissions("/dev/fuse", Permissions::from_mode(0o666)).unwrap();
        Some(User::from_name("nobody").unwrap().expect("every system has nobody"))
    } else {
        None
    };
    assert!(kernel::find_program("fusermount3"), "install fuse3");
    for (mode, reason) in [
        ("auto", "no privilege (CAP_SYS_ADMIN)"),
        ("cached", "asked for"),
        ("passthrough", "passthrough was asked for; no privilege (CAP_SYS_ADMIN)"),
    ] {
        let warmfs = Warmfs::new();
        if let Some(user) = &nobody {
            fs::set_permissions(warmfs.path(""), Permissions::from_mode(0o755)).unwrap();
            for dir in ["home", "user"] {
                fs::create_dir(warmfs.path(dir)).unwrap();
            }
            for dir in ["home", "user", "run"] {
                let owner = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
                std::os::unix::fs::chown(warmfs.path(dir), owner.0, owner.1).unwrap();
            }
        }
        let warm = two_epochs(&warmfs, mode, nobody.as_ref());
        assert_eq!(warm["fuse"]["ops"]["open"], 1, "{mode}: {warm}");
        assert_eq!((&warm["mode"], &warm["mode_reason"]), (&"cached".into(), &reason.into()));
        let log = warmfs.log();
        let fallbacks = log.lines().filter(|line| line.contains("not passed through")).count();
        assert_eq!(fallbacks, usize::from(mode == "passthrough"), "{mode}: {log}");
    }
}
