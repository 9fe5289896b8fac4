//! The daemon's state, as `warmfs status` shows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Daemon;
use super::table::{Entry, Reads};
use super::trouble::troubles;
use crate::cache::{Doing, Warming};
use crate::control::wire::{
    EvictionStatus, FuseStatus, HedgeStatus, MemoryStatus, MountStatus, OriginStatus,
    PrefetchStatus, QueuesStatus, ReadStatus, ReadTimesStatus, RefusedStatus, RemoteQueueStatus,
    RemoteStatus, RemoteTimesStatus, RequestStatus, RestartStatus, RetryStatus, STATUS_SCHEMA,
    StatusReply, TimesStatus, TransferStatus, WaitingStatus, WarmingStatus,
};
use crate::metrics::histogram::Histogram;
use crate::metrics::{OriginMetrics, Reason, RemoteMetrics, RequestMetrics};

pub(super) fn collect(daemon: &Daemon) -> StatusReply {
    let engine = daemon.engine.as_ref();
    let entries = daemon.table.all();
    let cache = engine.cache_metrics();
    let way = engine.on_the_way();
    let Reads { hit_bytes, miss_bytes, .. } = daemon.table.reads();
    let mut status = StatusReply {
        schema: STATUS_SCHEMA,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: daemon.since.elapsed().as_secs_f64(),
        metrics_listen: daemon.metrics_listen.1,
        troubles: Vec::new(),
        restarts: RestartStatus::clone(&daemon.restarts),
        mounts: entries.iter().map(|entry| mount(entry)).collect(),
        cache: engine.cache_status(),
        remote: remote(engine.remote_metrics()),
        remote_errors: remote_errors(engine.remote_metrics()),
        remote_times: remote_times(engine.remote_metrics()),
        repairs: cache.repairs.get(),
        passed_by_bytes: cache.passed_by_bytes.get(),
        evictions: EvictionStatus {
            objects: cache.evicted_objects.get(),
            bytes: cache.evicted_bytes.get(),
        },
        prefetched: PrefetchStatus {
            objects: cache.prefetched_objects.get(),
            bytes: cache.prefetched_bytes.get(),
        },
        prefetching: daemon.jobs.prefetching(),
        memory: MemoryStatus {
            rss_bytes: rss_bytes(),
            in_flight_bytes: way.memory.used,
            budget_bytes: way.memory.limit,
            limit_bytes: way.memory_limit,
        },
        reads: ReadStatus { hit_bytes, miss_bytes },
        rates: daemon.rates.status(),
        queues: QueuesStatus {
            memory: waiting(way.memory.waiting),
            disk_jobs: way.backlog.jobs,
            disk_bytes: way.backlog.bytes,
            remotes: remote_queues(&entries),
        },
    };
    status.troubles = troubles(&status);
    status
}

/// Mounts of one remote share its requests, but for those with a cap of their own.
fn remote_queues(entries: &[Arc<Entry>]) -> Vec<RemoteQueueStatus> {
    let mut queues: Vec<RemoteQueueStatus> = Vec::new();
    for entry in entries.iter().filter(|entry| !entry.is_detached()) {
        let Some((mut queue, is_own)) = entry.mount.requests() else { continue };
        queue.mount = is_own.then(|| entry.dir.clone());
        let is_known = |known: &RemoteQueueStatus| {
            (&known.remote, &known.mount) == (&queue.remote, &queue.mount)
        };
        if !queues.iter().any(is_known) {
            queues.push(queue);
        }
    }
    queues
}

pub(super) fn waiting([demand, ahead, prefetch]: [u64; 3]) -> WaitingStatus {
    WaitingStatus { demand, ahead, prefetch }
}

fn times(histogram: &Histogram) -> TimesStatus {
    let times = histogram.times();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let quantile = |part| times.quantile(part).map_or(0, us);
    TimesStatus {
        count: times.count(),
        sum_us: us(times.sum()),
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
    }
}

fn mount(entry: &Entry) -> MountStatus {
    let metrics = entry.mount.metrics();
    let ops = metrics.fuse_ops.all().into_iter().filter(|(_, count)| *count > 0);
    MountStatus {
        uri: entry.uri.clone(),
        dir: entry.dir.clone(),
        view: entry.is_view,
        mode: entry.mount.mode(),
        mode_reason: entry.mount.mode_reason(),
        uptime_s: entry.since.elapsed().as_secs_f64(),
        detached: entry.is_detached(),
        reads: ReadStatus {
            hit_bytes: metrics.hit_bytes.get(),
            miss_bytes: metrics.miss_bytes.get(),
        },
        read_times: ReadTimesStatus { hits: times(&metrics.hits), misses: times(&metrics.misses) },
        failed_reads: metrics.failed_reads.get(),
        not_seen: entry.mount.not_seen(),
        refused_writes: RefusedStatus {
            requests: metrics.refused.requests.get(),
            first: metrics.refused.first().map(str::to_owned),
        },
        download: entry.mount.download(),
        refusal: entry.mount.refusal(),
        fuse: FuseStatus {
            requests: metrics.fuse_requests.get(),
            ops: ops.map(|(name, count)| (name.to_owned(), count)).collect(),
        },
        warming: warming(entry.mount.warming()),
    }
}

fn warming(warming: Warming) -> WarmingStatus {
    let state = match warming.doing {
        Doing::Off => "off",
        Doing::Waiting => "waiting",
        Doing::Listing => "listing",
        Doing::Fetching => "fetching",
        Doing::Ahead => "ahead",
        Doing::Done => "done",
        Doing::Full => "full",
        Doing::NotKeeping => "not-keeping",
        Doing::DiskBehind => "disk-behind",
        Doing::Capped => "download-cap",
        Doing::RemoteFails => "remote-fails",
    };
    WarmingStatus {
        state: state.to_owned(),
        objects: warming.objects,
        bytes: warming.bytes,
        of_objects: warming.of_objects,
        all_is_too_large: warming.all_is_too_large,
    }
}

pub(super) fn remote(metrics: &RemoteMetrics) -> RemoteStatus {
    let plain = |of: &RequestMetrics| RequestStatus {
        requests: of.requests.get(),
        errors: of.errors.get(),
    };
    RemoteStatus {
        get: TransferStatus {
            requests: metrics.get.requests.get(),
            bytes: metrics.get.bytes.get(),
            errors: metrics.get.errors.get(),
        },
        list: plain(&metrics.list),
        head: plain(&metrics.head),
        throttled: metrics.throttled.get(),
        retries: RetryStatus {
            throttled: metrics.retries.throttled.get(),
            no_answer: metrics.retries.no_answer.get(),
            stalled: metrics.retries.stalled.get(),
            broken: metrics.retries.broken.get(),
            unreachable: metrics.retries.unreachable.get(),
        },
        hedges: HedgeStatus { sent: metrics.hedges_sent.get(), won: metrics.hedges_won.get() },
        from_origin: origin(&metrics.from_origin),
    }
}

fn remote_errors(metrics: &RemoteMetrics) -> BTreeMap<String, u64> {
    let kinds = [&metrics.get, &metrics.list, &metrics.head];
    let of = |reason| kinds.iter().map(|kind| kind.errors.of(reason)).sum::<u64>();
    let errors = Reason::ALL.into_iter().map(|reason| (reason.name().to_owned(), of(reason)));
    errors.filter(|(_, count)| *count > 0).collect()
}

fn remote_times(metrics: &RemoteMetrics) -> RemoteTimesStatus {
    RemoteTimesStatus {
        get_first_byte: times(&metrics.get.answered),
        get_last_byte: times(&metrics.get.finished),
        list: times(&metrics.list.answered),
        head: times(&metrics.head.answered),
    }
}

fn origin(metrics: &OriginMetrics) -> OriginStatus {
    OriginStatus {
        gets: metrics.gets.get(),
        bytes: metrics.bytes.get(),
        answers: metrics.answers(),
        unreachable: metrics.unreachable.get(),
        throttled: metrics.throttled.get(),
        full: metrics.full.get(),
        busy: metrics.busy.get(),
        failing: metrics.failing.get(),
        cold_range: metrics.cold_range.get(),
    }
}

/// This process's resident set in bytes; 0 if /proc cannot be read.
fn rss_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
