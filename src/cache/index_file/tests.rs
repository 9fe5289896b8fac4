//! Index files from one cache to another, and files that are no good.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::Handle;

use super::*;
use crate::cache::attach::AttachError;
use crate::cache::metadata::{NodeKind, Tree};
use crate::cache::{Cache, NodeId, Progress};
use crate::config::CacheOptions;
use crate::remote::client::RemoteClient;
use crate::remote::scripted::{RequestKind, ScriptedRemote};
use std::sync::Arc;

const TTL: Duration = Duration::from_secs(3600);

/// A buffer that outlives who writes to it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open(dir: &Path) -> Arc<Cache> {
    let dir = dir.to_owned();
    let options = CacheOptions { dir, size: Some(1 << 30), memory: None, metadata: None };
    Cache::open(&options, Handle::current()).unwrap()
}

fn client(remote: &ScriptedRemote) -> Arc<RemoteClient> {
    Arc::new(RemoteClient::new(Arc::new(remote.clone()), Arc::default()))
}

async fn export(tree: &Arc<Tree>, folder: NodeId) -> Vec<u8> {
    let out = Shared::default();
    let exported = tree.export(folder, out.clone(), &Arc::new(Progress::default())).await.unwrap();
    assert!(exported.is_some());
    std::mem::take(&mut *out.0.lock().unwrap())
}

async fn exported(remote: &ScriptedRemote, prefix: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let tree = cache.attach(client(remote), prefix, TTL).await.unwrap();
    let file = export(&tree, tree.root()).await;
    cache.close();
    file
}

async fn imported(
    cache: &Arc<Cache>,
    remote: &ScriptedRemote,
    prefix: &str,
    file: &[u8],
) -> Result<Arc<Tree>, AttachError> {
    cache.attach_with_index(client(remote), prefix, TTL, io::Cursor::new(file.to_vec())).await
}

/// Every path with what it is, and the hidden keys of every folder.
fn all(tree: &Tree) -> Vec<String> {
    let mut all = Vec::new();
    let mut pending = vec![(String::new(), tree.root())];
    while let Some((path, folder)) = pending.pop() {
        assert!(tree.is_listed(folder).unwrap(), "{path}");
        let hidden = tree.index.folder(folder).unwrap().unwrap().hidden;
        all.push(format!("{path}/ {hidden}"));
        for node in tree.children(folder, None, 100_000).unwrap() {
            let path = format!("{path}/{}", node.name);
            match node.kind {
                NodeKind::Folder { .. } => pending.push((path, node.id)),
                NodeKind::Object(attr) => all.push(format!("{path} {attr:?}")),
            }
        }
    }
    all.sort();
    all
}

fn dataset() -> ScriptedRemote {
    let remote = ScriptedRemote::new();
    for key in ["a/b/c", "a/b/d", "a/x", "a/b.txt", "top", "a/e//hidden", "a/e/é\n", "a/é/\"q\""]
    {
        remote.put(key, vec![1; key.len()]);
    }
    // Beside a folder, and hidden by what has that name.
    for key in ["a/b", "a/f", "a/f/g", "a/f~object"] {
        remote.put(key, vec![2; 9]);
    }
    for n in 0..2 * PART_ENTRIES_MAX + 100 {
        remote.put(&format!("many/{n:05}"), Vec::new());
    }
    remote
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_exported_is_there_without_a_request() {
    let (remote, dir) = (dataset(), tempfile::tempdir().unwrap());
    let file = exported(&remote, "").await;
    let listed = {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let tree = cache.attach(client(&remote), "", TTL).await.unwrap();
        tree.list_below(tree.root(), &Progress::default()).await.unwrap();
        let listed = all(&tree);
        cache.close();
        listed
    };
    remote.clear_requests();
    let cache = open(dir.path());
    let tree = imported(&cache, &remote, "", &file).await.unwrap();
    assert_eq!(all(&tree), listed);
    assert!(listed.iter().any(|line| line.starts_with("/a/b~object ")), "{listed:#?}");
    let rollup = tree.rollup(tree.root()).unwrap();
    assert_eq!(rollup.objects as usize, listed.iter().filter(|l| l.contains("ObjectAttr")).count());
    assert!(remote.requests().is_empty(), "{:?}", remote.requests());
    // What was imported can be read, and exported again.
    let again = export(&tree, tree.root()).await;
    let plain = |file: &[u8]| {
        let mut text = String::new();
        MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        let (header, rest) = text.split_once('\n').unwrap();
        assert!(header.contains("made_ms"));
        rest.to_owned()
    };
    assert_eq!(plain(&again), plain(&file));
    let node = tree.resolve("a/b~object").await.unwrap().unwrap();
    let object = tree.open(&node).unwrap().unwrap();
    assert_eq!(object.read(0, 99).await.unwrap().data, vec![2; 9]);
    assert_eq!(remote.count(RequestKind::List), 0);
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_takes_its_part_of_a_file_and_a_file_its_part_of_a_mount() {
    let remote = dataset();
    let (all_of_it, below) = (exported(&remote, "").await, exported(&remote, "a/b/").await);
    remote.clear_requests();

    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let tree = imported(&cache, &remote, "a/b/", &all_of_it).await.unwrap();
    let names = all(&tree);
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names[1].starts_with("/c ") && names[2].starts_with("/d "), "{names:?}");
    // Nothing is said of what lies above.
    assert!(!tree.was_listed(tree.bucket).unwrap());
    drop(tree);
    cache.close();

    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let tree = imported(&cache, &remote, "", &below).await.unwrap();
    assert!(!tree.was_listed(tree.root()).unwrap());
    let node = tree.resolve("a/b").await.unwrap().unwrap();
    assert!(tree.is_listed(node.id).unwrap());
    assert_eq!(tree.children(node.id, None, 9).unwrap().len(), 2);
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_was_listed_since_is_left_alone() {
    let (remote, dir) = (dataset(), tempfile::tempdir().unwrap());
    let file = exported(&remote, "").await;
    remote.put("a/new", vec![3]);
    remote.delete("a/x");
    remote.put("top", vec![4; 44]);
    let cache = open(dir.path());
    let tree = cache.attach(client(&remote), "", TTL).await.unwrap();
    let folder = tree.resolve("a").await.unwrap().unwrap();
    tree.ensure_listed(folder.id).await.unwrap();
    let done = tree.import(io::Cursor::new(file.clone())).await.unwrap();
    // The root was listed when it was attached, and `a` after that.
    assert_eq!(done.newer, 2, "{done:?}");
    assert!(tree.resolve("a/new").await.unwrap().is_some());
    assert!(tree.resolve("a/x").await.unwrap().is_none());
    let top = tree.resolve("top").await.unwrap().unwrap();
    assert!(matches!(top.kind, NodeKind::Object(attr) if attr.size == 44));
    drop(tree);
    cache.close();

    // What the file has of an older listing replaces it, and what it does not have goes.
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let tree = imported(&cache, &remote, "", &file).await.unwrap();
    let newer = exported(&remote, "").await;
    let done = tree.import(io::Cursor::new(newer)).await.unwrap();
    assert_eq!(done.newer, 0, "{done:?}");
    assert!(tree.resolve("a/new").await.unwrap().is_some());
    assert!(tree.resolve("a/x").await.unwrap().is_none());
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_good_says_why_and_leaves_no_half_folder() {
    let remote = dataset();
    let file = exported(&remote, "").await;
    let mut text = String::new();
    MultiGzDecoder::new(&file[..]).read_to_string(&mut text).unwrap();
    let id = client(&remote).id().0.clone();
    let long = format!("{{\"folder\":\"{}\"}}\n", "x".repeat(LINE_BYTES_MAX as usize));
    let mut flipped = file.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let first = text.lines().next().unwrap().to_owned() + "\n";
    let with = |line: &str| (first.clone() + line + "\n").into_bytes();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (file[..file.len() / 2].to_vec(), "cut off"),
        (text.as_bytes()[..text.len() - 9].to_vec(), "cut off"),
        (flipped, "export"),
        (Vec::new(), "does not begin"),
        (b"hello\n".to_vec(), "does not begin"),
        (vec![0xff; 99_999], "does not begin"),
        (text.replacen("\"warmfs_index\":1", "\"warmfs_index\":9", 1).into_bytes(), "format 9"),
        (text.replacen(&id, "s3://other/bucket", 1).into_bytes(), "it is of s3://other/bucket/"),
        (with(r#"{"name":"a","size":1,"version":"v"}"#), "is in no folder"),
        (with(r#"{"folder":"a"}"#), "names no folder"),
        (with(r#"{"folder":"../"}"#), "names no folder"),
        (
            with("{\"folder\":\"\"}\n{\"name\":\"a/b\",\"size\":1,\"version\":\"v\"}"),
            "no folder can",
        ),
        (with("{\"folder\":\"\"}\n{\"name\":\"a\",\"version\":\"v\"}"), "no size"),
        (
            with(
                "{\"folder\":\"\"}\n{\"name\":\"a\",\"size\":99999999999999999,\"version\":\"v\"}",
            ),
            "a size",
        ),
        (with("{\"folder\":\"\"}\n{\"folders\":2,\"objects\":0}"), "counts other lines"),
        (with(&long), "too long"),
    ];
    for (file, why) in cases.into_iter() {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(dir.path());
        let error = imported(&cache, &remote, "", &file).await.unwrap_err();
        assert!(matches!(error, AttachError::Index(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(why) && !text.contains('\n'), "{why}: {text}");
        // What counts as listed has all that it should.
        let tree = cache.attach(client(&remote), "", TTL).await.unwrap();
        tree.list_below(tree.root(), &Progress::default()).await.unwrap();
        assert_eq!(tree.rollup(tree.root()).unwrap().objects as usize, 2 * PART_ENTRIES_MAX + 110);
        drop(tree);
        cache.close();
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let part = exported(&remote, "a/").await;
    let error = imported(&cache, &remote, "many/", &part).await.unwrap_err().to_string();
    assert!(error.contains("not of") && error.contains("/many/"), "{error}");
    cache.close();
}

crate::fuzz::fuzz_tests!(index_files);

fn index_files(effort: crate::fuzz::Effort) {
    let text = concat!(
        r#"{"warmfs_index":1,"remote":"s3://h/b","prefix":"p/","made_ms":5}"#,
        "\n",
        r#"{"folder":"","hidden":1}"#,
        "\n",
        r#"{"name":"a/"}"#,
        "\n",
        r#"{"name":"b","size":7,"mtime_ns":8,"version":"v"}"#,
        "\n",
        r#"{"folder":"a/","hidden":0}"#,
        "\n",
        r#"{"folders":2,"objects":1}"#,
        "\n",
    );
    let mut packed = GzEncoder::new(Vec::new(), COMPRESSION);
    packed.write_all(text.as_bytes()).unwrap();
    let target = crate::fuzz::Target {
        name: "index files",
        corpus: vec![text.into(), packed.finish().unwrap()],
        words: &["\n", "{\"folder\":\"", "{\"name\":\"", "\"size\":", "..", "//", "\\u0000", "/\""],
        inputs: 20_000,
        // The inflater's window and what is buffered; a line is bounded.
        memory: (2 << 20, 4 << 10),
    };
    target.run(effort, |input| {
        let read = || {
            let mut reader = Reader::begin(io::Cursor::new(input.to_vec()))?;
            let (mut folders, mut is_open) = (0, false);
            while let Some(part) = reader.next()? {
                assert!(part.prefix.starts_with(&reader.header.prefix), "{part:?}");
                assert_eq!(part.is_first, !is_open, "{part:?}");
                folders += u64::from(part.is_first);
                is_open = !part.is_last;
                let keys = part.page.objects.iter().map(|object| &object.key.0);
                for key in keys.chain(&part.page.prefixes) {
                    assert!(key.starts_with(&part.prefix) && key.len() <= KEY_BYTES_MAX, "{key}");
                }
            }
            assert!(!is_open && folders == reader.folders);
            Ok::<_, IndexFileError>(())
        };
        match read() {
            Ok(()) => true,
            Err(error) => {
                assert!(!error.to_string().contains('\n'), "{error}");
                false
            }
        }
    });
}
