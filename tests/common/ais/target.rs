//! A target: serves objects, and keeps what it fetched from the cloud.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use http::response::Builder;
use http::{Method, Response, StatusCode};
use tokio::sync::OnceCell;

use super::Shared;
use super::faults::Trouble;
use super::log::Kind;
use super::objects::{Bucket, Meta, OWN, Object};
use super::redirect::{self, Seen};
use super::server::Answers;
use super::wire::{self, Asked, Body, Refusal, Resource};

/// One target.
pub(super) struct Target {
    id: String,
    address: SocketAddr,
    shared: Arc<Shared>,
    /// A cell is empty while its object is on its way.
    cache: Mutex<HashMap<(Bucket, String), Cell>>,
    seen: Seen,
    stopped: AtomicBool,
}

type Cell = Arc<OnceCell<Arc<Object>>>;

impl Target {
    pub(super) fn new(id: String, address: SocketAddr, shared: Arc<Shared>) -> Target {
        let (cache, seen, stopped) = Default::default();
        Target { id, address, shared, cache, seen, stopped }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.cache.lock().unwrap().clear();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// A cloud object, if it is here.
    pub(super) fn cached(&self, bucket: &Bucket, name: &str) -> Option<Arc<Object>> {
        let key = (bucket.clone(), name.to_owned());
        self.cache.lock().unwrap().get(&key)?.get().cloned()
    }

    /// A cloud object, fetched as a whole if it is not here: once, however many
    /// ask, and to the end, even if they all go away.
    pub(super) async fn fetch(&self, bucket: &Bucket, name: &str) -> Result<Arc<Object>, Refusal> {
        let origin = self.shared.origin_of(bucket)?.clone();
        let key = (bucket.clone(), name.to_owned());
        let cell = Arc::clone(self.cache.lock().unwrap().entry(key).or_default());
        let (bucket, name) = (bucket.name.clone(), name.to_owned());
        let fetching = tokio::spawn(async move {
            let fetch = async || Ok(Arc::new(origin.get(&bucket, &name).await?));
            cell.get_or_try_init(fetch).await.cloned()
        });
        fetching.await.unwrap_or_else(|error| {
            Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
        })
    }

    /// Drops what is cached if the cloud has it no longer, or another version.
    async fn compare_with_cloud(&self, bucket: &Bucket, name: &str) -> Result<(), Refusal> {
        let Some(cached) = self.cached(bucket, name) else { return Ok(()) };
        match self.shared.origin_of(bucket)?.head(&bucket.name, name).await {
            Ok(meta) => {
                if meta.etag != cached.meta.etag {
                    self.drop_cached(bucket, name, &cached);
                }
                Ok(())
            }
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => {
                self.drop_cached(bucket, name, &cached);
                Err(Refusal::new(StatusCode::GONE, format!("{bucket}/{name} was removed")))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Drops this version; a newer one may have taken its place meanwhile.
    fn drop_cached(&self, bucket: &Bucket, name: &str, version: &Arc<Object>) {
        let key = (bucket.clone(), name.to_owned());
        let mut cache = self.cache.lock().unwrap();
        let there = cache.get(&key).and_then(|cell| cell.get());
        if there.is_some_and(|there| Arc::ptr_eq(there, version)) {
            cache.remove(&key);
        }
    }

    async fn object(
        &self,
        asked: &Asked,
        bucket: &Bucket,
        name: &str,
    ) -> Result<Arc<Object>, Refusal> {
        if bucket.provider == OWN {
            let object = self.shared.own.get(&bucket.name, name);
            return object.ok_or_else(|| Refusal::no_such_object(bucket, name));
        }
        if wants_latest(asked) {
            self.compare_with_cloud(bucket, name).await?;
        }
        self.fetch(bucket, name).await
    }

    /// What is known of an object, and whether it is in the cluster. `presence=3`
    /// asks the cluster only, `presence=0` the cloud behind it too.
    async fn meta(
        &self,
        asked: &Asked,
        bucket: &Bucket,
        name: &str,
    ) -> Result<(Meta, bool), Refusal> {
        let only_here = match asked.param("presence").as_deref() {
            Some("0") => false,
            Some("3") => true,
            presence => return Err(Refusal::bad_request(format!("presence {presence:?}"))),
        };
        if bucket.provider == OWN {
            return Ok((self.object(asked, bucket, name).await?.meta.clone(), true));
        }
        if wants_latest(asked) {
            self.compare_with_cloud(bucket, name).await?;
        }
        if let Some(cached) = self.cached(bucket, name) {
            return Ok((cached.meta.clone(), true));
        }
        if only_here {
            return Err(Refusal::no_such_object(bucket, name));
        }
        Ok((self.shared.origin_of(bucket)?.head(&bucket.name, name).await?, false))
    }

    async fn carry_out(&self, asked: &Asked) -> Result<Response<Body>, Refusal> {
        let Resource::Object(bucket, name) = asked.resource() else {
            return Err(Refusal::not_found("targets have objects only"));
        };
        let kind = match asked.method {
            Method::GET => Kind::TargetGet,
            Method::HEAD => Kind::TargetHead,
            _ => Kind::Other,
        };
        self.shared.log.arrived(kind, &bucket, &name, asked.range());
        if asked.header(header::AUTHORIZATION).is_some() {
            return Err(Refusal::bad_request("the bearer token is for the proxy, not for targets"));
        }
        self.seen.check(&self.id, &asked.method, &asked.target)?;
        let bucket = asked.bucket(&bucket)?;
        let trouble = self.shared.faults.meet(kind, &name).await;
        if let Some(refusal) = trouble.as_ref().and_then(Refusal::of) {
            return Err(refusal);
        }
        if matches!(trouble, Some(Trouble::RedirectLoop)) {
            return Ok(redirect::answer(self, asked));
        }
        if kind == Kind::TargetHead {
            let (meta, present) = self.meta(asked, &bucket, &name).await?;
            return Ok(headers_of(&meta, present)
                .header(header::CONTENT_LENGTH, meta.size)
                .body(wire::whole(Bytes::new()))
                .unwrap());
        }
        let object = self.object(asked, &bucket, &name).await?;
        let range = wire::parse_range(asked.range(), object.meta.size)?;
        Ok(content(&object, range, trouble))
    }
}

#[async_trait]
impl Answers for Target {
    async fn answer(&self, asked: Asked) -> Response<Body> {
        self.carry_out(&asked).await.unwrap_or_else(|refusal| asked.refuse(&refusal))
    }
}

fn wants_latest(asked: &Asked) -> bool {
    asked.param("latest-ver").as_deref() == Some("true")
}

/// All headers of an object but those of its body.
fn headers_of(meta: &Meta, present: bool) -> Builder {
    let mut answer = Response::builder()
        .header("ais-present", present.to_string())
        .header("ais-atime", "0")
        .header(header::ETAG, format!("\"{}\"", meta.etag))
        .header(header::LAST_MODIFIED, httpdate::fmt_http_date(meta.modified));
    if let Some(version) = &meta.version {
        answer = answer.header("ais-version", version);
    }
    if let Some(crc32c) = &meta.crc32c {
        answer = answer.header("ais-checksum-type", "crc32c").header("ais-checksum-value", crc32c);
        answer = answer.header("ais-custom-md", format!("crc32c={crc32c}"));
    }
    for (name, value) in meta.custom() {
        answer = answer.header("ais-custom-md", format!("{name}={value}"));
    }
    answer
}

fn content(object: &Object, range: Option<(u64, u64)>, trouble: Option<Trouble>) -> Response<Body> {
    let mut answer = headers_of(&object.meta, true);
    let size = object.meta.size;
    let (first, end) = range.unwrap_or((0, size));
    if range.is_some() {
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {first}-{}/{size}", end - 1));
    }
    let bytes = object.body.slice(first as usize..end as usize);
    let answer = answer.header(header::CONTENT_LENGTH, bytes.len());
    let body = match trouble {
        Some(Trouble::ResetAfter(sent)) => wire::broken(&bytes, sent, true),
        Some(Trouble::StallAfter(sent)) => wire::broken(&bytes, sent, false),
        _ => wire::whole(bytes),
    };
    answer.body(body).unwrap()
}
