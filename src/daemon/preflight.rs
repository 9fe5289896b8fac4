//! What must hold before anything is created or started.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Uid, access};

use super::kernel::find_program;
use super::mountinfo::{self, overlap};
use crate::config::MountRequest;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::remote::{RemoteUri, local};

/// Checks a mount request and this machine.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(request: &MountRequest, cache_dir: &Path) -> Result<(), ErrorReply> {
    check_uri(request)?;
    if let Some(dir) = &request.dir {
        check_owner(dir)?;
        check_fuse()?;
    }
    check_cache_dir(cache_dir)
}

/// Parses the request's URI. A folder that it names is not looked at, so this does not
/// hang with it.
///
/// # Errors
/// If it cannot be mounted there.
pub fn check_uri(request: &MountRequest) -> Result<RemoteUri, ErrorReply> {
    let uri = parse_uri(&request.uri)?;
    if let (RemoteUri::File { path }, Some(dir)) = (&uri, &request.dir) {
        check_apart(path, &uri, dir)?;
    }
    Ok(uri)
}

/// Looks at the folder that a URI names, for a bounded time: it may be a link.
///
/// # Errors
/// If it cannot be mounted at `dir`, or does not answer.
pub async fn check_source(uri: &RemoteUri, dir: &Path) -> Result<(), ErrorReply> {
    let RemoteUri::File { path } = uri else { return Ok(()) };
    let path = local::canonical(path).await.map_err(|error| {
        ErrorReply::new(ErrorCode::Unreachable, format!("cannot mount {uri}: {error}"))
    })?;
    check_apart(&path, uri, dir)
}

/// A mount inside its own source would list itself for ever.
fn check_apart(source: &Path, uri: &RemoteUri, dir: &Path) -> Result<(), ErrorReply> {
    if !overlap(dir, source) {
        return Ok(());
    }
    let message = format!("{uri} and the mount point {} overlap", dir.display());
    Err(ErrorReply::new(ErrorCode::MountPoint, message)
        .with_hint("choose a mount point outside the source"))
}

/// What to do on a machine whose kernel cannot be made to mount.
pub(super) const WITHOUT_FUSE: &str = "`warmfs mount --no-fuse URI` serves Python without it";

pub(super) fn check_fuse() -> Result<(), ErrorReply> {
    if let Err(error) = access("/dev/fuse", AccessFlags::R_OK | AccessFlags::W_OK) {
        let (message, hint) = match error {
            Errno::ENOENT => (
                "there is no /dev/fuse".to_owned(),
                format!(
                    "run `modprobe fuse`, or start the container with `--device /dev/fuse \
                     --cap-add SYS_ADMIN`; {WITHOUT_FUSE}"
                ),
            ),
            _ => (
                format!("/dev/fuse cannot be opened: {}", error.desc().to_lowercase()),
                format!("run as root, or `chmod 666 /dev/fuse` as root; {WITHOUT_FUSE}"),
            ),
        };
        return Err(ErrorReply::new(ErrorCode::Environment, message).with_hint(hint));
    }
    if !Uid::effective().is_root() && !find_program("fusermount3") {
        let message = "only root can mount without fusermount3, which is not installed";
        return Err(ErrorReply::new(ErrorCode::Environment, message)
            .with_hint(format!("run `apt-get install fuse3` as root; {WITHOUT_FUSE}")));
    }
    Ok(())
}

/// Checks that a cache directory is ours and can be written, or can be created.
///
/// # Errors
/// If not.
pub fn check_cache_dir(dir: &Path) -> Result<(), ErrorReply> {
    let refused = |path: &Path, why: String| {
        let message = format!("the cache directory {} cannot be used, {why}", dir.display());
        let message =
            if path == dir { message } else { format!("{message} at {}", path.display()) };
        ErrorReply::new(ErrorCode::Environment, message)
            .with_hint("choose another with --cache-dir")
    };
    for path in dir.ancestors() {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(refused(path, describe(&error))),
        };
        if !meta.is_dir() {
            return Err(refused(path, "there is a file in its place".to_owned()));
        }
        if path == dir && meta.uid() != Uid::effective().as_raw() {
            return Err(refused(path, format!("it belongs to {}", user_name(meta.uid()))));
        }
        return access(path, AccessFlags::W_OK | AccessFlags::X_OK)
            .map_err(|errno| refused(path, errno.desc().to_lowercase()));
    }
    Ok(())
}

/// What a mount is known by: its mount point in canonical form, or a view's URI.
///
/// # Errors
/// If it can be neither.
pub fn resolve_place(path: &Path) -> Result<PathBuf, ErrorReply> {
    match path.to_str().filter(|text| text.contains("://")) {
        Some(uri) => Ok(parse_uri(uri)?.to_string().into()),
        None => resolve(path),
    }
}

fn parse_uri(uri: &str) -> Result<RemoteUri, ErrorReply> {
    uri.parse().map_err(|error: crate::remote::uri::UriError| {
        ErrorReply::new(ErrorCode::Invalid, error.to_string())
    })
}

/// The canonical form of a path whose end may not exist yet. The last
/// component may be a dead mount, so it is not looked into.
///
/// # Errors
/// If an existing part cannot be resolved.
pub fn resolve(path: &Path) -> Result<PathBuf, ErrorReply> {
    let wrong = |error: &io::Error| {
        let message = format!("{} cannot be resolved: {}", path.display(), describe(error));
        ErrorReply::new(ErrorCode::MountPoint, message)
            .with_hint("choose another path, or make the folder that it leads to")
    };
    let absolute = std::path::absolute(path).map_err(|error| wrong(&error))?;
    if absolute.components().any(|part| part == Component::ParentDir) {
        return absolute.canonicalize().map_err(|error| wrong(&error));
    }
    let mut missing = Vec::new();
    let mut existing = absolute.as_path();
    while let (Some(name), Some(parent)) = (existing.file_name(), existing.parent()) {
        // Does not ask the file system at a mount point, dead or not, for attributes.
        if fs::read_link(existing).is_ok() {
            let target = existing.canonicalize().map_err(|error| wrong(&error))?;
            return Ok(missing.iter().rev().fold(target, |path, name| path.join(name)));
        }
        missing.push(name.to_owned());
        match parent.canonicalize() {
            Ok(parent) => {
                return Ok(missing.iter().rev().fold(parent, |path, name| path.join(name)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => existing = parent,
            Err(error) => return Err(wrong(&error)),
        }
    }
    Ok(absolute)
}

/// An error in words, without its number.
pub fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// What is in a mount of another user is out of reach of all but root.
///
/// # Errors
/// If `path` is.
pub fn check_owner(path: &Path) -> Result<(), ErrorReply> {
    match mountinfo::other_owner(path) {
        Some(owner) if !Uid::effective().is_root() => Err(of_another_user(path, owner)),
        _ => Ok(()),
    }
}

/// That `path` is in a mount of `owner`.
pub fn of_another_user(path: &Path, owner: u32) -> ErrorReply {
    let (path, owner) = (path.display(), user_name(owner));
    let message = format!("{path} is in a mount of another user, {owner}");
    ErrorReply::new(ErrorCode::Denied, message).with_hint(format!("run this as {owner}"))
}

/// As whom people know a user.
pub fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallerEnv, MountOptions};

    fn request(uri: &str, dir: &Path) -> MountRequest {
        let options = MountOptions::default();
        MountRequest {
            uri: uri.to_owned(),
            dir: Some(dir.to_owned()),
            index: None,
            options,
            env: CallerEnv::default(),
        }
    }

    #[test]
    fn paths_resolve_although_their_end_is_missing() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().canonicalize().unwrap();
        fs::create_dir(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        for (path, resolved) in [
            ("real", "real"),
            ("real/", "real"),
            ("./real/.", "real"),
            ("link", "real"),
            ("link/a/b", "real/a/b"),
            ("real/../real", "real"),
            ("new/below", "new/below"),
        ] {
            assert_eq!(resolve(&base.join(path)).unwrap(), base.join(resolved), "{path}");
        }
        assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
        assert!(resolve(&base.join("new/../x")).is_err());
    }

    #[test]
    fn a_cache_directory_may_be_missing_but_not_a_file() {
        let tmp = tempfile::tempdir().unwrap();
        check_cache_dir(&tmp.path().join("a/b")).unwrap();
        fs::write(tmp.path().join("file"), "").unwrap();
        let refusal = check_cache_dir(&tmp.path().join("file")).unwrap_err().to_string();
        assert!(refusal.contains("--cache-dir"), "{refusal}");
        let refusal = check_cache_dir(&tmp.path().join("file/below")).unwrap_err().to_string();
        assert!(!refusal.contains('\n'), "{refusal}");
    }

    #[tokio::test]
    async fn a_mount_inside_its_source_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let mut request = request("file:///", tmp.path());
        assert!(check_uri(&request).unwrap_err().to_string().contains("overlap"));
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        request.uri = format!("file://{}", link.display());
        request.dir = Some(PathBuf::from("/mount"));
        let uri = check_uri(&request).unwrap();
        let refused = check_source(&uri, Path::new("/mount")).await.unwrap_err();
        assert!(refused.to_string().contains("overlap"), "{refused}");
        request.uri = "s3://bucket".to_owned();
        check_source(&check_uri(&request).unwrap(), Path::new("/mount")).await.unwrap();
        request.uri = "ftp://bucket".to_owned();
        assert_eq!(check_uri(&request).unwrap_err().code, ErrorCode::Invalid);
    }
}
