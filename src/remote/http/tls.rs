//! Whom a TLS connection trusts: the system's certificates, and the caller's own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::config::{CallerEnv, RemoteOptions};
use crate::remote::{ErrorKind, RemoteError};

/// The system's certificates, read once.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> =
    LazyLock::new(|| rustls_native_certs::load_native_certs().certs);

/// A file with certificates that are trusted too.
#[derive(Debug)]
pub(super) struct CaFile {
    path: PathBuf,
    /// What named it, as the user writes it before the path.
    named_by: String,
}

impl CaFile {
    /// The file of `--ca-file`, or else of `variable`.
    pub(super) fn find(
        options: &RemoteOptions,
        env: &CallerEnv,
        variable: Option<&'static str>,
    ) -> Option<CaFile> {
        if let Some(path) = &options.ca_file {
            return Some(CaFile { path: path.clone(), named_by: "--ca-file ".to_owned() });
        }
        let name = variable?;
        let path = Path::new(env.get(name)?).to_owned();
        Some(CaFile { path, named_by: format!("{name}=") })
    }

    fn load(&self) -> Result<Vec<CertificateDer<'static>>, RemoteError> {
        let loaded = rustls_native_certs::load_certs_from_paths(Some(&self.path), None);
        match loaded.errors.first() {
            Some(error) if loaded.certs.is_empty() => Err(self.refuse(&error.to_string())),
            _ => Ok(loaded.certs),
        }
    }

    fn refuse(&self, why: &str) -> RemoteError {
        let CaFile { path, named_by } = self;
        let path = path.display();
        let message =
            format!("{named_by}{path}: {why}; name a file with the store's certificates as PEM");
        RemoteError::new(ErrorKind::Invalid, message)
    }
}

/// HTTP/1.1, TLS 1.2 or 1.3. Reads files.
///
/// # Errors
/// [`ErrorKind::Invalid`] when the file cannot be read or holds no certificate.
pub(super) fn config(ca: Option<&CaFile>) -> Result<ClientConfig, RemoteError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM_ROOTS.iter().cloned());
    if let Some(ca) = ca {
        let (added, _) = roots.add_parsable_certificates(ca.load()?);
        if added == 0 {
            return Err(ca.refuse("holds no certificate"));
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RemoteError::new(ErrorKind::Invalid, format!("TLS: {error}")))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(options: &RemoteOptions, env: &[(&str, &str)]) -> Result<ClientConfig, RemoteError> {
        let env = env.iter().copied().collect();
        config(CaFile::find(options, &env, Some("AWS_CA_BUNDLE")).as_ref())
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
        assert!(CaFile::find(&RemoteOptions::default(), &CallerEnv::default(), None).is_none());
    }

    #[test]
    fn offers_no_http2() {
        assert!(config(None).unwrap().alpn_protocols.is_empty());
    }
}
