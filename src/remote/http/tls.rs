//! Whom a TLS connection trusts: the system's certificates, and the caller's own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::config::{CallerEnv, RemoteOptions};
use crate::remote::{ErrorKind, RemoteError};

/// The system's certificates, read once.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// The variables by which a store's own tools learn whom to trust.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsVariables {
    /// A file with certificates that are trusted too.
    pub ca: Option<&'static str>,
    /// Files with the caller's own certificate and its key, which the store asks for.
    pub own: Option<(&'static str, &'static str)>,
    /// Whether to trust anybody.
    pub trust_anybody: Option<&'static str>,
}

/// What was named by `--ca-file` and the variables.
#[derive(Debug)]
pub(super) struct Named {
    ca: Option<PemFile>,
    own: Option<(PemFile, PemFile)>,
    trusts_anybody: bool,
}

/// A file that somebody named.
#[derive(Debug)]
struct PemFile {
    path: PathBuf,
    /// What named it, as the user writes it before the path.
    named_by: String,
}

impl PemFile {
    fn of_variable(env: &CallerEnv, name: &str) -> Option<PemFile> {
        let path = Path::new(env.get(name)?).to_owned();
        Some(PemFile { path, named_by: format!("{name}=") })
    }

    /// The certificates in it, of which there is one at least.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
        let loaded = rustls_native_certs::load_certs_from_paths(Some(&self.path), None);
        match loaded.errors.first() {
            Some(error) if loaded.certs.is_empty() => Err(self.refuse(&error.to_string())),
            None if loaded.certs.is_empty() => Err(self.refuse("holds no certificate")),
            _ => Ok(loaded.certs),
        }
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, RemoteError> {
        PrivateKeyDer::from_pem_file(&self.path).map_err(|error| self.refuse(&error.to_string()))
    }

    fn refuse(&self, why: &str) -> RemoteError {
        let PemFile { path, named_by } = self;
        let path = path.display();
        let what = if named_by.contains("KEY") { "the key" } else { "the certificates" };
        let message = format!("{named_by}{path}: {why}; name a file with {what} as PEM");
        RemoteError::new(ErrorKind::Invalid, message)
    }
}

impl Named {
    /// Finds what is named. `--ca-file` comes before its variable.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for half of a pair, and for a variable that says neither
    /// yes nor no.
    pub(super) fn find(
        options: &RemoteOptions,
        env: &CallerEnv,
        variables: &TlsVariables,
    ) -> Result<Named, RemoteError> {
        let invalid = |message| RemoteError::new(ErrorKind::Invalid, message);
        let option = |path: &PathBuf| PemFile { path: path.clone(), named_by: "--ca-file ".into() };
        let named = |name| PemFile::of_variable(env, name);
        let own = match variables.own {
            None => None,
            Some((certificate, key)) => match (named(certificate), named(key)) {
                (Some(certificate), Some(key)) => Some((certificate, key)),
                (None, None) => None,
                _ => {
                    let message = format!("{certificate} and {key} go together: set both or none");
                    return Err(invalid(message));
                }
            },
        };
        let trusts_anybody = match variables.trust_anybody {
            None => false,
            Some(name) => is_set(env.get(name).unwrap_or("no"))
                .ok_or_else(|| invalid(format!("{name} is neither true nor false")))?,
        };
        let ca = options.ca_file.as_ref().map(option);
        Ok(Named { ca: ca.or_else(|| variables.ca.and_then(named)), own, trusts_anybody })
    }
}

fn is_set(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "y" | "yes" | "on" => Some(true),
        "0" | "f" | "false" | "n" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// HTTP/1.1, TLS 1.2 or 1.3. Reads files.
///
/// # Errors
/// [`ErrorKind::Invalid`] when a file cannot be read or does not hold what it should.
pub(super) fn config(named: &Named) -> Result<ClientConfig, RemoteError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let failed = |error| RemoteError::new(ErrorKind::Invalid, format!("TLS: {error}"));
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(failed)?;
    if named.trusts_anybody {
        tracing::warn!("the store's certificate is not checked, as was asked for");
    }
    let config = match named.trusts_anybody {
        true => config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
        false => config.with_root_certificates(roots(named.ca.as_ref())?),
    };
    match &named.own {
        None => Ok(config.with_no_client_auth()),
        Some((certificate, key)) => config
            .with_client_auth_cert(certificate.certificates()?, key.key()?)
            .map_err(|error| key.refuse(&error.to_string())),
    }
}

fn roots(ca: Option<&PemFile>) -> Result<RootCertStore, RemoteError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM_ROOTS.iter().cloned());
    if let Some(ca) = ca {
        let (added, _) = roots.add_parsable_certificates(ca.certificates()?);
        if added == 0 {
            return Err(ca.refuse("holds no certificate"));
        }
    }
    Ok(roots)
}

/// Takes every certificate for the right one; the connection is encrypted, to whomever.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(options: &RemoteOptions, env: &[(&str, &str)]) -> Result<ClientConfig, RemoteError> {
        let env = env.iter().copied().collect();
        let ca = TlsVariables { ca: Some("AWS_CA_BUNDLE"), ..TlsVariables::default() };
        config(&Named::find(options, &env, &ca)?)
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_the_name_that_gave_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let pem = "-----BEGIN CERTIFICATE-----\nbm9uc2Vuc2U=\n-----END CERTIFICATE-----\n";
        let none = RemoteOptions::default();
        let given =
            RemoteOptions { ca_file: Some(file.path().to_owned()), ..RemoteOptions::default() };
        for content in ["", "nonsense", pem] {
            std::fs::write(file.path(), content).unwrap();
            let error = load(&none, &[("AWS_CA_BUNDLE", path)]).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.starts_with(&format!("AWS_CA_BUNDLE={path}: ")), "{error}");
            let error = load(&given, &[]).unwrap_err();
            assert!(error.message.starts_with(&format!("--ca-file {path}: ")), "{error}");
        }
        assert!(load(&none, &[("AWS_CA_BUNDLE", "/nowhere")]).is_err());
        assert!(load(&none, &[]).is_ok());
    }

    #[test]
    fn the_option_comes_before_the_variable() {
        let given = RemoteOptions { ca_file: Some("/nowhere".into()), ..RemoteOptions::default() };
        let error = load(&given, &[("AWS_CA_BUNDLE", "/elsewhere")]).unwrap_err();
        assert!(error.message.starts_with("--ca-file /nowhere: "), "{error}");
    }

    #[test]
    fn offers_no_http2() {
        assert!(load(&RemoteOptions::default(), &[]).unwrap().alpn_protocols.is_empty());
    }

    #[test]
    fn a_certificate_of_ones_own_comes_with_its_key() {
        let variables = TlsVariables {
            own: Some(("AIS_CRT", "AIS_CRT_KEY")),
            trust_anybody: Some("AIS_SKIP_VERIFY_CRT"),
            ..TlsVariables::default()
        };
        let load = |env: &[(&str, &str)]| {
            let env = env.iter().copied().collect();
            config(&Named::find(&RemoteOptions::default(), &env, &variables)?)
        };
        let tls = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/common/tls/");
        let (certificate, key) = (format!("{tls}server.pem"), format!("{tls}server.key"));
        let (certificate, key) = (certificate.as_str(), key.as_str());
        let config = load(&[("AIS_CRT", certificate), ("AIS_CRT_KEY", key)]).unwrap();
        assert!(config.client_auth_cert_resolver.has_certs());
        assert!(!load(&[]).unwrap().client_auth_cert_resolver.has_certs());
        for (env, why) in [
            (&[("AIS_CRT", certificate)][..], "AIS_CRT and AIS_CRT_KEY go together"),
            (&[("AIS_CRT", key), ("AIS_CRT_KEY", key)], "AIS_CRT="),
            (&[("AIS_CRT", certificate), ("AIS_CRT_KEY", certificate)], "AIS_CRT_KEY="),
            (&[("AIS_SKIP_VERIFY_CRT", "maybe")], "AIS_SKIP_VERIFY_CRT is neither"),
        ] {
            let error = load(env).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.starts_with(why), "{error}");
        }
        for (value, trusts_anybody) in [("true", true), ("no", false), ("1", true), ("OFF", false)]
        {
            assert_eq!(is_set(value), Some(trusts_anybody));
        }
    }
}
