//! A page of a listing (`List Blobs`), out of its XML.
//!
//! Some blobs stand for folders: zero bytes under the folder's name, with metadata
//! `hdi_isfolder`. Accounts with a hierarchical namespace show their directories so,
//! and tools make them elsewhere. They become what other stores have for it: a common
//! prefix or, where everything below is listed, the empty object `folder/`.

use std::time::SystemTime;

use super::xml::{Element, walk};
use crate::remote::answer::{believable, lacks};
use crate::remote::{ErrorKind, Key, ListPage, ObjectMeta, RemoteError, Version};

/// The metadata of a blob that stands for a folder.
pub(super) const FOLDER_MARK: &str = "hdi_isfolder";

/// Reads a page. `what` names the request in messages, `endpoint` what to check if
/// that is no listing at all.
///
/// # Errors
/// [`ErrorKind::Invalid`] for what is no listing, and for a blob without name, size
/// or etag.
pub(super) fn page(
    body: &[u8],
    is_recursive: bool,
    what: &str,
    endpoint: &str,
) -> Result<ListPage, RemoteError> {
    let mut listing = Listing { is_recursive, ..Listing::default() };
    let read = walk(body, |element| listing.take(&element));
    if read.is_none() || !listing.is_one {
        let message = format!("{what}: the answer is no listing of Azure's; check {endpoint}");
        return Err(RemoteError::new(ErrorKind::Invalid, message));
    }
    if let Some(part) = listing.lack {
        return Err(lacks(what, part));
    }
    // What stands for a folder comes where its name is, not where its keys are.
    listing.page.prefixes.sort_unstable();
    listing.page.prefixes.dedup();
    Ok(listing.page)
}

#[derive(Default)]
struct Listing {
    is_recursive: bool,
    page: ListPage,
    entry: Entry,
    is_one: bool,
    lack: Option<&'static str>,
}

/// The blob, or the prefix, that is being read.
#[derive(Default)]
struct Entry {
    name: Option<String>,
    size: Option<u64>,
    etag: Option<String>,
    modified: Option<SystemTime>,
    is_folder: bool,
}

impl Listing {
    fn take(&mut self, element: &Element<'_>) {
        let Some(path) = element.path.strip_prefix("EnumerationResults") else { return };
        let text = element.text;
        match path {
            "" => self.is_one = true,
            "/NextMarker" => self.page.next = Some(text.to_owned()).filter(|n| !n.is_empty()),
            "/Blobs/Blob/Name" | "/Blobs/BlobPrefix/Name" => self.entry.name = Some(name(element)),
            "/Blobs/BlobPrefix" => match std::mem::take(&mut self.entry).name {
                Some(name) => self.page.prefixes.push(name),
                None => self.lack = Some("name of a prefix"),
            },
            "/Blobs/Blob" => {
                let entry = std::mem::take(&mut self.entry);
                if let Err(part) = self.blob(entry) {
                    self.lack = Some(part);
                }
            }
            _ => self.entry.detail(path, text),
        }
    }

    fn blob(&mut self, entry: Entry) -> Result<(), &'static str> {
        let mut name = entry.name.ok_or("name of a blob")?;
        let size = entry.size.and_then(believable).ok_or("believable size")?;
        if size == 0 && entry.is_folder {
            if !name.ends_with('/') {
                name.push('/');
            }
            if !self.is_recursive {
                self.page.prefixes.push(name);
                return Ok(());
            }
        }
        let etag = entry.etag.filter(|etag| !etag.is_empty());
        let etag = etag.ok_or("etag, so changes could not be told")?;
        self.page.objects.push(ObjectMeta {
            key: Key(name),
            size,
            version: Version::from_etag(&etag),
            mtime: entry.modified.unwrap_or(SystemTime::UNIX_EPOCH),
        });
        Ok(())
    }
}

impl Entry {
    fn detail(&mut self, path: &str, text: &str) {
        match path {
            "/Blobs/Blob/Properties/Content-Length" => self.size = text.parse().ok(),
            "/Blobs/Blob/Properties/Etag" => self.etag = Some(text.to_owned()),
            "/Blobs/Blob/Properties/Last-Modified" => {
                self.modified = httpdate::parse_http_date(text).ok();
            }
            "/Blobs/Blob/Properties/ResourceType" => self.is_folder |= text == "directory",
            _ => {
                let key = path.strip_prefix("/Blobs/Blob/Metadata/");
                let is_mark = key.is_some_and(|key| key.eq_ignore_ascii_case(FOLDER_MARK));
                self.is_folder |= is_mark && text.eq_ignore_ascii_case("true");
            }
        }
    }
}

/// A name; one with characters that XML cannot hold comes percent-encoded.
fn name(element: &Element<'_>) -> String {
    let text = element.text;
    match element.is_encoded {
        true => percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
