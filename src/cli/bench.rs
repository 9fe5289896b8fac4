//! `warmfs bench`: reads as training does, and says what it cost.
//!
//! A [`plan::Plan`] is made of the options before anything is touched. Each
//! series of it opens a [`source::Source`] (a folder, a mount of its own, a remote
//! without one), reads it epoch after epoch, in turn with a copy of the same files
//! if there is one, and gives [`measurement::Row`]s, which are shown as a table, as
//! JSON and as a picture.

mod args;
mod comparison;
mod dataset;
mod generated;
mod json;
mod mapping;
mod measurement;
mod meter;
mod own_mount;
mod pass;
mod plan;
mod plot;
mod readers;
mod report;
mod source;
mod stop;

use std::fs::{self, OpenOptions};
use std::iter;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use nix::unistd::{AccessFlags, access};
use tokio::runtime::{Builder, Handle};

use super::{no_runtime, output};
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::daemon::preflight::describe;
use crate::units::format_bytes;
pub(super) use args::BenchArgs;
use comparison::pairs;
use generated::Generated;
use measurement::Row;
use plan::{Means, PageCache, Plan, Preset, Series, Subject};
use report::Found;
use source::Source;
use stop::Stop;

/// The kernel's switch that empties the page cache.
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// The objects that the published figures are of.
const PUBLISHED_OBJECT_BYTES: u64 = 10 << 20;

/// Measures and prints. The exit code is 1 if anything could not be read, and
/// that of shells after a signal.
pub(super) fn run(args: BenchArgs) -> ExitCode {
    let stop = Arc::new(Stop::default());
    let measured = bench(&args, &stop);
    match (measured, stop.code()) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(error), code) => {
            output::error(&error);
            ExitCode::from(code.unwrap_or(1))
        }
    }
}

fn bench(args: &BenchArgs, stop: &Arc<Stop>) -> Result<(), ErrorReply> {
    let plan = args.plan()?;
    check_page_cache(plan.reading.page_cache)?;
    if let Some(path) = &args.plot {
        check_plot(path)?;
    }
    // One for what is asked of daemons and remotes; readers of folders are threads.
    let runtime = Builder::new_multi_thread().enable_all().build().map_err(no_runtime)?;
    let entered = runtime.enter();
    stop::on_signals(stop).map_err(|error| {
        let message = format!("cannot handle signals: {}", describe(&error));
        ErrorReply::new(ErrorCode::Environment, message)
    })?;
    let bench = Bench { plan: &plan, json: args.json, stop, runtime: runtime.handle().clone() };
    let (found, rows) = bench.measure(args)?;
    drop(entered);
    // A request of a store that was given up may still be under way.
    runtime.shutdown_background();
    if let Some(path) = &args.plot {
        let svg = plot::svg(&found.what, &rows, &known(&plan));
        fs::write(path, svg).map_err(|error| no_plot(path, &describe(&error)))?;
    }
    if !args.json {
        return output::line(&report::footing(&plan, &rows));
    }
    let json = serde_json::to_string_pretty(&json::Report::new(&plan, &found, &rows));
    output::line(&json.map_err(|error| ErrorReply::new(ErrorCode::Internal, error.to_string()))?)
}

/// What all series share.
struct Bench<'a> {
    plan: &'a Plan,
    json: bool,
    stop: &'a Arc<Stop>,
    runtime: Handle,
}

impl Bench<'_> {
    fn measure(&self, args: &BenchArgs) -> Result<(Found, Vec<Row>), ErrorReply> {
        let generated = match self.plan.subject {
            Subject::Generated => Some(Generated::start(self.plan.reading.limit, &self.runtime)?),
            Subject::Folder(_) | Subject::Uri(_) => None,
        };
        let args = generated.as_ref().map_or_else(|| args.clone(), |g| g.reached_by(args));
        let mut found = None;
        let mut rows = Vec::new();
        for series in &self.plan.series {
            let source = self.open(series, &args, generated.as_ref())?;
            let with = self.plan.compare_with.as_deref();
            let copy = with.map(|dir| source.copied_in(dir)).transpose()?;
            let found = found.get_or_insert_with(|| {
                let mut found = source.found();
                found.notes.extend(copy.iter().flat_map(|copy| copy.found().notes));
                found.notes.extend(generated.as_ref().map(Generated::note));
                found.notes.extend(unlike_published(self.plan, &found));
                self.show_heading(&found);
                found
            });
            if source.sizes().is_empty() {
                let message = format!("{} holds no files to read", found.what);
                return Err(ErrorReply::new(ErrorCode::NotFound, message)
                    .with_hint("name a folder or prefix with files"));
            }
            let copies = copy.iter().map(|copy| (Means::Copy, copy));
            let sides: Vec<_> = iter::once((series.means, &source)).chain(copies).collect();
            self.read(series, &sides, &mut rows)?;
        }
        found.map(|found| (found, rows)).ok_or_else(|| invalid("there is nothing to measure"))
    }

    fn open(
        &self,
        series: &Series,
        args: &BenchArgs,
        generated: Option<&Generated>,
    ) -> Result<Source, ErrorReply> {
        let uri = match (&self.plan.subject, generated) {
            (Subject::Uri(uri), _) => uri.clone(),
            (_, Some(generated)) => generated.uri(),
            (Subject::Folder(path), None) => {
                return Source::folder(path, self.plan.reading.limit, &self.runtime);
            }
            (Subject::Generated, None) => return Err(invalid("no data was generated")),
        };
        let limit = self.plan.reading.limit;
        Source::remote(series.means, args, &uri, limit, self.stop, &self.runtime)
    }

    /// One series, each epoch over each side in turn, its rows shown as they come.
    fn read(
        &self,
        series: &Series,
        sides: &[(Means, &Source)],
        rows: &mut Vec<Row>,
    ) -> Result<(), ErrorReply> {
        for epoch in &series.epochs {
            for (means, source) in sides {
                if self.stop.code().is_some() {
                    return Err(interrupted());
                }
                if epoch.number > 1 && self.plan.reading.page_cache == PageCache::Drop {
                    // All sides, or one is written out while another is read.
                    sides.iter().for_each(|(_, source)| source.write_out());
                    fs::write(DROP_CACHES, "1").map_err(|error| cannot_drop(&describe(&error)))?;
                }
                let figures = source.epoch(
                    &self.plan.reading,
                    series.readers,
                    epoch,
                    self.stop,
                    self.json,
                )?;
                let name = if *means == Means::Copy { "copy" } else { &epoch.name };
                rows.push(Row {
                    name: name.to_owned(),
                    means: *means,
                    readers: series.readers,
                    epoch: epoch.number,
                    figures,
                });
                self.show_last(rows)?;
            }
        }
        Ok(())
    }

    /// The newest row, and its ratio if it ends a pair.
    fn show_last(&self, rows: &[Row]) -> Result<(), ErrorReply> {
        if self.json {
            return Ok(());
        }
        rows.last().map_or(Ok(()), |row| output::line(&report::line(row)))?;
        let pair = pairs(&rows[rows.len().saturating_sub(2)..]).next();
        pair.map_or(Ok(()), |pair| output::line(&report::ratio_line(pair.ratio())))
    }

    fn show_heading(&self, found: &Found) {
        if !self.json && found.files > 0 {
            let heading = report::heading(self.plan, found);
            // Who has gone reads no errors either.
            let _ = output::line(&format!("{heading}\n{}", report::header(self.plan)));
        }
    }
}

/// Rates of others to draw beside ours.
fn known(plan: &Plan) -> Vec<(&'static str, f64)> {
    let (cold, warm) = report::PUBLISHED_MIB_PER_S;
    match plan.preset {
        Some(Preset::Published) => vec![("published, cold", cold), ("published, warm", warm)],
        None => Vec::new(),
    }
}

/// What should be known of a comparison with the published figures.
fn unlike_published(plan: &Plan, found: &Found) -> Option<String> {
    let mean = found.bytes.checked_div(found.files)?;
    let alike = PUBLISHED_OBJECT_BYTES / 2..=PUBLISHED_OBJECT_BYTES * 2;
    (plan.preset == Some(Preset::Published) && !alike.contains(&mean)).then(|| {
        let mean = format_bytes(mean);
        format!("the objects are of {mean} on average; the published figures are of 10 MiB")
    })
}

fn check_page_cache(wanted: PageCache) -> Result<(), ErrorReply> {
    if wanted == PageCache::Keep {
        return Ok(());
    }
    let opened = OpenOptions::new().write(true).open(DROP_CACHES);
    opened.map(drop).map_err(|error| cannot_drop(&describe(&error)))
}

fn cannot_drop(why: &str) -> ErrorReply {
    let message = format!("the page cache cannot be dropped: {DROP_CACHES}: {why}");
    ErrorReply::new(ErrorCode::Denied, message)
        .with_hint("run as root of the machine, or use --page-cache keep")
}

/// Whether the picture can be written, found out before an hour of reading.
fn check_plot(path: &Path) -> Result<(), ErrorReply> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let (place, exists) = match path.exists() {
        true => (path, true),
        false => (parent.unwrap_or(Path::new(".")), false),
    };
    if path.is_dir() {
        return Err(no_plot(path, "it is a folder"));
    }
    let flags = if exists { AccessFlags::W_OK } else { AccessFlags::W_OK | AccessFlags::X_OK };
    access(place, flags).map_err(|errno| no_plot(path, &errno.desc().to_lowercase()))
}

fn no_plot(path: &Path, why: &str) -> ErrorReply {
    let message = format!("cannot write the plot {}: {why}", path.display());
    ErrorReply::new(ErrorCode::Environment, message).with_hint("choose another --plot")
}

fn interrupted() -> ErrorReply {
    ErrorReply::new(ErrorCode::ShuttingDown, "interrupted")
}

fn invalid(message: &str) -> ErrorReply {
    ErrorReply::new(ErrorCode::Invalid, message)
}

#[cfg(test)]
mod tests;
