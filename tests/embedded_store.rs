//! The embedded store over real sockets: through the SDK as its users will
//! talk to it, and through a bare HTTP client where the wire itself matters.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Duration;

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::EncodingType;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use tokio::net::TcpStream;
use warmfs::embedded_store::{
    Access, Batch, Dataset, EmbeddedStore, Fault, FaultRule, Op, StoreOptions,
};

type TestResult<T = ()> = Result<T, Box<dyn Error>>;

/// An answer, read to its end.
struct Answer {
    status: StatusCode,
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

    fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("a body in UTF-8")
    }
}

/// One connection.
struct Wire(SendRequest<Full<Bytes>>);

impl Wire {
    async fn open(store: &EmbeddedStore) -> TestResult<Wire> {
        let address = store.url().replace("http://", "");
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Wire(sender))
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> TestResult<Answer> {
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.0.ready().await?;
        let response = self.0.send_request(request.body(Full::default())?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes());
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }

    async fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> TestResult<Answer> {
        self.ask(Method::GET, path, headers).await
    }
}

fn sdk(store: &EmbeddedStore, key_id: &str) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(Credentials::new(key_id, "secret", None, None, "test"))
        .region(Region::new("us-east-1"))
        .retry_config(RetryConfig::disabled())
        .endpoint_url(store.url())
        .force_path_style(true)
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

async fn store() -> TestResult<EmbeddedStore> {
    Ok(EmbeddedStore::start(StoreOptions::default()).await?)
}

/// A store that holds one object, the letters a to z, and a connection to it.
async fn alphabet() -> TestResult<(EmbeddedStore, Wire, String)> {
    let store = store().await?;
    let etag = store.put("b", "abc", Bytes::from_iter(b'a'..=b'z'));
    let wire = Wire::open(&store).await?;
    Ok((store, wire, format!("\"{etag}\"")))
}

#[tokio::test]
async fn ranges() -> TestResult {
    let (store, mut wire, etag) = alphabet().await?;
    for (range, status, body, told) in [
        ("bytes=0-2", 206, "abc", "bytes 0-2/26"),
        ("bytes=23-", 206, "xyz", "bytes 23-25/26"),
        ("bytes=23-99", 206, "xyz", "bytes 23-25/26"),
        ("bytes=-2", 206, "yz", "bytes 24-25/26"),
        ("bytes=5-1", 200, "abcdefghijklmnopqrstuvwxyz", ""),
    ] {
        let answer = wire.get("/b/abc", &[("range", range)]).await?;
        assert_eq!((answer.status.as_u16(), answer.text()), (status, body), "{range}");
        assert_eq!(answer.header("content-range"), told, "{range}");
        assert_eq!(answer.header("content-length"), body.len().to_string(), "{range}");
        assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (&*etag, "bytes"));
        assert!(httpdate::parse_http_date(answer.header("last-modified")).is_ok());
    }
    let answer = wire.get("/b/abc", &[("range", "bytes=26-")]).await?;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert!(answer.text().contains("<Code>InvalidRange</Code>"));

    let log = store.log();
    let ranges: Vec<_> = log.iter().map(|request| request.range.clone()).collect();
    assert_eq!(ranges, [Some(0..3), Some(23..26), Some(23..26), Some(24..26), None, None]);
    assert_eq!((log[0].op, log[0].status, log[0].bytes_sent), (Op::Get, 206, 3));
    assert_eq!((&*log[0].method, &*log[0].bucket, &*log[0].key), ("GET", "b", "abc"));
    assert_eq!(store.counts().get.requests, 6);
    let bytes = 3 + 3 + 3 + 2 + 26 + answer.bytes().len() as u64;
    assert_eq!(store.counts().get.bytes, bytes);
    store.reset_log();
    assert_eq!((store.log().len(), store.counts()), (0, Default::default()));
    Ok(())
}

#[tokio::test]
async fn conditions_and_head() -> TestResult {
    let (store, mut wire, etag) = alphabet().await?;
    assert_eq!(wire.get("/b/abc", &[("if-match", &etag)]).await?.status, StatusCode::OK);
    assert_eq!(wire.get("/b/abc", &[("if-match", "*")]).await?.status, StatusCode::OK);
    let answer = wire.get("/b/abc", &[("if-match", "\"other\"")]).await?;
    assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED);
    assert!(answer.text().contains("<Code>PreconditionFailed</Code>"));
    let answer = wire.get("/b/abc", &[("if-none-match", &etag)]).await?;
    assert_eq!((answer.status, answer.bytes()), (StatusCode::NOT_MODIFIED, &b""[..]));

    for (path, status, length) in
        [("/b/abc", 200, "26"), ("/b/none", 404, ""), ("/b", 200, ""), ("/none", 404, "")]
    {
        let answer = wire.ask(Method::HEAD, path, &[]).await?;
        assert_eq!((answer.status.as_u16(), answer.bytes()), (status, &b""[..]), "{path}");
        assert_eq!(answer.header("x-amz-bucket-region"), "us-east-1");
        if !length.is_empty() {
            assert_eq!(answer.header("content-length"), length);
        }
    }
    assert_eq!(store.counts().head.requests, 2);
    // All of it on one connection: HEAD and 304 had no bodies to trip over.
    assert_eq!(wire.get("/b/abc", &[]).await?.bytes().len(), 26);
    Ok(())
}

#[tokio::test]
async fn errors_are_those_of_s3() -> TestResult {
    let (_store, mut wire, _) = alphabet().await?;
    for (path, status, code) in [
        ("/b/none", 404, "NoSuchKey"),
        ("/none/abc", 404, "NoSuchBucket"),
        ("/none?list-type=2", 404, "NoSuchBucket"),
        ("/b?list-type=2&continuation-token=x", 400, "InvalidArgument"),
        ("/b?list-type=2&max-keys=x", 400, "InvalidArgument"),
        ("/b/%ff", 400, "InvalidURI"),
        ("/", 501, "NotImplemented"),
    ] {
        let answer = wire.get(path, &[]).await?;
        assert_eq!(answer.status.as_u16(), status, "{path}");
        assert!(answer.text().contains(&format!("<Code>{code}</Code>")), "{}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn access_by_key_and_region() -> TestResult {
    let options = StoreOptions {
        access: Access::Key("AK".into()),
        required_region: Some("eu-west-1".into()),
        ..StoreOptions::default()
    };
    let store = EmbeddedStore::start(options).await?;
    store.put("b", "abc", Bytes::from_static(b"abc"));
    let mut wire = Wire::open(&store).await?;
    let sign = |id: &str, region: &str| {
        format!("AWS4-HMAC-SHA256 Credential={id}/20200101/{region}/s3/aws4_request, Signature=0")
    };
    for (authorization, status, code) in [
        (None, 403, "<Code>AccessDenied</Code>"),
        (Some(sign("OTHER", "eu-west-1")), 403, "<Code>InvalidAccessKeyId</Code>"),
        (Some(sign("AK", "us-east-1")), 400, "<Region>eu-west-1</Region>"),
        (Some(sign("AK", "eu-west-1")), 200, "abc"),
    ] {
        let headers: Vec<_> = authorization.iter().map(|a| ("authorization", a.as_str())).collect();
        let answer = wire.get("/b/abc", &headers).await?;
        assert_eq!(answer.status.as_u16(), status, "{authorization:?}");
        assert!(answer.text().contains(code), "{}", answer.text());
        assert_eq!(answer.header("x-amz-bucket-region"), "eu-west-1");
    }
    let signed = sign("AK", "us-east-1");
    let answer = wire.ask(Method::HEAD, "/b", &[("authorization", &signed)]).await?;
    assert_eq!(answer.status, StatusCode::MOVED_PERMANENTLY);
    // Access comes first: without a key nobody learns which buckets exist.
    assert_eq!(wire.get("/none/abc", &[]).await?.status, StatusCode::FORBIDDEN);
    Ok(())
}

#[tokio::test]
async fn virtual_host_style() -> TestResult {
    let (store, _, _) = alphabet().await?;
    let stream = TcpStream::connect(store.url().replace("http://", "")).await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/abc").header("host", "b.localhost:80");
    let response = sender.send_request(request.body(Full::<Bytes>::default())?).await?;
    assert_eq!(response.status(), StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn objects_through_the_sdk_whatever_their_keys() -> TestResult {
    let store = store().await?;
    let client = sdk(&store, "any");
    client.create_bucket().bucket("b").send().await?;
    let keys = ["a", "a b+c%2F&=?#", "/lead//twice/", "a/../b/./c", "é\u{10FFFF}", "\r\n\u{1}'\"<"];
    for (i, key) in keys.into_iter().enumerate() {
        let body = vec![i as u8; i * 100_000];
        client.put_object().bucket("b").key(key).body(body.clone().into()).send().await?;
        assert_eq!(store.get("b", key).as_deref(), Some(&body[..]), "{key:?}");
        let got = client.get_object().bucket("b").key(key).send().await?;
        assert_eq!(got.body.collect().await?.into_bytes(), body, "{key:?}");
        let head = client.head_object().bucket("b").key(key).send().await?;
        assert_eq!(head.content_length(), Some(body.len() as i64), "{key:?}");
        client.delete_object().bucket("b").key(key).send().await?;
        assert_eq!(store.get("b", key), None, "{key:?}");
    }
    let error = client.get_object().bucket("b").key("a").send().await.unwrap_err();
    assert!(error.into_service_error().is_no_such_key());

    let streamed = ByteStream::from_static(b"checksummed");
    let put = client.put_object().bucket("b").key("c").body(streamed);
    let algorithm = aws_sdk_s3::types::ChecksumAlgorithm::Crc32;
    put.checksum_algorithm(algorithm).send().await?;
    assert_eq!(store.get("b", "c").as_deref(), Some(&b"checksummed"[..]));
    Ok(())
}

#[tokio::test]
async fn aws_chunked_bodies_are_decoded() -> TestResult {
    let (store, mut wire, _) = alphabet().await?;
    let body = "5;chunk-signature=00\r\nhello\r\n0;chunk-signature=00\r\n\r\n";
    let request = Request::put("/b/new").header("host", "localhost");
    let request = request.header("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD");
    wire.0.ready().await?;
    let response = wire.0.send_request(request.body(Full::from(body))?).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(store.get("b", "new").as_deref(), Some(&b"hello"[..]));
    Ok(())
}

#[tokio::test]
async fn faults_spoil_what_they_say() -> TestResult {
    let (store, mut wire, etag) = alphabet().await?;
    let once = |fault| store.set_faults(vec![FaultRule::next(1, Op::Get, fault)]);
    let range = [("range", "bytes=1-4")];

    once(Fault::Status { status: 503, code: "SlowDown".into(), retry_after_s: Some(7) });
    let answer = wire.get("/b/abc", &[]).await?;
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "7"));
    assert!(answer.text().contains("<Code>SlowDown</Code>"));
    assert_eq!(wire.get("/b/abc", &[]).await?.status, StatusCode::OK, "only once");

    once(Fault::WrongEtag);
    let answer = wire.get("/b/abc", &[("if-match", "\"x\"")]).await?;
    assert_eq!(answer.status, StatusCode::OK);
    assert_ne!(answer.header("etag"), etag);

    once(Fault::IgnoreRange);
    let answer = wire.get("/b/abc", &range).await?;
    assert_eq!((answer.status, answer.bytes().len()), (StatusCode::OK, 26));

    once(Fault::ShortBody(2));
    let answer = wire.get("/b/abc", &range).await?;
    assert_eq!((answer.header("content-range"), answer.text()), ("bytes 1-4/26", "bc"));

    once(Fault::FlipByte(1));
    assert_eq!(wire.get("/b/abc", &range).await?.bytes(), [b'b', !b'c', b'd', b'e']);

    once(Fault::StallAfter(3));
    let asked = wire.get("/b/abc", &[]);
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    assert_eq!(store.log().last().map(|request| request.bytes_sent), Some(3));

    let mut wire = Wire::open(&store).await?;
    once(Fault::NoAnswer);
    let asked = wire.get("/b/abc", &[]);
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    assert_eq!(store.log().last().map(|request| request.status), Some(0));
    Ok(())
}

#[tokio::test]
async fn broken_connections_deliver_what_was_promised_first() -> TestResult {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (store, _, _) = alphabet().await?;
    for (fault, reset) in [(Fault::ResetAfter(5), true), (Fault::CloseAfter(5), false)] {
        store.set_faults(vec![FaultRule::next(1, Op::Get, fault)]);
        let mut stream = TcpStream::connect(store.url().replace("http://", "")).await?;
        stream.write_all(b"GET /b/abc HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
        let mut got = Vec::new();
        let ended = stream.read_to_end(&mut got).await;
        let text = String::from_utf8(got)?;
        assert!(text.contains("content-length: 26"), "{text}");
        assert!(text.ends_with("\r\n\r\nabcde"), "{text}");
        assert_eq!(ended.is_err(), reset, "{ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn throttled_bodies_are_whole() -> TestResult {
    // Time is asserted on where it is computed, in the unit tests of the pacer.
    let options = StoreOptions {
        ttfb: Duration::from_millis(2),
        rate_bytes_per_s_per_connection: Some(200_000_000),
        ..StoreOptions::default()
    };
    let store = EmbeddedStore::start(options).await?;
    let small = Batch { count: 20, size: 110 << 10 };
    let dataset = Dataset::generate(small, Batch { count: 2, size: 3_000_001 });
    let mut wire = Wire::open(&store).await?;
    for (key, body) in &dataset.files {
        store.put("b", key.as_str(), body.clone());
        let answer = wire.get(&format!("/b/{key}"), &[]).await?;
        assert_eq!(answer.bytes(), body, "{key}");
    }
    assert_eq!(store.counts().get.bytes, dataset.total_bytes());
    Ok(())
}

#[tokio::test]
async fn dropping_the_store_closes_it() -> TestResult {
    let (store, mut wire, _) = alphabet().await?;
    let url = store.url();
    drop(store);
    assert!(wire.get("/b/abc", &[]).await.is_err(), "an open connection");
    assert!(TcpStream::connect(url.replace("http://", "")).await.is_err(), "a new one");
    Ok(())
}

#[tokio::test]
async fn many_keys_are_listed_page_by_page() -> TestResult {
    let store = store().await?;
    for i in 0..20_000 {
        store.put_with_etag("b", format!("{:03}/{i:06}", i % 200), Bytes::new(), "e");
    }
    let client = sdk(&store, "any");
    let mut pages = client.list_objects_v2().bucket("b").into_paginator().send();
    let mut keys = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page?;
        assert_eq!(page.key_count(), Some(1_000));
        keys.extend(page.contents().iter().filter_map(|o| o.key().map(str::to_owned)));
    }
    assert_eq!((keys.len(), store.counts().list.requests), (20_000, 20));
    assert!(keys.is_sorted());
    let folders = client.list_objects_v2().bucket("b").delimiter("/").send().await?;
    assert_eq!((folders.common_prefixes().len(), folders.is_truncated()), (200, Some(false)));
    Ok(())
}

/// What a listing holds, computed from its definition: each key, or the common
/// prefix it folds into, once, in order.
fn model(keys: &BTreeSet<String>, prefix: &str, delimiter: &str, after: &str) -> Vec<String> {
    let mut entries = BTreeMap::new();
    for key in keys.iter().filter(|key| key.starts_with(prefix)) {
        let rest = &key[prefix.len()..];
        let folded = match rest.find(delimiter) {
            Some(at) if !delimiter.is_empty() => &key[..prefix.len() + at + delimiter.len()],
            _ => key,
        };
        entries.insert(folded.to_owned(), ());
    }
    entries.into_keys().filter(|entry| entry.as_str() > after).collect()
}

fn url_decoded(name: &str) -> String {
    let spaced = name.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced).decode_utf8().expect("UTF-8").into_owned()
}

/// All entries of a listing as the SDK reads it, page after page.
async fn listed(
    client: &aws_sdk_s3::Client,
    prefix: &str,
    delimiter: &str,
    after: &str,
    page: i32,
) -> TestResult<Vec<String>> {
    let mut entries = Vec::new();
    let mut token = None;
    loop {
        let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let request = client.list_objects_v2().bucket("b").max_keys(page);
        let request = request.encoding_type(EncodingType::Url).set_prefix(some(prefix));
        let request = request.set_delimiter(some(delimiter)).set_start_after(some(after));
        let answer = request.set_continuation_token(token).send().await?;
        let keys = answer.contents().iter().filter_map(|object| object.key());
        let prefixes = answer.common_prefixes().iter().filter_map(|folder| folder.prefix());
        let mut names: Vec<_> = keys.chain(prefixes).map(url_decoded).collect();
        assert_eq!(answer.key_count(), Some(names.len() as i32));
        assert!(names.len() <= page as usize);
        names.sort();
        entries.extend(names);
        token = answer.next_continuation_token().map(str::to_owned);
        assert_eq!(answer.is_truncated(), Some(token.is_some()));
        if token.is_none() {
            return Ok(entries);
        }
    }
}

/// Short names of few characters, so that they collide, nest and sort oddly.
fn hostile(length: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let characters = vec![
        'a',
        'b',
        '/',
        '/',
        '/',
        '0',
        '.',
        '+',
        ' ',
        '%',
        '&',
        '<',
        '\n',
        '\r',
        '\u{1}',
        'é',
        '\u{D7FF}',
        '\u{E000}',
        '\u{10FFFF}',
    ];
    prop::collection::vec(prop::sample::select(characters), length).prop_map(String::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn listings_equal_the_model(
        keys in prop::collection::btree_set(hostile(1..7), 0..40),
        prefix in hostile(0..3),
        delimiter in prop::sample::select(vec!["", "/", "/", "//", "a", "\u{10FFFF}"]),
        after in hostile(0..4),
        page in 1..6i32,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entries = runtime.block_on(async {
            let store = EmbeddedStore::start(StoreOptions::default()).await?;
            store.create_bucket("b");
            for key in &keys {
                store.put("b", key.as_str(), Bytes::new());
            }
            listed(&sdk(&store, "any"), &prefix, delimiter, &after, page).await
        });
        let entries = entries.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!(entries, model(&keys, &prefix, delimiter, &after));
    }
}
