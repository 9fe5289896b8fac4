//! What a folder does differently from a bucket. What they share is in
//! `tests/remote_contract.rs`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::*;

async fn folder() -> (tempfile::TempDir, LocalRemote) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("a/b/c/deep.bin"), b"deep").unwrap();
    fs::write(root.join("a.txt"), b"text").unwrap();
    fs::write(root.join("z"), vec![9; 3 << 20]).unwrap();
    let remote = LocalRemote::open(root).await.unwrap();
    (dir, remote)
}

async fn list(remote: &LocalRemote, prefix: &str, recursive: bool) -> (Vec<String>, Vec<String>) {
    let request = ListRequest { prefix: prefix.into(), recursive, ..Default::default() };
    let page = remote.list(&request).await.unwrap();
    assert_eq!(page.next, None);
    (page.objects.into_iter().map(|object| object.key.0).collect(), page.prefixes)
}

async fn head(remote: &LocalRemote, key: &str) -> Result<ObjectMeta, ErrorKind> {
    remote.head(&Key(key.into())).await.map_err(|error| error.kind)
}

#[tokio::test]
async fn lists_empty_folders_links_to_files_and_nothing_that_is_no_file() {
    let (dir, remote) = folder().await;
    let root = dir.path();
    symlink("../../../a.txt", root.join("a/b/c/link")).unwrap();
    symlink("..", root.join("a/cycle")).unwrap();
    symlink("/", root.join("outside")).unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let files = |keys: &[&str]| keys.iter().map(|key| key.to_string()).collect::<Vec<_>>();
    assert_eq!(list(&remote, "", false).await, (files(&["a.txt", "z"]), files(&["a/", "empty/"])));
    let all = files(&["a.txt", "a/b/c/deep.bin", "a/b/c/link", "z"]);
    assert_eq!(list(&remote, "", true).await, (all, vec![]));
    assert_eq!(list(&remote, "a/cycle/", true).await, (vec![], vec![]));
    assert_eq!(list(&remote, "a/b/../", false).await, (vec![], vec![]));
    assert_eq!(list(&remote, "a//b/", false).await, (vec![], vec![]));
    assert_eq!(head(&remote, "a/b/c/link").await.unwrap().size, 4);
    for key in ["pipe", "dangling", "empty", "outside", "a/cycle/a.txt"] {
        assert_eq!(head(&remote, key).await, Err(ErrorKind::NotFound), "{key}");
    }
}

#[tokio::test]
async fn names_that_are_not_utf8_are_listed_as_what_no_path_can_name() {
    let (dir, remote) = folder().await;
    let odd = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    fs::write(odd(b"bad\xff"), b"four").unwrap();
    fs::create_dir(odd(b"odd\xe9")).unwrap();
    fs::write(odd(b"odd\xe9/below"), b"").unwrap();
    let keys = |keys: &[&str]| keys.iter().map(|key| key.to_string()).collect::<Vec<_>>();
    let listed = list(&remote, "", false).await;
    assert_eq!(listed.0, keys(&["a.txt", "bad\u{fffd}\0", "z"]));
    assert_eq!(listed.1, keys(&["a/", "empty/", "odd\u{fffd}\0/"]));
    let (all, _) = list(&remote, "", true).await;
    assert_eq!(all, keys(&["a.txt", "a/b/c/deep.bin", "bad\u{fffd}\0", "z"]));
    for key in ["bad\u{fffd}\0", "bad\u{fffd}", "odd\u{fffd}\0/below"] {
        assert_eq!(head(&remote, key).await, Err(ErrorKind::NotFound), "{key:?}");
    }
}

#[tokio::test]
async fn no_key_leads_out_of_the_folder() {
    let (dir, remote) = folder().await;
    let inner = LocalRemote::open(&dir.path().join("a")).await.unwrap();
    let keys =
        ["../a.txt", "b/../../a.txt", "/etc/passwd", "", "b//c/deep.bin", "./b/c/deep.bin", "b/c/"];
    for key in keys {
        assert_eq!(head(&inner, key).await, Err(ErrorKind::NotFound), "{key:?}");
    }
    assert_eq!(head(&remote, "a\0").await, Err(ErrorKind::NotFound));
    assert!(head(&inner, "b/c/deep.bin").await.is_ok());
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_breaks_off() {
    let (dir, remote) = folder().await;
    let object = head(&remote, "z").await.unwrap();
    let mut range = remote.get_range(&object, 0..object.size).await.unwrap();
    assert_eq!((&range.version, range.total_size), (&object.version, object.size));
    assert_eq!(range.body.next().await.unwrap().unwrap(), vec![9; 1 << 20]);
    fs::write(dir.path().join("z"), vec![8; 5]).unwrap();
    assert_eq!(range.body.next().await.unwrap().unwrap_err().kind, ErrorKind::Changed);
    assert_ne!(head(&remote, "z").await.unwrap().version, object.version);
}

#[tokio::test]
async fn a_file_replaced_under_its_name_is_read_to_the_end_as_it_was() {
    let (dir, remote) = folder().await;
    let object = head(&remote, "z").await.unwrap();
    let range = remote.get_range(&object, 0..object.size).await.unwrap();
    fs::write(dir.path().join("new"), b"other").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("z")).unwrap();
    let pieces: Vec<_> = range.body.collect().await;
    assert_eq!(pieces.len(), 3);
    assert!(pieces.iter().all(|piece| piece.as_ref().unwrap().iter().all(|&byte| byte == 9)));
}

#[tokio::test]
async fn refuses_what_is_no_folder_with_a_next_step() {
    let (dir, _) = folder().await;
    for (path, words) in [("nowhere", "check the path"), ("z", "name the folder")] {
        let error = LocalRemote::open(&dir.path().join(path)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSuchBucket);
        assert!(error.message.contains(words) && !error.message.contains('\n'), "{error}");
    }
}
