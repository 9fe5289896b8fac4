//! The state of a daemon, as `GET /v1/status` and `warmfs status --json` have it.
//!
//! Fields are added, never renamed, and [`STATUS_SCHEMA`] is raised if one changes its
//! meaning.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ProgressReport;

/// The version of [`StatusReply`].
pub const STATUS_SCHEMA: u32 = 1;

/// The state of a daemon. Counters run since it started and cover what
/// reaches it: reads from the kernel's page cache do not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusReply {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// Seconds since it started.
    pub uptime_s: f64,
    /// Where `GET /metrics` is answered over TCP, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics_listen: Option<SocketAddr>,
    /// What is not as it should be, and what to do.
    pub troubles: Vec<TroubleStatus>,
    /// Daemons that died before this one.
    pub restarts: RestartStatus,
    /// Its mounts, in the order they were made.
    pub mounts: Vec<MountStatus>,
    /// Its cache.
    pub cache: CacheStatus,
    /// Requests sent to remotes.
    pub remote: RemoteStatus,
    /// Attempts of any kind that failed, by reason; reasons that never came are left
    /// out.
    pub remote_errors: BTreeMap<String, u64>,
    /// How long answers took.
    pub remote_times: RemoteTimesStatus,
    /// Damaged chunks that were dropped and fetched again.
    pub repairs: u64,
    /// Bytes served but not kept since the daemon started: a full cache, a full,
    /// failing or slow disk.
    pub passed_by_bytes: u64,
    /// What was given up to make room.
    pub evictions: EvictionStatus,
    /// What was fetched before it was read.
    pub prefetched: PrefetchStatus,
    /// Prefetches that go on without a client.
    pub prefetching: Vec<ProgressReport>,
    /// The daemon's memory.
    pub memory: MemoryStatus,
    /// READ of all mounts, those that ended included.
    pub reads: ReadStatus,
    /// The last minute and hour.
    pub rates: RatesStatus,
    /// What waits for what.
    pub queues: QueuesStatus,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TroubleStatus {
    /// In plain words.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

/// What happened of late. Sampled once a second, so it may be a second behind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RatesStatus {
    /// The last 60 seconds.
    pub minute: SampleStatus,
    /// The last 60 minutes.
    pub hour: SampleStatus,
    /// The last minute, second by second, the oldest first.
    pub seconds: Vec<SampleStatus>,
}

/// What happened in a while: sums, not rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SampleStatus {
    /// How long that was; less than was asked for while the daemon is young.
    pub seconds: f64,
    /// Bytes of READ answered without waiting for the remote.
    pub hit_bytes: u64,
    /// Bytes of READ that waited for it.
    pub miss_bytes: u64,
    /// READs that failed.
    pub failed_reads: u64,
    /// Body bytes received from remotes.
    pub remote_bytes: u64,
    /// Requests sent to remotes.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Objects evicted.
    pub evicted_objects: u64,
    /// Bytes of these.
    pub evicted_bytes: u64,
}

/// What waits for what, at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueuesStatus {
    /// Fetches that wait for memory.
    pub memory: WaitingStatus,
    /// Writes to the cache's disk that wait or are under way.
    pub disk_jobs: u64,
    /// Bytes that were fetched and are not on disk yet.
    pub disk_bytes: u64,
    /// GETs in flight, by what they share.
    pub remotes: Vec<RemoteQueueStatus>,
}

/// Who waits, by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitingStatus {
    /// For a reader.
    pub demand: u64,
    /// Ahead of a reader in the same file.
    pub ahead: u64,
    /// For nobody yet.
    pub prefetch: u64,
}

/// GETs in flight to a remote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteQueueStatus {
    /// The remote, which all mounts of it share.
    pub remote: String,
    /// The mount that they are for, if it has `--max-requests` of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// Sent and not done.
    pub in_flight: u64,
    /// How many may be.
    pub limit: u64,
    /// Those that wait for a place.
    pub waiting: WaitingStatus,
}

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimesStatus {
    /// How often it was timed.
    pub count: u64,
    /// All of that together, in microseconds.
    pub sum_us: u64,
    /// Half of them took this long or less. Exact to a factor of two, and in between as
    /// if times were spread evenly; 0 if there was none.
    pub p50_us: u64,
    /// 99 of 100 took this long or less.
    pub p99_us: u64,
}

/// Requests to remotes by time, from sending one to its answer. Those that failed are
/// left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteTimesStatus {
    /// GETs, to their first bytes.
    pub get_first_byte: TimesStatus,
    /// GETs, to the last byte asked for, with the time in which nobody took what had come.
    pub get_last_byte: TimesStatus,
    /// LIST pages.
    pub list: TimesStatus,
    /// HEADs, those of names that are not there included.
    pub head: TimesStatus,
}

/// READ by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadTimesStatus {
    /// Those that waited for no byte of the remote.
    pub hits: TimesStatus,
    /// Those that did.
    pub misses: TimesStatus,
}

/// Requests to change something, which are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RefusedStatus {
    /// How many reached the daemon: none while the mount is read-only, since the kernel
    /// refuses them by itself.
    pub requests: u64,
    /// What the first one was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
}

/// Daemons that died, and whose mounts the next one was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestartStatus {
    /// How many since the first one was started.
    pub count: u64,
    /// How the last one died.
    pub reason: Option<String>,
}

/// One mount.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountStatus {
    /// What is mounted.
    pub uri: String,
    /// Where; of a view its URI.
    pub dir: PathBuf,
    /// It is a view: there is no folder, and its files are read at the socket.
    #[serde(default)]
    pub view: bool,
    /// How files are opened; see `docs/kernel.md`. `socket` for a view.
    pub mode: String,
    /// Why that mode.
    pub mode_reason: String,
    /// Seconds since it was mounted.
    pub uptime_s: f64,
    /// Detached from `dir` and waiting for its last user.
    pub detached: bool,
    /// READ by where its bytes came from.
    pub reads: ReadStatus,
    /// How long READ took.
    pub read_times: ReadTimesStatus,
    /// READs that failed.
    pub failed_reads: u64,
    /// What is read without the daemon, and is in none of these figures.
    pub not_seen: String,
    /// Writes that were refused.
    pub refused_writes: RefusedStatus,
    /// What it downloaded, and the cap on that.
    pub download: DownloadStatus,
    /// Why its credentials are refused, if they are: what is cached is served, and the
    /// rest is EACCES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Requests from the kernel.
    pub fuse: FuseStatus,
    /// What is fetched before it is read.
    pub warming: WarmingStatus,
}

/// What a mount fetches before it is read; see `--warm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WarmingStatus {
    /// What it does, or why nothing: `off`, `waiting` (nothing is being gone
    /// through), `listing` (of `all`), `fetching`, `ahead` (of its readers, as far
    /// as they have proved), `done`, `full`, `not-keeping` (the cache's disk
    /// fails), `disk-behind` (the network), `download-cap`, `remote-fails`.
    pub state: String,
    /// Objects that were fetched ahead.
    pub objects: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Objects in the folders that are being gone through.
    pub of_objects: u64,
    /// `--warm all` was asked for and does not fit the cache.
    pub all_is_too_large: bool,
}

/// Bytes read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadStatus {
    /// Answered without waiting for the remote, in bytes.
    pub hit_bytes: u64,
    /// Answered after waiting for the remote, in bytes.
    pub miss_bytes: u64,
}

/// Bytes downloaded for one mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DownloadStatus {
    /// Body bytes received.
    pub bytes: u64,
    /// `--max-download`; left out where it was not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cap: Option<u64>,
    /// Nothing is fetched ahead any more.
    pub reached: bool,
}

/// Requests from the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FuseStatus {
    /// Of any kind.
    pub requests: u64,
    /// By operation; operations that never came are left out.
    pub ops: BTreeMap<String, u64>,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheStatus {
    /// Where it lies.
    pub dir: PathBuf,
    /// Bytes held.
    pub used_bytes: u64,
    /// Bytes it may hold.
    pub limit_bytes: u64,
    /// Bytes that its disk has left for anybody, within the last second.
    pub disk_free_bytes: u64,
    /// Objects held, in whole or in part.
    pub objects: u64,
    /// `ok`, or in a few words why reads pass it by.
    pub state: String,
    /// Bytes of all objects below the mounts, as far as they are listed.
    pub dataset_bytes: u64,
    /// Of these, in the cache.
    pub dataset_cached_bytes: u64,
    /// Part of an epoch's bytes that will come from the cache once it is warm,
    /// 0 to 1; left out while nothing is listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_hit_rate: Option<f64>,
    /// Files and folders that are pinned.
    pub pins: u64,
    /// Keys below the mounts that no path can name, as far as they are listed:
    /// `warmfs ls --hidden` names them.
    pub hidden_keys: u64,
    /// What came of `--verify-remote`.
    pub compared: ComparedStatus,
}

/// Objects that were compared with the checksums of their stores, since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ComparedStatus {
    /// Those that are as the store says.
    pub same: u64,
    /// Those of which the store does not say, or could not be asked.
    pub unverifiable: u64,
    /// Those that were not compared, since too many waited.
    pub skipped: u64,
    /// Those that differed, and were dropped to be fetched again.
    pub dropped: u64,
    /// Those that differed again, and are kept as they came.
    pub disputed: u64,
    /// The key of the last one that differed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// Requests sent to remotes, one per attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoteStatus {
    /// Ranged GETs.
    pub get: TransferStatus,
    /// LIST pages.
    pub list: RequestStatus,
    /// HEADs.
    pub head: RequestStatus,
    /// Answers of any kind that asked for fewer requests: 503 and 429.
    pub throttled: u64,
    /// Requests that were made again, by what became of the attempt before.
    pub retries: RetryStatus,
    /// GETs that were sent once more because the first one was slow.
    pub hedges: HedgeStatus,
    /// Answers of `--origin` in place of its cluster's.
    pub from_origin: OriginStatus,
}

/// What came from `--origin`, and why not from its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OriginStatus {
    /// Answers to GETs.
    pub gets: u64,
    /// Body bytes of these.
    pub bytes: u64,
    /// Answers of any kind, HEADs and LISTs too.
    pub answers: u64,
    /// Of these: no connection to the cluster could be made.
    pub unreachable: u64,
    /// It asked for fewer requests.
    pub throttled: u64,
    /// It had no room.
    pub full: u64,
    /// Another reader was having the object fetched.
    pub busy: u64,
    /// It said nothing in time, broke off, or had another trouble.
    pub failing: u64,
    /// A small range of a large object that it did not hold.
    pub cold_range: u64,
}

/// Requests that were made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryStatus {
    /// The store asked for fewer requests.
    pub throttled: u64,
    /// No answer began in time.
    pub no_answer: u64,
    /// A body brought nothing any more.
    pub stalled: u64,
    /// A 5xx, a reset, a short body.
    pub broken: u64,
    /// No connection could be made.
    pub unreachable: u64,
}

/// GETs sent once more. They count among the GETs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HedgeStatus {
    /// Sent.
    pub sent: u64,
    /// Those that brought bytes before the first one did.
    pub won: u64,
}

/// Requests with a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TransferStatus {
    /// Attempts.
    pub requests: u64,
    /// Body bytes received.
    pub bytes: u64,
    /// Attempts that failed.
    pub errors: u64,
}

/// Requests whose bodies are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestStatus {
    /// Attempts.
    pub requests: u64,
    /// Attempts that failed.
    pub errors: u64,
}

/// What was evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvictionStatus {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What was fetched before it was read, by all mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchStatus {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Memory of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStatus {
    /// Resident set in bytes, as /proc has it.
    pub rss_bytes: u64,
    /// Bytes between the remote, the readers and the disk.
    pub in_flight_bytes: u64,
    /// Most of these: five eighths of the limit, the rest is what comes on top of them.
    pub budget_bytes: u64,
    /// `--memory-limit`, or its default.
    pub limit_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_daemon_does_not_say_is_empty() {
        let text = r#"{"mounts": [{"dir": "/d"}], "rates": {"minute": {"errors": 3}}}"#;
        let status: StatusReply = serde_json::from_str(text).unwrap();
        assert_eq!((status.mounts[0].dir.to_str(), status.mounts[0].failed_reads), (Some("/d"), 0));
        assert_eq!((status.rates.minute.errors, status.rates.minute.failed_reads), (3, 0));
        let empty: StatusReply = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, StatusReply::default());
    }
}
