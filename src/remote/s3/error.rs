//! What a failed S3 request means: its error codes, and what they ask of a user.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::remote::answer::{Asked, Dialect, Refusal, refused, unanswered};
use crate::remote::error::{find, innermost};
use crate::remote::{ErrorKind, RemoteError};

/// How S3 says no.
static S3: Dialect = Dialect {
    server: "the store",
    store: "S3",
    bucket: "bucket",
    endpoint: "--endpoint-url",
    credentials: "name others with --profile",
    kind: |refusal| match (refusal.code, refusal.asked, refusal.status) {
        // A signed HEAD with an expired token says 400 and not why.
        (None, Asked::Head, 400) => Some(ErrorKind::Credentials),
        (code, ..) => kind_of_code(code?),
    },
    next_step: |refusal| next_step(refusal.code?),
};

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
        (None, SdkError::ConstructionFailure(_)) => {
            let message = format!("{what}: cannot be asked: {}", innermost(error));
            RemoteError::new(ErrorKind::Invalid, message)
        }
        (None, _) => unanswered(what, S3.endpoint, error),
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

fn answered(
    asked: Asked,
    what: &str,
    response: &HttpResponse,
    code: Option<&str>,
    said: Option<&str>,
) -> RemoteError {
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after");
    refused(&S3, what, &Refusal { asked, status, code, said, retry_after })
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

fn next_step(code: &str) -> Option<&'static str> {
    Some(match code {
        "RequestTimeTooSkewed" => "set this machine's clock",
        "InvalidObjectState" => "restore the object from its archive first",
        "AuthorizationHeaderMalformed" => "name the bucket's region with --region",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use aws_smithy_types::body::SdkBody;

    use super::*;

    fn response(status: u16) -> HttpResponse {
        HttpResponse::new(status.try_into().unwrap(), SdkBody::empty())
    }

    fn kind(asked: Asked, status: u16, code: Option<&str>) -> ErrorKind {
        let error = answered(asked, "GET s3://b/k", &response(status), code, Some("a\nb."));
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
    fn a_head_cannot_say_why() {
        assert_eq!(kind(Asked::Head, 400, None), ErrorKind::Credentials);
        assert_eq!(kind(Asked::Get, 400, None), ErrorKind::Invalid);
        assert_eq!(kind(Asked::Head, 404, None), ErrorKind::NotFound);
    }

    #[test]
    fn messages_say_what_was_asked_answered_and_what_to_do() {
        let error = answered(
            Asked::List,
            "LIST s3://b/",
            &response(404),
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
