//! Objects whose bytes tell what they are, and when each version was current.
//!
//! An object is a run of words of 16 bytes: version, object, number of the word,
//! and a mark. Any byte that is wrong can so be told: of another version, of
//! another object, of another place, zero, or flipped.

use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::common::store::{BUCKET, Store};

const WORD: usize = 16;
const MARK: u32 = u32::from_le_bytes(*b"SOAK");
const CHUNK: usize = 128 << 10;
const FOLDER_FILES: usize = 100;

/// Bytes of a buffer that are enough to tell versions apart.
const SIGN_BYTES: usize = 64;

/// A version of an object. Its lowest byte is never zero, so that an object of
/// one byte is no hole.
pub(crate) type Number = u32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) number: Number,
    pub(crate) size: usize,
    /// Noted before the store had it.
    pub(crate) since: Instant,
    /// Noted after the store had something else.
    until: Option<Instant>,
}

#[derive(Debug, Default)]
struct History {
    versions: Vec<Version>,
    /// From before it was deleted until after it was there again.
    absent: Vec<(Instant, Option<Instant>)>,
}

impl History {
    fn current(&self) -> Option<&Version> {
        self.versions.last().filter(|version| version.until.is_none())
    }
}

/// All objects, in a bucket.
pub(crate) struct Objects {
    store: Store,
    all: Vec<Mutex<History>>,
}

impl Objects {
    /// Puts objects of mixed sizes until they have `bytes`.
    pub(crate) fn put(store: Store, bytes: u64, dice: &mut fastrand::Rng) -> Objects {
        let mut objects = Objects { store, all: Vec::new() };
        let mut left = bytes;
        while left > 0 {
            let size = some_size(dice);
            objects.all.push(Mutex::default());
            objects.change(objects.all.len() - 1, size);
            left = left.saturating_sub(size as u64);
        }
        objects
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The path below the mount.
    pub(crate) fn path(object: usize) -> String {
        format!("{:02}/{object:05}", object / FOLDER_FILES)
    }

    /// Puts a new version.
    pub(crate) fn change(&self, object: usize, size: usize) {
        let mut history = self.history(object);
        let number = match history.versions.last().map_or(1, |last| last.number + 1) {
            number if number % 256 == 0 => number + 1,
            number => number,
        };
        let was_there = history.current().is_some();
        history.versions.push(Version { number, size, since: Instant::now(), until: None });
        let etag = format!("{object:016x}{number:016x}");
        self.store.put_with_etag(BUCKET, Self::path(object), body(object, number, size), etag);
        let now = Instant::now();
        if was_there {
            let before = history.versions.len() - 2;
            history.versions[before].until = Some(now);
        }
        if let Some((_, until @ None)) = history.absent.last_mut() {
            *until = Some(now);
        }
    }

    pub(crate) fn delete(&self, object: usize) {
        let mut history = self.history(object);
        if history.current().is_none() {
            return;
        }
        history.absent.push((Instant::now(), None));
        self.store.delete(BUCKET, &Self::path(object));
        let now = Instant::now();
        history.versions.last_mut().expect("it is there").until = Some(now);
    }

    /// The size of what is there.
    pub(crate) fn size(&self, object: usize) -> Option<usize> {
        self.history(object).current().map(|version| version.size)
    }

    /// Whether something else, or nothing, was there after `since`.
    pub(crate) fn changed_since(&self, object: usize, since: Instant) -> bool {
        let history = self.history(object);
        history.versions.iter().rev().any(|version| version.until.is_some_and(|at| at >= since))
            || self.was_absent_locked(&history, since)
    }

    /// Whether it was not there at some time after `since`.
    pub(crate) fn was_absent(&self, object: usize, since: Instant) -> bool {
        self.was_absent_locked(&self.history(object), since)
    }

    fn was_absent_locked(&self, history: &History, since: Instant) -> bool {
        history.absent.iter().rev().any(|(_, until)| until.is_none_or(|at| at >= since))
    }

    /// The versions that `bytes` from `offset` on may be of, by their begin: more
    /// than one where they are too few to tell.
    pub(crate) fn versions_of(
        &self,
        object: usize,
        file_size: usize,
        offset: usize,
        bytes: &[u8],
    ) -> Vec<Version> {
        let sign = &bytes[..bytes.len().min(SIGN_BYTES)];
        let history = self.history(object);
        let is_of = |version: &&Version| {
            version.size == file_size && first_wrong(object, version.number, offset, sign).is_none()
        };
        history.versions.iter().filter(is_of).copied().collect()
    }

    /// How long ago a version was replaced, seen from `at`.
    pub(crate) fn stale_for(&self, object: usize, number: Number, at: Instant) -> Duration {
        let history = self.history(object);
        let version = history.versions.iter().find(|version| version.number == number);
        let until = version.and_then(|version| version.until);
        until.map_or(Duration::ZERO, |until| at.saturating_duration_since(until))
    }

    /// Versions with their ages, for a report.
    pub(crate) fn tell(&self, object: usize) -> String {
        let history = self.history(object);
        let mut text = String::new();
        for version in history.versions.iter().rev().take(4) {
            let since = version.since.elapsed().as_secs_f64();
            let _ = write!(text, " v{} of {} B {since:.1} s ago;", version.number, version.size);
        }
        text
    }

    fn history(&self, object: usize) -> MutexGuard<'_, History> {
        self.all[object].lock().expect("no holder panics")
    }
}

/// Sizes as datasets have them, and those at which stores go wrong.
pub(crate) fn some_size(dice: &mut fastrand::Rng) -> usize {
    match dice.u8(..100) {
        0..5 => 1,
        5..20 => dice.usize(2..4096),
        20..40 => {
            let chunks = dice.usize(1..9) * CHUNK;
            chunks - 1 + dice.usize(..3)
        }
        40..70 => dice.usize(80 << 10..140 << 10),
        70..88 => dice.usize(256 << 10..2 << 20),
        88..97 => dice.usize(2 << 20..6 << 20),
        _ => dice.usize(8 << 20..=16 << 20),
    }
}

fn word(object: usize, version: Number, number: usize) -> u128 {
    u128::from(MARK) << 96
        | u128::from(number as u32) << 64
        | u128::from(object as u32 + 1) << 32
        | u128::from(version)
}

fn body(object: usize, version: Number, size: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(size + WORD);
    for number in 0..size.div_ceil(WORD) {
        bytes.extend_from_slice(&word(object, version, number).to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}

/// The place in `bytes`, which were read at `offset`, of the first wrong one.
pub(crate) fn first_wrong(
    object: usize,
    version: Number,
    offset: usize,
    bytes: &[u8],
) -> Option<usize> {
    let expected = |at: usize| word(object, version, at / WORD).to_le_bytes()[at % WORD];
    let wrong_in = |from: usize, part: &[u8]| {
        let wrong = part.iter().enumerate().position(|(at, byte)| *byte != expected(from + at));
        wrong.map(|at| from - offset + at)
    };
    let head = offset.next_multiple_of(WORD).min(offset + bytes.len()) - offset;
    if let Some(at) = wrong_in(offset, &bytes[..head]) {
        return Some(at);
    }
    let words = bytes[head..].chunks_exact(WORD);
    let tail = words.remainder();
    let first = (offset + head) / WORD;
    for (n, found) in words.enumerate() {
        let found: [u8; WORD] = found.try_into().expect("a word");
        if u128::from_le_bytes(found) != word(object, version, first + n) {
            return wrong_in((first + n) * WORD, &found);
        }
    }
    wrong_in(offset + bytes.len() - tail.len(), tail)
}

/// Wrong bytes in a buffer.
pub(crate) fn count_wrong(object: usize, version: Number, offset: usize, bytes: &[u8]) -> u64 {
    let expected = |at: usize| word(object, version, at / WORD).to_le_bytes()[at % WORD];
    bytes.iter().enumerate().filter(|(at, byte)| **byte != expected(offset + at)).count() as u64
}

/// What the bytes around `at` in a buffer are instead.
pub(crate) fn describe(
    object: usize,
    version: Number,
    offset: usize,
    bytes: &[u8],
    at: usize,
) -> String {
    let start = (offset + at) / WORD * WORD;
    let found = start.checked_sub(offset).and_then(|from| bytes.get(from..from + WORD));
    let Some(found) = found else {
        let end = bytes.len().min(at + WORD);
        return format!("the bytes {:02x?}", &bytes[at..end]);
    };
    if found.iter().all(|byte| *byte == 0) {
        let zeros = bytes[at..].iter().take_while(|byte| **byte == 0).count();
        return format!("{zeros} zeros");
    }
    let found = u128::from_le_bytes(found.try_into().expect("a word"));
    let flipped = (found ^ word(object, version, start / WORD)).count_ones();
    let (mark, number) = ((found >> 96) as u32, (found >> 64) as u32 as usize);
    let (of, is_version) = ((found >> 32) as u32, found as u32);
    if mark == MARK {
        let place = number * WORD;
        let of = of.wrapping_sub(1);
        return format!("byte {place} of object {of} v{is_version}; {flipped} bits differ");
    }
    format!("{flipped} bits of a word that differ: {found:032x}")
}
