//! What a series reads, opened and listed: the clock never runs for that.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::syncfs;
use tokio::runtime::Handle;

use super::args::BenchArgs;
use super::dataset::{self, FileEntry, Work};
use super::measurement::Measurement;
use super::meter::Meter;
use super::own_mount::OwnMount;
use super::pass::Pass;
use super::plan::{Epoch, Limit, Means, Reading};
use super::report::Found;
use super::stop::Stop;
use super::{interrupted, readers};
use crate::cli::progress::Display;
use crate::cli::status;
use crate::control::wire::{ErrorCode, ErrorReply, ProgressReport};
use crate::daemon::direct::{Direct, Object};
use crate::daemon::{mountinfo, preflight};

/// An open source.
pub(super) struct Source {
    files: Files,
    sizes: Vec<u64>,
    meter: Meter,
    what: String,
    fs_type: String,
    notes: Vec<String>,
    /// What is written to while it is read: its dirty pages stay when the page
    /// cache is dropped.
    writes_to: PathBuf,
    runtime: Handle,
    /// Goes last.
    _mount: Option<OwnMount>,
}

enum Files {
    Paths { root: PathBuf, files: Arc<[FileEntry]> },
    Objects(Arc<Direct>, Arc<[Object]>),
}

impl Source {
    /// A folder or file that is there.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub(super) fn folder(path: &Path, limit: Limit, runtime: &Handle) -> Result<Self, ErrorReply> {
        let root = path.canonicalize().map_err(|error| unreadable(path, &error))?;
        let mount = mount_of(&root);
        let files = list(&root, limit)?;
        let mut source = Source {
            sizes: files.sizes(),
            files,
            meter: Meter::Nobody,
            what: path.display().to_string(),
            fs_type: mount.as_ref().map_or(String::new(), |mount| mount.fs_type.clone()),
            notes: Vec::new(),
            writes_to: root.clone(),
            runtime: runtime.clone(),
            _mount: None,
        };
        if let Some(mount) = mount.filter(mountinfo::MountInfo::is_warmfs) {
            match runtime.block_on(status::find_mount(&mount.dir))? {
                Some((client, state)) => {
                    source.writes_to = state.cache.dir;
                    source.notes.push(format!("mounted from {}", mount.source));
                    source.meter = Meter::Daemon(client);
                }
                None => source
                    .notes
                    .push("its daemon is out of reach: requests are not known".to_owned()),
            }
        }
        Ok(source)
    }

    /// A remote, by a mount of its own or without one.
    ///
    /// # Errors
    /// If it cannot be mounted, reached or listed.
    pub(super) fn remote(
        means: Means,
        args: &BenchArgs,
        uri: &str,
        limit: Limit,
        stop: &Stop,
        runtime: &Handle,
    ) -> Result<Self, ErrorReply> {
        if means == Means::Direct {
            return Self::direct(args, uri, limit, stop, runtime);
        }
        let mount = OwnMount::make(args, uri, stop, runtime)?;
        let files = list(mount.dir(), limit)?;
        let cache_dir = mount.cache_dir().to_owned();
        let in_memory = mount_of(&cache_dir).is_some_and(|mount| mount.fs_type == "tmpfs");
        let remark =
            if in_memory { ", which is memory: --cache-dir names another place" } else { "" };
        Ok(Source {
            sizes: files.sizes(),
            files,
            meter: Meter::Daemon(mount.client().clone()),
            what: uri.to_owned(),
            fs_type: String::new(),
            notes: vec![format!("mounted for this run; cache in {}{remark}", cache_dir.display())],
            writes_to: cache_dir,
            runtime: runtime.clone(),
            _mount: Some(mount),
        })
    }

    /// The same files below `dir`.
    ///
    /// # Errors
    /// If one is missing there, or is not as long.
    pub(super) fn copied_in(&self, dir: &Path) -> Result<Self, ErrorReply> {
        let Files::Paths { root, files } = &self.files else {
            return Err(super::invalid("only files can be compared with a copy"));
        };
        let dir = dir.canonicalize().map_err(|error| no_copy(dir, &error))?;
        let copies = dataset::copies(files, root, &dir);
        let files = copies.map_err(|(path, error)| no_copy(&path, &error))?.into();
        let fs_type = mount_of(&dir).map_or(String::new(), |mount| mount.fs_type);
        Ok(Source {
            files: Files::Paths { root: dir.clone(), files },
            sizes: self.sizes.clone(),
            meter: Meter::Nobody,
            what: dir.display().to_string(),
            notes: vec![format!("compared with {} ({fs_type})", dir.display())],
            fs_type,
            writes_to: dir,
            runtime: self.runtime.clone(),
            _mount: None,
        })
    }

    fn direct(
        args: &BenchArgs,
        uri: &str,
        limit: Limit,
        stop: &Stop,
        runtime: &Handle,
    ) -> Result<Self, ErrorReply> {
        // Neither is used: a remote that is not mounted needs no place.
        let nowhere = std::env::temp_dir();
        let plan = args.clone().into_mount(uri.to_owned(), nowhere.clone(), nowhere).check()?;
        let opened = async {
            let direct = Direct::open(&plan.request, plan.cache.memory).await?;
            let mut taken = Limit { files: 0, bytes: 0 };
            let objects = direct.list(|size| limit.take(&mut taken, size)).await?;
            Ok((Arc::new(direct), objects))
        };
        let (direct, objects) = runtime.block_on(async {
            tokio::select! {
                opened = opened => opened,
                () = stop.wait() => Err(interrupted()),
            }
        })?;
        let files = Files::Objects(direct.clone(), objects.into());
        Ok(Source {
            sizes: files.sizes(),
            files,
            meter: Meter::Direct(direct),
            what: uri.to_owned(),
            fs_type: String::new(),
            notes: vec!["direct: by the fetcher alone, without mount and cache".to_owned()],
            writes_to: std::env::temp_dir(),
            runtime: runtime.clone(),
            _mount: None,
        })
    }

    /// The size of each file.
    pub(super) fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    /// For the heading.
    pub(super) fn found(&self) -> Found {
        Found {
            what: self.what.clone(),
            fs_type: self.fs_type.clone(),
            files: self.sizes.len() as u64,
            bytes: self.sizes.iter().sum(),
            notes: self.notes.clone(),
        }
    }

    /// Writes out what would not be dropped otherwise. Best effort: what stays
    /// dirty stays in memory.
    pub(super) fn write_out(&self) {
        if let Ok(dir) = File::open(&self.writes_to) {
            let _ = syncfs(dir);
        }
    }

    /// Reads the dataset once.
    ///
    /// # Errors
    /// The first read that failed, or that it was interrupted.
    pub(super) fn epoch(
        &self,
        reading: &Reading,
        readers: usize,
        epoch: &Epoch,
        stop: &Arc<Stop>,
        json: bool,
    ) -> Result<Measurement, ErrorReply> {
        let work = Work::draw(&self.sizes, reading, epoch.number);
        if work.len() == 0 {
            return Err(super::invalid("there are only empty files to read at random"));
        }
        let (objects_total, bytes_total) = (work.len(), work.bytes(&self.sizes));
        let pass = Pass::new(work, reading.batch, stop.clone());
        let mut display = Display::on_terminal("bench", json);
        let show = |pass: &Pass| {
            let (objects_done, bytes_done) = pass.so_far();
            display.show(ProgressReport { objects_done, objects_total, bytes_done, bytes_total });
        };
        let before = self.meter.read(&self.runtime)?;
        let read = match &self.files {
            Files::Paths { files, .. } => readers::in_threads(&pass, files, readers, reading, show),
            Files::Objects(direct, objects) => {
                readers::direct(&pass, direct, objects, readers, &self.runtime, show)
            }
        };
        display.clear();
        let tally = read?;
        let cost = self.meter.read(&self.runtime)?.since(&before);
        Ok(Measurement::new(tally, pass.first_batch(), cost))
    }
}

impl Files {
    fn sizes(&self) -> Vec<u64> {
        match self {
            Files::Paths { files, .. } => files.iter().map(|file| file.size).collect(),
            Files::Objects(_, objects) => objects.iter().map(Object::size).collect(),
        }
    }
}

fn list(root: &Path, limit: Limit) -> Result<Files, ErrorReply> {
    let files = dataset::walk(root, limit).map_err(|(path, error)| unreadable(&path, &error))?;
    Ok(Files::Paths { root: root.to_owned(), files: files.into() })
}

/// What is mounted where `path` lies.
fn mount_of(path: &Path) -> Option<mountinfo::MountInfo> {
    let mounts = mountinfo::read().ok()?.into_iter();
    // Of equal length the later covers the earlier.
    mounts.filter(|m| path.starts_with(&m.dir)).max_by_key(|m| m.dir.components().count())
}

fn no_copy(path: &Path, error: &std::io::Error) -> ErrorReply {
    let why = preflight::describe(error);
    let message = format!("cannot compare with {}: {why}", path.display());
    ErrorReply::new(ErrorCode::NotFound, message)
        .with_hint("--compare-with names a folder that has the same files below it")
}

fn unreadable(path: &Path, error: &std::io::Error) -> ErrorReply {
    let message = format!("cannot read {}: {}", path.display(), preflight::describe(error));
    ErrorReply::new(ErrorCode::NotFound, message)
}
