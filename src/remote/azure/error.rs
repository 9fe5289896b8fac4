//! What a refusal of Azure's means: its codes, and what they ask of a user.
//!
//! A refusal may tell what should have been signed, signature included. Of such
//! details nothing is shown but dates.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::DATE;

use super::xml::walk;
use crate::remote::ErrorKind;
use crate::remote::answer::{Asked, Dialect};
use crate::remote::customer_key::{GIVE_KEY, LEAVE_KEY_OUT, OTHER_KEY};
use crate::remote::rest::{Said, header};

/// Azure lets clocks differ by a quarter of an hour. What is refused and differs by
/// less may be refused for it, as a signature that has only just begun.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);

/// How what is said begins where a clock is wrong.
const CLOCK: &str = "the store's clock reads ";

/// How details begin that hold dates and nothing else.
const DATED: [&str; 2] =
    ["Signature not valid in the specified time frame", "Request date header too old"];

/// How details begin that name another tenant.
const ISSUER: &str = "Issuer validation failed";

/// How Azure says no.
pub(super) static AZURE: Dialect = Dialect {
    server: "the store",
    store: "Azure",
    bucket: "container",
    endpoint: "the account's name or --endpoint-url",
    credentials: "give others by AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or \
                  AZURE_STORAGE_SAS_TOKEN",
    kind: |refusal| kind_of_code(refusal.code?, refusal.asked),
    next_step: |refusal| next_step(refusal.code?, refusal.said.unwrap_or_default()),
};

/// Reads the headers and the body of a refusal.
pub(super) fn said(headers: &HeaderMap, body: &[u8]) -> Said {
    let mut code = header(headers, "x-ms-error-code").map(str::to_owned);
    let (mut message, mut detail) = (None, None);
    // A page of another server is none, and says nothing that is shown.
    let _ = walk(body, |element| {
        let text = || Some(element.text.to_owned());
        match element.path {
            "Error/Code" => code = code.take().or_else(text),
            "Error/Message" => message = text(),
            "Error/AuthenticationErrorDetail" => detail = text(),
            _ => {}
        }
    });
    if code.as_deref() == Some("AuthenticationFailed") {
        let detail = detail.as_deref().and_then(showable);
        message = other_clock(headers, SystemTime::now()).or(detail).or(message);
    }
    // Below the first line is what tells requests apart for Azure.
    let message = message.and_then(|text| text.lines().next().map(str::to_owned));
    Said { code, message }
}

fn showable(detail: &str) -> Option<String> {
    let shown = DATED.into_iter().chain([ISSUER]).any(|start| detail.starts_with(start));
    shown.then(|| detail.to_owned())
}

/// The store's clock, if it is far from this machine's.
fn other_clock(headers: &HeaderMap, now: SystemTime) -> Option<String> {
    let date = header(headers, DATE.as_str())?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    let apart = theirs.duration_since(now).unwrap_or_else(|error| error.duration());
    let minutes = apart.as_secs() / 60;
    let text = format!("{CLOCK}{date}, {minutes} minutes from this machine's");
    (apart > CLOCK_TOLERANCE).then_some(text)
}

fn kind_of_code(code: &str, asked: Asked) -> Option<ErrorKind> {
    Some(match (code, asked) {
        ("ContainerNotFound" | "ContainerBeingDeleted" | "ContainerDisabled", _) => {
            ErrorKind::NoSuchBucket
        }
        // Without credentials nobody is told which containers there are.
        ("ResourceNotFound" | "PublicAccessNotPermitted", Asked::List) => ErrorKind::Denied,
        ("BlobNotFound" | "PathNotFound" | "ResourceNotFound", _) => ErrorKind::NotFound,
        (
            "AuthenticationFailed"
            | "InvalidAuthenticationInfo"
            | "NoAuthenticationInformation"
            | "KeyBasedAuthenticationNotPermitted",
            _,
        ) => ErrorKind::Credentials,
        (
            "BlobArchived"
            | "BlobBeingRehydrated"
            | "BlobUsesCustomerSpecifiedEncryption"
            | "BlobDoesNotUseCustomerSpecifiedEncryption"
            | "BlobCustomerSpecifiedEncryptionMismatch"
            | "PublicAccessNotPermitted",
            _,
        ) => ErrorKind::Denied,
        ("ConditionNotMet" | "InvalidRange", _) => ErrorKind::Changed,
        ("ServerBusy", _) => ErrorKind::Throttled { retry_after: None },
        _ => return None,
    })
}

fn next_step(code: &str, said: &str) -> Option<&'static str> {
    Some(match code {
        "AuthenticationFailed" if said.starts_with(CLOCK) || said.starts_with(DATED[1]) => {
            "set this machine's clock"
        }
        "AuthenticationFailed" if said.starts_with(DATED[0]) => {
            "make a new signature, and put it into AZURE_STORAGE_SAS_TOKEN"
        }
        "AuthenticationFailed" if said.starts_with(ISSUER) => {
            "log in to the account's tenant: az login --tenant TENANT"
        }
        "AuthorizationFailure" => "let this machine in by the account's network rules",
        "AuthorizationPermissionMismatch" => {
            "ask for the role Storage Blob Data Reader, or for a signature with permissions rl"
        }
        "AuthorizationResourceTypeMismatch" | "AuthorizationServiceMismatch" => {
            "ask for a signature of the service b, with resource types co and permissions rl"
        }
        "BlobArchived" => "it is archived; rehydrate it first",
        "BlobBeingRehydrated" => "it is archived; wait until it is rehydrated",
        "BlobUsesCustomerSpecifiedEncryption" => GIVE_KEY,
        "BlobDoesNotUseCustomerSpecifiedEncryption" => LEAVE_KEY_OUT,
        "BlobCustomerSpecifiedEncryptionMismatch" => OTHER_KEY,
        "KeyBasedAuthenticationNotPermitted" => {
            "the account takes no keys; unset the key, and log in by `az login`"
        }
        "ResourceNotFound" | "PublicAccessNotPermitted" | "NoAuthenticationInformation" => {
            "it is not public, or there is none; give credentials"
        }
        "InvalidHeaderValue" => "if that is about x-ms-version, the store is too old",
        _ => return None,
    })
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
