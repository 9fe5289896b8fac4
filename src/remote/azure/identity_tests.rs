//! Tokens and refusals as servers and `az` write them.

use super::*;
use crate::fuzz::{Effort, Target, fuzz_tests};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

/// Of Entra ID, a machine's metadata service, an App Service, and `az`.
const REPLIES: [&str; 4] = [
    r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"hidden"}"#,
    r#"{"access_token":"hidden","refresh_token":"","expires_in":"3599","expires_on":"9","resource":"r"}"#,
    r#"{"access_token":"hidden","expires_on":"3599","resource":"r","token_type":"Bearer"}"#,
    r#"{"accessToken":"hidden","expiresOn":"2024-02-05 10:00:00.000000","expires_on":3599,"tenant":"t"}"#,
];

#[test]
fn all_forms_are_understood() {
    for reply in REPLIES {
        let token = token(reply.as_bytes(), "token", NOW).unwrap();
        assert_eq!(token.secret(), "hidden");
        assert_eq!(token.expires, Some(NOW + Duration::from_secs(3599)), "{reply}");
    }
    let endless = token(br#"{"accessToken":"hidden","expires_on":"02/05/2024"}"#, "token", NOW);
    assert_eq!(endless.unwrap().expires, None);
}

#[test]
fn what_is_no_token_is_not_repeated() {
    for reply in ["", "hidden", r#"{"access_token":""}"#, r#"{"access_token":{"hidden":1}}"#] {
        let error = token(reply.as_bytes(), "the token", NOW).unwrap_err();
        assert!(error.message.starts_with("the token: "), "{error}");
        assert!(!error.message.contains("hidden"), "{error}");
    }
    let far = format!(r#"{{"access_token":"hidden","expires_in":{}}}"#, u64::MAX);
    assert_eq!(token(far.as_bytes(), "token", SystemTime::now()).unwrap().expires, None);
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

fuzz_tests!(replies);

fn replies(effort: Effort) {
    let target = Target {
        name: "Entra tokens",
        corpus: REPLIES.map(Vec::from).to_vec(),
        words: &["access_token", "expires_in", "expires_on", "error", "\"", ":", "-1", "1e999"],
        inputs: 20_000,
        memory: (16 << 10, 64),
    };
    target.run(effort, |input| {
        let _ = said(&HeaderMap::new(), input);
        match token(input, "token", SystemTime::now()) {
            Ok(token) => {
                assert!(!token.secret().is_empty());
                true
            }
            Err(error) => {
                assert!(!error.message.contains(char::is_control));
                false
            }
        }
    });
}
