//! Folders that are read as C programs do, with places to come back to.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// An open folder, read as C programs do.
pub struct DirStream(*mut libc::DIR);

impl DirStream {
    /// At its beginning.
    pub fn open(path: &Path) -> DirStream {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that ends in NUL.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null(), "{}", io::Error::last_os_error());
        DirStream(dir)
    }

    /// The next name; `None` at the end.
    pub fn next(&self) -> Option<String> {
        // SAFETY: open until dropped; the entry is copied before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            if entry.is_null() {
                return None;
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr());
            Some(name.to_str().unwrap().to_owned())
        }
    }

    /// All names from here on.
    pub fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// Where it is.
    pub fn tell(&self) -> libc::c_long {
        // SAFETY: open until dropped.
        unsafe { libc::telldir(self.0) }
    }

    /// Goes back, or ahead, to where it was.
    pub fn seek(&self, at: libc::c_long) {
        // SAFETY: open until dropped; `at` is of its `tell`.
        unsafe { libc::seekdir(self.0, at) };
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once.
        unsafe { libc::closedir(self.0) };
    }
}
