//! One round of one peer.

use crate::rig::data::{Data, Set};
use crate::rig::peer::{Field, Peer};
use crate::rig::read::{Epoch, Order, epoch, walk_and_epoch};
use crate::rig::store::{Counts, Line};
use crate::rig::{Failure, work};

/// Between the peers and the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Loopback,
    Cloud,
    Tls,
}

impl Network {
    pub(crate) const ALL: [Network; 3] = [Network::Loopback, Network::Cloud, Network::Tls];

    pub(crate) fn option(self) -> &'static str {
        match self {
            Network::Loopback => "loopback",
            Network::Cloud => "cloud",
            Network::Tls => "tls",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Network::Loopback => "loopback",
            Network::Cloud => "30 ms + 50 MB/s a connection",
            Network::Tls => "loopback, TLS with an own CA",
        }
    }

    pub(crate) fn line(self) -> Line {
        match self {
            Network::Loopback => Line::loopback(),
            Network::Cloud => Line::cloud(),
            Network::Tls => Line::tls(),
        }
    }
}

/// What is read, by how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    Large,
    Small,
    One,
}

impl Workload {
    pub(crate) const ALL: [Workload; 3] = [Workload::Large, Workload::Small, Workload::One];

    pub(crate) fn option(self) -> &'static str {
        self.set().folder()
    }

    pub(crate) fn set(self) -> Set {
        match self {
            Workload::Large => Set::Large,
            Workload::Small => Set::Small,
            Workload::One => Set::One,
        }
    }

    pub(crate) fn readers(self) -> usize {
        match self {
            Workload::Large => 20,
            Workload::Small => 8,
            Workload::One => 1,
        }
    }

    pub(crate) fn order(self, round: usize) -> Order {
        match self {
            Workload::Small => Order::Shuffled { seed: round as u64 },
            _ => Order::ByName,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scenario {
    pub(crate) network: Network,
    pub(crate) workload: Workload,
}

impl Scenario {
    /// One object by one reader says something only where a connection is slow.
    pub(crate) fn of(network: Network, workloads: &[Workload]) -> Vec<Scenario> {
        let measured =
            |workload: &Workload| *workload != Workload::One || network == Network::Cloud;
        let workloads = workloads.iter().copied().filter(measured);
        workloads.map(|workload| Scenario { network, workload }).collect()
    }
}

/// At 47 files a second an epoch of all takes s3fs four minutes, and each round has
/// three: it reads so many, in the same order. Its rate is the same over any part.
pub(crate) const SLOW_FILES: usize = 1_000;

/// Whether a peer reads only [`SLOW_FILES`] in a scenario.
pub(crate) fn is_slow(peer: Peer, scenario: Scenario) -> bool {
    peer == Peer::S3fs
        && scenario == Scenario { network: Network::Cloud, workload: Workload::Small }
}

/// What one round gave.
#[derive(Debug)]
pub(crate) struct Round {
    /// From nothing: a mount's first epoch, or the copy.
    pub(crate) cold: Epoch,
    /// For a copy: it, and the epoch after it.
    pub(crate) copied_and_read: Option<Epoch>,
    pub(crate) again: Epoch,
    /// Once more, after the page cache was dropped.
    pub(crate) dropped: Epoch,
    /// Until the mount could be read.
    pub(crate) ready_s: f64,
    /// Of the peer in `cold`.
    pub(crate) cpu_s: f64,
    pub(crate) store_cpu_s: f64,
    pub(crate) peak_rss_mib: f64,
    pub(crate) asked: Counts,
}

pub(crate) fn round(
    field: &Field<'_>,
    data: &Data,
    peer: Peer,
    scenario: Scenario,
    round: usize,
) -> Result<Round, Failure> {
    if peer == Peer::S5cmd {
        copied(field, data, scenario.workload, round)
    } else {
        mounted(field, data, peer, scenario, round)
    }
}

fn mounted(
    field: &Field<'_>,
    data: &Data,
    peer: Peer,
    scenario: Scenario,
    round: usize,
) -> Result<Round, Failure> {
    let workload = scenario.workload;
    let set = workload.set();
    let mut objects = workload.order(round).apply(data.objects(set));
    if is_slow(peer, scenario) {
        objects.truncate(SLOW_FILES);
    }
    let (mark, store_cpu_s) = (field.store.mark(), field.store.cpu_s());
    let mount = field.mount(peer, &[])?;
    let folder = mount.folder(set);
    let cold = walk_and_epoch(&folder, &objects, workload.readers())?;
    let (usage, store_cpu_s) = (mount.usage(), field.store.cpu_s() - store_cpu_s);
    let asked = field.store.counts_since(mark);
    let again = epoch(&folder, &objects, workload.readers())?;
    work::drop_page_cache(mount.home())?;
    let dropped = epoch(&folder, &objects, workload.readers())?;
    data.check(set, &folder)?;
    Ok(Round {
        cold,
        copied_and_read: None,
        again,
        dropped,
        ready_s: mount.ready.as_secs_f64(),
        cpu_s: usage.cpu_s,
        store_cpu_s,
        peak_rss_mib: mount.usage().peak_rss_mib,
        asked,
    })
}

fn copied(
    field: &Field<'_>,
    data: &Data,
    workload: Workload,
    round: usize,
) -> Result<Round, Failure> {
    let set = workload.set();
    let objects = workload.order(round).apply(data.objects(set));
    let (mark, store_cpu_s) = (field.store.mark(), field.store.cpu_s());
    let copy = field.copy(set)?;
    let store_cpu_s = field.store.cpu_s() - store_cpu_s;
    let asked = field.store.counts_since(mark);
    let read = walk_and_epoch(&copy.folder, &objects, workload.readers())?;
    let again = epoch(&copy.folder, &objects, workload.readers())?;
    work::drop_page_cache(&copy.folder)?;
    let dropped = epoch(&copy.folder, &objects, workload.readers())?;
    data.check(set, &copy.folder)?;
    Ok(Round {
        cold: copy.epoch(&objects),
        copied_and_read: Some(read.after(copy.ran.took)),
        again,
        dropped,
        ready_s: 0.0,
        cpu_s: copy.ran.cpu_s,
        store_cpu_s,
        peak_rss_mib: copy.ran.peak_rss_mib,
        asked,
    })
}
