//! The pieces that run once a read, a chunk, a name or a page:
//! `cargo bench --bench hot [-- --quick]`. For comparing two builds on one
//! machine; no figure here has a target.
//!
//! Only what the library shows is measured. The chunk map, the index, the
//! planning of windows and the parsing of S3's XML are its own, and are not made
//! public for a bench: they are in here as a part of the look-up, the reads and
//! the page that use them. No kernel is involved; `mounted` has that.

use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};
use warmfs::admission::{Class, PrioritySemaphore};
use warmfs::cache::{CHUNK_BYTES, Cache, CachedObject, Child, Node, Tree};
use warmfs::config::{CacheOptions, CallerEnv, RemoteOptions};
use warmfs::embedded_store::{EmbeddedStore, StoreOptions};
use warmfs::remote::client::RemoteClient;
use warmfs::remote::s3::S3Remote;
use warmfs::remote::scripted::ScriptedRemote;
use warmfs::remote::{ListRequest, Remote};

/// A listing that outlives every run.
const TTL: Duration = Duration::from_secs(1_000_000);

/// Names in the folder that is looked into.
const FOLDER_NAMES: usize = 10_000;

/// Keys in a page of a listing, the most that S3 gives.
const PAGE_KEYS: usize = 1_000;

/// Room for what the cold reads leave behind until it is removed.
const CACHE_BYTES: u64 = 1 << 30;

/// For a chunk to be on disk.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// What every object holds: a chunk.
fn chunk() -> Bytes {
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes.into()
}

fn runtime() -> Runtime {
    // As many threads on every machine, so that hand-overs stay comparable.
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An open cache over a remote in memory, with its tree.
struct Rig {
    remote: ScriptedRemote,
    tree: Arc<Tree>,
    cache: Arc<Cache>,
    // Dropped after what works in them.
    runtime: Runtime,
    _dir: TempDir,
}

impl Rig {
    fn new(keys: impl IntoIterator<Item = String>) -> Rig {
        let (dir, runtime, remote) = (TempDir::new().unwrap(), runtime(), ScriptedRemote::new());
        let chunk = chunk();
        for key in keys {
            remote.put(&key, chunk.clone());
        }
        let options = CacheOptions {
            dir: dir.path().to_owned(),
            size: Some(CACHE_BYTES),
            memory: None,
            metadata: None,
        };
        let client = Arc::new(RemoteClient::new(Arc::new(remote.clone()), Arc::default()));
        let (cache, tree) = runtime.block_on(async {
            let cache = Cache::open(&options, Handle::current()).unwrap();
            let tree = cache.attach(client, "", TTL).await.unwrap();
            tree.ensure_listed(tree.root()).await.unwrap();
            (cache, tree)
        });
        Rig { remote, tree, cache, runtime, _dir: dir }
    }

    async fn node(&self, path: &str) -> Node {
        self.tree.resolve(path).await.unwrap().unwrap()
    }

    async fn object(&self, path: &str) -> Arc<CachedObject> {
        self.tree.open(&self.node(path).await).unwrap().unwrap()
    }

    /// A new version of the object, of which nothing is cached.
    async fn replaced(&self, path: &str, bytes: &Bytes) -> Arc<CachedObject> {
        let old = self.node(path).await;
        self.remote.put(path, bytes.clone());
        // It would hold every request of the run.
        self.remote.clear_requests();
        self.tree.expire(&old).await.unwrap();
        let new = self.node(path).await;
        assert_ne!(new.id, old.id);
        self.tree.open(&new).unwrap().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cache.close();
    }
}

async fn read_chunk(object: &Arc<CachedObject>, missing: u64) -> Bytes {
    let read = object.read(0, CHUNK_BYTES).await.unwrap();
    // Else the bench would measure something else than it says.
    assert_eq!((read.data.len() as u64, read.miss_bytes), (CHUNK_BYTES, missing));
    read.data
}

fn admission(c: &mut Criterion) {
    let mut group = c.benchmark_group("admission");
    let semaphore = PrioritySemaphore::new([64, 48, 16]);
    group.bench_function("take and give back", |b| {
        b.iter(|| drop(black_box(semaphore.try_acquire(Class::Demand, 1).unwrap())));
    });
    // Without a runtime, whose wake-ups would cost many times as much.
    let only = PrioritySemaphore::new([1, 1, 1]);
    group.bench_function("hand over to a waiter", |b| {
        b.iter(|| {
            let held = only.try_acquire(Class::Demand, 1).unwrap();
            let mut waiter = pin!(only.acquire(Class::Demand, 1));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(waiter.as_mut().poll(&mut cx).is_pending());
            drop(held);
            assert!(waiter.as_mut().poll(&mut cx).is_ready());
        });
    });
    group.finish();
}

fn checksum(c: &mut Criterion) {
    let chunk = chunk();
    let mut group = c.benchmark_group("crc32c");
    group.throughput(Throughput::Bytes(CHUNK_BYTES));
    group.bench_function("a chunk", |b| b.iter(|| crc32c::crc32c(black_box(&chunk))));
    group.finish();
}

fn reads(c: &mut Criterion) {
    let rig = Rig::new(["cold", "warm"].map(str::to_owned));
    let mut group = c.benchmark_group("read of 128 KiB");
    group.throughput(Throughput::Bytes(CHUNK_BYTES));
    let warm = rig.runtime.block_on(async {
        let warm = rig.object("warm").await;
        read_chunk(&warm, CHUNK_BYTES).await;
        let began = Instant::now();
        while warm.present_bytes() < CHUNK_BYTES {
            assert!(began.elapsed() < SETTLE_LIMIT, "it is never kept");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        warm
    });
    group.bench_function("cached", |b| {
        b.iter(|| rig.runtime.block_on(read_chunk(&warm, 0)));
    });
    let chunk = chunk();
    group.bench_function("from a remote in memory", |b| {
        b.iter_custom(|rounds| {
            rig.runtime.block_on(async {
                let mut took = Duration::ZERO;
                for _ in 0..rounds {
                    let object = rig.replaced("cold", &chunk).await;
                    let began = Instant::now();
                    black_box(read_chunk(&object, CHUNK_BYTES).await);
                    took += began.elapsed();
                }
                took
            })
        });
    });
    group.finish();
}

fn names(c: &mut Criterion) {
    let rig = Rig::new((0..FOLDER_NAMES).map(|n| format!("folder/{n:05}")));
    let folder = rig.runtime.block_on(async {
        let folder = rig.node("folder").await.id;
        rig.tree.ensure_listed(folder).await.unwrap();
        folder
    });
    let mut rng = fastrand::Rng::with_seed(1);
    let mut group = c.benchmark_group("look-up in 10,000 names");
    group.bench_function("there", |b| {
        let name = || format!("{:05}", rng.usize(..FOLDER_NAMES));
        let find = |name: String| {
            let found = rig.tree.child(folder, &name).unwrap();
            assert!(matches!(found, Child::Known(_)));
            found
        };
        b.iter_batched(name, find, criterion::BatchSize::SmallInput);
    });
    group.bench_function("not there", |b| {
        b.iter(|| {
            let found = rig.tree.child(folder, black_box("05000.txt")).unwrap();
            assert!(matches!(found, Child::Absent(_)));
        });
    });
    group.finish();
}

fn pages(c: &mut Criterion) {
    let runtime = runtime();
    let (_store, remote) = runtime.block_on(async {
        let store = EmbeddedStore::start(StoreOptions::default()).await.unwrap();
        // One more, so that the page has a next one, as most have.
        for n in 0..=PAGE_KEYS {
            store.put("bucket", format!("train/class-{:02}/{n:08}.jpg", n % 10), Bytes::new());
        }
        let options = RemoteOptions {
            endpoint_url: Some(store.url()),
            no_sign_request: true,
            ..RemoteOptions::default()
        };
        let (env, metrics) = (CallerEnv::default(), Arc::default());
        let remote = S3Remote::connect("bucket", &options, &env, &metrics).await.unwrap();
        (store, remote)
    });
    let ask = ListRequest { recursive: true, ..ListRequest::default() };
    let mut group = c.benchmark_group("listing");
    group.throughput(Throughput::Elements(PAGE_KEYS as u64));
    group.bench_function("a page of 1,000 keys over S3", |b| {
        b.iter(|| {
            let page = runtime.block_on(remote.list(&ask)).unwrap();
            assert!(page.objects.len() == PAGE_KEYS && page.next.is_some());
            page
        });
    });
    group.finish();
}

criterion_group!(benches, admission, checksum, reads, names, pages);
criterion_main!(benches);
