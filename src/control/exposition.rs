//! `GET /metrics` over TCP, for a Prometheus that cannot speak to a Unix socket.
//!
//! It answers that one question, to anybody who can connect, and takes nothing in: no
//! body, no query, no other path. Where it listens is the user's to say; the command
//! line takes other addresses than loopback with a word more only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::server::{Service, stopped};

/// The text format of Prometheus, as its documentation names it ("Exposition formats").
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Connections at once: a few scrapers. Others are closed at once and try again.
const CONNECTIONS_MAX: usize = 16;

/// From accepting a connection to the last byte of its answer. Scrapers give up after
/// 10 s by default.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Largest request head in bytes; that of a scraper is less than 1 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// After a failure to accept, most likely for want of descriptors: until some are closed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers until `stop` becomes true.
pub async fn serve(
    listener: TcpListener,
    service: Arc<dyn Service>,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped at the end, and what is under way with it: the next scrape comes anyway.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let accepted = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::debug!(%peer, "too many connections for metrics: one was closed");
            continue;
        };
        let service = service.clone();
        connections.spawn(async move {
            answer_one(stream, peer, service).await;
            drop(slot);
        });
    }
}

/// One request a connection: nobody keeps a slot who asks for nothing.
async fn answer_one(stream: TcpStream, peer: SocketAddr, service: Arc<dyn Service>) {
    let handler = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(answer(&request, &*service).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ANSWER_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), handler);
    match timeout(ANSWER_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a connection for metrics broke"),
        Err(_) => tracing::debug!(%peer, "a connection for metrics took too long"),
    }
}

async fn answer(request: &Request<Incoming>, service: &dyn Service) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, CONTENT_TYPE, service.metrics().await),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".into()),
        _ => (StatusCode::NOT_FOUND, "text/plain", "see /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, header::HeaderValue::from_static("GET"));
    }
    response
}
