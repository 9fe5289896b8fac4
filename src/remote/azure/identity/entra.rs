//! An application that proves itself to Entra ID: by its secret, or by a token of the
//! cluster that it runs in (workload identity).
//!
//! <https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow>

use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{RESOURCE, said, token};
use crate::remote::answer::{Asked, Dialect, Refusal};
use crate::remote::base_url::BaseUrl;
use crate::remote::http::HttpClient;
use crate::remote::rest::{Call, Rest};
use crate::remote::token::{Token, TokenSource};
use crate::remote::{ErrorKind, RemoteError};

/// How Entra ID says no.
static ENTRA: Dialect = Dialect {
    server: "the token server",
    store: "Entra ID",
    bucket: "tenant",
    endpoint: "AZURE_AUTHORITY_HOST",
    credentials: "check AZURE_TENANT_ID and AZURE_CLIENT_ID",
    kind: |refusal| (400..=404).contains(&refusal.status).then_some(ErrorKind::Credentials),
    next_step,
};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Who an application is, and to whom.
#[derive(Clone, Debug)]
pub(in crate::remote::azure) struct Authority {
    pub(in crate::remote::azure) host: BaseUrl,
    pub(in crate::remote::azure) tenant: String,
    pub(in crate::remote::azure) client: String,
}

/// How it proves that.
pub(in crate::remote::azure) enum Proof {
    /// By a secret that both know.
    Secret(String),
    /// By what is in a file that somebody keeps new.
    TokenFile(PathBuf),
}

/// The tokens of an application.
#[derive(Debug)]
pub(in crate::remote::azure) struct Entra {
    rest: Rest,
    authority: Authority,
    proof: Proof,
}

impl Entra {
    pub(in crate::remote::azure) fn new(
        http: HttpClient,
        authority: Authority,
        proof: Proof,
    ) -> Entra {
        Entra { rest: Rest::new(http, &ENTRA, said), authority, proof }
    }

    async fn form(&self) -> Result<String, RemoteError> {
        let scope = format!("{RESOURCE}/.default");
        let mut fields = vec![
            ("grant_type", "client_credentials"),
            ("scope", &scope),
            ("client_id", &self.authority.client),
        ];
        let assertion;
        match &self.proof {
            Proof::Secret(secret) => fields.push(("client_secret", secret)),
            Proof::TokenFile(path) => {
                assertion = tokio::fs::read_to_string(path).await.map_err(|error| {
                    let path = path.display();
                    let message = format!("AZURE_FEDERATED_TOKEN_FILE: {path}: {error}");
                    RemoteError::new(ErrorKind::Credentials, message)
                })?;
                fields.push(("client_assertion_type", ASSERTION_TYPE));
                fields.push(("client_assertion", assertion.trim()));
            }
        }
        let encode = |value| utf8_percent_encode(value, NON_ALPHANUMERIC);
        let fields = fields.iter().map(|(name, value)| format!("{name}={}", encode(value)));
        Ok(fields.collect::<Vec<_>>().join("&"))
    }
}

#[async_trait]
impl TokenSource for Entra {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let Authority { host, tenant, client } = &self.authority;
        let what = format!("the token of client {client} in tenant {tenant}");
        let what = format!("{} from {}", what.escape_debug(), host.host());
        let call = Call::new(Method::POST, host)
            .segment(tenant)
            .path("/oauth2/v2.0/token")
            .body("application/x-www-form-urlencoded", self.form().await?);
        let answer = self.rest.document(Asked::Get, &what, call).await?;
        token(&answer.body, &what)
    }
}

fn next_step(refusal: &Refusal<'_>) -> Option<&'static str> {
    Some(match refusal.said? {
        "AADSTS7000215" => {
            "AZURE_CLIENT_SECRET is not this client's secret; set its value, not its id"
        }
        "AADSTS7000222" => {
            "the client's secret has expired; make a new one for AZURE_CLIENT_SECRET"
        }
        "AADSTS700016" => {
            "the tenant has no such client; check AZURE_CLIENT_ID and AZURE_TENANT_ID"
        }
        "AADSTS90002" | "AADSTS900023" => "there is no such tenant; check AZURE_TENANT_ID",
        "AADSTS700024" => "the token in AZURE_FEDERATED_TOKEN_FILE has expired; have it renewed",
        "AADSTS70021" | "AADSTS700211" | "AADSTS700212" | "AADSTS700213" => {
            "the client trusts no such token; check the subject, issuer and audience of its \
             federated credential"
        }
        _ => return None,
    })
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proof::Secret(_) => "Secret",
            Proof::TokenFile(_) => "TokenFile",
        })
    }
}
