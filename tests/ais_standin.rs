//! The stand-in for an AIStore cluster over real sockets, through a bare HTTP
//! client: each behaviour that the notes tell of, once.

mod common;

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::STEP_TIMEOUT;
use common::ais::{Cluster, ClusterOptions, Fault, Gate, Kind, S3Origin, Trouble};
use common::moto::Moto;
use futures::future::join_all;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warmfs::embedded_store::{EmbeddedStore, StoreOptions};

/// An answer, read to its end.
struct Answer {
    status: u16,
    headers: HeaderMap,
    /// `Err` if the connection ended before the body did.
    body: Result<Bytes, hyper::Error>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    fn bytes(&self) -> &[u8] {
        self.body.as_deref().expect("a whole body")
    }

    fn json(&self) -> Value {
        serde_json::from_slice(self.bytes()).expect("a body in JSON")
    }

    /// The status and what the error says.
    fn error(&self) -> (u16, String) {
        let told = self.json();
        assert_eq!(told["status"], self.status);
        (self.status, told["message"].as_str().unwrap().to_owned())
    }
}

/// One request on a connection of its own; `Err` if there is no answer.
async fn send(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<Response<Incoming>, Box<dyn Error>> {
    let (host, target) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let stream = TcpStream::connect(host.parse::<SocketAddr>()?).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(format!("/{target}"));
    for (name, value) in headers.iter().chain(&[("host", host)]) {
        request = request.header(*name, *value);
    }
    Ok(sender.send_request(request.body(Full::<Bytes>::from(body))?).await?)
}

async fn try_ask(
    method: Method,
    url: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<Answer, Box<dyn Error>> {
    let (parts, body) = send(method, url, headers, body).await?.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes());
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
}

async fn ask(method: Method, url: &str, headers: &[(&str, &str)]) -> Answer {
    let asked = try_ask(method, url, headers, String::new());
    tokio::time::timeout(STEP_TIMEOUT, asked).await.expect("an answer in time").unwrap()
}

async fn get(url: &str) -> Answer {
    ask(Method::GET, url, &[]).await
}

/// GET of an object as a client has it: from the proxy, and from where it leads.
async fn read(url: &str, headers: &[(&str, &str)]) -> Answer {
    let led = ask(Method::GET, url, headers).await;
    if led.status != 301 {
        return led;
    }
    ask(Method::GET, led.header("location"), headers).await
}

async fn head(url: &str) -> Answer {
    let led = ask(Method::HEAD, url, &[]).await;
    if led.status != 307 {
        return led;
    }
    ask(Method::HEAD, led.header("location"), &[]).await
}

const JSON: &[(&str, &str)] =
    &[("content-type", "application/json"), ("accept", "application/json")];

async fn act(
    method: Method,
    cluster: &Cluster,
    bucket: &str,
    action: &str,
    value: Value,
) -> Answer {
    let url = format!("{}/v1/buckets/{bucket}", cluster.url());
    let body = json!({"action": action, "value": value}).to_string();
    try_ask(method, &url, JSON, body).await.unwrap()
}

async fn list(cluster: &Cluster, bucket: &str, value: Value) -> Answer {
    act(Method::GET, cluster, bucket, "list", value).await
}

async fn prefetch(cluster: &Cluster, bucket: &str, value: Value) -> Answer {
    act(Method::POST, cluster, bucket, "prefetch-listrange", value).await
}

/// All entries of a listing, and the number of entries of each page.
async fn list_all(cluster: &Cluster, bucket: &str, mut value: Value) -> (Vec<Value>, Vec<usize>) {
    let (mut all, mut pages) = (Vec::new(), Vec::new());
    loop {
        let answer = list(cluster, bucket, value.clone()).await;
        assert_eq!(answer.status, 200, "{:?}", answer.body);
        let mut page = answer.json();
        let entries = page["entries"].as_array().unwrap();
        pages.push(entries.len());
        all.extend(entries.iter().cloned());
        if page["continuation_token"] == "" {
            return (all, pages);
        }
        for name in ["uuid", "continuation_token"] {
            value[name] = page[name].take();
        }
    }
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

/// A cluster with an own bucket `own`.
fn own(names: &[&str]) -> Cluster {
    let cluster = Cluster::start(3, ClusterOptions::default());
    cluster.create_bucket("own");
    for name in names {
        cluster.put("own", *name, format!("body of {name}"));
    }
    cluster
}

/// A cluster before a store with a bucket `b`.
async fn cloud(objects: usize) -> (EmbeddedStore, Cluster) {
    let store = EmbeddedStore::start(StoreOptions::default()).await.unwrap();
    store.create_bucket("b");
    for n in 0..objects {
        store.put("b", format!("o{n:04}"), Bytes::from(format!("body of {n}")));
    }
    let cluster = Cluster::start(3, before(&store.url()));
    (store, cluster)
}

fn before(endpoint: &str) -> ClusterOptions {
    let origin = Some(("aws".to_owned(), Arc::new(S3Origin::new(endpoint)) as _));
    ClusterOptions { origin, ..ClusterOptions::default() }
}

fn object(cluster: &Cluster, path: &str) -> String {
    format!("{}/v1/objects/{path}", cluster.url())
}

/// Waits for what another task does.
async fn until(what: &str, cluster: &Cluster, come: impl Fn(&Cluster) -> bool) {
    let deadline = tokio::time::Instant::now() + STEP_TIMEOUT;
    while !come(cluster) {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn health_and_buckets() {
    let (_store, cluster) = cloud(1).await;
    cluster.create_bucket("own");
    let url = cluster.url();
    assert_eq!(get(&format!("{url}/v1/health?readiness=true")).await.status, 200);
    for (bucket, status) in [
        ("own?provider=ais", 200),
        ("b?provider=aws", 200),
        ("none?provider=ais", 404),
        ("none?provider=aws", 404),
        ("b?provider=gcp", 404),
        ("own?provider=ais&namespace=%23other", 404),
        ("own?provider=else", 400),
        ("own", 400),
    ] {
        let answer = ask(Method::HEAD, &format!("{url}/v1/buckets/{bucket}"), &[]).await;
        assert_eq!(answer.status, status, "{bucket}");
        let told = answer.header("hdr-error");
        assert_eq!(told.is_empty(), status == 200, "{bucket}: {told}");
    }
    for target in 0..3 {
        cluster.forget(target);
    }
    assert_eq!(get(&format!("{url}/v1/health?readiness=true")).await.status, 503);
}

#[tokio::test]
async fn errors_in_json() {
    let cluster = own(&[]);
    let answer = read(&object(&cluster, "own/no%20such?provider=ais"), &[]).await;
    assert_eq!(answer.status, 404);
    let mut told = answer.json();
    let message = told["message"].take();
    assert!(message.as_str().unwrap().contains("ais://own/no such"), "{message}");
    assert_eq!(
        told,
        json!({"status": 404, "message": null, "method": "GET",
               "url_path": "/v1/objects/own/no%20such", "tcode": "NotFound"})
    );
}

#[tokio::test]
async fn own_listings() {
    let cluster = own(&["a", "a-b", "a/1", "a/2", "b/", "c d+é", "p/q/r"]);
    let (all, pages) = list_all(&cluster, "own?provider=ais", json!({"pagesize": 3})).await;
    assert_eq!(names(&all), ["a", "a-b", "a/1", "a/2", "b/", "c d+é", "p/q/r"]);
    assert_eq!(pages, [3, 3, 1]);
    assert_eq!(all[0], json!({"name": "a", "size": "9", "flags": 64}));

    let folded = json!({"flags": "2048", "pagesize": 1});
    let (entries, pages) = list_all(&cluster, "own?provider=ais", folded).await;
    assert_eq!(names(&entries), ["a", "a-b", "a/", "b/", "c d+é", "p/"]);
    assert_eq!(pages, [1; 6]);
    assert_eq!(entries[2], json!({"name": "a/", "flags": 256}));

    let no_folders = json!({"flags": (2048 + 8192).to_string(), "prefix": "a"});
    assert_eq!(names(&list_all(&cluster, "own?provider=ais", no_folders).await.0), ["a", "a-b"]);
    let below = json!({"flags": "2048", "prefix": "a/"});
    assert_eq!(names(&list_all(&cluster, "own?provider=ais", below).await.0), ["a/1", "a/2"]);
    let after = json!({"start_after": "a/2", "pagesize": 1});
    let (entries, _) = list_all(&cluster, "own?provider=ais", after).await;
    assert_eq!(names(&entries), ["b/", "c d+é", "p/q/r"]);
}

#[tokio::test]
async fn properties_only_where_asked_for() {
    let cluster = own(&["a"]);
    let etag = cluster.put("own", "a", "second");
    let of = async |props: &str, flags: &str| {
        let value = json!({"props": props, "flags": flags});
        list_all(&cluster, "own?provider=ais", value).await.0.remove(0)
    };
    let all = "name,size,version,checksum,custom";
    let entry = of(all, "0").await;
    assert_eq!((&entry["size"], &entry["version"]), (&json!("6"), &json!("2")));
    assert_eq!(entry["checksum"], format!("{:08x}", crc32c::crc32c(b"second")));
    let custom = entry["custom-md"].as_str().unwrap();
    let (etag_told, modified) = custom.split_once(" LastModified:").unwrap();
    assert_eq!(etag_told, format!("[ETag:{etag}"));
    assert!(modified.ends_with("Z]") && modified.len() == "2026-08-01T00:00:00Z]".len());
    for (props, flags) in [("name,size", "0"), (all, "32")] {
        assert_eq!(of(props, flags).await, json!({"name": "a", "size": "6", "flags": 64}));
    }
}

#[tokio::test]
async fn listings_as_a_cluster_may_also_word_them() {
    let options =
        ClusterOptions { bare_folders: true, omits_empty: true, ..ClusterOptions::default() };
    let cluster = Cluster::start(1, options);
    cluster.put("own", "f/1", "1");
    cluster.put("own", "empty", "");
    let (entries, _) = list_all(&cluster, "own?provider=ais", json!({"flags": "2048"})).await;
    assert_eq!(entries[0], json!({"name": "empty", "flags": 64}));
    assert_eq!(entries[1], json!({"name": "f", "flags": 256}));
}

#[tokio::test]
async fn pages_have_limits() {
    let (_store, cluster) = cloud(1_001).await;
    for n in 0..10_001 {
        cluster.put("own", n.to_string(), "");
    }
    for size in [0, 20_000] {
        let value = json!({"pagesize": size});
        let (_, pages) = list_all(&cluster, "own?provider=ais", value.clone()).await;
        assert_eq!(pages, [10_000, 1]);
        let (_, pages) = list_all(&cluster, "b?provider=aws", value).await;
        assert_eq!(pages, [1_000, 1]);
    }
    assert_eq!(cluster.count(Kind::OriginList), 4);
}

#[tokio::test]
async fn listings_that_are_refused() {
    let (_store, cluster) = cloud(3).await;
    let first = list(&cluster, "b?provider=aws", json!({"pagesize": 1})).await.json();
    let (uuid, token) = (&first["uuid"], &first["continuation_token"]);
    for (value, word) in [
        (json!({"flags": 2048}), "must be a string"),
        (json!({"flags": "folders"}), "no number"),
        (json!({"start_after": "a"}), "start_after"),
        (json!({"continuation_token": token}), "needs its uuid"),
        (json!({"uuid": "other", "continuation_token": token}), "uuid"),
        (json!({"uuid": uuid, "continuation_token": token, "prefix": "p"}), "something else"),
    ] {
        let (status, message) = list(&cluster, "b?provider=aws", value.clone()).await.error();
        assert_eq!(status, 400, "{value}");
        assert!(message.contains(word), "{value}: {message}");
    }
    let url = format!("{}/v1/buckets/b?provider=aws", cluster.url());
    let body = json!({"action": "list", "value": {}}).to_string();
    for (headers, status) in [(&JSON[1..], 400), (&JSON[..1], 406), (JSON, 200)] {
        let answer = try_ask(Method::GET, &url, headers, body.clone()).await.unwrap();
        assert_eq!(answer.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn a_bucket_of_moto_behind_it() {
    let moto = Moto::start();
    moto.create_bucket("data").await;
    let mut put = vec!["a b", "a+b", "a%2Fb", "a&b<c>\"'", "é/1", "é/2", "z/"];
    for name in &put {
        moto.put("data", name, name.as_bytes().to_vec()).await;
    }
    put.sort_unstable();
    let cluster = Cluster::start(2, before(moto.endpoint()));
    let asked = json!({"pagesize": 2, "props": "name,size,custom"});
    let (entries, pages) = list_all(&cluster, "data?provider=aws", asked).await;
    assert_eq!(names(&entries), put);
    assert_eq!(pages, [2, 2, 2, 1]);
    let etag = entries[0]["custom-md"].as_str().unwrap();
    assert!(etag.starts_with("[ETag:") && !etag.contains('"'), "{etag}");
    let (entries, _) = list_all(&cluster, "data?provider=aws", json!({"flags": "2048"})).await;
    assert_eq!(names(&entries), ["a b", "a%2Fb", "a&b<c>\"'", "a+b", "z/", "é/"]);
    assert_eq!((&entries[3]["flags"], &entries[4]["flags"]), (&json!(0), &json!(256)));
    for (name, path) in [("a b", "a%20b"), ("a+b", "a%2Bb"), ("a%2Fb", "a%252Fb"), ("é/1", "é/1")]
    {
        let path = path.replace('é', "%C3%A9");
        let answer = read(&object(&cluster, &format!("data/{path}?provider=aws")), &[]).await;
        assert_eq!((answer.status, answer.bytes()), (200, name.as_bytes()));
    }
}

#[tokio::test]
async fn heads() {
    let (store, cluster) = cloud(1).await;
    let url = |presence| object(&cluster, &format!("b/o0000?provider=aws&presence={presence}"));
    assert_eq!(ask(Method::HEAD, &url(0), &[]).await.status, 307);
    assert_eq!(head(&url(3)).await.status, 404, "nobody has read it");
    assert!(!head(&url(3)).await.header("hdr-error").is_empty());
    let cold = head(&url(0)).await;
    assert_eq!((cold.status, cold.header("ais-present")), (200, "false"));
    assert_eq!((cold.header("content-length"), cold.header("ais-checksum-type")), ("9", ""));
    assert_eq!(cluster.count(Kind::OriginGet), 0);

    read(&object(&cluster, "b/o0000?provider=aws"), &[]).await;
    assert_eq!(head(&url(3)).await.status, 200);
    let warm = head(&url(0)).await;
    let etag = store.put("b", "same", store.get("b", "o0000").unwrap());
    assert_eq!((warm.status, warm.header("ais-present")), (200, "true"));
    assert_eq!(warm.header("etag"), format!("\"{etag}\""));
    assert_eq!(warm.header("ais-checksum-type"), "crc32c");
    assert_eq!(warm.header("ais-checksum-value"), format!("{:08x}", crc32c::crc32c(b"body of 0")));
    assert!(httpdate::parse_http_date(warm.header("last-modified")).is_ok());
    assert!(warm.headers.contains_key("ais-atime"));
    let custom: Vec<_> =
        warm.headers.get_all("ais-custom-md").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(custom.contains(&&*format!("ETag={etag}")), "{custom:?}");
    assert!(custom.iter().any(|pair| pair.starts_with("LastModified=")), "{custom:?}");

    cluster.put("own", "a", "");
    let own = head(&object(&cluster, "own/a?provider=ais&presence=0")).await;
    assert_eq!((own.header("ais-version"), own.header("content-length")), ("1", "0"));
    let odd = head(&object(&cluster, "own/a?provider=ais")).await;
    assert_eq!(odd.status, 400, "presence is missing");
}

#[tokio::test]
async fn ranges() {
    let cluster = own(&[]);
    cluster.put("own", "abc", Bytes::from_iter(b'a'..=b'z'));
    cluster.put("own", "empty", "");
    let url = object(&cluster, "own/abc?provider=ais");
    assert_eq!(get(&url).await.status, 301);
    for (range, status, body, told) in [
        ("bytes=0-2", 206, "abc", "bytes 0-2/26"),
        ("bytes=25-25", 206, "z", "bytes 25-25/26"),
        ("bytes=23-", 206, "xyz", "bytes 23-25/26"),
        ("bytes=23-99", 206, "xyz", "bytes 23-25/26"),
        ("bytes=-2", 206, "yz", "bytes 24-25/26"),
    ] {
        let answer = read(&url, &[("range", range)]).await;
        assert_eq!((answer.status, answer.bytes()), (status, body.as_bytes()), "{range}");
        assert_eq!(answer.header("content-range"), told);
        let whole = format!("{:08x}", crc32c::crc32c(b"abcdefghijklmnopqrstuvwxyz"));
        assert_eq!(answer.header("ais-checksum-value"), whole, "of the whole object");
    }
    let answer = read(&url, &[("range", "bytes=26-30")]).await;
    assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */26"));
    let answer = read(&url, &[]).await;
    assert_eq!((answer.status, answer.bytes().len()), (200, 26));
    let empty = object(&cluster, "own/empty?provider=ais");
    assert_eq!(read(&empty, &[]).await.bytes(), b"");
    assert_eq!(read(&empty, &[("range", "bytes=0-0")]).await.status, 416);
    let ranges: Vec<_> = cluster.log().iter().map(|logged| logged.range.clone()).collect();
    assert_eq!(ranges[1..3], ["bytes=0-2", "bytes=0-2"], "at the proxy and at the target");
}

#[tokio::test]
async fn locations_are_taken_to_the_byte() {
    let cluster = own(&["a b~c"]);
    let url = object(&cluster, "own/a%20b%7ec?provider=ais");
    let location = async || get(&url).await.header("location").to_owned();
    for (from, to) in [
        ("%20", "+"),
        ("%7e", "~"),
        ("%5d", "%5D"),
        ("%2e", "."),
        ("&via=", ""),
        ("&via=", "&via"),
        ("?provider=ais&", "?"),
    ] {
        let changed = location().await.replacen(from, to, 1);
        assert_eq!(get(&changed).await.error().0, 403, "{from} as {to}");
    }
    let bare = location().await.split("&sig=").next().unwrap().to_owned();
    assert_eq!(get(&bare).await.error().0, 401);
    let elsewhere = location().await;
    let other = (0..3).map(|n| cluster.target_url(n)).find(|url| !elsewhere.starts_with(url));
    let path = elsewhere["http://".len()..].split_once('/').unwrap().1;
    assert_eq!(get(&format!("{}/{path}", other.unwrap())).await.error().0, 403);
    let verbatim = location().await;
    assert_eq!(ask(Method::HEAD, &verbatim, &[]).await.status, 403, "given for GET");
    assert_eq!(get(&verbatim).await.bytes(), b"body of a b~c");
    assert_eq!(get(&verbatim).await.error().0, 403, "used before");
}

#[tokio::test]
async fn the_bearer_token_is_for_the_proxy() {
    let options = ClusterOptions { token: Some("secret".to_owned()), ..ClusterOptions::default() };
    let cluster = Cluster::start(2, options);
    cluster.put("own", "a", "a");
    let url = object(&cluster, "own/a?provider=ais");
    assert_eq!(get(&url).await.error().0, 401);
    let bearer = |token| ask(Method::GET, &url, token);
    assert_eq!(bearer(&[("authorization", "Bearer other")]).await.status, 401);
    let token = &[("authorization", "Bearer secret")];
    let led = bearer(token).await;
    assert_eq!(led.status, 301);
    let (status, message) = ask(Method::GET, led.header("location"), token).await.error();
    assert_eq!(status, 400);
    assert!(!message.contains("secret"));
    let led = bearer(token).await;
    assert_eq!(get(led.header("location")).await.bytes(), b"a");
    let bucket = format!("{}/v1/buckets/own?provider=ais", cluster.url());
    assert_eq!(ask(Method::HEAD, &bucket, &[]).await.status, 401);
}

#[tokio::test]
async fn one_origin_get_an_object() {
    let (store, cluster) = cloud(8).await;
    let gate = Gate::new();
    cluster.inject(Fault::next(usize::MAX, Kind::OriginGet, Trouble::Hold(gate.clone())));
    let urls: Vec<_> =
        (0..8).map(|n| object(&cluster, &format!("b/o{n:04}?provider=aws"))).collect();
    let readers = (0..5).flat_map(|_| &urls).map(|url| read(url, &[]));
    let all = async {
        until("all are there", &cluster, |cluster| cluster.count(Kind::TargetGet) == 40).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(join_all(readers), all);
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.bytes(), format!("body of {}", n % 8).as_bytes());
    }
    assert_eq!(cluster.count(Kind::OriginGet), 8);
    assert_eq!(store.counts().get.requests, 8);
    let used: BTreeSet<_> =
        (0..8).map(|n| cluster.target_of("aws", "b", &format!("o{n:04}")).unwrap()).collect();
    assert!(used.len() > 1, "all on one target");
}

#[tokio::test]
async fn a_range_of_a_cold_object_waits_for_all_of_it() {
    let (store, cluster) = cloud(1).await;
    let gate = Gate::new();
    cluster.inject(Fault::always(Kind::OriginGet, "o0000", Trouble::Hold(gate.clone())));
    let url = object(&cluster, "b/o0000?provider=aws");
    let reader = tokio::spawn(async move { read(&url, &[("range", "bytes=0-3")]).await });
    until("the fetch", &cluster, |cluster| cluster.count(Kind::OriginGet) == 1).await;
    assert!(!reader.is_finished());
    gate.open();
    let answer = reader.await.unwrap();
    assert_eq!((answer.status, answer.bytes()), (206, &b"body"[..]));
    assert_eq!(store.counts().get.bytes, 9, "the whole object");
}

#[tokio::test]
async fn a_fetch_goes_on_without_its_reader() {
    let (_store, cluster) = cloud(1).await;
    let gate = Gate::new();
    cluster.inject(Fault::next(1, Kind::OriginGet, Trouble::Hold(gate.clone())));
    let led = get(&object(&cluster, "b/o0000?provider=aws")).await;
    let location = led.header("location").strip_prefix("http://").unwrap();
    let (host, target) = location.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    until("the fetch", &cluster, |cluster| cluster.count(Kind::OriginGet) == 1).await;
    stream.shutdown().await.unwrap();
    // The target has seen that the reader went once it hangs up, one way or other.
    let _ = stream.read_to_end(&mut Vec::new()).await;
    gate.open();
    until("the object", &cluster, |cluster| cluster.holds("aws", "b", "o0000")).await;
    assert_eq!(cluster.count(Kind::OriginGet), 1);
}

#[tokio::test]
async fn faults() {
    let cluster = own(&["a", "b"]);
    let (a, b) = (object(&cluster, "own/a?provider=ais"), object(&cluster, "own/b?provider=ais"));
    for status in [507, 409, 429, 410] {
        cluster.inject(Fault::next(1, Kind::TargetGet, Trouble::Status(status)));
        assert_eq!(read(&a, &[]).await.error().0, status);
        assert_eq!(read(&a, &[]).await.status, 200);
    }
    cluster.inject(Fault::next(2, Kind::ProxyGet, Trouble::RetryAfter(429, 7)));
    for status in [429, 429, 200] {
        let answer = read(&a, &[]).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("retry-after"), if status == 429 { "7" } else { "" });
    }
    cluster.inject(Fault::always(Kind::TargetGet, "a", Trouble::ResetAfter(4)));
    for _ in 0..2 {
        let answer = read(&a, &[]).await;
        assert_eq!((answer.status, answer.header("content-length")), (200, "9"));
        assert!(answer.body.is_err());
        assert_eq!(read(&b, &[]).await.bytes(), b"body of b");
    }
}

#[tokio::test]
async fn redirect_loops() {
    let cluster = own(&["proxy", "target"]);
    cluster.inject(Fault::always(Kind::ProxyGet, "proxy", Trouble::RedirectLoop));
    cluster.inject(Fault::always(Kind::TargetGet, "target", Trouble::RedirectLoop));
    for (name, kind) in [("proxy", Kind::ProxyGet), ("target", Kind::TargetGet)] {
        cluster.reset_log();
        let mut url = object(&cluster, &format!("own/{name}?provider=ais"));
        for _ in 0..10 {
            let answer = get(&url).await;
            assert_eq!(answer.status, 301);
            url = answer.header("location").to_owned();
        }
        assert!(cluster.count(kind) >= 9, "{name}");
    }
}

#[tokio::test]
async fn the_latest_version() {
    let (store, cluster) = cloud(1).await;
    let url = object(&cluster, "b/o0000?provider=aws");
    let latest = format!("{url}&latest-ver=true");
    assert_eq!(read(&latest, &[]).await.bytes(), b"body of 0");
    store.put("b", "o0000", Bytes::from("new"));
    assert_eq!(read(&url, &[]).await.bytes(), b"body of 0", "what the cluster has");
    assert_eq!(head(&format!("{latest}&presence=0")).await.header("content-length"), "3");
    assert_eq!(read(&latest, &[]).await.bytes(), b"new");
    store.delete("b", "o0000");
    assert_eq!(read(&url, &[]).await.bytes(), b"new");
    assert_eq!(read(&latest, &[]).await.error().0, 410);
    assert_eq!(read(&url, &[]).await.error().0, 404);
}

#[tokio::test]
async fn a_target_is_killed() {
    let (_store, cluster) = cloud(30).await;
    let target_of = |n| cluster.target_of("aws", "b", &format!("o{n:04}")).unwrap();
    let urls: Vec<_> =
        (0..30).map(|n| object(&cluster, &format!("b/o{n:04}?provider=aws"))).collect();
    let placed: Vec<_> = (0..30).map(target_of).collect();
    let killed = placed[0];

    cluster.inject(Fault::always(Kind::TargetGet, "o0000", Trouble::StallAfter(3)));
    let led = get(&urls[0]).await;
    let begun = send(Method::GET, led.header("location"), &[], String::new()).await.unwrap();
    let mut body = begun.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "bod");
    cluster.stop(killed);
    let broken = body.frame().await.unwrap().unwrap_err();
    let broken = broken.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(broken.expect("an error of the socket").kind(), io::ErrorKind::ConnectionReset);

    let led = get(&urls[0]).await;
    let location = led.header("location");
    assert!(location.starts_with(&cluster.target_url(killed)), "not noticed yet");
    let refused = try_ask(Method::GET, location, &[], String::new()).await.err().unwrap();
    let refused = refused.downcast::<io::Error>().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    for (n, url) in urls.iter().enumerate().skip(1) {
        assert_eq!(read(url, &[]).await.bytes(), format!("body of {n}").as_bytes());
    }
    for (n, before) in placed.iter().enumerate() {
        let moved = target_of(n) != *before;
        assert_eq!(moved, *before == killed, "o{n:04}");
    }
}

#[tokio::test]
async fn the_proxy_is_told_of_a_killed_target() {
    let options = ClusterOptions { notices_stops: false, ..ClusterOptions::default() };
    let cluster = Cluster::start(2, options);
    cluster.put("own", "a", "a");
    let url = object(&cluster, "own/a?provider=ais");
    let killed = cluster.target_of("ais", "own", "a").unwrap();
    cluster.stop(killed);
    cluster.stop(killed);
    for _ in 0..3 {
        let led = get(&url).await;
        assert!(led.header("location").starts_with(&cluster.target_url(killed)));
    }
    cluster.forget(killed);
    assert_eq!(read(&url, &[]).await.bytes(), b"a");
}

#[tokio::test]
async fn prefetches() {
    let (_store, cluster) = cloud(30).await;
    let bucket = "b?provider=aws";
    for (value, last) in [
        (json!({"objnames": ["o0000", "o0001"], "num-workers": 0}), 2),
        (json!({"template": "o{0005..0009}", "num-workers": 2}), 7),
        (json!({"template": "o002"}), 17),
    ] {
        let answer = prefetch(&cluster, bucket, value).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.bytes().is_empty(), "a job's id");
        let held = |cluster: &Cluster| {
            (0..30).filter(|n| cluster.holds("aws", "b", &format!("o{n:04}"))).count()
        };
        until("what was asked for", &cluster, |cluster| held(cluster) == last).await;
    }
    assert_eq!(cluster.count(Kind::OriginGet), 17);
    let url = object(&cluster, "b/o0025?provider=aws");
    assert_eq!(read(&url, &[]).await.bytes(), b"body of 25");
    assert_eq!(cluster.count(Kind::OriginGet), 17);
    let (entries, _) = list_all(&cluster, bucket, json!({"props": "name,cached"})).await;
    let cached = entries.iter().filter(|entry| entry["flags"] == 64).count();
    assert_eq!(cached, 17);
    let (entries, _) = list_all(&cluster, bucket, json!({"props": "name"})).await;
    assert!(entries.iter().all(|entry| entry["flags"] == 0), "nobody asked");
    for value in [json!({}), json!({"template": "o{1..}"}), json!({"objnames": "o0000"})] {
        assert_eq!(prefetch(&cluster, bucket, value).await.error().0, 400);
    }
}

#[test]
fn requests_are_counted_without_a_runtime_of_the_test() {
    let cluster = own(&["a"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        read(&object(&cluster, "own/a?provider=ais"), &[]).await;
        head(&object(&cluster, "own/a?provider=ais&presence=0")).await;
        list(&cluster, "own?provider=ais", json!({"prefix": "p/"})).await;
        get(&format!("{}/v1/else", cluster.url())).await;
    });
    let seen: Vec<_> = cluster.log().into_iter().map(|logged| (logged.kind, logged.name)).collect();
    let expected = [
        (Kind::ProxyGet, "a"),
        (Kind::TargetGet, "a"),
        (Kind::ProxyHead, "a"),
        (Kind::TargetHead, "a"),
        (Kind::List, "p/"),
        (Kind::Other, ""),
    ];
    assert_eq!(seen, expected.map(|(kind, name)| (kind, name.to_owned())));
    cluster.reset_log();
    assert_eq!(cluster.count(Kind::ProxyGet), 0);
}
