//! `warmfs status`: what a daemon does, for people and for programs.

mod money;
mod text;
mod watch;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::unistd::Uid;
use serde::Serialize;

use self::money::{Cost, Money};
use self::text::text;
pub(super) use self::text::{COLUMNS, wrap};
use super::{args, client_runtime, output};
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply, StatusReply};
use crate::daemon::{mountinfo, preflight};

/// Show mounts, cache and requests
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only this mount point; after --no-fuse the URI
    dir: Option<PathBuf>,
    /// As JSON (docs/status.md)
    #[arg(long)]
    json: bool,
    /// Again each second, with graphs; q ends it
    #[arg(long)]
    watch: bool,
    /// USD for a GB and for a million requests: egress=0.09,get=0.4,list=5
    #[arg(long, value_name = "PRICES", env = "WARMFS_COST", hide_env = true)]
    cost: Option<Cost>,
    /// The daemon of this cache directory [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    cache_dir: Option<PathBuf>,
}

/// Prints the state of the daemon asked for.
pub(super) fn run(args: StatusArgs) -> Result<(), ErrorReply> {
    let runtime = client_runtime()?;
    if args.watch {
        return runtime.block_on(watch::watch(&args));
    }
    let status = runtime.block_on(ask(&args))?;
    if !args.json {
        return output::line(text(&status, args.cost.as_ref()).trim_end());
    }
    match serde_json::to_string_pretty(&json(&status, args.cost.as_ref())) {
        Ok(json) => output::line(&json),
        Err(error) => Err(ErrorReply::new(ErrorCode::Internal, error.to_string())),
    }
}

/// What `--json` prints: the daemon's answer, and what is worked out here.
#[derive(Debug, Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    status: &'a StatusReply,
    #[serde(skip_serializing_if = "Option::is_none")]
    money: Option<Money>,
}

fn json<'a>(status: &'a StatusReply, cost: Option<&Cost>) -> Json<'a> {
    Json { status, money: cost.map(|cost| cost.of(status)) }
}

/// The daemon that serves `dir`, and its state.
pub(super) async fn find_mount(dir: &Path) -> Result<Option<(Client, StatusReply)>, ErrorReply> {
    let serves = |status: &StatusReply| {
        status.mounts.iter().any(|mount| mount.dir == dir && !mount.detached)
    };
    Ok(daemons(None).await?.into_iter().find(|(_, status)| serves(status)))
}

/// What to say of `path` where no daemon in reach serves it: whose it is, or else `otherwise`.
pub(super) fn not_served(path: &Path, otherwise: ErrorReply) -> ErrorReply {
    mountinfo::other_owner(path).map_or(otherwise, |owner| preflight::of_another_user(path, owner))
}

/// Every daemon in reach, and its state. That of `cache_dir`, or the default
/// cache, is among them although its socket may lie in another session's
/// runtime directory.
pub(super) async fn daemons(
    cache_dir: Option<&Path>,
) -> Result<Vec<(Client, StatusReply)>, ErrorReply> {
    let mut clients = Client::all().await;
    let cache = match cache_dir {
        Some(_) => args::resolve_cache_dir(cache_dir)?,
        None => default_cache()?,
    };
    if let Ok(Some(client)) = Client::of_cache(&cache).await {
        clients.push(client);
    }
    let mut daemons = Vec::new();
    for client in clients {
        if let Ok(status) = client.status().await {
            daemons.push((client, status));
        }
    }
    Ok(daemons)
}

/// The cache directory that the environment names, or the default one.
fn default_cache() -> Result<PathBuf, ErrorReply> {
    let named = std::env::var_os("WARMFS_CACHE_DIR").filter(|dir| !dir.is_empty());
    args::resolve_cache_dir(named.map(PathBuf::from).as_deref())
}

/// Of a cache that is another user's nobody but root can tell whether a daemon serves it.
fn check_owner(cache: &Path) -> Result<(), ErrorReply> {
    let own = Uid::effective();
    let Ok(meta) = fs::metadata(cache) else { return Ok(()) };
    if own.is_root() || meta.uid() == own.as_raw() {
        return Ok(());
    }
    let (owner, cache) = (preflight::user_name(meta.uid()), output::short(cache));
    Err(ErrorReply::new(ErrorCode::Denied, format!("the cache {cache} belongs to {owner}"))
        .with_hint(format!("run this as {owner}")))
}

async fn ask(args: &StatusArgs) -> Result<StatusReply, ErrorReply> {
    if let Some(dir) = &args.dir {
        let dir = preflight::resolve_place(dir)?;
        return match find_mount(&dir).await? {
            Some((_, mut status)) => {
                status.mounts.retain(|mount| mount.dir == dir);
                Ok(status)
            }
            None => {
                let message = format!("no daemon serves {}", dir.display());
                let error = ErrorReply::new(ErrorCode::NotMounted, message)
                    .with_hint(format!("`warmfs mount URI {}` mounts there", dir.display()));
                Err(not_served(&dir, error))
            }
        };
    }
    let cache = args::resolve_cache_dir(args.cache_dir.as_deref())?;
    if let Some(status) = Client::status_of_cache(&cache).await? {
        return Ok(status);
    }
    let others = if args.cache_dir.is_some() { Vec::new() } else { Client::all().await };
    match others.as_slice() {
        [only] => only.status().await,
        [] => {
            check_owner(&cache)?;
            let message = format!("no daemon serves the cache {}", output::short(&cache));
            Err(ErrorReply::new(ErrorCode::NotMounted, message)
                .with_hint("`warmfs mount URI DIR` starts one"))
        }
        several => {
            let caches: Vec<String> =
                several.iter().map(|client| output::short(&client.daemon().cache_dir)).collect();
            let message = format!("daemons serve the caches {}", caches.join(", "));
            Err(ErrorReply::new(ErrorCode::Invalid, message).with_hint("choose with --cache-dir"))
        }
    }
}
