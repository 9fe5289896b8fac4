//! `warmfs completions` and `warmfs man`: what shells and man(1) want to know, made from
//! the same definition as the help.

use std::fs;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, command_of_all, output};
use crate::control::wire::{ErrorCode, ErrorReply};

/// Print the completions of a shell: `warmfs completions bash > FILE`
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_enum, hide_possible_values = true)]
    shell: Shell,
}

/// Write man pages to a folder: `warmfs man ~/.local/share/man/man1`
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder; it is created if it is missing
    dir: PathBuf,
}

/// Prints completions.
pub(super) fn completions(args: &CompletionsArgs) -> Result<(), ErrorReply> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "warmfs", &mut script);
    output::line(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a page for the program and one for each command, with the options that the help
/// leaves out.
pub(super) fn man(args: &ManArgs) -> Result<(), ErrorReply> {
    let written = fs::create_dir_all(&args.dir)
        .and_then(|()| clap_mangen::generate_to(command_of_all(), &args.dir));
    written.map_err(|error| {
        let message = format!("cannot write to {}: {error}", args.dir.display());
        ErrorReply::new(ErrorCode::Environment, message).with_hint("choose another folder")
    })?;
    output::line(&format!("the man pages are in {}", args.dir.display()))
}
