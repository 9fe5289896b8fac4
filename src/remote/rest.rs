//! What a remote needs that speaks a store's HTTP API by itself: [`Call`] says what
//! is asked, [`Rest`] asks it once and turns whatever is no success into an error.
//!
//! Nothing is repeated, and nothing is redirected unless the call says so
//! ([`Call::following_redirects`]). Limits on time are the caller's
//! ([`super::client::Limits`]). `what` names the request in messages, as
//! `GET gs://bucket/key`: no message holds a URL, whose query may be signed.

mod call;
mod redirect;

use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::BoxStream;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LAST_MODIFIED, RETRY_AFTER};
use http::{HeaderMap, Response};
use http_body_util::{BodyDataStream, BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;

pub use self::call::Call;
use self::redirect::Route;
use super::answer::{Asked, Dialect, Refusal, believable, lacks, refused, unanswered};
use super::error::innermost;
use super::http::HttpClient;
use super::ranged::{self, Sent};
use super::{ErrorKind, RemoteError};

/// Most bytes of a refusal that are read: a code and a sentence, or a web server's
/// page, of which nothing is shown.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// One store's HTTP API. A clone is another handle.
#[derive(Clone, Debug)]
pub struct Rest {
    http: HttpClient,
    dialect: &'static Dialect,
    said: fn(&HeaderMap, &[u8]) -> Said,
}

/// What a store says besides its status. Neither is shown in full.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Its code, such as `BlobNotFound`.
    pub code: Option<String>,
    /// Its sentence.
    pub message: Option<String>,
}

/// An answer that is held in memory as a whole.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its headers.
    pub headers: HeaderMap,
    /// At most as many bytes as the call takes; none to a HEAD.
    pub body: Bytes,
}

/// A range of an object, with its bytes still to come.
pub struct Object {
    /// The answer's headers, in which its version is.
    pub headers: HeaderMap,
    /// The whole object's size in bytes.
    pub total_size: u64,
    /// The bytes of the range, in order. May break off with an error.
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

impl Rest {
    /// The API behind `http` of a store that speaks `dialect`. `said` reads the
    /// headers and the body of a refusal.
    pub fn new(
        http: HttpClient,
        dialect: &'static Dialect,
        said: fn(&HeaderMap, &[u8]) -> Said,
    ) -> Rest {
        Rest { http, dialect, said }
    }

    /// Asks for anything but an object's bytes.
    ///
    /// # Errors
    /// By [`refused`] for what is no 2xx, by [`unanswered`] for no answer;
    /// [`ErrorKind::Transient`] when the body breaks off, [`ErrorKind::Invalid`] when
    /// it is too large or the redirects are not to be followed.
    pub async fn document(
        &self,
        asked: Asked,
        what: &str,
        call: Call,
    ) -> Result<Document, RemoteError> {
        let bytes_max = call.answer_bytes_max();
        let answer = self.send(asked, what, call).await?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("{what}: the answer is larger than any listing");
                return RemoteError::new(ErrorKind::Invalid, message);
            }
            let message = format!("{what}: the answer broke off: {}", innermost(&*error));
            RemoteError::new(ErrorKind::Transient, message)
        })?;
        Ok(Document { headers: head.headers, body: body.to_bytes() })
    }

    /// Asks for the bytes `range` of an object; `call` says which, and its version.
    /// The `range` header is set here; who signs it sets the same by
    /// [`ranged::header`] before.
    ///
    /// # Errors
    /// As [`Rest::document`], and [`ErrorKind::Invalid`] for an empty range and for
    /// an answer that does not hold the range.
    pub async fn object(
        &self,
        what: &str,
        call: Call,
        range: &Range<u64>,
    ) -> Result<Object, RemoteError> {
        let call = call.header("range", &ranged::header(range, what)?);
        let answer = self.send(Asked::Get, what, call).await?;
        let (head, body) = answer.into_parts();
        let length = header(&head.headers, CONTENT_LENGTH.as_str()).and_then(|n| n.parse().ok());
        let sent = Sent::of(header(&head.headers, CONTENT_RANGE.as_str()), length, what)?;
        let body = sent.cut(BodyDataStream::new(body), range, what.to_owned())?;
        Ok(Object { headers: head.headers, total_size: sent.total_size, body })
    }

    /// A success, found at the end of the call's redirects.
    async fn send(
        &self,
        asked: Asked,
        what: &str,
        mut call: Call,
    ) -> Result<Response<Incoming>, RemoteError> {
        let mut route = Route::default();
        loop {
            let answer = self.http.send(call.request(what)?).await;
            let answer = answer.map_err(|error| unanswered(what, self.dialect.endpoint, &error))?;
            if answer.status().is_success() {
                return Ok(answer);
            }
            if !call.follows(answer.status()) {
                return Err(self.refusal(asked, what, answer).await);
            }
            call = route.next(call, answer.headers(), what)?;
            // Read to its end, the connection can be used again.
            let _ = Limited::new(answer.into_body(), REFUSAL_BYTES_MAX).collect().await;
        }
    }

    async fn refusal(&self, asked: Asked, what: &str, answer: Response<Incoming>) -> RemoteError {
        let (head, body) = answer.into_parts();
        // What is not read to its end is not understood either.
        let body = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        let said = (self.said)(&head.headers, &body);
        let refusal = Refusal {
            asked,
            status: head.status.as_u16(),
            code: said.code.as_deref(),
            said: said.message.as_deref(),
            retry_after: header(&head.headers, RETRY_AFTER.as_str()),
        };
        refused(self.dialect, what, &refusal)
    }
}

/// A header's value, if it is there and text.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The size of the object that a HEAD told of, in bytes.
///
/// # Errors
/// [`ErrorKind::Invalid`] if it has none that an object can have.
pub fn size(headers: &HeaderMap, what: &str) -> Result<u64, RemoteError> {
    let length = header(headers, CONTENT_LENGTH.as_str()).and_then(|length| length.parse().ok());
    length.and_then(believable).ok_or_else(|| lacks(what, "believable size"))
}

/// `Last-Modified`, or the epoch where it is missing.
pub fn last_modified(headers: &HeaderMap) -> SystemTime {
    header(headers, LAST_MODIFIED.as_str())
        .and_then(|date| httpdate::parse_http_date(date).ok())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("total_size", &self.total_size).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_with_suspicion() {
        let mut headers = HeaderMap::new();
        assert_eq!(size(&headers, "HEAD").unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(last_modified(&headers), SystemTime::UNIX_EPOCH);
        headers.insert("content-length", "17".parse().unwrap());
        headers.insert("last-modified", "Thu, 01 Jan 1970 00:01:00 GMT".parse().unwrap());
        assert_eq!(size(&headers, "HEAD").unwrap(), 17);
        let minute = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(60);
        assert_eq!(last_modified(&headers), minute);
        headers.insert("content-length", u64::MAX.into());
        headers.insert("last-modified", "yesterday".parse().unwrap());
        assert!(size(&headers, "HEAD").is_err());
        assert_eq!(last_modified(&headers), SystemTime::UNIX_EPOCH);
    }
}
