//! Fuzz targets for what comes through the socket and from the lock file.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cache_lock::{LockRecord, parse_record};
use super::client::understand;
use super::wire::*;
use super::{PROTOCOL, PROTOCOL_HEADER};
use crate::config::{IndexSource, MountOptions, MountRequest, OpenModeOption, RemoteOptions};
use crate::fuzz::{Effort, Target, fuzz_tests};

fuzz_tests!(requests, replies, lock_records);

const WORDS: &[&str] =
    &["\"", "{", "}", "[[[[[[[[", "null", "1e999", "-1", "\\ud800", "\\u0000", "\"dir\":", "true"];

/// Text in memory, parsed twice and printed once; a map's nodes are the largest
/// that a few bytes turn into.
const MEMORY: (usize, usize) = (32 << 10, 256);

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

/// Whether `input` is a `T`; if so, it comes back from its own text.
fn parses<T: Serialize + DeserializeOwned + PartialEq + Debug>(input: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<T>(input) else { return false };
    // A path of the peer's may hold what cannot be sent back.
    let again = serde_json::from_slice::<T>(&text(&value)).unwrap();
    assert_eq!(again, value);
    true
}

fn mount_request() -> MountRequest {
    let options = MountOptions {
        remote: RemoteOptions { region: Some("eu".to_owned()), ..RemoteOptions::default() },
        metadata_ttl: Duration::new(3_600, 1),
        allow_other: true,
        uid: 1_000,
        open_mode: OpenModeOption::Cached,
        ..MountOptions::default()
    };
    let env = [("AWS_SECRET_ACCESS_KEY", "x")].into_iter().collect();
    MountRequest {
        uri: "s3://b/p".to_owned(),
        dir: Some("/mnt/é".into()),
        index: Some(IndexSource::Uri("s3://b/i".to_owned())),
        options,
        env,
    }
}

fn requests(effort: Effort) {
    let target = Target {
        name: "requests at the socket",
        corpus: vec![
            text(&mount_request()),
            text(&UnmountRequest { dir: "/d".into(), lazy: true }),
            text(&WaitRequest { dir: "/d".into() }),
            text(&MountRequest { dir: None, ..mount_request() }),
            text(&StatRequest { path: "s3://b/p/é".into() }),
            text(&ReadRequest {
                dir: "s3://b/p".into(),
                uri: "s3://b/p".to_owned(),
                ino: 1,
                version: "\"e\"".to_owned(),
                offset: 1 << 40,
                length: u64::MAX,
            }),
        ],
        words: WORDS,
        inputs: 20_000,
        memory: MEMORY,
    };
    target.run(effort, |input| {
        parses::<MountRequest>(input)
            | parses::<UnmountRequest>(input)
            | parses::<WaitRequest>(input)
            | parses::<StatRequest>(input)
            | parses::<ReadRequest>(input)
    });
}

fn status() -> StatusReply {
    let ops = [("read".to_owned(), 7)].into_iter().collect();
    let mount = MountStatus {
        refusal: None,
        uri: "s3://b".to_owned(),
        dir: "/d".into(),
        view: true,
        mode: "cached".to_owned(),
        mode_reason: String::new(),
        uptime_s: 0.5,
        detached: false,
        reads: ReadStatus::default(),
        read_times: ReadTimesStatus::default(),
        failed_reads: 0,
        not_seen: "some".to_owned(),
        refused_writes: RefusedStatus { requests: 1, first: Some("mkdir a".to_owned()) },
        download: DownloadStatus::default(),
        fuse: FuseStatus { requests: 7, ops },
        warming: WarmingStatus { state: "ahead".to_owned(), ..WarmingStatus::default() },
    };
    StatusReply {
        uptime_s: 1.5,
        metrics_listen: Some(([127, 0, 0, 1], 9464).into()),
        troubles: vec![TroubleStatus { what: "what".to_owned(), next: "next".to_owned() }],
        remote_errors: [("transient".to_owned(), 7)].into(),
        remote_times: RemoteTimesStatus::default(),
        reads: ReadStatus::default(),
        rates: RatesStatus { seconds: vec![SampleStatus::default()], ..Default::default() },
        queues: QueuesStatus {
            remotes: vec![RemoteQueueStatus::default()],
            ..QueuesStatus::default()
        },
        restarts: RestartStatus { count: 2, reason: Some("killed".to_owned()) },
        schema: STATUS_SCHEMA,
        pid: 1,
        version: "0.1.0".to_owned(),
        mounts: vec![mount.clone(), mount],
        cache: CacheStatus { state: "ok".to_owned(), ..CacheStatus::default() },
        remote: RemoteStatus::default(),
        repairs: u64::MAX,
        passed_by_bytes: u64::MAX,
        evictions: EvictionStatus::default(),
        prefetched: PrefetchStatus::default(),
        prefetching: Vec::new(),
        memory: MemoryStatus { rss_bytes: 1 << 20, ..MemoryStatus::default() },
    }
}

fn replies(effort: Effort) {
    let ping = Ping {
        pid: 1,
        version: "1".to_owned(),
        cache_dir: "/c".into(),
        cache_size: None,
        memory_limit: None,
        metadata_memory: None,
        log_file: Some("/log".into()),
        metrics_listen: None,
    };
    let target = Target {
        name: "replies of a daemon",
        corpus: vec![
            text(&ErrorReply::new(ErrorCode::Busy, "busy").with_hint("wait")),
            text(&MountReply { uri: "s3://b".to_owned(), dir: "/d".into(), existed: true }),
            text(&ping),
            text(&StatReply {
                dir: "/d".into(),
                uri: "s3://b".to_owned(),
                ino: 7,
                row: Row::default(),
            }),
            text(&status()),
            text(&UnmountReply { daemon_exits: true, still_in_use: false }),
        ],
        words: WORDS,
        inputs: 20_000,
        memory: MEMORY,
    };
    let parts = |status: u16| {
        let response = http::Response::builder().status(status).header(PROTOCOL_HEADER, PROTOCOL);
        response.body(()).unwrap().into_parts().0
    };
    let (good, bad) = (parts(200), parts(500));
    target.run(effort, |input| {
        let socket = Path::new("/s");
        let refused = understand::<Ping>(&bad, input, socket).unwrap_err();
        for error in [Some(refused), understand::<StatusReply>(&good, input, socket).err()] {
            let shown = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
        parses::<ErrorReply>(input)
            | parses::<MountReply>(input)
            | parses::<Ping>(input)
            | parses::<UnmountReply>(input)
            | parses::<StatReply>(input)
            // Its times are fractions, which may change in their last digit.
            | serde_json::from_slice::<StatusReply>(input).is_ok()
    });
}

fn lock_records(effort: Effort) {
    let mut padded = text(&LockRecord { pid: 7, socket: "/run/x.sock".into(), supervisor: 6 });
    let short = padded.clone();
    padded.resize(4_096, b' ');
    let target = Target {
        name: "the lock's record",
        corpus: vec![short, padded],
        words: WORDS,
        inputs: 20_000,
        memory: MEMORY,
    };
    target.run(effort, |input| {
        parses::<LockRecord>(input);
        parse_record(input).is_some()
    });
}
