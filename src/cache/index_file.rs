//! Index files: what `warmfs index export` writes and `mount --index` reads, so that a
//! dataset of many objects is listed once for all who mount it.
//!
//! A file is gzip over lines of JSON, so that `zcat` shows it and any program can make
//! one; without a gzip header it is read as it is. Its lines, in this order:
//!
//! | line | how often |
//! |---|---|
//! | `{"warmfs_index":1,"remote":"s3://HOST/BUCKET","prefix":"a/","made_ms":N}` | first |
//! | `{"folder":"","hidden":0}`: its path below the prefix | once a folder, after the one it is in |
//! | `{"name":"b/"}`: a folder in that folder | |
//! | `{"name":"c.jpg","size":N,"mtime_ns":N,"version":"ETAG"}`: an object in it, by the last part of its key | |
//! | `{"folders":N,"objects":N}` | last, so that a file that was cut off is told |
//!
//! Times are since the epoch, sizes in bytes. Lines and fields that are not known are
//! skipped: fields are added, and the version is raised where that is not enough.

mod export;
mod import;

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::time::{Duration, UNIX_EPOCH};

use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};

use super::names;
use super::record::ObjectAttr;
use crate::remote::{Key, ListPage, OBJECT_BYTES_MAX, ObjectMeta, RemoteId, Version};

pub use export::Exported;
pub use import::Imported;

/// The version of the format.
const FORMAT: u32 = 1;

/// Longest line, in bytes: a key of 1,024 bytes and a version, each byte escaped by six.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Longest key, in bytes, that a store has.
const KEY_BYTES_MAX: usize = 1024;

/// Entries of a part of a folder, at most: as many go into the index at once.
const PART_ENTRIES_MAX: usize = 4096;

/// Names take a third of the space at this level, and better ones take twice the time.
const COMPRESSION: Compression = Compression::new(4);

const BUFFER_BYTES: usize = 128 << 10;

/// What the first line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub remote: RemoteId,
    /// Empty, or ending in `/`.
    pub prefix: String,
    /// When it was made, milliseconds since the epoch.
    pub made_ms: u64,
}

/// A folder, or some of one: the parts of a folder follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Full prefix of the folder: empty, or ending in `/`.
    pub prefix: String,
    /// Keys in it that no name can be shown for.
    pub hidden: u64,
    /// Full keys and prefixes.
    pub page: ListPage,
    pub is_first: bool,
    pub is_last: bool,
}

/// Why an index file cannot be used: one line, without its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IndexFileError(String);

impl IndexFileError {
    pub(super) fn holds_nothing(prefix: &str) -> Self {
        IndexFileError(format!("it holds nothing below {prefix:?}; export that, or a folder above"))
    }
}

impl From<io::Error> for IndexFileError {
    fn from(error: io::Error) -> Self {
        let text = error.to_string();
        IndexFileError(match error.kind() {
            io::ErrorKind::UnexpectedEof => "it is cut off; export or copy it again".to_owned(),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => {
                format!("it is damaged ({text}); export or copy it again")
            }
            _ => format!("it cannot be read: {text}"),
        })
    }
}

fn wrong(line: u64, what: &str) -> IndexFileError {
    IndexFileError(format!("line {line} {what}; make it with `warmfs index export`"))
}

/// Any line, as it is written and read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    warmfs_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remote: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    made_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    folders: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    objects: Option<u64>,
}

/// Writes an index file.
struct Writer<W: Write> {
    out: BufWriter<GzEncoder<W>>,
    folders: u64,
    objects: u64,
}

impl<W: Write> Writer<W> {
    fn begin(out: W, header: &Header) -> io::Result<Self> {
        let out = BufWriter::with_capacity(BUFFER_BYTES, GzEncoder::new(out, COMPRESSION));
        let mut writer = Writer { out, folders: 0, objects: 0 };
        writer.line(&Line {
            warmfs_index: Some(FORMAT),
            remote: Some(header.remote.0.clone()),
            prefix: Some(header.prefix.clone()),
            made_ms: Some(header.made_ms),
            ..Line::default()
        })?;
        Ok(writer)
    }

    /// A folder begins; `path` is below the header's prefix.
    fn folder(&mut self, path: &str, hidden: u64) -> io::Result<()> {
        self.folders += 1;
        let (folder, hidden) = (Some(path.to_owned()), Some(hidden));
        self.line(&Line { folder, hidden, ..Line::default() })
    }

    fn folder_in_it(&mut self, name: &str) -> io::Result<()> {
        self.line(&Line { name: Some(format!("{name}/")), ..Line::default() })
    }

    fn object(&mut self, name: &str, attr: &ObjectAttr) -> io::Result<()> {
        self.objects += 1;
        self.line(&Line {
            name: Some(attr.key_name.as_deref().unwrap_or(name).to_owned()),
            size: Some(attr.size),
            mtime_ns: Some(attr.mtime_ns),
            version: Some(attr.version.0.clone()),
            ..Line::default()
        })
    }

    fn end(mut self) -> io::Result<W> {
        let (folders, objects) = (Some(self.folders), Some(self.objects));
        self.line(&Line { folders, objects, ..Line::default() })?;
        self.out.into_inner().map_err(io::IntoInnerError::into_error)?.finish()
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, line)?;
        self.out.write_all(b"\n")
    }
}

/// Reads an index file, part by part.
struct Reader {
    input: Box<dyn BufRead + Send>,
    header: Header,
    /// Lines read.
    lines: u64,
    buffer: Vec<u8>,
    /// The folder that is read: path, hidden keys.
    open: Option<(String, u64)>,
    /// No part of that was handed out.
    is_first: bool,
    folders: u64,
    objects: u64,
    is_over: bool,
}

impl Reader {
    fn begin(input: impl Read + Send + 'static) -> Result<Self, IndexFileError> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
        let is_gzip = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let input: Box<dyn BufRead + Send> = match is_gzip {
            true => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(input))),
            false => Box::new(input),
        };
        let header = Header { remote: RemoteId(String::new()), prefix: String::new(), made_ms: 0 };
        let mut reader = Reader {
            input,
            header,
            lines: 0,
            buffer: Vec::new(),
            open: None,
            is_first: true,
            folders: 0,
            objects: 0,
            is_over: false,
        };
        reader.header = reader.read_header()?;
        Ok(reader)
    }

    fn read_header(&mut self) -> Result<Header, IndexFileError> {
        let no_index = || wrong(1, "does not begin an index file");
        let line = self.line().map_err(|error| if self.lines <= 1 { no_index() } else { error })?;
        let (Some(version), Some(remote), Some(prefix), Some(made_ms)) =
            (line.warmfs_index, line.remote, line.prefix, line.made_ms)
        else {
            return Err(no_index());
        };
        if version != FORMAT {
            let message = format!("it has format {version}, and this warmfs reads {FORMAT}");
            return Err(IndexFileError(format!("{message}; use the version that made it")));
        }
        if !(prefix.is_empty() || prefix.ends_with('/')) || prefix.len() > KEY_BYTES_MAX {
            return Err(wrong(1, "has a prefix that is not a folder's"));
        }
        Ok(Header { remote: RemoteId(remote), prefix, made_ms })
    }

    /// The next part of a folder; `None` after the last line.
    fn next(&mut self) -> Result<Option<Part>, IndexFileError> {
        if self.is_over {
            return Ok(None);
        }
        let mut page = ListPage::default();
        loop {
            if page.objects.len() + page.prefixes.len() == PART_ENTRIES_MAX {
                return Ok(self.part(page, false));
            }
            let line = self.line()?;
            if let Some(path) = line.folder {
                self.folders += 1;
                if !is_path(&path) || self.header.prefix.len() + path.len() > KEY_BYTES_MAX {
                    return Err(wrong(self.lines, "names no folder"));
                }
                let part = self.part(std::mem::take(&mut page), true);
                self.open = Some((path, line.hidden.unwrap_or(0)));
                self.is_first = true;
                if part.is_some() {
                    return Ok(part);
                }
            } else if let Some(name) = &line.name {
                let Some((path, _)) = &self.open else {
                    return Err(wrong(self.lines, "is in no folder"));
                };
                let key = format!("{}{path}{name}", self.header.prefix);
                if key.len() > KEY_BYTES_MAX {
                    return Err(wrong(self.lines, "has a key that is too long"));
                }
                match name.strip_suffix('/') {
                    Some(folder) if names::is_showable(folder) => page.prefixes.push(key),
                    None if names::is_showable(name) => {
                        page.objects.push(object(key, &line).map_err(|w| wrong(self.lines, w))?);
                        self.objects += 1;
                    }
                    _ => return Err(wrong(self.lines, "has a name that no folder can show")),
                }
            } else if let (Some(folders), Some(objects)) = (line.folders, line.objects) {
                if (folders, objects) != (self.folders, self.objects) {
                    return Err(wrong(self.lines, "counts other lines than there are"));
                }
                self.is_over = true;
                return Ok(self.part(page, true));
            }
        }
    }

    /// What was read of the open folder.
    fn part(&mut self, page: ListPage, is_last: bool) -> Option<Part> {
        let (path, hidden) = self.open.as_ref()?;
        let prefix = format!("{}{path}", self.header.prefix);
        let is_first = std::mem::replace(&mut self.is_first, false);
        Some(Part { prefix, hidden: *hidden, page, is_first, is_last })
    }

    fn line(&mut self) -> Result<Line, IndexFileError> {
        self.buffer.clear();
        self.lines += 1;
        let read = (&mut self.input).take(LINE_BYTES_MAX).read_until(b'\n', &mut self.buffer)?;
        match self.buffer.pop() {
            Some(b'\n') => {}
            _ if read as u64 == LINE_BYTES_MAX => return Err(wrong(self.lines, "is too long")),
            // The last line always has one.
            _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        serde_json::from_slice(&self.buffer).map_err(|_| wrong(self.lines, "is not understood"))
    }
}

/// Whether this is the path of a folder: empty, or names that each end in `/`.
fn is_path(path: &str) -> bool {
    path.is_empty()
        || path.strip_suffix('/').is_some_and(|path| path.split('/').all(names::is_showable))
}

fn object(key: String, line: &Line) -> Result<ObjectMeta, &'static str> {
    let (Some(size), Some(version)) = (line.size, &line.version) else {
        return Err("has no size, or no version");
    };
    if size > OBJECT_BYTES_MAX {
        return Err("has a size that no object has");
    }
    let since = Duration::from_nanos(line.mtime_ns.unwrap_or(0));
    let version = Version(version.clone());
    Ok(ObjectMeta { key: Key(key), size, version, mtime: UNIX_EPOCH + since })
}

#[cfg(test)]
#[path = "index_file/tests.rs"]
mod tests;
