//! A web server on loopback that answers as a test says, byte by byte, so that
//! it can also break off, reset, or say nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A request as it came over the wire.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET /bucket/key?query HTTP/1.1`, headers included.
    pub head: String,
    /// What follows them, of the length that they say.
    pub body: String,
}

impl Request {
    /// Path and query, still encoded.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap_or_default()
    }

    /// A parameter of the query, or of a form in the body, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let query = self.target().split_once('?').map_or("", |(_, query)| query);
        query.split('&').chain(self.body.split('&')).find_map(|pair| {
            let (found, value) = pair.split_once('=')?;
            let value = percent_encoding::percent_decode_str(value).decode_utf8().unwrap();
            (found == name).then(|| value.into_owned())
        })
    }

    /// Whether it lists a bucket.
    pub fn is_list(&self) -> bool {
        self.target().contains("list-type=2")
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The region in the signature; `None` if it is not signed.
    pub fn signed_region(&self) -> Option<&str> {
        self.header("authorization")?.split('/').nth(2)
    }
}

/// What is sent, and what becomes of the connection then.
#[derive(Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    then: Then,
}

#[derive(Debug, PartialEq)]
enum Then {
    KeepAlive,
    Close,
    Reset,
    Hang,
    Repeat(Vec<u8>),
}

impl Reply {
    /// A whole answer.
    pub fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
        let length = body.as_ref().len();
        Self::with_length(status, headers, body, length)
    }

    fn with_length(
        status: u16,
        headers: &[(&str, &str)],
        body: impl AsRef<[u8]>,
        length: usize,
    ) -> Reply {
        let mut bytes = format!("HTTP/1.1 {status} Status\r\ncontent-length: {length}\r\n");
        for (name, value) in headers {
            bytes.push_str(&format!("{name}: {value}\r\n"));
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(body.as_ref());
        Reply { bytes, then: Then::KeepAlive }
    }

    /// An answer whose connection says nothing more after `body`, of `length` bytes.
    pub fn stalling(headers: &[(&str, &str)], body: &[u8], length: usize) -> Reply {
        Reply { then: Then::Hang, ..Self::with_length(206, headers, body, length) }
    }

    /// An answer whose connection is closed after `body`, of `length` bytes.
    pub fn short(headers: &[(&str, &str)], body: &[u8], length: usize) -> Reply {
        Reply { then: Then::Close, ..Self::with_length(206, headers, body, length) }
    }

    /// An answer whose connection is reset after `body`, of `length` bytes.
    pub fn reset(headers: &[(&str, &str)], body: &[u8], length: usize) -> Reply {
        Reply { then: Then::Reset, ..Self::with_length(206, headers, body, length) }
    }

    /// Whatever these bytes are to a client.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Reply {
        Reply { bytes: bytes.into(), then: Then::KeepAlive }
    }

    /// A beginning, and then `piece` again and again while somebody reads.
    pub fn endless(beginning: &str, piece: &[u8]) -> Reply {
        Reply { bytes: beginning.as_bytes().to_vec(), then: Then::Repeat(piece.to_vec()) }
    }

    /// No answer at all, on an open connection.
    pub fn silence() -> Reply {
        Reply { bytes: Vec::new(), then: Then::Hang }
    }

    /// S3's way to say no.
    pub fn s3_error(status: u16, code: &str, headers: &[(&str, &str)]) -> Reply {
        let body = format!("<Error><Code>{code}</Code><Message>said the store</Message></Error>");
        Self::new(status, headers, body)
    }

    /// An empty listing.
    pub fn empty_list() -> Reply {
        Self::new(200, &[], "<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
    }
}

/// The server; gone when dropped.
#[derive(Debug)]
pub struct Stub {
    url: String,
    log: Arc<Mutex<Vec<Request>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Stub {
    /// Starts a server that answers each request with `answer`.
    pub async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Stub {
        Stub::start_at("127.0.0.1:0", answer).await
    }

    /// The same at an address of the test's choice.
    pub async fn start_at(
        address: &str,
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Stub {
        let listener = TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (answer, seen, count) = (Arc::new(answer), log.clone(), connections.clone());
        let task = tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                served.spawn(async move { serve(stream, &*answer, &seen).await });
            }
        });
        Stub { url, log, connections, task }
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: &(dyn Fn(&Request) -> Reply + Send + Sync),
    log: &Mutex<Vec<Request>>,
) {
    let mut received = Vec::new();
    loop {
        let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") else {
            match stream.read_buf(&mut received).await {
                Ok(n) if n > 0 => continue,
                _ => return,
            }
        };
        let head = received.drain(..end + 4).collect();
        let mut request = Request { head: String::from_utf8(head).unwrap(), body: String::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        while received.len() < length {
            match stream.read_buf(&mut received).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
        request.body = String::from_utf8(received.drain(..length).collect()).unwrap();
        log.lock().unwrap().push(request.clone());
        let reply = answer(&request);
        if stream.write_all(&reply.bytes).await.is_err() {
            return;
        }
        match reply.then {
            Then::KeepAlive => {}
            Then::Close => return,
            Then::Hang => return std::future::pending().await,
            Then::Repeat(piece) => {
                while stream.write_all(&piece).await.is_ok() {}
                return;
            }
            Then::Reset => {
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                setsockopt(&stream, sockopt::Linger, &linger).unwrap();
                return;
            }
        }
    }
}
