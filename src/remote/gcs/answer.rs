//! What the JSON API answers: objects, listings, and its way to say no.
//!
//! <https://cloud.google.com/storage/docs/json_api/v1/status-codes>

use std::time::SystemTime;

use http::HeaderMap;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::remote::answer::{Asked, Dialect, Refusal, believable, lacks, refused, rfc3339};
use crate::remote::customer_key::{GIVE_KEY, LEAVE_KEY_OUT, OTHER_KEY};
use crate::remote::rest::Said;
use crate::remote::{ErrorKind, Key, ListPage, ObjectMeta, RemoteError, Version};

/// What a requester-pays bucket asks of who names no project.
pub(super) const NAME_A_PAYER: &str = "name the project that pays with --billing-project";

/// How it says no to a token.
pub(super) static GCS: Dialect = Dialect {
    server: "the store",
    store: "Google Cloud Storage",
    bucket: "bucket",
    endpoint: "--endpoint-url",
    credentials: "name others with GOOGLE_APPLICATION_CREDENTIALS",
    kind,
    next_step,
};

/// How it says no to nobody in particular: 401 is what others say by 403.
pub(super) static GCS_ANONYMOUS: Dialect = Dialect {
    server: "the store",
    credentials: "log in with `gcloud auth application-default login`",
    kind: |refusal| match refusal.status {
        401 => Some(ErrorKind::Denied),
        // Nobody cannot pay.
        _ if wants_payer(refusal) => Some(ErrorKind::Denied),
        _ => kind(refusal),
    },
    next_step: |refusal| match refusal.status {
        401 => Some("it is not public: log in with `gcloud auth application-default login`"),
        _ => next_step(refusal),
    },
    ..GCS
};

fn kind(refusal: &Refusal<'_>) -> Option<ErrorKind> {
    Some(match (refusal.status, refusal.code) {
        (403, Some("rateLimitExceeded" | "userRateLimitExceeded")) => {
            ErrorKind::Throttled { retry_after: None }
        }
        (400, Some(code)) if step_for_key(code).is_some() => ErrorKind::Denied,
        // Bytes are refused in plain text, without a reason.
        (404, _) if says(refusal, "bucket does not exist") => ErrorKind::NoSuchBucket,
        _ => return None,
    })
}

fn next_step(refusal: &Refusal<'_>) -> Option<&'static str> {
    if wants_payer(refusal) {
        return Some(NAME_A_PAYER);
    }
    if says(refusal, "serviceusage.services.use") {
        return Some("name a project with --billing-project that these credentials may bill");
    }
    step_for_key(refusal.code?)
}

/// What to do where the key is wrong that an object was stored with.
fn step_for_key(code: &str) -> Option<&'static str> {
    Some(match code {
        "resourceIsEncryptedWithCustomerEncryptionKey" => GIVE_KEY,
        "resourceNotEncryptedWithCustomerEncryptionKey" => LEAVE_KEY_OUT,
        "customerEncryptionKeyIsIncorrect" => OTHER_KEY,
        _ => return None,
    })
}

fn wants_payer(refusal: &Refusal<'_>) -> bool {
    refusal.status == 400
        && (says(refusal, "requester pays") || says(refusal, "UserProjectMissing"))
}

fn says(refusal: &Refusal<'_>, words: &str) -> bool {
    refusal.said.is_some_and(|said| said.contains(words))
}

/// Reads a refusal of Google's, of the store or of one of its token servers: JSON, or a
/// line of plain text.
pub(super) fn said(_: &HeaderMap, body: &[u8]) -> Said {
    let Ok(json) = serde_json::from_slice::<Value>(body) else {
        let text = str::from_utf8(body).ok().filter(|text| !text.contains('<'));
        return Said { code: None, message: text.map(str::to_owned) };
    };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let error = &json["error"];
    // Token servers say `"error": "invalid_grant"`.
    match text(error) {
        Some(code) => Said { code: Some(code), message: text(&json["error_description"]) },
        None => Said {
            code: text(&error["errors"][0]["reason"]).or_else(|| text(&error["status"])),
            message: text(&error["message"]),
        },
    }
}

/// Reads a success.
///
/// # Errors
/// [`ErrorKind::Transient`] for what is not the store's.
pub(super) fn read<T: DeserializeOwned>(
    body: &[u8],
    asked: Asked,
    what: &str,
) -> Result<T, RemoteError> {
    serde_json::from_slice(body).map_err(|_| {
        let refusal = Refusal { asked, status: 200, code: None, said: None, retry_after: None };
        refused(&GCS, what, &refusal)
    })
}

/// A page of a listing. The emulators write `null` for none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listing {
    items: Option<Vec<Item>>,
    prefixes: Option<Vec<String>>,
    next_page_token: Option<String>,
}

/// One object. Numbers are 64 bits wide, and so are strings in JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    /// In listings.
    name: Option<String>,
    size: Option<String>,
    generation: Option<String>,
    time_created: Option<String>,
}

/// What the bytes of an object sum up to. Each object has this one, composed ones too.
#[derive(Debug, Deserialize)]
pub(super) struct Sums {
    pub(super) crc32c: Option<String>,
}

impl Listing {
    pub(super) fn into_page(self, what: &str) -> Result<ListPage, RemoteError> {
        let object = |mut item: Item| {
            let key = item.name.take().ok_or_else(|| lacks(what, "key"))?;
            item.into_object(Key(key), what)
        };
        Ok(ListPage {
            objects: self
                .items
                .unwrap_or_default()
                .into_iter()
                .map(object)
                .collect::<Result<_, _>>()?,
            prefixes: self.prefixes.unwrap_or_default(),
            next: self.next_page_token.filter(|token| !token.is_empty()),
        })
    }
}

impl Item {
    pub(super) fn into_object(self, key: Key, what: &str) -> Result<ObjectMeta, RemoteError> {
        let size = self.size.and_then(|size| size.parse().ok()).and_then(believable);
        let version = self.generation.filter(|generation| !generation.is_empty());
        Ok(ObjectMeta {
            key,
            size: size.ok_or_else(|| lacks(what, "believable size"))?,
            version: Version(version.ok_or_else(|| lacks(what, "generation"))?),
            mtime: self.time_created.as_deref().and_then(rfc3339).unwrap_or(SystemTime::UNIX_EPOCH),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fuzz::{Effort, Target, fuzz_tests};
    use crate::remote::OBJECT_BYTES_MAX;

    fn told(body: &str) -> (Option<String>, Option<String>) {
        let said = said(&HeaderMap::new(), body.as_bytes());
        (said.code, said.message)
    }

    #[test]
    fn a_no_is_read_in_each_of_its_forms() {
        let some = |text: &str| Some(text.to_owned());
        let store = r#"{"error": {"code": 404, "message": "m", "errors": [{"reason": "r"}]}}"#;
        assert_eq!(told(store), (some("r"), some("m")));
        let iam = r#"{"error": {"code": 403, "message": "m", "status": "PERMISSION_DENIED"}}"#;
        assert_eq!(told(iam), (some("PERMISSION_DENIED"), some("m")));
        let tokens = r#"{"error": "invalid_grant", "error_description": "m"}"#;
        assert_eq!(told(tokens), (some("invalid_grant"), some("m")));
        assert_eq!(told("No such object"), (None, some("No such object")));
        assert_eq!(told("<html>"), (None, None));
        assert_eq!(told("[]"), (None, None));
    }

    #[test]
    fn moments_are_read() {
        let since = |seconds, nanos| Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(rfc3339("1970-01-01T00:01:00Z"), since(60, 0));
        assert_eq!(rfc3339("1970-01-01T00:01:00.25Z"), since(60, 250_000_000));
        assert_eq!(rfc3339("1970-01-01T01:01:00+01:00"), since(60, 0));
        for text in ["", "now", "1970-01-01", "1970-13-01T00:00:00Z"] {
            assert_eq!(rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn who_is_nobody_is_told_to_log_in() {
        let refusal = Refusal {
            asked: Asked::List,
            status: 401,
            code: Some("required"),
            said: Some("Anonymous caller does not have access."),
            retry_after: None,
        };
        let error = refused(&GCS_ANONYMOUS, "LIST gs://b/", &refusal);
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.message.contains("gcloud auth application-default login"), "{error}");
        assert_eq!(refused(&GCS, "LIST gs://b/", &refusal).kind, ErrorKind::Credentials);
        let pays = Refusal { status: 400, said: Some("a requester pays bucket"), ..refusal };
        assert_eq!(refused(&GCS_ANONYMOUS, "LIST gs://b/", &pays).kind, ErrorKind::Denied);
        assert_eq!(refused(&GCS, "LIST gs://b/", &pays).kind, ErrorKind::Invalid);
    }

    fuzz_tests!(listings, refusals, moments);

    fn listings(effort: Effort) {
        let page = r#"{"kind": "storage#objects", "nextPageToken": "t", "prefixes": ["a/"],
            "items": [{"name": "a", "size": "7", "generation": "1", "timeCreated":
            "2026-01-02T03:04:05.678Z"}, {"name": "b", "size": "0", "generation": "2"}]}"#;
        let target = Target {
            name: "listings of Google's",
            corpus: vec![page.into(), b"{}".to_vec(), br#"{"items": null}"#.to_vec()],
            words: &[
                "\"items\"",
                "\"name\"",
                "\"size\"",
                "{",
                "}",
                "[",
                "]",
                ",",
                ":",
                "null",
                "\\u0000",
            ],
            inputs: 20_000,
            memory: (64 << 10, 128),
        };
        target.run(effort, |input| {
            let page = read::<Listing>(input, Asked::List, "LIST gs://b/")
                .and_then(|listing| listing.into_page("LIST gs://b/"));
            match page {
                Ok(page) => {
                    let sizes = page.objects.iter().map(|object| object.size);
                    assert!(sizes.max().is_none_or(|size| size <= OBJECT_BYTES_MAX));
                    true
                }
                Err(error) => {
                    assert!(!error.message.contains(char::is_control), "{:?}", error.message);
                    false
                }
            }
        });
    }

    fn refusals(effort: Effort) {
        let target = Target {
            name: "refusals of Google's",
            corpus: [
                r#"{"error": {"code": 404, "message": "m", "errors": [{"reason": "r"}]}}"#,
                r#"{"error": "invalid_grant", "error_description": "m"}"#,
                "No such object: b/k",
            ]
            .map(Vec::from)
            .to_vec(),
            words: &["\"error\"", "\"errors\"", "{", "[", "\"", ":", "<", "\\n", "\u{1b}[2J"],
            inputs: 20_000,
            memory: (64 << 10, 128),
        };
        target.run(effort, |input| {
            let said = said(&HeaderMap::new(), input);
            let (code, said) = (said.code.as_deref(), said.message.as_deref());
            for status in [400, 401, 404] {
                let asked = Asked::Get;
                let refusal = Refusal { asked, status, code, said, retry_after: None };
                let error = refused(&GCS_ANONYMOUS, "GET gs://b/k", &refusal);
                assert!(!error.message.contains(char::is_control), "{:?}", error.message);
            }
            code.is_some()
        });
    }

    fn moments(effort: Effort) {
        let target = Target {
            name: "moments of Google's",
            corpus: ["2026-01-02T03:04:05.678Z", "1970-01-01T01:01:00+01:00"]
                .map(Vec::from)
                .to_vec(),
            words: &["-", ":", "T", "Z", "+", ".", "9999999999"],
            inputs: 20_000,
            memory: (16 << 10, 64),
        };
        target.run(effort, |input| rfc3339(&String::from_utf8_lossy(input)).is_some());
    }
}
