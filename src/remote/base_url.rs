//! Where a store is, as an option, a variable or a file names it: checked once,
//! with a message that says which of them is wrong.

use std::net::IpAddr;

use http::Uri;

use super::{ErrorKind, RemoteError};

/// A URL to which paths are added: `https://HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    url: String,
    host: String,
}

impl BaseUrl {
    /// Checks `url`, which `name` gave: an option such as `--endpoint-url`, or a
    /// variable.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] when it is no http or https URL, or has a query or
    /// credentials in it. Its message names `name`, and holds no credentials.
    pub fn parse(name: &str, url: &str) -> Result<BaseUrl, RemoteError> {
        let invalid = |message: String| RemoteError::new(ErrorKind::Invalid, message);
        if url.contains('@') {
            let why = "credentials do not belong in a URL; leave out all up to the @";
            return Err(invalid(format!("{name}: {why}")));
        }
        // Behind a `?` may be a signature.
        let shown = url.split('?').next().unwrap_or_default();
        let refuse = |why: &str| {
            invalid(format!("{name}: {shown:?} {why}; write it as https://HOST[:PORT]"))
        };
        let uri: Uri = url.parse().map_err(|_| refuse("is not a URL"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(refuse("begins with neither http:// nor https://"));
        }
        let authority = uri.authority().ok_or_else(|| refuse("names no host"))?;
        if authority.host().is_empty() || uri.query().is_some() || url.contains('#') {
            return Err(refuse("is not the URL of an endpoint"));
        }
        Ok(BaseUrl {
            url: url.trim_end_matches('/').to_owned(),
            host: authority.as_str().to_ascii_lowercase(),
        })
    }

    /// As it was given, without a `/` at its end.
    pub fn as_str(&self) -> &str {
        &self.url
    }

    /// `host[:port]` in lower case, as in a remote's identity.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `host` alone, without the brackets of an address.
    pub fn host_name(&self) -> &str {
        let is_port = |end: &str| end.bytes().all(|b| b.is_ascii_digit());
        let host = match self.host.rsplit_once(':') {
            Some((host, end)) if is_port(end) => host,
            _ => &self.host,
        };
        host.trim_matches(['[', ']'])
    }

    /// What follows the host, without a `/` at its end; often nothing.
    pub fn path(&self) -> &str {
        let after_scheme = self.url.find("://").map_or(0, |at| at + 3);
        let rest = &self.url[after_scheme..];
        rest.find('/').map_or("", |at| &rest[at..])
    }

    /// Whether nobody on the way can read what is sent there: it goes over https, or
    /// stays on this machine and the link to its host, where metadata services are.
    pub fn is_confidential(&self) -> bool {
        let is_near = match self.host_name().parse() {
            Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
            Ok(IpAddr::V6(address)) => address.is_loopback(),
            Err(_) => self.host_name() == "localhost",
        };
        is_near || self.url.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("https:"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        let parse = |url| BaseUrl::parse("--endpoint-url", url);
        let endpoint = parse("http://LocalHost:9000/").unwrap();
        assert_eq!(endpoint.host(), "localhost:9000");
        assert_eq!(endpoint.as_str(), "http://LocalHost:9000");
        assert_eq!(parse("http://h:1/account").unwrap().as_str(), "http://h:1/account");
        for url in [
            "localhost:9000",
            "minio.example",
            "ftp://x",
            "http://",
            "https://a b",
            "",
            "http://h/#",
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains("https://HOST"), "{error}");
        }
        for url in ["https://user:hidden@host", "user:hidden@host", "https://a b:hidden@host"] {
            let error = parse(url).unwrap_err();
            assert!(!error.message.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn a_signature_in_a_url_is_not_repeated() {
        let error = BaseUrl::parse("--endpoint-url", "https://h/?sig=hidden").unwrap_err();
        assert!(
            error.message.contains("https://h/") && !error.message.contains("hidden"),
            "{error}"
        );
    }

    #[test]
    fn secrets_are_sent_where_nobody_listens() {
        for (url, host, path, is_confidential) in [
            ("https://Host/a/b/", "host", "/a/b", true),
            ("HTTPS://h", "h", "", true),
            ("http://h:1/a", "h", "/a", false),
            ("http://localhost:1", "localhost", "", true),
            ("http://127.0.0.9:1/a", "127.0.0.9", "/a", true),
            ("http://[::1]:1/", "::1", "", true),
            ("http://[::1]", "::1", "", true),
            ("http://169.254.130.4:8081/msi", "169.254.130.4", "/msi", true),
            ("http://10.0.0.1", "10.0.0.1", "", false),
            ("http://localhost.example", "localhost.example", "", false),
        ] {
            let base = BaseUrl::parse("--endpoint-url", url).unwrap();
            assert_eq!((base.host_name(), base.path()), (host, path), "{url}");
            assert_eq!(base.is_confidential(), is_confidential, "{url}");
        }
    }
}
