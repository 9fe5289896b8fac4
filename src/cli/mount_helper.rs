//! What mount(8) runs: `/sbin/mount.warmfs SPEC DIR [-sfnv] [-o OPT,OPT] [-t TYPE]`.
//!
//! It is this program under another name, a link that `warmfs fstab add` makes, so that
//! there is one parser and nothing to be found on a `PATH` at boot. The type
//! `fuse.warmfs` leads to `mount.fuse.warmfs`, or without that to `mount.fuse3`, which
//! runs `warmfs SPEC DIR -o OPT,OPT`. The exit codes are those of mount(8).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::args::MountArgs;
use super::{Verb, mount, mount_o, output, parse};
use crate::config::CacheOptions;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight;

/// The verb that stands for this, and the name of the helper.
pub(super) const VERB: &str = "mount.warmfs";

/// The helper's names in `/sbin`: for the types `warmfs` and `fuse.warmfs`.
pub(super) const NAMES: [&str; 2] = [VERB, "mount.fuse.warmfs"];

/// Of mount(8): an incorrect call, or no permission.
pub(super) const EXIT_USAGE: u8 = 1;
/// Of mount(8): the mount failed.
const EXIT_FAILED: u8 = 32;

#[derive(Debug, Args)]
pub(super) struct HelperArgs {
    spec: String,
    dir: PathBuf,
    /// Leave out options that are unknown.
    #[arg(short)]
    sloppy: bool,
    /// Do all but mount.
    #[arg(short)]
    fake: bool,
    /// Write nothing to mtab, which nobody does any more.
    #[arg(short)]
    no_mtab: bool,
    /// Say what was mounted.
    #[arg(short)]
    verbose: bool,
    /// Mount in another namespace.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    namespace: Option<String>,
    #[arg(short = 't', value_name = "TYPE")]
    fs_type: Option<String>,
    #[arg(short, value_delimiter = ',', action = clap::ArgAction::Append)]
    options: Vec<String>,
}

/// Puts the verb in where the name of the program, or a URI in the place of a verb, says
/// that mount(8) or mount.fuse3 runs it; whether that is so.
pub(super) fn insert_verb(args: &mut Vec<OsString>) -> bool {
    let name = args.first().and_then(|program| Path::new(program).file_name());
    let is_helper = name.is_some_and(|name| NAMES.iter().any(|helper| name == *helper));
    let first = args.get(1).map(|first| first.to_string_lossy());
    let is_for_mount = is_helper || first.is_some_and(|first| first.contains("://"));
    if is_for_mount {
        args.insert(1, VERB.into());
    }
    is_for_mount
}

/// Mounts for mount(8).
pub(super) fn run(args: HelperArgs) -> ExitCode {
    let mount = match to_mount(&args) {
        Ok(mount) => mount,
        Err(error) => {
            // Without the usage below it, which is that of another command.
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            output::error(&ErrorReply::new(ErrorCode::Invalid, line));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match mount_quietly(mount, &args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn mount_quietly(mount: MountArgs, args: &HelperArgs) -> Result<(), ErrorReply> {
    let mut plan = mount.check()?;
    if args.fake {
        let CacheOptions { dir, .. } = &plan.cache;
        return preflight::check(&plan.request, dir);
    }
    plan.is_quiet = !args.verbose;
    mount::run_plan(&plan)
}

/// The same as a mount command.
fn to_mount(args: &HelperArgs) -> Result<MountArgs, clap::Error> {
    if args.namespace.is_some() {
        let message = "-N is not supported: run `nsenter --mount=NAMESPACE mount …`";
        return Err(clap::Error::raw(clap::error::ErrorKind::InvalidValue, message));
    }
    let is_wanted = |option: &&String| {
        // mount(8) adds `rw` where nothing is said.
        *option != "rw"
            && (!args.sloppy || mount_o::expand::<super::Cli>(&[(*option).clone()]).is_ok())
    };
    let mut all: Vec<OsString> = ["warmfs", "mount"].map(OsString::from).to_vec();
    for option in args.options.iter().filter(is_wanted) {
        all.extend(["-o".into(), option.into()]);
    }
    all.extend(["--".into(), (&args.spec).into(), (&args.dir).into()]);
    match parse(all)?.verb {
        Verb::Mount(mount) => Ok(*mount),
        _ => Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn helper(args: &[&str]) -> Result<MountArgs, String> {
        let mut all: Vec<OsString> = args.iter().map(OsString::from).collect();
        insert_verb(&mut all);
        match parse(all).map_err(|error| error.to_string())?.verb {
            Verb::MountHelper(args) => to_mount(&args).map_err(|error| error.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn what_mount_8_runs_becomes_a_mount() {
        for args in [
            &["/sbin/mount.warmfs", "s3://b/p", "/d", "-o", "rw,uid=7,_netdev,user"][..],
            &[
                "mount.warmfs",
                "s3://b/p",
                "/d",
                "-n",
                "-v",
                "-orw,sync,diratime,strictatime,lazytime,uid=7",
            ],
            &["/sbin/mount.fuse.warmfs", "s3://b/p", "/d", "-o", "ro,uid=7", "-t", "fuse.warmfs"],
            // As mount.fuse3 runs it, and the script in mount_scripts.
            &["warmfs", "s3://b/p", "/d", "-o", "rw,uid=7,dev,suid"],
            &["warmfs", "mount.warmfs", "s3://b/p", "/d", "-sfnv", "-o", "uid=7,no_such_thing"],
        ] {
            let mount = helper(args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
            assert_eq!(
                (mount.uri.as_str(), mount.dir.as_deref()),
                ("s3://b/p", Some(Path::new("/d")))
            );
            assert_eq!(mount.look.uid, Some(7), "{args:?}");
        }
        for (args, word) in [
            (&["mount.warmfs", "s3://b", "/d", "-o", "no_such_thing"][..], "no_such_thing"),
            (&["mount.warmfs", "s3://b", "/d", "-o", "foreground"], "foreground"),
            (&["mount.warmfs", "s3://b", "/d", "-o", "remount"], "mount it anew"),
            (&["mount.warmfs", "s3://b", "/d", "-N", "/proc/1/ns/mnt"], "nsenter"),
            (&["mount.warmfs", "s3://b"], "DIR"),
        ] {
            let error = helper(args).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
