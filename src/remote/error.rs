//! Failures of a remote, shaped by what the caller can do next.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::metrics::Reason;

/// Longest part of somebody else's message that is shown, in characters.
const SHOWN_CHARS: usize = 200;

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
    /// The HTTP status, if that was the answer.
    pub status: Option<u16>,
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
    /// It was not made: the caller's own cap on downloads is used up.
    Capped,
}

impl ErrorKind {
    /// As it is counted.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            ErrorKind::NotFound => Reason::NotFound,
            ErrorKind::NoSuchBucket => Reason::NoSuchBucket,
            ErrorKind::Denied => Reason::Denied,
            ErrorKind::Credentials => Reason::Credentials,
            ErrorKind::Changed => Reason::Changed,
            ErrorKind::Throttled { .. } => Reason::Throttled,
            ErrorKind::Transient => Reason::Transient,
            ErrorKind::Unreachable => Reason::Unreachable,
            ErrorKind::Invalid => Reason::Invalid,
            ErrorKind::Capped => Reason::Capped,
        }
    }
}

impl RemoteError {
    /// An error of `kind` with a message for a person. A key may hold line
    /// breaks and what steers a terminal: neither gets into a log or a message.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        let message = message.to_string().replace(char::is_control, " ");
        RemoteError { kind, message, status: None }
    }

    /// Whether the same request may succeed if it is made again.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Throttled { .. } | ErrorKind::Transient | ErrorKind::Unreachable
        )
    }
}

/// The first error of type `T` in the chain. The payload of an [`std::io::Error`]
/// is looked into too, which `source` skips.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|error| error.downcast_ref::<T>())
}

/// What the innermost error of a chain says: the outer ones only say that
/// something failed.
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(|error| one_line(&error.to_string())).unwrap_or_default()
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

/// A text as part of a one-line message.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_the_key() {
        let error = RemoteError::new(ErrorKind::Transient, "GET a\nb\x1b[2J: no answer");
        assert_eq!(error.to_string(), "GET a b [2J: no answer");
    }
}
