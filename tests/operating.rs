//! What a user sees of a daemon from outside: its log, completions, man pages.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{Warmfs, eventually};

#[test]
fn the_log_is_shown_followed_and_made_louder() {
    let mut warmfs = Warmfs::new();
    let line = warmfs.fails(&["log"]);
    assert!(line.contains("warmfs mount"), "{line}");
    let elsewhere = warmfs.path("elsewhere.log");
    warmfs.set_env("WARMFS_LOG_FILE", elsewhere.to_str().unwrap());
    warmfs.mount("mount");
    let log = warmfs.ok(&["log", "-n", "1"]);
    assert!(log.lines().count() == 1 && log.contains("is mounted at"), "{log}");
    assert_eq!(warmfs.ok(&["log"]), fs::read_to_string(&elsewhere).unwrap());

    let mut child =
        warmfs.command(&["log", "-f", "-n", "0"]).stdout(Stdio::piped()).spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = warmfs.fails(&["log", "--level", "loud=loud=loud"]);
    assert!(line.contains("names no level"), "{line}");
    warmfs.ok(&["log", "--level", "warmfs=debug"]);
    assert!(lines.any(|line| line.unwrap().contains("logs warmfs=debug from now on")));
    warmfs.mount("second");
    warmfs.unmount("second");
    // Said at that level only.
    assert!(lines.any(|line| line.unwrap().contains("DEBUG")));
    warmfs.ok(&["log", "--level", "default"]);
    assert!(lines.any(|line| line.unwrap().contains("logs info from now on")));
    drop(lines);
    warmfs.unmount("mount");
    child.kill().unwrap();
    child.wait().unwrap();
    // What is left says how it ended.
    let log = fs::read_to_string(&elsewhere).unwrap();
    assert!(log.contains("nothing is mounted any more"), "{log}");
}

#[test]
fn a_log_can_be_for_programs() {
    let warmfs = Warmfs::new();
    warmfs.mount_with(&warmfs.source(), "mount", &["--log-format", "json"]);
    warmfs.unmount("mount");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    let log = warmfs.log();
    let messages: Vec<String> = log
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
            line["message"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(messages.iter().any(|message| message.contains("is mounted at")), "{log}");
}

#[test]
fn shells_and_man_are_told_the_same_as_the_help() {
    let warmfs = Warmfs::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = warmfs.ok(&["completions", shell]);
        assert!(script.contains("cache-dir") && script.contains("unmount"), "{shell}");
    }
    let script = warmfs.path("completions");
    fs::write(&script, warmfs.ok(&["completions", "bash"])).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&script).status().unwrap();
    assert!(checked.success());

    let dir = warmfs.path("man1");
    warmfs.ok(&["man", dir.to_str().unwrap()]);
    let page = fs::read_to_string(dir.join("warmfs-mount.1")).unwrap();
    assert!(page.contains("credential\\-command"), "hidden options too: {page}");
    assert!(dir.join("warmfs.1").exists() && dir.join("warmfs-status.1").exists());
    assert!(!dir.join("warmfs-daemon.1").exists());
    let file = warmfs.path("file");
    fs::write(&file, "").unwrap();
    let line = warmfs.fails(&["man", file.to_str().unwrap()]);
    assert!(line.contains("choose another folder"), "{line}");
}
