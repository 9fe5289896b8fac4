//! How commands talk to the daemon: HTTP/1.1 with JSON bodies over a Unix
//! socket.
//!
//! ```text
//! GET    /v1/ping         Ping
//! GET    /v1/status       StatusReply
//! GET    /metrics         the same for Prometheus, see docs/metrics.md
//! POST   /v1/mounts       MountRequest   -> MountReply
//! DELETE /v1/mounts       UnmountRequest -> UnmountReply
//! POST   /v1/mounts/wait  WaitRequest    -> {} once the mount has ended
//! POST   /v1/renew        RenewRequest   -> {}
//! POST   /v1/hint         HintRequest    -> {} once it is taken
//! POST   /v1/stat         StatRequest    -> StatReply
//! POST   /v1/read         ReadRequest    -> the bytes, application/octet-stream
//! POST   /v1/evict        EvictRequest   -> lines of UpkeepLine
//! POST   /v1/verify       VerifyRequest  -> lines of UpkeepLine
//! POST   /v1/pin          PinRequest     -> lines of UpkeepLine
//! POST   /v1/unpin        PinRequest     -> lines of UpkeepLine
//! POST   /v1/prefetch      PrefetchRequest     -> lines of UpkeepLine
//! POST   /v1/prefetch/stop StopPrefetchRequest -> lines of UpkeepLine
//! POST   /v1/refresh      RefreshRequest -> lines of UpkeepLine
//! POST   /v1/index/export ExportRequest -> lines of UpkeepLine
//! POST   /v1/ls           LsRequest      -> lines of UpkeepLine
//! POST   /v1/du           DuRequest      -> lines of UpkeepLine
//! ```
//!
//! What may take long is answered by lines of JSON in one body
//! (`application/x-ndjson`): progress, which shows that the daemon lives, and
//! at last what was done or why not. It is stopped when the client goes away. A read is
//! answered by as many bytes as its head says; fewer are a failure on the way, and who asks
//! again from there is told which.
//!
//! A failure is an [`wire::ErrorReply`] with a status of 400 and above. Both
//! sides name their protocol in a header and check the other's user: requests
//! carry credentials. On disk this module owns the socket in the runtime
//! directory and `<cache>/lock`, which names the socket of its holder.

mod body;
pub mod cache_lock;
pub mod client;
pub mod exposition;
#[cfg(test)]
mod fuzz_tests;
pub mod runtime_dir;
pub mod server;
pub mod wire;

/// The version of paths and bodies. Raised when an older peer would
/// misunderstand a newer one; added fields do not raise it.
pub const PROTOCOL: &str = "1";

/// The header in which both sides name their [`PROTOCOL`].
pub const PROTOCOL_HEADER: &str = "warmfs-protocol";

/// The header in which a daemon names its version, readable whatever the protocol.
pub const VERSION_HEADER: &str = "warmfs-version";

/// Largest body in either direction. A mount request is a few KiB and a status
/// about 1 KiB a mount; a peer that sends more is not one of ours.
pub const BODY_BYTES_MAX: usize = 1 << 20;

/// The same for a request that names files: half a million of them.
pub const NAMES_BYTES_MAX: usize = 64 << 20;

/// Longest line of an answer that comes in lines: figures, or one error.
pub const LINE_BYTES_MAX: usize = 64 << 10;
