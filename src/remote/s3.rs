//! S3 and what speaks its protocol, through the AWS SDK.
//!
//! The SDK signs, encodes and parses. Everything that decides how a mount
//! behaves is not left to it: retries, time limits and stall detection are
//! [`super::client`]'s, connections are [`super::http`]'s, and credentials
//! [`super::credentials`]'s. How a bucket is reached is found out by [`S3Remote::connect`].
//!
//! Every GET names its version (`If-Match`) and its range ([`super::ranged`]).

mod checksum;
mod connect;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod keys;

use std::future::Future;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::operation::head_object::builders::HeadObjectFluentBuilder;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ChecksumMode, EncodingType, Object, RequestPayer};
use http_body_util::BodyDataStream;

pub(super) use self::connect::{TLS, endpoint};
use self::error::{S3, S3_WITH_KEY, classify};
use self::keys::Keys;
use super::answer::{Asked, Dialect, believable, lacks};
use super::checksum::Checksum;
use super::customer_key::CustomerKey;
use super::ranged::{self, Sent};
use super::{
    Capabilities, Key, ListPage, ListRequest, ObjectMeta, RangeBody, Remote, RemoteError, RemoteId,
    Version, VersionGuard, not_utf8,
};

/// A bucket.
#[derive(Clone, Debug)]
pub struct S3Remote {
    id: RemoteId,
    bucket: String,
    client: Client,
    /// None for requests without a signature.
    keys: Option<Keys>,
    payer: Option<RequestPayer>,
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/ServerSideEncryptionCustomerKeys.html>
    customer_key: Option<CustomerKey>,
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
        let answer = self.head_object(key, &what, |request| request).await?;
        Ok(ObjectMeta {
            key: key.clone(),
            size: answer.content_length().and_then(to_size).ok_or_else(|| lacks(&what, "size"))?,
            version: version(answer.e_tag(), &what)?,
            mtime: time(answer.last_modified()),
        })
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, RemoteError> {
        let what = self.what("LIST", &request.prefix);
        let call = self
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
            .set_request_payer(self.payer.clone());
        let ask = || async {
            call.clone().send().await.map_err(|error| classify(&S3, Asked::List, &what, &error))
        };
        let mut page = list_page(self.signed(ask).await?, &what)?;
        page.begin_after(request.start_after.as_deref());
        Ok(page)
    }

    async fn get_range(
        &self,
        object: &ObjectMeta,
        range: Range<u64>,
    ) -> Result<RangeBody, RemoteError> {
        let what = self.what("GET", &object.key.0);
        let [algorithm, customer_key, md5] = self.key_headers();
        let call = self
            .client
            .get_object()
            .bucket(&self.bucket)
            .key(&object.key.0)
            .range(ranged::header(&range, &what)?)
            .if_match(format!("\"{}\"", object.version.0))
            .set_sse_customer_algorithm(algorithm)
            .set_sse_customer_key(customer_key)
            .set_sse_customer_key_md5(md5)
            .set_request_payer(self.payer.clone());
        let ask = || async {
            let answer = call.clone().send().await;
            answer.map_err(|error| classify(self.dialect(), Asked::Get, &what, &error))
        };
        let answer = self.signed(ask).await?;
        let length = answer.content_length().and_then(to_size);
        let sent = Sent::of(answer.content_range(), length, &what)?;
        let version = version(answer.e_tag(), &what)?;
        let body = BodyDataStream::new(answer.body.into_inner());
        let body = sent.cut(body, &range, what)?;
        Ok(RangeBody { version, total_size: sent.total_size, body })
    }

    async fn checksum(&self, object: &ObjectMeta) -> Result<Option<Checksum>, RemoteError> {
        let what = self.what("HEAD", &object.key.0);
        let etag = format!("\"{}\"", object.version.0);
        let with_checksum = |request: HeadObjectFluentBuilder| {
            request.checksum_mode(ChecksumMode::Enabled).if_match(etag)
        };
        let answer = self.head_object(&object.key, &what, with_checksum).await?;
        Ok(checksum::of_whole(&answer, &self.bucket))
    }
}

impl S3Remote {
    /// Makes a request in the name of whom the bucket is mounted for. The SDK asks
    /// [`keys::Signer`] for the same keys.
    async fn signed<T, F>(&self, request: impl Fn() -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        match &self.keys {
            Some(keys) => keys.authorised(|_| request()).await,
            None => request().await,
        }
    }

    /// How the store says no about an object.
    fn dialect(&self) -> &'static Dialect {
        if self.customer_key.is_some() { &S3_WITH_KEY } else { &S3 }
    }

    async fn head_object(
        &self,
        key: &Key,
        what: &str,
        with: impl FnOnce(HeadObjectFluentBuilder) -> HeadObjectFluentBuilder,
    ) -> Result<HeadObjectOutput, RemoteError> {
        let [algorithm, customer_key, md5] = self.key_headers();
        let call = self
            .client
            .head_object()
            .bucket(&self.bucket)
            .key(&key.0)
            .set_sse_customer_algorithm(algorithm)
            .set_sse_customer_key(customer_key)
            .set_sse_customer_key_md5(md5)
            .set_request_payer(self.payer.clone());
        let call = with(call);
        let ask = || async {
            let answer = call.clone().send().await;
            answer.map_err(|error| classify(self.dialect(), Asked::Head, what, &error))
        };
        self.signed(ask).await
    }

    /// What goes with each HEAD and GET: algorithm, key, and the key's MD5.
    fn key_headers(&self) -> [Option<String>; 3] {
        let Some(key) = &self.customer_key else { return [None, None, None] };
        [CustomerKey::ALGORITHM.to_owned(), key.base64(), key.md5()].map(Some)
    }

    /// What a message says was asked.
    fn what(&self, verb: &str, key: &str) -> String {
        format!("{verb} s3://{}/{}", self.bucket, key.escape_debug())
    }
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

fn to_size(length: i64) -> Option<u64> {
    u64::try_from(length).ok().and_then(believable)
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
}
