//! Daemons that die, and the mounts that the next one is given.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::epoch::drop_pages;
use common::store::{BUCKET, Store};
use common::tree::{Tree, noise};
use common::{Warmfs, eventually, is_mounted};
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{FUSE_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use warmfs::embedded_store::{Access, Fault, FaultRule, Op, StoreOptions};

fn send(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// Kills the daemon alone, and returns once there is another one.
fn kill_daemon(warmfs: &Warmfs) {
    let before = warmfs.daemon().expect("a daemon runs");
    send(before, Signal::SIGKILL);
    eventually("another daemon", || warmfs.daemon().is_some_and(|pid| pid != before));
}

/// Whether a folder leads to a mount that answers: what is left of a dead daemon does not.
fn is_alive(mount: &Path) -> bool {
    statfs(mount).is_ok_and(|found| found.filesystem_type() == FUSE_SUPER_MAGIC)
}

fn reads(path: &Path, expected: &[u8]) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == expected)
}

#[test]
fn a_daemon_that_dies_gives_its_mounts_back() {
    let store = Store::start();
    let mut tree = Tree::of_all_sizes(1);
    tree.files.retain(|name, _| !name.contains('\\'));
    store.put_tree("data/", &tree);
    store.put(BUCKET, "other/file", Bytes::from("other"));
    let warmfs = store.warmfs();
    let options = ["--metadata-ttl", "inf", "--warm", "off", "--cache-size", "1G"];
    let mount = warmfs.mount_with("s3://bucket/data", "new/mount", &options);
    let other = warmfs.mount_with("s3://bucket/other", "other", &options);
    tree.assert_equals(&mount, "cold");
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let before = inode(&mount.join("of-1"));
    let held = File::open(mount.join("of-1")).unwrap();
    eventually("what was read is in the index", || {
        warmfs.status()["cache"]["dataset_cached_bytes"].as_u64() == Some(tree.bytes())
    });

    // The store says no, to whatever is asked.
    store.reset_log();
    let no = Fault::Status { status: 503, code: "SlowDown".to_owned(), retry_after_s: None };
    let ops = [Op::Get, Op::Head, Op::List];
    store.set_faults(ops.map(|op| FaultRule::next(u64::MAX, op, no.clone())).into());
    kill_daemon(&warmfs);
    eventually("both mounts are there", || is_alive(&mount) && is_alive(&other));
    tree.assert_equals(&mount, "after a death");
    assert_eq!(inode(&mount.join("of-1")), before);
    assert_eq!(store.counts().get.requests, 0, "all of it was cached");
    // But for what lies in the kernel's page cache.
    drop_pages(&held).unwrap();
    assert!(held.read_at(&mut [0], 0).is_err(), "what was open is lost");

    // The store is well again: what is not cached is read, and all is as it was.
    store.set_faults(Vec::new());
    eventually("what is not cached is read", || reads(&other.join("file"), b"other"));
    let status = warmfs.status();
    assert_eq!(status["restarts"]["count"], 1);
    let shown = warmfs.ok(&["status"]);
    assert!(shown.contains("restarted once, last killed"), "{shown}");
    assert_eq!(
        warmfs
            .ok(&[
                "mount",
                "s3://bucket/data",
                mount.to_str().unwrap(),
                "--metadata-ttl",
                "inf",
                "--warm",
                "off"
            ])
            .lines()
            .count(),
        1,
        "it is the same mount"
    );

    // Unmounted while it is dead or alive, nothing of it comes back or is left.
    warmfs.unmount("other");
    kill_daemon(&warmfs);
    eventually("the mount is there", || is_alive(&mount));
    assert!(!is_mounted(&other));
    warmfs.unmount("new/mount");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["new", "other"]);
}

#[test]
fn who_looks_on_or_stays_in_the_foreground_outlives_a_daemon() {
    let warmfs = Warmfs::new();
    warmfs.mount("mount");
    let second = warmfs.path("second");
    let args = ["mount", "--foreground", &warmfs.source(), second.to_str().unwrap()];
    let mut staying = warmfs.command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut watching =
        warmfs.command(&["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    for child in [&staying, &watching] {
        warmfs.watchdog().watch_pid(child.id());
    }
    let mut announced = BufReader::new(staying.stdout.take().unwrap()).lines();
    announced.next().unwrap().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    kill_daemon(&warmfs);
    eventually("the mount is there", || is_alive(&second));
    // Until there is a line of the next daemon.
    let restarts = |line: String| -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(&line).unwrap()["restarts"]["count"].clone()
    };
    while restarts(lines.next().unwrap().unwrap()) != 1 {}
    assert!(staying.try_wait().unwrap().is_none(), "its mount is there");
    for child in [&mut watching, &mut staying] {
        send(child.id(), Signal::SIGINT);
        assert!(child.wait().unwrap().success());
    }
    assert!(!is_mounted(&second), "it was staying for that");
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount", "second"]);
}

#[test]
fn a_cap_on_downloads_counts_on() {
    const CAP: u64 = 3 << 20;
    let store = Store::start();
    store.put(BUCKET, "data/a", noise(1, CAP as usize));
    store.put(BUCKET, "data/b", noise(2, 1 << 20));
    let warmfs = store.warmfs();
    let options = ["--max-download", "3M", "--max-download-strict", "--warm", "off"];
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &options);
    assert!(reads(&mount.join("a"), &noise(1, CAP as usize)));
    // Right before that is in a sample.
    let told = || warmfs.status()["rates"]["minute"]["remote_bytes"].as_u64() == Some(CAP);
    eventually("the supervisor was told", told);
    kill_daemon(&warmfs);
    eventually("the mount is there", || is_alive(&mount));
    let status = warmfs.status();
    assert_eq!(status["mounts"][0]["download"]["bytes"], CAP, "{status}");
    let error = fs::read(mount.join("b")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
    warmfs.unmount("mount");
}

#[test]
fn credentials_outlive_a_daemon_and_stay_secret() {
    let access = |id: &str| Access::Key(id.to_owned());
    let store = Store::with(StoreOptions { access: access("ONE"), ..StoreOptions::default() });
    store.put(BUCKET, "data/a", Bytes::from("a"));
    let warmfs = store.warmfs();
    let keys = |command: &mut std::process::Command, id: &str, secret: &str| {
        command.env("AWS_ACCESS_KEY_ID", id).env("AWS_SECRET_ACCESS_KEY", secret);
        assert!(command.output().unwrap().status.success());
    };
    let mount = warmfs.path("mount");
    let dir = mount.to_str().unwrap();
    keys(&mut warmfs.command(&["mount", "s3://bucket/data", dir]), "ONE", "mark-one");
    store.set_access(access("TWO"));
    keys(&mut warmfs.command(&["renew", dir]), "TWO", "mark-two");
    kill_daemon(&warmfs);
    eventually("it reads with the keys that it was given", || reads(&mount.join("a"), b"a"));
    let record = warmfs.record().unwrap();
    for pid in [record.pid, record.supervisor] {
        for file in ["environ", "cmdline"] {
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap();
            assert!(!String::from_utf8_lossy(&bytes).contains("mark-"), "{file} of {pid}");
        }
    }
    assert!(!warmfs.log().contains("mark-"));
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn signals_to_either_end_both() {
    for (of_supervisor, signal) in
        [(true, Signal::SIGTERM), (true, Signal::SIGINT), (false, Signal::SIGTERM)]
    {
        let warmfs = Warmfs::new();
        let mount = warmfs.mount("mount");
        let record = warmfs.record().unwrap();
        send(if of_supervisor { record.supervisor } else { record.pid }, signal);
        eventually("the supervisor is gone", || {
            !Path::new(&format!("/proc/{}", record.supervisor)).exists()
        });
        assert!(!is_mounted(&mount));
        warmfs.assert_nothing_left(&["mount"]);
    }
}

#[test]
fn a_busy_mount_is_detached_and_who_holds_it_is_said() {
    let warmfs = Warmfs::new();
    let mount = warmfs.mount("mount");
    let mut holder =
        std::process::Command::new("sleep").arg("60").current_dir(&mount).spawn().unwrap();
    warmfs.watchdog().watch_pid(holder.id());
    send(warmfs.daemon().unwrap(), Signal::SIGTERM);
    eventually("it is detached", || !is_mounted(&mount));
    let log = warmfs.log();
    assert!(log.contains("is busy, process") && log.contains("(sleep)"), "{log}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    eventually("the daemon is gone", || warmfs.daemon().is_none());
}

#[test]
fn a_daemon_without_its_supervisor_goes_on() {
    let warmfs = Warmfs::new();
    let mount = warmfs.mount("mount");
    let record = warmfs.record().unwrap();
    send(record.supervisor, Signal::SIGKILL);
    eventually("the supervisor is gone", || {
        !Path::new(&format!("/proc/{}", record.supervisor)).exists()
    });
    warmfs.mount("second");
    assert_eq!(fs::read(mount.join("hello")).unwrap(), b"hello, world");
    assert_eq!(warmfs.daemon(), Some(record.pid));
    warmfs.unmount("second");
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount", "second"]);
}

#[test]
fn without_a_supervisor_a_daemon_that_dies_is_gone() {
    let mut warmfs = Warmfs::new();
    warmfs.set_env("WARMFS_NO_SUPERVISOR", "true");
    let mount = warmfs.mount("mount");
    let record = warmfs.record().unwrap();
    assert_eq!(record.supervisor, 0);
    send(record.pid, Signal::SIGKILL);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    assert_eq!(fs::read_dir(&mount).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    warmfs.unmount("mount");
    assert!(!is_mounted(&mount));
}

#[test]
fn a_mount_point_that_was_taken_meanwhile_is_left_alone() {
    let warmfs = Warmfs::new();
    let mount = warmfs.mount("mount");
    let record = warmfs.record().unwrap();
    // Stopped, so that it does not mount again before somebody else does.
    send(record.supervisor, Signal::SIGSTOP);
    send(record.pid, Signal::SIGKILL);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    common::abort_mounts(&mount);
    fs::write(mount.join("somebody's"), "own").unwrap();
    send(record.supervisor, Signal::SIGCONT);
    eventually("it gives up", || warmfs.log().contains("is not mounted again"));
    assert_eq!(fs::read(mount.join("somebody's")).unwrap(), b"own");
    eventually("nobody is left", || !Path::new(&format!("/proc/{}", record.supervisor)).exists());
}

#[test]
fn a_dead_mount_that_is_unmounted_meanwhile_does_not_come_back() {
    let warmfs = Warmfs::new();
    let mount = warmfs.mount("mount");
    let other = warmfs.mount("other");
    let record = warmfs.record().unwrap();
    send(record.supervisor, Signal::SIGSTOP);
    send(record.pid, Signal::SIGKILL);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.unmount("mount");
    send(record.supervisor, Signal::SIGCONT);
    eventually("the other one is back", || fs::read(other.join("hello")).is_ok());
    assert!(!is_mounted(&mount));
    assert_eq!(warmfs.status()["mounts"].as_array().unwrap().len(), 1);
    warmfs.unmount("other");
    assert!(!is_mounted(&other));
}

#[test]
fn a_daemon_that_dies_while_it_mounts_leaves_nothing_dead() {
    let mut warmfs = Warmfs::new();
    // Of each daemon the second mount that it makes.
    warmfs.set_env("WARMFS_KILL_POINT", "mount-made:2");
    let one = warmfs.mount("one");
    let before = warmfs.daemon();
    // The command meets the next daemon, which makes this one as its first.
    let two = warmfs.mount("new/two");
    assert_ne!(warmfs.daemon(), before);
    assert!(warmfs.log().contains("killed at mount-made"));
    for mount in [&one, &two] {
        assert_eq!(fs::read(mount.join("hello")).unwrap(), b"hello, world");
        // None of a dead daemon is below it.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let here = format!(" {} ", mount.display());
        assert_eq!(mounts.lines().filter(|line| line.contains(&here)).count(), 1, "{mounts}");
    }
    assert_eq!(warmfs.status()["restarts"]["count"], 1);
    warmfs.unmount("new/two");
    warmfs.unmount("one");
    warmfs.assert_nothing_left(&["one", "new"]);
}

/// Reads an object until it is right; what was lost with a daemon is tried again.
fn read_patiently(path: &Path, expected: &[u8], wrong: &AtomicBool) {
    eventually("the file is read", || match fs::read(path) {
        Ok(bytes) => {
            if bytes != expected {
                wrong.store(true, Ordering::Relaxed);
            }
            true
        }
        Err(_) => false,
    });
}

/// 50 times during one cold epoch. Prints for how long the mount was dead at most.
#[test]
fn fifty_deaths_in_a_cold_epoch_cost_retries_and_no_byte() {
    const DEATHS: u32 = 50;
    let store =
        Store::with(StoreOptions { ttfb: Duration::from_millis(5), ..StoreOptions::default() });
    let files: Vec<Bytes> = (0..40).map(|n| noise(n, 3 << 20)).collect();
    for (n, bytes) in files.iter().enumerate() {
        store.put(BUCKET, format!("data/{n}"), bytes.clone());
    }
    let warmfs = Warmfs::with_limit(Duration::from_secs(240));
    let mut warmfs = warmfs;
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--cache-size", "64M"]);
    let (done, wrong) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..4)
        .map(|reader| {
            let (mount, files) = (mount.clone(), files.clone());
            let (done, wrong) = (done.clone(), wrong.clone());
            std::thread::spawn(move || {
                for n in (0..).map(|n| (n * 7 + reader * 11) % files.len()) {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    read_patiently(&mount.join(n.to_string()), &files[n], &wrong);
                }
            })
        })
        .collect();
    let mut dead_longest = Duration::ZERO;
    for _ in 0..DEATHS {
        // Somewhere in the epoch, once something was read.
        eventually("something is read", || {
            warmfs.status()["mounts"][0]["reads"]["miss_bytes"].as_u64() > Some(0)
        });
        let before = warmfs.daemon().unwrap();
        let killed = Instant::now();
        send(before, Signal::SIGKILL);
        while !reads(&mount.join("0"), &files[0]) {
            assert!(killed.elapsed() < Duration::from_secs(60), "{}", warmfs.log());
            std::thread::yield_now();
        }
        dead_longest = dead_longest.max(killed.elapsed());
        eventually("another daemon", || warmfs.daemon().is_some_and(|pid| pid != before));
    }
    done.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    assert!(!wrong.load(Ordering::Relaxed), "wrong bytes");
    assert_eq!(warmfs.status()["restarts"]["count"], DEATHS);
    println!("dead for {} ms at most, with a read of 3 MiB", dead_longest.as_millis());
    warmfs.unmount("mount");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}
