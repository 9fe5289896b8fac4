//! Tokens and refusals as servers and `az` write them.

use super::*;
use crate::fuzz::{Effort, Target, fuzz_tests};

#[test]
fn what_is_no_token_is_not_repeated() {
    for reply in ["", "hidden", r#"{"access_token":""}"#, r#"{"access_token":{"hidden":1}}"#] {
        let error = token(reply.as_bytes(), "the token").unwrap_err();
        assert!(error.message.starts_with("the token: "), "{error}");
        assert!(!error.message.contains("hidden"), "{error}");
    }
}

#[test]
fn a_refusal_says_no_more_than_its_codes() {
    let body = br#"{"error":"invalid_client","error_description":"AADSTS7000215: hidden",
        "error_codes":[7000215],"trace_id":"hidden"}"#;
    let refusal = said(&HeaderMap::new(), body);
    assert_eq!(refusal.code.as_deref(), Some("invalid_client"));
    assert_eq!(refusal.message.as_deref(), Some("AADSTS7000215"));
    for body in [&br#"{"error":"Hidden secret"}"#[..], b"<html>", b"", b"[]"] {
        assert_eq!(said(&HeaderMap::new(), body), Said::default());
    }
}

#[test]
fn secrets_go_over_https_or_not_far() {
    assert!(confidential("AZURE_AUTHORITY_HOST", "https://login.example.com/").is_ok());
    assert!(confidential("IDENTITY_ENDPOINT", "http://169.254.130.4:8081/msi/token").is_ok());
    let error = confidential("AZURE_AUTHORITY_HOST", "http://login.example.com").unwrap_err();
    assert!(error.message.starts_with("AZURE_AUTHORITY_HOST: "), "{error}");
}

fuzz_tests!(refusals);

fn refusals(effort: Effort) {
    let target = Target {
        name: "Entra refusals",
        corpus: vec![br#"{"error":"invalid_client","error_codes":[7000215]}"#.to_vec()],
        words: &["error", "error_codes", "\"", ":", "-1", "1e999"],
        inputs: 20_000,
        memory: (16 << 10, 64),
    };
    target.run(effort, |input| said(&HeaderMap::new(), input).code.is_some());
}
