//! What a store's no means, or the lack of an answer: an [`ErrorKind`], and one
//! line for a person: what was asked, what was answered, and what to do.
//!
//! What HTTP says is the same for every store. What only one of them says, its
//! codes and its options, is its [`Dialect`].

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_smithy_types::date_time::{DateTime, Format};
use hyper_util::client::legacy::Error as HyperError;
use rustls::CertificateError;

use super::error::{find, innermost, one_line};
use super::http::ProxyError;
use super::{ErrorKind, OBJECT_BYTES_MAX, RemoteError};

/// What was asked, as far as it changes the meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// HEAD of an object: its errors have no body.
    Head,
    /// GET of an object.
    Get,
    /// LIST of the bucket.
    List,
}

/// How one store says no, and what its users can do about it.
#[derive(Debug)]
pub struct Dialect {
    /// Who answers: "the store", "the token server".
    pub server: &'static str,
    /// The store's name: "that is not how S3 says no".
    pub store: &'static str,
    /// What it calls that which holds objects: "bucket", "container".
    pub bucket: &'static str,
    /// The option or variable that says where it is: "check --endpoint-url".
    pub endpoint: &'static str,
    /// What to do about credentials: "name others with --profile".
    pub credentials: &'static str,
    /// What an answer means, if it says more than its status.
    pub kind: fn(&Refusal<'_>) -> Option<ErrorKind>,
    /// What to do about an answer, if that is more than its kind tells.
    pub next_step: fn(&Refusal<'_>) -> Option<&'static str>,
}

/// An answer that was no success.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    /// What was asked.
    pub asked: Asked,
    /// The HTTP status.
    pub status: u16,
    /// The store's own code, such as `NoSuchKey`.
    pub code: Option<&'a str>,
    /// What it said besides.
    pub said: Option<&'a str>,
    /// Its `Retry-After`, as it came.
    pub retry_after: Option<&'a str>,
}

/// A moment as RFC 3339 writes it.
pub(super) fn rfc3339(text: &str) -> Option<SystemTime> {
    let time = DateTime::from_str(text, Format::DateTimeWithOffset).ok()?;
    SystemTime::try_from(time).ok()
}

/// The error that a refusal is. `what` says what was asked: `GET s3://b/k`.
pub fn refused(dialect: &Dialect, what: &str, refusal: &Refusal<'_>) -> RemoteError {
    let kind = (dialect.kind)(refusal).unwrap_or_else(|| kind_of_status(refusal));
    let kind = match kind {
        ErrorKind::Throttled { .. } => {
            let now = SystemTime::now();
            let retry_after = refusal.retry_after.and_then(|value| retry_after(value, now));
            ErrorKind::Throttled { retry_after }
        }
        kind => kind,
    };
    let mut message = format!("{what}: {} answered {}", dialect.server, refusal.status);
    for (separator, text) in [(" ", refusal.code), (": ", refusal.said)] {
        if let Some(text) = text.map(one_line).filter(|text| !text.is_empty()) {
            message.push_str(separator);
            message.push_str(text.trim_end_matches('.'));
        }
    }
    if let Some(step) = next_step(dialect, refusal, &kind) {
        message.push_str("; ");
        message.push_str(&step);
    }
    RemoteError { status: Some(refusal.status), ..RemoteError::new(kind, message) }
}

fn kind_of_status(refusal: &Refusal<'_>) -> ErrorKind {
    match (refusal.status, refusal.asked) {
        (401, _) => ErrorKind::Credentials,
        (403, _) => ErrorKind::Denied,
        (404, Asked::List) => ErrorKind::NoSuchBucket,
        (404 | 410, _) => ErrorKind::NotFound,
        (412 | 416, _) => ErrorKind::Changed,
        (429 | 503, _) => ErrorKind::Throttled { retry_after: None },
        // Also a 200 whose body could not be understood.
        (200..=299 | 408 | 409 | 425 | 500..=599, _) => ErrorKind::Transient,
        _ => ErrorKind::Invalid,
    }
}

fn next_step(dialect: &Dialect, refusal: &Refusal<'_>, kind: &ErrorKind) -> Option<String> {
    let Dialect { store, bucket, endpoint, credentials, .. } = dialect;
    if let Some(step) = (dialect.next_step)(refusal) {
        return Some(step.to_owned());
    }
    if refusal.status == 407 {
        return Some("put the proxy's user and password into HTTP_PROXY".to_owned());
    }
    Some(match (kind, refusal.code) {
        // A store puts a code into every answer that has a body: this is a web server.
        (ErrorKind::Invalid, None) if refusal.asked != Asked::Head => {
            format!("that is not how {store} says no, check {endpoint}")
        }
        (_, None) if (200..300).contains(&refusal.status) => {
            format!("in words that are not {store}'s, check {endpoint}")
        }
        (ErrorKind::NoSuchBucket, _) => format!("check the {bucket}'s name and {endpoint}"),
        (ErrorKind::Denied, _) => {
            format!("check what these credentials may read, or {credentials}")
        }
        (ErrorKind::Credentials, _) => {
            format!("refresh or correct the credentials, or {credentials}")
        }
        _ => return None,
    })
}

/// A store's `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3).
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

/// No answer came: no connection, or one that broke. `endpoint` is the
/// dialect's.
pub fn unanswered(what: &str, endpoint: &str, error: &(dyn Error + 'static)) -> RemoteError {
    let reason = one_line(&innermost(error));
    if let Some(tls) = find::<rustls::Error>(error) {
        let step = tls_step(tls, endpoint);
        let message = format!("{what}: the TLS connection failed: {tls}; {step}");
        return RemoteError::new(ErrorKind::Invalid, message);
    }
    if let Some(proxy) = find::<ProxyError>(error) {
        let variable = proxy.variable;
        let message = format!(
            "{what}: {proxy}: {reason}; check {variable}, or name the server's host in NO_PROXY"
        );
        return RemoteError::new(ErrorKind::Unreachable, message);
    }
    if find::<HyperError>(error).is_some_and(HyperError::is_connect) {
        let message = format!("{what}: no connection: {reason}; check the network and {endpoint}");
        return RemoteError::new(ErrorKind::Unreachable, message);
    }
    RemoteError::new(ErrorKind::Transient, format!("{what}: the connection broke: {reason}"))
}

fn tls_step(error: &rustls::Error, endpoint: &str) -> String {
    use CertificateError::*;
    match error {
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => "set this machine's clock, or have the server's certificate renewed".to_owned(),
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            format!("check the host in {endpoint}")
        }
        rustls::Error::InvalidCertificate(_) => {
            format!("check {endpoint}, or name the server's certificate authority with --ca-file")
        }
        rustls::Error::InvalidMessage(_) => {
            format!("check {endpoint}: that port may speak http, not https")
        }
        _ => format!("check {endpoint}"),
    }
}

/// An answer that cannot be worked with.
pub fn lacks(what: &str, part: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, format!("{what}: the answer has no {part}"))
}

/// No answer in time.
pub fn late(what: &str, limit: Duration) -> RemoteError {
    let message = format!("{what}: no answer within {} s", limit.as_secs_f32());
    RemoteError::new(ErrorKind::Transient, message)
}

/// A size that an object can have.
pub fn believable(size: u64) -> Option<u64> {
    Some(size).filter(|size| *size <= OBJECT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Dialect = Dialect {
        server: "the store",
        store: "Test",
        bucket: "bucket",
        endpoint: "--endpoint-url",
        credentials: "name others",
        kind: |refusal| (refusal.code == Some("Gone")).then_some(ErrorKind::NotFound),
        next_step: |refusal| (refusal.code == Some("Skewed")).then_some("set the clock"),
    };

    fn refusal(asked: Asked, status: u16) -> Refusal<'static> {
        Refusal { asked, status, code: None, said: None, retry_after: None }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        use ErrorKind::*;
        for (asked, status, expected) in [
            (Asked::Head, 404, NotFound),
            (Asked::List, 404, NoSuchBucket),
            (Asked::Head, 403, Denied),
            (Asked::Get, 401, Credentials),
            (Asked::Get, 410, NotFound),
            (Asked::Get, 412, Changed),
            (Asked::Get, 416, Changed),
            (Asked::Get, 429, Throttled { retry_after: None }),
            (Asked::Get, 502, Transient),
            (Asked::Get, 507, Transient),
            (Asked::List, 200, Transient),
            (Asked::Get, 301, Invalid),
            (Asked::Get, 407, Invalid),
        ] {
            let error = refused(&PLAIN, "GET t://b/k", &refusal(asked, status));
            assert_eq!(error.kind, expected, "{asked:?} {status}");
        }
    }

    #[test]
    fn a_code_of_the_store_comes_first() {
        let with = |status, code| Refusal { code: Some(code), ..refusal(Asked::Get, status) };
        assert_eq!(refused(&PLAIN, "GET", &with(500, "Gone")).kind, ErrorKind::NotFound);
        let error = refused(&PLAIN, "GET t://b/k", &with(403, "Skewed"));
        assert_eq!(error.message, "GET t://b/k: the store answered 403 Skewed; set the clock");
    }

    #[test]
    fn messages_are_one_line_with_a_next_step() {
        for (asked, status, words) in [
            (Asked::List, 404, "check the bucket's name and --endpoint-url"),
            (Asked::Get, 403, "check what these credentials may read, or name others"),
            (Asked::Get, 401, "refresh or correct the credentials, or name others"),
            (Asked::Get, 405, "not how Test says no, check --endpoint-url"),
            (Asked::Get, 200, "not Test's, check --endpoint-url"),
            (Asked::List, 407, "HTTP_PROXY"),
        ] {
            let refusal = Refusal { said: Some("a\nb."), ..refusal(asked, status) };
            let error = refused(&PLAIN, "GET t://b/k", &refusal);
            assert!(error.message.contains(&format!("{status}: a b; ")), "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, expected) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:40 GMT", Some(3)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("soon", None),
        ] {
            assert_eq!(retry_after(value, now), expected.map(Duration::from_secs), "{value}");
        }
        let refusal = Refusal { retry_after: Some("7"), ..refusal(Asked::Get, 503) };
        let expected = ErrorKind::Throttled { retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(refused(&PLAIN, "GET", &refusal).kind, expected);
    }

    #[test]
    fn what_is_wrong_with_tls_says_what_to_do() {
        let step = |error: CertificateError| {
            let error = std::io::Error::other(rustls::Error::InvalidCertificate(error));
            let error = unanswered("GET t://b/k", "--endpoint-url", &error);
            assert_eq!(error.kind, ErrorKind::Invalid);
            error.message
        };
        assert!(step(CertificateError::Expired).contains("clock"));
        assert!(step(CertificateError::NotValidYet).contains("clock"));
        assert!(step(CertificateError::UnknownIssuer).contains("--ca-file"));
        assert!(step(CertificateError::NotValidForName).contains("host in --endpoint-url"));
    }

    crate::fuzz::fuzz_tests!(waits);

    fn waits(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "Retry-After",
            corpus: ["7", "Sun, 06 Nov 1994 08:49:37 GMT"].map(Vec::from).to_vec(),
            words: &["Sun", "GMT", "9999", "-", "+", " ", ":"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        target.run(effort, |input| {
            retry_after(&String::from_utf8_lossy(input), SystemTime::now()).is_some()
        });
    }
}
