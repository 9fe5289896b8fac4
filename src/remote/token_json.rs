//! Tokens as token servers, metadata services and programs write them: JSON, with
//! field names that differ from one to the next and mean the same.
//!
//! RFC 6749 section 5.1 (`access_token`, `expires_in`); Google's IAM credentials API
//! (`accessToken`, `expireTime`); Azure's metadata service and `az` (`expires_on`);
//! AWS's `credential_process` (`Expiration`).

use std::time::{Duration, SystemTime};

use serde_json::{Map, Value};

use super::answer::rfc3339;
use super::token::Token;

/// Longest life that a token is believed to have, so that times can be reckoned with:
/// ten years.
const LIFE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Seconds since 1970, or from now on, that can be reckoned with: some 3,000 years.
const SECONDS_MAX: f64 = 1e11;

/// A token's names, by those who write it.
const TOKEN: [&str; 3] = ["access_token", "accessToken", "token"];

/// The names of an end that is a moment.
const MOMENT: [&str; 6] =
    ["expireTime", "Expiration", "expiration", "expiry", "expires_at", "token_expiry"];

/// Reads a token that came at `now`; `None` for what is none.
pub(super) fn token(body: &[u8], now: SystemTime) -> Option<Token> {
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let token = text(&object, &TOKEN)?;
    Some(Token::new(token, end(&object, now).ok()?))
}

/// The first of the fields `names` that is there, if it is a text.
pub(super) fn text<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a str> {
    let value = names.iter().find_map(|name| object.get(*name))?;
    value.as_str().filter(|text| !text.is_empty())
}

/// When what `object` describes ends; `None` if it does not say so.
///
/// # Errors
/// For a moment that cannot be understood: what is taken for endless would be used
/// after its end.
pub(super) fn end(
    object: &Map<String, Value>,
    now: SystemTime,
) -> Result<Option<SystemTime>, &'static str> {
    if let Some(left) = object.get("expires_in").filter(|left| !left.is_null()) {
        let left = seconds(left).ok_or("its expires_in is no number of seconds")?;
        return Ok(Some(now + left.min(LIFE_MAX)));
    }
    let since_1970 = |passed: Duration| SystemTime::UNIX_EPOCH.checked_add(passed);
    // One service writes a date of its own here, without a zone: the store knows the end.
    if let Some(passed) = object.get("expires_on").and_then(seconds) {
        return Ok(since_1970(passed).map(|end| end.min(now + LIFE_MAX)));
    }
    let moment = MOMENT.iter().find_map(|name| object.get(*name));
    let Some(moment) = moment.filter(|moment| !moment.is_null()) else { return Ok(None) };
    let end = match seconds(moment) {
        Some(passed) => since_1970(passed),
        None => moment.as_str().and_then(rfc3339),
    };
    match end {
        Some(end) => Ok(Some(end.min(now + LIFE_MAX))),
        None => Err("its end is no time; write it as 2026-01-31T12:00:00Z"),
    }
}

/// A number, or its digits in a string.
fn seconds(value: &Value) -> Option<Duration> {
    let number = match value.as_str() {
        Some(text) => text.parse().ok()?,
        None => value.as_f64()?,
    };
    // Not more than is believed, or it could not be added to a time.
    (number >= 0.0).then(|| Duration::from_secs_f64(f64::min(number, SECONDS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    /// Of Entra ID, a machine's metadata service, an App Service, `az`, IAM, and programs.
    const REPLIES: [&str; 8] = [
        r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"t"}"#,
        r#"{"access_token":"t","refresh_token":"","expires_in":"3599","expires_on":"9"}"#,
        r#"{"access_token":"t","expires_on":"3599","resource":"r","token_type":"Bearer"}"#,
        r#"{"accessToken":"t","expiresOn":"2024-02-05 10:00:00.000000","expires_on":3599}"#,
        r#"{"accessToken":"t","expireTime":"1970-01-01T00:59:59Z"}"#,
        r#"{"token":"t","expires_at":3599.5}"#,
        r#"{"token":"t","expiry":"1970-01-01T01:59:59+01:00"}"#,
        r#"{"token":"t","Expiration":"1970-01-01T00:59:59.9Z"}"#,
    ];

    #[test]
    fn all_forms_are_understood() {
        for reply in REPLIES {
            let token = token(reply.as_bytes(), NOW).unwrap();
            assert_eq!(token.secret(), "t");
            let left = token.expires.unwrap().duration_since(NOW).unwrap();
            assert_eq!(left.as_secs(), 3599, "{reply}");
        }
        for endless in [
            r#"{"access_token":"t"}"#,
            r#"{"accessToken":"t","expires_on":"02/05/2024"}"#,
            r#"{"token":"t","expiry":null}"#,
        ] {
            assert_eq!(token(endless.as_bytes(), NOW).unwrap().expires, None, "{endless}");
        }
        let far = format!(r#"{{"access_token":"t","expires_in":{}}}"#, u64::MAX);
        assert_eq!(token(far.as_bytes(), NOW).unwrap().expires, Some(NOW + LIFE_MAX));
    }

    #[test]
    fn what_is_no_token_is_none() {
        for reply in [
            "",
            "t",
            "[]",
            "{}",
            r#"{"access_token":""}"#,
            r#"{"access_token":{"t":1}}"#,
            r#"{"token":"t","expiry":"tomorrow"}"#,
            r#"{"token":"t","expiry":-1}"#,
            r#"{"token":"t","expires_in":"soon"}"#,
            r#"{"token":"t","expires_in":-5}"#,
        ] {
            assert_eq!(token(reply.as_bytes(), NOW), None, "{reply}");
        }
    }

    fuzz_tests!(replies);

    fn replies(effort: Effort) {
        let target = Target {
            name: "tokens",
            corpus: REPLIES.map(Vec::from).to_vec(),
            words: &["access_token", "expires_in", "expires_on", "expiry", "\"", ":", "-1", "null"],
            inputs: 20_000,
            memory: (32 << 10, 96),
        };
        target.run(effort, |input| {
            let token = token(input, SystemTime::now());
            assert!(token.as_ref().is_none_or(|token| !token.secret().is_empty()));
            token.is_some()
        });
    }
}
