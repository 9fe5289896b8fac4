//! A network of a test's own, with the addresses and the silences that it wants.

use std::process::Command;

use super::machine::{is_root, skip};

/// Runs `test` in a thread that has a network of its own, in which only loopback is up.
/// What it starts, threads and programs, has the same one.
pub fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        skip("metadata servers", "a network namespace needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: takes a number only; the thread is new and shares nothing that counts.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Arranges the network of this thread: `ip ARGS`.
pub fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// Takes every packet to the link-local addresses and loses it: nobody reads from this
/// device, and unlike others every kernel has it.
pub fn black_hole() {
    ip("tuntap add mode tun name hole");
    ip("addr add 169.254.0.1/16 dev hole");
    ip("link set hole up");
}
