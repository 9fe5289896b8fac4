//! What users get wrong, and what machines lack: each is one line that says
//! what and what to do, and leaves nothing behind. Mount points and daemons
//! have more of these in `mount_cli.rs`, the command line alone in `cli.rs`.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use common::fronts::{Front, tls_file};
use common::moto::Moto;
use common::socket::Connection;
use common::store::{BUCKET, Store};
use common::stub::{Reply, Request, Stub};
use common::tree::{assert_same, noise};
use common::{Warmfs, is_mounted};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use warmfs::embedded_store::{Access, Fault, FaultRule, Op, StoreOptions};

/// `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// Mounting `uri` at a folder that does not exist must fail with one line in
/// which each of `words` is found, and leave nothing.
fn refused(warmfs: &Warmfs, uri: &str, options: &[&str], words: &[&str]) {
    let dir = warmfs.path("new/mount");
    let args = [&["mount", uri, dir.to_str().unwrap()], options].concat();
    let line = warmfs.fails(&args);
    assert_words(&line, words);
    warmfs.assert_nothing_left(&["new/mount", "new"]);
}

fn assert_words(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is not in: {line}");
    }
}

fn private_store() -> Store {
    let access = Access::Key("KEYID".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    store.put_some();
    store
}

fn set_keys(warmfs: &mut Warmfs, id: &str) {
    warmfs.set_env("AWS_ACCESS_KEY_ID", id);
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "secret");
}

#[test]
fn no_such_bucket() {
    let words = ["s3://missing", "NoSuchBucket", "check the bucket's name"];
    let store = Store::start();
    refused(&store.warmfs(), "s3://missing/data", &[], &words);

    let moto = Moto::start();
    let mut warmfs = Warmfs::new();
    set_keys(&mut warmfs, "test");
    refused(&warmfs, "s3://missing", &["--endpoint-url", moto.endpoint()], &words);
}

#[test]
fn no_permission() {
    let store = private_store();
    let mut warmfs = store.warmfs();
    let words = ["403", "no credentials were found", "aws configure", "--profile"];
    refused(&warmfs, "s3://bucket/data", &[], &words[1..]);
    let words = ["403 AccessDenied", "--profile"];
    refused(&warmfs, "s3://bucket/data", &["--no-sign-request"], &words);

    set_keys(&mut warmfs, "OTHER");
    let words = ["403 InvalidAccessKeyId", "correct the credentials", "--profile"];
    refused(&warmfs, "s3://bucket/data", &[], &words);

    set_keys(&mut warmfs, "KEYID");
    let denied = Fault::Status { status: 403, code: "AccessDenied".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(u64::MAX, Op::List, denied)]);
    let words = ["403 AccessDenied", "what these credentials may read", "--profile"];
    refused(&warmfs, "s3://bucket/data", &[], &words);
}

#[test]
fn an_unreachable_endpoint() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let warmfs = Warmfs::new();
    let url = format!("http://{closed}");
    let words = ["no connection", "refused", "--endpoint-url"];
    refused(&warmfs, "s3://bucket", &["--endpoint-url", &url], &words);
    let words = ["no connection", "--endpoint-url"];
    let url = "https://no-such-host.invalid";
    refused(&warmfs, "s3://bucket", &["--endpoint-url", url], &words);
}

#[test]
fn an_endpoint_that_is_no_store() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let page = |_: &_| Reply::new(200, &[("content-type", "text/html")], "<html>hello</html>");
    let stub = runtime.block_on(Stub::start(page));
    let warmfs = Warmfs::new();
    let words = ["the store answered", "check", "--endpoint-url"];
    refused(&warmfs, "s3://bucket/data", &["--endpoint-url", stub.url()], &words);
    let stub = runtime.block_on(Stub::start(|_| Reply::new(404, &[], "not here")));
    refused(&warmfs, "s3://bucket/data", &["--endpoint-url", stub.url()], &words);
    let stub = runtime.block_on(Stub::start(|_| Reply::new(405, &[], "not that")));
    refused(&warmfs, "s3://bucket/data", &["--endpoint-url", stub.url()], &words);
}

#[test]
fn certificates_and_proxies_that_are_none() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let stub = runtime.block_on(Stub::start(|_| Reply::empty_list()));
    let tls = runtime.block_on(Front::tls(stub.url(), "server.pem"));
    let url = format!("https://{}", tls.address());
    let mut warmfs = Warmfs::new();
    let words = ["TLS", "--ca-file"];
    refused(&warmfs, "s3://bucket", &["--endpoint-url", &url], &words);
    let file = tls_file("server.key");
    let options = ["--endpoint-url", &url, "--ca-file", file.to_str().unwrap()];
    refused(&warmfs, "s3://bucket", &options, &["--ca-file", "server.key", "certificate"]);
    let options = ["--endpoint-url", &url, "--ca-file", "missing.pem"];
    refused(&warmfs, "s3://bucket", &options, &["--ca-file /", "/missing.pem", "No such file"]);

    let url = "http://store.invalid";
    warmfs.set_env("http_proxy", "ftp://proxy");
    refused(&warmfs, "s3://bucket", &["--endpoint-url", url], &["http_proxy", "http://HOST:PORT"]);
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    warmfs.set_env("http_proxy", &format!("http://{gone}"));
    let words = ["no connection", "refused", "check http_proxy", "NO_PROXY"];
    refused(&warmfs, "s3://bucket", &["--endpoint-url", url], &words);
}

#[test]
fn malformed_endpoints() {
    let warmfs = Warmfs::new();
    for url in ["localhost:9000", "ftp://host", "http://", "https://a b", "http://host/?query"] {
        // A query is left out: it may be signed.
        let shown = url.split('?').next().unwrap();
        let words = ["--endpoint-url", shown, "https://HOST"];
        refused(&warmfs, "s3://bucket", &["--endpoint-url", url], &words);
    }
    let url = "https://user:hidden@host";
    let dir = warmfs.path("mount");
    let line =
        warmfs.fails(&["mount", "s3://bucket", dir.to_str().unwrap(), "--endpoint-url", url]);
    assert!(line.contains("credentials do not belong in a URL") && !line.contains("hidden"));
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn uris_that_cannot_be_mounted() {
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    for (uri, words) in [
        ("ftp://bucket", &["ftp://", "gs://BUCKET"][..]),
        ("gs://a", &["no valid bucket", "gs://BUCKET"]),
        ("az://account", &["no valid container", "az://ACCOUNT/CONTAINER"]),
        ("https://host/container", &["Azure", "az://ACCOUNT/CONTAINER"]),
        ("ais://@gce/bucket", &["provider", "aws, gcp, azure, oci"]),
        ("http://host/bucket", &["http://", "s3://BUCKET"]),
        ("bucket/data", &["bucket/data", "s3://BUCKET"]),
        ("s3://", &["bucket", "s3://BUCKET"]),
        ("file://relative", &["absolute", "file:///FOLDER"]),
        ("s3://bucket/data/../other", &["..", "mount a prefix above it"]),
        ("s3://bucket/data//folder", &["empty", "mount a prefix above it"]),
    ] {
        refused(&warmfs, uri, &[], words);
    }
}

#[test]
fn a_prefix_without_keys_names_the_nearest() {
    let store = Store::start();
    store.put_some();
    for key in ["data/train/x", "data/test/x", "data/val/x", "datum/x", "zebra"] {
        store.put(BUCKET, key, Bytes::from_static(b"x"));
    }
    let warmfs = store.warmfs();
    refused(
        &warmfs,
        "s3://bucket/data/trian",
        &[],
        &["s3://bucket/data/trian holds no objects", "did you mean s3://bucket/data/train,"],
    );
    refused(&warmfs, "s3://bucket/dato", &[], &["s3://bucket/data", "s3://bucket/datum"]);
    // Nothing there at all: the nearest folder above that holds anything.
    refused(&warmfs, "s3://bucket/data/val/deep/er", &[], &["did you mean s3://bucket/data/val"]);
    // A prefix is a folder: half a name is none.
    refused(&warmfs, "s3://bucket/dat", &[], &["s3://bucket/data"]);

    store.create_bucket("empty");
    refused(&warmfs, "s3://empty/data", &[], &["holds no objects", "s3://empty"]);
    // A whole bucket may be empty: it may not stay so.
    let dir = warmfs.mount_uri("s3://empty", "mount");
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
    warmfs.unmount("mount");
}

#[test]
fn a_uri_of_one_object_names_its_folder() {
    let store = Store::start();
    store.put_some();
    store.put(BUCKET, "top", Bytes::from_static(b"x"));
    let warmfs = store.warmfs();
    let words = ["one object", "mount s3://bucket/data/folder\n"];
    refused(&warmfs, "s3://bucket/data/folder/inner", &[], &words);
    refused(&warmfs, "s3://bucket/top", &[], &["one object", "mount s3://bucket\n"]);
    fs::write(warmfs.path("source/file"), "x").unwrap();
    let uri = format!("{}/file", warmfs.source());
    refused(&warmfs, &uri, &[], &["source/file", "not a folder", &warmfs.source()]);
}

#[test]
fn a_profile_that_does_not_exist() {
    let store = Store::start();
    store.put_some();
    let mut warmfs = store.warmfs();
    let words = ["profile \"nobody\"", "found: none", "aws configure --profile nobody"];
    refused(&warmfs, "s3://bucket", &["--profile", "nobody"], &words);
    fs::create_dir_all(warmfs.path("home/.aws")).unwrap();
    fs::write(warmfs.path("home/.aws/config"), "[profile work]\nregion = eu-west-1\n").unwrap();
    warmfs.set_env("AWS_PROFILE", "wrok");
    refused(&warmfs, "s3://bucket", &[], &["profile \"wrok\"", "found: work"]);
    warmfs.set_env("AWS_PROFILE", "");
    warmfs.set_env("AWS_ACCESS_KEY_ID", "KEYID");
    refused(&warmfs, "s3://bucket", &[], &["AWS_SECRET_ACCESS_KEY is not set"]);
}

#[test]
fn a_metadata_service_that_is_silent_or_has_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let silent = runtime.block_on(Stub::start(|_| Reply::silence()));
    let empty = runtime.block_on(Stub::start(|_| Reply::new(404, &[], "no such page")));
    let public = Store::start();
    public.put_some();
    let private = private_store();
    for metadata in [&silent, &empty] {
        let with_metadata = |store: &Store| {
            let mut warmfs = store.warmfs();
            warmfs.set_env("AWS_EC2_METADATA_DISABLED", "false");
            warmfs.set_env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url());
            warmfs
        };
        let warmfs = with_metadata(&public);
        let dir = warmfs.mount_uri("s3://bucket/data", "mount");
        assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "data/hello");
        warmfs.unmount("mount");

        let words = ["not readable without credentials", "metadata service", "aws configure"];
        refused(&with_metadata(&private), "s3://bucket/data", &[], &words);
    }
    // Both were asked, so it was not a lack of interest that made it quick.
    assert!(silent.connections() > 0 && empty.connections() > 0);
}

/// A store whose listing says of `data/object` what a test likes.
fn lying_about_sizes(claimed: Arc<AtomicUsize>) -> impl Fn(&Request) -> Reply {
    move |request| {
        if request.is_list() {
            let size = claimed.load(Ordering::SeqCst);
            return Reply::new(
                200,
                &[],
                format!(
                    "<ListBucketResult><Contents><Key>data/object</Key><Size>{size}</Size>\
                     <ETag>\"e\"</ETag></Contents></ListBucketResult>"
                ),
            );
        }
        let range = request.header("range").unwrap().strip_prefix("bytes=").unwrap();
        let (start, last) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        if start >= DENIED.len() {
            return Reply::s3_error(416, "InvalidRange", &[]);
        }
        let end = DENIED.len().min(last.parse::<usize>().unwrap() + 1);
        let range = format!("bytes {start}-{}/{}", end - 1, DENIED.len());
        Reply::new(206, &[("etag", "\"e\""), ("content-range", &range)], &DENIED[start..end])
    }
}

/// What the object holds whose size its listing does not know.
const DENIED: &[u8] = b"seventeen letters";

#[test]
fn a_size_that_the_get_denies_is_estale_and_never_wrong_bytes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for size in [1, DENIED.len() - 1, DENIED.len() + 1, 9 << 20] {
        let claimed = Arc::new(AtomicUsize::new(size));
        let stub = runtime.block_on(Stub::start(lying_about_sizes(claimed.clone())));
        let mut warmfs = Warmfs::new();
        warmfs.set_env("WARMFS_ENDPOINT_URL", stub.url());
        let dir = warmfs.mount_with("s3://bucket/data", "mount", &["--no-sign-request"]);
        let object = dir.join("object");
        for attempt in 1..4 {
            let before = stub.requests().len();
            let file = File::open(&object).unwrap();
            assert_eq!(file.metadata().unwrap().len(), size as u64);
            // The first byte, the last one, and what there may be between.
            for at in [0, size - 1, size / 2] {
                let error = file.read_at(&mut [0], at as u64).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{size}, from {at}: {error}");
            }
            // The kernel may ask twice for a page, and each time it is asked for once;
            // besides, the listing that may have been old.
            let asked = stub.requests().len() - before;
            assert!(asked <= 8, "{size}, attempt {attempt}: {asked} requests");
        }
        let told = warmfs
            .log()
            .lines()
            .filter(|line| {
                line.contains(&format!("of {size} bytes, got e of 17")) && line.contains("object")
            })
            .count();
        assert!(told > 0, "{}", warmfs.log());
        // Nothing has to be done once the listing is right: whoever fails asks for it.
        claimed.store(DENIED.len(), Ordering::SeqCst);
        common::eventually("the object as it is", || {
            fs::read(&object).is_ok_and(|bytes| {
                assert_same(&bytes, DENIED, "the object");
                true
            })
        });
        warmfs.unmount("mount");
    }
}

#[test]
fn a_mount_point_in_use() {
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    let dir = warmfs.mount_uri("s3://bucket/data", "mount");
    let at = dir.to_str().unwrap();
    // By another daemon, which this one knows from the kernel only.
    let cache = warmfs.path("cache");
    let line = warmfs.fails(&["mount", "s3://bucket", at, "--cache-dir", cache.to_str().unwrap()]);
    assert_words(&line, &["in use by s3://bucket/data", "warmfs unmount"]);
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "data/hello");
    // Below a mount, which is read-only.
    let below = dir.join("folder/mount");
    let line = warmfs.fails(&["mount", "s3://bucket", below.to_str().unwrap()]);
    assert_words(&line, &["read-only", "choose a mount point"]);
    warmfs.unmount("mount");

    if !as_root("a mount of something else") {
        return;
    }
    let disk = Disk::of_bytes(&dir, 1 << 20);
    let line = warmfs.fails(&["mount", "s3://bucket/data", at]);
    drop(disk);
    assert_words(&line, &["in use by a mount of tmpfs", "umount", "choose another"]);
    warmfs.assert_nothing_left(&[]);
    assert!(dir.is_dir() && !is_mounted(&dir), "it was there before");
}

#[test]
fn a_mount_point_that_is_no_place_for_one() {
    let warmfs = Warmfs::new();
    let link = warmfs.path("dangling");
    std::os::unix::fs::symlink("/no/such/place", &link).unwrap();
    let source = warmfs.source();
    let fails = |at: &Path| warmfs.fails(&["mount", &source, at.to_str().unwrap()]);
    assert_words(&fails(&link), &["dangling", "choose"]);
    assert_words(&fails(Path::new("/proc/none")), &["/proc", "choose a mount point"]);
    assert_words(&fails(&warmfs.cache()), &["overlap", "choose another"]);
    warmfs.assert_nothing_left(&[]);
    // A dead mount of ours makes way for another URI too.
    let dir = warmfs.mount("mount");
    warmfs.crash();
    let uri = format!("{source}/folder");
    warmfs.mount_uri(&uri, "mount");
    assert_eq!(fs::read_to_string(dir.join("inner")).unwrap(), "inner");
    warmfs.unmount("mount");
}

#[test]
fn a_cache_directory_that_cannot_be_used() {
    let warmfs = Warmfs::new();
    let file = warmfs.path("file");
    fs::write(&file, "mine").unwrap();
    let source = warmfs.source();
    let refused_cache = |cache: &Path, words: &[&str]| {
        let words = [words, &[cache.to_str().unwrap(), "--cache-dir"]].concat();
        refused(&warmfs, &source, &["--cache-dir", cache.to_str().unwrap()], &words);
    };
    refused_cache(&file, &["a file in its place"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    refused_cache(&file.join("below"), &[]);
    refused_cache(Path::new("/proc/warmfs"), &[]);
    if !as_root("read-only and foreign directories") {
        return;
    }
    let foreign = warmfs.path("foreign");
    fs::create_dir(&foreign).unwrap();
    chown(&foreign, Some(NOBODY), None).unwrap();
    refused_cache(&foreign, &["belongs to"]);
    assert_eq!(fs::read_dir(&foreign).unwrap().count(), 0);

    let disk = Disk::of_bytes(&warmfs.path("disk"), 1 << 20);
    let none: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &disk.dir, none, flags, none).unwrap();
    refused_cache(&disk.dir, &["read-only"]);
    refused_cache(&disk.dir.join("new"), &["read-only"]);
}

#[test]
fn an_index_that_cannot_be_opened() {
    let warmfs = Warmfs::new();
    let index = warmfs.cache().join("index.redb");
    fs::create_dir_all(&index).unwrap();
    let source = warmfs.source();
    refused(&warmfs, &source, &[], &["cache", "index.redb", "--cache-dir"]);
    assert!(index.is_dir(), "it is the user's to look into");
    // A file that was never an index is one cache lost and no more.
    fs::remove_dir(&index).unwrap();
    fs::write(&index, "not an index").unwrap();
    let dir = warmfs.mount("mount");
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    warmfs.unmount("mount");
}

#[test]
fn a_full_disk_costs_no_more_than_the_cache() {
    if !as_root("a full disk") {
        return;
    }
    let warmfs = Warmfs::new();
    let disk = Disk::of_bytes(&warmfs.path("disk"), 16 << 20);
    let body = noise(1, 300_000);
    fs::write(warmfs.path("source/big"), &body).unwrap();
    let cache = disk.dir.join("cache");
    let (source, dir) = (warmfs.source(), warmfs.path("mount"));
    let args = [
        "mount",
        &source,
        dir.to_str().unwrap(),
        "--cache-dir",
        cache.to_str().unwrap(),
        "--cache-size",
        "8M",
    ];
    let status = || {
        let text = warmfs.ok(&["status", dir.to_str().unwrap(), "--json"]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    warmfs.ok(&args);
    assert_same(&fs::read(dir.join("big")).unwrap(), &body, "cold");
    warmfs.unmount("mount");

    // It mounts and reads; what is cached may have given way to others.
    disk.fill();
    warmfs.ok(&args);
    assert_same(&fs::read(dir.join("big")).unwrap(), &body, "with a full disk");
    assert_eq!(status()["cache"]["limit_bytes"], 0, "there is nothing to give out");
    assert_same(&fs::read(dir.join("hello")).unwrap(), b"hello, world", "with a full disk");
    warmfs.unmount("mount");

    // A cache cannot begin there, where nothing can give way.
    disk.fill();
    let other = disk.dir.join("other");
    let line = warmfs.fails(&[
        "mount",
        &source,
        dir.to_str().unwrap(),
        "--cache-dir",
        other.to_str().unwrap(),
    ]);
    assert_words(&line, &["space left on device", "--cache-dir"]);
    assert!(!dir.exists());

    disk.free();
    warmfs.ok(&args);
    assert_same(&fs::read(dir.join("big")).unwrap(), &body, "with room again");
    warmfs.unmount("mount");
    warmfs.ok(&args);
    assert_same(&fs::read(dir.join("big")).unwrap(), &body, "warm");
    assert_eq!(status()["remote"]["get"]["requests"], 0, "it was kept");
    warmfs.unmount("mount");
}

/// A small disk in memory; gone when dropped.
struct Disk {
    dir: PathBuf,
}

impl Disk {
    fn of_bytes(dir: &Path, bytes: u64) -> Disk {
        fs::create_dir(dir).unwrap();
        let size = format!("size={bytes},mode=700");
        mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
        Disk { dir: dir.to_owned() }
    }

    /// Leaves not a byte.
    fn fill(&self) {
        let mut file = File::create(self.dir.join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.dir.join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a failed test may have left a daemon on it.
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_log_that_cannot_be_written() {
    let warmfs = Warmfs::new();
    let source = warmfs.source();
    let log = warmfs.path("no/such/folder/log");
    let words = ["cannot log to", log.to_str().unwrap(), "no such file or directory", "--log-file"];
    refused(&warmfs, &source, &["--log-file", log.to_str().unwrap()], &words);
}

#[test]
fn a_machine_without_dev_fuse() {
    if !as_root("a machine without /dev/fuse") {
        return;
    }
    let warmfs = Warmfs::new();
    let dir = warmfs.path("new/mount");
    let mut command = warmfs.command(&["mount", &warmfs.source(), dir.to_str().unwrap()]);
    with_own_dev(&mut command, None, None);
    let line = warmfs.fails_as(&mut command);
    let words = ["there is no /dev/fuse", "modprobe fuse", "--device /dev/fuse", "--no-fuse URI"];
    assert_words(&line, &words);
    assert!(!warmfs.cache().exists(), "not even a cache directory");
    // It needs none to be read at the socket.
    let mut command = warmfs.command(&["mount", "--no-fuse", &warmfs.source()]);
    with_own_dev(&mut command, Some(0o000), None);
    assert!(command.status().unwrap().success(), "{}", warmfs.log());
    let mut socket = Connection::to(&warmfs);
    let hello = socket.open(&format!("{}/hello", warmfs.source())).unwrap();
    assert_eq!(socket.read_all(&hello).unwrap(), b"hello, world");
    warmfs.ok(&["unmount", &warmfs.source()]);
    warmfs.assert_nothing_left(&["new/mount", "new"]);
}

#[test]
fn a_user_without_fusermount() {
    if !as_root("a user without fusermount3") {
        return;
    }
    let warmfs = Warmfs::new();
    give_to_nobody(&warmfs);
    let dir = warmfs.path("new/mount");
    let tool = |args: &[&str], dev_fuse: u32| {
        let mut command = as_nobody(&warmfs, &warmfs.path("warmfs"), dev_fuse);
        // Nothing is installed there.
        command.args(args).env("PATH", warmfs.path("bin"));
        command
    };
    let source = warmfs.source();
    let mount = ["mount", &source, dir.to_str().unwrap()];
    let line = warmfs.fails_as(&mut tool(&mount, 0o666));
    assert_words(&line, &["fusermount3", "apt-get install fuse3"]);
    let line = warmfs.fails_as(&mut tool(&mount, 0o600));
    assert_words(&line, &["/dev/fuse", "permission denied", "chmod 666 /dev/fuse"]);
    assert!(!warmfs.cache().exists(), "not even a cache directory");
    warmfs.assert_nothing_left(&["new/mount", "new"]);
}

#[test]
fn a_user_with_fusermount_is_fine() {
    if !as_root("another user") {
        return;
    }
    let warmfs = Warmfs::new();
    // fusermount takes options in a list, so a comma needs care.
    let source = warmfs.path("source/a,b\\c");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("hello"), "hello, nobody").unwrap();
    give_to_nobody(&warmfs);
    // In one process group of one mount namespace, which this test cannot look into.
    let script = "set -e; \"$0\" mount \"$1\" \"$2\" >&2; cat \"$2/hello\"; \
                  grep -c ' - fuse.warmfs file:///.*/a,b.134c ' /proc/self/mountinfo; \
                  \"$0\" unmount \"$2\"; test ! -e \"$2\"";
    let mut command = as_nobody(&warmfs, Path::new("sh"), 0o666);
    command.args(["-c", script]).arg(warmfs.path("warmfs"));
    command.arg(format!("file://{}", source.display())).arg(warmfs.path("new/mount"));
    command.env("PATH", std::env::var_os("PATH").unwrap());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}\n{}", warmfs.log());
    assert!(stderr.lines().count() == 1 && stderr.contains(" mounted at "), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello, nobody1\n");
    warmfs.assert_nothing_left(&["new/mount", "new"]);
}

/// Makes a test's directory the user's own, with the binary in reach.
fn give_to_nobody(warmfs: &Warmfs) {
    fs::copy(env!("CARGO_BIN_EXE_warmfs"), warmfs.path("warmfs")).unwrap();
    for name in ["", "home", "run", "source", "bin"] {
        let _ = fs::create_dir(warmfs.path(name));
        fs::set_permissions(warmfs.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        chown(warmfs.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A program with the test's environment, run by nobody with a /dev/fuse of
/// mode `dev_fuse`.
fn as_nobody(warmfs: &Warmfs, program: &Path, dev_fuse: u32) -> Command {
    let template = warmfs.command(&[]);
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    command.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    with_own_dev(&mut command, Some(dev_fuse), Some(NOBODY));
    command
}

/// Whether this test may do what only root may; says so loudly if not.
fn as_root(what: &str) -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED, since only root can set it up: {what}");
    }
    root
}

/// Gives a command a /dev of its own, with a /dev/fuse of mode `fuse` or
/// none, and lets it run as `user`. The machine's own stays as it is.
fn with_own_dev(command: &mut Command, fuse: Option<u32>, user: Option<u32>) {
    let prepare = move || {
        let none: Option<&str> = None;
        // SAFETY: takes a number only.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        if let Some(mode) = fuse {
            for (path, major, minor, mode) in
                [("/dev/fuse", 10, 229, mode), ("/dev/null", 1, 3, 0o666)]
            {
                mknod(path, SFlag::S_IFCHR, Mode::empty(), makedev(major, minor))?;
                // Past the umask.
                fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            }
        }
        if let Some(user) = user {
            nix::unistd::setgroups(&[])?;
            nix::unistd::setresgid(user.into(), user.into(), user.into())?;
            nix::unistd::setresuid(user.into(), user.into(), user.into())?;
        }
        Ok(())
    };
    // SAFETY: system calls between fork and exec; the little that they
    // allocate is safe in glibc, whose allocator survives a fork.
    unsafe { command.pre_exec(prepare) };
}
