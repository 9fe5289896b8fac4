//! Stores that refuse or stall, and little memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::figure::{Figure, Target};
use crate::rig::data::Set;
use crate::rig::peer::Peer;
use crate::rig::read::walk_and_epoch;
use crate::rig::stats::Samples;
use crate::rig::store::Line;
use crate::rig::{Failure, failed};
use crate::stage::{Load, Stage};
use Target::{AtLeast, AtMost, Stated};

const CAP_PER_S: u32 = 50;
/// Long enough that the start does not count: 12 s at the cap.
const CAPPED_FILES: usize = 600;
/// Enough for twenty that stall.
const TAIL_FILES: usize = 2_000;
const STALL: Duration = Duration::from_secs(5);
const CGROUP_BYTES: u64 = 512_000_000;

pub(crate) fn throttled(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let line = Line { requests_per_s_max: Some(CAP_PER_S), ..Line::cloud() };
    let store = stage.store(&line)?;
    let load = Load { files_max: CAPPED_FILES, ..Load::of(Set::Small, 8) };
    let (mut rates, mut retries) = (Samples::default(), Samples::default());
    for _ in 0..stage.rounds {
        let cold = stage.cold(&store, Peer::Warmfs, load)?;
        let served = (cold.asked.gets - cold.asked.refused) as f64;
        rates.push(served / cold.epoch.seconds / f64::from(CAP_PER_S));
        retries.push(cold.asked.refused as f64 / served);
    }
    Ok(vec![
        Figure::new("store capped at 50 requests/s: of the cap", AtLeast(0.9), rates, "x"),
        Figure::new("- refused / served", AtMost(0.1), retries, ""),
    ])
}

/// The slow end of demand: 1 % of GETs stalled; and warming on against off.
pub(crate) fn tails(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let alone =
        Load { files_max: TAIL_FILES, options: &["--warm", "off"], ..Load::of(Set::Small, 8) };
    let warmed = Load { options: &["--warm", "auto"], ..alone };
    let cloud = stage.store(&Line::cloud())?;
    let mut ratios = Samples::default();
    for _ in 0..stage.rounds {
        let with = stage.cold(&cloud, Peer::Warmfs, warmed)?.epoch.latency_ms(0.99);
        let without = stage.cold(&cloud, Peer::Warmfs, alone)?.epoch.latency_ms(0.99);
        ratios.push(with / without);
    }
    drop(cloud);
    let stalling = stage.store(&Line { stalled: Some(STALL), ..Line::cloud() })?;
    let (mut tails, mut gets) = (Samples::default(), Samples::default());
    for _ in 0..stage.rounds {
        let cold = stage.cold(&stalling, Peer::Warmfs, alone)?;
        tails.push(cold.epoch.latency_ms(0.99) / cold.epoch.latency_ms(0.5));
        gets.push(cold.asked.gets as f64 / cold.epoch.files as f64);
    }
    Ok(vec![
        Figure::new("p99 of small files, warming on / off", AtMost(1.5), ratios, "x"),
        Figure::new("1 % of GETs stalled for 5 s: p99 / p50", AtMost(3.0), tails, "x"),
        Figure::new("- GETs / files", AtMost(1.05), gets, ""),
    ])
}

/// 64 readers, with the daemon in a cgroup of 512 MB.
pub(crate) fn cgroup(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::loopback())?;
    let objects = stage.data.objects(Set::Large);
    let (mut rates, mut peaks, mut kills) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..stage.rounds {
        let cgroup = Cgroup::new()?;
        let mount = stage.field(&store).mount_in(Some(&cgroup.dir), Peer::Warmfs, &[])?;
        let epoch = walk_and_epoch(&mount.folder(Set::Large), &objects, 64)?;
        rates.push(epoch.mib_per_s());
        peaks.push(mount.usage().peak_rss_mib);
        kills.push(cgroup.kills()?);
    }
    Ok(vec![
        Figure::new("64 readers, cold, cgroup of 512 MB", Stated, rates, "MiB/s"),
        // What the budget of issue 1 allows everywhere.
        Figure::new("- the daemon's peak RSS", AtMost(300.0), peaks, "MiB"),
        Figure::new("- killed for memory", AtMost(0.0), kills, ""),
    ])
}

/// A memory cgroup, of either version, removed when dropped.
struct Cgroup {
    dir: PathBuf,
    is_v2: bool,
}

impl Cgroup {
    fn new() -> Result<Cgroup, Failure> {
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").exists();
        let parent = if is_v2 { root.to_owned() } else { root.join("memory") };
        if is_v2 {
            // Fails where a container may not; then the limit's file is missing below.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let dir = parent.join(format!("warmfs-bench-{}", std::process::id()));
        fs::create_dir(&dir).map_err(failed("a memory cgroup"))?;
        let cgroup = Cgroup { dir, is_v2 };
        let limit = if is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(cgroup.dir.join(limit), CGROUP_BYTES.to_string())
            .map_err(failed("the limit of a memory cgroup"))?;
        Ok(cgroup)
    }

    /// Processes that the kernel killed in it.
    fn kills(&self) -> Result<f64, Failure> {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.dir.join(file)).map_err(failed(file))?;
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count
            .and_then(|count| count.trim().parse().ok())
            .ok_or_else(|| format!("no kills in {file}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty by now: the mount is dropped before its cgroup.
        let _ = fs::remove_dir(&self.dir);
    }
}
