//! Objects, and the buckets that are the cluster's own.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use bytes::Bytes;

/// The provider of the cluster's own buckets.
pub(super) const OWN: &str = "ais";

/// A bucket of one provider.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Bucket {
    pub(super) provider: String,
    pub(super) name: String,
}

impl Bucket {
    pub(super) fn new(provider: &str, name: &str) -> Bucket {
        Bucket { provider: provider.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.provider, self.name)
    }
}

/// What is known of an object without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes.
    pub size: u64,
    /// Without quotes.
    pub etag: String,
    /// When this version was written.
    pub modified: SystemTime,
    /// The number of the version, where there are numbers.
    pub version: Option<String>,
    /// CRC32C of the whole object in hex, where the bytes were seen.
    pub crc32c: Option<String>,
}

impl Meta {
    /// The pairs of `custom-md`.
    pub(super) fn custom(&self) -> [(&'static str, String); 2] {
        let modified = DateTime::from(self.modified);
        // Whole seconds, as HTTP dates have them.
        let modified = DateTime::from_secs(modified.secs()).fmt(Format::DateTime).unwrap();
        [("ETag", self.etag.clone()), ("LastModified", modified)]
    }
}

/// One version of an object.
#[derive(Clone, Debug)]
pub struct Object {
    /// What is known of it.
    pub meta: Meta,
    /// All of it.
    pub body: Bytes,
}

/// The CRC32C of `body`, as headers and listings tell it.
pub(super) fn crc32c_of(body: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(body))
}

/// All own buckets.
#[derive(Debug, Default)]
pub(super) struct OwnBuckets(Mutex<BTreeMap<String, Objects>>);

type Objects = BTreeMap<String, Arc<Object>>;

/// An entry of a listing.
#[derive(Debug)]
pub(super) enum Listed {
    Object(String, Meta),
    /// Ends in `/`.
    Folder(String),
}

impl Listed {
    pub(super) fn name(&self) -> &str {
        let (Listed::Object(name, _) | Listed::Folder(name)) = self;
        name
    }
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) entries: Vec<Listed>,
    /// Empty at the end.
    pub(super) next: String,
}

impl OwnBuckets {
    pub(super) fn create(&self, bucket: &str) {
        self.buckets().entry(bucket.to_owned()).or_default();
    }

    pub(super) fn exists(&self, bucket: &str) -> bool {
        self.buckets().contains_key(bucket)
    }

    pub(super) fn put(&self, bucket: &str, name: String, body: Bytes) -> String {
        let crc32c = crc32c_of(&body);
        let mut buckets = self.buckets();
        let objects = buckets.entry(bucket.to_owned()).or_default();
        let last = objects.get(&name).and_then(|object| object.meta.version.as_ref()?.parse().ok());
        let version = last.unwrap_or(0_u64) + 1;
        let etag = format!("{:x}-{crc32c}-{version}", body.len());
        let meta = Meta {
            size: body.len() as u64,
            etag: etag.clone(),
            modified: SystemTime::now(),
            version: Some(version.to_string()),
            crc32c: Some(crc32c),
        };
        objects.insert(name, Arc::new(Object { meta, body }));
        etag
    }

    pub(super) fn get(&self, bucket: &str, name: &str) -> Option<Arc<Object>> {
        self.buckets().get(bucket)?.get(name).cloned()
    }

    pub(super) fn delete(&self, bucket: &str, name: &str) -> bool {
        self.buckets().get_mut(bucket).is_some_and(|objects| objects.remove(name).is_some())
    }

    /// At most `max` entries below `prefix` from `start` on. `folded`: what has a
    /// `/` after the prefix is one folder.
    pub(super) fn page(
        &self,
        bucket: &str,
        prefix: &str,
        folded: bool,
        start: &str,
        max: usize,
    ) -> Page {
        let buckets = self.buckets();
        let Some(objects) = buckets.get(bucket) else { return Page::default() };
        let mut page = Page::default();
        let mut from = start.max(prefix).to_owned();
        loop {
            let mut rest =
                objects.range::<str, _>((Bound::Included(from.as_str()), Bound::Unbounded));
            let Some((name, object)) = rest.next().filter(|(name, _)| name.starts_with(prefix))
            else {
                return page;
            };
            if page.entries.len() == max {
                page.next.clone_from(name);
                return page;
            }
            match name[prefix.len()..].find('/').filter(|_| folded) {
                Some(slash) => {
                    let folder = &name[..=prefix.len() + slash];
                    // The character after `/`: behind all that is in the folder.
                    from = format!("{}0", &folder[..folder.len() - 1]);
                    page.entries.push(Listed::Folder(folder.to_owned()));
                }
                None => {
                    from = format!("{name}\0");
                    page.entries.push(Listed::Object(name.clone(), object.meta.clone()));
                }
            }
        }
    }

    fn buckets(&self) -> MutexGuard<'_, BTreeMap<String, Objects>> {
        self.0.lock().unwrap()
    }
}
