//! A file as memory, as readers of tensors and arrays take it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

/// A file that is mapped for reading, until it is dropped.
///
/// A page that cannot be read ends the process with SIGBUS, as it does every
/// program that maps files.
pub(super) struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    /// All of `file`; `None` if there is nothing to map.
    pub(super) fn of(file: &File) -> io::Result<Option<Mapping>> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(None);
        }
        let (null, fd) = (ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping, of an open file, at a place of the kernel's choice.
        let start = unsafe { libc::mmap(null, len, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        match start {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            start => Ok(Some(Mapping { start, len })),
        }
    }

    /// Copies from offset `at` into `buffer`; gives how many bytes there were.
    pub(super) fn copy(&self, at: usize, buffer: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(at).min(buffer.len());
        if len > 0 {
            // SAFETY: `len` bytes from `at` on are mapped, and the buffer has room
            // for them. Nobody holds a reference into the mapping, whose bytes may
            // be written by others.
            unsafe {
                ptr::copy_nonoverlapping(self.start.cast::<u8>().add(at), buffer.as_mut_ptr(), len)
            };
        }
        len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us, and nobody holds a reference into it.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_mapped_is_the_file() {
        let mut file = tempfile::tempfile().unwrap();
        assert!(Mapping::of(&file).unwrap().is_none());
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        file.write_all(&bytes).unwrap();
        let mapping = Mapping::of(&file).unwrap().unwrap();
        let mut buffer = vec![0; 6_000];
        assert_eq!(mapping.copy(0, &mut buffer), 6_000);
        assert_eq!(buffer, bytes[..6_000]);
        assert_eq!(mapping.copy(6_000, &mut buffer), 4_000);
        assert_eq!(buffer[..4_000], bytes[6_000..]);
        assert_eq!((mapping.copy(10_000, &mut buffer), mapping.copy(20_000, &mut buffer)), (0, 0));
    }
}
