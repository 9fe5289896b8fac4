//! `warmfs doctor` on machines and stores with one thing wrong. Each runs in a mount
//! namespace of its own: it cleans up dead mounts, also those of other tests.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use common::machine::{is_root, skip};
use common::store::Store;
use common::stub::{Reply, Request, Stub};
use common::{Warmfs, eventually};
use warmfs::embedded_store::{Access, StoreOptions};

/// What was found, from its JSON.
struct Report(serde_json::Value, i32);

impl Report {
    /// The only finding of a check: its level and its text, with the hint.
    fn of(&self, check: &str) -> (String, String) {
        let findings = self.0["findings"].as_array().unwrap();
        let mut found = findings.iter().filter(|finding| finding["check"] == check);
        let finding = found.next().unwrap_or_else(|| panic!("no {check} in {}", self.0));
        assert!(found.next().is_none(), "{check} twice in {}", self.0);
        let text = |name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        (text("level"), format!("{} -> {}", text("message"), text("hint")))
    }

    fn assert(&self, check: &str, level: &str, word: &str) {
        let (is, text) = self.of(check);
        assert!(is == level && text.contains(word), "{check}: {is} {text}");
    }

    fn has(&self, check: &str) -> bool {
        self.0["findings"].as_array().unwrap().iter().any(|finding| finding["check"] == check)
    }
}

/// Runs a shell's words `set_up`, then `warmfs doctor` with `args`, where no mount of it is
/// anybody else's.
fn command(warmfs: &Warmfs, set_up: &str, args: &[&str]) -> Command {
    let doctor = warmfs.command(&[&["doctor"], args].concat());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg(format!("set -e; {set_up}\nexec \"$@\"")).arg("sh");
    command.arg(doctor.get_program()).args(doctor.get_args());
    for (name, value) in doctor.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

fn run(warmfs: &Warmfs, set_up: &str, args: &[&str]) -> Report {
    report(&command(warmfs, set_up, &[args, &["--json"]].concat()).output().unwrap())
}

fn report(output: &Output) -> Report {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(stderr, "");
    assert_eq!(json["schema"], 1);
    let code = output.status.code().unwrap();
    let fails = json["findings"].as_array().unwrap().iter().any(|f| f["level"] == "fail");
    assert_eq!((json["ok"] == false, code), (fails, i32::from(fails)));
    Report(json, code)
}

/// Mount namespaces need root.
fn may_unshare() -> bool {
    if !is_root() {
        skip("warmfs doctor", "a mount namespace needs root");
    }
    is_root()
}

#[test]
fn what_is_well_is_told_in_lines_that_fit() {
    if !may_unshare() {
        return;
    }
    let store = Store::start();
    store.put_some();
    let mut warmfs = store.warmfs();
    let before = store.log().len();
    let report = run(&warmfs, "", &[]);
    assert_eq!(report.1, 0, "{}", report.0);
    for check in ["kernel", "fuse", "fusermount3", "privilege", "container", "open-mode"] {
        report.of(check);
    }
    for check in ["cache", "disk", "inodes", "descriptors", "daemon", "mounts"] {
        report.of(check);
    }
    assert!(!report.has("endpoint") && !report.has("list"));
    assert_eq!(store.log().len(), before, "no network without a URI");
    assert!(!warmfs.cache().exists(), "nothing is made");

    warmfs.set_env("AWS_ACCESS_KEY_ID", "shown");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "hidden-secret");
    let output = command(&warmfs, "", &["s3://bucket/data"]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("hidden-secret"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80 || !line.trim().contains(' '), "{line:?}");
    }
    let report = run(&warmfs, "", &["s3://bucket/data"]);
    report.assert("endpoint", "ok", &store.url());
    report.assert("proxy", "ok", "none");
    report.assert("dns", "ok", "1 address");
    report.assert("answer", "ok", "it answers");
    report.assert("clock", "ok", "within");
    report.assert("credentials", "ok", "AWS_ACCESS_KEY_ID");
    report.assert("connect", "ok", "s3://bucket/data");
    report.assert("list", "ok", "2 objects");
    report.assert("get", "ok", "first byte after");
    let get = report.0["findings"].as_array().unwrap().iter().find(|f| f["check"] == "get");
    assert!(get.unwrap()["bytes_per_second"].as_f64().unwrap() > 0.0);
    // A folder has no network to be looked at.
    let report = run(&warmfs, "", &[&warmfs.source()]);
    assert!(!report.has("clock"));
    report.assert("get", "ok", "12 B");
}

#[test]
fn a_machine_without_fuse_is_told_what_it_lacks() {
    if !may_unshare() {
        return;
    }
    let warmfs = Warmfs::new();
    let hidden = "mount -t tmpfs none /dev; mknod /dev/null c 1 3; chmod 666 /dev/null";
    let report = run(&warmfs, hidden, &[]);
    report.assert("fuse", "fail", "modprobe fuse");
    // A container may show the device and forbid it.
    let forbidden = "mount -t tmpfs -o nodev none /mnt; mknod /mnt/fuse c 10 229; \
                     mount --bind /mnt/fuse /dev/fuse";
    let report = run(&warmfs, forbidden, &[]);
    report.assert("fuse", "fail", "--cap-add SYS_ADMIN");
}

#[test]
fn who_may_not_mount_is_told_so() {
    if !may_unshare() {
        return;
    }
    let warmfs = Warmfs::new();
    for dir in ["", "run", "home"] {
        fs::create_dir_all(warmfs.path(dir)).unwrap();
        std::os::unix::fs::chown(warmfs.path(dir), Some(65_534), Some(65_534)).unwrap();
    }
    let mut doctor = warmfs.command(&["doctor", "--json"]);
    let found = report(&doctor.uid(65_534).gid(65_534).output().unwrap());
    found.assert("privilege", "ok", "not root, no CAP_SYS_ADMIN");
    found.assert("open-mode", "ok", "auto will be cached: no privilege (CAP_SYS_ADMIN)");
    let mut doctor = warmfs.command(&["doctor", "--json"]);
    let path = warmfs.path("run");
    doctor.env("PATH", path).uid(65_534).gid(65_534);
    report(&doctor.output().unwrap()).assert("fusermount3", "fail", "apt-get install fuse3");
    // Root of a container.
    let drop = "set -- setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin \"$@\"";
    let container = format!("mount -t tmpfs none /run; touch /run/.containerenv; {drop}");
    let report = run(&warmfs, &container, &[]);
    report.assert("privilege", "ok", "root, no CAP_SYS_ADMIN");
    report.assert("container", "warn", "podman");
}

#[test]
fn what_is_wrong_with_a_store_is_told_apart() {
    if !may_unshare() {
        return;
    }
    let access = Access::Key("right".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    store.put_some();
    let mut warmfs = store.warmfs();
    warmfs.set_env("AWS_ACCESS_KEY_ID", "wrong");
    warmfs.set_env("AWS_SECRET_ACCESS_KEY", "hidden-secret");
    let wrong = run(&warmfs, "", &["s3://bucket/data"]);
    wrong.assert("clock", "ok", "within");
    wrong.assert("credentials", "ok", "AWS_ACCESS_KEY_ID");
    wrong.assert("connect", "fail", "InvalidAccessKeyId");
    assert!(!wrong.has("list") && !wrong.0.to_string().contains("hidden-secret"));
    warmfs.set_env("AWS_ACCESS_KEY_ID", "right");
    run(&warmfs, "", &["s3://bucket/nothing"]).assert("list", "fail", "check the prefix");
    run(&warmfs, "", &["s3://missing"]).assert("connect", "fail", "missing");
    run(&warmfs, "", &["bucket"]).assert("uri", "fail", "s3://BUCKET");
    let unknown = run(&warmfs, "", &["s3://bucket", "--profile", "play"]);
    unknown.assert("endpoint", "fail", "no AWS profile");

    let away = ["s3://bucket", "--endpoint-url", "http://127.0.0.1:1"];
    let report = run(&warmfs, "", &away);
    report.assert("answer", "fail", "Connection refused");
    assert!(!report.has("clock"));
    report.assert("connect", "fail", "Connection refused");
    let nowhere = ["s3://bucket", "--endpoint-url", "http://store.invalid"];
    run(&warmfs, "", &nowhere).assert("dns", "fail", "store.invalid");
    warmfs.set_env("HTTP_PROXY", "http://user:hidden-secret@127.0.0.1:1");
    let report = run(&warmfs, "", &nowhere);
    report.assert("proxy", "ok", "HTTP_PROXY");
    report.assert("connect", "fail", "HTTP_PROXY");
    assert!(!report.has("dns") && !report.0.to_string().contains("hidden-secret"));
}

#[test]
fn a_clock_that_is_off_is_told_by_how_much() {
    if !may_unshare() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (minutes, level) in [(5, "warn"), (60, "fail")] {
        let date = SystemTime::now() + Duration::from_secs(minutes * 60);
        let date = httpdate::fmt_http_date(date);
        let answer = move |_: &Request| Reply::new(403, &[("date", &date)], "");
        let stub = runtime.block_on(Stub::start(answer));
        let warmfs = Warmfs::new();
        let args = ["s3://bucket", "--no-sign-request", "--endpoint-url", stub.url()];
        let report = run(&warmfs, "", &args);
        report.assert("clock", level, "behind the store's");
        report.assert("clock", level, "timedatectl");
        report.assert("list", "fail", "403");
    }
}

#[test]
fn a_disk_that_is_no_good_is_told() {
    if !may_unshare() {
        return;
    }
    let warmfs = Warmfs::new();
    let dir = warmfs.path("disk");
    fs::create_dir(&dir).unwrap();
    let dir = dir.to_str().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size=16m,nr_inodes=10 none {dir}; chmod 700 {dir}; \
                         mkdir {dir}/1 {dir}/2 {dir}/3 {dir}/4 {dir}/5 {dir}/6 {dir}/7 {dir}/8 {dir}/9"
    );
    let report = run(&warmfs, &mount, &["--cache-dir", &format!("{dir}/1/cache")]);
    report.assert("cache", "warn", "in memory");
    report.assert("disk", "warn", "nothing is cached");
    report.assert("inodes", "warn", "0 free");
    let report = run(&warmfs, "ulimit -n 256", &[]);
    report.assert("descriptors", "warn", "256");
    let file = warmfs.path("file");
    fs::write(&file, "").unwrap();
    let report = run(&warmfs, "", &["--cache-dir", file.to_str().unwrap()]);
    report.assert("cache", "fail", "a file in its place");
}

#[test]
fn a_dead_mount_is_cleaned_up_and_a_living_daemon_told() {
    if !may_unshare() {
        return;
    }
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    let report = run(&warmfs, "", &[]);
    report.assert("daemon", "ok", &format!("process {}, version", warmfs.daemon().unwrap()));
    report.assert("daemon", "ok", ", supervised");
    warmfs.crash();
    // Whatever else is dead here belongs to others: only this namespace is cleaned.
    let dead = dir.display();
    let list = "sh -c '\"$0\" \"$@\"; cat /proc/self/mountinfo >&2'";
    let output = command(&warmfs, &format!("set -- {list} \"$@\""), &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).replace("\n                   ", " ");
    assert!(text.contains(&format!("{dead} was dead and is cleaned up")), "{text}");
    let mounts = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!mounts.is_empty() && !mounts.contains(&dead.to_string()), "{mounts}");
    // The command that a user would give next.
    warmfs.mount("mount");
    warmfs.unmount("mount");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
}
