//! Where Entra ID's tokens come from. Each source makes one attempt; how long a token
//! is used and when the next is fetched is [`crate::remote::token`]'s.
//!
//! Nothing that a server says gets into a message but its codes: it was sent a secret.

mod cli;
mod entra;
mod managed;

use std::time::SystemTime;

use http::HeaderMap;
use serde_json::Value;

pub(super) use self::cli::Cli;
pub(super) use self::entra::{Authority, Entra, Proof};
pub(super) use self::managed::Managed;
use crate::remote::answer::lacks;
use crate::remote::base_url::BaseUrl;
use crate::remote::rest::Said;
use crate::remote::token::Token;
use crate::remote::{ErrorKind, RemoteError, token_json};

/// What the tokens are for, in every cloud.
const RESOURCE: &str = "https://storage.azure.com";

/// Longest code of a server that is shown, in bytes.
const CODE_BYTES_MAX: usize = 64;

/// Reads a token. Nothing of `body` gets into the error.
fn token(body: &[u8], what: &str) -> Result<Token, RemoteError> {
    token_json::token(body, SystemTime::now())
        .ok_or_else(|| lacks(what, "token that can be understood"))
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
