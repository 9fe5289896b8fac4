//! Names that somebody was told are not there, and believes so for as long as it was
//! told: if one comes before its time, after a refresh, they hear of that.
//!
//! Only these: of all that a listing finds the kernel need not be told, nor would it
//! get to hear the rest of what changed.

use std::num::NonZeroUsize;
use std::sync::Mutex;

use lru::LruCache;

use super::lock;
use super::record::NodeId;

/// Names remembered, the last ones that were asked for: about 1 MB. Who asked for more
/// believes the others to be absent until the TTL is over.
const NAMES_MAX: NonZeroUsize = NonZeroUsize::new(8192).unwrap();

/// The names, each with the folder that it is not in.
#[derive(Debug)]
pub(super) struct Absences(Mutex<LruCache<(NodeId, String), ()>>);

impl Absences {
    pub(super) fn new() -> Self {
        // Grows as it is used.
        let mut names = LruCache::unbounded();
        names.resize(NAMES_MAX);
        Absences(Mutex::new(names))
    }

    /// Somebody is told that the folder has no such name. Look again after this: what
    /// came before is in the index by then, and what comes later finds the name here.
    pub(super) fn note(&self, folder: NodeId, name: &str) {
        lock(&self.0).push((folder, name.to_owned()), ());
    }

    /// Of names that came, those that somebody was told are not there.
    pub(super) fn take(&self, came: Vec<(NodeId, String)>) -> Vec<(NodeId, String)> {
        let mut names = lock(&self.0);
        match names.is_empty() {
            true => Vec::new(),
            false => came.into_iter().filter(|name| names.pop(name).is_some()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_came_is_told_once_to_who_asked_for_it() {
        let absences = Absences::new();
        let name = |folder: u64, name: &str| (NodeId(folder), name.to_owned());
        assert_eq!(absences.take(vec![name(1, "a")]), []);
        absences.note(NodeId(1), "a");
        absences.note(NodeId(2), "b");
        let came = || vec![name(1, "a"), name(1, "b"), name(2, "a")];
        assert_eq!(absences.take(came()), [name(1, "a")]);
        assert_eq!(absences.take(came()), []);
        for n in 0..NAMES_MAX.get() {
            absences.note(NodeId(3), &n.to_string());
        }
        assert_eq!(absences.take(vec![name(2, "b")]), [], "bounded");
    }
}
