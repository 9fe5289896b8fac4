//! Second epochs, in turn with the same files on the cache's own disk, by
//! `warmfs bench --compare-with`.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::common::poll;
use crate::figure::{Figure, Target};
use crate::rig::Failure;
use crate::rig::data::Set;
use crate::rig::peer::{Mount, Peer};
use crate::rig::read::{epoch, walk_and_epoch};
use crate::rig::stats::Samples;
use crate::rig::store::{Line, Store};
use crate::rig::work::drop_page_cache;
use crate::stage::{Load, Stage, report};
use Target::{AtLeast, AtMost, Stated};

/// For the cache to have on disk what was read.
const LANDED_MAX: Duration = Duration::from_secs(30);
/// Longer than the kernel keeps what it was told of files on their way: it asks
/// again in the first warm epoch, not in a later one.
const ATTRIBUTES_EXPIRE: Duration = Duration::from_millis(1_100);

/// How the mount opens files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Cached,
    Passthrough,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Cached => "cached",
            Mode::Passthrough => "passthrough",
        }
    }
}

/// How files are read.
#[derive(Clone, Copy)]
enum Way {
    ByName,
    Shuffled,
    Random,
    Mapped,
}

impl Way {
    fn options(self) -> &'static [&'static str] {
        match self {
            Way::ByName => &["--order", "sequential"],
            Way::Shuffled => &[],
            // 32,768 reads: seconds from a disk.
            Way::Random => &["--random", "4k", "--max-bytes", "128M"],
            Way::Mapped => &["--mmap"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Way::ByName => "",
            Way::Shuffled => ", shuffled",
            Way::Random => ", 4 KiB random",
            Way::Mapped => ", mmap",
        }
    }
}

/// A row of the table, and what each of its ratios must be.
struct Row {
    set: Set,
    way: Way,
    readers: usize,
    cached: Target,
    passthrough: Target,
    /// After the page cache was dropped, in both modes.
    dropped: Target,
}

impl Row {
    const fn of(set: Set, way: Way, readers: usize, targets: [Target; 3]) -> Row {
        let [cached, passthrough, dropped] = targets;
        Row { set, way, readers, cached, passthrough, dropped }
    }

    /// The figure that a row is told in, as `bench --json` names it.
    fn rate(&self) -> (&'static str, &'static str) {
        match self.way {
            Way::ByName | Way::Mapped => ("mib_per_s", "MiB/s"),
            Way::Shuffled => ("files_per_s", "files/s"),
            Way::Random => ("files_per_s", "reads/s"),
        }
    }

    fn target(&self, mode: Mode, page_cache: PageCache) -> Target {
        match (page_cache, mode) {
            (PageCache::Dropped, _) => self.dropped,
            (PageCache::Warm, Mode::Cached) => self.cached,
            (PageCache::Warm, Mode::Passthrough) => self.passthrough,
        }
    }
}

const SMALL: [Target; 3] = [AtLeast(0.85), Stated, AtLeast(0.60)];
const LARGE: [Target; 3] = [AtLeast(0.75), AtLeast(0.90), AtLeast(0.90)];
const ROWS: [Row; 6] = [
    Row::of(Set::Big, Way::ByName, 2, LARGE),
    Row::of(Set::Large, Way::ByName, 20, LARGE),
    Row::of(Set::Small, Way::Shuffled, 2, SMALL),
    Row::of(Set::Small, Way::Shuffled, 8, SMALL),
    Row::of(Set::One, Way::Random, 2, [AtLeast(0.85); 3]),
    Row::of(Set::One, Way::Mapped, 1, [AtLeast(0.85), AtLeast(0.90), AtLeast(0.85)]),
];

/// What is in memory when a pass begins, of mount and copy alike.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageCache {
    Warm,
    Dropped,
}

impl PageCache {
    fn options(self) -> &'static [&'static str] {
        match self {
            PageCache::Warm => &[],
            PageCache::Dropped => &["--page-cache", "drop"],
        }
    }

    fn name(self) -> &'static str {
        match self {
            PageCache::Warm => "page cache warm",
            PageCache::Dropped => "page cache dropped",
        }
    }
}

pub(crate) fn cached(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    run(stage, Mode::Cached)
}

pub(crate) fn passthrough(stage: &Stage) -> Result<Vec<Figure>, Failure> {
    run(stage, Mode::Passthrough)
}

fn run(stage: &Stage, mode: Mode) -> Result<Vec<Figure>, Failure> {
    let store = stage.store(&Line::loopback())?;
    let mut figures = Vec::new();
    let mut asked = Samples::default();
    for set in [Set::Big, Set::Large, Set::Small, Set::One] {
        let filled = Filled::fill(stage, &store, mode, set)?;
        let mark = store.mark();
        if set == Set::Small {
            figures.extend(filled.requests()?);
        }
        filled.warm_up()?;
        for page_cache in [PageCache::Warm, PageCache::Dropped] {
            for row in ROWS.iter().filter(|row| row.set == set) {
                figures.extend(filled.measure(row, page_cache)?);
            }
        }
        let counts = store.counts_since(mark);
        asked.push((counts.gets + counts.heads) as f64);
        stage.data.check(set, &filled.mount.folder(set))?;
    }
    let name = format!("{}: GETs and HEADs after epoch 1", mode.name());
    figures.push(Figure::new(name, AtMost(0.0), asked, ""));
    Ok(figures)
}

/// A mount with one set in its cache, and the set copied beside the cache.
struct Filled<'a> {
    stage: &'a Stage,
    store: &'a Store,
    mode: Mode,
    set: Set,
    mount: Mount,
    copy: PathBuf,
}

impl<'a> Filled<'a> {
    fn fill(stage: &'a Stage, store: &'a Store, mode: Mode, set: Set) -> Result<Self, Failure> {
        let mount = stage.field(store).mount(Peer::Warmfs, &["--open-mode", mode.name()])?;
        let copy = mount.home().join("copy");
        stage.data.copy(set, &copy)?;
        let filled = Filled { stage, store, mode, set, mount, copy };
        filled.expect_mode()?;
        filled.read_all(true)?;
        let has_landed = || {
            let cached = filled
                .status()
                .ok()
                .and_then(|status| status["cache"]["dataset_cached_bytes"].as_u64());
            cached >= Some(stage.data.bytes(set))
        };
        if !poll(LANDED_MAX, has_landed) {
            return Err("what was read is not in the cache".to_owned());
        }
        std::thread::sleep(ATTRIBUTES_EXPIRE);
        Ok(filled)
    }

    /// A mode that the machine cannot have would be measured as another one.
    fn expect_mode(&self) -> Result<(), Failure> {
        let status = self.status()?;
        match &status["mounts"][0]["mode"] {
            Value::String(mode) if mode == self.mode.name() => Ok(()),
            mode => Err(format!("the mode is {mode}: {}", status["mounts"][0]["mode_reason"])),
        }
    }

    fn status(&self) -> Result<Value, Failure> {
        self.stage.status(self.store, &self.mount)
    }

    fn read_all(&self, walk: bool) -> Result<(), Failure> {
        let load = Load::of(self.set, 8);
        let objects = load.order.apply(self.stage.data.objects(self.set));
        let read = if walk { walk_and_epoch } else { epoch };
        read(&self.mount.folder(self.set), &objects, load.readers).map(drop)
    }

    /// What of the fill is dirty goes to the disk, and everything to memory.
    fn warm_up(&self) -> Result<(), Failure> {
        drop_page_cache(self.mount.home())?;
        self.bench(&["--epochs", "1", "--readers", "2"]).map(drop)
    }

    /// Requests to the daemon in epochs of nothing but opening, reading and closing.
    fn requests(&self) -> Result<Vec<Figure>, Failure> {
        let name = self.mode.name();
        let target = |cached| match self.mode {
            Mode::Cached => AtMost(cached),
            // OPEN and RELEASE.
            Mode::Passthrough => AtMost(2.0),
        };
        let each = |dropped| -> Result<(Samples, Samples), Failure> {
            if dropped {
                drop_page_cache(self.mount.home())?;
            }
            let before = self.counted()?;
            self.read_all(false)?;
            let after = self.counted()?;
            let files = self.stage.data.objects(self.set).len() as f64;
            let per_file = |count: u64| Samples::from_iter([count as f64 / files]);
            let (all, reads) = (after.0 - before.0, after.1 - before.1);
            Ok((per_file(all), per_file(all - reads)))
        };
        let ((second, _), (third, _), (_, dropped)) = (each(false)?, each(false)?, each(true)?);
        Ok(vec![
            Figure::new(
                format!("{name}: FUSE requests / small file, epoch 2"),
                target(1.0),
                second,
                "",
            ),
            Figure::new("- epoch 3", target(0.0), third, ""),
            Figure::new("- page cache dropped, without READs", target(0.0), dropped, ""),
        ])
    }

    /// Requests that the mount got so far, and READs among them.
    fn counted(&self) -> Result<(u64, u64), Failure> {
        let status = self.status()?;
        let fuse = &status["mounts"][0]["fuse"];
        let counted = fuse["requests"].as_u64().zip(fuse["ops"]["read"].as_u64());
        counted.ok_or_else(|| "status --json has no requests".to_owned())
    }

    fn measure(&self, row: &Row, page_cache: PageCache) -> Result<[Figure; 2], Failure> {
        let (readers, epochs) = (row.readers.to_string(), (self.stage.rounds + 1).to_string());
        let options = [row.way.options(), page_cache.options()].concat();
        let options = [&options[..], &["--readers", &readers, "--epochs", &epochs]].concat();
        let report = self.bench(&options)?;
        // The first epoch of a run brings both sides to where the others leave them.
        let later = |rows: &Value, value: &str| -> Samples {
            let rows = rows.as_array().into_iter().flatten();
            let counted =
                rows.filter(|row| row["epoch"].as_u64() > Some(1) && row["means"] != "copy");
            counted.filter_map(|row| row[value].as_f64()).collect()
        };
        let (rate, unit) = row.rate();
        let set = self.stage.data.describe(self.set);
        let readers = if row.readers == 1 { "1 reader" } else { &format!("{readers} readers") };
        let (mode, way) = (self.mode.name(), row.way.name());
        let name = format!("{mode}: {set}{way}, {readers}, {}", page_cache.name());
        let ratios = later(&report["comparison"]["ratios"], "ratio");
        Ok([
            Figure::new(name, Stated, later(&report["epochs"], rate), unit),
            Figure::new(
                "- / a copy on the same disk",
                row.target(self.mode, page_cache),
                ratios,
                "x",
            ),
        ])
    }

    /// `warmfs bench` over the set and its copy.
    fn bench(&self, options: &[&str]) -> Result<Value, Failure> {
        let mut bench = self.stage.bench(self.store, self.mount.home())?;
        bench.arg(self.mount.folder(self.set)).arg("--compare-with").arg(&self.copy);
        report(bench.args(options), &self.mount.home().join("bench.json"))
    }
}
