//! What only shows from inside: another boot, another clock, and answers that
//! arrive in another order than they were asked for.

use std::time::Duration;

use super::listing::{Changes, FolderUpdate};
use super::*;
use crate::metrics::RemoteMetrics;
use crate::remote::client::RemoteClient;
use crate::remote::scripted::{Request, RequestKind, ScriptedRemote};
use crate::remote::{Key, ListPage, ObjectMeta, Version};

const FOREVER: Duration = Duration::from_secs(100_000);

async fn open(dir: &Path, remote: &ScriptedRemote, boot: u128) -> (Arc<Cache>, Arc<Tree>) {
    let options =
        CacheOptions { dir: dir.to_owned(), size: Some(1 << 30), memory: None, metadata: None };
    open_with(&options, remote, boot).await
}

async fn open_with(
    options: &CacheOptions,
    remote: &ScriptedRemote,
    boot: u128,
) -> (Arc<Cache>, Arc<Tree>) {
    let cache = Cache::open_in_boot(options, Handle::current(), boot).unwrap();
    let client = RemoteClient::new(Arc::new(remote.clone()), Arc::<RemoteMetrics>::default());
    let tree = cache.attach(Arc::new(client), "", FOREVER).await.unwrap();
    (cache, tree)
}

async fn object(tree: &Tree, name: &str) -> Arc<CachedObject> {
    match tree.lookup(tree.root(), name).await.unwrap() {
        Child::Known(node) => tree.open(&node).unwrap().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Changes a byte and leaves no trace of it, as a power cut does.
fn damage_unseen(cache: &Cache, object: &CachedObject, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = object.complete_file().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
    // The row is written with the fingerprint of now.
    object.redirty();
    let write = |write: &mut index::Write<'_>| object.write_rows(write, 1);
    cache.index.write(write).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_boot_chunks_are_checked_before_use() {
    let dir = tempfile::tempdir().unwrap();
    let remote = ScriptedRemote::new();
    let bytes: Vec<u8> = (0..CHUNK_BYTES * 5 + 9).map(|n| (n % 251) as u8).collect();
    remote.put("a", bytes.clone());
    let (cache, tree) = open(dir.path(), &remote, 1).await;
    let first = object(&tree, "a").await;
    first.read(0, first.size()).await.unwrap();
    cache.store.settle();
    damage_unseen(&cache, &first, CHUNK_BYTES * 2 + 1);
    drop((first, tree));
    cache.close();

    let (cache, tree) = open(dir.path(), &remote, 2).await;
    remote.clear_requests();
    let again = object(&tree, "a").await;
    assert!(again.complete_file().is_none(), "not handed out before it is checked");
    assert!(again.read(0, again.size()).await.unwrap().data == bytes);
    cache.store.settle();
    assert_eq!(cache.store.metrics().repairs.get(), 1);
    assert_eq!(remote.count(RequestKind::Get), 1);
    assert!(again.complete_file().is_some());
    drop((again, tree));
    cache.close();

    // Checked once a boot: the next opening in it takes the file as it is.
    let (cache, tree) = open(dir.path(), &remote, 2).await;
    let third = object(&tree, "a").await;
    assert!(third.complete_file().is_some());
    drop((third, tree));
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_disk_failed_chunks_are_checked_in_the_next_life_too() {
    let dir = tempfile::tempdir().unwrap();
    let remote = ScriptedRemote::new();
    remote.put("a", vec![7; CHUNK_BYTES as usize * 3]);
    let (cache, tree) = open(dir.path(), &remote, 1).await;
    let first = object(&tree, "a").await;
    first.read(0, first.size()).await.unwrap();
    cache.store.settle();
    cache.store.flush().unwrap();
    assert!(first.complete_file().is_some());
    cache.store.disk_failed(&std::io::Error::from_raw_os_error(libc::EIO));
    assert!(first.complete_file().is_none(), "in this life");
    drop((first, tree));
    cache.close();

    let (cache, tree) = open(dir.path(), &remote, 1).await;
    remote.clear_requests();
    let again = object(&tree, "a").await;
    assert!(again.complete_file().is_none(), "in the next life of this boot");
    again.read(0, again.size()).await.unwrap();
    assert!(again.complete_file().is_some());
    assert_eq!(remote.count(RequestKind::Get), 0, "it was not damaged");
    drop((again, tree));
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_ended_early_is_taken_up_again() {
    const SIZE: u64 = 12 << 20;
    let dir = tempfile::tempdir().unwrap();
    let remote = ScriptedRemote::new();
    remote.put("a", vec![7; SIZE as usize]);
    // Memory for one request of a fill at a time.
    let options = CacheOptions {
        dir: dir.path().to_owned(),
        size: Some(1 << 30),
        memory: Some(16 << 20),
        metadata: None,
    };
    let (cache, tree) = open_with(&options, &remote, 1).await;
    remote.gate().close();
    tree.start_warming(crate::config::WarmOption::All);
    remote.gate().wait_for_held(1).await;
    cache.store.disk_failed(&std::io::Error::from_raw_os_error(libc::EIO));
    remote.gate().release_all();
    let last_is_asked_for = |request: &Request| match request {
        Request::Get(_, range) => range.end == SIZE,
        _ => false,
    };
    let done = async {
        while tree.warming().doing != Doing::Done {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.unwrap();
    assert!(remote.requests().iter().any(last_is_asked_for), "{:?}", remote.requests());
    drop(tree);
    cache.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_says_first_what_matters_most() {
    let dir = tempfile::tempdir().unwrap();
    let remote = ScriptedRemote::new();
    remote.put("a", vec![7; 5]);
    let options =
        CacheOptions { dir: dir.path().to_owned(), size: Some(0), memory: None, metadata: None };
    let (cache, tree) = open_with(&options, &remote, 1).await;
    let object = object(&tree, "a").await;
    object.read(0, 5).await.unwrap();
    cache.store.settle();
    cache.store.fill_when_idle(&object, 0);
    assert!(cache.store.state().starts_with("no room"), "{}", cache.store.state());
    cache.store.disk_failed(&std::io::Error::from_raw_os_error(libc::EIO));
    assert!(!cache.store.state().contains("no room"), "{}", cache.store.state());
    drop((object, tree));
    cache.close();
}

#[test]
fn the_clock_never_goes_back() {
    let ahead = wall_ms() + 3_600_000;
    let clock = Clock::after(ahead);
    let (first, second) = (clock.next_ms(), clock.next_ms());
    assert!(ahead < first && first < second);
    assert!(clock.current_ms() > ahead);
}

fn meta(name: &str, version: &str, mtime_ms: u64) -> ObjectMeta {
    ObjectMeta {
        key: Key(name.to_owned()),
        size: 5,
        version: Version(version.to_owned()),
        mtime: UNIX_EPOCH + Duration::from_millis(mtime_ms),
    }
}

/// An index with one bucket, and a way to apply an answer to it.
struct Folder {
    _dir: tempfile::TempDir,
    index: Index,
    node: NodeId,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let index =
            Index::open(&dir.path().join("index.redb"), crate::cache::index::PAGE_CACHE_BYTES)
                .unwrap()
                .index;
        let id = crate::remote::RemoteId("scripted://x".into());
        let node = index.write(|write| write.bucket(&id, 1)).unwrap();
        Folder { _dir: dir, index, node }
    }

    fn apply(
        &self,
        seen_ms: u64,
        answer: impl FnOnce(&mut FolderUpdate<'_, '_>) -> Result<(), CacheError>,
    ) -> Changes {
        let change = |write: &mut index::Write<'_>| {
            let mut update = FolderUpdate::begin(write, self.node, seen_ms)?;
            answer(&mut update)?;
            update.end()
        };
        self.index.write(change).unwrap()
    }

    fn list(&self, seen_ms: u64, objects: Vec<ObjectMeta>, prefixes: &[&str]) -> Changes {
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        let page = ListPage { objects, prefixes, next: None };
        self.apply(seen_ms, |update| {
            update.reset_hidden();
            update.page("", &page)?;
            update.finish_listing()
        })
    }

    fn entry(&self, name: &str) -> Option<record::EntryRow> {
        self.index.entry(self.node, name).unwrap()
    }

    fn row(&self) -> record::FolderRow {
        self.index.folder(self.node).unwrap().unwrap()
    }
}

#[test]
fn an_older_answer_undoes_no_newer_one() {
    let folder = Folder::new();
    folder.list(10, vec![meta("a", "v1", 0)], &["d/"]);
    // Both were asked before the listing, and answered after it.
    folder.apply(5, |update| update.put_absent("a"));
    folder.apply(5, |update| update.put_no_folder("d"));
    folder.apply(5, |update| update.put_object("gone", &meta("gone", "v1", 0)));
    folder.apply(5, |update| update.see_folder("gone too"));
    folder.apply(5, |update| update.put_object("a", &meta("a", "v0", 0)));
    assert_eq!(folder.entry("a").unwrap().object.unwrap().version.0, "v1");
    assert!(folder.entry("d").is_some() && folder.entry("gone").is_none());
    assert!(folder.entry("gone too").is_none());
    assert_eq!(folder.row().rollup.objects, 1);
}

#[test]
fn what_a_first_listing_takes_away_was_seen_by_who_followed_it() {
    let folder = Folder::new();
    folder.apply(5, |update| update.put_object("known", &meta("known", "v1", 0)));
    // What it only adds is no change of what anybody saw: the mtime stays.
    let page = ListPage { objects: vec![meta("a", "v1", 0)], ..ListPage::default() };
    assert_eq!(folder.apply(10, |update| update.page("", &page)).folders, []);
    let changes = folder.apply(10, |update| update.finish_listing());
    assert_eq!(changes.folders, [folder.node]);
    assert!(folder.entry("known").is_none() && folder.row().changed_ms >= 10);
}

#[test]
fn a_time_in_another_precision_is_no_other_version() {
    let folder = Folder::new();
    folder.list(10, vec![meta("a", "v1", 7_123)], &[]);
    let node = folder.entry("a").unwrap().node;
    let changes = folder.apply(11, |update| update.put_object("a", &meta("a", "v1", 7_000)));
    assert_eq!(changes, Changes::default());
    assert_eq!(folder.entry("a").unwrap().node, node);
    // Uploaded again: the bytes are the same, the time is told.
    let changes = folder.list(12, vec![meta("a", "v1", 9_000)], &[]);
    assert_eq!(changes.names.len(), 1);
    assert!(changes.superseded.is_empty());
    let entry = folder.entry("a").unwrap();
    assert_eq!((entry.node, entry.object.unwrap().mtime_ns), (node, 9_000_000_000));
}

#[test]
fn names_that_collide_with_the_suffix_keep_the_sums_right() {
    let folder = Folder::new();
    let all = || vec![meta("a", "v1", 0), meta("a~object", "v2", 0)];
    for round in 0..3 {
        folder.list(10 + round, all(), &["a/"]);
        assert_eq!(folder.entry("a~object").unwrap().object.unwrap().version.0, "v2");
        assert_eq!((folder.row().rollup.objects, folder.row().hidden), (1, 1), "{round}");
        assert_eq!(folder.row().rollup.hidden, 1, "{round}");
    }
    folder.list(20, all(), &[]);
    assert_eq!(folder.row().listed_ms, Some(0), "once more, please");
    folder.list(21, all(), &[]);
    assert_eq!(folder.entry("a").unwrap().object.unwrap().version.0, "v1");
    assert_eq!((folder.row().rollup.objects, folder.row().hidden), (2, 0));
    assert_eq!(folder.row().rollup.hidden, 0);
}
