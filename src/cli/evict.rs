//! `warmfs evict`: makes room in the cache.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{EvictReply, EvictRequest, UpkeepReply, UpkeepRequest};
use crate::units::{format_bytes, parse_duration};

/// Remove from the cache what is neither open nor pinned
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").args(["path", "all", "older_than"]).required(true).multiple(true)))]
pub(super) struct EvictArgs {
    /// A file or folder in a mount, or its URI
    path: Option<PathBuf>,
    /// All that the cache holds, whether mounted or not
    #[arg(long, conflicts_with = "path")]
    all: bool,
    /// Only what was not read for so long, such as 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    older_than: Option<Duration>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Evicts, and says what went and what stays.
pub(super) fn run(args: EvictArgs) -> ExitCode {
    let older_than_s = args.older_than.map(|age| age.as_secs());
    upkeep::run(
        "evict",
        &args.common,
        args.path.as_deref(),
        |path| UpkeepRequest::Evict(EvictRequest { path, older_than_s }),
        |reply| match reply {
            UpkeepReply::Evict(done) => Ok(sentence(done)),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

fn sentence(done: &EvictReply) -> String {
    let mut text = match done.objects {
        0 => "evicted nothing".to_owned(),
        n => format!("evicted {}, {}", count(n, "object"), format_bytes(done.bytes)),
    };
    let stay = |n: u64, why: &str| match n {
        0 => None,
        1 => Some(format!("1 is {why} and stays")),
        n => Some(format!("{n} are {why} and stay")),
    };
    let stays = [stay(done.in_use, "open"), stay(done.pinned, "pinned")];
    let stays: Vec<String> = stays.into_iter().flatten().collect();
    if !stays.is_empty() {
        text.push_str(&format!("; {}", stays.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_went_and_what_stays() {
        let done = EvictReply { objects: 12, bytes: 1 << 30, in_use: 3, pinned: 2 };
        let text = "evicted 12 objects, 1.00 GiB; 3 are open and stay, 2 are pinned and stay";
        assert_eq!(sentence(&done), text);
        let done = EvictReply { pinned: 1, ..Default::default() };
        assert_eq!(sentence(&done), "evicted nothing; 1 is pinned and stays");
        let done = EvictReply { objects: 1, bytes: 5, ..Default::default() };
        assert_eq!(sentence(&done), "evicted 1 object, 5 B");
    }
}
