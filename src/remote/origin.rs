//! A cluster that keeps copies of a cloud's objects, and that cloud itself:
//! `--origin`.
//!
//! The cluster is asked first. Where it cannot serve now, the cloud is asked for the
//! same: the cluster is not to be reached, is full, asks for fewer requests, is busy
//! with another reader of a cold object, or says nothing for a while. And a range of a
//! large object that the cluster does not hold comes from the cloud, since the cluster
//! would fetch all of it before the first byte; it is told to, behind the reader.
//!
//! Both name the same versions, which are etags. A GET at the cloud names the version
//! (`If-Match`), so of another one it brings nothing, and the cluster's answer stands.
//! A listing goes on where it began.
//!
//! Each answer of the cloud is counted with why it was asked for.
//!
//! Which objects count as large and what the cluster is told is [`LargeObjects`]'s to
//! say; when the cluster is not asked at all for a while, [`Reachable`]'s.

mod large;
mod reachable;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::large::LargeObjects;
use self::reachable::Reachable;
use super::answer::late;
use super::checksum::Checksum;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId, RemoteUri, VersionGuard,
};
use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::{Reason, RemoteMetrics, RequestMetrics};

/// Time for the cluster's answer to begin before the cloud is asked. Clouds answer
/// in a tenth of a second; what the cluster fetches meanwhile it keeps.
const CLUSTER_LIMIT: Duration = Duration::from_secs(5);

/// Time for the cluster to say whether it holds an object, which it looks up in
/// memory or on its disks. Later than this the reader is better served by a GET.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Time for the cluster to take note of a prefetch, of which nobody waits.
const PREFETCH_LIMIT: Duration = Duration::from_secs(10);

/// How the tokens of either begin.
const OF_CLUSTER: &str = "cluster:";
const OF_ORIGIN: &str = "origin:";

/// A cluster that keeps copies of a cloud's objects.
#[async_trait]
pub trait Cluster: Remote {
    /// Whether the cluster holds the object as a whole. It does not ask the cloud.
    async fn holds(&self, key: &Key) -> Result<bool, RemoteError>;

    /// Has the cluster fetch an object. Returns before that is done.
    async fn prefetch(&self, key: &Key) -> Result<(), RemoteError>;
}

/// The two together.
#[derive(Debug)]
pub struct WithOrigin {
    cluster: Arc<dyn Cluster>,
    origin: Arc<dyn Remote>,
    metrics: Arc<RemoteMetrics>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    reachable: Reachable,
    large: LargeObjects,
    /// Prefetches that the cluster is being told of; they end with this.
    telling: JoinSet<()>,
}

/// Opens the origin `text` for `cluster`, which is a mount of `uri`.
///
/// # Errors
/// [`ErrorKind::Invalid`] when it cannot be the origin of that, and those of
/// [`super::connect`].
pub async fn connect(
    cluster: Arc<dyn Cluster>,
    (uri, text): (&RemoteUri, &str),
    options: &RemoteOptions,
    env: &CallerEnv,
    metrics: &Arc<RemoteMetrics>,
) -> Result<WithOrigin, RemoteError> {
    let invalid =
        |why: &str| RemoteError::new(ErrorKind::Invalid, format!("--origin {text:?}: {why}"));
    let origin_uri: RemoteUri = text.parse().map_err(|error| invalid(&format!("{error}")))?;
    if matches!(origin_uri, RemoteUri::Ais { .. }) {
        return Err(invalid("name the cloud's own bucket, such as s3://BUCKET"));
    }
    if !["", uri.prefix()].contains(&origin_uri.prefix()) {
        return Err(invalid("leave out the prefix, or name that of the mount"));
    }
    // The endpoint that was given is the cluster's, and so is who asks there.
    let options = RemoteOptions {
        endpoint_url: None,
        origin: None,
        credential_command: None,
        ..options.clone()
    };
    let env = env.without(CallerEnv::CREDENTIALS);
    let origin = Box::pin(super::connect(&origin_uri, &options, &env, metrics)).await;
    let origin = origin.map_err(|error| RemoteError {
        message: format!("--origin: {}", of_origin(&error)),
        ..error
    })?;
    if origin.capabilities().version_guard != VersionGuard::IfMatch {
        return Err(invalid(
            "its versions are no etags, so they cannot be compared with the cluster's; mount \
             without --origin",
        ));
    }
    Ok(WithOrigin::new(cluster, origin, Arc::clone(metrics)))
}

/// What the origin said. That option is the cluster's.
fn of_origin(error: &RemoteError) -> String {
    error.message.replace("--endpoint-url", "its endpoint in the environment")
}

#[async_trait]
impl Remote for WithOrigin {
    fn id(&self) -> &RemoteId {
        self.cluster.id()
    }

    fn capabilities(&self) -> Capabilities {
        self.cluster.capabilities()
    }

    fn fetches_first(&self) -> bool {
        self.cluster.fetches_first()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let ways = Ways {
            cluster: self.cluster.head(key),
            origin: self.origin.head(key),
            metrics: &self.metrics.head,
            first: First::Cluster,
        };
        self.ask(format!("HEAD {}", key.0), ways).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        if let Some(token) = &request.continuation {
            if let Some(token) = token.strip_prefix(OF_ORIGIN) {
                return list(&*self.origin, OF_ORIGIN, request, Some(token)).await;
            }
            let token = token.strip_prefix(OF_CLUSTER);
            return list(&*self.cluster, OF_CLUSTER, request, token).await;
        }
        let ways = Ways {
            cluster: Box::pin(list(&*self.cluster, OF_CLUSTER, request, None)),
            origin: Box::pin(list(&*self.origin, OF_ORIGIN, request, None)),
            metrics: &self.metrics.list,
            first: First::Cluster,
        };
        self.ask(format!("LIST {}", request.prefix), ways).await
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let ways = Ways {
            cluster: self.cluster.get_range(object, range.clone()),
            origin: Box::pin(self.get_at_origin(object, range.clone())),
            metrics: &self.metrics.get,
            first: match self.is_cold_and_large(object, &range).await {
                true => First::Origin,
                false => First::Cluster,
            },
        };
        self.ask(format!("GET {}", object.key.0), ways).await
    }

    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let ways = Ways {
            cluster: self.cluster.checksum(object),
            origin: self.origin.checksum(object),
            metrics: &self.metrics.head,
            // It is the one to know: the cluster's bytes are what is to be told apart.
            first: First::OriginUncounted,
        };
        self.ask(format!("HEAD {}", object.key.0), ways).await
    }
}

/// Why the cloud was asked and not the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Unreachable,
    Throttled,
    Full,
    Busy,
    Failing,
    ColdRange,
}

impl Why {
    fn of(error: &RemoteError) -> Why {
        match (&error.kind, error.status) {
            (ErrorKind::Unreachable, _) => Why::Unreachable,
            (ErrorKind::Throttled { .. }, _) => Why::Throttled,
            (_, Some(507)) => Why::Full,
            (_, Some(409)) => Why::Busy,
            _ => Why::Failing,
        }
    }
}

/// One thing, to be asked of either.
struct Ways<'a, T> {
    cluster: BoxFuture<'a, Result<T, RemoteError>>,
    origin: BoxFuture<'a, Result<T, RemoteError>>,
    metrics: &'a RequestMetrics,
    first: First,
}

/// Who is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Cluster,
    /// The cloud, which is faster for this, and that counts.
    Origin,
    /// The cloud, whose word it is about.
    OriginUncounted,
}

impl WithOrigin {
    /// Both, of which the client counts the first request itself in `metrics`.
    pub fn new(
        cluster: Arc<dyn Cluster>,
        origin: Arc<dyn Remote>,
        metrics: Arc<RemoteMetrics>,
    ) -> WithOrigin {
        WithOrigin { cluster, origin, metrics, state: Mutex::default() }
    }

    /// Asks the one, and where it cannot serve the other. Where neither can, the
    /// cluster's word counts.
    async fn ask<T>(&self, what: String, ways: Ways<'_, T>) -> Result<T, RemoteError> {
        let Ways { cluster, origin, metrics, first } = ways;
        let cluster = async {
            let answer = timeout(CLUSTER_LIMIT, cluster).await;
            let answer = answer.unwrap_or_else(|_| Err(late(&what, CLUSTER_LIMIT)));
            self.lock().reachable.answered(answer.as_ref().err(), Instant::now());
            answer
        };
        let why = match first {
            First::Origin | First::OriginUncounted => Some(Why::ColdRange),
            First::Cluster => self.lock().reachable.avoided(Instant::now()),
        };
        if let Some(why) = why {
            if let Ok(answer) = origin.await {
                if first != First::OriginUncounted {
                    self.count(why);
                }
                return Ok(answer);
            }
            metrics.requests.add(1);
            return cluster.await;
        }
        let error = match cluster.await {
            Err(error) if error.is_retryable() => error,
            answer => return answer,
        };
        metrics.requests.add(1);
        match origin.await {
            Ok(answer) => {
                tracing::debug!(%error, "asked the origin instead");
                self.count(Why::of(&error));
                Ok(answer)
            }
            Err(other) => {
                let message = format!("{}; and the origin: {}", error.message, of_origin(&other));
                Err(RemoteError { message, ..error })
            }
        }
    }

    /// The cloud's bytes, if they are of the version that is wanted.
    async fn get_at_origin(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let answer = self.origin.get_range(object, range).await?;
        if answer.version != object.version || answer.total_size != object.size {
            let message = format!("GET {}: the origin has another version", object.key.0);
            return Err(RemoteError::new(ErrorKind::Changed, message));
        }
        self.metrics.from_origin.gets.add(1);
        let metrics = Arc::clone(&self.metrics);
        let count = move |piece: &Result<Bytes, _>| {
            let bytes = piece.as_ref().map_or(0, Bytes::len) as u64;
            metrics.from_origin.bytes.add(bytes);
        };
        Ok(RangeBody { body: answer.body.inspect(count).boxed(), ..answer })
    }

    fn count(&self, why: Why) {
        let origin = &self.metrics.from_origin;
        let counter = match why {
            Why::Unreachable => &origin.unreachable,
            Why::Throttled => &origin.throttled,
            Why::Full => &origin.full,
            Why::Busy => &origin.busy,
            Why::Failing => &origin.failing,
            Why::ColdRange => &origin.cold_range,
        };
        counter.add(1);
    }

    /// Whether a range is better fetched from the cloud while the cluster fetches the
    /// object, which it is told to do.
    async fn is_cold_and_large(&self, object: &ObjectMeta, range: &Range<u64>) -> bool {
        let bytes = range.end.saturating_sub(range.start);
        let look = {
            let (mut state, now) = (self.lock(), Instant::now());
            if state.reachable.avoided(now).is_some() {
                return false;
            }
            state.large.look(object, bytes, now)
        };
        let Some(look) = look else { return false };
        let is_held = look.is_held(self.is_held(&object.key)).await;
        if !is_held {
            self.prefetch(&object.key);
        }
        self.lock().large.looked(object, bytes, is_held);
        !is_held
    }

    async fn is_held(&self, key: &Key) -> bool {
        let metrics = &self.metrics.head;
        metrics.requests.add(1);
        let sent = Instant::now();
        let reason = match timeout(LOOK_LIMIT, self.cluster.holds(key)).await {
            Ok(Ok(is_held)) => {
                metrics.answered.observe(sent.elapsed());
                return is_held;
            }
            Ok(Err(error)) => error.kind.reason(),
            Err(_) => Reason::Transient,
        };
        metrics.errors.add(reason);
        true // Its GET finds out.
    }

    /// Tells the cluster to fetch an object, once, and behind the reader.
    fn prefetch(&self, key: &Key) {
        let mut state = self.lock();
        while state.telling.try_join_next().is_some() {}
        if !state.large.begin_prefetch(key, Instant::now()) {
            return;
        }
        let (cluster, key) = (Arc::clone(&self.cluster), key.clone());
        state.telling.spawn(async move {
            match timeout(PREFETCH_LIMIT, cluster.prefetch(&key)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the cluster does not prefetch"),
                Err(_) => tracing::debug!(key = key.0, "the cluster takes no note of a prefetch"),
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of either; its token says of which.
async fn list(
    remote: &(impl Remote + ?Sized),
    of: &str,
    request: &ListRequest,
    token: Option<&str>,
) -> Result<ListPage, RemoteError> {
    let request = ListRequest { continuation: token.map(str::to_owned), ..request.clone() };
    let page = remote.list(&request).await?;
    Ok(ListPage { next: page.next.map(|token| format!("{of}{token}")), ..page })
}

#[cfg(test)]
mod tests;
