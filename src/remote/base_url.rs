//! Where a store is, as an option, a variable or a file names it: checked once,
//! with a message that says which of them is wrong.

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
        let refuse =
            |why: &str| invalid(format!("{name}: {url:?} {why}; write it as https://HOST[:PORT]"));
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
}
