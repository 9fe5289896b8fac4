//! `warmfs status`: what a daemon does, for people and for programs.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::progress::figures;
use super::{args, client_runtime, output};
use crate::control::client::Client;
use crate::control::wire::{
    ComparedStatus, DownloadStatus, ErrorCode, ErrorReply, MountStatus, OriginStatus, StatusReply,
    WarmingStatus,
};
use crate::daemon::preflight;
use crate::units::{format_bytes, format_duration};

/// Width of the text where values allow it.
pub(super) const COLUMNS: usize = 80;

/// Show mounts, cache and requests
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only this mount point
    dir: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// The daemon of this cache directory [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    cache_dir: Option<PathBuf>,
}

/// Prints the state of the daemon asked for.
pub(super) fn run(args: StatusArgs) -> Result<(), ErrorReply> {
    let status = client_runtime()?.block_on(ask(&args))?;
    if !args.json {
        return output::line(text(&status).trim_end());
    }
    match serde_json::to_string_pretty(&status) {
        Ok(json) => output::line(&json),
        Err(error) => Err(ErrorReply::new(ErrorCode::Internal, error.to_string())),
    }
}

/// The daemon that serves `dir`, and its state.
pub(super) async fn find_mount(dir: &Path) -> Result<Option<(Client, StatusReply)>, ErrorReply> {
    let serves = |status: &StatusReply| {
        status.mounts.iter().any(|mount| mount.dir == dir && !mount.detached)
    };
    Ok(daemons(None).await?.into_iter().find(|(_, status)| serves(status)))
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

async fn ask(args: &StatusArgs) -> Result<StatusReply, ErrorReply> {
    if let Some(dir) = &args.dir {
        let dir = preflight::resolve(dir)?;
        return match find_mount(&dir).await? {
            Some((_, mut status)) => {
                status.mounts.retain(|mount| mount.dir == dir);
                Ok(status)
            }
            None => {
                let message = format!("no daemon serves {}", dir.display());
                Err(ErrorReply::new(ErrorCode::NotMounted, message)
                    .with_hint(format!("`warmfs mount URI {}` mounts there", dir.display())))
            }
        };
    }
    let cache = args::resolve_cache_dir(args.cache_dir.as_deref())?;
    if let Some(client) = Client::of_cache(&cache).await? {
        return client.status().await;
    }
    let others = if args.cache_dir.is_some() { Vec::new() } else { Client::all().await };
    match others.as_slice() {
        [only] => only.status().await,
        [] => {
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

/// The daemons that died before this one.
fn restarts(status: &StatusReply) -> Option<String> {
    let reason = status.restarts.reason.as_ref()?;
    let times = match status.restarts.count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    Some(format!("restarted {times}, last {reason}; figures are since then"))
}

fn text(status: &StatusReply) -> String {
    let mut text = String::new();
    let mut line = |label: &str, value: String| {
        let indent = " ".repeat(8);
        for (number, part) in wrap(&value, COLUMNS - 8).iter().enumerate() {
            let label = if number == 0 { format!("{label:<8}") } else { indent.clone() };
            let _ = writeln!(text, "{}", format!("{label}{part}").trim_end());
        }
    };
    line("daemon", format!("warmfs {}, process {}", status.version, status.pid));
    if let Some(text) = restarts(status) {
        line("", text);
    }
    line("memory", format_bytes(status.memory.rss_bytes));
    line("cache", output::short(&status.cache.dir));
    line("", cache(status));
    for text in [dataset(status), hidden(status), compared(status)].into_iter().flatten() {
        line("", text);
    }
    for report in &status.prefetching {
        line("", format!("prefetching, {}", figures(report)));
    }
    line("remote", remote(status));
    if let Some(text) = origin(&status.remote.from_origin) {
        line("", text);
    }
    for mount in &status.mounts {
        line("", String::new());
        line("mount", mount.uri.clone());
        line(
            "  at",
            mount.dir.display().to_string() + if mount.detached { " (detached)" } else { "" },
        );
        line("  mode", mode(mount));
        line("  since", format_duration(Duration::from_secs_f64(mount.uptime_s.max(0.0))));
        line("  reads", reads(mount));
        line("  warm", warming(&mount.warming));
        if let Some(text) = download(mount) {
            line("  cap", text);
        }
        if let Some(text) = &mount.refusal {
            let next = format!("log in, then `warmfs renew {}`", mount.dir.display());
            line("  access", format!("what is not cached is refused: {text}; {next}"));
        }
    }
    if !status.mounts.is_empty() {
        text.push_str("\n(what reaches the daemon; page-cache reads are not counted)\n");
    }
    text
}

/// How much of what is mounted fits, and what that means for an epoch.
fn dataset(status: &StatusReply) -> Option<String> {
    let cache = &status.cache;
    let rate = cache.expected_hit_rate?;
    let mut text = format!(
        "dataset {} as far as listed, {} of it cached; expect {:.0} % hits once warm",
        format_bytes(cache.dataset_bytes),
        format_bytes(cache.dataset_cached_bytes),
        // Not rounded up: 100 % is a promise.
        (rate * 100.0).floor(),
    );
    if cache.pins > 0 {
        let _ = write!(text, "; {}", count(cache.pins, "pin"));
    }
    Some(text)
}

/// What no path can name.
fn hidden(status: &StatusReply) -> Option<String> {
    let keys = status.cache.hidden_keys;
    let text = format!("{} that no path can name: see `warmfs ls --hidden`", count(keys, "key"));
    (keys > 0).then_some(text)
}

/// What came of `--verify-remote`, loud where something is wrong.
fn compared(status: &StatusReply) -> Option<String> {
    let ComparedStatus { same, unverifiable, skipped, dropped, disputed, last } =
        &status.cache.compared;
    let all = same + unverifiable + skipped + dropped + disputed;
    let mut text = format!("{} as the store says", count(*same, "object"));
    for (objects, what) in [
        (unverifiable, "without a checksum to compare"),
        (skipped, "not compared, too many waited"),
        (dropped, "NOT as the store says, fetched again"),
        (disputed, "NOT as the store says twice, kept as it came"),
    ] {
        if *objects > 0 {
            let _ = write!(text, "; {objects} {what}");
        }
    }
    if let Some(key) = last {
        let _ = write!(text, " (last {})", key.escape_debug());
    }
    (all > 0).then_some(text)
}

fn cache(status: &StatusReply) -> String {
    let cache = &status.cache;
    let used = format_bytes(cache.used_bytes);
    let limit = format_bytes(cache.limit_bytes);
    let mut text = format!("{used} of {limit}, {}", count(cache.objects, "object"));
    if cache.state != "ok" && !cache.state.is_empty() {
        let _ = write!(text, "; {}", cache.state);
    }
    if status.evictions.objects > 0 {
        let bytes = format_bytes(status.evictions.bytes);
        let _ = write!(text, "; {} ({bytes}) evicted", count(status.evictions.objects, "object"));
    }
    if status.passed_by_bytes > 0 {
        let _ = write!(text, "; {} not kept", format_bytes(status.passed_by_bytes));
    }
    if status.repairs > 0 {
        let _ = write!(text, "; {} repaired", count(status.repairs, "chunk"));
    }
    text
}

fn remote(status: &StatusReply) -> String {
    let remote = &status.remote;
    let failed = remote.get.errors + remote.list.errors + remote.head.errors;
    let failed = if failed > 0 { format!("; {failed} failed") } else { String::new() };
    let throttled = match remote.throttled {
        0 => String::new(),
        times => format!("; throttled {}", count(times, "time")),
    };
    format!(
        "{} GET ({}), {} LIST, {} HEAD{failed}{throttled}",
        remote.get.requests,
        format_bytes(remote.get.bytes),
        remote.list.requests,
        remote.head.requests,
    )
}

/// What came from `--origin`, and why.
fn origin(origin: &OriginStatus) -> Option<String> {
    if origin.answers == 0 {
        return None;
    }
    let reasons = [
        (origin.unreachable, "not reached"),
        (origin.throttled, "throttling"),
        (origin.full, "full"),
        (origin.busy, "busy with the object"),
        (origin.failing, "failing"),
        (origin.cold_range, "without the large object"),
    ];
    let reasons = reasons.into_iter().filter(|(times, _)| *times > 0);
    let reasons: Vec<_> = reasons.map(|(times, why)| format!("{why} {times}")).collect();
    Some(format!(
        "of these from the origin {} GET ({}) and {}; the cluster was {}",
        origin.gets,
        format_bytes(origin.bytes),
        count(origin.answers.saturating_sub(origin.gets), "other answer"),
        reasons.join(", "),
    ))
}

fn mode(mount: &MountStatus) -> String {
    match mount.mode_reason.as_str() {
        "" => mount.mode.clone(),
        reason => format!("{} ({reason})", mount.mode),
    }
}

fn reads(mount: &MountStatus) -> String {
    format!(
        "{} from the cache, {} from the remote; {}",
        format_bytes(mount.reads.hit_bytes),
        format_bytes(mount.reads.miss_bytes),
        count(mount.fuse.requests, "request"),
    )
}

/// What is fetched ahead, and why no more is.
fn warming(warming: &WarmingStatus) -> String {
    let mut text = match warming.of_objects {
        0 if warming.objects == 0 => String::new(),
        // What a folder gained, or what was read again, since.
        of => {
            let of = of.max(warming.objects);
            format!("{} of {of} files fetched ahead", warming.objects)
        }
    };
    let why = match warming.state.as_str() {
        "off" => "off",
        "waiting" => "waits for a folder to be gone through",
        "listing" => "lists what is to be fetched",
        "ahead" => "waits for its readers",
        "done" => "done",
        "full" => "stopped, the cache is full",
        "not-keeping" => "stopped, the cache's disk fails",
        "disk-behind" => "waits for the cache's disk",
        "download-cap" => "stopped, the download cap is reached",
        "remote-fails" => "paused, the remote fails",
        _ => "",
    };
    if !text.is_empty() && !why.is_empty() {
        text.push_str("; ");
    }
    text.push_str(why);
    if warming.all_is_too_large {
        text.push_str("; not all of it fits the cache");
    }
    text
}

/// What is left of `--max-download`.
fn download(mount: &MountStatus) -> Option<String> {
    let DownloadStatus { bytes, cap, reached } = mount.download;
    let then = if reached { "; reached, nothing is fetched ahead any more" } else { "" };
    Some(format!("{} of {} downloaded{then}", format_bytes(bytes), format_bytes(cap?)))
}

fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Breaks at spaces. A word that is longer by itself stays whole, so that
/// paths can be copied.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(last) = lines.last_mut() else { continue };
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= width {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::wire::*;

    fn status() -> StatusReply {
        StatusReply {
            restarts: Default::default(),
            schema: STATUS_SCHEMA,
            pid: 4_194_303,
            version: "0.1.0".to_owned(),
            mounts: vec![MountStatus {
                refusal: None,
                uri: "s3://a-bucket-with-a-long-name/and/a/prefix".to_owned(),
                dir: "/content/drive/my data/train".into(),
                mode: "cached".to_owned(),
                mode_reason: "passthrough was asked for; the cache lies on too many file systems"
                    .to_owned(),
                uptime_s: 90_000.5,
                detached: false,
                reads: ReadStatus { hit_bytes: u64::MAX, miss_bytes: u64::MAX },
                download: DownloadStatus { bytes: 5 << 30, cap: Some(4 << 30), reached: true },
                fuse: FuseStatus { requests: u64::MAX, ops: Default::default() },
                warming: WarmingStatus {
                    state: "download-cap".to_owned(),
                    objects: u64::MAX,
                    bytes: u64::MAX,
                    of_objects: u64::MAX,
                    all_is_too_large: true,
                },
            }],
            cache: CacheStatus {
                dir: "/var/cache/warmfs".into(),
                used_bytes: 123 << 30,
                limit_bytes: 456 << 30,
                objects: 1_300_000,
                state: "the disk is full, reads pass by".to_owned(),
                dataset_bytes: 1 << 40,
                dataset_cached_bytes: 123 << 30,
                expected_hit_rate: Some(0.4459),
                pins: 2,
                hidden_keys: 3,
                compared: ComparedStatus {
                    same: 4,
                    dropped: 2,
                    last: Some("a/key".to_owned()),
                    ..ComparedStatus::default()
                },
            },
            remote: RemoteStatus {
                get: TransferStatus { requests: u64::MAX, bytes: u64::MAX, errors: 3 },
                throttled: 7,
                from_origin: OriginStatus {
                    gets: u64::MAX,
                    bytes: u64::MAX,
                    answers: u64::MAX,
                    full: u64::MAX,
                    busy: 4,
                    cold_range: 5,
                    ..Default::default()
                },
                ..Default::default()
            },
            repairs: 1,
            passed_by_bytes: 0,
            prefetched: PrefetchStatus::default(),
            evictions: EvictionStatus { objects: 2, bytes: 1 << 30 },
            prefetching: Vec::new(),
            memory: MemoryStatus { rss_bytes: 100 << 20 },
        }
    }

    #[test]
    fn the_text_fits_80_columns_and_has_everything() {
        let text = text(&status());
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS && !line.ends_with(' '), "{line:?}");
        }
        for part in [
            "4194303",
            "cached (passthrough was asked for;",
            "1d 1h",
            "my data/train",
            "1 chunk repaired",
            "LIST",
            "5.00 GiB of 4.00 GiB downloaded",
            "throttled 7 times",
            "of these from the origin",
            "without the large object 5",
            "3 keys that no path can name",
            "4 objects as the store says",
            "a/key)",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn json_has_the_fields_that_programs_rely_on() {
        let json = serde_json::to_value(status()).unwrap();
        for pointer in [
            "/schema",
            "/pid",
            "/mounts/0/uri",
            "/mounts/0/dir",
            "/mounts/0/mode",
            "/mounts/0/mode_reason",
            "/mounts/0/uptime_s",
            "/mounts/0/reads/hit_bytes",
            "/mounts/0/reads/miss_bytes",
            "/mounts/0/fuse/requests",
            "/mounts/0/download/bytes",
            "/mounts/0/download/cap",
            "/mounts/0/download/reached",
            "/cache/used_bytes",
            "/cache/limit_bytes",
            "/cache/objects",
            "/cache/dataset_bytes",
            "/cache/dataset_cached_bytes",
            "/cache/expected_hit_rate",
            "/cache/pins",
            "/cache/hidden_keys",
            "/cache/compared/same",
            "/cache/compared/dropped",
            "/remote/get/requests",
            "/remote/get/bytes",
            "/remote/get/errors",
            "/remote/list/requests",
            "/remote/head/requests",
            "/remote/throttled",
            "/remote/retries/throttled",
            "/remote/retries/no_answer",
            "/remote/retries/stalled",
            "/remote/retries/broken",
            "/remote/retries/unreachable",
            "/remote/hedges/sent",
            "/remote/hedges/won",
            "/remote/from_origin/gets",
            "/remote/from_origin/bytes",
            "/remote/from_origin/answers",
            "/remote/from_origin/unreachable",
            "/remote/from_origin/throttled",
            "/remote/from_origin/full",
            "/remote/from_origin/busy",
            "/remote/from_origin/failing",
            "/remote/from_origin/cold_range",
            "/repairs",
            "/passed_by_bytes",
            "/evictions/objects",
            "/evictions/bytes",
            "/memory/rss_bytes",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
