//! A stand-in for an AIStore cluster: one proxy and its targets, each a server
//! with a port of its own.
//!
//! **Written from protocol notes, not AIStore itself.** Nobody checked it
//! against a cluster, and it was written apart from our client, so that the two
//! do not share a mistake. The client is to be run against a real cluster; where
//! that differs, it is right.
//!
//! It owns its threads, so tests that are async and those that are not use it
//! alike, and nothing on disk. Rules:
//!
//! - It is strict: what the notes do not allow is refused, with a message that
//!   says why, even where a real cluster may be kinder. A target takes no bearer
//!   token, no location other than to the byte what the proxy gave, and none
//!   twice.
//! - The cluster's own objects (`provider=ais`) are held once for all targets, as
//!   if mirrored. Of a cloud bucket each target keeps what it fetched itself, and
//!   loses it when it stops.
//! - A request is logged when it arrives, whatever becomes of it.
//!
//! Where the notes say nothing, it does this: health needs no token; names of
//! folders end in `/` ([`ClusterOptions::bare_folders`] changes that), names are
//! relative to the bucket, `Hdr-Error` is the error's JSON; an ETag stands without
//! quotes in `custom-md`, with them in the header `ETag`; times are RFC 3339 in
//! `custom-md`; a template is a prefix or has one `{first..last}`.

#![allow(unused_imports, reason = "each test file uses its part")]

mod faults;
mod listing;
mod log;
mod objects;
mod origin;
mod proxy;
mod redirect;
mod server;
mod target;
mod wire;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Runtime;

pub use faults::{Fault, Gate, Trouble};
pub use log::{Kind, Logged};
pub use objects::{Meta, Object};
pub use origin::{Backend, BackendError, OriginPage, S3Origin};

use faults::Faults;
use log::Log;
use objects::{Bucket, OWN, OwnBuckets};
use origin::Origin;
use proxy::Proxy;
use server::Server;
use target::Target;

/// How a cluster behaves.
#[derive(Clone)]
pub struct ClusterOptions {
    /// Where the proxy and the targets listen.
    pub ip: IpAddr,
    /// The bearer token that the proxy wants to see; `None` takes anybody.
    pub token: Option<String>,
    /// The provider of cloud buckets (`aws`), and what stands behind them.
    pub origin: Option<(String, Arc<dyn Backend>)>,
    /// Most entries in a page of an own bucket.
    pub own_page_max: usize,
    /// Most entries in a page of a cloud bucket.
    pub cloud_page_max: usize,
    /// Whether the proxy finds out by itself that a target stopped: it leads one
    /// client more there, and none after that. Else [`Cluster::forget`] tells it.
    pub notices_stops: bool,
    /// Whether listings name folders without a `/` at the end.
    pub bare_folders: bool,
    /// Whether entries of a listing leave out what is empty or zero.
    pub omits_empty: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            ip: Ipv4Addr::LOCALHOST.into(),
            token: None,
            origin: None,
            own_page_max: 10_000,
            cloud_page_max: 1_000,
            notices_stops: true,
            bare_folders: false,
            omits_empty: false,
        }
    }
}

impl fmt::Debug for ClusterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterOptions").field("ip", &self.ip).finish_non_exhaustive()
    }
}

/// What the proxy and the targets share.
struct Shared {
    options: ClusterOptions,
    own: OwnBuckets,
    origin: Option<Origin>,
    log: Arc<Log>,
    faults: Arc<Faults>,
}

/// A running cluster; gone when dropped.
pub struct Cluster {
    shared: Arc<Shared>,
    proxy: Arc<Proxy>,
    server: Server,
    targets: Vec<(Arc<Target>, Server)>,
    runtime: Option<Runtime>,
}

impl Cluster {
    /// Starts a proxy and `targets` targets. All of it is in the network namespace
    /// of the calling thread.
    pub fn start(targets: usize, options: ClusterOptions) -> Cluster {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (log, faults) = (Arc::<Log>::default(), Arc::<Faults>::default());
        let origin = options.origin.clone().map(|(provider, backend)| {
            Origin::new(provider, backend, Arc::clone(&log), Arc::clone(&faults))
        });
        let ip = options.ip;
        let own = OwnBuckets::default();
        let shared = Arc::new(Shared { options, own, origin, log, faults });
        let targets: Vec<_> = (0..targets)
            .map(|n| {
                let bound = server::bind(ip);
                let address = bound.local_addr().unwrap();
                let target = Arc::new(Target::new(format!("t{n}"), address, Arc::clone(&shared)));
                let server = Server::start(runtime.handle(), bound, target.clone());
                (target, server)
            })
            .collect();
        let members = targets.iter().map(|(target, _)| Arc::clone(target)).collect();
        let proxy = Arc::new(Proxy::new(Arc::clone(&shared), members));
        let server = Server::start(runtime.handle(), server::bind(ip), proxy.clone());
        Cluster { shared, proxy, server, targets, runtime: Some(runtime) }
    }

    /// The proxy, as `AIS_ENDPOINT` names it: `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// A target's URL.
    pub fn target_url(&self, target: usize) -> String {
        format!("http://{}", self.targets[target].1.address())
    }

    /// Makes an empty own bucket, or leaves the one there is.
    pub fn create_bucket(&self, bucket: &str) {
        self.shared.own.create(bucket);
    }

    /// Puts an object into an own bucket, or a new version of it, and returns its
    /// etag without quotes.
    pub fn put(&self, bucket: &str, name: impl Into<String>, body: impl Into<Bytes>) -> String {
        self.shared.own.put(bucket, name.into(), body.into())
    }

    /// Removes an object of an own bucket; says whether there was one.
    pub fn delete(&self, bucket: &str, name: &str) -> bool {
        self.shared.own.delete(bucket, name)
    }

    /// The target that has an object now.
    pub fn target_of(&self, provider: &str, bucket: &str, name: &str) -> Option<usize> {
        let bucket = Bucket::new(provider, bucket);
        let placed = self.proxy.place(&bucket, name)?;
        self.targets.iter().position(|(target, _)| Arc::ptr_eq(target, &placed))
    }

    /// Whether the target that would be asked for a cloud object has it.
    pub fn holds(&self, provider: &str, bucket: &str, name: &str) -> bool {
        let bucket = Bucket::new(provider, bucket);
        self.proxy.place(&bucket, name).is_some_and(|target| target.cached(&bucket, name).is_some())
    }

    /// Kills a target: once this returns its port refuses connections, and those
    /// it had were reset wherever they were. What it had cached is lost.
    pub fn stop(&self, target: usize) {
        let (target, server) = &self.targets[target];
        target.stop();
        server.stop();
    }

    /// Tells the proxy that a target is gone: its objects move to the others.
    pub fn forget(&self, target: usize) {
        self.proxy.forget(&self.targets[target].0);
    }

    /// Adds a fault behind those in force. For each request the first one that
    /// matches and has `times` left is applied.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// The requests since the start or the last [`reset_log`](Self::reset_log).
    pub fn log(&self) -> Vec<Logged> {
        self.shared.log.entries()
    }

    /// How many of them were of this kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.shared.log.count(kind)
    }

    /// Forgets the requests so far.
    pub fn reset_log(&self) {
        self.shared.log.reset();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // An async test may not wait here.
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// Whether the bucket is one of the cluster's own, and there.
    fn has_own(&self, bucket: &Bucket) -> bool {
        bucket.provider == OWN && self.own.exists(&bucket.name)
    }

    /// What stands behind a bucket that is not the cluster's own.
    fn origin_of(&self, bucket: &Bucket) -> Result<&Origin, wire::Refusal> {
        let origin = self.origin.as_ref().filter(|origin| origin.provider == bucket.provider);
        origin.ok_or_else(|| wire::Refusal::not_found(format!("no such bucket: {bucket}")))
    }
}
