//! Where a redirect leads, and what may go there.

use http::header::LOCATION;
use http::{HeaderMap, Uri};

use super::call::Call;
use crate::remote::{ErrorKind, RemoteError};

/// Redirects followed for one request. A cluster's proxy sends to the node that has
/// the object, which may know of another; more than this is a mistake.
pub(super) const REDIRECTS_MAX: usize = 4;

/// The places that one request has been to.
#[derive(Debug, Default)]
pub(super) struct Route {
    been: Vec<Uri>,
}

impl Route {
    /// The call that a redirect makes of `call`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for no usable `Location`, a loop, too many redirects,
    /// and one from https to http.
    pub(super) fn next(
        &mut self,
        call: Call,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Call, RemoteError> {
        let refuse = |why: &str| {
            let message = format!("{what}: the redirect {why}");
            Err(RemoteError::new(ErrorKind::Invalid, message))
        };
        let from = call.uri(what)?;
        let Some(to) = headers.get(LOCATION).and_then(|to| resolve(&from, to.as_bytes())) else {
            return refuse("names no place to go to; check the endpoint");
        };
        self.been.push(from.clone());
        if self.been.contains(&to) {
            return refuse("leads in a circle; check the endpoint");
        }
        if self.been.len() > REDIRECTS_MAX {
            return refuse(&format!("is the fifth after {REDIRECTS_MAX}; check the endpoint"));
        }
        if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
            return refuse("leaves https for http; name the endpoint that it leads to");
        }
        let keeps_secrets = origin(&from) == origin(&to);
        Ok(call.moved_to(to, keeps_secrets))
    }
}

/// A `Location`, with its bytes as they are: an absolute URL, or a path on the same
/// host. Others are no store's.
fn resolve(from: &Uri, location: &[u8]) -> Option<Uri> {
    let to = match location {
        [b'/', b'/', ..] => return None,
        [b'/', ..] => {
            let mut parts = from.clone().into_parts();
            parts.path_and_query = Some(location.try_into().ok()?);
            Uri::from_parts(parts).ok()?
        }
        _ => Uri::try_from(location).ok()?,
    };
    let is_http = matches!(to.scheme_str(), Some("http" | "https"));
    // A name and password in it would be the redirect's idea, not the caller's.
    let authority = to.authority()?;
    let is_plain = !authority.host().is_empty() && !authority.as_str().contains('@');
    (is_http && is_plain).then_some(to)
}

/// To whom a secret was told: scheme, host and port.
fn origin(uri: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let usual = match uri.scheme_str() {
        Some("https") => Some(443),
        Some("http") => Some(80),
        _ => None,
    };
    let host = uri.host().map(str::to_ascii_lowercase);
    (uri.scheme_str(), host, uri.port_u16().or(usual))
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};
    use crate::remote::base_url::BaseUrl;

    fn call(base: &str) -> Call {
        Call::new(Method::GET, &BaseUrl::parse("AIS_ENDPOINT", base).unwrap())
            .path("/k")
            .bearer("hidden")
            .header("range", "bytes=0-1")
    }

    fn next(route: &mut Route, call: Call, location: &str) -> Result<Call, RemoteError> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().unwrap());
        route.next(call, &headers, "GET ais://b/k")
    }

    #[test]
    fn the_location_is_taken_as_it_stands() {
        let location = "http://target:8081/v1/o/a%2fb%20c//d?sig=%2b+/=&t=a%3Db";
        let moved = next(&mut Route::default(), call("http://h"), location).unwrap();
        assert_eq!(moved.uri("GET").unwrap().to_string(), location);
        let moved = next(&mut Route::default(), call("http://h:1"), "/x?y=%2b").unwrap();
        assert_eq!(moved.uri("GET").unwrap(), "http://h:1/x?y=%2b");
    }

    #[test]
    fn secrets_stay_with_their_host() {
        for (from, to, keeps) in [
            ("http://h:80", "http://h/x", true),
            ("https://h", "https://H:443/x", true),
            ("https://h", "/x", true),
            ("https://h", "https://h:8443/x", false),
            ("https://h", "https://other/x", false),
            ("https://h", "https://h.other/x", false),
            ("http://h", "https://h/x", false),
        ] {
            let moved = next(&mut Route::default(), call(from), to).unwrap();
            assert_eq!(moved.headers().contains_key("authorization"), keeps, "{from} {to}");
            assert!(moved.headers().contains_key("range"));
        }
        // And do not come back with it.
        let mut route = Route::default();
        let away = next(&mut route, call("http://h"), "http://other/x").unwrap();
        let back = next(&mut route, away, "http://h/y").unwrap();
        assert!(!back.headers().contains_key("authorization"));
    }

    #[test]
    fn bad_redirects_are_refused() {
        for (to, why) in [
            ("http://h/x", "https for http"),
            ("//h/x", "no place"),
            ("x", "no place"),
            ("", "no place"),
            ("ftp://h/x", "no place"),
            ("https://user:hidden@h/x", "no place"),
            ("https://h/k", "circle"),
        ] {
            let error = next(&mut Route::default(), call("https://h"), to).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains(why), "{to}: {error}");
            assert!(!error.message.contains("hidden"));
        }
        assert!(Route::default().next(call("https://h"), &HeaderMap::new(), "GET").is_err());
    }

    #[test]
    fn circles_and_long_ways_end() {
        let mut route = Route::default();
        let second = next(&mut route, call("http://h"), "/x").unwrap();
        assert!(next(&mut route, second, "/k").unwrap_err().message.contains("circle"));

        let (mut route, mut at) = (Route::default(), call("http://h"));
        for n in 0..REDIRECTS_MAX {
            at = next(&mut route, at, &format!("/{n}")).unwrap();
        }
        assert!(next(&mut route, at, "/last").unwrap_err().message.contains("fifth"));
    }

    fuzz_tests!(locations);

    fn locations(effort: Effort) {
        let target = Target {
            name: "Location",
            corpus: ["http://target:8081/v1/o/k?sig=%2b", "/x?y", "https://h"]
                .map(Vec::from)
                .to_vec(),
            words: &["http://", "https://", "//", "@", ":", "?", "#", "%", "[::1]", "\\", "é"],
            inputs: 20_000,
            memory: (4 << 10, 16),
        };
        let from = Uri::from_static("https://h:1/k?q");
        target.run(effort, |input| match resolve(&from, input) {
            Some(to) => {
                assert!(to.host().is_some_and(|host| !host.is_empty()));
                assert!(!to.authority().unwrap().as_str().contains('@'));
                let _ = origin(&to);
                true
            }
            None => false,
        });
    }
}
