//! `warmfs du`: how much of a folder is cached.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{DuRequest, Row, UpkeepRequest};
use crate::units::format_bytes;

/// Sum up folders: cached, in the remote, objects
#[derive(Debug, Args)]
pub(super) struct DuArgs {
    /// A file or folder in a mount, or its URI
    path: PathBuf,
    /// Folders down to so many below it have a line of their own
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0)]
    depth: u32,
    #[command(flatten)]
    common: CommonArgs,
}

/// Sums up, listing what is not listed yet.
pub(super) fn run(args: DuArgs) -> ExitCode {
    let depth = args.depth;
    upkeep::rows(
        &args.common,
        &args.path,
        |path| UpkeepRequest::Du(DuRequest { path, depth }),
        |_| true,
        line,
    )
}

fn line(row: &Row) -> String {
    let name = if row.name.is_empty() { ".".to_owned() } else { upkeep::shown(&row.name) };
    let (cached, bytes) = (format_bytes(row.cached_bytes), format_bytes(row.bytes));
    format!("{cached:>10} of {bytes:>10}  {:>16}  {name}", count(row.objects, "object"))
}
