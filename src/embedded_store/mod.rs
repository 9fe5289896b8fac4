//! An S3-compatible object store in memory, on loopback.
//!
//! It is what `warmfs demo` mounts and what tests and benches measure against:
//! a store whose latency, bandwidth, faults and request log are known exactly.
//! It owns nothing on disk. Rules:
//!
//! - It is a leaf: nothing of warmfs is used here, so that it cannot share a
//!   mistake with the code it checks.
//! - Bodies are slices of what was put: an unthrottled GET copies no byte.
//! - A request is logged and counted when it arrives, whatever becomes of it.
//! - Signatures are not verified; who signs, and for which region, is.

mod dataset;
mod faults;
mod http;
mod log;
mod objects;
mod request;
mod throttle;
mod xml;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

pub use dataset::{Batch, Dataset};
pub use faults::{Fault, FaultRule};
pub use log::{Counts, LoggedRequest, Op, Tally};

use faults::Faults;
use log::RequestLog;
use objects::Buckets;
use throttle::SharedPacer;

/// A running store. Dropping it closes the port and every connection.
#[derive(Debug)]
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: AbortHandle,
}

/// How a store behaves.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Time from a request to the first byte of its answer.
    pub ttfb: Duration,
    /// Bytes per second that one connection carries; `None` for no bound.
    pub rate_bytes_per_s_per_connection: Option<u64>,
    /// Most entries in a page of a listing (S3: 1,000).
    pub page_keys_max: usize,
    /// Time to a page of a listing, where it differs from `ttfb`.
    pub list_page_delay: Option<Duration>,
    /// The region that signatures must name; `None` takes any. A request
    /// signed for another gets 400 (HEAD: 301) and `x-amz-bucket-region`.
    pub required_region: Option<String>,
    /// Who may read and write.
    pub access: Access,
}

/// Who may use a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, signed or not.
    Public,
    /// Only requests signed by this access key id. The signature itself is
    /// not verified.
    Key(String),
}

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            ttfb: Duration::ZERO,
            rate_bytes_per_s_per_connection: None,
            page_keys_max: 1_000,
            list_page_delay: None,
            required_region: None,
            access: Access::Public,
        }
    }
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    options: StoreOptions,
    access: Mutex<Access>,
    buckets: Buckets,
    log: RequestLog,
    faults: Faults,
}

/// What requests on one connection share.
#[derive(Debug)]
struct Connection {
    /// The connection's share of bandwidth, if that is bounded.
    pacer: Option<SharedPacer>,
    /// Close with RST instead of FIN.
    reset: Arc<AtomicBool>,
}

impl EmbeddedStore {
    /// Starts a store on a free port of 127.0.0.1, in tasks of the current
    /// tokio runtime.
    ///
    /// Fails if no port can be bound.
    pub async fn start(options: StoreOptions) -> io::Result<EmbeddedStore> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            access: Mutex::new(options.access.clone()),
            options,
            buckets: Buckets::default(),
            log: RequestLog::default(),
            faults: Faults::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok(EmbeddedStore { shared, address, accepting })
    }

    /// The endpoint, such as `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes an empty bucket, or leaves the one there is.
    pub fn create_bucket(&self, bucket: &str) {
        self.shared.buckets.create(bucket);
    }

    /// Stores an object, making its bucket if need be, and returns its etag
    /// without quotes. Equal bodies have equal etags.
    pub fn put(&self, bucket: &str, key: impl Into<String>, body: Bytes) -> String {
        let etag = objects::etag_of(&body);
        self.put_with_etag(bucket, key, body, etag)
    }

    /// Like [`put`](Self::put) with an etag of the caller's choice, which
    /// spares reading the body (a million slices of one buffer).
    pub fn put_with_etag(
        &self,
        bucket: &str,
        key: impl Into<String>,
        body: Bytes,
        etag: impl Into<String>,
    ) -> String {
        self.shared.buckets.create(bucket);
        let etag = etag.into();
        self.shared.buckets.put(bucket, key.into(), body, etag.clone());
        etag
    }

    /// The bytes of an object.
    pub fn get(&self, bucket: &str, key: &str) -> Option<Bytes> {
        self.shared.buckets.get(bucket, key).ok().flatten().map(|object| object.body.clone())
    }

    /// Removes an object; says whether there was one.
    pub fn delete(&self, bucket: &str, key: &str) -> bool {
        self.shared.buckets.delete(bucket, key)
    }

    /// The requests since the start or the last [`reset_log`](Self::reset_log),
    /// in order of arrival; the latest 200,000 if there were more.
    pub fn log(&self) -> Vec<LoggedRequest> {
        self.shared.log.entries()
    }

    /// Requests and bytes per operation since the start or the last
    /// [`reset_log`](Self::reset_log). Cheap, and never forgets a request.
    pub fn counts(&self) -> Counts {
        self.shared.log.counts()
    }

    /// Forgets the log and starts counting from zero.
    pub fn reset_log(&self) {
        self.shared.log.reset();
    }

    /// Lets others in from now on.
    pub fn set_access(&self, access: Access) {
        *self.shared.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// Replaces the faults in force. For each request the first rule that
    /// matches and has `times` left is applied.
    pub fn set_faults(&self, rules: Vec<FaultRule>) {
        self.shared.faults.set(rules);
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // The set owns the connections: they end when this task is aborted.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, shared.clone()));
                }
                // Out of file descriptors, or a client that left at once:
                // the next accept may work, but not in a hot loop.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let rate = shared.options.rate_bytes_per_s_per_connection;
    let reset = Arc::new(AtomicBool::new(false));
    let connection =
        Arc::new(Connection { pacer: rate.map(throttle::shared_pacer), reset: reset.clone() });
    let service = service_fn(move |request| {
        let (shared, connection) = (shared.clone(), connection.clone());
        // On the heap, since taking the socket back needs it to be movable.
        Box::pin(
            async move { Ok::<_, Infallible>(http::answer(&shared, &connection, request).await) },
        )
    });
    let mut served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Without hyper's shutdown, so that the socket comes back for a reset.
    let ended = std::future::poll_fn(|cx| served.poll_without_shutdown(cx)).await;
    let stream = served.into_parts().io.into_inner();
    if ended.is_err() && reset.load(Ordering::Acquire) {
        let _ = stream.set_zero_linger();
    }
}
