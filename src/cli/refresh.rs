//! `warmfs refresh`: lists folders anew, whatever their age.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{RefreshReply, RefreshRequest, UpkeepReply, UpkeepRequest};

/// See at once what changed in the remote
#[derive(Debug, Args)]
pub(super) struct RefreshArgs {
    /// A file or folder in a mount, or its URI [default: all that is mounted]
    path: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Refreshes, and says how much was looked at.
pub(super) fn run(args: RefreshArgs) -> ExitCode {
    upkeep::run(
        "refresh",
        &args.common,
        args.path.as_deref(),
        |path| UpkeepRequest::Refresh(RefreshRequest { path }),
        |reply| match reply {
            UpkeepReply::Refresh(done) => Ok(sentence(done)),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

fn sentence(done: &RefreshReply) -> String {
    format!("refreshed {}: {}", count(done.folders, "folder"), count(done.objects, "object"))
}
