//! Pages of listings.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Map, Value, json};

use super::ClusterOptions;
use super::objects::{Bucket, Listed, Meta, OWN};
use super::wire::Refusal;

/// Bits of what a listing is asked for.
const NAME_AND_SIZE: u64 = 32;
const NOT_RECURSIVE: u64 = 2048;
const NO_FOLDERS: u64 = 8192;

/// Bits of an entry.
const CACHED: u64 = 64;
const FOLDER: u64 = 256;

/// What a page is asked for, `pagesize` and token apart: it stays the same from
/// page to page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) bucket: Bucket,
    pub(super) prefix: String,
    flags: u64,
    props: Vec<String>,
}

/// A page as it is asked for.
#[derive(Debug)]
pub(super) struct PageQuery {
    pub(super) query: Query,
    uuid: String,
    token: String,
    start_after: String,
    /// Entries; 0 is as many as may be.
    page_size: usize,
}

impl PageQuery {
    /// Parses the value of a list action.
    pub(super) fn parse(bucket: Bucket, value: &Value) -> Result<PageQuery, Refusal> {
        let text = |name: &str| match &value[name] {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text.clone()),
            other => Err(Refusal::bad_request(format!("{name} must be a string, not {other}"))),
        };
        let start_after = text("start_after")?;
        if !start_after.is_empty() && bucket.provider != OWN {
            return Err(Refusal::bad_request("start_after is not supported for cloud buckets"));
        }
        let flags = match text("flags")?.as_str() {
            "" => 0,
            flags => flags
                .parse()
                .map_err(|_| Refusal::bad_request(format!("flags {flags:?} are no number")))?,
        };
        let props = text("props")?;
        let props = if props.is_empty() { "name,size" } else { &props };
        let props = props.split(',').map(|prop| prop.trim().to_owned()).collect();
        let page_size = match &value["pagesize"] {
            Value::Null => Some(0),
            size => size.as_u64(),
        };
        let page_size = page_size.ok_or_else(|| Refusal::bad_request("pagesize is no number"))?;
        let query = Query { bucket, prefix: text("prefix")?, flags, props };
        let (uuid, token) = (text("uuid")?, text("continuation_token")?);
        Ok(PageQuery { query, uuid, token, start_after, page_size: page_size as usize })
    }

    /// Where it begins: a token, or a name; empty at the start.
    pub(super) fn start(&self) -> String {
        if self.token.is_empty() && !self.start_after.is_empty() {
            // No name comes between these two.
            return format!("{}\0", self.start_after);
        }
        self.token.clone()
    }

    /// The entries to answer with, where the bucket has `max` in a page.
    pub(super) fn entries_max(&self, max: usize) -> usize {
        if self.page_size == 0 { max } else { self.page_size.min(max) }
    }
}

impl Query {
    /// Whether what has a `/` after the prefix is one folder.
    pub(super) fn folded(&self) -> bool {
        self.flags & NOT_RECURSIVE != 0
    }

    pub(super) fn wants(&self, prop: &str) -> bool {
        let only_these = self.flags & NAME_AND_SIZE != 0;
        (!only_these && self.props.iter().any(|wanted| wanted == prop)) || prop == "size"
    }

    /// An entry in JSON; `None` if it is not wanted.
    pub(super) fn entry(
        &self,
        listed: &Listed,
        cached: bool,
        options: &ClusterOptions,
    ) -> Option<Value> {
        let mut entry = Map::new();
        match listed {
            Listed::Folder(_) if self.flags & NO_FOLDERS != 0 => return None,
            Listed::Folder(name) => {
                let name = if options.bare_folders { name.trim_end_matches('/') } else { name };
                entry.insert("name".into(), json!(name));
                entry.insert("flags".into(), json!(FOLDER));
            }
            Listed::Object(name, meta) => {
                entry.insert("name".into(), json!(name));
                self.describe(&mut entry, meta);
                entry.insert("flags".into(), json!(if cached { CACHED } else { 0 }));
            }
        }
        if options.omits_empty {
            entry.retain(|_, value| ![json!(""), json!("0"), json!(0)].contains(value));
        }
        Some(Value::Object(entry))
    }

    fn describe(&self, entry: &mut Map<String, Value>, meta: &Meta) {
        entry.insert("size".into(), json!(meta.size.to_string()));
        for (prop, value) in [("checksum", &meta.crc32c), ("version", &meta.version)] {
            if self.wants(prop) {
                entry.insert(prop.into(), json!(value.as_deref().unwrap_or_default()));
            }
        }
        if self.wants("custom") {
            let pairs = meta.custom().map(|(name, value)| format!("{name}:{value}"));
            entry.insert("custom-md".into(), json!(format!("[{}]", pairs.join(" "))));
        }
    }
}

/// The listings that were begun, by their uuid.
#[derive(Debug, Default)]
pub(super) struct Listings {
    begun: Mutex<HashMap<String, Query>>,
    next: AtomicU64,
}

impl Listings {
    /// The uuid of the listing that a page belongs to. Refuses a page that says it
    /// goes on with a listing, and does not.
    pub(super) fn uuid(&self, page: &PageQuery) -> Result<String, Refusal> {
        let mut begun = self.begun.lock().unwrap();
        if page.uuid.is_empty() {
            if !page.token.is_empty() {
                return Err(Refusal::bad_request("a continuation_token needs its uuid"));
            }
            let uuid = format!("listing-{}", self.next.fetch_add(1, Ordering::Relaxed));
            begun.insert(uuid.clone(), page.query.clone());
            return Ok(uuid);
        }
        match begun.get(&page.uuid) {
            Some(query) if *query == page.query => Ok(page.uuid.clone()),
            Some(_) => Err(Refusal::bad_request("this uuid is of a listing of something else")),
            None => Err(Refusal::bad_request(format!("no listing has the uuid {:?}", page.uuid))),
        }
    }
}
