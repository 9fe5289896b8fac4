//! Buckets of other clouds than AWS, mounted by the real binary through the kernel.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::Warmfs;
use common::gcs::Gcs;
use common::namespace::{black_hole, in_namespace, ip};
use common::stub::{Reply, Request, Stub};
use common::tree::Tree;
use serde_json::json;
use tokio::runtime::Runtime;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::gcs::GcsRemote;
use warmfs::remote::{ErrorKind, RemoteError};

/// Longest that a metadata server may delay a mount of a public bucket, with room for
/// a busy machine, and of one that needs its token.
const PUBLIC_DELAY: Duration = Duration::from_millis(800);
const METADATA_DELAY: Duration = Duration::from_millis(1500);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

// Google Cloud Storage.

#[test]
fn a_tree_in_google_cloud_storage_is_equal_cold_and_warm() {
    let gcs = Gcs::start();
    let tree = Tree::of_all_sizes(1);
    runtime().block_on(async {
        gcs.create_bucket("bucket").await;
        for (name, bytes) in &tree.files {
            gcs.put("bucket", &format!("tree/{name}"), bytes.to_vec()).await;
        }
        gcs.put("bucket", "beside", b"not mounted".to_vec()).await;
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("STORAGE_EMULATOR_HOST", gcs.endpoint());
    let mount = warmfs.mount_uri("gs://bucket/tree", "mount");
    tree.assert_equals(&mount, "cold");
    let cold = warmfs.status();
    assert_eq!(cold["remote"]["get"]["bytes"], tree.bytes());
    let gets = gcs.requests("alt=media");
    assert_eq!(cold["remote"]["get"]["requests"], gets, "as the server counted");

    warmfs.unmount("mount");
    warmfs.mount_uri("gs://bucket/tree", "mount");
    tree.assert_equals(&mount, "warm");
    assert_eq!(warmfs.status()["remote"]["get"]["requests"], 0);
    assert_eq!(gcs.requests("alt=media"), gets);
    let listed = warmfs.ok(&["ls", mount.join("many").to_str().unwrap()]);
    assert_eq!(listed.lines().count(), 40, "{listed}");

    // What is replaced is another file, once it is looked for.
    runtime().block_on(gcs.put("bucket", "tree/of-1", b"other".to_vec()));
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    assert_eq!(fs::read(mount.join("of-1")).unwrap(), b"other");
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn what_cannot_be_mounted_is_one_line_with_a_next_step() {
    let gcs = Gcs::start();
    let mut warmfs = Warmfs::new();
    let dir = warmfs.path("mount");
    let dir = dir.to_str().unwrap();
    warmfs.set_env("STORAGE_EMULATOR_HOST", gcs.endpoint());
    let line = warmfs.fails(&["mount", "gs://missing", dir]);
    assert!(line.contains("check the bucket's name"), "{line}");
    warmfs.set_env("GOOGLE_APPLICATION_CREDENTIALS", "relative.json");
    let line = warmfs.fails(&["mount", "gs://bucket", dir, "--endpoint-url", gcs.endpoint()]);
    let absolute = std::env::current_dir().unwrap().join("relative.json");
    assert!(line.contains(absolute.to_str().unwrap()), "{line}");
    warmfs.assert_nothing_left(&["mount"]);
}

// The metadata server, at the address that machines have for it.

const LIST: &str = r#"{"items": [{"name": "hello", "size": "5", "generation": "1"}]}"#;

/// A bucket with one object, for everybody or for who has the machine's token.
async fn bucket(is_public: bool) -> Stub {
    Stub::start(move |request: &Request| {
        if !is_public && request.header("authorization") != Some("Bearer machine") {
            return Reply::new(401, &[], "Anonymous caller does not have access");
        }
        match request.header("range") {
            Some("bytes=0-4") => {
                let headers = [("content-range", "bytes 0-4/5"), ("x-goog-generation", "1")];
                Reply::new(206, &headers, "hello")
            }
            _ => Reply::new(200, &[], LIST),
        }
    })
    .await
}

/// Connects to a bucket with nothing configured, and how long that took.
async fn connect(is_public: bool) -> (Result<GcsRemote, RemoteError>, Duration) {
    let store = bucket(is_public).await;
    let options =
        RemoteOptions { endpoint_url: Some(store.url().to_owned()), ..RemoteOptions::default() };
    let start = Instant::now();
    let env = CallerEnv::default();
    let connected = GcsRemote::connect("bucket", &options, &env, &Arc::default()).await;
    (connected, start.elapsed())
}

async fn assert_no_delay() {
    let (connected, took) = connect(true).await;
    connected.unwrap();
    assert!(took < PUBLIC_DELAY, "{took:?}");
    let (connected, took) = connect(false).await;
    assert_eq!(connected.unwrap_err().kind, ErrorKind::Credentials);
    assert!(took < METADATA_DELAY, "{took:?}");
}

#[test]
fn a_metadata_server_in_a_black_hole_or_nowhere_holds_up_no_mount() {
    in_namespace(|| runtime().block_on(assert_no_delay()));
    in_namespace(|| {
        black_hole();
        runtime().block_on(assert_no_delay());
    });
}

#[test]
fn a_login_at_the_metadata_server_is_found_by_the_next_mount() {
    in_namespace(|| {
        ip("addr add 169.254.169.254/32 dev lo");
        let runtime = runtime();
        let has_login = Arc::new(AtomicBool::new(false));
        let logged_in = Arc::clone(&has_login);
        let server = move |request: &Request| {
            let is_token = request.target().ends_with("/service-accounts/default/token");
            match is_token && logged_in.load(Ordering::SeqCst) {
                true => {
                    let token = json!({ "access_token": "machine", "expires_in": 3599 });
                    Reply::new(200, &[], token.to_string())
                }
                // Its project has no name.
                false if request.target().contains("project") => Reply::new(200, &[], ""),
                false => Reply::new(404, &[], "<html>log in first</html>"),
            }
        };
        let _server = runtime.block_on(Stub::start_at("169.254.169.254:80", server));
        runtime.block_on(assert_no_delay());

        let store = runtime.block_on(bucket(false));
        let mut warmfs = Warmfs::new();
        warmfs.set_env("WARMFS_ENDPOINT_URL", store.url());
        warmfs.set_env("CLOUDSDK_CORE_CHECK_GCE_METADATA", "true");
        let dir = warmfs.path("mount");
        let line = warmfs.fails(&["mount", "gs://bucket", dir.to_str().unwrap()]);
        assert!(line.contains("gcloud auth application-default login"), "{line}");
        has_login.store(true, Ordering::SeqCst);
        let mount = warmfs.mount_uri("gs://bucket", "mount");
        assert_eq!(fs::read(mount.join("hello")).unwrap(), b"hello");
        warmfs.unmount("mount");
    });
}
