//! Pages as Azure writes them, and as it does not.

use std::time::Duration;

use super::*;
use crate::fuzz::{Effort, Target, fuzz_tests};
use crate::remote::OBJECT_BYTES_MAX;

const WHAT: &str = "LIST az://account/container/";

/// A flat page, as the service writes it: with a mark before it, and all on one line.
const FLAT: &str = concat!(
    "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>",
    "<EnumerationResults ServiceEndpoint=\"https://account.blob.core.windows.net/\" ",
    "ContainerName=\"container\"><Prefix>a&amp;b/</Prefix><MaxResults>3</MaxResults>",
    "<Delimiter>/</Delimiter><Blobs>",
    "<Blob><Name>a&amp;b/one &lt;1&gt;&#x27;</Name><Properties>",
    "<Creation-Time>Mon, 05 Feb 2024 10:00:00 GMT</Creation-Time>",
    "<Last-Modified>Thu, 01 Jan 1970 00:01:00 GMT</Last-Modified><Etag>0x8DC26A0</Etag>",
    "<Content-Length>17</Content-Length><Content-Type>text/plain</Content-Type>",
    "<Content-MD5>1B2M2Y8AsgTpgAmY7PhCfg==</Content-MD5><BlobType>BlockBlob</BlobType>",
    "<AccessTier>Hot</AccessTier></Properties><Metadata><name>0</name></Metadata></Blob>",
    "<BlobPrefix><Name>a&amp;b/folder/</Name></BlobPrefix>",
    "<Blob><Name Encoded=\"true\">a%26b/%EF%BF%BE%2F%25</Name><Properties>",
    "<Etag>\"0x8DC26A1\"</Etag><Content-Length>0</Content-Length></Properties><Metadata />",
    "</Blob></Blobs><NextMarker>2!72!MDAw</NextMarker></EnumerationResults>",
);

fn read(body: &str, is_recursive: bool) -> Result<ListPage, RemoteError> {
    page(body.as_bytes(), is_recursive, WHAT, "the account's name")
}

/// A page with one blob of zero bytes and these parts.
fn blob(name: &str, properties: &str, metadata: &str) -> String {
    format!(
        "<EnumerationResults><Blobs><Blob><Name>{name}</Name><Properties><Etag>e</Etag>\
         <Content-Length>0</Content-Length>{properties}</Properties>\
         <Metadata>{metadata}</Metadata></Blob></Blobs><NextMarker /></EnumerationResults>"
    )
}

fn keys(page: &ListPage) -> Vec<&str> {
    page.objects.iter().map(|object| object.key.0.as_str()).collect()
}

#[test]
fn a_page_is_read_as_it_is_written() {
    let page = read(FLAT, false).unwrap();
    assert_eq!(keys(&page), ["a&b/one <1>'", "a&b/\u{fffe}/%"]);
    assert_eq!(page.prefixes, ["a&b/folder/"]);
    assert_eq!(page.next.as_deref(), Some("2!72!MDAw"));
    let object = &page.objects[0];
    assert_eq!((object.size, object.version.0.as_str()), (17, "0x8DC26A0"));
    assert_eq!(object.mtime, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    assert_eq!(page.objects[1].version.0, "0x8DC26A1");
    let empty = read("<EnumerationResults><Blobs /><NextMarker/></EnumerationResults>", true);
    assert_eq!(empty.unwrap(), ListPage::default());
}

#[test]
fn names_keep_every_character() {
    for name in [" a ", "a\nb", "a&#xD;b", "<![CDATA[a<b]]>", "%41+", "é日"] {
        let page = read(&blob(name, "", ""), true).unwrap();
        let expected = match name {
            "a&#xD;b" => "a\rb",
            "<![CDATA[a<b]]>" => "a<b",
            name => name,
        };
        assert_eq!(keys(&page), [expected]);
    }
}

#[test]
fn what_stands_for_a_folder_is_no_file() {
    let mark = "<hdi_isfolder>true</hdi_isfolder>";
    for (properties, metadata) in [
        ("", mark),
        ("", "<Hdi_IsFolder>True</Hdi_IsFolder>"),
        ("<ResourceType>directory</ResourceType>", ""),
    ] {
        let page = blob("a/b", properties, metadata);
        let flat = read(&page, false).unwrap();
        assert_eq!((keys(&flat), flat.prefixes.as_slice()), (vec![], &["a/b/".to_owned()][..]));
        let recursive = read(&page, true).unwrap();
        assert_eq!((keys(&recursive), recursive.prefixes.len()), (vec!["a/b/"], 0));
    }
    for metadata in ["", "<hdi_isfolder>false</hdi_isfolder>", "<other>true</other>"] {
        assert_eq!(keys(&read(&blob("a/b", "", metadata), false).unwrap()), ["a/b"]);
    }
    // Beside the prefix of its own keys it says nothing new; what holds bytes is a file.
    let folder = "<BlobPrefix><Name>a/b/</Name></BlobPrefix></Blobs>";
    let both = blob("a/b", "", mark).replace("</Blobs>", folder);
    assert_eq!(read(&both, false).unwrap().prefixes, ["a/b/"]);
    let filled = blob("a/b", "", mark).replace(">0<", ">5<");
    assert_eq!(keys(&read(&filled, false).unwrap()), ["a/b"]);
    // A marker with a slash of its own is one already.
    assert_eq!(keys(&read(&blob("a/b/", "", mark), true).unwrap()), ["a/b/"]);
}

#[test]
fn what_is_no_listing_is_refused() {
    let bomb = "<!DOCTYPE x [<!ENTITY a \"b\">]><EnumerationResults>&a;</EnumerationResults>";
    let deep = "<EnumerationResults>".repeat(2_000);
    for body in [
        "",
        "{}",
        "<html><body>Hello</body></html>",
        "<EnumerationResults><Blobs>",
        "<EnumerationResults><Blobs></EnumerationResults>",
        "<EnumerationResults>&unknown;</EnumerationResults>",
        bomb,
        &deep,
        "<Error><Code>ServerBusy</Code></Error>",
    ] {
        let error = read(body, false).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message.contains("check the account's name"), "{error}");
    }
    assert!(page(b"\xff\xfe", false, WHAT, "x").is_err());
}

#[test]
fn a_blob_needs_a_name_a_size_and_an_etag() {
    let whole = blob("a", "", "");
    for (part, without, word) in [
        ("<Name>a</Name>", "", "name"),
        ("<Etag>e</Etag>", "<Etag/>", "etag"),
        ("<Content-Length>0<", "<Content-Length>-1<", "size"),
        ("<Content-Length>0<", "<Content-Length>18446744073709551615<", "size"),
    ] {
        let error = read(&whole.replace(part, without), false).unwrap_err();
        assert!(error.message.contains(word), "{error}");
    }
    let error =
        read("<EnumerationResults><Blobs><BlobPrefix/></Blobs></EnumerationResults>", false);
    assert!(error.unwrap_err().message.contains("name"));
}

fuzz_tests!(pages);

fn pages(effort: Effort) {
    let folder = blob("a/b", "", "<hdi_isfolder>true</hdi_isfolder>");
    let target = Target {
        name: "Azure listings",
        corpus: [FLAT, &folder].map(Vec::from).to_vec(),
        words: &[
            "<Blob>",
            "</Blob>",
            "<BlobPrefix>",
            "<Name>",
            "<Name Encoded=\"true\">",
            "</Name>",
            "<Etag>",
            "<Content-Length>",
            "<NextMarker>",
            "<Blobs/>",
            "<![CDATA[",
            "]]>",
            "<!--",
            "<!DOCTYPE",
            "<?",
            "&#x",
            "&amp;",
            "&",
            "%FF",
        ],
        inputs: 20_000,
        memory: (64 << 10, 32),
    };
    target.run(effort, |input| {
        let is_recursive = input.len() % 2 == 0;
        match page(input, is_recursive, WHAT, "x") {
            Ok(page) => {
                assert!(page.objects.iter().all(|object| object.size <= OBJECT_BYTES_MAX));
                assert!(page.objects.iter().all(|object| !object.version.0.is_empty()));
                assert!(page.prefixes.is_sorted_by(|a, b| a < b));
                true
            }
            Err(error) => {
                assert!(!error.message.contains(char::is_control), "{:?}", error.message);
                false
            }
        }
    });
}
