//! A fuzzer for whatever is parsed from disk, network, socket or user.
//! Compiled for unit tests alone; the targets stand beside their parsers.
//!
//! It mutates valid inputs, and inputs that were accepted join them. That needs
//! nothing but the tests' own build: libFuzzer would build the SDK and
//! everything else a second time with other flags, and see crate-private
//! parsers only if they were made public.
//!
//! In every run a target gets a fixed number of inputs from a fixed seed. With
//! `--ignored` it runs for `WARMFS_FUZZ_SECONDS` (60) from a new seed, which it
//! prints; `WARMFS_FUZZ_SEED` runs the same inputs again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Longest input: parsers have no reason to fail only beyond it, and short
/// ones run more often.
const INPUT_BYTES_MAX: usize = 8 << 10;

/// Accepted inputs kept to mutate further.
const POOL_MAX: usize = 512;

/// Mutations stacked on one input.
const MUTATIONS_MAX: usize = 6;

/// A single allocation of this size ends the process with the input printed:
/// going on would end it without.
const ALLOCATION_BYTES_MAX: usize = 1 << 30;

/// Numbers at which code breaks.
const NUMBERS: [i128; 16] = [
    -1,
    0,
    1,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    i32::MAX as i128,
    u32::MAX as i128,
    1 << 46,
    1 << 60,
    i64::MAX as i128,
    u64::MAX as i128,
    u64::MAX as i128 + 1,
];

/// How long a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effort {
    /// A fixed number of inputs from a fixed seed.
    Short,
    /// For a time, from a new seed.
    Long,
}

/// Something that parses.
pub(crate) struct Target<'a> {
    pub(crate) name: &'static str,
    /// Valid inputs.
    pub(crate) corpus: Vec<Vec<u8>>,
    /// Words of the format, put in anywhere.
    pub(crate) words: &'a [&'a str],
    /// Inputs of a short run.
    pub(crate) inputs: u64,
    /// Memory that one input may cost: so much, and so much for each byte of it.
    pub(crate) memory: (usize, usize),
}

impl Target<'_> {
    /// Gives `check` mutated inputs; it panics on a defect and tells whether
    /// the input was accepted.
    pub(crate) fn run(self, effort: Effort, mut check: impl FnMut(&[u8]) -> bool) {
        let named_seed = number_from_env("WARMFS_FUZZ_SEED");
        let (seed, limit) = match effort {
            Effort::Short => (named_seed.unwrap_or(1), None),
            Effort::Long => {
                let seconds = number_from_env("WARMFS_FUZZ_SECONDS").unwrap_or(60);
                (named_seed.unwrap_or_else(|| fastrand::u64(..)), Some(seconds))
            }
        };
        let start = Instant::now();
        let is_over = |inputs: u64| match limit {
            Some(seconds) => start.elapsed() >= Duration::from_secs(seconds),
            None => inputs >= self.inputs,
        };
        say(&format!("fuzz {}: seed {seed}", self.name), effort);
        let mut dice = fastrand::Rng::with_seed(seed);
        let (mut pool, mut inputs, mut accepted) = (self.corpus.clone(), 0, 0_u64);
        while !is_over(inputs) {
            let input = match pool.get(inputs as usize) {
                Some(valid) if inputs < self.corpus.len() as u64 => valid.clone(),
                _ => self.mutated(&pool, &mut dice),
            };
            if self.is_accepted(&input, seed, &mut check) {
                accepted += 1;
                if pool.len() < POOL_MAX {
                    pool.push(input);
                } else if dice.u8(..) < 8 {
                    let at = dice.usize(self.corpus.len()..POOL_MAX);
                    pool[at] = input;
                }
            }
            inputs += 1;
        }
        let rate = inputs as f64 / start.elapsed().as_secs_f64();
        let name = self.name;
        let line = format!("fuzz {name}: {inputs} inputs, {accepted} accepted, {rate:.0}/s");
        say(&line, effort);
        assert!(accepted > 0, "fuzz {name}: not even a valid input was accepted");
    }

    fn is_accepted(&self, input: &[u8], seed: u64, check: &mut impl FnMut(&[u8]) -> bool) -> bool {
        Meter::start(input);
        let result = catch_unwind(AssertUnwindSafe(|| check(input)));
        let peak = Meter::stop();
        let describe = || format!("fuzz {}: seed {seed}, input {}", self.name, hex(input));
        match result {
            Ok(accepted) => {
                let (base, each) = self.memory;
                let most = base + each * input.len();
                assert!(peak <= most, "{}: {peak} bytes of memory, at most {most}", describe());
                accepted
            }
            Err(panic) => {
                say(&describe(), Effort::Long);
                resume_unwind(panic)
            }
        }
    }

    fn mutated(&self, pool: &[Vec<u8>], dice: &mut fastrand::Rng) -> Vec<u8> {
        let mut input = pool[dice.usize(..pool.len())].clone();
        for _ in 0..dice.usize(1..=MUTATIONS_MAX) {
            self.mutate(&mut input, pool, dice);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    fn mutate(&self, input: &mut Vec<u8>, pool: &[Vec<u8>], dice: &mut fastrand::Rng) {
        let at = dice.usize(..=input.len());
        let end = dice.usize(at..=input.len()).min(at + 64);
        match dice.u8(..11) {
            0 if at < input.len() => input[at] ^= 1 << dice.u8(..8),
            1 if at < input.len() => input[at] = dice.u8(..),
            2 => input.truncate(at),
            3 => drop(input.drain(at..end)),
            4 => {
                let again = input[at..end].to_vec();
                drop(input.splice(at..at, again));
            }
            5 => drop(input.splice(at..at, (0..dice.usize(1..9)).map(|_| dice.u8(..)))),
            6 => {
                let other = &pool[dice.usize(..pool.len())];
                let from = dice.usize(..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            7 if !self.words.is_empty() => {
                let word = self.words[dice.usize(..self.words.len())];
                let end = if dice.bool() { end } else { at };
                drop(input.splice(at..end, word.bytes()));
            }
            8 => replace_number(input, at, dice),
            9 => {
                let number = NUMBERS[dice.usize(..NUMBERS.len())].to_le_bytes();
                let end = (at + 8).min(input.len());
                input[at..end].copy_from_slice(&number[..end - at]);
            }
            // A length as postcard writes it, of up to 2^64.
            _ => {
                let length = (0..dice.usize(1..10)).map(|_| 0xff).chain([1]);
                drop(input.splice(at..end.min(at + 1), length.collect::<Vec<u8>>()));
            }
        }
    }
}

/// Another number for the first one in decimal at or after `at`.
fn replace_number(input: &mut Vec<u8>, at: usize, dice: &mut fastrand::Rng) {
    let Some(start) = input[at..].iter().position(u8::is_ascii_digit) else { return };
    let start = at + start;
    let digits = input[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = NUMBERS[dice.usize(..NUMBERS.len())].to_string();
    drop(input.splice(start..start + digits, number.bytes()));
}

fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Past the test harness, which keeps the output of tests that pass to itself.
fn say(line: &str, effort: Effort) {
    if effort == Effort::Long {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A short and a long test of each target.
macro_rules! fuzz_tests {
    ($($target:ident),+ $(,)?) => {
        $(mod $target {
            #[test]
            fn short() {
                super::$target($crate::fuzz::Effort::Short);
            }

            #[test]
            #[ignore = "runs for WARMFS_FUZZ_SECONDS"]
            fn long() {
                super::$target($crate::fuzz::Effort::Long);
            }
        })+
    };
}
pub(crate) use fuzz_tests;

/// The memory that one thread has, above what it had at the start.
struct Meter;

thread_local! {
    static IS_METERED: Cell<bool> = const { Cell::new(false) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static INPUT: Cell<(*const u8, usize)> = const { Cell::new((std::ptr::null(), 0)) };
}

impl Meter {
    fn start(input: &[u8]) {
        LIVE.set(0);
        PEAK.set(0);
        INPUT.set((input.as_ptr(), input.len()));
        IS_METERED.set(true);
    }

    fn stop() -> usize {
        IS_METERED.set(false);
        usize::try_from(PEAK.get()).unwrap_or(0)
    }

    fn count(change: isize) {
        if !IS_METERED.try_with(Cell::get).unwrap_or(false) {
            return;
        }
        LIVE.set(LIVE.get() + change);
        PEAK.set(PEAK.get().max(LIVE.get()));
        if change >= ALLOCATION_BYTES_MAX.cast_signed() {
            IS_METERED.set(false);
            let (start, len) = INPUT.get();
            // SAFETY: the input outlives the time in which it is metered.
            let input = unsafe { std::slice::from_raw_parts(start, len) };
            say(
                &format!("fuzz: an allocation of {change} bytes, input {}", hex(input)),
                Effort::Long,
            );
            std::process::abort();
        }
    }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Meter::count(layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Meter::count(layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        Meter::count(-layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Meter::count(size.cast_signed() - layout.size().cast_signed());
        // SAFETY: as the caller promises.
        unsafe { System.realloc(start, layout, size) }
    }
}
