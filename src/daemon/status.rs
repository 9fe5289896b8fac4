//! The daemon's state, as `warmfs status` shows it.

use std::sync::Arc;

use super::engine::Engine;
use super::table::Entry;
use crate::cache::{Doing, Warming};
use crate::control::wire::{
    EvictionStatus, FuseStatus, HedgeStatus, MemoryStatus, MountStatus, OriginStatus,
    PrefetchStatus, ReadStatus, RemoteStatus, RequestStatus, RestartStatus, RetryStatus,
    STATUS_SCHEMA, StatusReply, TransferStatus, WarmingStatus,
};
use crate::metrics::{OriginMetrics, RemoteMetrics, RequestMetrics};

pub(super) fn collect(
    engine: &dyn Engine,
    entries: &[Arc<Entry>],
    restarts: RestartStatus,
) -> StatusReply {
    let cache = engine.cache_metrics();
    StatusReply {
        schema: STATUS_SCHEMA,
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        restarts,
        mounts: entries.iter().map(|entry| mount(entry)).collect(),
        cache: engine.cache_status(),
        remote: remote(engine.remote_metrics()),
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
        prefetching: Vec::new(),
        memory: MemoryStatus { rss_bytes: rss_bytes() },
    }
}

fn mount(entry: &Entry) -> MountStatus {
    let metrics = entry.mount.metrics();
    let ops = metrics.fuse_ops.all().into_iter().filter(|(_, count)| *count > 0);
    MountStatus {
        uri: entry.uri.clone(),
        dir: entry.dir.clone(),
        mode: entry.mount.mode(),
        mode_reason: entry.mount.mode_reason(),
        uptime_s: entry.since.elapsed().as_secs_f64(),
        detached: entry.is_detached(),
        reads: ReadStatus {
            hit_bytes: metrics.hit_bytes.get(),
            miss_bytes: metrics.miss_bytes.get(),
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
