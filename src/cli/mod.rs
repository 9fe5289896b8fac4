//! The command line: one verb a file.
//!
//! Commands check what they are given, find or start the daemon, and send it
//! one request; some need none, and open the cache themselves. Errors are one line on stderr with a next step; the exit code
//! is 1, or 2 where the command line itself is wrong.

mod args;
mod bench;
mod daemon;
pub mod demo;
mod doctor;
mod du;
mod evict;
mod fstab;
mod index;
mod interrupt;
mod launch;
mod log;
mod logging;
mod ls;
mod mount;
mod mount_helper;
mod mount_o;
mod notify;
mod output;
mod pin;
mod prefetch;
mod progress;
mod refresh;
mod renew;
mod shell;
mod status;
mod supervise;
mod unmount;
mod upkeep;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::control::wire::{ErrorCode, ErrorReply};

/// How long threads may take to end after a daemon's work is done.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Mount a cloud bucket prefix as a read-only folder. What is read is kept on
/// local disk and read from there the next time.
#[derive(Debug, Parser)]
#[command(name = "warmfs", version, max_term_width = 80, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(Box<args::MountArgs>),
    Unmount(unmount::UnmountArgs),
    Status(status::StatusArgs),
    Prefetch(prefetch::PrefetchArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Evict(evict::EvictArgs),
    Verify(verify::VerifyArgs),
    Refresh(refresh::RefreshArgs),
    Renew(renew::RenewArgs),
    Ls(ls::LsArgs),
    Du(du::DuArgs),
    Index(index::IndexArgs),
    Log(log::LogArgs),
    Fstab(fstab::FstabArgs),
    Doctor(Box<doctor::DoctorArgs>),
    Bench(Box<bench::BenchArgs>),
    /// Try it on this machine: a store of its own, no account, no network
    Demo(demo::DemoArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
    #[command(hide = true, name = mount_helper::VERB)]
    MountHelper(mount_helper::HelperArgs),
    #[command(hide = true)]
    Supervise(daemon::DaemonArgs),
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
}

/// Runs the command that this process was started as.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os().collect();
    let is_for_mount = mount_helper::insert_verb(&mut args);
    match parse(args) {
        Ok(cli) => run(cli),
        Err(error) => {
            // Help and version come this way too, with a code of 0.
            let _ = error.print();
            match (error.exit_code(), is_for_mount) {
                (0, _) => ExitCode::SUCCESS,
                (_, true) => ExitCode::from(mount_helper::EXIT_USAGE),
                (code, false) => ExitCode::from(u8::try_from(code).unwrap_or(2)),
            }
        }
    }
}

fn run(cli: Cli) -> ExitCode {
    match cli.verb {
        Verb::Mount(args) => report(mount::run(*args)),
        Verb::Unmount(args) => report(unmount::run(args)),
        Verb::Status(args) => report(status::run(args)),
        Verb::Prefetch(args) => prefetch::run(args),
        Verb::Pin(args) => pin::pin(args),
        Verb::Unpin(args) => pin::unpin(args),
        Verb::Evict(args) => evict::run(args),
        Verb::Verify(args) => verify::run(args),
        Verb::Refresh(args) => refresh::run(args),
        Verb::Renew(args) => report(renew::run(args)),
        Verb::Ls(args) => ls::run(args),
        Verb::Du(args) => du::run(args),
        Verb::Index(args) => index::run(args),
        Verb::Log(args) => report(log::run(&args)),
        Verb::Doctor(args) => doctor::run(*args),
        Verb::Fstab(args) => report(fstab::run(args)),
        Verb::MountHelper(args) => mount_helper::run(args),
        Verb::Completions(args) => report(shell::completions(&args)),
        Verb::Man(args) => report(shell::man(&args)),
        Verb::Bench(args) => bench::run(*args),
        Verb::Demo(args) => demo::run(args),
        Verb::Supervise(args) => supervise::run(&args),
        Verb::Daemon(args) => report(daemon::run(args)),
    }
}

fn report(result: Result<(), ErrorReply>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Parses twice if `-o` is there: what mount(8) passes in it becomes long
/// options, which come first, so that those typed in full win.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    if let [_, verb, option] = &args[..]
        && option == "--help-all"
    {
        return Err(help_of_all(verb));
    }
    let cli = parse_once(&args)?;
    let expanded = match &cli.verb {
        Verb::Mount(mount) if !mount.options.is_empty() => mount_o::expand::<Cli>(&mount.options)?,
        // What a line of fstab is to hold is checked before it is written.
        Verb::Fstab(fstab) => {
            let options = mount_o::expand::<Cli>(fstab.options())?.into_iter();
            let of_any = ["warmfs", "mount", "s3://bucket", "/dir"].map(OsString::from);
            parse_once(&of_any.into_iter().chain(options.map(OsString::from)).collect::<Vec<_>>())?;
            return Ok(cli);
        }
        _ => return Ok(cli),
    };
    let verb = args.iter().position(|arg| arg == "mount").map_or(args.len(), |at| at + 1);
    let mut all = args;
    all.splice(verb..verb, expanded.into_iter().map(OsString::from));
    parse_once(&all)
}

fn parse_once(args: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = fstab::shorten_help(Cli::command());
    let matches = command.try_get_matches_from_mut(args)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The help of a command with the options that `--help` leaves out.
fn help_of_all(verb: &OsString) -> clap::Error {
    let asked = [&OsString::from("warmfs"), verb, &"--help".into()];
    match command_of_all().try_get_matches_from(asked) {
        Err(help) => help,
        Ok(_) => clap::Error::new(clap::error::ErrorKind::DisplayHelp),
    }
}

/// The command line with all options shown.
fn command_of_all() -> clap::Command {
    Cli::command().mut_subcommands(|verb| match verb.is_hide_set() {
        true => verb,
        false => verb.mut_args(|arg| arg.hide(false)),
    })
}

/// A runtime for a command that waits for one answer.
fn client_runtime() -> Result<tokio::runtime::Runtime, ErrorReply> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_runtime)
}

/// Runs a daemon's life, or what takes the place of one. A thread that hangs in somebody else's file system
/// does not keep the process once everything is saved.
fn run_daemon<T>(life: impl Future<Output = Result<T, ErrorReply>>) -> Result<T, ErrorReply> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(no_runtime)?;
    let result = runtime.block_on(life);
    runtime.shutdown_timeout(EXIT_TIMEOUT);
    result
}

fn no_runtime(error: std::io::Error) -> ErrorReply {
    ErrorReply::new(ErrorCode::Environment, format!("cannot start threads: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(args: &[&str]) -> Result<args::MountArgs, clap::Error> {
        let all = ["warmfs", "mount"].iter().chain(args).map(OsString::from).collect();
        parse(all).map(|cli| match cli.verb {
            Verb::Mount(mount) => *mount,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_sound() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_mount_8_passes_becomes_options() {
        let args = mount(&["s3://b", "/d", "-o", "ro,allow_other,uid=7,_netdev,x-systemd.a=b"]);
        let args = args.unwrap();
        assert!(args.look.allow_other);
        assert_eq!(args.look.uid, Some(7));
        let args =
            mount(&["-oendpoint_url=http://h:1,cache-size=1G", "-o", "gid=3", "s3://b", "/d"]);
        let args = args.unwrap();
        assert_eq!(args.remote.endpoint_url.as_deref(), Some("http://h:1"));
        assert_eq!(args.cache.cache_size, Some(1 << 30));
        assert_eq!(args.look.gid, Some(3));
    }

    #[test]
    fn an_option_typed_in_full_wins() {
        let args = mount(&["s3://b", "/d", "--uid", "1", "-o", "uid=2"]).unwrap();
        assert_eq!(args.look.uid, Some(1));
    }

    #[test]
    fn wrong_options_are_usage_errors() {
        for (options, word) in [
            ("rw", "read-only"),
            ("nonsense", "nonsense"),
            ("uid", "uid"),
            ("uid=x", "uid"),
            ("allow_other=1", "allow_other"),
            ("foreground", "foreground"),
            ("file_mode=999", "octal"),
        ] {
            let error = mount(&["s3://b", "/d", "-o", options]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{options}");
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(mount(&["s3://b"]).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn evict_is_told_what() {
        let parsed = |args: &[&str]| {
            let all = ["warmfs", "evict"].iter().chain(args).map(OsString::from).collect();
            parse(all).map(drop).map_err(|error| (error.exit_code(), error.to_string()))
        };
        for right in [&["/d"][..], &["--all"], &["--older-than", "7d"], &["/d", "--older-than=1h"]]
        {
            parsed(right).unwrap();
        }
        for (wrong, word) in [
            (&[][..], "--all"),
            (&["--json"], "--older-than"),
            (&["/d", "--all"], "--all"),
            (&["--older-than", "soon"], "duration"),
        ] {
            let (code, text) = parsed(wrong).unwrap_err();
            assert_eq!(code, 2, "{wrong:?}");
            assert!(text.contains(word), "{text}");
        }
    }

    crate::fuzz::fuzz_tests!(mount_options);

    /// `-o`: what comes out are long options that mount(8) may give, or a usage error.
    fn mount_options(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "-o",
            corpus: [
                "ro,allow_other,uid=7,_netdev,x-systemd.a=b",
                "endpoint_url=http://h:1,cache-size=1G,metadata_ttl=90s",
                "file_mode=0444,open_mode=cached,profile=a=b",
            ]
            .map(Vec::from)
            .to_vec(),
            words: &["=", ",", "--", "-", "foreground", "help", "rw", "cache_dir=", "o=", "\u{0}"],
            // Each builds the whole command line several times.
            inputs: 300,
            memory: (8 << 20, 4 << 10),
        };
        target.run(effort, |input| {
            let text = String::from_utf8_lossy(input).into_owned();
            match mount(&["s3://b", "/d", "-o", &text]) {
                Ok(args) => {
                    assert!(!args.foreground && args.uri == "s3://b", "{args:?}");
                    true
                }
                Err(error) => {
                    assert_eq!(error.exit_code(), 2, "{error}");
                    false
                }
            }
        });
    }
}
