//! The bodies of requests and replies.

mod status;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::CallerEnv;

pub use status::*;

/// Why a request failed: one line, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ErrorReply {
    /// What is wrong.
    pub message: String,
    /// What to do, unless the message says it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For programs.
    pub code: ErrorCode,
}

impl ErrorReply {
    /// A failure that explains itself.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        ErrorReply { message: message.into(), hint: None, code }
    }

    /// Adds a next step.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ErrorReply {
    /// Always one line, since shells and notebooks show the last one, and
    /// nothing that steers a terminal: parts of it are a store's own words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message.replace(char::is_control, " "))?;
        match &self.hint {
            Some(hint) => write!(f, ": {}", hint.replace(char::is_control, " ")),
            None => Ok(()),
        }
    }
}

/// The kinds of failure a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request can never succeed as it is.
    Invalid,
    /// The mount point cannot be used: in use, not empty, not a folder.
    MountPoint,
    /// A process keeps the mount busy, or there are too many such requests.
    Busy,
    /// No such mount.
    NotMounted,
    /// No such bucket, prefix or object.
    NotFound,
    /// The object is no longer the version that was opened.
    Stale,
    /// The remote or the operating system refuses.
    Denied,
    /// The remote cannot be reached.
    Unreachable,
    /// This machine lacks something mounting needs.
    Environment,
    /// The daemon is about to exit; a new one can be started.
    ShuttingDown,
    /// The daemon speaks another protocol.
    Incompatible,
    /// A code this version does not know, or a defect.
    #[serde(other)]
    Internal,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// The daemon's process.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// The cache directory it serves.
    pub cache_dir: PathBuf,
    /// `--cache-size` in bytes, if it was given.
    pub cache_size: Option<u64>,
    /// Its `--memory-limit` in bytes, if one was given.
    pub memory_limit: Option<u64>,
    /// Its `--metadata-memory` in bytes, if one was given.
    #[serde(default)]
    pub metadata_memory: Option<u64>,
    /// The file that it logs to, if it is one.
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// Its `--metrics-listen`, if it was given.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
}

/// The answer to a mount request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReply {
    /// What is mounted, normalised.
    pub uri: String,
    /// Where; of a view its URI. Other requests know it by this.
    pub dir: PathBuf,
    /// Whether the same mount was there before.
    pub existed: bool,
}

/// Asks for a mount to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountRequest {
    /// The mount point, or a view's URI.
    pub dir: PathBuf,
    /// Detach it although it is in use.
    #[serde(default)]
    pub lazy: bool,
}

/// The answer to [`UnmountRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmountReply {
    /// It was the last mount: the daemon now saves its index and exits.
    pub daemon_exits: bool,
    /// Detached, but processes still have files open in it.
    pub still_in_use: bool,
}

/// Gives a mount other credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// The mount point, or a view's URI.
    pub dir: PathBuf,
    /// The caller's credentials and configuration, all of them.
    pub env: CallerEnv,
}

/// Asks for an answer once the mount at `dir` has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitRequest {
    /// The mount point, or a view's URI.
    pub dir: PathBuf,
}

/// Asks for objects to leave the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictRequest {
    /// An absolute path in a mount; without one, all that the cache holds.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Only what was not read for so many seconds.
    #[serde(default)]
    pub older_than_s: Option<u64>,
}

/// Asks for what is cached to be compared with its checksums.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyRequest {
    /// An absolute path in a mount; without one, all that the cache holds.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// Whole objects are compared with the store's checksums, too.
    #[serde(default)]
    pub remote: bool,
}

/// Asks for folders to be listed anew.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshRequest {
    /// An absolute path in a mount; without one, all that is mounted.
    #[serde(default)]
    pub path: Option<PathBuf>,
}

/// Asks for an index file of a mount, or of a folder in one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportRequest {
    /// An absolute path in a mount; without one, the only mount.
    #[serde(default)]
    pub path: Option<PathBuf>,
    /// The file to write, an absolute path. One that is there is replaced.
    pub file: PathBuf,
}

/// Asks what is in a folder, or what a file is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LsRequest {
    /// An absolute path in a mount.
    pub path: PathBuf,
    /// Only keys that have no name in the mount.
    #[serde(default)]
    pub hidden: bool,
}

/// Asks for the sums of a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DuRequest {
    /// An absolute path in a mount.
    pub path: PathBuf,
    /// Folders down to so many below it are told of, too.
    #[serde(default)]
    pub depth: u32,
}

/// Asks for a file or a folder to be fetched and kept, or to be kept no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinRequest {
    /// An absolute path in a mount.
    pub path: PathBuf,
}

/// Asks for objects to be fetched before they are read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchRequest {
    /// Absolute paths in mounts: files, and folders with all that is below them.
    pub paths: Vec<PathBuf>,
    /// Fetched in any order but the listed one.
    #[serde(default)]
    pub shuffled: bool,
    /// Nobody waits: the answer comes at once, and it goes on without a client.
    #[serde(default)]
    pub detached: bool,
}

/// Tells a part of the order in which the files of a mount will be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintRequest {
    /// The mount point, or a view's URI.
    pub dir: PathBuf,
    /// Names the order: another one takes the place of the one before. Empty to ask
    /// whether orders are understood.
    pub order: String,
    /// How many turns of it were told before.
    pub first: u64,
    /// The files of the next turns, relative to the mount point.
    pub paths: Vec<String>,
}

/// Asks what a path is, to read it at the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatRequest {
    /// An absolute path in a mount, or one below a view's URI.
    pub path: PathBuf,
}

/// The answer to [`StatRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatReply {
    /// The mount point, or the view's URI.
    pub dir: PathBuf,
    /// What is mounted there: another bucket may be by the next request.
    #[serde(default)]
    pub uri: String,
    /// Its inode number: never given to anything else, nor to another version of it.
    pub ino: u64,
    /// What it is.
    #[serde(flatten)]
    pub row: Row,
}

/// Asks for bytes of a file; see [`StatReply`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRequest {
    /// The mount point, or the view's URI.
    pub dir: PathBuf,
    /// What is mounted there, as [`StatReply`] had it; empty for whatever is.
    #[serde(default)]
    pub uri: String,
    /// The file's inode number.
    pub ino: u64,
    /// The version that it has: an index that was lost may count inodes anew.
    pub version: String,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// Bytes; fewer come at the end of the file.
    pub length: u64,
}

/// Asks for everything to end that was asked for with [`PrefetchRequest::detached`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPrefetchRequest {}

/// A request that is answered line by line; see [`UpkeepLine`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpkeepRequest {
    /// `POST /v1/evict`
    Evict(EvictRequest),
    /// `POST /v1/verify`
    Verify(VerifyRequest),
    /// `POST /v1/pin`
    Pin(PinRequest),
    /// `POST /v1/unpin`
    Unpin(PinRequest),
    /// `POST /v1/prefetch`
    Prefetch(PrefetchRequest),
    /// `POST /v1/prefetch/stop`
    StopPrefetch(StopPrefetchRequest),
    /// `POST /v1/refresh`
    Refresh(RefreshRequest),
    /// `POST /v1/index/export`
    Export(ExportRequest),
    /// `POST /v1/ls`
    Ls(LsRequest),
    /// `POST /v1/du`
    Du(DuRequest),
}

/// One line of the answer to an [`UpkeepRequest`]. Progress comes at least once
/// a second, then one of the others, which is the last. A line that is not
/// understood is a later version's, and skipped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpkeepLine {
    /// It goes on.
    Progress(ProgressReport),
    /// What was found since the last line.
    Rows(Vec<Row>),
    /// It is done.
    Done(UpkeepReply),
    /// It failed. What was done until then is kept.
    Error(ErrorReply),
}

/// How far a command is. Totals grow while they are found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressReport {
    /// Objects done with.
    pub objects_done: u64,
    /// Objects to do, as far as it is known.
    pub objects_total: u64,
    /// Bytes done with.
    pub bytes_done: u64,
    /// Bytes to do, as far as it is known.
    pub bytes_total: u64,
}

/// What a command did. Also what it prints with `--json`: fields are added,
/// never renamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum UpkeepReply {
    /// To [`EvictRequest`].
    Evict(EvictReply),
    /// To [`VerifyRequest`].
    Verify(VerifyReply),
    /// To [`PinRequest`].
    Pin(PinReply),
    /// To [`PinRequest`] as well.
    Unpin(UnpinReply),
    /// To [`PrefetchRequest`].
    Prefetch(PrefetchReply),
    /// To [`StopPrefetchRequest`].
    StopPrefetch(StopPrefetchReply),
    /// To [`RefreshRequest`].
    Refresh(RefreshReply),
    /// To [`ExportRequest`].
    Export(ExportReply),
    /// To [`LsRequest`] and [`DuRequest`]; the rows came before.
    Rows(RowsReply),
}

/// What left the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictReply {
    /// Objects that are no longer in the cache.
    pub objects: u64,
    /// Bytes of disk they held.
    pub bytes: u64,
    /// Objects left because somebody has them open.
    pub in_use: u64,
    /// Objects left because they are pinned.
    pub pinned: u64,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReply {
    /// Objects looked at.
    pub objects: u64,
    /// Bytes compared with their checksums.
    pub bytes: u64,
    /// Chunks that were damaged or missing.
    pub damaged_chunks: u64,
    /// Of these, fetched again; the next read fetches the others.
    pub repaired_chunks: u64,
    /// Whole objects that are as their store says.
    #[serde(default)]
    pub same_objects: u64,
    /// Those that are not; the next read fetches them anew, once.
    #[serde(default)]
    pub differing_objects: u64,
    /// Those of which their store does not say, or cannot be asked.
    #[serde(default)]
    pub unverifiable_objects: u64,
}

/// What is pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinReply {
    /// Objects that are pinned by the request.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of them that are in the cache; fewer than `bytes` if it has no room.
    pub cached_bytes: u64,
}

/// What was fetched, or began to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefetchReply {
    /// It goes on without a client, and the other figures are not known.
    #[serde(default)]
    pub detached: bool,
    /// Objects that were wanted.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of them that are in the cache.
    pub cached_bytes: u64,
    /// Objects that were left out for want of room.
    pub unfit: u64,
    /// `--max-download` was reached.
    pub capped: bool,
    /// Paths that do not exist.
    pub missing: u64,
    /// One of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_missing: Option<PathBuf>,
}

/// What was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopPrefetchReply {
    /// How many such commands.
    pub stopped: u64,
}

/// What became of a pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnpinReply {
    /// Whether the path itself was pinned.
    pub was_pinned: bool,
}

/// What was listed anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefreshReply {
    /// Folders that were listed anew, or of which what is known was asked for again.
    pub folders: u64,
    /// Objects known in all that was refreshed.
    pub objects: u64,
}

/// What an index file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportReply {
    /// Folders.
    pub folders: u64,
    /// Objects.
    pub objects: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A file, or a folder with all that is known below it. Also what `ls` and `du` print
/// with `--json`, one a line: fields are added, never renamed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name; for `du` its path below what was asked for, which is empty for that.
    /// For a key that is not shown, what follows the folder's prefix.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Objects.
    pub objects: u64,
    /// Their bytes in the remote.
    pub bytes: u64,
    /// Bytes of them in the cache.
    pub cached_bytes: u64,
    /// Modification time, milliseconds since the epoch.
    pub mtime_ms: u64,
    /// The etag or generation of an object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Row {
    /// Whether all of it is in the cache. Of a folder without a byte nothing is: it may
    /// only not be listed.
    pub fn is_cached(&self) -> bool {
        self.cached_bytes >= self.bytes && (self.bytes > 0 || !self.is_folder)
    }
}

/// How many rows were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsReply {
    /// Rows.
    pub rows: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_hint() {
        let error = ErrorReply::new(ErrorCode::Busy, "a\nb").with_hint("do\x1bc");
        assert_eq!(error.to_string(), "a b: do c");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(serde_json::from_str::<ErrorReply>(&text).unwrap(), error);
    }

    #[test]
    fn a_code_of_a_later_version_is_understood() {
        let reply: ErrorReply = serde_json::from_str(r#"{"message":"m","code":"new"}"#).unwrap();
        assert_eq!(reply.code, ErrorCode::Internal);
    }

    #[test]
    fn lines_are_as_documented() {
        let report = ProgressReport { objects_done: 1, objects_total: 2, ..Default::default() };
        let done = UpkeepReply::Evict(EvictReply { objects: 1, ..Default::default() });
        let error = ErrorReply::new(ErrorCode::Busy, "m");
        for (line, text) in [
            (
                UpkeepLine::Progress(report),
                r#"{"progress":{"objects_done":1,"objects_total":2,"bytes_done":0,"bytes_total":0}}"#,
            ),
            (
                UpkeepLine::Done(done),
                r#"{"done":{"command":"evict","objects":1,"bytes":0,"in_use":0,"pinned":0}}"#,
            ),
            (UpkeepLine::Error(error), r#"{"error":{"message":"m","code":"busy"}}"#),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<UpkeepLine>(text).unwrap(), line);
        }
        assert_eq!(serde_json::from_str::<EvictRequest>("{}").unwrap(), EvictRequest::default());
        assert!(serde_json::from_str::<PinRequest>("{}").is_err());
    }
}
