//! The proxy: knows buckets, lists them, and leads to targets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use http::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::Shared;
use super::faults::Trouble;
use super::listing::{Listings, PageQuery};
use super::log::Kind;
use super::objects::{Bucket, Listed, OWN};
use super::redirect;
use super::server::Answers;
use super::target::Target;
use super::wire::{self, Asked, Body, Refusal, Resource};

/// Objects of one prefetch that are fetched at once where it says 0 (`num-workers`).
const PREFETCH_WORKERS: usize = 4;

/// The only proxy of the cluster.
pub(super) struct Proxy {
    shared: Arc<Shared>,
    /// The targets, as far as the proxy knows.
    members: Mutex<Vec<Arc<Target>>>,
    listings: Listings,
    jobs: AtomicU64,
}

impl Proxy {
    pub(super) fn new(shared: Arc<Shared>, members: Vec<Arc<Target>>) -> Proxy {
        let (listings, jobs) = Default::default();
        Proxy { shared, members: Mutex::new(members), listings, jobs }
    }

    /// The target that has an object, or would have it.
    pub(super) fn place(&self, bucket: &Bucket, name: &str) -> Option<Arc<Target>> {
        let members = self.members.lock().unwrap();
        members.iter().max_by_key(|target| redirect::weight(target.id(), bucket, name)).cloned()
    }

    /// From now on the others have its objects.
    pub(super) fn forget(&self, gone: &Arc<Target>) {
        self.members.lock().unwrap().retain(|target| !Arc::ptr_eq(target, gone));
    }

    fn lead(&self, asked: &Asked, bucket: &Bucket, name: &str) -> Result<Response<Body>, Refusal> {
        let target = self.place(bucket, name).ok_or_else(no_targets)?;
        if target.is_stopped() && self.shared.options.notices_stops {
            self.forget(&target);
        }
        Ok(redirect::answer(&target, asked))
    }

    async fn list(&self, bucket: Bucket, value: &Value) -> Result<Response<Body>, Refusal> {
        let asked = PageQuery::parse(bucket, value)?;
        let uuid = self.listings.uuid(&asked)?;
        let (query, options) = (&asked.query, &self.shared.options);
        let Bucket { provider, name } = &query.bucket;
        let (prefix, folded) = (&query.prefix, query.folded());
        let page = if provider == OWN {
            let max = asked.entries_max(options.own_page_max);
            self.shared.own.page(name, prefix, folded, &asked.start(), max)
        } else {
            let origin = self.shared.origin_of(&query.bucket)?;
            let max = asked.entries_max(options.cloud_page_max);
            origin.list(name, prefix, folded, &asked.start(), max).await?
        };
        let entries: Vec<_> = page
            .entries
            .iter()
            .filter_map(|listed| query.entry(listed, self.is_cached(&asked, listed), options))
            .collect();
        let answer = json!({
            "uuid": uuid,
            "continuation_token": page.next,
            "entries": entries,
            "flags": 0,
        });
        Ok(wire::json_answer(StatusCode::OK, &answer))
    }

    /// Whether an entry is in the cluster: told of own objects, and of those of a
    /// cloud where it was asked for.
    fn is_cached(&self, asked: &PageQuery, listed: &Listed) -> bool {
        let bucket = &asked.query.bucket;
        let here = || {
            let target = self.place(bucket, listed.name());
            target.is_some_and(|target| target.cached(bucket, listed.name()).is_some())
        };
        bucket.provider == OWN || (asked.query.wants("cached") && here())
    }

    /// Begins to fetch what is named, and answers the job's id.
    async fn prefetch(&self, bucket: Bucket, value: &Value) -> Result<Response<Body>, Refusal> {
        self.shared.origin_of(&bucket)?;
        let names = match (&value["objnames"], &value["template"]) {
            (Value::Array(names), Value::Null) => {
                names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
            }
            (Value::Null, Value::String(template)) => self.named_by(&bucket, template).await?,
            _ => return Err(Refusal::bad_request("a prefetch needs objnames or a template")),
        };
        let workers = match value["num-workers"].as_u64() {
            None | Some(0) => PREFETCH_WORKERS,
            Some(workers) => workers as usize,
        };
        let placed: Vec<_> = names
            .into_iter()
            .filter_map(|name| Some((self.place(&bucket, &name)?, name)))
            .filter(|(target, _)| !target.is_stopped())
            .collect();
        tokio::spawn(async move {
            let bucket = &bucket;
            let fetched = futures::stream::iter(placed).for_each_concurrent(
                workers,
                // What cannot be fetched is left to whoever reads it.
                |(target, name)| async move { drop(target.fetch(bucket, &name).await) },
            );
            fetched.await;
        });
        let job = self.jobs.fetch_add(1, Ordering::Relaxed);
        Ok(wire::plain(StatusCode::OK, format!("prefetch-{job}")))
    }

    /// The objects of a template: `shard-{000..127}.tar`, or all below a prefix.
    async fn named_by(&self, bucket: &Bucket, template: &str) -> Result<Vec<String>, Refusal> {
        if let Some((before, rest)) = template.split_once('{') {
            let bounds = rest.split_once('}').and_then(|(range, after)| {
                let (first, last) = range.split_once("..")?;
                let numbers = first.parse::<u64>().ok()?..=last.parse().ok()?;
                Some((numbers, first.len(), after))
            });
            let (numbers, width, after) = bounds
                .ok_or_else(|| Refusal::bad_request(format!("template {template:?}: no range")))?;
            return Ok(numbers.map(|n| format!("{before}{n:0width$}{after}")).collect());
        }
        let origin = self.shared.origin_of(bucket)?;
        let (mut names, mut token) = (Vec::new(), String::new());
        loop {
            let max = self.shared.options.cloud_page_max;
            let page = origin.list(&bucket.name, template, false, &token, max).await?;
            names.extend(page.entries.iter().map(|listed| listed.name().to_owned()));
            if page.next.is_empty() {
                return Ok(names);
            }
            token = page.next;
        }
    }

    async fn head_bucket(&self, bucket: &Bucket) -> Result<Response<Body>, Refusal> {
        if !self.shared.has_own(bucket) {
            self.shared.origin_of(bucket)?.list(&bucket.name, "", true, "", 1).await?;
        }
        Ok(wire::plain(StatusCode::OK, ""))
    }

    fn health(&self) -> Result<Response<Body>, Refusal> {
        if self.members.lock().unwrap().is_empty() {
            return Err(no_targets());
        }
        Ok(wire::plain(StatusCode::OK, ""))
    }

    fn check_token(&self, asked: &Asked) -> Result<(), Refusal> {
        let Some(token) = &self.shared.options.token else { return Ok(()) };
        if asked.header(header::AUTHORIZATION) == Some(&format!("Bearer {token}")) {
            return Ok(());
        }
        Err(Refusal::new(StatusCode::UNAUTHORIZED, "a bearer token is needed"))
    }

    /// An own bucket is there or not; of a cloud's only the cloud can tell.
    fn known_bucket(&self, asked: &Asked, name: &str) -> Result<Bucket, Refusal> {
        let bucket = asked.bucket(name)?;
        if bucket.provider == OWN && !self.shared.has_own(&bucket) {
            return Err(Refusal::not_found(format!("no such bucket: {bucket}")));
        }
        Ok(bucket)
    }

    async fn carry_out(&self, asked: &Asked) -> Result<Response<Body>, Refusal> {
        let resource = asked.resource();
        let (kind, bucket, name) = kind_of(asked, &resource);
        self.shared.log.arrived(kind, bucket, &name, asked.range());
        if kind != Kind::Health {
            self.check_token(asked)?;
        }
        let trouble = self.shared.faults.meet(kind, &name).await;
        if let Some(refusal) = trouble.as_ref().and_then(Refusal::of) {
            return Err(refusal);
        }
        if matches!(trouble, Some(Trouble::RedirectLoop)) {
            let host = asked.header(header::HOST).unwrap_or_default();
            let location = format!("http://{host}{}", asked.target);
            return Ok(wire::redirect(StatusCode::MOVED_PERMANENTLY, &location));
        }
        match kind {
            Kind::Health => self.health(),
            Kind::HeadBucket => self.head_bucket(&self.known_bucket(asked, bucket)?).await,
            Kind::List => {
                if asked.header(header::ACCEPT) != Some("application/json") {
                    let message = "a listing must be asked for with Accept: application/json";
                    return Err(Refusal::new(StatusCode::NOT_ACCEPTABLE, message));
                }
                self.list(self.known_bucket(asked, bucket)?, &asked.action()?.1).await
            }
            Kind::Prefetch => {
                self.prefetch(self.known_bucket(asked, bucket)?, &asked.action()?.1).await
            }
            Kind::ProxyGet | Kind::ProxyHead => {
                self.lead(asked, &self.known_bucket(asked, bucket)?, &name)
            }
            _ => {
                if matches!(resource, Resource::Bucket(_)) {
                    asked.action()?;
                }
                Err(Refusal::bad_request("the cluster does not do that"))
            }
        }
    }
}

#[async_trait]
impl Answers for Proxy {
    async fn answer(&self, asked: Asked) -> Response<Body> {
        self.carry_out(&asked).await.unwrap_or_else(|refusal| asked.refuse(&refusal))
    }
}

/// The kind of a request, its bucket, and the object's name or listing's prefix.
fn kind_of<'a>(asked: &Asked, resource: &'a Resource) -> (Kind, &'a str, String) {
    let none = String::new;
    match (resource, &asked.method) {
        (Resource::Health, &Method::GET) => (Kind::Health, "", none()),
        (Resource::Bucket(bucket), &Method::HEAD) => (Kind::HeadBucket, bucket, none()),
        (Resource::Bucket(bucket), method) => {
            let (action, value) = asked.action().unwrap_or_default();
            match (method, action.as_str()) {
                (&Method::GET, "list") => {
                    (Kind::List, bucket, value["prefix"].as_str().unwrap_or_default().to_owned())
                }
                (&Method::POST, "prefetch-listrange") => (Kind::Prefetch, bucket, none()),
                _ => (Kind::Other, bucket, none()),
            }
        }
        (Resource::Object(bucket, name), &Method::GET) => (Kind::ProxyGet, bucket, name.clone()),
        (Resource::Object(bucket, name), &Method::HEAD) => (Kind::ProxyHead, bucket, name.clone()),
        _ => (Kind::Other, "", none()),
    }
}

fn no_targets() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "no targets")
}
