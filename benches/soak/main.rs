//! Hours of everything at once: 16 readers compare every byte they get, while
//! objects change and vanish, the cache is evicted, verified, pinned and
//! damaged, and the daemon is killed: `cargo bench --bench soak -- --minutes 60`.
//!
//! Prints the seed, each sample, each wrong byte, and a report; exits with 1 if
//! anything was wrong, failed for no reason, or grew. Needs some 4 GiB of memory
//! and the size of the cache on disk. `--help` shows the options.
//!
//! The kills lie in the first and in the last third: one daemon lives through
//! the third between, long enough to show what grows.

#[path = "../../tests/common/mod.rs"]
mod common;
mod dataset;
mod readers;
mod report;
mod trouble;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use common::Warmfs;
use common::store::Store;
use dataset::Objects;
use world::World;

/// Beyond the time asked for: filling the store, the last remount, the end.
const GRACE: Duration = Duration::from_secs(600);

const USAGE: &str = "cargo bench --bench soak -- [--minutes N] [--seed N] [--kills N] \
[--readers N] [--dataset-mib N] [--rate-mib N] [--open-mode MODE] [--warmfs BINARY]";

/// What was asked for.
struct Options {
    minutes: f64,
    seed: u64,
    kills: u32,
    readers: usize,
    dataset_bytes: u64,
    /// For all readers together; unbounded if absent.
    rate_bytes_per_s: Option<u64>,
    open_mode: String,
    warmfs: Option<PathBuf>,
}

impl Options {
    fn parse() -> Result<Options, String> {
        let mut options = Options {
            minutes: 60.0,
            seed: fastrand::u64(..),
            kills: 20,
            readers: 16,
            dataset_bytes: 1536 << 20,
            rate_bytes_per_s: None,
            open_mode: "auto".to_owned(),
            warmfs: None,
        };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            // Cargo adds this one.
            if name == "--bench" {
                continue;
            }
            let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--minutes" => options.minutes = number(&value()?)?,
                "--seed" => options.seed = number(&value()?)?,
                "--kills" => options.kills = number(&value()?)?,
                "--readers" => options.readers = number(&value()?)?,
                "--dataset-mib" => options.dataset_bytes = number::<u64>(&value()?)? << 20,
                "--rate-mib" => options.rate_bytes_per_s = Some(number::<u64>(&value()?)? << 20),
                "--open-mode" => options.open_mode = value()?,
                "--warmfs" => options.warmfs = Some(value()?.into()),
                _ => return Err(format!("{name}: {USAGE}")),
            }
        }
        Ok(options)
    }

    fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    println!("seed {}, {} minutes, {} kills", options.seed, options.minutes, options.kills);
    let world = prepare(options);
    if world.mount() {
        run(&world);
        world.finish();
    }
    if report::report(&world) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(options: Options) -> World {
    let mut dice = fastrand::Rng::with_seed(options.seed);
    let objects = Objects::put(Store::start(), options.dataset_bytes, &mut dice);
    let mut warmfs = Warmfs::with_limit(options.duration() + GRACE);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &objects.store().url());
    if let Some(binary) = &options.warmfs {
        warmfs.set_binary(binary);
    }
    println!("{} objects, {} MiB", objects.count(), options.dataset_bytes >> 20);
    World::new(options, warmfs, objects)
}

/// All threads until the time is up; one that panics ends them all.
fn run(world: &World) {
    let seed = |n: usize| fastrand::Rng::with_seed(world.options.seed.wrapping_add(n as u64 + 1));
    let trouble: [fn(&World, fastrand::Rng); 5] =
        [trouble::change, trouble::command, trouble::damage, trouble::kill, report::sample];
    std::thread::scope(|scope| {
        for (n, cause) in trouble.into_iter().enumerate() {
            let dice = seed(n);
            scope.spawn(move || world.guard(|| cause(world, dice)));
        }
        for reader in 0..world.options.readers {
            let dice = seed(trouble.len() + reader);
            scope.spawn(move || world.guard(|| readers::read(world, reader, dice)));
        }
    });
}
