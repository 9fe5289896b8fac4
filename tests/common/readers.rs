//! Readers that go through a tree at once and compare every byte they get.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use bytes::Bytes;

use super::tree::{Tree, assert_same};

/// Readers of an epoch.
pub const READERS: usize = 8;

/// What one read asks for: several readaheads of the kernel's.
const READ_BYTES: usize = 1 << 20;

/// Reads every file in each of [`READERS`] threads, each in an order of its
/// own, and fails on an error or on a wrong byte.
pub fn read_all(mount: &Path, tree: &Tree, seed: u64) {
    thread::scope(|scope| {
        for reader in 0..READERS as u64 {
            scope.spawn(move || {
                for (name, bytes) in shuffled(tree, seed + reader) {
                    if let Err((at, error)) = compare(&mount.join(name), bytes) {
                        panic!("{name} at {at}: {error}");
                    }
                }
            });
        }
    });
}

/// Readers of a mount whose daemon is about to be killed.
pub struct Doomed {
    readers: Vec<JoinHandle<()>>,
    killed: &'static AtomicBool,
}

/// Starts readers as [`read_all`] does. Their reads may fail as those of a dead
/// mount do; what they were given must be right all the same.
pub fn start_doomed(mount: &Path, tree: &Tree, seed: u64) -> Doomed {
    // One byte an epoch: the readers outlive the caller's stack.
    let killed: &AtomicBool = Box::leak(Box::default());
    let start = |reader: usize| {
        let (mount, tree) = (mount.to_owned(), Tree { files: tree.files.clone() });
        thread::spawn(move || {
            for (name, bytes) in shuffled(&tree, seed + reader as u64) {
                match compare(&mount.join(name), bytes) {
                    Ok(()) => {}
                    Err((_, error)) if is_of_dead_mount(&error) => return,
                    Err((at, error)) => panic!("{name} at {at}: {error}"),
                }
                if killed.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    Doomed { readers: (0..READERS).map(start).collect(), killed }
}

impl Doomed {
    /// Whether every reader came to its end.
    pub fn is_over(&self) -> bool {
        self.readers.iter().all(JoinHandle::is_finished)
    }

    /// The daemon is dead: waits for the readers, which notice.
    pub fn join(self) {
        self.killed.store(true, Ordering::Relaxed);
        for reader in self.readers {
            if let Err(panic) = reader.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

fn is_of_dead_mount(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

fn shuffled(tree: &Tree, seed: u64) -> Vec<(&String, &Bytes)> {
    let mut files: Vec<_> = tree.files.iter().collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut files);
    files
}

/// Reads a file to its end; an error comes with the place it was met at.
fn compare(path: &Path, bytes: &Bytes) -> Result<(), (usize, io::Error)> {
    let file = File::open(path).map_err(|error| (0, error))?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut buffer, at as u64).map_err(|error| (at, error))?;
        let end = (at + read).min(bytes.len());
        assert_same(&buffer[..read], &bytes[at..end], &format!("{} from {at}", path.display()));
        at += read;
        if read == 0 {
            assert_eq!(at, bytes.len(), "{}: length", path.display());
            return Ok(());
        }
    }
}
