//! `warmfs renew`: a mount asks with the credentials of this shell from now on.

use std::path::PathBuf;

use clap::Args;

use super::{client_runtime, output, status};
use crate::config::CallerEnv;
use crate::control::wire::{ErrorCode, ErrorReply, RenewRequest};
use crate::daemon::preflight;

/// Give a mount the credentials of this shell; files stay open
#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    /// The mount point; after --no-fuse the URI
    dir: PathBuf,
}

/// Renews, once the remote was reached with them.
pub(super) fn run(args: RenewArgs) -> Result<(), ErrorReply> {
    let dir = preflight::resolve_place(&args.dir)?;
    client_runtime()?.block_on(async {
        let Some((client, _)) = status::find_mount(&dir).await? else {
            let message = format!("no daemon serves {}", dir.display());
            let error = ErrorReply::new(ErrorCode::NotMounted, message)
                .with_hint("`warmfs status` lists what is mounted");
            return Err(status::not_served(&dir, error));
        };
        client.renew(&RenewRequest { dir: dir.clone(), env: CallerEnv::from_process() }).await?;
        output::line(&format!("{} has the credentials of this shell", dir.display()))
    })
}
