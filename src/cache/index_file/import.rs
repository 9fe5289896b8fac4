//! From a file to the index.

use std::io::Read;
use std::sync::Arc;

use super::{IndexFileError, Part, Reader};
use crate::cache::CacheError;
use crate::cache::attach::AttachError;
use crate::cache::index::Write;
use crate::cache::listing::{Changes, FolderUpdate};
use crate::cache::metadata::Tree;
use crate::cache::record::NodeId;

/// Entries that go into the index in one transaction, about: small folders share one.
const BATCH_ENTRIES: usize = 4096;

/// What [`Tree::import`] took over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Folders.
    pub folders: u64,
    /// Folders left as they were, since they were listed after the file was made.
    pub newer: u64,
}

impl Tree {
    /// Takes over what an index file says of the folders below this tree's root: they
    /// count as listed now.
    ///
    /// # Errors
    /// [`AttachError::Index`] if the file is no good, or of something else. Folders that
    /// were taken over until then stay: each is whole.
    pub async fn import(
        self: &Arc<Self>,
        input: impl Read + Send + 'static,
    ) -> Result<Imported, AttachError> {
        let tree = self.clone();
        let task = self.runtime.spawn_blocking(move || tree.read_index(input));
        task.await.unwrap_or_else(|error| Err(CacheError::Io(error.to_string()).into()))
    }

    fn read_index(&self, input: impl Read + Send + 'static) -> Result<Imported, AttachError> {
        let mut reader = Reader::begin(input)?;
        let (header, root) = (&reader.header, self.prefix(self.root)?);
        let is_below = |a: &str, b: &str| a.starts_with(b);
        let is_nested = is_below(&header.prefix, &root) || is_below(&root, &header.prefix);
        if header.remote != *self.remote.id() || !is_nested {
            let (of, remote) = (&header.remote.0, &self.remote.id().0);
            let message = format!("it is of {of}/{}, not of {remote}/{root}", header.prefix);
            return Err(IndexFileError(message).into());
        }
        let (made_ms, began_ms) = (header.made_ms, self.clock.next_ms());
        let mut import = Import {
            root: (root, self.root),
            made_ms,
            began_ms,
            open: None,
            done: Imported::default(),
        };
        loop {
            let (mut parts, mut entries) = (Vec::new(), 0);
            while entries < BATCH_ENTRIES
                && let Some(part) = reader.next()?
            {
                entries += 1 + part.page.objects.len() + part.page.prefixes.len();
                parts.push(part);
            }
            if parts.is_empty() {
                return Ok(import.done);
            }
            let batch = &mut import;
            self.announce(self.index.write(|write| batch.take(write, &parts))?)?;
        }
    }
}

/// An index file on its way into the index.
struct Import {
    /// The prefix and the folder that is mounted.
    root: (String, NodeId),
    made_ms: u64,
    began_ms: u64,
    /// The folder that is taken over, and the time at which it counts as listed; `None`
    /// if it is left alone.
    open: Option<(NodeId, u64)>,
    done: Imported,
}

impl Import {
    fn take(&mut self, write: &mut Write<'_>, parts: &[Part]) -> Result<Changes, CacheError> {
        let mut all = Changes::default();
        for part in parts {
            let Some(path) = part.prefix.strip_prefix(&self.root.0) else { continue };
            if part.is_first {
                self.open = self.open(write, path, &mut all)?;
                match self.open {
                    Some(_) => self.done.folders += 1,
                    None => self.done.newer += 1,
                }
            }
            let Some((folder, seen_ms)) = self.open else { continue };
            if write.folder(folder)?.listed_ms >= Some(seen_ms) {
                continue; // Somebody listed it meanwhile.
            }
            let mut update = FolderUpdate::begin(write, folder, seen_ms)?;
            update.page(&part.prefix, &part.page)?;
            if part.is_last {
                update.set_hidden(part.hidden);
                update.finish_listing()?;
            }
            all.add(update.end()?);
        }
        Ok(all)
    }

    /// The folder at `path` below the root, and its time, unless it was listed after the
    /// file was made.
    fn open(
        &self,
        write: &mut Write<'_>,
        path: &str,
        all: &mut Changes,
    ) -> Result<Option<(NodeId, u64)>, CacheError> {
        let mut folder = self.root.1;
        for name in path.split_terminator('/') {
            let entry = write.entry(folder, name)?.filter(|entry| entry.object.is_none());
            folder = match entry {
                Some(entry) => entry.node,
                None => {
                    let mut update = FolderUpdate::begin(write, folder, self.began_ms)?;
                    let below = update.put_folder(name)?;
                    all.add(update.end()?);
                    below
                }
            };
        }
        let listed_ms = write.folder(folder)?.listed_ms.unwrap_or(0);
        let is_newer = listed_ms > self.made_ms || write.is_superseded(folder)?;
        Ok((!is_newer).then_some((folder, self.began_ms.max(listed_ms + 1))))
    }
}
