//! What stands between a client and a stub: TLS, and a proxy that is told CONNECT.
//!
//! `tls/ca.pem` is an authority of nobody's. It signed `server.pem` for 127.0.0.1 and
//! store.invalid from 2020 to 2120, and `expired.pem` until 2021; both have the key
//! `server.key`.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// A file of `tests/common/tls`.
pub fn tls_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/common/tls").join(name)
}

/// A listener on loopback; gone when dropped.
#[derive(Debug)]
pub struct Front {
    address: String,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Front {
    /// Takes TLS off what it hands on to the server at `url`, and shows the
    /// certificate in the file `certificate`.
    pub async fn tls(url: &str, certificate: &str) -> Front {
        Front::tls_as(url, certificate, false).await
    }

    /// The same for clients that show a certificate of the authority's.
    pub async fn tls_for_known_clients(url: &str) -> Front {
        Front::tls_as(url, "server.pem", true).await
    }

    async fn tls_as(url: &str, certificate: &str, knows_clients: bool) -> Front {
        let chain = vec![CertificateDer::from_pem_file(tls_file(certificate)).unwrap()];
        let key = PrivateKeyDer::from_pem_file(tls_file("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match knows_clients {
            false => config.with_no_client_auth(),
            true => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(tls_file("ca.pem")).unwrap()).unwrap();
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = config.with_single_cert(chain, key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let server = url.strip_prefix("http://").unwrap().to_owned();
        Front::start(move |client, _| {
            let (acceptor, server) = (acceptor.clone(), server.clone());
            async move {
                if let Ok(client) = acceptor.accept(client).await {
                    hand_on(client, &server).await;
                }
            }
        })
        .await
    }

    /// A proxy whose tunnels all end at `server`; without one it answers 407.
    pub async fn proxy(server: Option<&str>) -> Front {
        let server = server.map(str::to_owned);
        Front::start(move |mut client, heads| {
            let server = server.clone();
            async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = client.read_u8().await else { return };
                    head.push(byte);
                }
                heads.lock().unwrap().push(String::from_utf8(head).unwrap());
                if let Some(server) = server {
                    let _ = client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await;
                    hand_on(client, &server).await;
                } else {
                    let refusal = b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n";
                    let _ = client.write_all(refusal).await;
                }
            }
        })
        .await
    }

    /// A server without TLS, as it answers who speaks TLS to it.
    pub async fn plain() -> Front {
        Front::start(|mut client, _| async move {
            let _ = client.read_u8().await;
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static,
    ) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = heads.clone();
        let task = tokio::spawn(async move {
            let mut served = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                served.spawn(serve(client, seen.clone()));
            }
        });
        Front { address, heads, task }
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it was asked to connect to: requests, headers included.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn hand_on(mut client: impl AsyncRead + AsyncWrite + Unpin, server: &str) {
    if let Ok(mut server) = TcpStream::connect(server).await {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}
