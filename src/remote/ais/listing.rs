//! A page of a listing: what is asked, what is answered, and the token between two
//! of them.

use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize};

use super::version::{self, Custom};
use crate::remote::answer::{believable, lacks};
use crate::remote::{ErrorKind, Key, ListPage, ListRequest, ObjectMeta, RemoteError};

/// Entries of a page: the most that the cloud behind a bucket has in one. The
/// cluster's own may have ten times as many, which could be too large an answer.
const PAGE_ENTRIES: u16 = 1000;

/// What is asked for each object: the parts of its version, and when it was written.
const CLOUD_PROPS: &str = "name,size,custom";
const OWN_PROPS: &str = "name,size,version,checksum,custom";

/// Do not go below a further `/`.
const NOT_RECURSIVE: u32 = 2048;

/// Name no folders.
const NO_FOLDERS: u32 = 8192;

/// Of an entry: it is a folder.
const FOLDER: u64 = 256;

/// What stands between the two parts of our token.
const SEPARATOR: char = ':';

#[derive(Serialize)]
struct Action<'a> {
    action: &'static str,
    value: Ask<'a>,
}

#[derive(Serialize)]
struct Ask<'a> {
    uuid: &'a str,
    prefix: &'a str,
    props: &'static str,
    flags: String,
    pagesize: u16,
    continuation_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_after: Option<&'a str>,
}

/// The body of a request.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a continuation that is none of [`page`].
pub(super) fn body(
    request: &ListRequest,
    is_of_a_cloud: bool,
    what: &str,
) -> Result<String, RemoteError> {
    let (uuid, continuation_token) = match &request.continuation {
        None => ("", ""),
        Some(token) => token.split_once(SEPARATOR).ok_or_else(|| {
            RemoteError::new(ErrorKind::Invalid, format!("{what}: not a token of this store"))
        })?,
    };
    // A cloud bucket's is refused, and so is left to [`page`].
    let is_sent = request.continuation.is_none() && !is_of_a_cloud;
    let start_after = request.start_after.as_deref().filter(|_| is_sent);
    let value = Ask {
        uuid,
        prefix: &request.prefix,
        props: if is_of_a_cloud { CLOUD_PROPS } else { OWN_PROPS },
        flags: if request.recursive { NO_FOLDERS } else { NOT_RECURSIVE }.to_string(),
        pagesize: request.max_keys.unwrap_or(PAGE_ENTRIES),
        continuation_token,
        start_after,
    };
    serde_json::to_string(&Action { action: "list", value })
        .map_err(|error| RemoteError::new(ErrorKind::Invalid, format!("{what}: {error}")))
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    uuid: String,
    #[serde(default)]
    continuation_token: String,
    /// Null where there are none.
    #[serde(default)]
    entries: Option<Vec<Entry>>,
}

/// What is empty or zero may be left out.
#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default, deserialize_with = "number")]
    size: u64,
    #[serde(default)]
    checksum: String,
    #[serde(default)]
    version: String,
    #[serde(default, rename = "custom-md")]
    custom: String,
    #[serde(default, deserialize_with = "number")]
    flags: u64,
}

/// A number, as such or as a text.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Plain(u64),
        Text(String),
    }
    match Number::deserialize(from)? {
        Number::Plain(number) => Ok(number),
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

/// The page that an answer's body is.
///
/// # Errors
/// [`ErrorKind::Invalid`] if it is none, or an object lacks what is needed.
pub(super) fn page(
    body: &[u8],
    request: &ListRequest,
    is_of_a_cloud: bool,
    what: &str,
) -> Result<ListPage, RemoteError> {
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|error| lacks(what, &format!("listing that can be read ({error})")))?;
    let next = match answer.continuation_token.as_str() {
        "" => None,
        _ if answer.uuid.contains(SEPARATOR) => return Err(lacks(what, "usable uuid")),
        token => Some(format!("{}{SEPARATOR}{token}", answer.uuid)),
    };
    let mut page = ListPage { next, ..ListPage::default() };
    for entry in answer.entries.unwrap_or_default() {
        if entry.flags & FOLDER == 0 {
            page.objects.push(entry.object(is_of_a_cloud, what)?);
        } else if !request.recursive {
            let folder = entry.folder();
            // Some name the folder that is listed, too.
            if folder != request.prefix {
                page.prefixes.push(folder);
            }
        }
    }
    page.begin_after(request.start_after.as_deref());
    Ok(page)
}

impl Entry {
    fn object(self, is_of_a_cloud: bool, what: &str) -> Result<ObjectMeta, RemoteError> {
        let custom = Custom::parse(&self.custom);
        let modified: SystemTime = custom.modified();
        let version = match is_of_a_cloud {
            true => version::of_cloud(custom.etag, what),
            false => version::of_own(&self.version, &self.checksum, what),
        }?;
        let size = believable(self.size).ok_or_else(|| lacks(what, "believable size"))?;
        Ok(ObjectMeta { key: Key(self.name), size, version, mtime: modified })
    }

    /// With the `/` that not every answer puts there.
    fn folder(self) -> String {
        if self.name.ends_with('/') { self.name } else { self.name + "/" }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};
    use crate::remote::OBJECT_BYTES_MAX;

    fn request(recursive: bool) -> ListRequest {
        ListRequest { prefix: "p/".to_owned(), recursive, ..ListRequest::default() }
    }

    fn value(request: &ListRequest, is_of_a_cloud: bool) -> Value {
        let body: Value =
            serde_json::from_str(&body(request, is_of_a_cloud, "LIST").unwrap()).unwrap();
        assert_eq!(body["action"], "list");
        body["value"].clone()
    }

    #[test]
    fn a_request_asks_for_what_a_version_takes() {
        assert_eq!(
            value(&request(false), true),
            json!({"uuid": "", "prefix": "p/", "props": "name,size,custom", "flags": "2048",
                   "pagesize": 1000, "continuation_token": ""})
        );
        let next = ListRequest {
            continuation: Some("u7:a:b".to_owned()),
            start_after: Some("p/k".to_owned()),
            max_keys: Some(7),
            ..request(true)
        };
        assert_eq!(
            value(&next, false),
            json!({"uuid": "u7", "prefix": "p/", "props": "name,size,version,checksum,custom",
                   "flags": "8192", "pagesize": 7, "continuation_token": "a:b"})
        );
        let first = ListRequest { continuation: None, ..next };
        assert_eq!(value(&first, false)["start_after"], "p/k");
        assert_eq!(value(&first, true)["start_after"], Value::Null);
        let foreign = ListRequest { continuation: Some("token".to_owned()), ..first };
        assert_eq!(body(&foreign, false, "LIST").unwrap_err().kind, ErrorKind::Invalid);
    }

    const PAGE: &str = r#"{"uuid":"u7","continuation_token":"p/b","entries":[
        {"name":"p/a","size":"123","custom-md":"[ETag:e1 LastModified:1970-01-01T00:00:09Z]"},
        {"name":"p/b","version":"2","checksum":"c","custom-md":"[ETag:e2]","flags":64},
        {"name":"p/c/","flags":256},{"name":"p/d","flags":"256"},{"name":"p/","flags":256}],
        "flags":0}"#;

    #[test]
    fn a_page_has_objects_folders_and_a_token() {
        let page = page(PAGE.as_bytes(), &request(false), true, "LIST").unwrap();
        assert_eq!(page.prefixes, ["p/c/", "p/d/"]);
        assert_eq!(page.next.as_deref(), Some("u7:p/b"));
        let object = &page.objects[0];
        assert_eq!((object.key.0.as_str(), object.size), ("p/a", 123));
        assert_eq!(object.version.0, "e1");
        assert!(object.mtime > SystemTime::UNIX_EPOCH);
        assert_eq!((page.objects[1].size, page.objects[1].mtime), (0, SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn keys_come_after_the_one_that_is_named() {
        let after = |after: &str| {
            let start_after = Some(after.to_owned());
            let request = ListRequest { start_after, ..request(false) };
            let page = page(PAGE.as_bytes(), &request, true, "LIST").unwrap();
            page.objects.into_iter().map(|object| object.key.0).chain(page.prefixes).collect()
        };
        let keys: Vec<String> = after("p/a");
        assert_eq!(keys, ["p/b", "p/c/", "p/d/"]);
        let keys: Vec<String> = after("p/c/x");
        assert_eq!(keys, ["p/d/"]);
    }

    #[test]
    fn what_cannot_be_worked_with_is_refused() {
        let all = |body: &str, is_of_a_cloud| {
            page(body.as_bytes(), &request(true), is_of_a_cloud, "LIST ais://b/p/")
        };
        assert!(all(PAGE, true).unwrap().prefixes.is_empty());
        assert!(all(PAGE, false).unwrap_err().message.contains("no version and no checksum"));
        assert_eq!(all(r#"{"entries":null}"#, true).unwrap(), ListPage::default());
        for (body, why) in [
            ("<html>", "no listing that can be read"),
            (r#"{"uuid":"a:b","continuation_token":"t"}"#, "no usable uuid"),
            (
                r#"{"entries":[{"name":"a","size":"70368744177665","custom-md":"[ETag:e]"}]}"#,
                "size",
            ),
            (r#"{"entries":[{"name":"a","size":"-1","custom-md":"[ETag:e]"}]}"#, "no listing"),
            (r#"{"entries":[{"name":"a","size":"1"}]}"#, "no etag"),
        ] {
            let error = all(body, true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains(why), "{error}");
        }
    }

    fuzz_tests!(pages, tokens);

    /// An entry of six bytes, `{"name`, is one of 150 here at most.
    const MEMORY: (usize, usize) = (16 << 10, 256);

    fn pages(effort: Effort) {
        let target = Target {
            name: "pages of AIStore",
            corpus: vec![PAGE.into(), PAGE.replace("\"256\"", "0").into(), b"{}".to_vec()],
            words: &[
                "\"name\":",
                "\"size\":",
                "\"custom-md\":",
                "\"flags\":",
                "[ETag:",
                "LastModified:",
                "]",
                "{",
                "},{",
                "null",
                "\\u0000",
                "\\ud800",
                "256",
                "1e9",
                ":",
                " ",
            ],
            inputs: 10_000,
            memory: MEMORY,
        };
        target.run(effort, |input| {
            let mut accepted = false;
            for (is_of_a_cloud, recursive) in [(true, false), (false, true)] {
                let page = match page(input, &request(recursive), is_of_a_cloud, "LIST") {
                    Ok(page) => page,
                    Err(error) => {
                        assert!(!error.message.contains(char::is_control), "{error:?}");
                        assert!(error.message.chars().count() < 1_200, "{error}");
                        continue;
                    }
                };
                assert!(page.objects.iter().all(|object| object.size <= OBJECT_BYTES_MAX));
                assert!(page.prefixes.iter().all(|folder| folder.ends_with('/') && !recursive));
                if page.next.is_some() {
                    let next = ListRequest { continuation: page.next, ..request(recursive) };
                    value(&next, is_of_a_cloud);
                }
                accepted = true;
            }
            accepted
        });
    }

    fn tokens(effort: Effort) {
        let target = Target {
            name: "tokens of AIStore",
            corpus: vec![b"u7:p/b".to_vec(), b":".to_vec()],
            words: &[":", "::", "\"", "\\", "\u{0}", "é"],
            inputs: 10_000,
            memory: (16 << 10, 16),
        };
        target.run(effort, |input| {
            let token = String::from_utf8_lossy(input).into_owned();
            let request = ListRequest { continuation: Some(token.clone()), ..request(true) };
            if body(&request, true, "LIST").is_err() {
                assert!(!token.contains(SEPARATOR));
                return false;
            }
            // Both parts arrive as they came.
            let value = value(&request, true);
            let part = |name: &str| value[name].as_str().unwrap().to_owned();
            assert_eq!(format!("{}:{}", part("uuid"), part("continuation_token")), token);
            true
        });
    }
}
