//! What all groups stand on: the data, the tools, and one cold epoch.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::poll;
use crate::rig::data::{Data, Set};
use crate::rig::install::Tools;
use crate::rig::peer::{Field, LIMIT, Mount, Peer};
use crate::rig::process::{Usage, run};
use crate::rig::read::{Epoch, Order, epoch, walk_and_epoch};
use crate::rig::store::{Counts, Line, Store};
use crate::rig::work::Work;
use crate::rig::{Failure, failed};

/// For what is still under way to arrive after the last read.
const QUIET_MAX: std::time::Duration = std::time::Duration::from_secs(10);
/// Looks at an unchanged counter that make it quiet.
const QUIET_LOOKS: u32 = 20;

pub(crate) struct Stage {
    pub(crate) work: Work,
    pub(crate) data: Data,
    pub(crate) tools: Tools,
    pub(crate) rounds: usize,
}

/// What is read, by how many, with which options of the mount.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) set: Set,
    pub(crate) readers: usize,
    pub(crate) order: Order,
    /// At most so many files.
    pub(crate) files_max: usize,
    pub(crate) options: &'static [&'static str],
}

impl Load {
    pub(crate) const fn of(set: Set, readers: usize) -> Load {
        let order = match set {
            Set::Small => Order::Shuffled { seed: 1 },
            _ => Order::ByName,
        };
        Load { set, readers, order, files_max: usize::MAX, options: &[] }
    }
}

/// A first epoch, and what it took.
pub(crate) struct Cold {
    pub(crate) epoch: Epoch,
    pub(crate) again: Epoch,
    pub(crate) ready_s: f64,
    pub(crate) usage: Usage,
    pub(crate) asked: Counts,
}

impl Stage {
    pub(crate) fn set(rounds: usize, quick: bool) -> Result<Stage, Failure> {
        let tools = Tools::install();
        for complaint in &tools.complaints {
            eprintln!("not installed: {complaint}");
        }
        let work = Work::new()?;
        let data = Data::write(&work.store(), quick)?;
        Ok(Stage { work, data, tools, rounds })
    }

    pub(crate) fn store(&self, line: &Line) -> Result<Store, Failure> {
        Store::start(&self.work, &self.data, line)
    }

    pub(crate) fn field<'a>(&'a self, store: &'a Store) -> Field<'a> {
        Field { work: &self.work, tools: &self.tools, store }
    }

    /// A peer's first epoch after its mount, and a second.
    pub(crate) fn cold(&self, store: &Store, peer: Peer, load: Load) -> Result<Cold, Failure> {
        let mark = store.mark();
        let mount = self.field(store).mount(peer, load.options)?;
        let mut objects = load.order.apply(self.data.objects(load.set));
        objects.truncate(load.files_max);
        let folder = mount.folder(load.set);
        let first = walk_and_epoch(&folder, &objects, load.readers)?;
        let (usage, asked) = (mount.usage(), store.counts_since(mark));
        let again = epoch(&folder, &objects, load.readers)?;
        if objects.len() == self.data.objects(load.set).len() {
            self.data.check(load.set, &folder)?;
        }
        Ok(Cold { epoch: first, again, ready_s: mount.ready.as_secs_f64(), usage, asked })
    }

    /// The set read by our fetcher alone, in MiB/s; `None` while there is no such verb.
    pub(crate) fn direct(&self, store: &Store, load: Load) -> Result<Option<f64>, Failure> {
        let home = self.work.folder("direct");
        let log = home.join("log");
        let mut command = self.bench(store, &home)?;
        command.arg(format!("s3://bench/{}", load.set.folder()));
        command.args(["--direct", "--epochs", "1", "--order", "sequential"]);
        command.args(["--readers", &load.readers.to_string(), "--no-sign-request"]);
        command.args(["--endpoint-url", store.url()]);
        match report(&mut command, &log) {
            Err(failure) if said_unknown(&log) => {
                eprintln!("NO DIRECT READER in this build, its rows are left out: {failure}");
                Ok(None)
            }
            Err(failure) => Err(failure),
            Ok(json) => {
                let rate = json["epochs"][0]["mib_per_s"].as_f64();
                rate.map(Some).ok_or_else(|| "bench --json has no mib_per_s".to_owned())
            }
        }
    }

    /// `warmfs bench --json`, without what it is to read.
    pub(crate) fn bench(&self, store: &Store, home: &Path) -> Result<Command, Failure> {
        let mut command = self.field(store).command(Peer::Warmfs, home)?;
        command.args(["bench", "--json"]);
        Ok(command)
    }

    /// `status --json` of a mount of ours.
    pub(crate) fn status(&self, store: &Store, mount: &Mount) -> Result<Value, Failure> {
        let mut command = self.field(store).command(Peer::Warmfs, mount.home())?;
        let cache = mount.home().join("cache");
        let output = command.args(["status", "--json", "--cache-dir"]).arg(cache).output();
        let output = output.map_err(failed("status"))?;
        serde_json::from_slice(&output.stdout).map_err(failed("status --json"))
    }

    /// Bytes that a mount of ours received, once no more arrive.
    pub(crate) fn received(&self, store: &Store, mount: &Mount) -> Result<u64, Failure> {
        let bytes = || -> Option<u64> {
            self.status(store, mount).ok()?["remote"]["get"]["bytes"].as_u64()
        };
        let last = std::cell::Cell::new((None, 0));
        let is_quiet = || {
            let (now, (before, looks)) = (bytes(), last.get());
            last.set((now, if now == before { looks + 1 } else { 0 }));
            last.get().1 >= QUIET_LOOKS
        };
        if !poll(QUIET_MAX, is_quiet) {
            return Err("bytes still arrive long after the last read".to_owned());
        }
        last.get().0.ok_or_else(|| "no status".to_owned())
    }
}

/// Runs a [`Stage::bench`]; gives what it says.
pub(crate) fn report(bench: &mut Command, log: &Path) -> Result<Value, Failure> {
    run(bench, log, LIMIT)?;
    let text = std::fs::read_to_string(log).map_err(failed("bench --json"))?;
    serde_json::from_str(&text).map_err(failed("bench --json"))
}

fn said_unknown(log: &Path) -> bool {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.contains("unrecognized subcommand") || text.contains("no such command")
}
