//! `warmfs demo`: what this machine gains, without an account or a network.
//!
//! A store in this process plays the cloud; everything else is real: the mount
//! is made by this very program as a user makes it, the files are read through
//! the kernel, and every byte is compared. It owns one temporary folder, and
//! leaves neither that nor a mount behind, however it ends.

mod copy;
mod epoch;
pub(super) mod mounted;
mod page_cache;
mod report;
mod stop;
mod work_dir;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::runtime::{Builder, Runtime};

use super::output;
use crate::embedded_store::{Batch, Dataset, EmbeddedStore, StoreOptions};
use crate::units::format_bytes;
use epoch::{EpochResult, Files};
use mounted::MountPlan;
use page_cache::Dropped;
use report::Row;
use stop::{Stop, Stopped};
use work_dir::WorkDir;

const BUCKET: &str = "demo";
/// The mean image of the best-known image dataset.
const SMALL_FILE_BYTES: usize = 110 << 10;
/// A shard of packed records.
const LARGE_FILE_BYTES: usize = 10 << 20;
/// Slower than this, and a file takes so long that the watchdog sees no life.
const RATE_BYTES_PER_S_MIN: u64 = 100_000;

/// Options of `warmfs demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Threads that read files
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub readers: u16,
    /// Milliseconds from a request to the first byte of the store's answer
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(..=10_000))]
    pub ttfb_ms: u64,
    /// Bytes per second that a connection to the store carries, such as 50M (decimal)
    #[arg(long, default_value = "50M", value_parser = parse_rate)]
    pub rate: u64,
    /// Files of 110 KiB
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub small_files: u32,
    /// Files of 10 MiB
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(..=10_000))]
    pub large_files: u32,
    /// Where the demo's temporary folder is made [default: the system's]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the temporary folder
    #[arg(long, hide = true)]
    pub keep: bool,
}

/// Runs the demo. The exit code is not 0 if a byte was wrong, if what was
/// cached was fetched again, or if the demo could not be completed.
pub fn run(args: DemoArgs) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return failed(&format!("this program cannot be found: {error}"), 1),
    };
    let started = Instant::now();
    let stop = Arc::new(Stop::default());
    let demonstrated = demonstrate(&args, Means { program, whole_machine: true }, &stop);
    match (demonstrated, stop.reason()) {
        (_, Some(reason)) => failed(&reason.message, reason.exit_code),
        (Err(Failure(message)), None) => failed(&message, 1),
        (Ok(rows), None) => {
            say(&format!("\n{}", report::chart(&rows)));
            let failures = report::failures(&rows);
            if failures.is_empty() {
                say("Every byte was right, and nothing that was cached was fetched again.");
                say(&format!("Done in {:.0} s.", started.elapsed().as_secs_f64()));
                return ExitCode::SUCCESS;
            }
            for failure in failures {
                complain(&format!("FAILED {failure}"));
            }
            ExitCode::FAILURE
        }
    }
}

fn failed(message: &str, exit_code: u8) -> ExitCode {
    complain(&format!("warmfs demo: {message}"));
    ExitCode::from(exit_code)
}

/// Prints a line. Who has gone, as in `warmfs demo | head`, needs none, and a
/// panic would come between the demo and its cleaning up.
fn say(text: &str) {
    let _ = output::line(text);
}

/// The same on stderr.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Why there is no result, one line.
#[derive(Debug)]
struct Failure(String);

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Failure(message)
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Failure("stopped".to_owned())
    }
}

fn io_failure(what: &str) -> impl FnOnce(std::io::Error) -> Failure {
    move |error| Failure(format!("{what}: {error}"))
}

/// What the demo works with, besides its options.
#[derive(Debug)]
struct Means {
    /// Makes the mounts.
    program: PathBuf,
    /// Whether the process's signals and the machine's page cache are ours to
    /// use: not in tests, which share both.
    whole_machine: bool,
}

/// Sets the stage, measures, and clears everything away.
fn demonstrate(args: &DemoArgs, means: Means, stop: &Arc<Stop>) -> Result<Vec<Row>, Failure> {
    if args.small_files + args.large_files == 0 {
        return Err(Failure("nothing to read: both kinds of files are 0".to_owned()));
    }
    let small = Batch { count: args.small_files as usize, size: SMALL_FILE_BYTES };
    let large = Batch { count: args.large_files as usize, size: LARGE_FILE_BYTES };
    let dataset = Dataset::generate(small, large);
    let dataset_bytes = dataset.total_bytes();
    // Once copied, once cached; the cache counts whole blocks.
    let cache_size_bytes = 2 * dataset_bytes;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let work = WorkDir::create(&parent, dataset_bytes + cache_size_bytes, args.keep)?;

    let runtime = Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(io_failure("cannot start threads"))?;
    let entered = runtime.enter();
    if means.whole_machine {
        stop::stop_on_signals(stop.clone(), work.mount())
            .map_err(io_failure("cannot handle signals"))?;
    }
    runtime.spawn(stop::watch(stop.clone(), work.mount()));
    let store = runtime
        .block_on(EmbeddedStore::start(StoreOptions {
            ttfb: Duration::from_millis(args.ttfb_ms),
            rate_bytes_per_s_per_connection: Some(args.rate),
            ..StoreOptions::default()
        }))
        .map_err(io_failure("the store on loopback cannot start"))?;
    for (key, body) in &dataset.files {
        store.put(BUCKET, key.as_str(), body.clone());
    }
    describe(args, dataset_bytes, &work);

    let mount = MountPlan {
        program: means.program,
        uri: format!("s3://{BUCKET}"),
        endpoint_url: store.url(),
        dir: work.mount(),
        cache_dir: work.cache(),
        cache_size_bytes,
        log_dir: work.logs(),
    };
    let stage = Stage {
        runtime: &runtime,
        store: &store,
        work: &work,
        mount,
        files: dataset.files.into(),
        readers: usize::from(args.readers),
        whole_machine: means.whole_machine,
        stop,
    };
    let rows = stage.measure();
    drop(entered);
    // A copy that was stopped may still write into the folder that goes next.
    runtime.shutdown_timeout(Duration::from_secs(2));
    rows
}

fn describe(args: &DemoArgs, dataset_bytes: u64, work: &WorkDir) {
    say(&format!(
        "{} files of {} and {} of {}: {}; {} readers, shuffled.",
        args.small_files,
        format_bytes(SMALL_FILE_BYTES as u64),
        args.large_files,
        format_bytes(LARGE_FILE_BYTES as u64),
        format_bytes(dataset_bytes),
        args.readers,
    ));
    say(&format!(
        "The store is this process, on loopback: {} ms to the first byte, {} MB/s a\nconnection. No network is used.",
        args.ttfb_ms,
        args.rate as f64 / 1e6,
    ));
    say(&format!("Copy and cache are in {}{}\n", work.root().display(), work.remark()));
}

/// Everything that the measurements use.
struct Stage<'a> {
    runtime: &'a Runtime,
    store: &'a EmbeddedStore,
    work: &'a WorkDir,
    mount: MountPlan,
    files: Files,
    readers: usize,
    whole_machine: bool,
    stop: &'a Arc<Stop>,
}

impl Stage<'_> {
    fn measure(&self) -> Result<Vec<Row>, Failure> {
        let mut rows = Vec::new();
        let mut show = |row: Row| {
            say(&report::line(&row));
            rows.push(row);
        };
        say(&report::header());
        show(self.row("copy first, then read", false, || self.copy_first())?);
        self.settle()?;

        let mounted = self.mount.mount()?;
        show(self.row("warmfs: epoch 1", false, || self.read(&self.mount.dir, 1))?);
        show(self.row("warmfs: epoch 2", true, || self.read(&self.mount.dir, 2))?);
        mounted.unmount()?;

        self.drop_page_cache()?;
        let mounted = self.mount.mount()?;
        show(self.row("warmfs: after a remount *", true, || self.read(&self.mount.dir, 3))?);
        mounted.unmount()?;

        let dropped = self.drop_page_cache()?;
        show(self.row("plain disk *", false, || self.read(&self.work.copy(), 4))?);
        show(self.row("plain disk, again", false, || self.read(&self.work.copy(), 5))?);
        say(footnote(dropped));
        Ok(rows)
    }

    /// Measures, and counts the GETs meanwhile.
    fn row(
        &self,
        name: &'static str,
        must_be_local: bool,
        measured: impl FnOnce() -> Result<EpochResult, Failure>,
    ) -> Result<Row, Failure> {
        self.stop.check()?;
        self.stop.progress(1);
        let before = self.store.counts().get.requests;
        let result = measured()?;
        let gets = self.store.counts().get.requests - before;
        Ok(Row { name, result, gets, must_be_local })
    }

    fn read(&self, dir: &Path, seed: u64) -> Result<EpochResult, Failure> {
        Ok(epoch::epoch(dir, &self.files, self.readers, seed, self.stop)?)
    }

    /// The copy is part of the time: nobody reads before it is complete.
    fn copy_first(&self) -> Result<EpochResult, Failure> {
        let started = Instant::now();
        let (url, to) = (self.store.url(), self.work.copy());
        self.runtime.block_on(async {
            tokio::select! {
                copied = copy::copy(&url, BUCKET, &to, &self.files, self.stop) => copied,
                () = self.stop.wait() => Ok(()),
            }
        })?;
        self.stop.check()?;
        let copied = started.elapsed();
        let mut result = self.read(&to, 0)?;
        result.elapsed += copied;
        result.first_batch += copied;
        Ok(result)
    }

    /// Lets no measurement pay for what the one before left to write.
    fn settle(&self) -> Result<(), Failure> {
        self.stop.check()?;
        self.stop.progress(1);
        page_cache::write_out(&[&self.work.cache()]).map_err(io_failure("cannot write out"))
    }

    fn drop_page_cache(&self) -> Result<Dropped, Failure> {
        self.stop.check()?;
        self.stop.progress(1);
        let dirs: [&Path; 2] = [&self.work.cache(), &self.work.copy()];
        page_cache::drop_page_cache(&dirs, self.whole_machine)
            .map_err(io_failure("cannot drop the page cache"))
    }
}

fn footnote(dropped: Dropped) -> &'static str {
    match dropped {
        Dropped::All => "* page cache dropped before",
        Dropped::OwnFiles => {
            "* page cache dropped before, for the demo's files only: the kernel's switch\n  (/proc/sys/vm/drop_caches) is not ours to use here"
        }
    }
}

/// Parses `50M` as 50,000,000: line rates are decimal, unlike sizes of files.
fn parse_rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a rate: use bytes per second, such as 50M");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let rate = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)?;
    if rate < RATE_BYTES_PER_S_MIN {
        return Err(format!("a rate below {RATE_BYTES_PER_S_MIN} bytes per second takes too long"));
    }
    Ok(rate)
}

#[cfg(test)]
mod tests;
