//! The order of the coming epoch, told by who reads: what is in it is fetched in the
//! order of use, and where it does not fit the cache, what is needed last gives way.
//!
//! A mount has one order at a time, and one task that goes along it, the first time an
//! order is told. It hears of each object that is read, over a bounded channel into
//! which no reader waits. What comes next and what goes is the word of [`sequence`],
//! which is pure; how much at once, that of [`super::warm`]'s pace.

mod run;
mod sequence;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use self::sequence::Turn;
use super::standing::Memo;
use super::{CacheError, Child, NodeId, NodeKind, Tree};

/// Reads that wait to be heard of; more are not, and count as passed later.
const HEARD_MAX: usize = 4_096;

/// Parts of an order that wait: who tells more waits.
const TOLD_MAX: usize = 4;

/// An order that nothing is told or read of for so long is over: what is read then may
/// be warmed as without one.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// Turns of an order: with 60 bytes each, a quarter of a GiB.
const TURNS_MAX: u64 = 4 << 20;

/// A mount's ear for its order, and for what is read of it.
#[derive(Debug)]
pub(super) struct Hinter {
    told: mpsc::Sender<Told>,
    heard: mpsc::Sender<NodeId>,
    /// The order that is gone along, and how many turns of it were told.
    current: Mutex<(Arc<str>, u64)>,
    /// When something was told or heard last.
    active: Arc<Mutex<Instant>>,
}

/// A part of an order.
#[derive(Debug)]
struct Told {
    /// A new order: the one before is over.
    is_new: bool,
    turns: Vec<Turn>,
}

/// What came of an order that was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hinted {
    /// Paths that are no files of the mount. They are left out.
    pub unknown: u64,
    /// One of them.
    pub first_unknown: Option<String>,
}

/// Why a part of an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HintError {
    /// What comes before it was not told.
    #[error("the order goes on at {expected}, not at {told}")]
    Gap {
        /// Where it goes on.
        expected: u64,
        /// What was told.
        told: u64,
    },
    /// More than is kept.
    #[error("an order has {TURNS_MAX} turns at most")]
    TooLong,
    /// The names cannot be looked up.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Tree {
    /// Goes along `order` from now on, of which `paths` (relative to the mount) are the
    /// turns from `first` on. Another `order` than before takes its place.
    ///
    /// # Errors
    /// If it does not go on where it was, and if the remote cannot say what is there.
    pub async fn hint(
        &self,
        order: &str,
        first: u64,
        paths: &[String],
    ) -> Result<Hinted, HintError> {
        let mut hinted = Hinted::default();
        let mut turns = Vec::with_capacity(paths.len());
        let mut folders = HashMap::new();
        for path in paths {
            match self.turn(path, &mut folders).await? {
                Some(turn) => turns.push(turn),
                None => {
                    hinted.unknown += 1;
                    hinted.first_unknown.get_or_insert_with(|| path.clone());
                }
            }
        }
        let hinter = self.hinter();
        // First, so that what is noted as told is told: who tells may go away meanwhile.
        let Ok(place) = hinter.told.reserve().await else { return Ok(hinted) };
        {
            let mut current = lock(&hinter.current);
            let is_new = *current.0 != *order;
            let expected = if is_new { 0 } else { current.1 };
            if first != expected {
                return Err(HintError::Gap { expected, told: first });
            }
            let end = first + paths.len() as u64;
            if end > TURNS_MAX {
                return Err(HintError::TooLong);
            }
            *current = (order.into(), end);
            place.send(Told { is_new, turns });
        }
        Ok(hinted)
    }

    /// An object was read, or opened where no read will be heard of.
    pub(super) fn hear(&self, node: NodeId) {
        if let Some(hinter) = self.hinter.get() {
            let _ = hinter.heard.try_send(node);
        }
    }

    /// Whether somebody goes along an order.
    pub(super) fn is_hinted(&self) -> bool {
        self.hinter.get().is_some_and(|hinter| lock(&hinter.active).elapsed() < IDLE_LIMIT)
    }

    /// Whether a pin keeps an object.
    fn is_pinned(&self, node: NodeId) -> Result<bool, CacheError> {
        let standing = self.store.places().standing(&self.index, node, &mut Memo::default())?;
        Ok(standing.pinned)
    }

    fn hinter(&self) -> &Hinter {
        self.hinter.get_or_init(|| {
            let (told, orders) = mpsc::channel(TOLD_MAX);
            let (heard, reads) = mpsc::channel(HEARD_MAX);
            let active = Arc::new(Mutex::new(Instant::now()));
            let run = run::Run::new(self.me.clone(), active.clone());
            self.runtime.spawn(run.run(orders, reads, self.ended.subscribe()));
            Hinter { told, heard, current: Mutex::new((Arc::from(""), 0)), active }
        })
    }

    /// The object at a path. Its folder is listed once, not asked about name by name.
    async fn turn<'a>(
        &self,
        path: &'a str,
        folders: &mut HashMap<&'a str, Option<NodeId>>,
    ) -> Result<Option<Turn>, CacheError> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let folder = match folders.get(folder) {
            Some(known) => *known,
            None => {
                let found = self.resolve(folder).await?;
                let found = found.filter(|node| matches!(node.kind, NodeKind::Folder { .. }));
                if let Some(node) = &found {
                    self.ensure_listed(node.id).await?;
                }
                *folders.entry(folder).or_insert(found.map(|node| node.id))
            }
        };
        let Some(folder) = folder else { return Ok(None) };
        Ok(match self.lookup(folder, name).await? {
            Child::Known(node) => match node.kind {
                NodeKind::Object(attr) => Some(Turn { node: node.id, size: attr.size }),
                NodeKind::Folder { .. } => None,
            },
            Child::Absent(_) | Child::Unknown => None,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
