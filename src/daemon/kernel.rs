//! Unmounting by path, and telling a dead mount from a living one.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;

/// Programs that unmount for users who are not root, newest first.
const FUSERMOUNTS: [&str; 2] = ["fusermount3", "fusermount"];

/// How long a file system may take to say that it is there. A dead one's answer
/// comes from the kernel at once.
const STATFS_TIMEOUT: Duration = Duration::from_secs(2);

/// Unmounts what is mounted at `dir`, lazily if `lazy`.
///
/// # Errors
/// `ResourceBusy` while it is in use, `InvalidInput` if nothing is mounted there.
pub fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if lazy {
        flags |= MntFlags::MNT_DETACH;
    }
    match umount2(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => fusermount(dir, lazy),
        Err(errno) => Err(errno.into()),
    }
}

fn fusermount(dir: &Path, lazy: bool) -> io::Result<()> {
    let Some(program) = FUSERMOUNTS.iter().find(|name| find_program(name)) else {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "no fusermount3 found"));
    };
    let output = Command::new(program)
        .args(if lazy { ["-u", "-z", "--"].as_slice() } else { &["-u", "--"] })
        .arg(dir)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let kind = match text.as_ref() {
        busy if busy.contains("busy") => io::ErrorKind::ResourceBusy,
        gone if gone.contains("not found") || gone.contains("Invalid") => {
            io::ErrorKind::InvalidInput
        }
        _ => io::ErrorKind::Other,
    };
    Err(io::Error::new(kind, text.trim().to_owned()))
}

/// Whether a mount's server has died: "transport endpoint is not connected".
///
/// Asks with statfs, which the kernel always sends on. A stat would be
/// answered from cached attributes for as long as they are valid.
///
/// A server that hangs may never answer, and is not dead.
pub fn is_stale(dir: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let dir = dir.to_owned();
    // Of its own, since nothing can call it back.
    let asking = std::thread::Builder::new().name("statfs".to_owned()).spawn(move || {
        let _ = answer.send(statvfs(&dir));
    });
    let answered = asking.ok().and_then(|_| answered.recv_timeout(STATFS_TIMEOUT).ok());
    matches!(answered, Some(Err(Errno::ENOTCONN | Errno::ECONNABORTED)))
}

/// Where programs are looked for without a `$PATH`, as by who runs them.
const USUAL_PATH: &str = "/bin:/usr/bin";

/// Whether a program lies on `$PATH`.
pub fn find_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into());
    std::env::split_paths(&path)
        .any(|dir| nix::unistd::access(&dir.join(name), nix::unistd::AccessFlags::X_OK).is_ok())
}
