//! `warmfs status --watch`: the screen again each second, with graphs of the last minute.
//! `q` or Ctrl-C ends it. Where nobody looks at a terminal, a line each second.

use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::text::{COLUMNS, LABEL, per_second, text};
use super::{StatusArgs, ask, json};
use crate::cli::interrupt::Interrupt;
use crate::cli::output::{harmless, terminal_size};
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply, SampleStatus, StatusReply};
use crate::units::format_bytes;

/// Between two looks: as often as the daemon takes a sample.
const INTERVAL: Duration = Duration::from_secs(1);

/// Seconds that a graph shows, a column each.
const CELLS: usize = 60;

/// Eighths of a cell's height.
const STEPS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Another screen without a cursor, and back. Sources: "XTerm Control Sequences", DECSET.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows the state until it is told to end, or the daemon is gone for good.
pub(super) async fn watch(args: &StatusArgs) -> Result<(), ErrorReply> {
    let mut interrupt = Interrupt::new()?;
    let mut screen = match std::io::stdout().is_terminal() && !args.json {
        true => Some(Screen::enter()),
        false => None,
    };
    let mut cache_dir: Option<PathBuf> = None;
    loop {
        let status = tokio::select! {
            status = look(args, cache_dir.take()) => status?,
            _ = interrupt.received() => return Ok(()),
            () = quit(&mut screen) => return Ok(()),
        };
        cache_dir = Some(status.cache.dir.clone());
        let is_read = match &mut screen {
            Some(screen) => screen.draw(&status, args),
            None => print(&line(&status, args)?),
        };
        if !is_read {
            return Ok(());
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            _ = interrupt.received() => return Ok(()),
            () = quit(&mut screen) => return Ok(()),
        }
    }
}

/// The state; of the next daemon if that of `cache_dir` died, and its supervisor starts
/// another.
async fn look(args: &StatusArgs, cache_dir: Option<PathBuf>) -> Result<StatusReply, ErrorReply> {
    match (ask(args).await, cache_dir) {
        (Err(_), Some(dir)) if Client::of_cache_again(&dir).await?.is_some() => ask(args).await,
        (asked, _) => asked,
    }
}

async fn quit(screen: &mut Option<Screen>) {
    match screen {
        Some(screen) => screen.quit().await,
        None => std::future::pending().await,
    }
}

/// Prints a line; `false` if nobody reads it any more.
fn print(text: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", harmless(text)).and_then(|()| stdout.flush()).is_ok()
}

/// A second in one line.
fn line(status: &StatusReply, args: &StatusArgs) -> Result<String, ErrorReply> {
    if args.json {
        return serde_json::to_string(&json(status, args.cost.as_ref()))
            .map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string()));
    }
    let second = status.rates.seconds.last().copied().unwrap_or_default();
    let per_s = |bytes| format!("{}/s", format_bytes(per_second(bytes, second.seconds) as u64));
    Ok(format!(
        "{} cached, {} waited for, {} downloaded; {:.1} requests/s; {} of {} held; {}",
        per_s(second.hit_bytes),
        per_s(second.miss_bytes),
        per_s(second.remote_bytes),
        per_second(second.requests, second.seconds),
        format_bytes(status.cache.used_bytes),
        format_bytes(status.cache.limit_bytes),
        match status.troubles.len() {
            0 => "no alerts".to_owned(),
            1 => "1 alert".to_owned(),
            more => format!("{more} alerts"),
        },
    ))
}

/// The graphs, above the rest so that a short terminal shows them.
fn graphs(samples: &[SampleStatus]) -> String {
    type Figure = fn(&SampleStatus) -> u64;
    let kinds: [(&str, Figure); 3] = [
        ("cached", |sample| sample.hit_bytes),
        ("waited", |sample| sample.miss_bytes),
        ("loaded", |sample| sample.remote_bytes),
    ];
    let mut all = String::new();
    for (label, figure) in kinds {
        let rates: Vec<f64> =
            samples.iter().map(|sample| per_second(figure(sample), sample.seconds)).collect();
        let most = rates.iter().copied().fold(0.0, f64::max);
        let peak = format_bytes(most as u64);
        all.push_str(&format!("{label:<LABEL$}{} {peak}/s\n", graph(&rates)));
    }
    all
}

/// The last rates, the newest to the right, as high as the highest of them.
fn graph(rates: &[f64]) -> String {
    let shown = &rates[rates.len().saturating_sub(CELLS)..];
    let most = shown.iter().copied().fold(0.0, f64::max);
    let cells = shown.iter().map(|rate| {
        // Anything at all is seen.
        let step = if most > 0.0 { (rate / most * 8.0).ceil() as usize } else { 0 };
        STEPS[step.min(8)]
    });
    let empty = std::iter::repeat_n(' ', CELLS - shown.len());
    empty.chain(cells).collect()
}

/// The terminal while it is ours; as it was before once dropped.
struct Screen {
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Screen {
    fn enter() -> Screen {
        let (pressed, keys) = mpsc::channel(1);
        let mut before = None;
        if std::io::stdin().is_terminal() {
            before = take_keys();
            // Blocks for ever, and ends with the process.
            std::thread::spawn(move || {
                for key in std::io::stdin().lock().bytes().map_while(Result::ok) {
                    if pressed.blocking_send(key).is_err() {
                        return;
                    }
                }
            });
        }
        let mut stdout = std::io::stdout().lock();
        let _ = write!(stdout, "{ENTER}").and_then(|()| stdout.flush());
        Screen { before, keys }
    }

    /// Returns when `q` is pressed.
    async fn quit(&mut self) {
        while let Some(key) = self.keys.recv().await {
            if key.eq_ignore_ascii_case(&b'q') {
                return;
            }
        }
        // No terminal to press it at.
        std::future::pending().await
    }

    /// Draws over what was there; `false` if there is no terminal any more.
    fn draw(&mut self, status: &StatusReply, args: &StatusArgs) -> bool {
        let stdout = std::io::stdout();
        let (columns, rows) = terminal_size(stdout.as_raw_fd()).unwrap_or((COLUMNS, 24));
        let all = graphs(&status.rates.seconds) + "\n" + &text(status, args.cost.as_ref());
        let frame = frame(&harmless(&all), columns, rows);
        let mut stdout = stdout.lock();
        write!(stdout, "{frame}").and_then(|()| stdout.flush()).is_ok()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, before);
        }
        let mut stdout = std::io::stdout().lock();
        let _ = write!(stdout, "{LEAVE}").and_then(|()| stdout.flush());
    }
}

/// Has keys come one by one and not be shown; Ctrl-C stays a signal. Gives what was set
/// before.
fn take_keys() -> Option<Termios> {
    let before = tcgetattr(std::io::stdin()).ok()?;
    let mut now = before.clone();
    now.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
    tcsetattr(std::io::stdin(), SetArg::TCSANOW, &now).ok()?;
    Some(before)
}

/// A text as what to write over a terminal of this size: each line cut and its rest
/// cleared, so that nothing scrolls or is left of the text before.
fn frame(text: &str, columns: usize, rows: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let fit = rows.saturating_sub(1).max(1);
    let mut frame = String::from("\x1b[H");
    for line in lines.iter().take(fit) {
        let shown: String = line.chars().take(columns).collect();
        frame.push_str(&format!("{shown}\x1b[K\n"));
    }
    let hidden = lines.len().saturating_sub(fit);
    let hint = match hidden {
        0 => "q ends".to_owned(),
        more => format!("q ends; {more} more lines in a taller terminal"),
    };
    let hint: String = hint.chars().take(columns).collect();
    frame + &hint + "\x1b[J"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_graph_is_as_high_as_its_highest_second() {
        let graph = graph(&[0.0, 1.0, 50.0, 100.0]);
        assert_eq!(graph.chars().count(), CELLS);
        assert!(graph.ends_with(" ▁▄█"), "{graph:?}");
        assert_eq!(super::graph(&[]).trim(), "");
        assert_eq!(super::graph(&[0.0; 100]).trim(), "");
        let many: Vec<f64> = (0..1_000).map(f64::from).collect();
        assert_eq!(super::graph(&many).chars().count(), CELLS);
    }

    #[test]
    fn graphs_fit_80_columns_at_any_rate() {
        let sample = SampleStatus {
            seconds: 1.0,
            hit_bytes: u64::MAX,
            miss_bytes: 999 << 10,
            remote_bytes: 0,
            ..Default::default()
        };
        for line in graphs(&[sample; CELLS]).lines() {
            assert!(line.chars().count() <= COLUMNS, "{line:?}");
        }
    }

    #[test]
    fn a_frame_never_scrolls() {
        let text = "a long line\n".repeat(50);
        let frame = frame(&text, 6, 10);
        assert_eq!(frame.matches('\n').count(), 9);
        assert!(frame.contains("a long\x1b[K") && frame.ends_with("q ends\x1b[J"), "{frame:?}");
        assert!(super::frame("one\n", 80, 24).ends_with("q ends\x1b[J"));
    }
}
