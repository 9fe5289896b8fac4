//! The seam between the daemon and what serves files.
//!
//! The daemon knows mount points, requests and lifetimes; an engine knows
//! remotes, the cache and FUSE. Tests of the daemon bring an engine without a
//! kernel.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::{
    Evicted, NodeId, OnTheWay, Pinned, PrefetchOrder, Prefetched, Progress, Refreshed, Scope, Tree,
    Verified, Warming,
};
use crate::config::{CallerEnv, MountRequest};
use crate::control::wire::{
    CacheStatus, DownloadStatus, ErrorReply, HintRequest, RemoteQueueStatus,
};
use crate::fs::FileSystem;
use crate::metrics::{CacheMetrics, MountMetrics, RemoteMetrics};
use crate::remote::later::Known;

/// One cache directory, and the mounts that read through it.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Connects the remote, checks that the prefix can be mounted, and mounts
    /// it at the request's folder, which is empty and nothing is mounted on; a view of it
    /// needs none. Returns once requests are served.
    ///
    /// What was mounted `before`, by a daemon that died, is mounted without a request to
    /// the remote, and its bytes are counted on.
    ///
    /// # Errors
    /// Nothing is left mounted. The message is one line with a next step.
    async fn mount(
        &self,
        request: &MountRequest,
        before: Option<Before>,
    ) -> Result<Arc<dyn ActiveMount>, ErrorReply>;

    /// What the cache holds.
    fn cache_status(&self) -> CacheStatus;

    /// Requests sent to remotes, by all mounts.
    fn remote_metrics(&self) -> &RemoteMetrics;

    /// What the cache did.
    fn cache_metrics(&self) -> &CacheMetrics;

    /// What is on its way between the remotes, the readers and the disk.
    fn on_the_way(&self) -> OnTheWay {
        OnTheWay::default()
    }

    /// Removes from the cache what is neither open nor pinned; with
    /// `older_than` only what was not read for so long.
    async fn evict(
        &self,
        scope: &Scope,
        older_than: Option<Duration>,
        progress: &Arc<Progress>,
    ) -> Result<Evicted, ErrorReply>;

    /// Compares what is cached with its checksums, and repairs it.
    async fn verify(
        &self,
        scope: &Scope,
        remote: bool,
        progress: &Arc<Progress>,
    ) -> Result<Verified, ErrorReply>;

    /// Fetches a node and what is below it, and keeps it.
    async fn pin(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Pinned, ErrorReply>;

    /// Fetches nodes and what is below them, as far as there is room.
    async fn prefetch(
        &self,
        tops: &[(Arc<Tree>, NodeId)],
        order: PrefetchOrder,
        progress: &Arc<Progress>,
    ) -> Result<Prefetched, ErrorReply>;

    /// Undoes a pin; `false` if there was none of this very node.
    async fn unpin(&self, tree: &Arc<Tree>, node: NodeId) -> Result<bool, ErrorReply>;

    /// Lists a folder anew, and what was listed below it.
    async fn refresh(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Refreshed, ErrorReply>;

    /// Saves what must survive, and closes the cache's files: on return another
    /// daemon may open them. Mounts whose files are still open may be left and
    /// fail from now on; none will come.
    async fn shutdown(&self);
}

/// A mount of a daemon that died.
#[derive(Clone, Debug)]
pub struct Before {
    /// Its remote, which need not be reached.
    pub remote: Known,
    /// What it downloaded.
    pub downloaded_bytes: u64,
}

/// A mount that the kernel sends requests to, or a view.
#[async_trait]
pub trait ActiveMount: Send + Sync + 'static {
    /// Its remote, as it takes to mount it again.
    fn remote(&self) -> Known;

    /// How files are opened, as `status` names it.
    fn mode(&self) -> String;

    /// Why that mode, in a few words.
    fn mode_reason(&self) -> String;

    /// What it was asked for.
    fn metrics(&self) -> &MountMetrics;

    /// What is fetched before it is read.
    fn warming(&self) -> Warming;

    /// What it downloaded, and the cap on that.
    fn download(&self) -> DownloadStatus {
        DownloadStatus::default()
    }

    /// The GETs in flight to its remote, and whether they are of this mount alone.
    fn requests(&self) -> Option<(RemoteQueueStatus, bool)> {
        None
    }

    /// What is read without it.
    fn not_seen(&self) -> String {
        String::new()
    }

    /// Asks its remote with the credentials of `env` from now on, if they are others or
    /// those that it has are refused.
    ///
    /// # Errors
    /// If the remote cannot be reached with them; it goes on with those that it has.
    async fn renew(&self, _env: &CallerEnv) -> Result<(), ErrorReply> {
        Ok(())
    }

    /// Goes along an order in which it will be read.
    ///
    /// # Errors
    /// If part of the order is not known; the rest is gone along all the same.
    async fn hint(&self, _request: &HintRequest) -> Result<(), ErrorReply> {
        Ok(())
    }

    /// Why its credentials are refused, if they are.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// What is at `path`, relative to the mount point; empty for all of it.
    /// `None` if there is nothing.
    ///
    /// # Errors
    /// If the remote had to be asked, and could not tell.
    async fn find(&self, path: &str) -> Result<Option<(Arc<Tree>, NodeId)>, ErrorReply>;

    /// Its files, for who reads them at the socket; `None` if it has none to read.
    fn files(&self) -> Option<&Arc<FileSystem>> {
        None
    }

    /// Whether its mount point still leads to it. It does not after an
    /// outside `umount -l`, while files are open. Tells by the device number
    /// in [`super::mountinfo`]: another mount of warmfs may be there by then.
    fn is_attached(&self) -> bool;

    /// Asks the kernel to unmount it, lazily if `lazy`; a view just ends. Blocks for as
    /// long as the kernel or fusermount takes.
    ///
    /// # Errors
    /// `ResourceBusy` while it is in use and not `lazy`.
    fn unmount(&self, lazy: bool) -> io::Result<()>;

    /// Returns once it has ended, whoever unmounted it.
    async fn ended(&self);
}
