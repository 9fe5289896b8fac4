//! The task that goes along an order.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};

use super::super::budget::Excess;
use super::super::object::Fill;
use super::super::store::Readers;
use super::super::warm::Pace;
use super::sequence::{Sequence, Turn};
use super::{CacheError, NodeId, Told, Tree, lock};
use crate::remote::RemoteError;

/// Reads heard of in one turn of the task.
const HEARD_AT_ONCE: usize = 256;

/// Turns looked at in one turn of the task, which others wait for: a row of the index each.
const LOOKED_AT_ONCE: usize = 256;

/// Of the cache, what may lie ahead of the readers where not all of the order fits: what
/// is fetched too early takes the place of what is read again.
const WINDOW_PART: u64 = 8;

/// And at least so much: a second of a fast line.
const WINDOW_BYTES_MIN: u64 = 64 << 20;

/// What is given up at once, since each time is a commit of the index that waits for the
/// disk: so much, or of a small cache this part.
const EVICTED_BYTES: u64 = 8 << 20;
const EVICTED_PART: u64 = 32;
const EVICTED_MAX: usize = 256;

/// How often it is looked whether it may go on.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long nothing is fetched after the remote failed.
const PAUSE: Duration = Duration::from_secs(1);

/// When the task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Once something happens.
    Wait,
    /// At once.
    GoOn,
    /// When what holds it up may have changed.
    HeldUp,
}

/// A fetch that has ended.
struct Filled {
    size: u64,
    took: Duration,
    result: Result<Fill, RemoteError>,
}

pub(super) struct Run {
    tree: Weak<Tree>,
    active: Arc<Mutex<Instant>>,
    sequence: Sequence,
    pace: Pace,
    fills: FuturesUnordered<BoxFuture<'static, Filled>>,
    filling_bytes: u64,
    /// What is given up next, once it is enough, and its bytes.
    victims: Vec<NodeId>,
    victim_bytes: u64,
    paused_until: Option<Instant>,
}

impl Run {
    pub(super) fn new(tree: Weak<Tree>, active: Arc<Mutex<Instant>>) -> Run {
        Run {
            tree,
            active,
            sequence: Sequence::default(),
            pace: Pace::new(Instant::now()),
            fills: FuturesUnordered::new(),
            filling_bytes: 0,
            victims: Vec::new(),
            victim_bytes: 0,
            paused_until: None,
        }
    }

    /// Runs until the mount ends.
    pub(super) async fn run(
        mut self,
        mut told: mpsc::Receiver<Told>,
        mut heard: mpsc::Receiver<NodeId>,
        mut ended: watch::Receiver<bool>,
    ) {
        let mut reads = Vec::with_capacity(HEARD_AT_ONCE);
        let mut next = Next::Wait;
        loop {
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return,
                part = told.recv() => match part {
                    Some(part) => self.hear(part),
                    None => return,
                },
                count = heard.recv_many(&mut reads, HEARD_AT_ONCE) => if count == 0 { return },
                Some(filled) = self.fills.next() => self.filled(filled),
                () = tokio::task::yield_now(), if next == Next::GoOn => {}
                () = tokio::time::sleep(LOOK_INTERVAL), if next == Next::HeldUp => {}
            }
            for node in reads.drain(..) {
                if self.sequence.was_read(node) {
                    *lock(&self.active) = Instant::now();
                }
            }
            let Some(tree) = self.tree.upgrade() else { return };
            next = tokio::task::block_in_place(|| self.go_on(&tree)).unwrap_or_else(|error| {
                tracing::debug!(%error, "what to fetch in order cannot be told");
                Next::HeldUp
            });
        }
    }

    fn hear(&mut self, part: Told) {
        *lock(&self.active) = Instant::now();
        if part.is_new {
            self.sequence = Sequence::default();
            self.victims.clear();
            self.victim_bytes = 0;
        }
        for turn in part.turns {
            self.sequence.push(turn);
        }
        let (turns, bytes) = (self.sequence.len(), self.sequence.bytes());
        tracing::debug!(turns, bytes, is_new = part.is_new, "the order of an epoch was told");
    }

    /// Starts what may be fetched now.
    fn go_on(&mut self, tree: &Arc<Tree>) -> Result<Next, CacheError> {
        let window_bytes = self.window_bytes(tree);
        for _ in 0..LOOKED_AT_ONCE {
            let Some(turn) = self.sequence.peek() else { return Ok(Next::Wait) };
            let is_far = self.sequence.ahead_bytes() >= window_bytes;
            if is_far || !self.pace.has_room(self.fills.len(), self.filling_bytes) {
                return Ok(Next::Wait);
            }
            if tree.store().present_bytes(turn.node) >= turn.size {
                self.sequence.advance();
                continue;
            }
            if self.is_held_up(tree) || !self.has_room(tree, turn.size)? {
                return Ok(Next::HeldUp);
            }
            self.sequence.advance();
            self.fill(tree, turn)?;
        }
        Ok(Next::GoOn)
    }

    /// How far ahead of the readers may be fetched.
    fn window_bytes(&self, tree: &Tree) -> u64 {
        let limit = tree.store().object_limit_bytes();
        match self.sequence.bytes() <= limit {
            true => u64::MAX,
            false => (limit / WINDOW_PART).max(WINDOW_BYTES_MIN.min(limit / 2)),
        }
    }

    fn is_held_up(&self, tree: &Tree) -> bool {
        self.paused_until.is_some_and(|until| Instant::now() < until)
            || !tree.remote.may_speculate(1)
            || !tree.store().keeps_up()
    }

    /// Whether there is room, or is by giving up what is needed last.
    fn has_room(&mut self, tree: &Tree, bytes: u64) -> Result<bool, CacheError> {
        let wanted = self.filling_bytes.saturating_add(bytes);
        let store = tree.store();
        // By what is no longer read, if there is any.
        if store.room_bytes() > wanted
            || store.has_room_for(Excess { bytes: wanted, files: 1 }, false)
        {
            return Ok(true);
        }
        if self.sequence.bytes() <= store.object_limit_bytes() {
            return Ok(false); // Else it would take the place of itself.
        }
        let enough = EVICTED_BYTES.min(store.object_limit_bytes() / EVICTED_PART).max(bytes);
        while self.victim_bytes < enough && self.victims.len() < EVICTED_MAX {
            let Some(node) = self.sequence.victim() else { return Ok(false) };
            let present = store.present_bytes(node);
            if present > 0 && !tree.is_pinned(node)? {
                self.victim_bytes += present;
                self.victims.push(node);
            }
        }
        let mut victims = std::mem::take(&mut self.victims);
        self.victim_bytes = 0;
        // Pinned since they were picked.
        let pinned =
            victims.iter().map(|node| tree.is_pinned(*node)).collect::<Result<Vec<_>, _>>()?;
        let mut pinned = pinned.into_iter();
        victims.retain(|_| pinned.next() == Some(false));
        let removed = store.remove(&victims, Readers::Spare)?;
        // Who reads is heard of before the file is closed.
        for node in victims.into_iter().filter(|node| store.present_bytes(*node) > 0) {
            self.sequence.spare(node);
        }
        store.metrics().evicted_objects.add(removed.objects);
        store.metrics().evicted_bytes.add(removed.bytes);
        Ok(store.room_bytes() > wanted)
    }

    fn fill(&mut self, tree: &Tree, turn: Turn) -> Result<(), CacheError> {
        let Some(node) = tree.node(turn.node)? else { return Ok(()) };
        let Some(object) = tree.open(&node)? else { return Ok(()) };
        self.filling_bytes += turn.size;
        self.fills.push(Box::pin(async move {
            let began = Instant::now();
            let result = object.fill().await;
            Filled { size: turn.size, took: began.elapsed(), result }
        }));
        Ok(())
    }

    fn filled(&mut self, Filled { size, took, result }: Filled) {
        self.filling_bytes -= size;
        match result {
            Ok(fill) => {
                if fill.asked == size {
                    self.pace.came(fill.asked, took, Instant::now());
                }
                if let Some(tree) = self.tree.upgrade() {
                    let metrics = tree.store().metrics();
                    metrics.prefetched_objects.add(u64::from(fill.asked > 0 && fill.is_whole));
                    metrics.prefetched_bytes.add(fill.asked);
                }
            }
            // Its reader tells what is wrong, and fetches it.
            Err(error) => {
                tracing::debug!(%error, "an object was not fetched in its turn");
                self.paused_until = Some(Instant::now() + PAUSE);
            }
        }
    }
}
