//! `warmfs doctor`: what is wrong here, and what to do about it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::args::{RemoteArgs, resolve_cache_dir};
use super::status::COLUMNS;
use super::{output, run_daemon};
use crate::config::CallerEnv;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::doctor::{self, Finding, Level};

/// Of the JSON; docs/operating.md describes it.
const SCHEMA: u32 = 1;

/// Where the text of a line begins: behind its level and the name of the check.
const INDENT: usize = 19;

/// Look for what is wrong with this machine, a store, and mounts
///
/// With a URI the store is asked as a mount would ask it: one LIST and one GET of up to
/// 4 MiB. Without one no network is touched. Dead mounts are removed. The exit code is 1
/// if a line says FAIL.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// What is to be mounted
    uri: Option<String>,
    /// One object, for programs
    #[arg(long)]
    json: bool,
    /// The cache directory [default: ~/.cache/warmfs]
    #[arg(long, value_name = "DIR", env = "WARMFS_CACHE_DIR", hide_env = true)]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    version: &'static str,
    ok: bool,
    findings: &'a [Finding],
}

/// Prints what it finds as it finds it.
pub(super) fn run(args: DoctorArgs) -> ExitCode {
    match run_daemon(look(args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing is wrong.
async fn look(args: DoctorArgs) -> Result<bool, ErrorReply> {
    let cache_dir = resolve_cache_dir(args.cache_dir.as_deref())?;
    let mut findings: Vec<Finding> = Vec::new();
    let mut printed = Ok(());
    let mut found = |finding: Finding| {
        if !args.json && printed.is_ok() {
            printed = output::line(&text(&finding));
        }
        findings.push(finding);
    };
    doctor::machine(&cache_dir).await.into_iter().for_each(&mut found);
    if let Some(uri) = &args.uri {
        let options = args.remote.into_options();
        doctor::store(uri, &options, &CallerEnv::from_process(), &mut found).await;
    }
    printed?;
    let ok = findings.iter().all(|finding| finding.level != Level::Fail);
    if args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = Report { schema: SCHEMA, version, ok, findings: &findings };
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string()))?;
        output::line(&json)?;
    }
    Ok(ok)
}

/// A finding in lines of [`COLUMNS`], but for words that are longer.
fn text(finding: &Finding) -> String {
    let level = match finding.level {
        Level::Ok => "OK",
        Level::Warn => "WARN",
        Level::Fail => "FAIL",
    };
    let mut text = format!("{level:<5} {:<12} ", finding.check);
    push_wrapped(&mut text, &finding.message);
    if let Some(hint) = &finding.hint {
        text += &format!("\n{:INDENT$}-> ", "");
        push_wrapped(&mut text, hint);
    }
    text
}

fn push_wrapped(text: &mut String, words: &str) {
    let line_of = |text: &str| text.rsplit('\n').next().unwrap_or_default().chars().count();
    for (at, word) in words.split_whitespace().enumerate() {
        let column = line_of(text);
        if at > 0 && column + 1 + word.chars().count() > COLUMNS {
            *text += &format!("\n{:INDENT$}", "");
        } else if at > 0 {
            text.push(' ');
        }
        text.push_str(word);
    }
}
