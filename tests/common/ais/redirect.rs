//! Which target an object is on, and locations that only their target takes.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{Method, Response, StatusCode};
use sha2::{Digest, Sha256};

use super::objects::Bucket;
use super::target::Target;
use super::wire::{self, Asked, Body, Refusal};

/// Only the cluster knows it.
const SECRET: &str = "of the cluster";

/// What the signature follows in a location; it is the last of the query.
const SIGNATURE: &str = "&sig=";

/// Locations given so far, in the whole process: none equals another.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// How much a target wants an object: the one that wants it most has it. When a
/// target goes, only its own objects move.
pub(super) fn weight(target: &str, bucket: &Bucket, name: &str) -> String {
    digest(&[target, &bucket.provider, &bucket.name, name])
}

/// Leads a request on to `target`: GET by a 301, HEAD by a 307.
pub(super) fn answer(target: &Target, asked: &Asked) -> Response<Body> {
    let location = signed(target.id(), &asked.method, &asked.target);
    let status = if asked.method == Method::HEAD {
        StatusCode::TEMPORARY_REDIRECT
    } else {
        StatusCode::MOVED_PERMANENTLY
    };
    wire::redirect(status, &format!("http://{}{location}", target.address()))
}

/// What is asked, for one target only. The query has what a client would change
/// that took it apart: an empty value, and escapes that need not be there.
fn signed(target: &str, method: &Method, asked: &str) -> String {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let separator = if asked.contains('?') { '&' } else { '?' };
    let unsigned = format!("{asked}{separator}pid=p%5Bproxy%5d%2e&via=&utm={serial}");
    let signature = digest(&[SECRET, target, method.as_str(), &unsigned]);
    format!("{unsigned}{SIGNATURE}{signature}")
}

/// The locations that a target has seen.
#[derive(Debug, Default)]
pub(super) struct Seen(Mutex<HashSet<String>>);

impl Seen {
    /// Refuses a location that the proxy did not give, to the byte, and one that
    /// was used before: redirects are not to be kept.
    pub(super) fn check(&self, target: &str, method: &Method, asked: &str) -> Result<(), Refusal> {
        let (unsigned, signature) = asked.rsplit_once(SIGNATURE).ok_or_else(|| {
            Refusal::new(StatusCode::UNAUTHORIZED, "not signed: ask the proxy for the location")
        })?;
        let forbidden = |message| Err(Refusal::new(StatusCode::FORBIDDEN, message));
        if digest(&[SECRET, target, method.as_str(), unsigned]) != signature {
            return forbidden("wrong signature: this is not the location that the proxy gave");
        }
        if !self.0.lock().unwrap().insert(signature.to_owned()) {
            return forbidden("this location was used before: ask the proxy each time");
        }
        Ok(())
    }
}

fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
