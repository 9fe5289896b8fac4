//! From a bucket prefix to a mounted tree: does it hold anything, and where
//! does it stand in the index.

use std::io::Read;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::watch;

use super::index::{Root, Write};
use super::lister::Listings;
use super::listing::{Changes, FolderUpdate};
use super::metadata::Tree;
use super::names;
use super::{Cache, CacheError, Imported, IndexFileError};
use crate::remote::client::RemoteClient;
use crate::remote::{ErrorKind, Key, ListPage, ListRequest};

/// Prefixes named to a user whose own has no keys.
const SUGGESTIONS_MAX: usize = 3;

/// Why a prefix cannot be mounted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// No key begins with it.
    #[error("no key begins with {prefix:?}")]
    NoKeys {
        /// The prefix, ending in `/`.
        prefix: String,
        /// Prefixes that do hold keys and look like it.
        nearest: Vec<String>,
    },
    /// It is the key of one object.
    #[error("{key:?} is an object, not a folder")]
    OneObject {
        /// The object.
        key: String,
        /// The prefix it is in: empty, or ending in `/`.
        folder: String,
    },
    /// It contains what no path can (`//`, `.` or `..`).
    #[error("{prefix:?} has a part that no folder can be named")]
    Unshowable {
        /// The prefix.
        prefix: String,
    },
    /// The index file that was given cannot be used.
    #[error(transparent)]
    Index(#[from] IndexFileError),
    /// The cache or the remote could not tell.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Cache {
    /// The tree below `prefix` (empty, or ending in `/`), after one request
    /// that finds out whether there is anything.
    pub async fn attach(
        self: &Arc<Self>,
        remote: Arc<RemoteClient>,
        prefix: &str,
        ttl: Duration,
    ) -> Result<Arc<Tree>, AttachError> {
        let parts = parts(prefix)?;
        let began_ms = self.clock.next_ms();
        let request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
        let page = remote.list(&request).await.map_err(CacheError::from)?;
        if page.objects.is_empty() && page.prefixes.is_empty() && !prefix.is_empty() {
            return Err(explain_empty(&remote, prefix).await?);
        }
        let tree = self.plant(remote, parts, ttl, began_ms).await?;
        if page.next.is_none() {
            keep_listing(&tree, prefix.to_owned(), page, began_ms).await?;
        }
        Ok(tree)
    }

    /// The tree below a prefix that was mounted before; without a request.
    pub async fn attach_again(
        self: &Arc<Self>,
        remote: Arc<RemoteClient>,
        prefix: &str,
        ttl: Duration,
    ) -> Result<Arc<Tree>, AttachError> {
        Ok(self.plant(remote, parts(prefix)?, ttl, self.clock.next_ms()).await?)
    }

    /// The tree below `prefix`, with what an index file says of it; without a request.
    pub async fn attach_with_index(
        self: &Arc<Self>,
        remote: Arc<RemoteClient>,
        prefix: &str,
        ttl: Duration,
        index: impl Read + Send + 'static,
    ) -> Result<Arc<Tree>, AttachError> {
        let tree = self.plant(remote, parts(prefix)?, ttl, self.clock.next_ms()).await?;
        let Imported { folders, newer } = tree.import(index).await?;
        tracing::info!(folders, newer, "took over an index file");
        match folders + newer {
            0 => Err(IndexFileError::holds_nothing(prefix).into()),
            _ => Ok(tree),
        }
    }

    async fn plant(
        self: &Arc<Self>,
        remote: Arc<RemoteClient>,
        parts: Vec<String>,
        ttl: Duration,
        began_ms: u64,
    ) -> Result<Arc<Tree>, CacheError> {
        let place = self.place(&remote, parts, began_ms).await?;
        let bucket = place.bucket;
        let root = place.path.last().map_or(bucket, |(_, node)| *node);
        self.index.add_root(place);
        self.store.places().mount(root);
        let tree = Arc::new_cyclic(|me| Tree {
            me: me.clone(),
            index: self.index.clone(),
            store: self.store.clone(),
            remote,
            clock: self.clock.clone(),
            runtime: self.runtime.clone(),
            bucket,
            root,
            ttl,
            given: self.given.clone(),
            listings: Listings::new(),
            walk: Mutex::default(),
            point_lookups: Tree::counted_folders(),
            listing_failed: Mutex::default(),
            refused: Mutex::default(),
            warmer: OnceLock::new(),
            hinter: OnceLock::new(),
            ended: watch::Sender::new(false),
        });
        super::lock(&self.trees).push(Arc::downgrade(&tree));
        Ok(tree)
    }

    /// Where the prefix stands: the bucket's node, and those down to its own.
    async fn place(
        &self,
        remote: &RemoteClient,
        parts: Vec<String>,
        began_ms: u64,
    ) -> Result<Root, CacheError> {
        let index = self.index.clone();
        let remote = remote.id().clone();
        let place = move |write: &mut Write<'_>| {
            let bucket = write.bucket(&remote, began_ms)?;
            let mut path = Vec::new();
            let mut node = bucket;
            for part in parts {
                let mut update = FolderUpdate::begin(write, node, began_ms)?;
                node = update.put_folder(&part)?;
                update.end()?;
                path.push((part, node));
            }
            Ok(Root { remote, bucket, path })
        };
        let task = self.runtime.spawn_blocking(move || index.write(place));
        task.await.unwrap_or_else(|error| Err(CacheError::Index(error.to_string())))
    }
}

/// The folders down to a prefix.
fn parts(prefix: &str) -> Result<Vec<String>, AttachError> {
    let parts: Vec<String> = prefix.split_terminator('/').map(str::to_owned).collect();
    match parts.iter().all(|part| names::is_showable(part)) {
        true => Ok(parts),
        false => Err(AttachError::Unshowable { prefix: prefix.to_owned() }),
    }
}

/// The one page that was read is all there is in the folder: no need to ask again.
async fn keep_listing(
    tree: &Arc<Tree>,
    prefix: String,
    page: ListPage,
    began_ms: u64,
) -> Result<(), CacheError> {
    let root = tree.root;
    tree.write(move |index| {
        index.write(|write| {
            if write.is_superseded(root)? {
                return Ok(Changes::default());
            }
            let mut update = FolderUpdate::begin(write, root, began_ms)?;
            update.reset_hidden();
            update.page(&prefix, &page)?;
            update.finish_listing()?;
            update.end()
        })
    })
    .await
}

async fn explain_empty(remote: &RemoteClient, prefix: &str) -> Result<AttachError, CacheError> {
    let key = prefix.trim_end_matches('/');
    let folder = key.rfind('/').map_or("", |slash| &key[..=slash]);
    match remote.head(&Key(key.to_owned())).await {
        Ok(meta) if meta.key.0 == key => {
            return Ok(AttachError::OneObject { key: key.to_owned(), folder: folder.to_owned() });
        }
        Ok(_) => {} // A folder of the store's own.
        // Without permission to list, a missing key is 403 too; the listing went well.
        Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Denied) => {}
        Err(error) => return Err(error.into()),
    }
    let nearest = nearest_prefixes(remote, key).await?;
    Ok(AttachError::NoKeys { prefix: prefix.to_owned(), nearest })
}

/// The siblings of `key` that look most like it, in the nearest folder above
/// it that has any.
async fn nearest_prefixes(remote: &RemoteClient, key: &str) -> Result<Vec<String>, CacheError> {
    let mut above = key;
    // Bounded by the depth of a key; each round is one request.
    for _ in 0..8 {
        let cut = above.rfind('/');
        let folder = cut.map_or("", |slash| &above[..=slash]);
        let request = ListRequest { prefix: folder.to_owned(), ..ListRequest::default() };
        let mut siblings = remote.list(&request).await?.prefixes;
        if !siblings.is_empty() || folder.is_empty() {
            let common =
                |other: &str| other.bytes().zip(key.bytes()).take_while(|(a, b)| a == b).count();
            siblings.sort_by_key(|sibling| std::cmp::Reverse(common(sibling)));
            siblings.truncate(SUGGESTIONS_MAX);
            return Ok(siblings);
        }
        above = &above[..folder.len() - 1];
    }
    Ok(Vec::new())
}
