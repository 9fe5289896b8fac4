//! Where Entra ID's tokens come from. Each source makes one attempt; how long a token
//! is used and when the next is fetched is [`crate::remote::token`]'s.
//!
//! Nothing that a server says gets into a message but its codes: it was sent a secret.

mod cli;
mod entra;
mod managed;

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

pub(super) use self::cli::Cli;
pub(super) use self::entra::{Authority, Entra, Proof};
pub(super) use self::managed::Managed;
use crate::remote::answer::lacks;
use crate::remote::base_url::BaseUrl;
use crate::remote::rest::Said;
use crate::remote::token::Token;
use crate::remote::{ErrorKind, RemoteError};

/// What the tokens are for, in every cloud.
const RESOURCE: &str = "https://storage.azure.com";

/// Longest code of a server that is shown, in bytes.
const CODE_BYTES_MAX: usize = 64;

/// A token, as servers and `az` write it.
#[derive(Deserialize)]
struct Reply {
    #[serde(alias = "accessToken")]
    access_token: String,
    /// Seconds, from now on or since 1970, as a number or its digits in a string.
    expires_in: Option<Value>,
    expires_on: Option<Value>,
}

/// Reads a token. Nothing of `body` gets into the error.
fn token(body: &[u8], what: &str, now: SystemTime) -> Result<Token, RemoteError> {
    let reply: Option<Reply> = serde_json::from_slice(body).ok();
    let reply = reply.filter(|reply| !reply.access_token.is_empty());
    let reply = reply.ok_or_else(|| lacks(what, "token that can be understood"))?;
    let left = reply.expires_in.as_ref().and_then(seconds).map(|left| now.checked_add(left));
    let end = reply.expires_on.as_ref().and_then(seconds);
    let end = end.map(|end| SystemTime::UNIX_EPOCH.checked_add(end));
    Ok(Token::new(reply.access_token, left.or(end).flatten()))
}

fn seconds(value: &Value) -> Option<Duration> {
    let text = || value.as_str().and_then(|text| text.parse().ok());
    value.as_u64().or_else(text).map(Duration::from_secs)
}

/// Reads a refusal: `{"error": "invalid_client", "error_codes": [7000215], ...}`.
fn said(_: &HeaderMap, body: &[u8]) -> Said {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let is_code = |code: &&str| {
        code.len() <= CODE_BYTES_MAX && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let code = json["error"].as_str().filter(is_code).map(str::to_owned);
    let message = json["error_codes"][0].as_u64().map(|code| format!("AADSTS{code}"));
    Said { code, message }
}

/// Where a secret may be sent: over https, or to this machine.
///
/// # Errors
/// [`ErrorKind::Invalid`] for what is no URL, and for another.
pub(super) fn confidential(name: &str, url: &str) -> Result<BaseUrl, RemoteError> {
    let base = BaseUrl::parse(name, url)?;
    if base.is_confidential() {
        return Ok(base);
    }
    let message = format!("{name}: a secret is sent over https only; write it as https://HOST");
    Err(RemoteError::new(ErrorKind::Invalid, message))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
