//! Failures of a remote, shaped by what the caller can do next.

use std::fmt;
use std::time::Duration;

/// A request that failed.
///
/// The message is one line for a person: what was asked, and what the store
/// said. It never holds a credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    /// What can be done about it.
    pub kind: ErrorKind,
    /// For a person, one line.
    pub message: String,
}

/// What a failed request means for the one who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such object.
    NotFound,
    /// There is no such bucket, or no such folder for a local remote.
    NoSuchBucket,
    /// The store knows the caller, or none, and says no.
    Denied,
    /// Credentials are missing, malformed or expired.
    Credentials,
    /// The object is no longer the version that was asked for.
    Changed,
    /// The store asks for fewer requests, perhaps after a while.
    Throttled {
        /// The store's own `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// It may work the next time: a 5xx, a reset, a timeout, a short body.
    Transient,
    /// No connection could be made: wrong host, wrong port, no network.
    Unreachable,
    /// The request itself is wrong, and would be so again.
    Invalid,
}

impl RemoteError {
    /// An error of `kind` with a message for a person.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        RemoteError { kind, message: message.to_string() }
    }

    /// Whether the same request may succeed if it is made again.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled { .. } | ErrorKind::Transient | ErrorKind::Unreachable
        )
    }
}
