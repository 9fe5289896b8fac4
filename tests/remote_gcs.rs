//! Google Cloud Storage over real sockets to a store that misbehaves, or does what no
//! emulator does: pages with folders, bills, and generations that are gone.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::stub::{Reply, Request, Stub};
use warmfs::admission::Class;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::RemoteClient;
use warmfs::remote::gcs::GcsRemote;
use warmfs::remote::{ErrorKind, Key, ListRequest, ObjectMeta, Remote, RemoteError, Version};

const TOKEN: (&str, &str) = ("CLOUDSDK_AUTH_ACCESS_TOKEN", "hidden-token");

async fn connect(
    store: &Stub,
    env: &[(&str, &str)],
    change: impl FnOnce(&mut RemoteOptions),
) -> (Result<GcsRemote, RemoteError>, Arc<RemoteMetrics>) {
    let mut options =
        RemoteOptions { endpoint_url: Some(store.url().to_owned()), ..RemoteOptions::default() };
    change(&mut options);
    let env: CallerEnv = env.iter().copied().collect();
    let metrics = Arc::default();
    (GcsRemote::connect("bucket", &options, &env, &metrics).await, metrics)
}

fn is_media(request: &Request) -> bool {
    request.parameter("alt").is_some()
}

fn empty() -> Reply {
    Reply::new(200, &[], r#"{"kind": "storage#objects"}"#)
}

/// The JSON API's way to say no.
fn refusal(status: u16, reason: &str, message: &str) -> Reply {
    refusal_with(status, reason, message, &[])
}

fn refusal_with(status: u16, reason: &str, message: &str, headers: &[(&str, &str)]) -> Reply {
    let errors = serde_json::json!([{ "domain": "global", "reason": reason, "message": message }]);
    let error = serde_json::json!({ "code": status, "message": message, "errors": errors });
    Reply::new(status, headers, serde_json::json!({ "error": error }).to_string())
}

/// A remote that is connected, to a store that answers all but the first LIST with
/// `answer`.
async fn connected(
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Stub, GcsRemote, Arc<RemoteMetrics>) {
    let is_first = |request: &Request| request.parameter("fields").as_deref() == Some("kind");
    let store = Stub::start(move |r| if is_first(r) { empty() } else { answer(r) }).await;
    let (remote, metrics) = connect(&store, &[TOKEN], |_| ()).await;
    (store, remote.unwrap(), metrics)
}

fn object() -> ObjectMeta {
    ObjectMeta {
        key: Key("odd key/b".into()),
        size: 10,
        version: Version("7".into()),
        mtime: std::time::SystemTime::UNIX_EPOCH,
    }
}

/// The resource of [`object`] at a generation.
fn resource(generation: u64) -> Reply {
    let body = serde_json::json!({
        "size": "10",
        "generation": generation.to_string(),
        "timeCreated": "2026-01-02T03:04:05.678Z",
    });
    Reply::new(200, &[], body.to_string())
}

async fn read(remote: &GcsRemote) -> Result<Vec<u8>, RemoteError> {
    let client = Arc::new(RemoteClient::new(Arc::new(remote.clone()), Arc::default()));
    let mut reader = client.get_range(object(), 3..6, Class::Demand);
    let mut all = Vec::new();
    while let Some(piece) = reader.next().await? {
        all.extend_from_slice(&piece);
    }
    Ok(all)
}

const GOOD: [(&str, &str); 3] = [
    ("content-range", "bytes 3-5/10"),
    ("x-goog-generation", "7"),
    ("x-goog-stored-content-encoding", "identity"),
];

// Objects.

#[tokio::test]
async fn a_range_is_asked_for_with_its_generation() {
    let (store, remote, _) = connected(|_| Reply::new(206, &GOOD, "def")).await;
    assert_eq!(read(&remote).await.unwrap(), b"def");
    let request = &store.requests()[1];
    let path = "/storage/v1/b/bucket/o/odd%20key%2Fb?alt=media&generation=7";
    assert_eq!((request.method(), request.target()), ("GET", path));
    assert_eq!(request.header("range"), Some("bytes=3-5"));
    assert_eq!(request.header("accept-encoding"), Some("gzip"));
    assert_eq!(request.header("authorization"), Some("Bearer hidden-token"));
    assert_eq!(store.requests().len(), 2);
}

#[tokio::test]
async fn an_object_is_as_its_generation_was_made() {
    let (store, remote, _) = connected(|_| resource(7)).await;
    let meta = remote.head(&Key("odd key/b".into())).await.unwrap();
    let since = meta.mtime.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(since, Duration::from_millis(1_767_323_045_678));
    assert_eq!(ObjectMeta { mtime: object().mtime, ..meta }, object());
    assert_eq!(store.requests()[1].parameter("fields").unwrap(), "size,generation,timeCreated");
}

#[tokio::test]
async fn a_generation_that_is_gone_was_replaced_or_deleted() {
    // Bytes are refused in plain text.
    let gone = || Reply::new(404, &[("content-type", "text/html")], "No such object: bucket/b");
    let missing = || refusal(404, "notFound", "No such object: bucket/b");
    for (now, kind) in [(8, ErrorKind::Changed), (7, ErrorKind::NotFound), (0, ErrorKind::NotFound)]
    {
        let (store, remote, metrics) = connected(move |request| match now {
            _ if is_media(request) => gone(),
            0 => missing(),
            now => resource(now),
        })
        .await;
        let error = read(&remote).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains("GET gs://bucket/odd key/b"), "{error}");
        assert_eq!(store.requests().len(), 3);
        assert_eq!(metrics.head.requests.get(), 1, "what is asked is counted");
    }
    let (_store, remote, metrics) = connected(|request| match is_media(request) {
        true => Reply::new(404, &[], ""),
        false => refusal(403, "forbidden", "no"),
    })
    .await;
    assert_eq!(read(&remote).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(metrics.head.errors.get(), 1);
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_not_handed_out() {
    let other = [GOOD[0], ("x-goog-generation", "8"), GOOD[2]];
    let (_store, remote, _) = connected(move |_| Reply::new(206, &other, "xxx")).await;
    assert_eq!(read(&remote).await.unwrap_err().kind, ErrorKind::Changed);

    // Unpacked by the store, and packed by somebody on the way.
    let unpacked = [("x-goog-generation", "7"), ("x-goog-stored-content-encoding", "gzip")];
    let packed = [GOOD[0], GOOD[1], GOOD[2], ("content-encoding", "gzip")];
    let bare = [GOOD[0]];
    for (headers, words) in [
        (&unpacked[..], "stored as gzip"),
        (&packed[..], "sent as gzip"),
        (&bare[..], "generation"),
    ] {
        let headers = headers.to_vec();
        let (_store, remote, _) = connected(move |_| Reply::new(206, &headers, "0123456789")).await;
        let error = read(&remote).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let stored_packed = [
        GOOD[0],
        GOOD[1],
        ("x-goog-stored-content-encoding", "gzip"),
        ("content-encoding", "gzip"),
    ];
    let (_store, remote, _) = connected(move |_| Reply::new(206, &stored_packed, "def")).await;
    assert_eq!(read(&remote).await.unwrap(), b"def");
}

#[tokio::test]
async fn a_no_of_the_store_says_what_to_do() {
    use ErrorKind::*;
    let wait = Throttled { retry_after: Some(Duration::from_secs(7)) };
    let encrypted = "resourceIsEncryptedWithCustomerEncryptionKey";
    let project = "a@b does not have serviceusage.services.use access";
    for (status, reason, message, kind, words) in [
        (
            404,
            "notFound",
            "The specified bucket does not exist.",
            NoSuchBucket,
            "the bucket's name",
        ),
        (403, "forbidden", "a@b has no access.", Denied, "GOOGLE_APPLICATION_CREDENTIALS"),
        (403, "rateLimitExceeded", "slower", wait.clone(), "slower"),
        (429, "rateLimitExceeded", "slower", wait, "slower"),
        (412, "conditionNotMet", "", Changed, "412"),
        (400, encrypted, "", Denied, "give --customer-key-file"),
        (400, "customerEncryptionKeyIsIncorrect", "", Denied, "another key of your own"),
        (400, "resourceNotEncryptedWithCustomerEncryptionKey", "", Denied, "mount it without"),
        (403, "forbidden", project, Denied, "--billing-project"),
        (401, "authError", "Invalid Credentials", Credentials, "refresh or correct"),
        (503, "backendError", "", Throttled { retry_after: Some(Duration::from_secs(7)) }, "503"),
        (500, "backendError", "", Transient, "500"),
        (400, "invalid", "Invalid argument", Invalid, "Invalid argument"),
    ] {
        let later = [("retry-after", "7")];
        let reply = move |_: &Request| refusal_with(status, reason, message, &later);
        let (_store, remote, _) = connected(reply).await;
        let error = remote.head(&object().key).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(words), "{words}: {error}");
        assert!(!error.message.contains("hidden") && !error.message.contains('\n'), "{error}");
    }
}

// Listings.

/// A page as the store's documentation describes it: folders count, and a token leads
/// on behind the last entry.
fn page(keys: &[&str], request: &Request) -> Reply {
    let parameter = |name| request.parameter(name).unwrap_or_default();
    let (prefix, token) = (parameter("prefix"), parameter("pageToken"));
    let start = parameter("startOffset");
    let most = request.parameter("maxResults").map_or(1_000, |most| most.parse().unwrap());
    let fold = |key: &&str| {
        let slash = key[prefix.len()..].find('/').filter(|_| !parameter("delimiter").is_empty());
        slash.map_or((*key).to_owned(), |slash| key[..prefix.len() + slash + 1].to_owned())
    };
    let found = keys.iter().filter(|key| key.starts_with(&prefix) && **key >= &*start).map(fold);
    let entries: BTreeSet<_> = found.filter(|entry| *entry > token).collect();
    let taken: Vec<_> = entries.iter().take(most).cloned().collect();
    let next = (entries.len() > most).then(|| taken.last().unwrap());
    let item = |key: &String| {
        serde_json::json!({
            "name": key, "size": "1", "generation": "1", "timeCreated": "2026-01-02T03:04:05Z",
        })
    };
    let (folders, objects): (Vec<_>, Vec<_>) = taken.iter().partition(|entry| entry.ends_with('/'));
    let mut body = serde_json::json!({ "kind": "storage#objects" });
    // Empty lists are left out.
    if !objects.is_empty() {
        body["items"] = objects.into_iter().map(item).collect();
    }
    if !folders.is_empty() {
        body["prefixes"] = serde_json::json!(folders);
    }
    if let Some(next) = next {
        body["nextPageToken"] = serde_json::json!(next);
    }
    Reply::new(200, &[], body.to_string())
}

#[tokio::test]
async fn folders_count_in_pages_and_a_start_is_exclusive() {
    const KEYS: [&str; 8] = ["l/a-b", "l/a.txt", "l/a/x", "l/a/y/z", "l/a0", "l/b/x", "l/c", "l/é"];
    let (store, remote, _) = connected(|request| page(&KEYS, request)).await;
    let flat = ["l/a-b", "l/a.txt", "l/a/", "l/a0", "l/b/", "l/c", "l/é"];
    for max_keys in [None, Some(1), Some(2), Some(3)] {
        for (after, recursive, expected) in [
            (None, true, &KEYS[..]),
            (None, false, &flat[..]),
            (Some("l/a.txt"), true, &KEYS[2..]),
            (Some("l/a.txt0"), true, &KEYS[2..]),
            (Some("l/a/x"), true, &KEYS[3..]),
            (Some("l/a.txt"), false, &flat[2..]),
            (Some("l/a/"), false, &flat[3..]),
            (Some("l/a/x"), false, &flat[3..]),
            (Some("l/b0"), false, &flat[5..]),
            (Some("l/é"), true, &[]),
        ] {
            let mut request = ListRequest {
                prefix: "l/".into(),
                recursive,
                start_after: after.map(str::to_owned),
                continuation: None,
                max_keys,
            };
            let mut all = Vec::new();
            loop {
                let page = remote.list(&request).await.unwrap();
                let mut entries: Vec<_> = page
                    .objects
                    .into_iter()
                    .map(|object| object.key.0)
                    .chain(page.prefixes)
                    .collect();
                assert!(max_keys.is_none_or(|most| entries.len() <= usize::from(most)));
                entries.sort();
                all.extend(entries);
                request.continuation = page.next;
                if request.continuation.is_none() {
                    break;
                }
            }
            assert_eq!(all, expected, "{max_keys:?} {after:?} {recursive}");
        }
    }
    let first = &store.requests()[1];
    assert_eq!(first.parameter("prettyPrint").as_deref(), Some("false"));
    assert_eq!(first.header("authorization"), Some("Bearer hidden-token"));
}

#[tokio::test]
async fn a_listing_that_cannot_be_right_is_an_error() {
    for (body, kind, words) in [
        ("<html>", ErrorKind::Transient, "--endpoint-url"),
        (r#"{"items": {}}"#, ErrorKind::Transient, "--endpoint-url"),
        (r#"{"items": [{"size": "1", "generation": "1"}]}"#, ErrorKind::Invalid, "key"),
        (r#"{"items": [{"name": "a", "size": "1"}]}"#, ErrorKind::Invalid, "generation"),
        (r#"{"items": [{"name": "a", "generation": "1"}]}"#, ErrorKind::Invalid, "size"),
        (
            r#"{"items": [{"name": "a", "generation": "1", "size": "99999999999999999"}]}"#,
            ErrorKind::Invalid,
            "size",
        ),
    ] {
        let (_store, remote, _) = connected(move |_| Reply::new(200, &[], body)).await;
        let error = remote.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{body}: {error}");
        assert!(error.message.contains(words), "{error}");
    }
}

// Who pays.

/// A bucket whose requester pays, and the projects that requests named.
async fn billing_store() -> Stub {
    Stub::start(|request| match request.parameter("userProject") {
        Some(_) => empty(),
        None => {
            let message = "Bucket is a requester pays bucket but no user project provided.";
            refusal(400, "required", message)
        }
    })
    .await
}

fn payers(store: &Stub) -> Vec<Option<String>> {
    store.requests().iter().map(|request| request.parameter("userProject")).collect()
}

#[tokio::test]
async fn who_requests_pays_if_the_store_wants_it() {
    const PROJECT: (&str, &str) = ("GOOGLE_CLOUD_PROJECT", "mine");
    const QUOTA: (&str, &str) = ("GOOGLE_CLOUD_QUOTA_PROJECT", "quota");
    let named = |options: &mut RemoteOptions| options.billing_project = Some("named".into());
    let none: fn(&mut RemoteOptions) = |_| ();
    let pays: fn(&mut RemoteOptions) = |options| options.requester_pays = true;
    let some = |project: &str| Some(project.to_owned());
    for (env, options, expected) in [
        (&[TOKEN, QUOTA, PROJECT][..], named as fn(&mut RemoteOptions), vec![some("named")]),
        (&[TOKEN, QUOTA, PROJECT], none, vec![some("quota")]),
        (&[TOKEN, PROJECT], none, vec![None, some("mine")]),
        (&[TOKEN, PROJECT], pays, vec![some("mine")]),
    ] {
        let store = billing_store().await;
        let (remote, metrics) = connect(&store, env, options).await;
        let remote = remote.unwrap();
        assert_eq!(payers(&store), expected);
        assert_eq!(metrics.list.requests.get(), expected.len() as u64);
        let _ = remote.head(&Key("k".into())).await;
        assert_eq!(payers(&store).last(), expected.last(), "it pays from then on");
    }
    let store = billing_store().await;
    let error = connect(&store, &[TOKEN], |_| ()).await.0.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(
        error.message.ends_with("name the project that pays with --billing-project"),
        "{error}"
    );

    // Nobody is billed who need not be.
    let free = Stub::start(|_| empty()).await;
    connect(&free, &[TOKEN, PROJECT], |_| ()).await.0.unwrap();
    assert_eq!(payers(&free), [None]);
}
