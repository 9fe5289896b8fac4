//! Where an epoch is in the order that was told, what comes next, and what is needed
//! last. Pure.
//!
//! Who has read an object of an epoch needs it in the next one at the earliest; that is
//! later than all that is still to come (L. A. Bélády, "A study of replacement algorithms
//! for a virtual-storage computer", 1966: what is needed last goes first). Where nothing
//! was read yet, what comes last in the order goes, and is fetched again in its turn.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use super::NodeId;

/// Reads may be so far before or behind each other: batches of several workers, which
/// each fetch a few in advance. A read from farther ahead is of somebody else.
const NEAR: usize = 2_048;

/// An object in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) node: NodeId,
    pub(super) size: u64,
}

/// The turns of an object.
#[derive(Clone, Copy, Debug)]
struct Use {
    /// The first one that was not read.
    due: usize,
    last: usize,
    /// The one that was read last.
    read: Option<usize>,
}

/// No turn.
const NEVER: usize = usize::MAX;

/// The order of one epoch, as far as it was told.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    turns: Vec<Turn>,
    /// By turn, the next one of the same object.
    again: Vec<usize>,
    uses: HashMap<NodeId, Use>,
    /// Turns that were read, as far as is known.
    position: usize,
    /// The turn that is fetched next.
    next: usize,
    /// Bytes between the two.
    ahead_bytes: u64,
    /// Objects whose last turn was read, the earliest first.
    read: VecDeque<NodeId>,
    /// Turns before this were looked at by [`Sequence::victim`], whether read or not.
    passed: usize,
    /// Turns from here on were given up.
    far: usize,
    bytes: u64,
}

impl Sequence {
    /// Turns told so far.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Bytes of all objects in it.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that were fetched, or found, and are still to be read.
    pub(super) fn ahead_bytes(&self) -> u64 {
        self.ahead_bytes
    }

    /// How far it was fetched and read, in turns.
    #[cfg(test)]
    fn progress(&self) -> (usize, usize) {
        (self.next, self.position)
    }

    /// What comes after all that was told.
    pub(super) fn push(&mut self, turn: Turn) {
        let at = self.turns.len();
        self.turns.push(turn);
        self.again.push(NEVER);
        match self.uses.entry(turn.node) {
            Entry::Vacant(entry) => {
                entry.insert(Use { due: at, last: at, read: None });
                self.bytes += turn.size;
            }
            Entry::Occupied(mut entry) => {
                let of = entry.get_mut();
                self.again[of.last] = at;
                of.last = at;
                of.due = of.due.min(at);
            }
        }
        if self.far == at {
            self.far = at + 1;
        }
    }

    /// The turn that is to be fetched next.
    pub(super) fn peek(&self) -> Option<Turn> {
        self.turns.get(self.next).copied()
    }

    /// It is fetched, or need not be.
    pub(super) fn advance(&mut self) {
        if let Some(turn) = self.turns.get(self.next) {
            self.ahead_bytes += turn.size;
            self.next += 1;
            self.far = self.far.max(self.next);
        }
    }

    /// An object was read; `false` if that says nothing of this order. A file is read
    /// many times in one turn.
    pub(super) fn was_read(&mut self, node: NodeId) -> bool {
        let Some(of) = self.uses.get_mut(&node) else { return false };
        if of.read.is_some_and(|turn| self.position < turn + NEAR) || of.due == NEVER {
            return true;
        }
        let at = of.due;
        if at > self.next + NEAR {
            return false;
        }
        (of.read, of.due) = (Some(at), self.again[at]);
        if of.due == NEVER {
            self.read.push_back(node);
        }
        while self.next <= at {
            self.advance();
        }
        while self.position <= at {
            self.ahead_bytes -= self.turns[self.position].size;
            self.position += 1;
        }
        true
    }

    /// A victim is still open. If it is not needed again it can go later.
    pub(super) fn spare(&mut self, victim: NodeId) {
        if self.uses.get(&victim).is_some_and(|of| of.due == NEVER) {
            self.read.push_back(victim);
        }
    }

    /// The object that is needed last, of those that were not given up yet. `None` if
    /// there is none but those that are needed soon.
    pub(super) fn victim(&mut self) -> Option<NodeId> {
        if let Some(node) = self.read.pop_front() {
            return Some(node);
        }
        // Reads from the kernel's page cache are not heard of.
        while self.passed + NEAR < self.position {
            let Turn { node, .. } = self.turns[self.passed];
            let is_last = self.uses.get(&node).is_some_and(|of| of.last == self.passed);
            self.passed += 1;
            if is_last {
                return Some(node);
            }
        }
        while self.far > self.next + NEAR {
            self.far -= 1;
            let Turn { node, .. } = self.turns[self.far];
            if self.uses.get(&node).is_some_and(|of| of.due == self.far) {
                return Some(node);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(nodes: impl IntoIterator<Item = u64>) -> Sequence {
        let mut sequence = Sequence::default();
        for node in nodes {
            sequence.push(Turn { node: NodeId(node), size: 10 });
        }
        sequence
    }

    fn next(sequence: &mut Sequence) -> Option<u64> {
        let turn = sequence.peek()?;
        sequence.advance();
        Some(turn.node.0)
    }

    #[test]
    fn it_is_fetched_in_order_and_known_how_far_ahead() {
        let mut order = sequence([3, 1, 2]);
        assert_eq!((order.len(), order.bytes()), (3, 30));
        assert_eq!([next(&mut order), next(&mut order)], [Some(3), Some(1)]);
        assert_eq!(order.ahead_bytes(), 20);
        order.was_read(NodeId(3));
        assert_eq!((order.ahead_bytes(), order.progress()), (10, (2, 1)));
        order.was_read(NodeId(77));
        assert_eq!([next(&mut order), next(&mut order)], [Some(2), None]);
        // What a reader had before it was fetched is not fetched any more.
        let mut order = sequence(0..10);
        order.was_read(NodeId(4));
        assert_eq!((next(&mut order), order.ahead_bytes()), (Some(5), 10));
    }

    #[test]
    fn somebody_elses_read_far_ahead_is_none_of_this_epoch() {
        let mut order = sequence(0..10_000);
        order.was_read(NodeId(9_000));
        assert_eq!(order.progress(), (0, 0));
    }

    #[test]
    fn what_was_read_goes_first_and_then_what_comes_last() {
        let mut order = sequence(0..5_000);
        for _ in 0..10 {
            next(&mut order);
        }
        for node in [1, 0, 2] {
            order.was_read(NodeId(node));
        }
        let victims: Vec<_> = (0..5).map(|_| order.victim().unwrap().0).collect();
        assert_eq!(victims, [1, 0, 2, 4_999, 4_998]);
        order.spare(NodeId(0));
        assert_eq!(order.victim(), Some(NodeId(0)), "it was open, and is asked again");
        order.spare(NodeId(4_998));
        assert_eq!(order.victim(), Some(NodeId(4_997)), "that is still to come");
        // Never what comes soon.
        let near = std::iter::from_fn(|| order.victim()).last().unwrap();
        assert_eq!(near.0, 10 + NEAR as u64);
    }

    #[test]
    fn what_is_passed_without_a_word_can_go() {
        let mut order = sequence(0..10_000);
        for _ in 0..5_000 {
            next(&mut order);
        }
        order.was_read(NodeId(4_000));
        assert_eq!(order.victim(), Some(NodeId(4_000)));
        assert_eq!(order.victim(), Some(NodeId(0)));
    }

    #[test]
    fn what_comes_again_stays_until_its_last_turn() {
        let far = NEAR as u64 + 2;
        let mut order = sequence([1].into_iter().chain(100..100 + far).chain([1, 3]));
        order.was_read(NodeId(1));
        assert_eq!(order.progress().1, 1);
        // Further reads of the same turn.
        order.was_read(NodeId(1));
        assert_eq!((order.progress().1, order.victim()), (1, Some(NodeId(3))));
        for node in 100..100 + far {
            order.was_read(NodeId(node));
        }
        assert_eq!(order.victim(), Some(NodeId(100)), "1 comes again");
        order.was_read(NodeId(1));
        assert_eq!(order.progress().1, far as usize + 2);
        assert_eq!(order.bytes(), 10 * (far + 2));
    }

    #[test]
    fn what_is_told_later_comes_later() {
        let mut order = sequence([1]);
        assert_eq!([next(&mut order), next(&mut order)], [Some(1), None]);
        order.push(Turn { node: NodeId(2), size: 10 });
        assert_eq!(next(&mut order), Some(2));
        assert_eq!(order.ahead_bytes(), 20);
    }
}
