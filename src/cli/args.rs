//! The options of `mount`, and what they become: parsed once, then checked
//! values only.

use std::net::SocketAddr;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use nix::unistd::{Gid, Uid, User};

use super::logging::LogFormat;
use crate::config::{
    CacheOptions, CallerEnv, DaemonOptions, IndexSource, MountOptions, MountRequest,
    OpenModeOption, RemoteOptions, TrafficOptions, WarmOption,
};
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight;
use crate::units::{parse_bytes, parse_duration};

/// Mount a prefix, or several; returns once they can be read.
#[derive(Debug, Args)]
#[command(
    args_override_self = true,
    after_help = "--help-all shows the options that few need.\n\
                  Each option can be set in the environment too: --cache-dir as WARMFS_CACHE_DIR."
)]
pub(super) struct MountArgs {
    /// s3://BUCKET[/PREFIX], gs://…, az://…, ais://… or file:///FOLDER
    pub(super) uri: String,
    /// Mount point; created if it is missing, and then removed at unmount
    #[arg(required_unless_present = "no_fuse")]
    pub(super) dir: Option<PathBuf>,
    /// More of both, with the same options and cache
    #[arg(value_name = "URI DIR")]
    pub(super) more: Vec<String>,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
    #[command(flatten)]
    pub(super) cache: CacheArgs,
    #[command(flatten)]
    pub(super) traffic: TrafficArgs,
    #[command(flatten)]
    pub(super) look: LookArgs,
    /// Take names from an `index export`, ask for none
    #[arg(long, value_name = "FILE|URI", env = "WARMFS_INDEX", hide_env = true)]
    pub(super) index: Option<String>,
    /// No DIR, for Python alone: warmfs.open("URI/KEY")
    #[arg(long, env = "WARMFS_NO_FUSE", hide_env = true, value_parser = BoolishValueParser::new())]
    pub(super) no_fuse: bool,
    /// Log here [default: in the cache directory]
    #[arg(long, value_name = "FILE", env = "WARMFS_LOG_FILE", hide_env = true)]
    pub(super) log_file: Option<PathBuf>,
    /// How its lines look: text or json
    #[arg(
        long,
        value_name = "HOW",
        env = "WARMFS_LOG_FORMAT",
        hide_env = true,
        hide = true,
        value_enum,
        default_value_t
    )]
    pub(super) log_format: LogFormat,
    /// Write down each read in FILE (docs/eviction.md)
    #[arg(long, value_name = "FILE", env = "WARMFS_RECORD_TRACE", hide_env = true, hide = true)]
    pub(super) record_trace: Option<PathBuf>,
    /// Serve figures to Prometheus at IP:PORT (docs/metrics.md)
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "WARMFS_METRICS_LISTEN",
        hide_env = true,
        hide = true
    )]
    pub(super) metrics_listen: Option<SocketAddr>,
    /// To others than this machine too
    #[arg(long, env = "WARMFS_METRICS_PUBLIC", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) metrics_public: bool,
    /// Start no other daemon if this one dies
    #[arg(long, env = "WARMFS_NO_SUPERVISOR", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) no_supervisor: bool,
    /// Stay until unmounted; Ctrl-C unmounts
    #[arg(long, env = "WARMFS_FOREGROUND", hide_env = true, value_parser = BoolishValueParser::new())]
    pub(super) foreground: bool,
    /// These as mount(8) passes them: ro,cache_size=20G
    #[arg(short = 'o', value_name = "OPT,OPT", value_delimiter = ',', action = clap::ArgAction::Append)]
    pub(super) options: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct RemoteArgs {
    /// Endpoint to use instead of the cloud's own
    #[arg(long, value_name = "URL", env = "WARMFS_ENDPOINT_URL", hide_env = true)]
    pub(super) endpoint_url: Option<String>,
    /// Region of the bucket [default: discovered]
    #[arg(long, env = "WARMFS_REGION", hide_env = true)]
    pub(super) region: Option<String>,
    /// Profile in the AWS configuration
    #[arg(long, value_name = "NAME", env = "WARMFS_PROFILE", hide_env = true)]
    pub(super) profile: Option<String>,
    /// Read a public bucket without credentials
    #[arg(long, env = "WARMFS_NO_SIGN_REQUEST", hide_env = true, value_parser = BoolishValueParser::new())]
    pub(super) no_sign_request: bool,
    /// Pay for requests to a requester-pays bucket
    #[arg(long, env = "WARMFS_REQUESTER_PAYS", hide_env = true, value_parser = BoolishValueParser::new())]
    pub(super) requester_pays: bool,
    /// Project that pays for requests to gs://
    #[arg(long, value_name = "ID", env = "WARMFS_BILLING_PROJECT", hide_env = true)]
    pub(super) billing_project: Option<String>,
    /// BUCKET.HOST, not HOST/BUCKET, at the endpoint
    #[arg(long, env = "WARMFS_VIRTUAL_HOST_STYLE", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) virtual_host_style: bool,
    /// Certificates to trust besides the system's
    #[arg(long, value_name = "FILE", env = "WARMFS_CA_FILE", hide_env = true, hide = true)]
    pub(super) ca_file: Option<PathBuf>,
    /// Command that prints credentials as JSON (docs/credentials.md)
    #[arg(
        long,
        value_name = "CMD",
        env = "WARMFS_CREDENTIAL_COMMAND",
        hide_env = true,
        hide = true
    )]
    pub(super) credential_command: Option<String>,
    /// Key of your own that objects are stored with
    #[arg(
        long,
        value_name = "FILE",
        env = "WARMFS_CUSTOMER_KEY_FILE",
        hide_env = true,
        hide = true
    )]
    pub(super) customer_key_file: Option<PathBuf>,
    /// Cloud bucket to read where the ais:// cluster cannot
    #[arg(long, value_name = "URI", env = "WARMFS_ORIGIN", hide_env = true, hide = true)]
    pub(super) origin: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CacheArgs {
    /// Keep it here [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    pub(super) cache_dir: Option<PathBuf>,
    /// Most to keep [default: free, less a reserve]
    #[arg(long, value_name = "SIZE", env = "WARMFS_CACHE_SIZE", hide_env = true, value_parser = parse_bytes)]
    pub(super) cache_size: Option<u64>,
    /// Most in flight [default: 10 % RAM, max 256M]
    #[arg(long, value_name = "SIZE", env = "WARMFS_MEMORY_LIMIT", hide_env = true, value_parser = parse_memory)]
    pub(super) memory_limit: Option<u64>,
    /// Most memory for names [default: 48M]
    #[arg(long, value_name = "SIZE", env = "WARMFS_METADATA_MEMORY", hide_env = true, hide = true, value_parser = parse_metadata)]
    pub(super) metadata_memory: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct TrafficArgs {
    /// Fetch ahead: auto, off or all
    #[arg(
        long,
        value_name = "WHAT",
        env = "WARMFS_WARM",
        hide_env = true,
        hide_possible_values = true,
        default_value = "auto"
    )]
    pub(super) warm: WarmOption,
    /// Most bytes a second from the remote, such as 20M
    #[arg(long, value_name = "SIZE", env = "WARMFS_MAX_BANDWIDTH", hide_env = true, value_parser = parse_bandwidth)]
    pub(super) max_bandwidth: Option<u64>,
    /// Most requests at once [default: found out]
    #[arg(long, value_name = "N", env = "WARMFS_MAX_REQUESTS", hide_env = true, value_parser = parse_requests)]
    pub(super) max_requests: Option<u32>,
    /// Fetch nothing ahead past so many bytes
    #[arg(long, value_name = "SIZE", env = "WARMFS_MAX_DOWNLOAD", hide_env = true, value_parser = parse_bytes)]
    pub(super) max_download: Option<u64>,
    /// Refuse readers too past --max-download
    #[arg(long, env = "WARMFS_MAX_DOWNLOAD_STRICT", hide_env = true, hide = true, requires = "max_download", value_parser = BoolishValueParser::new())]
    pub(super) max_download_strict: bool,
    /// Never ask a second time for what is late
    #[arg(long, env = "WARMFS_NO_HEDGE", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) no_hedge: bool,
    /// Compare what came with the store's checksums
    #[arg(long, env = "WARMFS_VERIFY_REMOTE", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) verify_remote: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct LookArgs {
    /// Time to trust a listing: 90s, inf
    #[arg(long, value_name = "TIME", env = "WARMFS_METADATA_TTL", hide_env = true, default_value = "1h", value_parser = parse_duration)]
    pub(super) metadata_ttl: Duration,
    /// Let other users read
    #[arg(long, env = "WARMFS_ALLOW_OTHER", hide_env = true, value_parser = BoolishValueParser::new())]
    pub(super) allow_other: bool,
    /// Let no program be run from the mount
    #[arg(long, env = "WARMFS_NOEXEC", hide_env = true, hide = true, value_parser = BoolishValueParser::new())]
    pub(super) noexec: bool,
    /// Owner of every file [default: you]
    #[arg(long, env = "WARMFS_UID", hide_env = true)]
    pub(super) uid: Option<u32>,
    /// Group of every file [default: yours]
    #[arg(long, env = "WARMFS_GID", hide_env = true)]
    pub(super) gid: Option<u32>,
    /// Permissions of files, octal
    #[arg(long, value_name = "MODE", env = "WARMFS_FILE_MODE", hide_env = true, hide = true, default_value = "0444", value_parser = parse_mode)]
    pub(super) file_mode: u16,
    /// Permissions of folders, octal
    #[arg(long, value_name = "MODE", env = "WARMFS_DIR_MODE", hide_env = true, hide = true, default_value = "0555", value_parser = parse_mode)]
    pub(super) dir_mode: u16,
    /// auto (default), passthrough or cached
    #[arg(
        long,
        value_name = "HOW",
        env = "WARMFS_OPEN_MODE",
        hide_env = true,
        hide_default_value = true,
        hide_possible_values = true,
        default_value = "auto"
    )]
    pub(super) open_mode: OpenModeOption,
}

/// What `mount` was asked for, checked.
#[derive(Debug)]
pub(super) struct MountPlan {
    pub(super) request: MountRequest,
    /// Besides, with the same options.
    pub(super) more: Vec<MountRequest>,
    pub(super) cache: CacheOptions,
    pub(super) daemon: DaemonOptions,
    pub(super) log_file: Option<PathBuf>,
    pub(super) log_format: LogFormat,
    pub(super) foreground: bool,
    /// Whether a daemon that dies is started again.
    pub(super) is_supervised: bool,
    /// Whether nothing is said of a mount that succeeds.
    pub(super) is_quiet: bool,
}

impl RemoteArgs {
    /// The same with paths that are absolute.
    pub(super) fn into_options(self) -> RemoteOptions {
        RemoteOptions {
            endpoint_url: self.endpoint_url,
            region: self.region,
            profile: self.profile,
            no_sign_request: self.no_sign_request,
            requester_pays: self.requester_pays,
            billing_project: self.billing_project,
            virtual_host_style: self.virtual_host_style,
            ca_file: self.ca_file.map(from_here),
            customer_key_file: self.customer_key_file.map(from_here),
            origin: self.origin,
            credential_command: self.credential_command,
        }
    }
}

impl MountArgs {
    /// Fills in defaults and makes paths canonical.
    pub(super) fn check(self) -> Result<MountPlan, ErrorReply> {
        let daemon = daemon_options(self.metrics_listen, self.metrics_public)?;
        let options = MountOptions {
            remote: self.remote.into_options(),
            metadata_ttl: self.look.metadata_ttl,
            allow_other: self.look.allow_other,
            noexec: self.look.noexec,
            uid: self.look.uid.unwrap_or_else(|| Uid::current().as_raw()),
            gid: self.look.gid.unwrap_or_else(|| Gid::current().as_raw()),
            file_mode: self.look.file_mode,
            dir_mode: self.look.dir_mode,
            open_mode: self.look.open_mode,
            record_trace: self.record_trace.map(|path| preflight::resolve(&path)).transpose()?,
            warm: self.traffic.warm,
            traffic: TrafficOptions {
                max_bandwidth: self.traffic.max_bandwidth,
                max_requests: self.traffic.max_requests,
                max_download: self.traffic.max_download,
                max_download_strict: self.traffic.max_download_strict,
                no_hedge: self.traffic.no_hedge,
                verify_remote: self.traffic.verify_remote,
            },
        };
        let dir = match (self.dir, self.no_fuse) {
            (Some(dir), true) => {
                let message = format!("with --no-fuse there is no folder at {}", dir.display());
                return Err(ErrorReply::new(ErrorCode::Invalid, message)
                    .with_hint("leave out one of the two"));
            }
            (dir, _) => dir.map(|dir| preflight::resolve(&dir)).transpose()?,
        };
        let request = MountRequest {
            uri: self.uri,
            dir,
            index: self.index.map(index_source).transpose()?,
            options,
            env: CallerEnv::from_process(),
        };
        let more = more(&request, self.more)?;
        let cache = CacheOptions {
            dir: resolve_cache_dir(self.cache.cache_dir.as_deref())?,
            size: self.cache.cache_size,
            memory: self.cache.memory_limit,
            metadata: self.cache.metadata_memory,
        };
        // They travel as JSON.
        let options = &request.options;
        let of_remote = [&options.remote.ca_file, &options.remote.customer_key_file];
        let given = options.record_trace.iter().chain(of_remote.into_iter().flatten());
        let dirs = request.dir.iter().chain(more.iter().filter_map(|more| more.dir.as_ref()));
        for path in dirs.chain([&cache.dir]).chain(given) {
            if path.to_str().is_none() {
                let message = format!("{} is not UTF-8", path.display());
                return Err(
                    ErrorReply::new(ErrorCode::Invalid, message).with_hint("choose another path")
                );
            }
        }
        let log_file = self.log_file.map(|path| preflight::resolve(&path)).transpose()?;
        let is_supervised = !self.no_supervisor;
        Ok(MountPlan {
            request,
            more,
            cache,
            daemon,
            log_file,
            log_format: self.log_format,
            foreground: self.foreground,
            is_supervised,
            is_quiet: false,
        })
    }
}

impl MountPlan {
    /// All that is to be mounted, in the order in which it was written.
    pub(super) fn requests(&self) -> impl Iterator<Item = &MountRequest> {
        std::iter::once(&self.request).chain(&self.more)
    }
}

/// Figures tell what is mounted and how much is read: who may see that beyond this machine
/// is said in a word of its own.
fn daemon_options(
    metrics_listen: Option<SocketAddr>,
    is_public: bool,
) -> Result<DaemonOptions, ErrorReply> {
    match metrics_listen {
        Some(address) if !address.ip().is_loopback() && !is_public => {
            let message = format!("--metrics-listen {address} is not on this machine alone");
            Err(ErrorReply::new(ErrorCode::Invalid, message)
                .with_hint("listen at 127.0.0.1, or say --metrics-public as well"))
        }
        _ => Ok(DaemonOptions { metrics_listen }),
    }
}

/// Requests like the `first` one for what was written after it.
fn more(first: &MountRequest, pairs: Vec<String>) -> Result<Vec<MountRequest>, ErrorReply> {
    let wrong = |message: &str| Err(ErrorReply::new(ErrorCode::Invalid, message));
    let of_one = first.index.is_some() || first.options.record_trace.is_some();
    if of_one && !pairs.is_empty() {
        return wrong(
            "--index and --record-trace are about one mount; mount the others by themselves",
        );
    }
    let mut requests = Vec::new();
    for pair in pairs.chunks(2) {
        let [uri, dir] = pair else {
            return wrong(&format!("{} has no mount point; write URI DIR URI DIR", pair[0]));
        };
        let (uri, dir) = (uri.clone(), preflight::resolve(Path::new(dir))?);
        requests.push(MountRequest { uri, dir: Some(dir), ..first.clone() });
    }
    Ok(requests)
}

/// A path as the daemon finds it, which works in another folder.
fn from_here(path: PathBuf) -> PathBuf {
    absolute(&path).unwrap_or(path)
}

/// A path, or a URI: `file://` too.
fn index_source(text: String) -> Result<IndexSource, ErrorReply> {
    match text.contains("://") {
        true => Ok(IndexSource::Uri(text)),
        false => preflight::resolve(Path::new(&text)).map(IndexSource::File),
    }
}

/// The cache directory in canonical form: what was given, or the default.
pub(super) fn resolve_cache_dir(given: Option<&Path>) -> Result<PathBuf, ErrorReply> {
    match given {
        Some(dir) => preflight::resolve(dir),
        None => preflight::resolve(&home()?.join(".cache/warmfs")),
    }
}

/// The caller's home; services may run without `$HOME`.
pub(super) fn home() -> Result<PathBuf, ErrorReply> {
    if let Some(home) = std::env::var_os("HOME").filter(|home| !home.is_empty()) {
        return Ok(PathBuf::from(home));
    }
    match User::from_uid(Uid::effective()) {
        Ok(Some(user)) => Ok(user.dir),
        _ => Err(ErrorReply::new(ErrorCode::Environment, "there is no home for the cache")
            .with_hint("set HOME, or give --cache-dir")),
    }
}

/// Four readers with one request each want this much.
const MEMORY_MIN_BYTES: u64 = 16 << 20;

fn parse_memory(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < MEMORY_MIN_BYTES {
        return Err(format!("{text:?} is too little to read with; give 16M or more"));
    }
    Ok(bytes)
}

/// What a transaction over a few thousand files needs at hand.
const METADATA_MIN_BYTES: u64 = 8 << 20;

fn parse_metadata(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text)?;
    if bytes < METADATA_MIN_BYTES {
        return Err(format!("{text:?} is too little to list with; give 8M or more"));
    }
    Ok(bytes)
}

fn parse_bandwidth(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("nothing would ever come; leave it out for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

fn parse_requests(text: &str) -> Result<u32, String> {
    match text.trim().parse() {
        Ok(0) => Err("nothing would ever be asked for; leave it out for no limit".to_owned()),
        Ok(requests) => Ok(requests),
        Err(_) => Err(format!("{text:?} is not a number of requests such as 16")),
    }
}

fn parse_mode(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("{text:?} is not an octal mode such as 0444"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_enough_to_read_with() {
        assert_eq!(parse_memory("16M"), Ok(16 << 20));
        assert!(parse_memory("1K").unwrap_err().contains("16M"));
    }

    #[test]
    fn who_listens_beyond_this_machine_says_so() {
        let address = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        for (text, is_public) in
            [("127.0.0.1:1", false), ("[::1]:1", false), ("0.0.0.0:1", true), ("10.0.0.1:1", true)]
        {
            daemon_options(address(text), is_public).unwrap();
            assert_eq!(daemon_options(address(text), false).is_err(), is_public, "{text}");
        }
        assert_eq!(daemon_options(None, true).unwrap(), DaemonOptions::default());
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0444"), Ok(0o444));
        assert_eq!(parse_mode("755"), Ok(0o755));
        for wrong in ["", "0o7", "8", "1777", "-1", "rwx"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }
}
