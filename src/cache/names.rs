//! From keys to names in folders, and back.
//!
//! A key is cut at `/`. What a folder can show is decided here, once:
//!
//! | key below the folder | shown as |
//! |---|---|
//! | `name` | `name` |
//! | `name`, while `name/…` exists too | `name~object` |
//! | `name`, while `name/…` and a key or folder `name~object` exist too | hidden |
//! | `name/` with no bytes (a folder marker) | the folder `name` |
//! | `name/` with bytes | hidden |
//! | an empty component (`a//b`), `.`, `..`, NUL, over 255 bytes | hidden |
//!
//! Hidden keys are counted by their folder, never silently lost.

/// Appended to the name of an object whose own name a folder has.
pub(super) const OBJECT_SUFFIX: &str = "~object";

/// Longest name a directory entry can have, in bytes (`NAME_MAX`).
const NAME_MAX: usize = 255;

/// Whether a component of a key can be the name of a directory entry.
pub(super) fn is_showable(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && name.len() <= NAME_MAX
        && !name.contains(['/', '\0'])
}

/// The name under which an object is shown whose own name a folder has, if it fits.
pub(super) fn beside_folder(name: &str) -> Option<String> {
    let shown = format!("{name}{OBJECT_SUFFIX}");
    is_showable(&shown).then_some(shown)
}

/// The name that `shown` stands for, if it is the name of an object beside a folder.
pub(super) fn behind_suffix(shown: &str) -> Option<&str> {
    shown.strip_suffix(OBJECT_SUFFIX).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_directory_can_show_are_refused() {
        for name in ["a", "...", " ", "\n", "é", &"x".repeat(255)] {
            assert!(is_showable(name), "{name:?}");
        }
        for name in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            assert!(!is_showable(name), "{name:?}");
        }
    }

    #[test]
    fn suffix_round_trips() {
        assert_eq!(beside_folder("a").as_deref(), Some("a~object"));
        assert_eq!(behind_suffix("a~object"), Some("a"));
        assert_eq!(behind_suffix("~object"), None);
        assert_eq!(beside_folder(&"x".repeat(250)), None);
    }
}
