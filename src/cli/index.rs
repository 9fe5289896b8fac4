//! `warmfs index export`: the listing of a dataset as a file, for others to mount with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{ExportRequest, UpkeepReply, UpkeepRequest};
use crate::daemon::preflight;
use crate::units::format_bytes;

/// Write an index file: list a dataset once for all who mount it
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(super) struct IndexArgs {
    #[command(subcommand)]
    verb: IndexVerb,
}

#[derive(Debug, Subcommand)]
enum IndexVerb {
    /// List what is not listed yet, and write all of it to FILE
    #[command(
        after_help = "Mount with it: `warmfs mount --index FILE|URI …` asks for no listing.\n\
                            FILE is gzip, of a line of JSON for each file: `zcat` shows it."
    )]
    Export {
        /// Replaced if it is there
        file: PathBuf,
        /// A folder in a mount, or its URI [default: the only mount]
        path: Option<PathBuf>,
        #[command(flatten)]
        common: CommonArgs,
    },
}

/// Exports, and says how much it was.
pub(super) fn run(args: IndexArgs) -> ExitCode {
    let IndexVerb::Export { file, path, common } = args.verb;
    let file = match preflight::resolve(&file) {
        Ok(file) => file,
        Err(error) => return super::report(Err(error)),
    };
    let shown = file.display().to_string();
    upkeep::run(
        "index export",
        &common,
        path.as_deref(),
        |path| UpkeepRequest::Export(ExportRequest { path, file }),
        |reply| match reply {
            UpkeepReply::Export(done) => Ok(format!(
                "exported {} in {} to {shown} ({})",
                count(done.objects, "object"),
                count(done.folders, "folder"),
                format_bytes(done.bytes),
            )),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}
