//! Who keeps a mount busy: a bounded look through /proc.
//!
//! Reads links only, never what they lead to: a stat inside the mount would
//! be answered by this very daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the search may take. It only adorns an error message.
const SEARCH_TIME_MAX: Duration = Duration::from_millis(500);

/// Descriptors looked at per process; leaky servers have a hundred thousand.
const FDS_MAX: usize = 4_096;

/// Bytes of a process's mappings looked at.
const MAPS_BYTES_MAX: u64 = 1 << 20;

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    /// Its id.
    pub(super) pid: u32,
    /// Its short name.
    pub(super) name: String,
}

/// The first process found that uses something at or below `dir`; `None` if
/// there is none, it is hidden from us, or the search took too long.
pub(super) fn find(dir: &Path) -> Option<Holder> {
    let start = Instant::now();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        if start.elapsed() > SEARCH_TIME_MAX {
            return None;
        }
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if uses(&entry.path(), dir) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim().to_owned() });
        }
    }
    None
}

fn uses(process: &Path, dir: &Path) -> bool {
    let leads_in = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    if ["cwd", "root", "exe"].iter().any(|name| leads_in(process.join(name))) {
        return true;
    }
    let fds = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if fds.take(FDS_MAX).any(|fd| leads_in(fd.path())) {
        return true;
    }
    maps(process)
        .lines()
        .any(|line| line.find('/').is_some_and(|start| Path::new(&line[start..]).starts_with(dir)))
}

fn maps(process: &Path) -> String {
    use std::io::Read;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(process.join("maps")) {
        let _ = file.take(MAPS_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().canonicalize().unwrap();
        assert_eq!(find(&dir), None);
        let _open = fs::File::create(dir.join("file")).unwrap();
        assert_eq!(find(&dir).unwrap().pid, std::process::id());
    }
}
