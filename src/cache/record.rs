//! The rows of the index, schema v3, and how they lie on disk.
//!
//! A value is its postcard encoding followed by a CRC32C over the table's tag,
//! the key and the encoding. redb checks its own page checksums only when it
//! repairs, so a row that was damaged or that stands under the wrong key is
//! found here, when it is read. A damaged row reads as absent.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize as DeriveSerialize};

use crate::remote::Version;

/// A node: a folder, or one version of one object. Allocated by the index and
/// never used again, so it can serve as an inode number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, DeriveSerialize, Deserialize,
)]
pub struct NodeId(pub u64);

/// Size, time and version of an object.
#[derive(Clone, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub struct ObjectAttr {
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// Content version.
    pub version: Version,
    /// The last component of the key, where the name shown is another one.
    pub key_name: Option<String>,
}

/// A row of `nodes`: from a node to where it stands, or stood.
#[derive(Clone, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) enum NodeRow {
    /// `entries` at (parent, name) is about this node.
    Current { parent: NodeId, name: String },
    /// Replaced by another version, or gone; kept for those who still use it.
    Superseded { parent: NodeId, name: String, attr: Option<ObjectAttr> },
}

/// A row of `entries`: what a folder has under a name.
#[derive(Clone, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) struct EntryRow {
    pub node: NodeId,
    /// When the remote was last known to have it: start of that request.
    pub seen_ms: u64,
    /// `None` for a folder.
    pub object: Option<ObjectAttr>,
}

/// A row of `folders`.
#[derive(Clone, Debug, Default, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) struct FolderRow {
    /// Start of the last listing that was read to its end.
    pub listed_ms: Option<u64>,
    /// When the listing was last seen to differ: the folder's mtime.
    pub changed_ms: u64,
    /// Keys directly in this folder that cannot be shown as a name.
    pub hidden: u64,
    /// Sums over everything below.
    pub rollup: Rollup,
}

/// Sums over everything known below a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub struct Rollup {
    /// Objects.
    pub objects: u64,
    /// Their sizes in bytes.
    pub bytes: u64,
    /// Bytes of them in the cache.
    pub cached_bytes: u64,
    /// Keys that cannot be shown as a name, and are none of these objects.
    pub hidden: u64,
}

/// A change of a [`Rollup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RollupDelta {
    pub objects: i64,
    pub bytes: i64,
    pub cached_bytes: i64,
    pub hidden: i64,
}

impl Rollup {
    pub(super) fn apply(&mut self, delta: RollupDelta) {
        self.objects = self.objects.saturating_add_signed(delta.objects);
        self.bytes = self.bytes.saturating_add_signed(delta.bytes);
        self.cached_bytes = self.cached_bytes.saturating_add_signed(delta.cached_bytes);
        self.hidden = self.hidden.saturating_add_signed(delta.hidden);
    }
}

impl std::ops::AddAssign for RollupDelta {
    fn add_assign(&mut self, other: Self) {
        self.objects += other.objects;
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.cached_bytes += other.cached_bytes;
        self.hidden += other.hidden;
    }
}

/// Where an object's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) enum Location {
    /// A sparse file of its own, at the same offsets as in the object.
    OwnFile(FileId),
}

/// The name of a backing file. No two files ever have the same one, so a file
/// that no row names and no object in memory holds is nobody's for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, DeriveSerialize, Deserialize)]
pub(super) struct FileId {
    /// The node whose bytes it holds: from the file to its row.
    pub node: NodeId,
    /// Drawn when the file was made.
    pub nonce: u64,
}

/// What a backing file looked like when its row was written. Any difference
/// means that somebody else, or a write after the row, touched it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) struct Fingerprint {
    pub ino: u64,
    pub size: u64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

impl Fingerprint {
    /// What the file at `path` looks like now, if there is one.
    pub(super) fn of(path: &std::path::Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|meta| Fingerprint::from(&meta))
    }
}

impl From<&std::fs::Metadata> for Fingerprint {
    fn from(meta: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Fingerprint {
            ino: meta.ino(),
            size: meta.len(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A row of `objects`: an object version with bytes in the cache.
#[derive(Clone, Debug, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) struct ObjectRow {
    pub location: Location,
    pub size: u64,
    pub version: Version,
    /// Bytes present; never more than `size`.
    pub present_bytes: u64,
    pub fingerprint: Fingerprint,
    /// The boot in which every present chunk was last known good, or `None`
    /// when some were not yet checked.
    pub verified_boot: Option<u128>,
    /// When somebody last read of it, to the hour.
    pub used_ms: u64,
}

/// A row of `chunks`: presence and checksums of [`GROUP_CHUNKS`] chunks.
#[derive(Clone, Debug, Default, PartialEq, Eq, DeriveSerialize, Deserialize)]
pub(super) struct ChunkGroupRow {
    /// Bit i: chunk i of the group is present.
    pub present: Vec<u8>,
    /// CRC32C of each present chunk, in order.
    pub crcs: Vec<u32>,
}

/// Chunks a row of `chunks` is about: 128 MiB of an object, so that a flush
/// rewrites at most about 4 KiB for one more chunk.
pub(super) const GROUP_CHUNKS: u32 = 1024;

/// A table's tag and key, as they enter the checksum.
pub(super) struct RowKey<'a>(pub u8, pub u64, pub &'a [u8]);

fn checksum(key: &RowKey<'_>, body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[key.0]);
    let crc = crc32c::crc32c_append(crc, &key.1.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, key.2);
    crc32c::crc32c_append(crc, body)
}

/// A row as it is stored under `key`.
pub(super) fn encode<T: Serialize>(key: &RowKey<'_>, row: &T) -> Vec<u8> {
    let mut bytes = postcard::to_stdvec(row).expect("rows are plain data that always encode");
    let crc = checksum(key, &bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// The row stored under `key`, or `None` if the bytes are not what was written there.
pub(super) fn decode<T: DeserializeOwned>(key: &RowKey<'_>, bytes: &[u8]) -> Option<T> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if checksum(key, body) != u32::from_le_bytes(*crc) {
        return None;
    }
    postcard::from_bytes(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_back_only_as_it_was_written() {
        let row = EntryRow {
            node: NodeId(17),
            seen_ms: 5,
            object: Some(ObjectAttr {
                size: 9,
                mtime_ns: 1,
                version: Version("v".into()),
                key_name: None,
            }),
        };
        let key = RowKey(1, 2, b"name");
        let bytes = encode(&key, &row);
        assert_eq!(decode::<EntryRow>(&key, &bytes), Some(row));
        assert_eq!(decode::<EntryRow>(&RowKey(1, 3, b"name"), &bytes), None);
        assert_eq!(decode::<EntryRow>(&RowKey(1, 2, b"eman"), &bytes), None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode::<EntryRow>(&key, &damaged), None);
        }
        for len in 0..bytes.len() {
            assert_eq!(decode::<EntryRow>(&key, &bytes[..len]), None);
        }
    }
}
