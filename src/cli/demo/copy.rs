//! Copy first: what people do where mounts are slow, done well.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::epoch::Files;
use super::stop::Stop;

/// GETs at a time: what the quickest copy tools do for small files.
pub(super) const PARALLEL_GETS: usize = 64;

/// Copies every file from the bucket at `endpoint_url` into `dir`.
pub(super) async fn copy(
    endpoint_url: &str,
    bucket: &str,
    dir: &Path,
    files: &Files,
    stop: &Arc<Stop>,
) -> Result<(), String> {
    for (key, _) in files.iter() {
        let folder = dir.join(key);
        let made = std::fs::create_dir_all(folder.parent().unwrap_or(dir));
        made.map_err(|error| format!("copy first: {}: {error}", folder.display()))?;
    }
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..PARALLEL_GETS.min(files.len()) {
        let worker = Worker {
            address: endpoint_url.trim_start_matches("http://").to_owned(),
            bucket: bucket.to_owned(),
            dir: dir.to_owned(),
            files: files.clone(),
            next: next.clone(),
            stop: stop.clone(),
        };
        workers.spawn(worker.copy_on());
    }
    while let Some(ended) = workers.join_next().await {
        let copied = ended.map_err(io::Error::from).and_then(|copied| copied);
        copied.map_err(|error| format!("copy first: {error}"))?;
    }
    Ok(())
}

struct Worker {
    address: String,
    bucket: String,
    dir: PathBuf,
    files: Files,
    next: Arc<AtomicUsize>,
    stop: Arc<Stop>,
}

impl Worker {
    /// Takes files until none is left, over one connection.
    async fn copy_on(self) -> io::Result<()> {
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        while let Some((key, _)) = self.files.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let frames = self.get(&mut sender, key).await?;
            let path = self.dir.join(key);
            // Off the runtime's threads, which the store shares.
            tokio::task::spawn_blocking(move || write(&path, &frames)).await??;
        }
        Ok(())
    }

    /// The body as it came, in pieces.
    async fn get(
        &self,
        sender: &mut SendRequest<Empty<Bytes>>,
        key: &str,
    ) -> io::Result<Vec<Bytes>> {
        let request = Request::get(format!("/{}/{key}", self.bucket))
            .header("host", &self.address)
            .body(Empty::new())
            .map_err(io::Error::other)?;
        sender.ready().await.map_err(io::Error::other)?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            return Err(io::Error::other(format!("{key}: {}", response.status())));
        }
        let mut body = response.into_body();
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(io::Error::other)?;
            if let Ok(data) = frame.into_data() {
                self.stop.progress(data.len() as u64);
                frames.push(data);
            }
        }
        Ok(frames)
    }
}

fn write(path: &Path, frames: &[Bytes]) -> io::Result<()> {
    let mut file = File::create(path)?;
    frames.iter().try_for_each(|frame| file.write_all(frame))
}
