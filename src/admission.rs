//! Who goes first: a semaphore with classes. A leaf.
//!
//! Two things are shared by all that is fetched: memory for bytes in flight and
//! requests to an endpoint. Both are handed out here. A reader that waits is
//! served before readahead, and readahead before prefetch; and the lower classes
//! may only take a part of the whole, so that a reader finds some of it free.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{oneshot, watch};

/// What something is fetched for, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A reader waits for it.
    Demand,
    /// A reader is on its way to it, in the same object.
    Ahead,
    /// Nobody has asked for it yet.
    Prefetch,
}

const CLASSES: usize = 3;

/// The class of something under way, which becomes more urgent once a reader
/// waits for it. Clones are the same.
#[derive(Clone, Debug)]
pub struct Urgency(watch::Sender<Class>);

impl Urgency {
    /// It is of a more urgent class from now on, unless it is already.
    pub fn raise(&self, class: Class) {
        self.0.send_if_modified(|now| {
            let is_more = class < *now;
            *now = class.min(*now);
            is_more
        });
    }

    /// The class just now.
    pub fn class(&self) -> Class {
        *self.0.borrow()
    }
}

impl From<Class> for Urgency {
    fn from(class: Class) -> Self {
        Urgency(watch::Sender::new(class))
    }
}

/// Units of something, handed out by class.
#[derive(Debug)]
pub struct PrioritySemaphore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Most units in use when a unit of each class is handed out.
    limits: [u64; CLASSES],
    used: u64,
    waiting: [VecDeque<Waiter>; CLASSES],
}

#[derive(Debug)]
struct Waiter {
    units: u64,
    granted: oneshot::Sender<Permit>,
}

/// A semaphore at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Units in use.
    pub used: u64,
    /// Units there are.
    pub limit: u64,
    /// Who waits, by class: demand, readahead, prefetch.
    pub waiting: [u64; CLASSES],
}

/// Units in use; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    of: Arc<PrioritySemaphore>,
    units: u64,
}

impl PrioritySemaphore {
    /// `limits`: how many units may be in use when one more is handed out to
    /// demand, readahead, and prefetch.
    pub fn new(limits: [u64; CLASSES]) -> Arc<Self> {
        let waiting = std::array::from_fn(|_| VecDeque::new());
        Arc::new(PrioritySemaphore { state: Mutex::new(State { limits, used: 0, waiting }) })
    }

    /// Changes the limits. What is in use stays so.
    pub fn set_limits(self: &Arc<Self>, limits: [u64; CLASSES]) {
        let mut state = self.lock();
        state.limits = limits;
        self.hand_out(state);
    }

    /// Waits for `units`. More than there are count as all there are.
    pub async fn acquire(self: &Arc<Self>, class: Class, units: u64) -> Permit {
        let granted = {
            let mut state = self.lock();
            if let Some(permit) = self.take(&mut state, class, units) {
                return permit;
            }
            let (granted, wait) = oneshot::channel();
            state.waiting[class as usize].push_back(Waiter { units, granted });
            wait
        };
        match granted.await {
            Ok(permit) => permit,
            // Waiters leave the queue with a permit only, and we hold the queue.
            Err(_) => unreachable!("a waiter was dropped unserved"),
        }
    }

    /// The same for something that may become more urgent while it waits.
    pub async fn acquire_as(self: &Arc<Self>, urgency: &Urgency, units: u64) -> Permit {
        let mut raised = urgency.0.subscribe();
        loop {
            let class = *raised.borrow_and_update();
            tokio::select! {
                biased;
                permit = self.acquire(class, units) => return permit,
                // The place in the queue is given up for one further ahead. We
                // hold a sender: there is no end to see.
                _ = raised.changed() => {}
            }
        }
    }

    /// `units`, if they are to be had at once and nobody waits who comes before.
    pub fn try_acquire(self: &Arc<Self>, class: Class, units: u64) -> Option<Permit> {
        self.take(&mut self.lock(), class, units)
    }

    /// Units in use.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// How much is in use, of how much, and who waits.
    pub fn load(&self) -> Load {
        let state = self.lock();
        let waiting = |queue: &VecDeque<Waiter>| {
            queue.iter().filter(|waiter| !waiter.granted.is_closed()).count() as u64
        };
        Load {
            used: state.used,
            limit: state.limits[Class::Demand as usize],
            waiting: std::array::from_fn(|class| waiting(&state.waiting[class])),
        }
    }

    /// Whether somebody of `class` waits.
    pub fn has_waiters(&self, class: Class) -> bool {
        self.lock().waiting[class as usize].iter().any(|waiter| !waiter.granted.is_closed())
    }

    /// Whether somebody waits who comes before `class`.
    pub fn has_more_urgent(&self, class: Class) -> bool {
        let state = self.lock();
        state.waiting[..class as usize].iter().flatten().any(|waiter| !waiter.granted.is_closed())
    }

    fn take(self: &Arc<Self>, state: &mut State, class: Class, units: u64) -> Option<Permit> {
        let is_next = state.waiting[..=class as usize]
            .iter()
            .flatten()
            .all(|waiter| waiter.granted.is_closed());
        let units = state.fitting(class, units).filter(|_| is_next)?;
        state.used += units;
        Some(Permit { of: self.clone(), units })
    }

    /// Serves those who wait, the most urgent first, for as long as it goes.
    fn hand_out(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let mut unwanted = Vec::new();
        for class in [Class::Demand, Class::Ahead, Class::Prefetch] {
            while let Some(waiter) = state.waiting[class as usize].front() {
                if waiter.granted.is_closed() {
                    state.waiting[class as usize].pop_front();
                    continue;
                }
                // Nobody overtakes: the less urgent would keep it from ever fitting.
                let Some(units) = state.fitting(class, waiter.units) else {
                    drop(state);
                    drop(unwanted);
                    return;
                };
                let Some(waiter) = state.waiting[class as usize].pop_front() else { break };
                state.used += units;
                let permit = Permit { of: self.clone(), units };
                // Given up this moment: its drop takes the lock, so not here.
                unwanted.extend(waiter.granted.send(permit).err());
            }
        }
        drop(state);
        drop(unwanted);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What `units` come to, if they are free for `class`.
    fn fitting(&self, class: Class, units: u64) -> Option<u64> {
        let limit = self.limits[class as usize];
        let units = units.min(limit);
        (self.used + units <= limit).then_some(units)
    }
}

impl Permit {
    /// Takes up to `units` out of it, to be given back apart.
    pub fn split(&mut self, units: u64) -> Permit {
        let units = units.min(self.units);
        self.units -= units;
        Permit { of: self.of.clone(), units }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        state.used -= self.units;
        self.of.hand_out(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn waiting(semaphore: &Arc<PrioritySemaphore>, class: Class) {
        while !semaphore.has_waiters(class) {
            tokio::task::yield_now().await;
        }
    }

    fn acquire(
        semaphore: &Arc<PrioritySemaphore>,
        class: Class,
        units: u64,
    ) -> tokio::task::JoinHandle<Permit> {
        let semaphore = semaphore.clone();
        tokio::spawn(async move { semaphore.acquire(class, units).await })
    }

    #[tokio::test]
    async fn the_urgent_go_first_and_lower_classes_leave_room() {
        let semaphore = PrioritySemaphore::new([10, 8, 4]);
        let ahead = semaphore.try_acquire(Class::Ahead, 8).unwrap();
        assert!(semaphore.try_acquire(Class::Ahead, 1).is_none());
        assert!(semaphore.try_acquire(Class::Prefetch, 1).is_none());
        let demand = semaphore.try_acquire(Class::Demand, 2).unwrap();
        let prefetch = acquire(&semaphore, Class::Prefetch, 1);
        waiting(&semaphore, Class::Prefetch).await;
        let reader = acquire(&semaphore, Class::Demand, 3);
        waiting(&semaphore, Class::Demand).await;
        drop(demand);
        assert!(semaphore.try_acquire(Class::Demand, 1).is_none(), "who waits comes first");
        drop(ahead);
        let reader = reader.await.unwrap();
        let prefetch = prefetch.await.unwrap();
        assert_eq!(semaphore.used(), 4);
        drop((reader, prefetch));
        assert_eq!(semaphore.used(), 0);
    }

    #[tokio::test]
    async fn who_becomes_urgent_while_it_waits_goes_first() {
        let semaphore = PrioritySemaphore::new([1, 1, 1]);
        let held = semaphore.acquire(Class::Demand, 1).await;
        let urgency = Urgency::from(Class::Prefetch);
        let before = acquire(&semaphore, Class::Ahead, 1);
        waiting(&semaphore, Class::Ahead).await;
        let raised = tokio::spawn({
            let (semaphore, urgency) = (semaphore.clone(), urgency.clone());
            async move { semaphore.acquire_as(&urgency, 1).await }
        });
        waiting(&semaphore, Class::Prefetch).await;
        urgency.raise(Class::Demand);
        urgency.raise(Class::Ahead);
        assert_eq!(urgency.class(), Class::Demand);
        waiting(&semaphore, Class::Demand).await;
        assert!(!semaphore.has_waiters(Class::Prefetch));
        drop(held);
        let raised = raised.await.unwrap();
        assert!(!before.is_finished());
        drop(raised);
        drop(before.await.unwrap());
        assert_eq!(semaphore.used(), 0);
    }

    #[tokio::test]
    async fn more_than_there_is_gets_all_of_it() {
        let semaphore = PrioritySemaphore::new([10, 8, 4]);
        let mut all = semaphore.acquire(Class::Demand, u64::MAX).await;
        drop(all.split(4));
        assert_eq!(semaphore.used(), 6);
        drop(all.split(7));
        assert_eq!(semaphore.used(), 0);
        drop(all);
        let all = semaphore.acquire(Class::Demand, u64::MAX).await;
        assert_eq!(semaphore.used(), 10);
        let waiter = acquire(&semaphore, Class::Demand, 11);
        waiting(&semaphore, Class::Demand).await;
        semaphore.set_limits([20, 8, 4]);
        assert!(!waiter.is_finished());
        drop(all);
        drop(waiter.await.unwrap());
        assert_eq!(semaphore.used(), 0);
    }

    #[tokio::test]
    async fn who_gives_up_holds_nothing_and_blocks_nobody() {
        let semaphore = PrioritySemaphore::new([1, 1, 1]);
        let held = semaphore.acquire(Class::Demand, 1).await;
        let lost = acquire(&semaphore, Class::Demand, 1);
        waiting(&semaphore, Class::Demand).await;
        lost.abort();
        assert!(lost.await.unwrap_err().is_cancelled());
        let next = acquire(&semaphore, Class::Prefetch, 1);
        waiting(&semaphore, Class::Prefetch).await;
        drop(held);
        drop(next.await.unwrap());
        assert_eq!(semaphore.used(), 0);
        assert!(semaphore.try_acquire(Class::Prefetch, 1).is_some());
    }
}
