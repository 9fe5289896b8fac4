//! A live mount: its files, what leads to them, and who it asks its remote as.
//!
//! A view is a mount that the kernel knows nothing of: the same files over the same cache,
//! read at the socket alone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{code_of, explain_cache};
use crate::cache::{HintError, NodeId, Tree, Warming};
use crate::config::{CallerEnv, RemoteOptions};
use crate::control::wire::{DownloadStatus, ErrorCode, ErrorReply, HintRequest, RemoteQueueStatus};
use crate::daemon::engine::ActiveMount;
use crate::daemon::preflight::WITHOUT_FUSE;
use crate::daemon::{blocking, kernel, mountinfo};
use crate::fs::FileSystem;
use crate::fs::session::MountSession;
use crate::fs::trace::Recorder;
use crate::metrics::{MountMetrics, RemoteMetrics};
use crate::remote::client::{Download, RemoteClient};
use crate::remote::later::Known;
use crate::remote::{self, ErrorKind, ListRequest, Remote, RemoteError, RemoteUri};

/// Time for a LIST of one key, by which new credentials are tried.
const RENEW_LIMIT: Duration = Duration::from_secs(10);

/// A mount, or a view.
pub(super) struct Mounted {
    pub(super) fs: Arc<FileSystem>,
    pub(super) way: Way,
    pub(super) client: Arc<RemoteClient>,
    pub(super) uri: RemoteUri,
    pub(super) options: RemoteOptions,
    pub(super) env: AsyncMutex<CallerEnv>,
    pub(super) metrics: Arc<RemoteMetrics>,
}

/// What leads to its files.
pub(super) enum Way {
    /// The kernel, and the socket too.
    Kernel(MountSession),
    /// The socket alone, until it is told to end.
    Socket(watch::Sender<bool>),
}

impl Way {
    /// Opens the way to `fs`: a mount at `dir`, or none.
    pub(super) async fn open(
        fs: &Arc<FileSystem>,
        dir: Option<PathBuf>,
    ) -> Result<Way, ErrorReply> {
        let Some(dir) = dir else {
            // Nobody else has pages of what is read there.
            fs.tree().store().pages_are_read();
            return Ok(Way::Socket(watch::Sender::new(false)));
        };
        let (fs, runtime) = (fs.clone(), Handle::current());
        let started = blocking(move || MountSession::start(fs, &dir, runtime)).await?;
        started.map(Way::Kernel).map_err(|error| explain_mount(&error))
    }
}

#[async_trait]
impl ActiveMount for Mounted {
    fn remote(&self) -> Known {
        self.client.known()
    }

    fn mode(&self) -> String {
        match &self.way {
            Way::Kernel(session) => session.mode().to_string(),
            Way::Socket(_) => "socket".to_owned(),
        }
    }

    fn mode_reason(&self) -> String {
        match &self.way {
            Way::Kernel(_) => self.fs.mode_reason(),
            Way::Socket(_) => "no folder, asked for".to_owned(),
        }
    }

    fn metrics(&self) -> &MountMetrics {
        self.fs.metrics()
    }

    fn warming(&self) -> Warming {
        self.fs.tree().warming()
    }

    fn download(&self) -> DownloadStatus {
        let Download { bytes, cap, is_reached } = self.client.download();
        DownloadStatus { bytes, cap, reached: is_reached }
    }

    fn requests(&self) -> Option<(RemoteQueueStatus, bool)> {
        let load = self.client.requests().load();
        let queue = RemoteQueueStatus {
            remote: self.client.id().0.clone(),
            mount: None,
            in_flight: load.used,
            limit: load.limit,
            waiting: crate::daemon::status::waiting(load.waiting),
        };
        Some((queue, self.client.has_own_requests()))
    }

    fn not_seen(&self) -> String {
        match &self.way {
            Way::Kernel(_) => self.fs.not_seen().to_owned(),
            Way::Socket(_) => String::new(),
        }
    }

    async fn renew(&self, env: &CallerEnv) -> Result<(), ErrorReply> {
        let mut current = self.env.lock().await;
        if current.is_same_login(env) && self.client.refusal().is_none() {
            return Ok(());
        }
        let renewed = self.connect_as(env).await.and_then(|remote| self.client.renew(remote));
        renewed.map_err(|error| {
            let message = format!("{} keeps the credentials it has: {error}", self.uri);
            ErrorReply::new(code_of(&error), message)
        })?;
        *current = env.clone();
        Ok(())
    }

    async fn hint(&self, request: &HintRequest) -> Result<(), ErrorReply> {
        let tree = self.fs.tree();
        let hinted = tree.hint(&request.order, request.first, &request.paths).await;
        let hinted = hinted.map_err(|error| match error {
            HintError::Cache(error) => explain_cache(&error),
            HintError::Gap { .. } | HintError::TooLong => {
                ErrorReply::new(ErrorCode::Invalid, error.to_string())
                    .with_hint("tell the order from its beginning, under another name")
            }
        })?;
        match hinted.first_unknown {
            None => Ok(()),
            Some(path) => {
                let (unknown, all) = (hinted.unknown, request.paths.len());
                let message = format!("{unknown} of {all} paths are no files here, such as {path}");
                Err(ErrorReply::new(ErrorCode::NotFound, message)
                    .with_hint("`warmfs refresh` if they are new; the others are gone along"))
            }
        }
    }

    fn refusal(&self) -> Option<String> {
        self.client.refusal()
    }

    async fn find(&self, path: &str) -> Result<Option<(Arc<Tree>, NodeId)>, ErrorReply> {
        let tree = self.fs.tree();
        let node = tree.resolve(path).await.map_err(|error| explain_cache(&error))?;
        Ok(node.map(|node| (Arc::clone(tree), node.id)))
    }

    fn files(&self) -> Option<&Arc<FileSystem>> {
        Some(&self.fs)
    }

    fn is_attached(&self) -> bool {
        let session = match &self.way {
            Way::Kernel(session) => session,
            Way::Socket(ended) => return !*ended.borrow(),
        };
        let device = session.device();
        let there = mountinfo::topmost_at(session.dir());
        // What cannot be told is no reason to give a mount up: nobody would
        // unmount it any more.
        there.map_or(true, |mount| {
            mount.is_some_and(|m| m.device == (libc::major(device), libc::minor(device)))
        })
    }

    fn unmount(&self, lazy: bool) -> io::Result<()> {
        match &self.way {
            Way::Kernel(session) => kernel::unmount(session.dir(), lazy),
            Way::Socket(ended) => {
                ended.send_replace(true);
                Ok(())
            }
        }
    }

    async fn ended(&self) {
        match &self.way {
            Way::Kernel(session) => session.ended().await,
            Way::Socket(ended) => drop(ended.subscribe().wait_for(|ended| *ended).await),
        }
        self.fs.tree().end();
        let fs = self.fs.clone();
        let finished = blocking(move || fs.recorder().map(Recorder::finish)).await;
        if let Err(error) = finished {
            tracing::error!(%error, "the trace was not finished");
        }
    }
}

impl Mounted {
    /// The remote with the credentials of `env`, which it takes: not every remote asks
    /// when it is connected.
    async fn connect_as(&self, env: &CallerEnv) -> Result<Arc<dyn Remote>, RemoteError> {
        let remote = remote::connect(&self.uri, &self.options, env, &self.metrics).await?;
        let prefix = self.uri.prefix().to_owned();
        let one = ListRequest { prefix, max_keys: Some(1), ..ListRequest::default() };
        self.metrics.list.requests.add(1);
        let listed = tokio::time::timeout(RENEW_LIMIT, remote.list(&one)).await;
        match listed {
            Ok(Err(error)) if error.kind == ErrorKind::Credentials => {
                self.metrics.list.errors.add(error.kind.reason());
                Err(error)
            }
            // Whoever reads hears of what else is wrong.
            _ => Ok(remote),
        }
    }
}

fn explain_mount(error: &io::Error) -> ErrorReply {
    let text = error.to_string();
    let reply =
        ErrorReply::new(ErrorCode::Environment, format!("the kernel refused: {}", text.trim()));
    if text.contains("user_allow_other") {
        return reply
            .with_hint("add `user_allow_other` to /etc/fuse.conf, or leave out --allow-other");
    }
    match error.kind() {
        io::ErrorKind::NotFound => {
            reply.with_hint(format!("is fuse3 installed, and /dev/fuse there? {WITHOUT_FUSE}"))
        }
        _ => reply.with_hint(format!(
            "in a container, run it with `--device /dev/fuse --cap-add SYS_ADMIN`; {WITHOUT_FUSE}"
        )),
    }
}
