//! `--verify-remote`: what came is compared with what real stores say of it, and what
//! differs is fetched again, by open readers too.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;
use common::azurite::{Azurite, KEY};
use common::gcs::Gcs;
use common::moto::Moto;
use common::store::{BUCKET, Store};
use common::tree::noise;
use common::{Warmfs, eventually};
use md5::{Digest, Md5};
use serde_json::Value;
use tokio::runtime::Runtime;
use warmfs::embedded_store::{Fault, FaultRule, Op};

/// A few chunks, the last of them short.
const BYTES: usize = 300_001;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A mount that compares. On a disk that is nearly full nothing would be kept without a size.
fn mount(warmfs: &mut Warmfs, uri: &str) -> std::path::PathBuf {
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
    let dir = warmfs.path("mount");
    warmfs.ok(&["mount", uri, dir.to_str().unwrap(), "--verify-remote", "--warm", "off"]);
    dir
}

fn compared(warmfs: &Warmfs) -> Value {
    warmfs.status()["cache"]["compared"].clone()
}

/// Reads all of a folder, and sees what comes of comparing it.
fn assert_compared(warmfs: &Warmfs, dir: &Path, content: &[u8], same: u64, unverifiable: u64) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let read = fs::read(&path).unwrap();
        assert!(read == content || read.is_empty(), "{}", path.display());
    }
    eventually("all is compared", || {
        let found = compared(warmfs);
        found["same"].as_u64().unwrap() + found["unverifiable"].as_u64().unwrap()
            == same + unverifiable
    });
    let found = compared(warmfs);
    assert_eq!((&found["same"], &found["unverifiable"]), (&same.into(), &unverifiable.into()));
    assert_eq!((&found["dropped"], &found["disputed"]), (&0.into(), &0.into()), "{found}");
    assert_eq!(found["skipped"], 0);
}

#[test]
fn what_s3_tells_is_what_came() {
    use ChecksumAlgorithm::{Crc32, Crc32C, Crc64Nvme, Sha1, Sha256};
    let moto = Moto::start();
    let content = noise(1, BYTES);
    runtime().block_on(async {
        moto.create_bucket("bucket").await;
        for sum in [Crc32, Crc32C, Crc64Nvme, Sha256, Sha1] {
            let key = format!("with-{sum}");
            moto.put_with("bucket", &key, content.to_vec(), sum).await;
        }
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_ENDPOINT_URL", moto.endpoint());
    warmfs.set_env("AWS_ACCESS_KEY_ID", "test");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "test");
    let dir = mount(&mut warmfs, "s3://bucket");
    // Of SHA-1 the etag is left, which is an MD5 there.
    assert_compared(&warmfs, &dir, &content, 5, 0);
    let text = warmfs.ok(&["status"]);
    assert!(text.contains("5 objects as the store says"), "{text}");
    warmfs.unmount("mount");
}

#[test]
fn what_google_cloud_storage_tells_is_what_came() {
    let gcs = Gcs::start();
    let content = noise(2, BYTES);
    runtime().block_on(async {
        gcs.create_bucket("bucket").await;
        for key in ["one", "two"] {
            gcs.put("bucket", key, content.to_vec()).await;
        }
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("STORAGE_EMULATOR_HOST", gcs.endpoint());
    let dir = mount(&mut warmfs, "gs://bucket");
    assert_compared(&warmfs, &dir, &content, 2, 0);
    warmfs.unmount("mount");
}

#[test]
fn what_azure_tells_is_what_came_and_where_it_tells_nothing_that_is_counted() {
    let runtime = runtime();
    let azurite = runtime.block_on(Azurite::start());
    let content = noise(3, 512 * 600);
    runtime.block_on(async {
        azurite.create_container("container", false).await;
        azurite.put("container", "with", content.to_vec()).await;
        azurite.put_pages("container", "without", &content).await;
    });
    let mut warmfs = Warmfs::new();
    warmfs.set_env("AZURE_STORAGE_BLOB_ENDPOINT", azurite.endpoint());
    warmfs.set_env("AZURE_STORAGE_KEY", KEY);
    let dir = mount(&mut warmfs, "az://devstoreaccount1/container");
    assert_compared(&warmfs, &dir, &content, 1, 1);
    warmfs.unmount("mount");
}

/// An object whose etag is its MD5, as that of S3 is.
fn put_with_md5(store: &Store, key: &str, content: &Bytes) {
    let etag: String = Md5::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    store.put_with_etag(BUCKET, key, content.clone(), etag);
}

#[test]
fn what_came_wrong_is_fetched_again_by_an_open_reader_too() {
    let store = Store::start();
    let content = noise(4, BYTES);
    put_with_md5(&store, "wrong", &content);
    put_with_md5(&store, "right", &content);
    let flipped = FaultRule {
        key_contains: "wrong".to_owned(),
        ..FaultRule::next(1, Op::Get, Fault::FlipByte(150_000))
    };
    store.set_faults(vec![flipped]);
    let mut warmfs = store.warmfs();
    let dir = mount(&mut warmfs, "s3://bucket");
    let file = File::open(dir.join("wrong")).unwrap();
    let read = || {
        let mut bytes = vec![0; BYTES];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    assert!(read() != content, "nothing can be known of it yet");
    eventually("it is found out", || compared(&warmfs)["dropped"] == 1);
    eventually("an open reader has what is right", || read() == content);
    assert_eq!(fs::read(dir.join("wrong")).unwrap(), content);
    assert_eq!(fs::read(dir.join("right")).unwrap(), content);
    eventually("both are as the store says", || compared(&warmfs)["same"] == 2);
    assert_eq!(compared(&warmfs)["last"], "wrong");
    assert_eq!(warmfs.status()["repairs"], 0, "its chunks were as they came");
    let log = warmfs.log();
    assert_eq!(log.matches("is not what its store says").count(), 1, "{log}");
    let text = warmfs.ok(&["status"]);
    assert!(text.contains("NOT as the store says"), "{text}");

    // It is kept, and over a remount too.
    drop(file);
    warmfs.unmount("mount");
    let dir = mount(&mut warmfs, "s3://bucket");
    assert_eq!(fs::read(dir.join("wrong")).unwrap(), content);
    assert_eq!(warmfs.status()["remote"]["get"]["requests"], 0);
    warmfs.unmount("mount");
}

#[test]
fn a_checksum_that_is_wrong_itself_costs_one_more_fetch_and_no_reader_fails() {
    let store = Store::start();
    let content = noise(5, BYTES);
    // Its etag looks like an MD5 and is none.
    store.put(BUCKET, "stale", content.clone());
    let mut warmfs = store.warmfs();
    let dir = mount(&mut warmfs, "s3://bucket");
    eventually("it is disputed", || {
        assert_eq!(fs::read(dir.join("stale")).unwrap(), content);
        compared(&warmfs)["disputed"] == 1
    });
    assert_eq!(compared(&warmfs)["dropped"], 1);
    assert_eq!(store.counts().get.bytes, 2 * BYTES as u64);
    assert_eq!(fs::read(dir.join("stale")).unwrap(), content);
    assert_eq!(store.counts().get.bytes, 2 * BYTES as u64, "it is kept");
    assert!(warmfs.log().contains("twice; it is kept as it came"), "{}", warmfs.log());
    warmfs.unmount("mount");
}

#[test]
fn verify_compares_what_is_cached_already() {
    let store = Store::start();
    let content = noise(7, BYTES);
    for key in ["wrong", "right"] {
        put_with_md5(&store, key, &content);
    }
    store.put_with_etag(BUCKET, "unsaid", content.clone(), "of-two-parts-2");
    let flipped = FaultRule {
        key_contains: "wrong".to_owned(),
        ..FaultRule::next(1, Op::Get, Fault::FlipByte(150_000))
    };
    store.set_faults(vec![flipped]);
    let mut warmfs = store.warmfs();
    warmfs.set_env("WARMFS_CACHE_SIZE", "1G");
    let dir = warmfs.mount_uri("s3://bucket", "mount");
    for key in ["wrong", "right", "unsaid"] {
        assert_eq!(fs::read(dir.join(key)).unwrap() == content, key != "wrong");
    }
    // What was read a moment ago may still be on its way to the disk.
    eventually("all is cached", || {
        warmfs.status()["cache"]["dataset_cached_bytes"] == 3 * BYTES as u64
    });
    let told = warmfs.ok(&["verify", dir.to_str().unwrap()]);
    assert!(told.contains("nothing is damaged\n"), "{told}");
    let told = warmfs.ok(&["verify", "--remote", dir.to_str().unwrap()]);
    let words = "1 object as the store says, 1 not, which the next read fetches anew, once, 1 \
                 without a checksum";
    assert!(told.contains(words), "{told}");
    eventually("it is read anew", || fs::read(dir.join("wrong")).unwrap() == content);
    eventually("it is right now", || {
        warmfs.ok(&["verify", "--remote", dir.to_str().unwrap()]).contains("2 objects as the store")
    });
    warmfs.unmount("mount");
}

#[test]
fn without_the_option_nothing_is_asked() {
    let store = Store::start();
    put_with_md5(&store, "file", &noise(6, BYTES));
    let warmfs = store.warmfs();
    let dir = warmfs.mount_uri("s3://bucket", "mount");
    // From the listing, so that no HEAD is needed.
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    fs::read(dir.join("file")).unwrap();
    warmfs.unmount("mount");
    assert_eq!(store.counts().head.requests, 0);
}
