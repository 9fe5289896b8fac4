//! Tokens that expire: where they come from, and how all requests share one.
//!
//! [`Tokens`] hands out the current token without waiting. Its rules:
//!
//! - One fetch at a time, whoever asks. A request that goes away does not end it. Where a
//!   server is ill it asks three times, as a mount does ([`super::settle`]).
//! - The first request in the last part of a token's life has the next one fetched
//!   behind it; a failure is tried again after a pause. A mount that nobody reads
//!   from asks for nothing, and its first reader then waits for a fetch.
//! - Once the token has expired, a fetch that fails is the answer,
//!   [`ErrorKind::Credentials`]; it is the answer for all until a pause is over.
//! - What is given from outside ([`Tokens::replace`]) counts at once, also for those
//!   who wait.
//! - A token that the store refuses is fetched again early, once.
//!
//! When to do what is `Held::plan`, which is pure.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::answer::late;
use super::settle::insist;
use super::{ErrorKind, RemoteError};

/// A token is replaced when less than this is left of it, or than [`LIFE_PART`] of
/// its life. Metadata services have a new one five minutes before the end.
const REFRESH_BEFORE: Duration = Duration::from_secs(4 * 60);

/// Of tokens that live for minutes only, the last quarter.
const LIFE_PART: u32 = 4;

/// A token with less left than this counts as expired: a request takes time to
/// arrive, and clocks differ.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// Pause after a fetch that failed, and between two that the store's refusals made
/// necessary: a person has to do something, and a login that is asked for in vain
/// again and again is locked.
const PAUSE: Duration = Duration::from_secs(30);

/// The same if no answer came or the next may be another: a blip must not cost half
/// a minute of reads.
const BLIP_PAUSE: Duration = Duration::from_secs(1);

/// Time for one attempt: a program that asks a server, twice.
const FETCH_LIMIT: Duration = Duration::from_secs(20);

/// What a request is signed or marked with: a text, or keys.
pub trait Secret: Clone + PartialEq + fmt::Debug + Send + Sync + 'static {}

impl<S: Clone + PartialEq + fmt::Debug + Send + Sync + 'static> Secret for S {}

/// What a store takes for a proof of who asks. A clone is another handle.
#[derive(Clone, PartialEq, Eq)]
pub struct Token<S = Arc<str>> {
    secret: S,
    /// When it ends, if that is known.
    pub expires: Option<SystemTime>,
}

impl Token {
    /// A token, which may never end.
    pub fn new(secret: impl Into<Arc<str>>, expires: Option<SystemTime>) -> Token {
        Token::of(secret.into(), expires)
    }

    /// The token itself. It belongs into a header and nowhere else.
    pub fn secret(&self) -> &str {
        &self.secret
    }
}

impl<S> Token<S> {
    /// A secret of any kind, which may never end.
    pub fn of(secret: S, expires: Option<SystemTime>) -> Token<S> {
        Token { secret, expires }
    }

    /// The secret itself. It belongs into a request and nowhere else.
    pub fn value(&self) -> &S {
        &self.secret
    }

    /// Time that is left of it; none if it has expired.
    fn left(&self, now: SystemTime) -> Option<Duration> {
        let Some(expires) = self.expires else { return Some(Duration::MAX) };
        expires.duration_since(now).ok().filter(|left| *left > EXPIRY_MARGIN)
    }
}

impl<S> fmt::Debug for Token<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Where tokens come from.
#[async_trait]
pub trait TokenSource<S = Arc<str>>: Send + Sync + fmt::Debug {
    /// Gets a token that is as new as can be. Makes one attempt.
    ///
    /// # Errors
    /// With a message that says in one line what to run, and holds no secret.
    async fn fetch(&self) -> Result<Token<S>, RemoteError>;
}

/// What requests are authorised by: a source, or one token.
#[derive(Clone, Debug)]
pub enum Given<S = Arc<str>> {
    /// Something that has a token whenever one is wanted.
    Source(Arc<dyn TokenSource<S>>),
    /// A token from outside; whoever gave it gives the next one too.
    Token(Token<S>),
}

/// The token that all requests share. A clone is another handle.
#[derive(Clone, Debug)]
pub struct Tokens<S: Secret = Arc<str>>(Arc<Shared<S>>);

#[derive(Debug)]
struct Shared<S: Secret> {
    held: Mutex<Held<S>>,
    /// A fetch has ended, or something was given.
    changed: Notify,
    clock: fn() -> SystemTime,
}

#[derive(Debug)]
struct Held<S> {
    source: Option<Arc<dyn TokenSource<S>>>,
    token: Option<Token<S>>,
    /// When it came.
    since: SystemTime,
    fetch: Option<JoinHandle<()>>,
    /// The last fetch, if it failed.
    failure: Option<Failure>,
    /// When a refusal of the store last had a token fetched early.
    forgot: Option<SystemTime>,
    /// The token that was refused then. It may be right all the same, so it is used again
    /// where there is no other.
    refused: Option<Token<S>>,
    /// Counts what was given: a fetch from an earlier source is not wanted any more.
    given: u64,
}

#[derive(Clone, Debug)]
struct Failure {
    error: RemoteError,
    at: SystemTime,
    pause: Duration,
}

/// Whether a pause that began at `start` goes on. A clock that was set back ends it:
/// that may be what cures the failure.
fn rests(start: SystemTime, pause: Duration, now: SystemTime) -> bool {
    now.duration_since(start).is_ok_and(|passed| passed < pause)
}

/// What a request does about its token.
#[derive(Debug, PartialEq, Eq)]
enum Plan<S> {
    /// Uses this one.
    Use(Token<S>),
    /// Uses this one, and has the next one fetched.
    UseAndFetch(Token<S>),
    /// Waits for a fetch, which has to be begun or is under way.
    Wait {
        /// Whether it has to be begun.
        begin: bool,
    },
    /// Fails.
    Fail(RemoteError),
}

impl<S: Secret> Held<S> {
    fn plan(&self, now: SystemTime) -> Plan<S> {
        let is_fetching = self.fetch.as_ref().is_some_and(|fetch| !fetch.is_finished());
        let failure = self.failure.as_ref().filter(|last| rests(last.at, last.pause, now));
        let usable = self.token.as_ref().and_then(|token| Some((token, token.left(now)?)));
        if let Some((token, left)) = usable {
            let is_due = left < self.refresh_before();
            return match is_due && self.source.is_some() && !is_fetching && failure.is_none() {
                true => Plan::UseAndFetch(token.clone()),
                false => Plan::Use(token.clone()),
            };
        }
        match (&self.source, failure) {
            (Some(_), _) if is_fetching => Plan::Wait { begin: false },
            (_, Some(failure)) => Plan::Fail(failure.error.clone()),
            (Some(_), None) => Plan::Wait { begin: true },
            (None, None) => {
                let message = "the token that was given has expired; give a new one";
                Plan::Fail(RemoteError::new(ErrorKind::Credentials, message))
            }
        }
    }

    fn refresh_before(&self) -> Duration {
        let life = self.token.as_ref().and_then(|token| token.expires);
        let life = life.and_then(|expires| expires.duration_since(self.since).ok());
        life.map_or(REFRESH_BEFORE, |life| REFRESH_BEFORE.min(life / LIFE_PART))
    }

    /// Takes over what a fetch brought.
    fn fetched(&mut self, result: Result<Token<S>, RemoteError>, now: SystemTime) {
        let error = match result {
            Ok(token) if token.left(now).is_some() => {
                (self.token, self.since, self.failure) = (Some(token), now, None);
                self.refused = None;
                return;
            }
            Ok(_) => {
                let message = "the new token has expired already; set this machine's clock, or \
                               log in again";
                RemoteError::new(ErrorKind::Credentials, message)
            }
            Err(error) => error,
        };
        tracing::warn!(%error, "no new token");
        let pause = if error.is_retryable() { BLIP_PAUSE } else { PAUSE };
        // Nothing worked yet: whether to try again is for the caller to know.
        let is_first = self.token.is_none() && self.forgot.is_none();
        let kind = match is_first && error.is_retryable() {
            true => error.kind,
            false => ErrorKind::Credentials,
        };
        let error = RemoteError { kind, ..error };
        if self.token.is_none() {
            self.token = self.refused.take();
        }
        self.failure = Some(Failure { error, at: now, pause });
    }

    /// Drops the token that the store refuses, if the next one may be another.
    fn forget(&mut self, refused: &Token<S>, now: SystemTime) {
        let is_current = self.token.as_ref() == Some(refused);
        let is_early = self.forgot.is_some_and(|last| rests(last, PAUSE, now));
        if is_current && !is_early && self.source.is_some() {
            (self.refused, self.forgot) = (self.token.take(), Some(now));
        }
    }
}

impl<S: Secret> Tokens<S> {
    /// Tokens that `given` leads to. Nothing is fetched yet.
    pub fn new(given: Given<S>) -> Tokens<S> {
        Tokens::with_clock(given, SystemTime::now)
    }

    fn with_clock(given: Given<S>, clock: fn() -> SystemTime) -> Tokens<S> {
        let held = Held {
            source: None,
            token: None,
            since: clock(),
            fetch: None,
            failure: None,
            forgot: None,
            refused: None,
            given: 0,
        };
        let tokens =
            Tokens(Arc::new(Shared { held: Mutex::new(held), changed: Notify::new(), clock }));
        tokens.replace(given);
        tokens
    }

    /// The current token, without waiting if there is one.
    ///
    /// # Errors
    /// The source's own, as [`ErrorKind::Credentials`]; the kind of a retryable one
    /// is kept as long as there never was a token.
    pub async fn current(&self) -> Result<Token<S>, RemoteError> {
        loop {
            // Made before the look, so that nothing is missed in between.
            let changed = self.0.changed.notified();
            let plan = {
                let mut held = self.0.lock();
                let plan = held.plan((self.0.clock)());
                if matches!(plan, Plan::UseAndFetch(_) | Plan::Wait { begin: true }) {
                    self.0.begin(&mut held);
                }
                plan
            };
            match plan {
                Plan::Use(token) | Plan::UseAndFetch(token) => return Ok(token),
                Plan::Fail(error) => return Err(error),
                Plan::Wait { .. } => changed.await,
            }
        }
    }

    /// Makes a request with the current token. If the store refuses that
    /// ([`ErrorKind::Credentials`]) and another one is to be had, it is made once more.
    ///
    /// # Errors
    /// The request's, or those of [`Tokens::current`].
    pub async fn authorised<T, F>(&self, request: impl Fn(Token<S>) -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let token = self.current().await?;
        let error = match request(token.clone()).await {
            Err(error) if error.kind == ErrorKind::Credentials => error,
            result => return result,
        };
        self.forget(&token);
        match self.current().await? {
            same if same == token => Err(error),
            next => request(next).await,
        }
    }

    /// Tells that the store refused `token` (401). It is not handed out again while a
    /// newer one can be fetched; this is tried once in a while only.
    pub fn forget(&self, token: &Token<S>) {
        self.0.lock().forget(token, (self.0.clock)());
    }

    /// From now on `given` is what counts, and whatever failed before does not.
    pub fn replace(&self, given: Given<S>) {
        let now = (self.0.clock)();
        let mut held = self.0.lock();
        if let Some(fetch) = held.fetch.take() {
            fetch.abort();
        }
        (held.source, held.token) = match given {
            Given::Source(source) => (Some(source), None),
            Given::Token(token) => (None, Some(token)),
        };
        (held.since, held.failure) = (now, None);
        (held.forgot, held.refused) = (None, None);
        held.given += 1;
        drop(held);
        self.0.changed.notify_waiters();
    }
}

impl<S: Secret> Drop for Shared<S> {
    fn drop(&mut self) {
        if let Some(fetch) = self.lock().fetch.take() {
            fetch.abort();
        }
    }
}

impl<S: Secret> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, Held<S>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to fetch in a task of its own, which those who wait may leave.
    fn begin(self: &Arc<Self>, held: &mut Held<S>) {
        let Some(source) = held.source.clone() else { return };
        let (shared, given) = (Arc::downgrade(self), held.given);
        held.fetch = Some(tokio::spawn(async move {
            // A server that is ill for a moment must not cost a mount, nor a pause.
            let result = insist(|| async {
                let fetched = timeout(FETCH_LIMIT, source.fetch()).await;
                let fetched = fetched.unwrap_or_else(|_| Err(late("a new token", FETCH_LIMIT)));
                fetched.map_err(|error| (error, ()))
            });
            let result = result.await.map_err(|(error, ())| error);
            Shared::finish(&shared, given, result);
        }));
    }

    fn finish(shared: &Weak<Self>, given: u64, result: Result<Token<S>, RemoteError>) {
        let Some(shared) = shared.upgrade() else { return };
        let mut held = shared.lock();
        if held.given == given {
            held.fetch = None;
            held.fetched(result, (shared.clock)());
            drop(held);
            shared.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
