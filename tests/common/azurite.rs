//! A Blob service on loopback that is not ours: Azurite, which `./check` installs.
//!
//! It is filled by requests with a shared access signature, made here: the product's own
//! signer is what is tested.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::{HeaderMap, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::answer::{Asked, Dialect};
use warmfs::remote::base_url::BaseUrl;
use warmfs::remote::http::HttpClient;
use warmfs::remote::rest::{Call, Rest, Said};

use super::server::{Server, test_home};

/// Its account, and the key that every emulator has.
pub const ACCOUNT: &str = "devstoreaccount1";
pub const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

static PLAIN: Dialect = Dialect {
    server: "the store",
    store: "Azurite",
    bucket: "container",
    endpoint: "the test",
    credentials: "mend the test",
    kind: |_| None,
    next_step: |_| None,
};

/// A server with containers in memory; gone when dropped.
#[derive(Debug)]
pub struct Azurite {
    _server: Server,
    endpoint: BaseUrl,
    rest: Rest,
}

impl Azurite {
    /// Starts a server and waits until it listens.
    pub async fn start() -> Azurite {
        let program = test_home().join("azurite/node_modules/.bin/azurite-blob");
        let server = Server::start(&program, |command, port| {
            command.args(["--blobPort", &port.to_string(), "--inMemoryPersistence"]);
            command.args(["--silent", "--disableTelemetry"]);
        });
        let url = format!("{}/{ACCOUNT}", server.endpoint());
        let http = HttpClient::open(&RemoteOptions::default(), &CallerEnv::default(), None).await;
        Azurite {
            _server: server,
            endpoint: BaseUrl::parse("the test", &url).unwrap(),
            rest: Rest::new(http.unwrap(), &PLAIN, as_it_is),
        }
    }

    /// The URL of its account.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_str()
    }

    /// Options that lead to it.
    pub fn options(&self) -> RemoteOptions {
        RemoteOptions { endpoint_url: Some(self.endpoint().to_owned()), ..RemoteOptions::default() }
    }

    /// An environment with credentials that it accepts.
    pub fn env(&self) -> CallerEnv {
        [("AZURE_STORAGE_KEY", KEY)].into_iter().collect()
    }

    /// Makes an empty container, which anybody may list and read if it `is_public`.
    pub async fn create_container(&self, container: &str, is_public: bool) {
        let call = self.call(Method::PUT, container).query("restype", "container");
        let call =
            if is_public { call.header("x-ms-blob-public-access", "container") } else { call };
        self.send(call).await;
    }

    /// Puts a blob, or a new version of it.
    pub async fn put(&self, container: &str, key: &str, bytes: Vec<u8>) {
        let call = self
            .blob(Method::PUT, container, key)
            .header("x-ms-blob-type", "BlockBlob")
            .header("content-length", &bytes.len().to_string());
        self.send(call.body("application/octet-stream", bytes)).await;
    }

    /// Puts a blob that stands for a folder.
    pub async fn put_folder(&self, container: &str, key: &str) {
        let call = self
            .blob(Method::PUT, container, key)
            .header("x-ms-blob-type", "BlockBlob")
            .header("x-ms-meta-hdi_isfolder", "true")
            .header("content-length", "0");
        self.send(call).await;
    }

    /// Puts a blob of pages, 512 bytes each.
    pub async fn put_pages(&self, container: &str, key: &str, bytes: &[u8]) {
        let blob = || self.blob(Method::PUT, container, key);
        let call = blob()
            .header("x-ms-blob-type", "PageBlob")
            .header("x-ms-blob-content-length", &bytes.len().to_string())
            .header("content-length", "0");
        self.send(call).await;
        let call = blob()
            .query("comp", "page")
            .header("x-ms-page-write", "update")
            .header("x-ms-range", &format!("bytes=0-{}", bytes.len() - 1));
        self.send(call.body("application/octet-stream", bytes.to_vec())).await;
    }

    /// Puts a blob to which more is appended, piece by piece.
    pub async fn append(&self, container: &str, key: &str, pieces: &[&str]) {
        let blob = || self.blob(Method::PUT, container, key);
        let call = blob().header("x-ms-blob-type", "AppendBlob").header("content-length", "0");
        self.send(call).await;
        for piece in pieces {
            let call = blob().query("comp", "appendblock");
            self.send(call.body("application/octet-stream", piece.to_string())).await;
        }
    }

    /// Moves a blob into the archive.
    pub async fn archive(&self, container: &str, key: &str) {
        let call = self.blob(Method::PUT, container, key).query("comp", "tier");
        self.send(call.header("x-ms-access-tier", "Archive").header("content-length", "0")).await;
    }

    /// Deletes a blob.
    pub async fn delete(&self, container: &str, key: &str) {
        self.send(self.blob(Method::DELETE, container, key)).await;
    }

    fn call(&self, method: Method, container: &str) -> Call {
        Call::new(method, &self.endpoint)
            .path(&format!("/{container}"))
            .header("x-ms-version", "2021-12-02")
    }

    fn blob(&self, method: Method, container: &str, key: &str) -> Call {
        self.call(method, container).path(&format!("/{key}"))
    }

    async fn send(&self, call: Call) {
        let call = call.signed_query(&signature("rwdlac"));
        let what = format!("{} {}", call.method(), call.encoded_path());
        self.rest.document(Asked::Get, &what, call).await.unwrap();
    }
}

/// A signature of the account for all that is in it, with `permissions`.
///
/// <https://learn.microsoft.com/rest/api/storageservices/create-account-sas>
pub fn signature(permissions: &str) -> String {
    let expiry = "2120-01-01T00:00:00Z";
    let version = "2021-12-02";
    // Account, permissions, service, resource types, start, expiry, addresses, protocols,
    // version, encryption scope.
    let signed =
        format!("{ACCOUNT}\n{permissions}\nb\nco\n\n{expiry}\n\nhttps,http\n{version}\n\n");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64.decode(KEY).unwrap());
    let signature = BASE64.encode(hmac::sign(&key, signed.as_bytes()));
    let mut query = String::new();
    for (name, value) in [
        ("sv", version),
        ("ss", "b"),
        ("srt", "co"),
        ("sp", permissions),
        ("se", expiry),
        ("spr", "https,http"),
        ("sig", &signature),
    ] {
        write!(query, "&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)).unwrap();
    }
    query.split_off(1)
}

fn as_it_is(_: &HeaderMap, body: &[u8]) -> Said {
    Said { code: None, message: Some(String::from_utf8_lossy(body).into_owned()) }
}
