//! A real S3 server on loopback: `moto_server`, which `./check` installs.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, StorageClass};
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::http::HttpClient;

use super::server::{Server, venv};

/// A server with buckets in memory; gone when dropped.
#[derive(Debug)]
pub struct Moto(Server);

impl Moto {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Moto {
        Moto(Server::start(&venv().join("bin/moto_server"), |command, port| {
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        }))
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        self.0.endpoint()
    }

    /// Options that lead to it.
    pub fn options(&self) -> RemoteOptions {
        RemoteOptions { endpoint_url: Some(self.endpoint().to_owned()), ..RemoteOptions::default() }
    }

    /// An environment with credentials that it accepts.
    pub fn env(&self) -> CallerEnv {
        [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")].into_iter().collect()
    }

    /// A client for making buckets and objects.
    pub async fn client(&self) -> Client {
        let http = HttpClient::open(&self.options(), &CallerEnv::default(), None).await.unwrap();
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http.for_sdk())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .build();
        Client::from_conf(config)
    }

    /// Makes an empty bucket.
    pub async fn create_bucket(&self, bucket: &str) {
        self.client().await.create_bucket().bucket(bucket).send().await.unwrap();
    }

    /// Puts an object, or a new version of it.
    pub async fn put(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        let body = ByteStream::from(bytes);
        self.client().await.put_object().bucket(bucket).key(key).body(body).send().await.unwrap();
    }

    /// Puts an object with a checksum of this kind, which the server keeps and tells.
    pub async fn put_with(&self, bucket: &str, key: &str, bytes: Vec<u8>, sum: ChecksumAlgorithm) {
        let put = self.client().await.put_object().bucket(bucket).key(key);
        put.checksum_algorithm(sum).body(ByteStream::from(bytes)).send().await.unwrap();
    }

    /// Puts an object into an archive, from which it is not restored.
    pub async fn put_archived(&self, bucket: &str, key: &str, bytes: Vec<u8>) {
        let put = self.client().await.put_object().bucket(bucket).key(key);
        let put = put.storage_class(StorageClass::Glacier).body(ByteStream::from(bytes));
        put.send().await.unwrap();
    }

    /// Deletes an object.
    pub async fn delete(&self, bucket: &str, key: &str) {
        self.client().await.delete_object().bucket(bucket).key(key).send().await.unwrap();
    }
}
