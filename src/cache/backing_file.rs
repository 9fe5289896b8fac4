//! The local file that holds an object's bytes.
//!
//! A sparse file of the object's full size under `data/`, mode 0600, named by
//! its node and a number drawn when it is made: no key can name a path, and
//! what was evicted and comes back has another file than the one that may
//! still be read. Holes read as zeros, so only ranges that the chunk map has
//! as present may be read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::block::{ALIGNMENT, Filler};
use super::chunk_map::{CHUNK_BYTES, ChunkMap, Presence, chunk_count, chunk_range};
use super::record::{FileId, Fingerprint, NodeId};
use crate::linux;

/// Least bytes that go past the page cache at once: for fewer, waiting for the disk
/// costs more than the copy.
const DIRECT_MIN_BYTES: usize = 512 << 10;

/// Of the descriptors that this process may have, backing files take so many
/// quarters at most. With the last one taken nobody could reach the daemon, and
/// the daemon no remote.
const DESCRIPTOR_QUARTERS: u64 = 3;

/// Descriptors that backing files have now.
static DESCRIPTORS: AtomicU64 = AtomicU64::new(0);

/// Descriptors that backing files may have. Whoever starts a daemon raises the
/// limit before it opens the first one.
pub(super) fn descriptors_max() -> u64 {
    static MAX: OnceLock<u64> = OnceLock::new();
    *MAX.get_or_init(|| {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        limit / 4 * DESCRIPTOR_QUARTERS
    })
}

/// One of the descriptors for backing files.
#[derive(Debug)]
struct Descriptor(());

impl Descriptor {
    fn take() -> io::Result<Self> {
        let descriptor = Descriptor(()); // Gives it back whatever comes.
        if DESCRIPTORS.fetch_add(1, Ordering::Relaxed) >= descriptors_max() {
            return Err(Errno::EMFILE.into());
        }
        Ok(descriptor)
    }
}

impl Descriptor {
    /// One that can be done without: none once half of them are taken.
    fn take_spare() -> Option<Self> {
        (DESCRIPTORS.load(Ordering::Relaxed) < descriptors_max() / 2).then(Self::take)?.ok()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        DESCRIPTORS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open backing file.
#[derive(Debug)]
pub(super) struct BackingFile {
    file: File,
    /// The same past the page cache, where the file system can; see [`Way::Direct`].
    direct: OnceLock<Option<Direct>>,
    _descriptor: Descriptor,
}

/// Another descriptor of a backing file.
#[derive(Debug)]
struct Direct {
    file: File,
    _descriptor: Descriptor,
}

/// How bytes get to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache, which takes more than the disk does for a while.
    Cached,
    /// Past it, if there are many: their copy there would cost a fifth of all CPU
    /// time of a first epoch, and as much memory again as the readers' own pages.
    Direct,
}

/// Nodes whose files share a folder. Ids are given out in order, so a cache of
/// few objects has few folders, and a cache of millions none that is too large.
const NODES_PER_FOLDER: u64 = 1024;

impl FileId {
    /// A name that no file has had.
    pub(super) fn draw(node: NodeId) -> Self {
        FileId { node, nonce: fastrand::u64(..) }
    }

    /// `<folder>/<node>-<nonce>` below the store's data folder, all in hex.
    pub(super) fn path(&self, data: &Path) -> PathBuf {
        let FileId { node: NodeId(node), nonce } = *self;
        data.join(format!("{:06x}", node / NODES_PER_FOLDER)).join(format!("{node:x}-{nonce:016x}"))
    }

    /// The id of the file that has this name, if it is one of ours.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let (node, nonce) = name.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let id = FileId { node: NodeId(hex(node)?), nonce: hex(nonce)? };
        // Numbers can be written in more ways than the one that we use.
        (name == format!("{:x}-{:016x}", id.node.0, id.nonce)).then_some(id)
    }
}

impl BackingFile {
    fn of(file: File, descriptor: Descriptor) -> Self {
        BackingFile { file, direct: OnceLock::new(), _descriptor: descriptor }
    }

    /// Opens a file that the index knows.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let descriptor = Descriptor::take()?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(BackingFile::of(file, descriptor))
    }

    /// As [`BackingFile::open`], only to look at it: a read-only disk allows that.
    pub(super) fn open_to_read(path: &Path) -> io::Result<Self> {
        let descriptor = Descriptor::take()?;
        Ok(BackingFile::of(File::open(path)?, descriptor))
    }

    /// Creates an empty file of `size` bytes, all holes.
    pub(super) fn create(path: &Path, size: u64) -> io::Result<Self> {
        let descriptor = Descriptor::take()?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
                }
                options.open(path)?
            }
            opened => opened?,
        };
        // A file system may know none so large.
        if let Err(error) = file.set_len(size) {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(BackingFile::of(file, descriptor))
    }

    /// Fills `buf` from `offset`; a short file is an error.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    /// As [`BackingFile::read`], the bytes `range` into an empty block. Always through
    /// the page cache: past it, a read waits for whoever writes to the file, and on a
    /// frozen file system for ever.
    pub(super) fn read_into(&self, filler: &mut Filler, range: &Range<u64>) -> io::Result<()> {
        let wanted = (range.end - range.start) as usize;
        while filler.block().filled() < wanted {
            let filled = filler.block().filled();
            match filler.read(&self.file, range.start + filled as u64, wanted - filled) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the page cache forget what it has of `range`, as far as that is on disk.
    pub(super) fn drop_pages(&self, range: &Range<u64>) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        let (Ok(at), Ok(len)) =
            (i64::try_from(range.start), i64::try_from(range.end - range.start))
        else {
            return;
        };
        // Where that is not to be had, the pages go when they are wanted.
        let _ = posix_fadvise(&self.file, at, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    /// As [`BackingFile::read`], but only from the page cache: `false` if that
    /// would have to wait for the disk, or cannot be told.
    pub(super) fn read_if_in_memory(&self, buf: &mut [u8], offset: u64) -> bool {
        let Ok(offset) = libc::off_t::try_from(offset) else { return false };
        linux::preadv2(self.file.as_fd(), buf, offset, libc::RWF_NOWAIT)
            .is_ok_and(|read| read == buf.len())
    }

    /// Writes all of `bytes`, which lie in a block, from `offset` on, which is a chunk's.
    pub(super) fn write(&self, bytes: &[u8], offset: u64, way: Way) -> io::Result<()> {
        let aligned = bytes.len() - bytes.len() % ALIGNMENT;
        let mut written = 0;
        if let Some(direct) = self.direct_for(way, aligned) {
            match direct.file.write_all_at(&bytes[..aligned], offset) {
                Ok(()) => written = aligned,
                // It keeps to larger blocks than we do: the page cache takes all.
                Err(error) if is_refused(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(&bytes[written..], offset + written as u64)
    }

    /// The file past the page cache, if so many bytes are to go that way.
    fn direct_for(&self, way: Way, bytes: usize) -> Option<&Direct> {
        let is_due = way == Way::Direct && bytes >= DIRECT_MIN_BYTES;
        is_due.then(|| self.direct.get_or_init(|| self.open_direct()).as_ref()).flatten()
    }

    /// The file once more, whatever became of its name.
    fn open_direct(&self) -> Option<Direct> {
        let descriptor = Descriptor::take_spare()?;
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT);
        Some(Direct { file: options.open(path).ok()?, _descriptor: descriptor })
    }

    /// What the file looks like now; `None` if it has no name any more.
    pub(super) fn fingerprint(&self) -> io::Result<Option<Fingerprint>> {
        let meta = self.file.metadata()?;
        Ok((meta.nlink() > 0).then(|| Fingerprint::from(&meta)))
    }

    /// Gives the file its size back after somebody changed it; what was cut
    /// off reads as zeros, which checksums tell from data.
    pub(super) fn restore_size(&self, size: u64) -> io::Result<()> {
        self.file.set_len(size)
    }

    /// Gives the disk under `range` back; it reads as zeros from now on.
    pub(super) fn punch(&self, range: Range<u64>) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |n: u64| i64::try_from(n).map_err(io::Error::other);
        let (at, len) = (signed(range.start)?, signed(range.end - range.start)?);
        fallocate(&self.file, flags, at, len).map_err(io::Error::from)
    }

    /// Gives back whatever disk it takes beyond the chunks that `map` has.
    pub(super) fn punch_absent(&self, map: &ChunkMap, size: u64) -> io::Result<()> {
        let mut chunk = 0;
        while chunk < chunk_count(size) {
            let first = chunk;
            while chunk < chunk_count(size) && map.presence(chunk) == Presence::Absent {
                chunk += 1;
            }
            if chunk > first {
                let end = chunk_range(chunk - 1, size).end;
                // Up to the end of the last block, which may reach beyond the object.
                self.punch(chunk_range(first, size).start..end.next_multiple_of(CHUNK_BYTES))?;
            }
            chunk += 1;
        }
        Ok(())
    }

    /// The file itself, to hand to the kernel. Only for a complete, verified object.
    pub(super) fn as_file(&self) -> &File {
        &self.file
    }
}

/// Whether a file system says that it does not do this past the page cache.
fn is_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_have_its_size_is_not_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("000000/10-0");
        // Some file systems have files of the first size, and none of the second.
        let is_made = |size| BackingFile::create(&path, size).is_ok();
        if is_made(1 << 62) {
            std::fs::remove_file(&path).unwrap();
        }
        assert!(!path.exists());
        assert!(!is_made(u64::MAX));
        assert!(!path.exists());
        assert!(is_made(4096), "its name is free");
    }
}
