//! What was asked of the store: every request, and totals per operation.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Entries kept. Enough for a listing of 100 M keys or an epoch over 200,000
/// files; beyond it the oldest go (some 40 MB at most).
const ENTRIES_MAX: usize = 200_000;

/// One request, as [`EmbeddedStore::log`](super::EmbeddedStore::log) tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// HTTP method.
    pub method: String,
    /// What was asked for.
    pub op: Op,
    /// Bucket; empty if the request named none.
    pub bucket: String,
    /// Key of an object, or prefix of a listing.
    pub key: String,
    /// The bytes that were answered, where the request had a satisfiable
    /// `Range`.
    pub range: Option<Range<u64>>,
    /// HTTP status; 0 while there is no answer.
    pub status: u16,
    /// Bytes of body handed to the connection so far.
    pub bytes_sent: u64,
}

/// Kinds of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Bytes of an object.
    Get,
    /// Metadata of an object.
    Head,
    /// A page of a listing.
    List,
    /// Metadata of a bucket.
    HeadBucket,
    /// A new object.
    Put,
    /// An object removed.
    Delete,
    /// A new bucket.
    CreateBucket,
    /// Anything the store does not do.
    Other,
}

/// Requests and body bytes of one operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests that arrived.
    pub requests: u64,
    /// Bytes of body sent in answer.
    pub bytes: u64,
}

/// Totals by operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes of objects.
    pub get: Tally,
    /// Metadata of objects.
    pub head: Tally,
    /// Pages of listings.
    pub list: Tally,
    /// Everything else.
    pub other: Tally,
}

/// The log of a store.
#[derive(Debug, Default)]
pub(super) struct RequestLog(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    latest: VecDeque<Arc<Entry>>,
    totals: Arc<[Total; 4]>,
}

#[derive(Debug, Default)]
struct Total {
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// A request in the log, updated while it is being answered.
#[derive(Debug)]
pub(super) struct Entry {
    method: String,
    op: Op,
    bucket: String,
    key: String,
    range: Mutex<Option<Range<u64>>>,
    status: AtomicU16,
    bytes_sent: AtomicU64,
    /// The totals of the time it arrived in: a reset leaves no late bytes.
    totals: Arc<[Total; 4]>,
}

impl Op {
    fn slot(self) -> usize {
        match self {
            Op::Get => 0,
            Op::Head => 1,
            Op::List => 2,
            _ => 3,
        }
    }
}

impl RequestLog {
    pub(super) fn arrived(&self, method: &str, op: Op, bucket: &str, key: &str) -> Arc<Entry> {
        let mut entries = self.lock();
        let entry = Arc::new(Entry {
            method: method.to_owned(),
            op,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            range: Mutex::new(None),
            status: AtomicU16::new(0),
            bytes_sent: AtomicU64::new(0),
            totals: entries.totals.clone(),
        });
        entries.totals[op.slot()].requests.fetch_add(1, Ordering::Relaxed);
        if entries.latest.len() == ENTRIES_MAX {
            entries.latest.pop_front();
        }
        entries.latest.push_back(entry.clone());
        entry
    }

    pub(super) fn entries(&self) -> Vec<LoggedRequest> {
        self.lock().latest.iter().map(|entry| entry.snapshot()).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let totals = self.lock().totals.clone();
        let tally = |slot: usize| Tally {
            requests: totals[slot].requests.load(Ordering::Relaxed),
            bytes: totals[slot].bytes.load(Ordering::Relaxed),
        };
        Counts { get: tally(0), head: tally(1), list: tally(2), other: tally(3) }
    }

    pub(super) fn reset(&self) {
        *self.lock() = Entries::default();
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    pub(super) fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    pub(super) fn ranged(&self, range: Range<u64>) {
        *self.range.lock().unwrap_or_else(PoisonError::into_inner) = Some(range);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.totals[self.op.slot()].bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn snapshot(&self) -> LoggedRequest {
        LoggedRequest {
            method: self.method.clone(),
            op: self.op,
            bucket: self.bucket.clone(),
            key: self.key.clone(),
            range: self.range.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            status: self.status.load(Ordering::Relaxed),
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
        }
    }
}
