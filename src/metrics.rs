//! Counters of what reaches the daemon.
//!
//! Reads answered by the kernel's page cache or passed through to a backing
//! file never come here. Everything is monotonic since the daemon started.

pub mod histogram;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use histogram::Histogram;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Requests of one kind to remotes. One per attempt, so that the figures equal
/// the store's own log.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    /// Requests sent, retries included.
    pub requests: Counter,
    /// Body bytes received (GET only).
    pub bytes: Counter,
    /// Attempts that failed, whatever became of the retry.
    pub errors: ErrorMetrics,
    /// How long it took from sending a request to its answer: the first bytes of a
    /// GET, all of a HEAD or LIST. Attempts that failed are left out.
    pub answered: Histogram,
    /// The same to the last byte asked for (GET only), with the time in which nobody
    /// took what had come.
    pub finished: Histogram,
}

/// What an attempt failed of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such object.
    NotFound,
    /// There is no such bucket.
    NoSuchBucket,
    /// The store knows the caller, and says no.
    Denied,
    /// Credentials are missing, malformed or expired.
    Credentials,
    /// The object is another version by now.
    Changed,
    /// The store asks for fewer requests.
    Throttled,
    /// A 5xx, a reset, a timeout, a short body.
    Transient,
    /// No connection could be made.
    Unreachable,
    /// The request itself is wrong.
    Invalid,
    /// The caller's own cap on downloads is used up.
    Capped,
}

impl Reason {
    /// Every reason, in the order of the figures.
    pub const ALL: [Reason; 10] = [
        Reason::NotFound,
        Reason::NoSuchBucket,
        Reason::Denied,
        Reason::Credentials,
        Reason::Changed,
        Reason::Throttled,
        Reason::Transient,
        Reason::Unreachable,
        Reason::Invalid,
        Reason::Capped,
    ];

    /// As figures name it.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NotFound => "not-found",
            Reason::NoSuchBucket => "no-such-bucket",
            Reason::Denied => "denied",
            Reason::Credentials => "credentials",
            Reason::Changed => "changed",
            Reason::Throttled => "throttled",
            Reason::Transient => "transient",
            Reason::Unreachable => "unreachable",
            Reason::Invalid => "invalid",
            Reason::Capped => "capped",
        }
    }
}

/// Attempts that failed, by reason.
#[derive(Debug, Default)]
pub struct ErrorMetrics([Counter; Reason::ALL.len()]);

impl ErrorMetrics {
    /// An attempt failed.
    pub fn add(&self, reason: Reason) {
        self.0[reason as usize].add(1);
    }

    /// How many failed of this.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize].get()
    }

    /// How many failed.
    pub fn get(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// Everything sent to remotes by this daemon.
#[derive(Debug, Default)]
pub struct RemoteMetrics {
    /// Ranged GETs of objects.
    pub get: RequestMetrics,
    /// LIST pages.
    pub list: RequestMetrics,
    /// HEADs of objects.
    pub head: RequestMetrics,
    /// Answers that asked for fewer requests: 503 and 429.
    pub throttled: Counter,
    /// Answers of `--origin` in place of its cluster's.
    pub from_origin: OriginMetrics,
    /// Requests that were made again.
    pub retries: RetryMetrics,
    /// GETs sent once more because the first one was slow; also in `get`.
    pub hedges_sent: Counter,
    /// Those of them that brought bytes before the first one did.
    pub hedges_won: Counter,
}

/// What came from `--origin`, and why not from its cluster.
#[derive(Debug, Default)]
pub struct OriginMetrics {
    /// GETs that it answered; HEADs and LISTs are among the reasons only.
    pub gets: Counter,
    /// Body bytes received of these.
    pub bytes: Counter,
    /// Answers of any kind: no connection to the cluster could be made.
    pub unreachable: Counter,
    /// It asked for fewer requests: 503 and 429.
    pub throttled: Counter,
    /// It had no room: 507.
    pub full: Counter,
    /// Another reader was having the object fetched: 409.
    pub busy: Counter,
    /// It said nothing in time, broke off, or had another trouble.
    pub failing: Counter,
    /// A small range of a large object that it did not hold.
    pub cold_range: Counter,
}

impl OriginMetrics {
    /// Answers of any kind.
    pub fn answers(&self) -> u64 {
        let reasons = [&self.unreachable, &self.throttled, &self.full, &self.busy];
        let more = [&self.failing, &self.cold_range];
        reasons.into_iter().chain(more).map(Counter::get).sum()
    }
}

/// Requests that were made again, by what became of the attempt before.
#[derive(Debug, Default)]
pub struct RetryMetrics {
    /// The store asked for fewer requests.
    pub throttled: Counter,
    /// No answer began in time.
    pub no_answer: Counter,
    /// A body brought nothing any more.
    pub stalled: Counter,
    /// A 5xx, a reset, a short body.
    pub broken: Counter,
    /// No connection could be made.
    pub unreachable: Counter,
}

/// What one mount was asked for.
#[derive(Debug, Default)]
pub struct MountMetrics {
    /// FUSE requests received, of any kind.
    pub fuse_requests: Counter,
    /// Bytes of READ answered without waiting for the remote.
    pub hit_bytes: Counter,
    /// Bytes of READ that waited for the remote.
    pub miss_bytes: Counter,
    /// How long READs took that waited for no byte of the remote.
    pub hits: Histogram,
    /// How long READs took that did.
    pub misses: Histogram,
    /// READs that failed.
    pub failed_reads: Counter,
    /// Requests to change something, all of which are refused.
    pub refused: RefusedMetrics,
    /// Requests by operation, for tests of the kernel contract and for `status --json`.
    pub fuse_ops: FuseOps,
}

/// Requests to change something. The kernel refuses them by itself on a mount that is
/// read-only, so they come here only after somebody made it writable (`mount -o
/// remount,rw`).
#[derive(Debug, Default)]
pub struct RefusedMetrics {
    /// How many.
    pub requests: Counter,
    /// What the first one was about.
    first: OnceLock<String>,
}

impl RefusedMetrics {
    /// One more came; `what` is asked for the first of them only.
    pub fn add(&self, what: impl FnOnce() -> String) {
        self.requests.add(1);
        self.first.get_or_init(what);
    }

    /// What the first one was about.
    pub fn first(&self) -> Option<&str> {
        self.first.get().map(String::as_str)
    }
}

macro_rules! fuse_ops {
    ($($name:ident),* $(,)?) => {
        /// FUSE requests by operation.
        #[derive(Debug, Default)]
        #[allow(missing_docs, reason = "each is named as the kernel names the message")]
        pub struct FuseOps { $(pub $name: Counter,)* }

        impl FuseOps {
            /// Every operation's name and count.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

fuse_ops!(
    lookup,
    forget,
    getattr,
    open,
    read,
    flush,
    release,
    opendir,
    readdir,
    readdirplus,
    releasedir,
    statfs,
    lseek,
    getxattr,
    listxattr,
    access,
);

/// What the cache did.
#[derive(Debug, Default)]
pub struct CacheMetrics {
    /// Chunks found damaged, dropped and fetched again.
    pub repairs: Counter,
    /// Objects evicted.
    pub evicted_objects: Counter,
    /// Bytes evicted.
    pub evicted_bytes: Counter,
    /// Bytes served but not kept: full cache, full or failing disk.
    pub passed_by_bytes: Counter,
    /// Objects fetched before they were read.
    pub prefetched_objects: Counter,
    /// Bytes fetched before they were read.
    pub prefetched_bytes: Counter,
}
