//! The cache and the file system over a scripted remote, without a kernel.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Handle, Runtime};
use warmfs::cache::{Cache, CachedObject, Child, Node, Tree};
use warmfs::config::{CacheOptions, MountOptions};
use warmfs::fs::FileSystem;
use warmfs::fs::inode::Ino;
use warmfs::fs::ops::{DirEntry, Found};
use warmfs::metrics::{MountMetrics, RemoteMetrics};
use warmfs::remote::client::{Limits, RemoteClient};
use warmfs::remote::retry::Backoff;
use warmfs::remote::scripted::{RequestKind, ScriptedRemote};

pub(crate) const CHUNK: u64 = warmfs::cache::CHUNK_BYTES;
pub(crate) const URI: &str = "s3://store";
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const LONG: Duration = Duration::from_secs(100_000);

/// Longer than anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Bytes that tell their place and their object apart.
pub(crate) fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len as usize];
    rng.fill(&mut bytes);
    bytes
}

pub(crate) fn client(remote: &ScriptedRemote) -> (Arc<RemoteClient>, Arc<RemoteMetrics>) {
    let metrics = Arc::new(RemoteMetrics::default());
    let limits = Limits {
        backoff: Backoff { first_delay: Duration::from_millis(1), ..Backoff::default() },
        ..Limits::default()
    };
    let client = RemoteClient::with_limits(Arc::new(remote.clone()), metrics.clone(), limits);
    (Arc::new(client), metrics)
}

pub(crate) fn mount_options(ttl: Duration) -> MountOptions {
    MountOptions { metadata_ttl: ttl, ..MountOptions::default() }
}

/// An open cache with one mounted tree.
pub(crate) struct Rig {
    pub(crate) remote: ScriptedRemote,
    pub(crate) cache: Arc<Cache>,
    pub(crate) tree: Arc<Tree>,
    pub(crate) fs: Arc<FileSystem>,
    pub(crate) metrics: Arc<MountMetrics>,
    pub(crate) remote_metrics: Arc<RemoteMetrics>,
}

impl Rig {
    pub(crate) async fn open(
        dir: &Path,
        remote: &ScriptedRemote,
        size: Option<u64>,
        ttl: Duration,
    ) -> Rig {
        Rig::open_with(dir, remote, size, ttl, client(remote)).await
    }

    /// The same with a client of the test's.
    pub(crate) async fn open_with(
        dir: &Path,
        remote: &ScriptedRemote,
        size: Option<u64>,
        ttl: Duration,
        (client, remote_metrics): (Arc<RemoteClient>, Arc<RemoteMetrics>),
    ) -> Rig {
        let options = CacheOptions {
            dir: dir.to_owned(),
            size: Some(size.unwrap_or(1 << 40)),
            memory: None,
            metadata: None,
        };
        let cache = Cache::open(&options, Handle::current()).unwrap();
        let tree = cache.attach(client, "", ttl).await.unwrap();
        let metrics = Arc::new(MountMetrics::default());
        let fs = FileSystem::new(tree.clone(), URI.to_owned(), mount_options(ttl), metrics.clone());
        Rig { remote: remote.clone(), cache, tree, fs, metrics, remote_metrics }
    }

    pub(crate) fn close(self) {
        self.cache.close();
    }

    pub(crate) async fn lookup(&self, parent: Ino, name: &str) -> Found {
        self.fs.lookup(parent, OsStr::new(name)).get().await.unwrap()
    }

    /// The inode at a path.
    pub(crate) async fn ino(&self, path: &str) -> Ino {
        let mut at = Ino::ROOT;
        for name in path.split('/') {
            at = self.lookup(at, name).await.attr.unwrap_or_else(|| panic!("no {path:?}")).ino;
        }
        at
    }

    pub(crate) async fn node(&self, path: &str) -> Node {
        let ino = self.ino(path).await;
        self.tree.node(ino.node(self.tree.root())).unwrap().unwrap()
    }

    pub(crate) async fn object(&self, path: &str) -> Arc<CachedObject> {
        self.fs.object(self.ino(path).await).unwrap()
    }

    pub(crate) async fn read(&self, path: &str) -> Vec<u8> {
        let object = self.object(path).await;
        read_all(&object).await
    }

    /// The whole listing of a folder but the dots, as `ls` reads it.
    pub(crate) async fn list(&self, ino: Ino) -> Vec<DirEntry> {
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let entries = self.fs.read_dir(ino, offset).get().await.unwrap();
            let Some(last) = entries.last() else { break };
            offset = last.offset;
            all.extend(entries);
        }
        all.retain(|entry| entry.name != "." && entry.name != "..");
        all
    }

    pub(crate) fn gets(&self) -> usize {
        self.remote.count(RequestKind::Get)
    }
}

/// Reads in pieces of 128 KiB, as the kernel does.
pub(crate) async fn read_all(object: &Arc<CachedObject>) -> Vec<u8> {
    let mut data = Vec::new();
    while (data.len() as u64) < object.size() {
        data.extend(object.read(data.len() as u64, CHUNK).await.unwrap().data);
    }
    data
}

/// Polls until `ready`, or gives up.
pub(crate) async fn eventually(what: &str, mut ready: impl FnMut() -> bool) {
    let start = Instant::now();
    while !ready() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn known(child: Child) -> Node {
    match child {
        Child::Known(node) => node,
        other => panic!("{other:?}"),
    }
}

/// Every backing file below a cache directory.
pub(crate) fn data_files(dir: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { walk(&path, files) } else { files.push(path) }
        }
    }
    let mut files = Vec::new();
    walk(&dir.join("data"), &mut files);
    files.sort();
    files
}

/// Disk taken by all files below a cache directory.
pub(crate) fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let index = std::fs::metadata(dir.join("index.redb")).map_or(0, |m| m.blocks() * 512);
    let of = |file: &PathBuf| std::fs::metadata(file).map_or(0, |m| m.blocks() * 512);
    index + data_files(dir).iter().map(of).sum::<u64>()
}
