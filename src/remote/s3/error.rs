//! What a failed S3 request means: status, S3 error code or the lack of an
//! answer, turned into an [`ErrorKind`] and one line for a person.

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::remote::error::{find, innermost, one_line};
use crate::remote::{ErrorKind, RemoteError};

/// What was asked, as far as it changes the meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// HEAD of an object: its errors have no body, so no code.
    Head,
    /// GET of an object.
    Get,
    /// LIST of the bucket.
    List,
}

/// Classifies a failed request. `what` says what was asked: `GET s3://b/k`.
pub(super) fn classify<E>(
    asked: Asked,
    what: &str,
    error: &SdkError<E, HttpResponse>,
) -> RemoteError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(credentials) = find::<CredentialsError>(error) {
        return credentials_error(what, credentials);
    }
    match (error.raw_response(), error) {
        (Some(response), SdkError::ServiceError(context)) => {
            let error = context.err();
            answered(asked, what, response, error.code(), error.message())
        }
        (Some(response), _) => answered(asked, what, response, None, None),
        (None, _) => unanswered(what, error),
    }
}

/// The region that an answer says the bucket is in.
pub(super) fn bucket_region<E>(error: &SdkError<E, HttpResponse>) -> Option<String> {
    error.raw_response()?.headers().get("x-amz-bucket-region").map(str::to_owned)
}

/// Credentials that were named but could not be loaded.
pub(super) fn credentials_error(what: &str, error: &CredentialsError) -> RemoteError {
    let kind = match error {
        CredentialsError::ProviderTimedOut(_) => ErrorKind::Transient,
        _ => ErrorKind::Credentials,
    };
    let message = format!(
        "{what}: the credentials could not be loaded: {}; log in again, or name others with \
         --profile, or none with --no-sign-request",
        innermost(error),
    );
    RemoteError::new(kind, message)
}

/// The store answered, and said no.
fn answered(
    asked: Asked,
    what: &str,
    response: &HttpResponse,
    code: Option<&str>,
    said: Option<&str>,
) -> RemoteError {
    let status = response.status().as_u16();
    let kind = code.and_then(kind_of_code).unwrap_or_else(|| kind_of_status(asked, status));
    let kind = match kind {
        ErrorKind::Throttled { .. } => {
            ErrorKind::Throttled { retry_after: retry_after(response, SystemTime::now()) }
        }
        kind => kind,
    };
    let mut message = format!("{what}: the store answered {status}");
    for (separator, text) in [(" ", code), (": ", said)] {
        if let Some(text) = text.map(one_line).filter(|text| !text.is_empty()) {
            message.push_str(separator);
            message.push_str(text.trim_end_matches('.'));
        }
    }
    if let Some(step) = next_step(asked, status, &kind, code) {
        message.push_str("; ");
        message.push_str(step);
    }
    RemoteError::new(kind, message)
}

fn kind_of_code(code: &str) -> Option<ErrorKind> {
    Some(match code {
        "NoSuchKey" => ErrorKind::NotFound,
        "NoSuchBucket" => ErrorKind::NoSuchBucket,
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidObjectState" => {
            ErrorKind::Denied
        }
        "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "AuthorizationHeaderMalformed" => ErrorKind::Credentials,
        "PreconditionFailed" | "InvalidRange" => ErrorKind::Changed,
        "SlowDown"
        | "ServiceUnavailable"
        | "TooManyRequests"
        | "Throttling"
        | "ThrottlingException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded" => ErrorKind::Throttled { retry_after: None },
        "InternalError" | "RequestTimeout" | "OperationAborted" => ErrorKind::Transient,
        _ => return None,
    })
}

fn kind_of_status(asked: Asked, status: u16) -> ErrorKind {
    match (status, asked) {
        // A signed HEAD with an expired token says 400 and not why.
        (400, Asked::Head) | (401, _) => ErrorKind::Credentials,
        (403, _) => ErrorKind::Denied,
        (404, Asked::List) => ErrorKind::NoSuchBucket,
        (404, _) => ErrorKind::NotFound,
        (412 | 416, _) => ErrorKind::Changed,
        (429 | 503, _) => ErrorKind::Throttled { retry_after: None },
        // Also a 200 whose body could not be understood.
        (200..=299 | 408 | 409 | 425 | 500..=599, _) => ErrorKind::Transient,
        _ => ErrorKind::Invalid,
    }
}

fn next_step(
    asked: Asked,
    status: u16,
    kind: &ErrorKind,
    code: Option<&str>,
) -> Option<&'static str> {
    Some(match (kind, code) {
        // S3 puts a code into every answer that has a body: this is a web server.
        (ErrorKind::Invalid, None) if asked != Asked::Head => {
            "that is not how S3 says no, check --endpoint-url"
        }
        (_, None) if (200..300).contains(&status) => {
            "in words that are not S3's, check --endpoint-url"
        }
        (_, Some("RequestTimeTooSkewed")) => "set this machine's clock",
        (_, Some("InvalidObjectState")) => "restore the object from its archive first",
        (_, Some("AuthorizationHeaderMalformed")) => "name the bucket's region with --region",
        (ErrorKind::NoSuchBucket, _) => "check the bucket's name and --endpoint-url",
        (ErrorKind::Denied, _) => {
            "check what these credentials may read, or name others with --profile"
        }
        (ErrorKind::Credentials, _) => {
            "refresh or correct the credentials, or name others with --profile"
        }
        _ => return None,
    })
}

/// No answer came: no connection, or one that broke.
fn unanswered<E: Error + 'static>(what: &str, error: &SdkError<E, HttpResponse>) -> RemoteError {
    let reason = one_line(&innermost(error));
    if let Some(tls) = find::<rustls::Error>(error) {
        let message = format!(
            "{what}: the TLS connection failed: {tls}; check --endpoint-url, or name the store's \
             certificate in AWS_CA_BUNDLE"
        );
        return RemoteError::new(ErrorKind::Invalid, message);
    }
    let client = find::<hyper_util::client::legacy::Error>(error);
    if client.is_some_and(hyper_util::client::legacy::Error::is_connect) {
        let message =
            format!("{what}: no connection: {reason}; check the network and --endpoint-url");
        return RemoteError::new(ErrorKind::Unreachable, message);
    }
    match error {
        SdkError::ConstructionFailure(_) => {
            RemoteError::new(ErrorKind::Invalid, format!("{what}: cannot be asked: {reason}"))
        }
        _ => {
            let message = format!("{what}: the connection broke: {reason}");
            RemoteError::new(ErrorKind::Transient, message)
        }
    }
}

/// The store's `Retry-After`, in seconds or as a date.
fn retry_after(response: &HttpResponse, now: SystemTime) -> Option<Duration> {
    let value = response.headers().get("retry-after")?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn response(status: u16, headers: &[(&'static str, &str)]) -> HttpResponse {
        let mut response = HttpResponse::new(status.try_into().unwrap(), SdkBody::empty());
        for (name, value) in headers {
            response.headers_mut().insert(*name, (*value).to_owned());
        }
        response
    }

    fn kind(asked: Asked, status: u16, code: Option<&str>) -> ErrorKind {
        let error = answered(asked, "GET s3://b/k", &response(status, &[]), code, Some("a\nb."));
        assert!(!error.message.contains('\n'), "{error}");
        error.kind
    }

    #[test]
    fn codes_decide_before_the_status() {
        use ErrorKind::*;
        for (status, code, expected) in [
            (404, "NoSuchKey", NotFound),
            (404, "NoSuchBucket", NoSuchBucket),
            (403, "AccessDenied", Denied),
            (403, "InvalidAccessKeyId", Credentials),
            (403, "SignatureDoesNotMatch", Credentials),
            (400, "ExpiredToken", Credentials),
            (403, "RequestTimeTooSkewed", Credentials),
            (412, "PreconditionFailed", Changed),
            (416, "InvalidRange", Changed),
            (503, "SlowDown", Throttled { retry_after: None }),
            (400, "RequestTimeout", Transient),
            (500, "InternalError", Transient),
            (400, "InvalidArgument", Invalid),
        ] {
            assert_eq!(kind(Asked::Get, status, Some(code)), expected, "{code}");
        }
    }

    #[test]
    fn without_a_code_the_status_decides() {
        use ErrorKind::*;
        for (asked, status, expected) in [
            (Asked::Head, 404, NotFound),
            (Asked::List, 404, NoSuchBucket),
            (Asked::Head, 403, Denied),
            (Asked::Head, 400, Credentials),
            (Asked::Get, 412, Changed),
            (Asked::Get, 416, Changed),
            (Asked::Get, 429, Throttled { retry_after: None }),
            (Asked::Get, 502, Transient),
            (Asked::List, 200, Transient),
            (Asked::Get, 301, Invalid),
        ] {
            assert_eq!(kind(asked, status, None), expected, "{asked:?} {status}");
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
            let response = response(503, &[("retry-after", value)]);
            assert_eq!(retry_after(&response, now), expected.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn messages_say_what_was_asked_answered_and_what_to_do() {
        let error = answered(
            Asked::List,
            "LIST s3://b/",
            &response(404, &[]),
            Some("NoSuchBucket"),
            Some("The specified bucket does not exist."),
        );
        assert_eq!(
            error.message,
            "LIST s3://b/: the store answered 404 NoSuchBucket: The specified bucket does not \
             exist; check the bucket's name and --endpoint-url"
        );
    }
}
