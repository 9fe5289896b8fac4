//! A mount made for one series, with a folder and a cache of its own. Both go
//! with it, however the run ends; a cache that the user named stays.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::runtime::Handle;

use super::args::BenchArgs;
use super::stop::{POLL, Stop};
use crate::cli::demo::mounted::{is_mounted, tear_off};
use crate::cli::{mount, output};
use crate::control::cache_lock::{self, CacheLock};
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply, UnmountRequest};
use crate::daemon::preflight;

/// What an interrupt leaves a mount that is being made: a daemon is started in
/// less, and one that was started is found and ended. The mount itself is
/// undone by the daemon when its client goes away.
const MAKING_GRACE: Duration = Duration::from_secs(3);

/// How long the daemon of a temporary cache may take to end by itself after its
/// last mount: it saves an index that may be large, although nobody wants it.
const END_MAX: Duration = Duration::from_secs(15);

/// How long it may take after a signal. There is nothing in it to be lost.
const SIGNAL_MAX: Duration = Duration::from_secs(3);

/// A mount, until it is dropped.
pub(super) struct OwnMount {
    client: Client,
    dir: PathBuf,
    cache_dir: PathBuf,
    runtime: Handle,
    // Last: the folder goes after the mount.
    folder: TemporaryFolder,
}

impl OwnMount {
    /// Mounts `uri` in a temporary folder; its cache is there too, unless
    /// `args` name one.
    ///
    /// # Errors
    /// If it cannot be mounted. Nothing is left behind.
    pub(super) fn make(
        args: &BenchArgs,
        uri: &str,
        stop: &Stop,
        runtime: &Handle,
    ) -> Result<OwnMount, ErrorReply> {
        let folder = TemporaryFolder::create(&std::env::temp_dir())?;
        let dir = folder.path.join("mount");
        let named = args.cache_dir.clone();
        let is_temporary = named.is_none();
        let cache_dir = named.unwrap_or_else(|| folder.path.join("cache"));
        let plan = args.clone().into_mount(uri.to_owned(), dir.clone(), cache_dir).check()?;
        preflight::check(&plan.request, &plan.cache.dir)?;
        let made = runtime.block_on(async {
            let making = mount::make(&plan, &plan.request);
            tokio::pin!(making);
            tokio::select! {
                made = &mut making => made,
                () = stop.wait() => match tokio::time::timeout(MAKING_GRACE, making).await {
                    Ok(made) => made,
                    Err(_) => Err(super::interrupted()),
                },
            }
        });
        match made {
            Ok((client, _)) => Ok(OwnMount {
                client,
                dir,
                cache_dir: plan.cache.dir,
                runtime: runtime.clone(),
                folder,
            }),
            Err(error) => {
                if is_temporary {
                    // It may wait for a remote that does not answer.
                    end_daemon(&plan.cache.dir, &dir, Duration::ZERO);
                }
                Err(error)
            }
        }
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its cache lies.
    pub(super) fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// A cache that goes with the mount has a daemon of its own, which goes too.
    fn has_own_daemon(&self) -> bool {
        self.cache_dir.starts_with(&self.folder.path)
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        let unmount = |lazy| {
            let request = UnmountRequest { dir: self.dir.clone(), lazy };
            self.runtime.block_on(self.client.unmount(&request))
        };
        let unmounted = match unmount(false) {
            // A reader that was told to stop still has a file open.
            Err(error) if error.code == ErrorCode::Busy => unmount(true),
            result => result,
        };
        if self.has_own_daemon() {
            end_daemon(&self.cache_dir, &self.dir, END_MAX);
        } else if let Err(error) = unmounted {
            output::error(&error);
        }
    }
}

/// Waits for the daemon of a cache to end, and makes it end if it does not.
fn end_daemon(cache_dir: &Path, mount_dir: &Path, patience: Duration) {
    let steps = [
        (None, patience),
        (Some(Signal::SIGTERM), SIGNAL_MAX),
        (Some(Signal::SIGKILL), SIGNAL_MAX),
    ];
    for (signal, limit) in steps {
        let record = cache_lock::read_record(cache_dir);
        if let (Some(signal), Some(record)) = (signal, &record) {
            // Whoever holds the lock of a folder that we made is our daemon.
            record.signal(signal);
        }
        let since = Instant::now();
        while is_locked(cache_dir) && since.elapsed() < limit {
            thread::sleep(POLL);
        }
        if !is_locked(cache_dir) {
            if let (Some(Signal::SIGKILL), Some(record)) = (signal, record) {
                let _ = fs::remove_file(record.socket);
            }
            break;
        }
    }
    tear_off(mount_dir);
}

fn is_locked(cache_dir: &Path) -> bool {
    cache_dir.exists() && matches!(CacheLock::try_take(cache_dir), Ok(None))
}

/// A folder that goes with all that is in it.
struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    fn create(parent: &Path) -> Result<TemporaryFolder, ErrorReply> {
        let failed = |error: io::Error| {
            let why = preflight::describe(&error);
            let message = format!("cannot make a folder in {}: {why}", parent.display());
            ErrorReply::new(ErrorCode::Environment, message).with_hint("set TMPDIR to another one")
        };
        let name = format!("warmfs-bench-{}-{:08x}", process::id(), fastrand::u32(..));
        let path = parent.canonicalize().map_err(failed)?.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(failed)?;
        Ok(TemporaryFolder { path })
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let shown = self.path.display();
        let complain = |why: String| {
            output::error(&ErrorReply::new(
                ErrorCode::Environment,
                format!("{shown} is left: {why}"),
            ));
        };
        if is_mounted(&self.path.join("mount")) {
            complain("it is still mounted".to_owned());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            complain(preflight::describe(&error));
        }
    }
}
