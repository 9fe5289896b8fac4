//! The HTTP client under the SDK: HTTP/1.1 over many connections.
//!
//! The SDK's own client offers HTTP/2 to every server, and several S3-compatible
//! stores accept. One HTTP/2 connection then carries everything, at a fifth of
//! the throughput that many HTTP/1.1 connections reach. So the connector is put
//! together here, with the same parts: hyper, rustls with ring, and the system's
//! certificates plus those of `AWS_CA_BUNDLE`.

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::Limited;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use super::{ErrorKind, RemoteError};

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
const DOCUMENT_BYTES_MAX: usize = 6 << 20;

/// Time until TCP asks whether a silent peer is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// The system's certificates, read once.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// An HTTP/1.1 client for http and https, trusting `ca_bundle` besides the
/// system's certificates.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the bundle cannot be read or holds no certificate.
pub fn client(ca_bundle: Option<&Path>) -> Result<SharedHttpClient, RemoteError> {
    let mut tcp = TcpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    tcp.set_keepalive(Some(KEEPALIVE));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls_config(ca_bundle)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_LIMIT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .http1_max_buf_size(BUFFER_BYTES)
        .build(connector);
    Ok(SharedHttpClient::new(Http11 { client }))
}

fn tls_config(ca_bundle: Option<&Path>) -> Result<ClientConfig, RemoteError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM_ROOTS.iter().cloned());
    if let Some(path) = ca_bundle {
        let refuse = |why: String| {
            let message = format!("AWS_CA_BUNDLE={}: {why}", path.display());
            RemoteError::new(ErrorKind::Invalid, message)
        };
        let loaded = rustls_native_certs::load_certs_from_paths(Some(path), None);
        if let (true, Some(error)) = (loaded.certs.is_empty(), loaded.errors.first()) {
            return Err(refuse(error.to_string()));
        }
        let (added, _) = roots.add_parsable_certificates(loaded.certs);
        if added == 0 {
            return Err(refuse("holds no certificate in PEM form".to_owned()));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RemoteError::new(ErrorKind::Invalid, format!("TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// hyper's client as the SDK wants one. Limits on time are the caller's: see
/// [`super::client::Limits`].
#[derive(Clone, Debug)]
struct Http11 {
    client: Client<HttpsConnector<TcpConnector>, SdkBody>,
}

impl HttpClient for Http11 {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Http11 {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        // So the SDK marks the requests whose bodies it streams.
        let is_get = request.uri().query().is_some_and(|query| query.contains("x-id=GetObject"));
        let response = self.client.request(request);
        HttpConnectorFuture::new(async move {
            let response = response.await.map_err(|error| ConnectorError::io(error.into()))?;
            let is_object = is_get && response.status().is_success();
            HttpResponse::try_from(response.map(|body| match is_object {
                true => SdkBody::from_body_1_x(body),
                false => SdkBody::from_body_1_x(Limited::new(body, DOCUMENT_BYTES_MAX)),
            }))
            .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_certificates_is_refused_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pem = "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n";
        for content in ["", "nonsense", pem] {
            std::fs::write(file.path(), content).unwrap();
            let error = client(Some(file.path())).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.starts_with("AWS_CA_BUNDLE="), "{error}");
        }
        assert!(client(Some(Path::new("/nowhere"))).is_err());
        assert!(client(None).is_ok());
    }

    #[test]
    fn offers_no_http2() {
        assert!(tls_config(None).unwrap().alpn_protocols.is_empty());
    }
}
