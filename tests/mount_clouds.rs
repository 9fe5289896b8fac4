//! Buckets of other clouds than AWS, mounted by the real binary through the kernel.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::azurite::{Azurite, KEY, signature};
use common::gcs::Gcs;
use common::moto::Moto;
use common::namespace::{black_hole, in_namespace, ip};
use common::stub::{Reply, Request, Stub};
use common::tree::Tree;
use common::{Warmfs, eventually};
use serde_json::json;
use tokio::runtime::Runtime;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::{ErrorKind, connect};

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
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
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

// Azure Blob Storage.

#[test]
fn a_tree_in_azure_is_equal_cold_and_warm() {
    let runtime = runtime();
    let azurite = runtime.block_on(Azurite::start());
    let mut tree = Tree::of_all_sizes(1);
    // Azure takes it for a slash.
    tree.files.retain(|name, _| !name.contains('\\'));
    runtime.block_on(async {
        azurite.create_container("container", false).await;
        for (name, bytes) in &tree.files {
            azurite.put("container", &format!("tree/{name}"), bytes.to_vec()).await;
        }
        azurite.put("container", "beside", b"not mounted".to_vec()).await;
        // As tools leave them beside what is in them.
        for folder in ["tree", "tree/a", "tree/many"] {
            azurite.put_folder("container", folder).await;
        }
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("AZURE_STORAGE_BLOB_ENDPOINT", azurite.endpoint());
    warmfs.set_env("AZURE_STORAGE_KEY", KEY);
    // On a disk that is nearly full nothing would be kept without a size.
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
    let uri = "az://devstoreaccount1/container/tree";
    let mount = warmfs.mount_uri(uri, "mount");
    tree.assert_equals(&mount, "cold");
    assert_eq!(warmfs.status()["remote"]["get"]["bytes"], tree.bytes());

    warmfs.unmount("mount");
    warmfs.mount_uri(uri, "mount");
    tree.assert_equals(&mount, "warm");
    assert_eq!(warmfs.status()["remote"]["get"]["requests"], 0);

    // What is replaced is another file, once it is looked for.
    runtime.block_on(azurite.put("container", "tree/of-1", b"other".to_vec()));
    runtime.block_on(azurite.put_folder("container", "tree/new/empty"));
    warmfs.ok(&["refresh", mount.to_str().unwrap()]);
    assert_eq!(fs::read(mount.join("of-1")).unwrap(), b"other");
    // In a folder that nobody listed, and with nothing below it.
    assert!(fs::metadata(mount.join("new/empty")).unwrap().is_dir());
    assert_eq!(fs::read_dir(mount.join("new/empty")).unwrap().count(), 0);
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
    for secret in [KEY, "SharedKey", "sig="] {
        assert!(!warmfs.log().contains(secret));
    }
}

#[test]
fn who_is_logged_in_to_az_mounts_what_is_private() {
    let runtime = runtime();
    let store = runtime.block_on(Stub::start(|request: &Request| {
        if request.header("authorization") != Some("Bearer of-az") {
            return Reply::new(404, &[("x-ms-error-code", "ResourceNotFound")], "");
        }
        match request.header("range") {
            Some(_) => {
                let headers = [("content-range", "bytes 0-4/5"), ("etag", "\"e\"")];
                Reply::new(206, &headers, "hello")
            }
            None => Reply::new(200, &[], BLOBS),
        }
    }));
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_ENDPOINT_URL", store.url());
    let dir = warmfs.path("mount");
    let mount = ["mount", "az://account/container", dir.to_str().unwrap()];
    let line = warmfs.fails(&mount);
    assert!(line.contains("run `az login`"), "{line}");

    // What came after that is found by the next mount, also where the daemon that runs
    // already knows no such program.
    warmfs.mount("first");
    let bin = warmfs.path("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\necho '{\"accessToken\": \"of-az\", \"expires_on\": 4102444800}'\n";
    fs::write(bin.join("az"), script).unwrap();
    fs::set_permissions(bin.join("az"), fs::Permissions::from_mode(0o755)).unwrap();
    let config = warmfs.path("home/.azure");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("azureProfile.json"), r#"{"subscriptions": [{"id": "x"}]}"#).unwrap();
    let path = std::env::var("PATH").unwrap();
    warmfs.set_env("PATH", &format!("{}:{path}", bin.display()));
    warmfs.ok(&mount);
    assert_eq!(fs::read(dir.join("hello")).unwrap(), b"hello");
    assert!(!warmfs.log().contains("of-az"));
    warmfs.unmount("mount");
    warmfs.unmount("first");
}

#[test]
fn a_command_gives_tokens_to_every_cloud() {
    let runtime = runtime();
    let azurite = runtime.block_on(Azurite::start());
    runtime.block_on(async {
        azurite.create_container("container", false).await;
        azurite.put("container", "hello", b"hello".to_vec()).await;
    });
    let google = runtime.block_on(bucket(false));
    let signed = format!(r#"echo '{{"token": "{}"}}'"#, signature("rl"));
    let token = r#"test "$WARMFS_URI" = gs://bucket && echo '{"access_token": "machine"}'"#;
    for (uri, endpoint, command, secret) in [
        ("az://devstoreaccount1/container", azurite.endpoint(), signed.as_str(), "sig="),
        ("gs://bucket", google.url(), token, "machine"),
    ] {
        let mut warmfs = Warmfs::new();
        warmfs.set_env("WARMFS_ENDPOINT_URL", endpoint);
        // What comes after it is not asked for.
        warmfs.set_env("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere");
        warmfs.set_env("AZURE_STORAGE_KEY", "of somebody else");
        let mount = warmfs.mount_with(uri, "mount", &["--credential-command", command]);
        assert_eq!(fs::read(mount.join("hello")).unwrap(), b"hello", "{uri}");
        warmfs.unmount("mount");
        assert!(!warmfs.log().contains(secret), "{uri}");
    }
}

// Archives.

/// Reads a folder of which `archived` is in an archive: listed like the others, and no
/// permission, with a reason; what is beside it is fetched ahead all the same.
fn assert_archived(warmfs: &Warmfs, uri: &str) {
    let dir = warmfs.path("mount");
    warmfs.ok(&["mount", uri, dir.to_str().unwrap(), "--warm", "all"]);
    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["archived", "beside"]);
    let file = dir.join("archived");
    assert_eq!(fs::metadata(&file).unwrap().len(), 5);
    for _ in 0..2 {
        let cat = Command::new("cat").arg(&file).output().unwrap();
        let said = String::from_utf8(cat.stderr).unwrap();
        assert!(!cat.status.success() && said.contains("Permission denied"), "{said}");
    }
    let log = warmfs.log();
    assert!(log.contains("it is archived; re"), "{log}");
    eventually("what is not archived is fetched ahead", || {
        warmfs.status()["prefetched"]["objects"] == 1
    });
    assert_eq!(fs::read(dir.join("beside")).unwrap(), b"there");
    warmfs.unmount("mount");
}

#[test]
fn what_s3_has_archived_is_no_permission_with_a_reason() {
    let moto = Moto::start();
    runtime().block_on(async {
        moto.create_bucket("bucket").await;
        moto.put_archived("bucket", "archived", b"hello".to_vec()).await;
        moto.put("bucket", "beside", b"there".to_vec()).await;
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_ENDPOINT_URL", moto.endpoint());
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
    warmfs.set_env("AWS_ACCESS_KEY_ID", "test");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "test");
    assert_archived(&warmfs, "s3://bucket");
}

#[test]
fn what_azure_has_archived_is_no_permission_with_a_reason() {
    let runtime = runtime();
    let azurite = runtime.block_on(Azurite::start());
    runtime.block_on(async {
        azurite.create_container("container", false).await;
        azurite.put("container", "archived", b"hello".to_vec()).await;
        azurite.archive("container", "archived").await;
        azurite.put("container", "beside", b"there".to_vec()).await;
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("AZURE_STORAGE_BLOB_ENDPOINT", azurite.endpoint());
    warmfs.set_env("AZURE_STORAGE_KEY", KEY);
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
    assert_archived(&warmfs, "az://devstoreaccount1/container");
}

const BLOBS: &str = "<EnumerationResults><Blobs><Blob><Name>hello</Name><Properties>\
                     <Etag>e</Etag><Content-Length>5</Content-Length></Properties></Blob>\
                     </Blobs><NextMarker/></EnumerationResults>";

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

/// The same of Azure, which says no as if there were none.
async fn container(is_public: bool) -> Stub {
    Stub::start(move |_: &Request| match is_public {
        true => Reply::new(200, &[], BLOBS),
        false => Reply::new(404, &[("x-ms-error-code", "ResourceNotFound")], ""),
    })
    .await
}

/// Connects with nothing configured. Whoever needs credentials may wait for the metadata
/// server, but not for long; others not at all.
async fn assert_no_delay() {
    let (env, metrics) = (CallerEnv::default(), Arc::default());
    for (uri, is_public) in [
        ("gs://bucket", true),
        ("gs://bucket", false),
        ("az://account/container", true),
        ("az://account/container", false),
    ] {
        let store = if uri.starts_with("gs") {
            bucket(is_public).await
        } else {
            container(is_public).await
        };
        let endpoint_url = Some(store.url().to_owned());
        let options = RemoteOptions { endpoint_url, ..RemoteOptions::default() };
        let start = Instant::now();
        let connected = connect(&uri.parse().unwrap(), &options, &env, &metrics).await;
        let took = start.elapsed();
        match is_public {
            true => assert!(connected.is_ok() && took < PUBLIC_DELAY, "{uri}: {took:?}"),
            false => {
                assert_eq!(connected.unwrap_err().kind, ErrorKind::Credentials);
                assert!(took < METADATA_DELAY, "{uri}: {took:?}");
            }
        }
    }
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
