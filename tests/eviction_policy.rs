//! The eviction policy against its targets, in the simulator of `benches/sim`,
//! and its own rules one by one.

#[path = "../benches/sim/model.rs"]
mod model;
#[path = "../benches/sim/scenarios.rs"]
mod scenarios;
#[path = "../benches/sim/trace.rs"]
mod trace;

use model::{Epoch, Model, Policy, replay};
use proptest::prelude::*;
use scenarios::{PASSES, SHAPES, Scenario, Shape};
use trace::Step;
use warmfs::cache::{NodeId, evict::Recency};

fn under(policy: Policy, scenario: &Scenario) -> Vec<Epoch> {
    replay(policy, scenario.budget, &scenario.steps)
}

fn assert_hits(scenario: &Scenario, epochs: &[Epoch], least: f64) {
    for epoch in epochs {
        let rate = epoch.hit_rate();
        assert!(rate >= least, "{}: {rate:.3} in epoch {}", scenario.name, epoch.name);
    }
}

#[test]
fn a_dataset_of_twice_the_budget_hits_half() {
    for shape in [Shape::Small, Shape::Large, Shape::Mixed] {
        for pass in PASSES {
            let scenario = scenarios::steady(shape, pass);
            let epochs = under(Policy::Epochs, &scenario);
            assert_hits(&scenario, &epochs[1..], 0.475);
            for epoch in &epochs[1..] {
                let churn = epoch.admitted_bytes as f64 / scenario.budget as f64;
                assert!(churn <= 0.05, "{}: {churn:.3}", scenario.name);
            }
        }
    }
}

#[test]
fn a_few_huge_objects_hit_nearly_half() {
    for pass in PASSES {
        let scenario = scenarios::steady(Shape::Huge, pass);
        assert_hits(&scenario, &under(Policy::Epochs, &scenario)[1..], 0.4);
    }
}

#[test]
fn lru_is_what_it_is_said_to_be() {
    let fixed = scenarios::steady(Shape::Small, PASSES[0]);
    assert!(under(Policy::Lru, &fixed)[1..].iter().all(|epoch| epoch.hit_bytes == 0));
    let shuffled = scenarios::steady(Shape::Small, PASSES[1]);
    for epoch in &under(Policy::Lru, &shuffled)[1..] {
        assert!((epoch.hit_rate() - 0.153).abs() < 0.02, "{}", epoch.hit_rate());
    }
}

#[test]
fn a_new_dataset_owns_the_budget_after_two_epochs() {
    for shape in [Shape::Small, Shape::Mixed, Shape::Large] {
        for pass in [PASSES[0], PASSES[1]] {
            for part in [0.5, 1.0, 2.0] {
                for restart in [false, true] {
                    let scenario = scenarios::switched(shape, pass, part, restart);
                    let epochs = under(Policy::Epochs, &scenario);
                    let [.., second, _] = epochs.as_slice() else { panic!("too few epochs") };
                    let whole = scenario.budget.min(second.read_bytes);
                    let held = second.held_bytes as f64 / whole as f64;
                    assert!(held >= 0.95, "{}: {held:.3}", scenario.name);
                }
            }
        }
    }
}

#[test]
fn what_is_read_more_often_is_kept() {
    for shape in [Shape::Small, Shape::Large, Shape::Mixed] {
        for make in [
            scenarios::train_and_validation,
            scenarios::frequent_validation,
            scenarios::hot_subset,
            scenarios::growing,
        ] {
            let scenario = make(shape);
            let ours = under(Policy::Epochs, &scenario);
            let lru = under(Policy::Lru, &scenario);
            let mean = |epochs: &[Epoch]| {
                epochs[1..].iter().map(Epoch::hit_rate).sum::<f64>() / (epochs.len() - 1) as f64
            };
            let (ours, lru) = (mean(&ours), mean(&lru));
            // Where some objects are read much more often LRU is as good, give or take.
            assert!(ours >= lru - 0.01, "{}: {ours:.3}, LRU {lru:.3}", scenario.name);
            assert!(ours >= 0.95 * scenario.bound, "{}: {ours:.3}", scenario.name);
        }
    }
}

#[test]
fn nothing_streams_while_there_is_room() {
    for shape in SHAPES {
        let scenario = scenarios::steady(shape, PASSES[1]);
        let first = &under(Policy::Epochs, &scenario)[0];
        assert!(first.evicted_bytes == 0, "{}", scenario.name);
        assert!(first.admitted_bytes as f64 > 0.99 * scenario.budget as f64, "{}", scenario.name);
    }
}

/// Ten objects of 100 bytes, read in order; those below `held` are held.
fn read_in_order(recency: &mut Recency, held: u64) {
    for node in 0..10 {
        recency.touch(NodeId(node), 100);
        recency.set_held(NodeId(node), node < held);
    }
}

#[test]
fn nothing_is_dead_before_anything_is_read_again() {
    let mut recency = Recency::new(500);
    read_in_order(&mut recency, 5);
    assert_eq!(recency.dead_age(), None);
    assert_eq!(recency.victim(false, |_| false), None);
    assert!(!recency.untouched_is_dead());
    assert_eq!(recency.victim(true, |_| false), Some(NodeId(0)));
    assert_eq!(recency.victim(true, |node| node == NodeId(0)), Some(NodeId(1)));
}

/// As [`read_in_order`], of objects that are large beside one read.
#[test]
fn what_came_before_its_reader_teaches_nothing_and_is_not_dead() {
    let mut recency = Recency::new(100 << 20);
    let objects = || (0..200).map(NodeId);
    objects().for_each(|node| recency.set_held(node, true));
    // Far apart in bytes read, and each for the first time.
    objects().for_each(|node| recency.touch(node, 10 << 20));
    assert_eq!(recency.dead_age(), None);
    assert_eq!(recency.victim(false, |_| false), None);
    assert!(!recency.untouched_is_dead());
    // The second time is one.
    objects().for_each(|node| recency.touch(node, 10 << 20));
    assert!(recency.dead_age().is_some());
    assert_eq!(recency.victim(false, |_| false), None);
}

fn large_epoch(recency: &mut Recency, first: u64) {
    for node in first..first + 40 {
        recency.touch(NodeId(node), 100);
    }
}

#[test]
fn what_is_no_longer_read_goes_in_the_second_epoch_of_what_is() {
    let mut recency = Recency::new(1_000);
    for node in 1_000..1_010 {
        recency.touch(NodeId(node), 100);
        recency.set_held(NodeId(node), true);
    }
    large_epoch(&mut recency, 0);
    assert_eq!(recency.victim(false, |_| false), None);
    large_epoch(&mut recency, 0);
    assert_eq!(recency.victim(false, |_| false), Some(NodeId(1_000)));
    recency.set_held(NodeId(1_000), false);
    assert_eq!(recency.victim(false, |node| node == NodeId(1_001)), Some(NodeId(1_002)));
    assert!(recency.untouched_is_dead());
    assert!(recency.was_touched(NodeId(5)) && !recency.was_touched(NodeId(77)));
}

#[test]
fn reads_of_one_visit_teach_nothing() {
    let mut recency = Recency::new(1 << 20);
    for _ in 0..1_000 {
        recency.touch(NodeId(1), 1_000);
        recency.touch(NodeId(2), 1_000);
    }
    assert_eq!(recency.dead_age(), None);
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        20 => (0..40u64, 0..2_000_000u64, 0..3_000_000u64).prop_map(|(node, offset, len)| {
            // A node is one version: its size does not change.
            Step::Read { node, size: node * 60_000, offset, len }
        }),
        3 => (0..50u64).prop_map(|node| Step::Open { node }),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 0..800)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The model itself asserts that a victim is held and not in use.
    #[test]
    fn the_budget_is_never_passed(steps in steps(), budget in 0..20_000_000u64) {
        for policy in [Policy::Epochs, Policy::Lru, Policy::Keep] {
            let mut model = Model::new(policy, budget);
            for step in &steps {
                model.step(step);
                prop_assert!(model.used_bytes() <= budget);
            }
        }
    }
}
