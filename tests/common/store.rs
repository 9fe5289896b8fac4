//! The embedded store for tests that are not async: it runs on threads of its
//! own for as long as the test.

use std::ops::Deref;

use bytes::Bytes;
use warmfs::embedded_store::{EmbeddedStore, StoreOptions};

use super::Warmfs;
use super::tree::Tree;

/// A bucket's name that says nothing.
pub const BUCKET: &str = "bucket";

/// The embedded store and its threads; gone when dropped. Declare it before
/// the [`Warmfs`] that reads from it, so that it goes last.
pub struct Store {
    store: EmbeddedStore,
    _runtime: tokio::runtime::Runtime,
}

impl Store {
    /// A fast public store.
    pub fn start() -> Store {
        Store::with(StoreOptions::default())
    }

    /// A store that behaves as `options` say, with an empty bucket.
    pub fn with(options: StoreOptions) -> Store {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let store = runtime.block_on(EmbeddedStore::start(options)).unwrap();
        store.create_bucket(BUCKET);
        Store { store, _runtime: runtime }
    }

    /// Puts a tree below `prefix` (empty, or ending in `/`).
    pub fn put_tree(&self, prefix: &str, tree: &Tree) {
        for (name, bytes) in &tree.files {
            self.store.put(BUCKET, format!("{prefix}{name}"), bytes.clone());
        }
    }

    /// Puts a few small files below `data/`.
    pub fn put_some(&self) {
        for name in ["data/hello", "data/folder/inner", "other/file"] {
            self.store.put(BUCKET, name, Bytes::from(name.to_owned()));
        }
    }

    /// A warmfs that reads from this store unless told otherwise.
    pub fn warmfs(&self) -> Warmfs {
        let mut warmfs = Warmfs::new();
        warmfs.set_env("WARMFS_ENDPOINT_URL", &self.store.url());
        warmfs
    }
}

impl Deref for Store {
    type Target = EmbeddedStore;

    fn deref(&self) -> &EmbeddedStore {
        &self.store
    }
}
