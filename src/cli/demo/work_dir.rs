//! The demo's temporary folder.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;

use nix::sys::statfs::{TMPFS_MAGIC, statfs};

use super::{Failure, complain, io_failure, mounted};
use crate::units::format_bytes;

/// What stays free on the disk beside what the demo writes.
const SPARE_BYTES: u64 = 256 << 20;

/// A folder that goes, with all that is in it, when this is dropped.
#[derive(Debug)]
pub(super) struct WorkDir {
    root: PathBuf,
    in_memory: bool,
    keep: bool,
}

impl WorkDir {
    /// Makes the folder under `parent`, where `needed` bytes must be free.
    pub(super) fn create(parent: &Path, needed: u64, keep: bool) -> Result<Self, Failure> {
        let shown = parent.display();
        let parent = parent.canonicalize().map_err(io_failure(&format!("{shown}")))?;
        let disk = statfs(&parent).map_err(|error| Failure(format!("{shown}: {error}")))?;
        // The types of these differ between platforms.
        let free = (disk.blocks_available() as u64).saturating_mul(disk.block_size() as u64);
        if free < needed + SPARE_BYTES {
            return Err(Failure(format!(
                "{shown} has {} free, of which the demo needs {}: use --dir, or fewer files",
                format_bytes(free),
                format_bytes(needed + SPARE_BYTES),
            )));
        }
        let name = format!("warmfs-demo-{}-{:08x}", process::id(), fastrand::u32(..));
        let work = WorkDir {
            root: parent.join(name),
            in_memory: disk.filesystem_type() == TMPFS_MAGIC,
            keep,
        };
        let make = |dir: PathBuf| {
            let made = DirBuilder::new().mode(0o700).create(&dir);
            made.map_err(io_failure(&format!("{}", dir.display())))
        };
        make(work.root.clone())?;
        for dir in [work.copy(), work.cache(), work.mount(), work.logs()] {
            make(dir)?;
        }
        Ok(work)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What was copied.
    pub(super) fn copy(&self) -> PathBuf {
        self.root.join("copy")
    }

    /// The mount's cache.
    pub(super) fn cache(&self) -> PathBuf {
        self.root.join("cache")
    }

    /// The mount point.
    pub(super) fn mount(&self) -> PathBuf {
        self.root.join("mount")
    }

    /// What commands printed.
    pub(super) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What a reader of the figures should know of the disk.
    pub(super) fn remark(&self) -> &'static str {
        if self.in_memory {
            ",\nwhich is memory, not a disk: --dir names another place."
        } else {
            "."
        }
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if self.keep {
            complain(&format!("warmfs demo: kept {}", self.root.display()));
        } else if mounted::is_mounted(&self.mount()) {
            let mount = self.mount();
            complain(&format!("warmfs demo: {} is still mounted, and was left", mount.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.root)
            // It could not be made: that is told already.
            && error.kind() != io::ErrorKind::NotFound
        {
            complain(&format!("warmfs demo: {} cannot be removed: {error}", self.root.display()));
        }
    }
}
