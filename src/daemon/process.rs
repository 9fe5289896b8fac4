//! What a daemon sets of its own process: limits, and that nobody else sees
//! what it holds.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};

/// Where this process logs, if not to stderr.
static LOG_FILE: OnceLock<PathBuf> = OnceLock::new();

/// The umask of whoever started this process.
static CALLERS_UMASK: OnceLock<Mode> = OnceLock::new();

/// Prepares this process to hold credentials and somebody's data.
pub(super) fn prepare() {
    raise_fd_limit();
    refuse_core_dumps();
    keep_files_private();
    outlive_file_size_limit();
}

/// Prepares this process to hold credentials, and nothing else.
pub fn prepare_to_hold_secrets() {
    refuse_core_dumps();
}

/// Creates a folder as the caller's umask has it: one on the way to a mount
/// point is for whoever may read the mount.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    match CALLERS_UMASK.get() {
        Some(umask) => fs::set_permissions(path, Permissions::from_mode(0o777 & !umask.bits())),
        None => Ok(()),
    }
}

/// Says where this process logs, if not to stderr.
pub fn logs_to(path: PathBuf) {
    let _ = LOG_FILE.set(path);
}

/// The file that this process logs to: what was said, or what stderr leads to.
pub(super) fn log_file() -> Option<PathBuf> {
    if let Some(path) = LOG_FILE.get() {
        return Some(path.clone());
    }
    let path = fs::read_link("/proc/self/fd/2").ok()?;
    path.metadata().is_ok_and(|meta| meta.is_file()).then_some(path)
}

/// One descriptor per open object is no luxury; the soft limit is for programs
/// that use `select`.
fn raise_fd_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// A core dump would hold the credentials of every mount. The limit says
/// nothing to a program that `core_pattern` pipes dumps to; the other does, and
/// keeps this user's other programs from reading memory and environment too.
fn refuse_core_dumps() {
    let limited = setrlimit(Resource::RLIMIT_CORE, 0, 0);
    if let Err(error) = limited.and_then(|()| nix::sys::prctl::set_dumpable(false)) {
        tracing::debug!(%error, "core dumps stay possible");
    }
}

/// Libraries create files too, such as the index, and give them what the umask leaves.
fn keep_files_private() {
    let _ = CALLERS_UMASK.get_or_init(|| umask(Mode::from_bits_truncate(0o077)));
}

/// A write beyond `ulimit -f` is to fail like any other, not to end the process
/// and every mount with it.
fn outlive_file_size_limit() {
    // SAFETY: no handler is installed, and nothing here relies on the signal.
    if let Err(error) = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) } {
        tracing::debug!(%error, "a limit on the size of files may end this process");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signal_of_a_file_that_is_too_large_is_ignored() {
        outlive_file_size_limit();
        // The answer is what was set before; other tests want no signal either.
        // SAFETY: as above.
        let before = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
        assert!(matches!(before, Ok(SigHandler::SigIgn)));
    }

    #[test]
    fn no_dump_is_made_of_a_daemon() {
        refuse_core_dumps();
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(false));
        assert_eq!(getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));
        // Other tests run in this process.
        nix::sys::prctl::set_dumpable(true).unwrap();
    }
}
