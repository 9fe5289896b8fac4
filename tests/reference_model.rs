//! The file system without a kernel against a plain model of it, over random
//! operations: objects put and deleted behind its back, listings resumed while
//! they change, handles kept open over changes, requests and bodies that fail,
//! clean closes, crashes, and a cache that is full.
//!
//! What a folder shows is worked out here from the keys alone, by the table in
//! `src/cache/names.rs`, and not by the way the index is brought up to date.
//!
//! `WARMFS_MODEL_CASES` sets the number of cases; `a_long_walk` is for the long run.

mod offline;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use offline::*;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use tempfile::TempDir;
use warmfs::cache::CachedObject;
use warmfs::fs::Errno;
use warmfs::fs::inode::Ino;
use warmfs::remote::ErrorKind;
use warmfs::remote::scripted::{Fault, Request, RequestKind, ScriptedRemote};

/// The size of a cache that is soon full: the index and a few objects.
const FULL_BYTES: u64 = 6 * MIB;

/// Handles open at once.
const HANDLES: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Put {
        key: String,
        size: u64,
    },
    Delete(usize),
    Lookup {
        folder: usize,
        name: String,
    },
    List {
        folder: usize,
    },
    /// Begins or goes on with one listing that is read a piece at a time.
    Resume,
    Stat(usize),
    Open {
        file: usize,
        handle: usize,
    },
    Read {
        handle: usize,
        at: f64,
        len: u64,
    },
    ReadWhole {
        file: usize,
    },
    Remount {
        ttl: bool,
    },
    Crash,
    Fault(RequestKind, u8),
}

fn component() -> impl Strategy<Value = String> {
    let long = "x".repeat(250);
    let too_long = "y".repeat(256);
    // What sorts before and after `/`, what steers a terminal, what encodings may mangle.
    let odd =
        select(vec!['a', '.', '-', ' ', '\n', '%', 'é', '0', '+', '\u{1}', '\u{7f}', '\u{fffd}']);
    prop_oneof![
        8 => select(vec!["a", "b", "c"]).prop_map(str::to_owned),
        3 => prop::collection::vec(odd, 1..6).prop_map(|chars| chars.into_iter().collect()),
        4 => select(vec!["a~object", "..", ".", "", " ", "~object", "é", "%2F", "\n", "a~object~object"])
            .prop_map(str::to_owned),
        1 => select(vec![long, too_long]),
    ]
}

fn key() -> impl Strategy<Value = String> {
    let parts = prop_oneof![
        9 => prop::collection::vec(component(), 1..4),
        1 => prop::collection::vec(component(), 4..9),
    ];
    (parts, prop::bool::weighted(0.1))
        .prop_map(|(parts, marker)| parts.join("/") + if marker { "/" } else { "" })
        .prop_filter("a store has no such key", |key| (1..=1024).contains(&key.len()))
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => select(vec![0, 1, CHUNK - 1, CHUNK, CHUNK + 1]),
        4 => 0..4 * CHUNK,
        1 => 4 * MIB + 1..9 * MIB,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let n = || 0..1000_usize;
    prop_oneof![
        8 => (key(), size()).prop_map(|(key, size)| Op::Put { key, size }),
        3 => n().prop_map(Op::Delete),
        6 => (n(), component()).prop_map(|(folder, name)| Op::Lookup { folder, name }),
        5 => n().prop_map(|folder| Op::List { folder }),
        4 => Just(Op::Resume),
        3 => n().prop_map(Op::Stat),
        6 => (n(), 0..HANDLES).prop_map(|(file, handle)| Op::Open { file, handle }),
        8 => (0..HANDLES, 0.0..1.1, select(vec![1, 4096, CHUNK, 2 * CHUNK + 1, MIB]))
            .prop_map(|(handle, at, len)| Op::Read { handle, at, len }),
        5 => n().prop_map(|file| Op::ReadWhole { file }),
        2 => any::<bool>().prop_map(|ttl| Op::Remount { ttl }),
        1 => Just(Op::Crash),
        3 => (select(vec![RequestKind::Head, RequestKind::List, RequestKind::Get]), 0..6_u8)
            .prop_map(|(kind, fault)| Op::Fault(kind, fault)),
    ]
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Folder,
    Object { key: String },
}

/// The remote, as the model has it: every version of every key. A version is
/// known by its size and the seed of its content.
#[derive(Default)]
struct Model {
    now: BTreeMap<String, (u64, u64)>,
    ever: HashMap<String, Vec<(u64, u64)>>,
    puts: u64,
}

fn can_be_shown(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= 255
}

impl Model {
    /// What the folder of `prefix` shows: the table of `names.rs`, from keys alone.
    fn folder(&self, prefix: &str) -> BTreeMap<String, Shown> {
        let mut folders = BTreeSet::new();
        let mut objects = BTreeSet::new();
        for key in self.now.keys() {
            match key.strip_prefix(prefix).map(|rest| rest.split_once('/').ok_or(rest)) {
                Some(Ok((folder, _))) => folders.insert(folder),
                Some(Err(object)) => objects.insert(object),
                None => false,
            };
        }
        folders.retain(|name| can_be_shown(name));
        objects.retain(|name| can_be_shown(name));
        let mut shown = BTreeMap::new();
        for name in &objects {
            if !folders.contains(name) {
                let key = format!("{prefix}{name}");
                shown.insert((*name).to_owned(), Shown::Object { key });
            }
        }
        for name in &folders {
            shown.insert((*name).to_owned(), Shown::Folder);
        }
        for name in objects.intersection(&folders) {
            let beside = format!("{name}~object");
            if can_be_shown(&beside) && !shown.contains_key(&beside) {
                shown.insert(beside, Shown::Object { key: format!("{prefix}{name}") });
            }
        }
        shown
    }

    /// Prefixes of every folder that a path leads to.
    fn folders(&self) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut at = 0;
        while at < all.len() {
            let prefix = all[at].clone();
            for (name, shown) in self.folder(&prefix) {
                if shown == Shown::Folder {
                    all.push(format!("{prefix}{name}/"));
                }
            }
            at += 1;
        }
        all
    }

    /// Paths and keys of every object that a path leads to.
    fn files(&self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        for prefix in self.folders() {
            for (name, shown) in self.folder(&prefix) {
                if let Shown::Object { key } = shown {
                    files.push((format!("{prefix}{name}"), key));
                }
            }
        }
        files
    }
}

struct Handle {
    ino: Ino,
    object: Arc<CachedObject>,
    /// Key and version, once the bytes told which.
    key: String,
    version: Option<(u64, u64)>,
}

/// A listing that is read a piece at a time.
struct Cursor {
    folder: Ino,
    offset: u64,
    /// Names that were there from the beginning, and have not come yet.
    due: BTreeSet<String>,
    came: BTreeSet<String>,
}

struct World {
    dir: TempDir,
    remote: ScriptedRemote,
    rig: Option<Rig>,
    model: Model,
    /// Answers are trusted for ever, or never.
    fresh: bool,
    /// Opened after a crash.
    crashed: bool,
    limit: Option<u64>,
    handles: [Option<Handle>; HANDLES],
    cursor: Option<Cursor>,
}

type Outcome = Result<(), TestCaseError>;

impl World {
    async fn new(fresh: bool, limit: Option<u64>) -> World {
        let mut world = World {
            dir: TempDir::new().unwrap(),
            remote: ScriptedRemote::new(),
            rig: None,
            model: Model::default(),
            fresh,
            crashed: false,
            limit,
            handles: [const { None }; HANDLES],
            cursor: None,
        };
        world.remote.set_page_keys(3);
        world.open().await;
        world
    }

    async fn open(&mut self) {
        // A TTL of ever shows old listings by design, so the model's is zero
        // but where the remote stands still.
        let ttl = if self.fresh { LONG } else { Duration::ZERO };
        self.rig = Some(Rig::open(self.dir.path(), &self.remote, self.limit, ttl).await);
    }

    fn rig(&self) -> &Rig {
        self.rig.as_ref().unwrap()
    }

    /// The folder that a key prefix names, by looking up one part after another.
    async fn folder_ino(&self, prefix: &str) -> Option<Ino> {
        let mut at = Ino::ROOT;
        for part in prefix.split_terminator('/') {
            let attr = self.rig().lookup(at, part).await.attr?;
            if !attr.is_folder {
                return None;
            }
            at = attr.ino;
        }
        Some(at)
    }

    async fn file_ino(&self, path: &str) -> Option<Ino> {
        let cut = path.rfind('/').map_or(0, |slash| slash + 1);
        let folder = self.folder_ino(&path[..cut]).await?;
        self.rig().lookup(folder, &path[cut..]).await.attr.map(|attr| attr.ino)
    }

    /// With a TTL of ever, what was listed before stays as it was: the world is
    /// refreshed by a remount whenever it changes.
    async fn changed(&mut self) {
        if self.fresh {
            self.close();
            self.crashed = false;
            self.fresh = false;
            self.open().await;
        }
    }

    fn close(&mut self) {
        self.handles = [const { None }; HANDLES];
        self.cursor = None;
        self.rig.take().unwrap().close();
    }

    async fn apply(&mut self, op: Op) -> Outcome {
        match op {
            Op::Put { key, size } => {
                self.changed().await;
                self.model.puts += 1;
                let version = (size, self.model.puts);
                self.remote.put(&key, content(version.1, size));
                self.model.now.insert(key.clone(), version);
                self.model.ever.entry(key).or_default().push(version);
                self.spoil_cursor();
            }
            Op::Delete(n) => {
                let Some(key) = pick(&self.model.now.keys().cloned().collect::<Vec<_>>(), n) else {
                    return Ok(());
                };
                self.changed().await;
                self.remote.delete(&key);
                self.model.now.remove(&key);
                self.spoil_cursor();
            }
            Op::Lookup { folder, name } => return self.check_lookup(folder, &name).await,
            Op::List { folder } => return self.check_list(folder).await,
            Op::Resume => return self.resume().await,
            Op::Stat(n) => return self.check_stat(n).await,
            Op::Open { file, handle } => {
                let Some((path, key)) = pick(&self.model.files(), file) else { return Ok(()) };
                let ino = self.file_ino(&path).await;
                let Some(ino) = ino else { return fail(format!("{path:?} is not found")) };
                let object = self.rig().fs.object(ino).map_err(|e| reject(format!("{e:?}")))?;
                self.handles[handle] = Some(Handle { ino, object, key, version: None });
            }
            Op::Read { handle, at, len } => return self.check_read(handle, at, len).await,
            Op::ReadWhole { file } => return self.check_read_whole(file).await,
            Op::Remount { ttl } => return self.check_remount(ttl).await,
            Op::Crash => self.crash().await,
            Op::Fault(kind, n) => {
                let fault = match n {
                    0 => Fault::Error(ErrorKind::Transient),
                    1 => Fault::Error(ErrorKind::Throttled { retry_after: None }),
                    2 => Fault::BreakAfter(CHUNK / 2),
                    3 => Fault::ShortBody(1),
                    4 => Fault::LongBody(77),
                    _ => Fault::Error(ErrorKind::Unreachable),
                };
                // A fault that nothing has met by now must not add up to more
                // than retries heal.
                let mut once = Some(fault);
                self.remote.script(
                    move |request: &Request| {
                        if request.kind() == kind { once.take() } else { None }
                    },
                );
            }
        }
        let figures = self.rig().cache.figures();
        prop_assert!(figures.used_bytes <= figures.limit_bytes, "{figures:?}");
        Ok(())
    }

    async fn check_lookup(&self, n: usize, name: &str) -> Outcome {
        let Some(prefix) = pick(&self.model.folders(), n) else { return Ok(()) };
        let Some(folder) = self.folder_ino(&prefix).await else {
            return fail(format!("the folder {prefix:?} is not found"));
        };
        if name.len() > 255 {
            let error = self.rig().fs.lookup(folder, OsStr::new(name)).get().await.err();
            prop_assert_eq!(error, Some(Errno::ENAMETOOLONG));
            return Ok(());
        }
        let found = self.rig().lookup(folder, name).await;
        let shown = self.model.folder(&prefix);
        match (shown.get(name), found.attr) {
            (None, None) => {}
            (Some(Shown::Folder), Some(attr)) => prop_assert!(attr.is_folder),
            (Some(Shown::Object { key }), Some(attr)) => {
                prop_assert!(!attr.is_folder);
                prop_assert_eq!(attr.size, self.model.now[key].0);
                prop_assert!(attr.size == 0 || attr.blocks > 0);
            }
            (expected, attr) => {
                return fail(format!("{prefix:?} {name:?}: {expected:?}, found {attr:?}"));
            }
        }
        Ok(())
    }

    async fn check_list(&self, n: usize) -> Outcome {
        let Some(prefix) = pick(&self.model.folders(), n) else { return Ok(()) };
        let Some(folder) = self.folder_ino(&prefix).await else {
            return fail(format!("the folder {prefix:?} is not found"));
        };
        let found: Vec<_> = self.rig().list(folder).await;
        let found: Vec<_> =
            found.into_iter().map(|e| (e.name, e.attr.is_folder, e.attr.size)).collect();
        let shown = self.model.folder(&prefix);
        let expected: Vec<_> = shown
            .into_iter()
            .map(|(name, shown)| match shown {
                Shown::Folder => (name, true, 4096),
                Shown::Object { key } => (name, false, self.model.now[&key].0),
            })
            .collect();
        prop_assert_eq!(found, expected, "{:?}", prefix);
        Ok(())
    }

    /// What changed is no longer due, and may come or not.
    fn spoil_cursor(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            let now = self.model.folder("");
            cursor.due.retain(|name| now.contains_key(name));
        }
    }

    async fn resume(&mut self) -> Outcome {
        let mut cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => Cursor {
                folder: Ino::ROOT,
                offset: 0,
                due: self.model.folder("").into_keys().collect(),
                came: BTreeSet::new(),
            },
        };
        let began = cursor.offset == 0;
        let entries = self.rig().fs.read_dir(cursor.folder, cursor.offset).get().await;
        let entries = entries.map_err(|e| reject(format!("readdir: {e:?}")))?;
        if began {
            // What a conflict of names hides can take a second listing to show.
            let listed = self.rig().list(Ino::ROOT).await;
            let listed: BTreeSet<_> = listed.into_iter().map(|e| e.name).collect();
            cursor.due.retain(|name| listed.contains(name) && !name.contains("~object"));
        }
        if entries.is_empty() {
            prop_assert!(cursor.due.is_empty(), "never came: {:?}", cursor.due);
            return Ok(());
        }
        // The caller's buffer may hold fewer than there are.
        for entry in entries.into_iter().take(3) {
            prop_assert!(cursor.came.insert(entry.name.clone()), "{:?} came twice", entry.name);
            cursor.due.remove(&entry.name);
            cursor.offset = entry.offset;
        }
        self.cursor = Some(cursor);
        Ok(())
    }

    async fn check_stat(&self, n: usize) -> Outcome {
        let Some((path, key)) = pick(&self.model.files(), n) else { return Ok(()) };
        let Some(ino) = self.file_ino(&path).await else {
            return fail(format!("{path:?} is not found"));
        };
        let attr = self
            .rig()
            .fs
            .getattr(ino)
            .get()
            .await
            .map_err(|e| reject(format!("{path:?}: {e:?}")))?;
        prop_assert_eq!((attr.ino, attr.size), (ino, self.model.now[&key].0));
        Ok(())
    }

    /// A read of an open handle: bytes of the one version that was opened, or ESTALE.
    async fn check_read(&mut self, n: usize, at: f64, len: u64) -> Outcome {
        let fs = self.rig().fs.clone();
        let Some(handle) = &mut self.handles[n] else { return Ok(()) };
        let size = handle.object.size();
        let offset = (size as f64 * at) as u64;
        let data = match fs.read(handle.ino, handle.object.clone(), offset, len).await {
            Ok(data) => data,
            Err(errno) => {
                prop_assert_eq!(errno, Errno::ESTALE);
                let now = self.model.now.get(&handle.key);
                let same = handle.version.is_some() && now == handle.version.as_ref();
                prop_assert!(!same, "ESTALE although {:?} did not change", handle.key);
                return Ok(());
            }
        };
        prop_assert_eq!(data.len() as u64, len.min(size.saturating_sub(offset)));
        let matches = |version: &(u64, u64)| {
            version.0 == size
                && content(version.1, size)[offset.min(size) as usize..][..data.len()] == data[..]
        };
        let ever = &self.model.ever[&handle.key];
        match handle.version {
            Some(version) => prop_assert!(matches(&version), "a mix of versions"),
            None => {
                let version = ever.iter().find(|version| matches(version)).copied();
                prop_assert!(version.is_some(), "bytes that {:?} never had", handle.key);
                // Short reads may fit several versions.
                if data.len() > 16 {
                    handle.version = version;
                }
            }
        }
        Ok(())
    }

    async fn check_read_whole(&self, n: usize) -> Outcome {
        let Some((path, key)) = pick(&self.model.files(), n) else { return Ok(()) };
        let Some(ino) = self.file_ino(&path).await else {
            return fail(format!("{path:?} is not found"));
        };
        let rig = self.rig();
        let object = rig.fs.object(ino).map_err(|e| reject(format!("{path:?}: {e:?}")))?;
        let (size, seed) = self.model.now[&key];
        let mut data = Vec::new();
        while (data.len() as u64) < size {
            let at = data.len() as u64;
            let read = rig.fs.clone().read(ino, object.clone(), at, 2 * CHUNK).await;
            let read = read.map_err(|e| reject(format!("{path:?} at {at}: {e:?}")))?;
            prop_assert!(!read.is_empty(), "{:?} ends at {}", path, at);
            data.extend(read);
            let figures = rig.cache.figures();
            prop_assert!(figures.used_bytes <= figures.limit_bytes, "{figures:?}");
        }
        prop_assert!(data == content(seed, size), "{:?} has wrong bytes", path);
        Ok(())
    }

    /// What was cached at a clean close is read afterwards without a GET.
    async fn check_remount(&mut self, fresh: bool) -> Outcome {
        let mut cached = Vec::new();
        for (path, key) in self.model.files() {
            let Some(ino) = self.file_ino(&path).await else {
                return fail(format!("{path:?} is not found"));
            };
            let object = self.rig().fs.object(ino).map_err(|e| reject(format!("{e:?}")))?;
            if object.size() > 0 && object.present_bytes() == object.size() {
                cached.push((path, key));
            }
        }
        // The file of a replaced object goes before the index says so for good.
        let repairs = self.rig().cache.store().metrics().repairs.get();
        prop_assert!(repairs == 0 || self.crashed, "{repairs} repairs without damage");
        if fresh {
            // What is trusted for ever must be right to begin with.
            for prefix in self.model.folders() {
                let Some(folder) = self.folder_ino(&prefix).await else {
                    return fail(format!("the folder {prefix:?} is not found"));
                };
                self.rig().list(folder).await;
            }
        }
        self.close();
        self.crashed = false;
        self.fresh = fresh;
        self.open().await;
        self.remote.clear_requests();
        for (path, key) in cached {
            let Some(ino) = self.file_ino(&path).await else {
                return fail(format!("{path:?} is not found"));
            };
            let object = self.rig().fs.object(ino).map_err(|e| reject(format!("{e:?}")))?;
            let (size, seed) = self.model.now[&key];
            let read = object.read(0, size).await.map_err(|e| reject(e.to_string()))?;
            prop_assert!(read.data == content(seed, size), "{:?} after a remount", path);
            prop_assert_eq!(read.miss_bytes, 0);
        }
        prop_assert_eq!(self.remote.count(RequestKind::Get), 0, "GETs for what was cached");
        Ok(())
    }

    /// A crash: the directory as it lies there at some moment, opened again.
    async fn crash(&mut self) {
        let copy = TempDir::new().unwrap();
        // The index first, as a crash leaves it: behind the files, never ahead.
        let index = self.dir.path().join("index.redb");
        // The index is copied at a moment when nobody writes to it.
        let mut bytes = std::fs::read(&index).unwrap();
        eventually("the index stands still", || {
            let again = std::fs::read(&index).unwrap();
            let same = again == bytes;
            bytes = again;
            same
        })
        .await;
        std::fs::write(copy.path().join("index.redb"), bytes).unwrap();
        copy_folder(&self.dir.path().join("data"), &copy.path().join("data"));
        self.close();
        self.fresh = false;
        self.crashed = true;
        self.dir = copy;
        self.open().await;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).into_iter().flatten().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            // A file may go while it is copied.
            let _ = std::fs::copy(&from, &to);
        }
    }
}

fn pick<T: Clone>(all: &[T], n: usize) -> Option<T> {
    (!all.is_empty()).then(|| all[n % all.len()].clone())
}

fn reject(message: String) -> TestCaseError {
    TestCaseError::fail(message)
}

fn fail(message: String) -> Outcome {
    Err(reject(message))
}

fn walk(cases: u32, ops: usize) {
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let runtime = runtime();
    let start = (any::<bool>(), any::<bool>(), prop::collection::vec(op(), 1..ops));
    let result = TestRunner::new(config).run(&start, |(fresh, full, ops)| {
        runtime.block_on(async {
            let mut world = World::new(fresh, full.then_some(FULL_BYTES)).await;
            for op in ops {
                world.apply(op).await?;
            }
            world.close();
            Ok(())
        })
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, (fresh, full, ops))) => {
            let ops: Vec<_> = ops.iter().map(|op| format!("    {op:?}")).collect();
            panic!("{reason}\nfresh {fresh}, full {full}:\n{}", ops.join("\n"));
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_file_system_is_what_the_model_says() {
    let cases = std::env::var("WARMFS_MODEL_CASES").ok().and_then(|n| n.parse().ok());
    walk(cases.unwrap_or(256), 60);
}

#[test]
#[ignore = "minutes long; part of ./check --full"]
fn a_long_walk() {
    walk(1000, 120);
}
