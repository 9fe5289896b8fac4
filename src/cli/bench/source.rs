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
    Paths(Arc<[FileEntry]>),
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
        let mut source = Source {
            files: Files::Paths(Arc::default()),
            sizes: Vec::new(),
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
        source.take_files(&root, limit)?;
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
        let root = mount.dir().to_owned();
        let cache_dir = mount.cache_dir().to_owned();
        let in_memory = mount_of(&cache_dir).is_some_and(|mount| mount.fs_type == "tmpfs");
        let remark =
            if in_memory { ", which is memory: --cache-dir names another place" } else { "" };
        let mut source = Source {
            files: Files::Paths(Arc::default()),
            sizes: Vec::new(),
            meter: Meter::Daemon(mount.client().clone()),
            what: uri.to_owned(),
            fs_type: String::new(),
            notes: vec![format!("mounted for this run; cache in {}{remark}", cache_dir.display())],
            writes_to: cache_dir,
            runtime: runtime.clone(),
            _mount: Some(mount),
        };
        source.take_files(&root, limit)?;
        Ok(source)
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
        Ok(Source {
            sizes: objects.iter().map(Object::size).collect(),
            meter: Meter::Direct(direct.clone()),
            files: Files::Objects(direct, objects.into()),
            what: uri.to_owned(),
            fs_type: String::new(),
            notes: vec!["direct: by the fetcher alone, without mount and cache".to_owned()],
            writes_to: std::env::temp_dir(),
            runtime: runtime.clone(),
            _mount: None,
        })
    }

    fn take_files(&mut self, root: &Path, limit: Limit) -> Result<(), ErrorReply> {
        let files =
            dataset::walk(root, limit).map_err(|(path, error)| unreadable(&path, &error))?;
        self.sizes = files.iter().map(|file| file.size).collect();
        self.files = Files::Paths(files.into());
        Ok(())
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
            Files::Paths(files) => readers::in_threads(&pass, files, readers, reading.block, show),
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

/// What is mounted where `path` lies.
fn mount_of(path: &Path) -> Option<mountinfo::MountInfo> {
    let mounts = mountinfo::read().ok()?.into_iter();
    // Of equal length the later covers the earlier.
    mounts.filter(|m| path.starts_with(&m.dir)).max_by_key(|m| m.dir.components().count())
}

fn unreadable(path: &Path, error: &std::io::Error) -> ErrorReply {
    let message = format!("cannot read {}: {}", path.display(), preflight::describe(error));
    ErrorReply::new(ErrorCode::NotFound, message)
}
