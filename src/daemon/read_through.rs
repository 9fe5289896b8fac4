//! The engine of the product: a cache, and file systems that read through it.

mod mounted;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::Mutex as AsyncMutex;

use self::mounted::{Mounted, Way};
use super::engine::{ActiveMount, Before, Engine};
use crate::cache::{
    AttachError, Audited, Cache, CacheError, Evicted, NodeId, OnTheWay, Pinned, PrefetchOrder,
    Prefetched, Progress, Refreshed, Scope, Tree, Verified,
};
use crate::config::{CacheOptions, CallerEnv, MountOptions, MountRequest, RemoteOptions};
use crate::control::wire::{CacheStatus, ComparedStatus, ErrorCode, ErrorReply};
use crate::fs::FileSystem;
use crate::fs::trace::Recorder;
use crate::metrics::{CacheMetrics, RemoteMetrics};
use crate::remote::client::RemoteClient;
use crate::remote::endpoint::Endpoints;
use crate::remote::later::Later;
use crate::remote::{self, ErrorKind, Remote, RemoteError, RemoteUri};

/// Opens the engine of a cache directory whose lock the caller holds.
///
/// # Errors
/// If the cache cannot be used.
pub async fn open(options: &CacheOptions) -> Result<Arc<dyn Engine>, ErrorReply> {
    super::process::prepare();
    let options = options.clone();
    let runtime = Handle::current();
    let opened = tokio::task::spawn_blocking(move || Cache::open(&options, runtime)).await;
    let cache = opened
        .map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string()))?
        .map_err(|error| {
            ErrorReply::new(ErrorCode::Environment, format!("the cache cannot be used: {error}"))
                .with_hint("choose another one with --cache-dir")
        })?;
    let (remote_metrics, endpoints) = (Arc::default(), Endpoints::default());
    Ok(Arc::new(ReadThrough { cache, remote_metrics, endpoints }))
}

struct ReadThrough {
    cache: Arc<Cache>,
    remote_metrics: Arc<RemoteMetrics>,
    /// What mounts of one remote share.
    endpoints: Endpoints,
}

#[async_trait]
impl Engine for ReadThrough {
    async fn mount(
        &self,
        request: &MountRequest,
        before: Option<Before>,
    ) -> Result<Arc<dyn ActiveMount>, ErrorReply> {
        let uri = super::preflight::check_uri(request)?;
        let options = &request.options;
        let metrics = &self.remote_metrics;
        let is_new = before.is_none();
        let (client, tree) = match before {
            Some(before) => self.attach_again(request, &uri, before).await?,
            None => {
                let client = client(&uri, options, &request.env, metrics, &self.endpoints).await?;
                let tree = self.attach(request, &uri, &client).await?;
                (client, tree)
            }
        };
        let fs = FileSystem::new(tree, uri.to_string(), options.clone(), Arc::default());
        // Of a trace with a hole in it nobody could say what was read.
        if let Some(path) = options.record_trace.clone().filter(|_| is_new) {
            let recorder = super::blocking(move || record_to(&path)).await??;
            fs.record(recorder);
        }
        let way = Way::open(&fs, request.dir.clone()).await?;
        fs.tree().start_warming(options.warm);
        Ok(Arc::new(Mounted {
            fs,
            way,
            client,
            uri,
            options: options.remote.clone(),
            env: AsyncMutex::new(request.env.clone()),
            metrics: metrics.clone(),
        }))
    }

    fn cache_status(&self) -> CacheStatus {
        let figures = self.cache.figures();
        CacheStatus {
            dir: self.cache.dir().to_owned(),
            used_bytes: figures.used_bytes,
            limit_bytes: figures.limit_bytes,
            objects: figures.objects,
            state: self.cache.store().state(),
            dataset_bytes: figures.dataset_bytes,
            dataset_cached_bytes: figures.dataset_cached_bytes,
            expected_hit_rate: figures.expected_hit_rate(),
            pins: figures.pins,
            hidden_keys: figures.hidden_keys,
            disk_free_bytes: figures.disk_free_bytes,
            compared: compared(self.cache.store().audited()),
        }
    }

    fn remote_metrics(&self) -> &RemoteMetrics {
        &self.remote_metrics
    }

    fn cache_metrics(&self) -> &CacheMetrics {
        self.cache.store().metrics()
    }

    fn on_the_way(&self) -> OnTheWay {
        self.cache.store().on_the_way()
    }

    async fn evict(
        &self,
        scope: &Scope,
        older_than: Option<Duration>,
        progress: &Arc<Progress>,
    ) -> Result<Evicted, ErrorReply> {
        self.cache.evict(scope, older_than, progress).await.map_err(|error| explain_cache(&error))
    }

    async fn verify(
        &self,
        scope: &Scope,
        remote: bool,
        progress: &Arc<Progress>,
    ) -> Result<Verified, ErrorReply> {
        self.cache.verify(scope, remote, progress).await.map_err(|error| explain_cache(&error))
    }

    async fn pin(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Pinned, ErrorReply> {
        self.cache.pin(tree, node, progress).await.map_err(|error| explain_cache(&error))
    }

    async fn prefetch(
        &self,
        tops: &[(Arc<Tree>, NodeId)],
        order: PrefetchOrder,
        progress: &Arc<Progress>,
    ) -> Result<Prefetched, ErrorReply> {
        self.cache.prefetch(tops, order, progress).await.map_err(|error| explain_cache(&error))
    }

    async fn unpin(&self, tree: &Arc<Tree>, node: NodeId) -> Result<bool, ErrorReply> {
        self.cache.unpin(tree, node).await.map_err(|error| explain_cache(&error))
    }

    async fn refresh(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        progress: &Arc<Progress>,
    ) -> Result<Refreshed, ErrorReply> {
        self.cache.refresh(tree, node, progress).await.map_err(|error| explain_cache(&error))
    }

    async fn shutdown(&self) {
        let cache = self.cache.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || cache.close()).await {
            tracing::error!(%error, "the cache was not closed");
        }
    }
}

fn compared(audited: Audited) -> ComparedStatus {
    let Audited { same, unverifiable, skipped, dropped, disputed, last } = audited;
    ComparedStatus { same, unverifiable, skipped, dropped, disputed, last }
}

impl ReadThrough {
    /// What was mounted before. Its remote is connected behind the mount, or by its first
    /// request; until then what is cached is served.
    async fn attach_again(
        &self,
        request: &MountRequest,
        uri: &RemoteUri,
        before: Before,
    ) -> Result<(Arc<RemoteClient>, Arc<Tree>), ErrorReply> {
        let (options, env) = (request.options.remote.clone(), request.env.clone());
        let (uri_again, metrics) = (uri.clone(), self.remote_metrics.clone());
        let connect = move || -> BoxFuture<'static, _> {
            let (uri, options, env) = (uri_again.clone(), options.clone(), env.clone());
            let metrics = metrics.clone();
            Box::pin(async move { remote::connect(&uri, &options, &env, &metrics).await })
        };
        let remote = Arc::new(Later::new(before.remote, connect));
        let behind = remote.clone();
        tokio::spawn(async move {
            if let Err(error) = behind.connect().await {
                tracing::warn!(%error, "the remote is not connected yet");
            }
        });
        let client = self.client_of(remote, &request.options);
        client.continue_download(before.downloaded_bytes);
        let attached = self
            .cache
            .attach_again(client.clone(), uri.prefix(), request.options.metadata_ttl)
            .await;
        Ok((client, attached.map_err(|error| explain_attach(uri, error))?))
    }

    fn client_of(&self, remote: Arc<dyn Remote>, options: &MountOptions) -> Arc<RemoteClient> {
        let endpoint = self.endpoints.of(remote.id());
        let metrics = self.remote_metrics.clone();
        Arc::new(RemoteClient::for_mount(remote, metrics, endpoint, &options.traffic))
    }

    async fn attach(
        &self,
        request: &MountRequest,
        uri: &RemoteUri,
        client: &Arc<RemoteClient>,
    ) -> Result<Arc<Tree>, ErrorReply> {
        let (cache, ttl) = (&self.cache, request.options.metadata_ttl);
        let Some(source) = &request.index else {
            let attached = cache.attach(client.clone(), uri.prefix(), ttl).await;
            return attached.map_err(|error| explain_attach(uri, error));
        };
        let connect = |uri: RemoteUri| async move {
            let (env, metrics) = (&request.env, &self.remote_metrics);
            // The origin is that of what is mounted.
            let remote = RemoteOptions { origin: None, ..request.options.remote.clone() };
            let options = MountOptions { remote, ..request.options.clone() };
            self::client(&uri, &options, env, metrics, &self.endpoints).await
        };
        let file = source.open(uri, client, connect).await?;
        let attached = cache.attach_with_index(client.clone(), uri.prefix(), ttl, file).await;
        attached.map_err(|error| match error {
            AttachError::Index(error) => source.refuse(&error),
            error => explain_attach(uri, error),
        })
    }
}

fn record_to(path: &Path) -> Result<Recorder, ErrorReply> {
    Recorder::create(path).map_err(|error| {
        let why = super::preflight::describe(&error);
        let message = format!("cannot record a trace in {}: {why}", path.display());
        ErrorReply::new(ErrorCode::Environment, message).with_hint("choose another --record-trace")
    })
}

/// The remote of a mount: whatever reads without one gets the same.
pub(super) async fn client(
    uri: &RemoteUri,
    options: &MountOptions,
    env: &CallerEnv,
    metrics: &Arc<RemoteMetrics>,
    endpoints: &Endpoints,
) -> Result<Arc<RemoteClient>, ErrorReply> {
    let remote = remote::connect(uri, &options.remote, env, metrics)
        .await
        .map_err(|error| explain_remote(uri, &error))?;
    let endpoint = endpoints.of(remote.id());
    Ok(Arc::new(RemoteClient::for_mount(remote, metrics.clone(), endpoint, &options.traffic)))
}

pub(super) fn code_of(error: &RemoteError) -> ErrorCode {
    match error.kind {
        ErrorKind::NotFound | ErrorKind::NoSuchBucket => ErrorCode::NotFound,
        ErrorKind::Denied | ErrorKind::Credentials | ErrorKind::Capped => ErrorCode::Denied,
        ErrorKind::Invalid => ErrorCode::Invalid,
        ErrorKind::Changed
        | ErrorKind::Throttled { .. }
        | ErrorKind::Transient
        | ErrorKind::Unreachable => ErrorCode::Unreachable,
    }
}

fn explain_remote(uri: &RemoteUri, error: &RemoteError) -> ErrorReply {
    ErrorReply::new(code_of(error), format!("cannot mount {uri}: {error}"))
}

pub(super) fn explain_cache(error: &CacheError) -> ErrorReply {
    match error {
        CacheError::Remote(remote) => {
            ErrorReply::new(code_of(remote), format!("the remote failed: {remote}"))
                .with_hint("what is done is kept; run it again")
        }
        CacheError::Index(_)
        | CacheError::NoRoom(_)
        | CacheError::Damaged(_)
        | CacheError::Unknown(_)
        | CacheError::Io(_) => ErrorReply::new(ErrorCode::Internal, error.to_string())
            .with_hint("see warmfs.log in the cache directory"),
    }
}

fn explain_attach(uri: &RemoteUri, error: AttachError) -> ErrorReply {
    match error {
        AttachError::Cache(CacheError::Remote(error)) => explain_remote(uri, &error),
        AttachError::Index(error) => ErrorReply::new(ErrorCode::Invalid, error.to_string()),
        AttachError::Cache(error) => {
            explain_cache(&error).with_hint("see the daemon's log, or choose another --cache-dir")
        }
        AttachError::Unshowable { .. } => ErrorReply::new(
            ErrorCode::Invalid,
            format!("{uri} has a part that no folder can be named (empty, `.` or `..`)"),
        )
        .with_hint("mount a prefix above it"),
        AttachError::OneObject { folder, .. } => {
            ErrorReply::new(ErrorCode::NotFound, format!("{uri} is one object, not a folder"))
                .with_hint(format!("mount {}", uri.with_prefix(&folder)))
        }
        AttachError::NoKeys { nearest, .. } => {
            let reply = ErrorReply::new(ErrorCode::NotFound, format!("{uri} holds no objects"));
            let nearest: Vec<String> =
                nearest.iter().map(|prefix| uri.with_prefix(prefix).to_string()).collect();
            if nearest.is_empty() {
                reply.with_hint(format!("mount {}", uri.with_prefix("")))
            } else {
                reply.with_hint(format!("did you mean {}?", nearest.join(", ")))
            }
        }
    }
}
