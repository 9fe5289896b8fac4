//! Every figure that has a unit of time, over real mounts of the real binary:
//! `./check --bench`. Prints target and result, medians of [`ROUNDS`]; ratios are
//! of neighbours in one run. Exits with 1 if a target is missed. `--quick` tries
//! it with one round and a tenth of the data, `--only TEXT` takes the groups whose
//! name has TEXT in it.
//!
//! The store is nginx (`benches/rig/store.rs`) in processes of its own; store,
//! readers and daemon share the machine's cores.

#[path = "../../tests/common/mod.rs"]
mod common;
mod cost;
mod figure;
mod race;
#[path = "../rig/mod.rs"]
mod rig;
mod stage;
mod trouble;
mod warm;

use std::process::ExitCode;

use figure::Figure;
use rig::Failure;
use rig::work::machine;
use stage::Stage;

/// Odd, so that a median is one of them.
const ROUNDS: usize = 5;

/// Figures that are measured together.
type Group = (&'static str, fn(&Stage) -> Result<Vec<Figure>, Failure>);

const GROUPS: [Group; 14] = [
    ("large loopback", race::large_on_loopback),
    ("small loopback", race::small_on_loopback),
    ("small cloud", race::small_in_the_cloud),
    ("one cloud", race::one_in_the_cloud),
    ("first byte", cost::first_byte),
    ("header", cost::header),
    ("random", cost::random),
    ("readers", cost::sweep),
    ("tls", cost::tls),
    ("throttled", trouble::throttled),
    ("stalled, warming", trouble::tails),
    ("cgroup", trouble::cgroup),
    ("warm, cached", warm::cached),
    ("warm, passthrough", warm::passthrough),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (rounds, quick, only) = match &args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (ROUNDS, false, ""),
        ["--quick"] => (1, true, ""),
        ["--only", only] => (ROUNDS, false, *only),
        ["--quick", "--only", only] => (1, true, *only),
        _ => {
            eprintln!("cargo bench --bench mounted -- [--quick] [--only TEXT]");
            return ExitCode::FAILURE;
        }
    };
    match Stage::set(rounds, quick).map(|stage| measure(&stage, only)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(missed) => {
            println!("{missed} missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and prints; gives how many targets were missed.
fn measure(stage: &Stage, only: &str) -> usize {
    println!("{}, median of {} (min..max)", machine(), stage.rounds);
    println!("{}", Figure::header());
    let mut missed = 0;
    for (name, group) in GROUPS.iter().filter(|(name, _)| name.contains(only)) {
        match rig::guarded(|| group(stage)) {
            Ok(figures) => {
                for figure in figures {
                    println!("{figure}");
                    missed += usize::from(!figure.is_met());
                }
            }
            Err(failure) => {
                println!("{name}: FAILED: {failure}");
                missed += 1;
            }
        }
    }
    missed
}
