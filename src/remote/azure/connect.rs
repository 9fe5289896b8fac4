//! How a container is reached: endpoint, and in whose name.
//!
//! One LIST of one key settles it before anything is mounted ([`settle`]).

use std::net::IpAddr;
use std::sync::Arc;

use super::connection_string::ConnectionString;
use super::credentials::{Found, NOTHING_FOUND, connection_string, find, of_cli, tokens};
use super::error::{AZURE, said};
use super::identity::Managed;
use super::{AzureRemote, Signer};
use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::RemoteMetrics;
use crate::remote::base_url::BaseUrl;
use crate::remote::customer_key::CustomerKey;
use crate::remote::http::HttpClient;
use crate::remote::rest::Rest;
use crate::remote::settle::{self, Probe, Reached};
use crate::remote::{ErrorKind, ListRequest, Remote, RemoteError, RemoteId};

impl AzureRemote {
    /// Finds out how to reach `container` of `account` with the caller's credentials.
    /// Each LIST that this takes is counted in `metrics`.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`] when given credentials do not work, or none were found
    /// and the container is not public; [`ErrorKind::NoSuchBucket`],
    /// [`ErrorKind::Unreachable`], and [`ErrorKind::Invalid`] for an endpoint that is no
    /// URL or gets no tokens.
    pub async fn connect(
        account: &str,
        container: &str,
        options: &RemoteOptions,
        env: &CallerEnv,
        metrics: &Arc<RemoteMetrics>,
    ) -> Result<AzureRemote, RemoteError> {
        let connection = match options.no_sign_request {
            true => None,
            false => connection_string(account, env)?,
        };
        let endpoint = find_endpoint(account, connection.as_ref(), options, env)?;
        let customer_key = CustomerKey::find(options, env, &endpoint).await?;
        let http = HttpClient::open(options, env, None).await?;
        let found = find(account, &endpoint, connection, options, env, &http)?;
        let connector = Connector {
            account,
            container,
            endpoint,
            rest: Rest::new(http, &AZURE, said),
            customer_key,
            metrics: Arc::clone(metrics),
        };
        match found {
            Found::Given(Signer::Tokens(_)) if !connector.endpoint.is_confidential() => {
                let message = "--endpoint-url: a token is sent over https only; write it as \
                               https://HOST";
                Err(RemoteError::new(ErrorKind::Invalid, message))
            }
            Found::Nothing(_) if !connector.endpoint.is_confidential() => {
                settle::decided(connector.try_list(Signer::Nobody).await)
            }
            Found::Given(signer) => settle::decided(connector.try_list(signer).await),
            Found::Nothing(machine) => connector.settle_unconfigured(*machine, env).await,
        }
    }
}

/// Everything that a remote is built from.
struct Connector<'a> {
    account: &'a str,
    container: &'a str,
    endpoint: BaseUrl,
    rest: Rest,
    customer_key: Option<CustomerKey>,
    metrics: Arc<RemoteMetrics>,
}

impl Connector<'_> {
    /// Nothing is given: tries without credentials while the metadata service is looked
    /// for, then as the machine, then as who is logged in to the CLI.
    async fn settle_unconfigured(
        &self,
        machine: Managed,
        env: &CallerEnv,
    ) -> Result<AzureRemote, RemoteError> {
        let there = machine.clone();
        let probe = Probe::start(async move { there.is_there().await });
        let mut refusal = None;
        match settle::unconfigured(Some(probe), self.try_list(Signer::Nobody)).await? {
            Reached::Anonymously(remote) => return Ok(remote),
            Reached::AsMachine => {
                match settle::decided(self.try_list(tokens(Arc::new(machine))).await) {
                    // A machine without an identity, or of another tenant.
                    Err(error) if error.kind == ErrorKind::Credentials => refusal = Some(error),
                    settled => return settled,
                }
            }
            Reached::Not => {}
        }
        if let Some(signer) = of_cli(env).await {
            return settle::decided(self.try_list(signer).await);
        }
        Err(refusal.unwrap_or_else(|| {
            let message = format!(
                "az://{}/{}: not readable without credentials, and {NOTHING_FOUND}",
                self.account, self.container
            );
            RemoteError::new(ErrorKind::Credentials, message)
        }))
    }

    /// A remote, and whether a LIST of one key works with it.
    async fn try_list(&self, signer: Signer) -> (AzureRemote, Result<(), RemoteError>) {
        let remote = self.remote(signer);
        let one = ListRequest { max_keys: Some(1), ..ListRequest::default() };
        let what = remote.what("LIST", "");
        let listed = settle::patiently(&what, &self.metrics.list, || async {
            remote.list(&one).await.map(drop).map_err(|error| (error, ()))
        });
        let listed = listed.await.map_err(|(error, ())| error);
        (remote, listed)
    }

    fn remote(&self, signer: Signer) -> AzureRemote {
        let place = self.endpoint.as_str().split_once("://").map_or("", |(_, place)| place);
        AzureRemote {
            id: RemoteId(format!("az://{}/{}", place.to_ascii_lowercase(), self.container)),
            account: self.account.to_owned(),
            container: self.container.to_owned(),
            endpoint: self.endpoint.clone(),
            rest: self.rest.clone(),
            signer,
            customer_key: self.customer_key.clone(),
        }
    }
}

/// Where the account is.
///
/// # Errors
/// For an endpoint that is no URL, and a connection string that is none.
pub(in crate::remote) fn endpoint(
    account: &str,
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<BaseUrl, RemoteError> {
    let connection = connection_string(account, env)?;
    find_endpoint(account, connection.as_ref(), options, env)
}

/// Where the account is, by option, variable, connection string, or its name.
fn find_endpoint(
    account: &str,
    connection: Option<&ConnectionString>,
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<BaseUrl, RemoteError> {
    const VARIABLE: &str = "AZURE_STORAGE_BLOB_ENDPOINT";
    let connected = connection.and_then(|connection| connection.endpoint.as_deref());
    let named = [
        ("--endpoint-url", options.endpoint_url.as_deref()),
        (VARIABLE, env.get(VARIABLE)),
        ("AZURE_STORAGE_CONNECTION_STRING", connected),
    ];
    let Some((name, url)) = named.into_iter().find_map(|(name, url)| Some((name, url?))) else {
        return BaseUrl::parse("the account", &format!("https://{account}.blob.core.windows.net"));
    };
    let base = BaseUrl::parse(name, url)?;
    // Emulators have no name for each account, so its name is the first part of the path.
    let host = base.host_name();
    let is_emulator = host.parse::<IpAddr>().is_ok() || host == "localhost";
    match is_emulator && base.path().is_empty() {
        true => BaseUrl::parse(name, &format!("{}/{account}", base.as_str())),
        false => Ok(base),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: Option<&str>, env: &[(&str, &str)]) -> Result<String, RemoteError> {
        let options =
            RemoteOptions { endpoint_url: url.map(str::to_owned), ..RemoteOptions::default() };
        let env: CallerEnv = env.iter().copied().collect();
        let connection = connection_string("account", &env)?;
        let base = find_endpoint("account", connection.as_ref(), &options, &env)?;
        Ok(base.as_str().to_owned())
    }

    #[test]
    fn the_first_endpoint_that_is_named_counts() {
        let connection = (
            "AZURE_STORAGE_CONNECTION_STRING",
            "AccountName=account;AccountKey=YQ==;EndpointSuffix=core.usgovcloudapi.net",
        );
        let variable = ("AZURE_STORAGE_BLOB_ENDPOINT", "https://own.example.com/");
        for (url, env, expected) in [
            (None, &[][..], "https://account.blob.core.windows.net"),
            (None, &[connection], "https://account.blob.core.usgovcloudapi.net"),
            (None, &[connection, variable], "https://own.example.com"),
            (Some("http://h:1/x"), &[connection, variable], "http://h:1/x"),
            (Some("http://127.0.0.1:1"), &[], "http://127.0.0.1:1/account"),
            (Some("http://localhost"), &[], "http://localhost/account"),
            (Some("http://127.0.0.1:1/account"), &[], "http://127.0.0.1:1/account"),
        ] {
            assert_eq!(endpoint(url, env).unwrap(), expected);
        }
    }

    #[test]
    fn a_wrong_endpoint_is_told_by_its_name() {
        for (url, env, name) in [
            (Some("h"), &[][..], "--endpoint-url"),
            (None, &[("AZURE_STORAGE_BLOB_ENDPOINT", "ftp://h")], "AZURE_STORAGE_BLOB_ENDPOINT"),
            (
                None,
                &[(
                    "AZURE_STORAGE_CONNECTION_STRING",
                    "AccountName=account;AccountKey=hidden;BlobEndpoint=h",
                )],
                "AZURE_STORAGE_CONNECTION_STRING",
            ),
        ] {
            let error = endpoint(url, env).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(
                error.message.starts_with(name) && !error.message.contains("hidden"),
                "{error}"
            );
        }
    }
}
