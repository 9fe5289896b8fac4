//! The state of a daemon, as `GET /v1/status` and `warmfs status --json` have it.
//!
//! Fields are added, never renamed, and [`STATUS_SCHEMA`] is raised if one changes its
//! meaning.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ProgressReport;

/// The version of [`StatusReply`].
pub const STATUS_SCHEMA: u32 = 1;

/// The state of a daemon. Counters run since it started and cover what
/// reaches it: reads from the kernel's page cache do not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// [`STATUS_SCHEMA`].
    pub schema: u32,
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// Daemons that died before this one.
    #[serde(default)]
    pub restarts: RestartStatus,
    /// Its mounts, in the order they were made.
    pub mounts: Vec<MountStatus>,
    /// Its cache.
    pub cache: CacheStatus,
    /// Requests sent to remotes.
    pub remote: RemoteStatus,
    /// Damaged chunks that were dropped and fetched again.
    pub repairs: u64,
    /// Bytes served but not kept since the daemon started: a full cache, a full,
    /// failing or slow disk.
    pub passed_by_bytes: u64,
    /// What was given up to make room.
    pub evictions: EvictionStatus,
    /// What was fetched before it was read.
    #[serde(default)]
    pub prefetched: PrefetchStatus,
    /// Prefetches that go on without a client.
    #[serde(default)]
    pub prefetching: Vec<ProgressReport>,
    /// The daemon's memory.
    pub memory: MemoryStatus,
}

/// Daemons that died, and whose mounts the next one was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartStatus {
    /// How many since the first one was started.
    pub count: u64,
    /// How the last one died.
    pub reason: Option<String>,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountStatus {
    /// What is mounted.
    pub uri: String,
    /// Where.
    pub dir: PathBuf,
    /// How files are opened; see `docs/kernel.md`.
    pub mode: String,
    /// Why that mode.
    pub mode_reason: String,
    /// Seconds since it was mounted.
    pub uptime_s: f64,
    /// Detached from `dir` and waiting for its last user.
    #[serde(default)]
    pub detached: bool,
    /// READ by where its bytes came from.
    pub reads: ReadStatus,
    /// What it downloaded, and the cap on that.
    #[serde(default)]
    pub download: DownloadStatus,
    /// Why its credentials are refused, if they are: what is cached is served, and the
    /// rest is EACCES.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Requests from the kernel.
    pub fuse: FuseStatus,
    /// What is fetched before it is read.
    #[serde(default)]
    pub warming: WarmingStatus,
}

/// What a mount fetches before it is read; see `--warm`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct ReadStatus {
    /// Answered without waiting for the remote, in bytes.
    pub hit_bytes: u64,
    /// Answered after waiting for the remote, in bytes.
    pub miss_bytes: u64,
}

/// Bytes downloaded for one mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct FuseStatus {
    /// Of any kind.
    pub requests: u64,
    /// By operation; operations that never came are left out.
    pub ops: BTreeMap<String, u64>,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Where it lies.
    pub dir: PathBuf,
    /// Bytes held.
    pub used_bytes: u64,
    /// Bytes it may hold.
    pub limit_bytes: u64,
    /// Objects held, in whole or in part.
    pub objects: u64,
    /// `ok`, or in a few words why reads pass it by.
    pub state: String,
    /// Bytes of all objects below the mounts, as far as they are listed.
    #[serde(default)]
    pub dataset_bytes: u64,
    /// Of these, in the cache.
    #[serde(default)]
    pub dataset_cached_bytes: u64,
    /// Part of an epoch's bytes that will come from the cache once it is warm,
    /// 0 to 1; left out while nothing is listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_hit_rate: Option<f64>,
    /// Files and folders that are pinned.
    #[serde(default)]
    pub pins: u64,
    /// Keys below the mounts that no path can name, as far as they are listed:
    /// `warmfs ls --hidden` names them.
    #[serde(default)]
    pub hidden_keys: u64,
    /// What came of `--verify-remote`.
    #[serde(default)]
    pub compared: ComparedStatus,
}

/// Objects that were compared with the checksums of their stores, since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct RemoteStatus {
    /// Ranged GETs.
    pub get: TransferStatus,
    /// LIST pages.
    pub list: RequestStatus,
    /// HEADs.
    pub head: RequestStatus,
    /// Answers of any kind that asked for fewer requests: 503 and 429.
    #[serde(default)]
    pub throttled: u64,
    /// Requests that were made again, by what became of the attempt before.
    #[serde(default)]
    pub retries: RetryStatus,
    /// GETs that were sent once more because the first one was slow.
    #[serde(default)]
    pub hedges: HedgeStatus,
    /// Answers of `--origin` in place of its cluster's.
    #[serde(default)]
    pub from_origin: OriginStatus,
}

/// What came from `--origin`, and why not from its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct HedgeStatus {
    /// Sent.
    pub sent: u64,
    /// Those that brought bytes before the first one did.
    pub won: u64,
}

/// Requests with a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
pub struct RequestStatus {
    /// Attempts.
    pub requests: u64,
    /// Attempts that failed.
    pub errors: u64,
}

/// What was evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionStatus {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What was fetched before it was read, by all mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchStatus {
    /// Objects.
    pub objects: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Memory of the daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Resident set in bytes, as /proc has it.
    pub rss_bytes: u64,
}
