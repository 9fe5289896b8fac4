//! Where a path leads, without asking anybody about what lies in a mount of
//! warmfs: its daemon knows that better, and a dead one would never answer.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{mountinfo, preflight};
use crate::control::wire::{ErrorCode, ErrorReply};

/// Symlinks followed, as the kernel has it.
const LINKS_MAX: u32 = 40;

/// Where warmfs is mounted.
pub fn mounts() -> Vec<PathBuf> {
    let mounts = mountinfo::read().unwrap_or_default().into_iter();
    mounts.filter(mountinfo::MountInfo::is_warmfs).map(|mount| mount.dir).collect()
}

/// The canonical form of a path that may be in a mount, and need not exist.
///
/// `mounts` are those of warmfs.
///
/// # Errors
/// If there is no current folder, or symlinks go round in circles.
pub fn walk(path: &Path, mounts: &[PathBuf]) -> Result<PathBuf, ErrorReply> {
    walk_around(path, mounts).map_err(|error| {
        let message =
            format!("{} cannot be resolved: {}", path.display(), preflight::describe(&error));
        ErrorReply::new(ErrorCode::Invalid, message).with_hint("give an absolute path")
    })
}

fn walk_around(path: &Path, mounts: &[PathBuf]) -> io::Result<PathBuf> {
    let mut at = PathBuf::from("/");
    if !path.is_absolute() {
        at = std::env::current_dir()?;
    }
    let mut ahead = parts(path);
    let mut links = 0;
    while let Some(part) = ahead.pop_front() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        // There are no symlinks in our mounts.
        if mounts.iter().any(|mount| at.starts_with(mount)) {
            continue;
        }
        let Ok(target) = fs::read_link(&at) else { continue };
        links += 1;
        if links > LINKS_MAX {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        at.pop();
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        let mut next = parts(&target);
        next.append(&mut ahead);
        ahead = next;
    }
    Ok(at)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_up_to_a_mount_and_not_in_it() {
        let tmp = tempfile::tempdir().unwrap();
        let base = tmp.path().canonicalize().unwrap();
        fs::create_dir_all(base.join("mount/real")).unwrap();
        symlink("mount", base.join("to-mount")).unwrap();
        symlink(base.join("to-mount/./real"), base.join("into")).unwrap();
        // Who looks into the mount finds this link.
        symlink("/nowhere", base.join("mount/trap")).unwrap();
        let mounts = [base.join("mount")];
        for (path, leads_to) in [
            ("mount", "mount"),
            ("mount/", "mount"),
            ("mount/a/b", "mount/a/b"),
            ("to-mount/a", "mount/a"),
            ("into/a", "mount/real/a"),
            ("into/../a", "mount/a"),
            ("mount/trap/x", "mount/trap/x"),
            ("mount/a/../../mount/./b", "mount/b"),
            ("missing/../mount/b", "mount/b"),
        ] {
            assert_eq!(
                walk_around(&base.join(path), &mounts).unwrap(),
                base.join(leads_to),
                "{path}"
            );
        }
        assert_eq!(walk(Path::new("/.."), &[]).unwrap(), Path::new("/"));
        let here = std::env::current_dir().unwrap();
        assert_eq!(walk(Path::new("a/./b"), &[]).unwrap(), here.join("a/b"));
        symlink("loop", base.join("loop")).unwrap();
        assert!(walk(&base.join("loop"), &[]).is_err());
    }
}
