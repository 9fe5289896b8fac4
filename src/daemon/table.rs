//! The daemon's mounts, and the one place that decides when it may exit.
//!
//! A mount ends in one way: its session ends, whoever caused it, and its task
//! takes it out of the table. The table closes in the same instant as its last
//! mount goes, so a request either finds it open or is told to start a new
//! daemon.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};

use super::engine::ActiveMount;
use super::mount_point::MountPoint;
use super::reads;
use super::supervision::{Change, Supervisor};
use crate::config::{MountOptions, MountRequest};
use crate::control::wire::{DownloadStatus, ErrorCode, ErrorReply};

/// Mounts of one daemon. Each costs threads and descriptors; the field has
/// one to a handful.
pub(super) const MOUNTS_MAX: usize = 64;

/// One mount and what the daemon remembers of it.
pub(super) struct Entry {
    /// The mount point, or a view's URI.
    pub(super) dir: PathBuf,
    /// There is no folder.
    pub(super) is_view: bool,
    /// Normalised.
    pub(super) uri: String,
    /// Not the whole request, which holds secrets.
    pub(super) options: MountOptions,
    pub(super) mount: Arc<dyn ActiveMount>,
    pub(super) since: Instant,
    pub(super) reads_at_socket: reads::Reads,
    supervisor: Arc<Supervisor>,
    /// Put back once the mount is off its folder.
    point: Mutex<Option<MountPoint>>,
    /// The folder leads to it no more; it lives until its last file is closed.
    detached: watch::Sender<bool>,
    gone: watch::Sender<bool>,
    /// Bytes that the supervisor knows of.
    told_bytes: AtomicU64,
}

impl Entry {
    pub(super) fn new(
        request: MountRequest,
        uri: String,
        mount: Arc<dyn ActiveMount>,
        point: MountPoint,
        supervisor: Arc<Supervisor>,
    ) -> Self {
        Entry {
            dir: request.place().to_owned(),
            is_view: request.dir.is_none(),
            uri,
            options: request.options,
            mount,
            since: Instant::now(),
            reads_at_socket: reads::Reads::default(),
            supervisor,
            point: Mutex::new(Some(point)),
            detached: watch::Sender::new(false),
            gone: watch::Sender::new(false),
            told_bytes: AtomicU64::new(0),
        }
    }

    /// Tells the supervisor what was downloaded of a cap: another daemon counts on.
    pub(super) fn tell_download(&self) {
        let DownloadStatus { bytes, cap, .. } = self.mount.download();
        // A mount without a cap counts for nobody, and another may be in the place of one that
        // is detached.
        if cap.is_none() || self.is_detached() || self.told_bytes.load(Ordering::Relaxed) == bytes {
            return;
        }
        if self.supervisor.try_tell(&Change::Downloaded { dir: self.dir.clone(), bytes }) {
            self.told_bytes.store(bytes, Ordering::Relaxed);
        }
    }

    fn reads(&self) -> Reads {
        let metrics = self.mount.metrics();
        Reads {
            hit_bytes: metrics.hit_bytes.get(),
            miss_bytes: metrics.miss_bytes.get(),
            failed: metrics.failed_reads.get(),
        }
    }

    pub(super) fn is_detached(&self) -> bool {
        *self.detached.borrow()
    }

    /// Notes that the folder is free, and puts it back as it was.
    pub(super) fn detach(&self) {
        // Who comes second waits: the folder is put back, and that is told, before
        // another mount of it can begin.
        let mut point = lock(&self.point);
        if let Some(point) = point.take() {
            point.remove();
            self.supervisor.tell_gone(&self.dir);
        }
        self.detached.send_replace(true);
    }

    /// Returns once the mount has left the table.
    pub(super) async fn gone(&self) {
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Table {
    state: Mutex<State>,
    dirs: Mutex<HashMap<PathBuf, Arc<AsyncMutex<()>>>>,
    /// Whether the daemon should exit.
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    entries: Vec<Arc<Entry>>,
    /// Of mounts that ended.
    ended: Reads,
    /// Requests that may add a mount.
    pending: usize,
    closed: bool,
}

/// What READs of mounts came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reads {
    pub(super) hit_bytes: u64,
    pub(super) miss_bytes: u64,
    /// READs that failed.
    pub(super) failed: u64,
}

/// A mount request under way: keeps the table open.
pub(super) struct Pending<'a>(&'a Table);

impl Table {
    /// Announces a mount request.
    pub(super) fn begin(&self) -> Result<Pending<'_>, ErrorReply> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(shutting_down());
        }
        if state.entries.len() + state.pending >= MOUNTS_MAX {
            let message = format!("this daemon has {MOUNTS_MAX} mounts, the most it serves");
            return Err(ErrorReply::new(ErrorCode::Environment, message)
                .with_hint("unmount one, or use another --cache-dir"));
        }
        state.pending += 1;
        Ok(Pending(self))
    }

    /// One request at a time for each folder.
    pub(super) async fn lock_dir(&self, dir: &Path) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut dirs = lock(&self.dirs);
            dirs.retain(|_, mutex| Arc::strong_count(mutex) > 1);
            Arc::clone(dirs.entry(dir.to_owned()).or_default())
        };
        mutex.lock_owned().await
    }

    /// The mount that `dir` leads to, or the view of that URI.
    pub(super) fn at(&self, dir: &Path) -> Option<Arc<Entry>> {
        let state = lock(&self.state);
        state.entries.iter().find(|entry| entry.dir == dir && !entry.is_detached()).cloned()
    }

    /// Every mount, detached ones included.
    pub(super) fn all(&self) -> Vec<Arc<Entry>> {
        lock(&self.state).entries.clone()
    }

    /// Of every mount there ever was.
    pub(super) fn reads(&self) -> Reads {
        let state = lock(&self.state);
        state.entries.iter().map(|entry| entry.reads()).fold(state.ended, Reads::plus)
    }

    /// Adds a mount, and watches for its end. Refused if the table was closed meanwhile.
    pub(super) fn insert(self: &Arc<Self>, entry: Entry) -> Result<(), (ErrorReply, Arc<Entry>)> {
        let entry = Arc::new(entry);
        {
            let mut state = lock(&self.state);
            if state.closed {
                return Err((shutting_down(), entry));
            }
            state.entries.push(Arc::clone(&entry));
        }
        let table = Arc::clone(self);
        tokio::spawn(async move {
            entry.mount.ended().await;
            table.remove(&entry).await;
        });
        Ok(())
    }

    /// Closes the table, whatever is in it.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.closed.send_replace(true);
    }

    /// Closes the table if it is empty and nothing is under way.
    pub(super) fn close_if_idle(&self) {
        self.close_if_idle_locked(&mut lock(&self.state));
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Turns true once the table is closed.
    pub(super) fn closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
    }

    /// Whether requests are under way that may add a mount.
    pub(super) fn has_pending(&self) -> bool {
        lock(&self.state).pending > 0
    }

    async fn remove(&self, entry: &Arc<Entry>) {
        let detached = Arc::clone(entry);
        // The folder is put back before anybody hears of the end.
        let _ = tokio::task::spawn_blocking(move || detached.detach()).await;
        tracing::info!("{} is no longer mounted at {}", entry.uri, entry.dir.display());
        {
            let mut state = lock(&self.state);
            state.entries.retain(|other| !Arc::ptr_eq(other, entry));
            state.ended = state.ended.plus(entry.reads());
            self.close_if_idle_locked(&mut state);
        }
        entry.gone.send_replace(true);
    }

    fn close_if_idle_locked(&self, state: &mut State) {
        if state.entries.is_empty() && state.pending == 0 && !state.closed {
            state.closed = true;
            self.closed.send_replace(true);
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.pending -= 1;
        self.0.close_if_idle_locked(&mut state);
    }
}

impl Reads {
    fn plus(self, other: Reads) -> Reads {
        Reads {
            hit_bytes: self.hit_bytes + other.hit_bytes,
            miss_bytes: self.miss_bytes + other.miss_bytes,
            failed: self.failed + other.failed,
        }
    }
}

pub(super) fn shutting_down() -> ErrorReply {
    ErrorReply::new(ErrorCode::ShuttingDown, "the daemon is shutting down").with_hint("try again")
}

/// A panic elsewhere leaves these tables whole: each change is one statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
