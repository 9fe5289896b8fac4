//! What others may see, what a key may name, and what a store may do to us.
//!
//! Other files hold parts of it: the control socket's bounds
//! (`control_socket.rs`), answers that are wrong in one request
//! (`remote_wire.rs`), the daemon's environment (`mount_cli.rs`).

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use common::Warmfs;
use common::store::{BUCKET, Store};
use common::stub::{Reply, Request, Stub};
use common::tree::{assert_same, noise};
use tokio::runtime::Runtime;
use warmfs::embedded_store::{Access, Fault, FaultRule, Op, StoreOptions};

/// `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// Retries of answers that are wrong each time take up to a minute.
const HOSTILE_LIMIT: Duration = Duration::from_secs(240);

/// Most memory that a daemon had at any time: 16 MiB as a rule, and 173 MiB with
/// the largest page that is taken, of the smallest entries.
const PEAK_BYTES_MAX: u64 = 300 << 20;

/// Everything at or below a folder, the folder included.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => all.extend(walk(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all
}

fn assert_harmless(text: &str, what: &str) {
    let control = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None, "{what}: {text:?}");
}

/// Whether this test may become another user; says so loudly if not.
fn is_root() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        eprintln!("SKIPPED, since only root can become another user");
    }
    root
}

/// Runs `work` on a thread that belongs to another user: the system calls, unlike
/// libc's functions of these names, are about the thread alone.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let become_nobody = || {
        // SAFETY: numbers, and a list of none.
        let results = unsafe {
            [
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()),
                libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
                libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
            ]
        };
        assert_eq!(results, [0; 3], "{}", io::Error::last_os_error());
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            become_nobody();
            work()
        });
        thread.join().unwrap()
    })
}

// Who may see what.

#[test]
fn files_are_private_whatever_the_umask() {
    let store = Store::start();
    store.put(BUCKET, "data/big", noise(1, 3 << 20));
    let warmfs = store.warmfs();
    let dir = warmfs.path("new/mount");
    let mut command = warmfs.command(&["mount", "s3://bucket/data", dir.to_str().unwrap()]);
    // SAFETY: one system call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0);
            Ok(())
        })
    };
    assert!(command.output().unwrap().status.success(), "{}", warmfs.log());
    assert_eq!(fs::read(dir.join("big")).unwrap().len(), 3 << 20);
    let found = [walk(&warmfs.cache()), walk(&warmfs.path("run/warmfs"))].concat();
    let mut kinds = [0; 3];
    for path in &found {
        let meta = fs::symlink_metadata(path).unwrap();
        let (kind, mode) = match meta.file_type() {
            kind if kind.is_dir() => (0, 0o700),
            kind if kind.is_socket() => (1, 0o600),
            _ => (2, 0o600),
        };
        kinds[kind] += 1;
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{}", path.display());
    }
    assert!(kinds[0] >= 4 && kinds[1] == 1 && kinds[2] >= 4, "{kinds:?}: {found:?}");
    // What is on the way to the mount point is not the cache's: the umask says.
    let mode = fs::metadata(warmfs.path("new")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o777);
    warmfs.unmount("new/mount");
}

#[test]
fn other_users_see_the_mount_only_if_they_may() {
    if !is_root() {
        return;
    }
    let warmfs = Warmfs::new();
    fs::set_permissions(warmfs.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = warmfs.mount("mount");
    let kind = |result: io::Result<()>| result.map_err(|error| error.kind());
    as_nobody(|| {
        let denied = Err(io::ErrorKind::PermissionDenied);
        assert_eq!(kind(fs::read_dir(&dir).map(drop)), denied);
        assert_eq!(kind(fs::read(dir.join("hello")).map(drop)), denied);
        assert_eq!(kind(fs::metadata(dir.join("hello")).map(drop)), denied);
        assert_eq!(kind(fs::read_dir(warmfs.cache()).map(drop)), denied);
    });
    let open = warmfs.path("open");
    warmfs.ok(&["mount", &warmfs.source(), open.to_str().unwrap(), "--allow-other"]);
    assert_eq!(as_nobody(|| fs::read_to_string(open.join("hello")).unwrap()), "hello, world");
    warmfs.unmount("open");
    warmfs.unmount("mount");
}

#[test]
fn the_socket_looks_at_who_asks() {
    if !is_root() {
        return;
    }
    let warmfs = Warmfs::new();
    warmfs.mount("mount");
    let run = warmfs.path("run/warmfs");
    let socket = fs::read_dir(&run).unwrap().next().unwrap().unwrap().path();
    let ask = || -> io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        let request = b"GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut answer = Vec::new();
        // A server that refuses may be gone before anything is sent.
        let _ = stream.write_all(request).and_then(|()| stream.read_to_end(&mut answer));
        Ok(String::from_utf8(answer).unwrap())
    };
    assert_eq!(as_nobody(ask).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    // As if all modes had failed.
    for path in [&warmfs.path(""), &warmfs.path("run"), &run] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_nobody(ask).unwrap(), "");
    assert!(warmfs.log().contains("user 65534 was refused"), "{}", warmfs.log());
    assert!(ask().unwrap().contains("\"mounts\""));
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    warmfs.unmount("mount");
}

#[test]
fn secrets_are_nowhere() {
    const SECRETS: [&str; 3] =
        ["sEcReT/KeY+oNe", "ToKeN//oFtHeSeSsIoN==", "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="];
    let access = Access::Key("AKIDOFTHETEST".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    store.put_some();
    let mut warmfs = store.warmfs();
    warmfs.set_env("WARMFS_LOG", "trace");
    warmfs.set_env("AWS_ACCESS_KEY_ID", "AKIDOFTHETEST");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", SECRETS[0]);
    warmfs.set_env("AWS_SESSION_TOKEN", SECRETS[1]);
    warmfs.set_env("WARMFS_CUSTOMER_KEY", SECRETS[2]);
    let mut said =
        warmfs.ok(&["mount", "s3://bucket/data", warmfs.path("mount").to_str().unwrap()]);
    fs::read(warmfs.path("mount/hello")).unwrap();
    let denied = Fault::Status { status: 403, code: "ExpiredToken".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(9, Op::Get, denied)]);
    fs::read(warmfs.path("mount/folder/inner")).unwrap_err();
    let other = warmfs.path("other");
    said += &warmfs.fails(&["mount", "s3://bucket/none", other.to_str().unwrap()]);
    said += &warmfs.ok(&["status"]);
    said += &warmfs.ok(&["status", "--json"]);
    let daemon = PathBuf::from(format!("/proc/{}", warmfs.daemon().unwrap()));
    let proc = |name: &str| fs::read(daemon.join(name)).unwrap();
    for name in ["cmdline", "environ"] {
        said += &String::from_utf8_lossy(&proc(name));
    }
    let limits = String::from_utf8(proc("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert!(warmfs.log().contains("GET s3://bucket/data/folder/inner"), "the log is there");
    warmfs.unmount("mount");

    let mut places = vec![("what was said".to_owned(), said.into_bytes())];
    for path in [walk(&warmfs.path("home")), walk(&warmfs.path("run"))].concat() {
        if path.is_file() {
            places.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    for secret in SECRETS {
        for (place, bytes) in &places {
            let at = bytes.windows(secret.len()).position(|window| window == secret.as_bytes());
            let around = at
                .map(|at| String::from_utf8_lossy(&bytes[at.saturating_sub(400)..at]).into_owned());
            assert_eq!(around, None, "{secret} is in {place}");
        }
    }
}

// What keys may do.

/// Keys that somebody on the way may take for a path elsewhere, or that steer
/// a terminal, and where they are shown.
const KEYS: [(&str, Option<&str>); 14] = [
    ("data/../../../../escape", None),
    ("data/..", None),
    ("data/./dot", None),
    ("data//absolute", None),
    ("/etc/escape", None),
    ("//escape", None),
    ("../escape", None),
    ("data/nul\0after", None),
    ("data/new\nline", Some("data/new\nline")),
    ("data/\x1b[2Jclear\x07", Some("data/\x1b[2Jclear\x07")),
    ("data/\u{9b}31mred", Some("data/\u{9b}31mred")),
    ("data/\u{1b}]0;title\u{7}/file", Some("data/\u{1b}]0;title\u{7}/file")),
    ("data/C:\\escape", Some("data/C:\\escape")),
    ("data/$(touch escape)`touch escape`", Some("data/$(touch escape)`touch escape`")),
];

#[test]
fn keys_name_nothing_outside_the_store() {
    let store = Store::start();
    for (key, _) in KEYS {
        store.put(BUCKET, key, Bytes::from(key.to_owned()));
    }
    let mut warmfs = store.warmfs();
    warmfs.set_env("WARMFS_LOG", "debug");
    let outside = || -> BTreeSet<PathBuf> {
        let mut names = walk(&warmfs.path("source"));
        names.extend(fs::read_dir(warmfs.path("")).unwrap().map(|entry| entry.unwrap().path()));
        names.extend(
            fs::read_dir(warmfs.path("home")).into_iter().flatten().flatten().map(|e| e.path()),
        );
        names.into_iter().filter(|path| path.file_name().unwrap() != "home").collect()
    };
    let dir = warmfs.mount_uri("s3://bucket", "mount");
    let before = outside();
    let shown: BTreeSet<Vec<u8>> = walk(&dir)
        .into_iter()
        .filter(|path| path.is_file())
        .map(|path| path.strip_prefix(&dir).unwrap().as_os_str().as_bytes().to_vec())
        .collect();
    let expected = KEYS.iter().filter_map(|(_, path)| path.map(|path| path.as_bytes().to_vec()));
    assert_eq!(shown, expected.collect());
    for (key, path) in KEYS {
        if let Some(path) = path {
            assert_same(&fs::read(dir.join(path)).unwrap(), key.as_bytes(), key);
        }
    }
    assert_eq!(outside(), before);
    assert_eq!(fs::read_dir(warmfs.path("home/.cache")).unwrap().count(), 1);
    for path in walk(&warmfs.cache()) {
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_hash = name.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        let is_ours =
            ["warmfs", "data", "lock", "index.redb", "index.sums", "warmfs.log"].contains(&name);
        assert!(is_hash || is_ours, "{}", path.display());
    }
    let text = warmfs.ok(&["status"]) + &warmfs.ok(&["status", "--json"]);
    assert_harmless(&text, "status");
    warmfs.unmount("mount");
    assert_harmless(&warmfs.log(), "the log");
}

#[test]
fn what_steers_a_terminal_reaches_none() {
    const ODD: &str = "\x1b[2J\x07\u{9b}31m";
    let store = Store::start();
    store.put(BUCKET, format!("{ODD}/file"), Bytes::from_static(b"x"));
    let warmfs = store.warmfs();
    let (uri, name) = (format!("s3://bucket/{ODD}"), format!("mount{ODD}"));
    let dir = warmfs.path(&name);
    let at = dir.to_str().unwrap();
    let mut said = warmfs.ok(&["mount", &uri, at]);
    said += &warmfs.ok(&["status"]);
    let json = warmfs.ok(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(status["mounts"][0]["uri"], uri.as_str());
    assert_eq!(status["mounts"][0]["dir"], at);
    said += &json;
    // Errors: in use, busy, unknown, nothing there, each with both names.
    said += &warmfs.fails(&["mount", "s3://bucket", at]);
    said +=
        &warmfs.fails(&["mount", &format!("{uri}/none"), warmfs.path("other").to_str().unwrap()]);
    said += &warmfs.fails(&["unmount", warmfs.path(&format!("none{ODD}")).to_str().unwrap()]);
    said += &warmfs.fails(&["mount", &format!("{ODD}://bucket"), at]);
    let file = File::open(dir.join("file")).unwrap();
    said += &warmfs.fails(&["unmount", at]);
    said += &warmfs.ok(&["unmount", "--lazy", at]);
    assert!(said.contains("detached") && said.contains("busy"), "{said}");
    assert_harmless(&said, "what was said");
    drop(file);
    common::eventually("the daemon ends", || warmfs.daemon().is_none());
    assert_harmless(&warmfs.log(), "the log");
}

// What a store may do.

/// A store that lists one folder `bad` and one object, and is hostile beyond.
struct Hostile {
    stub: Stub,
    warmfs: Warmfs,
    dir: PathBuf,
    _runtime: Runtime,
}

const CONTENT: &[u8] = b"what the object really holds, of which every byte is told from the next";

fn listing(inner: &str) -> Reply {
    Reply::new(200, &[], format!("<ListBucketResult>{inner}</ListBucketResult>"))
}

fn object(name: &str, size: impl std::fmt::Display) -> String {
    format!("<Contents><Key>data/{name}</Key><Size>{size}</Size><ETag>\"e\"</ETag></Contents>")
}

impl Hostile {
    /// Mounts what behaves, but for the folder `bad` and for GETs.
    fn mount(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Hostile {
        let runtime = Runtime::new().unwrap();
        let stub = runtime.block_on(Stub::start(move |request| {
            if !request.is_list() {
                return answer(request);
            }
            match request.target() {
                target if target.contains("prefix=data%2Fbad%2F") => answer(request),
                target
                    if target.contains("prefix=data%2F&") || target.ends_with("prefix=data%2F") =>
                {
                    let folder = "<CommonPrefixes><Prefix>data/bad/</Prefix></CommonPrefixes>";
                    listing(&(object("object", CONTENT.len()) + folder))
                }
                _ => Reply::empty_list(),
            }
        }));
        let mut warmfs = Warmfs::with_limit(HOSTILE_LIMIT);
        warmfs.set_env("WARMFS_ENDPOINT_URL", stub.url());
        warmfs.set_env("AWS_ACCESS_KEY_ID", "AKIDOFTHETEST");
        warmfs.set_env("AWS_SECRET_ACCESS_KEY", "hidden");
        let dir = warmfs.mount_uri("s3://bucket/data", "mount");
        Hostile { stub, warmfs, dir, _runtime: runtime }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.dir.join("bad"))?;
        entries.map(|entry| Ok(entry?.file_name().into_string().unwrap())).collect()
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        fs::read(self.dir.join("object"))
    }

    /// The daemon lives, never took much memory, says nothing odd, and goes.
    fn end(self) {
        let pid = self.warmfs.daemon().expect("the daemon lives");
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak << 10 < PEAK_BYTES_MAX, "{peak} KiB of memory");
        assert_harmless(&self.warmfs.ok(&["status"]), "status");
        self.warmfs.unmount("mount");
        assert_harmless(&self.warmfs.log(), "the log");
    }
}

/// Headers of a right answer to a GET of [`CONTENT`].
const RIGHT: &str = "HTTP/1.1 206 Partial\r\netag: \"e\"\r\ncontent-range: bytes 0-70/71\r\n";

#[test]
fn a_listing_without_end_is_given_up() {
    let next = |request: &Request| {
        let tokens = ["alpha", "beta", "gamma"];
        let at = tokens.iter().position(|token| request.target().contains(token));
        tokens[at.map_or(0, |at| (at + 1) % 3)]
    };
    let more = |token: &str, inner: &str| {
        listing(&format!(
            "{inner}<IsTruncated>true</IsTruncated>\
             <NextContinuationToken>{token}</NextContinuationToken>"
        ))
    };
    let around = Hostile::mount(move |request| more(next(request), &object("bad/x", 1)));
    around.list().unwrap_err();
    assert!(around.stub.requests().len() < 100, "{}", around.stub.requests().len());
    around.end();

    let count = std::sync::atomic::AtomicU64::new(0);
    let fresh = Hostile::mount(move |_| {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        more(&format!("token{n}"), "")
    });
    fresh.list().unwrap_err();
    assert!(fresh.stub.requests().len() < 3_000, "{}", fresh.stub.requests().len());
    assert_eq!(fs::metadata(fresh.dir.join("object")).unwrap().len(), 71);
    fresh.end();
}

#[test]
fn a_page_that_is_too_large_is_given_up() {
    let tiny = "<Contents/>".repeat((6 << 20) / 11 - 10);
    let large = Hostile::mount(move |_| listing(&tiny));
    large.list().unwrap_err();
    large.end();

    let one = object("bad/x", 1).into_bytes();
    let head = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<ListBucketResult>";
    let endless = Hostile::mount(move |_| Reply::endless(head, &one));
    endless.list().unwrap_err();
    endless.end();
}

#[test]
fn a_size_that_no_object_has_is_refused() {
    let sizes = Hostile::mount(|_| listing(&object("bad/x", i64::MAX)));
    sizes.list().unwrap_err();
    sizes.end();

    // The largest that is believed costs no memory at either end.
    const SIZE: u64 = 1 << 46;
    let largest = Hostile::mount(|request| {
        if request.is_list() {
            return listing(&object("bad/x", SIZE));
        }
        let range = request.header("range").unwrap().strip_prefix("bytes=").unwrap();
        let (start, last) = range.split_once('-').unwrap();
        let length = last.parse::<usize>().unwrap() + 1 - start.parse::<usize>().unwrap();
        let range = format!("bytes {range}/{SIZE}");
        Reply::new(206, &[("etag", "\"e\""), ("content-range", &range)], vec![7; length])
    });
    assert_eq!(largest.list().unwrap(), ["x"]);
    let file = File::open(largest.dir.join("bad/x")).unwrap();
    let mut bytes = [0; 1_000];
    for at in [0, SIZE / 2, SIZE - 1_000] {
        file.read_exact_at(&mut bytes, at).unwrap();
        assert_eq!(bytes, [7; 1_000], "at {at}");
    }
    drop(file);
    largest.end();
}

#[test]
fn a_body_without_end_is_cut() {
    let [first, rest] = [&CONTENT[..10], &CONTENT[10..]].map(|part| String::from_utf8_lossy(part));
    for length in ["content-length: 1152921504606846976", "connection: close"] {
        let head = format!("{RIGHT}{length}\r\n\r\n{first}{rest}");
        let hostile = Hostile::mount(move |_| Reply::endless(&head, &[b'x'; 65_536]));
        assert_same(&hostile.read().unwrap(), CONTENT, length);
        assert_eq!(hostile.stub.requests().iter().filter(|r| !r.is_list()).count(), 1);
        hostile.end();
    }
}

#[test]
fn lengths_and_ranges_that_lie_give_no_wrong_bytes() {
    let body = String::from_utf8_lossy(CONTENT);
    for fields in [
        "content-length: -1",
        "content-length: 99999999999999999999",
        "content-length: 71\r\ncontent-length: 70",
        "content-length: 71\r\ncontent-range: bytes 1-70/71",
        "content-length: 71\r\ncontent-range: bytes 0-70/18446744073709551616",
        "content-length: 71\r\ncontent-range: bytes 0-70/9223372036854775807",
        "content-length: 71\r\ncontent-range: bytes 0-70/70",
        "content-length: 71\r\ncontent-range: bytes 71-70/71",
        "content-length: 71\r\ncontent-range: \x01",
    ] {
        let status = "HTTP/1.1 206 Partial\r\netag: \"e\"\r\nconnection: close\r\n";
        let answer = format!("{status}{fields}\r\n\r\n{body}");
        let hostile = Hostile::mount(move |_| Reply::raw(answer.clone()));
        let result = hostile.read();
        assert!(result.is_err(), "{fields}: {result:?}");
        hostile.end();
    }
}

#[test]
fn a_redirect_is_not_followed() {
    let runtime = Runtime::new().unwrap();
    let elsewhere = runtime.block_on(Stub::start(|_| {
        Reply::new(206, &[("etag", "\"e\""), ("content-range", "bytes 0-70/71")], CONTENT)
    }));
    for status in [301, 302, 303, 307, 308] {
        let to = format!("{}/bucket/data/object", elsewhere.url());
        let hostile = Hostile::mount(move |_| {
            let fields = [("location", to.as_str()), ("x-amz-bucket-region", "evil.example/#")];
            let body = "<Error><Code>TemporaryRedirect</Code>\
                        <Endpoint>evil.example</Endpoint></Error>";
            Reply::new(status, &fields, body)
        });
        hostile.read().unwrap_err();
        hostile.list().unwrap_err();
        hostile.end();
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn nothing_is_unpacked() {
    // What `gzip` makes of much: the header of one, whatever follows.
    let mut packed = b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec();
    packed.resize(CONTENT.len(), 0xff);
    let body = packed.clone();
    let hostile = Hostile::mount(move |_| {
        let fields =
            [("etag", "\"e\""), ("content-range", "bytes 0-70/71"), ("content-encoding", "gzip")];
        Reply::new(206, &fields, &body)
    });
    assert_same(&hostile.read().unwrap(), &packed, "as it is stored");
    for request in hostile.stub.requests() {
        let wanted = request.header("accept-encoding").unwrap_or("identity");
        assert_eq!(wanted, "identity", "{request:?}");
    }
    hostile.end();
}

#[test]
fn a_flood_of_headers_is_refused() {
    let many = format!("{RIGHT}{}\r\n", "x-flood: y\r\n".repeat(5_000));
    let hostile = Hostile::mount(move |_| Reply::raw(many.clone()));
    hostile.read().unwrap_err();
    hostile.end();
    let hostile = Hostile::mount(|_| Reply::endless(RIGHT, &[b'x'; 65_536]));
    hostile.read().unwrap_err();
    hostile.end();
}
