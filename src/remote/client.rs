//! What every remote shares: retries, time limits, counting, and the check that
//! a range never mixes versions.
//!
//! A [`Remote`] makes one request; [`RemoteClient`] makes it work if it can be
//! made to work. Its rules:
//!
//! - Each attempt is one request in [`RemoteMetrics`], failed or not.
//! - No call waits longer than [`Limits::no_progress`] without handing over a
//!   byte or an error. Within that bound, a request without a response is given
//!   up after [`Limits::response`] and a body that dries up after
//!   [`Limits::stall`], and both are made again.
//! - A body that breaks off is continued at the byte it reached, by a new GET
//!   that names the same version. A response for another version or size is
//!   [`ErrorKind::Changed`], and none of its bytes are handed out.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout};

use super::retry::Backoff;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, Remote, RemoteError, RemoteId,
};
use crate::admission::PrioritySemaphore;
use crate::metrics::{RemoteMetrics, RequestMetrics};

/// GETs in flight at once, for demand, readahead and prefetch. HTTP/1.1 over
/// many connections fills a line that few cannot; more than this costs memory
/// and gains nothing on two cores.
const REQUESTS_MAX: [u64; 3] = [96, 80, 64];

/// Time until a response begins. Object stores answer in 30-200 ms, and in a
/// few seconds at worst; after that a new connection has better odds.
const RESPONSE_LIMIT: Duration = Duration::from_secs(10);

/// Time for a whole LIST page, which the store assembles and sends as one.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// Time in which a body must deliver [`STALL_BYTES`], or else end; only time
/// that a caller waits for it counts.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Less than this per [`STALL_LIMIT`] (3 KiB/s) is a stall: otherwise a byte
/// now and then would keep a dying connection alive for ever.
const STALL_BYTES: u64 = 16 << 10;

/// Longest that a caller waits for the next byte or an error, over all attempts
/// and waits between them. The kernel's own hung-task warning comes at 120 s.
const NO_PROGRESS_LIMIT: Duration = Duration::from_secs(60);

/// Bytes after which a range's attempts count from one again, so that a large
/// range over a poor line is not given up for breaks that it survived.
const RENEWING_BYTES: u64 = 1 << 20;

/// Time to see the end of a body whose bytes have all arrived. Seeing it lets
/// the connection be used again; waiting longer costs more than a new one.
const END_LIMIT: Duration = Duration::from_millis(100);

/// The time limits of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until a response to HEAD or GET begins.
    pub response: Duration,
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
            list: LIST_LIMIT,
            stall: STALL_LIMIT,
            no_progress: NO_PROGRESS_LIMIT,
            backoff: Backoff::default(),
        }
    }
}

/// A remote with retries, limits and counters. Shared in an [`Arc`].
#[derive(Debug)]
pub struct RemoteClient {
    remote: Arc<dyn Remote>,
    metrics: Arc<RemoteMetrics>,
    limits: Limits,
    requests: Arc<PrioritySemaphore>,
}

impl RemoteClient {
    /// A client of `remote` with the default limits, counting in `metrics`.
    pub fn new(remote: Arc<dyn Remote>, metrics: Arc<RemoteMetrics>) -> Self {
        Self::with_limits(remote, metrics, Limits::default())
    }

    /// A client with limits of its own.
    pub fn with_limits(
        remote: Arc<dyn Remote>,
        metrics: Arc<RemoteMetrics>,
        limits: Limits,
    ) -> Self {
        let requests = PrioritySemaphore::new(REQUESTS_MAX);
        RemoteClient { remote, metrics, limits, requests }
    }

    /// GETs in flight to the endpoint, which its callers take permits of.
    pub fn requests(&self) -> &Arc<PrioritySemaphore> {
        &self.requests
    }

    /// Whether bytes that nobody waits for may be fetched.
    pub fn may_speculate(&self) -> bool {
        true
    }

    /// The remote's identity.
    pub fn id(&self) -> &RemoteId {
        self.remote.id()
    }

    /// What the remote can do.
    pub fn capabilities(&self) -> Capabilities {
        self.remote.capabilities()
    }

    /// Size, version and time of one object. A missing object is
    /// [`ErrorKind::NotFound`], and not counted as a failure: lookups of names
    /// that do not exist are everyday questions.
    pub async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = || format!("HEAD {}", key.0);
        self.retried(&self.metrics.head, self.limits.response, what, || self.remote.head(key)).await
    }

    /// One page of a listing.
    pub async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = || format!("LIST {}", request.prefix);
        self.retried(&self.metrics.list, self.limits.list, what, || self.remote.list(request)).await
    }

    /// The bytes `range` of `object`. Nothing is sent before the first
    /// [`RangeReader::next`], and nothing at all for an empty range.
    pub fn get_range(self: &Arc<Self>, object: ObjectMeta, range: Range<u64>) -> RangeReader {
        RangeReader {
            client: Arc::clone(self),
            object,
            at: range.start,
            end: range.end,
            body: None,
            attempt: 0,
            since_renewal: 0,
            failure: None,
        }
    }

    /// Makes a request until it succeeds, fails for good, or the limits are up.
    async fn retried<T, F>(
        &self,
        metrics: &RequestMetrics,
        limit: Duration,
        what: impl Fn() -> String,
        request: impl Fn() -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let start = Instant::now();
        let mut attempt = 0;
        loop {
            attempt += 1;
            metrics.requests.add(1);
            let left = self.limits.no_progress.saturating_sub(start.elapsed());
            let error = match timeout(limit.min(left), request()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => no_answer(what(), limit.min(left)),
            };
            if error.kind != ErrorKind::NotFound {
                metrics.errors.add(1);
            }
            self.pause(attempt, start, error).await?;
        }
    }

    /// Waits until the attempt after number `attempt` is due. Gives the error
    /// back if it is not worth a retry or no time is left since `start`.
    async fn pause(
        &self,
        attempt: u32,
        start: Instant,
        error: RemoteError,
    ) -> Result<(), RemoteError> {
        if !error.is_retryable() {
            return Err(error);
        }
        let retry_after = match error.kind {
            ErrorKind::Throttled { retry_after } => retry_after,
            _ => None,
        };
        let delay = self.limits.backoff.delay(attempt, retry_after, fastrand::f64());
        match delay {
            Some(delay) if start.elapsed() + delay < self.limits.no_progress => {
                tracing::debug!(%error, attempt, ?delay, "will ask again");
                tokio::time::sleep(delay).await;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

/// The bytes of one range of one object version, as they arrive.
///
/// After an error every further call returns it again. Dropping a call of
/// [`RangeReader::next`] before it is done loses no bytes.
#[derive(Debug)]
pub struct RangeReader {
    client: Arc<RemoteClient>,
    object: ObjectMeta,
    /// The byte of the object that comes next.
    at: u64,
    end: u64,
    body: Option<Body>,
    /// Attempts made since the last renewal.
    attempt: u32,
    since_renewal: u64,
    failure: Option<RemoteError>,
}

/// A body that is being read, with its stall clock.
struct Body {
    stream: BoxStream<'static, Result<Bytes, RemoteError>>,
    /// Time spent waiting since the clock was last set. The time a caller takes
    /// between calls is not the body's.
    waited: Duration,
    /// Bytes since the clock was last set.
    since_set: u64,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("waited", &self.waited).finish_non_exhaustive()
    }
}

impl RangeReader {
    /// The next bytes, in order; `None` after the last one. Over all calls
    /// exactly the range's length is returned, or else an error.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when the object is no longer the version asked
    /// for, [`ErrorKind::NotFound`] when it is gone, and what else the remote
    /// says once retries are used up.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RemoteError> {
        if let Some(error) = &self.failure {
            return Err(error.clone());
        }
        if self.at >= self.end {
            self.finish().await;
            return Ok(None);
        }
        if self.end > self.object.size {
            let message = format!("GET {}: the range ends past the object", self.object.key.0);
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        let start = Instant::now();
        loop {
            let error = match self.attempt_next(start).await {
                Ok(piece) => return Ok(Some(piece)),
                Err(error) => error,
            };
            self.body = None;
            self.client.metrics.get.errors.add(1);
            if let Err(error) = self.client.pause(self.attempt, start, error).await {
                self.failure = Some(error.clone());
                return Err(error);
            }
        }
    }

    /// The object that is being read.
    pub fn object(&self) -> &ObjectMeta {
        &self.object
    }

    /// Bytes still to come.
    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// The next bytes from the open body, or from a new one.
    async fn attempt_next(&mut self, start: Instant) -> Result<Bytes, RemoteError> {
        let limits = self.client.limits;
        if self.body.is_none() {
            let left = limits.no_progress.saturating_sub(start.elapsed());
            self.body = Some(self.open(limits.response.min(left)).await?);
        }
        let Some(body) = &mut self.body else { return Err(self.broken("no body came")) };
        let left = limits.no_progress.saturating_sub(start.elapsed());
        let limit = limits.stall.saturating_sub(body.waited).min(left);
        let waits_since = Instant::now();
        let mut piece = match timeout(limit, next_piece(&mut body.stream)).await {
            Ok(Some(piece)) => piece?,
            Ok(None) => return Err(self.broken("the body ended early")),
            Err(_) => return Err(self.broken("the body stalled")),
        };
        let len = piece.len() as u64;
        body.since_set += len;
        body.waited += waits_since.elapsed();
        if body.since_set >= STALL_BYTES {
            body.since_set = 0;
            body.waited = Duration::ZERO;
        }
        self.client.metrics.get.bytes.add(len);
        if len > self.remaining() {
            // Bytes past the range are right, only unasked for: leave them.
            piece.truncate(self.remaining() as usize);
            self.body = None;
        }
        self.at += piece.len() as u64;
        self.since_renewal += len;
        if self.since_renewal >= RENEWING_BYTES {
            self.since_renewal = 0;
            self.attempt = 1;
        }
        Ok(piece)
    }

    /// Sends the GET for what is still missing and checks whose bytes follow.
    async fn open(&mut self, limit: Duration) -> Result<Body, RemoteError> {
        self.attempt += 1;
        self.client.metrics.get.requests.add(1);
        let request = self.client.remote.get_range(&self.object, self.at..self.end);
        let Ok(response) = timeout(limit, request).await else {
            return Err(no_answer(format!("GET {}", self.object.key.0), limit));
        };
        let response = response?;
        if response.version != self.object.version || response.total_size != self.object.size {
            return Err(RemoteError::new(
                ErrorKind::Changed,
                format!(
                    "GET {}: the object changed: asked for version {} of {} bytes, got {} of {}",
                    self.object.key.0,
                    self.object.version.0,
                    self.object.size,
                    response.version.0,
                    response.total_size,
                ),
            ));
        }
        Ok(Body { stream: response.body, waited: Duration::ZERO, since_set: 0 })
    }

    /// Lets the connection of a fully read body return to its pool.
    async fn finish(&mut self) {
        if let Some(mut body) = self.body.take() {
            let _ = timeout(END_LIMIT, body.stream.next()).await;
        }
    }

    fn broken(&self, how: &str) -> RemoteError {
        RemoteError::new(
            ErrorKind::Transient,
            format!("GET {}: {how} at byte {} of {}", self.object.key.0, self.at, self.end),
        )
    }
}

/// The next piece that holds bytes: an empty one would look like progress.
async fn next_piece(
    stream: &mut BoxStream<'static, Result<Bytes, RemoteError>>,
) -> Option<Result<Bytes, RemoteError>> {
    loop {
        match stream.next().await {
            Some(Ok(piece)) if piece.is_empty() => continue,
            other => return other,
        }
    }
}

fn no_answer(what: String, limit: Duration) -> RemoteError {
    RemoteError::new(
        ErrorKind::Transient,
        format!("{what}: no answer within {} s", limit.as_secs_f32()),
    )
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
