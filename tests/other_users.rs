//! Commands about the mounts of another user.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use common::Warmfs;
use common::machine::{is_root, skip};

/// `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// Each says whose it is, in one line, and changes nothing.
#[test]
fn what_is_another_users_is_told_so() {
    if !is_root() {
        return skip("mounts of another user", "only root can be two users");
    }
    let warmfs = Warmfs::new();
    let program = warmfs.path("warmfs");
    fs::copy(env!("CARGO_BIN_EXE_warmfs"), &program).unwrap();
    fs::create_dir(warmfs.path("theirs")).unwrap();
    let mount = warmfs.mount_with(&warmfs.source(), "mount", &["--allow-other"]);
    for name in ["", "warmfs", "theirs", "home", "home/.cache"] {
        fs::set_permissions(warmfs.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::os::unix::fs::chown(warmfs.path("theirs"), Some(NOBODY), Some(NOBODY)).unwrap();
    let file = mount.join("hello");
    let (dir, file) = (mount.to_str().unwrap(), file.to_str().unwrap());
    let cache = warmfs.cache();
    let cache = cache.to_str().unwrap();
    for (args, words) in [
        (&["status", "--cache-dir", cache][..], "belongs to root"),
        (&["status", dir], "another user, root"),
        (&["unmount", dir], "another user, root"),
        (&["renew", dir], "another user, root"),
        (&["prefetch", file], "another user, root"),
        (&["pin", file], "another user, root"),
        (&["ls", dir], "another user, root"),
        (&["log", "--cache-dir", cache], "as its owner"),
        (&["mount", &warmfs.source(), dir], "another user, root"),
    ] {
        let mut command = Command::new(&program);
        command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("HOME", warmfs.path("theirs")).uid(NOBODY).gid(NOBODY);
        let line = warmfs.fails_as(&mut command);
        assert!(line.contains(words), "{args:?}: {line}");
    }
    assert!(fs::read(file).is_ok(), "it is still mounted");
    assert_eq!(fs::read_dir(warmfs.path("theirs")).unwrap().count(), 0);
}
