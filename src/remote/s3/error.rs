//! What a failed S3 request means: its error codes, and what they ask of a user.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::remote::answer::{Asked, Dialect, Refusal, refused, unanswered};
use crate::remote::customer_key::{GIVE_KEY, LEAVE_KEY_OUT};
use crate::remote::error::{find, innermost};
use crate::remote::{ErrorKind, RemoteError};

/// How S3 says no.
pub(super) static S3: Dialect = Dialect {
    server: "the store",
    store: "S3",
    bucket: "bucket",
    endpoint: "--endpoint-url",
    credentials: "name others with --profile",
    kind,
    next_step,
};

/// The same to who gives a key: a wrong one is refused without another word.
pub(super) static S3_WITH_KEY: Dialect = Dialect {
    credentials: "name others with --profile, or another key with --customer-key-file",
    ..S3
};

/// What S3 says where a key of the caller's own is missing, and where there is one too many.
const STORED_WITH_KEY: &str = "stored using a form of Server Side Encryption";
const STORED_WITHOUT: &str = "encryption parameters are not applicable";

/// Classifies a failed request. `what` says what was asked: `GET s3://b/k`.
pub(super) fn classify<E>(
    dialect: &Dialect,
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
            answered(dialect, asked, what, response, (error.code(), error.message()))
        }
        (Some(response), _) => answered(dialect, asked, what, response, (None, None)),
        (None, SdkError::ConstructionFailure(_)) => {
            let message = format!("{what}: cannot be asked: {}", innermost(error));
            RemoteError::new(ErrorKind::Invalid, message)
        }
        (None, _) => unanswered(what, dialect.endpoint, error),
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
    dialect: &Dialect,
    asked: Asked,
    what: &str,
    response: &HttpResponse,
    (code, said): (Option<&str>, Option<&str>),
) -> RemoteError {
    let status = response.status().as_u16();
    let retry_after = response.headers().get("retry-after");
    refused(dialect, what, &Refusal { asked, status, code, said, retry_after })
}

fn kind(refusal: &Refusal<'_>) -> Option<ErrorKind> {
    match (refusal.code, refusal.asked, refusal.status) {
        // A signed HEAD with an expired token says 400 and not why.
        (None, Asked::Head, 400) => Some(ErrorKind::Credentials),
        (Some("InvalidRequest"), ..) if says_of_key(refusal).is_some() => Some(ErrorKind::Denied),
        (code, ..) => kind_of_code(code?),
    }
}

fn kind_of_code(code: &str) -> Option<ErrorKind> {
    if let Some(code) = code.strip_prefix("KMS.") {
        return Some(kind_of_kms(code));
    }
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

/// What the key management service said that has an object's key. Not all of its codes are
/// written down: those that may be gone the next time are told by their names.
///
/// <https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html>
fn kind_of_kms(code: &str) -> ErrorKind {
    if code.contains("Throttling") || code.contains("LimitExceeded") {
        ErrorKind::Throttled { retry_after: None }
    } else if code.contains("Internal") || code.contains("Timeout") || code.contains("Unavailable")
    {
        ErrorKind::Transient
    } else {
        ErrorKind::Denied
    }
}

fn says_of_key(refusal: &Refusal<'_>) -> Option<&'static str> {
    let said = refusal.said?;
    if said.contains(STORED_WITH_KEY) {
        return Some(GIVE_KEY);
    }
    said.contains(STORED_WITHOUT).then_some(LEAVE_KEY_OUT)
}

fn next_step(refusal: &Refusal<'_>) -> Option<&'static str> {
    let Some(code) = refusal.code else {
        return (refusal.asked == Asked::Head && refusal.status == 400).then_some(
            "refresh the credentials; if the object is encrypted with a key of your own, give \
             --customer-key-file",
        );
    };
    if code.starts_with("KMS.") && kind_of_code(code) == Some(ErrorKind::Denied) {
        return Some("have the key that it is encrypted with enabled again");
    }
    if code == "AccessDenied" && refusal.said.is_some_and(|said| said.contains("kms:")) {
        return Some("ask for permission to decrypt with the key that it is encrypted with");
    }
    Some(match code {
        "InvalidRequest" => return says_of_key(refusal),
        "RequestTimeTooSkewed" => "set this machine's clock",
        "InvalidObjectState" => "it is archived; restore it first",
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
        let said = (code, Some("a\nb."));
        let error = answered(&S3, asked, "GET s3://b/k", &response(status), said);
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
        let said = (Some("NoSuchBucket"), Some("The specified bucket does not exist."));
        let error = answered(&S3, Asked::List, "LIST s3://b/", &response(404), said);
        assert_eq!(
            error.message,
            "LIST s3://b/: the store answered 404 NoSuchBucket: The specified bucket does not \
             exist; check the bucket's name and --endpoint-url"
        );
    }

    #[test]
    fn keys_that_are_missing_wrong_or_disabled_are_no_permission() {
        let stored = "The object was stored using a form of Server Side Encryption. The correct \
                      parameters must be provided to retrieve the object.";
        let plain = "The encryption parameters are not applicable to this object.";
        let kms = "User: arn:aws:iam::1:user/u is not authorized to perform: kms:Decrypt on r";
        for (dialect, status, code, said, step) in [
            (&S3, 400, "InvalidRequest", stored, "give --customer-key-file"),
            (&S3_WITH_KEY, 400, "InvalidRequest", plain, "without --customer-key-file"),
            (&S3_WITH_KEY, 403, "AccessDenied", "Access Denied", "another key with --customer-key"),
            (&S3, 403, "AccessDenied", kms, "permission to decrypt"),
            (&S3, 400, "KMS.DisabledException", "arn is disabled.", "enabled again"),
            (&S3, 400, "KMS.KMSInvalidStateException", "arn is pending deletion.", "enabled"),
        ] {
            let what = "GET s3://b/k";
            let said = (Some(code), Some(said));
            let error = answered(dialect, Asked::Get, what, &response(status), said);
            assert_eq!(error.kind, ErrorKind::Denied, "{error}");
            assert!(error.message.contains(step), "{error}");
        }
        assert_eq!(kind(Asked::Get, 400, Some("InvalidRequest")), ErrorKind::Invalid);
        let busy = ErrorKind::Throttled { retry_after: None };
        assert_eq!(kind(Asked::Get, 400, Some("KMS.ThrottlingException")), busy);
        let transient = kind(Asked::Get, 500, Some("KMS.KMSInternalException"));
        assert_eq!(transient, ErrorKind::Transient);
    }
}
