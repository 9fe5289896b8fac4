//! `warmfs log`: what the daemon of a cache wrote down.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{args, client_runtime, logging, output};
use crate::config::CacheOptions;
use crate::control::client::Client;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::log_file;

/// How often it is looked for new lines: the eye sees no difference to at once.
const INTERVAL: Duration = Duration::from_millis(200);

/// Show the daemon's log
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// Go on with what comes
    #[arg(short, long)]
    follow: bool,
    /// The last so many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    lines: usize,
    /// Log this from now on: error, warn, info, debug, trace, or default
    #[arg(long, value_name = "LEVEL")]
    level: Option<String>,
    /// The cache directory [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    cache_dir: Option<PathBuf>,
}

/// Prints lines, or says what is to be logged.
pub(super) fn run(args: &LogArgs) -> Result<(), ErrorReply> {
    let cache = args::resolve_cache_dir(args.cache_dir.as_deref())?;
    if let Some(level) = &args.level {
        return set_level(&cache, level);
    }
    let path = client_runtime()?.block_on(find(&cache))?;
    let mut log = Log::open(&path)?;
    for line in log.last_lines(args.lines)? {
        output::line(&line)?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        std::thread::sleep(INTERVAL);
        log.print_new()?;
    }
}

fn set_level(cache: &Path, level: &str) -> Result<(), ErrorReply> {
    let level = Some(level).filter(|level| *level != "default");
    logging::write_level(cache, level)?;
    // Asked, not taken from the lock: what stands there may be another process by now.
    let daemon = client_runtime()?.block_on(Client::of_cache(cache))?;
    let pid = daemon.as_ref().and_then(|daemon| i32::try_from(daemon.daemon().pid).ok());
    if let Some(pid) = pid {
        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
    }
    let when = if pid.is_some() { "now" } else { "from its next start on" };
    let (cache, level) = (output::short(cache), level.unwrap_or("the default"));
    output::line(&format!("the daemon of {cache} logs {level} {when}"))
}

/// Where the daemon logs; where one would, if there is none.
async fn find(cache: &Path) -> Result<PathBuf, ErrorReply> {
    if let Some(client) = Client::of_cache(cache).await? {
        return client.daemon().log_file.clone().ok_or_else(|| {
            ErrorReply::new(ErrorCode::NotFound, "the daemon logs to no file")
                .with_hint("look at the output of `warmfs mount --foreground`")
        });
    }
    let cache = CacheOptions { dir: cache.to_owned(), size: None, memory: None, metadata: None };
    Ok(log_file(&cache))
}

struct Log {
    path: PathBuf,
    file: BufReader<File>,
}

impl Log {
    fn open(path: &Path) -> Result<Log, ErrorReply> {
        let file = File::open(path).map_err(|error| failed(path, &error))?;
        Ok(Log { path: path.to_owned(), file: BufReader::new(file) })
    }

    fn last_lines(&mut self, count: usize) -> Result<VecDeque<String>, ErrorReply> {
        let mut last = VecDeque::new();
        let mut line = Vec::new();
        while self.file.read_until(b'\n', &mut line).map_err(|error| failed(&self.path, &error))?
            > 0
        {
            last.push_back(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
            if last.len() > count {
                last.pop_front();
            }
        }
        Ok(last)
    }

    /// Prints what came since, also to a log that took the place of this one.
    fn print_new(&mut self) -> Result<(), ErrorReply> {
        let mut new = Vec::new();
        self.file.read_to_end(&mut new).map_err(|error| failed(&self.path, &error))?;
        let mut stdout = std::io::stdout().lock();
        let printed = stdout.write_all(&new).and_then(|()| stdout.flush());
        match printed {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => {
                let message = format!("cannot print: {error}");
                return Err(ErrorReply::new(ErrorCode::Environment, message));
            }
            Ok(()) => {}
        }
        let now = File::open(&self.path).and_then(|file| Ok((file.metadata()?.ino(), file)));
        let here = self.file.get_ref().metadata().map(|meta| meta.ino());
        if let (Ok((ino, file)), Ok(here)) = (now, here)
            && ino != here
        {
            self.file = BufReader::new(file);
        }
        Ok(())
    }
}

fn failed(path: &Path, error: &std::io::Error) -> ErrorReply {
    let message = format!("cannot read the log {}: {error}", path.display());
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        return ErrorReply::new(ErrorCode::Denied, message).with_hint("run this as its owner");
    }
    ErrorReply::new(ErrorCode::NotFound, message)
        .with_hint("`warmfs mount` starts a daemon, which writes one; --cache-dir chooses it")
}
