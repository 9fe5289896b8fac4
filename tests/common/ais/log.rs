//! What was asked of the cluster, and by the cluster of its origin.

use std::sync::Mutex;

/// Kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Health of the proxy.
    Health,
    /// Metadata of a bucket.
    HeadBucket,
    /// A page of a listing.
    List,
    /// A prefetch.
    Prefetch,
    /// Metadata of an object, of the proxy.
    ProxyHead,
    /// Bytes of an object, of the proxy.
    ProxyGet,
    /// Metadata of an object, of a target.
    TargetHead,
    /// Bytes of an object, of a target.
    TargetGet,
    /// A page of a listing, of the origin.
    OriginList,
    /// Metadata of an object, of the origin.
    OriginHead,
    /// A whole object, of the origin.
    OriginGet,
    /// Anything the cluster does not do.
    Other,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// What was asked for.
    pub kind: Kind,
    /// The bucket; empty if there was none.
    pub bucket: String,
    /// Name of an object, or prefix of a listing.
    pub name: String,
    /// The header `Range`; empty if there was none.
    pub range: String,
}

/// All requests since the start, or since they were forgotten.
#[derive(Debug, Default)]
pub(super) struct Log(Mutex<Vec<Logged>>);

impl Log {
    pub(super) fn arrived(&self, kind: Kind, bucket: &str, name: &str, range: &str) {
        let [bucket, name, range] = [bucket, name, range].map(str::to_owned);
        self.0.lock().unwrap().push(Logged { kind, bucket, name, range });
    }

    pub(super) fn entries(&self) -> Vec<Logged> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.0.lock().unwrap().iter().filter(|logged| logged.kind == kind).count()
    }

    pub(super) fn reset(&self) {
        self.0.lock().unwrap().clear();
    }
}
