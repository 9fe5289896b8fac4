//! Azure over sockets, as far as Azurite does not go: the answers of the real service
//! that it lacks, folders that are blobs, and answers that cannot be believed.

mod common;

use std::sync::Arc;

use common::azurite::Azurite;
use common::stub::{Reply, Request, Stub};
use futures::StreamExt;
use futures::stream::iter;
use warmfs::config::{CallerEnv, RemoteOptions};
use warmfs::remote::azure::AzureRemote;
use warmfs::remote::client::RemoteClient;
use warmfs::remote::{
    ErrorKind, Key, ListPage, ListRequest, ObjectMeta, Remote, RemoteError, Version,
};

const EMPTY: &str = "<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";

/// A container at the stub, whose first LIST, to connect, is answered here.
async fn connect(
    answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
) -> (Stub, AzureRemote) {
    let store = Stub::start(move |request| match request.target().contains("maxresults=1&") {
        true => Reply::new(200, &[], EMPTY),
        false => answer(request),
    })
    .await;
    let options = RemoteOptions {
        endpoint_url: Some(format!("{}/account", store.url())),
        no_sign_request: true,
        ..RemoteOptions::default()
    };
    let env = CallerEnv::default();
    let metrics = Arc::default();
    let remote = AzureRemote::connect("account", "container", &options, &env, &metrics).await;
    (store, remote.unwrap())
}

/// A container at Azurite.
async fn azurite() -> (Azurite, Arc<dyn Remote>) {
    let azurite = Azurite::start().await;
    azurite.create_container("container", false).await;
    let uri = "az://devstoreaccount1/container".parse().unwrap();
    let (options, env) = (azurite.options(), azurite.env());
    let remote = warmfs::remote::connect(&uri, &options, &env, &Arc::default()).await.unwrap();
    (azurite, remote)
}

fn refused(status: u16, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>Said so.\nTime:now</Message></Error>");
    Reply::new(status, &[("x-ms-error-code", code)], body)
}

fn blob(name: &str, size: u64, metadata: &str) -> String {
    format!(
        "<Blob><Name{}>{name}</Name><Properties><Etag>0x8D</Etag><Content-Length>{size}\
         </Content-Length></Properties><Metadata>{metadata}</Metadata></Blob>",
        if name.contains('%') { " Encoded=\"true\"" } else { "" },
    )
}

fn page(entries: &str, next: &str) -> Reply {
    let body = format!(
        "<EnumerationResults><Blobs>{entries}</Blobs><NextMarker>{next}</NextMarker>\
         </EnumerationResults>"
    );
    Reply::new(200, &[], body)
}

fn object(key: &str, size: u64) -> ObjectMeta {
    let (key, version) = (Key(key.into()), Version("0x8D".into()));
    ObjectMeta { key, size, version, mtime: std::time::SystemTime::UNIX_EPOCH }
}

async fn read(remote: &AzureRemote, key: &str) -> Result<Vec<u8>, RemoteError> {
    let mut body = remote.get_range(&object(key, 10), 3..6).await?.body;
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

fn keys(page: &ListPage) -> Vec<&str> {
    page.objects.iter().map(|object| object.key.0.as_str()).collect()
}

#[tokio::test]
async fn a_get_names_its_version_and_its_range() {
    let (store, remote) = connect(|request| match request.header("if-match") {
        Some("\"0x8D\"") => {
            let headers = [("content-range", "bytes 3-5/10"), ("etag", "\"0x8D\"")];
            Reply::new(206, &headers, "def")
        }
        _ => refused(412, "ConditionNotMet"),
    })
    .await;
    assert_eq!(read(&remote, "a b/\u{fffe}%?").await.unwrap(), b"def");
    let request = store.requests().pop().unwrap();
    assert_eq!(request.target(), "/account/container/a%20b/%EF%BF%BE%25%3F");
    assert_eq!(request.header("range"), Some("bytes=3-5"));
    assert_eq!(request.header("x-ms-version"), Some("2021-02-12"));
    let other = ObjectMeta { version: Version("0x8E".into()), ..object("a", 10) };
    assert_eq!(remote.get_range(&other, 3..6).await.unwrap_err().kind, ErrorKind::Changed);
}

#[tokio::test]
async fn a_blob_that_cannot_be_read_says_why() {
    for (status, code, kind, words) in [
        (404, "BlobNotFound", ErrorKind::NotFound, "404 BlobNotFound: Said so"),
        (409, "BlobArchived", ErrorKind::Denied, "it is archived; rehydrate it first"),
        (409, "BlobBeingRehydrated", ErrorKind::Denied, "wait until it is rehydrated"),
        (409, "BlobUsesCustomerSpecifiedEncryption", ErrorKind::Denied, "give --customer-key"),
        (409, "BlobDoesNotUseCustomerSpecifiedEncryption", ErrorKind::Denied, "mount it without"),
        (409, "BlobCustomerSpecifiedEncryptionMismatch", ErrorKind::Denied, "another key"),
        (403, "AuthorizationPermissionMismatch", ErrorKind::Denied, "Storage Blob Data Reader"),
        (403, "AuthorizationFailure", ErrorKind::Denied, "network rules"),
        (503, "ServerBusy", ErrorKind::Throttled { retry_after: None }, "ServerBusy"),
        (500, "OperationTimedOut", ErrorKind::Transient, "OperationTimedOut"),
    ] {
        let (_store, remote) = connect(move |_| refused(status, code)).await;
        let error = read(&remote, "key").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.starts_with("GET az://account/container/key: "), "{error}");
        assert!(error.message.contains(words) && !error.message.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn answers_that_cannot_be_believed_are_refused() {
    for reply in [
        || Reply::new(206, &[("content-range", "bytes 3-5/10")], "def"),
        || Reply::new(206, &[("content-range", "bytes 4-6/10"), ("etag", "e")], "efg"),
        || Reply::new(307, &[("location", "http://other.invalid/"), ("etag", "e")], ""),
        || Reply::new(200, &[("etag", "e"), ("content-length", "x")], ""),
    ] {
        let (_store, remote) = connect(move |_| reply()).await;
        let error = read(&remote, "key").await.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::Transient), "{error}");
    }
    let (_store, remote) =
        connect(|_| Reply::endless("HTTP/1.1 200 OK\r\n\r\n", &[b'<'; 1 << 16])).await;
    let error = remote.list(&ListRequest::default()).await.unwrap_err();
    assert!(error.message.contains("larger than any listing"), "{error}");
    let (_store, remote) = connect(|_| Reply::new(200, &[], "<html>login</html>")).await;
    let error = remote.list(&ListRequest::default()).await.unwrap_err();
    assert!(error.message.contains("check the account's name or --endpoint-url"), "{error}");
}

#[tokio::test]
async fn listings_ask_for_blobs_alone_and_go_on_at_the_marker() {
    let (store, remote) = connect(|request| match request.parameter("marker").as_deref() {
        // A part of the store without one of them.
        None => page("", "m&amp;1"),
        Some("m&1") => page(&blob("p/a%0A%EF%BF%BE", 1, ""), "m2"),
        _ => page(&blob("p/b", 2, ""), ""),
    })
    .await;
    let mut request = ListRequest { prefix: "p/".into(), recursive: true, ..Default::default() };
    let mut found = Vec::new();
    loop {
        let page = remote.list(&request).await.unwrap();
        found.extend(keys(&page).into_iter().map(str::to_owned));
        request.continuation = page.next;
        if request.continuation.is_none() {
            break;
        }
    }
    assert_eq!(found, ["p/a\n\u{fffe}", "p/b"]);
    let asked = &store.requests()[1];
    assert_eq!(asked.parameter("include").as_deref(), Some("metadata"));
    assert_eq!(asked.parameter("maxresults").as_deref(), Some("2000"));
    assert_eq!(
        (asked.parameter("prefix").as_deref(), asked.parameter("delimiter")),
        (Some("p/"), None)
    );
    let many = ListRequest { max_keys: Some(u16::MAX), ..Default::default() };
    remote.list(&many).await.unwrap();
    let asked = store.requests().pop().unwrap();
    assert_eq!(asked.parameter("maxresults").as_deref(), Some("5000"));
    assert_eq!(asked.parameter("delimiter").as_deref(), Some("/"));
}

#[tokio::test]
async fn a_page_without_a_blob_is_not_the_end() {
    let (_store, remote) = connect(|request| match request.parameter("marker").as_deref() {
        None => page("", "m1"),
        Some("m1") => page("", "m2"),
        _ => page(&blob("p/a", 1, ""), "m3"),
    })
    .await;
    let client = RemoteClient::new(Arc::new(remote), Arc::default());
    let found = client.list(&ListRequest { prefix: "p/".into(), ..Default::default() }).await;
    let found = found.unwrap();
    assert_eq!((keys(&found), found.next.as_deref()), (vec!["p/a"], Some("m3")));

    let (_store, remote) = connect(|request| {
        let count = request.parameter("marker").map_or(0, |marker| marker.parse::<u64>().unwrap());
        page("", &(count + 1).to_string())
    })
    .await;
    let client = RemoteClient::new(Arc::new(remote), Arc::default());
    let error = client.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert!(error.message.contains("has no end"), "{error}");
}

#[tokio::test]
async fn blobs_that_stand_for_folders_are_folders() {
    let (azurite, remote) = azurite().await;
    for key in ["a", "a/b", "empty"] {
        azurite.put_folder("container", key).await;
    }
    azurite.put("container", "a/b/file", b"bytes".to_vec()).await;
    azurite.put("container", "nothing", Vec::new()).await;
    let flat = remote.list(&ListRequest::default()).await.unwrap();
    assert_eq!(
        (keys(&flat), flat.prefixes.clone()),
        (vec!["nothing"], vec!["a/".to_owned(), "empty/".into()])
    );
    let all = ListRequest { recursive: true, ..Default::default() };
    assert_eq!(
        keys(&remote.list(&all).await.unwrap()),
        ["a/", "a/b/", "a/b/file", "empty/", "nothing"]
    );
    for (key, found) in
        [("a", "a/"), ("a/b", "a/b/"), ("a/b/file", "a/b/file"), ("nothing", "nothing")]
    {
        assert_eq!(remote.head(&Key(key.into())).await.unwrap().key.0, found);
    }
}

#[tokio::test]
async fn page_and_append_blobs_are_read_like_others() {
    let (azurite, remote) = azurite().await;
    azurite.put_pages("container", "disk", &[7; 1024]).await;
    azurite.append("container", "log", &["one\n", "two\n"]).await;
    let listed = remote.list(&ListRequest::default()).await.unwrap();
    assert_eq!(keys(&listed), ["disk", "log"]);
    for (object, range, expected) in
        [(&listed.objects[0], 1000..1024, &[7; 24][..]), (&listed.objects[1], 2..6, b"e\ntw")]
    {
        assert_eq!(object.size, if object.key.0 == "log" { 8 } else { 1024 });
        let body = remote.get_range(object, range).await.unwrap().body;
        let pieces: Vec<_> = body.map(Result::unwrap).collect().await;
        assert_eq!(pieces.concat(), expected);
    }
}

#[tokio::test]
async fn more_than_a_page_is_listed_to_its_end() {
    let (azurite, remote) = azurite().await;
    let names: Vec<String> = (0..5_200).map(|n| format!("many/{n:05}")).collect();
    let put = iter(&names).map(|name| azurite.put("container", name, Vec::new()));
    put.buffer_unordered(32).collect::<()>().await;
    for (max_keys, pages) in [(None, 3), (Some(5_000), 2), (Some(u16::MAX), 2)] {
        let mut request = ListRequest { prefix: "many/".into(), max_keys, ..Default::default() };
        let (mut found, mut count) = (Vec::new(), 0);
        loop {
            let page = remote.list(&request).await.unwrap();
            found.extend(page.objects.into_iter().map(|object| object.key.0));
            count += 1;
            request.continuation = page.next;
            if request.continuation.is_none() {
                break;
            }
        }
        assert!(found == names, "{max_keys:?}");
        assert_eq!(count, pages, "{max_keys:?}");
    }
}
