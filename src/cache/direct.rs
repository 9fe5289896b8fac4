//! Objects read as a mount would read them, with nothing kept and no kernel
//! between: the yardstick for what the mount itself costs.
//!
//! A reader goes through an object from its first byte to its last. What to ask
//! for is [`Readahead`]'s word, and what may go out is the [`Fetcher`]'s, as for
//! [`super::CachedObject`]; the bytes are counted and dropped.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::chunk_map::CHUNK_BYTES;
use super::fetch::{Admission, Fetcher};
use super::memory::{self, MEMORY_MIN_BYTES};
use super::names;
use super::readahead::{Plan, Readahead, WINDOW_MAX_BYTES};
use crate::admission::Class;
use crate::remote::client::RemoteClient;
use crate::remote::pages::Pages;
use crate::remote::{ErrorKind, ListRequest, ObjectMeta, RemoteError};

/// What one read asks for: the kernel's smallest readahead, and one chunk.
const READ_BYTES: u64 = CHUNK_BYTES;

/// Reads objects of one remote. Shared by all readers.
#[derive(Debug)]
pub struct Direct {
    fetcher: Arc<Fetcher>,
    remote: Arc<RemoteClient>,
}

impl Direct {
    /// Reads from `remote` with at most `memory` bytes in flight; by default as
    /// many as a mount's daemon takes.
    pub fn new(remote: Arc<RemoteClient>, memory: Option<u64>) -> Self {
        let memory = memory.unwrap_or_else(memory::default_limit).max(MEMORY_MIN_BYTES);
        Direct { fetcher: Arc::new(Fetcher::new(memory)), remote }
    }

    /// The objects below `prefix` (empty, or ending in `/`) that a mount would
    /// show, in order of key, until `take` refuses one of so many bytes.
    pub async fn list(
        &self,
        prefix: &str,
        mut take: impl FnMut(u64) -> bool + Send,
    ) -> Result<Vec<ObjectMeta>, RemoteError> {
        let mut objects = Vec::new();
        let mut pages = Pages::default();
        let mut request =
            ListRequest { prefix: prefix.to_owned(), recursive: true, ..ListRequest::default() };
        loop {
            let page = self.remote.list(&request).await?;
            pages.check(prefix, &page)?;
            for object in page.objects.into_iter().filter(|object| is_shown(prefix, object)) {
                if !take(object.size) {
                    return Ok(objects);
                }
                objects.push(object);
            }
            match page.next {
                Some(next) => request.continuation = Some(next),
                None => return Ok(objects),
            }
        }
    }

    /// Reads an object to its end; `arrived` hears of all its bytes, in order.
    pub async fn read(
        &self,
        object: &ObjectMeta,
        mut arrived: impl FnMut(u64) + Send,
    ) -> Result<(), RemoteError> {
        let mut stream = Stream {
            direct: self,
            object,
            readahead: Readahead::new(object.size),
            flights: VecDeque::new(),
            asked: 0,
        };
        let mut at = 0;
        while at < object.size {
            let end = (at + READ_BYTES).min(object.size);
            if stream.is_one_request(at, end) {
                let range = at..object.size;
                let bytes = range.end - range.start;
                let admission = self.fetcher.admit(Class::Demand, bytes, &self.remote).await;
                return fly(&self.remote, object, range, admission, arrived).await;
            }
            stream.wait(end).await?;
            arrived(end - at);
            at = end;
        }
        Ok(())
    }
}

/// Whether a mount shows the object under a name: not a folder's marker, nor a
/// key that is no path.
fn is_shown(prefix: &str, object: &ObjectMeta) -> bool {
    let path = object.key.0.strip_prefix(prefix);
    path.is_some_and(|path| path.split('/').all(names::is_showable))
}

/// One reader in one object.
struct Stream<'a> {
    direct: &'a Direct,
    object: &'a ObjectMeta,
    readahead: Readahead,
    /// In order, without gaps, the first with what is read next.
    flights: VecDeque<Flight>,
    /// Where they end.
    asked: u64,
}

impl Stream<'_> {
    /// Plans a read of `at..end` and sends what is due. `true` if all the rest is
    /// one request, which then is not sent: who reads it needs no task for it.
    fn is_one_request(&mut self, at: u64, end: u64) -> bool {
        let Plan { range, part } = self.readahead.on_read(at, end - at, WINDOW_MAX_BYTES);
        while self.asked < range.end {
            let until = (self.asked + part).min(range.end);
            if self.flights.is_empty() && self.asked == at && until == self.object.size {
                return true;
            }
            let ahead = match self.asked < end {
                true => None, // It waits for its admission in its own task.
                false => {
                    let bytes = until - self.asked;
                    match self.direct.fetcher.try_admit_ahead(bytes, &self.direct.remote) {
                        Some(admission) => Some(admission),
                        None => {
                            self.readahead.refused(self.asked);
                            break;
                        }
                    }
                }
            };
            self.flights.push_back(self.start(self.asked..until, ahead));
            self.asked = until;
        }
        false
    }

    fn start(&self, range: Range<u64>, ahead: Option<Admission>) -> Flight {
        let (sender, arrived) = watch::channel(range.start);
        let (remote, object) = (self.direct.remote.clone(), self.object.clone());
        let until = range.end;
        let wanted = match ahead {
            Some(admission) => Wanted::Admitted(admission),
            None => Wanted::Now(self.direct.fetcher.clone()),
        };
        let task = tokio::spawn(async move {
            let admission = match wanted {
                Wanted::Admitted(admission) => admission,
                Wanted::Now(fetcher) => {
                    fetcher.admit(Class::Demand, range.end - range.start, &remote).await
                }
            };
            let mut at = range.start;
            let told = |bytes| {
                at += bytes;
                sender.send_replace(at);
            };
            fly(&remote, &object, range, admission, told).await
        });
        Flight { until, arrived, task }
    }

    /// Waits until the bytes before `end` have arrived.
    async fn wait(&mut self, end: u64) -> Result<(), RemoteError> {
        while let Some(flight) = self.flights.front_mut() {
            let wanted = end.min(flight.until);
            if flight.arrived.wait_for(|at| *at >= wanted).await.is_err() {
                return match (&mut flight.task).await {
                    Ok(Err(error)) => Err(error),
                    _ => Err(RemoteError::new(ErrorKind::Transient, "a fetch was interrupted")),
                };
            }
            if wanted == flight.until {
                self.flights.pop_front();
            }
            if wanted == end {
                return Ok(());
            }
        }
        Err(RemoteError::new(ErrorKind::Transient, "nothing was asked for"))
    }
}

/// How a request gets to go out.
enum Wanted {
    Admitted(Admission),
    Now(Arc<Fetcher>),
}

/// One request ahead of the reader.
struct Flight {
    until: u64,
    /// The byte of the object that comes next.
    arrived: watch::Receiver<u64>,
    task: JoinHandle<Result<(), RemoteError>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        // What has all its bytes gives its connection back by itself.
        if *self.arrived.borrow() < self.until {
            self.task.abort();
        }
    }
}

/// Reads a range to its end, and drops it.
async fn fly(
    remote: &Arc<RemoteClient>,
    object: &ObjectMeta,
    range: Range<u64>,
    mut admission: Admission,
    mut arrived: impl FnMut(u64) + Send,
) -> Result<(), RemoteError> {
    let reserved = admission.take_reserved();
    let mut reader =
        remote.get_range(object.clone(), range, admission.class()).with_reserved(reserved);
    while let Some(bytes) = reader.next().await? {
        arrived(bytes.len() as u64);
        // The memory of what is dropped is free.
        admission.went(bytes.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::scripted::{Request, ScriptedRemote};

    const MIB: usize = 1 << 20;

    fn direct(remote: &ScriptedRemote) -> Direct {
        let client = RemoteClient::new(Arc::new(remote.clone()), Arc::default());
        Direct::new(Arc::new(client), Some(MEMORY_MIN_BYTES))
    }

    fn gets(remote: &ScriptedRemote) -> Vec<Range<u64>> {
        let ranges = remote.requests().into_iter().filter_map(|request| match request {
            Request::Get(_, range) => Some(range),
            _ => None,
        });
        ranges.collect()
    }

    #[tokio::test]
    async fn every_byte_is_fetched_once_in_the_mounts_parts() {
        let remote = ScriptedRemote::new();
        for (name, size) in [("empty", 0), ("small", 110 << 10), ("large", 40 * MIB + 17)] {
            remote.put(name, vec![7; size]);
        }
        let direct = direct(&remote);
        for object in direct.list("", |_| true).await.unwrap() {
            let before = gets(&remote).len();
            let mut bytes = 0;
            direct.read(&object, |n| bytes += n).await.unwrap();
            assert_eq!(bytes, object.size, "{object:?}");
            let mut ranges = gets(&remote).split_off(before);
            ranges.sort_by_key(|range| range.start);
            let ends = ranges.iter().map(|range| range.end);
            assert!(ranges.iter().skip(1).zip(ends).all(|(next, end)| next.start == end));
            assert_eq!(ranges.iter().map(|range| range.end - range.start).sum::<u64>(), bytes);
            let requests = [("empty", 0..1), ("small", 1..2), ("large", 10..40)]
                .into_iter()
                .find(|(name, _)| *name == object.key.0);
            assert!(requests.unwrap().1.contains(&ranges.len()), "{object:?}: {ranges:?}");
        }
        assert!(direct.fetcher.try_admit_ahead(MEMORY_MIN_BYTES / 2, &direct.remote).is_some());
    }

    #[tokio::test]
    async fn only_what_a_mount_shows_is_listed_until_enough() {
        let remote = ScriptedRemote::new();
        for name in ["p/a", "p/b/", "p/b/c", "p/d//e", "p/f/../g", "q"] {
            remote.put(name, vec![7; 5]);
        }
        let direct = direct(&remote);
        let names = |objects: Vec<ObjectMeta>| -> Vec<String> {
            objects.into_iter().map(|object| object.key.0).collect()
        };
        assert_eq!(names(direct.list("p/", |_| true).await.unwrap()), ["p/a", "p/b/c"]);
        let mut left = 5;
        let take = |size| (left >= size).then(|| left -= size).is_some();
        assert_eq!(names(direct.list("p/", take).await.unwrap()), ["p/a"]);
    }

    #[tokio::test]
    async fn an_object_that_is_gone_is_an_error_wherever_it_is_found_out() {
        let remote = ScriptedRemote::new();
        remote.put("small", vec![7; 5]);
        remote.put("large", vec![7; 20 * MIB]);
        let direct = direct(&remote);
        let objects = direct.list("", |_| true).await.unwrap();
        for object in objects {
            remote.delete(&object.key.0);
            let error = direct.read(&object, |_| {}).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotFound, "{object:?}");
        }
    }
}
