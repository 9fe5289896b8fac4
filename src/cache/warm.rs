//! Warming: objects are fetched before they are read, where reads show that they
//! will be.
//!
//! A mount has one task that hears of each object that was read through, over a
//! bounded channel into which no reader ever waits. What is to be fetched is the
//! word of [`policy`], which is pure; where it lies in the listing, that of
//! [`walk`]; how much at once, that of [`pace`]; and [`run`] fetches it, below all others in line for memory and
//! requests, and never into room that something else would have to give up.

mod pace;
mod policy;
mod run;
mod survey;
mod walk;

use std::sync::{Arc, Mutex};

use tokio::sync::mpsc;

pub(super) use self::pace::Pace;
use super::lock;
use super::metadata::Tree;
use super::object::CachedObject;
use super::record::NodeId;
use crate::config::WarmOption;

/// Reads that wait to be heard of; more are not heard of. As many as come in
/// the time of a few pages of the index.
const HEARD_MAX: usize = 1024;

/// A mount's ear for what is read, and what came of it.
#[derive(Debug)]
pub(super) struct Warmer {
    heard: mpsc::Sender<Heard>,
    state: Arc<Mutex<State>>,
}

/// An object was read through.
#[derive(Clone, Copy, Debug)]
struct Heard {
    object: NodeId,
    size: u64,
    missed: bool,
}

/// What the task does.
#[derive(Clone, Debug, Default)]
struct State {
    doing: Doing,
    scopes: Vec<NodeId>,
    objects: u64,
    bytes: u64,
    all: All,
}

/// What becomes of `--warm all`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum All {
    /// Not asked for.
    #[default]
    No,
    /// Listings are on their way.
    Listing,
    /// It fits.
    Fits,
    /// There is no room for all.
    TooLarge,
}

/// What warming does just now, or why it does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doing {
    /// `--warm off`.
    Off,
    /// Nothing is being gone through.
    #[default]
    Waiting,
    /// The folders are listed, to see whether they fit.
    Listing,
    /// It fetches.
    Fetching,
    /// As far ahead of the readers as it may.
    Ahead,
    /// Whatever was to be fetched is there.
    Done,
    /// The cache has no room that is free.
    Full,
    /// The cache keeps nothing just now.
    NotKeeping,
    /// The cache's disk is behind the network.
    DiskBehind,
    /// As much was downloaded as may be.
    Capped,
    /// The remote fails; it is tried again.
    RemoteFails,
}

/// What was fetched ahead of readers in a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warming {
    /// What it does.
    pub doing: Doing,
    /// Objects fetched ahead.
    pub objects: u64,
    /// Their bytes, as far as they were fetched ahead.
    pub bytes: u64,
    /// Objects in all folders that are being gone through.
    pub of_objects: u64,
    /// `--warm all` was asked for, and there is no room for all.
    pub all_is_too_large: bool,
}

impl Tree {
    /// Fetches ahead of its readers from now on. Once, and on a runtime with threads.
    pub fn start_warming(&self, option: WarmOption) {
        if option == WarmOption::Off || self.warmer.get().is_some() {
            return;
        }
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let state = Arc::new(Mutex::new(State::default()));
        if self.warmer.set(Warmer { heard: sender, state: state.clone() }).is_ok() {
            let run = run::Run::new(self.me.clone(), state, option == WarmOption::All);
            self.runtime.spawn(run.run(heard, self.ended.subscribe()));
        }
    }

    /// `bytes` of an object were read; `missed` if they had to be waited for.
    pub fn was_read(&self, object: &CachedObject, bytes: u64, missed: bool) {
        self.hear(object.node());
        let Some(warmer) = self.warmer.get() else { return };
        if object.size() <= policy::OBJECT_MAX_BYTES && object.is_read_through(bytes, missed) {
            let missed = object.was_missed();
            let heard = Heard { object: object.node(), size: object.size(), missed };
            // Where it is behind there is enough to fetch already.
            let _ = warmer.heard.try_send(heard);
        }
    }

    /// What is fetched ahead.
    pub fn warming(&self) -> Warming {
        let Some(warmer) = self.warmer.get() else {
            return Warming { doing: Doing::Off, ..Warming::default() };
        };
        let State { doing, scopes, objects, bytes, all } = lock(&warmer.state).clone();
        let rollups = scopes.iter().filter_map(|scope| self.rollup(*scope).ok());
        Warming {
            doing,
            objects,
            bytes,
            of_objects: rollups.map(|rollup| rollup.objects).sum(),
            all_is_too_large: all == All::TooLarge,
        }
    }
}
