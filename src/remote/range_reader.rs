//! The bytes of one range, over breaks, stalls and hedges. The rules stand in
//! [`super::client`].

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::time::{Instant, timeout};

use super::client::{Failed, RemoteClient, Tries, Why, no_answer};
use super::download_cap::InFlight;
use super::endpoint::Endpoint;
use super::{ErrorKind, ObjectMeta, RangeBody, RemoteError};
use crate::admission::{Class, Permit, Urgency};
use crate::metrics::RequestMetrics;

/// Less than this per [`super::client::Limits::stall`] (3 KiB/s) is a stall:
/// otherwise a byte now and then would keep a dying connection alive for ever.
const STALL_BYTES: u64 = 16 << 10;

/// Bytes after which a range's attempts count from one again, so that a large
/// range over a poor line is not given up for breaks that it survived.
const RENEWING_BYTES: u64 = 1 << 20;

/// Time to see the end of a body whose bytes have all arrived. Seeing it lets
/// the connection be used again; waiting longer costs more than a new one.
const END_LIMIT: Duration = Duration::from_millis(100);

/// A timer that fires this late says that the machine is busy: what seems to be
/// the store's delay is our own, and a hedge would add to it.
const BUSY: Duration = Duration::from_millis(10);

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
    urgency: Urgency,
    body: Option<Body>,
    in_flight: Option<InFlight>,
    /// Attempts made since the last renewal.
    tries: Tries,
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
    /// The longest wait for a piece, and since when one lasts.
    longest: Duration,
    waits_since: Option<Instant>,
    endpoint: Arc<Endpoint>,
    /// When its GET was sent, and whether any of it came.
    sent: Instant,
    has_begun: bool,
}

/// How long to wait for an answer and for a body.
#[derive(Clone, Copy, Debug)]
struct Patience {
    response: Duration,
    stall: Duration,
    /// When the call has to end, whatever it waits for then.
    until: Instant,
}

impl Patience {
    fn at_most(&self, limit: Duration) -> Duration {
        limit.min(self.until.saturating_duration_since(Instant::now()))
    }
}

/// Which of two GETs for the same bytes brought some.
enum Race {
    First(Result<Bytes, Failed>),
    Second(Body, Bytes),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("waited", &self.waited).finish_non_exhaustive()
    }
}

impl RangeReader {
    pub(super) fn new(
        client: Arc<RemoteClient>,
        object: ObjectMeta,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Self {
        RangeReader {
            client,
            object,
            at: range.start,
            end: range.end,
            urgency,
            body: None,
            in_flight: None,
            tries: Tries::default(),
            since_renewal: 0,
            failure: None,
        }
    }

    /// Its bytes were set aside already, by [`RemoteClient::reserve`].
    pub fn with_reserved(mut self, reserved: Option<InFlight>) -> Self {
        self.in_flight = reserved;
        self
    }

    /// The next bytes, in order; `None` after the last one. Over all calls
    /// exactly the range's length is returned, or else an error.
    ///
    /// # Errors
    /// [`ErrorKind::Changed`] when the object is no longer the version asked
    /// for, [`ErrorKind::NotFound`] when it is gone, [`ErrorKind::Capped`] when
    /// it may not be downloaded any more, and what else the remote says once
    /// retries are used up.
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
        if self.in_flight.is_none() {
            let begun = self.client.download.begin(&self.object.key, self.remaining());
            self.in_flight = Some(begun.inspect_err(|error| self.failure = Some(error.clone()))?);
        }
        // Before the clock starts: a wait for our own cap is nobody's stall.
        let turn = match &self.client.bandwidth {
            Some(bandwidth) => Some(bandwidth.turn(&self.urgency).await),
            None => None,
        };
        let start = Instant::now();
        loop {
            let failed = match self.attempt_next(start).await {
                Ok(piece) => {
                    if let Some(turn) = turn {
                        turn.received(piece.len() as u64);
                    }
                    return Ok(Some(self.take(piece)));
                }
                Err(failed) => failed,
            };
            self.body = None;
            if let Err(error) = self.client.pause(&mut self.tries, start, failed).await {
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

    /// Counts a piece that came, and cuts off what was not asked for.
    fn take(&mut self, mut piece: Bytes) -> Bytes {
        let len = piece.len() as u64;
        self.client.metrics.get.bytes.add(len);
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.received(len);
        }
        if let Some(body) = &mut self.body {
            body.time(&self.client.metrics.get, len >= self.end.saturating_sub(self.at));
        }
        if len > self.remaining() {
            // Bytes past the range are right, only unasked for: leave them.
            piece.truncate(self.remaining() as usize);
            self.body = None;
        }
        self.at += piece.len() as u64;
        self.since_renewal += len;
        if self.since_renewal >= RENEWING_BYTES {
            self.since_renewal = 0;
            self.tries = Tries { made: 1, ..Tries::default() };
        }
        piece
    }

    /// The next bytes from the open body, or from a new one; in both cases from
    /// a hedge, if that is faster.
    async fn attempt_next(&mut self, start: Instant) -> Result<Bytes, Failed> {
        let client = &self.client;
        let mut sent = None;
        if self.body.is_none() {
            let what = || format!("GET {}", self.object.key.0);
            let left = client.leave(start, what).await;
            sent = Some(left.map_err(|error| Failed { error, why: Why::Other })?);
            self.tries.made += 1;
            client.metrics.get.requests.add(1);
            client.endpoint.count_get();
        }
        let patience = self.patience(start);
        let range = self.at..self.end;
        let race = {
            let body = &mut self.body;
            let first = async {
                let body = match (body, sent) {
                    (Some(body), _) => body,
                    (none, Some(sent)) => none
                        .insert(open(client, &self.object, range.clone(), sent, patience).await?),
                    (None, None) => unreachable!("without a body a GET is sent"),
                };
                body.piece(patience).await.map_err(|how| broken(&self.object, &range, how))
            };
            race(client, &self.object, &range, sent.is_none(), patience, first).await
        };
        match race {
            Race::First(result) => {
                if let Err(failed) = &result {
                    self.client.count_failed(failed);
                }
                result
            }
            Race::Second(body, piece) => {
                self.client.metrics.hedges_won.add(1);
                self.body = Some(body);
                Ok(piece)
            }
        }
    }

    /// What the first attempt gets is what the endpoint usually takes; if that
    /// was too little, it is not the connection that is slow.
    fn patience(&self, start: Instant) -> Patience {
        let (limits, endpoint) = (self.client.limits, &self.client.endpoint);
        let (response, stall) = match self.tries.made {
            0 | 1 => (endpoint.answer_limit(limits.response), endpoint.stall_limit(limits.stall)),
            _ => (limits.response, limits.stall),
        };
        let response = limits.fetching.unwrap_or(response);
        Patience { response, stall, until: start + limits.no_progress }
    }

    /// Lets the connection of a fully read body return to its pool.
    async fn finish(&mut self) {
        if let Some(mut body) = self.body.take() {
            let _ = timeout(END_LIMIT, body.stream.next()).await;
        }
        self.in_flight = None;
    }
}

/// Waits for the first GET, and sends a second one if it is late and may be.
async fn race(
    client: &Arc<RemoteClient>,
    object: &ObjectMeta,
    range: &Range<u64>,
    has_begun: bool,
    patience: Patience,
    first: impl Future<Output = Result<Bytes, Failed>>,
) -> Race {
    let mut first = std::pin::pin!(first);
    // Most pieces are there already: no lock and no timer for these.
    if let std::task::Poll::Ready(result) = futures::poll!(&mut first) {
        return Race::First(result);
    }
    let Some(after) = client.endpoint.hedge_after(has_begun) else {
        return Race::First(first.await);
    };
    loop {
        let due = Instant::now() + after;
        tokio::select! {
            biased;
            result = &mut first => return Race::First(result),
            () = tokio::time::sleep_until(due) => {}
        }
        if due.elapsed() < BUSY {
            break;
        }
    }
    let Some(permit) = client.may_hedge() else { return Race::First(first.await) };
    client.metrics.get.requests.add(1);
    client.metrics.hedges_sent.add(1);
    let mut second = std::pin::pin!(hedge(client, object, range, patience, permit));
    tokio::select! {
        biased;
        result = &mut first => match result {
            // The hedge is the next attempt.
            Err(failed) if failed.error.is_retryable() => match second.await {
                Ok((body, piece)) => {
                    client.count_failed(&failed);
                    Race::Second(body, piece)
                }
                Err(hedge) => {
                    client.count_failed(&hedge);
                    Race::First(Err(failed))
                }
            },
            result => {
                client.endpoint.hedge_in_vain();
                Race::First(result)
            }
        },
        result = &mut second => match result {
            Ok((body, piece)) => Race::Second(body, piece),
            // The first one may still come; its own limits hold.
            Err(failed) => {
                client.count_failed(&failed);
                client.endpoint.hedge_in_vain();
                Race::First(first.await)
            }
        },
    }
}

impl RemoteClient {
    /// A GET failed.
    fn count_failed(&self, failed: &Failed) {
        self.metrics.get.errors.add(failed.error.kind.reason());
    }

    /// The permit of a hedge, if one may be sent now.
    fn may_hedge(&self) -> Option<Permit> {
        if !self.is_hedging || self.download.is_full() {
            return None;
        }
        let permit = self.requests().try_acquire(Class::Demand, 1)?;
        self.endpoint.take_hedge().then_some(permit)
    }
}

/// A second GET for `range`, up to its first bytes.
async fn hedge(
    client: &Arc<RemoteClient>,
    object: &ObjectMeta,
    range: &Range<u64>,
    patience: Patience,
    permit: Permit,
) -> Result<(Body, Bytes), Failed> {
    let opening = {
        let (client, object, range) = (Arc::clone(client), object.clone(), range.clone());
        let sent = Instant::now();
        async move { (open(&client, &object, range, sent, patience).await, permit) }
    };
    // A task, since it was counted: it is sent even if nobody waits any more.
    let opened = tokio::spawn(opening).await;
    let (body, _permit) = opened.map_err(|_| broken(object, range, How::Ended))?;
    let mut body = body?;
    let piece = body.piece(patience).await.map_err(|how| broken(object, range, how))?;
    Ok((body, piece))
}

/// Sends a GET and checks whose bytes follow.
async fn open(
    client: &RemoteClient,
    object: &ObjectMeta,
    range: Range<u64>,
    sent: Instant,
    patience: Patience,
) -> Result<Body, Failed> {
    let mut clock = FirstByte { endpoint: &client.endpoint, sent: Some(sent) };
    let limit = patience.at_most(patience.response);
    let answer = timeout(limit, client.remote().get_range(object, range)).await;
    let Ok(answer) = answer else {
        return Err(no_answer(format!("GET {}", object.key.0), limit));
    };
    if answer.is_err() {
        clock.sent = None; // How fast it says no tells nothing.
    }
    let RangeBody { version, total_size, body } =
        answer.map_err(|error| client.refused(sent, error))?;
    client.accepted(sent);
    drop(clock);
    if version != object.version || total_size != object.size {
        let message = format!(
            "GET {}: the object changed: asked for version {} of {} bytes, got {} of {}",
            object.key.0, object.version.0, object.size, version.0, total_size,
        );
        let error = RemoteError::new(ErrorKind::Changed, message);
        return Err(Failed { error, why: Why::Other });
    }
    Ok(Body {
        stream: body,
        waited: Duration::ZERO,
        since_set: 0,
        longest: Duration::ZERO,
        waits_since: None,
        endpoint: client.endpoint.clone(),
        sent,
        has_begun: false,
    })
}

/// Tells the endpoint how long an answer took, given up or not.
struct FirstByte<'a> {
    endpoint: &'a Endpoint,
    sent: Option<Instant>,
}

impl Drop for FirstByte<'_> {
    fn drop(&mut self) {
        if let Some(sent) = self.sent {
            self.endpoint.first_byte(sent.elapsed());
        }
    }
}

/// How a body broke off.
enum How {
    Ended,
    Stalled,
    Failed(RemoteError),
}

fn broken(object: &ObjectMeta, range: &Range<u64>, how: How) -> Failed {
    let (how, why) = match how {
        How::Ended => ("the body ended early", Why::Other),
        How::Stalled => ("the body stalled", Why::Stalled),
        How::Failed(error) => return Failed { error, why: Why::Other },
    };
    let message = format!("GET {}: {how} at byte {} of {}", object.key.0, range.start, range.end);
    Failed { error: RemoteError::new(ErrorKind::Transient, message), why }
}

impl Body {
    /// A piece came, perhaps the last one asked for. Those of a hedge that lost the race
    /// are not handed out, and so not timed.
    fn time(&mut self, metrics: &RequestMetrics, is_last: bool) {
        if !std::mem::replace(&mut self.has_begun, true) {
            metrics.answered.observe(self.sent.elapsed());
        }
        if is_last {
            metrics.finished.observe(self.sent.elapsed());
        }
    }

    /// The next piece that holds bytes.
    async fn piece(&mut self, patience: Patience) -> Result<Bytes, How> {
        let limit = patience.at_most(patience.stall.saturating_sub(self.waited));
        let since = Instant::now();
        self.waits_since = Some(since);
        let piece = timeout(limit, next_piece(&mut self.stream)).await;
        self.note_wait();
        let piece = match piece {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(error))) => return Err(How::Failed(error)),
            Ok(None) => return Err(How::Ended),
            Err(_) => return Err(How::Stalled),
        };
        self.since_set += piece.len() as u64;
        self.waited += since.elapsed();
        if self.since_set >= STALL_BYTES {
            self.since_set = 0;
            self.waited = Duration::ZERO;
        }
        Ok(piece)
    }

    fn note_wait(&mut self) {
        if let Some(since) = self.waits_since.take() {
            self.longest = self.longest.max(since.elapsed());
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.note_wait();
        self.endpoint.gap(self.longest);
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
