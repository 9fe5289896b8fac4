//! A figure, what it must be, and its line.

use std::fmt;

use crate::rig::stats::{Samples, number};

/// What a figure must be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: it is for scale.
    Stated,
}

pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) target: Target,
    pub(crate) samples: Samples,
    pub(crate) unit: &'static str,
}

impl Figure {
    pub(crate) fn new(
        name: impl Into<String>,
        target: Target,
        samples: Samples,
        unit: &'static str,
    ) -> Figure {
        Figure { name: name.into(), target, samples, unit }
    }

    pub(crate) fn header() -> String {
        format!("{:<58} {:>10}  {}", "figure", "target", "result")
    }

    /// What was not measured has not met its target.
    pub(crate) fn is_met(&self) -> bool {
        let median = self.samples.median();
        match self.target {
            Target::AtLeast(target) => median >= target,
            Target::AtMost(target) => median <= target,
            Target::Stated => true,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match self.target {
            Target::AtLeast(target) => format!(">= {}", number(target)),
            Target::AtMost(target) => format!("<= {}", number(target)),
            Target::Stated => String::new(),
        };
        let verdict = if self.is_met() { "" } else { "  MISSED" };
        let (name, result, unit) = (&self.name, self.samples.text(), self.unit);
        write!(f, "{name:<58} {target:>10}  {result} {unit}{verdict}")
    }
}
