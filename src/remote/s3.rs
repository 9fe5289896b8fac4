//! S3 and what speaks its protocol, through the AWS SDK.
//!
//! The SDK signs, encodes and parses. Everything that decides how a mount
//! behaves is not left to it: retries, time limits and stall detection are
//! [`super::client`]'s, connections are [`super::http`]'s, and credentials
//! [`super::credentials`]'s. How a bucket is reached is found out by [`S3Remote::connect`].
//!
//! Every GET names its version (`If-Match`), and its answer is checked before a
//! byte of it is passed on: the range must be the one asked for. A store that
//! ignores `Range` sends the whole object, of which the range is cut.

mod connect;
mod error;
#[cfg(test)]
mod fuzz_tests;

use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{EncodingType, Object, RequestPayer};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use self::error::{Asked, classify};
use super::error::innermost;
use super::{
    Capabilities, ErrorKind, Key, ListPage, ListRequest, OBJECT_BYTES_MAX, ObjectMeta, RangeBody,
    Remote, RemoteError, RemoteId, Version, VersionGuard, not_utf8,
};

/// Most bytes read and thrown away to reach a range in an answer that is the
/// whole object. Past this, a store without ranges cannot be mounted in earnest.
const MAX_SKIPPED_BYTES: u64 = 8 << 20;

/// A bucket.
#[derive(Clone, Debug)]
pub struct S3Remote {
    id: RemoteId,
    bucket: String,
    client: Client,
    payer: Option<RequestPayer>,
}

#[async_trait]
impl Remote for S3Remote {
    fn id(&self) -> &RemoteId {
        &self.id
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { version_guard: VersionGuard::IfMatch, list_start_after: true }
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta, RemoteError> {
        let what = self.what("HEAD", &key.0);
        let request = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(&key.0)
            .set_request_payer(self.payer.clone());
        let answer = request.send().await.map_err(|e| classify(Asked::Head, &what, &e))?;
        Ok(ObjectMeta {
            key: key.clone(),
            size: answer.content_length().and_then(to_size).ok_or_else(|| lacks(&what, "size"))?,
            version: version(answer.e_tag(), &what)?,
            mtime: time(answer.last_modified()),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = self.what("LIST", &request.prefix);
        let answer = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .set_prefix(Some(request.prefix.clone()).filter(|prefix| !prefix.is_empty()))
            .set_delimiter((!request.recursive).then(|| "/".to_owned()))
            .set_start_after(request.start_after.clone())
            .set_continuation_token(request.continuation.clone())
            .set_max_keys(request.max_keys.map(i32::from))
            // Keys may hold what XML cannot, such as a newline.
            .encoding_type(EncodingType::Url)
            .set_request_payer(self.payer.clone())
            .send()
            .await
            .map_err(|error| classify(Asked::List, &what, &error))?;
        list_page(answer, &what)
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let what = self.what("GET", &object.key.0);
        if range.is_empty() {
            let message = format!("{what}: an empty range cannot be asked for");
            return Err(RemoteError::new(ErrorKind::Invalid, message));
        }
        let answer = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(&object.key.0)
            .range(format!("bytes={}-{}", range.start, range.end - 1))
            .if_match(format!("\"{}\"", object.version.0))
            .set_request_payer(self.payer.clone())
            .send()
            .await
            .map_err(|error| classify(Asked::Get, &what, &error))?;
        let length = answer.content_length().and_then(to_size);
        let sent = Sent::of(answer.content_range(), length, &what)?;
        let version = version(answer.e_tag(), &what)?;
        let skipped = sent.skip_to(&range, &what)?;
        let body = clip(pieces(answer.body, what), skipped, range.end - range.start);
        Ok(RangeBody { version, total_size: sent.total_size, body })
    }
}

impl S3Remote {
    /// What a message says was asked.
    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} s3://{}/{}", self.bucket, key.escape_debug())
    }
}

/// Which bytes of an object an answer holds.
#[derive(Debug, PartialEq, Eq)]
struct Sent {
    start: u64,
    total_size: u64,
}

impl Sent {
    /// From `Content-Range`, or from the length of an answer without one, which
    /// is the whole object.
    fn of(range: Option<&str>, length: Option<u64>, what: &str) -> Result<Sent, RemoteError> {
        let Some(text) = range else {
            let total_size = length.ok_or_else(|| lacks(what, "size"))?;
            return Ok(Sent { start: 0, total_size });
        };
        let parsed = text.strip_prefix("bytes ").and_then(|rest| {
            let (bytes, total) = rest.split_once('/')?;
            let (start, _) = bytes.split_once('-')?;
            let sent =
                Sent { start: start.trim().parse().ok()?, total_size: total.trim().parse().ok()? };
            (sent.start < sent.total_size && sent.total_size <= OBJECT_BYTES_MAX).then_some(sent)
        });
        parsed.ok_or_else(|| lacks(what, "usable Content-Range"))
    }

    /// How many bytes come before `range`.
    fn skip_to(&self, range: &Range<u64>, what: &str) -> Result<u64, RemoteError> {
        match range.start.checked_sub(self.start) {
            Some(skipped) if skipped <= MAX_SKIPPED_BYTES => Ok(skipped),
            _ => {
                let message = format!(
                    "{what}: asked for bytes from {}, the store sent them from {}; it does not \
                     support ranges",
                    range.start, self.start
                );
                Err(RemoteError::new(ErrorKind::Invalid, message))
            }
        }
    }
}

/// A body's pieces; an end before its time is [`ErrorKind::Transient`].
fn pieces(body: ByteStream, what: String) -> BoxStream<'static, Result<Bytes, RemoteError>> {
    let next = async |(mut body, what): (ByteStream, String)| {
        let piece = body.next().await?.map_err(|error| {
            let message = format!("{what}: the body broke off: {}", innermost(&error));
            RemoteError::new(ErrorKind::Transient, message)
        });
        Some((piece, (body, what)))
    };
    stream::unfold((body, what), next).boxed()
}

/// Leaves out the first `skip` bytes of a body and all after the next `take`.
fn clip(
    body: BoxStream<'static, Result<Bytes, RemoteError>>,
    mut skip: u64,
    mut take: u64,
) -> BoxStream<'static, Result<Bytes, RemoteError>> {
    let clipped = body.map(move |piece| {
        let mut piece = piece?;
        let skipped = skip.min(piece.len() as u64);
        skip -= skipped;
        let mut piece = piece.split_off(skipped as usize);
        piece.truncate(take.min(piece.len() as u64) as usize);
        take -= piece.len() as u64;
        Ok(piece)
    });
    clipped.boxed()
}

fn list_page(answer: ListObjectsV2Output, what: &str) -> Result<ListPage, RemoteError> {
    let is_encoded = answer.encoding_type() == Some(&EncodingType::Url);
    let key_of = |text: &str| if is_encoded { decode(text) } else { text.to_owned() };
    let object = |object: &Object| {
        Ok(ObjectMeta {
            key: Key(key_of(object.key().ok_or_else(|| lacks(what, "key"))?)),
            size: object.size().and_then(to_size).ok_or_else(|| lacks(what, "size"))?,
            version: version(object.e_tag(), what)?,
            mtime: time(object.last_modified()),
        })
    };
    if answer.is_truncated() == Some(true) && answer.next_continuation_token().is_none() {
        return Err(lacks(what, "token for its next page, so the rest would be missing"));
    }
    let prefixes = answer.common_prefixes().iter();
    Ok(ListPage {
        objects: answer.contents().iter().map(object).collect::<Result<_, _>>()?,
        prefixes: prefixes.filter_map(|prefix| prefix.prefix().map(key_of)).collect(),
        next: answer.next_continuation_token().map(str::to_owned),
    })
}

/// Undoes `encoding-type=url`, which writes a space as `+` and a plus as `%2B`.
fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    match percent_encoding::percent_decode_str(&text).decode_utf8() {
        Ok(key) => key.into_owned(),
        Err(_) => not_utf8(&percent_encoding::percent_decode_str(&text).collect::<Vec<u8>>()),
    }
}

fn version(etag: Option<&str>, what: &str) -> Result<Version, RemoteError> {
    let etag = etag.filter(|etag| !etag.is_empty());
    etag.map(Version::from_etag).ok_or_else(|| lacks(what, "etag, so changes could not be told"))
}

/// An answer that cannot be worked with.
fn lacks(what: &str, part: &str) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, format!("{what}: the store's answer has no {part}"))
}

fn to_size(length: i64) -> Option<u64> {
    u64::try_from(length).ok().filter(|size| *size <= OBJECT_BYTES_MAX)
}

fn time(time: Option<&DateTime>) -> SystemTime {
    let since_epoch = time.map_or(Duration::ZERO, |time| {
        Duration::new(u64::try_from(time.secs()).unwrap_or(0), time.subsec_nanos())
    });
    SystemTime::UNIX_EPOCH + since_epoch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_url_encoding() {
        assert_eq!(decode("a+b%2Bc%25d%0Ae%C3%A9/f"), "a b+c%d\neé/f");
        // No path can name these: only what they look like is told.
        assert_eq!(decode("a/caf%E9/"), "a/caf\u{fffd}\0/");
        assert_eq!(decode("a/%FF%C3%A9"), "a/\u{fffd}é\0");
    }

    #[test]
    fn an_answer_tells_which_bytes_it_holds() {
        let sent = |range, length| Sent::of(range, length, "GET").map_err(|error| error.kind);
        assert_eq!(sent(Some("bytes 5-9/20"), Some(5)), Ok(Sent { start: 5, total_size: 20 }));
        assert_eq!(sent(None, Some(20)), Ok(Sent { start: 0, total_size: 20 }));
        for range in ["bytes 5-9/*", "bytes */20", "5-9/20", ""] {
            assert_eq!(sent(Some(range), Some(5)), Err(ErrorKind::Invalid), "{range}");
        }
        let whole = Sent { start: 0, total_size: 1 << 40 };
        assert_eq!(whole.skip_to(&(7..9), "GET"), Ok(7));
        assert!(whole.skip_to(&(1 << 30..1 << 31), "GET").is_err());
        assert!(Sent { start: 8, total_size: 20 }.skip_to(&(7..9), "GET").is_err());
    }

    #[tokio::test]
    async fn a_range_is_cut_from_a_larger_body() {
        let pieces = ["abc", "defg", "h"].map(|text| Ok(Bytes::from_static(text.as_bytes())));
        let clipped = clip(stream::iter(pieces).boxed(), 2, 4);
        let clipped: Vec<Bytes> = clipped.map(Result::unwrap).collect().await;
        assert_eq!(clipped.concat(), b"cdef");
    }
}
