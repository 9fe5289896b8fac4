//! What a request asks for: names, query, range, conditions, signer.

use std::borrow::Cow;
use std::ops::Range;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, Uri};
use percent_encoding::percent_decode_str;

use super::Op;

/// Bucket, key and query of a request, decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// Empty if none was named.
    pub(super) bucket: String,
    /// Empty for the bucket itself.
    pub(super) key: String,
    query: Vec<(String, String)>,
}

/// A name in the request is not UTF-8.
#[derive(Debug)]
pub(super) struct NotUtf8;

impl Target {
    pub(super) fn parse(uri: &Uri, headers: &HeaderMap) -> Result<Self, NotUtf8> {
        let decode = |text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) => Ok(Cow::into_owned(text)),
            Err(_) => Err(NotUtf8),
        };
        let path = uri.path().strip_prefix('/').unwrap_or_default();
        let (bucket, key) = match virtual_host_bucket(uri, headers) {
            Some(bucket) => (bucket, path),
            None => {
                let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
                (decode(bucket)?, key)
            }
        };
        let mut query = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.push((decode(name)?, decode(&value.replace('+', " "))?));
        }
        Ok(Target { bucket, key: decode(key)?, query })
    }

    pub(super) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn op(&self, method: &Method) -> Op {
        match (method, self.bucket.is_empty(), self.key.is_empty()) {
            (_, true, _) => Op::Other,
            (&Method::GET, _, true) if self.param("list-type") == Some("2") => Op::List,
            (&Method::HEAD, _, true) => Op::HeadBucket,
            (&Method::PUT, _, true) => Op::CreateBucket,
            (_, _, true) => Op::Other,
            (&Method::GET, ..) => Op::Get,
            (&Method::HEAD, ..) => Op::Head,
            (&Method::PUT, ..) if self.param("uploadId").is_none() => Op::Put,
            (&Method::DELETE, ..) if self.param("uploadId").is_none() => Op::Delete,
            _ => Op::Other,
        }
    }
}

/// The bucket in `bucket.localhost`, which resolvers send to loopback.
fn virtual_host_bucket(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let host = uri.host().or_else(|| headers.get(header::HOST)?.to_str().ok())?;
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix(".localhost").map(str::to_owned)
}

/// Who signed a request, as far as it says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signer {
    pub(super) access_key_id: String,
    pub(super) region: String,
}

/// The signer that the `Authorization` header or a presigned URL names; `None`
/// if the request is anonymous.
pub(super) fn signer(target: &Target, headers: &HeaderMap) -> Option<Signer> {
    let credential = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let (_, rest) = value.to_str().ok()?.split_once("Credential=")?;
            rest.split([',', ' ']).next()?
        }
        None => target.param("X-Amz-Credential")?,
    };
    // key id / date / region / service / aws4_request
    let mut parts = credential.split('/');
    let access_key_id = parts.next()?.to_owned();
    let region = parts.nth(1)?.to_owned();
    Some(Signer { access_key_id, region })
}

/// What a `Range` header asks of an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it: there is no range, or none that S3 would understand.
    All,
    /// These bytes.
    Part(Range<u64>),
    /// Nothing that the object has.
    Unsatisfiable,
}

/// The bytes that `headers` ask of an object of `size` bytes.
pub(super) fn selection(headers: &HeaderMap, size: u64) -> Selection {
    let spec = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = spec.and_then(|s| s.strip_prefix("bytes=")?.split_once('-')) else {
        return Selection::All;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        _ => return Selection::All,
    };
    if range.is_empty() { Selection::Unsatisfiable } else { Selection::Part(range) }
}

/// Whether the etag list in the header `name` holds `etag`, quoted or not, or
/// is `*`; `None` without such a header.
pub(super) fn etag_matches(headers: &HeaderMap, name: HeaderName, etag: &str) -> Option<bool> {
    let list = headers.get(name)?.to_str().unwrap_or_default();
    Some(list.split(',').map(str::trim).any(|candidate| {
        let candidate = candidate.strip_prefix("W/").unwrap_or(candidate);
        candidate == "*" || candidate.trim_matches('"') == etag
    }))
}

/// The payload of an `aws-chunked` body: chunks of `hex size[;signature]`,
/// CRLF, data, CRLF, up to one of size 0 (trailers follow). `None` if it is
/// malformed.
pub(super) fn decode_aws_chunked(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut payload = Vec::with_capacity(body.len());
    loop {
        let line_end = body.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(&body[..line_end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?, 16).ok()?;
        if size == 0 {
            return Some(payload);
        }
        let data = body.get(line_end + 2..)?.get(..size)?;
        payload.extend_from_slice(data);
        body = body[line_end + 2 + size..].strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(spec: &str, size: u64) -> Selection {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, spec.parse().unwrap());
        selection(&headers, size)
    }

    #[test]
    fn ranges() {
        assert_eq!(selection(&HeaderMap::new(), 10), Selection::All);
        for (spec, size, expected) in [
            ("bytes=0-0", 10, 0..1),
            ("bytes=2-5", 10, 2..6),
            ("bytes=2-", 10, 2..10),
            ("bytes=2-99", 10, 2..10),
            ("bytes=0-18446744073709551615", 10, 0..10),
            ("bytes=-3", 10, 7..10),
            ("bytes=-30", 10, 0..10),
        ] {
            assert_eq!(range(spec, size), Selection::Part(expected), "{spec}");
        }
        for (spec, size) in [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10)] {
            assert_eq!(range(spec, size), Selection::Unsatisfiable, "{spec}");
        }
        assert_eq!(range("bytes=0-", 0), Selection::Unsatisfiable);
        for spec in ["bytes=5-2", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "lines=1-2"] {
            assert_eq!(range(spec, 10), Selection::All, "{spec}");
        }
    }

    #[test]
    fn names() {
        let parse = |uri: &str, host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            Target::parse(&uri.parse().unwrap(), &headers).unwrap()
        };
        let target = parse("/b//a+b%2Fc%25?list-type=2&prefix=x+y%2B&flag", "127.0.0.1:80");
        assert_eq!((&*target.bucket, &*target.key), ("b", "/a+b/c%"));
        assert_eq!(target.param("prefix"), Some("x y+"));
        assert_eq!(target.param("flag"), Some(""));
        let target = parse("/a/b", "my.bucket.localhost:80");
        assert_eq!((&*target.bucket, &*target.key), ("my.bucket", "a/b"));
        let target = parse("/b", "localhost:80");
        assert_eq!((&*target.bucket, &*target.key), ("b", ""));
    }

    #[test]
    fn signers() {
        let mut headers = HeaderMap::new();
        assert_eq!(signer(&Target::default(), &headers), None);
        let value = "AWS4-HMAC-SHA256 Credential=AK/20200101/eu-west-1/s3/aws4_request, \
                     SignedHeaders=host, Signature=00";
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        let expected = Signer { access_key_id: "AK".into(), region: "eu-west-1".into() };
        assert_eq!(signer(&Target::default(), &headers), Some(expected));
    }

    #[test]
    fn chunked_bodies() {
        let body = b"3;chunk-signature=0\r\nabc\r\n2\r\n\r\n\r\n0\r\nx-amz-checksum: 1\r\n\r\n";
        assert_eq!(decode_aws_chunked(body).as_deref(), Some(&b"abc\r\n"[..]));
        for wrong in [&b""[..], b"3\r\nab", b"zz\r\n", b"1\r\nabc\r\n", b"ffffffffffffffff\r\na"] {
            assert_eq!(decode_aws_chunked(wrong), None);
        }
    }
}
