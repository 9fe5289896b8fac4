//! Extended attributes that tell which object a file is: `user.warmfs.*`, read-only.
//!
//! They are virtual: who knows a name may ask for it, but none is listed, or every copy
//! of a file (`cp -a`, `rsync -X`, `tar --xattrs`) would take along what is true here
//! only. The kernel refuses to set any by itself, for the mount is read-only.
//!
//! What answers another name looks at nothing but the name, and the error matters: in
//! the namespaces of the system (ACLs, capabilities, labels) it is EOPNOTSUPP, as of a
//! file system that has none, which `ls -l` remembers for the whole device. With ENODATA
//! it would ask again for each file.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::errno::Errno;
use super::inode::Ino;
use super::ops::FileSystem;
use crate::cache::{Node, NodeKind};

/// The only namespace in which a file has any.
const NAMESPACE: &[u8] = b"user.";

/// An attribute that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Xattr {
    /// The object's key, or of a folder the prefix of its keys.
    Key,
    /// The URI of the object or folder.
    Url,
    /// What tells the object's content from what the key held before or after.
    Version,
    /// The same, where it is an etag.
    Etag,
    /// `CACHED/SIZE` in bytes.
    Cached,
}

impl Xattr {
    fn of(name: &OsStr) -> Result<Self, Errno> {
        let name = name.as_bytes().strip_prefix(NAMESPACE).ok_or(Errno::EOPNOTSUPP)?;
        match name {
            b"warmfs.key" => Ok(Xattr::Key),
            b"warmfs.url" => Ok(Xattr::Url),
            b"warmfs.version" => Ok(Xattr::Version),
            b"warmfs.etag" => Ok(Xattr::Etag),
            b"warmfs.cached" => Ok(Xattr::Cached),
            _ => Err(Errno::ENODATA),
        }
    }
}

impl FileSystem {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// ENODATA where there is none of this name, EOPNOTSUPP where there never is.
    pub fn xattr(&self, ino: Ino, name: &OsStr) -> Result<Vec<u8>, Errno> {
        let xattr = Xattr::of(name)?;
        let node = self.node(ino)?;
        let value = match xattr {
            Xattr::Key => self.key_of(&node)?,
            Xattr::Url => self.url_of(&node)?,
            Xattr::Version => version_of(&node)?,
            Xattr::Etag if self.tree().versions_are_etags() => version_of(&node)?,
            Xattr::Etag => return Err(Errno::ENODATA),
            Xattr::Cached => self.cached_of(&node)?,
        };
        Ok(value.into_bytes())
    }

    fn key_of(&self, node: &Node) -> Result<String, Errno> {
        self.tree().key(node).map_err(|error| self.failed("getxattr", &node.name, &error))
    }

    fn url_of(&self, node: &Node) -> Result<String, Errno> {
        let tree = self.tree();
        let root = tree.prefix(tree.root());
        let root = root.map_err(|error| self.failed("getxattr", &node.name, &error))?;
        let key = self.key_of(node)?;
        // What is mounted stands for its prefix, and has no `/` at its end.
        match key.strip_prefix(&root).map(|path| path.trim_end_matches('/')) {
            None | Some("") => Ok(self.uri().to_owned()),
            Some(path) => Ok(format!("{}/{path}", self.uri().trim_end_matches('/'))),
        }
    }

    fn cached_of(&self, node: &Node) -> Result<String, Errno> {
        let (cached, size) = match &node.kind {
            NodeKind::Object(object) => (self.tree().store().present_bytes(node.id), object.size),
            NodeKind::Folder { .. } => {
                let sums = self.tree().rollup(node.id);
                let sums = sums.map_err(|error| self.failed("getxattr", &node.name, &error))?;
                (sums.cached_bytes, sums.bytes)
            }
        };
        Ok(format!("{cached}/{size}"))
    }
}

fn version_of(node: &Node) -> Result<String, Errno> {
    match &node.kind {
        NodeKind::Object(object) => Ok(object.version.0.clone()),
        NodeKind::Folder { .. } => Err(Errno::ENODATA),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_not_ours_are_told_apart() {
        let of = |name: &str| Xattr::of(OsStr::new(name));
        assert_eq!(of("user.warmfs.key"), Ok(Xattr::Key));
        for name in ["user.", "user.any", "user.warmfs", "user.warmfs.", "user.warmfs.keys"] {
            assert_eq!(of(name), Err(Errno::ENODATA), "{name}");
        }
        for name in ["system.posix_acl_access", "security.capability", "trusted.x", "", "user"] {
            assert_eq!(of(name), Err(Errno::EOPNOTSUPP), "{name}");
        }
        assert_eq!(Xattr::of(OsStr::from_bytes(b"user.\xff")), Err(Errno::ENODATA));
    }
}
