//! Named places in the store's life at which a crash test ends the process.
//!
//! Only in builds with debug assertions, which is what `./check` runs: a
//! release build does not look at the environment and has no such places.
//! `WARMFS_KILL_POINT=chunk-written:3` ends the daemon when it comes there for
//! the third time; `tests/crash.rs` does so at each of [`NAMES`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Every place, in the order of the store's life.
pub const NAMES: &[&str] = &[
    // Opening.
    "index-damaged-aside",
    "index-schema-written",
    "orphan-found",
    // Names.
    "index-uncommitted",
    "listing-page-written",
    // Bytes.
    "file-uncreated",
    "file-created",
    "chunk-written",
    "chunk-noted",
    // A flush.
    "flush-begun",
    "flush-between-rows",
    "flush-object-written",
    "flush-uncommitted",
    "flush-committed",
    // An object that goes: replaced, or evicted.
    "remove-begun",
    "remove-rows-removed",
    "remove-file-removed",
    "leftover-discarded",
    // Closing.
    "close-begun",
    "close-settled",
    "close-synced",
    "close-done",
    // A mount that its daemon made, and nobody heard of.
    "mount-made",
];

const VARIABLE: &str = "WARMFS_KILL_POINT";
const BOOT_VARIABLE: &str = "WARMFS_TEST_BOOT_ID";

/// What the environment asked for.
#[derive(Debug)]
struct Wanted {
    name: String,
    /// How often the place is still to be passed.
    left: AtomicU64,
}

/// Ends this process, as the kernel does when memory runs out, if the
/// environment asked for that here.
pub fn reach(name: &'static str) {
    if !cfg!(debug_assertions) {
        return;
    }
    debug_assert!(NAMES.contains(&name), "kill point {name} is not in the list");
    static WANTED: OnceLock<Option<Wanted>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| Wanted::parse(&std::env::var(VARIABLE).ok()?));
    if wanted.as_ref().is_some_and(|wanted| wanted.is_now(name)) {
        // For the test: whoever started this process may start another one at once.
        tracing::warn!("killed at {name}");
        // Fails only for a process that is not there.
        let _ = kill(Pid::this(), Signal::SIGKILL);
        loop {
            std::thread::park();
        }
    }
}

/// Another boot of the machine, where a test pretends that there was one.
pub(super) fn pretended_boot() -> Option<u128> {
    if !cfg!(debug_assertions) {
        return None;
    }
    std::env::var(BOOT_VARIABLE).ok()?.parse().ok()
}

impl Wanted {
    /// `NAME` or `NAME:COUNT`.
    fn parse(text: &str) -> Option<Self> {
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        if name.is_empty() {
            return None;
        }
        assert!(NAMES.contains(&name), "{VARIABLE}: there is no kill point {name:?}");
        let count = count.parse().expect("the count of a kill point is a number");
        Some(Wanted { name: name.to_owned(), left: AtomicU64::new(count) })
    }

    /// Whether this pass through `name` is the one that was asked for.
    fn is_now(&self, name: &str) -> bool {
        self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_counted_by_name() {
        assert!(Wanted::parse("").is_none());
        let wanted = Wanted::parse("chunk-written:2").unwrap();
        let passes = ["chunk-written", "file-created", "chunk-written", "chunk-written"];
        assert_eq!(passes.map(|name| wanted.is_now(name)), [false, false, true, false]);
        assert!(Wanted::parse("close-done").unwrap().is_now("close-done"));
    }

    #[test]
    fn names_are_unique() {
        let unique: std::collections::BTreeSet<_> = NAMES.iter().collect();
        assert_eq!(unique.len(), NAMES.len());
    }
}
