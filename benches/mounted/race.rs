//! Cold epochs against others, alternating: the ratio of each round.

use crate::figure::{Figure, Target};
use crate::rig::Failure;
use crate::rig::data::Set;
use crate::rig::peer::Peer;
use crate::rig::read::Epoch;
use crate::rig::stats::Samples;
use crate::rig::store::Line;
use crate::stage::{Cold, Load, Stage};
use Target::{AtLeast, AtMost, Stated};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rival {
    Copy,
    Rclone,
    /// Our own fetcher without FUSE.
    Direct,
}

impl Rival {
    fn name(self) -> &'static str {
        match self {
            Rival::Copy => "/ s5cmd cp",
            Rival::Rclone => "/ rclone mount",
            Rival::Direct => "/ our fetcher without FUSE",
        }
    }
}

struct Race {
    load: Load,
    line: Line,
    network: &'static str,
    target: Target,
    /// Whom to be so many times as fast as.
    rivals: &'static [(Rival, f64)],
}

impl Race {
    fn rate(&self, epoch: &Epoch) -> f64 {
        if self.load.set == Set::Small { epoch.files_per_s() } else { epoch.mib_per_s() }
    }

    fn unit(&self) -> &'static str {
        if self.load.set == Set::Small { "files/s" } else { "MiB/s" }
    }
}

pub(crate) fn large_on_loopback(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let race = Race {
        load: Load::of(Set::Large, 20),
        line: Line::loopback(),
        network: "loopback",
        target: AtLeast(250.0),
        rivals: &[(Rival::Copy, 1.0), (Rival::Rclone, 4.0), (Rival::Direct, 0.8)],
    };
    let (mut figures, ours) = run(stage, &race)?;
    let each = |value: fn(&Cold) -> f64| ours.iter().map(value).collect::<Samples>();
    let again = each(|cold| cold.again.mib_per_s());
    figures.push(Figure::new("- epoch 2", AtLeast(1_000.0), again, "MiB/s"));
    let peak = each(|cold| cold.usage.peak_rss_mib);
    figures.push(Figure::new("- the daemon's peak RSS", AtMost(300.0), peak, "MiB"));
    let ready = each(|cold| cold.ready_s * 1_000.0);
    figures.push(Figure::new("- the mount can be read after", AtMost(1_000.0), ready, "ms"));
    figures.push(Figure::new("- CPU of the daemon", Stated, each(Cold::cpu_s_per_gib), "s/GiB"));
    figures.extend(accounts(&ours, 1.02, None));
    Ok(figures)
}

pub(crate) fn small_on_loopback(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let race = Race {
        load: Load::of(Set::Small, 8),
        line: Line::loopback(),
        network: "loopback",
        target: Stated,
        rivals: &[(Rival::Copy, 1.0), (Rival::Rclone, 3.0)],
    };
    let (mut figures, ours) = run(stage, &race)?;
    figures.extend(accounts(&ours, 1.02, Some(1.01)));
    Ok(figures)
}

pub(crate) fn small_in_the_cloud(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let race = Race {
        load: Load::of(Set::Small, 8),
        line: Line::cloud(),
        network: "30 ms + 50 MB/s",
        target: AtLeast(1_000.0),
        rivals: &[(Rival::Copy, 1.0)],
    };
    Ok(run(stage, &race)?.0)
}

pub(crate) fn one_in_the_cloud(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    let race = Race {
        load: Load::of(Set::One, 1),
        line: Line::cloud(),
        network: "30 ms + 50 MB/s",
        target: AtLeast(600.0),
        rivals: &[(Rival::Direct, 0.8)],
    };
    Ok(run(stage, &race)?.0)
}

/// Bytes, GETs and HEADs of first epochs.
fn accounts(ours: &[Cold], bytes_max: f64, gets_max: Option<f64>) -> Vec<Figure> {
    let each = |value: fn(&Cold) -> f64| ours.iter().map(value).collect::<Samples>();
    let bytes = each(|cold| cold.asked.bytes as f64 / cold.epoch.bytes as f64);
    let gets = each(|cold| cold.asked.gets as f64 / cold.epoch.files as f64);
    let heads = each(|cold| cold.asked.heads as f64);
    vec![
        Figure::new("- bytes fetched / dataset", AtMost(bytes_max), bytes, ""),
        Figure::new("- GETs / files", gets_max.map_or(Stated, AtMost), gets, ""),
        Figure::new("- HEADs", AtMost(0.0), heads, ""),
    ]
}

fn run(stage: &Stage, race: &Race) -> Result<(Vec<Figure>, Vec<Cold>), Failure> {
    let store = stage.store(&race.line)?;
    let mut ours = Vec::new();
    let mut ratios = vec![Samples::default(); race.rivals.len()];
    for _ in 0..stage.rounds {
        let cold = stage.cold(&store, Peer::Warmfs, race.load)?;
        let rate = race.rate(&cold.epoch);
        ours.push(cold);
        for ((rival, _), ratios) in race.rivals.iter().zip(&mut ratios) {
            let theirs = match rival {
                Rival::Direct => stage.direct(&store, race.load)?,
                Rival::Copy => {
                    let copy = stage.field(&store).copy(race.load.set)?;
                    Some(race.rate(&copy.epoch(&stage.data.objects(race.load.set))))
                }
                Rival::Rclone => {
                    Some(race.rate(&stage.cold(&store, Peer::Rclone, race.load)?.epoch))
                }
            };
            if let Some(theirs) = theirs {
                ratios.push(rate / theirs);
            }
        }
    }
    let rates = ours.iter().map(|cold| race.rate(&cold.epoch)).collect();
    let (what, readers) = (stage.data.describe(race.load.set), race.load.readers);
    let name = format!("{what}, {readers} readers, {}, cold", race.network);
    let mut figures = vec![Figure::new(name, race.target, rates, race.unit())];
    for ((rival, target), ratios) in race.rivals.iter().zip(ratios) {
        if !ratios.is_empty() {
            let name = format!("- {}", rival.name());
            figures.push(Figure::new(name, AtLeast(*target), ratios, "x"));
        }
    }
    Ok((figures, ours))
}

impl Cold {
    /// Of the peer.
    pub(crate) fn cpu_s_per_gib(&self) -> f64 {
        self.usage.cpu_s * 1_073_741_824.0 / self.epoch.bytes as f64
    }
}
