//! Who a mount asks its remote as: a remote that is replaced when there are other
//! credentials, and what the store last said to those there are.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{Capabilities, ErrorKind, Remote, RemoteError, RemoteId};

/// The remote of a client. What it is does not change, only who asks.
#[derive(Debug)]
pub(super) struct Login {
    id: RemoteId,
    capabilities: Capabilities,
    remote: RwLock<Arc<dyn Remote>>,
    /// Why the last request was not let in, unless it was.
    refusal: Mutex<Option<String>>,
}

impl Login {
    pub(super) fn new(remote: Arc<dyn Remote>) -> Self {
        Login {
            id: remote.id().clone(),
            capabilities: remote.capabilities(),
            remote: RwLock::new(remote),
            refusal: Mutex::default(),
        }
    }

    pub(super) fn id(&self) -> &RemoteId {
        &self.id
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The remote to ask now.
    pub(super) fn remote(&self) -> Arc<dyn Remote> {
        self.remote.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks as another from now on. What is under way ends as it began.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is another remote.
    pub(super) fn renew(&self, remote: Arc<dyn Remote>) -> Result<(), RemoteError> {
        if *remote.id() != self.id {
            let message = format!("{} is not {}, which is mounted", remote.id().0, self.id.0);
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        *self.remote.write().unwrap_or_else(PoisonError::into_inner) = remote;
        self.set_refusal(None);
        Ok(())
    }

    /// Why the last request was not let in, unless it was.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store answered; with `error` it said no.
    pub(super) fn answered(&self, error: Option<&RemoteError>) {
        match error {
            None => self.set_refusal(None),
            Some(RemoteError { kind: ErrorKind::Credentials, message, .. }) => {
                self.set_refusal(Some(message));
            }
            // That says nothing of who asked.
            Some(_) => {}
        }
    }

    fn set_refusal(&self, refusal: Option<&String>) {
        let mut known = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*known, refusal) {
            (None, None) => return,
            (None, Some(message)) => {
                tracing::warn!(remote = self.id.0, message, "the credentials are refused");
            }
            (Some(_), None) => tracing::info!(remote = self.id.0, "the credentials are accepted"),
            (Some(_), Some(_)) => {}
        }
        *known = refusal.cloned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::scripted::ScriptedRemote;

    #[test]
    fn a_refusal_stands_until_somebody_is_let_in() {
        let login = Login::new(Arc::new(ScriptedRemote::new()));
        let error = |kind| RemoteError::new(kind, "GET a: no");
        login.answered(Some(&error(ErrorKind::Denied)));
        assert_eq!(login.refusal(), None);
        login.answered(Some(&error(ErrorKind::Credentials)));
        login.answered(Some(&error(ErrorKind::Transient)));
        assert_eq!(login.refusal().as_deref(), Some("GET a: no"));
        login.answered(None);
        assert_eq!(login.refusal(), None);
        login.answered(Some(&error(ErrorKind::Credentials)));
        login.renew(Arc::new(ScriptedRemote::new())).unwrap();
        assert_eq!(login.refusal(), None);
    }

    #[tokio::test]
    async fn another_remote_is_not_taken() {
        let login = Login::new(Arc::new(ScriptedRemote::new()));
        let dir = tempfile::tempdir().unwrap();
        let other = crate::remote::local::LocalRemote::open(dir.path()).await.unwrap();
        assert_eq!(login.renew(Arc::new(other)).unwrap_err().kind, ErrorKind::Invalid);
    }
}
