//! One request, as it is put together.

use std::fmt;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::remote::base_url::BaseUrl;
use crate::remote::http::{Body, DOCUMENT_BYTES_MAX};
use crate::remote::{ErrorKind, RemoteError};

/// Everything but what RFC 3986 calls unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same in a path of several parts.
const RESERVED_IN_PATH: &AsciiSet = &RESERVED.remove(b'/');

/// A request to be: method, URL, headers, perhaps a body. What goes into the URL is
/// encoded here, so that any key arrives as it is.
#[derive(Clone)]
pub struct Call {
    method: Method,
    base: String,
    /// Encoded.
    path: String,
    /// Not encoded.
    query: Vec<(String, String)>,
    signed_query: Option<String>,
    /// Instead of all the above: where a redirect led, byte by byte.
    location: Option<Uri>,
    headers: HeaderMap,
    body: Bytes,
    follows_redirects: bool,
    answer_bytes_max: usize,
    /// A header whose value cannot be sent.
    unsendable: Option<&'static str>,
}

impl Call {
    /// A request to `base`, to which paths are added.
    pub fn new(method: Method, base: &BaseUrl) -> Call {
        Call {
            method,
            base: base.as_str().to_owned(),
            path: String::new(),
            query: Vec::new(),
            signed_query: None,
            location: None,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            follows_redirects: false,
            answer_bytes_max: DOCUMENT_BYTES_MAX,
            unsendable: None,
        }
    }

    /// Adds to the path: `/bucket`, `/some/key`. Each byte is encoded that is not
    /// unreserved or a `/`.
    pub fn path(mut self, path: &str) -> Call {
        self.path.extend(utf8_percent_encode(path, RESERVED_IN_PATH));
        self
    }

    /// Adds `/` and one part to the path, in which a `/` is encoded too.
    pub fn segment(mut self, segment: &str) -> Call {
        self.path.push('/');
        self.path.extend(utf8_percent_encode(segment, RESERVED));
        self
    }

    /// Adds a parameter to the query.
    pub fn query(mut self, name: &str, value: &str) -> Call {
        self.query.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Ends the query with a text that is encoded and signed already: a shared
    /// access signature, without its `?`. It is a secret.
    pub fn signed_query(mut self, query: &str) -> Call {
        self.signed_query = Some(query.to_owned());
        self
    }

    /// Sets a header. `name` is in small letters.
    pub fn header(self, name: &'static str, value: &str) -> Call {
        let is_secret = [AUTHORIZATION.as_str(), COOKIE.as_str()].contains(&name);
        self.set(name, value, is_secret)
    }

    /// Sets a header that does not print, and is sent to no other host.
    pub fn secret(self, name: &'static str, value: &str) -> Call {
        self.set(name, value, true)
    }

    /// Sets a header that somebody else chose, as a file with credentials does: a
    /// secret one, since it may be.
    pub fn foreign_header(mut self, name: &str, value: &str) -> Call {
        match (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                self.headers.insert(name, value);
            }
            _ => self.unsendable = Some("of the credentials file"),
        }
        self
    }

    /// `Authorization: Bearer token`.
    pub fn bearer(self, token: &str) -> Call {
        self.secret("authorization", &format!("Bearer {token}"))
    }

    /// Sets the body.
    pub fn body(mut self, content_type: &'static str, body: impl Into<Bytes>) -> Call {
        self.body = body.into();
        self.header(CONTENT_TYPE.as_str(), content_type)
    }

    /// Lets redirects (301, 302, 307, 308) be followed, a few and in no circle: to the
    /// `Location` as it stands, with the same method, body and headers. Secret
    /// headers are left out from the first other host on, and https is not left for
    /// http.
    pub fn following_redirects(mut self) -> Call {
        self.follows_redirects = true;
        self
    }

    /// Takes an answer of up to so many bytes as a whole, instead of
    /// [`DOCUMENT_BYTES_MAX`].
    pub fn answer_up_to(mut self, bytes: usize) -> Call {
        self.answer_bytes_max = bytes;
        self
    }

    /// The method, for a signature.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// The encoded path after the base, for a signature.
    pub fn encoded_path(&self) -> &str {
        &self.path
    }

    /// The parameters, not encoded, for a signature.
    pub fn parameters(&self) -> &[(String, String)] {
        &self.query
    }

    /// The headers so far, for a signature.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    fn set(mut self, name: &'static str, value: &str, is_secret: bool) -> Call {
        match HeaderValue::from_str(value) {
            Ok(mut value) => {
                value.set_sensitive(is_secret);
                self.headers.insert(HeaderName::from_static(name), value);
            }
            Err(_) => self.unsendable = Some(name),
        }
        self
    }

    pub(super) fn answer_bytes_max(&self) -> usize {
        self.answer_bytes_max
    }

    pub(super) fn follows(&self, status: StatusCode) -> bool {
        self.follows_redirects && matches!(status.as_u16(), 301 | 302 | 307 | 308)
    }

    /// The same request to another place.
    pub(super) fn moved_to(mut self, location: Uri, keeps_secrets: bool) -> Call {
        self.location = Some(location);
        if !keeps_secrets {
            let secret: Vec<HeaderName> = self
                .headers
                .iter()
                .filter(|(_, value)| value.is_sensitive())
                .map(|(name, _)| name.clone())
                .collect();
            for name in secret {
                self.headers.remove(name);
            }
        }
        self
    }

    pub(super) fn uri(&self, what: &str) -> Result<Uri, RemoteError> {
        if let Some(location) = &self.location {
            return Ok(location.clone());
        }
        let mut url = format!("{}{}", self.base, self.path);
        let mut separator = '?';
        for (name, value) in &self.query {
            url.push(separator);
            url.extend(utf8_percent_encode(name, RESERVED));
            url.push('=');
            url.extend(utf8_percent_encode(value, RESERVED));
            separator = '&';
        }
        if let Some(query) = &self.signed_query {
            url.push(separator);
            url.push_str(query);
        }
        url.parse().map_err(|_| cannot_be_asked(what, "its URL is too long or malformed"))
    }

    /// The request itself.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if HTTP cannot express it.
    pub(super) fn request(&self, what: &str) -> Result<Request<Body>, RemoteError> {
        if let Some(name) = self.unsendable {
            return Err(cannot_be_asked(
                what,
                &format!("the header {name} would hold a line break"),
            ));
        }
        let body = Full::new(self.body.clone()).map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri(what)?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

fn cannot_be_asked(what: &str, why: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, format!("{what}: cannot be asked: {why}"))
}

/// Queries may be signed, and so are secret.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("method", &self.method)
            .field("base", &self.base)
            .field("path", &self.path)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(base: &str) -> Call {
        Call::new(Method::GET, &BaseUrl::parse("--endpoint-url", base).unwrap())
    }

    #[test]
    fn odd_keys_are_encoded_byte_by_byte() {
        let key = "a//b +%#?&\"'\n/é~-._";
        let encoded = "a//b%20%2B%25%23%3F%26%22%27%0A/%C3%A9~-._";
        let url = |call: Call| call.uri("GET").unwrap().to_string();
        let plain = call("http://h:1/account/").path("/bucket/").path(key);
        assert_eq!(plain.encoded_path(), format!("/bucket/{encoded}"));
        assert_eq!(url(plain), format!("http://h:1/account/bucket/{encoded}"));
        let encoded = encoded.replace('/', "%2F");
        let whole = call("https://h").path("/o").segment(key).query("a&b", key).query("c", "");
        assert_eq!(url(whole), format!("https://h/o/{encoded}?a%26b={encoded}&c="));
    }

    #[test]
    fn a_signed_query_is_left_as_it_is() {
        let signed = call("https://h").path("/k").query("a", "1").signed_query("sv=2&sig=%2b%3D");
        assert_eq!(signed.uri("GET").unwrap(), "https://h/k?a=1&sv=2&sig=%2b%3D");
        assert!(!format!("{signed:?}").contains("sig="));
    }

    #[test]
    fn secrets_do_not_print_and_leave_with_the_host() {
        let call = call("https://h")
            .bearer("hidden-a")
            .header("cookie", "hidden-b")
            .secret("x-key", "hidden-c")
            .header("range", "bytes=1-2");
        assert!(!format!("{call:?}").contains("hidden"), "{call:?}");
        let there = Uri::from_static("https://h/x");
        assert_eq!(call.clone().moved_to(there.clone(), true).headers().len(), 4);
        let left = call.moved_to(there, false);
        assert_eq!(left.headers().keys().collect::<Vec<_>>(), ["range"]);
    }

    #[test]
    fn what_http_cannot_express_is_not_sent() {
        let broken = call("https://h").header("if-match", "a\nb");
        assert_eq!(broken.request("GET").unwrap_err().kind, ErrorKind::Invalid);
        let long = call("https://h").path(&"é".repeat(40_000));
        let error = long.request("GET s://b/k").unwrap_err();
        assert!(error.message.starts_with("GET s://b/k: cannot be asked"), "{error}");
    }
}
