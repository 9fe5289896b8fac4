//! The identity of a machine or a service in Azure, from the metadata service beside it.
//!
//! <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>
//! <https://learn.microsoft.com/azure/app-service/overview-managed-identity>

use async_trait::async_trait;
use http::Method;

use super::{RESOURCE, confidential, said, token};
use crate::config::CallerEnv;
use crate::remote::answer::{Asked, Dialect};
use crate::remote::base_url::BaseUrl;
use crate::remote::http::HttpClient;
use crate::remote::rest::{Call, Rest};
use crate::remote::token::{Token, TokenSource};
use crate::remote::{ErrorKind, RemoteError};

/// How metadata services say no.
static METADATA: Dialect = Dialect {
    server: "the metadata service",
    store: "a metadata service of Azure",
    bucket: "identity",
    endpoint: "this machine's network",
    credentials: "set AZURE_CLIENT_ID to one of them",
    kind: |refusal| match refusal.status {
        400 => Some(ErrorKind::Credentials),
        // That of another cloud.
        401..=405 => Some(ErrorKind::NotFound),
        _ => None,
    },
    next_step: |refusal| {
        (refusal.status == 400).then_some(
            "assign an identity to this machine, or set AZURE_CLIENT_ID to one that it has",
        )
    },
};

/// Where every machine of Azure finds it.
const METADATA_HOST: &str = "http://169.254.169.254";

/// The tokens of a machine or a service.
#[derive(Clone, Debug)]
pub(in crate::remote::azure) struct Managed {
    rest: Rest,
    what: String,
    question: Call,
    /// What the question needs besides to be answered.
    proof: (&'static str, String),
}

impl Managed {
    /// The machine's own identity, or the one that `AZURE_CLIENT_ID` names.
    pub(in crate::remote::azure) fn of_machine(
        http: HttpClient,
        env: &CallerEnv,
    ) -> Result<Managed, RemoteError> {
        const HOST: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
        let host = env.get(HOST).unwrap_or(METADATA_HOST);
        let host = BaseUrl::parse(HOST, host)?;
        let question = question(&host, "2018-02-01", env).path("/metadata/identity/oauth2/token");
        Ok(Managed {
            rest: Rest::new(http, &METADATA, said),
            what: format!("the token of this machine from {}", host.host()),
            question,
            proof: ("metadata", "true".to_owned()),
        })
    }

    /// The identity of an App Service, function or container app, if this is one.
    pub(in crate::remote::azure) fn of_service(
        http: HttpClient,
        env: &CallerEnv,
    ) -> Result<Option<Managed>, RemoteError> {
        const ENDPOINT: &str = "IDENTITY_ENDPOINT";
        let (Some(url), Some(header)) = (env.get(ENDPOINT), env.get("IDENTITY_HEADER")) else {
            return Ok(None);
        };
        let host = confidential(ENDPOINT, url)?;
        let question = question(&host, "2019-08-01", env);
        Ok(Some(Managed {
            rest: Rest::new(http, &METADATA, said),
            what: format!("the token of this service from {}", host.host()),
            question: if url.ends_with('/') { question.path("/") } else { question },
            proof: ("x-identity-header", header.to_owned()),
        }))
    }

    /// Whether there is such a service at all. Azure's refuses what does not say that it
    /// is meant; those of other clouds do not know the question.
    pub(in crate::remote::azure) async fn is_there(&self) -> Result<(), ()> {
        let answer = self.rest.document(Asked::Get, &self.what, self.question.clone()).await;
        match answer {
            Err(error) if error.kind == ErrorKind::Credentials => Ok(()),
            _ => Err(()),
        }
    }
}

fn question(host: &BaseUrl, version: &str, env: &CallerEnv) -> Call {
    let call =
        Call::new(Method::GET, host).query("api-version", version).query("resource", RESOURCE);
    match env.get("AZURE_CLIENT_ID") {
        Some(client) => call.query("client_id", client),
        None => call,
    }
}

#[async_trait]
impl TokenSource for Managed {
    async fn fetch(&self) -> Result<Token, RemoteError> {
        let (name, value) = &self.proof;
        let call = self.question.clone().secret(name, value);
        let answer = self.rest.document(Asked::Get, &self.what, call).await?;
        token(&answer.body, &self.what)
    }
}
