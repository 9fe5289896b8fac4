//! `-o opt,opt`, as mount(8), fstab and Docker pass options.
//!
//! Each becomes the long option of the same name, so that there is one list of
//! options, one parser and one set of messages.

use clap::CommandFactory;
use clap::error::ErrorKind;

/// Options of mount(8) and systemd that say nothing to a file system.
const IGNORED: [&str; 28] = [
    "ro",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "async",
    "sync",
    "dirsync",
    "silent",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "strictatime",
    "lazytime",
];

/// How options of others begin.
const IGNORED_STARTS: [&str; 4] = ["x-", "X-", "comment=", "user="];

/// Long options that make no sense where mount(8) runs the command.
pub(super) const REFUSED: [&str; 4] = ["foreground", "help", "no-fuse", "version"];

/// The long options that stand for `options`. `C` is the whole command line.
///
/// # Errors
/// A usage error for an unknown option, `rw`, and a missing or surplus value.
pub(super) fn expand<C: CommandFactory>(options: &[String]) -> Result<Vec<String>, clap::Error> {
    let mut command = C::command();
    command.build();
    let mut fail = |message: String| {
        let command = command.find_subcommand_mut("mount");
        match command {
            Some(mount) => mount.error(ErrorKind::InvalidValue, message),
            None => clap::Error::raw(ErrorKind::InvalidValue, message),
        }
    };
    let mut flags = Vec::new();
    for option in options.iter().map(|option| option.trim()) {
        if option.is_empty() || is_ignored(option) {
            continue;
        }
        if option == "remount" {
            let message = "-o remount: a mount keeps its options, unmount it and mount it anew";
            return Err(fail(message.to_owned()));
        }
        if option == "rw" {
            return Err(fail("-o rw: warmfs mounts are read-only, use -o ro".to_owned()));
        }
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let long = name.replace('_', "-");
        match (takes_value::<C>(&long), value) {
            (Some(true), Some(value)) => flags.push(format!("--{long}={value}")),
            (Some(false), None) => flags.push(format!("--{long}")),
            (Some(true), None) => return Err(fail(format!("-o {name} needs a value: {name}=…"))),
            (Some(false), Some(_)) => return Err(fail(format!("-o {name} takes no value"))),
            (None, _) => {
                return Err(fail(format!("-o {name} is unknown: see `warmfs mount --help`")));
            }
        }
    }
    Ok(flags)
}

fn is_ignored(option: &str) -> bool {
    IGNORED.contains(&option) || IGNORED_STARTS.iter().any(|start| option.starts_with(start))
}

/// Whether a long option of `mount` takes a value; `None` if there is none such.
fn takes_value<C: CommandFactory>(long: &str) -> Option<bool> {
    if REFUSED.contains(&long) {
        return None;
    }
    let command = C::command();
    let mount = command.find_subcommand("mount")?;
    let arg = mount.get_arguments().find(|arg| arg.get_long() == Some(long))?;
    Some(arg.get_action().takes_values())
}
