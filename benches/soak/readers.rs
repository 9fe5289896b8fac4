//! Readers: each opens one object after another, reads it in one of the ways
//! programs do, and compares all it gets with the version it opened.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::dataset::{Number, Objects, Version, count_wrong, describe, first_wrong};
use crate::world::{STALE_MAX, World, lock};

const READ_BYTES_MAX: usize = 1 << 20;

/// Handles that are held are held so long, in steps.
const HOLD_STEPS: u32 = 6;
const HOLD_STEP_MS_MAX: u64 = 500;

/// Objects that are read more often than others.
const HOT: usize = 40;

/// An open file, and what it turned out to be.
struct Visit<'a> {
    world: &'a World,
    object: usize,
    file: File,
    size: usize,
    began: Instant,
    epoch: u32,
    /// Once bytes told it.
    version: Option<Version>,
    /// Until then, those that fit all bytes so far; none before the first.
    maybe: Vec<Number>,
    buffer: Vec<u8>,
}

/// Reads until the time is up.
pub(crate) fn read(world: &World, reader: usize, mut dice: fastrand::Rng) {
    let count = world.objects.count();
    let mut next = dice.usize(..count);
    let mut buffer = vec![0; READ_BYTES_MAX];
    while !world.is_over() {
        let urgent = lock(&world.urgent).pop();
        let is_urgent = urgent.is_some();
        let object = urgent.unwrap_or_else(|| match dice.u8(..100) {
            0..60 => {
                next = (next + 1) % count;
                next
            }
            60..85 => dice.usize(..count),
            _ => dice.usize(..HOT.min(count)),
        });
        // Who damages waits for all to close.
        let _open = world.quiet.read().unwrap_or_else(PoisonError::into_inner);
        world.open[reader].store(object as u64, Ordering::Relaxed);
        let epoch = world.epoch();
        if !world.is_alive() {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        match Visit::open(world, object, epoch, buffer) {
            Ok(mut visit) => {
                if is_urgent || dice.bool() {
                    visit.drop_pages();
                }
                let result = visit.go(is_urgent, &mut dice);
                if let Err((what, error)) = result {
                    report(world, (object, visit.began, epoch), what, &error);
                }
                buffer = visit.buffer;
            }
            Err((began, error)) => {
                report(world, (object, began, epoch), "open", &error);
                buffer = vec![0; READ_BYTES_MAX];
            }
        }
    }
}

type Done = Result<(), (&'static str, io::Error)>;

impl<'a> Visit<'a> {
    fn open(
        world: &'a World,
        object: usize,
        epoch: u32,
        buffer: Vec<u8>,
    ) -> Result<Self, (Instant, io::Error)> {
        let began = Instant::now();
        let file = File::open(world.dir.join(Objects::path(object)));
        let file = file.map_err(|error| (began, error))?;
        let size = file.metadata().map_err(|error| (began, error))?.len() as usize;
        world.found.opens.fetch_add(1, Ordering::Relaxed);
        let (version, maybe) = (None, Vec::new());
        Ok(Visit { world, object, file, size, began, epoch, version, maybe, buffer })
    }

    /// The next reads go to the daemon.
    fn drop_pages(&self) {
        // SAFETY: a plain system call on an open descriptor; advice may fail.
        unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }

    fn go(&mut self, whole: bool, dice: &mut fastrand::Rng) -> Done {
        match dice.u8(..100) {
            _ if whole => self.whole(dice),
            0..50 => self.whole(dice),
            50..78 => self.ranges(dice),
            78..90 => self.mapped(dice),
            _ => self.held(dice),
        }
    }

    fn whole(&mut self, dice: &mut fastrand::Rng) -> Done {
        let len = *dice.choice(&[4096, 100_000, 128 << 10, READ_BYTES_MAX]).expect("some");
        let mut at = 0;
        while at < self.size && !self.world.is_over() {
            self.read(at, len)?;
            at += len;
        }
        // At the end there is nothing.
        self.read(self.size, len)
    }

    fn ranges(&mut self, dice: &mut fastrand::Rng) -> Done {
        for _ in 0..dice.u32(1..20) {
            let at = dice.usize(..self.size.max(1));
            let most = [64, 4096, 128 << 10, 600_000][dice.usize(..4)];
            let len = 1 + dice.usize(..most);
            self.read(at, len)?;
        }
        Ok(())
    }

    /// Reads again and again what may be replaced meanwhile.
    fn held(&mut self, dice: &mut fastrand::Rng) -> Done {
        for _ in 0..dice.u32(1..=HOLD_STEPS) {
            self.ranges(dice)?;
            if self.world.wants_quiet.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.world.pause(Duration::from_millis(dice.u64(..HOLD_STEP_MS_MAX)));
            self.drop_pages();
        }
        self.whole(dice)
    }

    fn read(&mut self, at: usize, len: usize) -> Done {
        let mut filled = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        let result = loop {
            // A read may be short of what was asked for, as at a signal.
            match self.file.read_at(&mut buffer[filled..len], (at + filled) as u64) {
                Ok(0) => break Ok(()),
                Ok(n) => filled += n,
                Err(error) => break Err(("read", error)),
            }
            if filled == len {
                break Ok(());
            }
        };
        // What came before an error counts.
        self.compare(at, &buffer[..filled]);
        let due = self.size.saturating_sub(at).min(len);
        if result.is_ok() && filled != due {
            let what = format!("{} bytes at {at} instead of {due}, {self:?}", filled);
            self.world.fail("length", &what);
        }
        self.buffer = buffer;
        result
    }

    /// Reads a mapping, closed before that or not.
    fn mapped(&mut self, dice: &mut fastrand::Rng) -> Done {
        if self.size == 0 {
            return Ok(());
        }
        let mapping = Mapping::new(&self.file, self.size).map_err(|error| ("mmap", error))?;
        if dice.bool() {
            // Only the mapping holds it from here on.
            self.file = File::open("/dev/null").map_err(|error| ("/dev/null", error))?;
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        for _ in 0..dice.u32(1..12) {
            let at = dice.usize(..self.size);
            let len = (1 + dice.usize(..READ_BYTES_MAX)).min(self.size - at);
            let mut done = 0;
            while done < len && result.is_ok() {
                match mapping.read(at + done, &mut buffer[..len - done]) {
                    Ok(n) => {
                        self.compare(at + done, &buffer[..n]);
                        done += n;
                    }
                    Err(error) => result = Err(("mapping", error)),
                }
            }
            if result.is_err() {
                break;
            }
        }
        self.buffer = buffer;
        result
    }

    /// Compares with the version that the first bytes told.
    fn compare(&mut self, at: usize, bytes: &[u8]) {
        self.world.read_bytes(bytes.len());
        if bytes.is_empty() {
            return;
        }
        let objects = &self.world.objects;
        if self.version.is_none() {
            let mut versions = objects.versions_of(self.object, self.size, at, bytes);
            // What fits none of those that fitted before is a mix.
            if !self.maybe.is_empty() {
                versions.retain(|version| self.maybe.contains(&version.number));
            }
            if versions.is_empty() {
                let zero = bytes.iter().take_while(|byte| **byte == 0).count();
                let is = describe(self.object, 0, at, bytes, 0);
                let what = format!("at {at}: {is} ({zero} leading zeros), {self:?}");
                self.world.found.wrong_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                return self.world.fail("of no version", &what);
            }
            self.maybe = versions.iter().map(|version| version.number).collect();
            let [version] = versions[..] else { return };
            self.version = Some(version);
            let stale = objects.stale_for(self.object, version.number, self.began);
            let ms = stale.as_millis() as u64;
            self.world.found.stale_ms_max.fetch_max(ms, Ordering::Relaxed);
            if stale > STALE_MAX {
                let what = format!("replaced {ms} ms before the open, {self:?}");
                self.world.fail("stale version", &what);
            }
        }
        let Some(version) = self.version else { return };
        if let Some(wrong) = first_wrong(self.object, version.number, at, bytes) {
            let count = count_wrong(self.object, version.number, at, bytes);
            self.world.found.wrong_bytes.fetch_add(count, Ordering::Relaxed);
            let is = describe(self.object, version.number, at, bytes, wrong);
            let place = at + wrong;
            let what =
                format!("{count} of {} bytes, first at {place}: {is}, {self:?}", bytes.len());
            self.world.fail("wrong bytes", &what);
        }
    }
}

impl std::fmt::Debug for Visit<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (version, open_s) = (self.version.map(|v| v.number), self.began.elapsed());
        write!(
            f,
            "{} of {} B opened as {version:?} {:.2} s ago in epoch {};{}",
            Objects::path(self.object),
            self.size,
            open_s.as_secs_f64(),
            self.epoch,
            self.world.objects.tell(self.object)
        )
    }
}

/// Counts an error, and tells whether what was done to the mount explains it.
fn report(
    world: &World,
    (object, began, epoch): (usize, Instant, u32),
    what: &str,
    error: &io::Error,
) {
    let since = began.checked_sub(STALE_MAX).unwrap_or(began);
    let died = world.epoch() != epoch;
    let reason = match error.raw_os_error() {
        Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENOENT) if died => Some("daemon killed"),
        // A mapping that has no page to show.
        Some(libc::EFAULT) if died => Some("daemon killed"),
        Some(libc::ENOENT) if what == "open" && world.objects.was_absent(object, since) => {
            Some("object deleted")
        }
        Some(libc::ESTALE | libc::EFAULT) if world.objects.changed_since(object, since) => {
            Some("object changed")
        }
        _ => None,
    };
    match reason {
        Some(reason) => world.count(&format!("{what}: {error}, {reason}")),
        None => {
            let path = Objects::path(object);
            let text = format!("{path} {what}: {error};{}", world.objects.tell(object));
            world.fail(&format!("error of {what}: {error}"), &text);
        }
    }
}

/// A file in memory, read by the kernel for us: a page that cannot be had is an
/// error then, and no signal.
struct Mapping {
    at: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize) -> io::Result<Mapping> {
        // SAFETY: a new read-only mapping of an open file; nothing is replaced.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            Err(io::Error::last_os_error())
        } else {
            Ok(Mapping { at, len })
        }
    }

    fn read(&self, at: usize, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(at + buffer.len() <= self.len);
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: self.at.wrapping_byte_add(at), iov_len: buffer.len() };
        // SAFETY: both ranges are ours and live; the kernel checks every page.
        let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.at, self.len) };
    }
}
