//! A command's end of the socket.
//!
//! One request per connection: commands send one or two and exit. A daemon of
//! another user is not talked to, since requests carry credentials; root, who
//! could read them anyway, may talk to any.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use nix::unistd::Uid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::wire::{
    ErrorCode, ErrorReply, MountReply, Ping, RenewRequest, StatusReply, UnmountReply,
    UnmountRequest, UpkeepLine, UpkeepReply, UpkeepRequest, WaitRequest,
};
use super::{
    BODY_BYTES_MAX, LINE_BYTES_MAX, PROTOCOL, PROTOCOL_HEADER, VERSION_HEADER, cache_lock,
    runtime_dir,
};
use crate::config::MountRequest;

/// For what a daemon answers from memory. Generous, since a busy 2-core VM may
/// take its time.
const QUICK_TIMEOUT: Duration = Duration::from_secs(5);

/// For a mount: what a remote that answers at all takes, retries included. One
/// that stays silent may take longer; the daemon undoes a mount whose client went.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(120);

/// For an unmount: the kernel's and the daemon's own bounds are shorter.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(30);

/// For the next line of an answer in lines. The daemon sends one a second at
/// least; the rest is for a machine whose disk is busy with just that.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// For a daemon to be started in the place of one that died, mounts and all; the usual time
/// is some 20 ms, and the longest pause before it a quarter of a second.
const RESTART_LIMIT: Duration = Duration::from_secs(5);
const RESTART_LOOK: Duration = Duration::from_millis(20);

/// A daemon that answered.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    ping: Ping,
}

impl Client {
    /// The daemon that listens at `socket`; `None` if nobody does.
    ///
    /// # Errors
    /// If one does, and cannot be talked to: another user's, or incompatible.
    pub async fn connect(socket: &Path) -> Result<Option<Client>, ErrorReply> {
        let Some(stream) = open(socket).await? else { return Ok(None) };
        let ping =
            exchange(stream, socket, Method::GET, "/v1/ping", &(), Some(QUICK_TIMEOUT)).await;
        match ping {
            Ok(ping) => Ok(Some(Client { socket: socket.to_owned(), ping })),
            // It went away between accepting and answering.
            Err(error) if error.code == ErrorCode::ShuttingDown => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The daemon that serves `cache_dir`; `None` if nobody does.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn of_cache(cache_dir: &Path) -> Result<Option<Client>, ErrorReply> {
        match cache_lock::read_record(cache_dir) {
            Some(record) => Client::connect(&record.socket).await,
            None => Ok(None),
        }
    }

    /// The same, which may be about to be started in the place of one that died; that takes
    /// less than a second.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn of_cache_again(cache_dir: &Path) -> Result<Option<Client>, ErrorReply> {
        let until = Instant::now() + RESTART_LIMIT;
        loop {
            let Some(record) = cache_lock::read_record(cache_dir) else { return Ok(None) };
            if let Some(client) = Client::connect(&record.socket).await? {
                return Ok(Some(client));
            }
            if !record.is_supervised() || Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(RESTART_LOOK).await;
        }
    }

    /// The state of the daemon that serves `cache_dir`; `None` if nobody does. In one
    /// exchange: on a busy machine each one is a wait for a turn at a core.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn status_of_cache(cache_dir: &Path) -> Result<Option<StatusReply>, ErrorReply> {
        let Some(record) = cache_lock::read_record(cache_dir) else { return Ok(None) };
        let socket = &record.socket;
        let Some(stream) = open(socket).await? else { return Ok(None) };
        let limit = Some(QUICK_TIMEOUT);
        match exchange(stream, socket, Method::GET, "/v1/status", &(), limit).await {
            Ok(status) => Ok(Some(status)),
            // It went away between accepting and answering.
            Err(error) if error.code == ErrorCode::ShuttingDown => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every daemon of this user in reach. Those that cannot be talked to are
    /// left out.
    pub async fn all() -> Vec<Client> {
        let mut clients: Vec<Client> = Vec::new();
        for socket in runtime_dir::sockets() {
            if let Ok(Some(client)) = Client::connect(&socket).await {
                clients.push(client);
            }
        }
        clients
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Who the daemon is.
    pub fn daemon(&self) -> &Ping {
        &self.ping
    }

    /// The daemon's state.
    ///
    /// # Errors
    /// If it does not answer.
    pub async fn status(&self) -> Result<StatusReply, ErrorReply> {
        self.send(Method::GET, "/v1/status", &(), Some(QUICK_TIMEOUT)).await
    }

    /// Makes a mount.
    ///
    /// # Errors
    /// Those of the daemon; [`ErrorCode::ShuttingDown`] if it is going away.
    pub async fn mount(&self, request: &MountRequest) -> Result<MountReply, ErrorReply> {
        self.send(Method::POST, "/v1/mounts", request, Some(MOUNT_TIMEOUT)).await
    }

    /// Ends a mount.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn unmount(&self, request: &UnmountRequest) -> Result<UnmountReply, ErrorReply> {
        self.send(Method::DELETE, "/v1/mounts", request, Some(UNMOUNT_TIMEOUT)).await
    }

    /// Returns once a mount has ended, or its daemon.
    ///
    /// # Errors
    /// If there is no such mount.
    pub async fn wait(&self, request: &WaitRequest) -> Result<(), ErrorReply> {
        match self.send(Method::POST, "/v1/mounts/wait", request, None).await {
            Err(error) if error.code == ErrorCode::ShuttingDown => Ok(()),
            result => result,
        }
    }

    /// Gives a mount other credentials.
    ///
    /// # Errors
    /// If there is no such mount, or they do not reach its remote.
    pub async fn renew(&self, request: &RenewRequest) -> Result<(), ErrorReply> {
        self.send(Method::POST, "/v1/renew", request, None).await
    }

    /// Runs an upkeep command and hands on the lines before the last: how far it is, and
    /// what it found. Dropped, the daemon stops the command soon.
    ///
    /// # Errors
    /// Those of the daemon, or if it falls silent.
    pub async fn upkeep(
        &self,
        request: &UpkeepRequest,
        on_line: &mut (dyn FnMut(UpkeepLine) + Send),
    ) -> Result<UpkeepReply, ErrorReply> {
        let socket = &self.socket;
        let stream = open(socket).await?.ok_or_else(|| gone(socket))?;
        let sent = match request {
            UpkeepRequest::Evict(body) => begin(stream, Method::POST, "/v1/evict", body).await,
            UpkeepRequest::Verify(body) => begin(stream, Method::POST, "/v1/verify", body).await,
            UpkeepRequest::Pin(body) => begin(stream, Method::POST, "/v1/pin", body).await,
            UpkeepRequest::Unpin(body) => begin(stream, Method::POST, "/v1/unpin", body).await,
            UpkeepRequest::Prefetch(body) => {
                begin(stream, Method::POST, "/v1/prefetch", body).await
            }
            UpkeepRequest::StopPrefetch(body) => {
                begin(stream, Method::POST, "/v1/prefetch/stop", body).await
            }
            UpkeepRequest::Refresh(body) => begin(stream, Method::POST, "/v1/refresh", body).await,
            UpkeepRequest::Export(body) => {
                begin(stream, Method::POST, "/v1/index/export", body).await
            }
            UpkeepRequest::Ls(body) => begin(stream, Method::POST, "/v1/ls", body).await,
            UpkeepRequest::Du(body) => begin(stream, Method::POST, "/v1/du", body).await,
        };
        let (response, _driver) = sent.map_err(|_| gone(socket))?;
        if response.status() != StatusCode::OK {
            let (parts, body) = collect(response).await.map_err(|_| gone(socket))?;
            return understand(&parts, &body, socket);
        }
        read_lines(response.into_body(), socket, on_line).await
    }

    async fn send<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
        timeout: Option<Duration>,
    ) -> Result<T, ErrorReply> {
        match open(&self.socket).await? {
            Some(stream) => exchange(stream, &self.socket, method, path, body, timeout).await,
            None => Err(gone(&self.socket)),
        }
    }
}

/// Connects; `None` where no daemon listens.
async fn open(socket: &Path) -> Result<Option<UnixStream>, ErrorReply> {
    let stream = match tokio::time::timeout(QUICK_TIMEOUT, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => match error.kind() {
            // The last is of one that died in this moment.
            io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset => return Ok(None),
            _ => return Err(unreachable(socket, &error.to_string())),
        },
        Err(_) => return Err(unreachable(socket, "it does not accept connections")),
    };
    let peer = stream.peer_cred().map_err(|error| unreachable(socket, &error.to_string()))?;
    let own = Uid::effective();
    if peer.uid() != own.as_raw() && !own.is_root() {
        return Err(unreachable(socket, &format!("it belongs to user {}", peer.uid())));
    }
    Ok(Some(stream))
}

async fn exchange<B: Serialize, T: DeserializeOwned>(
    stream: UnixStream,
    socket: &Path,
    method: Method,
    path: &str,
    body: &B,
    timeout: Option<Duration>,
) -> Result<T, ErrorReply> {
    let exchange = async {
        let (response, _driver) = begin(stream, method, path, body).await?;
        collect(response).await
    };
    let outcome = match timeout {
        Some(limit) => tokio::time::timeout(limit, exchange).await.map_err(|_| {
            unreachable(socket, &format!("no answer to {path} within {} s", limit.as_secs()))
        })?,
        None => exchange.await,
    };
    // A connection that breaks before its answer is a daemon that went away.
    let (parts, body) = outcome.map_err(|_| gone(socket))?;
    understand(&parts, &body, socket)
}

/// Sends a request. The connection is driven by what comes beside the answer,
/// and closed with it: so is that of a request that is given up.
async fn begin<B: Serialize>(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: &B,
) -> io::Result<(Response<Incoming>, JoinSet<hyper::Result<()>>)> {
    let body = serde_json::to_vec(body).map_err(io::Error::other)?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "warmfs")
        .header(header::CONNECTION, "close")
        .header(PROTOCOL_HEADER, PROTOCOL)
        .body(Full::new(Bytes::from(body)))
        .map_err(io::Error::other)?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    Ok((response, driver))
}

/// Reads lines up to the last one.
async fn read_lines(
    mut body: Incoming,
    socket: &Path,
    on_line: &mut (dyn FnMut(UpkeepLine) + Send),
) -> Result<UpkeepReply, ErrorReply> {
    let mut buffer = Vec::new();
    loop {
        let frame = tokio::time::timeout(STALL_TIMEOUT, body.frame()).await.map_err(|_| {
            unreachable(socket, &format!("it is silent for {} s", STALL_TIMEOUT.as_secs()))
        })?;
        let Some(Ok(frame)) = frame else { return Err(gone(socket)) };
        buffer.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(UpkeepLine::Done(reply)) => return Ok(reply),
                Ok(UpkeepLine::Error(error)) => return Err(error),
                Ok(line) => on_line(line),
                Err(_) => {}
            }
        }
        if buffer.len() > LINE_BYTES_MAX {
            return Err(unreachable(socket, "it answers with an endless line"));
        }
    }
}

async fn collect(
    response: Response<Incoming>,
) -> Result<(http::response::Parts, Bytes), io::Error> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, BODY_BYTES_MAX).collect().await.map_err(io::Error::other)?;
    Ok((parts, body.to_bytes()))
}

pub(super) fn understand<T: DeserializeOwned>(
    parts: &http::response::Parts,
    body: &[u8],
    socket: &Path,
) -> Result<T, ErrorReply> {
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    if text(PROTOCOL_HEADER) != Some(PROTOCOL) {
        let version = text(VERSION_HEADER).unwrap_or("of an unknown version");
        let message = format!("the running daemon is warmfs {version}, this is another");
        return Err(ErrorReply::new(ErrorCode::Incompatible, message)
            .with_hint("unmount its mounts with that version, or with umount, and try again"));
    }
    if parts.status == StatusCode::OK {
        return serde_json::from_slice(body).map_err(|e| unreachable(socket, &e.to_string()));
    }
    Err(serde_json::from_slice(body)
        .unwrap_or_else(|_| unreachable(socket, &format!("it answers {}", parts.status))))
}

fn unreachable(socket: &Path, why: &str) -> ErrorReply {
    let message = format!("the daemon at {} cannot be used: {why}", socket.display());
    ErrorReply::new(ErrorCode::Environment, message)
}

fn gone(socket: &Path) -> ErrorReply {
    let message = format!("the daemon at {} ended", socket.display());
    ErrorReply::new(ErrorCode::ShuttingDown, message)
        .with_hint("see its log, warmfs.log in the cache directory")
}
