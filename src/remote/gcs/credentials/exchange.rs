//! The requests that bring tokens: forms posted to Google's token servers, and the
//! question to the metadata server.
//!
//! RFC 6749 (refresh), RFC 7523 (a signed claim), RFC 8693 (exchange of a foreign
//! token), `generateAccessToken` of the IAM credentials API (impersonation).

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::signature::RSA_PKCS1_SHA256;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::super::answer::said;
use super::file::{Client, CredentialFile, Impersonation, LoginKind, Place, Secret, Subject};
use super::read_file;
use crate::remote::answer::{Asked, Dialect, lacks};
use crate::remote::base_url::BaseUrl;
use crate::remote::http::HttpClient;
use crate::remote::rest::{Call, Rest};
use crate::remote::token::Token;
use crate::remote::{ErrorKind, RemoteError, token_json};

/// All that a mount does.
const READ: &str = "https://www.googleapis.com/auth/devstorage.read_only";

/// What it takes to become somebody else, who then only reads.
const IMPERSONATE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// How long a signed claim and a borrowed token live: as long as they may.
const LIFE: Duration = Duration::from_secs(3600);

const FORM: &str = "application/x-www-form-urlencoded";

/// How token servers say no.
static TOKENS: Dialect = Dialect {
    server: "the token server",
    store: "a token server",
    bucket: "bucket",
    endpoint: "the URLs in the credentials file",
    credentials: LOG_IN,
    // Whatever is no blip is the credentials': [`crate::remote::token`] says so of all.
    kind: |_| None,
    next_step: |refusal| match (refusal.status, refusal.said) {
        (429 | 500.., _) => None,
        (_, Some(said)) if said.contains("iat and exp") => Some("set this machine's clock"),
        _ => Some(LOG_IN),
    },
};

const LOG_IN: &str = "run `gcloud auth application-default login`, or name another file with \
                      GOOGLE_APPLICATION_CREDENTIALS";

/// Google's token servers, and others that a file names.
#[derive(Clone, Debug)]
pub(super) struct Google(Rest);

impl Google {
    pub(super) fn new(http: HttpClient) -> Google {
        Google(Rest::new(http, &TOKENS, said))
    }

    /// The token that a file leads to.
    pub(super) async fn token(&self, file: &CredentialFile) -> Result<Token, RemoteError> {
        let Some(impersonation) = &file.impersonation else {
            return self.log_in(&file.login, READ).await;
        };
        let own = self.log_in(&file.login, IMPERSONATE).await?;
        self.impersonate(impersonation, &own).await
    }

    /// The token of the machine's service account.
    pub(super) async fn machine_token(&self, server: &BaseUrl) -> Result<Token, RemoteError> {
        let call = Call::new(Method::GET, server)
            .path("/computeMetadata/v1/instance/service-accounts/default/token")
            .header("metadata-flavor", "Google");
        let what = format!("the metadata server {}", server.host());
        self.ask(&what, call).await
    }

    async fn log_in(&self, login: &LoginKind, scope: &str) -> Result<Token, RemoteError> {
        match login {
            LoginKind::Key { email, key, key_id, server } => {
                let claim = signed_claim(email, key, key_id.as_deref(), server, scope)?;
                let form = [
                    ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
                    ("assertion", &claim),
                ];
                self.post(server, &form, None).await
            }
            LoginKind::Refresh { client, token, server, is_external } => {
                let mut form = vec![("grant_type", "refresh_token"), ("refresh_token", &token.0)];
                if *is_external {
                    return self.post(server, &form, Some(client)).await;
                }
                form.extend([("client_id", &*client.id), ("client_secret", &client.secret.0)]);
                self.post(server, &form, None).await
            }
            LoginKind::Federation {
                audience,
                token_type,
                subject,
                server,
                client,
                workforce_project,
            } => {
                let foreign = self.foreign_token(subject).await?;
                let mut form = vec![
                    ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
                    ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
                    ("audience", audience),
                    ("scope", scope),
                    ("subject_token_type", token_type),
                    ("subject_token", &foreign.0),
                ];
                let project = workforce_project.as_ref().filter(|_| client.is_none());
                let options = project.map(|project| json!({ "userProject": project }).to_string());
                form.extend(options.as_deref().map(|options| ("options", options)));
                self.post(server, &form, client.as_ref()).await
            }
        }
    }

    async fn post(
        &self,
        server: &BaseUrl,
        form: &[(&str, &str)],
        client: Option<&Client>,
    ) -> Result<Token, RemoteError> {
        let mut call = Call::new(Method::POST, server).body(FORM, encode(form));
        if let Some(Client { id, secret }) = client {
            let both = STANDARD.encode(format!("{id}:{}", secret.0));
            call = call.secret("authorization", &format!("Basic {both}"));
        }
        self.ask(&format!("a token from {}", server.host()), call).await
    }

    async fn impersonate(&self, who: &Impersonation, own: &Token) -> Result<Token, RemoteError> {
        let life = format!("{}s", LIFE.as_secs());
        let body = json!({ "scope": [READ], "lifetime": life, "delegates": who.delegates });
        let call = Call::new(Method::POST, &who.url)
            .bearer(own.secret())
            .body("application/json", body.to_string());
        self.ask(&format!("a token to impersonate with, from {}", who.url.host()), call).await
    }

    async fn ask(&self, what: &str, call: Call) -> Result<Token, RemoteError> {
        let answer = self.0.document(Asked::Get, what, call).await?;
        token_json::token(&answer.body, SystemTime::now())
            .ok_or_else(|| lacks(what, "usable token"))
    }

    async fn foreign_token(&self, subject: &Subject) -> Result<Secret, RemoteError> {
        let (what, text) = match &subject.place {
            Place::File(path) => {
                ("credential_source".to_owned(), read_file(path, "credential_source").await?)
            }
            Place::Url { url, query, headers } => {
                let mut call = Call::new(Method::GET, url);
                if let Some(query) = query {
                    call = call.signed_query(&query.0);
                }
                for (name, value) in headers {
                    call = call.foreign_header(name, &value.0);
                }
                let what = format!("the credential_source {}", url.host());
                let answer = self.0.document(Asked::Get, &what, call).await?;
                (what, String::from_utf8_lossy(&answer.body).into_owned())
            }
        };
        let token = match &subject.field {
            None => Some(text.trim().to_owned()),
            Some(field) => serde_json::from_str::<Value>(&text)
                .ok()
                .and_then(|json| json[field].as_str().map(str::to_owned)),
        };
        let token = token.filter(|token| !token.is_empty());
        token.map(Secret).ok_or_else(|| lacks(&what, "token where it should be"))
    }
}

/// A claim to be `email`, signed with its key (RFC 7519, RS256).
fn signed_claim(
    email: &str,
    key: &Secret,
    key_id: Option<&str>,
    server: &BaseUrl,
    scope: &str,
) -> Result<String, RemoteError> {
    let unusable = || {
        let message = "its \"private_key\" is no RSA key; download the key file again";
        RemoteError::new(ErrorKind::Credentials, message)
    };
    let der = PrivatePkcs8KeyDer::from_pem_slice(key.0.as_bytes()).map_err(|_| unusable())?;
    let key = KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| unusable())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let head = json!({ "alg": "RS256", "typ": "JWT", "kid": key_id });
    let claim = json!({
        "iss": email,
        "scope": scope,
        "aud": server.as_str(),
        "iat": now.as_secs(),
        "exp": (now + LIFE).as_secs(),
    });
    let [head, claim] = [head, claim].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{head}.{claim}");
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
        .map_err(|_| unusable())?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// A form; its names are plain words.
fn encode(form: &[(&str, &str)]) -> String {
    let field = |(name, value): &(&str, &str)| {
        format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC))
    };
    form.iter().map(field).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_holds_any_text() {
        assert_eq!(encode(&[("a_b", "c&d=e f/é"), ("g", "")]), "a_b=c%26d%3De%20f%2F%C3%A9&g=");
    }
}
