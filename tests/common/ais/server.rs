//! A listener that can be killed: its port closes and its connections are reset,
//! wherever they are.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use async_trait::async_trait;
use http::Response;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::wire::{Asked, Body};

/// Answers requests.
#[async_trait]
pub(super) trait Answers: Send + Sync + 'static {
    async fn answer(&self, asked: Asked) -> Response<Body>;
}

/// A running listener.
#[derive(Debug)]
pub(super) struct Server {
    address: SocketAddr,
    stopping: watch::Sender<bool>,
    /// Hung up by the listener's task when all of its connections are gone.
    stopped: Mutex<mpsc::Receiver<Infallible>>,
}

/// A free port.
pub(super) fn bind(ip: IpAddr) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

impl Server {
    pub(super) fn start(
        runtime: &Handle,
        bound: std::net::TcpListener,
        answers: Arc<dyn Answers>,
    ) -> Server {
        let _entered = runtime.enter();
        let address = bound.local_addr().unwrap();
        let listener = TcpListener::from_std(bound).unwrap();
        let (stopping, stop) = watch::channel(false);
        let (hang_up, stopped) = mpsc::channel();
        runtime.spawn(async move {
            accept(listener, answers, stop).await;
            drop(hang_up);
        });
        Server { address, stopping, stopped: Mutex::new(stopped) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns once the port is closed and every connection reset.
    pub(super) fn stop(&self) {
        self.stopping.send_replace(true);
        // Nothing is ever sent: this waits for the other side to go.
        let _ = self.stopped.lock().unwrap().recv();
    }
}

async fn accept(listener: TcpListener, answers: Arc<dyn Answers>, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stop.changed() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&answers), stop.clone()));
                }
                // Out of descriptors: the next may work, but not in a hot loop.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: TcpStream, answers: Arc<dyn Answers>, mut stop: watch::Receiver<bool>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        // On the heap, since taking the socket back needs it to be movable.
        Box::pin(async move {
            let asked = Asked::receive(request).await?;
            Ok::<_, hyper::Error>(answers.answer(asked).await)
        })
    });
    let mut served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Without hyper's shutdown, so that the socket comes back for a reset.
    let broken = tokio::select! {
        ended = std::future::poll_fn(|cx| served.poll_without_shutdown(cx)) => ended.is_err(),
        _ = stop.changed() => true,
    };
    let stream = served.into_parts().io.into_inner();
    if broken {
        let _ = stream.set_zero_linger();
    }
}
