//! Where the cluster is, who asks, and how it says no.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::HeaderMap;
use serde::Deserialize;

use super::{AisRemote, bucket_path};
use crate::config::{CallerEnv, RemoteOptions};
use crate::remote::answer::{Dialect, Refusal};
use crate::remote::base_url::BaseUrl;
use crate::remote::blocking;
use crate::remote::http::{HttpClient, TlsVariables};
use crate::remote::rest::{Rest, Said, header};
use crate::remote::token::{Given, Token, TokenSource, Tokens};
use crate::remote::uri::AisProvider;
use crate::remote::{ErrorKind, RemoteError, RemoteId, hook};

/// A file with a token is read again after a part of this, whether or not the cluster
/// refused what was in it: whoever renews it does so well before its end.
const FILE_LIFE: Duration = Duration::from_secs(10 * 60);

/// Most bytes of a file with a token. A token has one or two KiB.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// As the cluster's own tools know them.
pub(in crate::remote) const TLS: TlsVariables = TlsVariables {
    ca: Some("AIS_CLIENT_CA"),
    own: Some(("AIS_CRT", "AIS_CRT_KEY")),
    trust_anybody: Some("AIS_SKIP_VERIFY_CRT"),
};

/// How a cluster says no.
pub(super) static DIALECT: Dialect = Dialect {
    server: "the store",
    store: "AIStore",
    bucket: "bucket",
    endpoint: "AIS_ENDPOINT",
    credentials: "name another token with AIS_AUTHN_TOKEN or AIS_AUTHN_TOKEN_FILE",
    // 404 of an object may be its bucket's; that 409, 429 and 507 pass, and 410 is an
    // object that is gone, is what HTTP's own meanings say.
    kind: |refusal| is_archived(refusal).then_some(ErrorKind::Denied),
    next_step,
};

/// Whether the cloud behind the cluster has the object in an archive, as its code in the
/// cluster's words says: that of S3, or of Azure, whose status would be read as "again".
fn is_archived(refusal: &Refusal<'_>) -> bool {
    let code = match refusal.status {
        403 => "InvalidObjectState",
        409 => "BlobArchived",
        _ => return false,
    };
    refusal.said.is_some_and(|said| said.contains(code))
}

fn next_step(refusal: &Refusal<'_>) -> Option<&'static str> {
    if is_archived(refusal) {
        return Some("it is archived; restore it at the cloud first");
    }
    Some(match refusal.status {
        507 => "the cluster has no room for it: make some, or name the cloud with --origin",
        409 => "others are fetching it into the cluster, read it again",
        _ => return None,
    })
}

/// An error's own words: in a body, or for HEAD in a header.
pub(super) fn said(headers: &HeaderMap, body: &[u8]) -> Said {
    #[derive(Deserialize)]
    struct Refused {
        message: String,
        #[serde(default)]
        tcode: String,
    }
    let in_header = header(headers, "hdr-error").unwrap_or_default();
    let text = if body.is_empty() { in_header.as_bytes() } else { body };
    match serde_json::from_slice::<Refused>(text) {
        Ok(Refused { message, tcode }) => Said { code: Some(tcode), message: Some(message) },
        Err(_) if !in_header.is_empty() => {
            Said { code: Some(String::new()), message: Some(in_header.to_owned()) }
        }
        Err(_) => Said::default(),
    }
}

impl AisRemote {
    /// A bucket of the cluster that `--endpoint-url` or `AIS_ENDPOINT` names, with the
    /// caller's token. Sends no request.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for no usable endpoint, and for certificates that cannot
    /// be read.
    pub async fn connect(
        provider: Option<AisProvider>,
        bucket: &str,
        options: &RemoteOptions,
        env: &CallerEnv,
    ) -> Result<AisRemote, RemoteError> {
        let endpoint = endpoint(options, env)?;
        let http = HttpClient::open_with(options, env, &TLS).await?;
        let uri = format!("ais://{}", bucket_path(provider, bucket));
        // With an origin the option is about that, as are all of the cloud's.
        let given = match options.no_sign_request && options.origin.is_none() {
            true => None,
            false => hook::given(uri, options, env)?.or_else(|| configured(env)),
        };
        Ok(AisRemote {
            id: RemoteId(format!("ais://{}/{}", endpoint.host(), bucket_path(provider, bucket))),
            provider,
            bucket: bucket.to_owned(),
            endpoint,
            rest: Rest::new(http, &DIALECT, said),
            tokens: given.map(Tokens::new),
        })
    }
}

/// Where the cluster is.
///
/// # Errors
/// Where nothing says so.
pub(in crate::remote) fn endpoint(
    options: &RemoteOptions,
    env: &CallerEnv,
) -> Result<BaseUrl, RemoteError> {
    let option = options.endpoint_url.as_deref().map(|url| ("--endpoint-url", url));
    let variable = || Some(("AIS_ENDPOINT", env.get("AIS_ENDPOINT")?));
    match option.or_else(variable) {
        Some((name, url)) => BaseUrl::parse(name, url),
        None => {
            let message = "ais:// needs a cluster: name one of its proxies with AIS_ENDPOINT or \
                           --endpoint-url, as http://HOST:51080";
            Err(RemoteError::new(ErrorKind::Invalid, message))
        }
    }
}

/// The variables that name credentials, in the order of [`configured`].
pub(in crate::remote) const CREDENTIALS: &[&str] = &["AIS_AUTHN_TOKEN", "AIS_AUTHN_TOKEN_FILE"];

/// The token, or the file that has it.
fn configured(env: &CallerEnv) -> Option<Given> {
    if let Some(token) = env.get("AIS_AUTHN_TOKEN") {
        return Some(Given::Token(Token::new(token, None)));
    }
    let path = PathBuf::from(env.get("AIS_AUTHN_TOKEN_FILE")?);
    Some(Given::Source(Arc::new(TokenFile { path })))
}

/// A file that somebody else renews.
#[derive(Debug)]
struct TokenFile {
    path: PathBuf,
}

#[async_trait]
impl TokenSource for TokenFile {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let path = self.path.clone();
        blocking(move || read_token(&path)).await
    }
}

fn read_token(path: &Path) -> Result<Token, RemoteError> {
    let refuse = |why: &str| {
        let message =
            format!("AIS_AUTHN_TOKEN_FILE={}: {why}; log in to the cluster again", path.display());
        RemoteError::new(ErrorKind::Credentials, message)
    };
    let mut content = String::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut content));
    read.map_err(|error| refuse(&error.to_string()))?;
    match token_in(&content) {
        Some(token) => Ok(Token::new(token, Some(SystemTime::now() + FILE_LIFE))),
        None => Err(refuse("holds no token")),
    }
}

/// The token in a file: alone, or as the cluster's own tool leaves it, `{"token": "…"}`.
fn token_in(content: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Login {
        token: String,
    }
    let content = content.trim();
    let token = match content.starts_with('{') {
        true => serde_json::from_str::<Login>(content).ok()?.token,
        false => content.to_owned(),
    };
    let is_plain = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    is_plain.then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};
    use crate::remote::answer::{Asked, refused};

    fn refusal(status: u16, said: &Said) -> RemoteError {
        let (code, said) = (said.code.as_deref(), said.message.as_deref());
        let refusal = Refusal { asked: Asked::Get, status, code, said, retry_after: None };
        refused(&DIALECT, "GET ais://@aws/b/k", &refusal)
    }

    #[test]
    fn an_error_says_what_the_cluster_said() {
        let body =
            br#"{"status":507,"message":"out of\nspace","method":"GET","tcode":"ErrCapacity"}"#;
        let error = refusal(507, &said(&HeaderMap::new(), body));
        assert_eq!(
            error.message,
            "GET ais://@aws/b/k: the store answered 507 ErrCapacity: out of space; the cluster \
             has no room for it: make some, or name the cloud with --origin"
        );
        let mut headers = HeaderMap::new();
        for text in [r#"{"status":404,"message":"no such object"}"#, "no such object"] {
            headers.insert("hdr-error", text.parse().unwrap());
            let error = refusal(404, &said(&headers, b""));
            assert_eq!(error.message, "GET ais://@aws/b/k: the store answered 404: no such object");
        }
        let error = refusal(405, &said(&HeaderMap::new(), b"<html>"));
        assert!(error.message.ends_with("not how AIStore says no, check AIS_ENDPOINT"), "{error}");
    }

    #[test]
    fn what_a_cloud_has_archived_is_no_permission() {
        for (status, message) in [
            (403, "aws-error[InvalidObjectState: The operation is not valid]"),
            (409, "azure-error[BlobArchived: This operation is not permitted]"),
        ] {
            let said = Said { code: None, message: Some(message.to_owned()) };
            let error = refusal(status, &said);
            assert_eq!(error.kind, ErrorKind::Denied);
            assert!(error.message.ends_with("restore it at the cloud first"), "{error}");
            assert_eq!(refusal(404, &said).kind, ErrorKind::NotFound, "that is its name");
        }
    }

    #[test]
    fn what_passes_is_tried_again() {
        for status in [409, 429, 500, 503, 507] {
            assert!(refusal(status, &Said::default()).is_retryable(), "{status}");
        }
        for (status, kind) in [
            (401, ErrorKind::Credentials),
            (403, ErrorKind::Denied),
            (404, ErrorKind::NotFound),
            (410, ErrorKind::NotFound),
            (416, ErrorKind::Changed),
        ] {
            assert_eq!(refusal(status, &Said::default()).kind, kind, "{status}");
        }
    }

    #[test]
    fn a_cluster_has_to_be_named() {
        let find = |option: Option<&str>, env: &[(&str, &str)]| {
            let options =
                RemoteOptions { endpoint_url: option.map(str::to_owned), ..Default::default() };
            endpoint(&options, &env.iter().copied().collect())
        };
        let variable = [("AIS_ENDPOINT", "http://proxy:51080/")];
        assert_eq!(find(None, &variable).unwrap().host(), "proxy:51080");
        assert_eq!(find(Some("http://other"), &variable).unwrap().host(), "other");
        assert!(find(None, &[]).unwrap_err().message.contains("AIS_ENDPOINT"));
        let error = find(None, &[("AIS_ENDPOINT", "proxy:51080")]).unwrap_err();
        assert!(error.message.starts_with("AIS_ENDPOINT: "), "{error}");
    }

    #[test]
    fn a_file_has_a_token_or_a_login() {
        for (content, token) in [
            ("abc.def-_\n", Some("abc.def-_")),
            ("{\"token\": \"abc\"}\n", Some("abc")),
            ("{\"token\": 7}", None),
            ("{", None),
            ("", None),
            ("two words", None),
            ("{\"token\": \"a\\nb\"}", None),
        ] {
            assert_eq!(token_in(content).as_deref(), token, "{content}");
        }
        let error = read_token(Path::new("/nowhere/token")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Credentials);
        assert!(error.message.starts_with("AIS_AUTHN_TOKEN_FILE=/nowhere/token: "), "{error}");
    }

    fuzz_tests!(refusals);

    fn refusals(effort: Effort) {
        let target = Target {
            name: "errors and token files of AIStore",
            corpus: vec![
                br#"{"status":404,"message":"no","tcode":"ErrX","url_path":"/v1"}"#.to_vec(),
                br#"{"token":"abc"}"#.to_vec(),
            ],
            words: &[
                "\"message\":",
                "\"tcode\":",
                "\"token\":",
                "\\n",
                "\\u001b",
                "{",
                "}",
                "null",
            ],
            inputs: 10_000,
            memory: (16 << 10, 16),
        };
        target.run(effort, |input| {
            let said = said(&HeaderMap::new(), input);
            let error = refusal(500, &said);
            assert!(!error.message.contains(char::is_control), "{error:?}");
            assert!(error.message.chars().count() < 1_200, "{error}");
            let token = token_in(&String::from_utf8_lossy(input));
            assert!(token.iter().all(|token| token.bytes().all(|b| b.is_ascii_graphic())));
            said.message.is_some() || token.is_some()
        });
    }
}
