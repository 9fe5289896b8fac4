//! Listings under way.
//!
//! Each folder is listed once at a time, whoever asks. Where it turns out to be large,
//! several requests list it side by side ([`Segments`]); pages go into the index as
//! they come, and readers follow them: [`Listing::known_past`] tells up to which name
//! nothing is missing. A folder counts as listed once the last page is in, and what
//! no page named is gone from then on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::listing::{Changes, FolderUpdate};
use super::metadata::{Tree, is_passing};
use super::record::NodeId;
use super::segments::{Ask, Segments};
use super::{CacheError, kill_point, lock};
use crate::admission::{Class, PrioritySemaphore, Urgency};
use crate::remote::{ErrorKind, ListPage, ListRequest, RemoteError};

/// LIST requests of a mount at once: for readers, and for what they come to next.
const REQUESTS_MAX: [u64; 3] = [32, 24, 16];

/// Listings that write to the index at once: one does, and one is next.
const WRITES_MAX: usize = 2;

/// Pages that go into the index in one transaction, at most: the next reader waits
/// for all of it.
const BATCH_PAGES: usize = 8;

/// Batches that bring a reader no further, before it is asked whether there is a
/// folder of the name that is in the way; and how often in one listing.
const BATCHES_BEFORE_PROBE: u32 = 2;
const PROBES_MAX: u32 = 64;

/// Folders within a folder that are handed on, at most: more are not listed ahead.
const FOLDERS_NAMED_MAX: usize = 256;

/// The listings of a mount.
#[derive(Debug)]
pub(super) struct Listings {
    ongoing: Mutex<HashMap<NodeId, Listing>>,
    requests: Arc<PrioritySemaphore>,
    writes: Semaphore,
}

/// A listing that is under way, for who follows it. It goes on when nobody does.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    progress: watch::Receiver<Progress>,
    urgency: Urgency,
}

#[derive(Clone, Debug)]
enum Progress {
    /// All names before this one are in the index.
    Below(String),
    /// It came to its end.
    Ended(Result<(), CacheError>),
}

/// The side of a listing that brings the names.
struct Report {
    progress: watch::Sender<Progress>,
    urgency: Urgency,
}

/// What came of one request.
enum Came {
    Page(u64, Result<ListPage, RemoteError>),
    /// Whether there is a folder of this name; `None` if that cannot be told.
    Folder(String, Option<bool>),
}

impl Listings {
    pub(super) fn new() -> Self {
        Listings {
            ongoing: Mutex::default(),
            requests: PrioritySemaphore::new(REQUESTS_MAX),
            writes: Semaphore::new(WRITES_MAX),
        }
    }

    /// A folder's listing, if it is under way.
    pub(super) fn under_way(&self, folder: NodeId, class: Class) -> Option<Listing> {
        let ongoing = lock(&self.ongoing);
        let listing = ongoing.get(&folder)?;
        listing.urgency.raise(class);
        Some(listing.clone())
    }
}

impl Listing {
    /// Waits for its end.
    pub(super) async fn done(&mut self) -> Result<(), CacheError> {
        while self.next(|_| false).await?.is_some() {}
        Ok(())
    }

    /// Waits until all names before one that is after `seen` are in the index. That
    /// one; `None` once all are.
    pub(super) async fn known_past(&mut self, seen: &str) -> Result<Option<String>, CacheError> {
        self.next(|below| below > seen).await
    }

    async fn next(
        &mut self,
        is_enough: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, CacheError> {
        let progress = self.progress.wait_for(|progress| match progress {
            Progress::Below(below) => is_enough(below),
            Progress::Ended(_) => true,
        });
        match progress.await.as_deref() {
            Ok(Progress::Below(below)) => Ok(Some(below.clone())),
            Ok(Progress::Ended(result)) => result.clone().map(|()| None),
            Err(_) => Err(CacheError::Index("a listing ended abnormally".to_owned())),
        }
    }
}

/// Takes a listing out of those under way, however it ends.
struct Entry(Arc<Tree>, NodeId);

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.0.listings.ongoing).remove(&self.1);
    }
}

impl Tree {
    /// The listing of a folder that is under way, or a new one. It goes on when nobody
    /// waits for it any more.
    pub(super) fn listing(&self, folder: NodeId, class: Class) -> Listing {
        self.listing_unless(folder, class, || false)
    }

    /// As [`Tree::listing`], of a folder that was not listed when it was looked at: if
    /// it has been since, that is at its end.
    pub(super) fn first_listing(&self, folder: NodeId, class: Class) -> Listing {
        self.listing_unless(folder, class, || self.was_listed(folder).unwrap_or(false))
    }

    fn listing_unless(
        &self,
        folder: NodeId,
        class: Class,
        is_over: impl FnOnce() -> bool,
    ) -> Listing {
        let mut ongoing = lock(&self.listings.ongoing);
        if let Some(listing) = ongoing.get(&folder) {
            listing.urgency.raise(class);
            return listing.clone();
        }
        if is_over() {
            let (_, progress) = watch::channel(Progress::Ended(Ok(())));
            return Listing { progress, urgency: Urgency::from(class) };
        }
        let Some(tree) = self.me.upgrade() else { unreachable!("a method runs on a live tree") };
        let (sender, progress) = watch::channel(Progress::Below(String::new()));
        let urgency = Urgency::from(class);
        let listing = Listing { progress, urgency: urgency.clone() };
        ongoing.insert(folder, listing.clone());
        drop(ongoing);
        let entry = Entry(tree.clone(), folder);
        self.runtime.spawn(async move {
            let report = Report { progress: sender, urgency };
            let result = tree.list(folder, &report).await;
            tree.note(&result);
            // Before anybody hears of it: who asks again begins a new one.
            drop(entry);
            let (ended, folders) = match result {
                Ok(folders) => (Ok(()), folders),
                Err(error) => (Err(error), Vec::new()),
            };
            report.progress.send_replace(Progress::Ended(ended));
            tree.was_listed_now(folder, folders);
        });
        listing
    }

    /// Notes whether the remote lists.
    fn note(&self, result: &Result<Vec<String>, CacheError>) {
        let failed = result.as_ref().err().filter(|_| !*self.ended.borrow());
        if let Some(error) = failed {
            tracing::warn!(%error, "a folder cannot be listed; what is known of it is used");
        }
        *lock(&self.listing_failed) =
            failed.filter(|error| is_passing(error)).map(|_| Instant::now());
        *lock(&self.refused) = failed.map(|_| Instant::now());
    }

    /// Lists a folder; gives names of folders in it.
    async fn list(&self, folder: NodeId, report: &Report) -> Result<Vec<String>, CacheError> {
        let folders = match self.list_once(folder, report).await {
            // By now another index has taken the place of the one that failed.
            Err(error) if error.is_of_index() => self.list_once(folder, report).await?,
            listed => listed?,
        };
        // Names that were in the way are gone now: no third time is needed.
        if self.index.folder(folder)?.is_some_and(|row| row.listed_ms == Some(0)) {
            return self.list_once(folder, report).await;
        }
        Ok(folders)
    }

    async fn list_once(&self, folder: NodeId, report: &Report) -> Result<Vec<String>, CacheError> {
        report.progress.send_replace(Progress::Below(String::new()));
        let prefix = self.prefix(folder)?;
        let listed = self.index.folder(folder)?.and_then(|row| row.listed_ms);
        let began_ms = self.clock.next_ms().max(listed.unwrap_or(0) + 1);
        let mut segments = Segments::new(self.remote.capabilities().list_start_after);
        let mut requests = JoinSet::new();
        let mut probes = Probes::default();
        let mut named = Vec::new();
        let mut is_first = true;
        loop {
            if *self.ended.borrow() {
                let message = format!("LIST {prefix}: its mount has ended");
                return Err(RemoteError::new(ErrorKind::Transient, message).into());
            }
            while let Some(ask) = segments.next() {
                self.ask(&mut requests, &prefix, ask, &report.urgency);
            }
            let (mut pages, mut found) = (Vec::new(), Vec::new());
            let mut next = requests.join_next().await;
            while let Some(came) = next {
                match came.map_err(|_| ended_abnormally())? {
                    Came::Page(id, Ok(mut page)) => {
                        segments.landed(id, &prefix, &mut page)?;
                        pages.push(page);
                    }
                    Came::Page(id, Err(error)) => {
                        let is_of_cut = error.kind == ErrorKind::Invalid && segments.refused(id);
                        if !is_of_cut {
                            return Err(error.into());
                        }
                    }
                    Came::Folder(name, is_there) => {
                        probes.is_asking = false;
                        if is_there.is_some() {
                            segments.settle(name.clone());
                        }
                        found.extend((is_there == Some(true)).then_some(name));
                    }
                }
                next = (pages.len() < BATCH_PAGES).then(|| requests.try_join_next()).flatten();
            }
            // The network has something to do while these are written down.
            while !*self.ended.borrow()
                && let Some(ask) = segments.next()
            {
                self.ask(&mut requests, &prefix, ask, &report.urgency);
            }
            name_folders(&mut named, &prefix, &pages);
            let (is_last, below) = (segments.is_done(), segments.known_below());
            if let Some(name) = probes.due(&segments, &report.urgency) {
                self.probe(&mut requests, &prefix, name, &report.urgency);
            }
            let page_prefix = prefix.clone();
            // It is never closed.
            let _turn = self.listings.writes.acquire().await.ok();
            self.write(move |index| {
                index.write(|write| {
                    if write.is_superseded(folder)? {
                        return Ok(Changes::default());
                    }
                    let mut update = FolderUpdate::begin(write, folder, began_ms)?;
                    if is_first {
                        update.reset_hidden();
                    }
                    found.iter().try_for_each(|name| update.see_folder(name))?;
                    pages.iter().try_for_each(|page| update.page(&page_prefix, page))?;
                    if is_last {
                        update.finish_listing()?;
                    }
                    update.end()
                })
            })
            .await?;
            kill_point::reach("listing-page-written");
            if is_last {
                return Ok(named);
            }
            is_first = false;
            report.progress.send_replace(Progress::Below(below.unwrap_or_default()));
        }
    }

    fn ask(&self, requests: &mut JoinSet<Came>, prefix: &str, ask: Ask, urgency: &Urgency) {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            start_after: ask.after.map(|after| format!("{prefix}{after}")),
            continuation: ask.token,
            ..ListRequest::default()
        };
        let listed = self.request(request, urgency);
        requests.spawn(async move { Came::Page(ask.id, listed.await) });
    }

    /// Asks whether there is a folder of this name.
    fn probe(&self, requests: &mut JoinSet<Came>, prefix: &str, name: String, urgency: &Urgency) {
        let request = ListRequest {
            prefix: format!("{prefix}{name}/"),
            recursive: true,
            max_keys: Some(1),
            ..ListRequest::default()
        };
        let listed = self.request(request, urgency);
        requests.spawn(async move {
            let is_there = match listed.await {
                Ok(page) => Some(!page.objects.is_empty() || !page.prefixes.is_empty()),
                Err(error) if error.kind == ErrorKind::NotFound => Some(false),
                Err(_) => None,
            };
            Came::Folder(name, is_there)
        });
    }

    fn request(
        &self,
        request: ListRequest,
        urgency: &Urgency,
    ) -> impl Future<Output = Result<ListPage, RemoteError>> + Send + 'static {
        let (remote, permits) = (self.remote.clone(), self.listings.requests.clone());
        let urgency = urgency.clone();
        async move {
            let _permit = permits.acquire_as(&urgency, 1).await;
            remote.list_as(&request, &urgency).await
        }
    }
}

/// What keeps a reader from going on, and is asked for.
#[derive(Debug, Default)]
struct Probes {
    name: Option<String>,
    batches: u32,
    sent: u32,
    is_asking: bool,
}

impl Probes {
    /// The name to ask for now, after one more batch.
    fn due(&mut self, segments: &Segments, urgency: &Urgency) -> Option<String> {
        let open = segments.open();
        self.batches = if open == self.name.as_deref() { self.batches + 1 } else { 0 };
        self.name = open.map(str::to_owned);
        let is_due = self.batches >= BATCHES_BEFORE_PROBE
            && !self.is_asking
            && self.sent < PROBES_MAX
            && urgency.class() == Class::Demand;
        let name = self.name.clone().filter(|_| is_due)?;
        self.is_asking = true;
        self.sent += 1;
        Some(name)
    }
}

fn name_folders(named: &mut Vec<String>, prefix: &str, pages: &[ListPage]) {
    let folders = pages.iter().flat_map(|page| &page.prefixes);
    let names = folders.filter_map(|folder| folder.strip_prefix(prefix)?.strip_suffix('/'));
    let room = FOLDERS_NAMED_MAX - named.len();
    named.extend(names.take(room).map(str::to_owned));
}

fn ended_abnormally() -> RemoteError {
    RemoteError::new(ErrorKind::Transient, "a request for a listing ended abnormally")
}
