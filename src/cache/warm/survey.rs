//! Lists everything below a mount, for `--warm all`.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::super::metadata::Tree;
use super::super::record::NodeId;

/// Listings that are asked for at once.
const LISTINGS_MAX: usize = 8;

/// How often a folder is tried that cannot be listed, and how long after; the
/// client of the remote has tried for a minute each time.
const TRIES_MAX: u32 = 3;
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Lists all that is not listed. What cannot be is left out.
pub(super) async fn list_all(tree: Weak<Tree>) {
    let Some(root) = tree.upgrade().map(|tree| tree.root()) else { return };
    let mut folders = vec![root];
    let mut listings = FuturesUnordered::new();
    loop {
        while listings.len() < LISTINGS_MAX
            && let Some(folder) = folders.pop()
        {
            listings.push(list(tree.clone(), folder));
        }
        let Some(below) = listings.next().await else { return };
        folders.extend(below);
    }
}

/// Lists a folder; returns the folders in it.
async fn list(tree: Weak<Tree>, folder: NodeId) -> Vec<NodeId> {
    for _ in 0..TRIES_MAX {
        let Some(tree) = tree.upgrade() else { return Vec::new() };
        match tree.ensure_listed_ahead(folder).await.and_then(|()| tree.folders_in(folder)) {
            Ok(folders) => return folders,
            Err(error) => tracing::debug!(%error, "a folder cannot be listed ahead"),
        }
        drop(tree);
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
    Vec::new()
}
