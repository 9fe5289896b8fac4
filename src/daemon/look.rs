//! `ls` and `du`: rows that are sent as they are found, from the index.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::read_through::explain_cache as explain;
use super::{Daemon, internal};
use crate::cache::{CacheError, HiddenPages, Look, Node, NodeId, NodeKind, Progress, Tree};
use crate::control::wire::{DuRequest, ErrorReply, LsRequest, Row, RowsReply, UpkeepLine};

/// Rows of one line, at most, and about how many bytes they may take: a client takes an
/// endless line for a defect.
const ROWS_MAX: usize = 256;
const LINE_BYTES: usize = 32 << 10;

/// Bytes of a row besides its names, and of one byte of a name if it has to be escaped.
const ROW_BYTES: usize = 200;
const ESCAPED_BYTES: usize = 6;

/// Where rows go.
pub(super) struct Rows<'a> {
    lines: &'a mpsc::Sender<UpkeepLine>,
    waiting: Vec<Row>,
    waiting_bytes: usize,
    sent: u64,
}

impl<'a> Rows<'a> {
    pub(super) fn to(lines: &'a mpsc::Sender<UpkeepLine>) -> Self {
        Rows { lines, waiting: Vec::new(), waiting_bytes: 0, sent: 0 }
    }

    async fn push(&mut self, row: Row) {
        let names = row.name.len() + row.version.as_ref().map_or(0, String::len);
        self.waiting_bytes += ROW_BYTES + ESCAPED_BYTES * names;
        self.waiting.push(row);
        if self.waiting.len() >= ROWS_MAX || self.waiting_bytes >= LINE_BYTES {
            self.send().await;
        }
    }

    async fn send(&mut self) {
        let rows = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        self.sent += rows.len() as u64;
        // Who went away wants no more; the job is told to stop for it.
        let _ = self.lines.send(UpkeepLine::Rows(rows)).await;
    }

    async fn end(mut self) -> RowsReply {
        if !self.waiting.is_empty() {
            self.send().await;
        }
        RowsReply { rows: self.sent }
    }
}

impl Daemon {
    /// What is in a folder, or what a file is. What is known is told, whatever fails.
    pub(super) async fn ls(
        &self,
        request: &LsRequest,
        mut rows: Rows<'_>,
        progress: &Arc<Progress>,
    ) -> Result<RowsReply, ErrorReply> {
        let (tree, node, known) = self.look_for(&request.path).await?;
        let listed = match known {
            None => Ok(()),
            Some(known) if is_object(&known) => {
                if !request.hidden {
                    let look = blocking(&tree, move |tree| tree.look_at(&known)).await?;
                    rows.push(row(look.name.clone(), look)).await;
                }
                Ok(())
            }
            Some(_) => {
                let listed = tokio::select! {
                    listed = tree.ensure_listed(node) => listed,
                    () = progress.cancelled() => Ok(()),
                };
                match request.hidden {
                    true => self.hidden(&tree, node, &mut rows, progress).await?,
                    false => self.entries(&tree, node, &mut rows, progress).await?,
                }
                listed
            }
        };
        let reply = rows.end().await;
        listed.map(|()| reply).map_err(|error| explain(&error))
    }

    /// What a path leads to; `None` if it is gone this moment.
    async fn look_for(&self, path: &Path) -> Result<(Arc<Tree>, NodeId, Option<Node>), ErrorReply> {
        let (tree, node) = self.find(path).await?;
        let known = blocking(&tree, move |tree| tree.node(node)).await?;
        Ok((tree, node, known))
    }

    async fn hidden(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        rows: &mut Rows<'_>,
        progress: &Arc<Progress>,
    ) -> Result<(), ErrorReply> {
        let mut pages = HiddenPages::default();
        while !pages.is_last && !progress.is_cancelled() {
            let hidden = tokio::select! {
                hidden = tree.hidden(node, &mut pages) => hidden,
                () = progress.cancelled() => return Ok(()),
            };
            for look in hidden.map_err(|error| explain(&error))? {
                rows.push(row(look.name.clone(), look)).await;
            }
        }
        Ok(())
    }

    async fn entries(
        &self,
        tree: &Arc<Tree>,
        node: NodeId,
        rows: &mut Rows<'_>,
        progress: &Arc<Progress>,
    ) -> Result<(), ErrorReply> {
        let _ = blocking(tree, |tree| tree.sum_up()).await; // What cannot be written is old.
        let mut after: Option<String> = None;
        while !progress.is_cancelled() {
            let from = after.clone();
            let look = move |tree: &Tree| tree.look_in(node, from.as_deref(), ROWS_MAX);
            let found = blocking(tree, look).await?;
            let Some(last) = found.last() else { break };
            after = Some(last.name.clone());
            for look in found {
                rows.push(row(look.name.clone(), look)).await;
            }
        }
        Ok(())
    }

    /// The sums of a folder, and of those down to a depth below it: these first.
    pub(super) async fn du(
        &self,
        request: &DuRequest,
        mut rows: Rows<'_>,
        progress: &Arc<Progress>,
    ) -> Result<RowsReply, ErrorReply> {
        let (tree, node, known) = self.look_for(&request.path).await?;
        let listed = match known.as_ref().is_some_and(is_object) {
            true => Ok(()),
            false => tree.list_below(node, progress).await,
        };
        let _ = blocking(&tree, |tree| tree.sum_up()).await;
        let known = blocking(&tree, move |tree| {
            tree.node(node)?.map(|node| tree.look_at(&node)).transpose()
        });
        if let Some(top) = known.await? {
            let mut pending = vec![(String::new(), top, request.depth, false)];
            while let Some((path, look, depth, is_done)) = pending.pop() {
                if progress.is_cancelled() {
                    break;
                }
                let below = look.node.filter(|_| look.is_folder && depth > 0 && !is_done);
                let Some(folder) = below else {
                    rows.push(row(path, look)).await;
                    continue;
                };
                pending.push((path.clone(), look, depth, true));
                let folders = blocking(&tree, move |tree| {
                    let folders = tree.folders_in(folder)?;
                    let looks = folders.into_iter().filter_map(|node| {
                        tree.node(node).transpose().map(|node| tree.look_at(&node?))
                    });
                    looks.collect::<Result<Vec<_>, _>>()
                });
                for look in folders.await?.into_iter().rev() {
                    let path = Path::new(&path).join(&look.name);
                    pending.push((path.to_string_lossy().into_owned(), look, depth - 1, false));
                }
            }
        }
        let reply = rows.end().await;
        listed.map(|()| reply).map_err(|error| explain(&error))
    }
}

fn is_object(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Object(_))
}

pub(super) fn row(name: String, look: Look) -> Row {
    Row {
        name,
        is_folder: look.is_folder,
        objects: look.sums.objects,
        bytes: look.sums.bytes,
        cached_bytes: look.sums.cached_bytes,
        mtime_ms: look.mtime_ns / 1_000_000,
        version: look.version.map(|version| version.0),
    }
}

async fn blocking<T: Send + 'static>(
    tree: &Arc<Tree>,
    work: impl FnOnce(&Tree) -> Result<T, CacheError> + Send + 'static,
) -> Result<T, ErrorReply> {
    let tree = tree.clone();
    let done = tokio::task::spawn_blocking(move || work(&tree)).await;
    done.map_err(|error| internal(&error))?.map_err(|error| explain(&error))
}
