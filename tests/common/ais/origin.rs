//! The cloud behind the cluster: what it is asked, and one spoken to as S3.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::faults::Faults;
use super::log::{Kind, Log};
use super::objects::{Listed, Meta, Object, Page, crc32c_of};
use super::wire::Refusal;

/// What stands behind the cloud buckets of a cluster.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// At most `max` entries below `prefix`, from `token` on (empty: from the
    /// start). `folded`: what has a `/` after the prefix is one folder.
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        folded: bool,
        token: &str,
        max: usize,
    ) -> Result<OriginPage, BackendError>;

    /// What is known of an object.
    async fn head(&self, bucket: &str, name: &str) -> Result<Meta, BackendError>;

    /// A whole object.
    async fn get(&self, bucket: &str, name: &str) -> Result<Object, BackendError>;
}

/// A page of a listing.
#[derive(Clone, Debug, Default)]
pub struct OriginPage {
    /// Names and what is known of them.
    pub objects: Vec<(String, Meta)>,
    /// Each ends in `/`.
    pub folders: Vec<String>,
    /// Empty at the end.
    pub next: String,
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub enum BackendError {
    /// The origin said so.
    Status(u16),
    /// It said nothing that could be understood.
    Failed(String),
}

/// The origin, its requests counted.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) provider: String,
    backend: Arc<dyn Backend>,
    log: Arc<Log>,
    faults: Arc<Faults>,
}

impl Origin {
    pub(super) fn new(
        provider: String,
        backend: Arc<dyn Backend>,
        log: Arc<Log>,
        faults: Arc<Faults>,
    ) -> Origin {
        Origin { provider, backend, log, faults }
    }

    pub(super) async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        folded: bool,
        token: &str,
        max: usize,
    ) -> Result<Page, Refusal> {
        self.arrived(Kind::OriginList, bucket, prefix).await?;
        let page = self.backend.list(bucket, prefix, folded, token, max).await?;
        let objects = page.objects.into_iter().map(|(name, meta)| Listed::Object(name, meta));
        let mut entries: Vec<_> =
            objects.chain(page.folders.into_iter().map(Listed::Folder)).collect();
        entries.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(Page { entries, next: page.next })
    }

    pub(super) async fn head(&self, bucket: &str, name: &str) -> Result<Meta, Refusal> {
        self.arrived(Kind::OriginHead, bucket, name).await?;
        Ok(self.backend.head(bucket, name).await?)
    }

    pub(super) async fn get(&self, bucket: &str, name: &str) -> Result<Object, Refusal> {
        self.arrived(Kind::OriginGet, bucket, name).await?;
        Ok(self.backend.get(bucket, name).await?)
    }

    async fn arrived(&self, kind: Kind, bucket: &str, name: &str) -> Result<(), Refusal> {
        self.log.arrived(kind, bucket, name, "");
        let trouble = self.faults.meet(kind, name).await;
        trouble.as_ref().and_then(Refusal::of).map_or(Ok(()), Err)
    }
}

impl From<BackendError> for Refusal {
    fn from(error: BackendError) -> Refusal {
        match error {
            BackendError::Status(status @ (403 | 404 | 429 | 503)) => {
                let status = StatusCode::from_u16(status).unwrap();
                Refusal::new(status, "the cloud behind the cluster says so")
            }
            error => Refusal::new(StatusCode::BAD_GATEWAY, format!("the cloud: {error:?}")),
        }
    }
}

/// A server of the S3 protocol that checks no signature: moto, or the embedded
/// store.
#[derive(Clone, Debug)]
pub struct S3Origin {
    endpoint: String,
    client: Client<HttpConnector, Empty<Bytes>>,
}

/// moto serves objects to nobody who does not sign, and does not look at how.
const UNCHECKED_SIGNATURE: &str = "AWS4-HMAC-SHA256 \
     Credential=test/20260801/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// What may stand unescaped in a path.
const IN_PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl S3Origin {
    /// The server at `endpoint`, such as `http://127.0.0.1:41234`.
    pub fn new(endpoint: &str) -> S3Origin {
        let client = Client::builder(TokioExecutor::new()).build_http();
        S3Origin { endpoint: endpoint.to_owned(), client }
    }

    async fn ask(&self, method: Method, target: &str) -> Result<(HeaderMap, Bytes), BackendError> {
        let failed = |error: String| BackendError::Failed(error);
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{target}", self.endpoint))
            .header(header::AUTHORIZATION, UNCHECKED_SIGNATURE)
            .body(Empty::new())
            .map_err(|error| failed(error.to_string()))?;
        let response =
            self.client.request(request).await.map_err(|error| failed(error.to_string()))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| failed(error.to_string()))?.to_bytes();
        match parts.status {
            StatusCode::OK => Ok((parts.headers, body)),
            status => Err(BackendError::Status(status.as_u16())),
        }
    }
}

#[async_trait]
impl Backend for S3Origin {
    async fn list(
        &self,
        bucket: &str,
        prefix: &str,
        folded: bool,
        token: &str,
        max: usize,
    ) -> Result<OriginPage, BackendError> {
        let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
        let mut target = format!(
            "/{bucket}?list-type=2&encoding-type=url&max-keys={max}&prefix={}",
            encode(prefix)
        );
        if folded {
            target.push_str("&delimiter=%2F");
        }
        if !token.is_empty() {
            target.push_str(&format!("&continuation-token={}", encode(token)));
        }
        let (_, body) = self.ask(Method::GET, &target).await?;
        let xml = String::from_utf8_lossy(&body);
        parse_listing(&xml).ok_or_else(|| BackendError::Failed(format!("listing: {xml}")))
    }

    async fn head(&self, bucket: &str, name: &str) -> Result<Meta, BackendError> {
        let (headers, _) = self.ask(Method::HEAD, &path(bucket, name)).await?;
        meta_of(&headers).ok_or_else(|| BackendError::Failed(format!("headers: {headers:?}")))
    }

    async fn get(&self, bucket: &str, name: &str) -> Result<Object, BackendError> {
        let (headers, body) = self.ask(Method::GET, &path(bucket, name)).await?;
        let mut meta = meta_of(&headers)
            .ok_or_else(|| BackendError::Failed(format!("headers: {headers:?}")))?;
        meta.crc32c = Some(crc32c_of(&body));
        Ok(Object { meta, body })
    }
}

fn path(bucket: &str, name: &str) -> String {
    format!("/{bucket}/{}", utf8_percent_encode(name, IN_PATH))
}

fn meta_of(headers: &HeaderMap) -> Option<Meta> {
    let text = |name| headers.get(name)?.to_str().ok();
    Some(Meta {
        size: text(header::CONTENT_LENGTH)?.parse().ok()?,
        etag: text(header::ETAG)?.trim_matches('"').to_owned(),
        modified: httpdate::parse_http_date(text(header::LAST_MODIFIED)?).ok()?,
        version: None,
        crc32c: None,
    })
}

/// As much of S3's XML as a listing needs; names in it are URL-encoded.
fn parse_listing(xml: &str) -> Option<OriginPage> {
    let listing = elements(xml, "ListBucketResult").next()?;
    let mut page = OriginPage::default();
    for contents in elements(listing, "Contents") {
        let text = |tag| elements(contents, tag).next();
        let modified = text("LastModified")?;
        let modified = aws_smithy_types::DateTime::from_str(
            modified,
            aws_smithy_types::date_time::Format::DateTime,
        );
        let meta = Meta {
            size: text("Size")?.parse().ok()?,
            etag: unescape(text("ETag")?).trim_matches('"').to_owned(),
            modified: modified.ok()?.try_into().ok()?,
            version: None,
            crc32c: None,
        };
        page.objects.push((decode(text("Key")?), meta));
    }
    for folder in elements(listing, "CommonPrefixes") {
        page.folders.push(decode(elements(folder, "Prefix").next()?));
    }
    page.next = elements(listing, "NextContinuationToken").next().map(unescape).unwrap_or_default();
    Some(page)
}

/// What stands between each `<tag …>` and `</tag>`.
fn elements<'a>(xml: &'a str, tag: &str) -> impl Iterator<Item = &'a str> {
    let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
    let mut rest = xml;
    std::iter::from_fn(move || {
        loop {
            let after = &rest[rest.find(&open)? + open.len()..];
            let (attributes, content) = after.split_once('>')?;
            rest = content;
            // Not the beginning of a longer tag's name.
            if attributes.is_empty() || attributes.starts_with(' ') {
                let (content, after) = content.split_once(&close)?;
                rest = after;
                return Some(content);
            }
        }
    })
}

fn decode(name: &str) -> String {
    let name = unescape(name).replace('+', " ");
    percent_decode_str(&name).decode_utf8_lossy().into_owned()
}

fn unescape(text: &str) -> String {
    let pairs = [("&quot;", "\""), ("&#34;", "\""), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}
