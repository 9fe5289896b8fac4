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
    /// Ask the store for checksums of whole objects too
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Verifies, and says what was found.
pub(super) fn run(args: VerifyArgs) -> ExitCode {
    let remote = args.remote;
    upkeep::run(
        "verify",
        &args.common,
        args.path.as_deref(),
        |path| UpkeepRequest::Verify(VerifyRequest { path, remote }),
        |reply| match reply {
            UpkeepReply::Verify(done) => Ok(sentence(done) + &compared(done, remote)),
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

/// What comparing with the store found, if it was asked for.
fn compared(done: &VerifyReply, was_asked: bool) -> String {
    let VerifyReply { same_objects, differing_objects, unverifiable_objects, .. } = done;
    if !was_asked {
        return String::new();
    }
    let mut text = format!("; {} as the store says", count(*same_objects, "object"));
    for (objects, what) in [
        (differing_objects, "not, which the next read fetches anew, once"),
        (unverifiable_objects, "without a checksum to compare"),
    ] {
        if *objects > 0 {
            text.push_str(&format!(", {objects} {what}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_damaged_and_what_became_of_it() {
        let of = |damaged_chunks, repaired_chunks| {
            let checked = VerifyReply { objects: 2, bytes: 7, ..VerifyReply::default() };
            sentence(&VerifyReply { damaged_chunks, repaired_chunks, ..checked })
        };
        assert_eq!(of(0, 0), "checked 2 objects, 7 B: nothing is damaged");
        assert_eq!(of(1, 1), "checked 2 objects, 7 B: 1 chunk was damaged and repaired");
        assert!(
            of(3, 0).ends_with("3 chunks were damaged and dropped; the next read fetches anew")
        );
        assert!(of(3, 1).contains("3 chunks were damaged; 1 repaired, 2 dropped"));
    }

    #[test]
    fn it_says_what_the_store_says() {
        let done = VerifyReply { same_objects: 1, ..VerifyReply::default() };
        assert_eq!(compared(&done, false), "");
        assert_eq!(compared(&done, true), "; 1 object as the store says");
        let done = VerifyReply { differing_objects: 2, unverifiable_objects: 3, ..done };
        assert_eq!(
            compared(&done, true),
            "; 1 object as the store says, 2 not, which the next read fetches anew, once, 3 \
             without a checksum to compare"
        );
    }
}
