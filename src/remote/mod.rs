//! Object stores: what a remote must answer, and what every remote shares.
//!
//! A remote makes one request and classifies its failure. Retrying, counting,
//! timeouts and the comparison of versions are the same for every store and
//! live in [`client::RemoteClient`]. Nothing here knows of chunks or inodes.

pub mod ais;
pub mod answer;
pub mod azure;
mod bandwidth;
pub mod base_url;
pub mod checksum;
pub mod client;
pub mod credentials;
mod customer_key;
mod download_cap;
pub mod endpoint;
pub mod error;
pub mod gate;
pub mod gcs;
mod hedge;
mod hook;
pub mod http;
mod latency;
pub mod later;
pub mod local;
mod login;
pub mod origin;
mod pace;
pub mod pages;
mod program;
mod range_reader;
pub mod ranged;
pub mod reach;
pub mod rest;
pub mod retry;
pub mod s3;
pub mod scripted;
mod settle;
pub mod token;
mod token_json;
pub mod uri;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};

use checksum::Checksum;
pub use error::{ErrorKind, RemoteError};
pub use uri::RemoteUri;

use crate::config::{CallerEnv, RemoteOptions};
use crate::metrics::RemoteMetrics;

/// Largest object that a store is believed to have, in bytes; S3's are 50 TB at
/// most. Offsets, counts of chunks and sums over a listing stay far from their
/// types' ends, whatever a store claims.
pub const OBJECT_BYTES_MAX: u64 = 1 << 46;

/// An object store, or a folder that plays one.
///
/// Implementations send exactly one request per call (following redirects the
/// protocol demands) and never retry by themselves.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug {
    /// Who this remote is: endpoint and bucket, without prefix or credentials.
    /// Cached data is shared between mounts with an equal identity.
    fn id(&self) -> &RemoteId;

    /// What this remote can do beyond the three requests.
    fn capabilities(&self) -> Capabilities;

    /// Whether an object may have to be fetched as a whole before its first byte is
    /// sent, however long that takes.
    fn fetches_first(&self) -> bool {
        false
    }

    /// Size, version and time of one object. Of a folder, where the store itself has
    /// such under this key, what it has for its marker: the key with a `/` at its end.
    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError>;

    /// One page of a listing.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError>;

    /// The bytes `range` of `object`, which must be the version it names.
    ///
    /// A remote whose guard is not [`VersionGuard::CompareResponse`] makes the
    /// store refuse another version ([`ErrorKind::Changed`]). The response's
    /// version and total size are reported either way and compared by the
    /// caller.
    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError>;

    /// What the store says that all bytes of `object` sum up to, if it says so of that
    /// version. It was computed where the object was written, or by whoever wrote it.
    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let _ = object;
        Ok(None)
    }
}

/// The identity of a remote, such as `s3://s3.amazonaws.com/bucket`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RemoteId(pub String);

/// An object's full name within its bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key(pub String);

/// What distinguishes two contents of one key: an etag without its quotes, a
/// generation, or a size and mtime.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub String);

/// Stands for a key that is not UTF-8, which can be listed but not asked for: what it
/// looks like, and a NUL, with which no path can name it. A prefix ends in `/` still.
fn not_utf8(key: &[u8]) -> String {
    let shown = String::from_utf8_lossy(key);
    match shown.strip_suffix('/') {
        Some(shown) => format!("{shown}\0/"),
        None => format!("{shown}\0"),
    }
}

impl Version {
    /// The version an HTTP etag names: weak marks and quotes are dropped,
    /// since stores disagree on them between LIST, HEAD and GET.
    pub fn from_etag(etag: &str) -> Self {
        let etag = etag.trim();
        let etag = etag.strip_prefix("W/").unwrap_or(etag);
        Version(etag.trim_matches('"').to_owned())
    }
}

/// One version of one object, as a store described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Full key.
    pub key: Key,
    /// Size in bytes.
    pub size: u64,
    /// Content version.
    pub version: Version,
    /// Last modification, as the store tells it.
    pub mtime: SystemTime,
}

/// How a remote keeps a range from belonging to another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VersionGuard {
    /// `If-Match` with the etag.
    IfMatch,
    /// The generation is part of the request.
    Generation,
    /// Objects never change.
    Immutable,
    /// The store cannot be asked; only the response tells.
    CompareResponse,
}

/// What differs between stores in a way that callers plan with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// How versions are held apart.
    pub version_guard: VersionGuard,
    /// Whether a listing can begin after a given key.
    pub list_start_after: bool,
}

/// One page's worth of listing, asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Keys begin with this. Empty for the whole bucket; else usually ends in `/`.
    pub prefix: String,
    /// Whether keys below a further `/` are listed themselves (`true`), or
    /// folded into [`ListPage::prefixes`] (`false`).
    pub recursive: bool,
    /// Only keys after this one, where [`Capabilities::list_start_after`].
    pub start_after: Option<String>,
    /// The [`ListPage::next`] of the page before.
    pub continuation: Option<String>,
    /// Most entries wanted in the page; `None` for the store's own bound.
    pub max_keys: Option<u16>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects, full keys.
    pub objects: Vec<ObjectMeta>,
    /// Common prefixes, full, each ending in `/`.
    pub prefixes: Vec<String>,
    /// The token for the next page, if there is one.
    pub next: Option<String>,
}

impl ListPage {
    /// Leaves out what is not after [`ListRequest::start_after`], for stores that begin
    /// with that key itself, or show the folder that it lies in.
    pub(crate) fn begin_after(&mut self, start: Option<&str>) {
        let Some(start) = start else { return };
        self.objects.retain(|object| object.key.0.as_str() > start);
        self.prefixes.retain(|prefix| prefix.as_str() > start);
    }
}

/// A response to a ranged GET, with its body still to come.
pub struct RangeBody {
    /// The version the bytes belong to.
    pub version: Version,
    /// The whole object's size in bytes.
    pub total_size: u64,
    /// The bytes, in order. May break off with an error at any point.
    pub body: BoxStream<'static, Result<Bytes, RemoteError>>,
}

impl fmt::Debug for RangeBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeBody")
            .field("version", &self.version)
            .field("total_size", &self.total_size)
            .finish_non_exhaustive()
    }
}

/// Opens the remote a URI names, with the caller's own credentials.
///
/// Whatever can be found out without a request for the prefix itself is found
/// out here: the region of a bucket, and whether requests are signed.
pub async fn connect(
    uri: &RemoteUri,
    options: &RemoteOptions,
    env: &CallerEnv,
    metrics: &Arc<RemoteMetrics>,
) -> Result<Arc<dyn Remote>, RemoteError> {
    let is_before_a_cloud = matches!(uri, RemoteUri::Ais { provider: Some(_), .. });
    if options.origin.is_some() && !is_before_a_cloud {
        return Err(no_origin());
    }
    let takes_key =
        options.origin.is_some() || !matches!(uri, RemoteUri::File { .. } | RemoteUri::Ais { .. });
    if options.customer_key_file.is_some() && !takes_key {
        let message = "--customer-key-file is for s3://, gs:// and az://; leave it out";
        return Err(RemoteError::new(ErrorKind::Invalid, message));
    }
    match uri {
        RemoteUri::S3 { bucket, .. } => {
            Ok(Arc::new(s3::S3Remote::connect(bucket, options, env, metrics).await?))
        }
        RemoteUri::File { path } => Ok(Arc::new(local::LocalRemote::open(path).await?)),
        RemoteUri::Gcs { bucket, .. } => {
            Ok(Arc::new(gcs::GcsRemote::connect(bucket, options, env, metrics).await?))
        }
        RemoteUri::Azure { account, container, .. } => Ok(Arc::new(
            azure::AzureRemote::connect(account, container, options, env, metrics).await?,
        )),
        RemoteUri::Ais { provider, bucket, .. } => {
            let cluster = ais::AisRemote::connect(*provider, bucket, options, env).await?;
            let Some(origin) = &options.origin else { return Ok(Arc::new(cluster)) };
            let of = (uri, origin.as_str());
            let both = origin::connect(Arc::new(cluster), of, options, env, metrics).await?;
            Ok(Arc::new(both))
        }
    }
}

/// For a URI whose objects are nowhere else.
fn no_origin() -> RemoteError {
    let message = "--origin is for a cloud bucket behind a cluster, ais://@PROVIDER/BUCKET";
    RemoteError::new(ErrorKind::Invalid, message)
}

/// Reads files of the machine, such as those with credentials, where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            let message = format!("disk I/O did not finish: {error}");
            Err(RemoteError::new(ErrorKind::Transient, message))
        }
    }
}
