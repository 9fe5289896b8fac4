//! The caller's proxies: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`,
//! in capitals or not. The process's own are never looked at.
//!
//! An https store is reached by a CONNECT through the proxy, so that the proxy sees
//! names and sizes only; an http one by asking the proxy itself. What is on this
//! machine, or is its metadata service, is asked directly: a proxy would look for it
//! on its own.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{
    Connected, Connection as Describe, HttpConnector as TcpConnector,
};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tower_service::Service;

use super::BoxError;
use crate::config::CallerEnv;
use crate::remote::{ErrorKind, RemoteError};

const HTTPS: [&str; 2] = ["HTTPS_PROXY", "https_proxy"];
const HTTP: [&str; 2] = ["HTTP_PROXY", "http_proxy"];
const ALL: [&str; 2] = ["ALL_PROXY", "all_proxy"];
const NO: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// This machine, and where the clouds' metadata services are.
const NEVER_PROXIED: &str = "127.0.0.0/8,::1,localhost,169.254.0.0/16,fe80::/10,fd00:ec2::/32,\
                             metadata.google.internal,metadata";

/// Which proxy leads where.
#[derive(Debug)]
pub(super) struct Proxies {
    matcher: Matcher,
    /// The variables that name the proxies for https and http.
    https: Option<&'static str>,
    http: Option<&'static str>,
}

impl Proxies {
    /// The proxies that the caller's environment names.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] with the name of a variable that is of use and names
    /// no proxy over http or https.
    pub(super) fn find(env: &CallerEnv) -> Result<Proxies, RemoteError> {
        let first =
            |names: &[&'static str]| names.iter().find_map(|name| Some((*name, env.get(name)?)));
        let https = first(&HTTPS).or_else(|| first(&ALL));
        let http = first(&HTTP).or_else(|| first(&ALL));
        for (name, url) in [https, http].into_iter().flatten() {
            check(name, url)?;
        }
        let metadata = env.get("GCE_METADATA_HOST").and_then(|host| host.split(':').next());
        let mut no = NEVER_PROXIED.to_owned();
        for hosts in [first(&NO).map(|(_, hosts)| hosts), metadata].into_iter().flatten() {
            no.push(',');
            no.push_str(hosts);
        }
        let url = |found: Option<(_, &str)>| found.map_or("", |(_, url)| url).to_owned();
        let matcher = Matcher::builder().https(url(https)).http(url(http)).no(no).build();
        let name = |found: Option<(&'static str, _)>| found.map(|(name, _)| name);
        Ok(Proxies { matcher, https: name(https), http: name(http) })
    }

    /// The proxy on the way to `uri`, and the variable that names it.
    pub(super) fn to(&self, uri: &Uri) -> Option<(Intercept, &'static str)> {
        let variable = if is_https(uri) { self.https? } else { self.http? };
        Some((self.matcher.intercept(uri)?, variable))
    }

    /// What a request to an http store says to a proxy that wants a password. In a
    /// CONNECT the connection says it, and the store never sees it.
    pub(super) fn forwarding_password(&self, uri: &Uri) -> Option<HeaderValue> {
        let (proxy, _) = self.to(uri).filter(|_| !is_https(uri))?;
        proxy.basic_auth().cloned()
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// The value may hold a password, so no message repeats it.
fn check(name: &str, url: &str) -> Result<(), RemoteError> {
    let any = Uri::from_static("http://host");
    let proxy = Matcher::builder().http(url.to_owned()).build().intercept(&any);
    let is_usable = proxy.is_some_and(|proxy| {
        matches!(proxy.uri().scheme_str(), Some("http" | "https"))
            && proxy.uri().host().is_some_and(|host| !host.is_empty())
    });
    if is_usable {
        return Ok(());
    }
    let message = format!("{name} names no http or https proxy; write it as http://HOST:PORT");
    Err(RemoteError::new(ErrorKind::Invalid, message))
}

/// No connection through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("no connection through the proxy of {variable}")]
pub struct ProxyError {
    /// The variable that names the proxy.
    pub variable: &'static str,
    source: BoxError,
}

/// TCP, or TLS over TCP: to the store, or to a proxy.
type Hop = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections, through a proxy where one is on the way.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpsConnector<TcpConnector>,
    tls: Arc<ClientConfig>,
    proxies: Arc<Proxies>,
}

impl Connector {
    pub(super) fn new(tcp: TcpConnector, tls: Arc<ClientConfig>, proxies: Arc<Proxies>) -> Self {
        Connector { direct: HttpsConnector::from((tcp, Arc::clone(&tls))), tls, proxies }
    }
}

impl Service<Uri> for Connector {
    type Response = Connection;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some((proxy, variable)) = self.proxies.to(&to) else {
            let connecting = self.direct.call(to);
            return Box::pin(async move { Ok(Connection::plain(connecting.await?, false)) });
        };
        let failed = move |source: BoxError| ProxyError { variable, source };
        if !is_https(&to) {
            let connecting = self.direct.call(proxy.uri().clone());
            return Box::pin(async move {
                Ok(Connection::plain(connecting.await.map_err(failed)?, true))
            });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.direct.clone());
        if let Some(password) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(password.clone());
        }
        let connecting = HttpsConnector::from((tunnel, Arc::clone(&self.tls))).call(to);
        Box::pin(async move {
            let stream = connecting.await.map_err(failed)?;
            Ok(Connection { stream, is_forwarding: false })
        })
    }
}

/// A connection to a store.
pub(super) struct Connection {
    stream: MaybeHttpsStream<Hop>,
    /// A proxy is at the other end, to be told the whole URI.
    is_forwarding: bool,
}

impl Connection {
    fn plain(hop: Hop, is_forwarding: bool) -> Self {
        Connection { stream: MaybeHttpsStream::Http(hop), is_forwarding }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("is_forwarding", &self.is_forwarding).finish()
    }
}

impl Describe for Connection {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.is_forwarding)
    }
}

impl Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(env: &[(&str, &str)]) -> Result<Proxies, RemoteError> {
        Proxies::find(&env.iter().copied().collect())
    }

    /// Host and variable of the proxy on the way to `uri`.
    fn way(env: &[(&str, &str)], uri: &str) -> Option<(String, &'static str)> {
        let (proxy, variable) = find(env).unwrap().to(&uri.parse().unwrap())?;
        Some((proxy.uri().authority().unwrap().to_string(), variable))
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let both = [("HTTPS_PROXY", "http://s:1"), ("http_proxy", "p:2")];
        let s = Some(("s:1".to_owned(), "HTTPS_PROXY"));
        assert_eq!(way(&both, "https://store/b"), s);
        assert_eq!(way(&both, "http://store/b"), Some(("p:2".to_owned(), "http_proxy")));
        assert_eq!(way(&both[..1], "http://store/b"), None);
        let all = [both[0], ("ALL_PROXY", "http://a:3")];
        assert_eq!(way(&all, "https://store/b"), s);
        assert_eq!(way(&all, "http://store/b"), Some(("a:3".to_owned(), "ALL_PROXY")));
        assert_eq!(way(&[], "https://store/b"), None);
    }

    #[test]
    fn some_hosts_are_reached_directly() {
        let env = [("ALL_PROXY", "http://a:3"), ("NO_PROXY", "10.0.0.0/8, .example.com")];
        for host in ["10.1.2.3", "s3.example.com", "EXAMPLE.com"] {
            assert_eq!(way(&env, &format!("http://{host}:80/x")), None, "{host}");
            assert!(way(&env[..1], &format!("http://{host}:80/x")).is_some(), "{host}");
        }
        for host in [
            "localhost",
            "127.0.0.1",
            "[::1]",
            "169.254.169.254",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "metadata.google.internal",
        ] {
            assert_eq!(way(&env[..1], &format!("http://{host}/x")), None, "{host}");
        }
        let metadata = [env[0], ("GCE_METADATA_HOST", "meta.test:8080")];
        assert_eq!(way(&metadata, "http://meta.test:8080/x"), None);
        for host in ["11.1.2.3", "notexample.com", "s3.amazonaws.com"] {
            assert!(way(&env, &format!("https://{host}/x")).is_some(), "{host}");
        }
        let all = [env[0], ("no_proxy", "*")];
        assert_eq!(way(&all, "https://s3.amazonaws.com/x"), None);
    }

    #[test]
    fn a_variable_that_names_no_proxy_is_refused_without_its_value() {
        for url in
            ["socks5://user:hidden@h:1", "http://", "://hidden", "http://a b:hidden", "ftp://h"]
        {
            let error = find(&[("HTTPS_PROXY", url)]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.starts_with("HTTPS_PROXY names no"), "{error}");
            assert!(!error.message.contains("hidden"), "{error}");
        }
        // What is not used may be what it is.
        let env = [("HTTPS_PROXY", "h:1"), ("HTTP_PROXY", "h:1"), ("ALL_PROXY", "socks5://h")];
        assert!(find(&env).is_ok());
    }

    #[test]
    fn a_password_is_for_the_proxy_alone_and_never_prints() {
        let url = "http://user:hidden@h:1";
        let proxies = find(&[("ALL_PROXY", url)]).unwrap();
        let password = |uri| proxies.forwarding_password(&Uri::from_static(uri));
        assert_eq!(password("http://store/").unwrap(), "Basic dXNlcjpoaWRkZW4=");
        assert_eq!(password("https://store/"), None);
        assert!(!format!("{proxies:?}").contains("hidden"));
    }
}
