//! A cache without bytes: what it would hold, and hit, under a policy.
//!
//! As in the store, chunks are kept one by one until the budget is full; then
//! whole objects make room, and where none may, the read streams through.

#![allow(dead_code, unreachable_pub, reason = "the bench and each test use their part")]

use std::collections::HashMap;

use warmfs::cache::{CHUNK_BYTES, NodeId, evict::Recency};

use super::trace::Step;

/// How the cache makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What was read longest ago goes.
    Lru,
    /// Nothing goes.
    Keep,
    /// [`Recency`].
    Epochs,
}

/// What happened between two marks of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Epoch {
    /// Name of the mark at its end.
    pub name: String,
    pub read_bytes: u64,
    pub hit_bytes: u64,
    pub admitted_bytes: u64,
    pub evicted_bytes: u64,
    /// What is held at its end, of the objects read in it.
    pub held_bytes: u64,
}

impl Epoch {
    pub fn hit_rate(&self) -> f64 {
        self.hit_bytes as f64 / self.read_bytes.max(1) as f64
    }
}

#[derive(Default)]
struct Object {
    size: u64,
    chunks: Vec<bool>,
    held_bytes: u64,
    /// In which epoch it was read the last time.
    epoch: usize,
}

/// The model, in the middle of a trace.
pub struct Model {
    policy: Policy,
    recency: Recency,
    budget: u64,
    used: u64,
    objects: HashMap<NodeId, Object>,
    /// Held since before a restart, and not read since.
    untouched: Vec<NodeId>,
    epoch: Epoch,
    epochs: Vec<Epoch>,
}

/// Replays a trace from an empty cache.
pub fn replay(policy: Policy, budget: u64, steps: &[Step]) -> Vec<Epoch> {
    let mut model = Model::new(policy, budget);
    for step in steps {
        model.step(step);
    }
    model.epochs
}

impl Model {
    pub fn new(policy: Policy, budget: u64) -> Self {
        Model {
            policy,
            recency: Recency::new(budget),
            budget,
            used: 0,
            objects: HashMap::new(),
            untouched: Vec::new(),
            epoch: Epoch::default(),
            epochs: Vec::new(),
        }
    }

    pub fn used_bytes(&self) -> u64 {
        self.used
    }

    pub fn step(&mut self, step: &Step) {
        match step {
            Step::Open { node } => self.recency.touch(NodeId(*node), 0),
            Step::Read { node, size, offset, len } => {
                self.read(NodeId(*node), *size, *offset, *len)
            }
            Step::Mark { name } => self.end_epoch(name),
            Step::Restart => self.restart(),
        }
    }

    fn read(&mut self, node: NodeId, size: u64, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(size);
        if offset >= end {
            return;
        }
        self.recency.touch(node, end - offset);
        let epoch = self.epochs.len();
        let object = self.objects.entry(node).or_default();
        object.size = size;
        object.epoch = epoch;
        object.chunks.resize(size.div_ceil(CHUNK_BYTES) as usize, false);
        self.epoch.read_bytes += end - offset;
        for chunk in offset / CHUNK_BYTES..end.div_ceil(CHUNK_BYTES) {
            let start = chunk * CHUNK_BYTES;
            let bytes = (end.min(start + CHUNK_BYTES)) - start.max(offset);
            if self.objects[&node].chunks[chunk as usize] {
                self.epoch.hit_bytes += bytes;
            } else {
                self.admit(node, chunk as usize, (size - start).min(CHUNK_BYTES));
            }
        }
    }

    fn admit(&mut self, node: NodeId, chunk: usize, bytes: u64) {
        while self.used + bytes > self.budget {
            let Some(victim) = self.victim(node) else { return };
            assert!(
                victim != node && self.objects[&victim].held_bytes > 0,
                "{victim:?} may not go"
            );
            self.evict(victim);
        }
        self.used += bytes;
        self.epoch.admitted_bytes += bytes;
        let Some(object) = self.objects.get_mut(&node) else { return };
        object.chunks[chunk] = true;
        object.held_bytes += bytes;
        self.recency.set_held(node, true);
    }

    fn victim(&mut self, reading: NodeId) -> Option<NodeId> {
        let force = match self.policy {
            Policy::Keep => return None,
            Policy::Lru => true,
            Policy::Epochs => false,
        };
        if force || self.recency.untouched_is_dead() {
            while let Some(node) = self.untouched.pop() {
                if !self.recency.was_touched(node) {
                    return Some(node);
                }
            }
        }
        self.recency.victim(force, |node| node == reading)
    }

    fn evict(&mut self, node: NodeId) {
        let Some(object) = self.objects.get_mut(&node) else { return };
        self.used -= object.held_bytes;
        self.epoch.evicted_bytes += object.held_bytes;
        object.held_bytes = 0;
        object.chunks.fill(false);
        self.recency.set_held(node, false);
    }

    fn end_epoch(&mut self, name: &str) {
        let now = self.epochs.len();
        let read = self.objects.values().filter(|object| object.epoch == now);
        let mut epoch = std::mem::take(&mut self.epoch);
        epoch.held_bytes = read.map(|object| object.held_bytes).sum();
        epoch.name = name.to_owned();
        self.epochs.push(epoch);
    }

    /// What is held stays; what is known of it goes. A node that is held again
    /// counts as held once it is read.
    fn restart(&mut self) {
        self.recency = Recency::new(self.budget);
        let held = self.objects.iter().filter(|(_, object)| object.held_bytes > 0);
        self.untouched = held.map(|(node, _)| *node).collect();
        self.untouched.sort_unstable();
    }
}
