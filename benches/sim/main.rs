//! Replays traces through eviction policies: `cargo bench --bench sim [-- FILE]`.
//!
//! Without a file the synthetic ones of `scenarios.rs`; with one, what
//! `warmfs mount --record-trace FILE` wrote, at several sizes of the cache.

mod model;
mod scenarios;
mod trace;

use std::collections::HashMap;

use model::{Epoch, Policy, replay};
use trace::Step;

const POLICIES: [Policy; 3] = [Policy::Lru, Policy::Keep, Policy::Epochs];

fn main() {
    // `cargo bench` adds an option of its own.
    let file = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let Some(file) = file else { return show_synthetic() };
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    match trace::parse(&text) {
        Ok((steps, dropped)) => show_recorded(steps, dropped),
        Err(error) => panic!("{file}: {error}"),
    }
}

/// Replays a recorded trace with caches of several parts of what it reads. A
/// trace knows nothing of epochs: it is cut into four parts of equal length.
fn show_recorded(steps: Vec<Step>, dropped: Option<u64>) {
    let missing = dropped.map_or("no end".to_owned(), |dropped| format!("{dropped} missing"));
    let sizes: HashMap<u64, u64> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Read { node, size, .. } => Some((*node, *size)),
            _ => None,
        })
        .collect();
    let bytes: u64 = sizes.values().sum();
    println!("{} accesses ({missing}), {} objects, {bytes} bytes", steps.len(), sizes.len());
    let mut marked = Vec::new();
    for (part, steps) in steps.chunks(steps.len().div_ceil(4).max(1)).enumerate() {
        marked.extend_from_slice(steps);
        marked.push(trace::mark((part + 1).to_string()));
    }
    for share in [0.25, 0.5, 0.75] {
        let budget = (bytes as f64 * share) as u64;
        println!("cache of {share} of the bytes");
        for policy in POLICIES {
            println!("{}", line(policy, budget, &replay(policy, budget, &marked)));
        }
    }
}

fn show_synthetic() {
    println!("hit rate per epoch from the second on; churn: % of the budget written in the last");
    println!("epoch; held: % of the budget, after each epoch, by what it read");
    for scenario in scenarios::all() {
        println!("{} (bound {:.3})", scenario.name, scenario.bound);
        for policy in POLICIES {
            let epochs = replay(policy, scenario.budget, &scenario.steps);
            println!("{}", line(policy, scenario.budget, &epochs));
        }
    }
}

fn line(policy: Policy, budget: u64, epochs: &[Epoch]) -> String {
    let rates: Vec<String> = epochs
        .iter()
        .skip(1)
        .map(|epoch| format!("{}:{:.3}", epoch.name, epoch.hit_rate()))
        .collect();
    let last = epochs.last().cloned().unwrap_or_default();
    let share = |bytes: u64| 100.0 * bytes as f64 / budget as f64;
    format!(
        "    {:<8}{}   churn {:.1}  held {}",
        format!("{policy:?}"),
        rates.join(" "),
        share(last.admitted_bytes),
        epochs.iter().map(|e| format!("{:.0}", share(e.held_bytes))).collect::<Vec<_>>().join(" "),
    )
}
