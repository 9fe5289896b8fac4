//! `warmfs status` as people see it: on a terminal, in a pipe, again and again; and what it
//! can say of writes, which never come.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bytes::Bytes;
use common::store::{BUCKET, Store};
use common::{eventually, machine, read_to_hang_up, wait};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::embedded_store::{Fault, FaultRule, Op};

const COLUMNS: usize = 80;

/// A terminal of 80 columns and `rows`: who looks at it, and what a program is given.
fn terminal(rows: u16) -> (File, OwnedFd) {
    let size = Winsize { ws_row: rows, ws_col: COLUMNS as u16, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    (File::from(pty.master), pty.slave)
}

fn stdio(slave: &OwnedFd) -> Stdio {
    slave.try_clone().unwrap().into()
}

#[test]
fn a_screen_has_what_is_needed_and_fits_80_columns() {
    let store = Store::start();
    for n in 0..200 {
        store.put(BUCKET, format!("data/{n}"), Bytes::from(vec![7; 200_000]));
    }
    let busy = Fault::Status { status: 503, code: "SlowDown".into(), retry_after_s: None };
    store.set_faults(vec![FaultRule::next(2, Op::Get, busy)]);
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket/data", "mount");
    for n in 0..200 {
        fs::read(mount.join(n.to_string())).unwrap();
    }
    // Without what the store said to those that it refused.
    let bytes = 200 * 200_000;
    eventually("a sample was taken", || {
        let minute = warmfs.status()["rates"]["minute"].clone();
        minute["errors"] == 2 && minute["remote_bytes"] == bytes
    });
    let counts = store.counts();
    let piped = warmfs.ok(&["status", "--cost", "egress=90000,get=1000000,list=2000000"]);
    for line in piped.lines() {
        assert!(line.chars().count() <= COLUMNS && !line.contains('\x1b'), "{line:?}");
    }
    assert!(piped.lines().count() <= 30, "{} lines:\n{piped}", piped.lines().count());
    let text = piped.split_whitespace().collect::<Vec<_>>().join(" ");
    let gets = format!("{} GET (", counts.get.requests);
    let spent = f64::from(bytes) / f64::from(1 << 30) * 90_000.0
        + counts.get.requests as f64
        + counts.head.requests as f64
        + counts.list.requests as f64 * 2.0;
    for part in [
        "s3://bucket/data",
        "in flight",
        "free on its disk",
        &gets,
        "GET first byte p50",
        "failed: throttled 2; 2 made again",
        "requests to the remote failed in the last minute",
        "requests/s",
        &format!("${spent:.2} spent"),
        "page-cache reads are not counted",
        "write to another folder",
        "hits p50",
    ] {
        assert!(text.contains(part), "{part} in\n{piped}");
    }
    let json = warmfs.ok(&["status", "--json", "--cost", "egress=90000,get=1000000,list=2000000"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], 1);
    assert!((json["money"]["spent_usd"].as_f64().unwrap() - spent).abs() < 0.01);
    assert_eq!(json["money"]["saved_bytes"], 0, "all of it was downloaded once");
    let wrong = warmfs.run(&["status", "--cost", "egress=much"]);
    assert_eq!(wrong.status.code(), Some(2));

    // On a terminal it is the same, but for line ends.
    let (mut master, slave) = terminal(50);
    let mut child =
        warmfs.command(&["status"]).stdout(stdio(&slave)).stderr(stdio(&slave)).spawn().unwrap();
    drop(slave);
    let shown = String::from_utf8(read_to_hang_up(&mut master)).unwrap();
    assert!(wait(&mut child).success());
    assert_eq!(shown.lines().count() + 1, piped.lines().count() + 1, "{shown}");
    assert!(!shown.contains('\x1b') && shown.lines().all(|line| line.chars().count() <= COLUMNS));
}

/// Reads the terminal until `done` says that enough was seen.
fn read_until(master: &mut File, mut done: impl FnMut(&str) -> bool) -> String {
    let mut seen = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = master.read(&mut buffer).expect("the program still draws");
        seen.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if done(&text) {
            return text;
        }
    }
}

#[test]
fn watching_draws_over_itself_and_leaves_the_terminal_as_it_was() {
    let store = Store::start();
    store.put(BUCKET, "data/big", Bytes::from(vec![7; 8 << 20]));
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket/data", "mount");
    fs::read(mount.join("big")).unwrap();
    for key in ["q", "\x03"] {
        let (mut master, slave) = terminal(24);
        let before = nix::sys::termios::tcgetattr(&slave).unwrap();
        let mut command = warmfs.command(&["status", "--watch"]);
        command.stdin(stdio(&slave)).stdout(stdio(&slave)).stderr(stdio(&slave));
        use std::os::unix::process::CommandExt;
        // SAFETY: two system calls between fork and exec, and nothing else.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                // So that Ctrl-C is a signal to it.
                match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        let mut child = command.spawn().unwrap();
        warmfs.watchdog().watch_pid(child.id());
        // Three frames: the second covers the first, and graphs have moved on.
        let seen = read_until(&mut master, |text| text.matches("\x1b[J").count() >= 3);
        master.write_all(key.as_bytes()).unwrap();
        let rest = read_until(&mut master, |text| text.contains("\x1b[?1049l"));
        assert!(wait(&mut child).success());
        assert_eq!(nix::sys::termios::tcgetattr(&slave).unwrap(), before, "{key:?}");
        let frames: Vec<&str> = seen.split("\x1b[H").skip(1).collect();
        assert!(seen.starts_with("\x1b[?1049h") && frames.len() >= 3, "{seen:?}");
        for frame in &frames[..2] {
            let lines: Vec<&str> = frame.split("\r\n").collect();
            assert!(lines.len() <= 24, "{frame}");
            for line in lines {
                let line = line.replace("\x1b[K", "").replace("\x1b[J", "");
                assert!(line.chars().count() <= COLUMNS && !line.contains('\x1b'), "{line:?}");
            }
            assert!(frame.contains("cached") && frame.contains("daemon"), "{frame}");
        }
        assert!(seen.contains('█'), "what was just read is in the graph: {seen}");
        assert!(rest.contains("\x1b[?25h"), "the cursor is back: {rest:?}");
    }
}

#[test]
fn watching_in_a_pipe_is_a_line_each_second() {
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    warmfs.mount_uri("s3://bucket", "mount");
    for args in [&["status", "--watch"][..], &["status", "--watch", "--json"]] {
        let mut child = warmfs.command(args).stdout(Stdio::piped()).spawn().unwrap();
        warmfs.watchdog().watch_pid(child.id());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            match args.len() {
                3 => {
                    let json: serde_json::Value = serde_json::from_str(&line).unwrap();
                    assert_eq!(json["schema"], 1);
                }
                _ => assert!(line.contains("requests/s") && !line.contains('\x1b'), "{line}"),
            }
        }
        // Who reads no more ends it.
        drop(lines);
        assert!(wait(&mut child).success());
    }
    let mut child = warmfs.command(&["status", "--watch"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(wait(&mut child).success());
}

/// Tries to change something in every way that has a message of its own.
fn try_to_write(mount: &std::path::Path) -> Vec<(&'static str, i32)> {
    let hello = mount.join("hello");
    let code =
        |result: std::io::Result<()>| result.expect_err("it is read-only").raw_os_error().unwrap();
    vec![
        ("create", code(File::create(mount.join("new")).map(drop))),
        // A kernel that was told that there is no OPEN opens by itself.
        (
            "write",
            code(
                OpenOptions::new()
                    .write(true)
                    .open(&hello)
                    .and_then(|mut file| file.write_all(b"x")),
            ),
        ),
        ("truncate", code(File::create(&hello).map(drop))),
        ("mkdir", code(fs::create_dir(mount.join("dir")))),
        ("unlink", code(fs::remove_file(&hello))),
        ("rmdir", code(fs::remove_dir(mount.join("folder")))),
        ("rename", code(fs::rename(&hello, mount.join("other")))),
        ("link", code(fs::hard_link(&hello, mount.join("other")))),
        ("symlink", code(std::os::unix::fs::symlink("x", mount.join("link")))),
        ("chmod", code(fs::set_permissions(&hello, fs::Permissions::from_mode(0o644)))),
        ("utimens", code(File::open(&hello).and_then(|f| f.set_modified(std::time::UNIX_EPOCH)))),
    ]
}

#[test]
fn writes_are_refused_by_the_kernel_and_counted_where_they_reach_us() {
    let store = Store::start();
    store.put_some();
    store.put(BUCKET, "data/deep/er/file", Bytes::new());
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket/data", "mount");
    let refused = || warmfs.status()["mounts"][0]["refused_writes"].clone();
    for (what, code) in try_to_write(&mount) {
        assert_eq!(code, libc::EROFS, "{what}");
    }
    assert_eq!(refused()["requests"], 0, "the kernel asks nobody");
    if !machine::is_root() {
        return machine::skip("writes that reach the daemon", "only root can remount");
    }
    let remounted =
        Command::new("mount").args(["-i", "-o", "remount,rw"]).arg(&mount).status().unwrap();
    if !remounted.success() {
        return machine::skip("writes that reach the daemon", "the kernel does not remount it");
    }
    File::create(mount.join("deep/er/new")).unwrap_err();
    for (what, code) in try_to_write(&mount) {
        assert_eq!(code, libc::EROFS, "{what}");
    }
    let refused = refused();
    assert!(refused["requests"].as_u64().unwrap() > 1, "{refused}");
    assert_eq!(refused["first"], "create deep/er/new", "{refused}");
    let text = warmfs.ok(&["status"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains("were refused, the first was create deep/er/new"), "{text}");
    assert_eq!(fs::read(mount.join("hello")).unwrap(), b"data/hello");
}
