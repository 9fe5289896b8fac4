//! The file system: inodes, handles and answers over a [`crate::cache::Tree`].
//!
//! Everything but the two files that speak to the kernel ([`driver`] and
//! [`session`]) works and is tested without one. A FUSE thread never waits for
//! the network: what cannot be answered at once is an [`Answer::Later`].

pub mod driver;
pub mod errno;
pub mod inode;
pub mod open_mode;
pub mod ops;
mod read;
pub mod session;
pub mod trace;
mod xattr;

use futures::future::BoxFuture;

pub use errno::Errno;
pub use ops::FileSystem;

/// An answer that is there, or one that must be waited for elsewhere.
pub enum Answer<T> {
    /// Answered without waiting.
    Now(Result<T, Errno>),
    /// Needs the remote or the disk.
    Later(BoxFuture<'static, Result<T, Errno>>),
}

impl<T> Answer<T> {
    /// Waits for the answer, wherever it comes from.
    pub async fn get(self) -> Result<T, Errno> {
        match self {
            Answer::Now(result) => result,
            Answer::Later(later) => later.await,
        }
    }
}
