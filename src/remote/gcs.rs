//! Google Cloud Storage, through its JSON API.
//!
//! Bytes come through it too (`alt=media`), not through the XML API: both are equally
//! fast today, and here any key is one part of the path, which no proxy tidies up.
//!
//! Every GET names the generation, so that in a bucket with versions a file that was
//! listed can be read to its end although it was replaced. Without versions a replaced
//! generation is 404 like a deleted one; what it was is asked then, and only then.
//! Every GET takes gzip, or the store would unpack what is stored as gzip, and with it
//! ignore the range.
//!
//! <https://cloud.google.com/storage/docs/json_api/v1/objects>

mod answer;
mod connect;
mod credentials;

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use http::{HeaderMap, Method};

use self::answer::{Item, Listing, Sums, read};
pub(super) use self::connect::{endpoint, is_emulated};
pub(super) use self::credentials::{CREDENTIALS, has_login};
use super::answer::{Asked, lacks};
use super::base_url::BaseUrl;
use super::checksum::{Algorithm, Checksum};
use super::customer_key::CustomerKey;
use super::rest::{Call, Rest, header};
use super::token::Tokens;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId, Version, VersionGuard,
};
use crate::metrics::RemoteMetrics;

/// All that is wanted to know of an object. The creation of a generation is its
/// mtime: `updated` moves when somebody edits a label.
const OBJECT_FIELDS: &str = "size,generation,timeCreated";

/// The same of a listing, whose pages have a few hundred bytes more an object without.
const LIST_FIELDS: &str = "nextPageToken,prefixes,items(name,size,generation,timeCreated)";

/// A bucket.
#[derive(Clone, Debug)]
pub struct GcsRemote {
    id: RemoteId,
    bucket: String,
    endpoint: BaseUrl,
    rest: Rest,
    /// `None` for anonymous requests.
    tokens: Option<Tokens>,
    /// The project that pays.
    payer: Option<String>,
    /// <https://cloud.google.com/storage/docs/encryption/customer-supplied-keys>
    customer_key: Option<CustomerKey>,
    metrics: Arc<RemoteMetrics>,
}

#[async_trait]
impl Remote for GcsRemote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { version_guard: VersionGuard::Generation, list_start_after: true }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = self.what("HEAD", &key.0);
        let call = self.object(key).query("fields", OBJECT_FIELDS);
        let item: Item = self.document(Asked::Get, &what, call).await?;
        item.into_object(key.clone(), &what)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = self.what("LIST", &request.prefix);
        let mut call = self.call().query("fields", LIST_FIELDS).query("prettyPrint", "false");
        let max_keys = request.max_keys.map(|keys| keys.to_string());
        for (name, value) in [
            ("prefix", Some(&request.prefix).filter(|prefix| !prefix.is_empty())),
            ("startOffset", request.start_after.as_ref()),
            ("pageToken", request.continuation.as_ref()),
            ("maxResults", max_keys.as_ref()),
        ] {
            if let Some(value) = value {
                call = call.query(name, value);
            }
        }
        if !request.recursive {
            call = call.query("delimiter", "/");
        }
        let listing: Listing = self.document(Asked::List, &what, call).await?;
        let mut page = listing.into_page(&what)?;
        page.begin_after(request.start_after.as_deref());
        Ok(page)
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let what = self.what("GET", &object.key.0);
        let call = self
            .object(&object.key)
            .query("alt", "media")
            .query("generation", &object.version.0)
            .header("accept-encoding", "gzip");
        let request = |call| self.rest.object(&what, call, &range);
        let answer = match self.authorised(call, request).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Err(self.replaced(object, &what).await.unwrap_or(error));
            }
            answer => answer?,
        };
        check_stored_form(&answer.headers, &what)?;
        let generation = header(&answer.headers, "x-goog-generation");
        let version = generation.ok_or_else(|| lacks(&what, "generation"))?.to_owned();
        Ok(RangeBody {
            version: Version(version),
            total_size: answer.total_size,
            body: answer.body,
        })
    }

    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let what = self.what("HEAD", &object.key.0);
        let call = self
            .object(&object.key)
            .query("generation", &object.version.0)
            .query("fields", "crc32c");
        let sums: Sums = self.document(Asked::Get, &what, call).await?;
        Ok(sums.crc32c.and_then(|crc| Checksum::of_base64(Algorithm::Crc32c, &crc)))
    }
}

impl GcsRemote {
    /// What a message says was asked.
    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} gs://{}/{}", self.bucket, key.escape_debug())
    }

    /// A question about the bucket's objects.
    fn call(&self) -> Call {
        let call = Call::new(Method::GET, &self.endpoint)
            .path("/storage/v1/b")
            .segment(&self.bucket)
            .path("/o");
        match &self.payer {
            Some(project) => call.query("userProject", project),
            None => call,
        }
    }

    /// A question about one of them.
    fn object(&self, key: &Key) -> Call {
        let call = self.call().segment(&key.0);
        match &self.customer_key {
            Some(customer_key) => call
                .header("x-goog-encryption-algorithm", CustomerKey::ALGORITHM)
                .secret("x-goog-encryption-key", &customer_key.base64())
                .secret("x-goog-encryption-key-sha256", &customer_key.sha256()),
            None => call,
        }
    }

    async fn document<T: serde::de::DeserializeOwned>(
        &self,
        asked: Asked,
        what: &str,
        call: Call,
    ) -> Result<T, RemoteError> {
        let request = |call| self.rest.document(asked, what, call);
        let answer = self.authorised(call, request).await?;
        read(&answer.body, asked, what)
    }

    async fn authorised<T, F>(
        &self,
        call: Call,
        request: impl Fn(Call) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let Some(tokens) = &self.tokens else { return request(call).await };
        tokens.authorised(|token| request(call.clone().bearer(token.secret()))).await
    }

    /// The generation of `object` is gone: the error to report if that is because
    /// there is another one now.
    async fn replaced(&self, object: &ObjectMeta, what: &str) -> Option<RemoteError> {
        let metrics = &self.metrics.head;
        metrics.requests.add(1);
        let sent = Instant::now();
        let head = self.head(&object.key).await;
        if head.as_ref().err().is_none_or(|error| error.kind == ErrorKind::NotFound) {
            metrics.answered.observe(sent.elapsed());
        }
        match head {
            Ok(now) if now.version != object.version => {
                let (then, now) = (&object.version.0, &now.version.0);
                let message = format!("{what}: generation {then} was replaced by {now}");
                Some(RemoteError::new(ErrorKind::Changed, message))
            }
            Ok(_) => None,
            Err(error) if error.kind == ErrorKind::NotFound => None,
            Err(error) => {
                metrics.errors.add(error.kind.reason());
                Some(error)
            }
        }
    }
}

/// Sees that the bytes of an answer are those that are stored: what was unpacked, or
/// packed on the way, has other offsets than the listing's size is about.
fn check_stored_form(headers: &HeaderMap, what: &str) -> Result<(), RemoteError> {
    let encoding = |name| header(headers, name).unwrap_or("identity");
    let (stored, sent) = (encoding("x-goog-stored-content-encoding"), encoding("content-encoding"));
    if stored == sent {
        return Ok(());
    }
    let message = format!(
        "{what}: it is stored as {stored} and was sent as {sent}; check --endpoint-url and the \
         proxies on the way"
    );
    Err(RemoteError::new(ErrorKind::Invalid, message))
}
