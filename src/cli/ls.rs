//! `warmfs ls`: what is in a folder, and what of it is cached.

use std::path::PathBuf;
use std::process::ExitCode;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use clap::Args;

use super::upkeep::{self, CommonArgs};
use crate::control::wire::{LsRequest, Row, UpkeepRequest};
use crate::units::format_bytes;

/// List a folder, and what of it is cached
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("which").args(["cached", "not_cached", "hidden"])))]
pub(super) struct LsArgs {
    /// A file or folder in a mount, or its URI
    path: PathBuf,
    /// Sizes, what is cached, and times as well
    #[arg(short)]
    long: bool,
    /// Only what is cached as a whole
    #[arg(long)]
    cached: bool,
    /// Only what is not cached, or not as a whole
    #[arg(long)]
    not_cached: bool,
    /// Only keys that have no name in the mount; asks the remote
    #[arg(long)]
    hidden: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Lists, in order of the names.
pub(super) fn run(args: LsArgs) -> ExitCode {
    let wanted = |row: &Row| match row {
        _ if args.cached => row.is_cached(),
        _ if args.not_cached => !row.is_cached(),
        _ => true,
    };
    let long = args.long;
    upkeep::rows(
        &args.common,
        &args.path,
        |path| UpkeepRequest::Ls(LsRequest { path, hidden: args.hidden }),
        wanted,
        |row| line(row, long),
    )
}

fn line(row: &Row, long: bool) -> String {
    let name = match row.is_folder && !row.name.ends_with('/') {
        true => format!("{}/", upkeep::shown(&row.name)),
        false if row.name.is_empty() => "./".to_owned(), // A folder's own key, with bytes.
        false => upkeep::shown(&row.name),
    };
    if !long {
        return name;
    }
    let share = match (row.bytes, row.cached_bytes) {
        (0, _) => "-".to_owned(),
        (bytes, cached) => format!("{} %", (u128::from(cached) * 100 / u128::from(bytes))),
    };
    let time = DateTime::from_secs((row.mtime_ms / 1_000).cast_signed());
    let time = time.fmt(Format::DateTime).unwrap_or_default();
    format!("{:>10}  {share:>5}  {time:<20}  {name}", format_bytes(row.bytes))
}
