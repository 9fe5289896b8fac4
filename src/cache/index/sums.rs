//! The checksum of each page of the index file: in memory, and in `index.sums`
//! beside it.
//!
//! That file follows every write. A page is unknown in it from before it is
//! written until after, so that whoever is killed leaves sums that are true or
//! missing: the kernel keeps what was written to both files. A power cut does
//! not, so they count in the boot they were written in only; unless the index
//! was closed in order, and looks as it did then.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use serde::{Deserialize, Serialize};

use crate::cache::lock;
use crate::cache::record::{Fingerprint, RowKey, decode, encode};

/// What one checksum is about. redb reads and writes whole pages of this size,
/// but for its header.
pub(super) const PAGE: u64 = 4096;

/// Of a page that was neither written nor read yet. A page whose checksum
/// happens to be this, one in four billion, is never found damaged.
pub(super) const UNKNOWN: u32 = 0;

/// The head of the file, and where the sums begin: less than a sector, so that
/// it is written whole or not at all.
const HEAD_BYTES: u64 = 128;

const SUM_BYTES: u64 = 4;

/// Read at once when all of the index is compared: whole pages.
const MATCHED_BYTES: usize = 1 << 20;

const VERSION: u32 = 1;

/// No table's tag: a row is never taken for a head.
const TAG_HEAD: u8 = 6;

/// The sum of a page of zeros, as those that a file grows by.
pub(super) static ZEROS: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&[0; PAGE as usize]));

/// What is known of the pages of the index.
#[derive(Debug)]
pub(super) struct Sums {
    index: PathBuf,
    boot: u128,
    /// A page was not what is known of it.
    doubted: AtomicBool,
    known: RwLock<Vec<u32>>,
    /// Held over each write to the index.
    ledger: Mutex<Ledger>,
}

/// What whoever writes to the index has to keep.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The file all this is about.
    ino: u64,
    /// `index.sums`, which may not be there: that costs a check, and no more.
    copy: Option<File>,
    /// Pages of which a failed sync leaves it open what they hold.
    pub unsynced: Vec<Range<u64>>,
    /// The page that was last written in part, as it is now: redb writes its
    /// header with every commit.
    pub partial: Option<(u64, Vec<u8>)>,
}

/// How the sums were left that were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The index was closed, and nobody wrote to it since.
    Closed,
    /// In this boot, by somebody who did not come to close it.
    Open,
    /// There are none that can be believed.
    Nothing,
}

#[derive(Serialize, Deserialize)]
struct Head {
    version: u32,
    boot: u128,
    ino: u64,
    /// What the index looked like when it was closed, and the CRC32C of the sums.
    closed: Option<(Fingerprint, u32)>,
}

pub(super) fn pages(len: u64) -> u64 {
    len.div_ceil(PAGE)
}

/// The sum of a page, of which zeros at the end may be missing.
fn sum(page: &[u8]) -> u32 {
    const NO_BYTES: [u8; PAGE as usize] = [0; PAGE as usize];
    crc32c::crc32c_append(crc32c::crc32c(page), &NO_BYTES[page.len()..])
}

pub(super) fn sums_of(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks(PAGE as usize).map(sum)
}

impl Sums {
    /// The sums that were left beside `index`. Nothing is written before
    /// [`Sums::keep`]: somebody else may hold it open.
    pub(super) fn load(index: &Path, boot: u128) -> (Sums, Left) {
        let now = Fingerprint::of(index);
        let found = now.and_then(|now| read_copy(&copy_path(index), now, boot));
        let (known, left) = found.unwrap_or((Vec::new(), Left::Nothing));
        let ledger = Ledger { ino: now.map_or(0, |now| now.ino), ..Ledger::default() };
        let index = index.to_owned();
        let (known, ledger) = (RwLock::new(known), Mutex::new(ledger));
        (Sums { index, boot, doubted: AtomicBool::new(false), known, ledger }, left)
    }

    /// From now on the copy on disk follows.
    pub(super) fn keep(&self) {
        self.save(&mut lock(&self.ledger), None);
    }

    /// Leaves the sums behind for the next one to open the index, which was
    /// closed. Without them it is checked as a whole, and that is all.
    pub(super) fn close(&self, clean: bool) {
        let ledger = &mut *lock(&self.ledger);
        let now = Fingerprint::of(&self.index).filter(|now| clean && now.ino == ledger.ino);
        if let Some(now) = now {
            self.save(ledger, Some(now));
        }
        ledger.copy = None;
    }

    /// The index file is opened, with what is known of it if it is the same.
    pub(super) fn begin(&self, file: &fs::Metadata) {
        let ledger = &mut *lock(&self.ledger);
        ledger.partial = None;
        if file.ino() != ledger.ino || file.len() == 0 {
            ledger.ino = file.ino();
            self.forget_all(ledger);
        }
        self.resize(ledger, pages(file.len()), UNKNOWN);
    }

    /// No page is known any more: redb's own checksums have to tell.
    pub(super) fn forget(&self) {
        self.forget_all(&mut lock(&self.ledger));
    }

    fn forget_all(&self, ledger: &mut Ledger) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).fill(UNKNOWN);
        self.doubted.store(false, Ordering::Relaxed);
        ledger.partial = None;
        ledger.unsynced.clear();
        if ledger.copy.is_some() {
            self.save(ledger, None);
        }
    }

    /// Whether what was read at `start`, the begin of a page, is what is known
    /// of it. What is not known is believed.
    pub(super) fn accept(&self, start: u64, bytes: &[u8]) -> bool {
        let first = (start / PAGE) as usize;
        let mut all_known = true;
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            for (n, found) in (first..).zip(sums_of(bytes)) {
                match known.get(n) {
                    None => {}
                    Some(&UNKNOWN) => all_known = false,
                    Some(sum) if *sum == found => {}
                    Some(_) => return false,
                }
            }
        }
        if !all_known {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            for (sum, found) in known.iter_mut().skip(first).zip(sums_of(bytes)) {
                if *sum == UNKNOWN {
                    *sum = found;
                }
            }
        }
        true
    }

    /// Whether all of the index is what is known of it. Read from its begin to
    /// its end, it takes a fraction of what redb's own check takes.
    pub(super) fn match_all(&self) -> bool {
        let mut buffer = vec![0; MATCHED_BYTES];
        let mut matches = || {
            let file = File::open(&self.index)?;
            let len = file.metadata()?.len();
            for start in (0..len).step_by(MATCHED_BYTES) {
                let part = &mut buffer[..(len - start).min(MATCHED_BYTES as u64) as usize];
                file.read_exact_at(part, start)?;
                if !self.accept(start, part) {
                    return Ok(false);
                }
            }
            Ok::<_, io::Error>(true)
        };
        matches().unwrap_or(false)
    }

    /// Notes that a page was not accepted, until all are forgotten.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Relaxed)
    }

    /// Waits until nobody writes.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    /// These pages are about to be written.
    pub(super) fn expect(&self, ledger: &mut Ledger, first: u64, count: usize) {
        self.copy(ledger, first, &vec![UNKNOWN; count]);
    }

    /// What the pages from `first` on hold now.
    pub(super) fn set(&self, ledger: &mut Ledger, first: u64, sums: &[u32]) {
        {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let (first, end) = (first as usize, first as usize + sums.len());
            if known.len() < end {
                known.resize(end, UNKNOWN);
            }
            known[first..end].copy_from_slice(sums);
        }
        self.copy(ledger, first, sums);
    }

    /// The index has so many pages now; new ones hold what `sum` says.
    pub(super) fn resize(&self, ledger: &mut Ledger, pages: u64, sum: u32) {
        let had = {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let had = known.len() as u64;
            known.resize(pages as usize, sum);
            had
        };
        if pages > had {
            self.copy(ledger, had, &vec![sum; (pages - had) as usize]);
        } else if pages < had {
            let cut = ledger.copy.as_ref().map(|file| file.set_len(HEAD_BYTES + pages * SUM_BYTES));
            self.or_give_up(ledger, cut);
        }
    }

    /// As in memory, so on disk.
    fn copy(&self, ledger: &mut Ledger, first: u64, sums: &[u32]) {
        let at = HEAD_BYTES + first * SUM_BYTES;
        let written = ledger.copy.as_ref().map(|file| file.write_all_at(&bytes_of(sums), at));
        self.or_give_up(ledger, written);
    }

    fn save(&self, ledger: &mut Ledger, closed: Option<Fingerprint>) {
        let bytes = bytes_of(&self.known.read().unwrap_or_else(PoisonError::into_inner));
        let closed = closed.map(|now| (now, crc32c::crc32c(&bytes)));
        let head = Head { version: VERSION, boot: self.boot, ino: ledger.ino, closed };
        let saved = save_copy(&copy_path(&self.index), &head, &bytes);
        let saved = saved.map(|file| ledger.copy = Some(file));
        self.or_give_up(ledger, Some(saved));
    }

    /// Sums that do not follow would be wrong soon: none are better.
    fn or_give_up(&self, ledger: &mut Ledger, done: Option<io::Result<()>>) {
        if let Some(Err(error)) = done {
            tracing::debug!(%error, "the cache index is checked at the next start");
            ledger.copy = None;
            let _ = fs::remove_file(copy_path(&self.index));
        }
    }
}

/// Where the sums of `index` lie on disk.
pub(super) fn copy_path(index: &Path) -> PathBuf {
    index.with_extension("sums")
}

fn bytes_of(sums: &[u32]) -> Vec<u8> {
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

/// Writes all of it to a new file, the head last.
fn save_copy(path: &Path, head: &Head, sums: &[u8]) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all_at(sums, HEAD_BYTES)?;
    let row = encode(&RowKey(TAG_HEAD, 0, &[]), head);
    let mut bytes = vec![u8::try_from(row.len()).map_err(io::Error::other)?];
    bytes.extend(row);
    file.write_all_at(&bytes, 0)?;
    Ok(file)
}

/// The sums in the file at `path`, if they are about an index that looks as
/// `now`, and can be believed.
fn read_copy(path: &Path, now: Fingerprint, boot: u128) -> Option<(Vec<u32>, Left)> {
    let mut bytes = Vec::new();
    // One more than there can be, to see that there are more.
    let limit = HEAD_BYTES + pages(now.size) * SUM_BYTES + 1;
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    let (head, sums) = bytes.split_at_checked(HEAD_BYTES as usize)?;
    let (len, head) = head.split_first()?;
    let head: Head = decode(&RowKey(TAG_HEAD, 0, &[]), head.get(..usize::from(*len))?)?;
    let left = match head.closed {
        Some((then, crc)) if then == now && crc == crc32c::crc32c(sums) => Left::Closed,
        None if head.boot == boot && head.ino == now.ino => Left::Open,
        _ => Left::Nothing,
    };
    let (sums, _) = sums.as_chunks::<{ SUM_BYTES as usize }>();
    let known = sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect();
    (head.version == VERSION && left != Left::Nothing).then_some((known, left))
}
