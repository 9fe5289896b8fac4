//! The real binary where no mount is needed: what it refuses, and how.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs warmfs with a home, a cache and a runtime directory of its own.
fn warmfs(home: &Path, args: &[&str]) -> Output {
    command(home, args).output().unwrap()
}

fn command(home: &Path, args: &[&str]) -> Command {
    let run = home.join("run");
    std::fs::create_dir_all(&run).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmfs"));
    command.args(args).stdin(Stdio::null()).env("HOME", home).env("XDG_RUNTIME_DIR", run);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WARMFS_") {
            command.env_remove(name);
        }
    }
    command
}

/// Asserts exit code 1, nothing on stdout and one line on stderr.
fn one_line(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(output.stdout, b"");
    assert!(stderr.starts_with("warmfs: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr
}

#[test]
fn help_fits_a_screen() {
    let home = tempfile::tempdir().unwrap();
    let of_verbs = [
        "mount", "unmount", "status", "pin", "unpin", "evict", "verify", "refresh", "ls", "du",
        "bench", "index", "renew",
    ];
    let of_verbs = of_verbs.map(|verb| vec![verb, "--help"]);
    let others = [vec!["--help"], vec!["fstab", "add", "--help"], vec!["doctor", "--help"]];
    for verb in others.into_iter().chain(of_verbs) {
        let output = warmfs(home.path(), &verb);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("Usage:"), "{text}");
        let most = if verb[0] == "bench" { 50 } else { 40 };
        assert!(text.lines().count() <= most, "{verb:?} has {} lines", text.lines().count());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line:?}");
        }
        assert!(!text.contains("daemon --"), "the daemon verb is hidden: {text}");
    }
    let all = String::from_utf8(warmfs(home.path(), &["mount", "--help-all"]).stdout).unwrap();
    for option in [
        "--virtual-host-style",
        "--ca-file",
        "--customer-key-file",
        "--origin",
        "--cache-dir",
        "--no-hedge",
        "--verify-remote",
    ] {
        assert!(all.contains(option), "{all}");
    }
    let version = warmfs(home.path(), &["--version"]).stdout;
    assert_eq!(version, format!("warmfs {}\n", env!("CARGO_PKG_VERSION")).into_bytes());
}

#[test]
fn bad_uris_are_one_line_and_leave_nothing() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("mount");
    for uri in ["bucket", "http://bucket", "s3://", "file://relative"] {
        let output = warmfs(home.path(), &["mount", uri, dir.to_str().unwrap()]);
        let line = one_line(&output);
        assert!(line.contains("s3://BUCKET") || line.contains("file:///FOLDER"), "{line}");
    }
    assert!(!dir.exists() && !home.path().join(".cache").exists());
}

#[test]
fn usage_errors_have_a_code_of_their_own() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &["mount", "s3://bucket"][..],
        &["mount", "s3://bucket", "/d", "-o", "rw"],
        &["mount", "s3://bucket", "/d", "-o", "nonsense"],
        &["mount", "s3://bucket", "/d", "--cache-size", "many"],
        &["mount", "s3://bucket", "/d", "--file-mode", "rwx"],
        &["mount", "s3://bucket", "/d", "--open-mode", "fast"],
        &["nonsense"],
        &[],
    ] {
        let output = warmfs(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn the_environment_is_checked_as_options_are() {
    let home = tempfile::tempdir().unwrap();
    for (name, value) in [("WARMFS_CACHE_SIZE", "many"), ("WARMFS_ALLOW_OTHER", "perhaps")] {
        let mut command = command(home.path(), &["mount", "s3://bucket", "/no/such/dir"]);
        let output = command.env(name, value).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
    }
}

#[test]
fn without_a_daemon_status_and_unmount_say_so() {
    let home = tempfile::tempdir().unwrap();
    let line = one_line(&warmfs(home.path(), &["status"]));
    assert!(line.contains("no daemon") && line.contains("warmfs mount"), "{line}");
    one_line(&warmfs(home.path(), &["status", "--json"]));
    one_line(&warmfs(home.path(), &["status", "/no/such/dir"]));
    let line = one_line(&warmfs(home.path(), &["unmount", home.path().to_str().unwrap()]));
    assert!(line.contains("not a warmfs mount"), "{line}");
    assert!(!home.path().join(".cache").exists());
}

#[test]
fn an_unusable_cache_directory_is_one_line() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let dir = home.path().join("mount");
    let args =
        ["mount", "s3://bucket", dir.to_str().unwrap(), "--cache-dir", file.to_str().unwrap()];
    let line = one_line(&warmfs(home.path(), &args));
    assert!(line.contains("--cache-dir"), "{line}");

    let other = home.path().join("other");
    std::fs::create_dir(&other).unwrap();
    if nix::unistd::Uid::effective().is_root() {
        let nobody = nix::unistd::Uid::from_raw(65_534);
        nix::unistd::chown(&other, Some(nobody), None).unwrap();
    } else {
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o500)).unwrap();
    }
    let args =
        ["mount", "s3://bucket", dir.to_str().unwrap(), "--cache-dir", other.to_str().unwrap()];
    let line = one_line(&warmfs(home.path(), &args));
    assert!(line.contains("cannot be used"), "{line}");
    assert!(!dir.exists());
}

#[test]
fn names_that_are_not_utf8_are_one_line_and_no_panic() {
    let home = tempfile::tempdir().unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
    let source = home.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let uri = format!("file://{}", source.display());
    let mut command = command(home.path(), &["mount", &uri]);
    let output = command.arg(home.path().join(odd)).env("WARMFS_ODD", odd).output().unwrap();
    let line = one_line(&output);
    assert!(line.contains("not UTF-8"), "{line}");
}

#[test]
fn a_closed_stdout_is_no_panic() {
    let home = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(home.path(), &["--help"]).stdout(writer).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
}
