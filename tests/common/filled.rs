//! Cache directories that hold many objects, made without a mount.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;
use warmfs::cache::{Cache, Child, Tree};
use warmfs::config::CacheOptions;
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::RemoteClient;
use warmfs::remote::scripted::ScriptedRemote;

use super::store::{BUCKET, Store};

/// As a dataset of 1.3 M objects has it in 1,000 folders.
const FOLDER_OBJECTS: usize = 1_300;

/// Folders filled at once: more only wait for the index.
const FOLDERS_AT_ONCE: usize = 8;

/// Most descriptors open when another folder is begun: with all the folders
/// that are under way, 15,000 at most.
const DESCRIPTORS_MAX: usize = 4_000;

/// For what was read to be on disk.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// Objects of a folder that are filled at once.
const OBJECTS_AT_ONCE: usize = 16;

/// What an object holds, all the same: who reads one knows what to find.
pub const OBJECT: &[u8] = b"a cached object";

/// A listing that outlives every test.
const TTL: Duration = Duration::from_secs(1_000_000);

/// The key of the `n`th object.
pub fn key(n: usize) -> String {
    format!("{:04}/{:04}", n / FOLDER_OBJECTS, n % FOLDER_OBJECTS)
}

/// Fills `cache` with `count` objects of `store`, as a mount of the bucket
/// finds them. Nothing of it goes through the store, which gets the folders'
/// names only.
pub fn fill(cache: &Path, store: &Store, count: usize) {
    let mut folder = std::fs::DirBuilder::new();
    // As the daemon makes it.
    folder.recursive(true).mode(0o700).create(cache).expect("a folder for the cache");
    // As the daemon does: each object that was read lately holds a descriptor.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a higher limit");
    let url = store.url();
    let host = url.strip_prefix("http://").expect("plain HTTP");
    let remote = ScriptedRemote::with_id(&format!("s3://{host}/{BUCKET}"));
    for n in 0..count {
        remote.put(&key(n), OBJECT);
    }
    for n in (0..count).step_by(FOLDER_OBJECTS) {
        store.put(BUCKET, key(n), Bytes::from_static(OBJECT));
    }
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let options = CacheOptions {
            dir: cache.to_owned(),
            size: Some(1 << 40),
            memory: None,
            metadata: None,
        };
        let cache = Cache::open(&options, Handle::current()).expect("a cache");
        let client =
            RemoteClient::new(Arc::new(remote.clone()), Arc::new(RemoteMetrics::default()));
        let tree = cache.attach(Arc::new(client), "", TTL).await.expect("a tree");
        fill_folders(&tree, count.div_ceil(FOLDER_OBJECTS), &remote).await;
        // Closing waits for the disk, but not for as long.
        let began = Instant::now();
        while cache.store().held_objects() < count as u64 {
            let (held, state) = (cache.store().held_objects(), cache.store().state());
            assert!(began.elapsed() < SETTLE_LIMIT, "{held} of {count} are kept: {state}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let close = cache.clone();
        tokio::task::spawn_blocking(move || close.close()).await.expect("it closes");
    });
}

async fn fill_folders(tree: &Arc<Tree>, folders: usize, remote: &ScriptedRemote) {
    tree.ensure_listed(tree.root()).await.expect("a listing");
    let mut filling = JoinSet::new();
    for folder in 0..folders {
        if filling.len() == FOLDERS_AT_ONCE {
            filling.join_next().await.expect("one of them").expect("it is filled");
            // It would hold every request.
            remote.clear_requests();
        }
        let tree = tree.clone();
        // An object holds one until the index knows it. Out of them, the cache
        // would take its disk for failed, and keep nothing for a while.
        while descriptors() > DESCRIPTORS_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        filling.spawn(async move { fill_folder(&tree, &format!("{folder:04}")).await });
    }
    while let Some(filled) = filling.join_next().await {
        filled.expect("it is filled");
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

async fn fill_folder(tree: &Arc<Tree>, name: &str) {
    let Ok(Child::Known(folder)) = tree.child(tree.root(), name) else { panic!("no {name}") };
    tree.ensure_listed(folder.id).await.expect("a listing");
    let children = tree.children(folder.id, None, usize::MAX).expect("its children");
    let read = async |child| {
        let object = tree.open(&child).expect("the index").expect("an object");
        let read = object.read(0, OBJECT.len() as u64).await.expect("its bytes");
        assert_eq!(read.data, OBJECT);
    };
    stream::iter(children).for_each_concurrent(OBJECTS_AT_ONCE, read).await;
}

/// The most memory that a process ever held.
pub fn peak_rss_bytes(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}
