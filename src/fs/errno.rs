//! From what went wrong to the number a program sees. Translated once, here.

use crate::cache::CacheError;
use crate::remote::{ErrorKind, RemoteError};

/// An error number as `errno(3)` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// No such file.
    pub const ENOENT: Errno = Errno(libc::ENOENT);
    /// Input/output error: the remote cannot serve it, after every retry.
    pub const EIO: Errno = Errno(libc::EIO);
    /// The store says no, or credentials are missing or expired.
    pub const EACCES: Errno = Errno(libc::EACCES);
    /// The object is no longer the version that was opened.
    pub const ESTALE: Errno = Errno(libc::ESTALE);
    /// A folder where a file is needed.
    pub const EISDIR: Errno = Errno(libc::EISDIR);
    /// A file where a folder is needed.
    pub const ENOTDIR: Errno = Errno(libc::ENOTDIR);
    /// `--max-download` is used up, and strict.
    pub const EDQUOT: Errno = Errno(libc::EDQUOT);
    /// The mount is read-only.
    pub const EROFS: Errno = Errno(libc::EROFS);
    /// A name that no folder can have.
    pub const ENAMETOOLONG: Errno = Errno(libc::ENAMETOOLONG);
    /// No extended attribute of this name.
    pub const ENODATA: Errno = Errno(libc::ENODATA);
    /// No extended attributes of this kind.
    pub const EOPNOTSUPP: Errno = Errno(libc::EOPNOTSUPP);

    /// The number for a failed request about names.
    pub(super) fn of_lookup(error: &CacheError) -> Self {
        match error {
            CacheError::Remote(error) => match error.kind {
                ErrorKind::NotFound => Errno::ENOENT,
                _ => Self::of_remote(error),
            },
            // The kernel looks the path up again, from the root.
            CacheError::Unknown(_) => Errno::ESTALE,
            CacheError::Index(_)
            | CacheError::NoRoom(_)
            | CacheError::Damaged(_)
            | CacheError::Io(_) => Errno::EIO,
        }
    }

    /// The number for a failed request about bytes of an open file.
    pub(super) fn of_read(error: &RemoteError) -> Self {
        match error.kind {
            ErrorKind::NotFound => Errno::ESTALE,
            _ => Self::of_remote(error),
        }
    }

    fn of_remote(error: &RemoteError) -> Self {
        match error.kind {
            ErrorKind::Denied | ErrorKind::Credentials => Errno::EACCES,
            ErrorKind::Changed => Errno::ESTALE,
            ErrorKind::Capped => Errno::EDQUOT,
            ErrorKind::NotFound
            | ErrorKind::NoSuchBucket
            | ErrorKind::Throttled { .. }
            | ErrorKind::Transient
            | ErrorKind::Unreachable
            | ErrorKind::Invalid => Errno::EIO,
        }
    }
}
