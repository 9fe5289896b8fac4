//! The long options of `mount`, as they were given, in the words of fstab(5).

use std::any::TypeId;
use std::path::{Path, PathBuf, absolute};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use super::super::mount_o::REFUSED;
use crate::control::wire::{ErrorCode, ErrorReply};

/// Options of `fstab add` itself.
pub(super) const OWN: [&str; 2] = ["fstab", "sbin"];

/// Those that were given to `command`, on the command line or in the environment, which
/// will not be the same at boot. Relative paths are made absolute.
///
/// # Errors
/// For what a line of fstab cannot hold.
pub(super) fn given(command: &Command, matches: &ArgMatches) -> Result<Vec<String>, ErrorReply> {
    let mut options = Vec::new();
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !OWN.contains(long)) else { continue };
        let id = arg.get_id().as_str();
        if !matches!(
            matches.value_source(id),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        ) {
            continue;
        }
        let is_of_environment = matches.value_source(id) == Some(ValueSource::EnvVariable);
        if is_of_environment && long == "credential-command" {
            let message = "WARMFS_CREDENTIAL_COMMAND would stand where everybody can read it";
            return Err(refused(message.to_owned())
                .with_hint("unset it, or give --credential-command if it holds no secret"));
        }
        let name = long.replace('-', "_");
        if !arg.get_action().takes_values() {
            if matches.get_flag(id) {
                options.push(allowed(long, name)?);
            }
            continue;
        }
        // Of an option that is given twice the last one counts.
        let value = matches.get_raw(id).and_then(Iterator::last).unwrap_or_default();
        let Some(value) = value.to_str() else {
            return Err(refused(format!("the value of --{long} is not UTF-8")));
        };
        options.push(allowed(long, format!("{name}={}", from_root(arg, value)))?);
    }
    Ok(options)
}

fn allowed(long: &str, option: String) -> Result<String, ErrorReply> {
    if REFUSED.contains(&long) {
        return Err(refused(format!("--{long} makes no sense in fstab"))
            .with_hint("leave it out, or use mount_scripts/warmfs@.service"));
    }
    match option.contains([',', '"']) {
        false => Ok(option),
        true => Err(refused(format!("the value of --{long} has a comma or a quote in it"))
            .with_hint("fstab cannot hold that; put it in a file, a script or a profile")),
    }
}

/// What is relative leads to another place at boot.
fn from_root(arg: &Arg, value: &str) -> String {
    let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>()
        || (arg.get_id() == "index" && !value.contains("://"));
    match absolute(Path::new(value)) {
        Ok(path) if is_path => path.to_string_lossy().into_owned(),
        _ => value.to_owned(),
    }
}

fn refused(message: String) -> ErrorReply {
    ErrorReply::new(ErrorCode::Invalid, message)
}
