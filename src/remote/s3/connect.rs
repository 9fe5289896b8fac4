//! How a bucket is reached: endpoint, region, and whether requests are signed.
//!
//! One LIST of one key settles all three before anything is mounted ([`settle`]). An
//! answer that names another region is followed.

use std::sync::Arc;

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::types::RequestPayer;
use aws_sdk_s3::{Client, Config};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use aws_types::region::Region;

use super::S3Remote;
use super::error::{S3, bucket_region, classify};
use super::keys::{Keys, Signer, provided};
use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::RemoteMetrics;
use crate::remote::answer::Asked;
use crate::remote::base_url::BaseUrl;
use crate::remote::credentials::{CallerConfig, DEFAULT_REGION, Found, nothing_found};
use crate::remote::customer_key::CustomerKey;
use crate::remote::http::{HttpClient, TlsVariables};
use crate::remote::settle::{self, Probe, Reached};
use crate::remote::token::Tokens;
use crate::remote::{ErrorKind, RemoteError, RemoteId, hook};

/// Where AWS answers for every region, with its time.
const AWS: &str = "https://s3.amazonaws.com";

/// As AWS's own tools know it.
pub(in crate::remote) const TLS: TlsVariables =
    TlsVariables { ca: Some("AWS_CA_BUNDLE"), own: None, trust_anybody: None };

/// Times that another region is followed: given, then told; a second answer
/// that contradicts the first one is an error.
const MAX_REGIONS: usize = 2;

impl S3Remote {
    /// Finds out how to reach `bucket` with the caller's credentials. Each LIST
    /// that this takes is counted in `metrics`.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`] when named credentials do not work, or none
    /// were found and the bucket is not public; [`ErrorKind::NoSuchBucket`],
    /// [`ErrorKind::Unreachable`], and [`ErrorKind::Invalid`] for an endpoint
    /// that is no URL.
    pub async fn connect(
        bucket: &str,
        options: &RemoteOptions,
        env: &CallerEnv,
        metrics: &Arc<RemoteMetrics>,
    ) -> Result<S3Remote, RemoteError> {
        let config = CallerConfig::load(options, env).await?;
        let endpoint = find_endpoint(options, env, &config)?;
        // AWS itself is asked over https only.
        let customer_key = CustomerKey::find(options, env, endpoint.as_ref()).await?;
        let http = HttpClient::open_with(options, env, &TLS).await?.for_sdk();
        let region = find_region(options, env, &config);
        let handed = match options.no_sign_request {
            true => None,
            false => hook::given(format!("s3://{bucket}"), options, env)?,
        };
        let found = config.find(options, env, &http, region)?;
        let mut connector = Connector {
            bucket: bucket.to_owned(),
            endpoint,
            path_style: !options.virtual_host_style,
            payer: options.requester_pays.then_some(RequestPayer::Requester),
            customer_key,
            http,
            region: region.unwrap_or(DEFAULT_REGION).to_owned(),
            metrics: Arc::clone(metrics),
        };
        match (handed, found) {
            (Some(given), _) => connector.settle(Some(Tokens::new(given))).await,
            (None, Found::Unsigned) => connector.settle(None).await,
            (None, Found::Named(provider)) => {
                connector.settle(Some(provided(provider, bucket))).await
            }
            (None, Found::Nothing(metadata)) => connector.settle_unconfigured(metadata).await,
        }
    }
}

/// Everything that a client is built from.
struct Connector {
    bucket: String,
    endpoint: Option<BaseUrl>,
    path_style: bool,
    payer: Option<RequestPayer>,
    customer_key: Option<CustomerKey>,
    http: SharedHttpClient,
    region: String,
    metrics: Arc<RemoteMetrics>,
}

impl Connector {
    /// Signed or not is decided.
    async fn settle(&mut self, keys: Option<Keys>) -> Result<S3Remote, RemoteError> {
        settle::decided(self.try_list(keys).await)
    }

    /// Nothing is configured: tries without a signature while the metadata
    /// service is asked.
    async fn settle_unconfigured(
        &mut self,
        metadata: Option<SharedCredentialsProvider>,
    ) -> Result<S3Remote, RemoteError> {
        let keys = metadata.map(|provider| provided(provider, &self.bucket));
        let probe = keys.clone().map(|keys| Probe::start(async move { keys.current().await }));
        match settle::unconfigured(probe, self.try_list(None)).await? {
            Reached::Anonymously(remote) => Ok(remote),
            Reached::AsMachine => self.settle(keys).await,
            Reached::Not => {
                let message = format!(
                    "s3://{}: not readable without credentials, and {}",
                    self.bucket,
                    nothing_found(keys.is_some())
                );
                Err(RemoteError::new(ErrorKind::Credentials, message))
            }
        }
    }

    /// A remote for what is known, and whether a LIST of one key works with it.
    async fn try_list(&mut self, keys: Option<Keys>) -> (S3Remote, Result<(), RemoteError>) {
        let mut remote = self.remote(keys.clone());
        for _ in 0..MAX_REGIONS {
            match self.list_one(&remote).await {
                Err((_, Some(region))) if region != self.region => {
                    tracing::info!(bucket = self.bucket, region, "found the bucket's region");
                    self.region = region;
                    remote = self.remote(keys.clone());
                }
                result => return (remote, result.map_err(|(error, _)| error)),
            }
        }
        let result = self.list_one(&remote).await.map_err(|(error, _)| error);
        (remote, result)
    }

    /// LISTs one key. An error comes with the region it names.
    async fn list_one(&self, remote: &S3Remote) -> Result<(), (RemoteError, Option<String>)> {
        let what = remote.what("LIST", "");
        settle::patiently(&what, &self.metrics.list, || async {
            if let Some(keys) = &remote.keys {
                keys.current().await.map_err(|error| (error, None))?;
            }
            let request = remote
                .client
                .list_objects_v2()
                .bucket(&self.bucket)
                .max_keys(1)
                .set_request_payer(self.payer.clone());
            let answer = request.send().await;
            answer.map(drop).map_err(|e| (classify(&S3, Asked::List, &what, &e), bucket_region(&e)))
        })
        .await
    }

    fn remote(&self, keys: Option<Keys>) -> S3Remote {
        let host = self.endpoint.as_ref().map_or("s3.amazonaws.com", BaseUrl::host);
        S3Remote {
            id: RemoteId(format!("s3://{host}/{}", self.bucket)),
            bucket: self.bucket.clone(),
            client: self.client(keys.clone()),
            keys,
            payer: self.payer.clone(),
            customer_key: self.customer_key.clone(),
        }
    }

    fn client(&self, keys: Option<Keys>) -> Client {
        let mut config = Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .region(Region::new(self.region.clone()))
            // All of these are ours: see the client, which counts and limits.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // A checksum over the whole object says nothing of a range.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        config = match keys {
            // The keys are kept there already.
            Some(keys) => {
                config.credentials_provider(Signer(keys)).identity_cache(IdentityCache::no_cache())
            }
            None => config.allow_no_auth(),
        };
        if let Some(endpoint) = &self.endpoint {
            config = config.endpoint_url(endpoint.as_str()).force_path_style(self.path_style);
        }
        Client::from_conf(config.build())
    }
}

/// Where the store is.
///
/// # Errors
/// For an endpoint that is no URL, and what else is wrong with the caller's files.
pub(in crate::remote) async fn endpoint(
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<BaseUrl, RemoteError> {
    let config = CallerConfig::load(options, env).await?;
    if let Some(endpoint) = find_endpoint(options, env, &config)? {
        return Ok(endpoint);
    }
    let at = find_region(options, env, &config).map(|region| {
        let of_china = if region.starts_with("cn-") { ".cn" } else { "" };
        format!("https://s3.{region}.amazonaws.com{of_china}")
    });
    BaseUrl::parse("the store", at.as_deref().unwrap_or(AWS))
}

/// The region by option, environment or profile.
fn find_region<'a>(
    options: &'a RemoteOptions,
    env: &'a CallerEnv,
    config: &'a CallerConfig,
) -> Option<&'a str> {
    let variables = || env.get("AWS_REGION").or_else(|| env.get("AWS_DEFAULT_REGION"));
    options.region.as_deref().or_else(variables).or_else(|| config.get("region"))
}

/// The endpoint by option, environment or profile; `None` for AWS.
fn find_endpoint(
    options: &RemoteOptions,
    env: &CallerEnv,
    config: &CallerConfig,
) -> Result<Option<BaseUrl>, RemoteError> {
    if let Some(url) = &options.endpoint_url {
        return BaseUrl::parse("--endpoint-url", url).map(Some);
    }
    let ignored = env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    if ignored.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        .iter()
        .find_map(|name| Some((*name, env.get(name)?)));
    let configured = || Some(("endpoint_url", config.get("endpoint_url")?));
    match named.or_else(configured) {
        Some((name, url)) => BaseUrl::parse(name, url).map(Some),
        None => Ok(None),
    }
}
