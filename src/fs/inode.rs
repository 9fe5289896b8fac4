//! Inode numbers and attributes.
//!
//! An inode number is a node id, except that the mounted folder is always 1.
//! Nothing is kept in memory per inode: a node is found in the index by its id
//! for as long as anybody may ask, so FORGET has nothing to do.

use std::time::Duration;

use crate::cache::{Node, NodeId, NodeKind};
use crate::config::MountOptions;

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The mounted folder.
    pub const ROOT: Ino = Ino(1);

    /// The inode of a node in a mount of `root`.
    pub fn of(node: NodeId, root: NodeId) -> Self {
        if node == root { Ino::ROOT } else { Ino(node.0) }
    }

    /// The node of an inode in a mount of `root`.
    pub fn node(self, root: NodeId) -> NodeId {
        if self == Ino::ROOT { root } else { NodeId(self.0) }
    }
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Size in bytes, as the remote has it.
    pub size: u64,
    /// Blocks of 512 bytes in the cache.
    pub blocks: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How long the kernel may keep these.
    pub ttl: Duration,
}

/// How often the kernel asks for what still changes: the block count of an
/// object that is being cached.
const CHANGING_TTL: Duration = Duration::from_secs(1);

/// Size shown for a folder, as file systems of the field do.
const FOLDER_SIZE: u64 = 4096;

impl Attr {
    /// The attributes of a node of which `present_bytes` are cached.
    pub(super) fn new(
        node: &Node,
        root: NodeId,
        present_bytes: u64,
        options: &MountOptions,
    ) -> Self {
        let ino = Ino::of(node.id, root);
        let (uid, gid) = (options.uid, options.gid);
        match &node.kind {
            NodeKind::Folder { mtime_ns, listed_for } => Attr {
                ino,
                is_folder: true,
                size: FOLDER_SIZE,
                blocks: 0,
                mtime_ns: *mtime_ns,
                mode: options.dir_mode,
                uid,
                gid,
                // Before it serves its copy of a listing the kernel looks at the
                // mtime, for which it asks once these are too old: no later than
                // the listing itself is.
                ttl: listed_for.unwrap_or(node.valid_for).min(node.valid_for),
            },
            NodeKind::Object(object) => Attr {
                ino,
                is_folder: false,
                size: object.size,
                blocks: blocks(object.size, present_bytes),
                mtime_ns: object.mtime_ns,
                mode: options.file_mode,
                uid,
                gid,
                // One inode is one version: only its block count ever changes.
                ttl: if present_bytes == object.size {
                    crate::units::FOREVER
                } else {
                    CHANGING_TTL
                },
            },
        }
    }
}

/// Blocks shown for an object. Never 0 for one with bytes: `cp`, `tar -S` and
/// `rsync -S` take a file without blocks for one great hole and copy zeros.
fn blocks(size: u64, present_bytes: u64) -> u64 {
    present_bytes.div_ceil(512).max(u64::from(size > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_bytes_never_looks_empty() {
        assert_eq!(blocks(0, 0), 0);
        assert_eq!(blocks(1, 0), 1);
        assert_eq!(blocks(1 << 30, 131_072), 256);
    }

    #[test]
    fn the_mounted_folder_is_inode_one() {
        let root = NodeId(77);
        assert_eq!(Ino::of(root, root), Ino::ROOT);
        assert_eq!(Ino::ROOT.node(root), root);
        assert_eq!(Ino::of(NodeId(78), root).node(root), NodeId(78));
    }
}
