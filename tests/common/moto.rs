//! A real S3 server on loopback: `moto_server`, which `./check` installs.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::primitives::ByteStream;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::http::HttpClient;

/// Longest that the server may take to listen: it imports a lot of Python.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Somebody else may take the port between our look and the server's start.
const START_ATTEMPTS: usize = 3;

/// A server with buckets in memory; gone when dropped.
#[derive(Debug)]
pub struct Moto {
    server: Child,
    endpoint: String,
}

impl Moto {
    /// Starts a server and waits until it accepts connections.
    pub fn start() -> Moto {
        let program = program();
        assert!(
            program.is_file(),
            "the S3 server for tests is not installed: run ./check (looked at {})",
            program.display()
        );
        (0..START_ATTEMPTS)
            .find_map(|_| Self::try_start(&program))
            .expect("moto_server did not start")
    }

    fn try_start(program: &PathBuf) -> Option<Moto> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server cannot be run");
        let mut moto = Moto { server, endpoint: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if moto.server.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(moto);
            }
            // Another process cannot be waited for otherwise.
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Options that lead to it.
    pub fn options(&self) -> RemoteOptions {
        RemoteOptions { endpoint_url: Some(self.endpoint.clone()), ..RemoteOptions::default() }
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
            .endpoint_url(&self.endpoint)
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

    /// Deletes an object.
    pub async fn delete(&self, bucket: &str, key: &str) {
        self.client().await.delete_object().bucket(bucket).key(key).send().await.unwrap();
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn program() -> PathBuf {
    let home = std::env::var_os("WARMFS_TEST_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/warmfs-test")
    });
    home.join("venv/bin/moto_server")
}
