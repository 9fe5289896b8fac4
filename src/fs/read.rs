//! Reading files: at hand, from the disk, or wherever the bytes are to be had.
//!
//! Who reads through the kernel and who reads at the socket come through here, and are
//! counted alike. Nothing is held for a reader but the object, which the store keeps in
//! memory for a while: readahead goes on in it from one read to the next.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::errno::Errno;
use super::inode::Ino;
use super::ops::FileSystem;
use crate::cache::{AtHand, CachedObject, ReadOutcome};
use crate::remote::{ErrorKind, RemoteError};

impl FileSystem {
    /// Somebody begins to read bytes of a file, before it has them. Without OPEN
    /// (`is_unopened`) a read of the beginning is as near to one as it comes.
    pub fn will_read(&self, object: &Arc<CachedObject>, offset: u64, len: u64, is_unopened: bool) {
        let node = object.node();
        if offset == 0 && is_unopened {
            object.opened();
            if let Some(recorder) = self.recorder() {
                recorder.open(node);
            }
        }
        if let Some(recorder) = self.recorder() {
            recorder.read(node, object.size(), offset, len);
        }
    }

    /// Reads as many bytes of a file as `buf` has room for, if that waits for
    /// nothing: fewer at the end of the file only.
    pub fn read_at_hand(
        &self,
        object: &Arc<CachedObject>,
        offset: u64,
        buf: &mut [u8],
    ) -> Option<AtHand> {
        let len = object.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        if len == 0 {
            return Some(AtHand::Copied(0));
        }
        let began = Instant::now();
        let read = object.read_at_hand(offset, &mut buf[..len])?;
        let miss_bytes = match &read {
            AtHand::Copied(_) => 0,
            AtHand::Shared { miss_bytes, .. } => *miss_bytes,
        };
        self.was_read(object, len as u64, miss_bytes, began);
        Some(read)
    }

    /// Reads from a file what is on the disk, where that may block: with what is
    /// returned, which gives `None` if it is to be had elsewhere after all. One thread
    /// less on the way than with [`FileSystem::read`].
    pub fn read_on_disk(
        self: &Arc<Self>,
        object: &Arc<CachedObject>,
        offset: u64,
        len: u64,
    ) -> Option<impl FnOnce() -> Option<Bytes> + Send + 'static> {
        let read = object.read_on_disk(offset, len)?;
        let (fs, object, began) = (self.clone(), object.clone(), Instant::now());
        Some(move || {
            let data = read()?;
            fs.was_read(&object, data.len() as u64, 0, began);
            Some(data)
        })
    }

    fn was_read(&self, object: &CachedObject, bytes: u64, miss_bytes: u64, began: Instant) {
        self.metrics().hit_bytes.add(bytes.saturating_sub(miss_bytes));
        self.metrics().miss_bytes.add(miss_bytes);
        let times = if miss_bytes > 0 { &self.metrics().misses } else { &self.metrics().hits };
        times.observe(began.elapsed());
        self.tree().was_read(object, bytes, miss_bytes > 0);
    }

    /// Reads from a file, waiting for the disk or the remote.
    pub async fn read(
        self: Arc<Self>,
        ino: Ino,
        object: Arc<CachedObject>,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, Errno> {
        self.try_read(ino, object, offset, len).await.map_err(|error| Errno::of_read(&error))
    }

    /// The same for who is told more than a number. Dropped, it stops to wait.
    ///
    /// # Errors
    /// What the remote says. Of a version that is gone, the name is looked up again at its
    /// next use.
    pub async fn try_read(
        self: Arc<Self>,
        ino: Ino,
        object: Arc<CachedObject>,
        offset: u64,
        len: u64,
    ) -> Result<Bytes, RemoteError> {
        let began = Instant::now();
        match object.read(offset, len).await {
            Ok(ReadOutcome { data, miss_bytes }) => {
                self.was_read(&object, data.len() as u64, miss_bytes, began);
                Ok(data)
            }
            Err(error) => {
                self.metrics().failed_reads.add(1);
                let node = self.node(ino);
                let name = node.as_ref().map_or("?", |node| node.name.as_str());
                tracing::warn!(name, offset, %error, "a read failed");
                if matches!(error.kind, ErrorKind::Changed | ErrorKind::NotFound)
                    && let Ok(node) = &node
                    && let Err(error) = self.tree().expire(node).await
                {
                    tracing::warn!(name, %error, "a changed object could not be noted");
                }
                Err(error)
            }
        }
    }
}
