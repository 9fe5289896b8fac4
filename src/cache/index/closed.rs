//! The note that the index was closed in order, and what its file looked like
//! then: `index.closed` beside it. Without it, or where the file looks
//! different now, all of it is checked before it is believed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::record::Fingerprint;

/// The note is taken away: whoever opens the index has to leave another one.
/// Returns whether it was there and is true.
pub(super) fn take(index: &Path) -> bool {
    let note = note(index);
    let text = fs::read_to_string(&note).unwrap_or_default();
    if let Err(error) = fs::remove_file(&note)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return false; // It would be believed the next time, too.
    }
    Fingerprint::of(index).is_some_and(|now| text == shown(&now))
}

/// Leaves the note. Without it the next opening takes longer, and that is all.
pub(super) fn put(index: &Path) {
    if let Some(now) = Fingerprint::of(index)
        && let Err(error) = fs::write(note(index), shown(&now))
    {
        tracing::debug!(%error, "the cache index is checked at the next start");
    }
}

fn note(index: &Path) -> PathBuf {
    index.with_extension("closed")
}

fn shown(fingerprint: &Fingerprint) -> String {
    let Fingerprint { ino, size, mtime_ns, ctime_ns } = fingerprint;
    format!("{ino} {size} {mtime_ns} {ctime_ns}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_good_once_and_for_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("index.redb");
        assert!(!take(&index));
        fs::write(&index, "rows").unwrap();
        assert!(!take(&index));
        put(&index);
        assert!(take(&index) && !take(&index));
        put(&index);
        fs::File::options().append(true).open(&index).unwrap().set_len(3).unwrap();
        assert!(!take(&index));
    }
}
