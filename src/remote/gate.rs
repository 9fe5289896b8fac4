//! A gate that holds requests until a test lets them go.
//!
//! Tests of concurrency wait for a state here (so many requests held) instead of
//! sleeping, so they are quick and never depend on a machine's speed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A place where requests wait until a test lets them go. Clones are the same
/// gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<GateInner>);

#[derive(Debug)]
struct GateInner {
    state: Mutex<GateState>,
    changed: Notify,
}

#[derive(Debug)]
struct GateState {
    closed: bool,
    /// Requests that wait.
    held: usize,
    /// Requests that may still pass while it is closed.
    permits: usize,
}

impl Gate {
    /// A gate that holds nothing yet.
    pub fn open() -> Self {
        Self::new(false)
    }

    /// A gate that holds whatever comes.
    pub fn closed() -> Self {
        Self::new(true)
    }

    fn new(closed: bool) -> Self {
        let state = Mutex::new(GateState { closed, held: 0, permits: 0 });
        Gate(Arc::new(GateInner { state, changed: Notify::new() }))
    }

    /// Holds everything that comes from now on.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.permits = 0;
    }

    /// Lets everything go, and stays open.
    pub fn release_all(&self) {
        self.lock().closed = false;
        self.0.changed.notify_waiters();
    }

    /// Lets `n` requests go: those that wait, or the next to come.
    pub fn release(&self, n: usize) {
        self.lock().permits += n;
        self.0.changed.notify_waiters();
    }

    /// How many requests wait.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    /// Waits until at least `n` requests wait.
    pub async fn wait_for_held(&self, n: usize) {
        self.wait_until(|state| (state.held >= n).then_some(())).await;
    }

    /// Waits as long as the gate is closed and nobody is let through.
    pub async fn pass(&self) {
        let _held = Held::new(self);
        self.wait_until(|state| {
            if state.closed {
                state.permits = state.permits.checked_sub(1)?;
            }
            Some(())
        })
        .await;
    }

    async fn wait_until<T>(&self, mut ready: impl FnMut(&mut GateState) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(done) = ready(&mut self.lock()) {
                return done;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request as held for as long as it lives, also if it is dropped.
struct Held<'a>(&'a Gate);

impl<'a> Held<'a> {
    fn new(gate: &'a Gate) -> Self {
        gate.lock().held += 1;
        gate.0.changed.notify_waiters();
        Held(gate)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.lock().held -= 1;
        self.0.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn holds_releases_one_by_one_and_opens() {
        let gate = Gate::closed();
        let pass = |gate: &Gate| {
            tokio::spawn({
                let gate = gate.clone();
                async move { gate.pass().await }
            })
        };
        let all = [pass(&gate), pass(&gate), pass(&gate)];
        gate.wait_for_held(3).await;
        gate.release(1);
        gate.wait_until(|state| (state.held == 2).then_some(())).await;
        gate.release_all();
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(gate.held(), 0);
        gate.pass().await;
    }

    #[tokio::test]
    async fn a_dropped_request_is_no_longer_held() {
        let gate = Gate::closed();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        gate.wait_for_held(1).await;
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(gate.held(), 0);
    }
}
