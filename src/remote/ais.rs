//! A bucket of an AIStore cluster, by the cluster's own HTTP API as of version 5.0
//! (`docs/http_api.md` of NVIDIA/aistore): one of its own, or a cloud bucket that it
//! stands before and keeps copies of.
//!
//! Any proxy of the cluster answers listings. For an object it redirects to the
//! target that has it, or fetches it from the cloud now; the `Location` may be
//! signed, and is used once and as it stands. The token is the proxy's alone.
//!
//! The cluster cannot be asked for a version, so the answer tells which one it is
//! ([`VersionGuard::CompareResponse`]). What a version is, is decided in [`version`],
//! once for listings, HEAD and GET. The copy of a cloud object may be older than what
//! the cloud lists: HEAD has the cluster compare them, and so does a second GET where
//! the first one brought another version.

mod access;
mod listing;
mod version;

use std::ops::Range;

use async_trait::async_trait;
use http::Method;
use serde_json::json;

pub(super) use self::access::{CREDENTIALS, TLS, endpoint};
use super::answer::Asked;
use super::base_url::BaseUrl;
use super::checksum::{Algorithm, Checksum};
use super::origin::Cluster;
use super::rest::{self, Call, Document, Rest, header};
use super::token::Tokens;
use super::uri::AisProvider;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId, VersionGuard,
};

/// What HEAD is to look at: objects that are in the cluster, or in the cloud.
const ANYWHERE: &str = "0";

/// The same for objects that are in the cluster as a whole.
const IN_CLUSTER: &str = "3";

/// A bucket.
#[derive(Clone, Debug)]
pub struct AisRemote {
    id: RemoteId,
    provider: Option<AisProvider>,
    bucket: String,
    endpoint: BaseUrl,
    rest: Rest,
    /// None where no token was given.
    tokens: Option<Tokens>,
}

#[async_trait]
impl Remote for AisRemote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            version_guard: VersionGuard::CompareResponse,
            list_start_after: !self.is_of_a_cloud(),
        }
    }

    /// A cold object is in the cluster as a whole before its first byte is sent.
    fn fetches_first(&self) -> bool {
        self.is_of_a_cloud()
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = self.what("HEAD", &key.0);
        let mut call = self.object(Method::HEAD, key).query("presence", ANYWHERE);
        if self.is_of_a_cloud() {
            call = call.query("latest-ver", "true");
        }
        let headers = self.document(Asked::Head, &what, call).await?.headers;
        Ok(ObjectMeta {
            key: key.clone(),
            size: rest::size(&headers, &what)?,
            version: version::of_answer(&headers, self.is_of_a_cloud(), &what)?,
            mtime: version::modified(&headers),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = self.what("LIST", &request.prefix);
        let body = listing::body(request, self.is_of_a_cloud(), &what)?;
        let call = self
            .call(Method::GET, "/v1/buckets/")
            .header("accept", "application/json")
            .body("application/json", body);
        let answer = self.document(Asked::List, &what, call).await?;
        listing::page(&answer.body, request, self.is_of_a_cloud(), &what)
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let what = self.what("GET", &object.key.0);
        let call = self.object(Method::GET, &object.key);
        let answer = self.get(&what, call.clone(), &range).await?;
        if answer.version == object.version || !self.is_of_a_cloud() {
            return Ok(answer);
        }
        // Whichever of the two is older: this makes it the cloud's.
        self.get(&what, call.query("latest-ver", "true"), &range).await
    }

    /// Of the copy that the cluster has. What it computes by default (xxhash) is nobody
    /// else's.
    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let what = self.what("HEAD", &object.key.0);
        let call = self.object(Method::HEAD, &object.key).query("presence", ANYWHERE);
        let headers = self.document(Asked::Head, &what, call).await?.headers;
        if version::of_answer(&headers, self.is_of_a_cloud(), &what)? != object.version {
            return Ok(None);
        }
        let algorithm = match header(&headers, "ais-checksum-type") {
            Some("crc32c") => Algorithm::Crc32c,
            Some("md5") => Algorithm::Md5,
            Some("sha256") => Algorithm::Sha256,
            _ => return Ok(None),
        };
        let value = header(&headers, "ais-checksum-value");
        Ok(value.and_then(|value| Checksum::of_hex(algorithm, value)))
    }
}

#[async_trait]
impl Cluster for AisRemote {
    async fn holds(&self, key: &Key) -> Result<bool, RemoteError> {
        let what = self.what("HEAD", &key.0);
        let call = self.object(Method::HEAD, key).query("presence", IN_CLUSTER);
        match self.document(Asked::Head, &what, call).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn prefetch(&self, key: &Key) -> Result<(), RemoteError> {
        let what = self.what("PREFETCH", &key.0);
        let value = json!({ "objnames": [key.0], "num-workers": 0 });
        let body = json!({ "action": "prefetch-listrange", "value": value }).to_string();
        let call = self.call(Method::POST, "/v1/buckets/").body("application/json", body);
        self.document(Asked::Get, &what, call).await.map(drop)
    }
}

impl AisRemote {
    /// Whether the cluster keeps copies of a cloud's objects.
    fn is_of_a_cloud(&self) -> bool {
        self.provider.is_some()
    }

    /// A request about the bucket, below one of the API's two paths.
    fn call(&self, method: Method, path: &str) -> Call {
        let provider = self.provider.map_or("ais", AisProvider::as_str);
        Call::new(method, &self.endpoint)
            .path(path)
            .path(&self.bucket)
            .query("provider", provider)
            .following_redirects()
    }

    /// A request about an object.
    fn object(&self, method: Method, key: &Key) -> Call {
        self.call(method, "/v1/objects/").path("/").path(&key.0)
    }

    async fn document(
        &self,
        asked: Asked,
        what: &str,
        call: Call,
    ) -> Result<Document, RemoteError> {
        self.authorised(call, |call| self.rest.document(asked, what, call)).await
    }

    async fn get(
        &self,
        what: &str,
        call: Call,
        range: &Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let answer = self.authorised(call, |call| self.rest.object(what, call, range)).await?;
        Ok(RangeBody {
            version: version::of_answer(&answer.headers, self.is_of_a_cloud(), what)?,
            total_size: answer.total_size,
            body: answer.body,
        })
    }

    /// Asks with the token, if there is one.
    async fn authorised<T, F: Future<Output = Result<T, RemoteError>>>(
        &self,
        call: Call,
        ask: impl Fn(Call) -> F,
    ) -> Result<T, RemoteError> {
        match &self.tokens {
            None => ask(call).await,
            Some(tokens) => {
                tokens.authorised(|token| ask(call.clone().bearer(token.secret()))).await
            }
        }
    }

    /// What a message says was asked.
    fn what(&self, verb: &str, key: &str) -> String {
        let bucket = bucket_path(self.provider, &self.bucket);
        format!("{verb} ais://{bucket}/{}", key.escape_debug())
    }
}

/// A bucket as its users write it, after `ais://`.
fn bucket_path(provider: Option<AisProvider>, bucket: &str) -> String {
    match provider {
        Some(provider) => format!("@{}/{bucket}", provider.as_str()),
        None => bucket.to_owned(),
    }
}
