//! Where log lines go: stderr, which for a daemon is its log file.
//!
//! What is logged says the first of these that is there: the file `log-level` in the
//! cache directory, which `warmfs log --level` writes and SIGHUP has read again;
//! `WARMFS_LOG`; or `info`. Each filters as `RUST_LOG` does elsewhere: `debug`,
//! `warmfs=trace`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use tracing_subscriber::filter::Directive;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight::describe;

/// A log this large is put aside as `.1` when a daemon starts: with it at most
/// two of this size, and what one daemon writes.
const LOG_BYTES_MAX: u64 = 10 << 20;

/// At `trace` the SDK writes down all that it signs, keys of a customer's own included.
const NEVER_LOGGED: &str = "aws_sigv4::http_request::sign=debug";

/// The filter in use, and the file that may name another.
static FILTER: OnceLock<(reload::Handle<EnvFilter, Registry>, PathBuf)> = OnceLock::new();

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line.
    Json,
}

impl LogFormat {
    /// As the command line has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }
    }
}

/// Logs to `file`, or to stderr, what is wanted of the cache in `cache_dir`.
pub(super) fn init(file: Option<File>, format: LogFormat, cache_dir: &Path) {
    let level_file = level_file(cache_dir);
    let (filter, handle) = reload::Layer::new(wanted(&level_file));
    let writer = match file {
        Some(file) => BoxMakeWriter::new(Mutex::new(file)),
        None => BoxMakeWriter::new(io::stderr),
    };
    // A log that cannot be written (it may lie on a full disk) is complained
    // about on stderr, which is the log: that would panic.
    let lines = fmt::layer().with_ansi(false).log_internal_errors(false).with_writer(writer);
    let subscriber = tracing_subscriber::registry().with(filter);
    // A second subscriber in one process is refused: the first one stays.
    let set = match format {
        LogFormat::Text => subscriber.with(lines).try_init(),
        LogFormat::Json => subscriber.with(lines.json().flatten_event(true)).try_init(),
    };
    if set.is_ok() {
        let _ = FILTER.set((handle, level_file));
    }
}

/// Looks again at what is to be logged.
pub(super) fn reread() {
    let Some((handle, level_file)) = FILTER.get() else { return };
    let filter = wanted(level_file);
    let shown = filter.to_string().replace(NEVER_LOGGED, "");
    if handle.reload(filter).is_ok() {
        tracing::info!("logs {} from now on", shown.trim_matches(','));
    }
}

fn wanted(level_file: &Path) -> EnvFilter {
    let written = fs::read_to_string(level_file).ok();
    let written = written.and_then(|text| EnvFilter::try_new(text.trim()).ok());
    let named = || EnvFilter::try_from_env("WARMFS_LOG").ok();
    let filter = written.or_else(named).unwrap_or_else(|| EnvFilter::new("info"));
    // It takes the place of another one for that module.
    match NEVER_LOGGED.parse::<Directive>() {
        Ok(never) => filter.add_directive(never),
        Err(_) => EnvFilter::new("info"),
    }
}

/// Names what daemons of a cache log, from the next look on; what else names it if
/// `level` is none.
pub(super) fn write_level(cache_dir: &Path, level: Option<&str>) -> Result<(), ErrorReply> {
    let path = level_file(cache_dir);
    let written = match level {
        Some(level) => {
            check_level(level)?;
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path);
            file.and_then(|mut file| writeln!(file, "{level}"))
        }
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        },
    };
    written.map_err(|error| {
        let message = format!("cannot write {}: {}", path.display(), describe(&error));
        ErrorReply::new(ErrorCode::Environment, message).with_hint("choose a --cache-dir of yours")
    })
}

fn check_level(level: &str) -> Result<(), ErrorReply> {
    let known = !level.is_empty() && !level.contains('\n') && EnvFilter::try_new(level).is_ok();
    match known {
        true => Ok(()),
        false => Err(ErrorReply::new(ErrorCode::Invalid, format!("{level:?} names no level"))
            .with_hint("use error, warn, info, debug or trace, or warmfs=debug for warmfs alone")),
    }
}

fn level_file(cache_dir: &Path) -> PathBuf {
    cache_dir.join("log-level")
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

    #[test]
    fn a_level_is_written_checked_and_forgotten() {
        let tmp = tempfile::tempdir().unwrap();
        write_level(tmp.path(), Some("warmfs=debug")).unwrap();
        let logged = wanted(&level_file(tmp.path())).to_string();
        assert!(logged.contains("warmfs=debug") && logged.contains(NEVER_LOGGED));
        for wrong in ["", "a=b=c", "warmfs=loud", "info\ndebug"] {
            let error = write_level(tmp.path(), Some(wrong)).unwrap_err();
            assert!(error.to_string().contains("names no level"), "{wrong:?}: {error}");
        }
        write_level(tmp.path(), None).unwrap();
        write_level(tmp.path(), None).unwrap();
        assert!(!level_file(tmp.path()).exists());
        fs::write(level_file(tmp.path()), "warmfs=loud").unwrap();
        assert!(!wanted(&level_file(tmp.path())).to_string().contains("loud"));
    }
}
