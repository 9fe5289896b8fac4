//! A remote read without mount and cache, by the mount's own client and fetcher:
//! what `warmfs bench --direct` measures.

use std::sync::Arc;

use super::{read_through, status};
use crate::cache;
use crate::config::MountRequest;
use crate::control::wire::{ErrorCode, ErrorReply, RemoteStatus};
use crate::metrics::RemoteMetrics;
use crate::remote::endpoint::Endpoints;
use crate::remote::{ObjectMeta, RemoteError, RemoteUri};

/// An open remote.
#[derive(Debug)]
pub struct Direct {
    objects: cache::Direct,
    uri: RemoteUri,
    metrics: Arc<RemoteMetrics>,
}

/// One of its objects.
#[derive(Clone, Debug)]
pub struct Object(ObjectMeta);

impl Object {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Full key.
    pub fn key(&self) -> &str {
        &self.0.key.0
    }
}

impl Direct {
    /// Connects the remote that `request` would mount; its folder is not looked
    /// at. At most `memory` bytes are in flight, by default as many as in a mount.
    ///
    /// # Errors
    /// If there is no such remote, or it cannot be reached.
    pub async fn open(request: &MountRequest, memory: Option<u64>) -> Result<Direct, ErrorReply> {
        let wrong = |error: crate::remote::uri::UriError| {
            ErrorReply::new(ErrorCode::Invalid, error.to_string())
        };
        let uri: RemoteUri = request.uri.parse().map_err(wrong)?;
        let metrics = Arc::<RemoteMetrics>::default();
        let (options, env, endpoints) = (&request.options, &request.env, Endpoints::default());
        let client = read_through::client(&uri, options, env, &metrics, &endpoints).await?;
        Ok(Direct { objects: cache::Direct::new(client, memory), uri, metrics })
    }

    /// What a mount would show, in order of key, until `take` refuses an object
    /// of so many bytes.
    ///
    /// # Errors
    /// If it cannot be listed.
    pub async fn list(
        &self,
        take: impl FnMut(u64) -> bool + Send,
    ) -> Result<Vec<Object>, ErrorReply> {
        let listed = self.objects.list(self.uri.prefix(), take).await;
        let failed = |error| explain(&format!("cannot list {}", self.uri), &error);
        Ok(listed.map_err(failed)?.into_iter().map(Object).collect())
    }

    /// Reads an object to its end; `arrived` hears of all its bytes, in order.
    ///
    /// # Errors
    /// If it is not there any more, or what else the remote says.
    pub async fn read(
        &self,
        object: &Object,
        arrived: impl FnMut(u64) + Send,
    ) -> Result<(), ErrorReply> {
        let read = self.objects.read(&object.0, arrived).await;
        read.map_err(|error| explain(&format!("cannot read {}", object.key()), &error))
    }

    /// What was asked of the remote so far.
    pub fn traffic(&self) -> RemoteStatus {
        status::remote(&self.metrics)
    }
}

fn explain(what: &str, error: &RemoteError) -> ErrorReply {
    ErrorReply::new(read_through::code_of(error), format!("{what}: {error}"))
}
