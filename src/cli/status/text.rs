//! The screen of `warmfs status`: 80 columns, the most needed first.

use std::fmt::Write;
use std::time::Duration;

use super::money::{self, Cost, Money, usd};
use crate::cli::output;
use crate::cli::progress::figures;
use crate::control::wire::{
    ComparedStatus, DownloadStatus, MountStatus, OriginStatus, RemoteTimesStatus, RetryStatus,
    SampleStatus, StatusReply, TimesStatus, WarmingStatus,
};
use crate::units::{format_bytes, format_duration};

/// Width of the text where values allow it.
pub(in crate::cli) const COLUMNS: usize = 80;

/// Columns of a label.
pub(super) const LABEL: usize = 8;

/// The whole screen. Money is shown where its prices were given.
pub(super) fn text(status: &StatusReply, cost: Option<&Cost>) -> String {
    let mut screen = Screen::default();
    let up = format_duration(Duration::from_secs_f64(status.uptime_s.max(0.0)));
    screen.line("daemon", format!("warmfs {}, process {}, up {up}", status.version, status.pid));
    if let Some(address) = status.metrics_listen {
        screen.line("", format!("metrics at http://{address}/metrics"));
    }
    for trouble in &status.troubles {
        screen.line("alert", trouble.what.clone());
        screen.line("", trouble.next.clone());
    }
    screen.line("memory", memory(status));
    screen.line("cache", output::short(&status.cache.dir));
    screen.line("", cache(status));
    for text in [dataset(status), hidden(status), compared(status)].into_iter().flatten() {
        screen.line("", text);
    }
    for report in &status.prefetching {
        screen.line("", format!("prefetching, {}", figures(report)));
    }
    screen.line("remote", remote(status));
    for text in [times(&status.remote_times), failures(status)].into_iter().flatten() {
        screen.line("", text);
    }
    if let Some(text) = origin(&status.remote.from_origin) {
        screen.line("", text);
    }
    screen.line("minute", rates(&status.rates.minute));
    screen.line("hour", rates(&status.rates.hour));
    screen.line("saved", saved(status, cost));
    for mount in &status.mounts {
        of_mount(&mut screen, mount);
    }
    if !status.mounts.is_empty() {
        screen.note(
            "(what reaches the daemon; page-cache reads are not counted. The kernel refuses \
             writes to these mounts: write to another folder, or to the bucket itself)",
        );
    }
    screen.0
}

fn of_mount(screen: &mut Screen, mount: &MountStatus) {
    screen.line("", String::new());
    screen.line("mount", mount.uri.clone());
    let detached = if mount.detached { " (detached)" } else { "" };
    let at = match mount.view {
        true => "no folder: warmfs.open() in Python reads it".to_owned(),
        false => format!("{}{detached}", mount.dir.display()),
    };
    screen.line("  at", at);
    screen.line("  mode", mode(mount));
    screen.line("  since", format_duration(Duration::from_secs_f64(mount.uptime_s.max(0.0))));
    screen.line("  reads", reads(mount));
    screen.line("  warm", warming(&mount.warming));
    if let Some(text) = download(mount) {
        screen.line("  cap", text);
    }
}

/// Lines with a label, wrapped.
#[derive(Default)]
struct Screen(String);

impl Screen {
    fn line(&mut self, label: &str, value: String) {
        let indent = " ".repeat(LABEL);
        for (number, part) in wrap(&value, COLUMNS - LABEL).iter().enumerate() {
            let label = if number == 0 { format!("{label:<LABEL$}") } else { indent.clone() };
            let _ = writeln!(self.0, "{}", format!("{label}{part}").trim_end());
        }
    }

    fn note(&mut self, text: &str) {
        let _ = writeln!(self.0, "\n{}", wrap(text, COLUMNS).join("\n"));
    }
}

fn memory(status: &StatusReply) -> String {
    let memory = &status.memory;
    format!(
        "{}; {} of {} in flight",
        format_bytes(memory.rss_bytes),
        format_bytes(memory.in_flight_bytes),
        format_bytes(memory.budget_bytes),
    )
}

/// What answers of each kind take.
fn times(times: &RemoteTimesStatus) -> Option<String> {
    let kinds = [
        ("GET first byte", &times.get_first_byte),
        ("last byte", &times.get_last_byte),
        ("LIST", &times.list),
        ("HEAD", &times.head),
    ];
    let known = kinds.iter().filter(|(_, times)| times.count > 0);
    let known: Vec<_> =
        known.map(|(kind, times)| format!("{kind} {}", percentiles(times))).collect();
    (!known.is_empty()).then(|| known.join("; "))
}

fn percentiles(times: &TimesStatus) -> String {
    format!("p50 {} p99 {}", format_us(times.p50_us), format_us(times.p99_us))
}

/// What failed, and what was made again.
fn failures(status: &StatusReply) -> Option<String> {
    let RetryStatus { throttled, no_answer, stalled, broken, unreachable } = status.remote.retries;
    let retries = throttled + no_answer + stalled + broken + unreachable;
    let by_reason = status.remote_errors.iter();
    let by_reason: Vec<_> = by_reason.map(|(reason, times)| format!("{reason} {times}")).collect();
    let failed = (!by_reason.is_empty()).then(|| format!("failed: {}", by_reason.join(", ")));
    let again = (retries > 0).then(|| format!("{retries} made again"));
    let parts: Vec<_> = failed.into_iter().chain(again).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What happened of late, a second.
fn rates(sample: &SampleStatus) -> String {
    let per_s = |bytes| format!("{}/s", format_bytes(per_second(bytes, sample.seconds) as u64));
    let mut text = format!(
        "{} cached, {} waited for, {} downloaded; {:.1} requests/s",
        per_s(sample.hit_bytes),
        per_s(sample.miss_bytes),
        per_s(sample.remote_bytes),
        per_second(sample.requests, sample.seconds),
    );
    if sample.evicted_objects > 0 {
        let _ = write!(text, "; {} evicted", count(sample.evicted_objects, "object"));
    }
    text
}

/// What did not have to be downloaded, and what that is worth.
fn saved(status: &StatusReply, cost: Option<&Cost>) -> String {
    let bytes = money::saved_bytes(status);
    let mut text = format!("{} more was read than downloaded", format_bytes(bytes));
    if let Some(cost) = cost {
        let Money { spent_usd, saved_usd, .. } = cost.of(status);
        let _ = write!(text, "; {} spent, {} saved", usd(spent_usd), usd(saved_usd));
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
    let free = format_bytes(cache.disk_free_bytes);
    let objects = count(cache.objects, "object");
    let mut text = format!("{used} of {limit}, {objects}; {free} free on its disk");
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
    let mut text = format!(
        "{} from the cache, {} from the remote; {}",
        format_bytes(mount.reads.hit_bytes),
        format_bytes(mount.reads.miss_bytes),
        count(mount.fuse.requests, "request"),
    );
    let kinds = [("hits", &mount.read_times.hits), ("misses", &mount.read_times.misses)];
    for (kind, times) in kinds.into_iter().filter(|(_, times)| times.count > 0) {
        let _ = write!(text, "; {kind} {}", percentiles(times));
    }
    if !mount.not_seen.is_empty() {
        let _ = write!(text, "; not counted: {}", mount.not_seen);
    }
    text
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

/// How much of it a second; nothing while there was no time for it.
pub(super) fn per_second(amount: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount as f64 / seconds } else { 0.0 }
}

/// A time of a request: `850 us`, `31 ms`, `2.5 s`.
fn format_us(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{:.1} s", us as f64 / 1e6),
    }
}

fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// Breaks at spaces. A word that is longer by itself stays whole, so that
/// paths can be copied.
pub(in crate::cli) fn wrap(text: &str, width: usize) -> Vec<String> {
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
        let far =
            TimesStatus { count: u64::MAX, sum_us: u64::MAX, p50_us: u64::MAX, p99_us: u64::MAX };
        let sample = SampleStatus {
            seconds: 60.0,
            hit_bytes: u64::MAX,
            miss_bytes: u64::MAX,
            failed_reads: 3,
            remote_bytes: u64::MAX,
            requests: 90,
            errors: 1,
            evicted_objects: u64::MAX,
            evicted_bytes: u64::MAX,
        };
        let remote_times = RemoteTimesStatus {
            get_first_byte: TimesStatus { count: 1, sum_us: 1, p50_us: 31_250, p99_us: 999 },
            get_last_byte: far,
            list: far,
            head: far,
        };
        StatusReply {
            prefetching: Vec::new(),
            restarts: Default::default(),
            uptime_s: 90_000.5,
            metrics_listen: Some("127.0.0.1:9464".parse().unwrap()),
            troubles: vec![TroubleStatus {
                what: "something that takes many words to say is not as it should be, at all"
                    .to_owned(),
                next: "do this".to_owned(),
            }],
            remote_errors: [("throttled".to_owned(), 7), ("transient".to_owned(), 2)].into(),
            remote_times,
            reads: ReadStatus { hit_bytes: 3 << 30, miss_bytes: 3 << 30 },
            rates: RatesStatus { minute: sample, hour: sample, seconds: vec![sample; 60] },
            queues: QueuesStatus::default(),
            schema: STATUS_SCHEMA,
            pid: 4_194_303,
            version: "0.1.0".to_owned(),
            mounts: vec![MountStatus {
                view: false,
                refusal: None,
                uri: "s3://a-bucket-with-a-long-name/and/a/prefix".to_owned(),
                dir: "/content/drive/my data/train".into(),
                mode: "cached".to_owned(),
                mode_reason: "passthrough was asked for; the cache lies on too many file systems"
                    .to_owned(),
                uptime_s: 90_000.5,
                detached: false,
                read_times: ReadTimesStatus { hits: far, misses: far },
                failed_reads: 0,
                not_seen: "reads that the kernel's page cache answers".to_owned(),
                refused_writes: RefusedStatus::default(),
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
                disk_free_bytes: 20 << 30,
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
            memory: MemoryStatus {
                rss_bytes: 100 << 20,
                in_flight_bytes: 12 << 20,
                budget_bytes: 160 << 20,
                limit_bytes: 256 << 20,
            },
        }
    }

    #[test]
    fn the_text_fits_80_columns_and_has_everything() {
        let text = text(&status(), Some(&"egress=0.09,get=0.4".parse().unwrap()));
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS && !line.ends_with(' '), "{line:?}");
        }
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
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
            "12.0 MiB of 160 MiB in flight",
            "20.0 GiB free on its disk",
            "GET first byte p50 31 ms p99 999 us",
            "throttled 7, transient 2",
            "do this",
            "1.5 requests/s",
            "spent, $",
            "http://127.0.0.1:9464/metrics",
            "not counted: reads",
        ] {
            assert!(flat.contains(part), "{part} in\n{text}");
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
            "/memory/in_flight_bytes",
            "/memory/budget_bytes",
            "/memory/limit_bytes",
            "/uptime_s",
            "/troubles/0/what",
            "/troubles/0/next",
            "/remote_errors/throttled",
            "/remote_times/get_first_byte/p99_us",
            "/remote_times/get_last_byte/count",
            "/remote_times/list/p50_us",
            "/remote_times/head/sum_us",
            "/mounts/0/read_times/hits/p50_us",
            "/mounts/0/refused_writes/requests",
            "/mounts/0/not_seen",
            "/mounts/0/failed_reads",
            "/cache/disk_free_bytes",
            "/reads/hit_bytes",
            "/rates/minute/seconds",
            "/rates/minute/failed_reads",
            "/rates/hour/remote_bytes",
            "/rates/seconds/59/requests",
            "/queues/memory/demand",
            "/queues/disk_jobs",
            "/queues/disk_bytes",
            "/queues/remotes",
        ] {
            assert!(json.pointer(pointer).is_some(), "{pointer}");
        }
    }
}
