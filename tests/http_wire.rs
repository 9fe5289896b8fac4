//! The HTTP client of all remotes over real sockets: proxies, certificates,
//! redirects, and answers that are not what was asked for.

mod common;

use std::sync::Arc;

use common::fronts::{Front, tls_file};
use common::stub::{Reply, Request, Stub};
use futures::StreamExt;
use http::{HeaderMap, Method};
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::answer::{Asked, Dialect};
use warmfs::remote::base_url::BaseUrl;
use warmfs::remote::http::HttpClient;
use warmfs::remote::rest::{Call, Object, Rest, Said};
use warmfs::remote::s3::S3Remote;
use warmfs::remote::{ErrorKind, RemoteError};

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "hidden-secret")];

/// A name that resolves nowhere, so that a proxy has to be what reaches it.
const ELSEWHERE: &str = "http://store.invalid";

async fn connect(
    url: &str,
    env: &[(&str, &str)],
    ca_file: Option<&str>,
) -> Result<S3Remote, RemoteError> {
    let options = RemoteOptions {
        endpoint_url: Some(url.to_owned()),
        ca_file: ca_file.map(tls_file),
        ..RemoteOptions::default()
    };
    let env: CallerEnv = KEYS.iter().chain(env).copied().collect();
    S3Remote::connect("bucket", &options, &env, &Arc::default()).await
}

// Proxies.

#[tokio::test]
async fn http_goes_through_the_callers_proxy() {
    let proxy = Stub::start(|_| Reply::empty_list()).await;
    let url = proxy.url().replace("http://", "http://user:hidden@");
    connect(ELSEWHERE, &[("HTTP_PROXY", &url)], None).await.unwrap();
    let request = &proxy.requests()[0];
    assert!(request.target().starts_with("http://store.invalid/bucket"), "{}", request.head);
    assert_eq!(request.header("host"), Some("store.invalid"));
    assert_eq!(request.header("proxy-authorization"), Some("Basic dXNlcjpoaWRkZW4="));
}

#[tokio::test]
async fn what_needs_no_proxy_is_reached_directly() {
    let proxy = Stub::start(|_| Reply::empty_list()).await;
    let url = proxy.url().replace("http://", "http://user:hidden@");
    let env = [("http_proxy", url.as_str()), ("no_proxy", "other,.invalid")];
    let error = connect(ELSEWHERE, &env, None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    assert!(!error.message.contains("proxy"), "{error}");
    // This machine.
    let store = Stub::start(|_| Reply::empty_list()).await;
    connect(store.url(), &env[..1], None).await.unwrap();
    assert_eq!((proxy.requests().len(), store.requests().len()), (0, 1));
    assert_eq!(store.requests()[0].header("proxy-authorization"), None);
}

#[tokio::test]
async fn https_goes_through_a_tunnel() {
    let store = Stub::start(|_| Reply::empty_list()).await;
    let tls = Front::tls(store.url(), "server.pem").await;
    let proxy = Front::proxy(Some(tls.address())).await;
    let url = format!("http://user:hidden@{}", proxy.address());
    connect("https://store.invalid", &[("HTTPS_PROXY", &url)], Some("ca.pem")).await.unwrap();
    let head = &proxy.heads()[0];
    assert!(head.starts_with("CONNECT store.invalid:443 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic dXNlcjpoaWRkZW4="), "{head}");
    let request = &store.requests()[0];
    assert!(request.target().starts_with("/bucket"), "{}", request.head);
    assert_eq!(request.header("proxy-authorization"), None);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_not_there_is_named() {
    let refusing = Front::proxy(None).await;
    let gone = Front::proxy(None).await.address().to_owned();
    for address in [refusing.address(), &gone] {
        let url = format!("http://user:hidden@{address}");
        for store in ["https://store.invalid", ELSEWHERE] {
            let error = connect(store, &[("ALL_PROXY", &url)], None).await.unwrap_err();
            assert!(error.message.contains("PROXY"), "{error}");
            assert!(!error.message.contains("hidden") && !error.message.contains('\n'), "{error}");
        }
    }
    let error = connect(ELSEWHERE, &[("ALL_PROXY", "socks5://hidden")], None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("ALL_PROXY") && !error.message.contains("hidden"), "{error}");
}

// Certificates.

#[tokio::test]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named() {
    let store = Stub::start(|_| Reply::empty_list()).await;
    let tls = Front::tls(store.url(), "server.pem").await;
    let endpoint = format!("https://{}", tls.address());
    let error = connect(&endpoint, &[], None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("--ca-file"), "{error}");

    connect(&endpoint, &[], Some("ca.pem")).await.unwrap();
    let path = tls_file("ca.pem");
    let variable = ("AWS_CA_BUNDLE", path.to_str().unwrap());
    connect(&endpoint, &[variable], None).await.unwrap();
    // The option comes first.
    let error = connect(&endpoint, &[variable], Some("server.key")).await.unwrap_err();
    assert!(error.message.starts_with("--ca-file "), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_tls_is_said() {
    let store = Stub::start(|_| Reply::empty_list()).await;
    let expired = Front::tls(store.url(), "expired.pem").await;
    let right = Front::tls(store.url(), "server.pem").await;
    let other_name = right.address().replace("127.0.0.1", "localhost");
    let plain = Front::plain().await;
    for (address, words) in [
        (expired.address(), ["expired", "clock"]),
        (&other_name, ["localhost", "check the host in --endpoint-url"]),
        (plain.address(), ["TLS", "may speak http"]),
    ] {
        let error = connect(&format!("https://{address}"), &[], Some("ca.pem")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(words.iter().all(|word| error.message.contains(word)), "{error}");
        assert!(!error.message.contains('\n'), "{error}");
    }
    assert!(store.requests().is_empty());
}

// The REST plumbing.

static TEST: Dialect = Dialect {
    server: "the store",
    store: "Test",
    bucket: "bucket",
    endpoint: "TEST_ENDPOINT",
    credentials: "name others in TEST_TOKEN",
    kind: |refusal| (refusal.code == Some("Missing")).then_some(ErrorKind::NoSuchBucket),
    next_step: |_| None,
};

fn said(_: &HeaderMap, body: &[u8]) -> Said {
    let text = String::from_utf8_lossy(body);
    let (code, message) = text.split_once(' ').unwrap_or((&text, ""));
    Said { code: Some(code.to_owned()), message: Some(message.to_owned()) }
}

async fn rest() -> Rest {
    let options = RemoteOptions::default();
    Rest::new(HttpClient::open(&options, &CallerEnv::default(), None).await.unwrap(), &TEST, said)
}

fn call(store: &Stub) -> Call {
    let base = BaseUrl::parse("TEST_ENDPOINT", store.url()).unwrap();
    Call::new(Method::GET, &base)
        .path("/bucket/key")
        .bearer("hidden")
        .secret("x-secret", "hidden")
        .header("if-match", "\"one\"")
}

const WHAT: &str = "GET t://bucket/key";

async fn get(call: Call) -> Result<Object, RemoteError> {
    let rest = rest().await;
    // As remotes do it, from any thread.
    tokio::spawn(async move { rest.object(WHAT, call, &(3..6)).await }).await.unwrap()
}

async fn bytes(object: Object) -> Vec<u8> {
    let pieces: Vec<_> = object.body.map(Result::unwrap).collect().await;
    pieces.concat()
}

fn found(_: &Request) -> Reply {
    Reply::new(206, &[("content-range", "bytes 3-5/10")], "def")
}

fn redirect(status: u16, to: &str) -> Reply {
    Reply::new(status, &[("location", to)], "over there")
}

#[tokio::test]
async fn a_redirect_is_followed_as_it_stands_and_without_secrets() {
    let target = Stub::start(found).await;
    for status in [301, 302, 307, 308] {
        let place = "/o/a%2fb//c?sig=%2b+/=&t=a%3Db";
        let to = format!("{}{place}", target.url());
        let proxy = Stub::start(move |_| redirect(status, &to)).await;
        let object = get(call(&proxy).following_redirects()).await.unwrap();
        assert_eq!((object.total_size, bytes(object).await.as_slice()), (10, &b"def"[..]));
        let arrived = target.requests().last().unwrap().clone();
        assert_eq!((arrived.method(), arrived.target()), ("GET", place));
        assert_eq!(arrived.header("range"), Some("bytes=3-5"));
        assert_eq!(arrived.header("if-match"), Some("\"one\""));
        for secret in ["authorization", "x-secret"] {
            assert_eq!(arrived.header(secret), None);
            assert!(proxy.requests()[0].header(secret).is_some());
        }
    }
}

#[tokio::test]
async fn a_redirect_on_the_same_host_keeps_what_is_secret_and_the_connection() {
    let store = Stub::start(|request| match request.target() {
        "/there?x" => found(request),
        _ => redirect(307, "/there?x"),
    })
    .await;
    get(call(&store).following_redirects()).await.unwrap();
    assert_eq!(store.requests()[1].header("authorization"), Some("Bearer hidden"));
    assert_eq!(store.connections(), 1);
}

#[tokio::test]
async fn redirects_that_nobody_asked_for_lead_nowhere_or_in_circles_end() {
    let target = Stub::start(found).await;
    let to = target.url().to_owned();
    let proxy = Stub::start(move |_| redirect(301, &to)).await;
    let error = get(call(&proxy)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(target.requests().is_empty());

    let there = Stub::start(|_| redirect(301, "/bucket/key")).await;
    let back = Stub::start(|_| redirect(302, "ftp://h/hidden")).await;
    for (store, requests, words) in [(&there, 1, "in a circle"), (&back, 1, "no place")] {
        let error = get(call(store).following_redirects()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains(words) && !error.message.contains("hidden"), "{error}");
        assert_eq!(store.requests().len(), requests);
    }
    let endless = Stub::start(|request| redirect(307, &format!("{}x", request.target()))).await;
    let error = get(call(&endless).following_redirects()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert_eq!(endless.requests().len(), 5);
}

#[tokio::test]
async fn a_list_keeps_its_body_on_the_way() {
    let target = Stub::start(|_| Reply::new(200, &[], "listed")).await;
    let to = target.url().to_owned();
    let proxy = Stub::start(move |_| redirect(307, &to)).await;
    let call = call(&proxy).body("application/json", "{}").following_redirects();
    let document = rest().await.document(Asked::List, WHAT, call).await.unwrap();
    assert_eq!(document.body, "listed");
    let arrived = &target.requests()[0];
    assert_eq!(arrived.header("content-length"), Some("2"));
    assert_eq!(arrived.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn the_stores_own_no_is_told() {
    let store = Stub::start(|request| match request.target() {
        "/missing" => Reply::new(500, &[], "Missing no such\nthing."),
        "/slow" => Reply::new(429, &[("retry-after", "7")], ""),
        "/page" => Reply::new(405, &[], vec![b'x'; 1 << 20]),
        _ => Reply::new(401, &[], "Who"),
    })
    .await;
    let base = BaseUrl::parse("TEST_ENDPOINT", store.url()).unwrap();
    let rest = rest().await;
    let ask = async |path| {
        let call = Call::new(Method::GET, &base).path(path);
        rest.document(Asked::List, WHAT, call).await.unwrap_err()
    };
    let error = ask("/missing").await;
    assert_eq!(error.kind, ErrorKind::NoSuchBucket);
    assert_eq!(
        error.message,
        "GET t://bucket/key: the store answered 500 Missing: no such thing; check the bucket's \
         name and TEST_ENDPOINT"
    );
    let error = ask("/who").await;
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.ends_with("or name others in TEST_TOKEN"), "{error}");
    let kind = ask("/slow").await.kind;
    let wait = std::time::Duration::from_secs(7);
    assert_eq!(kind, ErrorKind::Throttled { retry_after: Some(wait) });
    let error = ask("/page").await;
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.chars().count() < 300, "{error}");
}

#[tokio::test]
async fn answers_are_bounded_and_cut() {
    let store = Stub::start(|request| match request.target() {
        "/endless" => Reply::endless("HTTP/1.1 200 OK\r\n\r\n", &[b' '; 1 << 16]),
        "/short" => Reply::short(&[("content-range", "bytes 3-5/10")], b"d", 3),
        "/whole" => Reply::new(200, &[], "abcdefghij"),
        _ => Reply::new(206, &[("content-range", "bytes 4-6/10")], "efg"),
    })
    .await;
    let base = BaseUrl::parse("TEST_ENDPOINT", store.url()).unwrap();
    let rest = rest().await;
    let call = |path| Call::new(Method::GET, &base).path(path);
    let error = rest.document(Asked::List, WHAT, call("/endless")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    let error = rest.document(Asked::List, WHAT, call("/short")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Transient, "{error}");
    assert_eq!(bytes(get(call("/whole")).await.unwrap()).await, b"def");
    let pieces: Vec<_> = get(call("/short")).await.unwrap().body.collect().await;
    assert_eq!(pieces.last().unwrap().as_ref().unwrap_err().kind, ErrorKind::Transient);
    assert_eq!(get(call("/elsewhere")).await.unwrap_err().kind, ErrorKind::Invalid);
    let empty = rest.object(WHAT, call("/whole"), &(3..3)).await;
    assert_eq!(empty.unwrap_err().kind, ErrorKind::Invalid);
}
