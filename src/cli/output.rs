//! Printing that survives a reader who has gone: `warmfs status | head -1`.

use std::io::Write;
use std::path::Path;

use super::args;
use crate::control::wire::{ErrorCode, ErrorReply};

/// Prints `text` and a newline to stdout. A closed pipe is not an error.
pub(super) fn line(text: &str) -> Result<(), ErrorReply> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(ErrorReply::new(ErrorCode::Environment, format!("cannot print: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints an error as its one line on stderr.
pub(super) fn error(error: &ErrorReply) {
    let _ = writeln!(std::io::stderr(), "warmfs: {error}");
}

/// A path with `~` for the caller's home.
pub(super) fn short(path: &Path) -> String {
    let home = args::home().ok().filter(|home| home.as_os_str() != "/");
    match home.and_then(|home| path.strip_prefix(home).ok().map(|rest| rest.to_owned())) {
        Some(rest) if rest.as_os_str().is_empty() => "~".to_owned(),
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}
