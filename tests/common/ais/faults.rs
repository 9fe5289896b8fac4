//! Faults on demand.

use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::log::Kind;

/// A fault, and the requests it meets.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kind of request.
    pub on: Kind,
    /// The object (of a listing: the prefix); `None` is any.
    pub name: Option<String>,
    /// How many requests it meets.
    pub times: usize,
    /// What becomes of them.
    pub trouble: Trouble,
}

impl Fault {
    /// Meets the next `times` requests of a kind.
    pub fn next(times: usize, on: Kind, trouble: Trouble) -> Fault {
        Fault { on, name: None, times, trouble }
    }

    /// Meets every request of a kind for one object.
    pub fn always(on: Kind, name: &str, trouble: Trouble) -> Fault {
        Fault { on, name: Some(name.to_owned()), times: usize::MAX, trouble }
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Trouble {
    /// An error with this status: 507 no room, 409 two readers raced for a cold
    /// object, 429 too many requests, 410 gone from the origin.
    Status(u16),
    /// The same with `Retry-After`, in seconds.
    RetryAfter(u16, u32),
    /// A redirect to the server that the client just asked: the proxy or a target.
    RedirectLoop,
    /// So many bytes of the body, and then a reset. On [`Kind::TargetGet`].
    ResetAfter(usize),
    /// So many bytes of the body, and then nothing. On [`Kind::TargetGet`].
    StallAfter(usize),
    /// Waits until the gate is open, and goes on as usual. On
    /// [`Kind::OriginGet`]: a cold object that is long in coming.
    Hold(Gate),
}

/// What requests are held at; closed at first.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    /// A closed gate.
    #[allow(clippy::new_without_default, reason = "a default says nothing of open or closed")]
    pub fn new() -> Gate {
        Gate(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody through, for ever.
    pub fn open(&self) {
        self.0.close();
    }

    /// Returns once it is open.
    pub(super) async fn pass(&self) {
        assert!(self.0.acquire().await.is_err(), "the semaphore has no permits");
    }
}

/// The faults in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        let of_origin = [Kind::OriginList, Kind::OriginHead, Kind::OriginGet].contains(&fault.on);
        let can_be = match fault.trouble {
            Trouble::ResetAfter(_) | Trouble::StallAfter(_) => fault.on == Kind::TargetGet,
            Trouble::RedirectLoop => !of_origin,
            Trouble::Status(_) | Trouble::RetryAfter(..) | Trouble::Hold(_) => true,
        };
        assert!(can_be, "this would never happen: {fault:?}");
        self.0.lock().unwrap().push(fault);
    }

    /// What becomes of a request; held ones return once they may go on.
    pub(super) async fn meet(&self, on: Kind, name: &str) -> Option<Trouble> {
        let trouble = self.take(on, name)?;
        match trouble {
            Trouble::Hold(gate) => {
                gate.pass().await;
                None
            }
            trouble => Some(trouble),
        }
    }

    fn take(&self, on: Kind, name: &str) -> Option<Trouble> {
        let mut faults = self.0.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| {
            fault.on == on && fault.times > 0 && fault.name.as_ref().is_none_or(|only| only == name)
        })?;
        fault.times -= 1;
        Some(fault.trouble.clone())
    }
}
