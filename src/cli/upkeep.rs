//! What evict, verify, pin, unpin and refresh share: finding who carries the command
//! out, showing how far it is, ending early.
//!
//! With PATH that is the daemon of the mount it lies in. Without, the daemon
//! of the cache directory, or this process if there is none.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::interrupt::Interrupt;
use super::logging::{self, LogFormat};
use super::progress::{Display, figures};
use super::{args, output, run_daemon, status};
use crate::config::CacheOptions;
use crate::control::client::Client;
use crate::control::wire::{
    ErrorCode, ErrorReply, MountStatus, Row, UpkeepLine, UpkeepReply, UpkeepRequest,
};
use crate::daemon::engine::Engine;
use crate::daemon::upkeep::Offline;
use crate::daemon::{StartError, log_file, preflight, read_through, walk};

/// Daemons tried: one may exit, or start, between looking and asking.
const ATTEMPTS_MAX: usize = 3;

/// A cache without a daemon may keep what it has, and gets nothing new: only
/// who mounts says how much it may hold.
const OFFLINE_CACHE_BYTES: u64 = 1 << 60;

/// How long a stop may take to save the cache before the process ends anyway.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of all of them.
#[derive(Debug, Args)]
pub(super) struct CommonArgs {
    /// As JSON, when it is done, or a line for each row
    #[arg(long)]
    pub(super) json: bool,
    /// The cache directory [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    pub(super) cache_dir: Option<PathBuf>,
}

/// How a command ended.
enum End {
    Done(UpkeepReply),
    /// By a signal, with this exit code.
    Interrupted(u8),
}

/// Runs a command and prints what it did: as JSON, or as `sentence` has it.
/// `make` makes the request of PATH in canonical form.
pub(super) fn run(
    verb: &'static str,
    common: &CommonArgs,
    path: Option<&Path>,
    make: impl FnOnce(Option<PathBuf>) -> UpkeepRequest,
    sentence: impl FnOnce(&UpkeepReply) -> Result<String, ErrorReply>,
) -> ExitCode {
    let make = |paths: Vec<PathBuf>| make(paths.into_iter().next());
    run_on(verb, common, path.map(Path::to_owned).as_slice(), make, sentence)
}

/// The same for several paths, which lie in mounts of one daemon.
pub(super) fn run_on(
    verb: &'static str,
    common: &CommonArgs,
    paths: &[PathBuf],
    make: impl FnOnce(Vec<PathBuf>) -> UpkeepRequest,
    sentence: impl FnOnce(&UpkeepReply) -> Result<String, ErrorReply>,
) -> ExitCode {
    let mut display = Display::new(verb, common.json);
    let mut show = |line: UpkeepLine| {
        if let UpkeepLine::Progress(report) = line {
            display.show(report);
        }
    };
    let end = run_daemon(carry_out(common, paths, make, &mut show));
    display.clear();
    let printed = match end {
        Err(error) => Err(error),
        Ok(End::Done(reply)) => print_reply(common, &reply, sentence),
        Ok(End::Interrupted(code)) => {
            let far = figures(display.latest());
            let message = format!("interrupted after {far}; what is done is kept");
            output::error(&ErrorReply::new(ErrorCode::ShuttingDown, message));
            return ExitCode::from(code);
        }
    };
    super::report(printed)
}

fn print_reply(
    common: &CommonArgs,
    reply: &UpkeepReply,
    sentence: impl FnOnce(&UpkeepReply) -> Result<String, ErrorReply>,
) -> Result<(), ErrorReply> {
    let sentence = sentence(reply)?;
    if !common.json {
        return output::line(&sentence);
    }
    let json = serde_json::to_string_pretty(reply);
    output::line(&json.map_err(|e| ErrorReply::new(ErrorCode::Internal, e.to_string()))?)
}

/// A name in a line of its own: one that has a newline is not two.
pub(super) fn shown(name: &str) -> String {
    name.replace('\n', "\\u000a")
}

/// Runs a command that finds rows, and prints those that are `wanted`: as JSON, one a
/// line, or as `text` has them. `make` makes the request of PATH in canonical form.
pub(super) fn rows(
    common: &CommonArgs,
    path: &Path,
    make: impl FnOnce(PathBuf) -> UpkeepRequest,
    wanted: impl Fn(&Row) -> bool + Sync,
    text: impl Fn(&Row) -> String + Sync,
) -> ExitCode {
    let json = common.json;
    let mut printed = Ok(());
    let end = {
        let mut show = |line: UpkeepLine| {
            let UpkeepLine::Rows(rows) = line else { return };
            let lines: Vec<String> =
                rows.iter()
                    .filter(|row| wanted(row))
                    .map(|row| {
                        if json {
                            serde_json::to_string(row).unwrap_or_default()
                        } else {
                            text(row)
                        }
                    })
                    .collect();
            if printed.is_ok() && !lines.is_empty() {
                printed = output::line(&lines.join("\n"));
            }
        };
        let make = |paths: Vec<PathBuf>| make(paths.into_iter().next().unwrap_or_default());
        run_daemon(carry_out(common, &[path.to_owned()], make, &mut show))
    };
    match end {
        Ok(End::Interrupted(code)) => ExitCode::from(code),
        Ok(End::Done(_)) => super::report(printed),
        Err(error) => super::report(Err(error)),
    }
}

/// A reply to another request: never sent by a daemon of this version.
pub(super) fn wrong_reply(reply: &UpkeepReply) -> ErrorReply {
    ErrorReply::new(ErrorCode::Internal, format!("the daemon answered something else: {reply:?}"))
}

async fn carry_out(
    common: &CommonArgs,
    paths: &[PathBuf],
    make: impl FnOnce(Vec<PathBuf>) -> UpkeepRequest,
    show: &mut (dyn FnMut(UpkeepLine) + Send),
) -> Result<End, ErrorReply> {
    let mut interrupt = Interrupt::new()?;
    if !paths.is_empty() {
        let (client, paths) = tokio::select! {
            found = find(paths, common) => found?,
            code = interrupt.received() => return Ok(End::Interrupted(code)),
        };
        let request = make(paths);
        return ask(&client, &request, &mut interrupt, show).await;
    }
    let request = make(Vec::new());
    let cache = args::resolve_cache_dir(common.cache_dir.as_deref())?;
    for attempt in 1.. {
        let again = attempt < ATTEMPTS_MAX;
        let ended = match Client::of_cache(&cache).await? {
            Some(client) => ask(&client, &request, &mut interrupt, show).await,
            None => match offline(&cache, &request, &mut interrupt, show).await {
                Err(StartError::AlreadyServed(_)) if again => continue,
                Err(StartError::AlreadyServed(socket)) => Err(busy(&socket)),
                Err(StartError::Failed(error)) => Err(error),
                Ok(end) => Ok(end),
            },
        };
        match ended {
            Err(error) if error.code == ErrorCode::ShuttingDown && again => {}
            ended => return ended,
        }
    }
    Err(busy(&cache))
}

fn busy(at: &Path) -> ErrorReply {
    let message = format!("the daemon at {} comes and goes", at.display());
    ErrorReply::new(ErrorCode::ShuttingDown, message).with_hint("try again")
}

async fn ask(
    client: &Client,
    request: &UpkeepRequest,
    interrupt: &mut Interrupt,
    show: &mut (dyn FnMut(UpkeepLine) + Send),
) -> Result<End, ErrorReply> {
    tokio::select! {
        reply = client.upkeep(request, show) => reply.map(End::Done),
        // The daemon stops what its client no longer waits for.
        code = interrupt.received() => Ok(End::Interrupted(code)),
    }
}

/// Carries the command out in this process.
async fn offline(
    cache: &Path,
    request: &UpkeepRequest,
    interrupt: &mut Interrupt,
    show: &mut (dyn FnMut(UpkeepLine) + Send),
) -> Result<End, StartError> {
    if !cache.is_dir() {
        let message = format!("there is no cache {}", output::short(cache));
        return Err(ErrorReply::new(ErrorCode::NotFound, message)
            .with_hint("choose one with --cache-dir")
            .into());
    }
    preflight::check_cache_dir(cache)?;
    let options = CacheOptions {
        dir: cache.to_owned(),
        size: Some(OFFLINE_CACHE_BYTES),
        memory: None,
        metadata: None,
    };
    logging::init(logging::open(&log_file(&options)).ok(), LogFormat::default(), cache);
    let held = tokio::select! {
        held = Offline::open(options, open_engine) => held?,
        code = interrupt.received() => return Ok(End::Interrupted(code)),
    };
    let end = tokio::select! {
        reply = held.run(request, show) => reply.map(End::Done),
        code = interrupt.received() => Ok(End::Interrupted(code)),
    };
    // Whoever cannot wait for it loses nothing: the cache survives a kill.
    tokio::select! {
        () = held.close() => {}
        _ = interrupt.received() => {}
        () = tokio::time::sleep(CLOSE_TIMEOUT) => {}
    }
    end.map_err(StartError::Failed)
}

async fn open_engine(cache: CacheOptions) -> Result<Arc<dyn Engine>, ErrorReply> {
    read_through::open(&cache).await
}

/// The daemon that serves `paths`, and these in canonical form.
async fn find(
    paths: &[PathBuf],
    common: &CommonArgs,
) -> Result<(Client, Vec<PathBuf>), ErrorReply> {
    let daemons = status::daemons(common.cache_dir.as_deref()).await?;
    let mut mounts: Vec<(Client, MountStatus)> = Vec::new();
    for (client, status) in daemons {
        let attached = status.mounts.into_iter().filter(|mount| !mount.detached);
        mounts.extend(attached.map(|mount| (client.clone(), mount)));
    }
    let around = walk::mounts();
    let mut of_all: Option<&Client> = None;
    let mut canonical = Vec::with_capacity(paths.len());
    for path in paths {
        let (client, path) = locate(path, &mounts, &around)?;
        if of_all.is_some_and(|other| other.socket() != client.socket()) {
            let message = "the paths lie in mounts of several caches";
            return Err(ErrorReply::new(ErrorCode::Invalid, message)
                .with_hint("run the command for each of them"));
        }
        of_all = Some(client);
        canonical.push(path);
    }
    let client = of_all.ok_or_else(|| ErrorReply::new(ErrorCode::Invalid, "no path was given"))?;
    Ok((client.clone(), canonical))
}

/// The daemon of the mount that a path or URI is in, and the path in canonical form.
fn locate<'a>(
    path: &Path,
    mounts: &'a [(Client, MountStatus)],
    around: &[PathBuf],
) -> Result<(&'a Client, PathBuf), ErrorReply> {
    let text = path.to_str().ok_or_else(|| {
        ErrorReply::new(ErrorCode::Invalid, format!("{} is not UTF-8", path.display()))
            .with_hint("name the folder that it is in")
    })?;
    if text.contains("://") {
        let within = mounts
            .iter()
            .filter_map(|(client, mount)| Some((client, below_uri(text, &mount.uri)?, &mount.dir)));
        if let Some((client, rest, dir)) = within.min_by_key(|(_, rest, _)| rest.len()) {
            return Ok((client, if rest.is_empty() { dir.clone() } else { dir.join(rest) }));
        }
        let message = format!("{text} is not mounted");
        return Err(ErrorReply::new(ErrorCode::NotMounted, message)
            .with_hint(format!("mount it first: `warmfs mount {text} DIR`")));
    }
    let canonical = walk::walk(path, around)?;
    let above = mounts.iter().filter(|(_, mount)| canonical.starts_with(&mount.dir));
    match above.max_by_key(|(_, mount)| mount.dir.as_os_str().len()) {
        Some((client, _)) => Ok((client, canonical)),
        None => {
            let message = format!("{} is in no mount of warmfs", canonical.display());
            let error = ErrorReply::new(ErrorCode::NotMounted, message)
                .with_hint("mount it first: `warmfs mount URI DIR`");
            Err(status::not_served(&canonical, error))
        }
    }
}

/// What follows `mounted` in `uri`, without slashes around it.
fn below_uri<'a>(uri: &'a str, mounted: &str) -> Option<&'a str> {
    let rest = uri.strip_prefix(mounted.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_below_what_is_mounted() {
        assert_eq!(below_uri("s3://b/a/x/y", "s3://b/a"), Some("x/y"));
        assert_eq!(below_uri("s3://b/a/", "s3://b/a/"), Some(""));
        assert_eq!(below_uri("s3://b/a", "s3://b"), Some("a"));
        assert_eq!(below_uri("s3://b/ab", "s3://b/a"), None);
        assert_eq!(below_uri("s3://b", "s3://b/a"), None);
    }
}
