//! System calls that the C library of manylinux2014, glibc 2.17, has no function for. The
//! wheel's program is linked against that one, to start wherever pip installs it. An old
//! kernel says `ENOSYS`, as it would to the function.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// close_range(2): closes, or marks, what is open from `first` to `last`. Kernels before 5.9
/// cannot.
///
/// # Errors
/// Those of the system call.
///
/// # Safety
/// Nobody uses a descriptor of the range that is closed. Between fork and exec it may be called.
pub(crate) unsafe fn close_range(
    first: libc::c_uint,
    last: libc::c_uint,
    flags: libc::c_uint,
) -> io::Result<()> {
    // SAFETY: three numbers; the caller sees to the rest.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// preadv2(2) into one buffer: reads at `offset`, as `flags` (`RWF_…`) say.
///
/// # Errors
/// Those of the system call.
pub(crate) fn preadv2(
    file: BorrowedFd<'_>,
    buf: &mut [u8],
    offset: libc::off_t,
    flags: libc::c_int,
) -> io::Result<usize> {
    let iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // Of the size of a register, as the kernel takes them: a smaller one leaves half undefined.
    let descriptor = libc::c_long::from(file.as_raw_fd());
    let count: libc::c_ulong = 1;
    // The offset's, on machines whose registers have half its size.
    let upper_half: libc::c_ulong = 0;
    // SAFETY: the one iovec points to `buf`, which is writable for its whole length and
    // outlives the call; the descriptor is open.
    let read = unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            descriptor,
            &raw const iov,
            count,
            offset,
            upper_half,
            flags,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_read_is_of_its_offset_and_short_at_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"0123456789").unwrap();
        let mut buf = [0; 4];
        assert_eq!(preadv2(file.as_fd(), &mut buf, 3, 0).unwrap(), 4);
        assert_eq!(&buf, b"3456");
        assert_eq!(preadv2(file.as_fd(), &mut buf, 8, 0).unwrap(), 2);
        assert_eq!(preadv2(file.as_fd(), &mut buf, 1 << 40, 0).unwrap(), 0);
        let refused = preadv2(file.as_fd(), &mut buf, 0, libc::c_int::MAX).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
    }

    #[test]
    fn a_range_is_marked_and_a_range_that_is_none_refused() {
        let file = tempfile::tempfile().unwrap();
        let number = file.as_raw_fd().cast_unsigned();
        let flags = || nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .unwrap();
        // SAFETY: nothing is closed.
        unsafe { close_range(number, number, libc::CLOSE_RANGE_CLOEXEC).unwrap() };
        assert_eq!(flags(), libc::FD_CLOEXEC);
        // SAFETY: refused.
        let refused = unsafe { close_range(number, number - 1, 0).unwrap_err() };
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    }
}
