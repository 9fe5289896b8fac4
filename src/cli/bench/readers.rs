//! Those who read: threads in a folder, tasks on a remote.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::dataset::FileEntry;
use super::mapping::Mapping;
use super::pass::{Pass, Tally};
use super::plan::Reading;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::direct::{Direct, Object};
use crate::daemon::preflight::describe;

/// Time that readers get to leave when they are to stop. One may hang in a
/// kernel that waits for somebody else's file system.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// How often the progress is shown.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);

/// Reads with so many threads, each with a buffer of a block.
pub(super) fn in_threads(
    pass: &Arc<Pass>,
    files: &Arc<[FileEntry]>,
    readers: usize,
    reading: &Reading,
    show: impl FnMut(&Pass),
) -> Result<Tally, ErrorReply> {
    let (block, mapped) = (reading.block, reading.mapped);
    let (sender, tallies) = mpsc::channel();
    // Threads begin together, with their buffers in memory.
    let ready = Arc::new(Barrier::new(readers));
    for _ in 0..readers {
        let (pass, files, sender, ready) =
            (pass.clone(), files.clone(), sender.clone(), ready.clone());
        let read_on = move || {
            let mut buffer = vec![1; block as usize];
            ready.wait();
            let mut reader = Reader { pass: &pass, mapped, open: None, tally: Tally::default() };
            while let Some((item, begun)) = pass.next() {
                let entry = &files[item.file];
                match reader.read(item.file, entry, item.range, &mut buffer) {
                    Ok(true) => pass.done(&mut reader.tally, begun),
                    Ok(false) => break,
                    Err(error) => pass.fail(unreadable(entry, &error)),
                }
            }
            let _ = sender.send(reader.tally);
        };
        // Not scoped: a scope would wait for a reader that hangs in the kernel.
        thread::Builder::new().spawn(read_on).map_err(|error| {
            let message = format!("cannot start {readers} readers: {}", describe(&error));
            ErrorReply::new(ErrorCode::Environment, message).with_hint("use fewer --readers")
        })?;
    }
    drop(sender);
    gather(pass, &tallies, show)
}

/// Reads with so many tasks, without a mount.
pub(super) fn direct(
    pass: &Arc<Pass>,
    direct: &Arc<Direct>,
    objects: &Arc<[Object]>,
    readers: usize,
    runtime: &Handle,
    show: impl FnMut(&Pass),
) -> Result<Tally, ErrorReply> {
    let (sender, tallies) = mpsc::channel();
    let mut tasks = JoinSet::new();
    for _ in 0..readers {
        let (pass, direct, objects, sender) =
            (pass.clone(), direct.clone(), objects.clone(), sender.clone());
        let read_on = async move {
            let mut tally = Tally::default();
            while let Some((item, begun)) = pass.next() {
                let object = &objects[item.file];
                match direct.read(object, |bytes| pass.came(&mut tally, bytes)).await {
                    Ok(()) => pass.done(&mut tally, begun),
                    Err(error) => pass.fail(error),
                }
            }
            let _ = sender.send(tally);
        };
        tasks.spawn_on(read_on, runtime);
    }
    drop(sender);
    // Tasks that are stopped go with their set.
    gather(pass, &tallies, show)
}

/// Waits for all readers, or as long as it is worth it.
fn gather(
    pass: &Pass,
    tallies: &Receiver<Tally>,
    mut show: impl FnMut(&Pass),
) -> Result<Tally, ErrorReply> {
    let mut sum = Tally::default();
    let mut over_since: Option<Instant> = None;
    loop {
        match tallies.recv_timeout(SHOW_INTERVAL) {
            Ok(tally) => sum.add(tally),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                show(pass);
                if pass.is_over()
                    && over_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_MAX
                {
                    break;
                }
            }
        }
    }
    match pass.failure() {
        _ if pass.stop().code().is_some() => Err(super::interrupted()),
        Some(error) => Err(error.clone()),
        None if sum.latencies_us.len() as u64 != pass.items() => {
            Err(ErrorReply::new(ErrorCode::Internal, "a reader ended early: a defect in warmfs"))
        }
        None => Ok(sum),
    }
}

/// One thread. A file that is read at several places in a row stays open.
struct Reader<'a> {
    pass: &'a Pass,
    mapped: bool,
    open: Option<(usize, File)>,
    tally: Tally,
}

impl Reader<'_> {
    /// Reads a file, or a range of it; `false` if it is over before the end.
    fn read(
        &mut self,
        number: usize,
        entry: &FileEntry,
        range: Option<Range<u64>>,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let Some(range) = range else {
            let file = File::open(&entry.path)?;
            return match self.mapped {
                true => self.read_mapped(&file, buffer),
                false => self.read_range(&file, 0..u64::MAX, buffer),
            };
        };
        let file = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => File::open(&entry.path)?,
        };
        let read = self.read_range(&file, range, buffer);
        self.open = Some((number, file));
        read
    }

    /// Reads until the range or the file ends.
    fn read_range(
        &mut self,
        file: &File,
        range: Range<u64>,
        buffer: &mut [u8],
    ) -> io::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            if self.pass.is_over() {
                return Ok(false);
            }
            let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
            let read = match file.read_at(&mut buffer[..wanted], at) {
                Ok(0) => break,
                Ok(read) => read as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            at += read;
            self.pass.came(&mut self.tally, read);
        }
        Ok(true)
    }

    fn read_mapped(&mut self, file: &File, buffer: &mut [u8]) -> io::Result<bool> {
        let Some(mapping) = Mapping::of(file)? else { return Ok(true) };
        let mut at = 0;
        while !self.pass.is_over() {
            match mapping.copy(at, buffer) {
                0 => return Ok(true),
                copied => {
                    at += copied;
                    self.pass.came(&mut self.tally, copied as u64);
                }
            }
        }
        Ok(false)
    }
}

fn unreadable(entry: &FileEntry, error: &io::Error) -> ErrorReply {
    let number = error.raw_os_error().map(Errno::from_raw);
    let number = number.map_or(String::new(), |errno| format!(" ({errno:?})"));
    let why = describe(error);
    let message = format!("cannot read {}: {why}{number}", entry.path.display());
    ErrorReply::new(ErrorCode::Environment, message)
}
