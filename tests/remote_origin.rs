//! `--origin` over real sockets: a cluster (the stand-in of `tests/common/ais`) before
//! a store of the S3 protocol, and that store itself.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::ais::{Cluster, ClusterOptions, Fault, Gate, Kind, S3Origin, Trouble};
use common::tree::{Tree, noise};
use common::{STEP_TIMEOUT, store::BUCKET, store::Store};
use futures::future::join_all;
use warmfs::admission::Class;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::embedded_store::{Access, Counts, EmbeddedStore, StoreOptions};
use warmfs::metrics::{Counter, RemoteMetrics};
use warmfs::remote::client::RemoteClient;
use warmfs::remote::{Key, ListRequest, ObjectMeta, RemoteError, RemoteUri, connect};

const MIB: u64 = 1 << 20;

/// A small object's key, and its bytes.
const HELLO: &str = "data/hello";

/// A cluster, the store behind it, and a client of both.
struct Setup {
    cluster: Cluster,
    store: EmbeddedStore,
    client: Arc<RemoteClient>,
    metrics: Arc<RemoteMetrics>,
}

/// Starts all of it, with one object.
async fn setup(key: &str, bytes: impl Into<Bytes>) -> Setup {
    let store = start_store(key, bytes).await;
    let cluster = before(&store);
    let (client, metrics) = client(&cluster, &store).await;
    Setup { cluster, store, client, metrics }
}

async fn start_store(key: &str, bytes: impl Into<Bytes>) -> EmbeddedStore {
    let store = EmbeddedStore::start(StoreOptions::default()).await.unwrap();
    store.create_bucket(BUCKET);
    store.put(BUCKET, key, bytes.into());
    store
}

fn before(store: &EmbeddedStore) -> Cluster {
    let origin = Some(("aws".to_owned(), Arc::new(S3Origin::new(&store.url())) as _));
    Cluster::start(3, ClusterOptions { origin, ..ClusterOptions::default() })
}

async fn client(
    cluster: &Cluster,
    origin: &EmbeddedStore,
) -> (Arc<RemoteClient>, Arc<RemoteMetrics>) {
    client_with(cluster, origin, true, &[]).await
}

async fn client_with(
    cluster: &Cluster,
    origin: &EmbeddedStore,
    no_sign_request: bool,
    credentials: &[(&str, &str)],
) -> (Arc<RemoteClient>, Arc<RemoteMetrics>) {
    let uri: RemoteUri = format!("ais://@aws/{BUCKET}").parse().unwrap();
    let options = RemoteOptions {
        origin: Some(format!("s3://{BUCKET}")),
        no_sign_request,
        ..RemoteOptions::default()
    };
    let (cluster, store) = (cluster.url(), origin.url());
    let endpoints = [("AIS_ENDPOINT", cluster.as_str()), ("AWS_ENDPOINT_URL", &store)];
    let env: CallerEnv = endpoints.into_iter().chain(credentials.iter().copied()).collect();
    let metrics = Arc::<RemoteMetrics>::default();
    let remote = connect(&uri, &options, &env, &metrics).await.unwrap();
    // Figures of what is read, not of how it was reached.
    origin.reset_log();
    (Arc::new(RemoteClient::new(remote, Arc::clone(&metrics))), metrics)
}

impl Setup {
    async fn head(&self, key: &str) -> ObjectMeta {
        self.client.head(&Key(key.to_owned())).await.unwrap()
    }

    async fn read(&self, object: &ObjectMeta, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
        let mut reader = self.client.get_range(object.clone(), range, Class::Demand);
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    /// GETs that the store had of us, and not of the cluster, whose are of whole objects.
    fn gets_at_origin(&self) -> usize {
        self.store.counts().get.requests as usize - self.cluster.count(Kind::OriginGet)
    }
}

/// What is counted is what the store's log has, less what the cluster fetched: whole
/// objects of [`HELLO`]'s size.
fn assert_from_origin(metrics: &RemoteMetrics, store: &Counts, by_cluster: usize) {
    let by_cluster = by_cluster as u64;
    let origin = &metrics.from_origin;
    assert_eq!(origin.gets.get(), store.get.requests - by_cluster);
    assert_eq!(origin.bytes.get(), store.get.bytes - by_cluster * HELLO.len() as u64);
}

#[tokio::test]
async fn a_cluster_that_cannot_serve_is_passed_by() {
    for status in [507, 409, 429, 503] {
        let s = setup(HELLO, HELLO).await;
        let object = s.head(HELLO).await;
        s.cluster.inject(Fault::always(Kind::TargetGet, HELLO, Trouble::Status(status)));
        for _ in 0..5 {
            assert_eq!(
                s.read(&object, 0..object.size).await.unwrap(),
                HELLO.as_bytes(),
                "{status}"
            );
        }
        assert_from_origin(&s.metrics, &s.store.counts(), s.cluster.count(Kind::OriginGet));
        let origin = &s.metrics.from_origin;
        let why = [&origin.full, &origin.busy, &origin.throttled].map(Counter::get);
        let expected = match status {
            507 => [5, 0, 0],
            409 => [0, 5, 0],
            _ => [0, 0, 5],
        };
        assert_eq!((why, origin.answers()), (expected, 5), "{status}");
        // Whoever asks for less is left alone for a while.
        if [507, 409].contains(&status) {
            assert_eq!(s.cluster.count(Kind::TargetGet), 5, "{status}");
        }
        assert_eq!(s.metrics.retries.throttled.get(), 0);
    }
}

#[tokio::test]
async fn a_target_that_is_gone_is_passed_by() {
    let s = setup(HELLO, HELLO).await;
    let object = s.head(HELLO).await;
    let target = s.cluster.target_of("aws", BUCKET, HELLO).unwrap();
    s.cluster.stop(target);
    assert_eq!(s.read(&object, 2..7).await.unwrap(), b"ta/he");
    assert_eq!(s.gets_at_origin(), 1);
    // By now the cluster knows.
    assert_eq!(s.read(&object, 2..7).await.unwrap(), b"ta/he");
    assert_eq!(s.gets_at_origin(), 1);
}

#[tokio::test]
async fn a_store_with_other_objects_is_no_origin() {
    let s = setup(HELLO, HELLO).await;
    let other = start_store(HELLO, "data/HELLO").await;
    let (client, metrics) = client(&s.cluster, &other).await;
    let s = Setup { client, metrics, ..s };
    let object = s.head(HELLO).await;
    s.cluster.inject(Fault::next(2, Kind::TargetGet, Trouble::Status(507)));
    assert_eq!(s.read(&object, 0..object.size).await.unwrap(), HELLO.as_bytes());
    assert_eq!(s.metrics.from_origin.answers(), 0);
    s.cluster.inject(Fault::always(Kind::TargetGet, HELLO, Trouble::Status(507)));
    let error = s.read(&object, 0..object.size).await.unwrap_err();
    assert!(error.message.contains("no room for it"), "{error}");
    assert!(error.message.contains("; and the origin: GET s3://bucket/data/hello: "), "{error}");
}

#[tokio::test]
async fn small_ranges_of_a_large_cold_object_do_not_wait_for_all_of_it() {
    let body = noise(1, 64 << 20);
    let s = setup("large", body.clone()).await;
    let object = s.head("large").await;
    let gate = Gate::new();
    s.cluster.inject(Fault::always(Kind::OriginGet, "large", Trouble::Hold(gate.clone())));
    s.cluster.reset_log();
    let ranges: Vec<_> = (0..4).map(|n| n * 9 * MIB..n * 9 * MIB + 2 * MIB).collect();
    let all = join_all(ranges.iter().map(|range| s.read(&object, range.clone()))).await;
    for (range, bytes) in ranges.iter().zip(all) {
        assert!(bytes.unwrap() == body[range.start as usize..range.end as usize], "{range:?}");
    }
    // An eighth of it came from the store, after one look; the next waits.
    assert_eq!(s.store.counts().get.bytes, 8 * MIB);
    let origin = &s.metrics.from_origin;
    let counted = [&origin.gets, &origin.bytes, &origin.cold_range].map(Counter::get);
    assert_eq!((counted, origin.answers()), ([4, 8 * MIB, 4], 4));
    assert_eq!((s.cluster.count(Kind::ProxyHead), s.cluster.count(Kind::ProxyGet)), (1, 0));
    tokio::time::timeout(STEP_TIMEOUT, async {
        while s.cluster.count(Kind::OriginGet) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .expect("the cluster was told to fetch it");
    assert_eq!(s.cluster.count(Kind::Prefetch), 1);
    gate.open();
    let range = 5 * MIB..7 * MIB;
    let bytes = s.read(&object, range.clone()).await.unwrap();
    assert!(bytes == body[range.start as usize..range.end as usize]);
    assert_eq!((s.cluster.count(Kind::ProxyGet), s.cluster.count(Kind::OriginGet)), (1, 1));
    assert!(s.cluster.holds("aws", BUCKET, "large"));
}

#[tokio::test]
async fn a_large_object_that_the_cluster_holds_comes_from_there() {
    let body = noise(1, 64 << 20);
    let s = setup("large", body.clone()).await;
    let object = s.head("large").await;
    // A large range is the cluster's affair.
    assert!(s.read(&object, 0..object.size).await.unwrap() == body);
    assert_eq!(s.cluster.count(Kind::OriginGet), 1);
    s.cluster.reset_log();
    for n in 0..3 {
        assert_eq!(s.read(&object, n..n + 10).await.unwrap(), body[n as usize..n as usize + 10]);
    }
    assert_eq!(s.metrics.from_origin.answers(), 0);
    assert_eq!((s.cluster.count(Kind::ProxyHead), s.cluster.count(Kind::ProxyGet)), (1, 3));
    assert_eq!(s.cluster.count(Kind::Prefetch), 0);
}

#[tokio::test]
async fn without_a_cluster_everything_comes_from_the_origin() {
    let Setup { cluster, store, client, metrics } = setup(HELLO, HELLO).await;
    drop(cluster);
    let ask = ListRequest { prefix: "data/".to_owned(), ..ListRequest::default() };
    let page = client.list(&ask).await.unwrap();
    assert_eq!(page.objects.len(), 1);
    assert_eq!(client.head(&page.objects[0].key).await.unwrap().version, page.objects[0].version);
    let mut reader = client.get_range(page.objects[0].clone(), 0..10, Class::Demand);
    assert_eq!(reader.next().await.unwrap().unwrap(), HELLO);
    assert_eq!((metrics.from_origin.answers(), metrics.get.errors.get()), (3, 0));
    drop(store);
}

/// `--no-sign-request` is about the cloud, and what was pushed about the cluster.
#[tokio::test]
async fn the_cluster_and_its_origin_have_their_own_credentials() {
    let pushed = ("WARMFS_CREDENTIALS", r#"{"token": "of-the-cluster"}"#);
    let keys = [("AWS_ACCESS_KEY_ID", "of-the-origin"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    for (credentials, access) in [
        (&[pushed][..], Access::Public),
        (&[("AIS_AUTHN_TOKEN", "of-the-cluster")], Access::Public),
        (&[pushed, keys[0], keys[1]], Access::Key("of-the-origin".to_owned())),
    ] {
        let signs = access != Access::Public;
        let options = StoreOptions { access, ..StoreOptions::default() };
        let store = EmbeddedStore::start(options).await.unwrap();
        store.create_bucket(BUCKET);
        store.put(BUCKET, HELLO, HELLO.into());
        let origin = Some(("aws".to_owned(), Arc::new(S3Origin::new(&store.url())) as _));
        let token = Some("of-the-cluster".to_owned());
        let cluster =
            Cluster::start(1, ClusterOptions { origin, token, ..ClusterOptions::default() });
        let (client, metrics) = client_with(&cluster, &store, !signs, credentials).await;
        // The cluster's way to its cloud is not signed.
        if !signs {
            client.head(&Key(HELLO.to_owned())).await.unwrap();
            assert_eq!((cluster.count(Kind::ProxyHead), metrics.from_origin.answers()), (1, 0));
        }
        drop(cluster);
        client.head(&Key(HELLO.to_owned())).await.unwrap();
        assert_eq!(metrics.from_origin.answers(), 1);
    }
}

#[test]
fn a_mount_survives_its_cluster() {
    let store = Store::start();
    let tree = Tree::of_all_sizes(0);
    store.put_tree("data/", &tree);
    let cluster = before(&store);
    let mut warmfs = store.warmfs();
    warmfs.set_env("WARMFS_ENDPOINT_URL", &cluster.url());
    warmfs.set_env("AWS_ENDPOINT_URL", &store.url());
    let uri = format!("ais://@aws/{BUCKET}/data");
    let origin = format!("s3://{BUCKET}/data");
    let dir = warmfs.mount_with(&uri, "mnt", &["--origin", &origin, "--no-sign-request"]);
    assert_eq!(std::fs::read(dir.join("a/of-1")).unwrap(), tree.files["a/of-1"]);
    drop(cluster);
    store.reset_log();
    tree.assert_equals(&dir, "from the origin");
    // All of it is the mount's own by now, and the store's log says the same.
    let (status, counts) = (warmfs.status(), store.counts());
    let origin = &status["remote"]["from_origin"];
    assert!(counts.get.requests > 0, "{status}");
    assert_eq!(origin["gets"], counts.get.requests, "{status}");
    assert_eq!(origin["bytes"], counts.get.bytes, "{status}");
    let asked = counts.get.requests + counts.head.requests + counts.list.requests;
    assert_eq!(origin["answers"], asked, "{status}");
    // One may have been on a connection that broke, which is another reason.
    let unreachable = origin["unreachable"].as_u64().unwrap();
    assert!((asked - 1..=asked).contains(&unreachable), "{status}");
    let text = warmfs.ok(&["status"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&format!("from the origin {} GET", counts.get.requests)), "{text}");
    assert!(text.contains(&format!("the cluster was not reached {unreachable}")), "{text}");
    assert_eq!(status["remote"]["get"]["errors"], 0, "{status}");
    warmfs.unmount("mnt");

    let error =
        warmfs.fails(&["mount", "s3://bucket", dir.to_str().unwrap(), "--origin", "s3://b"]);
    assert!(error.contains("--origin is for a cloud bucket behind a cluster"), "{error}");
}
