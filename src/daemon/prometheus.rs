//! The daemon's state in the text format of Prometheus, 0.0.4 ("Exposition formats" of its
//! documentation). Names and labels stand in `docs/metrics.md`; a test holds the two
//! against each other.
//!
//! Figures are those of [`StatusReply`]; only the steps of histograms are taken from the
//! counters themselves. Labels are bounded: mounts and remotes by the mounts of a daemon,
//! the others by what is written here.

use std::fmt::{Display, Write};

use super::Daemon;
use crate::control::wire::{MountStatus, StatusReply, WaitingStatus};
use crate::metrics::histogram::Histogram;
use crate::metrics::{MountMetrics, Reason, RemoteMetrics};

/// All figures, one family after the other.
pub(super) fn text(daemon: &Daemon, status: &StatusReply) -> String {
    let entries = daemon.table.all();
    // One that is detached may have the folder of another one, and would be taken for it.
    let attached = |dir: &std::path::Path| {
        let entry = entries.iter().find(|entry| !entry.is_detached() && entry.dir == dir);
        entry.map(|entry| entry.mount.metrics())
    };
    let mounts: Vec<(&MountStatus, &MountMetrics)> = status
        .mounts
        .iter()
        .filter(|mount| !mount.detached)
        .filter_map(|mount| Some((mount, attached(&mount.dir)?)))
        .collect();
    let mut text = Text::default();
    of_daemon(&mut text, status);
    of_mounts(&mut text, &mounts);
    of_remotes(&mut text, status, daemon.engine.remote_metrics());
    of_cache(&mut text, status);
    of_queues(&mut text, status);
    text.0
}

fn of_daemon(text: &mut Text, status: &StatusReply) {
    text.family("build_info", Kind::Gauge, "The daemon's version; always 1.");
    text.sample("build_info", &[("version", &status.version)], 1);
    text.gauge("uptime_seconds", "Time since the daemon started.", status.uptime_s);
    text.counter("restarts_total", "Daemons that died before this one.", status.restarts.count);
    text.gauge("troubles", "What `warmfs status` has an alert for.", status.troubles.len());
    let memory = &status.memory;
    text.gauge("memory_resident_bytes", "The daemon's resident set.", memory.rss_bytes);
    text.gauge("memory_in_flight_bytes", "Bytes on their way.", memory.in_flight_bytes);
    text.gauge("memory_budget_bytes", "Most bytes on their way.", memory.budget_bytes);
    text.gauge("memory_limit_bytes", "--memory-limit, or its default.", memory.limit_bytes);
}

fn of_mounts(text: &mut Text, mounts: &[(&MountStatus, &MountMetrics)]) {
    text.family("mount_info", Kind::Gauge, "A mount, what is mounted, and how; always 1.");
    for (mount, _) in mounts {
        let labels =
            [("mount", dir(mount)), ("remote", mount.uri.clone()), ("mode", mount.mode.clone())];
        text.sample("mount_info", &labels, 1);
    }
    type Figure = fn(&MountStatus) -> f64;
    let figures: [(&str, Kind, &str, Figure); 5] = [
        ("mount_uptime_seconds", Kind::Gauge, "Time since it was mounted.", |m| m.uptime_s),
        ("mount_refused", Kind::Gauge, "1 if its credentials are refused.", |m| {
            f64::from(u8::from(m.refusal.is_some()))
        }),
        ("mount_received_bytes_total", Kind::Counter, "Body bytes downloaded for it.", |m| {
            m.download.bytes as f64
        }),
        ("read_errors_total", Kind::Counter, "READs that failed.", |m| m.failed_reads as f64),
        ("refused_writes_total", Kind::Counter, "Writes refused by the daemon itself.", |m| {
            m.refused_writes.requests as f64
        }),
    ];
    for (name, kind, help, figure) in figures {
        text.family(name, kind, help);
        for (mount, _) in mounts {
            text.sample(name, &[("mount", dir(mount))], figure(mount));
        }
    }
    text.family("read_bytes_total", Kind::Counter, "Bytes of READ, by where they came from.");
    for (mount, _) in mounts {
        for (kind, bytes) in [("hit", mount.reads.hit_bytes), ("miss", mount.reads.miss_bytes)] {
            let labels = [("mount", dir(mount)), ("kind", kind.to_owned())];
            text.sample("read_bytes_total", &labels, bytes);
        }
    }
    text.family("read_duration_seconds", Kind::Histogram, "Time that READ took.");
    for (mount, metrics) in mounts {
        for (kind, times) in [("hit", &metrics.hits), ("miss", &metrics.misses)] {
            let labels = [("mount", dir(mount)), ("kind", kind.to_owned())];
            text.histogram("read_duration_seconds", &labels, times);
        }
    }
    text.family("fuse_requests_total", Kind::Counter, "Requests of the kernel, by operation.");
    for (mount, metrics) in mounts {
        for (kind, count) in metrics.fuse_ops.all() {
            let labels = [("mount", dir(mount)), ("kind", kind.to_owned())];
            text.sample("fuse_requests_total", &labels, count);
        }
    }
}

fn dir(mount: &MountStatus) -> String {
    mount.dir.display().to_string()
}

fn of_remotes(text: &mut Text, status: &StatusReply, metrics: &RemoteMetrics) {
    let kinds = [("get", &metrics.get), ("list", &metrics.list), ("head", &metrics.head)];
    text.family("remote_requests_total", Kind::Counter, "Attempts sent to remotes.");
    for (kind, of) in kinds {
        text.sample("remote_requests_total", &[("kind", kind)], of.requests.get());
    }
    text.family("remote_errors_total", Kind::Counter, "Attempts that failed.");
    for (kind, of) in kinds {
        for reason in Reason::ALL {
            let labels = [("kind", kind), ("reason", reason.name())];
            text.sample("remote_errors_total", &labels, of.errors.of(reason));
        }
    }
    let name = "remote_request_duration_seconds";
    text.family(name, Kind::Histogram, "Time from sending a request to its answer.");
    for (kind, times) in [
        ("get-first-byte", &metrics.get.answered),
        ("get-last-byte", &metrics.get.finished),
        ("list", &metrics.list.answered),
        ("head", &metrics.head.answered),
    ] {
        text.histogram(name, &[("kind", kind)], times);
    }
    let remote = &status.remote;
    text.counter("remote_received_bytes_total", "Body bytes of GETs.", remote.get.bytes);
    let help = "Answers that asked for fewer requests.";
    text.counter("remote_throttled_total", help, remote.throttled);
    let retries = &remote.retries;
    let by_reason = [
        ("throttled", retries.throttled),
        ("no-answer", retries.no_answer),
        ("stalled", retries.stalled),
        ("broken", retries.broken),
        ("unreachable", retries.unreachable),
    ];
    text.by("remote_retries_total", "Requests made again.", "reason", &by_reason);
    let hedges = [("sent", remote.hedges.sent), ("won", remote.hedges.won)];
    text.by("remote_hedges_total", "GETs sent once more for being late.", "kind", &hedges);
    let origin = &remote.from_origin;
    text.counter("origin_received_bytes_total", "Body bytes from --origin.", origin.bytes);
    let by_reason = [
        ("unreachable", origin.unreachable),
        ("throttled", origin.throttled),
        ("full", origin.full),
        ("busy", origin.busy),
        ("failing", origin.failing),
        ("cold-range", origin.cold_range),
    ];
    text.by("origin_answers_total", "Answers of --origin, by why.", "reason", &by_reason);
}

fn of_cache(text: &mut Text, status: &StatusReply) {
    let cache = &status.cache;
    text.gauge("cache_used_bytes", "Bytes of disk held.", cache.used_bytes);
    text.gauge("cache_limit_bytes", "Bytes of disk it may hold.", cache.limit_bytes);
    text.gauge("cache_disk_free_bytes", "Bytes its disk has left.", cache.disk_free_bytes);
    text.gauge("cache_objects", "Objects held, in whole or in part.", cache.objects);
    text.gauge("cache_pins", "Files and folders that are pinned.", cache.pins);
    let is_degraded = !matches!(cache.state.as_str(), "ok" | "");
    text.gauge("cache_degraded", "1 if reads pass it by.", u8::from(is_degraded));
    text.gauge("dataset_bytes", "Bytes below the mounts, as listed.", cache.dataset_bytes);
    text.gauge("dataset_cached_bytes", "Of these, cached.", cache.dataset_cached_bytes);
    text.gauge("dataset_hidden_keys", "Keys that no path can name.", cache.hidden_keys);
    let expected = cache.expected_hit_rate.unwrap_or(f64::NAN);
    text.gauge("expected_hit_ratio", "Part of a warm epoch that is cached.", expected);
    let (hits, misses) = (status.reads.hit_bytes, status.reads.miss_bytes);
    let ratio = hits as f64 / (hits + misses) as f64;
    text.gauge("hit_ratio", "Part of the bytes read that was cached.", ratio);
    let by_kind = [("hit", hits), ("miss", misses)];
    text.by("served_bytes_total", "Bytes of READ of all mounts ever.", "kind", &by_kind);
    let evicted = &status.evictions;
    text.counter("cache_evicted_objects_total", "Objects evicted.", evicted.objects);
    text.counter("cache_evicted_bytes_total", "Bytes evicted.", evicted.bytes);
    text.counter("cache_passed_by_bytes_total", "Bytes not kept.", status.passed_by_bytes);
    text.counter("cache_repairs_total", "Damaged chunks fetched again.", status.repairs);
    let ahead = &status.prefetched;
    text.counter("prefetched_objects_total", "Objects fetched before a read.", ahead.objects);
    text.counter("prefetched_bytes_total", "Bytes fetched before a read.", ahead.bytes);
    let compared = &cache.compared;
    let by_reason = [
        ("same", compared.same),
        ("unverifiable", compared.unverifiable),
        ("skipped", compared.skipped),
        ("dropped", compared.dropped),
        ("disputed", compared.disputed),
    ];
    text.by("compared_objects_total", "What --verify-remote found.", "reason", &by_reason);
}

fn of_queues(text: &mut Text, status: &StatusReply) {
    let queues = &status.queues;
    let name = "memory_waiting";
    text.family(name, Kind::Gauge, "Fetches that wait for memory, by class.");
    text.waiting(name, &[], &queues.memory);
    text.gauge("disk_queue_jobs", "Writes that wait or are under way.", queues.disk_jobs);
    text.gauge("disk_queue_bytes", "Bytes fetched, not on disk yet.", queues.disk_bytes);
    let labels: Vec<[(&str, String); 2]> = queues
        .remotes
        .iter()
        .map(|queue| {
            let mount = queue.mount.as_ref().map(|dir| dir.display().to_string());
            [("remote", queue.remote.clone()), ("mount", mount.unwrap_or_default())]
        })
        .collect();
    text.family("requests_in_flight", Kind::Gauge, "GETs in flight to a remote.");
    for (queue, labels) in queues.remotes.iter().zip(&labels) {
        text.sample("requests_in_flight", labels, queue.in_flight);
    }
    text.family("requests_limit", Kind::Gauge, "GETs that may be in flight.");
    for (queue, labels) in queues.remotes.iter().zip(&labels) {
        text.sample("requests_limit", labels, queue.limit);
    }
    text.family("requests_waiting", Kind::Gauge, "GETs that wait for a place, by class.");
    for (queue, labels) in queues.remotes.iter().zip(&labels) {
        text.waiting("requests_waiting", labels, &queue.waiting);
    }
}

/// The type of a family.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

const NO_LABELS: &[(&str, &str)] = &[];

/// What was written so far. Every name begins with `warmfs_`.
#[derive(Default)]
struct Text(String);

impl Text {
    /// Begins a family; its samples follow at once.
    fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP warmfs_{name} {help}\n# TYPE warmfs_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, impl AsRef<str>)], value: impl Display) {
        let _ = write!(self.0, "warmfs_{name}");
        for (number, (label, text)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text.as_ref()));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help);
        self.sample(name, NO_LABELS, value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help);
        self.sample(name, NO_LABELS, value);
    }

    /// A counter with one label.
    fn by(&mut self, name: &str, help: &str, label: &str, values: &[(&str, u64)]) {
        self.family(name, Kind::Counter, help);
        for (text, value) in values {
            self.sample(name, &[(label, text)], value);
        }
    }

    fn waiting(&mut self, name: &str, labels: &[(&str, String)], waiting: &WaitingStatus) {
        let classes =
            [("demand", waiting.demand), ("ahead", waiting.ahead), ("prefetch", waiting.prefetch)];
        for (kind, count) in classes {
            let kind = [("kind", kind.to_owned())];
            self.sample(name, &[labels, &kind].concat(), count);
        }
    }

    fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, impl AsRef<str> + Clone)],
        histogram: &Histogram,
    ) {
        let times = histogram.times();
        let owned: Vec<(&str, String)> =
            labels.iter().map(|(label, text)| (*label, text.as_ref().to_owned())).collect();
        let bucket = format!("{name}_bucket");
        let bounds =
            times.cumulative().map(|(bound, count)| (bound.as_secs_f64().to_string(), count));
        for (le, count) in bounds.chain([("+Inf".to_owned(), times.count())]) {
            self.sample(&bucket, &[&owned[..], &[("le", le)]].concat(), count);
        }
        self.sample(&format!("{name}_sum"), &owned, times.sum().as_secs_f64());
        self.sample(&format!("{name}_count"), &owned, times.count());
    }
}

/// A label's value, of which paths and URIs are the caller's.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_numbers_are_plain() {
        let mut text = Text::default();
        text.sample("x", &[("mount", "/a\"b\\c\nd"), ("kind", "é")], 0.000_016);
        text.gauge("y", "Nothing yet.", f64::NAN);
        let expected = "warmfs_x{mount=\"/a\\\"b\\\\c\\nd\",kind=\"é\"} 0.000016\n\
                        # HELP warmfs_y Nothing yet.\n# TYPE warmfs_y gauge\nwarmfs_y NaN\n";
        assert_eq!(text.0, expected);
    }

    #[test]
    fn a_histogram_ends_with_all_of_its_times() {
        let histogram = Histogram::default();
        histogram.observe(std::time::Duration::from_millis(1));
        histogram.observe(std::time::Duration::from_secs(1_000));
        let mut text = Text::default();
        text.histogram("t_seconds", &[("kind", "get")], &histogram);
        let lines: Vec<&str> = text.0.lines().collect();
        assert_eq!(lines[0], "warmfs_t_seconds_bucket{kind=\"get\",le=\"0.000016\"} 0");
        let end = &lines[lines.len() - 4..];
        assert!(end[0].ends_with(" 1"), "{}", end[0]);
        assert_eq!(end[1], "warmfs_t_seconds_bucket{kind=\"get\",le=\"+Inf\"} 2");
        assert_eq!(end[2], "warmfs_t_seconds_sum{kind=\"get\"} 1000.001");
        assert_eq!(end[3], "warmfs_t_seconds_count{kind=\"get\"} 2");
    }
}
