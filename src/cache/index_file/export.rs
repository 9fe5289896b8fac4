//! From the index to a file.

use std::io::Write;
use std::sync::Arc;

use super::{Header, Writer};
use crate::cache::CacheError;
use crate::cache::metadata::Tree;
use crate::cache::record::NodeId;
use crate::cache::upkeep::Progress;

/// Entries read from the index at once.
const BATCH_ENTRIES: usize = 1024;

/// What [`Tree::export`] wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Folders.
    pub folders: u64,
    /// Objects.
    pub objects: u64,
}

impl Tree {
    /// Writes what is in `folder` and below it to `out`, once all of it is listed;
    /// `None` if it was cancelled.
    ///
    /// # Errors
    /// [`CacheError::Remote`] if something cannot be listed, [`CacheError::Io`] if `out`
    /// takes no more.
    pub async fn export(
        self: &Arc<Self>,
        folder: NodeId,
        out: impl Write + Send + 'static,
        progress: &Arc<Progress>,
    ) -> Result<Option<Exported>, CacheError> {
        self.list_below(folder, progress).await?;
        let (tree, progress) = (self.clone(), progress.clone());
        let task = self.runtime.spawn_blocking(move || tree.write_index(folder, out, &progress));
        task.await.unwrap_or_else(|error| Err(CacheError::Io(error.to_string())))
    }

    fn write_index(
        &self,
        top: NodeId,
        out: impl Write,
        progress: &Progress,
    ) -> Result<Option<Exported>, CacheError> {
        let failed = |error: std::io::Error| CacheError::Io(error.to_string());
        let header = Header {
            remote: self.remote.id().clone(),
            prefix: self.prefix(top)?,
            made_ms: self.clock.current_ms(),
        };
        let mut writer = Writer::begin(out, &header).map_err(failed)?;
        let mut pending = vec![(String::new(), top)];
        while let Some((path, folder)) = pending.pop() {
            if progress.is_cancelled() {
                return Ok(None);
            }
            let row = self.index.folder(folder)?.unwrap_or_default();
            if row.listed_ms.is_none() {
                continue; // It came this moment: whoever reads the file lists it.
            }
            writer.folder(&path, row.hidden).map_err(failed)?;
            let (first, mut after) = (pending.len(), None::<String>);
            loop {
                let batch = self.index.entries_after(folder, after.as_deref(), BATCH_ENTRIES)?;
                let Some((last, _)) = batch.last() else { break };
                after = Some(last.clone());
                for (name, entry) in batch {
                    let written = match &entry.object {
                        Some(attr) => writer.object(&name, attr),
                        None => {
                            pending.push((format!("{path}{name}/"), entry.node));
                            writer.folder_in_it(&name)
                        }
                    };
                    written.map_err(failed)?;
                }
            }
            // By name, as they are read.
            pending[first..].reverse();
        }
        let done = Exported { folders: writer.folders, objects: writer.objects };
        writer.end().map_err(failed)?;
        Ok(Some(done))
    }
}
