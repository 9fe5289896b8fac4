//! Where credentials for Azure come from: the caller's environment and files, never
//! those of the process that serves the mount.
//!
//! The first of these that is there decides, and if it fails, that is the answer; what
//! was given is never replaced by anonymous requests:
//!
//! 1. `--no-sign-request`: none.
//! 2. A token, or a shared access signature, that is pushed or printed by
//!    `--credential-command` ([`crate::remote::hook`]).
//! 3. `AZURE_STORAGE_CONNECTION_STRING`.
//! 4. `AZURE_STORAGE_KEY`, the key of `AZURE_STORAGE_ACCOUNT` if that is set.
//! 5. `AZURE_STORAGE_SAS_TOKEN`.
//! 6. `AZURE_TENANT_ID` and `AZURE_CLIENT_ID` with `AZURE_CLIENT_SECRET`, or with
//!    `AZURE_FEDERATED_TOKEN_FILE`.
//! 7. `IDENTITY_ENDPOINT` and `IDENTITY_HEADER`: the identity of a service.
//! 8. Otherwise perhaps that of the machine, by its metadata service, or whoever is
//!    logged in to the Azure CLI. Nobody gave these for this container, and a token of
//!    another tenant opens not even what is public: they are used where an anonymous
//!    request is refused.
//!
//! Nothing of this is logged or becomes part of a message, except names.

use std::path::PathBuf;
use std::sync::Arc;

use super::Signer;
use super::connection_string::ConnectionString;
use super::identity::{Authority, Cli, Entra, Managed, Proof, confidential};
use super::shared_key::SharedKey;
use crate::config::{CallerEnv, RemoteOptions};
use crate::remote::base_url::BaseUrl;
use crate::remote::http::HttpClient;
use crate::remote::token::{Given, TokenSource, Tokens};
use crate::remote::{ErrorKind, RemoteError, hook};

const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";
const SIGNATURE: &str = "AZURE_STORAGE_SAS_TOKEN";

/// What tools call a key; the first is the CLI's own.
const KEYS: [&str; 3] =
    ["AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY"];

/// What tools call its account.
const ACCOUNTS: [&str; 2] = ["AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME"];

/// Other ways of an application to prove itself, which warmfs does not know.
const UNKNOWN_PROOFS: [&str; 2] = ["AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_PASSWORD"];

/// Where applications prove themselves, by the end of the store's host.
const AUTHORITIES: [(&str, &str); 3] = [
    (".chinacloudapi.cn", "https://login.chinacloudapi.cn"),
    (".usgovcloudapi.net", "https://login.microsoftonline.us"),
    ("", "https://login.microsoftonline.com"),
];

/// The variables that name credentials, in the order of [`find`].
pub(in crate::remote) const CREDENTIALS: &[&str] = &[
    CONNECTION_STRING,
    KEYS[0],
    KEYS[1],
    KEYS[2],
    SIGNATURE,
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    // It goes with IDENTITY_ENDPOINT, which alone says nothing.
    "IDENTITY_HEADER",
];

/// Where credentials were found.
pub(super) enum Found {
    /// The caller gave these, or wants none.
    Given(Signer),
    /// Nothing is given; the machine may have an identity.
    Nothing(Box<Managed>),
}

/// The caller's connection string, if there is one, which is about `account`.
///
/// # Errors
/// [`ErrorKind::Credentials`] when it is none, or is about another account.
pub(super) fn connection_string(
    account: &str,
    env: &CallerEnv,
) -> Result<Option<ConnectionString>, RemoteError> {
    let Some(text) = env.get(CONNECTION_STRING) else { return Ok(None) };
    let found = ConnectionString::parse(text).map_err(|why| {
        refuse(format!("{CONNECTION_STRING} {why}; copy it from the account's access keys"))
    })?;
    match &found.account {
        Some(other) if other != account => Err(other_account(CONNECTION_STRING, other, account)),
        _ => Ok(Some(found)),
    }
}

/// Finds where credentials for `account`, which is at `endpoint`, come from. Makes no
/// request.
///
/// # Errors
/// [`ErrorKind::Credentials`] when something is given by half or is not for the
/// account, [`ErrorKind::Invalid`] for a server that is no URL or gets no secrets.
pub(super) fn find(
    account: &str,
    endpoint: &BaseUrl,
    connection: Option<ConnectionString>,
    options: &RemoteOptions,
    env: &CallerEnv,
    http: &HttpClient,
) -> Result<Found, RemoteError> {
    if options.no_sign_request {
        return Ok(Found::Given(Signer::Nobody));
    }
    if let Some(given) = hook::given(format!("az://{account}"), options, env)? {
        return Ok(Found::Given(Signer::Tokens(Tokens::new(given))));
    }
    if let Some(connection) = connection {
        return of_connection(account, connection).map(Found::Given);
    }
    if let Some((name, key)) = first(&KEYS, env) {
        if let Some((_, other)) = first(&ACCOUNTS, env).filter(|(_, other)| *other != account) {
            return Err(other_account(name, other, account));
        }
        return of_key(name, account, key).map(Found::Given);
    }
    if let Some(signature) = env.get(SIGNATURE) {
        return of_signature(SIGNATURE, signature).map(Found::Given);
    }
    if let Some(entra) = of_application(endpoint, env, http)? {
        return Ok(Found::Given(tokens(Arc::new(entra))));
    }
    if let Some(service) = Managed::of_service(http.clone(), env)? {
        return Ok(Found::Given(tokens(Arc::new(service))));
    }
    Ok(Found::Nothing(Box::new(Managed::of_machine(http.clone(), env)?)))
}

/// Requests with the tokens of a source.
pub(super) fn tokens(source: Arc<dyn TokenSource>) -> Signer {
    Signer::Tokens(Tokens::new(Given::Source(source)))
}

/// Requests in the name of whom the caller's CLI knows, if that is somebody.
pub(super) async fn of_cli(env: &CallerEnv) -> Option<Signer> {
    Some(tokens(Arc::new(Cli::logged_in(env).await?)))
}

/// What to say when nothing was found and the store wants credentials.
pub(super) const NOTHING_FOUND: &str = "no credentials were found (looked at AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY, \
     AZURE_STORAGE_SAS_TOKEN, AZURE_CLIENT_ID, IDENTITY_ENDPOINT, the machine's metadata service, \
     the Azure CLI); run `az login`, or set one of these";

fn of_connection(account: &str, connection: ConnectionString) -> Result<Signer, RemoteError> {
    match (connection.key, connection.signature) {
        (Some(key), _) => of_key(CONNECTION_STRING, account, &key),
        (None, signature) => of_signature(CONNECTION_STRING, &signature.unwrap_or_default()),
    }
}

fn of_key(name: &str, account: &str, key: &str) -> Result<Signer, RemoteError> {
    let key = SharedKey::new(account, key);
    key.map(Signer::Key).ok_or_else(|| {
        refuse(format!("{name}: the key is not base64; copy it from the account's access keys"))
    })
}

/// A signature may come with the `?` before it, or with all of its URL.
fn of_signature(name: &str, text: &str) -> Result<Signer, RemoteError> {
    match signature_in(text) {
        Some(query) => Ok(Signer::Signature(query.into())),
        None => Err(refuse(format!(
            "{name}: that is no shared access signature; it looks like sv=…&sp=rl&sig=…"
        ))),
    }
}

/// The end of a query that signs it, if `text` holds one. No token looks like that.
pub(super) fn signature_in(text: &str) -> Option<&str> {
    let query = text.trim().rsplit('?').next().unwrap_or_default().trim_start_matches('&');
    let is_one = query.split('&').any(|part| part.starts_with("sig="))
        && query.bytes().all(|b| b.is_ascii_graphic() && !b"\"#<>\\^`{|}".contains(&b));
    is_one.then_some(query)
}

fn of_application(
    endpoint: &BaseUrl,
    env: &CallerEnv,
    http: &HttpClient,
) -> Result<Option<Entra>, RemoteError> {
    const TENANT: &str = "AZURE_TENANT_ID";
    const CLIENT: &str = "AZURE_CLIENT_ID";
    let proof = match (env.get("AZURE_CLIENT_SECRET"), env.get("AZURE_FEDERATED_TOKEN_FILE")) {
        (Some(secret), _) => Proof::Secret(secret.to_owned()),
        (None, Some(path)) => Proof::TokenFile(PathBuf::from(path)),
        (None, None) => {
            return match first(&UNKNOWN_PROOFS, env) {
                Some((name, _)) => Err(refuse(format!(
                    "{name} is set, which warmfs cannot use; set AZURE_CLIENT_SECRET or \
                     AZURE_FEDERATED_TOKEN_FILE, or run `az login` and unset it"
                ))),
                None => Ok(None),
            };
        }
    };
    let needed = |name: &str| {
        env.get(name).map(str::to_owned).ok_or_else(|| {
            refuse(format!("{name} is not set, but its companions are; set {TENANT} and {CLIENT}"))
        })
    };
    let host = match env.get("AZURE_AUTHORITY_HOST") {
        Some(url) => confidential("AZURE_AUTHORITY_HOST", url)?,
        None => {
            let host = endpoint.host();
            let known = AUTHORITIES.iter().find(|(end, _)| host.ends_with(end));
            BaseUrl::parse("AZURE_AUTHORITY_HOST", known.map_or("", |(_, url)| url))?
        }
    };
    let authority = Authority { host, tenant: needed(TENANT)?, client: needed(CLIENT)? };
    Ok(Some(Entra::new(http.clone(), authority, proof)))
}

fn first<'a>(names: &[&'static str], env: &'a CallerEnv) -> Option<(&'static str, &'a str)> {
    names.iter().find_map(|name| Some((*name, env.get(name)?)))
}

fn other_account(name: &str, other: &str, account: &str) -> RemoteError {
    refuse(format!(
        "{name} is for the account {other:?}; mount az://{other}/…, or set the one for {account:?}"
    ))
}

fn refuse(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Credentials, message)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
