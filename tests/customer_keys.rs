//! Keys of the caller's own (SSE-C, and what other clouds call the same): sent with each
//! HEAD and GET, and nowhere else to be found. None of the emulators looks at such keys,
//! so stores that answer as the clouds' documents say stand in for them here.

mod common;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use common::Warmfs;
use common::stub::{Reply, Request, Stub};
use tokio::runtime::Runtime;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::{
    ErrorKind, Key, ListRequest, ObjectMeta, Remote, RemoteError, Version, connect,
};

/// Of 32 bytes `k`: the key, its MD5 and its SHA-256, in base64.
const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
const MD5: &str = "mT2HRsMGJ5IX5C+0rreZ8Q==";
const SHA256: &str = "XjGPjPnL4kmjCBK4yhMtaR3tepGZFBNVjbV1hXX14B8=";

/// What a cloud calls algorithm, key and checksum of the key.
const S3: [&str; 3] = [
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-server-side-encryption-customer-key",
    "x-amz-server-side-encryption-customer-key-MD5",
];
const GCS: [&str; 3] =
    ["x-goog-encryption-algorithm", "x-goog-encryption-key", "x-goog-encryption-key-sha256"];
const AZURE: [&str; 3] =
    ["x-ms-encryption-algorithm", "x-ms-encryption-key", "x-ms-encryption-key-sha256"];

const S3_LIST: &str = "<ListBucketResult><Contents><Key>hello</Key><Size>5</Size>\
                       <ETag>&quot;1&quot;</ETag></Contents></ListBucketResult>";
const GCS_LIST: &str = r#"{"items": [{"name": "hello", "size": "5", "generation": "1"}]}"#;
const GCS_OBJECT: &str = r#"{"size": "5", "generation": "1"}"#;
const AZURE_LIST: &str = "<EnumerationResults><Blobs><Blob><Name>hello</Name><Properties>\
                          <Etag>1</Etag><Content-Length>5</Content-Length></Properties></Blob>\
                          </Blobs><NextMarker/></EnumerationResults>";

/// What is sent of a key's headers.
fn sent<'a>(request: &'a Request, names: &[&str; 3]) -> [Option<&'a str>; 3] {
    names.map(|name| request.header(name))
}

/// A GET of the object, answered as each cloud does.
fn hello() -> Reply {
    let headers = [("etag", "\"1\""), ("x-goog-generation", "1"), ("content-range", "bytes 0-4/5")];
    Reply::new(206, &headers, "hello")
}

/// An object of five bytes at S3, which `is_right` lets one see.
async fn s3(is_right: impl Fn(&Request) -> Result<(), Reply> + Send + Sync + 'static) -> Stub {
    Stub::start(move |request| match (request.is_list(), is_right(request)) {
        (true, _) => Reply::new(200, &[], S3_LIST),
        (_, Err(refusal)) => refusal,
        _ if request.method() == "HEAD" => Reply::new(200, &[("etag", "\"1\"")], "hello"),
        _ => hello(),
    })
    .await
}

/// As S3 is documented to treat what is stored with [`KEY`].
fn stored_with_key(request: &Request) -> Result<(), Reply> {
    let refusal = match sent(request, &S3)[1] {
        Some(KEY) => return Ok(()),
        Some(_) => Reply::s3_error(403, "AccessDenied", &[]),
        None => {
            let said = "The object was stored using a form of Server Side Encryption. The correct \
                        parameters must be provided to retrieve the object.";
            let body =
                format!("<Error><Code>InvalidRequest</Code><Message>{said}</Message></Error>");
            Reply::new(400, &[], body)
        }
    };
    Err(if request.method() == "HEAD" { Reply::new(400, &[], "") } else { refusal })
}

async fn open(uri: &str, store: &Stub, key: &str) -> Result<Arc<dyn Remote>, RemoteError> {
    let env = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "hidden"),
        // Signed, as what is signed must hold the headers.
        ("AZURE_STORAGE_KEY", "aGlkZGVu"),
        ("CLOUDSDK_AUTH_ACCESS_TOKEN", "hidden"),
        (CallerEnv::CUSTOMER_KEY, key),
    ];
    let env: CallerEnv = env.into_iter().collect();
    let endpoint_url = Some(store.url().to_owned());
    let options = RemoteOptions { endpoint_url, ..RemoteOptions::default() };
    connect(&uri.parse().unwrap(), &options, &env, &Arc::default()).await
}

fn object() -> ObjectMeta {
    let (key, version) = (Key("hello".into()), Version("1".into()));
    ObjectMeta { key, size: 5, version, mtime: SystemTime::UNIX_EPOCH }
}

#[tokio::test]
async fn the_key_goes_with_each_head_and_get_and_with_no_list() {
    let google =
        Stub::start(|request| match (request.parameter("alt"), request.target().contains("/o/")) {
            (Some(_), _) => hello(),
            (None, true) => Reply::new(200, &[], GCS_OBJECT),
            (None, false) => Reply::new(200, &[], GCS_LIST),
        });
    let azure = Stub::start(|request| match (request.method(), request.header("range")) {
        ("HEAD", _) => Reply::new(200, &[("etag", "1")], "hello"),
        (_, Some(_)) => hello(),
        _ => Reply::new(200, &[], AZURE_LIST),
    });
    for (uri, store, names, sum) in [
        ("s3://bucket", s3(stored_with_key).await, S3, MD5),
        ("gs://bucket", google.await, GCS, SHA256),
        ("az://account/container", azure.await, AZURE, SHA256),
    ] {
        let remote = open(uri, &store, KEY).await.unwrap();
        remote.list(&ListRequest::default()).await.unwrap();
        for request in store.requests() {
            assert_eq!(sent(&request, &names), [None; 3], "{uri}: {}", request.head);
        }
        assert_eq!(remote.head(&object().key).await.unwrap().size, 5);
        remote.get_range(&object(), 0..5).await.unwrap();
        let requests = store.requests();
        for request in &requests[requests.len() - 2..] {
            let key = [Some("AES256"), Some(KEY), Some(sum)];
            assert_eq!(sent(request, &names), key, "{uri}: {}", request.head);
        }
        assert!(!format!("{remote:?}").contains(KEY), "{uri}");
    }
}

#[tokio::test]
async fn what_is_no_key_is_refused_before_anything_is_asked() {
    let store = s3(stored_with_key).await;
    for key in ["c2VjcmV0", "secret"] {
        let error = open("s3://bucket", &store, key).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.starts_with("WARMFS_CUSTOMER_KEY: "), "{error}");
        assert!(!error.message.contains(key), "{error}");
    }
    assert_eq!(store.requests().len(), 0);
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A warmfs that reads from a store, signed, and logs all that can be logged.
fn warmfs(store: &Stub) -> Warmfs {
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_ENDPOINT_URL", store.url());
    warmfs.set_env("WARMFS_LOG", "trace");
    warmfs.set_env("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "hidden");
    warmfs
}

fn read(mount: &std::path::Path) -> io::Result<Vec<u8>> {
    // Known from the listing, so that a GET is what is refused.
    assert_eq!(fs::read_dir(mount).unwrap().count(), 1);
    fs::read(mount.join("hello"))
}

/// Sees that the key is in nothing that the daemon wrote or was started with.
fn assert_hidden(warmfs: &Warmfs) {
    let raw = [b'k'; 32];
    let daemon = PathBuf::from(format!("/proc/{}", warmfs.daemon().unwrap()));
    let mut places = vec![daemon.join("cmdline"), daemon.join("environ")];
    let mut folders = vec![warmfs.path("home"), warmfs.path("run")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path)
            } else if path.is_file() {
                places.push(path)
            }
        }
    }
    for place in places {
        let bytes = fs::read(&place).unwrap();
        for secret in [KEY.as_bytes(), &raw] {
            let is_there = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!is_there, "the key is in {}", place.display());
        }
    }
}

#[test]
fn what_is_stored_with_a_key_is_read_with_it_from_a_file_or_the_environment() {
    let runtime = runtime();
    let store = runtime.block_on(s3(stored_with_key));
    let mut warmfs = warmfs(&store);
    let file = warmfs.path("key");
    for content in [&[b'k'; 32][..], format!("{KEY}\n").as_bytes()] {
        fs::write(&file, content).unwrap();
        let dir = warmfs.path("mount");
        let dir = dir.to_str().unwrap();
        warmfs.ok(&["mount", "s3://bucket", dir, "--customer-key-file", file.to_str().unwrap()]);
        assert_eq!(read(&warmfs.path("mount")).unwrap(), b"hello");
        assert_hidden(&warmfs);
        warmfs.ok(&["evict", dir]);
        warmfs.unmount("mount");
    }
    warmfs.set_env("WARMFS_CUSTOMER_KEY", KEY);
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_eq!(read(&mount).unwrap(), b"hello");
    assert_hidden(&warmfs);
    warmfs.unmount("mount");
}

#[test]
fn without_the_key_or_with_another_it_is_no_permission_with_a_reason() {
    let runtime = runtime();
    let store = runtime.block_on(s3(stored_with_key));
    let mut warmfs = warmfs(&store);
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    let error = read(&mount).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let log = warmfs.log();
    assert!(log.contains("a key of your own; give --customer-key-file"), "{log}");
    warmfs.unmount("mount");

    let other = KEY.replace("a2s=", "a20=");
    warmfs.set_env("WARMFS_CUSTOMER_KEY", &other);
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    let error = read(&mount).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    let log = warmfs.log();
    assert!(log.contains("or another key with --customer-key-file"), "{log}");
    assert!(!log.contains(&other));
    warmfs.unmount("mount");
}
