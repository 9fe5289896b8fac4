//! `GET /metrics`: what it says equals what the store's log, the disk and the kernel say,
//! a parser that is not ours reads it, and the document names all of it and no more.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::epoch::du;
use common::server::venv;
use common::store::Store;
use common::tree::{Tree, noise};
use common::{STEP_TIMEOUT, Warmfs, eventually};
use serde_json::Value;
use warmfs::embedded_store::{Fault, FaultRule, Op};

/// Prints what `prometheus_client` makes of a text: names, types, samples with labels.
const PARSER: &str = "
import json, sys
from prometheus_client.parser import text_string_to_metric_families as parse
families = list(parse(sys.stdin.read()))
samples = [[s.name, s.labels, repr(s.value)] for f in families for s in f.samples]
print(json.dumps({'types': {f.name: f.type for f in families}, 'samples': samples}))
";

/// What the parser found.
struct Parsed {
    types: BTreeMap<String, String>,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Parsed {
    fn of(text: &str) -> Parsed {
        let mut child = Command::new(venv().join("bin/python"))
            .args(["-c", PARSER])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a parser that ./check installs");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "it is not read: {text}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let types = serde_json::from_value(found["types"].clone()).unwrap();
        let samples: Vec<(String, BTreeMap<String, String>, String)> =
            serde_json::from_value(found["samples"].clone()).unwrap();
        let number = |text: String| text.parse().unwrap();
        let samples = samples.into_iter().map(|(n, l, v)| (n, l, number(v))).collect();
        Parsed { types, samples }
    }

    /// The sum of all samples of a name with these labels among theirs.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of_these = self.samples.iter().filter(|(sample, theirs, _)| {
            sample == name
                && labels
                    .iter()
                    .all(|(label, text)| theirs.get(*label).is_some_and(|theirs| theirs == text))
        });
        let values: Vec<f64> = of_these.map(|(_, _, value)| *value).collect();
        assert!(!values.is_empty(), "no {name} {labels:?}");
        values.iter().sum()
    }
}

/// Asks the daemon's own socket.
fn metrics(warmfs: &Warmfs) -> String {
    let stream = UnixStream::connect(warmfs.record().unwrap().socket).unwrap();
    stream.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
    let (head, body) =
        exchange(stream, "GET /metrics HTTP/1.1\r\nhost: d\r\nconnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("text/plain; version=0.0.4"), "{head}");
    body
}

fn exchange(mut stream: impl Read + Write, request: &str) -> (String, String) {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_owned(), body.to_owned())
}

/// A store with two refusals before it works, and a mount of it that was read once.
fn read_once(store: &Store, tree: &Tree) -> Warmfs {
    store.put_tree("", tree);
    let busy = Fault::Status { status: 503, code: "SlowDown".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(2, Op::Get, busy)]);
    let mut warmfs = store.warmfs();
    // So that each body is asked for by its reader and read to its end.
    warmfs.set_env("WARMFS_WARM", "off");
    let mount = warmfs.mount_uri("s3://bucket", "mo\"unt");
    assert_eq!(fs::read(mount.join("missing")).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    tree.assert_equals(&mount, "cold");
    warmfs
}

fn some_files() -> Tree {
    let mut tree = Tree::of_all_sizes(0);
    tree.files.insert("big".to_owned(), noise(1, (20 << 20) + 5));
    tree
}

#[test]
fn figures_equal_those_of_the_store_the_disk_and_the_kernel() {
    let (store, tree) = (Store::start(), some_files());
    let warmfs = read_once(&store, &tree);
    eventually("every object is in the cache", || {
        warmfs.status()["cache"]["objects"] == tree.filled()
    });
    let (status, counts) = (warmfs.status(), store.counts());
    let parsed = Parsed::of(&metrics(&warmfs));
    let mount = warmfs.path("mo\"unt");
    let at = [("mount", mount.to_str().unwrap())];

    for (kind, requests) in [
        ("get", counts.get.requests),
        ("list", counts.list.requests),
        ("head", counts.head.requests),
    ] {
        let sent = parsed.sum("warmfs_remote_requests_total", &[("kind", kind)]);
        assert_eq!(sent, requests as f64, "{kind}");
    }
    let throttled = [("kind", "get"), ("reason", "throttled")];
    assert_eq!(parsed.sum("warmfs_remote_errors_total", &throttled), 2.0);
    assert_eq!(parsed.sum("warmfs_remote_errors_total", &[]), 2.0);
    assert_eq!(parsed.sum("warmfs_remote_retries_total", &[("reason", "throttled")]), 2.0);
    assert_eq!(parsed.sum("warmfs_remote_received_bytes_total", &[]), tree.bytes() as f64);
    assert_eq!(status["remote_errors"]["throttled"], 2);

    // Every GET that was not refused brought a first byte and a last one.
    let took = "warmfs_remote_request_duration_seconds_count";
    for (kind, answers) in [
        ("get-first-byte", counts.get.requests - 2),
        ("get-last-byte", counts.get.requests - 2),
        ("list", counts.list.requests),
        ("head", counts.head.requests),
    ] {
        assert_eq!(parsed.sum(took, &[("kind", kind)]), answers as f64, "{kind}");
    }
    assert_eq!(status["remote_times"]["get_first_byte"]["count"], counts.get.requests - 2);

    let read = parsed.sum("warmfs_read_bytes_total", &at);
    let all = tree.bytes() as f64;
    assert!((all..=all * 1.01).contains(&read), "the kernel read {read} of {all}");
    assert_eq!(parsed.sum("warmfs_served_bytes_total", &[]), read);
    let reads = parsed.sum("warmfs_fuse_requests_total", &[at[0], ("kind", "read")]);
    assert_eq!(parsed.sum("warmfs_read_duration_seconds_count", &at), reads);
    assert_eq!(parsed.sum("warmfs_read_errors_total", &at), 0.0);

    eventually("used bytes are what du says", || {
        let used = Parsed::of(&metrics(&warmfs)).sum("warmfs_cache_used_bytes", &[]);
        let du = du(&warmfs.cache()) as f64;
        (used - du).abs() <= du / 100.0 + f64::from(1 << 20)
    });
    assert_eq!(parsed.sum("warmfs_cache_objects", &[]), tree.filled() as f64);
    assert_eq!(parsed.sum("warmfs_dataset_bytes", &[]), all);
    let free = nix::sys::statvfs::statvfs(&warmfs.cache()).unwrap();
    let free = (free.blocks_available() * free.fragment_size()) as f64;
    let shown = parsed.sum("warmfs_cache_disk_free_bytes", &[]);
    // Others use the disk too.
    assert!((shown - free).abs() < free / 10.0, "{shown} and {free}");
    let budget = parsed.sum("warmfs_memory_budget_bytes", &[]);
    let limit = parsed.sum("warmfs_memory_limit_bytes", &[]);
    assert_eq!(budget, limit / 8.0 * 5.0);
    eventually("nothing is on its way any more", || {
        let parsed = Parsed::of(&metrics(&warmfs));
        parsed.sum("warmfs_disk_queue_bytes", &[]) == 0.0
            && parsed.sum("warmfs_requests_in_flight", &[]) == 0.0
            && parsed.sum("warmfs_requests_waiting", &[]) == 0.0
    });

    // Sampled each second: what was read is in the last minute within two.
    eventually("the last minute has it all", || {
        let minute = warmfs.status()["rates"]["minute"].clone();
        minute["remote_bytes"] == tree.bytes()
            && minute["requests"]
                == counts.get.requests + counts.list.requests + counts.head.requests
            && minute["errors"] == 2
            && minute["hit_bytes"].as_u64().unwrap() + minute["miss_bytes"].as_u64().unwrap()
                == read as u64
    });
    // A mount that ended takes its own figures along, and not those of the daemon.
    warmfs.mount_uri("s3://bucket", "second");
    warmfs.unmount("mo\"unt");
    let parsed = Parsed::of(&metrics(&warmfs));
    assert_eq!(parsed.sum("warmfs_served_bytes_total", &[]), read);
    assert_eq!(parsed.sum("warmfs_read_bytes_total", &[]), 0.0);
}

/// What docs/metrics.md has in its tables: name, type, labels.
fn documented() -> BTreeSet<(String, String, String)> {
    let text = fs::read_to_string("docs/metrics.md").unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `warmfs_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let plain = |cell: &str| cell.replace(['`', ' '], "");
        (plain(cells[1]), plain(cells[2]), plain(cells[3]))
    })
    .collect()
}

#[test]
fn the_document_names_every_figure_and_no_other() {
    let store = Store::start();
    let warmfs = read_once(&store, &some_files());
    let text = metrics(&warmfs);
    let parsed = Parsed::of(&text);
    let mut shown = BTreeSet::new();
    for line in text.lines() {
        let Some(declared) = line.strip_prefix("# TYPE ") else { continue };
        let (name, kind) = declared.split_once(' ').unwrap();
        let of_it = [name.to_owned(), format!("{name}_bucket")];
        let labels: BTreeSet<&str> = parsed
            .samples
            .iter()
            .filter(|(sample, ..)| of_it.contains(sample))
            .flat_map(|(_, labels, _)| labels.keys().map(String::as_str))
            .filter(|label| *label != "le")
            .collect();
        let labels: Vec<&str> = labels.into_iter().collect();
        shown.insert((name.to_owned(), kind.to_owned(), labels.join(",")));
    }
    assert_eq!(shown, documented());
    // The parser takes `_total` off a counter's name.
    assert_eq!(parsed.types.len(), shown.len());
    let names: Vec<&str> = text.lines().filter(|line| line.starts_with("# HELP")).collect();
    assert_eq!(names.len(), shown.len(), "each family comes once");
}

#[test]
fn over_tcp_there_is_this_one_answer_and_nobody_else_hears_it() {
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    let mount = warmfs.path("mount");
    let mount = mount.to_str().unwrap();
    let line = warmfs.fails(&["mount", "s3://bucket", mount, "--metrics-listen", "0.0.0.0:0"]);
    assert!(line.contains("--metrics-public"), "{line}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let there = taken.local_addr().unwrap().to_string();
    let line = warmfs.fails(&["mount", "s3://bucket", mount, "--metrics-listen", &there]);
    assert!(line.contains(&there) && line.contains("--metrics-listen"), "{line}");
    warmfs.assert_nothing_left(&["mount"]);

    let listen = ["--metrics-listen", "127.0.0.1:0"];
    let mount = warmfs.mount_with("s3://bucket", "mount", &listen);
    let told: SocketAddr = warmfs.status()["metrics_listen"].as_str().unwrap().parse().unwrap();
    assert!(told.ip().is_loopback());
    let ask = |request: &str| {
        let stream = TcpStream::connect(told).unwrap();
        stream.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        exchange(stream, request)
    };
    assert_eq!(fs::read(mount.join("data/hello")).unwrap(), b"data/hello");
    let (head, body) = ask("GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("version=0.0.4"), "{head}");
    let received = Parsed::of(&body).sum("warmfs_remote_received_bytes_total", &[]);
    assert_eq!(received, store.counts().get.bytes as f64);
    for (request, status) in [
        ("POST /metrics HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n", "405"),
        ("GET /v1/status HTTP/1.1\r\nhost: h\r\n\r\n", "404"),
        ("DELETE /v1/mounts HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}", "404"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let (head, _) = ask(request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
    }
    // More than may be at once: those that are too many are closed, and it goes on.
    let idle: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(told).unwrap()).collect();
    eventually("a connection too many is closed", || {
        idle.iter().any(|stream| {
            stream.set_nonblocking(true).unwrap();
            matches!((&*stream).read(&mut [0]), Ok(0) | Err(_))
                && matches!(stream.peek(&mut [0]), Ok(0))
        })
    });
    drop(idle);
    eventually("it answers again", || {
        let Ok(mut stream) = TcpStream::connect(told) else { return false };
        stream.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        let mut answer = String::new();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: h\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
        answer.starts_with("HTTP/1.1 200")
    });

    let other = warmfs.path("other");
    let args = ["mount", "s3://bucket", other.to_str().unwrap()];
    let line = warmfs.fails(&[&args[..], &["--metrics-listen", "127.0.0.1:1"]].concat());
    assert!(line.contains("127.0.0.1:0"), "{line}");
    warmfs.ok(&[&args[..], &listen].concat());
    warmfs.unmount("other");
    warmfs.unmount("mount");
    assert!(TcpStream::connect(told).is_err(), "gone with its daemon");
}
