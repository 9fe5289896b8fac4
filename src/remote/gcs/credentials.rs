//! Where tokens for Google Cloud Storage come from: the caller's environment and
//! files, never those of the process that serves the mount.
//!
//! The first of these that is there decides, and if it fails, that is the answer; what
//! was given is never replaced by anonymous requests:
//!
//! 1. `--no-sign-request`, or an emulator named by `STORAGE_EMULATOR_HOST`: none.
//! 2. What is pushed or printed by `--credential-command` ([`crate::remote::hook`]).
//! 3. `GOOGLE_APPLICATION_CREDENTIALS`, a file of any kind that [`file`] knows.
//! 4. `CLOUDSDK_AUTH_ACCESS_TOKEN`, `CLOUDSDK_AUTH_ACCESS_TOKEN_FILE`.
//! 5. The file that `gcloud auth application-default login` and notebook logins write:
//!    `application_default_credentials.json` in `CLOUDSDK_CONFIG` or `~/.config/gcloud`.
//! 6. Otherwise perhaps the machine's metadata service (`GCE_METADATA_HOST`), which is
//!    asked while an anonymous request is tried.
//!
//! Files are read again for each token, so a new login heals a mount that has run out.
//!
//! Why ours: `gcp_auth` knows neither federation nor impersonation, `google-cloud-auth`
//! brings a second HTTP client; both read the process's environment and bypass
//! `--ca-file` and our limits. What is left to do is to fill in forms.

mod exchange;
pub(super) mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use self::exchange::Google;
use self::file::CredentialFile;
use crate::config::CallerEnv;
use crate::remote::base_url::BaseUrl;
use crate::remote::blocking;
use crate::remote::http::HttpClient;
use crate::remote::token::{Given, Token, TokenSource};
use crate::remote::{ErrorKind, RemoteError};

/// Largest file with credentials or a token that is read, in bytes. Keys have 3 KB,
/// and a token of a large cluster a few.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The metadata server's address, which needs no name server: off the cloud those take
/// their time to know no `metadata.google.internal`.
const METADATA_HOST: &str = "169.254.169.254";

/// Where tokens were found.
#[derive(Debug)]
pub(super) enum Found {
    /// None are wanted.
    Unsigned,
    /// The caller named these.
    Given {
        given: Given,
        /// The project that pays, where somebody has to and nobody else was named.
        payer: Option<String>,
    },
    /// Nothing is configured; the metadata service may have some, unless the
    /// caller forbids to ask.
    Nothing(Option<Arc<dyn TokenSource>>),
}

/// The variables that name credentials, in the order of [`find`].
pub(in crate::remote) const CREDENTIALS: &[&str] = &[
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_AUTH_ACCESS_TOKEN",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE",
];

/// Finds where tokens come from. Reads files, and makes no request.
///
/// # Errors
/// [`ErrorKind::Credentials`] when a file cannot be read or understood.
pub(super) async fn find(env: &CallerEnv, http: &HttpClient) -> Result<Found, RemoteError> {
    let google = Google::new(http.clone());
    let home = env.get("HOME").map(Path::new);
    let named = |name: &'static str| Some((name, in_home(env.get(name)?, home)));
    if let Some((name, path)) = named("GOOGLE_APPLICATION_CREDENTIALS") {
        return login(google, path, name).await;
    }
    if let Some(token) = env.get("CLOUDSDK_AUTH_ACCESS_TOKEN") {
        let given = Given::Token(Token::new(token.trim(), None));
        return Ok(Found::Given { given, payer: None });
    }
    if let Some((name, path)) = named("CLOUDSDK_AUTH_ACCESS_TOKEN_FILE") {
        let source = TokenFile { path, name };
        source.fetch().await?;
        return Ok(Found::Given { given: Given::Source(Arc::new(source)), payer: None });
    }
    if let Some(path) = login_file(env) {
        return login(google, path, "the login of gcloud").await;
    }
    Ok(Found::Nothing(metadata(env, google)?))
}

/// Where `gcloud auth application-default login` writes, if somebody did log in.
fn login_file(env: &CallerEnv) -> Option<PathBuf> {
    let home = env.get("HOME").map(Path::new);
    let folder = match env.get("CLOUDSDK_CONFIG") {
        Some(folder) => in_home(folder, home),
        None => home?.join(".config/gcloud"),
    };
    Some(folder.join("application_default_credentials.json")).filter(|path| path.exists())
}

/// Whether somebody did.
pub(in crate::remote) fn has_login(env: &CallerEnv) -> bool {
    login_file(env).is_some()
}

/// What to say when nothing was found and the store wants credentials.
pub(super) fn nothing_found(asked_metadata: bool) -> String {
    let metadata = if asked_metadata { ", the machine's metadata service" } else { "" };
    format!(
        "no credentials were found (looked at GOOGLE_APPLICATION_CREDENTIALS, \
         CLOUDSDK_AUTH_ACCESS_TOKEN, the login of gcloud{metadata}); run \
         `gcloud auth application-default login`, or name a key file with \
         GOOGLE_APPLICATION_CREDENTIALS; for a public bucket use --no-sign-request"
    )
}

/// A path that may begin with `~/`.
fn in_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

async fn login(google: Google, path: PathBuf, name: &'static str) -> Result<Found, RemoteError> {
    let source = Login { google, path, name };
    let payer = source.read().await?.payer;
    Ok(Found::Given { given: Given::Source(Arc::new(source)), payer })
}

/// The machine's metadata service, unless the caller forbids to ask it.
fn metadata(env: &CallerEnv, google: Google) -> Result<Option<Arc<dyn TokenSource>>, RemoteError> {
    let check = env.get("CLOUDSDK_CORE_CHECK_GCE_METADATA");
    if check.is_some_and(|check| check.eq_ignore_ascii_case("false")) {
        return Ok(None);
    }
    let host = env.get("GCE_METADATA_HOST").unwrap_or(METADATA_HOST);
    let server = BaseUrl::parse("GCE_METADATA_HOST", &format!("http://{host}"))?;
    Ok(Some(Arc::new(Metadata { google, server })))
}

/// A file that leads to tokens.
#[derive(Debug)]
struct Login {
    google: Google,
    path: PathBuf,
    /// What named it.
    name: &'static str,
}

impl Login {
    async fn read(&self) -> Result<CredentialFile, RemoteError> {
        let text = read_file(&self.path, self.name).await?;
        CredentialFile::parse(&text).map_err(|why| unusable(&self.path, self.name, &why))
    }
}

#[async_trait]
impl TokenSource for Login {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let file = self.read().await?;
        self.google.token(&file).await.map_err(|error| {
            let message = format!("{} ({}): {}", self.path.display(), self.name, error.message);
            RemoteError::new(error.kind, message)
        })
    }
}

/// A file that holds a token, which somebody else replaces in time.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
    name: &'static str,
}

#[async_trait]
impl TokenSource for TokenFile {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let text = read_file(&self.path, self.name).await?;
        match text.trim() {
            "" => Err(unusable(&self.path, self.name, "it is empty")),
            token => Ok(Token::new(token, None)),
        }
    }
}

/// What a machine of Google's, or a notebook's host, knows of itself.
#[derive(Debug)]
struct Metadata {
    google: Google,
    server: BaseUrl,
}

#[async_trait]
impl TokenSource for Metadata {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        self.google.machine_token(&self.server).await
    }
}

async fn read_file(path: &Path, name: &'static str) -> Result<String, RemoteError> {
    use std::io::Read;
    let path = path.to_owned();
    blocking(move || {
        let mut text = String::new();
        // A pipe could be opened for ever, and read but once.
        if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
            return Err(unusable(&path, name, "it is no file"));
        }
        let read = std::fs::File::open(&path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
        match read {
            Ok(bytes) if bytes as u64 > FILE_BYTES_MAX => {
                Err(unusable(&path, name, "it is too large for one"))
            }
            Ok(_) => Ok(text),
            Err(error) => Err(unusable(&path, name, &error.to_string())),
        }
    })
    .await
}

fn unusable(path: &Path, name: &str, why: &str) -> RemoteError {
    let message = format!(
        "{} ({name}) cannot be used: {why}; run `gcloud auth application-default login`, or name \
         another file with GOOGLE_APPLICATION_CREDENTIALS",
        path.display()
    );
    RemoteError::new(ErrorKind::Credentials, message)
}
