//! `warmfs verify`: compares what is cached with its checksums.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::progress::count;
use super::upkeep::{self, CommonArgs};
use crate::control::wire::{UpkeepReply, UpkeepRequest, VerifyReply, VerifyRequest};
use crate::units::format_bytes;

/// Check what is cached, and repair it
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// A file or folder in a mount, or its URI [default: all of the cache]
    path: Option<PathBuf>,
    #[command(flatten)]
    common: CommonArgs,
}

/// Verifies, and says what was found.
pub(super) fn run(args: VerifyArgs) -> ExitCode {
    upkeep::run(
        "verify",
        &args.common,
        args.path.as_deref(),
        |path| UpkeepRequest::Verify(VerifyRequest { path }),
        |reply| match reply {
            UpkeepReply::Verify(done) => Ok(sentence(done)),
            other => Err(upkeep::wrong_reply(other)),
        },
    )
}

fn sentence(done: &VerifyReply) -> String {
    let looked_at = format!("{}, {}", count(done.objects, "object"), format_bytes(done.bytes));
    let dropped = done.damaged_chunks.saturating_sub(done.repaired_chunks);
    let damaged = match done.damaged_chunks {
        1 => "1 chunk was damaged".to_owned(),
        n => format!("{n} chunks were damaged"),
    };
    match (done.damaged_chunks, done.repaired_chunks) {
        (0, _) => format!("checked {looked_at}: nothing is damaged"),
        (_, 0) => format!("checked {looked_at}: {damaged} and dropped; the next read fetches anew"),
        _ if dropped == 0 => format!("checked {looked_at}: {damaged} and repaired"),
        (_, repaired) => format!(
            "checked {looked_at}: {damaged}; {repaired} repaired, {dropped} dropped, which the \
             next read fetches anew"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_damaged_and_what_became_of_it() {
        let of = |damaged_chunks, repaired_chunks| {
            sentence(&VerifyReply { objects: 2, bytes: 7, damaged_chunks, repaired_chunks })
        };
        assert_eq!(of(0, 0), "checked 2 objects, 7 B: nothing is damaged");
        assert_eq!(of(1, 1), "checked 2 objects, 7 B: 1 chunk was damaged and repaired");
        assert!(
            of(3, 0).ends_with("3 chunks were damaged and dropped; the next read fetches anew")
        );
        assert!(of(3, 1).contains("3 chunks were damaged; 1 repaired, 2 dropped"));
    }
}
