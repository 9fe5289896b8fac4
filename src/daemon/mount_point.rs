//! The folder a mount covers: made ready before, put back after.
//!
//! What was created for a mount is removed when it ends, and nothing else: a
//! folder that was there stays, and so does one that gained entries since.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::mountinfo::{self, overlap};
use super::{kernel, preflight, process};
use crate::control::wire::{ErrorCode, ErrorReply};

/// Dead mounts on top of each other that are cleaned up. Each crash leaves
/// one; more than this is something else.
const STALE_LAYERS_MAX: usize = 8;

/// An empty folder that nothing is mounted on.
#[derive(Debug)]
pub(super) struct MountPoint {
    dir: PathBuf,
    /// Parents first.
    created: Vec<PathBuf>,
}

impl MountPoint {
    /// Makes `dir` (canonical) ready: cleans up a dead mount, creates what is
    /// missing, and makes sure that a mount hides nothing.
    ///
    /// # Errors
    /// One line with a next step; nothing is left created.
    pub(super) fn prepare(dir: &Path, cache_dir: &Path) -> Result<MountPoint, ErrorReply> {
        if overlap(dir, cache_dir) {
            let message =
                format!("{} and the cache {} overlap", dir.display(), cache_dir.display());
            return Err(refused(message, "choose another mount point or --cache-dir"));
        }
        clear_stale(dir)?;
        let point = MountPoint::create(dir)?;
        match fs::read_dir(dir).and_then(|mut entries| entries.next().transpose()) {
            Ok(None) => Ok(point),
            Ok(Some(_)) => {
                let message = format!("{} is not empty", dir.display());
                Err(refused(message, "mount on an empty folder or one that does not exist yet"))
            }
            Err(error) => Err(not_usable(dir, &error)),
        }
    }

    /// The same for a mount whose daemon died, for which `created` was created.
    ///
    /// # Errors
    /// Those of [`MountPoint::prepare`].
    pub(super) fn prepare_again(
        dir: &Path,
        cache_dir: &Path,
        mut created: Vec<PathBuf>,
    ) -> Result<MountPoint, ErrorReply> {
        let mut point = MountPoint::prepare(dir, cache_dir)?;
        created.retain(|path| !point.created.contains(path));
        created.append(&mut point.created);
        point.created = created;
        Ok(point)
    }

    /// For a view, which has none: there is nothing to make ready or to put back.
    pub(super) fn none(uri: &Path) -> MountPoint {
        MountPoint { dir: uri.to_owned(), created: Vec::new() }
    }

    /// What was created for it, parents first.
    pub(super) fn created(&self) -> &[PathBuf] {
        &self.created
    }

    /// Removes what was created.
    pub(super) fn remove(self) {
        drop(self);
    }

    fn create(dir: &Path) -> Result<MountPoint, ErrorReply> {
        let mut point = MountPoint { dir: dir.to_owned(), created: Vec::new() };
        let mut missing = Vec::new();
        for path in dir.ancestors() {
            match fs::metadata(path) {
                Ok(meta) if meta.is_dir() => break,
                Ok(_) => {
                    let message = format!("{} is not a folder", path.display());
                    return Err(refused(message, "choose another mount point"));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(path),
                Err(error) => return Err(not_usable(path, &error)),
            }
        }
        for path in missing.into_iter().rev() {
            match process::create_folder(path) {
                Ok(()) => point.created.push(path.to_owned()),
                // Another mount's parent, made in this moment: not ours to remove.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(not_usable(path, &error)),
            }
        }
        Ok(point)
    }
}

/// Whether a dead mount is at `dir`.
pub(super) fn is_dead(dir: &Path) -> bool {
    let there = mountinfo::topmost_at(dir);
    there.is_ok_and(|mount| mount.is_some_and(|mount| mount.is_fuse()) && kernel::is_stale(dir))
}

/// Unmounts a dead mount at `dir`, and removes what was created for it.
pub fn clear_dead(dir: &Path, created: &[PathBuf]) {
    match clear_stale(dir) {
        Ok(()) => drop(MountPoint { dir: dir.to_owned(), created: created.to_owned() }),
        Err(error) => tracing::warn!("{}: {error}", dir.display()),
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for path in self.created.iter().rev() {
            if let Err(error) = fs::remove_dir(path) {
                tracing::debug!("{} stays: {error}", path.display());
                break;
            }
        }
        tracing::debug!("{} is free", self.dir.display());
    }
}

/// Unmounts dead mounts from `dir`, and refuses living ones.
pub(super) fn clear_stale(dir: &Path) -> Result<(), ErrorReply> {
    for _ in 0..STALE_LAYERS_MAX {
        let found = mountinfo::topmost_at(dir).map_err(|error| not_usable(dir, &error))?;
        let Some(mount) = found.filter(|mount| !mount.waits_for_us()) else { return Ok(()) };
        if !mount.is_fuse() || !kernel::is_stale(dir) {
            return Err(occupied(dir, &mount));
        }
        tracing::info!("cleaning up the dead mount of {} at {}", mount.source, dir.display());
        if let Err(error) = kernel::unmount(dir, true) {
            let message = format!("{} is a dead mount that stays: {error}", dir.display());
            return Err(refused(message, &format!("run `umount -l {}` as root", dir.display())));
        }
    }
    let message = format!("{} carries more than {STALE_LAYERS_MAX} dead mounts", dir.display());
    Err(refused(message, "unmount them with `umount -l`"))
}

fn occupied(dir: &Path, mount: &mountinfo::MountInfo) -> ErrorReply {
    let dir = dir.display();
    if mount.is_warmfs() {
        let message = format!("{dir} is in use by {}", mount.source);
        return refused(message, &format!("`warmfs unmount {dir}` first"));
    }
    if mount.mounter.is_some() && mount.source.starts_with("systemd") {
        let message = format!("{dir} is mounted by {} at its first use", mount.source);
        return refused(
            message,
            &format!(
                "`ls {dir}` does; where a daemon runs already, give this mount a cache_dir of its own"
            ),
        );
    }
    let message = format!("{dir} is in use by a mount of {} ({})", mount.source, mount.fs_type);
    refused(message, &format!("unmount it with `umount {dir}`, or choose another mount point"))
}

fn refused(message: String, hint: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::MountPoint, message).with_hint(hint)
}

fn not_usable(path: &Path, error: &io::Error) -> ErrorReply {
    let why = preflight::describe(error);
    let message = format!("cannot mount below {}: {why}", path.display());
    refused(message, "choose a mount point that you may write")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_CACHE: &str = "/no/such/cache";

    #[test]
    fn exactly_what_was_created_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        fs::create_dir(tmp.path().join("a")).unwrap();
        let dir = tmp.path().join("a/b/c");
        let point = MountPoint::prepare(&dir, Path::new(NO_CACHE)).unwrap();
        assert!(dir.is_dir());
        point.remove();
        assert!(!tmp.path().join("a/b").exists() && tmp.path().join("a").exists());

        let there = tmp.path().join("a");
        MountPoint::prepare(&there, Path::new(NO_CACHE)).unwrap().remove();
        assert!(there.exists());
    }

    #[test]
    fn a_created_folder_that_gained_entries_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let point = MountPoint::prepare(&tmp.path().join("a/b"), Path::new(NO_CACHE)).unwrap();
        fs::write(tmp.path().join("a/file"), "").unwrap();
        point.remove();
        assert!(tmp.path().join("a").exists() && !tmp.path().join("a/b").exists());
    }

    #[test]
    fn refusals_name_the_reason_and_create_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let full = tmp.path().join("full");
        fs::create_dir(&full).unwrap();
        fs::write(full.join("file"), "").unwrap();
        for (dir, word) in [
            (full.clone(), "not empty"),
            (full.join("file"), "not a folder"),
            (full.join("file/below/it"), "cannot mount"),
            (PathBuf::from("/proc"), "in use by a mount"),
            (tmp.path().join("cache"), "overlap"),
            (tmp.path().join("cache/below"), "overlap"),
            (tmp.path().to_owned(), "overlap"),
        ] {
            let refusal = MountPoint::prepare(&dir, &tmp.path().join("cache")).unwrap_err();
            assert_eq!(refusal.code, ErrorCode::MountPoint);
            assert!(refusal.to_string().contains(word), "{refusal}");
        }
        assert!(!tmp.path().join("cache").exists());
    }
}
