//! S3 over real sockets to a server that misbehaves: what a bucket's region,
//! missing credentials, a broken connection and another version lead to.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::stub::{Reply, Request, Stub};
use warmfs::admission::Class;
use warmfs::config::{CallerEnv, RemoteOptions, TrafficOptions};
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::{Limits, RemoteClient};
use warmfs::remote::endpoint::Endpoints;
use warmfs::remote::s3::S3Remote;
use warmfs::remote::{ErrorKind, Key, ListRequest, ObjectMeta, Remote, RemoteError, Version};

/// Longest that a metadata service which is not there may delay a connect, with
/// room for a busy machine.
const METADATA_DELAY: Duration = Duration::from_millis(1500);

const KEYS: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "hidden-secret")];

async fn connect(
    store: &Stub,
    env: &[(&str, &str)],
    change: impl FnOnce(&mut RemoteOptions),
) -> (Result<S3Remote, RemoteError>, Arc<RemoteMetrics>) {
    let mut options =
        RemoteOptions { endpoint_url: Some(store.url().to_owned()), ..RemoteOptions::default() };
    change(&mut options);
    let env: CallerEnv = env.iter().copied().collect();
    let metrics = Arc::default();
    (S3Remote::connect("bucket", &options, &env, &metrics).await, metrics)
}

/// A remote that is connected, to a store that answers GETs with `get`.
async fn connected(get: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> (Stub, S3Remote) {
    let store = Stub::start(move |r| if r.is_list() { Reply::empty_list() } else { get(r) }).await;
    let remote = connect(&store, &KEYS, |_| ()).await.0.unwrap();
    (store, remote)
}

fn content() -> Vec<u8> {
    (0..200_000_u32).map(|n| (n / 3) as u8).collect()
}

fn object() -> ObjectMeta {
    ObjectMeta {
        key: Key("key".into()),
        size: content().len() as u64,
        version: Version("one".into()),
        mtime: std::time::SystemTime::UNIX_EPOCH,
    }
}

/// The range a request asks for.
fn asked(request: &Request) -> Range<usize> {
    let range = request.header("range").unwrap().strip_prefix("bytes=").unwrap();
    let (start, last) = range.split_once('-').unwrap();
    start.parse().unwrap()..last.parse::<usize>().unwrap() + 1
}

/// Headers of an answer with `range` of [`content`].
fn headers(range: &Range<usize>) -> [(&'static str, String); 2] {
    let range = format!("bytes {}-{}/{}", range.start, range.end - 1, content().len());
    [("etag", "\"one\"".to_owned()), ("content-range", range)]
}

fn as_refs<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn good(request: &Request) -> Reply {
    if request.method() == "HEAD" {
        return Reply::new(404, &[], "");
    }
    let range = asked(request);
    Reply::new(206, &as_refs(&headers(&range)), &content()[range.clone()])
}

async fn read(
    remote: &S3Remote,
    range: Range<u64>,
) -> (Result<Vec<u8>, RemoteError>, Arc<RemoteMetrics>) {
    let metrics = Arc::<RemoteMetrics>::default();
    let limits = Limits { stall: Duration::from_millis(200), ..Limits::default() };
    let client = RemoteClient::with_limits(Arc::new(remote.clone()), Arc::clone(&metrics), limits);
    (read_with(&Arc::new(client), range).await, metrics)
}

async fn read_with(client: &Arc<RemoteClient>, range: Range<u64>) -> Result<Vec<u8>, RemoteError> {
    let mut reader = client.get_range(object(), range, Class::Demand);
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

/// Reads as [`read_often`] does; `bad` answers each tenth GET once the store is known.
async fn read_hedged(
    bad: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Arc<RemoteMetrics> {
    let count = AtomicUsize::new(0);
    let (store, remote) = connected(move |request| {
        let count = count.fetch_add(1, Ordering::SeqCst);
        if count >= 40 && count.is_multiple_of(10) { bad(request) } else { good(request) }
    })
    .await;
    read_often(&store, remote).await
}

/// Reads with a client as mounts have it, hedges and all, often enough to know
/// the store. Compares every byte, and the count of requests with the store's own.
async fn read_often(store: &Stub, remote: S3Remote) -> Arc<RemoteMetrics> {
    let metrics = Arc::<RemoteMetrics>::default();
    let endpoint = Endpoints::default().of(remote.id());
    let traffic = TrafficOptions::default();
    let client =
        Arc::new(RemoteClient::for_mount(Arc::new(remote), metrics.clone(), endpoint, &traffic));
    for n in 0..80 {
        let range = n * 100..n * 100 + 100_000;
        let bytes = read_with(&client, range.clone()).await.unwrap();
        assert!(bytes == content()[range.start as usize..range.end as usize], "{n}");
    }
    let gets = store.requests().iter().filter(|request| !request.is_list()).count();
    assert_eq!(metrics.get.requests.get(), gets as u64);
    assert_eq!(metrics.get.bytes.get(), 80 * 100_000);
    metrics
}

// Region.

#[tokio::test]
async fn the_buckets_region_is_followed() {
    for (status, code) in
        [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed"), (403, "AccessDenied")]
    {
        for given in [None, Some("ap-south-1")] {
            let store = Stub::start(move |request| match request.signed_region() {
                Some("eu-west-3") => Reply::empty_list(),
                _ => Reply::s3_error(status, code, &[("x-amz-bucket-region", "eu-west-3")]),
            })
            .await;
            let (remote, metrics) =
                connect(&store, &KEYS, |o| o.region = given.map(str::to_owned)).await;
            remote.unwrap();
            let regions: Vec<_> = store
                .requests()
                .iter()
                .map(|request| request.signed_region().unwrap().to_owned())
                .collect();
            assert_eq!(regions, [given.unwrap_or("us-east-1"), "eu-west-3"], "{code}");
            assert_eq!(metrics.list.requests.get(), 2);
            assert_eq!(metrics.list.errors.get(), 1);
        }
    }
}

#[tokio::test]
async fn regions_that_send_each_other_around_end() {
    let store = Stub::start(|request| {
        let next = if request.signed_region() == Some("a-a-1") { "b-b-1" } else { "a-a-1" };
        Reply::s3_error(301, "PermanentRedirect", &[("x-amz-bucket-region", next)])
    })
    .await;
    let error = connect(&store, &KEYS, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert_eq!(store.requests().len(), 3);
}

// Credentials.

/// Nothing configured, and a metadata service at this address.
fn only_metadata(url: &str) -> [(&str, &str); 1] {
    [("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]
}

fn signed_only(request: &Request) -> Reply {
    match request.header("authorization") {
        Some(_) => Reply::empty_list(),
        None => Reply::s3_error(403, "AccessDenied", &[]),
    }
}

#[tokio::test]
async fn a_public_bucket_does_not_wait_for_the_metadata_service() {
    let store = Stub::start(|_| Reply::empty_list()).await;
    let metadata = Stub::start(|_| Reply::silence()).await;
    let start = Instant::now();
    let (remote, metrics) = connect(&store, &only_metadata(metadata.url()), |_| ()).await;
    remote.unwrap();
    assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
    assert_eq!(metrics.list.requests.get(), 1);
    assert_eq!(store.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_metadata_service_that_is_not_there_costs_a_second_at_most() {
    let silent = Stub::start(|_| Reply::silence()).await;
    let missing = Stub::start(|_| Reply::new(404, &[], "")).await;
    let failing = Stub::start(|_| Reply::new(500, &[], "")).await;
    // The last one: an address of a network that is for documentation only.
    for url in [silent.url(), missing.url(), failing.url(), "http://192.0.2.1"] {
        let store = Stub::start(signed_only).await;
        let start = Instant::now();
        let error = connect(&store, &only_metadata(url), |_| ()).await.0.unwrap_err();
        assert!(start.elapsed() < METADATA_DELAY, "{url}: {:?}", start.elapsed());
        assert_eq!(error.kind, ErrorKind::Credentials);
        for word in ["aws configure", "AWS_ACCESS_KEY_ID", "--profile", "--no-sign-request"] {
            assert!(error.message.contains(word), "{error}");
        }
        assert!(!error.message.contains('\n'));
        assert_eq!(store.requests().len(), 1);
    }
}

#[tokio::test]
async fn the_metadata_service_is_not_asked_against_the_callers_will() {
    let store = Stub::start(signed_only).await;
    let metadata = Stub::start(|_| Reply::silence()).await;
    let mut env = only_metadata(metadata.url()).to_vec();
    env.push(("AWS_EC2_METADATA_DISABLED", "true"));
    let error = connect(&store, &env, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(metadata.requests().is_empty());
}

#[tokio::test]
async fn credentials_of_the_machine_are_used_when_the_bucket_wants_some() {
    let store = Stub::start(signed_only).await;
    let metadata = Stub::start(|request| match request.target() {
        "/latest/api/token" => {
            Reply::new(200, &[("x-aws-ec2-metadata-token-ttl-seconds", "21600")], "token")
        }
        "/latest/meta-data/iam/security-credentials/" => Reply::new(200, &[], "role"),
        "/latest/meta-data/iam/security-credentials/role" => Reply::new(
            200,
            &[],
            r#"{"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": "ASIAMACHINE",
                "SecretAccessKey": "s", "Token": "t", "LastUpdated": "2020-01-01T00:00:00Z",
                "Expiration": "2199-01-01T00:00:00Z"}"#,
        ),
        _ => Reply::new(404, &[], ""),
    })
    .await;
    let (remote, metrics) = connect(&store, &only_metadata(metadata.url()), |_| ()).await;
    remote.unwrap();
    assert_eq!(metrics.list.requests.get(), 2);
    let signed = store.requests()[1].header("authorization").unwrap().to_owned();
    assert!(signed.contains("ASIAMACHINE"), "{signed}");
}

#[tokio::test]
async fn named_credentials_that_fail_never_become_anonymous() {
    for (status, code) in
        [(403, "InvalidAccessKeyId"), (403, "SignatureDoesNotMatch"), (400, "ExpiredToken")]
    {
        let store = Stub::start(move |request| match request.header("authorization") {
            Some(_) => Reply::s3_error(status, code, &[]),
            None => Reply::empty_list(),
        })
        .await;
        let error = connect(&store, &KEYS, |_| ()).await.0.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
        assert!(error.message.contains(code) && !error.message.contains("hidden"), "{error}");
        assert!(store.requests().iter().all(|r| r.header("authorization").is_some()));
    }
}

#[tokio::test]
async fn who_asks_for_no_signature_gets_none() {
    let store = Stub::start(|_| Reply::s3_error(403, "AccessDenied", &[])).await;
    let (remote, _) = connect(&store, &KEYS, |o| o.no_sign_request = true).await;
    // It may still be allowed to read objects, or below its prefix.
    let remote = remote.unwrap();
    let error = remote.head(&Key("key".into())).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(store.requests().iter().all(|r| r.header("authorization").is_none()));
}

#[tokio::test]
async fn a_profile_gives_credentials_region_and_endpoint() {
    let store = Stub::start(signed_only).await;
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    let config = format!(
        "[default]\nregion = eu-north-1\n[profile other]\nregion = us-west-2\n\
         endpoint_url = {}\nsource_profile = other\n",
        store.url()
    );
    let keys = "[default]\naws_access_key_id = AKDEFAULT\naws_secret_access_key = s\n\
                [other]\naws_access_key_id = AKOTHER\naws_secret_access_key = s\n";
    std::fs::write(home.path().join(".aws/config"), config).unwrap();
    std::fs::write(home.path().join(".aws/credentials"), keys).unwrap();
    let home_env = ("HOME", home.path().to_str().unwrap());

    connect(&store, &[home_env], |_| ()).await.0.unwrap();
    connect(&store, &[home_env, ("AWS_PROFILE", "other")], |o| o.endpoint_url = None)
        .await
        .0
        .unwrap();
    let named = |o: &mut RemoteOptions| o.profile = Some("other".into());
    connect(&store, &[home_env, KEYS[0], KEYS[1]], named).await.0.unwrap();
    connect(&store, &[home_env, KEYS[0], KEYS[1]], |_| ()).await.0.unwrap();
    let signed: Vec<_> = store
        .requests()
        .iter()
        .map(|request| request.header("authorization").unwrap().to_owned())
        .collect();
    let expected =
        ["AKDEFAULT/.*eu-north-1", "AKOTHER/.*us-west-2", "AKOTHER/.*us-west-2", "AKIDEXAMPLE/"];
    for (signed, expected) in signed.iter().zip(expected) {
        assert!(expected.split(".*").all(|part| signed.contains(part)), "{signed} {expected}");
    }

    let error = connect(&store, &[home_env], |o| o.profile = Some("third".into())).await.0;
    let error = error.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("third") && error.message.contains("other"), "{error}");
    assert_eq!(store.requests().len(), 4);
}

#[tokio::test]
async fn a_profile_whose_credentials_cannot_be_loaded_is_an_error() {
    let store = Stub::start(|_| Reply::empty_list()).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config");
    std::fs::write(&file, "[default]\ncredential_process = /nonexistent/program\n").unwrap();
    let env = [("AWS_CONFIG_FILE", file.to_str().unwrap())];
    let error = connect(&store, &env, |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Credentials, "{error}");
    assert!(store.requests().is_empty());
}

// Requests.

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let gone = Stub::start(|_| Reply::silence()).await.url().to_owned();
    let options = RemoteOptions { endpoint_url: Some(gone), ..RemoteOptions::default() };
    let env = KEYS.into_iter().collect();
    let error = S3Remote::connect("bucket", &options, &env, &Arc::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable, "{error}");
    assert!(error.message.contains("--endpoint-url"), "{error}");
}

#[tokio::test]
async fn a_range_is_asked_for_with_its_version() {
    let (store, remote) = connected(good).await;
    let (bytes, metrics) = read(&remote, 1000..150_000).await;
    assert_eq!(bytes.unwrap(), content()[1000..150_000]);
    assert_eq!(metrics.get.requests.get(), 1);
    let request = &store.requests()[1];
    assert_eq!(request.header("range"), Some("bytes=1000-149999"));
    assert_eq!(request.header("if-match"), Some("\"one\""));
    assert_eq!(request.header("x-amz-request-payer"), None);
    assert!(request.target().starts_with("/bucket/key"), "{}", request.target());
}

#[tokio::test]
async fn the_payer_is_named_in_every_request() {
    let store = Stub::start(|r| if r.is_list() { Reply::empty_list() } else { good(r) }).await;
    let remote = connect(&store, &KEYS, |o| o.requester_pays = true).await.0.unwrap();
    read(&remote, 0..10).await.0.unwrap();
    let payer = |request: &Request| request.header("x-amz-request-payer").map(str::to_owned);
    assert!(store.requests().iter().all(|request| payer(request).as_deref() == Some("requester")));
    assert_eq!(store.requests().len(), 2);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (store, remote) = connected(good).await;
    for n in 0..10 {
        read(&remote, n * 1000..(n + 5) * 10_000).await.0.unwrap();
        remote.head(&Key("key".into())).await.unwrap_err();
    }
    assert_eq!(store.connections(), 1);
}

#[tokio::test]
async fn a_throttle_says_for_how_long() {
    let (_store, remote) =
        connected(|_| Reply::s3_error(503, "SlowDown", &[("retry-after", "7")])).await;
    let error = remote.get_range(&object(), 0..10).await.unwrap_err();
    let expected = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(7)) };
    assert_eq!(error.kind, expected, "{error}");
}

#[tokio::test]
async fn a_reset_a_short_body_and_a_stall_are_survived() {
    let count = AtomicUsize::new(0);
    let (store, remote) = connected(move |request| {
        let range = asked(request);
        let half = &content()[range.start..range.start + 20_000];
        let (fields, length) = (headers(&range), range.len());
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Reply::reset(&as_refs(&fields), half, length),
            1 => Reply::short(&as_refs(&fields), half, length),
            2 => Reply::stalling(&as_refs(&fields), half, length),
            3 => Reply::s3_error(500, "InternalError", &[]),
            _ => good(request),
        }
    })
    .await;
    let (bytes, metrics) = read(&remote, 0..200_000).await;
    assert!(bytes.unwrap() == content());
    assert_eq!(metrics.get.requests.get(), 5);
    assert_eq!(metrics.get.errors.get(), 4);
    let last = store.requests().last().unwrap().clone();
    // A reset may take bytes with it that had arrived; nothing is asked for twice otherwise.
    assert!((40_000..=60_000).contains(&asked(&last).start), "{last:?}");
}

#[tokio::test]
async fn what_goes_wrong_is_survived_with_hedges_too() {
    type Half = fn(&[(&str, &str)], &[u8], usize) -> Reply;
    let answer = |request: &Request, half: Half| {
        let range = asked(request);
        half(&as_refs(&headers(&range)), &content()[range.start..range.start + 30_000], range.len())
    };
    let metrics = read_hedged(move |r| answer(r, Reply::stalling)).await;
    assert!(metrics.hedges_won.get() >= 1, "{metrics:?}");
    let metrics = read_hedged(|_| Reply::silence()).await;
    assert!(metrics.hedges_won.get() >= 1, "{metrics:?}");
    let metrics = read_hedged(move |r| answer(r, Reply::reset)).await;
    assert!(metrics.retries.broken.get() >= 3, "{metrics:?}");
    let metrics = read_hedged(move |r| answer(r, Reply::short)).await;
    assert!(metrics.retries.broken.get() >= 3, "{metrics:?}");
    let metrics = read_hedged(|_| Reply::s3_error(429, "TooManyRequests", &[])).await;
    assert!(metrics.retries.throttled.get() >= 3, "{metrics:?}");
}

/// Reads as [`read_often`] does. Once, when hedges may be sent, a GET is not
/// answered, and its hedge is by `bad`.
async fn read_past_bad_hedge(
    bad: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> Arc<RemoteMetrics> {
    let count = AtomicUsize::new(0);
    let (store, remote) = connected(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        60 => Reply::silence(),
        61 => bad(request),
        _ => good(request),
    })
    .await;
    read_often(&store, remote).await
}

#[tokio::test]
async fn a_hedge_with_another_etag_is_left_and_the_first_get_made_again() {
    let metrics = read_past_bad_hedge(|request| {
        let range = asked(request);
        let mut fields = headers(&range);
        fields[0].1 = "\"two\"".to_owned();
        Reply::new(206, &as_refs(&fields), vec![0; range.len()])
    })
    .await;
    assert_eq!((metrics.hedges_sent.get(), metrics.hedges_won.get()), (1, 0));
    assert_eq!((metrics.retries.no_answer.get(), metrics.get.errors.get()), (1, 2));
}

#[tokio::test]
async fn a_hedge_that_brings_the_whole_body_is_cut() {
    let whole = |_: &Request| Reply::new(200, &[("etag", "\"one\"")], content());
    let metrics = read_past_bad_hedge(whole).await;
    assert_eq!((metrics.hedges_sent.get(), metrics.hedges_won.get()), (1, 1));
    // As a first answer too.
    let metrics = read_hedged(whole).await;
    assert_eq!(metrics.get.errors.get(), 0, "{metrics:?}");
}

#[tokio::test]
async fn a_burst_of_503s_longer_than_our_attempts_is_survived() {
    let count = AtomicUsize::new(0);
    let (store, remote) = connected(move |request| match count.fetch_add(1, Ordering::SeqCst) {
        0..9 => Reply::s3_error(503, "SlowDown", &[]),
        _ => good(request),
    })
    .await;
    let (bytes, metrics) = read(&remote, 0..200_000).await;
    assert!(bytes.unwrap() == content());
    assert_eq!((metrics.throttled.get(), metrics.retries.throttled.get()), (9, 9));
    assert_eq!(store.requests().len(), 11);
}

#[tokio::test]
async fn a_store_that_ignores_ranges_still_gives_the_right_bytes() {
    let whole = |_: &Request| Reply::new(200, &[("etag", "\"one\"")], content());
    let (_store, remote) = connected(whole).await;
    assert!(read(&remote, 70_000..90_000).await.0.unwrap() == content()[70_000..90_000]);
    assert!(read(&remote, 0..200_000).await.0.unwrap() == content());
}

#[tokio::test]
async fn bytes_from_elsewhere_are_refused() {
    let (_store, remote) = connected(|request| {
        let asked = asked(request);
        let other = asked.start + 1..asked.end + 1;
        Reply::new(206, &as_refs(&headers(&other)), &content()[other.clone()])
    })
    .await;
    assert_eq!(read(&remote, 5..10).await.0.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn another_version_is_never_mixed_in() {
    type Answer = fn(Range<usize>) -> Reply;
    let answers: [Answer; 3] = [
        |_| Reply::s3_error(412, "PreconditionFailed", &[]),
        |range| {
            let range = format!("bytes {}-{}/200000", range.start, range.end - 1);
            let fields = [("etag", "\"two\""), ("content-range", range.as_str())];
            Reply::new(206, &fields, vec![0; 200_000])
        },
        |_| Reply::s3_error(416, "InvalidRange", &[]),
    ];
    for answer in answers {
        let count = AtomicUsize::new(0);
        let (store, remote) = connected(move |request| {
            let range = asked(request);
            match count.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::short(&as_refs(&headers(&range)), &content()[..500], range.len()),
                _ => answer(range),
            }
        })
        .await;
        let error = read(&remote, 0..200_000).await.0.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed, "{error}");
        assert_eq!(store.requests().len(), 3);
    }
}

#[tokio::test]
async fn weak_and_bare_etags_name_the_same_version() {
    for etag in ["W/\"one\"", "one", "\"one\""] {
        let (_store, remote) = connected(move |request| {
            let range = asked(request);
            let mut fields = headers(&range);
            fields[0].1 = etag.to_owned();
            Reply::new(206, &as_refs(&fields), &content()[range.clone()])
        })
        .await;
        assert_eq!(read(&remote, 0..100).await.0.unwrap(), content()[..100], "{etag}");
    }
}

#[tokio::test]
async fn keys_that_xml_cannot_hold_survive() {
    let store = Stub::start(|request| match request.target() {
        target if target.contains("prefix=odd") => {
            assert!(target.contains("encoding-type=url"));
            Reply::new(
                200,
                &[],
                "<ListBucketResult><EncodingType>url</EncodingType><Contents>\
                 <Key>odd/new%0Aline+and%2Bplus%25</Key><Size>3</Size><ETag>&quot;e&quot;</ETag>\
                 <LastModified>2024-01-02T03:04:05.000Z</LastModified></Contents>\
                 <CommonPrefixes><Prefix>odd/%01/</Prefix></CommonPrefixes></ListBucketResult>",
            )
        }
        target if target.contains("list-type=2") => Reply::empty_list(),
        _ => Reply::new(200, &[("etag", "\"e\"")], ""),
    })
    .await;
    let remote = connect(&store, &KEYS, |_| ()).await.0.unwrap();
    let request = ListRequest { prefix: "odd/".into(), ..ListRequest::default() };
    let page = remote.list(&request).await.unwrap();
    assert_eq!(page.prefixes, ["odd/\u{1}/"]);
    let listed = &page.objects[0];
    assert_eq!(listed.key.0, "odd/new\nline and+plus%");
    assert_eq!((listed.size, listed.version.0.as_str()), (3, "e"));
    remote.head(&listed.key).await.unwrap();
    let head = store.requests().last().unwrap().clone();
    assert_eq!(head.method(), "HEAD");
    assert_eq!(head.target(), "/bucket/odd/new%0Aline%20and%2Bplus%25");
}

#[tokio::test]
async fn a_listing_that_cannot_be_right_is_an_error() {
    let endless = vec![b' '; 17 << 20];
    let store = Stub::start(move |request| match request.target() {
        target if target.contains("prefix=endless") => Reply::new(200, &[], &endless),
        target if target.contains("prefix=cut") => {
            let body = "<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>";
            Reply::new(200, &[], body)
        }
        _ => Reply::empty_list(),
    })
    .await;
    let remote = connect(&store, &KEYS, |_| ()).await.0.unwrap();
    for (prefix, kind) in [("endless/", ErrorKind::Transient), ("cut/", ErrorKind::Invalid)] {
        let request = ListRequest { prefix: prefix.into(), ..ListRequest::default() };
        let error = remote.list(&request).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
}
