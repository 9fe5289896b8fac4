//! The way to a store, for who wants to know what is wrong with it: where it is, by which
//! proxy, whose credentials are used, and what time it is there.
//!
//! All of it is found out by the rules that [`super::connect`] goes by, and without
//! credentials: a store that refuses them tells its time all the same.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Empty};
use tokio::time::timeout;

use super::base_url::BaseUrl;
use super::credentials::CallerConfig;
use super::http::{HttpClient, TlsVariables};
use super::uri::RemoteUri;
use super::{ErrorKind, RemoteError, ais, answer, azure, gcs, s3};
use crate::config::{CallerEnv, RemoteOptions};

/// Time for an answer of any kind.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The way to a store on a network.
#[derive(Debug)]
pub struct Reach {
    endpoint: BaseUrl,
    uri: Uri,
    http: HttpClient,
}

impl Reach {
    /// The way to what `uri` names; `None` for what is on this machine. Makes no request.
    ///
    /// # Errors
    /// Those of [`super::connect`] for options, variables and files.
    pub async fn find(
        uri: &RemoteUri,
        options: &RemoteOptions,
        env: &CallerEnv,
    ) -> Result<Option<Reach>, RemoteError> {
        let (endpoint, tls) = match uri {
            RemoteUri::File { .. } => return Ok(None),
            RemoteUri::S3 { .. } => (s3::endpoint(options, env).await?, s3::TLS),
            RemoteUri::Gcs { .. } => (gcs::endpoint(options, env)?, TlsVariables::default()),
            RemoteUri::Azure { account, .. } => {
                (azure::endpoint(account, options, env)?, TlsVariables::default())
            }
            RemoteUri::Ais { .. } => (ais::endpoint(options, env)?, ais::TLS),
        };
        let wrong = |_| RemoteError::new(ErrorKind::Invalid, "the endpoint is no URL");
        let uri = format!("{}/", endpoint.as_str()).parse().map_err(wrong)?;
        let http = HttpClient::open_with(options, env, &tls).await?;
        Ok(Some(Reach { endpoint, uri, http }))
    }

    /// Where it is, as a URL.
    pub fn url(&self) -> &str {
        self.endpoint.as_str()
    }

    /// Its host's name or address.
    pub fn host(&self) -> &str {
        self.endpoint.host_name()
    }

    /// The port there.
    pub fn port(&self) -> u16 {
        let usual = if self.uri.scheme_str() == Some("https") { 443 } else { 80 };
        self.uri.port_u16().unwrap_or(usual)
    }

    /// The variable that names the proxy on the way.
    pub fn proxy(&self) -> Option<&'static str> {
        self.http.proxy_to(&self.uri)
    }

    /// What time it is there, if it tells; to the second.
    ///
    /// # Errors
    /// If there is no answer. A refusal is one.
    pub async fn date(&self) -> Result<Option<SystemTime>, RemoteError> {
        let what = format!("HEAD {}", self.url());
        let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().method(Method::HEAD).uri(self.uri.clone()).body(body);
        let request = request
            .map_err(|error| RemoteError::new(ErrorKind::Invalid, format!("{what}: {error}")))?;
        let answer = timeout(ANSWER_LIMIT, self.http.send(request)).await;
        let answer = answer
            .map_err(|_| answer::late(&what, ANSWER_LIMIT))?
            .map_err(|error| answer::unanswered(&what, "the endpoint", &error))?;
        let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
        Ok(date.and_then(|date| httpdate::parse_http_date(date).ok()))
    }
}

/// What the credentials for a store are taken from, by name: the first that is there, in
/// the order of each store's own module. Empty where nothing is configured: then the
/// machine's metadata service may have some. Reads files, and makes no request.
///
/// # Errors
/// Where a file cannot be read.
pub async fn credentials(
    uri: &RemoteUri,
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<String, RemoteError> {
    if let RemoteUri::File { .. } = uri {
        return Ok("none needed".to_owned());
    }
    if options.no_sign_request && options.origin.is_none() {
        return Ok("none, by --no-sign-request".to_owned());
    }
    if matches!(uri, RemoteUri::Gcs { .. }) && gcs::is_emulated(options, env) {
        return Ok("none, for an emulator".to_owned());
    }
    if env.get(CallerEnv::CREDENTIALS).is_some() {
        return Ok(CallerEnv::CREDENTIALS.to_owned());
    }
    if options.credential_command.is_some() {
        return Ok("--credential-command".to_owned());
    }
    let variables: &[&str] = match uri {
        RemoteUri::File { .. } => &[],
        RemoteUri::S3 { .. } => {
            return Ok(CallerConfig::load(options, env).await?.source(options, env));
        }
        RemoteUri::Gcs { .. } => gcs::CREDENTIALS,
        RemoteUri::Azure { .. } => azure::CREDENTIALS,
        RemoteUri::Ais { .. } => ais::CREDENTIALS,
    };
    let named = variables.iter().find(|name| env.get(name).is_some());
    let login = matches!(uri, RemoteUri::Gcs { .. }) && gcs::has_login(env);
    Ok(match named {
        Some(name) => (*name).to_owned(),
        None if login => "the login of gcloud".to_owned(),
        None => String::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn source(uri: &str, options: &RemoteOptions, env: &[(&str, &str)]) -> String {
        let env = env.iter().copied().collect();
        credentials(&uri.parse().unwrap(), options, &env).await.unwrap()
    }

    #[tokio::test]
    async fn a_region_has_its_own_host() {
        for (region, host) in [
            (None, "s3.amazonaws.com"),
            (Some("eu-west-1"), "s3.eu-west-1.amazonaws.com"),
            (Some("cn-north-1"), "s3.cn-north-1.amazonaws.com.cn"),
        ] {
            let env = region.map(|region| ("AWS_REGION", region)).into_iter().collect();
            let uri = "s3://bucket".parse().unwrap();
            let reach = Reach::find(&uri, &RemoteOptions::default(), &env).await.unwrap().unwrap();
            assert_eq!((reach.host(), reach.port()), (host, 443));
        }
    }

    #[tokio::test]
    async fn the_first_source_is_named_and_nothing_of_it() {
        let tmp = tempfile::tempdir().unwrap();
        let home = ("HOME", tmp.path().to_str().unwrap());
        std::fs::create_dir_all(tmp.path().join(".aws")).unwrap();
        let profiles = "[default]\naws_access_key_id = hidden\n[work]\nregion = x\n";
        std::fs::write(tmp.path().join(".aws/credentials"), profiles).unwrap();
        let keys = [("AWS_ACCESS_KEY_ID", "hidden"), ("AWS_SECRET_ACCESS_KEY", "hidden")];
        let plain = RemoteOptions::default();
        let work = RemoteOptions { profile: Some("work".to_owned()), ..plain.clone() };
        let unsigned = RemoteOptions { no_sign_request: true, ..plain.clone() };
        let token = ("GOOGLE_APPLICATION_CREDENTIALS", "/hidden");
        let handed = (CallerEnv::CREDENTIALS, "hidden");
        for (uri, options, env, expected) in [
            ("s3://bucket", &plain, &[][..], ""),
            ("s3://bucket", &plain, &[home], "AWS profile default"),
            ("s3://bucket", &plain, &[home, keys[0], keys[1]], "AWS_ACCESS_KEY_ID"),
            ("s3://bucket", &work, &[home, keys[0], keys[1]], "AWS profile work"),
            ("s3://bucket", &plain, &[home, ("AWS_PROFILE", "work")], "AWS profile work"),
            (
                "s3://bucket",
                &plain,
                &[("AWS_WEB_IDENTITY_TOKEN_FILE", "/x")],
                "AWS_WEB_IDENTITY_TOKEN_FILE",
            ),
            ("s3://bucket", &unsigned, &keys, "none, by --no-sign-request"),
            ("gs://bucket", &plain, &[token, handed], "WARMFS_CREDENTIALS"),
            ("gs://bucket", &plain, &[token], "GOOGLE_APPLICATION_CREDENTIALS"),
            ("gs://bucket", &plain, &[home], ""),
            (
                "az://account/container",
                &plain,
                &[("AZURE_STORAGE_SAS_TOKEN", "hidden")],
                "AZURE_STORAGE_SAS_TOKEN",
            ),
            ("ais://bucket", &plain, &[("AIS_AUTHN_TOKEN", "hidden")], "AIS_AUTHN_TOKEN"),
            ("file:///x", &plain, &[], "none needed"),
        ] {
            assert_eq!(source(uri, options, env).await, expected, "{uri} {env:?}");
        }
    }

    #[tokio::test]
    async fn each_store_is_somewhere() {
        let plain = RemoteOptions::default();
        let elsewhere = RemoteOptions {
            endpoint_url: Some("http://host:9000".to_owned()),
            ..RemoteOptions::default()
        };
        let env = [("HTTPS_PROXY", "http://proxy:1"), ("AIS_ENDPOINT", "http://ais")];
        let env: CallerEnv = env.into_iter().collect();
        let proxied = Some("HTTPS_PROXY");
        for (uri, options, expected) in [
            ("s3://bucket", &plain, ("s3.amazonaws.com", 443, proxied)),
            ("s3://bucket", &elsewhere, ("host", 9000, None)),
            ("gs://bucket", &plain, ("storage.googleapis.com", 443, proxied)),
            ("az://account/container", &plain, ("account.blob.core.windows.net", 443, proxied)),
            ("ais://bucket", &plain, ("ais", 80, None)),
        ] {
            let reach = Reach::find(&uri.parse().unwrap(), options, &env).await.unwrap().unwrap();
            assert_eq!((reach.host(), reach.port(), reach.proxy()), expected, "{uri}");
        }
        let uri = "file:///x".parse().unwrap();
        assert!(Reach::find(&uri, &plain, &env).await.unwrap().is_none());
    }
}
