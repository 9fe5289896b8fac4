//! Which version an object is, and when it was written.
//!
//! A listing, a HEAD and a GET must name the same version for the same bytes, or
//! changes would be seen where there are none. Of a cloud object it is the cloud's
//! ETag, which the cluster keeps beside its copy: in listings as
//! `[ETag:… LastModified:…]`, in headers as `Ais-Custom-Md: ETag=…`, and perhaps as
//! `ETag`. An object of the cluster's own has a number, which begins again when it is
//! removed and put anew, and a checksum, which a bucket can be without: together they
//! are the version.

use std::time::SystemTime;

use http::HeaderMap;

use crate::remote::answer::{lacks, rfc3339};
use crate::remote::rest::{header, last_modified};
use crate::remote::{RemoteError, Version};

/// The version in the headers of an answer to HEAD or GET.
///
/// # Errors
/// [`crate::remote::ErrorKind::Invalid`] if they name none.
pub(super) fn of_answer(
    headers: &HeaderMap,
    is_of_a_cloud: bool,
    what: &str,
) -> Result<Version, RemoteError> {
    if is_of_a_cloud {
        let etag = custom(headers, "ETag").or_else(|| header(headers, "etag"));
        return of_cloud(etag, what);
    }
    let text = |name| header(headers, name).unwrap_or_default();
    of_own(text("ais-version"), text("ais-checksum-value"), what)
}

/// The version of a cloud object.
pub(super) fn of_cloud(etag: Option<&str>, what: &str) -> Result<Version, RemoteError> {
    let etag = etag.map(Version::from_etag).filter(|version| !version.0.is_empty());
    etag.ok_or_else(|| lacks(what, "etag, so changes could not be told"))
}

/// The version of one of the cluster's own objects.
pub(super) fn of_own(number: &str, checksum: &str, what: &str) -> Result<Version, RemoteError> {
    if number.is_empty() && checksum.is_empty() {
        let part = "version and no checksum, so changes could not be told; switch one of them on \
                    for the bucket";
        return Err(lacks(what, part));
    }
    Ok(Version(format!("{number}-{checksum}")))
}

/// When an object was written, or the epoch where no header tells.
pub(super) fn modified(headers: &HeaderMap) -> SystemTime {
    // What listings tell too comes first.
    let told = custom(headers, "LastModified").and_then(time);
    told.unwrap_or_else(|| last_modified(headers))
}

/// A value of the headers `Ais-Custom-Md`.
fn custom<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all("ais-custom-md").iter();
    pairs
        .filter_map(|pair| pair.to_str().ok()?.split_once('='))
        .find_map(|(found, value)| (found.trim() == name).then(|| value.trim()))
}

/// What a listing says of an object besides: `[ETag:… LastModified:…]`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Custom<'a> {
    /// The cloud's ETag.
    pub(super) etag: Option<&'a str>,
    /// When it was written.
    pub(super) modified: Option<&'a str>,
}

impl<'a> Custom<'a> {
    /// Reads what is known, and passes over the rest.
    pub(super) fn parse(text: &'a str) -> Custom<'a> {
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
        let mut custom = Custom::default();
        for (name, value) in pairs(inner) {
            match name {
                "ETag" => custom.etag = Some(value),
                "LastModified" => custom.modified = Some(value),
                _ => {}
            }
        }
        custom
    }

    /// When the object was written, or the epoch.
    pub(super) fn modified(&self) -> SystemTime {
        self.modified.and_then(time).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// `name:value` after `name:value`. A value may hold spaces, as dates do, and colons:
/// a name begins with a letter, behind a space.
fn pairs(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text.trim();
    std::iter::from_fn(move || {
        let (name, from_value) = rest.split_once(':')?;
        let spaces = from_value.match_indices(' ');
        let end = spaces.map(|(at, _)| at).find(|at| begins_pair(&from_value[at + 1..]));
        let (value, after) = from_value.split_at(end.unwrap_or(from_value.len()));
        rest = after.trim_start();
        Some((name.trim(), value.trim()))
    })
}

fn begins_pair(text: &str) -> bool {
    let word = text.split(' ').next().unwrap_or_default();
    word.split_once(':')
        .is_some_and(|(name, _)| name.starts_with(|c: char| c.is_ascii_alphabetic()))
}

/// A time as RFC 3339 or HTTP write it.
fn time(text: &str) -> Option<SystemTime> {
    rfc3339(text).or_else(|| httpdate::parse_http_date(text).ok())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::*;
    use crate::remote::ErrorKind;

    fn headers(of: &[(&'static str, &str)]) -> HeaderMap {
        of.iter()
            .map(|(name, value)| ((*name).parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn what_a_listing_says_besides_is_read() {
        let day = at(1_695_243_891);
        for (text, etag, modified) in [
            ("[ETag:67c2 LastModified:2023-09-20T21:04:51Z]", Some("67c2"), day),
            (
                "[LastModified:2023-09-20T23:04:51+02:00 source:aws ETag:\"67c2\"]",
                Some("\"67c2\""),
                day,
            ),
            ("[ETag:CJ+8/x=:7 LastModified:Wed, 20 Sep 2023 21:04:51 GMT]", Some("CJ+8/x=:7"), day),
            ("[LastModified:yesterday md5:0]", None, at(0)),
            ("[ETag:]", Some(""), at(0)),
            ("[]", None, at(0)),
            ("", None, at(0)),
            ("nonsense", None, at(0)),
        ] {
            let custom = Custom::parse(text);
            assert_eq!((custom.etag, custom.modified()), (etag, modified), "{text}");
        }
    }

    #[test]
    fn a_cloud_objects_version_is_its_etag_wherever_it_stands() {
        let listed = of_cloud(Custom::parse("[ETag:67c2]").etag, "LIST").unwrap();
        for answer in [
            headers(&[("ais-custom-md", "md5=1"), ("ais-custom-md", "ETag=67c2")]),
            headers(&[("etag", "\"67c2\"")]),
            headers(&[("etag", "\"other\""), ("ais-custom-md", "ETag=\"67c2\"")]),
        ] {
            assert_eq!(of_answer(&answer, true, "GET").unwrap(), listed);
        }
        for answer in [headers(&[("ais-version", "7")]), headers(&[("etag", "\"\"")])] {
            let error = of_answer(&answer, true, "GET ais://@aws/b/k").unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains("no etag"), "{error}");
        }
    }

    #[test]
    fn an_own_objects_version_is_its_number_and_its_checksum() {
        for (number, checksum) in [("3", "abc"), ("", "abc"), ("3", "")] {
            let answer = headers(&[
                ("ais-version", number),
                ("ais-checksum-value", checksum),
                ("etag", "\"not for this\""),
            ]);
            let listed = of_own(number, checksum, "LIST").unwrap();
            assert_eq!(of_answer(&answer, false, "HEAD").unwrap(), listed);
        }
        assert_ne!(of_own("1", "a", "").unwrap(), of_own("1", "b", "").unwrap());
        let error = of_answer(&headers(&[("etag", "\"x\"")]), false, "GET").unwrap_err();
        assert!(error.message.contains("switch one of them on"), "{error}");
    }

    #[test]
    fn the_time_that_listings_tell_comes_first() {
        let both = headers(&[
            ("ais-custom-md", "LastModified=1970-01-01T00:00:09Z"),
            ("last-modified", "Thu, 01 Jan 1970 00:01:00 GMT"),
        ]);
        assert_eq!(modified(&both), at(9));
        let one = headers(&[("last-modified", "Thu, 01 Jan 1970 00:01:00 GMT")]);
        assert_eq!(modified(&one), at(60));
        assert_eq!(modified(&HeaderMap::new()), at(0));
    }
}
