//! The table, and its place in the documentation.

use std::fmt::Write as _;
use std::path::Path;

use crate::measure::{Network, Round, SLOW_FILES, Scenario, Workload, is_slow};
use crate::rig::data::Data;
use crate::rig::install::Tools;
use crate::rig::peer::Peer;
use crate::rig::read::Epoch;
use crate::rig::stats::{Samples, number};
use crate::rig::work::{machine, says};
use crate::rig::{Failure, failed};

const BEGIN: &str = "<!-- peers: begin -->";
const END: &str = "<!-- peers: end -->";
const GIB: f64 = 1073741824.0;

/// Everything measured.
pub(crate) struct Results {
    rounds: usize,
    quick: bool,
    rows: Vec<Row>,
}

struct Row {
    scenario: Scenario,
    peer: Peer,
    rounds: Vec<Round>,
    failures: Vec<Failure>,
}

impl Results {
    pub(crate) fn new(rounds: usize, quick: bool) -> Results {
        Results { rounds, quick, rows: Vec::new() }
    }

    /// Takes a round, and tells of it as it comes.
    pub(crate) fn add(&mut self, scenario: Scenario, peer: Peer, measured: Result<Round, Failure>) {
        let place = format!(
            "{}, {}, {}",
            scenario.network.option(),
            scenario.workload.option(),
            peer.name()
        );
        let row = self.row(scenario, peer);
        match measured {
            Ok(round) => {
                let rate = Unit::of(scenario.workload);
                println!("{place}: {} {}", number(rate.rate(&round.cold)), rate.name());
                row.rounds.push(round);
            }
            Err(failure) => {
                println!("{place}: FAILED: {failure}");
                row.failures.push(failure);
            }
        }
    }

    fn row(&mut self, scenario: Scenario, peer: Peer) -> &mut Row {
        let known = |row: &Row| row.scenario == scenario && row.peer == peer;
        let at = self.rows.iter().position(known).unwrap_or_else(|| {
            self.rows.push(Row { scenario, peer, rounds: Vec::new(), failures: Vec::new() });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    pub(crate) fn markdown(&self, data: &Data, tools: &Tools) -> String {
        let mut text = format!(
            "Medians of {} rounds (min..max), alternating; {}; {}{}.\n",
            self.rounds,
            machine(),
            says(Path::new("nginx"), &["-v"]),
            if self.quick { "; a tenth of the data" } else { "" },
        );
        for network in Network::ALL {
            for workload in Workload::ALL {
                self.table(&mut text, data, Scenario { network, workload });
            }
        }
        self.peers(&mut text, tools);
        text
    }

    fn table(&self, text: &mut String, data: &Data, scenario: Scenario) {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.scenario == scenario).collect();
        if rows.is_empty() {
            return;
        }
        let unit = Unit::of(scenario.workload);
        let _ = writeln!(
            text,
            "\n{}, {} readers{}, {} ({}):\n\n\
             | | cold | first 32 files, s | again | page cache dropped | CPU s/GiB | the store's \
             | GETs + HEADs + LISTs | mounted after, s | peak MiB |\n\
             |---|---|---|---|---|---|---|---|---|---|",
            data.describe(scenario.workload.set()),
            scenario.workload.readers(),
            if scenario.workload == Workload::Small { " shuffled" } else { "" },
            scenario.network.name(),
            unit.name(),
        );
        for row in rows {
            row.write(text, unit);
        }
    }

    /// Versions and flags, and who is not in the table.
    fn peers(&self, text: &mut String, tools: &Tools) {
        text.push('\n');
        for peer in Peer::ALL {
            let line = match peer.program(tools) {
                Some(program) => format!("{}: `{}`", peer.version(&program), peer.flags()),
                None => "not on this machine".to_owned(),
            };
            let _ = writeln!(text, "- {}: {line}", peer.name());
        }
    }
}

impl Row {
    fn write(&self, text: &mut String, unit: Unit) {
        if !self.rounds.is_empty() {
            let name = match is_slow(self.peer, self.scenario) {
                true => format!("{}, {SLOW_FILES} of them", self.peer.name()),
                false => self.peer.name().to_owned(),
            };
            self.write_line(text, unit, &name, |round| Some(&round.cold));
            if self.peer == Peer::S5cmd {
                let name = "s5cmd cp, then read";
                self.write_line(text, unit, name, |round| round.copied_and_read.as_ref());
            }
        }
        for failure in &self.failures {
            let failure = failure.replace('|', "/");
            let _ = writeln!(text, "| {} | failed: {failure} | | | | | | | | |", self.peer.name());
        }
    }

    fn write_line(
        &self,
        text: &mut String,
        unit: Unit,
        name: &str,
        cold: fn(&Round) -> Option<&Epoch>,
    ) {
        let each = |value: &dyn Fn(&Round) -> f64| -> String {
            self.rounds.iter().map(value).collect::<Samples>().text()
        };
        let of_cold =
            |value: &dyn Fn(&Epoch) -> f64| each(&|round| cold(round).map_or(f64::NAN, value));
        let middle = |value: fn(&Round) -> u64| {
            let samples: Samples = self.rounds.iter().map(|round| value(round) as f64).collect();
            number(samples.median())
        };
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} | {} + {} + {} | {} | {} |",
            of_cold(&|epoch| unit.rate(epoch)),
            of_cold(&|epoch| epoch.first_batch_s),
            each(&|round| unit.rate(&round.again)),
            each(&|round| unit.rate(&round.dropped)),
            each(&|round| round.cpu_s * GIB / round.cold.bytes as f64),
            each(&|round| round.store_cpu_s * GIB / round.cold.bytes as f64),
            middle(|round| round.asked.gets),
            middle(|round| round.asked.heads),
            middle(|round| round.asked.lists),
            each(&|round| round.ready_s),
            each(&|round| round.peak_rss_mib),
        );
    }
}

/// In what a workload's speed is told.
#[derive(Clone, Copy)]
enum Unit {
    MibPerS,
    FilesPerS,
}

impl Unit {
    fn of(workload: Workload) -> Unit {
        if workload == Workload::Small { Unit::FilesPerS } else { Unit::MibPerS }
    }

    fn name(self) -> &'static str {
        match self {
            Unit::MibPerS => "MiB/s",
            Unit::FilesPerS => "files/s",
        }
    }

    fn rate(self, epoch: &Epoch) -> f64 {
        match self {
            Unit::MibPerS => epoch.mib_per_s(),
            Unit::FilesPerS => epoch.files_per_s(),
        }
    }
}

/// Puts `text` between the marks of `docs/performance.md`.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/performance.md");
    let page = std::fs::read_to_string(&path).map_err(failed("docs/performance.md"))?;
    let begin = page.find(BEGIN).map(|at| at + BEGIN.len());
    let (Some(begin), Some(end)) = (begin, page.find(END)) else {
        return Err("docs/performance.md has no marks for the table".to_owned());
    };
    let page = format!("{}\n{text}{}", &page[..begin], &page[end..]);
    std::fs::write(&path, page).map_err(failed("docs/performance.md"))
}
