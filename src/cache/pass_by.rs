//! Bytes that were fetched but cannot be kept on disk.
//!
//! With a full cache or a failing disk, reads stream through. A request to the
//! remote brings more than one read of the kernel asks for; what is left over
//! waits here, in memory, for the next read.

use std::sync::Mutex;

use bytes::Bytes;
use lru::LruCache;

use super::record::NodeId;

/// Readahead of a stream that is not kept. Small: what is pushed out of memory
/// before it is read must be fetched again.
pub(super) const PASS_BY_WINDOW_BYTES: u64 = 4 << 20;

/// Chunks on their way past the disk.
#[derive(Debug)]
pub(super) struct PassBy(Mutex<Held>);

#[derive(Debug)]
struct Held {
    chunks: LruCache<(NodeId, u32), Bytes>,
    bytes: u64,
    /// Bound on the bytes held.
    bytes_max: u64,
}

impl PassBy {
    /// Holds `bytes_max` at most.
    pub(super) fn new(bytes_max: u64) -> Self {
        PassBy(Mutex::new(Held { chunks: LruCache::unbounded(), bytes: 0, bytes_max }))
    }

    /// Holds a chunk; the oldest ones make room.
    pub(super) fn insert(&self, node: NodeId, chunk: u32, bytes: Bytes) {
        let mut held = super::lock(&self.0);
        held.bytes += bytes.len() as u64;
        if let Some(before) = held.chunks.put((node, chunk), bytes) {
            held.bytes -= before.len() as u64;
        }
        while held.bytes > held.bytes_max
            && let Some((_, oldest)) = held.chunks.pop_lru()
        {
            held.bytes -= oldest.len() as u64;
        }
    }

    /// A chunk is on disk after all.
    pub(super) fn remove(&self, node: NodeId, chunk: u32) {
        let mut held = super::lock(&self.0);
        if let Some(bytes) = held.chunks.pop(&(node, chunk)) {
            held.bytes -= bytes.len() as u64;
        }
    }

    /// A chunk, if it is still held.
    pub(super) fn get(&self, node: NodeId, chunk: u32) -> Option<Bytes> {
        super::lock(&self.0).chunks.get(&(node, chunk)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_make_room() {
        let held = PassBy::new(64 << 20);
        let mib = Bytes::from(vec![0; 1 << 20]);
        for chunk in 0..65 {
            held.insert(NodeId(1), chunk, mib.clone());
            held.insert(NodeId(1), chunk, mib.clone());
        }
        assert!(held.get(NodeId(1), 0).is_none());
        assert!(held.get(NodeId(1), 1).is_some() && held.get(NodeId(1), 64).is_some());
        assert!(held.get(NodeId(2), 1).is_none());
    }
}
