//! What the socket answers to peers that are not this version of warmfs.

use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use warmfs::config::MountRequest;
use warmfs::control::BODY_BYTES_MAX;
use warmfs::control::client::Client;
use warmfs::control::server::{Listener, Reading, Service};
use warmfs::control::wire::{
    ErrorCode, ErrorReply, HintRequest, MountReply, Ping, ReadRequest, RenewRequest, StatReply,
    StatRequest, StatusReply, UnmountReply, UnmountRequest, UpkeepLine, UpkeepRequest, WaitRequest,
};

struct Refuser;

#[async_trait]
impl Service for Refuser {
    fn ping(&self) -> Ping {
        Ping {
            pid: 1,
            version: "x".to_owned(),
            cache_dir: "/c".into(),
            cache_size: None,
            memory_limit: None,
            metadata_memory: None,
            log_file: None,
            metrics_listen: None,
        }
    }

    async fn metrics(&self) -> String {
        unreachable!("not asked for")
    }

    async fn status(&self) -> StatusReply {
        panic!("a defect in the service")
    }

    async fn mount(&self, _: MountRequest) -> Result<MountReply, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::NotFound, "no such bucket").with_hint("check it"))
    }

    async fn unmount(&self, _: UnmountRequest) -> Result<UnmountReply, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::Busy, "busy"))
    }

    async fn renew(&self, _: RenewRequest) -> Result<(), ErrorReply> {
        Ok(())
    }
    async fn wait(&self, _: WaitRequest) -> Result<(), ErrorReply> {
        Ok(())
    }

    async fn hint(&self, _: HintRequest) -> Result<(), ErrorReply> {
        Ok(())
    }

    async fn stat(&self, _: StatRequest) -> Result<StatReply, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::NotFound, "no such path"))
    }

    async fn read(&self, _: ReadRequest) -> Result<Reading, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::Stale, "another version"))
    }

    async fn upkeep(&self, _: UpkeepRequest) -> Result<mpsc::Receiver<UpkeepLine>, ErrorReply> {
        Err(ErrorReply::new(ErrorCode::Busy, "busy"))
    }
}

/// Serves while `test` runs on a thread that may block.
async fn serving(test: impl FnOnce(&Path) + Send + 'static) {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s.sock");
    let listener = Listener::bind(&socket).unwrap();
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(listener.serve(Arc::new(Refuser), stopped));
    let path = socket.clone();
    tokio::task::spawn_blocking(move || test(&path)).await.unwrap();
    stop.send_replace(true);
    server.await.unwrap();
    assert!(!socket.exists());
}

fn exchange(socket: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    // A server that refuses early may close before everything is sent.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_clear_answers() {
    serving(|socket| {
        assert_eq!(std::fs::metadata(socket).unwrap().mode() & 0o777, 0o600);
        let other = b"GET /v1/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                      warmfs-protocol: 99\r\n\r\n";
        let answer = exchange(socket, other);
        assert!(answer.starts_with("HTTP/1.1 426"), "{answer}");
        assert!(answer.contains("\"incompatible\""), "{answer}");
        assert!(answer.contains("warmfs-version: "), "{answer}");

        let curl = b"GET /v1/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(exchange(socket, curl).starts_with("HTTP/1.1 200"));
        let unknown = b"GET /v2/ping HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(exchange(socket, unknown).starts_with("HTTP/1.1 400"));
        assert!(exchange(socket, b"\x16\x03\x01nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_are_bounded_and_never_quoted() {
    serving(|socket| {
        let head = |length: usize| {
            format!(
                "POST /v1/mounts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                 content-length: {length}\r\n\r\n"
            )
        };
        let secret = "{\"env\":\"TOPSECRET\"}";
        let answer = exchange(socket, format!("{}{secret}", head(secret.len())).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400") && !answer.contains("TOPSECRET"), "{answer}");

        let mut large = head(BODY_BYTES_MAX + 1).into_bytes();
        large.resize(large.len() + BODY_BYTES_MAX + 1, b' ');
        let answer = exchange(socket, &large);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    })
    .await;
}

#[tokio::test]
async fn a_daemon_of_another_protocol_is_named() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let old = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4_096];
        let _ = stream.read(&mut request).unwrap();
        let answer = "HTTP/1.1 200 OK\r\nwarmfs-protocol: 0\r\nwarmfs-version: 0.0.9\r\n\
                      content-length: 2\r\n\r\n{}";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let error = Client::connect(&socket).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Incompatible);
    assert!(error.to_string().contains("0.0.9"), "{error}");
    assert!(error.hint.is_some());
    old.join().unwrap();
}

#[tokio::test]
async fn nobody_there_is_not_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("s.sock");
    assert!(Client::connect(&socket).await.unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(Client::connect(&socket).await.unwrap().is_none());
}
