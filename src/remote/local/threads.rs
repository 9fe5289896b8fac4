//! Threads that ask a folder's file system, which may never answer: a server that went
//! away, a FUSE program that was stopped.
//!
//! Nothing ends a call that waits in the kernel. Who waits for its answer goes away at
//! the limits of [`crate::remote::client`]; the thread stays until the file system
//! answers or is taken away. Its rules:
//!
//! - The threads are the folder's own. Tokio's, on which all else depends, never enter it.
//! - There are [`THREADS_MAX`] at most for a folder, in however many mounts.
//! - Once [`super::calls::HANGING_MAX`] of them hang, a call is refused at once. Now and then
//!   one is let through to try, so that what comes back is found.
//! - Files are closed here too, one after the other: a FUSE program is told of each, and
//!   the close waits for it.
//!
//! No thread is waited for at the end of the process.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::calls::{Calls, Entry};
use crate::remote::{ErrorKind, RemoteError};

/// Threads of one folder: two thirds of the GETs that may be in flight to it, and more
/// than any disk or server works at in parallel.
const THREADS_MAX: usize = 64;

/// Files open at once, those that are still to be closed included: two for each GET
/// that may be in flight, and two mounts' worth of them.
const FILES_MAX: usize = 384;

/// How long a thread waits for something to do before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// The folders that have threads, by the path that was given. Of the whole process,
/// as the threads are: a mount that was given up has left them behind.
static FOLDERS: Mutex<BTreeMap<PathBuf, Weak<Threads>>> = Mutex::new(BTreeMap::new());

/// The threads of one folder.
#[derive(Debug)]
pub(super) struct Threads {
    /// As it was given.
    folder: PathBuf,
    slots: Arc<Semaphore>,
    files: Arc<Semaphore>,
    state: Mutex<State>,
    has_work: Condvar,
}

type Work = Box<dyn FnOnce() + Send>;

/// An open file, and its part of [`FILES_MAX`].
type Open = (File, OwnedSemaphorePermit);

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    /// Threads that wait for work.
    idle: usize,
    calls: Calls,
    to_close: Vec<Open>,
    /// Whether a thread closes them.
    is_closing: bool,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Threads {
    /// The threads of `folder`, shared by all who ask for it.
    pub(super) fn of(folder: &Path) -> Arc<Threads> {
        let mut known = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(threads) = known.get(folder).and_then(Weak::upgrade) {
            return threads;
        }
        known.retain(|_, threads| threads.strong_count() > 0);
        let threads = Arc::new(Threads {
            folder: folder.to_owned(),
            slots: Arc::new(Semaphore::new(THREADS_MAX)),
            files: Arc::new(Semaphore::new(FILES_MAX)),
            state: Mutex::default(),
            has_work: Condvar::new(),
        });
        known.insert(folder.to_owned(), Arc::downgrade(&threads));
        threads
    }

    /// Does `work` on one of the threads. It goes on if the caller goes away.
    ///
    /// # Errors
    /// Its own, and [`ErrorKind::Unreachable`] at once while too much of the folder hangs.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let slot = self.slot().await?;
        let (answer, answered) = oneshot::channel();
        let threads = Arc::clone(self);
        self.begin(Box::new(move || {
            let call = Call::begin(&threads);
            let result = work();
            drop((call, slot));
            // Nobody may be there any more.
            let _ = answer.send(result);
        }))?;
        answered.await.unwrap_or_else(|_| Err(self.failed("the call did not finish")))
    }

    /// The right to a thread, for which others may have to be done first.
    async fn slot(&self) -> Result<OwnedSemaphorePermit, RemoteError> {
        let slots = Arc::clone(&self.slots);
        let entry = self.lock().calls.entry(Instant::now());
        let slot = match entry {
            Entry::Free => slots.acquire_owned().await.ok(),
            Entry::Trial => slots.try_acquire_owned().ok(),
            Entry::Refused { .. } => None,
        };
        slot.ok_or_else(|| self.failed("it hangs; see to the server or program behind it"))
    }

    /// The right to open a file.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`] at once where too many are open.
    pub(super) fn file_slot(&self) -> Result<OwnedSemaphorePermit, RemoteError> {
        Arc::clone(&self.files).try_acquire_owned().map_err(|_| {
            self.failed("too many files are open, which closes slowly; see to the server or program behind it")
        })
    }

    fn failed(&self, why: &str) -> RemoteError {
        let message = format!("file://{}: {why}", self.folder.display());
        RemoteError::new(ErrorKind::Unreachable, message)
    }

    /// Has `work` done by a thread that waits, or by a new one.
    fn begin(self: &Arc<Self>, work: Work) -> Result<(), RemoteError> {
        let mut state = self.lock();
        state.waiting.push_back(work);
        if state.waiting.len() <= state.idle {
            self.has_work.notify_one();
            return Ok(());
        }
        let threads = Arc::clone(self);
        let thread = std::thread::Builder::new().name("source".to_owned());
        match thread.spawn(move || threads.work()) {
            Ok(_) => Ok(()),
            Err(error) => {
                // Dropped without the lock: it may hold a file, whose drop takes it.
                let work = state.waiting.pop_back();
                drop(state);
                drop(work);
                Err(self.failed(&format!("no thread could be started: {error}")))
            }
        }
    }

    /// A thread's life.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.waiting.pop_front() {
                drop(state);
                work();
                state = self.lock();
                continue;
            }
            state.idle += 1;
            let waited = self.has_work.wait_timeout(state, IDLE);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = after;
            state.idle -= 1;
            if timeout.timed_out() && state.waiting.is_empty() {
                return;
            }
        }
    }

    /// Has a file closed, behind those before it.
    fn close(self: &Arc<Self>, file: Open) {
        let mut state = self.lock();
        state.to_close.push(file);
        if std::mem::replace(&mut state.is_closing, true) {
            return;
        }
        drop(state);
        let threads = Arc::clone(self);
        let begun = self.begin(Box::new(move || {
            while let Some(file) = threads.next_to_close() {
                let _call = Call::begin(&threads);
                drop(file);
            }
        }));
        if begun.is_err() {
            // Whoever closes the next one closes it too.
            self.lock().is_closing = false;
        }
    }

    fn next_to_close(&self) -> Option<Open> {
        let mut state = self.lock();
        let file = state.to_close.pop();
        state.is_closing = file.is_some();
        file
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way, until dropped.
struct Call<'a>(&'a Threads, u64);

impl Call<'_> {
    fn begin(threads: &Threads) -> Call<'_> {
        let number = threads.lock().calls.begin(Instant::now());
        Call(threads, number)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.lock().calls.end(self.1);
    }
}

/// An open file of the folder. Wherever it is dropped, one of the threads closes it.
#[derive(Debug)]
pub(super) struct OpenFile {
    open: Option<Open>,
    threads: Arc<Threads>,
}

impl OpenFile {
    /// `file`, which was opened by right of `slot`.
    pub(super) fn new(file: File, slot: OwnedSemaphorePermit, threads: &Arc<Threads>) -> OpenFile {
        OpenFile { open: Some((file, slot)), threads: Arc::clone(threads) }
    }

    /// The file, until it is closed.
    pub(super) fn file(&self) -> Option<&File> {
        self.open.as_ref().map(|(file, _)| file)
    }

    /// Closes it; on one of the threads.
    pub(super) fn close_here(&mut self) {
        self.open = None;
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.threads.close(open);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Has calls hang until the sender is dropped; returns once they do.
    async fn hang(threads: &Arc<Threads>, calls: usize) -> mpsc::Sender<()> {
        let (release, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        for _ in 0..calls {
            let (begun, has_begun) = oneshot::channel();
            let (threads, wait) = (Arc::clone(threads), Arc::clone(&wait));
            tokio::spawn(async move {
                let hang = move || {
                    let _ = begun.send(());
                    let _ = wait.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                };
                threads.run(hang).await
            });
            has_begun.await.unwrap();
        }
        release
    }

    #[tokio::test]
    async fn calls_beyond_the_threads_wait_and_go_on_as_others_end() {
        let dir = tempfile::tempdir().unwrap();
        let threads = Threads::of(dir.path());
        let release = hang(&threads, THREADS_MAX).await;
        assert!(Arc::ptr_eq(&threads, &Threads::of(dir.path())), "a folder has one set");
        let mut waiting = Box::pin(threads.run(|| Ok(7)));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(release);
        assert_eq!(waiting.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_and_takes_nothing_along() {
        let dir = tempfile::tempdir().unwrap();
        let threads = Threads::of(dir.path());
        for _ in 0..=THREADS_MAX {
            let failed = threads.run::<()>(|| panic!("by the test")).await.unwrap_err();
            assert_eq!(failed.kind, ErrorKind::Unreachable, "{failed}");
        }
        assert_eq!(threads.run(|| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn files_are_closed_on_the_threads_and_counted_until_then() {
        let dir = tempfile::tempdir().unwrap();
        let threads = Threads::of(dir.path());
        let open = || {
            let slot = threads.file_slot()?;
            Ok(OpenFile::new(File::open(dir.path()).unwrap(), slot, &threads))
        };
        let all: Vec<_> = (0..FILES_MAX).map(|_| open().unwrap()).collect();
        let refused: RemoteError = open().unwrap_err();
        assert!(refused.message.contains("too many files are open"), "{refused}");
        drop(all);
        // They come back as they are closed.
        let back = threads.files.acquire_many(FILES_MAX as u32).await.unwrap();
        assert!(threads.lock().to_close.is_empty());
        drop(back);
    }
}
