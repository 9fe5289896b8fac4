//! Refusals as the service words them.

use std::time::Duration;

use super::*;
use crate::fuzz::{Effort, Target, fuzz_tests};
use crate::remote::RemoteError;
use crate::remote::answer::{Refusal, refused};

const WHAT: &str = "GET az://account/container/key";

/// What the service says of a wrong key, the text that should have been signed included.
const WRONG_KEY: &str = concat!(
    "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?><Error><Code>AuthenticationFailed</Code>",
    "<Message>Server failed to authenticate the request. Make sure the value of ",
    "Authorization header is formed correctly including the signature.\n",
    "RequestId:31f0a4a7-001e-0003-0af3-1a2b3c000000\nTime:2024-02-05T10:00:00.0000000Z",
    "</Message><AuthenticationErrorDetail>The MAC signature found in the HTTP request ",
    "'hidden' is not the same as any computed signature. Server used following string to ",
    "sign: 'GET\nhidden'.</AuthenticationErrorDetail></Error>",
);

fn error(asked: Asked, status: u16, headers: &[(&'static str, &str)], body: &str) -> RemoteError {
    let headers: HeaderMap = headers
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
        .collect();
    let said = said(&headers, body.as_bytes());
    let refusal = Refusal {
        asked,
        status,
        code: said.code.as_deref(),
        said: said.message.as_deref(),
        retry_after: None,
    };
    refused(&AZURE, WHAT, &refusal)
}

fn failed(detail: &str) -> RemoteError {
    let body = format!(
        "<Error><Code>AuthenticationFailed</Code><Message>Server failed.\nRequestId:1</Message>\
         <AuthenticationErrorDetail>{detail}</AuthenticationErrorDetail></Error>"
    );
    error(Asked::Get, 403, &[], &body)
}

#[test]
fn codes_decide_before_the_status() {
    use ErrorKind::*;
    for (asked, status, code, expected) in [
        (Asked::List, 404, "ContainerNotFound", NoSuchBucket),
        (Asked::Get, 404, "BlobNotFound", NotFound),
        (Asked::List, 404, "PathNotFound", NotFound),
        (Asked::Get, 404, "ResourceNotFound", NotFound),
        (Asked::List, 404, "ResourceNotFound", Denied),
        (Asked::List, 409, "PublicAccessNotPermitted", Denied),
        (Asked::Get, 409, "BlobArchived", Denied),
        (Asked::Get, 403, "AuthenticationFailed", Credentials),
        (Asked::Get, 403, "AuthorizationPermissionMismatch", Denied),
        (Asked::Get, 403, "KeyBasedAuthenticationNotPermitted", Credentials),
        (Asked::Get, 401, "InvalidAuthenticationInfo", Credentials),
        (Asked::Get, 412, "ConditionNotMet", Changed),
        (Asked::Get, 416, "InvalidRange", Changed),
        (Asked::Get, 503, "ServerBusy", Throttled { retry_after: None }),
        (Asked::Get, 500, "OperationTimedOut", Transient),
        (Asked::Get, 400, "InvalidQueryParameterValue", Invalid),
    ] {
        // In a header, as with every answer to HEAD, and in the body.
        let by_header = error(asked, status, &[("x-ms-error-code", code)], "");
        let body = format!("<Error><Code>{code}</Code></Error>");
        let by_body = error(asked, status, &[], &body);
        assert_eq!((&by_header.kind, &by_body.kind), (&expected, &expected), "{code}");
    }
}

#[test]
fn each_says_in_one_line_what_to_do() {
    for (status, code, words) in [
        (409, "BlobArchived", "it is archived; rehydrate it first"),
        (403, "AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        (403, "AuthorizationFailure", "network rules"),
        (403, "KeyBasedAuthenticationNotPermitted", "az login"),
        (403, "AuthorizationResourceTypeMismatch", "resource types co"),
        (401, "NoAuthenticationInformation", "give credentials"),
        (404, "ContainerNotFound", "check the container's name and the account's name"),
    ] {
        let error = error(Asked::Get, status, &[("x-ms-error-code", code)], "");
        assert!(error.message.contains(words), "{error}");
        assert!(!error.message.contains('\n'));
    }
}

#[test]
fn what_was_signed_is_not_repeated() {
    let error = error(Asked::Get, 403, &[], WRONG_KEY);
    assert_eq!(error.kind, ErrorKind::Credentials);
    assert!(error.message.contains("AZURE_STORAGE_KEY"), "{error}");
    assert!(!error.message.contains("hidden") && !error.message.contains("RequestId"), "{error}");
    let error = failed("Signature did not match. String to sign used was rl\nhidden");
    assert!(!error.message.contains("hidden"), "{error}");
}

#[test]
fn clocks_and_expiries_are_told_with_their_dates() {
    let error = failed("Request date header too old: 'Mon, 05 Feb 2024 10:00:00 GMT'");
    assert!(error.message.contains("10:00:00 GMT"), "{error}");
    assert!(error.message.ends_with("set this machine's clock"), "{error}");
    let error = failed(
        "Signature not valid in the specified time frame: Start [Mon, 05 Feb 2024 10:00:00 GMT] \
         - Expiry [Tue, 06 Feb 2024 10:00:00 GMT] - Current [Wed, 07 Feb 2024 10:00:00 GMT]",
    );
    assert!(error.message.contains("Expiry [Tue, 06 Feb 2024"), "{error}");
    assert!(error.message.contains("AZURE_STORAGE_SAS_TOKEN"), "{error}");
    let error = failed("Issuer validation failed. Issuer did not match.");
    assert!(error.message.contains("az login --tenant"), "{error}");
}

#[test]
fn another_clock_is_seen_by_the_answer() {
    let mut headers = HeaderMap::new();
    let now = httpdate::parse_http_date("Mon, 05 Feb 2024 10:00:00 GMT").unwrap();
    for (date, is_other) in [
        ("Mon, 05 Feb 2024 10:04:00 GMT", false),
        ("Mon, 05 Feb 2024 10:20:30 GMT", true),
        ("Mon, 05 Feb 2024 09:39:30 GMT", true),
        ("yesterday", false),
    ] {
        headers.insert(DATE, date.parse().unwrap());
        let said = other_clock(&headers, now);
        assert_eq!(said.is_some(), is_other, "{date}");
        assert!(said.is_none_or(|said| said.ends_with(" 20 minutes from this machine's")));
    }
    let past = now - Duration::from_secs(86_400);
    let past = httpdate::fmt_http_date(past);
    let error = error(Asked::List, 403, &[("date", &past)], WRONG_KEY);
    assert!(error.message.contains(&past), "{error}");
    assert!(error.message.ends_with("set this machine's clock"), "{error}");
}

fuzz_tests!(refusals);

fn refusals(effort: Effort) {
    let target = Target {
        name: "Azure refusals",
        corpus: vec![WRONG_KEY.into(), b"<Error><Code>BlobArchived</Code></Error>".to_vec()],
        words: &["<Error>", "<Code>", "<Message>", "</", "<", ">", "&#10;", "&lt;", "'hidden'"],
        inputs: 20_000,
        memory: (64 << 10, 32),
    };
    target.run(effort, |input| {
        let said = said(&HeaderMap::new(), input);
        assert!(said.message.as_ref().is_none_or(|message| !message.contains('\n')));
        said.code.is_some()
    });
}
