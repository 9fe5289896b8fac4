//! Where log lines go: stderr, which for a daemon is its log file.
//!
//! `WARMFS_LOG` filters as `RUST_LOG` does elsewhere: `debug`,
//! `warmfs::cache=trace`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight::describe;

/// A log this large is put aside as `.1` when a daemon starts: with it at most
/// two of this size, and what one daemon writes.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// At `trace` the SDK writes down all that it signs, keys of a customer's own included.
const NEVER_LOGGED: &str = "aws_sigv4::http_request::sign=debug";

/// Logs to `file`, or to stderr.
pub(super) fn init(file: Option<File>) {
    let filter = EnvFilter::try_from_env("WARMFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // It takes the place of another one for that module.
    let filter = match NEVER_LOGGED.parse::<Directive>() {
        Ok(never) => filter.add_directive(never),
        Err(_) => EnvFilter::new("info"),
    };
    // A log that cannot be written (it may lie on a full disk) is complained
    // about on stderr, which is the log: that would panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .log_internal_errors(false);
    // A second subscriber in one process is refused: the first one stays.
    let _ = match file {
        Some(file) => builder.with_writer(Mutex::new(file)).try_init(),
        None => builder.with_writer(io::stderr).try_init(),
    };
}

/// Opens a log for appending, mode 0600.
pub(super) fn open(path: &Path) -> Result<File, ErrorReply> {
    if fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() > LOG_BYTES_MAX) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        let _ = fs::rename(path, aside);
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map_err(|error| {
        let message = format!("cannot log to {}: {}", path.display(), describe(&error));
        ErrorReply::new(ErrorCode::Environment, message).with_hint("choose another --log-file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_log_is_put_aside_once() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("warmfs.log");
        open(&path).unwrap().set_len(LOG_BYTES_MAX + 1).unwrap();
        open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        assert!(tmp.path().join("warmfs.log.1").exists());
    }
}
