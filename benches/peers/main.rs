//! warmfs and its peers, side by side in one run against the same store:
//! `cargo bench --bench peers`. Installs what can be installed, prints a table,
//! and writes it into `docs/performance.md` (a whole run only). `--help` shows
//! the options.
//!
//! The store is nginx (`benches/rig/store.rs`), the readers are the same threads
//! for everybody, and rounds alternate: what else the machine does hits all alike.
//! A peer that fails is in the table with what it said.

#[path = "../../tests/common/mod.rs"]
mod common;
mod measure;
mod report;
#[path = "../rig/mod.rs"]
mod rig;

use std::process::ExitCode;

use measure::{Network, Scenario, Workload};
use report::Results;
use rig::Failure;
use rig::data::Data;
use rig::install::Tools;
use rig::peer::{Field, Peer};
use rig::store::Store;
use rig::work::Work;

const USAGE: &str = "cargo bench --bench peers -- [--rounds N] [--quick] [--only PEER,...] \
[--workload large,small,one] [--network loopback,cloud,tls]

--quick     one round with a tenth of the data, to try whether everything works
--only      warmfs, s5cmd, rclone, s3fs, mount-s3, mount-s3-cache";

/// Odd, so that a median is one of them; more take over an hour.
const ROUNDS: usize = 3;

/// What was asked for.
struct Options {
    rounds: usize,
    quick: bool,
    peers: Vec<Peer>,
    workloads: Vec<Workload>,
    networks: Vec<Network>,
}

impl Options {
    fn parse() -> Result<Options, Failure> {
        let mut options = Options {
            rounds: ROUNDS,
            quick: false,
            peers: Peer::ALL.to_vec(),
            workloads: Workload::ALL.to_vec(),
            networks: Network::ALL.to_vec(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                // Cargo adds this one.
                "--bench" => {}
                "--quick" => (options.quick, options.rounds) = (true, 1),
                "--rounds" => options.rounds = value()?.parse().map_err(|_| USAGE)?,
                "--only" => options.peers = chosen(&value()?, &Peer::ALL, Peer::option)?,
                "--workload" => {
                    options.workloads = chosen(&value()?, &Workload::ALL, Workload::option)?;
                }
                "--network" => {
                    options.networks = chosen(&value()?, &Network::ALL, Network::option)?;
                }
                _ => return Err(USAGE.to_owned()),
            }
        }
        Ok(options)
    }

    /// Whether its table may replace the one in the documentation.
    fn is_whole(&self) -> bool {
        !self.quick
            && self.rounds >= ROUNDS
            && self.peers.len() == Peer::ALL.len()
            && self.workloads.len() == Workload::ALL.len()
            && self.networks.len() == Network::ALL.len()
    }
}

fn chosen<T: Copy>(
    text: &str,
    all: &[T],
    option: fn(T) -> &'static str,
) -> Result<Vec<T>, Failure> {
    let find = |name: &str| all.iter().copied().find(|one| option(*one) == name);
    text.split(',').map(|name| find(name).ok_or_else(|| format!("{name:?}: {USAGE}"))).collect()
}

fn main() -> ExitCode {
    match Options::parse().and_then(|options| run(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Failure> {
    let tools = Tools::install();
    for complaint in &tools.complaints {
        eprintln!("not installed: {complaint}");
    }
    let work = Work::new()?;
    if work.is_in_memory() {
        eprintln!("$TMPDIR is in memory: caches and copies are not on a disk");
    }
    let data = Data::write(&work.store(), options.quick)?;
    let mut results = Results::new(options.rounds, options.quick);
    for network in &options.networks {
        let store = Store::start(&work, &data, &network.line())?;
        let field = Field { work: &work, tools: &tools, store: &store };
        for scenario in Scenario::of(*network, &options.workloads) {
            side_by_side(&field, &data, scenario, options, &mut results);
        }
    }
    let text = results.markdown(&data, &tools);
    println!("\n{text}");
    if options.is_whole() { report::write(&text) } else { Ok(()) }
}

/// All rounds of a scenario; in each, every peer once.
fn side_by_side(
    field: &Field<'_>,
    data: &Data,
    scenario: Scenario,
    options: &Options,
    results: &mut Results,
) {
    for round in 0..options.rounds {
        for peer in &options.peers {
            if peer.program(field.tools).is_none() {
                continue;
            }
            let measured = rig::guarded(|| measure::round(field, data, *peer, scenario, round));
            results.add(scenario, *peer, measured);
        }
    }
}
