//! Listings: what a reader sees while one is under way, what is listed ahead of a
//! walk, and what is shown of one that is too old.

mod offline;

use std::collections::BTreeSet;
use std::time::Duration;

use offline::*;
use proptest::prelude::*;
use tempfile::TempDir;
use warmfs::cache::Progress;
use warmfs::fs::inode::Ino;
use warmfs::remote::ErrorKind;
use warmfs::remote::scripted::{Fault, Request, RequestKind, ScriptedRemote};

/// What is old at once, and yet something: nobody waits for it.
const SHORT: Duration = Duration::from_millis(1);

fn run<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf, ScriptedRemote) -> F) {
    let dir = TempDir::new().unwrap();
    runtime().block_on(test(dir.path().to_owned(), ScriptedRemote::new()));
}

fn names(entries: &[warmfs::fs::ops::DirEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.name.clone()).collect()
}

#[test]
fn a_reader_has_the_first_names_before_the_last_have_come() {
    run(async |dir, remote| {
        for n in 0..5_000 {
            remote.put(&format!("d/{n:05}.jpg"), content(0, 1));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        remote.gate().close();
        remote.gate().release(1);
        let first = rig.fs.read_dir(folder, 0).get().await.unwrap();
        assert_eq!(names(&first)[..4], [".", "..", "00000.jpg", "00001.jpg"]);
        remote.gate().wait_for_held(1).await;
        let rest = tokio::spawn({
            let fs = rig.fs.clone();
            async move {
                let (mut all, mut entries) = (Vec::new(), first);
                while let Some(last) = entries.last() {
                    let offset = last.offset;
                    all.extend(entries);
                    entries = fs.read_dir(folder, offset).get().await.unwrap();
                }
                all
            }
        });
        remote.gate().release_all();
        let all = names(&rest.await.unwrap());
        assert_eq!(all.len(), 5_002);
        assert!(all[2..].is_sorted());
    });
}

#[test]
fn what_a_folder_takes_from_an_object_is_seen_as_it_ends_up() {
    run(async |dir, remote| {
        // In the order of a listing: a, a-b, a/, b
        for key in ["d/a", "d/a-b", "d/a/x", "d/b"] {
            remote.put(key, content(0, 1));
        }
        remote.set_page_keys(1);
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        let seen = rig.list(folder).await;
        assert_eq!(names(&seen), ["a", "a-b", "a~object", "b"]);
        assert!(seen[0].attr.is_folder);
    });
}

#[test]
fn a_name_in_the_way_is_asked_for_when_somebody_waits() {
    run(async |dir, remote| {
        for n in 0..60 {
            remote.put(&format!("d/img-{n:02}"), content(0, 1));
        }
        remote.set_page_keys(10);
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        remote.clear_requests();
        // The last pages never come.
        let mut pages = 0;
        remote.script(move |request| match request {
            Request::List(list) if !list.recursive => {
                pages += 1;
                (pages > 4).then_some(Fault::Hang)
            }
            _ => None,
        });
        let first = rig.fs.read_dir(folder, 0).get().await.unwrap();
        assert!(names(&first).contains(&"img-00".to_owned()));
        let is_probe =
            |request: &Request| matches!(request, Request::List(list) if list.prefix == "d/img/");
        assert_eq!(remote.requests().iter().filter(|request| is_probe(request)).count(), 1);
    });
}

#[test]
fn a_listing_that_breaks_off_is_an_error_and_not_an_end() {
    run(async |dir, remote| {
        for n in 0..3_000 {
            remote.put(&format!("d/{n:05}.jpg"), content(0, 1));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        remote.script(|request| match request {
            Request::List(list) if list.continuation.is_some() || list.start_after.is_some() => {
                Some(Fault::Error(ErrorKind::Denied))
            }
            _ => None,
        });
        let mut offset = 0;
        let mut seen = 0;
        let error = loop {
            match rig.fs.read_dir(folder, offset).get().await {
                Ok(entries) => {
                    seen += entries.len();
                    offset = entries.last().expect("no end before its time").offset;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error, warmfs::fs::Errno::EACCES);
        assert!(seen < 3_000);
        // Where it is known, a name is still found.
        assert!(rig.lookup(folder, "00000.jpg").await.attr.is_some());
        remote.script(|_| None);
        assert_eq!(rig.list(folder).await.len(), 3_000);
    });
}

#[test]
fn a_walk_finds_the_next_folders_listed() {
    run(async |dir, remote| {
        for folder in 0..100 {
            for file in 0..3 {
                remote.put(&format!("{folder:03}/a/{file}"), content(0, 1));
                remote.put(&format!("{folder:03}/b/{file}"), content(0, 1));
            }
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        remote.clear_requests();
        remote.set_latency(Duration::from_millis(5));
        let (mut found, mut read, mut lead) = (0, 0, 0);
        for top in rig.list(Ino::ROOT).await {
            for folder in rig.list(top.attr.ino).await {
                found += rig.list(folder.attr.ino).await.len();
                read += 1;
            }
            read += 1;
            lead = lead.max(remote.count(RequestKind::List).saturating_sub(read));
        }
        assert_eq!(found, 600);
        assert_eq!(remote.count(RequestKind::List), 300, "each folder once");
        assert!(lead >= 16, "{lead} folders ahead");
        assert_eq!(remote.count(RequestKind::Head), 0);
    });
}

#[test]
fn who_opens_a_few_folders_pays_for_those() {
    run(async |dir, remote| {
        for folder in 0..100 {
            remote.put(&format!("{:03}/x", folder), content(0, 1));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folders = rig.list(Ino::ROOT).await;
        remote.clear_requests();
        for n in [70, 3, 41] {
            rig.list(folders[n].attr.ino).await;
        }
        assert_eq!(remote.count(RequestKind::List), 3);
    });
}

#[test]
fn what_is_too_old_is_shown_until_the_new_has_come() {
    run(async |dir, remote| {
        remote.put("d/a", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, SHORT).await;
        let folder = rig.ino("d").await;
        assert_eq!(names(&rig.list(folder).await), ["a"]);
        tokio::time::sleep(2 * SHORT).await;
        remote.put("d/b", content(2, 6));
        remote.gate().close();
        // Nobody waits for a remote that does not answer.
        let patience = Duration::from_secs(10);
        let shown = async {
            let entries = rig.list(folder).await;
            assert_eq!(names(&entries), ["a"]);
            assert!(rig.lookup(folder, "a").await.attr.is_some());
            assert!(rig.fs.getattr(folder).get().await.is_ok());
        };
        tokio::time::timeout(patience, shown).await.expect("an answer");
        remote.gate().release_all();
        // Who asks for a name that an old listing lacks gets it.
        assert_eq!(rig.lookup(folder, "b").await.attr.unwrap().size, 6);
        remote.put("d/c", content(2, 6));
        let start = std::time::Instant::now();
        while names(&rig.list(folder).await) != ["a", "b", "c"] {
            assert!(start.elapsed() < PATIENCE);
            tokio::time::sleep(SHORT).await;
        }
    });
}

#[test]
fn a_refresh_sees_what_changed_at_once_in_all_that_was_listed() {
    run(async |dir, remote| {
        for key in ["d/a/1", "d/b/1", "d/c/1"] {
            remote.put(key, content(1, 5));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        rig.list(folder).await;
        let (a, b) = (rig.ino("d/a").await, rig.ino("d/b").await);
        // Backwards: no walk, for which others would be listed as well.
        for ino in [b, a] {
            rig.list(ino).await;
        }
        remote.put("d/a/2", content(2, 6));
        remote.delete("d/b/1");
        remote.put("d/b/3", content(3, 7));
        remote.put("d/e/1", content(3, 7));
        assert_eq!(names(&rig.list(a).await), ["1"], "within the TTL");
        remote.clear_requests();
        let node = folder.node(rig.tree.root());
        let done = rig.cache.refresh(&rig.tree, node, &Progress::default().into()).await.unwrap();
        assert_eq!(
            (done.folders, remote.count(RequestKind::List)),
            (5, 3),
            "c and e were never listed"
        );
        assert_eq!(names(&rig.list(b).await), ["3"]);
        assert_eq!(names(&rig.list(a).await), ["1", "2"]);
        assert_eq!(names(&rig.list(folder).await), ["a", "b", "c", "e"]);
        assert_eq!(remote.count(RequestKind::List), 3);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the keys and the pages, a reader that follows a listing sees what one
    /// sees who comes later, each name once and in order.
    #[test]
    fn who_follows_a_listing_sees_what_it_ends_up_as(
        keys in proptest::collection::btree_set("[ab.~-]{1,3}(/[ab-]{1,2})?", 1..60),
        page_keys in 1_usize..6,
    ) {
        run(async |dir, remote| {
            for key in &keys {
                remote.put(&format!("d/{key}"), content(0, 1));
            }
            remote.set_page_keys(page_keys);
            let rig = Rig::open(&dir, &remote, None, LONG).await;
            let folder = rig.ino("d").await;
            let following = names(&rig.list(folder).await);
            let later = names(&rig.list(folder).await);
            assert_eq!(following, later);
            let once: BTreeSet<_> = later.iter().collect();
            assert_eq!(once.len(), later.len());
            rig.close();
        });
    }
}
