//! The daemon's end of the socket.
//!
//! Answers only the daemon's own user and root. Requests run to their end in
//! tasks of the [`Service`]; a client that goes away drops its answer only,
//! but for answers in lines and those of files: their senders see that nobody listens,
//! and stop.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::unistd::Uid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::body::Answer;
pub use super::body::Reading;
use super::exposition::CONTENT_TYPE;
use super::wire::{
    ErrorCode, ErrorReply, HintRequest, MountReply, Ping, ReadRequest, RenewRequest, StatReply,
    StatRequest, StatusReply, UnmountReply, UnmountRequest, UpkeepLine, UpkeepRequest, WaitRequest,
};
use super::{BODY_BYTES_MAX, NAMES_BYTES_MAX, PROTOCOL, PROTOCOL_HEADER, VERSION_HEADER};
use crate::config::MountRequest;

/// Connections served at once. Commands use one each for a moment, and `mount --foreground`
/// keeps one: twice the mounts that a daemon may have, so that with all of them waited for
/// there is still one free to unmount. The other 512 are for who reads files here, which
/// keeps one a thread while it reads.
const CONNECTIONS_MAX: usize = 128 + 512;

/// The kind of most answers.
const JSON: &str = "application/json";

/// What is taken of an answer before its client takes it: two chunks of a file.
const BUFFER_BYTES: usize = 256 << 10;

/// Requests that name files and are read at once.
static NAMES_AT_ONCE: Semaphore = Semaphore::const_new(2);

/// How long a client may take to send its request, and keep a connection that it does not
/// use.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a stopping server waits for answers still on their way.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What the daemon can be asked.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Who is there.
    fn ping(&self) -> Ping;
    /// The state of everything.
    async fn status(&self) -> StatusReply;
    /// The same as text for Prometheus.
    async fn metrics(&self) -> String;
    /// Makes a mount, or finds it made.
    async fn mount(&self, request: MountRequest) -> Result<MountReply, ErrorReply>;
    /// Ends a mount.
    async fn unmount(&self, request: UnmountRequest) -> Result<UnmountReply, ErrorReply>;
    /// Returns once a mount has ended.
    async fn wait(&self, request: WaitRequest) -> Result<(), ErrorReply>;
    /// Gives a mount other credentials.
    async fn renew(&self, request: RenewRequest) -> Result<(), ErrorReply>;
    /// Takes a part of the order in which a mount will be read.
    async fn hint(&self, request: HintRequest) -> Result<(), ErrorReply>;
    /// Says what a path is.
    async fn stat(&self, request: StatRequest) -> Result<StatReply, ErrorReply>;
    /// Begins to read from a file. Dropped at any time, it ends.
    async fn read(&self, request: ReadRequest) -> Result<Reading, ErrorReply>;
    /// Starts an upkeep command, which tells how far it is and at last how it
    /// ended. It is stopped when nobody listens any more.
    async fn upkeep(
        &self,
        request: UpkeepRequest,
    ) -> Result<mpsc::Receiver<UpkeepLine>, ErrorReply>;
}

/// A bound socket, removed when dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, mode 0600. The caller holds the cache's lock, so a socket
    /// that is there already is a dead daemon's.
    ///
    /// # Errors
    /// If the path cannot be bound.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Until the mode is set the directory's mode of 0700 keeps others out.
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Listener { listener, path: path.to_owned() })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until `stop` becomes true; then the socket is gone from its
    /// path, and answers under way are sent within a bounded time.
    pub async fn serve(self, service: Arc<dyn Service>, mut stop: watch::Receiver<bool>) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        let stop_connections = stop.clone();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("cannot accept on {}: {error}", self.path.display());
                    // Out of descriptors, most likely: let some be closed.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!("more than {CONNECTIONS_MAX} clients at once: one was turned away");
                continue;
            };
            let connection =
                serve_connection(stream, Arc::clone(&service), stop_connections.clone());
            connections.spawn(async move {
                connection.await;
                drop(slot);
            });
        }
        drop(self);
        let drain = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain).await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

async fn serve_connection(
    stream: UnixStream,
    service: Arc<dyn Service>,
    mut stop: watch::Receiver<bool>,
) {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == Uid::effective().as_raw() => {}
        Ok(peer) => return tracing::warn!("user {} was refused at the socket", peer.uid()),
        Err(error) => return tracing::warn!("a peer without credentials: {error}"),
    }
    let handler = service_fn(move |request| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(answer(request, service).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), handler);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!("connection at the socket: {error}");
    }
}

/// Returns once `stop` is true, or nobody is left to set it.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn answer(request: Request<Incoming>, service: Arc<dyn Service>) -> Response<Answer> {
    let (status, kind, body) = match dispatch(request, service).await {
        Ok((kind, body)) => (StatusCode::OK, kind, body),
        Err(error) => {
            let text = serde_json::to_vec(&error).unwrap_or_default();
            (status_of(error.code), JSON, whole(text))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(PROTOCOL_HEADER, header::HeaderValue::from_static(PROTOCOL));
    headers.insert(VERSION_HEADER, header::HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn whole(text: Vec<u8>) -> Answer {
    Answer::Whole(Full::new(Bytes::from(text)))
}

/// What a request is answered with: a kind, and a body of it.
async fn dispatch(
    request: Request<Incoming>,
    service: Arc<dyn Service>,
) -> Result<(&'static str, Answer), ErrorReply> {
    let protocol = request.headers().get(PROTOCOL_HEADER).map(|value| value.as_bytes());
    if protocol.is_some_and(|protocol| protocol != PROTOCOL.as_bytes()) {
        let message = concat!("the daemon is warmfs ", env!("CARGO_PKG_VERSION"));
        return Err(ErrorReply::new(ErrorCode::Incompatible, message)
            .with_hint("unmount its mounts with that version first"));
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/v1/ping") => json(&service.ping()),
        (&Method::GET, "/v1/status") => json(&service.status().await),
        (&Method::GET, "/metrics") => {
            Ok((CONTENT_TYPE, whole(service.metrics().await.into_bytes())))
        }
        (&Method::POST, "/v1/mounts") => json(&service.mount(read(request).await?).await?),
        (&Method::DELETE, "/v1/mounts") => json(&service.unmount(read(request).await?).await?),
        (&Method::POST, "/v1/mounts/wait") => json(&service.wait(read(request).await?).await?),
        (&Method::POST, "/v1/renew") => json(&service.renew(read(request).await?).await?),
        (&Method::POST, "/v1/hint") => json(&service.hint(read_names(request).await?).await?),
        (&Method::POST, "/v1/stat") => json(&service.stat(read(request).await?).await?),
        (&Method::POST, "/v1/read") => {
            let reading = service.read(read(request).await?).await?;
            Ok(("application/octet-stream", Answer::Pieces(reading)))
        }
        (&Method::POST, "/v1/evict") => {
            lines(service, UpkeepRequest::Evict(read(request).await?)).await
        }
        (&Method::POST, "/v1/verify") => {
            lines(service, UpkeepRequest::Verify(read(request).await?)).await
        }
        (&Method::POST, "/v1/pin") => {
            lines(service, UpkeepRequest::Pin(read(request).await?)).await
        }
        (&Method::POST, "/v1/unpin") => {
            lines(service, UpkeepRequest::Unpin(read(request).await?)).await
        }
        (&Method::POST, "/v1/prefetch") => {
            let request = read_names(request).await?;
            lines(service, UpkeepRequest::Prefetch(request)).await
        }
        (&Method::POST, "/v1/prefetch/stop") => {
            lines(service, UpkeepRequest::StopPrefetch(read(request).await?)).await
        }
        (&Method::POST, "/v1/refresh") => {
            lines(service, UpkeepRequest::Refresh(read(request).await?)).await
        }
        (&Method::POST, "/v1/index/export") => {
            lines(service, UpkeepRequest::Export(read(request).await?)).await
        }
        (&Method::POST, "/v1/ls") => lines(service, UpkeepRequest::Ls(read(request).await?)).await,
        (&Method::POST, "/v1/du") => lines(service, UpkeepRequest::Du(read(request).await?)).await,
        (method, path) => {
            Err(ErrorReply::new(ErrorCode::Invalid, format!("no such request: {method} {path}")))
        }
    }
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ErrorReply> {
    read_up_to(BODY_BYTES_MAX, request).await
}

/// The same for a request that names files, of which only a few are read at once: they
/// are large.
async fn read_names<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, ErrorReply> {
    let _turn = NAMES_AT_ONCE.acquire().await;
    read_up_to(NAMES_BYTES_MAX, request).await
}

async fn read_up_to<T: DeserializeOwned>(
    bytes_max: usize,
    request: Request<Incoming>,
) -> Result<T, ErrorReply> {
    let body = Limited::new(request.into_body(), bytes_max);
    let body = tokio::time::timeout(REQUEST_TIMEOUT, body.collect())
        .await
        .map_err(|_| ErrorReply::new(ErrorCode::Invalid, "the request did not arrive in time"))?
        .map_err(|error| ErrorReply::new(ErrorCode::Invalid, error.to_string()))?;
    // The text is not quoted back: it holds secrets.
    serde_json::from_slice(&body.to_bytes()).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        ErrorReply::new(ErrorCode::Invalid, format!("the request is not understood at {place}"))
    })
}

fn json<T: Serialize>(value: &T) -> Result<(&'static str, Answer), ErrorReply> {
    let text = serde_json::to_vec(value);
    let text = text.map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string()))?;
    Ok((JSON, whole(text)))
}

async fn lines(
    service: Arc<dyn Service>,
    request: UpkeepRequest,
) -> Result<(&'static str, Answer), ErrorReply> {
    service.upkeep(request).await.map(|lines| ("application/x-ndjson", Answer::Lines(lines)))
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::Invalid => StatusCode::BAD_REQUEST,
        ErrorCode::NotMounted | ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::MountPoint | ErrorCode::Busy => StatusCode::CONFLICT,
        ErrorCode::Stale => StatusCode::PRECONDITION_FAILED,
        ErrorCode::Denied => StatusCode::FORBIDDEN,
        ErrorCode::Unreachable => StatusCode::BAD_GATEWAY,
        ErrorCode::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Incompatible => StatusCode::UPGRADE_REQUIRED,
        ErrorCode::Environment | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
