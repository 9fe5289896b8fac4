//! Buckets of objects, and listing them as S3 does.
//!
//! Keys are UTF-8, so the order of `String` is the byte order that S3 lists
//! in. A listing seeks past the keys it folds into a common prefix: its cost
//! is that of its entries, not of the keys under them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use bytes::Bytes;

/// All buckets of a store.
#[derive(Debug, Default)]
pub(super) struct Buckets(RwLock<BTreeMap<String, Bucket>>);

type Bucket = BTreeMap<String, Arc<Object>>;

/// One object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) body: Bytes,
    /// Without quotes.
    pub(super) etag: String,
    pub(super) modified: SystemTime,
}

/// There is no bucket of that name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoSuchBucket;

/// The etag of a body: its length and CRC32C, in the 32 hex digits that
/// clients expect. MD5 would cost seconds where a demo puts gigabytes.
pub(super) fn etag_of(body: &[u8]) -> String {
    format!("{:016x}{:016x}", body.len(), crc32c::crc32c(body))
}

impl Buckets {
    pub(super) fn create(&self, bucket: &str) {
        if !self.exists(bucket) {
            self.write().entry(bucket.to_owned()).or_default();
        }
    }

    pub(super) fn exists(&self, bucket: &str) -> bool {
        self.read().contains_key(bucket)
    }

    /// Says whether the bucket exists.
    pub(super) fn put(&self, bucket: &str, key: String, body: Bytes, etag: String) -> bool {
        let object = Arc::new(Object { body, etag, modified: SystemTime::now() });
        self.write().get_mut(bucket).map(|objects| objects.insert(key, object)).is_some()
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Result<Option<Arc<Object>>, NoSuchBucket> {
        self.read().get(bucket).ok_or(NoSuchBucket).map(|objects| objects.get(key).cloned())
    }

    /// Says whether there was such an object.
    pub(super) fn delete(&self, bucket: &str, key: &str) -> bool {
        self.write().get_mut(bucket).is_some_and(|objects| objects.remove(key).is_some())
    }

    pub(super) fn list(&self, bucket: &str, query: &ListQuery) -> Result<Listing, NoSuchBucket> {
        self.read().get(bucket).ok_or(NoSuchBucket).map(|objects| list(objects, query))
    }

    // A panic elsewhere leaves the maps whole: each change is one insert.
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Bucket>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Bucket>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a page of a listing is to hold.
#[derive(Clone, Debug, Default)]
pub(super) struct ListQuery {
    pub(super) prefix: String,
    /// Empty for none.
    pub(super) delimiter: String,
    /// Only entries, keys and common prefixes alike, that sort after this.
    pub(super) after: Option<String>,
    pub(super) max_entries: usize,
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) objects: Vec<(String, Arc<Object>)>,
    pub(super) prefixes: Vec<String>,
    /// The last entry, if there are more after it.
    pub(super) more_after: Option<String>,
}

fn list(objects: &Bucket, query: &ListQuery) -> Listing {
    let mut page = Listing::default();
    let mut last: Option<String> = None;
    let Some(mut from) = first_bound(query) else { return page };
    if query.max_entries == 0 {
        return page;
    }
    'seek: loop {
        for (key, object) in objects.range::<str, _>((as_str(&from), Bound::Unbounded)) {
            if !key.starts_with(&query.prefix) {
                break 'seek;
            }
            if page.objects.len() + page.prefixes.len() == query.max_entries {
                page.more_after = last;
                break 'seek;
            }
            let Some(folded) = folded(key, query) else {
                page.objects.push((key.clone(), object.clone()));
                last = Some(key.clone());
                continue;
            };
            page.prefixes.push(folded.to_owned());
            last = Some(folded.to_owned());
            match after_all_with_prefix(folded) {
                Some(next) => from = Bound::Included(next),
                None => break 'seek,
            }
            continue 'seek;
        }
        break;
    }
    page
}

/// Where the first entry may be; `None` if there can be none.
fn first_bound(query: &ListQuery) -> Option<Bound<String>> {
    match &query.after {
        Some(after) if after.starts_with(&query.prefix) => match folded(after, query) {
            // The common prefix that `after` lies in does not sort after it.
            Some(folded) => after_all_with_prefix(folded).map(Bound::Included),
            None => Some(Bound::Excluded(after.clone())),
        },
        Some(after) if *after > query.prefix => None,
        _ => Some(Bound::Included(query.prefix.clone())),
    }
}

/// The common prefix that stands for `key` (which begins with the prefix).
fn folded<'a>(key: &'a str, query: &ListQuery) -> Option<&'a str> {
    if query.delimiter.is_empty() {
        return None;
    }
    let start = query.prefix.len();
    let at = key[start..].find(&query.delimiter)?;
    Some(&key[..start + at + query.delimiter.len()])
}

/// The least string greater than every string that begins with `prefix`: its
/// last character is replaced by the next one. `None` if there is none.
fn after_all_with_prefix(prefix: &str) -> Option<String> {
    let mut next = prefix.to_owned();
    while let Some(last) = next.pop() {
        if let Some(following) = (last..=char::MAX).nth(1) {
            next.push(following);
            return Some(next);
        }
    }
    None
}

fn as_str(bound: &Bound<String>) -> Bound<&str> {
    bound.as_ref().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_after_a_prefix_skips_no_other() {
        let after = |prefix: &str| after_all_with_prefix(prefix);
        assert_eq!(after("a/").as_deref(), Some("a0"));
        assert_eq!(after("a\u{D7FF}").as_deref(), Some("a\u{E000}"));
        assert_eq!(after("a\u{10FFFF}").as_deref(), Some("b"));
        assert_eq!(after("\u{10FFFF}"), None);
        assert_eq!(after(""), None);
    }

    #[test]
    fn etags_tell_bodies_apart() {
        assert_ne!(etag_of(b"a"), etag_of(b"b"));
        assert_ne!(etag_of(b"\0"), etag_of(b"\0\0"));
        assert_eq!(etag_of(b"a").len(), 32);
    }
}
