//! What is replayed, and how much of it a cache could hit.

#![allow(dead_code, unreachable_pub, reason = "the bench and each test use their part")]

use fastrand::Rng;

use super::trace::{Dataset, Step, mark};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Passes over a dataset.
pub const EPOCHS: usize = 5;

/// A trace, and the cache it is for.
pub struct Scenario {
    pub name: String,
    pub budget: u64,
    pub steps: Vec<Step>,
    /// Hit rate, in each epoch from the second on, of a cache that keeps a
    /// part of what is read and gets it all back: 0 in a first epoch.
    pub bound: f64,
}

/// Sizes of the objects of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// 10,000 of 110 KiB.
    Small,
    /// 200 of 10 MiB.
    Large,
    /// 2,000 of 4 KiB to 16 MiB.
    Mixed,
    /// 20 of 5 GiB.
    Huge,
}

pub const SHAPES: [Shape; 4] = [Shape::Small, Shape::Large, Shape::Mixed, Shape::Huge];

impl Shape {
    /// A dataset of `part` of the usual size.
    pub fn dataset(self, first: u64, part: f64, rng: &mut Rng) -> Dataset {
        let objects = |count: f64| (count * part).round() as usize;
        match self {
            Shape::Small => Dataset::uniform(first, objects(10_000.0), 110 * KIB),
            Shape::Large => Dataset::uniform(first, objects(200.0), 10 * MIB),
            Shape::Mixed => Dataset::mixed(first, objects(2_000.0), rng),
            Shape::Huge => Dataset::uniform(first, objects(20.0), 5 * GIB),
        }
    }
}

/// One pass over a dataset.
pub type Pass = fn(&Dataset, &mut Rng) -> Vec<Step>;

pub const PASSES: [(&str, Pass); 4] = [
    ("fixed order", |set, _| set.in_order()),
    ("shuffled", |set, rng| set.shuffled(rng)),
    ("8 readers", |set, rng| set.shuffled_by(8, rng)),
    ("headers", |set, rng| set.shuffled_with_headers(3, rng)),
];

/// One dataset of twice the budget, again and again.
pub fn steady(shape: Shape, (name, pass): (&str, Pass)) -> Scenario {
    let rng = &mut Rng::with_seed(1);
    let set = shape.dataset(1, 1.0, rng);
    let mut steps = Vec::new();
    for epoch in 1..=EPOCHS {
        steps.extend(pass(&set, rng));
        steps.push(mark(epoch.to_string()));
    }
    Scenario { name: format!("{shape:?} {name}"), budget: set.bytes() / 2, steps, bound: 0.5 }
}

/// Three epochs of a dataset of twice the budget, then three of another one of
/// `part` of its size, with a restart between them or not.
pub fn switched(shape: Shape, (name, pass): (&str, Pass), part: f64, restart: bool) -> Scenario {
    let rng = &mut Rng::with_seed(2);
    let before = shape.dataset(1, 1.0, rng);
    let after = shape.dataset(1_000_000, part, rng);
    let budget = before.bytes() / 2;
    let mut steps = Vec::new();
    for (set, letter) in [(&before, 'a'), (&after, 'b')] {
        for epoch in 1..=3 {
            steps.extend(pass(set, rng));
            steps.push(mark(format!("{letter}{epoch}")));
        }
        if restart && letter == 'a' {
            steps.push(Step::Restart);
        }
    }
    let how = if restart { ", restart" } else { "" };
    let name = format!("{shape:?} {name}, then x{part}{how}");
    Scenario { name, budget, steps, bound: (budget as f64 / after.bytes() as f64).min(1.0) }
}

/// Training and validation by turns, together twice the budget.
pub fn train_and_validation(shape: Shape) -> Scenario {
    let rng = &mut Rng::with_seed(3);
    let train = shape.dataset(1, 1.0, rng);
    let validation = shape.dataset(1_000_000, 0.1, rng);
    let mut steps = Vec::new();
    for epoch in 1..=EPOCHS {
        steps.extend(train.shuffled(rng));
        steps.extend(validation.in_order());
        steps.push(mark(epoch.to_string()));
    }
    let budget = (train.bytes() + validation.bytes()) / 2;
    Scenario { name: format!("{shape:?} train + validation"), budget, steps, bound: 0.5 }
}

/// Validation four times an epoch: it is worth more than a part of training.
pub fn frequent_validation(shape: Shape) -> Scenario {
    let rng = &mut Rng::with_seed(4);
    let train = shape.dataset(1, 1.0, rng);
    let validation = shape.dataset(1_000_000, 0.1, rng);
    let mut steps = Vec::new();
    for epoch in 1..=EPOCHS {
        let pass = train.shuffled(rng);
        for quarter in pass.chunks(pass.len().div_ceil(4)) {
            steps.extend_from_slice(quarter);
            steps.extend(validation.in_order());
        }
        steps.push(mark(epoch.to_string()));
    }
    let budget = (train.bytes() + validation.bytes()) / 2;
    let (t, v, b) = (train.bytes() as f64, validation.bytes() as f64, budget as f64);
    let bound = (b - v + 4.0 * v) / (t + 4.0 * v);
    Scenario { name: format!("{shape:?} validation x4"), budget, steps, bound }
}

/// Nine reads of ten go to a tenth of the objects, at random.
pub fn hot_subset(shape: Shape) -> Scenario {
    let rng = &mut Rng::with_seed(5);
    let set = shape.dataset(1, 1.0, rng);
    let hot = set.sizes.len() / 10;
    let mut steps = Vec::new();
    for epoch in 1..=EPOCHS {
        for _ in 0..set.sizes.len() {
            let object =
                if rng.u8(..10) < 9 { rng.usize(..hot) } else { rng.usize(hot..set.sizes.len()) };
            steps.extend(set.part(object..object + 1).in_order());
        }
        steps.push(mark(epoch.to_string()));
    }
    let hot_bytes = set.part(0..hot).bytes() as f64;
    let (all, budget) = (set.bytes() as f64, set.bytes() / 4);
    let bound = 0.9 + 0.1 * (budget as f64 - hot_bytes) / (all - hot_bytes);
    Scenario { name: format!("{shape:?} hot subset"), budget, steps, bound }
}

/// A tenth more objects in each epoch.
pub fn growing(shape: Shape) -> Scenario {
    let rng = &mut Rng::with_seed(6);
    let set = shape.dataset(1, 1.4, rng);
    let start = (set.sizes.len() as f64 / 1.4) as usize;
    let mut steps = Vec::new();
    for epoch in 1..=EPOCHS {
        let len = (start + start / 10 * (epoch - 1)).min(set.sizes.len());
        steps.extend(set.part(0..len).shuffled(rng));
        steps.push(mark(epoch.to_string()));
    }
    let budget = set.part(0..start).bytes() / 2;
    let bound = budget as f64 / set.bytes() as f64;
    Scenario { name: format!("{shape:?} growing"), budget, steps, bound }
}

/// Everything that the bench shows.
pub fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    for shape in SHAPES {
        all.extend(PASSES.map(|pass| steady(shape, pass)));
        for pass in [PASSES[0], PASSES[1]] {
            for part in [0.1, 0.25, 1.0, 2.0] {
                all.extend([false, true].map(|restart| switched(shape, pass, part, restart)));
            }
        }
        all.extend(
            [train_and_validation, frequent_validation, hot_subset, growing]
                .map(|make| make(shape)),
        );
    }
    all
}
