//! `ais://` over real sockets: redirects and what they may carry, tokens, versions,
//! and all the ways in which a cluster says no. The cluster is the stand-in of
//! `tests/common/ais`, or a stub where it has to misbehave.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::STEP_TIMEOUT;
use common::ais::{Cluster, ClusterOptions, Fault, Gate, Kind, S3Origin, Trouble};
use common::fronts::{Front, tls_file};
use common::stub::{Reply, Request, Stub};
use warmfs::admission::Class;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::embedded_store::{EmbeddedStore, StoreOptions};
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::{Limits, RemoteClient};
use warmfs::remote::retry::Backoff;
use warmfs::remote::{
    ErrorKind, Key, ListRequest, ObjectMeta, Remote, RemoteError, RemoteUri, Version, connect,
};

const MS: Duration = Duration::from_millis(1);

/// The remote of `uri` at the cluster of `url`, with more variables.
async fn open(url: &str, uri: &str, env: &[(&str, &str)]) -> Result<Arc<dyn Remote>, RemoteError> {
    let uri: RemoteUri = uri.parse().unwrap();
    let env: CallerEnv = [("AIS_ENDPOINT", url)].iter().chain(env).copied().collect();
    connect(&uri, &RemoteOptions::default(), &env, &Arc::default()).await
}

/// A cluster of three targets before a store with a bucket `bucket`.
async fn before_a_store(change: impl FnOnce(&mut ClusterOptions)) -> (EmbeddedStore, Cluster) {
    let store = EmbeddedStore::start(StoreOptions::default()).await.unwrap();
    store.create_bucket("bucket");
    let origin = Some(("aws".to_owned(), Arc::new(S3Origin::new(&store.url())) as _));
    let mut options = ClusterOptions { origin, ..ClusterOptions::default() };
    change(&mut options);
    (store, Cluster::start(3, options))
}

fn own(change: impl FnOnce(&mut ClusterOptions)) -> Cluster {
    let mut options = ClusterOptions::default();
    change(&mut options);
    let cluster = Cluster::start(3, options);
    cluster.create_bucket("bucket");
    cluster
}

/// A client that does not wait long before it tries again.
fn client(remote: Arc<dyn Remote>) -> (Arc<RemoteClient>, Arc<RemoteMetrics>) {
    let metrics = Arc::<RemoteMetrics>::default();
    let backoff = Backoff { first_delay: MS, max_delay: MS, ..Backoff::default() };
    let limits = Limits { backoff, ..Limits::default() };
    let client = RemoteClient::with_limits(remote, Arc::clone(&metrics), limits);
    (Arc::new(client), metrics)
}

async fn head(remote: &Arc<dyn Remote>, key: &str) -> Result<ObjectMeta, RemoteError> {
    remote.head(&Key(key.to_owned())).await
}

async fn read_with(client: &Arc<RemoteClient>, of: &ObjectMeta) -> Result<Vec<u8>, RemoteError> {
    let mut reader = client.get_range(of.clone(), 0..of.size, Class::Demand);
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

async fn read(remote: &Arc<dyn Remote>, of: &ObjectMeta) -> Result<Vec<u8>, RemoteError> {
    read_with(&client(Arc::clone(remote)).0, of).await
}

fn object(size: u64, version: &str) -> ObjectMeta {
    ObjectMeta {
        key: Key("a b%2B+/é".to_owned()),
        size,
        version: Version(version.to_owned()),
        mtime: std::time::SystemTime::UNIX_EPOCH,
    }
}

/// What a target answers to a GET of the first half of ten bytes.
fn half() -> Reply {
    let headers = [("content-range", "bytes 0-4/10"), ("ais-version", "1")];
    Reply::new(206, &headers, "01234")
}

// Redirects.

#[tokio::test]
async fn a_target_gets_the_location_and_the_range_and_no_token() {
    // Signed, in an order and with an encoding that are the proxy's own.
    let place = "/v1/objects/bucket/a%20b%252B+/%c3%a9?z=1&pid=p%5b1%5D&sig=%2b%2F=&utm=&uuid=";
    let target = Stub::start(|_| half()).await;
    let location = format!("{}{place}", target.url());
    let proxy = Stub::start(move |_| Reply::new(301, &[("location", &location)], "moved")).await;
    let env = [("AIS_AUTHN_TOKEN", "hidden-token")];
    let remote = open(proxy.url(), "ais://bucket", &env).await.unwrap();
    for _ in 0..2 {
        remote.get_range(&object(10, "1-"), 0..5).await.unwrap();
    }
    let asked = proxy.requests();
    assert_eq!(asked.len(), 2, "a redirect is not remembered");
    for request in &asked {
        assert_eq!(request.target(), "/v1/objects/bucket/a%20b%252B%2B/%C3%A9?provider=ais");
        assert_eq!(request.header("authorization"), Some("Bearer hidden-token"));
        assert_eq!(request.header("range"), Some("bytes=0-4"));
    }
    for request in &target.requests() {
        assert_eq!(request.target(), place);
        assert!(!request.head.contains("hidden-token"), "{}", request.head);
        assert_eq!(request.header("range"), Some("bytes=0-4"));
    }
}

#[tokio::test]
async fn a_head_follows_its_redirect_as_a_head() {
    let target = Stub::start(|_| {
        Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 10\r\nais-version: 1\r\n\r\n")
    })
    .await;
    let location = format!("{}/there?sig=1", target.url());
    let proxy = Stub::start(move |_| Reply::new(307, &[("location", &location)], "")).await;
    let remote = open(proxy.url(), "ais://@gcp/bucket", &[]).await.unwrap();
    let error = head(&remote, "key").await.unwrap_err();
    assert!(error.message.contains("no etag"), "{error}");
    assert_eq!(target.requests()[0].method(), "HEAD");
    let expected = "/v1/objects/bucket/key?provider=gcp&presence=0&latest-ver=true";
    assert_eq!(proxy.requests()[0].target(), expected);
}

#[tokio::test]
async fn a_loop_of_redirects_ends_with_one_line() {
    let cluster = own(|_| ());
    cluster.put("bucket", "key", "bytes");
    let remote = open(&cluster.url(), "ais://bucket", &[]).await.unwrap();
    let meta = head(&remote, "key").await.unwrap();
    for on in [Kind::ProxyGet, Kind::TargetGet] {
        cluster.inject(Fault::next(10, on, Trouble::RedirectLoop));
        cluster.reset_log();
        let error = read(&remote, &meta).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.starts_with("GET ais://bucket/key: "), "{error}");
        assert!(cluster.log().len() <= 6, "{:?}", cluster.log());
    }
}

// Tokens.

#[tokio::test]
async fn a_cluster_that_wants_a_token_gets_it() {
    let cluster = own(|options| options.token = Some("right".to_owned()));
    cluster.put("bucket", "key", "bytes");
    let right = open(&cluster.url(), "ais://bucket", &[("AIS_AUTHN_TOKEN", "right")]).await;
    let right = right.unwrap();
    let page = right.list(&ListRequest::default()).await.unwrap();
    assert_eq!(read(&right, &page.objects[0]).await.unwrap(), b"bytes");
    for env in [&[][..], &[("AIS_AUTHN_TOKEN", "hidden-wrong")]] {
        let remote = open(&cluster.url(), "ais://bucket", env).await.unwrap();
        for error in [
            head(&remote, "key").await.unwrap_err(),
            remote.list(&ListRequest::default()).await.unwrap_err(),
            read(&remote, &page.objects[0]).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
            assert!(error.message.contains("AIS_AUTHN_TOKEN_FILE"), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_token_file_is_read_again_when_its_token_is_refused() {
    let is_renewed = Arc::new(AtomicBool::new(false));
    let renewed = Arc::clone(&is_renewed);
    let proxy = Stub::start(move |request: &Request| {
        let wanted = if renewed.load(Ordering::SeqCst) { "Bearer new" } else { "Bearer old" };
        match request.header("authorization") == Some(wanted) {
            true => half(),
            false => Reply::new(401, &[], r#"{"status":401,"message":"token expired"}"#),
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "{\"token\":\"old\"}").unwrap();
    let env = [("AIS_AUTHN_TOKEN_FILE", file.path().to_str().unwrap())];
    let remote = open(proxy.url(), "ais://bucket", &env).await.unwrap();
    let get = || async { remote.get_range(&object(10, "1-"), 0..5).await.map(drop) };
    get().await.unwrap();
    is_renewed.store(true, Ordering::SeqCst);
    std::fs::write(file.path(), "new\n").unwrap();
    get().await.unwrap();
    assert_eq!(proxy.requests().len(), 3, "the refused one was made again");
    get().await.unwrap();
    assert_eq!(proxy.requests().len(), 4);

    std::fs::remove_file(file.path()).unwrap();
    let gone = open(proxy.url(), "ais://bucket", &env).await.unwrap();
    let error = head(&gone, "key").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("AIS_AUTHN_TOKEN_FILE="), "{error}");
    assert_eq!(proxy.requests().len(), 4, "nothing is asked without the token that was named");
}

// TLS.

#[tokio::test]
async fn a_cluster_is_trusted_as_its_variables_say() {
    let proxy = Stub::start(|_| half()).await;
    let plain = Front::tls(proxy.url(), "server.pem").await;
    let strict = Front::tls_for_known_clients(proxy.url()).await;
    let expired = Front::tls(proxy.url(), "expired.pem").await;
    let file = |name| tls_file(name).to_str().unwrap().to_owned();
    let (ca, certificate, key) = (file("ca.pem"), file("server.pem"), file("server.key"));
    let ca = ("AIS_CLIENT_CA", ca.as_str());
    let own = [("AIS_CRT", certificate.as_str()), ("AIS_CRT_KEY", key.as_str())];
    let get = async |front: &Front, env: &[(&str, &str)]| {
        let url = format!("https://{}", front.address());
        let remote = open(&url, "ais://bucket", env).await?;
        remote.get_range(&object(10, "1-"), 0..5).await.map(drop)
    };
    get(&plain, &[ca]).await.unwrap();
    get(&strict, &[ca, own[0], own[1]]).await.unwrap();
    get(&expired, &[("AIS_SKIP_VERIFY_CRT", "true")]).await.unwrap();
    for (front, env) in [(&plain, &[][..]), (&expired, &[ca]), (&strict, &[ca])] {
        let error = get(front, env).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains("TLS"), "{error}");
    }
    let error = get(&plain, &own[..1]).await.unwrap_err();
    assert!(error.message.contains("go together"), "{error}");
}

// Versions.

#[tokio::test]
async fn a_copy_that_is_older_than_the_cloud_is_not_taken_for_it() {
    let (store, cluster) = before_a_store(|_| ()).await;
    let remote = open(&cluster.url(), "ais://@aws/bucket", &[]).await.unwrap();
    store.put("bucket", "key", "first".into());
    let old = head(&remote, "key").await.unwrap();
    assert_eq!(read(&remote, &old).await.unwrap(), b"first");

    store.put("bucket", "key", "the second".into());
    let page = remote.list(&ListRequest::default()).await.unwrap();
    let new = &page.objects[0];
    assert_ne!(new.version, old.version);
    assert_eq!(read(&remote, &old).await.unwrap(), b"first", "the cluster still has it");
    assert_eq!(read(&remote, new).await.unwrap(), b"the second");
    assert_eq!(head(&remote, "key").await.unwrap(), *new);
    assert_eq!(read(&remote, &old).await.unwrap_err().kind, ErrorKind::Changed);

    store.delete("bucket", "key");
    let error = head(&remote, "key").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn an_object_that_was_put_anew_is_another_one() {
    let cluster = own(|_| ());
    let remote = open(&cluster.url(), "ais://bucket", &[]).await.unwrap();
    cluster.put("bucket", "key", "first");
    let old = head(&remote, "key").await.unwrap();
    // Its number begins again.
    cluster.delete("bucket", "key");
    cluster.put("bucket", "key", "other");
    let new = head(&remote, "key").await.unwrap();
    assert_ne!(old.version, new.version);
    assert_eq!(read(&remote, &old).await.unwrap_err().kind, ErrorKind::Changed);
    assert_eq!(read(&remote, &new).await.unwrap(), b"other");
}

// What a cluster says no with.

#[tokio::test]
async fn what_passes_is_asked_again() {
    let (store, cluster) = before_a_store(|_| ()).await;
    store.put("bucket", "key", "bytes".into());
    let remote = open(&cluster.url(), "ais://@aws/bucket", &[]).await.unwrap();
    let meta = head(&remote, "key").await.unwrap();
    for (status, words) in [
        (507, "the cluster has no room for it"),
        (409, "others are fetching it"),
        (429, "the store answered 429"),
        (503, "the store answered 503"),
    ] {
        let trouble = Trouble::Status(status);
        cluster.inject(Fault::next(1, Kind::TargetGet, trouble.clone()));
        let error = remote.get_range(&meta, 0..5).await.unwrap_err();
        assert!(error.is_retryable(), "{error}");
        assert!(error.message.contains(words), "{error}");
        let is_throttled = matches!(error.kind, ErrorKind::Throttled { .. });
        assert_eq!(is_throttled, [429, 503].contains(&status));

        cluster.inject(Fault::next(3, Kind::TargetGet, trouble));
        let (client, metrics) = client(Arc::clone(&remote));
        assert_eq!(read_with(&client, &meta).await.unwrap(), b"bytes");
        assert_eq!(metrics.get.requests.get(), 4, "{status}");
    }
    cluster.inject(Fault::next(1, Kind::TargetGet, Trouble::RetryAfter(429, 7)));
    let error = remote.get_range(&meta, 0..5).await.unwrap_err();
    let retry_after = Some(Duration::from_secs(7));
    assert_eq!(error.kind, ErrorKind::Throttled { retry_after });
}

#[tokio::test]
async fn what_is_gone_is_not_found() {
    let (store, cluster) = before_a_store(|_| ()).await;
    store.put("bucket", "key", "bytes".into());
    let remote = open(&cluster.url(), "ais://@aws/bucket", &[]).await.unwrap();
    let meta = head(&remote, "key").await.unwrap();
    for on in [Kind::TargetGet, Kind::TargetHead] {
        cluster.inject(Fault::next(1, on, Trouble::Status(410)));
    }
    let error = read(&remote, &meta).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert_eq!(head(&remote, "key").await.unwrap_err().kind, ErrorKind::NotFound);
    for uri in ["ais://missing", "ais://@gcp/bucket"] {
        let remote = open(&cluster.url(), uri, &[]).await.unwrap();
        let error = remote.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSuchBucket, "{error}");
        assert!(error.message.contains("check the bucket's name and AIS_ENDPOINT"), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_read_on() {
    let cluster = own(|_| ());
    let bytes: Vec<u8> = (0..500_000_u32).map(|n| (n / 7) as u8).collect();
    cluster.put("bucket", "key", bytes.clone());
    let remote = open(&cluster.url(), "ais://bucket", &[]).await.unwrap();
    let meta = head(&remote, "key").await.unwrap();
    cluster.inject(Fault::next(1, Kind::TargetGet, Trouble::ResetAfter(200_000)));
    assert!(read(&remote, &meta).await.unwrap() == bytes);
    cluster.inject(Fault::next(1, Kind::TargetGet, Trouble::StallAfter(200_000)));
    let limits = Limits { stall: Duration::from_millis(100), ..Limits::default() };
    let quick = RemoteClient::with_limits(remote, Arc::default(), limits);
    assert!(read_with(&Arc::new(quick), &meta).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_nothing_behind() {
    let (store, cluster) = before_a_store(|_| ()).await;
    store.put("bucket", "key", "bytes".into());
    let remote = open(&cluster.url(), "ais://@aws/bucket", &[]).await.unwrap();
    let meta = head(&remote, "key").await.unwrap();
    let gate = Gate::new();
    cluster.inject(Fault::next(1, Kind::OriginGet, Trouble::Hold(gate.clone())));
    let (client, metrics) = client(Arc::clone(&remote));
    {
        let mut reader = client.get_range(meta.clone(), 0..5, Class::Demand);
        let reached = async {
            while cluster.count(Kind::OriginGet) == 0 {
                tokio::time::sleep(MS).await;
            }
        };
        tokio::select! {
            _ = reader.next() => panic!("the cold object is held"),
            reached = tokio::time::timeout(STEP_TIMEOUT, reached) => reached.unwrap(),
        }
    }
    gate.open();
    assert_eq!(read(&remote, &meta).await.unwrap(), b"bytes");
    assert_eq!(metrics.get.requests.get(), 1);
    assert_eq!((cluster.count(Kind::TargetGet), cluster.count(Kind::OriginGet)), (2, 1));
    assert_eq!(Arc::strong_count(&client), 1, "a task still has it");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named() {
    let gone = Stub::start(|_| half()).await.url().to_owned();
    let remote = open(&gone, "ais://bucket", &[]).await.unwrap();
    let error = head(&remote, "key").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.message.contains("check the network and AIS_ENDPOINT"), "{error}");
    let error = open("", "ais://bucket", &[]).await.unwrap_err();
    assert!(error.message.contains("name one of its proxies"), "{error}");
}

// Listings.

async fn list(remote: &Arc<dyn Remote>, recursive: bool) -> (Vec<String>, usize) {
    let mut request = ListRequest { prefix: "p/".to_owned(), recursive, ..ListRequest::default() };
    let (mut names, mut pages) = (Vec::new(), 0);
    loop {
        let page = remote.list(&request).await.unwrap();
        names.extend(page.objects.into_iter().map(|object| object.key.0));
        names.extend(page.prefixes);
        pages += 1;
        request.continuation = page.next;
        if request.continuation.is_none() {
            names.sort();
            return (names, pages);
        }
    }
}

#[tokio::test]
async fn thousands_of_keys_are_listed_page_by_page() {
    let (store, cloud) = before_a_store(|_| ()).await;
    let own = own(|_| ());
    let mut names = Vec::new();
    for n in 0..5_100 {
        let name = format!("p/{n:05}");
        store.put("bucket", name.as_str(), "x".into());
        own.put("bucket", name.as_str(), "x");
        names.push(name);
    }
    for (cluster, uri) in [(&cloud, "ais://@aws/bucket"), (&own, "ais://bucket")] {
        let remote = open(&cluster.url(), uri, &[]).await.unwrap();
        for recursive in [true, false] {
            assert_eq!(list(&remote, recursive).await, (names.clone(), 6), "{uri}");
        }
    }
}

#[tokio::test]
async fn folders_are_folders_however_a_cluster_writes_them() {
    for (bare_folders, omits_empty) in [(false, false), (true, true)] {
        let change = |options: &mut ClusterOptions| {
            (options.bare_folders, options.omits_empty) = (bare_folders, omits_empty);
        };
        let (store, cloud) = before_a_store(change).await;
        let own = own(change);
        for name in ["p/a-b", "p/a/x", "p/a/y", "p/a0", "p/b/x", "p/empty/"] {
            store.put("bucket", name, "".into());
            own.put("bucket", name, "");
        }
        for (cluster, uri) in [(&cloud, "ais://@aws/bucket"), (&own, "ais://bucket")] {
            let remote = open(&cluster.url(), uri, &[]).await.unwrap();
            let (names, _) = list(&remote, false).await;
            assert_eq!(names, ["p/a-b", "p/a/", "p/a0", "p/b/", "p/empty/"], "{uri}");
            assert_eq!(list(&remote, true).await.0.len(), 6, "{uri}");
        }
    }
}

#[test]
fn a_token_that_is_not_taken_does_not_replace_one_that_is() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let token = Some("good".to_owned());
    let cluster = runtime.block_on(async { own(|options| options.token = token) });
    cluster.put("bucket", "data/a", b"a".to_vec());
    cluster.put("bucket", "data/b", b"b".to_vec());
    let warmfs = common::Warmfs::new();
    let dir = warmfs.path("mount");
    let dir = dir.to_str().unwrap();
    let with_token = |args: &[&str], token: Option<&str>| {
        let mut command = warmfs.command(args);
        command.env("AIS_ENDPOINT", cluster.url());
        if let Some(token) = token {
            command.env("AIS_AUTHN_TOKEN", token);
        }
        command
    };
    let mount = ["mount", "ais://bucket/data", dir, "--warm", "off"];
    assert!(with_token(&mount, Some("good")).status().unwrap().success());
    for token in [None, Some("other")] {
        let line = warmfs.fails_as(&mut with_token(&["renew", dir], token));
        assert!(line.contains("keeps the credentials it has"), "{line}");
    }
    assert_eq!(std::fs::read(format!("{dir}/a")).unwrap(), b"a");
    assert!(with_token(&["renew", dir], Some("good")).status().unwrap().success());
    assert_eq!(std::fs::read(format!("{dir}/b")).unwrap(), b"b");
    warmfs.unmount("mount");
}
