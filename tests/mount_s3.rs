//! A bucket, mounted by the real binary through the kernel: what is read is
//! what was put, what was read is local from then on, and what `status` says
//! is what the store, the disk and the kernel say.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use common::moto::Moto;
use common::store::{BUCKET, Store};
use common::stub::{Reply, Request, Stub};
use common::tree::{Tree, assert_same, noise};
use common::{Warmfs, eventually};
use serde_json::Value;
use warmfs::daemon::mountinfo;
use warmfs::embedded_store::{Access, Fault, FaultRule, Op, StoreOptions};

/// The issue's number of processes that read at once.
const READERS: usize = 8;

/// For tests that move gigabytes on a loaded machine with two cores.
const LONG: Duration = Duration::from_secs(240);

#[test]
fn a_tree_is_equal_cold_and_warm_on_the_embedded_store() {
    let store = Store::start();
    let tree = Tree::of_all_sizes(2);
    store.put_tree("tree/", &tree);
    let mut warmfs = Warmfs::with_limit(LONG);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    check_tree(&warmfs, &tree, "s3://bucket/tree");

    let counts = store.counts();
    assert_eq!(counts.get.bytes, tree.bytes(), "every byte came once, whoever asked for it");
}

#[test]
fn a_tree_is_equal_cold_and_warm_on_moto() {
    let moto = Moto::start();
    let tree = Tree::of_all_sizes(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        moto.create_bucket(BUCKET).await;
        for (name, bytes) in &tree.files {
            moto.put(BUCKET, &format!("tree/{name}"), bytes.to_vec()).await;
        }
    });
    let mut warmfs = Warmfs::with_limit(LONG);
    warmfs.set_env("WARMFS_ENDPOINT_URL", moto.endpoint());
    warmfs.set_env("AWS_ACCESS_KEY_ID", "test");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "test");
    check_tree(&warmfs, &tree, "s3://bucket/tree");
}

/// Reads a tree cold, after a crash, and after an unmount.
fn check_tree(warmfs: &Warmfs, tree: &Tree, uri: &str) {
    let source = warmfs.path("tree");
    tree.write_to(&source);
    let mount = warmfs.mount_uri(uri, "mount");
    diff_at_once(&source, &mount);
    let cold = warmfs.status();
    assert_eq!(cold["remote"]["get"]["bytes"], tree.bytes());
    diff_at_once(&source, &mount);
    assert_eq!(warmfs.status()["remote"]["get"], cold["remote"]["get"], "warm, page cache kept");

    // The promise is "what was cached a second before": this is that second,
    // and nothing tells when it is over.
    std::thread::sleep(Duration::from_secs(1));
    warmfs.crash();
    // The kernel opens the folder without asking; this it always asks.
    let error = nix::sys::statvfs::statvfs(&mount).unwrap_err();
    assert_eq!(error, nix::errno::Errno::ENOTCONN);
    warmfs.mount_uri(uri, "mount");
    diff_at_once(&source, &mount);
    assert_eq!(warmfs.status()["remote"]["get"]["requests"], 0, "warm after a crash");
    assert_eq!(warmfs.status()["repairs"], 0, "nothing was damaged");

    warmfs.unmount("mount");
    warmfs.mount_uri(uri, "mount");
    diff_at_once(&source, &mount);
    assert_eq!(warmfs.status()["remote"]["get"]["requests"], 0, "warm after an unmount");
    warmfs.unmount("mount");
    // Not removed: the mount that created it crashed, and the next one found it there.
    assert!(mount.read_dir().unwrap().next().is_none());
}

fn diff_at_once(source: &Path, mount: &Path) {
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut diff = Command::new("diff");
        diff.arg("-r").args([source, mount]).stdin(Stdio::null());
        readers.push(diff.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.is_empty(), "{text}");
    }
}

#[test]
fn status_equals_what_the_store_the_disk_and_the_kernel_say() {
    let store = Store::start();
    let mut tree = Tree::of_all_sizes(0);
    tree.files.insert("big".to_owned(), noise(1, (20 << 20) + 5));
    store.put_tree("", &tree);
    let busy = Fault::Status { status: 503, code: "SlowDown".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(2, Op::Get, busy)]);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    // In a folder that is not listed yet, so that HEAD is asked as well.
    let name = "many/003";
    assert_eq!(fs::read(mount.join(name)).unwrap(), tree.files[name]);
    let missing = fs::read(mount.join("a/missing")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    tree.assert_equals(&mount, "cold");

    let status = warmfs.status();
    let counts = store.counts();
    let remote = &status["remote"];
    assert_eq!(remote["get"]["requests"], counts.get.requests);
    assert_eq!(remote["get"]["bytes"], tree.bytes());
    assert_eq!(remote["get"]["errors"], 2);
    assert_eq!(remote["list"]["requests"], counts.list.requests);
    assert_eq!(remote["list"]["errors"], 0);
    assert_eq!(remote["head"]["requests"], counts.head.requests);
    assert!(counts.head.requests > 0 && counts.other.requests == 0, "{counts:?}");

    let reads = |status: &Value| status["mounts"][0]["reads"].clone();
    let sum = |reads: &Value| {
        reads["hit_bytes"].as_u64().unwrap() + reads["miss_bytes"].as_u64().unwrap()
    };
    // The kernel may give up a page or two on a busy machine, and ask again.
    let (read, all) = (sum(&reads(&status)), tree.bytes());
    assert!((all..=all + all / 100).contains(&read), "the kernel read {read} of {all}");
    assert!(reads(&status)["miss_bytes"].as_u64().unwrap() > 0);

    // O_DIRECT passes the page cache by, so these bytes reach the daemon again.
    wait_until_cached(&mount.join("big"));
    let big = &tree.files["big"];
    assert_same(&read_direct(&mount.join("big")), big, "with O_DIRECT");
    let direct = reads(&warmfs.status());
    assert_eq!(sum(&direct) - sum(&reads(&status)), big.len() as u64);
    assert_eq!(direct["miss_bytes"], reads(&status)["miss_bytes"], "all of it was cached");

    eventually("every object is in the cache", || {
        warmfs.status()["cache"]["objects"] == tree.filled()
    });
    eventually("used_bytes is what du says", || {
        let used = warmfs.status()["cache"]["used_bytes"].as_u64().unwrap();
        let du = disk_usage(&warmfs.cache());
        // The log, the lock and directories are not counted as cache: 1 MiB.
        // File systems round a file's extents up as they like: 1 %.
        used.abs_diff(du) <= du / 100 + (1 << 20)
    });

    let pid = status["pid"].as_u64().unwrap();
    let rss = warmfs.status()["memory"]["rss_bytes"].as_u64().unwrap();
    let kernels = rss_of(pid);
    // Two looks at a moving figure.
    assert!(rss.abs_diff(kernels) < kernels / 4, "{rss} and {kernels}");
    assert_eq!(status["mounts"][0]["uri"], "s3://bucket");
    assert_eq!(status["repairs"], 0);
    assert_eq!(status["evictions"]["objects"], 0);
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

/// Bytes are written behind the reader, who may have the last ones before the
/// disk has. `stat` shows what is cached in blocks.
fn wait_until_cached(path: &Path) {
    eventually("all of it is on disk", || {
        let meta = fs::metadata(path).unwrap();
        meta.blocks() * 512 >= meta.len()
    });
}

fn read_direct(path: &Path) -> Vec<u8> {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    let size = file.metadata().unwrap().len() as usize;
    // Some kernels want an aligned buffer, length and offset.
    let mut buffer = vec![0; (1 << 20) + 4096];
    let aligned = buffer.as_ptr().align_offset(4096);
    let mut all = Vec::new();
    while all.len() < size {
        let block = &mut buffer[aligned..aligned + (1 << 20)];
        let n = file.read_at(block, all.len() as u64).unwrap();
        assert!(n > 0, "ends at {}", all.len());
        all.extend_from_slice(&block[..n]);
    }
    all
}

/// As `du` counts: blocks taken.
fn disk_usage(dir: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        bytes += meta.blocks() * 512;
        if meta.is_dir() {
            bytes += disk_usage(&entry.path());
        }
    }
    bytes
}

fn rss_of(pid: u64) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn mounts_of_one_bucket_share_a_daemon_and_its_bytes() {
    let store = Store::start();
    let tree = Tree::of_all_sizes(0);
    store.put_tree("data/", &tree);
    let warmfs = store.warmfs();
    let above = warmfs.mount_uri("s3://bucket/data", "above");
    let daemon = warmfs.daemon();
    let below = warmfs.mount_uri("s3://bucket/data/a/b", "below");
    assert_eq!(warmfs.daemon(), daemon);
    let name = "c/d/of-131073";
    let expected = &tree.files[&format!("a/b/{name}")];
    assert_same(&fs::read(above.join("a/b").join(name)).unwrap(), expected, "above");
    wait_until_cached(&above.join("a/b").join(name));
    store.reset_log();
    assert_same(&fs::read(below.join(name)).unwrap(), expected, "below");
    assert_eq!(store.counts().get.requests, 0);

    let status = warmfs.status();
    assert_eq!(status["mounts"].as_array().unwrap().len(), 2);
    let reads = &status["mounts"][1]["reads"];
    assert_eq!(reads["hit_bytes"], expected.len() as u64, "counted for the mount that read");
    assert_eq!(reads["miss_bytes"], 0);

    // The other mount lives on.
    warmfs.unmount("above");
    assert_same(&fs::read(below.join("c/d/of-1")).unwrap(), &tree.files["a/b/c/d/of-1"], "below");
    warmfs.unmount("below");
    warmfs.assert_nothing_left(&["above", "below"]);
}

#[test]
fn options_come_from_the_environment_too() {
    let store = Store::with(StoreOptions {
        access: Access::Key("KEYID".to_owned()),
        ..StoreOptions::default()
    });
    store.put_some();
    let mut warmfs = store.warmfs();
    let (cache, log) = (warmfs.path("elsewhere/cache"), warmfs.path("own.log"));
    fs::create_dir_all(warmfs.path("aws")).unwrap();
    let credentials = warmfs.path("aws/credentials");
    let keys = "aws_access_key_id = KEYID\naws_secret_access_key = secret\n";
    fs::write(&credentials, format!("[someone]\n{keys}")).unwrap();
    for (name, value) in [
        ("WARMFS_CACHE_DIR", cache.to_str().unwrap()),
        ("WARMFS_CACHE_SIZE", "1G"),
        ("WARMFS_LOG_FILE", log.to_str().unwrap()),
        ("WARMFS_PROFILE", "someone"),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
        ("WARMFS_FILE_MODE", "0440"),
        ("WARMFS_DIR_MODE", "0550"),
        ("WARMFS_UID", "1234"),
        ("WARMFS_GID", "2345"),
        ("WARMFS_METADATA_TTL", "7s"),
        ("WARMFS_OPEN_MODE", "cached"),
        ("WARMFS_ALLOW_OTHER", "1"),
    ] {
        warmfs.set_env(name, value);
    }
    let dir = warmfs.path("mount");
    warmfs.ok(&["mount", "s3://bucket/data", dir.to_str().unwrap(), "--gid", "3456"]);
    let meta = fs::metadata(dir.join("hello")).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o440);
    assert_eq!((meta.uid(), meta.gid()), (1234, 3456), "an option wins");
    assert_eq!(fs::metadata(dir.join("folder")).unwrap().mode() & 0o7777, 0o550);
    let status = warmfs.status();
    assert_eq!(status["cache"]["dir"], cache.to_str().unwrap());
    assert_eq!(status["mounts"][0]["mode"], "cached");
    let limit = status["cache"]["limit_bytes"].as_u64().unwrap();
    assert!(limit.abs_diff(1 << 30) < 64 << 20, "{limit}");
    assert!(fs::read_to_string(&log).unwrap().contains("is mounted"));
    assert!(!warmfs.cache().exists());
    warmfs.unmount("mount");

    warmfs.set_env("WARMFS_NO_SIGN_REQUEST", "true");
    warmfs.set_env("WARMFS_PROFILE", "");
    let line = warmfs.fails(&["mount", "s3://bucket/data", dir.to_str().unwrap()]);
    assert!(line.contains("403"), "{line}");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn credentials_travel_with_the_request_and_lie_nowhere() {
    const SECRET: &str = "sEcReTaCcEsSkEy";
    let store = Store::with(StoreOptions {
        access: Access::Key("KEYID".to_owned()),
        ..StoreOptions::default()
    });
    store.put_some();
    let warmfs = store.warmfs();
    let mount = |name: &str, id: &str| {
        let dir = warmfs.path(name);
        let mut command = warmfs.command(&["mount", "s3://bucket/data", dir.to_str().unwrap()]);
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command
    };
    assert!(mount("one", "KEYID").output().unwrap().status.success());
    let daemon = warmfs.daemon().unwrap();
    assert_eq!(fs::read_to_string(warmfs.path("one/hello")).unwrap(), "data/hello");

    for file in ["environ", "cmdline"] {
        let text = fs::read(format!("/proc/{daemon}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(SECRET), "{file}");
    }
    assert_not_in_files(&warmfs.path(""), SECRET.as_bytes());

    // Another caller has the daemon, but not these credentials.
    let line = warmfs.fails_as(&mut mount("two", "OTHER"));
    assert!(line.contains("InvalidAccessKeyId") && line.contains("--profile"), "{line}");
    let line = warmfs.fails(&["mount", "s3://bucket/data", warmfs.path("two").to_str().unwrap()]);
    assert!(line.contains("no credentials were found"), "{line}");
    assert!(!warmfs.path("two").exists());
    assert_eq!(warmfs.daemon(), Some(daemon));
    assert!(mount("two", "KEYID").output().unwrap().status.success());
    warmfs.unmount("one");
    warmfs.unmount("two");
    warmfs.assert_nothing_left(&["one", "two"]);
}

fn assert_not_in_files(dir: &Path, secret: &[u8]) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_not_in_files(&entry.path(), secret);
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            File::open(entry.path()).unwrap().read_to_end(&mut bytes).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "{}", entry.path().display());
        }
    }
}

#[test]
fn the_region_of_a_bucket_is_discovered() {
    let store = Store::with(StoreOptions {
        access: Access::Key("KEYID".to_owned()),
        required_region: Some("eu-west-3".to_owned()),
        ..StoreOptions::default()
    });
    store.put_some();
    let mut warmfs = store.warmfs();
    warmfs.set_env("AWS_ACCESS_KEY_ID", "KEYID");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "secret");
    warmfs.set_env("AWS_REGION", "us-west-2");
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    assert_eq!(fs::read_to_string(mount.join("data/folder/inner")).unwrap(), "data/folder/inner");
    let log = store.log();
    let refused = log.iter().filter(|request| request.status == 400).count();
    assert_eq!(refused, 1, "found once, kept from then on: {log:?}");
    warmfs.unmount("mount");
}

#[test]
fn who_may_list_only_a_prefix_can_mount_it() {
    let store = Store::with(StoreOptions {
        access: Access::Key("KEYID".to_owned()),
        ..StoreOptions::default()
    });
    store.put_some();
    let denied = Fault::Status { status: 403, code: "AccessDenied".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(1, Op::List, denied)]);
    let mut warmfs = store.warmfs();
    warmfs.set_env("AWS_ACCESS_KEY_ID", "KEYID");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "secret");
    let mount = warmfs.mount_uri("s3://bucket/data", "mount");
    assert_eq!(fs::read_to_string(mount.join("hello")).unwrap(), "data/hello");
    warmfs.unmount("mount");
}

#[test]
fn every_request_says_that_the_requester_pays() {
    let body = Bytes::from_static(b"paid for");
    let answer = move |request: &Request| {
        if request.is_list() {
            return Reply::new(
                200,
                &[],
                "<ListBucketResult><KeyCount>1</KeyCount><Contents><Key>file</Key>\
                 <ETag>\"e\"</ETag><Size>8</Size></Contents></ListBucketResult>",
            );
        }
        let range = ("content-range", "bytes 0-7/8");
        Reply::new(206, &[("etag", "\"e\""), range], &body)
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stub = runtime.block_on(Stub::start(answer));
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_ENDPOINT_URL", stub.url());
    let dir = warmfs.path("mount");
    warmfs.ok(&["mount", "s3://bucket", dir.to_str().unwrap(), "--requester-pays"]);
    assert_eq!(fs::read_to_string(dir.join("file")).unwrap(), "paid for");
    warmfs.unmount("mount");
    let requests = stub.requests();
    assert!(requests.iter().any(|request| !request.is_list()), "{requests:?}");
    for request in requests {
        assert_eq!(request.header("x-amz-request-payer"), Some("requester"), "{request:?}");
    }
}

#[test]
fn prefixes_with_odd_names_are_mounted_and_shown_as_they_are() {
    let store = Store::start();
    let warmfs = store.warmfs();
    for prefix in
        ["with space", "comma,ro=x", "back\\slash", "100%25", "Grüße/日本", "q?x#y", "a=b+c", "\"'"]
    {
        let body = Bytes::from(prefix.to_owned());
        store.put(BUCKET, format!("{prefix}/file"), body.clone());
        let uri = format!("s3://bucket/{prefix}");
        let dir = warmfs.mount_uri(&uri, "mount");
        assert_same(&fs::read(dir.join("file")).unwrap(), &body, prefix);
        assert_eq!(warmfs.status()["mounts"][0]["uri"], uri);
        let shown = mountinfo::topmost_at(&dir).unwrap().unwrap();
        assert_eq!(shown.source, uri, "in mountinfo");
        assert!(shown.is_warmfs(), "{shown:?}");
        warmfs.unmount("mount");
        warmfs.assert_nothing_left(&["mount"]);
    }
}
