//! `warmfs prefetch`: fetches files before they are read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::NAMES_BYTES_MAX;
use crate::control::wire::{
    ErrorCode, ErrorReply, PrefetchReply, PrefetchRequest, StopPrefetchRequest, UpkeepReply,
    UpkeepRequest,
};
use crate::units::format_bytes;

/// Fetch files into the cache before they are read
#[derive(Debug, Args)]
pub(super) struct PrefetchArgs {
    /// Files or folders in a mount, or URIs of them
    #[arg(required_unless_present_any = ["from", "stop"])]
    paths: Vec<PathBuf>,
    /// Those of this file too, one a line; - for stdin
    #[arg(long, value_name = "FILE", conflicts_with = "stop")]
    from: Option<PathBuf>,
    /// listed (default), or shuffled
    #[arg(
        long,
        value_enum,
        default_value_t,
        hide_default_value = true,
        hide_possible_values = true
    )]
    order: Order,
    /// Show how far it is, and return when it is done
    #[arg(long)]
    wait: bool,
    /// End what goes on in the background
    #[arg(long, conflicts_with_all = ["paths", "wait"])]
    stop: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Order {
    #[default]
    Listed,
    Shuffled,
}

/// Prefetches, or has the daemon go on with it.
pub(super) fn run(args: PrefetchArgs) -> ExitCode {
    if args.stop {
        return stop(&args.common);
    }
    let mut paths = args.paths;
    if let Some(from) = &args.from {
        match read_names(from) {
            Ok(names) => paths.extend(names),
            Err(error) => return super::report(Err(error)),
        }
    }
    if paths.is_empty() {
        return super::report(Err(ErrorReply::new(ErrorCode::Invalid, "no file was named")
            .with_hint("give one a line, or name a folder")));
    }
    let (shuffled, detached) = (args.order == Order::Shuffled, !args.wait);
    upkeep::run_on(
        "prefetch",
        &args.common,
        &paths,
        |paths| UpkeepRequest::Prefetch(PrefetchRequest { paths, shuffled, detached }),
        |reply| match reply {
            UpkeepReply::Prefetch(done) => sentence(done),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

fn stop(common: &CommonArgs) -> ExitCode {
    upkeep::run(
        "prefetch",
        common,
        None,
        |_| UpkeepRequest::StopPrefetch(StopPrefetchRequest::default()),
        |reply| match reply {
            UpkeepReply::StopPrefetch(done) if done.stopped == 0 => {
                Ok("nothing was being prefetched".to_owned())
            }
            UpkeepReply::StopPrefetch(done) => {
                Ok(format!("stopped {}; what was fetched is kept", count(done.stopped, "prefetch")))
            }
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

/// Names, one a line. Empty lines name nothing.
fn read_names(from: &Path) -> Result<Vec<PathBuf>, ErrorReply> {
    let shown = from.display();
    let failed = |error: &io::Error| {
        let message = format!("cannot read names from {shown}: {error}");
        ErrorReply::new(ErrorCode::Invalid, message).with_hint("give a text file, or - for stdin")
    };
    let input: Box<dyn Read> = match from.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(from).map_err(|error| failed(&error))?),
    };
    let mut names = Vec::new();
    let mut bytes = 0;
    for line in BufReader::new(input).lines() {
        let line = line.map_err(|error| failed(&error))?;
        bytes += line.len();
        if bytes > NAMES_BYTES_MAX / 2 {
            let message = format!("{shown} names more than one command takes");
            return Err(ErrorReply::new(ErrorCode::Invalid, message)
                .with_hint("split it, or name the folder"));
        }
        if !line.is_empty() {
            names.push(PathBuf::from(line));
        }
    }
    Ok(names)
}

fn sentence(done: &PrefetchReply) -> Result<String, ErrorReply> {
    if done.detached {
        return Ok("prefetching; `warmfs status` shows how far it is, --stop ends it".to_owned());
    }
    let objects = count(done.objects, "object");
    let mut text = format!("prefetched {objects}, {}", format_bytes(done.bytes));
    if done.cached_bytes < done.bytes {
        text = format!(
            "{} of {} are in the cache ({objects})",
            format_bytes(done.cached_bytes),
            format_bytes(done.bytes)
        );
    }
    if done.unfit > 0 {
        text.push_str(&format!(
            "; {} did not fit, give the cache more with --cache-size or `warmfs evict` something",
            count(done.unfit, "object")
        ));
    }
    if done.capped {
        text.push_str("; --max-download was reached");
    }
    match &done.first_missing {
        None => Ok(text),
        Some(first) => {
            let message =
                format!("{} not exist, such as {}", do_not(done.missing), first.display());
            Err(ErrorReply::new(ErrorCode::NotFound, message).with_hint(format!("else {text}")))
        }
    }
}

fn do_not(paths: u64) -> String {
    match paths {
        1 => "1 path does".to_owned(),
        paths => format!("{paths} paths do"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said_with_a_next_step() {
        let done = PrefetchReply {
            objects: 3,
            bytes: 3 << 30,
            cached_bytes: 3 << 30,
            ..PrefetchReply::default()
        };
        assert_eq!(sentence(&done).unwrap(), "prefetched 3 objects, 3.00 GiB");
        let part = PrefetchReply { cached_bytes: 1 << 30, unfit: 2, ..done.clone() };
        let text = sentence(&part).unwrap();
        assert!(text.starts_with("1.00 GiB of 3.00 GiB are in the cache"), "{text}");
        assert!(text.contains("2 objects did not fit") && text.contains("--cache-size"), "{text}");
        let missing = PrefetchReply { missing: 2, first_missing: Some("/m/x".into()), ..done };
        let error = sentence(&missing).unwrap_err().to_string();
        assert!(
            error.starts_with("2 paths do not exist, such as /m/x: else prefetched"),
            "{error}"
        );
    }
}
