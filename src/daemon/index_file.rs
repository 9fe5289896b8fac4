//! Index files: `mount --index` reads one, from the disk or from an object store, and
//! `index export` writes one.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use super::Daemon;
use super::preflight::describe;
use super::read_through::{code_of, explain_cache};
use crate::cache::Progress;
use crate::config::IndexSource;
use crate::control::wire::{ErrorCode, ErrorReply, ExportReply, ExportRequest};
use crate::remote::client::{RangeReader, RemoteClient};
use crate::remote::{Key, RemoteError, RemoteUri};

/// Pieces that come ahead of whoever reads them: as much as a connection's buffers hold.
const PIECES_AHEAD: usize = 16;

impl IndexSource {
    /// Opens it. `mounted` is what is mounted, and `client` its remote; `connect` makes
    /// one of another bucket.
    pub(super) async fn open<F>(
        &self,
        mounted: &RemoteUri,
        client: &Arc<RemoteClient>,
        connect: impl FnOnce(RemoteUri) -> F,
    ) -> Result<Box<dyn Read + Send>, ErrorReply>
    where
        F: Future<Output = Result<Arc<RemoteClient>, ErrorReply>>,
    {
        let uri: RemoteUri = match self {
            IndexSource::File(path) => return self.open_file(path).await,
            IndexSource::Uri(text) => text.parse().map_err(|error| self.refuse(&error))?,
        };
        if let RemoteUri::File { path } = &uri {
            return self.open_file(path).await;
        }
        let key = uri.prefix().trim_end_matches('/').to_owned();
        if key.is_empty() {
            return Err(self.refuse("it names a bucket, not an object in it"));
        }
        let client = match uri.with_prefix("") == mounted.with_prefix("") {
            true => client.clone(),
            false => connect(uri.with_prefix("")).await?,
        };
        let failed =
            |error: RemoteError| ErrorReply { code: code_of(&error), ..self.refuse(&error) };
        let object = client.head(&Key(key)).await.map_err(failed)?;
        if object.size == 0 {
            return Err(self.refuse("it is empty"));
        }
        let reader = client.get_whole(object);
        let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
        tokio::spawn(bring(reader, pieces));
        Ok(Box::new(Download { pieces: receiver, piece: Bytes::new() }))
    }

    async fn open_file(&self, path: &Path) -> Result<Box<dyn Read + Send>, ErrorReply> {
        let path = path.to_owned();
        let opened = super::blocking(move || {
            let mut options = OpenOptions::new();
            // A pipe must not make this wait for its writer.
            let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            match file.metadata()?.is_file() {
                true => Ok(file),
                false => Err(io::Error::other("it is not a file")),
            }
        });
        let file = opened.await?.map_err(|error| self.refuse(describe(&error)))?;
        Ok(Box::new(file))
    }

    /// That it cannot be used.
    pub(super) fn refuse(&self, why: impl Display) -> ErrorReply {
        ErrorReply::new(ErrorCode::Invalid, format!("cannot use --index {self}: {why}"))
    }
}

/// Hands on what comes, until it is all there or nobody wants it.
async fn bring(mut reader: RangeReader, pieces: mpsc::Sender<Result<Bytes, RemoteError>>) {
    while let Some(next) = reader.next().await.transpose() {
        let is_over = next.is_err();
        if pieces.send(next).await.is_err() || is_over {
            return;
        }
    }
}

/// An object that is read while it comes. Blocks, so not on a thread that must not.
struct Download {
    pieces: mpsc::Receiver<Result<Bytes, RemoteError>>,
    piece: Bytes,
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let read = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..read]);
        Ok(read)
    }
}

impl Daemon {
    /// Writes what a mount has, or a folder in one, to an index file: whole or not at all.
    pub(super) async fn export(
        &self,
        request: &ExportRequest,
        progress: &Arc<Progress>,
    ) -> Result<ExportReply, ErrorReply> {
        let mut tops = self.tops(request.path.as_deref()).await?;
        let (Some((tree, folder)), true) = (tops.pop(), tops.is_empty()) else {
            return Err(ErrorReply::new(ErrorCode::Invalid, "several mounts are there")
                .with_hint("name one: `warmfs index export FILE PATH`"));
        };
        let to = request.file.clone();
        let (draft, file) = super::blocking(move || Draft::create(to)).await??;
        let exported = tree.export(folder, file, progress).await;
        let Some(done) = exported.map_err(|error| explain_cache(&error))? else {
            return Err(super::table::shutting_down()); // Nobody waits for it.
        };
        let bytes = super::blocking(move || draft.keep()).await??;
        Ok(ExportReply { folders: done.folders, objects: done.objects, bytes })
    }
}

/// A file that is not complete: under another name, and removed unless it is kept.
struct Draft {
    path: PathBuf,
    to: PathBuf,
}

impl Draft {
    fn create(to: PathBuf) -> Result<(Draft, File), ErrorReply> {
        let mut path = to.clone().into_os_string();
        // Of its own, whoever else writes to the same file.
        path.push(format!(".{:016x}.partial", fastrand::u64(..)));
        let draft = Draft { path: PathBuf::from(path), to };
        match File::create_new(&draft.path) {
            Ok(file) => Ok((draft, file)),
            Err(error) => Err(draft.failed(&error)),
        }
    }

    /// Gives it its name; returns how many bytes it has.
    fn keep(self) -> Result<u64, ErrorReply> {
        let kept = File::open(&self.path).and_then(|file| {
            file.sync_all()?;
            fs::rename(&self.path, &self.to)?;
            Ok(file.metadata()?.len())
        });
        kept.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> ErrorReply {
        let message = format!("cannot write {}: {}", self.to.display(), describe(error));
        ErrorReply::new(ErrorCode::Environment, message).with_hint("name another FILE")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}
