//! What every remote must do, checked against each of them: a folder, the
//! scripted remote that other tests trust, S3, Google Cloud Storage and Azure over real
//! servers, and AIStore over a stand-in for a cluster.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use async_trait::async_trait;
use common::ais::{Cluster, ClusterOptions, S3Origin};
use common::azurite::Azurite;
use common::gcs::Gcs;
use common::moto::Moto;
use futures::StreamExt;
use warmfs::admission::Class;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::embedded_store::{EmbeddedStore, StoreOptions};
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::RemoteClient;
use warmfs::remote::local::LocalRemote;
use warmfs::remote::scripted::ScriptedRemote;
use warmfs::remote::{
    ErrorKind, Key, ListRequest, ObjectMeta, Remote, RemoteError, RemoteUri, connect,
};

/// A store whose objects the test may change.
#[async_trait]
trait Store: Sync {
    async fn remote(&self) -> Arc<dyn Remote>;
    async fn put(&self, key: &str, bytes: Vec<u8>);
    async fn delete(&self, key: &str);
    /// Whether it may still serve the bytes of a version that is gone.
    fn keeps_what_is_gone(&self) -> bool {
        false
    }
    /// Whether the store itself can hold such a key.
    fn can_hold(&self, _key: &str) -> bool {
        true
    }
    /// Whether it counts folders when it cuts a listing into pages.
    fn pages_folders(&self) -> bool {
        true
    }
    /// Whether it tells a deleted version from a replaced one.
    fn tells_deleted(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    struct Folder(tempfile::TempDir);
    #[async_trait]
    impl Store for Folder {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::new(LocalRemote::open(self.0.path()).await.unwrap())
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            let path = self.0.path().join(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        async fn delete(&self, key: &str) {
            fs::remove_file(self.0.path().join(key)).unwrap();
        }
        fn can_hold(&self, key: &str) -> bool {
            !key.contains("//") && !key.ends_with('/')
        }
    }
    check(&Folder(tempfile::tempdir().unwrap())).await;
}

#[tokio::test]
async fn the_scripted_remote_keeps_the_contract() {
    struct Scripted(ScriptedRemote);
    #[async_trait]
    impl Store for Scripted {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::new(self.0.clone())
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put(key, bytes);
        }
        async fn delete(&self, key: &str) {
            self.0.delete(key);
        }
    }
    check(&Scripted(ScriptedRemote::new())).await;
}

#[tokio::test]
async fn s3_keeps_the_contract() {
    struct S3(Moto, Arc<dyn Remote>);
    #[async_trait]
    impl Store for S3 {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::clone(&self.1)
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put("bucket", key, bytes).await;
        }
        async fn delete(&self, key: &str) {
            self.0.delete("bucket", key).await;
        }
        fn can_hold(&self, key: &str) -> bool {
            // Moto's router finds no route for it; tests/remote_wire.rs has such a key.
            !key.contains('\n')
        }
    }
    let moto = Moto::start();
    moto.create_bucket("bucket").await;
    let uri: RemoteUri = "s3://bucket/some/prefix".parse().unwrap();
    let metrics = Arc::new(RemoteMetrics::default());
    let remote = connect(&uri, &moto.options(), &moto.env(), &metrics).await.unwrap();
    assert_eq!(remote.id().0, format!("s3://{}/bucket", moto.endpoint().replace("http://", "")));
    assert_eq!(metrics.list.requests.get(), 1);

    let uri: RemoteUri = "s3://missing".parse().unwrap();
    let error = connect(&uri, &moto.options(), &moto.env(), &metrics).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchBucket, "{error}");
    check(&S3(moto, remote)).await;
}

/// A cluster with an empty bucket `bucket` of its own, in names of folders with or
/// without their `/`.
fn own_bucket(options: ClusterOptions) -> Cluster {
    let cluster = Cluster::start(3, options);
    cluster.create_bucket("bucket");
    cluster
}

async fn ais(cluster: &Cluster, uri: &str) -> Arc<dyn Remote> {
    let uri: RemoteUri = uri.parse().unwrap();
    let env: CallerEnv = [("AIS_ENDPOINT", cluster.url())].into_iter().collect();
    connect(&uri, &RemoteOptions::default(), &env, &Arc::default()).await.unwrap()
}

#[tokio::test]
async fn a_bucket_of_a_clusters_own_keeps_the_contract() {
    struct Own(Cluster, Arc<dyn Remote>);
    #[async_trait]
    impl Store for Own {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::clone(&self.1)
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put("bucket", key, bytes);
        }
        async fn delete(&self, key: &str) {
            assert!(self.0.delete("bucket", key));
        }
    }
    for (bare_folders, omits_empty) in [(false, false), (false, true)] {
        let cluster =
            own_bucket(ClusterOptions { bare_folders, omits_empty, ..ClusterOptions::default() });
        let remote = ais(&cluster, "ais://bucket/some/prefix").await;
        let host = cluster.url().replace("http://", "");
        assert_eq!(remote.id().0, format!("ais://{host}/bucket"));
        check(&Own(cluster, remote)).await;
    }
}

#[tokio::test]
async fn a_cloud_bucket_behind_a_cluster_keeps_the_contract() {
    struct Cloud(EmbeddedStore, Arc<dyn Remote>);
    #[async_trait]
    impl Store for Cloud {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::clone(&self.1)
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put("bucket", key, bytes.into());
        }
        async fn delete(&self, key: &str) {
            assert!(self.0.delete("bucket", key));
        }
        fn keeps_what_is_gone(&self) -> bool {
            // In the cluster's copy.
            true
        }
    }
    let store = EmbeddedStore::start(StoreOptions::default()).await.unwrap();
    store.create_bucket("bucket");
    let origin = S3Origin::new(&store.url());
    let origin = Some(("aws".to_owned(), Arc::new(origin) as _));
    let cluster = Cluster::start(3, ClusterOptions { origin, ..ClusterOptions::default() });
    let remote = ais(&cluster, "ais://@aws/bucket").await;
    assert_eq!(
        remote.id().0,
        format!("ais://{}/@aws/bucket", cluster.url().replace("http://", ""))
    );
    check(&Cloud(store, remote)).await;
}

#[tokio::test]
async fn google_cloud_storage_keeps_the_contract() {
    struct Google(Gcs, Arc<dyn Remote>);
    #[async_trait]
    impl Store for Google {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::clone(&self.1)
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put("bucket", key, bytes).await;
        }
        async fn delete(&self, key: &str) {
            self.0.delete("bucket", key).await;
        }
        fn pages_folders(&self) -> bool {
            // tests/remote_gcs.rs has a store that does.
            false
        }
    }
    let gcs = Gcs::start();
    gcs.create_bucket("bucket").await;
    let uri: RemoteUri = "gs://bucket/some/prefix".parse().unwrap();
    let (env, metrics) = (CallerEnv::default(), Arc::new(RemoteMetrics::default()));
    let remote = connect(&uri, &gcs.options(), &env, &metrics).await.unwrap();
    assert_eq!(remote.id().0, format!("gs://{}/bucket", gcs.endpoint().replace("http://", "")));
    assert_eq!(metrics.list.requests.get(), 1);

    let uri: RemoteUri = "gs://missing".parse().unwrap();
    let error = connect(&uri, &gcs.options(), &env, &metrics).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchBucket, "{error}");
    let google = Google(gcs, remote);
    check(&google).await;

    // Stored as gzip: the bytes, sizes and ranges are those of what is stored.
    let packed: Vec<u8> = GZIP_OF_HELLO.to_vec();
    google.0.put_gzip("bucket", "packed", packed.clone()).await;
    let object = head(&google, "packed").await.unwrap();
    assert_eq!(object.size, packed.len() as u64);
    assert_eq!(read(&google, &object).await.unwrap(), packed);
    let mut reader = client(&google).await.get_range(object, 3..9, Class::Demand);
    assert_eq!(reader.next().await.unwrap().unwrap(), packed[3..9]);
}

/// `printf hello | gzip -n`.
const GZIP_OF_HELLO: [u8; 25] =
    *b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xcbH\xcd\xc9\xc9\x07\0\x86\xa6\x106\x05\0\0\0";

#[tokio::test]
async fn connect_opens_folders_too() {
    let dir = tempfile::tempdir().unwrap();
    let uri: RemoteUri = format!("file://{}", dir.path().display()).parse().unwrap();
    let (options, env, metrics) = (Default::default(), CallerEnv::default(), Default::default());
    assert!(connect(&uri, &options, &env, &metrics).await.is_ok());
    dir.close().unwrap();
    let error = connect(&uri, &options, &env, &metrics).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchBucket);
}

#[tokio::test]
async fn azure_keeps_the_contract() {
    struct Azure(Azurite, Arc<dyn Remote>);
    #[async_trait]
    impl Store for Azure {
        async fn remote(&self) -> Arc<dyn Remote> {
            Arc::clone(&self.1)
        }
        async fn put(&self, key: &str, bytes: Vec<u8>) {
            self.0.put("container", key, bytes).await;
        }
        async fn delete(&self, key: &str) {
            self.0.delete("container", key).await;
        }
        fn can_hold(&self, key: &str) -> bool {
            // Azure takes it for a slash.
            !key.contains('\\')
        }
        fn tells_deleted(&self) -> bool {
            // Azurite looks at the condition before it looks for the blob (its issue
            // 2751); tests/remote_azure.rs has the answer of the real service.
            false
        }
    }
    let azurite = Azurite::start().await;
    azurite.create_container("container", false).await;
    let uri: RemoteUri = "az://devstoreaccount1/container/some/prefix".parse().unwrap();
    let metrics = Arc::new(RemoteMetrics::default());
    let remote = connect(&uri, &azurite.options(), &azurite.env(), &metrics).await.unwrap();
    let place = azurite.endpoint().replace("http://", "");
    assert_eq!(remote.id().0, format!("az://{place}/container"));
    assert_eq!(metrics.list.requests.get(), 1);

    let uri: RemoteUri = "az://devstoreaccount1/missing".parse().unwrap();
    let error = connect(&uri, &azurite.options(), &azurite.env(), &metrics).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchBucket, "{error}");
    check(&Azure(azurite, remote)).await;
}

/// Objects put at once, where a test wants thousands.
const PUTS_AT_ONCE: usize = 32;

/// The contract.
async fn check(store: &dyn Store) {
    check_objects(store).await;
    check_changes(store).await;
    check_listings(store).await;
    check_odd_keys(store).await;
    check_many(store).await;
    check_cancelled(store).await;
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 31 / 7) as u8).collect()
}

async fn client(store: &dyn Store) -> Arc<RemoteClient> {
    Arc::new(RemoteClient::new(store.remote().await, Arc::default()))
}

async fn head(store: &dyn Store, key: &str) -> Result<ObjectMeta, RemoteError> {
    store.remote().await.head(&Key(key.into())).await
}

async fn read(store: &dyn Store, object: &ObjectMeta) -> Result<Vec<u8>, RemoteError> {
    let mut reader = client(store).await.get_range(object.clone(), 0..object.size, Class::Demand);
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn check_objects(store: &dyn Store) {
    let content = bytes(3 << 20);
    store.put("objects/large", content.clone()).await;
    store.put("objects/empty", Vec::new()).await;
    let large = head(store, "objects/large").await.unwrap();
    assert_eq!((large.key.0.as_str(), large.size), ("objects/large", 3 << 20));
    assert!(large.mtime.elapsed().is_ok_and(|age| age.as_secs() < 10 * 365 * 86_400));
    assert!(!large.version.0.contains('"'));
    for range in [0..large.size, 0..1, large.size - 1..large.size, 1_000_000..2_500_001] {
        let answer = store.remote().await.get_range(&large, range.clone()).await.unwrap();
        assert_eq!((&answer.version, answer.total_size), (&large.version, large.size));
        let mut reader = client(store).await.get_range(large.clone(), range.clone(), Class::Demand);
        let mut all = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            all.extend_from_slice(&piece);
        }
        assert!(all == content[range.start as usize..range.end as usize], "{range:?}");
    }
    let empty = head(store, "objects/empty").await.unwrap();
    assert_eq!(empty.size, 0);
    assert!(read(store, &empty).await.unwrap().is_empty());
    for key in ["objects/missing", "objects", "objects/large/below"] {
        assert_eq!(head(store, key).await.unwrap_err().kind, ErrorKind::NotFound, "{key}");
    }
}

async fn check_changes(store: &dyn Store) {
    store.put("changes/a", bytes(1000)).await;
    let old = head(store, "changes/a").await.unwrap();
    assert_eq!(read(store, &old).await.unwrap(), bytes(1000));
    store.put("changes/a", bytes(2000)).await;
    check_gone(store, &old, ErrorKind::Changed).await;
    let new = head(store, "changes/a").await.unwrap();
    assert_ne!(new.version, old.version);
    assert_eq!(read(store, &new).await.unwrap(), bytes(2000));
    store.delete("changes/a").await;
    let gone = if store.tells_deleted() { ErrorKind::NotFound } else { ErrorKind::Changed };
    check_gone(store, &new, gone).await;
    assert_eq!(head(store, "changes/a").await.unwrap_err().kind, ErrorKind::NotFound);
}

/// Reading a version that the store has no more fails, or else brings its very bytes.
async fn check_gone(store: &dyn Store, object: &ObjectMeta, kind: ErrorKind) {
    match read(store, object).await {
        Ok(all) if store.keeps_what_is_gone() => assert_eq!(all, bytes(object.size as usize)),
        answer => assert_eq!(answer.unwrap_err().kind, kind),
    }
}

async fn check_listings(store: &dyn Store) {
    // `a.txt`, `a/` and `a0` sort in this order only if `/` takes part.
    let keys = ["l/a-b", "l/a.txt", "l/a/x", "l/a/y/z", "l/a0", "l/b/x", "l/c", "l/é"];
    for (n, key) in keys.iter().enumerate() {
        store.put(key, bytes(n)).await;
    }
    for max_keys in [None, Some(1), Some(2), Some(3)] {
        let ask = |prefix: &str, recursive| ListRequest {
            prefix: prefix.into(),
            recursive,
            max_keys,
            ..Default::default()
        };
        let after = |after: &str, recursive| ListRequest {
            start_after: Some(after.into()),
            ..ask("l/", recursive)
        };
        assert_eq!(list(store, ask("l/", true)).await, names(&keys));
        assert_eq!(list(store, ask("l/a", true)).await, names(&keys[..5]));
        assert_eq!(list(store, after("l/a.txt", true)).await, names(&keys[2..]));
        assert_eq!(list(store, after("l/a/x", true)).await, names(&keys[3..]));
        if max_keys.is_some() && !store.pages_folders() {
            continue;
        }
        let flat = names(&["l/a-b", "l/a.txt", "l/a/", "l/a0", "l/b/", "l/c", "l/é"]);
        assert_eq!(list(store, ask("l/", false)).await, flat);
        assert_eq!(list(store, ask("l/a/", false)).await, names(&["l/a/x", "l/a/y/"]));
        assert_eq!(list(store, ask("l/missing/", false)).await, names(&[]));
        // A folder is an entry like others, wherever its keys are.
        for folder in ["l/a/", "l/a/x"] {
            assert_eq!(list(store, after(folder, false)).await, flat[3..]);
        }
        assert_eq!(list(store, after("l/a0", false)).await, names(&["l/b/", "l/c", "l/é"]));
        assert_eq!(list(store, after("l/b0", false)).await, names(&["l/c", "l/é"]));
    }
    let page = store
        .remote()
        .await
        .list(&ListRequest { prefix: "l/".into(), recursive: true, ..Default::default() })
        .await
        .unwrap();
    for listed in page.objects {
        let object = head(store, &listed.key.0).await.unwrap();
        assert_eq!((&listed.size, &listed.version), (&object.size, &object.version));
        // What a listing says is enough to read.
        assert_eq!(read(store, &listed).await.unwrap(), bytes(listed.size as usize));
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Every entry over all pages: sorted within and across pages, none twice.
async fn list(store: &dyn Store, mut request: ListRequest) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    // Who cannot begin after a key is not asked to, and begins at the first.
    let can_begin = store.remote().await.capabilities().list_start_after;
    let not_before = request.start_after.take_if(|_| !can_begin);
    loop {
        let page = store.remote().await.list(&request).await.unwrap();
        assert!(page.prefixes.iter().all(|prefix| prefix.ends_with('/')));
        let objects = page.objects.into_iter().map(|object| object.key.0);
        let entries: Vec<_> = objects.chain(page.prefixes).collect();
        if let Some(max_keys) = request.max_keys {
            assert!(entries.len() <= usize::from(max_keys));
        }
        let sorted: BTreeSet<_> = entries.iter().cloned().collect();
        assert_eq!(sorted.len(), entries.len());
        assert!(all.last().is_none_or(|last| sorted.first().is_none_or(|first| last < first)));
        all.extend(sorted);
        request.continuation = page.next;
        if request.continuation.is_none() {
            break;
        }
    }
    all.retain(|entry| not_before.as_ref().is_none_or(|after| entry > after));
    all
}

async fn check_odd_keys(store: &dyn Store) {
    let keys = [
        "odd/ space ",
        "odd/100%",
        "odd/a+b",
        "odd/a&b=c?d#e",
        "odd/a%2Fb",
        "odd/back\\slash",
        "odd/quote\"'<>",
        "odd/new\nline",
        "odd/日本語/ü",
        "odd/~!@$^*(){}[]|;:,",
        "odd/...",
        "odd/a//b",
        "odd/folder/",
    ];
    let keys: Vec<_> = keys.into_iter().filter(|key| store.can_hold(key)).collect();
    for key in &keys {
        store.put(key, key.as_bytes().to_vec()).await;
    }
    let ask = ListRequest { prefix: "odd/".into(), recursive: true, ..Default::default() };
    let sorted: BTreeSet<_> = keys.iter().map(|key| (*key).to_owned()).collect();
    assert_eq!(list(store, ask.clone()).await, sorted.into_iter().collect::<Vec<_>>());
    let paged = list(store, ListRequest { max_keys: Some(2), ..ask }).await;
    assert_eq!(paged.len(), keys.len());
    for key in keys {
        let object = head(store, key).await.unwrap();
        assert_eq!(read(store, &object).await.unwrap(), key.as_bytes(), "{key:?}");
    }
    let below = ListRequest { prefix: "odd/日本語/".into(), ..Default::default() };
    assert_eq!(list(store, below).await, ["odd/日本語/ü"]);
}

/// More keys than a page of any store has.
async fn check_many(store: &dyn Store) {
    let keys: Vec<String> = (0..5_050).map(|n| format!("many/{n:05}")).collect();
    let puts = futures::stream::iter(&keys).map(|key| store.put(key, b"x".to_vec()));
    puts.buffer_unordered(PUTS_AT_ONCE).collect::<Vec<()>>().await;
    for recursive in [true, false] {
        let ask = ListRequest { prefix: "many/".into(), recursive, ..Default::default() };
        assert_eq!(list(store, ask.clone()).await, keys);
        let ask = ListRequest { max_keys: Some(1_001), ..ask };
        assert_eq!(list(store, ask).await, keys);
    }
}

/// A reader that goes away in the middle leaves a remote that others read from.
async fn check_cancelled(store: &dyn Store) {
    let content = bytes(3 << 20);
    store.put("cancelled", content.clone()).await;
    let object = head(store, "cancelled").await.unwrap();
    let client = client(store).await;
    for _ in 0..40 {
        let mut reader = client.get_range(object.clone(), 0..object.size, Class::Demand);
        assert!(reader.next().await.unwrap().is_some());
        drop(reader);
        // And one that has not even begun.
        let mut reader = client.get_range(object.clone(), 0..object.size, Class::Demand);
        let _ = futures::poll!(std::pin::pin!(reader.next()));
    }
    assert!(read(store, &object).await.unwrap() == content);
}
