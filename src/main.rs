//! The `warmfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    warmfs::cli::main()
}
