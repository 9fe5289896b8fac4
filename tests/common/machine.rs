//! What the machine that a test runs on can do, told without warmfs.

use std::io::{self, Write};

use nix::unistd::Uid;

/// Says that something is not tested here, past the capture of test output.
pub fn skip(what: &str, why: &str) {
    let _ = writeln!(io::stderr(), "SKIPPED: {what}: {why}");
}

pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Whether this machine can pass files through at all.
pub fn has_passthrough(what: &str) -> bool {
    let uname = nix::sys::utsname::uname().unwrap();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>());
    let version = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
    let why = if version < (6, 9) {
        format!("kernel {release} has no passthrough (6.9 has)")
    } else if !is_root() {
        "passthrough needs root".to_owned()
    } else {
        return true;
    };
    skip(&format!("passthrough in {what}"), &why);
    false
}
