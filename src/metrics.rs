//! Counters of what reaches the daemon.
//!
//! Reads answered by the kernel's page cache or passed through to a backing
//! file never come here. Everything is monotonic since the daemon started.

use std::sync::atomic::{AtomicU64, Ordering};

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
    pub errors: Counter,
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
    /// Requests by operation, for tests of the kernel contract and for `status --json`.
    pub fuse_ops: FuseOps,
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
