//! A remote that is connected by its first request: for a mount that is given back after
//! its daemon died, and serves what is cached whether or not the store can be reached.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use serde::{Deserialize, Serialize};

use super::checksum::Checksum;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote,
    RemoteError, RemoteId,
};

/// What a remote says of itself without being asked anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    id: RemoteId,
    capabilities: Capabilities,
    fetches_first: bool,
}

impl Known {
    /// What is known of `remote`.
    pub fn of(remote: &dyn Remote) -> Known {
        Known {
            id: remote.id().clone(),
            capabilities: remote.capabilities(),
            fetches_first: remote.fetches_first(),
        }
    }
}

type Connected = Result<Arc<dyn Remote>, RemoteError>;
type Connect = dyn Fn() -> BoxFuture<'static, Connected> + Send + Sync;

/// A remote that was known before.
pub struct Later {
    known: Known,
    connect: Box<Connect>,
    /// The connecting, under way or done. In a task of its own: a request that has no
    /// more time does not end it.
    connected: Mutex<Option<Shared<BoxFuture<'static, Connected>>>>,
}

impl Later {
    /// The remote that was `known`, which `connect` connects.
    pub fn new(
        known: Known,
        connect: impl Fn() -> BoxFuture<'static, Connected> + Send + Sync + 'static,
    ) -> Later {
        Later { known, connect: Box::new(connect), connected: Mutex::default() }
    }

    /// Connects it, unless it is.
    ///
    /// # Errors
    /// Those of the connecting; the next request tries again.
    pub async fn connect(&self) -> Result<(), RemoteError> {
        self.remote().await.map(drop)
    }

    /// The first request has it connected, and those beside it wait for the same.
    async fn remote(&self) -> Connected {
        let remote = self.begun().await?;
        if *remote.id() != self.known.id {
            let (now, then) = (&remote.id().0, &self.known.id.0);
            let message = format!("{now} is not {then}, which was mounted; mount it again");
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        Ok(remote)
    }

    fn begun(&self) -> Shared<BoxFuture<'static, Connected>> {
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let has_failed = |begun: &Shared<_>| matches!(begun.peek(), Some(Err(_)));
        if let Some(begun) = connected.as_ref().filter(|begun| !has_failed(begun)) {
            return begun.clone();
        }
        let begun = (self.connect)().shared();
        tokio::spawn(begun.clone());
        *connected = Some(begun.clone());
        begun
    }
}

#[async_trait]
impl Remote for Later {
    fn id(&self) -> &RemoteId {
        &self.known.id
    }

    fn capabilities(&self) -> Capabilities {
        self.known.capabilities
    }

    fn fetches_first(&self) -> bool {
        self.known.fetches_first
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        self.remote().await?.head(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        self.remote().await?.list(request).await
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        self.remote().await?.get_range(object, range).await
    }

    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        self.remote().await?.checksum(object).await
    }
}

impl fmt::Debug for Later {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Later").field("known", &self.known).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::remote::local::LocalRemote;

    #[tokio::test]
    async fn the_first_request_that_can_connects() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        let remote: Arc<dyn Remote> = Arc::new(LocalRemote::open(dir.path()).await.unwrap());
        let tries = Arc::new(AtomicU64::new(0));
        let counted = tries.clone();
        let same = remote.clone();
        let later = Later::new(Known::of(&*remote), move || {
            let (tried, remote) = (counted.fetch_add(1, Ordering::SeqCst), same.clone());
            Box::pin(async move {
                match tried {
                    0 => Err(RemoteError::new(ErrorKind::Unreachable, "not yet")),
                    _ => Ok(remote),
                }
            })
        });
        assert_eq!(later.id(), remote.id());
        let key = Key("a".to_owned());
        assert_eq!(later.head(&key).await.unwrap_err().kind, ErrorKind::Unreachable);
        let (one, other) = tokio::join!(later.head(&key), later.head(&key));
        assert_eq!(one.unwrap(), other.unwrap());
        assert_eq!(tries.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_request_that_goes_away_does_not_end_the_connecting() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        let remote: Arc<dyn Remote> = Arc::new(LocalRemote::open(dir.path()).await.unwrap());
        let (go, gone) = tokio::sync::watch::channel(false);
        let same = remote.clone();
        let later = Later::new(Known::of(&*remote), move || {
            let (mut go, remote) = (gone.clone(), same.clone());
            Box::pin(async move {
                let _ = go.wait_for(|go| *go).await;
                Ok(remote)
            })
        });
        let key = Key("a".to_owned());
        assert!(futures::poll!(std::pin::pin!(later.head(&key))).is_pending());
        go.send_replace(true);
        assert_eq!(later.head(&key).await.unwrap().size, 1);
    }

    #[tokio::test]
    async fn another_remote_is_not_taken() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [one, other] = dirs.each_ref().map(|dir| LocalRemote::open(dir.path()));
        let (one, other) = (one.await.unwrap(), other.await.unwrap());
        let other: Arc<dyn Remote> = Arc::new(other);
        let later = Later::new(Known::of(&one), move || {
            let other = other.clone();
            Box::pin(async move { Ok(other) })
        });
        let error = later.head(&Key("a".to_owned())).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}
