//! Where the sockets of daemons lie: a short path that belongs to one user.
//!
//! A Unix socket's path has room for 107 bytes, and cache directories may be
//! deeper than that, so a socket is named by a hash of its cache directory and
//! lies in a directory of the user's own: `$XDG_RUNTIME_DIR/warmfs`,
//! `/run/user/UID/warmfs` or `/tmp/warmfs-UID`, whichever is there first. A
//! directory that another user could have put there is refused.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::wire::{ErrorCode, ErrorReply};

/// `sun_path` has 108 bytes, the last of which is a NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Sockets looked at when asking who serves a mount point. A user has a daemon
/// per cache directory: one, in tests a few.
const SOCKETS_MAX: usize = 64;

/// The socket's path for the daemon of `cache_dir` (canonical), in a directory
/// that exists on return and belongs to this user alone.
///
/// # Errors
/// If every candidate is unusable: the path too long or the directory another
/// user's.
pub fn socket_path(cache_dir: &Path) -> Result<PathBuf, ErrorReply> {
    let mut refusals = Vec::new();
    for candidate in candidates() {
        match usable(&candidate, cache_dir) {
            Ok(path) => return Ok(path),
            Err(refusal) => refusals.push(refusal),
        }
    }
    let message = format!("no directory for the daemon's socket: {}", refusals.join("; "));
    Err(ErrorReply::new(ErrorCode::Environment, message)
        .with_hint("set XDG_RUNTIME_DIR to a directory of your own with a short path"))
}

/// The sockets of this user's daemons, newest first, dead ones included: a
/// refused connection may also be a daemon that is just starting, so nobody
/// but the next holder of the cache's lock removes one.
pub fn sockets() -> Vec<PathBuf> {
    let mut found: Vec<(SystemTime, PathBuf)> = candidates()
        .iter()
        .filter(|candidate| check_private(&candidate.path).is_ok())
        .filter_map(|candidate| fs::read_dir(&candidate.path).ok())
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|ext| ext == "sock"))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().take(SOCKETS_MAX).map(|(_, path)| path).collect()
}

struct Candidate {
    path: PathBuf,
    /// Must exist already: made by the login, not by us.
    parent: PathBuf,
}

fn candidates() -> Vec<Candidate> {
    let uid = Uid::effective();
    let mut parents: Vec<PathBuf> = Vec::new();
    if let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        parents.push(PathBuf::from(dir));
    }
    let login = PathBuf::from(format!("/run/user/{uid}"));
    if !parents.contains(&login) {
        parents.push(login);
    }
    let mut all: Vec<Candidate> = parents
        .into_iter()
        .map(|parent| Candidate { path: parent.join("warmfs"), parent })
        .collect();
    all.push(Candidate { path: format!("/tmp/warmfs-{uid}").into(), parent: "/tmp".into() });
    all
}

fn usable(candidate: &Candidate, cache_dir: &Path) -> Result<PathBuf, String> {
    let socket = candidate.path.join(socket_name(cache_dir));
    let length = socket.as_os_str().len();
    if !candidate.parent.is_absolute() || !candidate.parent.is_dir() {
        return Err(format!("{} is not a directory", candidate.parent.display()));
    }
    if length > SOCKET_PATH_BYTES_MAX {
        return Err(format!(
            "{} would have {length} bytes, a socket's path has at most {SOCKET_PATH_BYTES_MAX}",
            socket.display()
        ));
    }
    make_private(&candidate.path)?;
    Ok(socket)
}

fn socket_name(cache_dir: &Path) -> String {
    let hash = Sha256::digest(cache_dir.as_os_str().as_bytes());
    let hex: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.sock")
}

/// Creates a directory of mode 0700, or checks that the one there is ours.
fn make_private(dir: &Path) -> Result<(), String> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(format!("cannot create {}: {error}", dir.display())),
    }
    check_private(dir)
}

/// A link counts as somebody else's: in /tmp anyone could have made it.
fn check_private(dir: &Path) -> Result<(), String> {
    let meta = fs::symlink_metadata(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    if !meta.is_dir() {
        return Err(format!("{} is not a directory", dir.display()));
    }
    if meta.uid() != Uid::effective().as_raw() {
        return Err(format!("{} belongs to user {}", dir.display(), meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(format!("{} has mode {mode:o} and must have 700", dir.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn candidate(parent: &Path) -> Candidate {
        Candidate { path: parent.join("warmfs"), parent: parent.to_owned() }
    }

    #[test]
    fn a_fresh_directory_is_private_and_the_name_stable() {
        let tmp = tempfile::tempdir().unwrap();
        let cache = Path::new("/a/very/deep/cache");
        let path = usable(&candidate(tmp.path()), cache).unwrap();
        assert_eq!(path, usable(&candidate(tmp.path()), cache).unwrap());
        assert_eq!(path.file_name().unwrap().len(), 16 + ".sock".len());
        assert_ne!(path, usable(&candidate(tmp.path()), Path::new("/b")).unwrap());
        let mode = fs::metadata(path.parent().unwrap()).unwrap().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_link_a_file_and_an_open_directory_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let target = tmp.path().join("target");
        fs::DirBuilder::new().mode(0o700).create(&target).unwrap();
        symlink(&target, tmp.path().join("warmfs")).unwrap();
        assert!(usable(&candidate(tmp.path()), Path::new("/c")).is_err());

        let open = tmp.path().join("open");
        fs::create_dir_all(open.join("warmfs")).unwrap();
        fs::set_permissions(open.join("warmfs"), fs::Permissions::from_mode(0o755)).unwrap();
        let refusal = usable(&candidate(&open), Path::new("/c")).unwrap_err();
        assert!(refusal.contains("755"), "{refusal}");

        let file = tmp.path().join("file");
        fs::create_dir(&file).unwrap();
        fs::write(file.join("warmfs"), "").unwrap();
        assert!(usable(&candidate(&file), Path::new("/c")).is_err());
    }

    #[test]
    fn a_path_that_is_too_long_says_so_and_creates_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let long = tmp.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let refusal = usable(&candidate(&long), Path::new("/c")).unwrap_err();
        assert!(refusal.contains("at most 107"), "{refusal}");
        assert!(!long.join("warmfs").exists());
    }
}
