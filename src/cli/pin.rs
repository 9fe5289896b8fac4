//! `warmfs pin` and `warmfs unpin`: what stays in the cache whatever comes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{
    ErrorCode, ErrorReply, PinReply, PinRequest, UpkeepReply, UpkeepRequest,
};
use crate::units::format_bytes;

/// Fetch a file or folder and keep it in the cache
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// A file or folder in a mount, or its URI
    path: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

/// Let a pinned file or folder be evicted again
#[derive(Debug, Args)]
pub(super) struct UnpinArgs {
    /// What was pinned
    path: PathBuf,
    #[command(flatten)]
    common: CommonArgs,
}

/// Pins, and says how much of it is in the cache.
pub(super) fn pin(args: PinArgs) -> ExitCode {
    upkeep::run(
        "pin",
        &args.common,
        Some(&args.path),
        |path| UpkeepRequest::Pin(PinRequest { path: path.unwrap_or_default() }),
        |reply| match reply {
            UpkeepReply::Pin(done) => Ok(sentence(done)),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

/// Undoes a pin.
pub(super) fn unpin(args: UnpinArgs) -> ExitCode {
    let shown = args.path.display();
    upkeep::run(
        "unpin",
        &args.common,
        Some(&args.path),
        |path| UpkeepRequest::Unpin(PinRequest { path: path.unwrap_or_default() }),
        |reply| match reply {
            UpkeepReply::Unpin(done) if done.was_pinned => Ok(format!("unpinned {shown}")),
            UpkeepReply::Unpin(_) => {
                Err(ErrorReply::new(ErrorCode::Invalid, format!("{shown} is not pinned itself"))
                    .with_hint("unpin the folder above it that was pinned, if any"))
            }
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

fn sentence(done: &PinReply) -> String {
    let objects = count(done.objects, "object");
    let bytes = format_bytes(done.bytes);
    if done.cached_bytes >= done.bytes {
        return format!("pinned {objects}, {bytes}");
    }
    let fit = format_bytes(done.cached_bytes);
    format!("pinned {objects}, {bytes}, of which {fit} fit; give the cache more with --cache-size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_how_much_fits() {
        let done = PinReply { objects: 2, bytes: 40 << 30, cached_bytes: 40 << 30 };
        assert_eq!(sentence(&done), "pinned 2 objects, 40.0 GiB");
        let text = sentence(&PinReply { cached_bytes: 20 << 30, ..done });
        assert!(
            text.contains("40.0 GiB, of which 20.0 GiB fit; ") && text.contains("--cache-size")
        );
    }
}
