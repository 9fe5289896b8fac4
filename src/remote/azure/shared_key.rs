//! Requests signed with an account's key.
//!
//! <https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key>

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::HeaderMap;
use ring::hmac;

use crate::remote::base_url::BaseUrl;
use crate::remote::rest::{Call, header};

/// The headers that are signed by their place, in its order. `Content-Length` would be
/// the third, but nothing is sent; `Date` the sixth, for which `x-ms-date` stands in.
const SIGNED_HEADERS: [&str; 11] = [
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
];

/// An account and one of its keys.
#[derive(Clone)]
pub(super) struct SharedKey {
    account: Arc<str>,
    key: hmac::Key,
}

impl SharedKey {
    /// From a key as the portal shows it; `None` if that is not base64.
    pub(super) fn new(account: &str, key: &str) -> Option<SharedKey> {
        let key = BASE64.decode(key.trim()).ok().filter(|key| !key.is_empty())?;
        Some(SharedKey { account: account.into(), key: hmac::Key::new(hmac::HMAC_SHA256, &key) })
    }

    /// Signs all of `call`, which goes to `endpoint` and has no body.
    pub(super) fn sign(&self, call: Call, endpoint: &BaseUrl) -> Call {
        let call = call.header("x-ms-date", &httpdate::fmt_http_date(SystemTime::now()));
        let text = self.string_to_sign(&call, endpoint.path());
        let signature = BASE64.encode(hmac::sign(&self.key, text.as_bytes()));
        call.secret("authorization", &format!("SharedKey {}:{signature}", self.account))
    }

    fn string_to_sign(&self, call: &Call, base_path: &str) -> String {
        let mut text = call.method().as_str().to_owned();
        for name in SIGNED_HEADERS {
            text.push('\n');
            text.push_str(header(call.headers(), name).unwrap_or_default());
        }
        text.push('\n');
        for name in own_headers(call.headers()) {
            let value = header(call.headers(), name).unwrap_or_default();
            text.push_str(&format!("{name}:{value}\n"));
        }
        text.push_str(&format!("/{}{base_path}{}", self.account, call.encoded_path()));
        let mut parameters = call.parameters().to_vec();
        parameters.sort_unstable();
        for (name, value) in parameters {
            text.push_str(&format!("\n{name}:{value}"));
        }
        text
    }
}

/// Azure's own headers, in their order.
fn own_headers(headers: &HeaderMap) -> Vec<&str> {
    let names = headers.keys().map(http::HeaderName::as_str);
    let mut names: Vec<&str> = names.filter(|name| name.starts_with("x-ms-")).collect();
    names.sort_unstable();
    names
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedKey").field("account", &self.account).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    /// The key that every emulator has.
    const KEY: &str =
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    fn endpoint(url: &str) -> BaseUrl {
        BaseUrl::parse("--endpoint-url", url).unwrap()
    }

    #[test]
    fn the_documented_example_is_signed_as_documented() {
        // "Get Container Metadata", under "Shared Key format for 2009-09-19 and later".
        let endpoint = endpoint("https://myaccount.blob.core.windows.net");
        let call = Call::new(Method::GET, &endpoint)
            .path("/mycontainer")
            .query("restype", "container")
            .query("comp", "metadata")
            .query("timeout", "20")
            .header("x-ms-version", "2015-02-21")
            .header("x-ms-date", "Fri, 26 Jun 2015 23:39:12 GMT");
        let key = SharedKey::new("myaccount", KEY).unwrap();
        let expected = "GET\n\n\n\n\n\n\n\n\n\n\n\nx-ms-date:Fri, 26 Jun 2015 23:39:12 GMT\n\
                        x-ms-version:2015-02-21\n/myaccount/mycontainer\ncomp:metadata\n\
                        restype:container\ntimeout:20";
        assert_eq!(key.string_to_sign(&call, endpoint.path()), expected);
        // By `openssl dgst -sha256 -mac HMAC`.
        let signature = BASE64.encode(hmac::sign(&key.key, expected.as_bytes()));
        assert_eq!(signature, "1u9lui2jDxj0+fpbHjQ5m5NnastJRSYM+PSmfi8TXx4=");
    }

    #[test]
    fn ranges_versions_and_encoded_paths_are_signed() {
        let endpoint = endpoint("http://127.0.0.1:10000/devstoreaccount1");
        let call = Call::new(Method::GET, &endpoint)
            .path("/c/a b+%/é")
            .header("range", "bytes=0-1")
            .header("if-match", "\"0x8D\"")
            .header("x-ms-version", "2021-02-12");
        let key = SharedKey::new("devstoreaccount1", KEY).unwrap();
        let text = key.string_to_sign(&call, endpoint.path());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            (lines[8], lines[11], lines[12]),
            ("\"0x8D\"", "bytes=0-1", "x-ms-version:2021-02-12")
        );
        assert_eq!(lines[13], "/devstoreaccount1/devstoreaccount1/c/a%20b%2B%25/%C3%A9");
        let signed = key.sign(call, &endpoint);
        let value = header(signed.headers(), "authorization").unwrap();
        assert!(value.starts_with("SharedKey devstoreaccount1:"), "{value}");
        assert!(!format!("{key:?} {signed:?}").contains(value));
    }

    #[test]
    fn what_is_no_key_is_none() {
        for text in ["", "not base64!", "====", "YQ"] {
            assert!(SharedKey::new("a", text).is_none(), "{text:?}");
        }
    }
}
