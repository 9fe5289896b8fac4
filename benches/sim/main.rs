//! Replays traces through eviction policies: `cargo bench --bench sim [-- FILE]`.
//!
//! Without a file the synthetic ones of `scenarios.rs`; with one, what
//! `warmfs mount --record-trace FILE` wrote, at several sizes of the cache.

mod model;
mod scenarios;
mod trace;

use model::{Epoch, Policy, replay};

const POLICIES: [Policy; 3] = [Policy::Lru, Policy::Keep, Policy::Epochs];

fn main() {
    show_synthetic();
}

fn show_synthetic() {
    println!("hit rate per epoch from the second on; then churn: % of the budget written in the last epoch");
    for scenario in scenarios::all() {
        println!("{} (bound {:.3})", scenario.name, scenario.bound);
        for policy in POLICIES {
            let epochs = replay(policy, scenario.budget, &scenario.steps);
            println!("{}", line(policy, scenario.budget, &epochs));
        }
    }
}

fn line(policy: Policy, budget: u64, epochs: &[Epoch]) -> String {
    let rates: Vec<String> =
        epochs.iter().skip(1).map(|epoch| format!("{}:{:.3}", epoch.name, epoch.hit_rate())).collect();
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
