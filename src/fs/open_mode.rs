//! How files are opened towards the kernel, and why so. The contract of each
//! mode is in `docs/kernel.md`, and `tests/kernel_contract.rs` holds it to it.
//!
//! A mount settles its mode at its first OPEN, and keeps it: a kernel that was
//! told once that there is no OPEN sends none again. Whether files can be passed
//! through is found out while mounting, how large they are comes with listings.
//!
//! The kernel refuses to mix passthrough and cached handles of one inode, so
//! the way an inode was opened first stays until its last handle is closed.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::cache::{CachedObject, NodeId, Rollup};
use crate::config::OpenModeOption;
use crate::units::format_bytes;

/// Mean size of a dataset's files from which passthrough is chosen. It saves time
/// with each byte and costs an OPEN and a RELEASE with each file, so the mean is
/// what decides. From here on the worst that was measured is a sixth lost, and what
/// it gains is a third: `docs/kernel.md` has the figures.
pub const LARGE_FILE_BYTES: u64 = 4 << 20;

/// How a mount opens files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// OPEN and FLUSH are answered with ENOSYS once and never come again.
    Cached,
    /// Complete, verified files are read by the kernel from the backing file.
    Passthrough,
    /// Each OPEN is answered, and the page cache kept over it. Nobody's choice:
    /// what is left of passthrough where the kernel refuses it after all.
    KeepCache,
}

impl fmt::Display for OpenMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OpenMode::Cached => "cached",
            OpenMode::Passthrough => "passthrough",
            OpenMode::KeepCache => "keep-cache",
        })
    }
}

/// Why a mount passes nothing through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Before 6.9, or built without.
    Kernel,
    /// No CAP_SYS_ADMIN, as for every user but root, and for root in most containers.
    Privilege,
    /// The cache's file system lies on others, more of them than the kernel allows.
    Stacked,
    /// No file of the cache could be opened to try it with.
    Disk,
    /// For a reason that we do not know.
    Refused,
}

impl Obstacle {
    /// What an error of the kernel says of every file; `None` if it is short of
    /// something now, and may pass the next one through.
    pub fn of(error: &io::Error) -> Option<Obstacle> {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOSPC) => None,
            Some(libc::EPERM | libc::EACCES) => Some(Obstacle::Privilege),
            Some(libc::ENOSYS | libc::ENOTTY | libc::EOPNOTSUPP) => Some(Obstacle::Kernel),
            Some(libc::ELOOP) => Some(Obstacle::Stacked),
            _ => Some(Obstacle::Refused),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::Kernel => "this kernel has no passthrough",
            Obstacle::Privilege => "no privilege (CAP_SYS_ADMIN)",
            Obstacle::Stacked => "the cache lies on too many file systems",
            Obstacle::Disk => "the cache's disk cannot be read",
            Obstacle::Refused => "the kernel refuses the cache's files",
        })
    }
}

/// A mode, and why that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The mode.
    pub mode: OpenMode,
    /// Why, in a few plain words.
    pub reason: String,
}

/// The mode for an option, on a machine that passes files through unless there
/// is an obstacle, for a dataset of which this much is known.
///
/// Of the modes that could be wrong by mistake, cached is the cheaper: it loses
/// a quarter with large files, passthrough three quarters with small ones.
pub fn choose(option: OpenModeOption, obstacle: Option<Obstacle>, known: Rollup) -> Choice {
    let choice = |mode, reason: String| Choice { mode, reason };
    match (option, obstacle) {
        (OpenModeOption::Cached, _) => choice(OpenMode::Cached, "asked for".to_owned()),
        (OpenModeOption::Passthrough, None) => {
            choice(OpenMode::Passthrough, "asked for".to_owned())
        }
        (OpenModeOption::Passthrough, Some(why)) => {
            choice(OpenMode::Cached, format!("passthrough was asked for; {why}"))
        }
        (OpenModeOption::Auto, Some(why)) => choice(OpenMode::Cached, why.to_string()),
        (OpenModeOption::Auto, None) => match known.bytes.checked_div(known.objects) {
            None => choice(OpenMode::Cached, "sizes of files not known".to_owned()),
            Some(mean) if mean < LARGE_FILE_BYTES => {
                choice(OpenMode::Cached, format!("small files (mean {})", format_bytes(mean)))
            }
            Some(mean) => {
                choice(OpenMode::Passthrough, format!("large files (mean {})", format_bytes(mean)))
            }
        },
    }
}

/// The open mode of one mount.
#[derive(Debug)]
pub(super) struct MountMode {
    option: OpenModeOption,
    /// Found out while mounting, or by a refusal later.
    obstacle: OnceLock<Obstacle>,
    settled: OnceLock<Choice>,
    /// Why the last complete file was not passed through, although others are.
    short_of: Mutex<Option<String>>,
}

impl MountMode {
    pub(super) fn new(option: OpenModeOption) -> Self {
        MountMode {
            option,
            obstacle: OnceLock::new(),
            settled: OnceLock::new(),
            short_of: Mutex::new(None),
        }
    }

    /// Whether passthrough may come to be used.
    pub(super) fn may_pass_through(&self) -> bool {
        self.option != OpenModeOption::Cached && self.obstacle.get().is_none()
    }

    /// Nothing is passed through any more. `true` if that is news to the user:
    /// who asked for it, or whose mount did it until now.
    pub(super) fn stop_passing(&self, why: Obstacle) -> bool {
        let did = self.settled.get().map(|settled| settled.mode == OpenMode::Passthrough);
        let expected = did.unwrap_or(self.option == OpenModeOption::Passthrough);
        self.obstacle.set(why).is_ok() && expected
    }

    /// A complete file was passed through, or was not for this once. `true` if
    /// the one before it fared better.
    pub(super) fn passed(&self, refusal: Option<&io::Error>) -> bool {
        let mut short_of = self.short_of.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *short_of, refusal.map(ToString::to_string));
        short_of.is_some() && before.is_none()
    }

    /// An OPEN came: the mode from now on, with what is known by the first one.
    pub(super) fn settle(&self, known: impl FnOnce() -> Rollup) -> OpenMode {
        let settled =
            self.settled.get_or_init(|| choose(self.option, self.obstacle.get().copied(), known()));
        self.now(settled.mode)
    }

    fn now(&self, settled: OpenMode) -> OpenMode {
        match settled {
            OpenMode::Passthrough if self.obstacle.get().is_some() => OpenMode::KeepCache,
            mode => mode,
        }
    }

    /// The mode now, or as it would be with what is known.
    pub(super) fn mode(&self, known: impl FnOnce() -> Rollup) -> OpenMode {
        match self.settled.get() {
            Some(settled) => self.now(settled.mode),
            None => choose(self.option, self.obstacle.get().copied(), known()).mode,
        }
    }

    /// Why that mode, and what is amiss with it.
    pub(super) fn reason(&self, known: impl FnOnce() -> Rollup) -> String {
        let Some(settled) = self.settled.get() else {
            let tentative = choose(self.option, self.obstacle.get().copied(), known());
            let is_open = self.option == OpenModeOption::Auto && self.may_pass_through();
            let rest = if is_open { "; settled when a file is opened" } else { "" };
            return tentative.reason + rest;
        };
        if settled.mode != OpenMode::Passthrough {
            return settled.reason.clone();
        }
        if let Some(why) = self.obstacle.get() {
            return format!("passthrough stopped: {why}");
        }
        let short_of = self.short_of.lock().unwrap_or_else(PoisonError::into_inner);
        match &*short_of {
            Some(why) => format!("{}; not every file is passed through: {why}", settled.reason),
            None => settled.reason.clone(),
        }
    }
}

/// Objects with open handles: each holds its object in memory, and `B`, the
/// kernel's hold on a backing file, where the inode is passed through.
#[derive(Debug)]
pub(super) struct OpenNodes<B>(Mutex<HashMap<NodeId, OpenNode<B>>>);

#[derive(Debug)]
struct OpenNode<B> {
    object: Arc<CachedObject>,
    handles: u64,
    backing: Option<Arc<B>>,
}

impl<B> OpenNodes<B> {
    pub(super) fn new() -> Self {
        OpenNodes(Mutex::new(HashMap::new()))
    }

    /// One more handle of `node`. The first one decides, with `register`,
    /// whether the inode is passed through.
    pub(super) fn open(
        &self,
        node: NodeId,
        object: &Arc<CachedObject>,
        register: impl FnOnce(&CachedObject) -> Option<B>,
    ) -> Option<Arc<B>> {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let open = match nodes.entry(node) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(vacant) => {
                let backing = register(object).map(Arc::new);
                vacant.insert(OpenNode { object: object.clone(), handles: 0, backing })
            }
        };
        open.handles += 1;
        open.backing.clone()
    }

    /// One handle of `node` less.
    pub(super) fn release(&self, node: NodeId) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Occupied(mut open) = nodes.entry(node) else { return };
        open.get_mut().handles -= 1;
        if open.get().handles == 0 {
            let last = open.remove();
            drop(nodes); // The object's own drop takes locks of the store.
            drop(last);
        }
    }

    /// The object of an open node.
    pub(super) fn object(&self, node: NodeId) -> Option<Arc<CachedObject>> {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node).map(|open| open.object.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OpenModeOption::{Auto, Cached, Passthrough};

    fn known(objects: u64, bytes: u64) -> Rollup {
        Rollup { objects, bytes, ..Rollup::default() }
    }

    fn shown(option: OpenModeOption, obstacle: Option<Obstacle>, known: Rollup) -> String {
        let Choice { mode, reason } = choose(option, obstacle, known);
        format!("{mode}: {reason}")
    }

    #[test]
    fn auto_goes_by_kernel_privilege_and_size() {
        let (small, large) = (known(10, 10 * (110 << 10)), known(10, 10 * (10 << 20)));
        assert_eq!(shown(Auto, None, small), "cached: small files (mean 110 KiB)");
        assert_eq!(shown(Auto, None, large), "passthrough: large files (mean 10.0 MiB)");
        assert_eq!(shown(Auto, None, known(0, 0)), "cached: sizes of files not known");
        assert_eq!(
            shown(Auto, Some(Obstacle::Privilege), large),
            "cached: no privilege (CAP_SYS_ADMIN)"
        );
        let kernel = shown(Auto, Some(Obstacle::Kernel), small);
        assert_eq!(kernel, "cached: this kernel has no passthrough");
        for (bytes, mode) in [
            (LARGE_FILE_BYTES - 1, OpenMode::Cached),
            (LARGE_FILE_BYTES, OpenMode::Passthrough),
            (u64::MAX, OpenMode::Passthrough),
            (0, OpenMode::Cached),
        ] {
            assert_eq!(choose(Auto, None, known(1, bytes)).mode, mode, "{bytes}");
        }
    }

    #[test]
    fn what_is_asked_for_is_given_where_it_can_be() {
        let large = known(1, 1 << 30);
        assert_eq!(shown(Cached, None, large), "cached: asked for");
        assert_eq!(shown(Passthrough, None, known(9, 9)), "passthrough: asked for");
        assert_eq!(
            shown(Passthrough, Some(Obstacle::Privilege), large),
            "cached: passthrough was asked for; no privilege (CAP_SYS_ADMIN)"
        );
    }

    #[test]
    fn a_refusal_is_about_this_file_or_about_all() {
        let of = |errno| Obstacle::of(&io::Error::from_raw_os_error(errno));
        for passing in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOSPC] {
            assert_eq!(of(passing), None, "{passing}");
        }
        for (errno, obstacle) in [
            (libc::EPERM, Obstacle::Privilege),
            (libc::ENOSYS, Obstacle::Kernel),
            (libc::ENOTTY, Obstacle::Kernel),
            (libc::ELOOP, Obstacle::Stacked),
            (libc::EINVAL, Obstacle::Refused),
            (libc::EIO, Obstacle::Refused),
        ] {
            assert_eq!(of(errno), Some(obstacle), "{errno}");
        }
    }

    #[test]
    fn the_first_open_settles_the_mode() {
        let mode = MountMode::new(Auto);
        let (small, large) = (known(1, 1), known(1, 1 << 30));
        assert_eq!(mode.mode(|| large), OpenMode::Passthrough);
        assert_eq!(mode.reason(|| small), "small files (mean 1 B); settled when a file is opened");
        assert_eq!(mode.settle(|| small), OpenMode::Cached);
        assert_eq!(mode.settle(|| large), OpenMode::Cached);
        assert_eq!(mode.mode(|| large), OpenMode::Cached);
        assert_eq!(mode.reason(|| large), "small files (mean 1 B)");
        // The kernel was told that there is no OPEN: what is found out later changes nothing.
        assert!(!mode.stop_passing(Obstacle::Refused), "no news");
        assert_eq!(
            (mode.mode(|| large), mode.reason(|| large).as_str()),
            (OpenMode::Cached, "small files (mean 1 B)")
        );
    }

    #[test]
    fn passthrough_that_stops_is_told_once() {
        let mode = MountMode::new(Auto);
        let large = || known(1, 1 << 30);
        assert_eq!(mode.settle(large), OpenMode::Passthrough);
        let short = io::Error::from_raw_os_error(libc::ENFILE);
        assert!(!mode.passed(None));
        assert!(mode.passed(Some(&short)));
        assert!(!mode.passed(Some(&short)), "told before");
        assert_eq!(mode.settle(large), OpenMode::Passthrough);
        assert!(mode.reason(large).contains("not every file"), "{}", mode.reason(large));
        assert!(!mode.passed(None));
        assert_eq!(mode.reason(large), "large files (mean 1.00 GiB)");
        assert!(mode.stop_passing(Obstacle::Privilege));
        assert!(!mode.stop_passing(Obstacle::Refused), "the first one is the reason");
        assert_eq!(mode.settle(large), OpenMode::KeepCache);
        assert_eq!(mode.reason(large), "passthrough stopped: no privilege (CAP_SYS_ADMIN)");
    }
}
