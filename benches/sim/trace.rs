//! Traces: recorded ones, and datasets read in the ways of training.

#![allow(dead_code, unreachable_pub, reason = "the bench and each test use their part")]

use std::ops::Range;

use fastrand::Rng;

/// Bytes of one read at most, as the kernel's readahead asks for them.
pub const READ_BYTES: u64 = 1 << 20;

/// One thing that happens to the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Open {
        node: u64,
    },
    Read {
        node: u64,
        size: u64,
        offset: u64,
        len: u64,
    },
    /// The end of an epoch.
    Mark {
        name: String,
    },
    /// The daemon starts again.
    Restart,
}

pub fn mark(name: impl Into<String>) -> Step {
    Step::Mark { name: name.into() }
}

/// Objects with ids from `first` on.
#[derive(Clone, Debug)]
pub struct Dataset {
    pub first: u64,
    pub sizes: Vec<u64>,
}

impl Dataset {
    pub fn uniform(first: u64, objects: usize, size: u64) -> Self {
        Dataset { first, sizes: vec![size; objects] }
    }

    /// Sizes from 4 KiB to 16 MiB, small ones more often.
    pub fn mixed(first: u64, objects: usize, rng: &mut Rng) -> Self {
        let size = |rng: &mut Rng| (4096.0 * 4096f64.powf(rng.f64().powi(2))) as u64;
        Dataset { first, sizes: (0..objects).map(|_| size(rng)).collect() }
    }

    pub fn bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// A part of it.
    pub fn part(&self, range: Range<usize>) -> Self {
        Dataset { first: self.first + range.start as u64, sizes: self.sizes[range].to_vec() }
    }

    /// One pass in order.
    pub fn in_order(&self) -> Vec<Step> {
        self.pass(&(0..self.sizes.len()).collect::<Vec<_>>())
    }

    /// One pass in random order.
    pub fn shuffled(&self, rng: &mut Rng) -> Vec<Step> {
        self.pass(&self.shuffled_order(rng))
    }

    /// One pass in random order by several readers, each with an object of its
    /// own: their reads mix.
    pub fn shuffled_by(&self, readers: usize, rng: &mut Rng) -> Vec<Step> {
        let mut objects = self.shuffled_order(rng).into_iter();
        let mut reading: Vec<_> =
            objects.by_ref().take(readers).map(|object| self.visit(object).into_iter()).collect();
        let mut steps = Vec::new();
        while !reading.is_empty() {
            let at = rng.usize(..reading.len());
            if let Some(step) = reading[at].next() {
                steps.push(step);
            } else if let Some(object) = objects.next() {
                reading[at] = self.visit(object).into_iter();
            } else {
                reading.swap_remove(at);
            }
        }
        steps
    }

    /// Each object's header read `times` in a row, then all of it.
    pub fn shuffled_with_headers(&self, times: usize, rng: &mut Rng) -> Vec<Step> {
        let order = self.shuffled_order(rng);
        let visit = |object: usize| {
            let header = self.read(object, 0, 4096);
            std::iter::repeat_n(header, times).chain(self.visit(object))
        };
        order.into_iter().flat_map(visit).collect()
    }

    fn shuffled_order(&self, rng: &mut Rng) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.sizes.len()).collect();
        rng.shuffle(&mut order);
        order
    }

    fn pass(&self, order: &[usize]) -> Vec<Step> {
        order.iter().flat_map(|object| self.visit(*object)).collect()
    }

    fn visit(&self, object: usize) -> Vec<Step> {
        let open = Step::Open { node: self.first + object as u64 };
        let reads = (0..self.sizes[object])
            .step_by(READ_BYTES as usize)
            .map(|offset| self.read(object, offset, READ_BYTES));
        std::iter::once(open).chain(reads).collect()
    }

    fn read(&self, object: usize, offset: u64, len: u64) -> Step {
        let size = self.sizes[object];
        Step::Read { node: self.first + object as u64, size, offset, len: len.min(size - offset) }
    }
}

/// A trace as `warmfs mount --record-trace` writes it: its steps, and how many
/// are missing (`None`: it has no end).
///
/// # Errors
/// The line that is none of a trace.
pub fn parse(text: &str) -> Result<(Vec<Step>, Option<u64>), String> {
    let mut lines = text.lines();
    if lines.next() != Some(warmfs::fs::trace::HEADER) {
        return Err("not a trace, or of another version".to_owned());
    }
    let mut steps = Vec::new();
    for line in lines {
        let wrong = || format!("not a line of a trace: {line:?}");
        let (word, rest) = line.split_once(' ').ok_or_else(wrong)?;
        let numbers: Result<Vec<u64>, _> = rest.split(' ').map(str::parse).collect();
        match (word, numbers.map_err(|_| wrong())?.as_slice()) {
            ("open", &[_, node]) => steps.push(Step::Open { node }),
            ("read", &[_, node, size, offset, len]) => {
                steps.push(Step::Read { node, size, offset, len });
            }
            ("dropped", &[dropped]) => return Ok((steps, Some(dropped))),
            _ => return Err(wrong()),
        }
    }
    Ok((steps, None))
}
