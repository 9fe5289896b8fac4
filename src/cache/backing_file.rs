//! The local file that holds an object's bytes.
//!
//! A sparse file of the object's full size under `data/`, mode 0600, named by
//! a hash of remote, key, version and node: no key can name a path, and no
//! two nodes share a file, though a version may come back under a new node
//! while the old one is still read. Holes read as zeros, so only ranges that
//! the chunk map has as present may be read.

use std::fmt::Write;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::record::{FileId, Fingerprint, NodeId};
use crate::remote::{Key, RemoteId, Version};

/// An open backing file.
#[derive(Debug)]
pub(super) struct BackingFile {
    file: File,
}

impl FileId {
    /// The file of one version of one object, as one node has it.
    pub(super) fn of(remote: &RemoteId, key: &Key, version: &Version, node: NodeId) -> Self {
        let object = Sha256::new()
            .chain_update((remote.0.len() as u64).to_le_bytes())
            .chain_update(&remote.0)
            .chain_update((key.0.len() as u64).to_le_bytes())
            .chain_update(&key.0)
            .chain_update((version.0.len() as u64).to_le_bytes())
            .chain_update(&version.0)
            .chain_update(node.0.to_le_bytes())
            .finalize();
        let mut id = [0; 20];
        id[..4].copy_from_slice(&Sha256::digest(&remote.0)[..4]);
        id[4..].copy_from_slice(&object[..16]);
        FileId(id)
    }

    /// `<remote>/<2 hex>/<30 hex>` below the store's data folder.
    pub(super) fn path(&self, data: &Path) -> PathBuf {
        let hex = self.0.iter().fold(String::with_capacity(40), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        });
        data.join(&hex[..8]).join(&hex[8..10]).join(&hex[10..])
    }
}

impl BackingFile {
    /// Opens a file that the index knows.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(BackingFile { file })
    }

    /// Creates an empty file of `size` bytes, all holes, in place of whatever
    /// an earlier life may have left there.
    pub(super) fn create(path: &Path, size: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                }
                options.open(path)?
            }
            opened => opened?,
        };
        file.set_len(size)?;
        Ok(BackingFile { file })
    }

    /// Fills `buf` from `offset`; a short file is an error.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// As [`BackingFile::read`], but only from the page cache: `false` if that
    /// would have to wait for the disk, or cannot be told.
    pub(super) fn read_if_in_memory(&self, buf: &mut [u8], offset: u64) -> bool {
        let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let Ok(offset) = libc::off_t::try_from(offset) else { return false };
        // SAFETY: the one iovec points to `buf`, which is writable for its
        // whole length and outlives the call; the descriptor is open.
        let read = unsafe {
            libc::preadv2(self.file.as_raw_fd(), &raw const iov, 1, offset, libc::RWF_NOWAIT)
        };
        usize::try_from(read).is_ok_and(|read| read == buf.len())
    }

    /// Writes all of `bytes` at `offset`.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    /// What the file looks like now.
    pub(super) fn fingerprint(&self) -> io::Result<Fingerprint> {
        let m = self.file.metadata()?;
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Fingerprint {
            ino: m.ino(),
            size: m.len(),
            mtime_ns: ns(m.mtime(), m.mtime_nsec()),
            ctime_ns: ns(m.ctime(), m.ctime_nsec()),
        })
    }

    /// The file itself, to hand to the kernel. Only for a complete, verified object.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }
}
