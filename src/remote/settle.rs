//! What connecting to any store has in common: one small LIST, before anything is
//! mounted, says how a bucket is reached; and where nothing is configured, the
//! machine's metadata service is asked for credentials beside an anonymous LIST.
//!
//! A public bucket never waits for a metadata service. Others wait for it for
//! [`METADATA_LIMIT`] at most, and nothing is remembered: who logs in later finds the
//! credentials with the next mount.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::answer::late;
use super::retry::Backoff;
use super::{ErrorKind, RemoteError};
use crate::metrics::RequestMetrics;

/// Time for one LIST of one key, the loading of credentials included: a role, an SSO
/// token or a process may be behind them.
const LIST_LIMIT: Duration = Duration::from_secs(20);

/// Attempts of that LIST, or at a token, while the server asks for patience.
const ATTEMPTS: u32 = 3;

/// Time for the metadata service to give credentials, counted from the start. It is a
/// few hundred microseconds away, or not there at all.
const METADATA_LIMIT: Duration = Duration::from_millis(900);

/// LISTs one key, patiently. Each attempt is counted in `metrics`. An error comes with
/// what else the store told, such as the region to ask in.
pub(super) async fn patiently<T: Default, F>(
    what: &str,
    metrics: &RequestMetrics,
    list: impl Fn() -> F,
) -> Result<(), (RemoteError, T)>
where
    F: Future<Output = Result<(), (RemoteError, T)>>,
{
    insist(|| async {
        metrics.requests.add(1);
        let sent = Instant::now();
        let listed = timeout(LIST_LIMIT, list()).await;
        let listed = listed.unwrap_or_else(|_| Err((late(what, LIST_LIMIT), T::default())));
        listed
            .inspect(|()| metrics.answered.observe(sent.elapsed()))
            .inspect_err(|(error, _)| metrics.errors.add(error.kind.reason()))
    })
    .await
}

/// Asks until there is an answer, or a no that stays one. Three attempts, and what may come
/// of a wrong address is not made again: who waits wants to hear of it.
pub(super) async fn insist<T, Told, F>(ask: impl Fn() -> F) -> Result<T, (RemoteError, Told)>
where
    F: Future<Output = Result<T, (RemoteError, Told)>>,
{
    let backoff = Backoff { attempts: ATTEMPTS, ..Backoff::default() };
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (error, told) = match ask().await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        let retry_after = match error.kind {
            ErrorKind::Throttled { retry_after } => retry_after,
            ErrorKind::Transient => None,
            _ => return Err((error, told)),
        };
        match backoff.delay(attempt, retry_after, fastrand::f64()) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => return Err((error, told)),
        }
    }
}

/// A remote that is to be used as it was decided, after its LIST. One that is denied
/// is no error: a policy may allow the mount's own prefix and deny the bucket.
pub(super) fn decided<R>((remote, listed): (R, Result<(), RemoteError>)) -> Result<R, RemoteError> {
    match listed {
        Err(error) if error.kind != ErrorKind::Denied => Err(error),
        _ => Ok(remote),
    }
}

/// How a bucket is reached for which nothing is configured.
pub(super) enum Reached<R> {
    /// By anybody.
    Anonymously(R),
    /// With the machine's credentials.
    AsMachine,
    /// In no way that was found.
    Not,
}

/// Tries a bucket without credentials, while `probe` finds out whether the machine has
/// some; that is waited for only where it matters.
///
/// # Errors
/// The anonymous LIST's, if credentials would not change it.
pub(super) async fn unconfigured<R>(
    probe: Option<Probe>,
    anonymous: impl Future<Output = (R, Result<(), RemoteError>)>,
) -> Result<Reached<R>, RemoteError> {
    let (remote, listed) = anonymous.await;
    match listed {
        Ok(()) => return Ok(Reached::Anonymously(remote)),
        // A store of one's own may call a missing signature what it likes.
        Err(error) if !matches!(error.kind, ErrorKind::Denied | ErrorKind::Credentials) => {
            return Err(error);
        }
        Err(_) => {}
    }
    let has_credentials = match probe {
        Some(probe) => probe.has_credentials().await,
        None => false,
    };
    Ok(if has_credentials { Reached::AsMachine } else { Reached::Not })
}

/// The question to the metadata service, under way. Dropping it ends it.
pub(super) struct Probe(JoinHandle<bool>);

impl Probe {
    /// Begins to load the machine's credentials.
    pub(super) fn start<T, E>(load: impl Future<Output = Result<T, E>> + Send + 'static) -> Probe {
        Probe(tokio::spawn(async move { matches!(timeout(METADATA_LIMIT, load).await, Ok(Ok(_))) }))
    }

    async fn has_credentials(mut self) -> bool {
        (&mut self.0).await.unwrap_or(false)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.abort();
    }
}
