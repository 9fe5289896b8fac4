//! A record of what is opened and read, for the simulator in `benches/sim`.
//!
//! Text, one access a line, numbers in decimal:
//!
//! ```text
//! warmfs-trace 1
//! open <ms> <node>
//! read <ms> <node> <size> <offset> <len>
//! dropped <lines>
//! ```
//!
//! `ms` counts from the mount, `node` is the inode number and one version of
//! one object, `size` the object's, and `len` what was asked for, which may
//! reach past the end. The last line tells how many are missing; where it is
//! missing itself, the daemon was killed. No names: who gets the file learns
//! sizes and order, nothing else.
//!
//! Only what reaches the daemon is seen: not what the kernel has in its page
//! cache, and no reads of files that are passed through.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::cache::NodeId;

/// First line of a trace, with the version of the format.
pub const HEADER: &str = "warmfs-trace 1";

/// Accesses that wait to be written. A tenth of a second at 300,000 reads a
/// second, in 2 MB; when the disk is slower for longer, lines are dropped.
const WAITING_MAX: usize = 32 << 10;

/// Writes a trace, in a thread of its own: a reader never waits for it.
#[derive(Debug)]
pub struct Recorder {
    accesses: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
    since: Instant,
    writer: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Message {
    Open { ms: u128, node: NodeId },
    Read { ms: u128, node: NodeId, size: u64, offset: u64, len: u64 },
    End,
}

impl Recorder {
    /// Begins a trace in a file, in place of an older one. Blocks.
    ///
    /// # Errors
    /// If it cannot be written, or is something other than a file.
    pub fn create(path: &Path) -> io::Result<Recorder> {
        let mut options = OpenOptions::new();
        // Without O_NONBLOCK a pipe would make us wait for its reader.
        options.write(true).create(true).mode(0o600).custom_flags(libc::O_NONBLOCK);
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        file.set_len(0)?;
        let mut out = BufWriter::new(file);
        writeln!(out, "{HEADER}")?;
        out.flush()?;
        let (accesses, waiting) = sync_channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = dropped.clone();
        let writer = std::thread::Builder::new().name("trace".to_owned()).spawn(move || {
            if let Err(error) = write_all(&mut out, &waiting, &counted) {
                tracing::warn!(%error, "the trace ends here: it cannot be written");
            }
        })?;
        let writer = Mutex::new(Some(writer));
        Ok(Recorder { accesses, dropped, since: Instant::now(), writer })
    }

    /// An object was opened.
    pub fn open(&self, node: NodeId) {
        self.send(Message::Open { ms: self.since.elapsed().as_millis(), node });
    }

    /// `len` bytes of an object were asked for.
    pub fn read(&self, node: NodeId, size: u64, offset: u64, len: u64) {
        let ms = self.since.elapsed().as_millis();
        self.send(Message::Read { ms, node, size, offset, len });
    }

    fn send(&self, message: Message) {
        if self.accesses.try_send(message).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes what waits, and the end. Blocks. What comes later is lost.
    pub fn finish(&self) {
        // An error means that the writer has ended already.
        let _ = self.accesses.send(Message::End);
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the trace ended with a panic");
        }
    }
}

fn write_all(
    out: &mut BufWriter<File>,
    waiting: &Receiver<Message>,
    dropped: &AtomicU64,
) -> io::Result<()> {
    for message in waiting {
        match message {
            Message::Open { ms, node } => writeln!(out, "open {ms} {}", node.0)?,
            Message::Read { ms, node, size, offset, len } => {
                writeln!(out, "read {ms} {} {size} {offset} {len}", node.0)?;
            }
            Message::End => break,
        }
    }
    writeln!(out, "dropped {}", dropped.load(Ordering::Relaxed))?;
    out.flush()
}
