//! How a bucket is reached: endpoint, credentials, and which project pays.
//!
//! One LIST of one key settles it before anything is mounted ([`settle`]).
//!
//! The first of these that is there pays: `--billing-project`,
//! `GOOGLE_CLOUD_QUOTA_PROJECT`, the `quota_project_id` of the login's file,
//! `GOOGLE_CLOUD_PROJECT`. It is the order of Google's libraries, code before environment
//! before credentials (<https://cloud.google.com/docs/quotas/set-quota-project>), and a
//! project that is nobody's choice for this comes last. The two that were not named for it pay
//! only where the store asks: every `gcloud` login has a quota project, and whoever may
//! not use it (`serviceusage.services.use`) would be denied what is free.

use std::sync::Arc;

use super::GcsRemote;
use super::answer::{GCS, GCS_ANONYMOUS, NAME_A_PAYER, said};
use super::credentials::{Found, find, nothing_found};
use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::RemoteMetrics;
use crate::remote::answer::Asked;
use crate::remote::base_url::BaseUrl;
use crate::remote::customer_key::CustomerKey;
use crate::remote::http::HttpClient;
use crate::remote::rest::Rest;
use crate::remote::settle::{self, Probe, Reached};
use crate::remote::token::{Given, Tokens};
use crate::remote::{ErrorKind, RemoteError, RemoteId, hook};

const GOOGLE: &str = "https://storage.googleapis.com";

impl GcsRemote {
    /// Finds out how to reach `bucket` with the caller's credentials. Each LIST
    /// that this takes is counted in `metrics`.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`] when named credentials do not work, or none
    /// were found and the bucket is not public; [`ErrorKind::NoSuchBucket`],
    /// [`ErrorKind::Unreachable`], and [`ErrorKind::Invalid`] for an endpoint
    /// that is no URL, or a bucket whose requester pays and no project to do so.
    pub async fn connect(
        bucket: &str,
        options: &RemoteOptions,
        env: &CallerEnv,
        metrics: &Arc<RemoteMetrics>,
    ) -> Result<GcsRemote, RemoteError> {
        let (endpoint, is_emulator) = find_endpoint(options, env)?;
        let customer_key = CustomerKey::find(options, env, &endpoint).await?;
        let http = HttpClient::open(options, env, None).await?;
        let handed = || hook::given(format!("gs://{bucket}"), options, env);
        let found = match options.no_sign_request || is_emulator {
            true => Found::Unsigned,
            false => match handed()? {
                Some(given) => Found::Given { given, payer: None },
                None => find(env, &http).await?,
            },
        };
        let payer = options.billing_project.as_deref().or(env.get("GOOGLE_CLOUD_QUOTA_PROJECT"));
        let of_login = match &found {
            Found::Given { payer, .. } => payer.as_deref(),
            Found::Unsigned | Found::Nothing(_) => None,
        };
        let other_payer = of_login.or(env.get("GOOGLE_CLOUD_PROJECT"));
        let mut connector = Connector {
            bucket: bucket.to_owned(),
            endpoint,
            http,
            customer_key,
            payer: payer.map(str::to_owned),
            other_payer: other_payer.map(str::to_owned),
            metrics: Arc::clone(metrics),
        };
        if options.requester_pays {
            connector.let_other_pay();
        }
        match found {
            Found::Unsigned => settle::decided(connector.try_list(None).await),
            Found::Given { given, .. } => connector.settle(Tokens::new(given)).await,
            Found::Nothing(metadata) => {
                let tokens = metadata.map(|source| Tokens::new(Given::Source(source)));
                connector.settle_unconfigured(tokens).await
            }
        }
    }
}

/// Everything that a remote is built from.
struct Connector {
    bucket: String,
    endpoint: BaseUrl,
    http: HttpClient,
    customer_key: Option<CustomerKey>,
    payer: Option<String>,
    /// Pays if the store asks for somebody.
    other_payer: Option<String>,
    metrics: Arc<RemoteMetrics>,
}

impl Connector {
    async fn settle(&mut self, tokens: Tokens) -> Result<GcsRemote, RemoteError> {
        let (remote, listed) = self.try_list(Some(tokens.clone())).await;
        let wants_payer = |error: &RemoteError| error.message.ends_with(NAME_A_PAYER);
        if listed.as_ref().is_err_and(wants_payer) && self.let_other_pay() {
            tracing::info!(bucket = self.bucket, project = self.payer, "the requester pays");
            return settle::decided(self.try_list(Some(tokens)).await);
        }
        settle::decided((remote, listed))
    }

    /// Nothing is configured: tries without a token while the metadata service is
    /// asked for one.
    async fn settle_unconfigured(
        &mut self,
        machine: Option<Tokens>,
    ) -> Result<GcsRemote, RemoteError> {
        let probe =
            machine.clone().map(|tokens| Probe::start(async move { tokens.current().await }));
        let reached = settle::unconfigured(probe, self.try_list(None)).await?;
        match (reached, machine) {
            (Reached::Anonymously(remote), _) => Ok(remote),
            (Reached::AsMachine, Some(tokens)) => self.settle(tokens).await,
            (_, machine) => {
                let message = format!(
                    "gs://{}: not readable without credentials, and {}",
                    self.bucket,
                    nothing_found(machine.is_some())
                );
                Err(RemoteError::new(ErrorKind::Credentials, message))
            }
        }
    }

    /// Whether there is somebody else to pay, who does from now on.
    fn let_other_pay(&mut self) -> bool {
        let is_new = self.payer.is_none() && self.other_payer.is_some();
        if is_new {
            self.payer = self.other_payer.take();
        }
        is_new
    }

    /// A remote, and whether a LIST of one key works with it.
    async fn try_list(&self, tokens: Option<Tokens>) -> (GcsRemote, Result<(), RemoteError>) {
        let remote = self.remote(tokens);
        let what = remote.what("LIST", "");
        let listed = settle::patiently(&what, &self.metrics.list, || async {
            let call = remote.call().query("maxResults", "1").query("fields", "kind");
            let request = |call| remote.rest.document(Asked::List, &what, call);
            remote.authorised(call, request).await.map(drop).map_err(|error| (error, ()))
        });
        let listed = listed.await.map_err(|(error, ())| error);
        (remote, listed)
    }

    fn remote(&self, tokens: Option<Tokens>) -> GcsRemote {
        let dialect = if tokens.is_some() { &GCS } else { &GCS_ANONYMOUS };
        GcsRemote {
            id: RemoteId(format!("gs://{}/{}", self.endpoint.host(), self.bucket)),
            bucket: self.bucket.clone(),
            endpoint: self.endpoint.clone(),
            rest: Rest::new(self.http.clone(), dialect, said),
            tokens,
            payer: self.payer.clone(),
            customer_key: self.customer_key.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }
}

/// Whether requests go to an emulator, which gets no token.
pub(in crate::remote) fn is_emulated(options: &RemoteOptions, env: &CallerEnv) -> bool {
    find_endpoint(options, env).is_ok_and(|(_, is_emulator)| is_emulator)
}

/// Where the store is.
///
/// # Errors
/// For an endpoint that is no URL.
pub(in crate::remote) fn endpoint(
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<BaseUrl, RemoteError> {
    find_endpoint(options, env).map(|(endpoint, _)| endpoint)
}

/// The endpoint, and whether it is an emulator's, which gets no token: it checks none,
/// and what is real must not lie about in its log.
fn find_endpoint(options: &RemoteOptions, env: &CallerEnv) -> Result<(BaseUrl, bool), RemoteError> {
    if let Some(url) = &options.endpoint_url {
        return Ok((BaseUrl::parse("--endpoint-url", url)?, false));
    }
    const EMULATOR: &str = "STORAGE_EMULATOR_HOST";
    match env.get(EMULATOR) {
        Some(url) if url.contains("://") => Ok((BaseUrl::parse(EMULATOR, url)?, true)),
        Some(host) => Ok((BaseUrl::parse(EMULATOR, &format!("http://{host}"))?, true)),
        None => Ok((BaseUrl::parse("the store", GOOGLE)?, false)),
    }
}
