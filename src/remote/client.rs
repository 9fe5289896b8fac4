//! What every remote shares: retries, time limits, counting, and what it may
//! cost. [`RangeReader`] has the part about bodies.
//!
//! A [`Remote`] makes one request; [`RemoteClient`] makes it work if it can be
//! made to work. Its rules:
//!
//! - Each attempt is one request in [`RemoteMetrics`], failed or not.
//! - No call waits longer than [`Limits::no_progress`] without handing over a
//!   byte or an error; time that our own caps take is not counted, and what waits
//!   for a place among the requests has not called yet. Within that
//!   bound, a request without a response is given up after [`Limits::response`]
//!   and a body that dries up after [`Limits::stall`], and both are made again.
//!   The first attempt has less time, by what the endpoint took lately: another
//!   connection cures most stalls, and where it does not, it is the store.
//! - All requests keep the endpoint's pace. One that the store throttles is made
//!   again as long as the time allows; others have [`Backoff::attempts`].
//! - A body that breaks off is continued at the byte it reached, by a new GET
//!   that names the same version. A response for another version or size is
//!   [`ErrorKind::Changed`], and none of its bytes are handed out.
//! - A GET that is late is sent once more ([`super::hedge`]): both name the same
//!   version, and whichever brings the next bytes first is read on.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::answer::late;
use super::bandwidth::Bandwidth;
use super::checksum::Checksum;
use super::download_cap::DownloadCap;
use super::endpoint::{Endpoint, by_class};
use super::later::Known;
use super::login::Login;
use super::pages::Pages;
use super::retry::Backoff;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, Remote, RemoteError, RemoteId,
};
use crate::admission::{Class, PrioritySemaphore, Urgency};
use crate::config::TrafficOptions;
use crate::metrics::{RemoteMetrics, RequestMetrics};

pub use super::download_cap::{Download, InFlight};
pub use super::range_reader::RangeReader;

/// Time until a response begins. Object stores answer in 30-200 ms, and in a
/// few seconds at worst; after that a new connection has better odds.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// Time for a whole LIST page, which the store assembles and sends as one.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// Time in which a body must deliver 16 KiB, or else end; only time that a
/// caller waits for it counts.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Longest that a caller waits for the next byte or an error, over all attempts
/// and waits between them. The kernel's own hung-task warning comes at 120 s.
const NO_PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// The same two for a GET whose store fetches the whole object before its first byte:
/// 10 GB from a cloud at 1 Gbit/s. Who asks again after less would wait as long.
const FETCHING_RESPONSE_LIMIT: Duration = Duration::from_secs(100);
const FETCHING_NO_PROGRESS_LIMIT: Duration = Duration::from_secs(110);

/// The time limits of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until a response to HEAD or GET begins.
    pub response: Duration,
    /// The same for GET, where the store may have to fetch the object first.
    pub fetching: Option<Duration>,
    /// Until a page of a listing is complete.
    pub list: Duration,
    /// Until a body delivers its next 16 KiB.
    pub stall: Duration,
    /// Until a call returns a byte or an error, whatever happens.
    pub no_progress: Duration,
    /// How failures are retried within that.
    pub backoff: Backoff,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            response: RESPONSE_LIMIT,
            fetching: None,
            list: LIST_LIMIT,
            stall: STALL_LIMIT,
            no_progress: NO_PROGRESS_LIMIT,
            backoff: Backoff::default(),
        }
    }
}

impl Limits {
    fn of(remote: &dyn Remote) -> Limits {
        let usual = Limits::default();
        match remote.fetches_first() {
            false => usual,
            true => Limits {
                fetching: Some(FETCHING_RESPONSE_LIMIT),
                no_progress: FETCHING_NO_PROGRESS_LIMIT,
                ..usual
            },
        }
    }
}

/// A remote with retries, limits, caps and counters. Shared in an [`Arc`].
#[derive(Debug)]
pub struct RemoteClient {
    login: Login,
    pub(super) metrics: Arc<RemoteMetrics>,
    pub(super) limits: Limits,
    pub(super) endpoint: Arc<Endpoint>,
    /// `--max-requests`.
    own_requests: Option<Arc<PrioritySemaphore>>,
    /// `--max-bandwidth`.
    pub(super) bandwidth: Option<Arc<Bandwidth>>,
    pub(super) download: Arc<DownloadCap>,
    /// Whether what is late may be asked for a second time.
    pub(super) is_hedging: bool,
    /// Whether what came is compared with the store's checksums.
    verifies: bool,
}

/// An attempt that failed, and what it failed of.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: RemoteError,
    pub(super) why: Why,
}

/// What an attempt failed of, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    NoAnswer,
    Stalled,
    /// As the error says.
    Other,
}

/// The attempts at one thing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tries {
    /// Requests made, those that were throttled left out.
    pub(super) made: u32,
    /// Throttled in a row.
    pub(super) throttled: u32,
}

impl RemoteClient {
    /// A client of `remote` with the default limits, counting in `metrics`. It
    /// shares nothing with others, has no caps and sends no hedges.
    pub fn new(remote: Arc<dyn Remote>, metrics: Arc<RemoteMetrics>) -> Self {
        let limits = Limits::of(&*remote);
        Self::with_limits(remote, metrics, limits)
    }

    /// Such a client with limits of its own.
    pub fn with_limits(
        remote: Arc<dyn Remote>,
        metrics: Arc<RemoteMetrics>,
        limits: Limits,
    ) -> Self {
        let endpoint = Endpoint::new(false);
        let alone = Self::for_mount(remote, metrics, endpoint, &TrafficOptions::default());
        RemoteClient { limits, ..alone }
    }

    /// A client that shares `endpoint` with the other mounts of the remote, and
    /// has caps of its own.
    pub fn for_mount(
        remote: Arc<dyn Remote>,
        metrics: Arc<RemoteMetrics>,
        endpoint: Arc<Endpoint>,
        traffic: &TrafficOptions,
    ) -> Self {
        let requests = |max: u32| PrioritySemaphore::new(by_class(u64::from(max)));
        let bandwidth = |rate| Bandwidth::new(rate, Instant::now());
        RemoteClient {
            // What is late there is fetched for all who wait, once.
            verifies: traffic.verify_remote,
            is_hedging: !traffic.no_hedge && !remote.fetches_first(),
            limits: Limits::of(&*remote),
            login: Login::new(remote),
            metrics,
            endpoint,
            own_requests: traffic.max_requests.map(requests),
            bandwidth: traffic.max_bandwidth.map(bandwidth),
            download: DownloadCap::new(traffic),
        }
    }

    /// GETs in flight, which callers take permits of: the endpoint's, or the
    /// mount's own with `--max-requests`.
    pub fn requests(&self) -> &Arc<PrioritySemaphore> {
        self.own_requests.as_ref().unwrap_or(self.endpoint.requests())
    }

    /// Whether these are the mount's own.
    pub fn has_own_requests(&self) -> bool {
        self.own_requests.is_some()
    }

    /// Whether so many bytes may be fetched that nobody waits for.
    pub fn may_speculate(&self, bytes: u64) -> bool {
        self.download.leaves(bytes)
    }

    /// Sets bytes aside for a range that nobody waits for, if they may be
    /// fetched; for [`RangeReader::with_reserved`].
    pub fn reserve(&self, bytes: u64) -> Option<InFlight> {
        self.download.reserve(bytes)
    }

    /// What was downloaded, and the cap on it.
    pub fn download(&self) -> Download {
        self.download.state()
    }

    /// Counts what the mount downloaded before its daemon died.
    pub fn continue_download(&self, bytes: u64) {
        self.download.receive(bytes);
    }

    /// Whether objects that came as a whole are to be compared with their
    /// [`RemoteClient::checksum`].
    pub fn verifies(&self) -> bool {
        self.verifies
    }

    /// What the store says that all bytes of an object sum up to. Nobody waits for it.
    pub async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let what = || format!("HEAD {}", object.key.0);
        let (metrics, limit) = (&self.metrics.head, self.limits.response);
        let ask = |remote: Arc<dyn Remote>| async move { remote.checksum(object).await };
        self.retried(metrics, limit, &Class::Prefetch.into(), what, ask).await
    }

    /// The remote's identity.
    pub fn id(&self) -> &RemoteId {
        self.login.id()
    }

    /// What it takes to make this client again without asking the remote.
    pub fn known(&self) -> Known {
        Known::of(&*self.login.remote())
    }

    /// What the remote can do.
    pub fn capabilities(&self) -> Capabilities {
        self.login.capabilities()
    }

    /// The remote, to ask it once.
    pub(super) fn remote(&self) -> Arc<dyn Remote> {
        self.login.remote()
    }

    /// Asks as another from now on: `remote` is the same one with other credentials.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is another one.
    pub fn renew(&self, remote: Arc<dyn Remote>) -> Result<(), RemoteError> {
        self.login.renew(remote)
    }

    /// Why the credentials were refused, if that was the last word of the store.
    pub fn refusal(&self) -> Option<String> {
        self.login.refusal()
    }

    /// Size, version and time of one object. A missing object is
    /// [`ErrorKind::NotFound`], and not counted as a failure: lookups of names
    /// that do not exist are everyday questions.
    pub async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = || format!("HEAD {}", key.0);
        let (metrics, limit) = (&self.metrics.head, self.limits.response);
        let ask = |remote: Arc<dyn Remote>| async move { remote.head(key).await };
        self.retried(metrics, limit, &Class::Demand.into(), what, ask).await
    }

    /// One page of a listing; an empty one is the last. Stores send others that are
    /// empty, where much was deleted or a part of theirs ends: they say nothing.
    pub async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        self.list_as(request, &Class::Demand.into()).await
    }

    /// The same for something that may not be urgent.
    pub async fn list_as(
        &self,
        request: &ListRequest,
        urgency: &Urgency,
    ) -> Result<ListPage, RemoteError> {
        let mut pages = Pages::default();
        let mut page = self.list_page(request, urgency).await?;
        while page.objects.is_empty() && page.prefixes.is_empty() && page.next.is_some() {
            pages.check(&request.prefix, &page)?;
            let next = ListRequest { continuation: page.next, ..request.clone() };
            page = self.list_page(&next, urgency).await?;
        }
        Ok(page)
    }

    async fn list_page(
        &self,
        request: &ListRequest,
        urgency: &Urgency,
    ) -> Result<ListPage, RemoteError> {
        let what = || format!("LIST {}", request.prefix);
        let (metrics, limit) = (&self.metrics.list, self.limits.list);
        let ask = |remote: Arc<dyn Remote>| async move { remote.list(request).await };
        self.retried(metrics, limit, urgency, what, ask).await
    }

    /// The bytes `range` of `object`. Nothing is sent before the first
    /// [`RangeReader::next`], and nothing at all for an empty range.
    pub fn get_range(
        self: &Arc<Self>,
        object: ObjectMeta,
        range: Range<u64>,
        urgency: impl Into<Urgency>,
    ) -> RangeReader {
        RangeReader::new(Arc::clone(self), object, range, urgency.into())
    }

    /// All bytes of an object, which must be the version it names and have some. Somebody
    /// waits for them.
    pub fn get_whole(self: &Arc<Self>, object: ObjectMeta) -> RangeReader {
        let size = object.size;
        self.get_range(object, 0..size, Class::Demand)
    }

    /// Makes a request until it succeeds, fails for good, or the limits are up.
    async fn retried<T, F>(
        &self,
        metrics: &RequestMetrics,
        limit: Duration,
        urgency: &Urgency,
        what: impl Fn() -> String,
        request: impl Fn(Arc<dyn Remote>) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        // GETs have a permit of their caller; the cap holds for these too.
        let _permit = match &self.own_requests {
            Some(requests) => Some(requests.acquire_as(urgency, 1).await),
            None => None,
        };
        let start = Instant::now();
        let mut tries = Tries::default();
        loop {
            let sent = self.leave(start, &what).await?;
            tries.made += 1;
            metrics.requests.add(1);
            let limit = limit.min(self.time_left(start));
            let failed = match timeout(limit, request(self.remote())).await {
                Ok(Ok(answer)) => {
                    metrics.answered.observe(sent.elapsed());
                    self.accepted(sent);
                    return Ok(answer);
                }
                Ok(Err(error)) => self.refused(sent, error),
                Err(_) => no_answer(what(), limit),
            };
            match failed.error.kind {
                ErrorKind::NotFound => metrics.answered.observe(sent.elapsed()),
                ref kind => metrics.errors.add(kind.reason()),
            }
            self.pause(&mut tries, start, failed).await?;
        }
    }

    /// Waits for the endpoint's pace; returns the moment at which to send.
    pub(super) async fn leave(
        &self,
        start: Instant,
        what: impl Fn() -> String,
    ) -> Result<Instant, RemoteError> {
        timeout(self.time_left(start), self.endpoint.leave()).await.map_err(|_| {
            let message = format!("{}: the store asks for fewer requests than wait", what());
            RemoteError::new(ErrorKind::Throttled { retry_after: None }, message)
        })
    }

    pub(super) fn time_left(&self, start: Instant) -> Duration {
        self.limits.no_progress.saturating_sub(start.elapsed())
    }

    /// The store answered a request that was sent at `sent`.
    pub(super) fn accepted(&self, sent: Instant) {
        self.login.answered(None);
        self.endpoint.answered(sent, None);
    }

    /// The store said no to a request that was sent at `sent`.
    pub(super) fn refused(&self, sent: Instant, error: RemoteError) -> Failed {
        if matches!(error.kind, ErrorKind::Throttled { .. }) {
            self.metrics.throttled.add(1);
        }
        self.login.answered(Some(&error));
        self.endpoint.answered(sent, Some(&error));
        Failed { error, why: Why::Other }
    }

    /// Waits until the next attempt is due. Gives the error back if it is not
    /// worth a retry or no time is left since `start`.
    pub(super) async fn pause(
        &self,
        tries: &mut Tries,
        start: Instant,
        failed: Failed,
    ) -> Result<(), RemoteError> {
        let Failed { error, why } = failed;
        if !error.is_retryable() {
            return Err(error);
        }
        let backoff = self.limits.backoff;
        let dice = fastrand::f64();
        let delay = match error.kind {
            // It was not tried, only refused: time is the only bound.
            ErrorKind::Throttled { retry_after } => {
                tries.made = tries.made.saturating_sub(1);
                tries.throttled += 1;
                let patient = Backoff { attempts: u32::MAX, ..backoff };
                patient.delay(tries.throttled, retry_after, dice)
            }
            _ => {
                tries.throttled = 0;
                backoff.delay(tries.made, None, dice)
            }
        };
        match delay {
            Some(delay) if start.elapsed() + delay < self.limits.no_progress => {
                tracing::debug!(%error, attempt = tries.made, ?delay, "will ask again");
                self.count_retry(&error, why);
                tokio::time::sleep(delay).await;
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn count_retry(&self, error: &RemoteError, why: Why) {
        let retries = &self.metrics.retries;
        let counter = match (why, &error.kind) {
            (Why::NoAnswer, _) => &retries.no_answer,
            (Why::Stalled, _) => &retries.stalled,
            (Why::Other, ErrorKind::Throttled { .. }) => &retries.throttled,
            (Why::Other, ErrorKind::Unreachable) => &retries.unreachable,
            (Why::Other, _) => &retries.broken,
        };
        counter.add(1);
    }
}

/// No answer came in time.
pub(super) fn no_answer(what: String, limit: Duration) -> Failed {
    Failed { error: late(&what, limit), why: Why::NoAnswer }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
