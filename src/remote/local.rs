//! `file:///folder`: a folder that plays an object store.
//!
//! A key is a path relative to the folder, a version is the file's size and
//! mtime, and a listing looks as S3's does: sorted by key, folders as prefixes
//! that end in `/`, in pages. Its rules where folders differ from buckets:
//!
//! - An empty folder is a prefix too, in listings that are not recursive.
//! - Symbolic links to files are followed, wherever they lead. Links to folders
//!   are not, so that no listing has a cycle and no key a second path.
//! - Sockets, pipes and devices are not objects. Names that are not UTF-8 cannot
//!   be keys: they are listed as keys that no path can name ([`not_utf8`]).
//! - A key with `..`, `.` or an empty component names nothing.
//!
//! A file has no `If-Match`: its size and mtime are read from the open file
//! before the first byte and again after each piece, and a difference is
//! [`ErrorKind::Changed`] instead of that piece. A write that leaves both alone
//! (a restored mtime) is not seen.
//!
//! The folder may lie on a file system that hangs. Whatever asks it anything runs on
//! [`Threads`] of its own.

mod calls;
mod threads;

use std::collections::VecDeque;
use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio::time::timeout;

use self::threads::{OpenFile, Threads};
use super::answer::late;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId, Version, VersionGuard, not_utf8,
};

/// Bytes read and handed over at a time: few enough thread switches, and little
/// memory for each of many readers.
const PIECE_BYTES: u64 = 1 << 20;

/// Most entries in a page. Each page of a flat folder reads the folder's names
/// again, so pages are larger than S3's; an entry costs about 200 bytes.
const PAGE_ENTRIES: usize = 10_000;

/// Time for a folder to be opened at all: as long as a store's answer.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// A local folder as a remote.
#[derive(Debug)]
pub struct LocalRemote {
    id: RemoteId,
    folder: Arc<Folder>,
    threads: Arc<Threads>,
}

/// The folder itself, shared with its threads.
#[derive(Debug)]
struct Folder {
    /// Canonical path.
    root: PathBuf,
}

/// The canonical form of a path, or the path itself if it has none.
///
/// # Errors
/// [`ErrorKind::Transient`] if the file system does not answer.
pub async fn canonical(path: &Path) -> Result<PathBuf, RemoteError> {
    let of = path.to_owned();
    let canonical = move || Ok(of.canonicalize().unwrap_or(of));
    in_time(path, Threads::of(path).run(canonical)).await
}

async fn in_time<T>(
    path: &Path,
    call: impl Future<Output = Result<T, RemoteError>>,
) -> Result<T, RemoteError> {
    let answer = timeout(OPEN_LIMIT, call).await;
    answer.unwrap_or_else(|_| {
        let error = late(&format!("file://{}", path.display()), OPEN_LIMIT);
        let message = format!("{}; see to the server or program behind it", error.message);
        Err(RemoteError { message, ..error })
    })
}

impl LocalRemote {
    /// The folder at `path` as a remote.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchBucket`] when it is no folder or cannot be read, and
    /// [`ErrorKind::Transient`] or [`ErrorKind::Unreachable`] when it does not answer.
    pub async fn open(path: &Path) -> Result<LocalRemote, RemoteError> {
        let (threads, of) = (Threads::of(path), path.to_owned());
        let (folder, name) = in_time(path, threads.run(move || Folder::open(&of))).await?;
        let id = RemoteId(format!("file://{name}"));
        Ok(LocalRemote { id, folder: Arc::new(folder), threads })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, RemoteError> + Send + 'static,
    ) -> Result<T, RemoteError> {
        let folder = Arc::clone(&self.folder);
        self.threads.run(move || work(&folder)).await
    }
}

#[async_trait]
impl Remote for LocalRemote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        // It could, but each page reads the folder from its beginning.
        Capabilities { version_guard: VersionGuard::CompareResponse, list_start_after: false }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let key = key.clone();
        self.run(move |folder| {
            let path = folder.path_of("HEAD", &key)?;
            let metadata = path.metadata().map_err(|e| io_error("HEAD", &key.0, &e))?;
            object_meta(key.clone(), &metadata).ok_or_else(|| not_found("HEAD", &key))
        })
        .await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let request = request.clone();
        self.run(move |folder| folder.list(&request)).await
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let (key, threads) = (object.key.clone(), Arc::clone(&self.threads));
        let slot = threads.file_slot()?;
        let opened = self.run(move |folder| {
            let (file, metadata) = folder.open_file(&key)?;
            Ok((OpenFile::new(file, slot, &threads), metadata))
        });
        let (file, metadata) = opened.await?;
        let (version, total_size) = (version_of(&metadata), metadata.len());
        let reader = FileReader {
            file,
            threads: Arc::clone(&self.threads),
            key: object.key.clone(),
            version: version.clone(),
            at: range.start,
            end: range.end.min(total_size),
        };
        let body = stream::try_unfold(reader, FileReader::next).boxed();
        Ok(RangeBody { version, total_size, body })
    }
}

/// A file whose version is compared around every read.
struct FileReader {
    file: OpenFile,
    threads: Arc<Threads>,
    key: Key,
    version: Version,
    at: u64,
    end: u64,
}

impl FileReader {
    async fn next(self) -> Result<Option<(Bytes, Self)>, RemoteError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let threads = Arc::clone(&self.threads);
        threads.run(move || self.read()).await
    }

    /// The next piece. With the last one the file is closed.
    fn read(mut self) -> Result<Option<(Bytes, Self)>, RemoteError> {
        let failed = |error: io::Error| io_error("GET", &self.key.0, &error);
        let Some(file) = self.file.file() else { return Ok(None) };
        let mut piece = vec![0; (self.end - self.at).min(PIECE_BYTES) as usize];
        let read = file.read_exact_at(&mut piece, self.at);
        let metadata = file.metadata().map_err(failed)?;
        if version_of(&metadata) != self.version {
            let message = format!("GET {}: the file changed while it was read", self.key.0);
            return Err(RemoteError::new(ErrorKind::Changed, message));
        }
        read.map_err(failed)?;
        self.at += piece.len() as u64;
        if self.at >= self.end {
            self.file.close_here();
        }
        Ok(Some((Bytes::from(piece), self)))
    }
}

impl Folder {
    /// The folder at `path`, and the name of where it is.
    fn open(path: &Path) -> Result<(Folder, String), RemoteError> {
        let refuse = |why: &str| {
            let message = format!("file://{}: {why}", path.display());
            RemoteError::new(ErrorKind::NoSuchBucket, message)
        };
        let root = path.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refuse("there is no such folder; check the path"),
            _ => refuse(&format!("cannot be opened: {error}; check its permissions")),
        })?;
        if !root.is_dir() {
            return Err(refuse("is not a folder; name the folder that holds the file"));
        }
        if let Err(error) = root.read_dir() {
            return Err(refuse(&format!("cannot be read: {error}; check its permissions")));
        }
        match root.to_str().map(str::to_owned) {
            Some(name) => Ok((Folder { root }, name)),
            None => Err(refuse("the path is not UTF-8; reach it through a link with another name")),
        }
    }

    /// The path a key names, never outside the folder.
    fn path_of(&self, verb: &str, key: &Key) -> Result<PathBuf, RemoteError> {
        let inside = is_plain(&key.0).then(|| self.root.join(&key.0));
        let path = inside.ok_or_else(|| not_found(verb, key))?;
        // A folder on the way that is a link would lead elsewhere.
        let parent = path.parent().unwrap_or(&self.root);
        match parent.canonicalize() {
            Ok(canonical) if canonical == parent => Ok(path),
            Ok(_) => Err(not_found(verb, key)),
            Err(error) => Err(io_error(verb, &key.0, &error)),
        }
    }

    fn open_file(&self, key: &Key) -> Result<(File, Metadata), RemoteError> {
        let path = self.path_of("GET", key)?;
        let mut options = OpenOptions::new();
        // A pipe must not make the open wait for its writer.
        options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let opened = options.open(path).and_then(|file| file.metadata().map(|meta| (file, meta)));
        let (file, metadata) = opened.map_err(|error| io_error("GET", &key.0, &error))?;
        if metadata.is_file() { Ok((file, metadata)) } else { Err(not_found("GET", key)) }
    }

    fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let (dir, _) = split_prefix(&request.prefix);
        if dir.strip_suffix('/').is_some_and(|dir| !is_plain(dir)) {
            return Ok(ListPage::default());
        }
        let limit = request.max_keys.map_or(PAGE_ENTRIES, usize::from).clamp(1, PAGE_ENTRIES);
        let mut page = ListPage::default();
        let mut last = None;
        // Folders that are open on the way down; what is in each, in order.
        let mut open = vec![self.read_dir(dir, request)?];
        while let Some(entries) = open.last_mut() {
            let Some(entry) = entries.pop_front() else {
                open.pop();
                continue;
            };
            if entry.is_dir && request.recursive && entry.path.is_none() {
                open.push(self.read_dir(&entry.key, request)?);
                continue;
            }
            let meta = if entry.is_dir { None } else { self.stat(&entry) };
            if !entry.is_dir && meta.is_none() {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.next = last;
                return Ok(page);
            }
            last = Some(entry.key.clone());
            match meta {
                Some(meta) => page.objects.push(meta),
                None => page.prefixes.push(entry.key),
            }
        }
        Ok(page)
    }

    /// What of the folder `dir` (empty, or ending in `/`) belongs in the
    /// listing, in key order: a folder sorts as its name with the `/`.
    fn read_dir(&self, dir: &str, request: &ListRequest) -> Result<VecDeque<Entry>, RemoteError> {
        let root = dir.is_empty();
        let path = if root { self.root.clone() } else { self.root.join(dir.trim_end_matches('/')) };
        let fail = |error: io::Error| io_error("LIST", dir, &error);
        // As for keys: no way through a link.
        match path.canonicalize() {
            Ok(canonical) if canonical == path => {}
            Ok(_) => return Ok(VecDeque::new()),
            Err(error) => return none_if_missing(fail(error), root),
        }
        let names = match path.read_dir() {
            Ok(names) => names,
            Err(error) => return none_if_missing(fail(error), root),
        };
        let mut entries = Vec::new();
        for name in names {
            let name = name.map_err(fail)?;
            let Some(is_dir) = name.file_type().ok().and_then(is_listed) else { continue };
            let (text, path) = match name.file_name().into_string() {
                Ok(text) => (text, None),
                Err(other) => (not_utf8(other.as_bytes()), Some(name.path())),
            };
            let key = format!("{dir}{text}{}", if is_dir { "/" } else { "" });
            if wanted(&key, is_dir, request) {
                entries.push(Entry { key, path, is_dir });
            }
        }
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(entries.into())
    }

    /// An object of a listing; `None` if it went away, or is a link to
    /// something that is no file.
    fn stat(&self, entry: &Entry) -> Option<ObjectMeta> {
        let path = entry.path.clone().unwrap_or_else(|| self.root.join(&entry.key));
        object_meta(Key(entry.key.clone()), &path.metadata().ok()?)
    }
}

/// A name in a folder, as a full key; folders end in `/`.
struct Entry {
    key: String,
    /// Where it is, if its key does not tell.
    path: Option<PathBuf>,
    is_dir: bool,
}

/// Whether an entry, or anything below it, is in the rest of the listing.
fn wanted(key: &str, is_dir: bool, request: &ListRequest) -> bool {
    let prefix = request.prefix.as_str();
    if !(key.starts_with(prefix) || is_dir && request.recursive && prefix.starts_with(key)) {
        return false;
    }
    let is_past = |after: &str, into: bool| key > after || into && after.starts_with(key);
    match (&request.continuation, &request.start_after) {
        (Some(token), _) => is_past(token, is_dir && request.recursive),
        // A folder with keys on both sides of `start_after` is listed again.
        (None, Some(after)) => is_past(after, is_dir && (request.recursive || key != after)),
        (None, None) => true,
    }
}

/// `Some(is a folder)` for what can be listed. What a link leads to shows when
/// it is asked for its size.
fn is_listed(kind: FileType) -> Option<bool> {
    (kind.is_dir() || kind.is_file() || kind.is_symlink()).then(|| kind.is_dir())
}

/// Splits a prefix into its folders (empty, or ending in `/`) and what a name
/// in there must begin with.
fn split_prefix(prefix: &str) -> (&str, &str) {
    prefix.split_at(prefix.rfind('/').map_or(0, |slash| slash + 1))
}

/// Whether a path stays where it is put: no empty, `.` or `..` component.
fn is_plain(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|name| !matches!(name, "" | "." | ".."))
}

fn object_meta(key: Key, metadata: &Metadata) -> Option<ObjectMeta> {
    metadata.is_file().then(|| ObjectMeta {
        key,
        size: metadata.len(),
        version: version_of(metadata),
        mtime: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
    })
}

/// Size in bytes and mtime in ns.
fn version_of(metadata: &Metadata) -> Version {
    let (s, ns) = (metadata.mtime(), metadata.mtime_nsec());
    Version(format!("{}-{s}.{ns:09}", metadata.len()))
}

fn none_if_missing(error: RemoteError, root: bool) -> Result<VecDeque<Entry>, RemoteError> {
    match error.kind {
        ErrorKind::NotFound if root => {
            Err(RemoteError::new(ErrorKind::NoSuchBucket, error.message))
        }
        ErrorKind::NotFound => Ok(VecDeque::new()),
        _ => Err(error),
    }
}

fn not_found(verb: &str, key: &Key) -> RemoteError {
    RemoteError::new(ErrorKind::NotFound, format!("{verb} {}: there is no such file", key.0))
}

fn io_error(verb: &str, key: &str, error: &io::Error) -> RemoteError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG | libc::ENXIO) => {
            ErrorKind::NotFound
        }
        Some(libc::EACCES | libc::EPERM) => ErrorKind::Denied,
        _ => ErrorKind::Transient,
    };
    RemoteError::new(kind, format!("{verb} {key}: {error}"))
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
