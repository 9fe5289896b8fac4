//! Azure Blob Storage, through its REST API.
//!
//! Not by the official crates: `azure_storage_blob` brings an HTTP stack of its own, and
//! `azure_identity` reads the environment of the process, not of the caller, and runs
//! `az` by a shell. What is needed of them is less than what would adapt them.
//!
//! Requests name service version 2021-02-12, the oldest that lists names which XML
//! cannot hold: clouds on premises are years behind. `startFrom` is only in versions of
//! 2026, so a listing cannot begin after a key.
//!
//! Every GET names its version (`If-Match`) and its range. Snapshots, old versions and
//! deleted blobs are not listed, since nobody asks for them.
//!
//! <https://learn.microsoft.com/rest/api/storageservices/blob-service-rest-api>

mod connect;
mod connection_string;
mod credentials;
mod error;
mod identity;
mod listing;
mod shared_key;
mod xml;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderMap, Method};

pub(super) use self::connect::endpoint;
pub(super) use self::credentials::CREDENTIALS;
use self::credentials::signature_in;
use self::error::AZURE;
use self::listing::FOLDER_MARK;
use self::shared_key::SharedKey;
use super::answer::{Asked, lacks};
use super::base_url::BaseUrl;
use super::checksum::{Algorithm, Checksum};
use super::customer_key::CustomerKey;
use super::rest::{Call, Rest, header, last_modified, size};
use super::token::Tokens;
use super::{
    Capabilities, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote, RemoteError, RemoteId,
    Version, VersionGuard, ranged,
};

/// The version of the service's API that requests are made in.
const SERVICE_VERSION: &str = "2021-02-12";

/// Blobs of a page, if nobody says. The store has up to 5,000, a megabyte for each
/// thousand: fewer come sooner to who waits for the first, and take hardly longer in all.
const PAGE_BLOBS: u16 = 2_000;

/// Most that the store takes.
const PAGE_BLOBS_MAX: u16 = 5_000;

/// Most bytes of a page: that many blobs with 8 KiB of metadata, all that one can have,
/// and a long name each.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// A container.
#[derive(Clone, Debug)]
pub struct AzureRemote {
    id: RemoteId,
    account: String,
    container: String,
    endpoint: BaseUrl,
    rest: Rest,
    signer: Signer,
    /// <https://learn.microsoft.com/azure/storage/blobs/encryption-customer-provided-keys>
    customer_key: Option<CustomerKey>,
}

/// What requests are authorised by.
#[derive(Clone)]
enum Signer {
    Nobody,
    Key(SharedKey),
    /// A shared access signature, as the end of a query.
    Signature(Arc<str>),
    /// Of Entra ID; or signatures, from who renews them.
    Tokens(Tokens),
}

#[async_trait]
impl Remote for AzureRemote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { version_guard: VersionGuard::IfMatch, list_start_after: false }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = self.what("HEAD", &key.0);
        let request = |call| self.rest.document(Asked::Head, &what, call);
        let headers = self.authorised(self.blob(Method::HEAD, key), request).await?.headers;
        let size = size(&headers, &what)?;
        let is_folder = size == 0 && is_folder(&headers);
        Ok(ObjectMeta {
            key: if is_folder { Key(format!("{}/", key.0)) } else { key.clone() },
            size,
            version: version(&headers, &what)?,
            mtime: last_modified(&headers),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = self.what("LIST", &request.prefix);
        let most = request.max_keys.unwrap_or(PAGE_BLOBS).clamp(1, PAGE_BLOBS_MAX);
        let mut call = self
            .container(Method::GET)
            .query("restype", "container")
            .query("comp", "list")
            // It tells which blobs stand for folders.
            .query("include", "metadata")
            .query("maxresults", &most.to_string());
        if !request.prefix.is_empty() {
            call = call.query("prefix", &request.prefix);
        }
        if !request.recursive {
            call = call.query("delimiter", "/");
        }
        if let Some(marker) = &request.continuation {
            call = call.query("marker", marker);
        }
        let ask = |call| self.rest.document(Asked::List, &what, call);
        let answer = self.authorised(call.answer_up_to(PAGE_BYTES_MAX), ask).await?;
        listing::page(&answer.body, request.recursive, &what, AZURE.endpoint)
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let what = self.what("GET", &object.key.0);
        let call = self
            .blob(Method::GET, &object.key)
            .header("if-match", &format!("\"{}\"", object.version.0))
            .header("range", &ranged::header(&range, &what)?);
        let request = |call| self.rest.object(&what, call, &range);
        let answer = self.authorised(call, request).await?;
        let version = version(&answer.headers, &what)?;
        Ok(RangeBody { version, total_size: answer.total_size, body: answer.body })
    }

    /// The MD5 is the store's of a blob that was put at once, else of who wrote it.
    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let what = self.what("HEAD", &object.key.0);
        let call = self
            .blob(Method::HEAD, &object.key)
            .header("if-match", &format!("\"{}\"", object.version.0));
        let request = |call| self.rest.document(Asked::Head, &what, call);
        let headers = self.authorised(call, request).await?.headers;
        let md5 = header(&headers, "content-md5");
        Ok(md5.and_then(|md5| Checksum::of_base64(Algorithm::Md5, md5)))
    }
}

impl AzureRemote {
    /// What a message says was asked.
    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} az://{}/{}/{}", self.account, self.container, key.escape_debug())
    }

    fn container(&self, method: Method) -> Call {
        Call::new(method, &self.endpoint)
            .path("/")
            .path(&self.container)
            .header("x-ms-version", SERVICE_VERSION)
    }

    fn blob(&self, method: Method, key: &Key) -> Call {
        let call = self.container(method).path("/").path(&key.0);
        match &self.customer_key {
            Some(customer_key) => call
                .header("x-ms-encryption-algorithm", CustomerKey::ALGORITHM)
                .secret("x-ms-encryption-key", &customer_key.base64())
                .secret("x-ms-encryption-key-sha256", &customer_key.sha256()),
            None => call,
        }
    }

    /// Makes a request in the name of whom the container is mounted for.
    async fn authorised<T, F>(
        &self,
        call: Call,
        request: impl Fn(Call) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        match &self.signer {
            Signer::Nobody => request(call).await,
            Signer::Key(key) => request(key.sign(call, &self.endpoint)).await,
            Signer::Signature(signature) => request(call.signed_query(signature)).await,
            Signer::Tokens(tokens) => {
                let authorise = |secret: &str| match signature_in(secret) {
                    Some(signature) => call.clone().signed_query(signature),
                    None => call.clone().bearer(secret),
                };
                tokens.authorised(|token| request(authorise(token.secret()))).await
            }
        }
    }
}

fn version(headers: &HeaderMap, what: &str) -> Result<Version, RemoteError> {
    let etag = header(headers, "etag").filter(|etag| !etag.is_empty());
    etag.map(Version::from_etag).ok_or_else(|| lacks(what, "etag, so changes could not be told"))
}

/// Whether the blob stands for a folder: see [`listing`].
fn is_folder(headers: &HeaderMap) -> bool {
    let mark = header(headers, &format!("x-ms-meta-{FOLDER_MARK}"));
    mark.is_some_and(|mark| mark.eq_ignore_ascii_case("true"))
        || header(headers, "x-ms-resource-type") == Some("directory")
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signer::Nobody => "Nobody",
            Signer::Key(_) => "Key",
            Signer::Signature(_) => "Signature",
            Signer::Tokens(_) => "Tokens",
        })
    }
}
