//! A store in this process with data made up: for who has no bucket at hand.

use std::time::Duration;

use tokio::runtime::Handle;

use super::args::BenchArgs;
use super::plan::Limit;
use crate::control::wire::{ErrorCode, ErrorReply};
use crate::embedded_store::{Batch, Dataset, EmbeddedStore, StoreOptions};

const BUCKET: &str = "bench";

/// The field's figures are of objects of 10 MiB.
const OBJECT_BYTES: usize = 10 << 20;

/// Objects where nothing is said: 2 GB, which is seconds to read and more than
/// any buffer on the way.
const OBJECTS_DEFAULT: u64 = 200;
const OBJECTS_MAX: u64 = 10_000;

/// A cloud's time to the first byte, and what one connection to it carries.
const TTFB: Duration = Duration::from_millis(30);
const BYTES_PER_S_PER_CONNECTION: u64 = 50_000_000;

/// The store, and what it has.
pub(super) struct Generated {
    store: EmbeddedStore,
}

impl Generated {
    /// Starts a store with as many objects as `limit` allows.
    ///
    /// # Errors
    /// If there is no port for it.
    pub(super) fn start(limit: Limit, runtime: &Handle) -> Result<Generated, ErrorReply> {
        let options = StoreOptions {
            ttfb: TTFB,
            rate_bytes_per_s_per_connection: Some(BYTES_PER_S_PER_CONNECTION),
            ..StoreOptions::default()
        };
        let store = runtime.block_on(EmbeddedStore::start(options)).map_err(|error| {
            let message = format!("the store on loopback cannot start: {error}");
            ErrorReply::new(ErrorCode::Environment, message)
        })?;
        let count = match limit.files {
            u64::MAX => OBJECTS_DEFAULT.min(limit.bytes / OBJECT_BYTES as u64),
            files => files.min(OBJECTS_MAX),
        };
        let batch = Batch { count: count.max(1) as usize, size: OBJECT_BYTES };
        let data = Dataset::generate(Batch { count: 0, size: 0 }, batch);
        for (key, body) in data.files {
            let etag = key.clone();
            // Of the key: reading 2 GB for a checksum takes longer than the bench.
            store.put_with_etag(BUCKET, key, body, etag);
        }
        Ok(Generated { store })
    }

    pub(super) fn uri(&self) -> String {
        format!("s3://{BUCKET}")
    }

    /// The options with which it is reached.
    pub(super) fn reached_by(&self, args: &BenchArgs) -> BenchArgs {
        let mut args = args.clone();
        args.remote.endpoint_url = Some(self.store.url());
        args.remote.no_sign_request = true;
        args.remote.profile = None;
        args.remote.region = None;
        args.remote.virtual_host_style = false;
        args
    }

    /// For the heading.
    pub(super) fn note(&self) -> String {
        format!(
            "The store is this process, with generated data on loopback: {} ms to the first byte, {} MB/s a connection. No network is used.",
            TTFB.as_millis(),
            BYTES_PER_S_PER_CONNECTION / 1_000_000
        )
    }
}
