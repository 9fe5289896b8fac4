//! Mounts of the real binary through the kernel: what callers see of the
//! command, and what is left after every kind of end.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::store::Store;
use common::{Warmfs, Watchdog, eventually, is_mounted, read_to_hang_up, wait};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getsid};

fn pid(process: u32) -> Pid {
    Pid::from_raw(process as i32)
}

fn signal(child: &Child, signal: Signal) {
    kill(pid(child.id()), signal).unwrap();
}

#[test]
fn a_mount_is_read_shown_and_unmounted() {
    let warmfs = Warmfs::new();
    let dir = warmfs.path("new/mount");
    let line = warmfs.ok(&["mount", &warmfs.source(), dir.to_str().unwrap()]);
    assert_eq!(
        line,
        format!("{} mounted at {} (cache ~/.cache/warmfs)\n", warmfs.source(), dir.display())
    );
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");

    let status = warmfs.status();
    assert_eq!(status["mounts"][0]["uri"], warmfs.source());
    assert_eq!(status["mounts"][0]["dir"], dir.to_str().unwrap());
    assert!(status["mounts"][0]["fuse"]["requests"].as_u64().unwrap() > 0);
    assert_eq!(status["pid"], warmfs.daemon().unwrap());
    let text = warmfs.ok(&["status", dir.to_str().unwrap()]);
    assert!(text.contains(&warmfs.source()), "{text}");

    warmfs.unmount("new/mount");
    warmfs.assert_nothing_left(&["new/mount", "new"]);
}

#[test]
fn a_program_runs_from_a_mount_unless_that_is_forbidden() {
    let warmfs = Warmfs::new();
    let source = warmfs.path("source");
    fs::write(source.join("program"), "#!/bin/sh\nexit 7\n").unwrap();
    let code = |dir: &std::path::Path| Command::new(dir.join("program")).status();
    let free = warmfs.mount_with(&warmfs.source(), "free", &["--file-mode", "0555"]);
    assert_eq!(code(&free).unwrap().code(), Some(7));
    let options = ["--file-mode", "0555", "-o", "noexec"];
    let bound = warmfs.mount_with(&warmfs.source(), "bound", &options);
    assert_eq!(code(&bound).unwrap_err().raw_os_error(), Some(libc::EACCES));
    warmfs.unmount("free");
    warmfs.unmount("bound");
}

#[test]
fn each_mount_goes_through_its_callers_proxy() {
    let store = Store::start();
    store.put_some();
    let mut warmfs = Warmfs::new();
    warmfs.set_env("HTTP_PROXY", "http://127.0.0.1:1");
    warmfs.mount("first");
    // The daemon that runs already has another one in its environment.
    warmfs.set_env("HTTP_PROXY", &store.url());
    let options = ["--endpoint-url", "http://store.invalid", "--no-sign-request"];
    let dir = warmfs.mount_with("s3://bucket/data", "second", &options);
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "data/hello");
    warmfs.unmount("second");
    warmfs.unmount("first");
}

#[test]
fn a_mount_point_that_was_there_stays() {
    let warmfs = Warmfs::new();
    fs::create_dir(warmfs.path("mount")).unwrap();
    warmfs.mount("mount");
    warmfs.unmount("mount");
    assert!(warmfs.path("mount").is_dir());
}

#[test]
fn mounting_again_is_success_and_another_uri_is_refused() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    let daemon = warmfs.daemon();
    warmfs.mount("mount");
    assert_eq!(warmfs.daemon(), daemon);
    assert_eq!(warmfs.status()["mounts"].as_array().unwrap().len(), 1);

    let inner = format!("{}/folder", warmfs.source());
    let line = warmfs.fails(&["mount", &inner, dir.to_str().unwrap()]);
    assert!(line.contains("in use by file://") && line.contains("warmfs unmount"), "{line}");
    let again = ["mount", &warmfs.source(), dir.to_str().unwrap(), "--file-mode", "0400"];
    assert!(warmfs.fails(&again).contains("other options"));
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn one_daemon_serves_any_number_of_mounts() {
    let warmfs = Warmfs::new();
    let one = warmfs.mount("one");
    let daemon = warmfs.daemon();
    let two = warmfs.mount("two");
    assert_eq!(warmfs.daemon(), daemon);
    warmfs.unmount("one");
    assert!(!is_mounted(&one) && is_mounted(&two));
    assert_eq!(fs::read_to_string(two.join("hello")).unwrap(), "hello, world");
    warmfs.unmount("two");
    warmfs.assert_nothing_left(&["one", "two"]);
}

#[test]
fn one_command_mounts_several() {
    let store = Store::start();
    store.put_some();
    let warmfs = store.warmfs();
    let dirs = ["one", "two", "three"].map(|name| warmfs.path(name));
    let [one, two, three] = dirs.each_ref().map(|dir| dir.to_str().unwrap());
    let source = warmfs.source();
    let many = ["mount", "s3://bucket/data", one, &source, two, "s3://bucket/other", three];

    // What is wrong with one of them is no reason for the others to be missing.
    let mut wrong = many;
    wrong[5] = "s3://missing";
    let output = warmfs.run(&wrong);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().count() == 1 && said.contains("missing"), "{said}");
    assert_eq!(warmfs.status()["mounts"].as_array().unwrap().len(), 2);

    assert_eq!(warmfs.ok(&many).lines().count(), 3, "two of them were there");
    assert_eq!(fs::read(dirs[0].join("hello")).unwrap(), b"data/hello");
    assert_eq!(fs::read(dirs[2].join("file")).unwrap(), b"other/file");
    assert_eq!(warmfs.status()["mounts"].as_array().unwrap().len(), 3);
    for name in ["one", "two", "three"] {
        warmfs.unmount(name);
    }
    warmfs.assert_nothing_left(&["one", "two", "three"]);

    let line = warmfs.fails(&many[..6]);
    assert!(line.contains("s3://bucket/other has no mount point"), "{line}");
    let line = warmfs.fails(&[&many[..], &["--index", "/index"]].concat());
    assert!(line.contains("--index"), "{line}");
    warmfs.assert_nothing_left(&["one", "two", "three"]);
}

#[test]
fn unmounting_and_mounting_in_a_row_never_meets_the_old_daemon() {
    let warmfs = Warmfs::new();
    for _ in 0..5 {
        let dir = warmfs.mount("mount");
        assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
        warmfs.unmount("mount");
        warmfs.assert_nothing_left(&["mount"]);
    }
}

#[test]
fn concurrent_mounts_share_one_daemon() {
    let warmfs = Warmfs::new();
    std::thread::scope(|scope| {
        for name in ["a", "b", "c", "a"] {
            scope.spawn(|| warmfs.mount(name));
        }
    });
    assert_eq!(warmfs.status()["mounts"].as_array().unwrap().len(), 3);
    for name in ["a", "b", "c"] {
        warmfs.unmount(name);
    }
    warmfs.assert_nothing_left(&["a", "b", "c"]);
}

#[test]
fn a_pipe_sees_the_end_at_once() {
    let warmfs = Warmfs::new();
    let dir = warmfs.path("mount");
    let (mut inherited, writer) = std::io::pipe().unwrap();
    let mut command = warmfs.command(&["mount", &warmfs.source(), dir.to_str().unwrap()]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let fd = writer.as_raw_fd();
    // SAFETY: one system call on a descriptor that is open in the child.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    drop(writer);
    let stdout = read_to_hang_up(child.stdout.as_mut().unwrap());
    assert!(String::from_utf8(stdout).unwrap().contains("mounted at"));
    assert_eq!(read_to_hang_up(child.stderr.as_mut().unwrap()), b"");
    assert_eq!(read_to_hang_up(&mut inherited), b"", "a descriptor beyond 2 is let go too");
    assert!(wait(&mut child).success());
    assert!(is_mounted(&dir));
    warmfs.unmount("mount");
}

#[test]
fn a_pty_sees_the_end_at_once_and_its_interrupts_stay_there() {
    let warmfs = Warmfs::new();
    let dir = warmfs.path("mount");
    let (master, slave) = open_pty();
    let mut command = warmfs.command(&["mount", &warmfs.source(), dir.to_str().unwrap()]);
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    // SAFETY: plain system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    let caller = pid(child.id());
    let shown = read_to_hang_up(&mut File::from(master));
    assert!(String::from_utf8_lossy(&shown).contains("mounted at"));
    assert!(wait(&mut child).success());

    let daemon = pid(warmfs.daemon().unwrap());
    assert_ne!(getsid(Some(daemon)).unwrap(), caller);
    assert_ne!(getpgid(Some(daemon)).unwrap(), caller);
    assert_eq!(killpg(caller, Signal::SIGINT), Err(nix::errno::Errno::ESRCH));
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    warmfs.unmount("mount");
}

fn open_pty() -> (OwnedFd, OwnedFd) {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both descriptors are written on success and owned by nobody else.
    unsafe {
        let result = libc::openpty(&mut master, &mut slave, null, null.cast(), null.cast());
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC);
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    }
}

#[test]
fn the_daemon_keeps_nothing_of_its_caller() {
    let warmfs = Warmfs::new();
    let dir = warmfs.path("mount");
    let output = warmfs
        .command(&["mount", &warmfs.source(), dir.to_str().unwrap()])
        .env("AWS_SECRET_ACCESS_KEY", "TOPSECRET")
        .env("AZURE_STORAGE_KEY", "TOPSECRET")
        .env("GOOGLE_APPLICATION_CREDENTIALS", "TOPSECRET")
        .env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x")
        .output()
        .unwrap();
    assert!(output.status.success());
    let daemon = format!("/proc/{}", warmfs.daemon().unwrap());
    let environ = fs::read(format!("{daemon}/environ")).unwrap();
    let environ = String::from_utf8_lossy(&environ);
    assert!(!environ.contains("TOPSECRET") && environ.contains("/v2/x"));
    let cmdline = fs::read(format!("{daemon}/cmdline")).unwrap();
    assert!(!String::from_utf8_lossy(&cmdline).contains("TOPSECRET"));
    assert!(!warmfs.log().contains("TOPSECRET"));
    let target = |link: &str| fs::read_link(format!("{daemon}/{link}")).unwrap();
    assert_eq!(target("fd/0").to_str(), Some("/dev/null"));
    assert_eq!(target("fd/1").to_str(), Some("/dev/null"));
    assert_eq!(target("fd/2"), warmfs.cache().join("warmfs.log"));
    assert_eq!(target("cwd").to_str(), Some("/"));
    warmfs.unmount("mount");
}

#[test]
fn bad_mount_points_and_sources_leave_nothing() {
    let warmfs = Warmfs::new();
    fs::create_dir(warmfs.path("full")).unwrap();
    fs::write(warmfs.path("full/file"), "").unwrap();
    for (name, word) in [("full", "not empty"), ("full/file", "not a folder")] {
        let dir = warmfs.path(name);
        let line = warmfs.fails(&["mount", &warmfs.source(), dir.to_str().unwrap()]);
        assert!(line.contains(word), "{line}");
        warmfs.assert_nothing_left(&[]);
    }
    let line = warmfs.fails(&["mount", &warmfs.source(), "/proc"]);
    assert!(line.contains("in use by a mount"), "{line}");
    let inside = warmfs.path("source/mount");
    let line = warmfs.fails(&["mount", &warmfs.source(), inside.to_str().unwrap()]);
    assert!(line.contains("overlap"), "{line}");
    let dir = warmfs.path("mount");
    warmfs.fails(&["mount", "file:///no/such/folder", dir.to_str().unwrap()]);
    warmfs.assert_nothing_left(&["mount", "source/mount"]);
    warmfs.fails(&["unmount", warmfs.path("full").to_str().unwrap()]);
}

#[test]
fn a_crash_leaves_a_mount_point_that_mount_heals() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    warmfs.crash();
    let error = fs::read_dir(&dir).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    warmfs.mount("mount");
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    warmfs.unmount("mount");
    assert!(!is_mounted(&dir));
}

#[test]
fn unmount_cleans_up_after_a_crash() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    warmfs.crash();
    warmfs.unmount("mount");
    assert!(!is_mounted(&dir));
}

#[test]
fn an_outside_umount_ends_the_daemon() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    umount2(&dir, MntFlags::empty()).unwrap();
    eventually("the daemon exits", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn a_busy_mount_names_its_user_and_can_be_detached() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    let mut open = File::open(dir.join("hello")).unwrap();
    let line = warmfs.fails(&["unmount", dir.to_str().unwrap()]);
    assert!(line.contains(&format!("process {}", std::process::id())), "{line}");
    assert!(line.contains("--lazy"), "{line}");

    let line = warmfs.ok(&["unmount", "-l", dir.to_str().unwrap()]);
    assert!(line.contains("detached"), "{line}");
    assert!(!dir.exists());
    let mut text = String::new();
    open.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello, world");
    drop(open);
    eventually("the daemon exits", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn the_end_of_a_detached_mount_spares_what_is_mounted_there_now() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mnt");
    let held = File::open(dir.join("hello")).unwrap();
    warmfs.ok(&["unmount", "--lazy", dir.to_str().unwrap()]);
    let other = format!("{}/folder", warmfs.source());
    warmfs.mount_uri(&other, "mnt");
    drop(held);
    eventually("the detached mount ends", || {
        warmfs.status()["mounts"].as_array().unwrap().len() == 1
    });
    assert!(is_mounted(&dir), "{}", warmfs.log());
    assert_eq!(warmfs.status()["mounts"][0]["uri"], other);
    assert_eq!(fs::read_to_string(dir.join("inner")).unwrap(), "inner");
    warmfs.unmount("mnt");
    warmfs.assert_nothing_left(&["mnt"]);
}

#[test]
fn a_terminated_daemon_unmounts_everything() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("one");
    warmfs.mount("two");
    let held = File::open(dir.join("hello")).unwrap();
    kill(pid(warmfs.daemon().unwrap()), Signal::SIGTERM).unwrap();
    eventually("the daemon exits", || warmfs.daemon().is_none());
    drop(held);
    warmfs.assert_nothing_left(&["one", "two"]);
}

#[test]
fn a_daemon_survives_a_hang_up() {
    let warmfs = Warmfs::new();
    let dir = warmfs.mount("mount");
    kill(pid(warmfs.daemon().unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    warmfs.unmount("mount");
}

#[test]
fn in_the_foreground_an_interrupt_unmounts() {
    let warmfs = Warmfs::new();
    let mut child = foreground(&warmfs, "mount");
    let own = Some(child.id());
    assert_eq!(warmfs.daemon(), own, "it serves by itself");
    let second = foreground(&warmfs, "second");
    assert_eq!(warmfs.daemon(), own, "the second one joins it");

    let mut second = second;
    signal(&second, Signal::SIGINT);
    assert!(wait(&mut second).success());
    assert!(!warmfs.path("second").exists() && is_mounted(&warmfs.path("mount")));

    signal(&child, Signal::SIGINT);
    assert!(wait(&mut child).success());
    warmfs.assert_nothing_left(&["mount", "second"]);
}

#[test]
fn in_the_foreground_all_are_mounted_or_none() {
    let warmfs = Warmfs::new();
    let [one, two] = ["one", "two"].map(|name| warmfs.path(name).display().to_string());
    let source = warmfs.source();
    let many = ["mount", "--foreground", &source, &one, "file:///nowhere", &two];
    for others in [0, 1] {
        let output = warmfs.run(&many);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("/nowhere"), "{said}");
        assert!(!is_mounted(one.as_ref()) && !is_mounted(two.as_ref()));
        assert_eq!(warmfs.daemon().is_some(), others == 1);
        // The same where another process's daemon serves.
        warmfs.mount("other");
    }
    let mut child = warmfs
        .command(&["mount", "--foreground", &source, &one, &source, &two])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    warmfs.watchdog().watch_pid(child.id());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        assert!(lines.next().unwrap().unwrap().contains("mounted at"));
    }
    assert!(is_mounted(one.as_ref()) && is_mounted(two.as_ref()));
    signal(&child, Signal::SIGINT);
    assert!(wait(&mut child).success());
    warmfs.unmount("other");
    warmfs.assert_nothing_left(&["one", "two", "other"]);
}

#[test]
fn in_the_foreground_an_unmount_from_elsewhere_ends_it() {
    let warmfs = Warmfs::new();
    warmfs.mount("first");
    let mut child = foreground(&warmfs, "mount");
    warmfs.unmount("mount");
    assert!(wait(&mut child).success());
    warmfs.unmount("first");
    warmfs.assert_nothing_left(&["first", "mount"]);
}

/// Starts a mount in the foreground and waits for its line.
fn foreground(warmfs: &Warmfs, name: &str) -> Child {
    let dir = warmfs.path(name);
    let log = File::options().append(true).create(true).open(warmfs.path("log")).unwrap();
    let mut child = warmfs
        .command(&["mount", "--foreground", &warmfs.source(), dir.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    warmfs.watchdog().watch_pid(child.id());
    let stdout = child.stdout.as_mut().unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') && stdout.read(&mut byte).unwrap() == 1 {
        line.push(byte[0]);
    }
    assert!(String::from_utf8_lossy(&line).contains("mounted at"), "{line:?}");
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    child
}

#[test]
#[should_panic(expected = "the watchdog ended this test")]
fn a_test_that_hangs_is_ended_and_fails() {
    let watchdog = Watchdog::new(Duration::from_millis(50));
    let mut hanging = Command::new("sleep").arg("600").spawn().unwrap();
    watchdog.watch_pid(hanging.id());
    hanging.wait().unwrap();
}
