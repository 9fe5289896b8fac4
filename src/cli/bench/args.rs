//! The options of `bench`, and the plan they make. Pure.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::plan::{Epoch, Limit, Means, PageCache, Plan, Preset, Reading, Series, Subject};
use crate::cli::args::{CacheArgs, LookArgs, MountArgs, RemoteArgs, TrafficArgs};
use crate::config::OpenModeOption;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::units::{FOREVER, parse_bytes};

/// Readers where nothing is said: what a loader on a small machine uses.
const READERS_DEFAULT: u16 = 8;
/// More threads than this measure the scheduler.
const READERS_MAX: i64 = 1_024;
/// `--sweep`.
const SWEEP_READERS: [u16; 7] = [1, 2, 4, 8, 16, 32, 64];
/// The first fills the cache, the second tells what that is worth.
const EPOCHS_DEFAULT: u16 = 2;
const EPOCHS_MAX: i64 = 1_000;
/// Bounds of one read call. Every reader has a buffer of this size.
const BLOCK_BYTES_MIN: u64 = 512;
const BLOCK_BYTES_MAX: u64 = 64 << 20;
/// `--preset published`: what the figures of the field were measured with.
const PUBLISHED_READERS: u16 = 20;

/// Read as training does, and say what it cost
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct BenchArgs {
    /// A folder, of a mount or not, or a URI to mount for this run
    #[arg(value_name = "PATH|URI", required_unless_present = "preset")]
    pub(super) target: Option<String>,
    /// Read URI by the fetcher alone: no mount, no cache
    #[arg(long, requires = "target", conflicts_with_all = ["preset", "random", "mmap", "compare_with"])]
    pub(super) direct: bool,
    /// published: direct, cold and warm, 20 readers
    #[arg(long, value_name = "NAME", hide_possible_values = true, conflicts_with_all = ["readers", "sweep", "epochs", "random", "mmap", "compare_with"])]
    pub(super) preset: Option<Preset>,
    /// Threads that read [default: 8]
    #[arg(long, value_name = "N", conflicts_with = "sweep", value_parser = clap::value_parser!(u16).range(1..=READERS_MAX))]
    pub(super) readers: Option<u16>,
    /// 1, 2, 4 … 64 readers in turn
    #[arg(long)]
    pub(super) sweep: bool,
    /// Passes over the dataset [default: 2, with --sweep 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=EPOCHS_MAX))]
    pub(super) epochs: Option<u16>,
    /// shuffled or sequential
    #[arg(
        long,
        value_name = "HOW",
        hide_possible_values = true,
        default_value = "shuffled",
        conflicts_with = "random"
    )]
    pub(super) order: OrderOption,
    /// What the order is drawn from
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) seed: u64,
    /// keep, or drop before later epochs
    #[arg(long, value_name = "WHAT", hide_possible_values = true, default_value = "keep")]
    pub(super) page_cache: PageCache,
    /// Only the first N files
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) files: Option<u64>,
    /// Only the first so many bytes, by whole files
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) max_bytes: Option<u64>,
    /// Bytes asked for in one read
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_block)]
    pub(super) block: u64,
    /// Read so many bytes here and there, not whole files
    #[arg(long, value_name = "SIZE", value_parser = parse_block)]
    pub(super) random: Option<u64>,
    /// Map each file and copy every page of it, instead of reading
    #[arg(long, conflicts_with = "random")]
    pub(super) mmap: bool,
    /// Read the same files below DIR too, in turn, and say the ratio
    #[arg(long, value_name = "DIR")]
    pub(super) compare_with: Option<PathBuf>,
    /// Files in a first batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) batch: u64,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Draw MiB/s over time, and each epoch as a bar
    #[arg(long, value_name = "FILE.svg")]
    pub(super) plot: Option<PathBuf>,
    #[command(flatten, next_help_heading = "The mount of a URI")]
    pub(super) remote: RemoteArgs,
    /// Use this cache, and keep it [default: a new one]
    // Not from the environment: a cold run would be warm without a word.
    #[arg(long, value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,
    /// Most bytes to keep in the cache, such as 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) cache_size: Option<u64>,
    /// Most bytes in memory on their way, such as 256M
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub(super) memory_limit: Option<u64>,
    #[command(flatten)]
    pub(super) traffic: TrafficArgs,
    /// How files are opened: auto, passthrough or cached
    #[arg(long, value_name = "HOW", hide_possible_values = true, default_value = "auto")]
    pub(super) open_mode: OpenModeOption,
}

/// `--order`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OrderOption {
    Shuffled,
    Sequential,
}

impl BenchArgs {
    /// What is to be measured.
    pub(super) fn plan(&self) -> Result<Plan, ErrorReply> {
        let subject = self.subject()?;
        let series = match (self.preset, self.sweep) {
            (Some(Preset::Published), _) => published_series(),
            (None, true) => {
                let series = |readers| self.series(&subject, readers, 1, true);
                SWEEP_READERS.into_iter().map(series).collect()
            }
            (None, false) => {
                let readers = self.readers.unwrap_or(READERS_DEFAULT);
                vec![self.series(&subject, readers, EPOCHS_DEFAULT, false)]
            }
        };
        let reading = Reading {
            shuffled: self.order == OrderOption::Shuffled,
            seed: self.seed,
            page_cache: self.page_cache,
            limit: self.limit(),
            block: self.block,
            mapped: self.mmap,
            random: self.random,
            random_bytes_max: self.max_bytes.filter(|_| self.random.is_some()),
            batch: self.batch,
        };
        let compare_with = self.compare_with.clone();
        Ok(Plan { subject, series, reading, preset: self.preset, compare_with })
    }

    /// Random reads are limited themselves: the place they are drawn from is not.
    fn limit(&self) -> Limit {
        let bytes = self.max_bytes.filter(|_| self.random.is_none());
        Limit { files: self.files.unwrap_or(u64::MAX), bytes: bytes.unwrap_or(u64::MAX) }
    }

    fn subject(&self) -> Result<Subject, ErrorReply> {
        let invalid = |message: String, hint: &str| {
            Err(ErrorReply::new(ErrorCode::Invalid, message).with_hint(hint))
        };
        match &self.target {
            None => Ok(Subject::Generated),
            Some(target) if target.contains("://") => Ok(Subject::Uri(target.clone())),
            Some(target) if self.direct => invalid(
                format!("--direct reads a URI, and {target} is a path"),
                "use s3://BUCKET[/PREFIX] or file:///FOLDER, or leave out --direct",
            ),
            Some(target) if self.preset.is_some() => invalid(
                format!("--preset reads a URI, and {target} is a path"),
                "use s3://BUCKET[/PREFIX] or file:///FOLDER, or nothing for generated data",
            ),
            Some(target) => Ok(Subject::Folder(PathBuf::from(target))),
        }
    }

    fn series(&self, subject: &Subject, readers: u16, epochs: u16, sweep: bool) -> Series {
        let means = match subject {
            Subject::Folder(_) => Means::Folder,
            Subject::Uri(_) | Subject::Generated if self.direct => Means::Direct,
            Subject::Uri(_) | Subject::Generated => Means::Mount,
        };
        let epochs = self.epochs.unwrap_or(epochs);
        let name = |epoch: u16| match (sweep, epochs) {
            (false, _) => format!("epoch {epoch}"),
            (true, 1) if readers == 1 => "1 reader".to_owned(),
            (true, 1) => format!("{readers} readers"),
            (true, _) => format!("{readers} r., {epoch}"),
        };
        let epochs = (1..=epochs).map(|number| Epoch { number, name: name(number) }).collect();
        Series { means, readers: usize::from(readers), epochs }
    }

    /// The mount of `uri` at `dir`, as `warmfs mount` has it.
    pub(super) fn into_mount(self, uri: String, dir: PathBuf, cache_dir: PathBuf) -> MountArgs {
        let cache = CacheArgs {
            cache_dir: Some(cache_dir),
            cache_size: self.cache_size,
            memory_limit: self.memory_limit,
            metadata_memory: None,
        };
        // For this process alone, and for as long as it runs.
        let look = LookArgs {
            metadata_ttl: FOREVER,
            allow_other: false,
            noexec: false,
            uid: None,
            gid: None,
            file_mode: 0o444,
            dir_mode: 0o555,
            open_mode: self.open_mode,
        };
        MountArgs {
            index: None,
            uri,
            dir: Some(dir),
            no_fuse: false,
            more: Vec::new(),
            remote: self.remote,
            cache,
            traffic: self.traffic,
            look,
            log_file: None,
            log_format: Default::default(),
            record_trace: None,
            metrics_listen: None,
            metrics_public: false,
            no_supervisor: true,
            foreground: false,
            options: Vec::new(),
        }
    }
}

fn published_series() -> Vec<Series> {
    let epoch = |number, name: &str| Epoch { number, name: name.to_owned() };
    let readers = usize::from(PUBLISHED_READERS);
    vec![
        Series { means: Means::Direct, readers, epochs: vec![epoch(1, "direct")] },
        Series { means: Means::Mount, readers, epochs: vec![epoch(1, "cold"), epoch(2, "warm")] },
    ]
}

fn parse_block(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    match (BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX).contains(&bytes) {
        true => Ok(bytes),
        false => Err(format!("{text:?} is not between 512 bytes and 64M")),
    }
}
