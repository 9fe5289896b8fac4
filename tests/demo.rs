//! `warmfs demo` with the real binary and a real mount: that it ends well, says
//! what it did, and leaves nothing behind, also when it is interrupted.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use common::{Warmfs, eventually, is_mounted, wait};

/// A demo small enough for the gate.
fn demo(warmfs: &Warmfs, work: &Path, small_files: &str) -> Command {
    let mut command = warmfs.command(&["demo", "--small-files", small_files]);
    command.args(["--large-files", "3", "--ttfb-ms", "5", "--dir"]).arg(work);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn work_dir(warmfs: &Warmfs) -> PathBuf {
    let work = warmfs.path("work");
    fs::create_dir(&work).unwrap();
    work
}

fn assert_clean(work: &Path) {
    assert_eq!(fs::read_dir(work).unwrap().count(), 0, "the demo left files");
    let mounts = warmfs::daemon::mountinfo::read().unwrap();
    assert!(mounts.iter().all(|mount| !mount.dir.starts_with(work)), "the demo left a mount");
}

#[test]
fn a_demo_ends_well_and_leaves_nothing() {
    let warmfs = Warmfs::new();
    let work = work_dir(&warmfs);
    let mut child = demo(&warmfs, &work, "60").spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    let (status, out, err) = finish(&mut child);
    assert!(status, "{out}\n{err}");
    for row in ["warmfs: epoch 2", "warmfs: after a remount"] {
        let line = out.lines().find(|line| line.starts_with(row)).expect(row);
        assert_eq!(line.split_whitespace().last(), Some("0"), "GETs in {line:?}");
    }
    let cold = out.lines().find(|line| line.starts_with("warmfs: epoch 1")).unwrap();
    let gets: u32 = cold.split_whitespace().last().unwrap().parse().unwrap();
    assert!(gets >= 63, "{cold:?}");
    assert!(out.lines().all(|line| line.chars().count() <= 80), "{out}");
    assert_clean(&work);
}

#[test]
fn a_demo_whose_reader_has_gone_cleans_up() {
    let warmfs = Warmfs::new();
    let work = work_dir(&warmfs);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut child = demo(&warmfs, &work, "20").stdout(writer).spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(wait(&mut child).success() && err.is_empty(), "{err}");
    assert_clean(&work);
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let warmfs = Warmfs::new();
        let work = work_dir(&warmfs);
        // 600 files at 5 ms each: epoch 1 lasts well beyond the signal.
        let mut child = demo(&warmfs, &work, "600").spawn().unwrap();
        warmfs.watchdog().watch_pid(child.id());
        let mounted = || {
            let found = fs::read_dir(&work).unwrap().flatten().find(|e| e.path().is_dir());
            found.is_some_and(|dir| {
                fs::read_dir(dir.path()).is_ok_and(|mut entries| {
                    entries.any(|e| e.is_ok_and(|e| is_mounted(&e.path())))
                })
            })
        };
        eventually("the demo mounts", mounted);
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let (status, _, err) = finish(&mut child);
        assert!(!status, "{signal} was ignored");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert_clean(&work);
    }
}

/// Reads all a child prints, then waits for its end.
fn finish(child: &mut Child) -> (bool, String, String) {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    while out.read_line(&mut text).unwrap() > 0 {}
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    (wait(child).success(), text, err)
}
