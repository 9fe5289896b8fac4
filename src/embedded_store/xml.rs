//! Answers in S3's XML.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::objects::{Listing, Object};

const HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

/// What `encoding-type=url` leaves as it is; a space becomes `+` besides.
const URL_ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'*').remove(b' ');

/// What a listing answers besides its entries.
#[derive(Debug)]
pub(super) struct ListHeader<'a> {
    pub(super) bucket: &'a str,
    pub(super) prefix: &'a str,
    pub(super) delimiter: &'a str,
    pub(super) start_after: Option<&'a str>,
    pub(super) continuation: Option<&'a str>,
    pub(super) next_continuation: Option<String>,
    pub(super) max_keys: usize,
    /// Whether names are URL-encoded, as `encoding-type=url` asks.
    pub(super) url_encoded: bool,
}

/// A `ListBucketResult`.
pub(super) fn listing(header: &ListHeader<'_>, listing: &Listing) -> String {
    let mut xml = String::with_capacity(512 + 256 * listing.objects.len());
    xml.push_str(HEAD);
    xml.push_str("<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    element(&mut xml, "Name", header.bucket);
    name_element(&mut xml, "Prefix", header.prefix, header.url_encoded);
    if !header.delimiter.is_empty() {
        name_element(&mut xml, "Delimiter", header.delimiter, header.url_encoded);
    }
    if header.url_encoded {
        element(&mut xml, "EncodingType", "url");
    }
    if let Some(start_after) = header.start_after {
        name_element(&mut xml, "StartAfter", start_after, header.url_encoded);
    }
    if let Some(continuation) = header.continuation {
        element(&mut xml, "ContinuationToken", continuation);
    }
    if let Some(next) = &header.next_continuation {
        element(&mut xml, "NextContinuationToken", next);
    }
    element(&mut xml, "MaxKeys", &header.max_keys.to_string());
    element(&mut xml, "KeyCount", &(listing.objects.len() + listing.prefixes.len()).to_string());
    let truncated = if header.next_continuation.is_some() { "true" } else { "false" };
    element(&mut xml, "IsTruncated", truncated);
    for (key, object) in &listing.objects {
        contents(&mut xml, key, object, header.url_encoded);
    }
    for prefix in &listing.prefixes {
        xml.push_str("<CommonPrefixes>");
        name_element(&mut xml, "Prefix", prefix, header.url_encoded);
        xml.push_str("</CommonPrefixes>");
    }
    xml.push_str("</ListBucketResult>");
    xml
}

fn contents(xml: &mut String, key: &str, object: &Arc<Object>, url_encoded: bool) {
    xml.push_str("<Contents>");
    name_element(xml, "Key", key, url_encoded);
    element(xml, "LastModified", &timestamp(object.modified));
    element(xml, "ETag", &format!("\"{}\"", object.etag));
    element(xml, "Size", &object.body.len().to_string());
    xml.push_str("<StorageClass>STANDARD</StorageClass></Contents>");
}

/// An `Error`.
pub(super) fn error(code: &str, message: &str, resource: &str, region: Option<&str>) -> String {
    let mut xml = String::from(HEAD);
    xml.push_str("<Error>");
    element(&mut xml, "Code", code);
    element(&mut xml, "Message", message);
    if let Some(region) = region {
        element(&mut xml, "Region", region);
    }
    element(&mut xml, "Resource", resource);
    element(&mut xml, "RequestId", "0");
    xml.push_str("</Error>");
    xml
}

fn element(xml: &mut String, name: &str, text: &str) {
    let _ = write!(xml, "<{name}>");
    escape(xml, text);
    let _ = write!(xml, "</{name}>");
}

fn name_element(xml: &mut String, name: &str, text: &str, url_encoded: bool) {
    if url_encoded {
        let encoded = utf8_percent_encode(text, URL_ENCODED).to_string();
        element(xml, name, &encoded.replace(' ', "+"));
    } else {
        element(xml, name, text);
    }
}

/// Control characters become references, as S3 does it, although XML 1.0 has
/// no such characters: a client that lists without `encoding-type` meets them.
fn escape(xml: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => xml.push_str("&lt;"),
            '>' => xml.push_str("&gt;"),
            '&' => xml.push_str("&amp;"),
            '"' => xml.push_str("&quot;"),
            '\0'..='\x1f' | '\x7f' => {
                let _ = write!(xml, "&#x{:X};", u32::from(c));
            }
            c => xml.push(c),
        }
    }
}

/// Whole seconds, so that a listing agrees with `Last-Modified` to the letter.
fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seconds = i64::try_from(seconds).unwrap_or(0);
    let text = DateTime::from_secs(seconds).fmt(Format::DateTime).unwrap_or_default();
    text.replace('Z', ".000Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_or_encoded() {
        let mut xml = String::new();
        name_element(&mut xml, "Key", "a b+<&\r\u{1}é/", false);
        name_element(&mut xml, "Key", "a b+<&\r\u{1}é/", true);
        assert_eq!(xml, "<Key>a b+&lt;&amp;&#xD;&#x1;é/</Key><Key>a+b%2B%3C%26%0D%01%C3%A9/</Key>");
    }

    #[test]
    fn timestamps() {
        assert_eq!(timestamp(SystemTime::UNIX_EPOCH), "1970-01-01T00:00:00.000Z");
    }
}
