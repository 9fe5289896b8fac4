//! Where credentials come from: the caller's environment and files, never those
//! of the process that serves the mount.
//!
//! The first of these that is there decides, and if it fails, that is the
//! answer; what was configured is never replaced by anonymous requests:
//!
//! 1. `--no-sign-request`: none.
//! 2. What is pushed or printed by `--credential-command` ([`super::hook`]).
//! 3. `--profile`.
//! 4. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
//! 5. `AWS_PROFILE`, or else a profile `default` that names credentials: keys,
//!    SSO, a role to assume, a process.
//! 6. `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`.
//! 7. `AWS_CONTAINER_CREDENTIALS_*_URI`. The SDK's provider for these reads the
//!    process's own environment, so it is used only where that is the same.
//! 8. Otherwise perhaps the machine's metadata service, which is asked while an
//!    anonymous request is tried.
//!
//! Nothing of this is logged or becomes part of a message, except names.

use std::path::PathBuf;

use aws_config::imds;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileSet};
use aws_config::provider_config::ProviderConfig;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::os_shim_internal::{Env, Fs};
use aws_types::region::Region;

use super::{ErrorKind, RemoteError};
use crate::config::{CallerEnv, RemoteOptions};

/// Region for requests about credentials and buckets while none is known.
pub(super) const DEFAULT_REGION: &str = "us-east-1";

/// What a profile may name that leads to credentials.
const CREDENTIAL_KEYS: [&str; 7] = [
    "aws_access_key_id",
    "credential_process",
    "credential_source",
    "login_session",
    "role_arn",
    "sso_account_id",
    "sso_session",
];

/// The caller's AWS configuration: files, and the profile that is chosen.
#[derive(Debug)]
pub(super) struct CallerConfig {
    files: Option<EnvConfigFiles>,
    profiles: ProfileSet,
    profile: String,
    /// By option or environment, so that its lack is an error.
    profile_is_named: bool,
}

/// Where credentials were found.
#[derive(Debug)]
pub(super) enum Found {
    /// The caller wants none.
    Unsigned,
    /// The caller named these.
    Named(SharedCredentialsProvider),
    /// Nothing is configured; the metadata service may have some, unless the
    /// caller forbids to ask.
    Nothing(Option<SharedCredentialsProvider>),
}

impl CallerConfig {
    /// Reads the caller's AWS files, if there are any.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`] when a file cannot be read or understood, or
    /// a profile was named that is in none.
    pub(super) async fn load(
        options: &RemoteOptions,
        env: &CallerEnv,
    ) -> Result<Self, RemoteError> {
        let named = options.profile.as_deref().or_else(|| env.get("AWS_PROFILE"));
        let profile = named.unwrap_or("default").to_owned();
        let paths = [
            (EnvConfigFileKind::Config, env.get("AWS_CONFIG_FILE"), "config"),
            (EnvConfigFileKind::Credentials, env.get("AWS_SHARED_CREDENTIALS_FILE"), "credentials"),
        ];
        let mut files = None;
        for (kind, path, name) in paths {
            if let Some(path) = file_path(path, name, env).filter(|path| path.is_file()) {
                let builder = files.unwrap_or_else(EnvConfigFiles::builder);
                files = Some(builder.with_file(kind, path));
            }
        }
        let files = files.map(|builder| builder.build());
        let profiles = match &files {
            Some(files) => load_profiles(files, &profile).await?,
            None => ProfileSet::default(),
        };
        let config = CallerConfig { files, profiles, profile, profile_is_named: named.is_some() };
        let is_needed = config.profile_is_named && !options.no_sign_request;
        if is_needed && config.profiles.get_profile(&config.profile).is_none() {
            return Err(config.no_such_profile());
        }
        Ok(config)
    }

    /// A setting of the chosen profile, such as `region`.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.profiles.get_profile(&self.profile)?.get(name)
    }

    /// Finds where credentials come from. Makes no request.
    ///
    /// # Errors
    /// [`ErrorKind::Credentials`] when something is configured by half.
    pub(super) fn find(
        &self,
        options: &RemoteOptions,
        env: &CallerEnv,
        http: &SharedHttpClient,
        region: Option<&str>,
    ) -> Result<Found, RemoteError> {
        let region = Region::new(region.unwrap_or(DEFAULT_REGION).to_owned());
        let base = ProviderConfig::without_region()
            .with_http_client(http.clone())
            .with_region(Some(region));
        if options.no_sign_request {
            return Ok(Found::Unsigned);
        }
        if options.profile.is_some() {
            return Ok(Found::Named(self.profile_provider(&base)));
        }
        if let Some(keys) = env_keys(env)? {
            return Ok(Found::Named(SharedCredentialsProvider::new(keys)));
        }
        if self.profile_is_named || CREDENTIAL_KEYS.iter().any(|key| self.get(key).is_some()) {
            return Ok(Found::Named(self.profile_provider(&base)));
        }
        if let Some(web_identity) = web_identity(env)? {
            let builder = WebIdentityTokenCredentialsProvider::builder();
            let provider = builder.configure(&base).static_configuration(web_identity).build();
            return Ok(Found::Named(SharedCredentialsProvider::new(provider)));
        }
        if has_container_uri(env)? {
            let provider = aws_config::ecs::EcsCredentialsProvider::builder().configure(&base);
            return Ok(Found::Named(SharedCredentialsProvider::new(provider.build())));
        }
        Ok(Found::Nothing(metadata_provider(env, &base)?))
    }

    /// What [`CallerConfig::find`] goes by, by name; nothing if nothing is configured.
    pub(super) fn source(&self, options: &RemoteOptions, env: &CallerEnv) -> String {
        let profile = || format!("AWS profile {}", self.profile);
        let is_configured =
            self.profile_is_named || CREDENTIAL_KEYS.iter().any(|key| self.get(key).is_some());
        let variable = |name: &'static str| env.get(name).map(|_| name.to_owned());
        let of_profile = |applies: bool| applies.then(profile);
        of_profile(options.profile.is_some())
            .or_else(|| variable("AWS_ACCESS_KEY_ID"))
            .or_else(|| of_profile(is_configured))
            .or_else(|| variable("AWS_WEB_IDENTITY_TOKEN_FILE"))
            .or_else(|| variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"))
            .or_else(|| variable("AWS_CONTAINER_CREDENTIALS_FULL_URI"))
            .unwrap_or_default()
    }

    fn profile_provider(&self, base: &ProviderConfig) -> SharedCredentialsProvider {
        let mut builder = ProfileFileCredentialsProvider::builder()
            .configure(base)
            .profile_name(self.profile.clone());
        if let Some(files) = &self.files {
            builder = builder.profile_files(files.clone());
        }
        SharedCredentialsProvider::new(builder.build())
    }

    fn no_such_profile(&self) -> RemoteError {
        let name = &self.profile;
        let known: Vec<_> = self.profiles.profiles().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        credentials_error(format!(
            "there is no AWS profile {name:?} (found: {known}); use one of these, or run \
             `aws configure --profile {name}`"
        ))
    }
}

/// What to say when nothing was found and the store wants credentials.
pub(super) fn nothing_found(asked_metadata: bool) -> String {
    let metadata = if asked_metadata { ", the machine's metadata service" } else { "" };
    format!(
        "no credentials were found (looked at AWS_ACCESS_KEY_ID, the default profile, \
         AWS_WEB_IDENTITY_TOKEN_FILE, AWS_CONTAINER_CREDENTIALS_FULL_URI{metadata}); run \
         `aws configure`, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile \
         with --profile; for a public bucket use --no-sign-request"
    )
}

async fn load_profiles(files: &EnvConfigFiles, profile: &str) -> Result<ProfileSet, RemoteError> {
    // The paths are absolute, so the process's own environment is not looked at.
    let profile = Some(profile.to_owned().into());
    let loaded = aws_config::profile::load(&Fs::real(), &Env::real(), files, profile).await;
    loaded.map_err(|error| {
        let reason = super::error::innermost(&error);
        credentials_error(format!("the AWS configuration files cannot be used: {reason}"))
    })
}

fn file_path(named: Option<&str>, default: &str, env: &CallerEnv) -> Option<PathBuf> {
    let home = env.get("HOME").map(PathBuf::from);
    match named {
        Some(path) => match path.strip_prefix("~/") {
            Some(rest) => Some(home?.join(rest)),
            None => Some(PathBuf::from(path)),
        },
        None => Some(home?.join(".aws").join(default)),
    }
}

fn env_keys(env: &CallerEnv) -> Result<Option<Credentials>, RemoteError> {
    let token = env.get("AWS_SESSION_TOKEN").map(str::to_owned);
    match (env.get("AWS_ACCESS_KEY_ID"), env.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => {
            Ok(Some(Credentials::new(id, secret, token, None, "environment")))
        }
        (None, None) if token.is_none() => Ok(None),
        (id, _) => {
            let missing = if id.is_some() { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
            Err(credentials_error(format!(
                "{missing} is not set, but its companions are; set AWS_ACCESS_KEY_ID and \
                 AWS_SECRET_ACCESS_KEY, or unset both and AWS_SESSION_TOKEN"
            )))
        }
    }
}

fn web_identity(env: &CallerEnv) -> Result<Option<StaticConfiguration>, RemoteError> {
    let Some(file) = env.get("AWS_WEB_IDENTITY_TOKEN_FILE") else { return Ok(None) };
    let Some(role) = env.get("AWS_ROLE_ARN") else {
        return Err(credentials_error(
            "AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not; set both".to_owned(),
        ));
    };
    Ok(Some(StaticConfiguration {
        web_identity_token_file: PathBuf::from(file),
        role_arn: role.to_owned(),
        session_name: env.get("AWS_ROLE_SESSION_NAME").unwrap_or("warmfs").to_owned(),
    }))
}

fn has_container_uri(env: &CallerEnv) -> Result<bool, RemoteError> {
    const URIS: [&str; 2] =
        ["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
    const TOKENS: [&str; 2] =
        ["AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"];
    if URIS.iter().all(|name| env.get(name).is_none()) {
        return Ok(false);
    }
    let own = CallerEnv::from_process();
    if URIS.iter().chain(&TOKENS).all(|name| env.get(name) == own.get(name)) {
        return Ok(true);
    }
    Err(credentials_error(
        "AWS_CONTAINER_CREDENTIALS_*_URI is set, but not for the daemon that serves this cache \
         directory; use another --cache-dir, or name a profile with --profile"
            .to_owned(),
    ))
}

/// The machine's metadata service, unless the caller forbids to ask it.
fn metadata_provider(
    env: &CallerEnv,
    base: &ProviderConfig,
) -> Result<Option<SharedCredentialsProvider>, RemoteError> {
    let disabled = env.get("AWS_EC2_METADATA_DISABLED");
    if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok(None);
    }
    let mode = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE");
    let default = match mode {
        Some(mode) if mode.eq_ignore_ascii_case("ipv6") => "http://[fd00:ec2::254]",
        _ => "http://169.254.169.254",
    };
    let endpoint = env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or(default);
    let client = imds::Client::builder().configure(base).endpoint(endpoint).map_err(|error| {
        let message = format!("AWS_EC2_METADATA_SERVICE_ENDPOINT={endpoint} is no URL: {error}");
        RemoteError::new(ErrorKind::Invalid, message)
    })?;
    let provider = ImdsCredentialsProvider::builder().configure(base).imds_client(client.build());
    Ok(Some(SharedCredentialsProvider::new(provider.build())))
}

fn credentials_error(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Credentials, message)
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
