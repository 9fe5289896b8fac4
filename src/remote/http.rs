//! The HTTP client under every remote: HTTP/1.1 over many connections.
//!
//! The SDK's own client offers HTTP/2 to every server, and several S3-compatible
//! stores accept. One HTTP/2 connection then carries everything, at a fifth of
//! the throughput that many HTTP/1.1 connections reach. So the client is put
//! together here, from the same parts: hyper, rustls with ring, the certificates
//! that the caller trusts (`tls`), and the caller's proxies (`proxy`). The SDK
//! uses it through [`HttpClient::for_sdk`], other remotes through [`super::rest`].
//!
//! It makes one request, follows no redirect, and has no limit on time but that on
//! connecting: the others are [`super::client::Limits`].

mod proxy;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient as SdkClient, HttpConnector as SdkConnector, HttpConnectorFuture,
    HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::{Client, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};

pub use self::proxy::ProxyError;
use self::proxy::{Connector, Proxies};
pub use self::tls::TlsVariables;
use super::RemoteError;
use super::blocking;
use crate::config::{CallerEnv, RemoteOptions};

/// Time to make a TCP connection, over all of a host's addresses. Ten times a
/// slow round trip; a lost SYN is sent again after one second.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Idle connections are dropped after this. Stores close them after 5-60 s, and
/// a request sent into a closing one costs an attempt.
const IDLE_LIMIT: Duration = Duration::from_secs(20);

/// Idle connections kept for one host: as many as requests are made at once.
const IDLE_CONNECTIONS: usize = 128;

/// Most bytes that wait in a connection's buffer to be copied to where they go. With 128
/// KiB more system calls cost a tenth of a first epoch's CPU time.
const BUFFER_BYTES: usize = 256 << 10;

/// Most bytes of an answer that is held in memory as a whole: everything but an
/// object's. A listing of 1,000 keys, encoded, has 4 MB at most; what sends more
/// is no object store. The SDK makes up to 27 times as much of it in memory.
pub const DOCUMENT_BYTES_MAX: usize = 6 << 20;

/// Time until TCP asks whether a silent peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// An error of anybody's.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a request carries.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The client. A clone is another handle on the same connections.
#[derive(Clone, Debug)]
pub struct HttpClient {
    client: Client<Connector, Body>,
    proxies: Arc<Proxies>,
}

impl HttpClient {
    /// A client that trusts the system's certificates and those of `--ca-file`, or
    /// else of the file that `ca_variable` names in the caller's environment
    /// (`AWS_CA_BUNDLE` for S3), and that goes through the caller's proxies.
    ///
    /// # Errors
    /// [`super::ErrorKind::Invalid`], with the option's or variable's name, when the
    /// file cannot be read or holds no certificate, or a proxy is none.
    pub async fn open(
        options: &RemoteOptions,
        env: &CallerEnv,
        ca_variable: Option<&'static str>,
    ) -> Result<HttpClient, RemoteError> {
        let variables = TlsVariables { ca: ca_variable, ..TlsVariables::default() };
        Self::open_with(options, env, &variables).await
    }

    /// The same for a store whose tools know more variables.
    ///
    /// # Errors
    /// Those of [`HttpClient::open`], also for the other variables.
    pub async fn open_with(
        options: &RemoteOptions,
        env: &CallerEnv,
        variables: &TlsVariables,
    ) -> Result<HttpClient, RemoteError> {
        let proxies = Proxies::find(env)?;
        let named = tls::Named::find(options, env, variables)?;
        let tls = blocking(move || tls::config(&named)).await?;
        Ok(Self::new(tls, proxies))
    }

    fn new(tls: rustls::ClientConfig, proxies: Proxies) -> HttpClient {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_LIMIT));
        tcp.set_keepalive(Some(KEEPALIVE));
        let proxies = Arc::new(proxies);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_LIMIT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .http1_max_buf_size(BUFFER_BYTES)
            .build(Connector::new(tcp, Arc::new(tls), Arc::clone(&proxies)));
        HttpClient { client, proxies }
    }

    /// Sends one request to an absolute URI; the answer's body is still to come.
    ///
    /// # Errors
    /// The future fails if no answer came: [`super::answer::unanswered`] says why.
    pub fn send(&self, mut request: Request<Body>) -> ResponseFuture {
        if let Some(password) = self.proxies.forwarding_password(request.uri()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, password);
        }
        self.client.request(request)
    }

    /// The variable that names the proxy on the way to `uri`.
    pub fn proxy_to(&self, uri: &Uri) -> Option<&'static str> {
        self.proxies.to(uri).map(|(_, variable)| variable)
    }

    /// The client as the SDK wants one.
    pub fn for_sdk(&self) -> SharedHttpClient {
        SharedHttpClient::new(ForSdk(self.clone()))
    }
}

#[derive(Clone, Debug)]
struct ForSdk(HttpClient);

impl SdkClient for ForSdk {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl SdkConnector for ForSdk {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        // So the SDK marks the requests whose bodies it streams.
        let is_get = request.uri().query().is_some_and(|query| query.contains("x-id=GetObject"));
        let response = self.0.send(request.map(BodyExt::boxed_unsync));
        HttpConnectorFuture::new(async move {
            let response: Response<Incoming> =
                response.await.map_err(|error| ConnectorError::io(error.into()))?;
            let is_object = is_get && response.status().is_success();
            HttpResponse::try_from(response.map(|body| match is_object {
                true => SdkBody::from_body_1_x(body),
                false => SdkBody::from_body_1_x(Limited::new(body, DOCUMENT_BYTES_MAX)),
            }))
            .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}
