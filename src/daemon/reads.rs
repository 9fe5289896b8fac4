//! Files that are read at the socket: for who has no kernel to read through.
//!
//! A file is known by its inode number, as the kernel knows it: one version of one object.
//! Nothing is held between two reads, neither here nor for the client: readahead is the
//! object's, which the store keeps in memory for a while. An answer is read piece by piece
//! behind its client, and given up with it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::look::row;
use super::read_through::code_of;
use super::{Daemon, internal, not_mounted};
use crate::cache::{AtHand, CHUNK_BYTES, CachedObject};
use crate::control::server::Reading;
use crate::control::wire::{ErrorCode, ErrorReply, ReadRequest, StatReply};
use crate::fs::inode::Ino;
use crate::fs::{Errno, FileSystem};
use crate::remote::{ErrorKind, RemoteError};

/// Most bytes of one read. A client that wants more asks again; one that goes away costs no
/// more.
const READ_BYTES_MAX: u64 = 16 << 20;

/// Reads of a mount that are answered at once: each has up to [`PIECE_BYTES`] twice in memory.
const ANSWERED_MAX: usize = 64;

/// Reads that wait for their turn besides. More are told so, and leave connections to others.
const WAITING_MAX: usize = 256;

/// Bytes of a file that are read at a time: two chunks, which is what our client asks for on
/// behalf of who wants less.
const PIECE_BYTES: u64 = 2 * CHUNK_BYTES;

/// How long a client may take no piece: one that is stopped keeps no turn.
const STALL_LIMIT: Duration = Duration::from_secs(60);

/// The reads of a mount that are under way: those of one that hangs hold up no other.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    waiting: Arc<Semaphore>,
    answered: Arc<Semaphore>,
}

impl Default for Reads {
    fn default() -> Self {
        Reads {
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            answered: Arc::new(Semaphore::new(ANSWERED_MAX)),
        }
    }
}

impl Reads {
    /// Waits for a turn, unless too many do.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let answered = || Arc::clone(&self.answered);
        if let Ok(turn) = answered().try_acquire_owned() {
            return Ok(turn);
        }
        let busy = |_| {
            let message = format!("{} reads are under way, the most", ANSWERED_MAX + WAITING_MAX);
            ErrorReply::new(ErrorCode::Busy, message).with_hint("try again")
        };
        let _place = self.waiting.try_acquire().map_err(busy)?;
        answered().acquire_owned().await.map_err(|_| super::table::shutting_down())
    }
}

/// What is left of a read.
struct Rest {
    fs: Arc<FileSystem>,
    ino: Ino,
    object: Arc<CachedObject>,
    at: u64,
    end: u64,
}

impl Rest {
    /// The next piece, up to the end of a chunk.
    async fn next(&mut self) -> Result<Bytes, RemoteError> {
        let until = (self.at + PIECE_BYTES) / CHUNK_BYTES * CHUNK_BYTES;
        let len = until.min(self.end) - self.at;
        let piece = match self.at_hand(len) {
            Some(piece) => piece,
            None => {
                let (fs, object) = (self.fs.clone(), self.object.clone());
                fs.try_read(self.ino, object, self.at, len).await?
            }
        };
        self.at += piece.len() as u64;
        Ok(piece)
    }

    /// The same, if that waits for neither disk nor remote.
    fn at_hand(&self, len: u64) -> Option<Bytes> {
        let mut buffer = vec![0; len as usize];
        match self.fs.read_at_hand(&self.object, self.at, &mut buffer)? {
            AtHand::Copied(_) => Some(Bytes::from(buffer)),
            AtHand::Shared { data, .. } => Some(data),
        }
    }

    /// Reads on as fast as the client takes it.
    async fn send(mut self, pieces: mpsc::Sender<Bytes>) {
        while self.at < self.end {
            let Ok(Ok(room)) = timeout(STALL_LIMIT, pieces.reserve()).await else { return };
            let next = tokio::select! {
                next = self.next() => next,
                () = pieces.closed() => return,
            };
            // Why is told to who asks again from here.
            let Ok(piece) = next else { return };
            room.send(piece);
        }
    }
}

impl Daemon {
    /// What `path` is.
    pub(super) async fn stat_path(&self, path: &Path) -> Result<StatReply, ErrorReply> {
        let entry = self.mount_of(path).await?;
        let (tree, node) = self.find_in(&entry, path).await?;
        let is_root = node == tree.root();
        let looked = tokio::task::spawn_blocking(move || {
            tree.node(node)?.map(|node| tree.look_at(&node)).transpose()
        });
        let look = looked
            .await
            .map_err(|error| internal(&error))?
            .map_err(|error| super::read_through::explain_cache(&error))?;
        let look = look.ok_or_else(|| {
            let message = format!("{} is gone this moment", path.display());
            ErrorReply::new(ErrorCode::NotFound, message)
        })?;
        let ino = if is_root { Ino::ROOT.0 } else { node.0 };
        let (dir, uri) = (entry.dir.clone(), entry.uri.clone());
        Ok(StatReply { dir, uri, ino, row: row(look.name.clone(), look) })
    }

    /// Begins to read: the first piece is there, or it is said why not.
    pub(super) async fn start_reading(&self, request: &ReadRequest) -> Result<Reading, ErrorReply> {
        if request.length > READ_BYTES_MAX {
            let message = format!("{} bytes are asked for at once", request.length);
            return Err(ErrorReply::new(ErrorCode::Invalid, message)
                .with_hint(format!("ask for {READ_BYTES_MAX} at most, and then again")));
        }
        let entry = self.table.at(&request.dir).ok_or_else(|| not_mounted(&request.dir))?;
        // Inode numbers are of the whole cache.
        if !request.uri.is_empty() && request.uri != entry.uri {
            let message = format!("{} is no longer at {}", request.uri, request.dir.display());
            return Err(
                ErrorReply::new(ErrorCode::NotMounted, message).with_hint("open the file again")
            );
        }
        let fs = entry.mount.files().ok_or_else(|| not_mounted(&request.dir))?.clone();
        let turn = entry.reads_at_socket.turn().await?;
        let ino = Ino(request.ino);
        let of_disk = fs.clone();
        // Its row may have to be read from the disk.
        let object = super::blocking(move || of_disk.object(ino)).await?;
        let object = object.map_err(|errno| explain_open(errno, ino))?;
        if object.attr().version.0 != request.version {
            return Err(stale("it has another version"));
        }
        let (at, size) = (request.offset, object.size());
        let end = at.saturating_add(request.length).min(size).max(at);
        fs.will_read(&object, at, end - at, true);
        let mut rest = Rest { fs, ino, object, at, end };
        let (sender, pieces) = mpsc::channel(1);
        if end > at {
            let first = rest.next().await.map_err(|error| explain_read(&error))?;
            // There is room for it.
            let _ = sender.try_send(first);
        }
        tokio::spawn(async move {
            rest.send(sender).await;
            drop(turn);
        });
        Ok(Reading { bytes: end - at, pieces })
    }
}

fn explain_open(errno: Errno, ino: Ino) -> ErrorReply {
    match errno {
        Errno::ESTALE => stale("it is not known any more"),
        Errno::EISDIR => ErrorReply::new(ErrorCode::Invalid, format!("{} is a folder", ino.0))
            .with_hint("ask /v1/ls for what is in it"),
        _ => ErrorReply::new(ErrorCode::Internal, "the file cannot be opened")
            .with_hint("see warmfs.log in the cache directory"),
    }
}

fn explain_read(error: &RemoteError) -> ErrorReply {
    match error.kind {
        ErrorKind::Changed | ErrorKind::NotFound => stale(&error.to_string()),
        _ => ErrorReply::new(code_of(error), format!("the remote failed: {error}")),
    }
}

fn stale(why: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Stale, format!("the file is no longer what was opened: {why}"))
        .with_hint("open it again")
}
