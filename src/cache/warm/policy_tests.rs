//! The policy over traces. In these, ids follow each other as listings hand them
//! out: first the folders of a folder, then their objects.

use super::*;

const SMALL: u64 = 110 << 10;
const LARGE: u64 = 1 << 20;
const ROOT: NodeId = NodeId(10);

/// Replays reads, one a millisecond.
struct Trace {
    policy: Policy,
    at_ms: u64,
    missed: bool,
    listed: bool,
    started: Vec<(NodeId, bool, Order, u64)>,
    reads: u64,
}

impl Trace {
    fn new() -> Self {
        let (missed, listed) = (true, true);
        Trace { policy: Policy::new(), at_ms: 0, missed, listed, started: Vec::new(), reads: 0 }
    }

    fn read(&mut self, path: &[NodeId], object: u64, size: u64) -> Verdict {
        self.at_ms += 1;
        self.reads += 1;
        let verdict = self.policy.read(&Read {
            object: NodeId(object),
            path,
            size,
            missed: self.missed,
            listed: self.listed,
            at_ms: self.at_ms,
        });
        if let Verdict::Started { scope, below, order, .. } = &verdict {
            self.started.push((*scope, *below, *order, self.reads));
        }
        verdict
    }

    /// Reads objects of a flat folder.
    fn read_flat(&mut self, objects: impl IntoIterator<Item = u64>, size: u64) {
        for object in objects {
            self.read(&[ROOT], object, size);
        }
    }

    /// Takes all that may be fetched of a scope.
    fn fetch(&mut self, size: u64) -> u64 {
        let mut objects = 0;
        while let Some(scope) = self.policy.wanted(|_| true) {
            self.policy.fetching(scope, size);
            objects += 1;
            assert!(objects < 1_000_000, "there is no end");
        }
        objects
    }
}

fn shuffled(objects: std::ops::Range<u64>) -> Vec<u64> {
    let mut objects: Vec<u64> = objects.collect();
    fastrand::Rng::with_seed(3).shuffle(&mut objects);
    objects
}

#[test]
fn in_order_it_begins_after_the_fourth_large_or_the_eighth_small() {
    for (size, after) in [(LARGE, 4), (SMALL, 8)] {
        let mut trace = Trace::new();
        trace.read_flat(100..120, size);
        assert_eq!(trace.started, [(ROOT, false, Order::AfterReader, after)]);
    }
}

#[test]
fn shuffled_it_begins_after_eight_large_or_sixteen_small() {
    for (size, after) in [(LARGE, 8), (SMALL, 16)] {
        let mut trace = Trace::new();
        trace.read_flat(shuffled(100..100_000).into_iter().take(40), size);
        assert_eq!(trace.started, [(ROOT, false, Order::FromStart, after)]);
    }
}

#[test]
fn eight_workers_in_one_order_are_in_order() {
    let mut trace = Trace::new();
    for batch in 0..10 {
        let mut objects = shuffled(0..8);
        objects.iter_mut().for_each(|object| *object += 100 + batch * 8);
        trace.read_flat(objects, SMALL);
    }
    assert_eq!(trace.started, [(ROOT, false, Order::AfterReader, 8)]);
}

#[test]
fn eight_workers_with_a_part_each_are_shuffled() {
    let mut trace = Trace::new();
    trace.read_flat((0..80).map(|i| 1_000 + (i % 8) * 10_000 + i / 8), SMALL);
    assert_eq!(trace.started, [(ROOT, false, Order::FromStart, 16)]);
}

#[test]
fn three_by_hand_and_one_again_and_again_are_nothing() {
    let mut trace = Trace::new();
    trace.read_flat([100, 101, 102], LARGE);
    trace.read_flat([101; 100], LARGE);
    assert_eq!(trace.started, []);
}

#[test]
fn a_file_now_and_then_is_nothing() {
    let mut trace = Trace::new();
    for object in 100..200 {
        trace.at_ms += SPAN_MS;
        trace.read_flat([object], LARGE);
    }
    assert_eq!(trace.started, []);
}

#[test]
fn what_is_cached_begins_nothing() {
    let mut trace = Trace::new();
    trace.missed = false;
    trace.read_flat(100..200, LARGE);
    assert_eq!(trace.started, []);
}

#[test]
fn names_that_were_looked_up_one_by_one_have_no_order() {
    let mut trace = Trace::new();
    trace.listed = false;
    trace.read_flat(100..107, LARGE);
    assert_eq!(trace.started, []);
    trace.read_flat(107..108, LARGE);
    assert_eq!(trace.started, [(ROOT, false, Order::FromStart, 8)]);
}

#[test]
fn grep_takes_each_folder_for_the_next_after_three() {
    let mut trace = Trace::new();
    for folder in 0..20 {
        for file in 0..3 {
            trace.read(&[NodeId(100 + folder), ROOT], 1_000 + folder * 3 + file, SMALL);
        }
    }
    assert_eq!(trace.started, [(ROOT, true, Order::AfterReader, 8)]);
}

#[test]
fn classes_that_are_shuffled_are_one_dataset() {
    let mut trace = Trace::new();
    for object in shuffled(0..100_000).into_iter().take(100) {
        let class = NodeId(100 + object / 100);
        trace.read(&[class, ROOT, NodeId(1)], 10_000 + object, SMALL);
    }
    assert_eq!(trace.started, [(ROOT, true, Order::FromStart, 16)]);
}

#[test]
fn train_and_validation_are_two() {
    let (train, validation) = (NodeId(20), NodeId(21));
    let mut trace = Trace::new();
    for (a, b) in shuffled(1_000..9_000).into_iter().zip(shuffled(10_000..11_000)) {
        trace.read(&[train, ROOT], a, SMALL);
        trace.read(&[validation, ROOT], b, SMALL);
    }
    let scopes: Vec<_> = trace.started.iter().map(|started| (started.0, started.1)).collect();
    assert_eq!(scopes, [(train, false), (validation, false)]);
}

#[test]
fn folders_become_part_of_what_is_above_them() {
    let mut trace = Trace::new();
    let mut replaced = Vec::new();
    for folder in 0..4 {
        for file in 0..20 {
            let path = [NodeId(100 + folder), ROOT];
            let verdict = trace.read(&path, 1_000 + folder * 1_000 + file, SMALL);
            if let Verdict::Started { scope: ROOT, below: true, replaces, .. } = verdict {
                replaced.extend(replaces);
            }
        }
    }
    assert_eq!(replaced, [NodeId(100), NodeId(101)]);
    assert_eq!(trace.policy.scopes().collect::<Vec<_>>(), [ROOT]);
}

#[test]
fn who_stops_pays_for_no_more_than_a_part_of_what_was_read() {
    let mut trace = Trace::new();
    trace.read_flat(shuffled(0..100_000).into_iter().take(16), SMALL);
    let fetched = trace.fetch(SMALL);
    assert!((16..=START_OBJECTS + 16 * AHEAD_OF_MISS).contains(&fetched), "{fetched}");
    assert_eq!(trace.fetch(SMALL), 0);
    // Large ones count by their bytes.
    let mut trace = Trace::new();
    trace.read_flat(100..104, 32 << 20);
    assert!(trace.fetch(32 << 20) <= 4 * AHEAD_OF_MISS + 1);
}

#[test]
fn each_read_proves_more_and_a_miss_twice_as_much() {
    for (missed, each) in [(false, AHEAD_OF_HIT), (true, AHEAD_OF_MISS)] {
        let mut trace = Trace::new();
        let order = shuffled(0..100_000);
        trace.read_flat(order[..16].iter().copied(), SMALL);
        trace.fetch(SMALL);
        trace.missed = missed;
        trace.read_flat(order[16..26].iter().copied(), SMALL);
        assert_eq!(trace.fetch(SMALL), 10 * each);
    }
}

#[test]
fn a_shuffled_reader_that_seemed_in_order_gets_the_whole_folder() {
    let mut trace = Trace::new();
    trace.read_flat(500..508, SMALL);
    trace.read_flat([200], SMALL);
    let orders: Vec<_> = trace.started.iter().map(|started| started.2).collect();
    assert_eq!(orders, [Order::AfterReader, Order::FromStart]);
}

#[test]
fn what_is_fetched_is_not_fetched_again_before_much_of_it_is_gone() {
    let mut trace = Trace::new();
    let order = shuffled(0..100_000);
    trace.read_flat(order[..16].iter().copied(), SMALL);
    trace.policy.exhausted(ROOT);
    assert_eq!(trace.policy.is_done(), Some(true));
    trace.read_flat(order[16..16 + MISSES_AGAIN as usize - 1].iter().copied(), SMALL);
    assert_eq!((trace.started.len(), trace.fetch(SMALL)), (1, 0));
    trace.read_flat(order[50_000..50_001].iter().copied(), SMALL);
    assert_eq!(trace.started.len(), 2);
    assert!(trace.fetch(SMALL) > 0);
}

#[test]
fn what_is_too_large_or_empty_is_nothing() {
    let mut trace = Trace::new();
    trace.read_flat(100..150, OBJECT_MAX_BYTES + 1);
    trace.read_flat(150..200, 0);
    assert_eq!(trace.started, []);
}

#[test]
fn memory_is_bounded() {
    let mut trace = Trace::new();
    for folder in 0..10_000 {
        // Far from each other, so that nothing becomes of what is above them.
        let path = [NodeId(1_000_000 + folder * 1_000), NodeId(folder + 1)];
        for file in 0..8 {
            trace.read(&path, 100_000_000 + folder * 1_000 + file, SMALL);
        }
    }
    assert!(trace.policy.scopes.len() <= SCOPES_MAX);
    assert!(trace.policy.watched.len() <= WATCHED_MAX.get());
}
