//! Dropping the page cache, so that a warm disk is told from warm memory.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::syncfs;

/// What could be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The whole machine's page cache.
    All,
    /// The pages of the demo's own files: the kernel does not let us do more.
    OwnFiles,
}

/// Writes out what `dirs`, on one file system, hold, and drops it from memory:
/// with the `whole_machine`'s page cache, where that is wanted and permitted.
pub(super) fn drop_page_cache(dirs: &[&Path], whole_machine: bool) -> io::Result<Dropped> {
    write_out(dirs)?;
    if whole_machine && fs::write("/proc/sys/vm/drop_caches", "1").is_ok() {
        return Ok(Dropped::All);
    }
    for dir in dirs {
        drop_files(dir)?;
    }
    Ok(Dropped::OwnFiles)
}

/// Writes out what the file system of `dirs` holds: dirty pages are not
/// dropped, and would be written at the expense of what is measured next.
pub(super) fn write_out(dirs: &[&Path]) -> io::Result<()> {
    match dirs.first() {
        Some(dir) => Ok(syncfs(File::open(dir)?)?),
        None => Ok(()),
    }
}

fn drop_files(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            drop_files(&entry.path())?;
        } else if kind.is_file() {
            let file = File::open(entry.path())?;
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_can_be_dropped_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        let path = dir.path().join("sub/file");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        assert_eq!(drop_page_cache(&[dir.path()], false).unwrap(), Dropped::OwnFiles);
        assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
    }
}
