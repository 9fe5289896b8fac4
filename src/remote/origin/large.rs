//! Which ranges of large objects that a cluster does not hold come from the cloud, and
//! which objects it is told to fetch: a policy that is handed the clock.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::remote::{Key, ObjectMeta, Version};

/// Objects from this size on are looked at. A smaller one the cluster has fetched in
/// about the time that looking and fetching a range of it take.
pub(super) const LARGE_BYTES: u64 = 64 << 20;

/// Ranges up to this size: twice what a reader asks for at once.
pub(super) const SMALL_BYTES: u64 = 4 << 20;

/// Of one object, one byte in so many comes from the cloud at most. Who reads more of
/// it, reads all of it, and should wait for the cluster: else each node of a fleet
/// would fetch a dataset of its own.
pub(super) const PART: u64 = 8;

/// How long it is believed that the cluster holds an object. If that is not so any
/// more, a read takes longer.
const HELD: Duration = Duration::from_secs(10 * 60);

/// How soon to look again whether it holds an object that it is fetching.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How long the cluster is believed to be fetching what it was told to. It tells
/// nobody when it gives up.
const FETCHING: Duration = Duration::from_secs(10 * 60);

/// Objects that it is told to fetch at once, by this node: more would come no sooner.
const FETCHING_MAX: usize = 16;

/// Objects that are remembered; a few hundred bytes each.
const OBJECTS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What is known of large objects.
#[derive(Debug)]
pub(super) struct LargeObjects {
    known: LruCache<(Key, Version), Known>,
    /// Objects that the cluster was told to fetch, and when.
    fetching: HashMap<Key, Instant>,
}

#[derive(Debug)]
struct Known {
    look: Arc<Look>,
    /// Bytes that came from the cloud, or are coming.
    taken: u64,
}

/// One look at whether the cluster holds an object, for all who want to know.
#[derive(Debug)]
pub(super) struct Look {
    began: Instant,
    is_held: OnceCell<bool>,
}

impl Look {
    /// Looks, unless somebody has or does.
    pub(super) async fn is_held(&self, look: impl Future<Output = bool>) -> bool {
        *self.is_held.get_or_init(|| look).await
    }

    fn is_over(&self, now: Instant) -> bool {
        let counts = match self.is_held.get() {
            Some(true) => HELD,
            Some(false) => LOOK_AGAIN,
            None => return false,
        };
        now.duration_since(self.began) >= counts
    }
}

impl Default for LargeObjects {
    fn default() -> Self {
        LargeObjects { known: LruCache::new(OBJECTS_MAX), fetching: HashMap::new() }
    }
}

impl LargeObjects {
    /// The look that decides on a range of so many bytes; none if the cluster is to be
    /// asked in any case.
    pub(super) fn look(
        &mut self,
        object: &ObjectMeta,
        bytes: u64,
        now: Instant,
    ) -> Option<Arc<Look>> {
        if object.size < LARGE_BYTES || bytes > SMALL_BYTES {
            return None;
        }
        let fresh = || Arc::new(Look { began: now, is_held: OnceCell::new() });
        let known = self.known.get_or_insert_mut(id(object), || Known { look: fresh(), taken: 0 });
        if known.taken + bytes > object.size / PART {
            return None;
        }
        if known.look.is_over(now) {
            known.look = fresh();
        }
        Some(Arc::clone(&known.look))
    }

    /// What the look at an object said; if it is not held, so many bytes of it come from
    /// the cloud now.
    pub(super) fn looked(&mut self, object: &ObjectMeta, bytes: u64, is_held: bool) {
        if is_held {
            self.fetching.remove(&object.key);
        } else if let Some(known) = self.known.get_mut(&id(object)) {
            known.taken += bytes;
        }
    }

    /// Whether to tell the cluster to fetch an object that it does not hold.
    pub(super) fn begin_prefetch(&mut self, key: &Key, now: Instant) -> bool {
        self.fetching.retain(|_, since| now.duration_since(*since) < FETCHING);
        if self.fetching.contains_key(key) || self.fetching.len() >= FETCHING_MAX {
            return false;
        }
        self.fetching.insert(key.clone(), now);
        true
    }
}

fn id(object: &ObjectMeta) -> (Key, Version) {
    (object.key.clone(), object.version.clone())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn object(key: &str, size: u64) -> ObjectMeta {
        ObjectMeta {
            key: Key(key.to_owned()),
            size,
            version: Version("v".to_owned()),
            mtime: SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_small_ranges_of_large_objects_are_looked_at() {
        let (mut large, now) = (LargeObjects::default(), Instant::now());
        for (size, bytes, is_looked_at) in [
            (LARGE_BYTES, 1, true),
            (LARGE_BYTES, SMALL_BYTES, true),
            (LARGE_BYTES, SMALL_BYTES + 1, false),
            (LARGE_BYTES - 1, 1, false),
        ] {
            let object = object(&size.to_string(), size);
            assert_eq!(large.look(&object, bytes, now).is_some(), is_looked_at, "{size} {bytes}");
        }
    }

    #[tokio::test]
    async fn an_eighth_of_an_object_comes_from_the_cloud_at_most() {
        let (mut large, now) = (LargeObjects::default(), Instant::now());
        let object = object("k", LARGE_BYTES);
        let mut taken = 0;
        while let Some(look) = large.look(&object, 2 * MIB, now) {
            let is_held = look.is_held(async { false }).await;
            large.looked(&object, 2 * MIB, is_held);
            taken += 2 * MIB;
        }
        assert_eq!(taken, LARGE_BYTES / PART);
    }

    #[tokio::test]
    async fn who_looks_at_once_shares_a_look_and_it_counts_for_a_while() {
        let (mut large, now) = (LargeObjects::default(), Instant::now());
        let object = object("k", LARGE_BYTES);
        let first = large.look(&object, 1, now).unwrap();
        let second = large.look(&object, 1, now + HELD).unwrap();
        assert!(Arc::ptr_eq(&first, &second), "it is not over yet");
        assert!(!first.is_held(async { false }).await);
        assert!(!second.is_held(async { panic!("it was looked at") }).await);

        let soon = now + LOOK_AGAIN;
        assert!(Arc::ptr_eq(
            &first,
            &large.look(&object, 1, soon - Duration::from_nanos(1)).unwrap()
        ));
        let again = large.look(&object, 1, soon).unwrap();
        assert!(again.is_held(async { true }).await);
        let long = soon + HELD;
        assert!(Arc::ptr_eq(&again, &large.look(&object, 1, long - LOOK_AGAIN).unwrap()));
        assert!(!Arc::ptr_eq(&again, &large.look(&object, 1, long).unwrap()));
    }

    #[test]
    fn a_few_objects_are_prefetched_at_once_and_each_once() {
        let (mut large, now) = (LargeObjects::default(), Instant::now());
        let key = |n: usize| Key(n.to_string());
        for n in 0..FETCHING_MAX {
            assert!(large.begin_prefetch(&key(n), now));
            assert!(!large.begin_prefetch(&key(n), now));
        }
        assert!(!large.begin_prefetch(&key(FETCHING_MAX), now));
        // One has come.
        large.looked(&object("0", LARGE_BYTES), 1, true);
        assert!(large.begin_prefetch(&key(FETCHING_MAX), now));
        assert!(!large.begin_prefetch(&key(1), now + FETCHING - Duration::from_nanos(1)));
        assert!(large.begin_prefetch(&key(1), now + FETCHING));
    }
}
