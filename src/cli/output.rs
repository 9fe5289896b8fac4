//! Printing that survives a reader who has gone: `warmfs status | head -1`.

use std::io::Write;
use std::os::fd::RawFd;
use std::path::Path;

use super::args;
use crate::control::wire::{ErrorCode, ErrorReply};

/// Prints `text` and a newline to stdout. A closed pipe is not an error.
pub(super) fn line(text: &str) -> Result<(), ErrorReply> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{}", harmless(text)).and_then(|()| stdout.flush()) {
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

/// Whatever steers a terminal, as its number: prefixes and paths may hold it.
/// The form is JSON's, which leaves some of these as they are.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() && c != '\n' {
            true => shown.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    shown
}

/// Columns and rows of the terminal that `fd` leads to, if it is one that tells.
pub(super) fn terminal_size(fd: RawFd) -> Option<(usize, usize)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes one `winsize`, which outlives the call.
    let told = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) };
    let known = told == 0 && size.ws_col > 0 && size.ws_row > 0;
    known.then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown_as_its_number() {
        assert_eq!(harmless("é\x1b[2J\u{9b}2J\r\nx"), "é\\u001b[2J\\u009b2J\\u000d\nx");
        let json = serde_json::to_string("\x1b\u{9b}\x7f").unwrap();
        let read: String = serde_json::from_str(&harmless(&json)).unwrap();
        assert_eq!(read, "\x1b\u{9b}\x7f");
    }
}
