//! The cache without a kernel: what is fetched, what is kept, and what becomes
//! of it when the remote, the disk or the directory misbehaves.

mod offline;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use offline::*;
use tempfile::TempDir;
use warmfs::cache::{AtHand, CachedObject, Child};
use warmfs::config::{TrafficOptions, WarmOption};
use warmfs::fs::Errno;
use warmfs::fs::inode::Ino;
use warmfs::metrics::RemoteMetrics;
use warmfs::remote::client::RemoteClient;
use warmfs::remote::endpoint::Endpoints;
use warmfs::remote::scripted::{Fault, Request, RequestKind, ScriptedRemote};
use warmfs::remote::{ErrorKind, Remote, gate::Gate};

fn temp() -> TempDir {
    TempDir::new().unwrap()
}

/// Runs a test that opens a cache in a directory of its own.
fn run<F: Future<Output = ()>>(test: impl FnOnce(std::path::PathBuf, ScriptedRemote) -> F) {
    let dir = temp();
    runtime().block_on(test(dir.path().to_owned(), ScriptedRemote::new()));
}

/// Ranges of `key` that were asked for.
fn ranges(remote: &ScriptedRemote, wanted: &str) -> Vec<std::ops::Range<u64>> {
    let get = |request| match request {
        Request::Get(key, range) if key.0 == wanted => Some(range),
        _ => None,
    };
    remote.requests().into_iter().filter_map(get).collect()
}

fn fetched_bytes(remote: &ScriptedRemote, key: &str) -> u64 {
    ranges(remote, key).iter().map(|range| range.end - range.start).sum()
}

#[test]
fn eight_readers_of_a_cold_object_fetch_each_byte_once() {
    run(async |dir, remote| {
        let size = 40 * MIB + 17;
        let bytes = content(1, size);
        remote.put("big", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let object = rig.object("big").await;
        remote.gate().close();
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let object = object.clone();
                tokio::spawn(async move { read_all(&object).await })
            })
            .collect();
        remote.gate().wait_for_held(2).await;
        remote.gate().release_all();
        for reader in readers {
            assert!(reader.await.unwrap() == bytes);
        }
        assert_eq!(fetched_bytes(&remote, "big"), size);
    });
}

#[test]
fn the_first_reads_of_a_large_object_start_several_requests() {
    run(async |dir, remote| {
        remote.put("big", content(1, 64 * MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let object = rig.object("big").await;
        remote.gate().close();
        let first = tokio::spawn({
            let object = object.clone();
            async move { object.read(0, CHUNK).await.unwrap() }
        });
        remote.gate().wait_for_held(2).await;
        let second = tokio::spawn({
            let object = object.clone();
            async move { object.read(CHUNK, CHUNK).await.unwrap() }
        });
        remote.gate().wait_for_held(3).await;
        remote.gate().release_all();
        assert_eq!(first.await.unwrap().data.len() as u64, CHUNK);
        assert_eq!(second.await.unwrap().data.len() as u64, CHUNK);
    });
}

#[test]
fn a_reader_is_served_before_the_whole_request_has_landed() {
    run(async |dir, remote| {
        let bytes = content(1, 2 * MIB);
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let gate = Gate::closed();
        remote.fail_next(RequestKind::Get, Fault::HoldAfter(3 * CHUNK, gate.clone()));
        let object = rig.object("a").await;
        let read = object.read(CHUNK, 2 * CHUNK).await.unwrap();
        assert!(read.data[..] == bytes[CHUNK as usize..3 * CHUNK as usize]);
        assert_eq!(read.miss_bytes, 2 * CHUNK);
        gate.wait_for_held(1).await;
        gate.release_all();
        assert!(read_all(&object).await == bytes);
        assert_eq!(rig.gets(), 1);
    });
}

#[test]
fn a_version_that_changes_midway_is_an_error_and_never_a_mix() {
    run(async |dir, remote| {
        let (old, new) = (content(1, 8 * MIB), content(2, 8 * MIB));
        remote.put("a", old.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let ino = rig.ino("a").await;
        let object = rig.object("a").await;
        let gate = Gate::closed();
        // The first request breaks off and is continued after the change.
        remote.script({
            let gate = gate.clone();
            move |request| match request {
                Request::Get(_, range) if range.start == 0 => {
                    Some(Fault::HoldAfter(CHUNK, gate.clone()))
                }
                Request::Get(..) => Some(Fault::BreakAfter(CHUNK + 5)),
                _ => None,
            }
        });
        let head = object.read(0, CHUNK).await.unwrap().data;
        assert!(head[..] == old[..CHUNK as usize]);
        remote.put("a", new.clone());
        gate.release_all();
        let error = object.read(6 * MIB, CHUNK).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Changed);
        // Through the file system it is ESTALE, and the name leads to the new version.
        let read = rig.fs.clone().read(ino, object.clone(), 7 * MIB, CHUNK).await;
        assert_eq!(read, Err(Errno::ESTALE));
        remote.script(|_| None);
        assert_ne!(rig.ino("a").await, ino);
        assert!(rig.read("a").await == new);
        // What the old one had it still has, or says no.
        match object.read(0, CHUNK).await {
            Ok(read) => assert!(read.data[..] == old[..CHUNK as usize]),
            Err(error) => assert_eq!(error.kind, ErrorKind::Changed),
        }
    });
}

#[test]
fn what_is_cached_is_kept_over_a_reopen_without_a_request() {
    run(async |dir, remote| {
        let sizes = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * MIB + 3];
        for (n, size) in sizes.into_iter().enumerate() {
            remote.put(&format!("d/{n}"), content(n as u64, size));
        }
        for round in 0..3 {
            let rig = Rig::open(&dir, &remote, None, LONG).await;
            for (n, size) in sizes.into_iter().enumerate() {
                assert!(rig.read(&format!("d/{n}")).await == content(n as u64, size));
            }
            if round > 0 {
                assert_eq!(rig.gets(), 0);
                assert_eq!(rig.metrics.miss_bytes.get(), 0);
                assert_eq!(rig.cache.store().metrics().repairs.get(), 0);
            }
            eventually("all are kept", || rig.cache.figures().objects == 5).await;
            rig.close();
            remote.clear_requests();
        }
    });
}

#[test]
fn a_closed_cache_opens_again_whoever_still_holds_it() {
    run(async |dir, remote| {
        remote.put("a", content(1, MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let object = rig.object("a").await;
        assert!(read_all(&object).await == content(1, MIB));
        rig.cache.close();
        let again = Rig::open(&dir, &remote, None, LONG).await;
        assert!(again.read("a").await == content(1, MIB));
        assert_eq!(rig.gets(), 1);
        assert!(read_all(&object).await == content(1, MIB), "an open object is read on");
    });
}

#[test]
fn a_cache_that_is_dropped_frees_everything() {
    run(async |dir, remote| {
        remote.put("a", content(1, MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        rig.read("a").await;
        let store = Arc::downgrade(rig.cache.store());
        let tree = Arc::downgrade(&rig.tree);
        drop(rig);
        eventually("the store is freed", || store.strong_count() == 0).await;
        assert_eq!(tree.strong_count(), 0);
        // The last one to hold the index may be a moment behind.
        let options = warmfs::config::CacheOptions {
            dir: dir.clone(),
            size: None,
            memory: None,
            metadata: None,
        };
        let open = || warmfs::cache::Cache::open(&options, tokio::runtime::Handle::current());
        eventually("the index can be opened", || {
            open().is_ok_and(|cache| {
                cache.close();
                true
            })
        })
        .await;
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        assert!(rig.read("a").await == content(1, MIB));
    });
}

#[test]
fn an_index_in_use_is_not_set_aside() {
    run(async |dir, remote| {
        remote.put("a", content(1, MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        rig.read("a").await;
        let options = warmfs::config::CacheOptions {
            dir: dir.clone(),
            size: None,
            memory: None,
            metadata: None,
        };
        let second = warmfs::cache::Cache::open(&options, tokio::runtime::Handle::current());
        assert!(second.is_err());
        rig.close();
        remote.clear_requests();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        assert!(rig.read("a").await == content(1, MIB));
        assert_eq!(rig.gets(), 0);
    });
}

#[test]
fn only_what_is_missing_of_a_half_cached_object_is_fetched() {
    run(async |dir, remote| {
        let size = 16 * MIB;
        let bytes = content(1, size);
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let object = rig.object("a").await;
        for offset in [3 * MIB, 9 * MIB] {
            object.read(offset + 7, 2 * CHUNK).await.unwrap();
        }
        let before = fetched_bytes(&remote, "a");
        assert!(before < size / 2);
        eventually("all is kept", || object.present_bytes() == before).await;
        drop(object);
        rig.close();
        remote.clear_requests();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        assert!(rig.read("a").await == bytes);
        assert_eq!(fetched_bytes(&remote, "a"), size - before);
    });
}

/// Caches three objects, closes, does `harm` to the directory, and reads again.
fn harmed(what: &str, repairs: std::ops::RangeInclusive<u64>, harm: impl FnOnce(&Path)) {
    run(async |dir, remote| {
        let sizes = [2 * MIB + 5, 6 * MIB, 2 * MIB + 5];
        for (n, size) in sizes.into_iter().enumerate() {
            remote.put(&format!("{n}"), content(n as u64, size));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        for (n, size) in sizes.into_iter().enumerate() {
            assert!(rig.read(&format!("{n}")).await == content(n as u64, size));
        }
        rig.close();
        assert_eq!(data_files(&dir).len(), 3);
        harm(&dir);
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        for (n, size) in sizes.into_iter().enumerate() {
            assert!(rig.read(&format!("{n}")).await == content(n as u64, size), "{what}: {n}");
        }
        let counted = rig.cache.store().metrics().repairs.get();
        assert!(repairs.contains(&counted), "{what}: {counted} repairs");
        let all = rig.tree.rollup(rig.tree.root()).unwrap().bytes;
        let data = || rig.cache.figures().object_bytes;
        // A reader has its bytes before the disk has them.
        eventually("all is kept", || rig.cache.figures().objects == 3 && data() >= all).await;
        let data = data();
        assert!(data < all + 4 * 4096, "{what}: {data} for {all}");
        // And from then on it is whole again.
        rig.close();
        remote.clear_requests();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        for (n, size) in sizes.into_iter().enumerate() {
            assert!(rig.read(&format!("{n}")).await == content(n as u64, size), "{what}: {n}");
        }
        assert_eq!(rig.gets(), 0, "{what}");
    });
}

fn open(file: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().read(true).write(true).open(file).unwrap()
}

#[test]
fn damage_done_while_closed_is_repaired_and_never_served() {
    harmed("nothing", 0..=0, |_| {});
    harmed("truncated", 1..=48, |dir| open(&data_files(dir)[0]).set_len(MIB + 1).unwrap());
    harmed("emptied", 1..=48, |dir| open(&data_files(dir)[1]).set_len(0).unwrap());
    harmed("deleted", 1..=1, |dir| std::fs::remove_file(&data_files(dir)[2]).unwrap());
    harmed("one bit", 1..=1, |dir| {
        let file = open(&data_files(dir)[0]);
        let mut byte = [0];
        file.read_exact_at(&mut byte, CHUNK + 9).unwrap();
        file.write_all_at(&[byte[0] ^ 4], CHUNK + 9).unwrap();
    });
    harmed("zeros", 17..=48, |dir| {
        let file = open(&data_files(dir)[1]);
        let len = file.metadata().unwrap().len();
        file.write_all_at(&vec![0; len as usize], 0).unwrap();
    });
    harmed("swapped", 17..=96, |dir| {
        let files = data_files(dir);
        std::fs::rename(&files[0], dir.join("x")).unwrap();
        std::fs::rename(&files[1], &files[0]).unwrap();
        std::fs::rename(dir.join("x"), &files[1]).unwrap();
    });
    harmed("all data gone", 3..=3, |dir| {
        std::fs::remove_dir_all(dir.join("data")).unwrap();
    });
}

#[test]
fn a_lost_index_empties_the_cache() {
    let harms: [fn(&Path); 3] = [
        |index| std::fs::remove_file(index).unwrap(),
        |index| std::fs::write(index, vec![0x5a; 100_000]).unwrap(),
        |index| std::fs::write(index, b"").unwrap(),
    ];
    for harm in harms {
        run(async |dir, remote| {
            remote.put("a", content(1, 3 * MIB));
            let rig = Rig::open(&dir, &remote, None, LONG).await;
            rig.read("a").await;
            rig.close();
            harm(&dir.join("index.redb"));
            let rig = Rig::open(&dir, &remote, None, LONG).await;
            assert_eq!(rig.cache.figures().objects, 0);
            eventually("orphans are removed", || data_files(&dir).is_empty()).await;
            assert!(rig.read("a").await == content(1, 3 * MIB));
            assert_eq!(rig.gets(), 2);
        });
    }
}

#[test]
fn one_read_of_any_length_checks_what_is_not_trusted() {
    run(async |dir, remote| {
        let (size, bytes) = (9 * MIB + 1, content(1, 9 * MIB + 1));
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        rig.read("a").await;
        rig.close();
        // As if somebody had written to it.
        open(&data_files(&dir)[0]).set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        remote.clear_requests();
        assert!(rig.object("a").await.read(0, size).await.unwrap().data[..] == bytes[..]);
        assert_eq!(rig.gets(), 0);
    });
}

#[test]
fn what_is_not_kept_is_not_fetched_again_for_each_read() {
    run(async |dir, remote| {
        let bytes = content(1, 2 * MIB);
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let node = rig.node("a").await;
        for at in (0..2 * MIB).step_by(CHUNK as usize) {
            // As in cached mode, where each READ finds its object by itself.
            let object = rig.tree.open_lost(&node, "").unwrap();
            let read = object.read(at, CHUNK).await.unwrap().data;
            assert!(read[..] == bytes[at as usize..(at + CHUNK) as usize]);
        }
        assert_eq!(fetched_bytes(&remote, "a"), 2 * MIB);
    });
}

#[test]
fn files_that_the_index_does_not_know_are_removed_and_links_not_followed() {
    run(async |dir, remote| {
        remote.put("a", content(1, 3 * MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        rig.read("a").await;
        rig.close();
        let outside = temp();
        std::fs::write(outside.path().join("file"), b"not ours").unwrap();
        let data = dir.join("data");
        let own = data_files(&dir);
        std::fs::create_dir_all(data.join("000000/folder/in it")).unwrap();
        std::fs::write(data.join("stray"), b"x").unwrap();
        std::fs::write(data.join("000000/10-0000000000000000"), b"a node's, but not its file")
            .unwrap();
        std::fs::write(data.join("000000/folder/in it/file"), b"x").unwrap();
        std::os::unix::fs::symlink(outside.path(), data.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), data.join("000000/link")).unwrap();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        eventually("strays are removed", || data_files(&dir) == own).await;
        eventually("links are removed", || !data.join("link").is_symlink()).await;
        assert!(!data.join("000000/link").is_symlink());
        assert!(outside.path().join("file").exists());
        assert!(rig.read("a").await == content(1, 3 * MIB));
        assert_eq!(rig.gets(), 1);
    });
}

#[test]
fn a_replaced_object_loses_its_file_while_its_reader_goes_on() {
    run(async |dir, remote| {
        remote.put("a", content(1, 2 * MIB));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let object = rig.object("a").await;
        // Not flushed yet: the file is known in memory only.
        read_all(&object).await;
        eventually("all is kept", || object.present_bytes() == 2 * MIB).await;
        let old = data_files(&dir);
        assert_eq!(old.len(), 1);
        remote.put("a", content(2, MIB));
        assert!(rig.read("a").await == content(2, MIB));
        eventually("the old file is gone", || {
            let files = data_files(&dir);
            files.len() == 1 && files != old
        })
        .await;
        assert!(read_all(&object).await == content(1, 2 * MIB));
        drop(object);
        eventually("its bytes are given back", || rig.cache.figures().objects == 1).await;
        assert!(rig.cache.figures().used_bytes >= MIB);
        assert!(disk_usage(&dir).abs_diff(rig.cache.figures().used_bytes) < 1 << 19);
    });
}

#[test]
fn a_replaced_version_opened_late_is_not_kept() {
    run(async |dir, remote| {
        let meta = remote.put("a", content(1, MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let node = rig.node("a").await;
        // A folder of that name takes it over: the version stays, the node goes.
        remote.put("a/b", content(2, 1));
        rig.tree.expire(&node).await.unwrap();
        rig.list(Ino::ROOT).await;
        let late = rig.tree.open(&node).unwrap().unwrap();
        assert!(read_all(&late).await == content(1, MIB));
        assert!(data_files(&dir).is_empty());
        let beside = rig.object("a~object").await;
        assert!(read_all(&beside).await == content(1, MIB));
        assert!(read_all(&late).await == content(1, MIB));
        assert_eq!(remote.meta("a"), Some(meta));
    });
}

#[test]
fn the_same_content_uploaded_again_stays_cached() {
    // Versions of the scripted remote never come back, so times only differ by a
    // listing's precision; that is tested where answers are applied.
    run(async |dir, remote| {
        remote.put("a", content(1, MIB));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let first = rig.ino("a").await;
        rig.read("a").await;
        rig.list(Ino::ROOT).await;
        assert_eq!(rig.ino("a").await, first);
        rig.read("a").await;
        assert_eq!(rig.gets(), 1);
    });
}

#[test]
fn a_full_cache_streams_each_byte_about_once_and_never_passes_its_limit() {
    run(async |dir, remote| {
        let size = 48 * MIB;
        remote.put("small", content(1, MIB));
        remote.put("big", content(2, size));
        remote.put("more", content(3, 4 * MIB));
        let limit = 12 * MIB;
        let rig = Rig::open(&dir, &remote, Some(limit), LONG).await;
        rig.read("small").await;
        let object = rig.object("big").await;
        let bytes = content(2, size);
        let mut at = 0;
        while at < size {
            let read = object.read(at, CHUNK).await.unwrap().data;
            assert!(read[..] == bytes[at as usize..at as usize + read.len()]);
            at += read.len() as u64;
            let figures = rig.cache.figures();
            assert!(figures.used_bytes <= limit, "{figures:?}");
            assert_eq!(figures.limit_bytes, limit);
        }
        let fetched = fetched_bytes(&remote, "big");
        assert!(fetched <= size + size / 10, "{fetched} of {size}");
        // A reader has its bytes before they are written, or not.
        let passed_by = || rig.cache.store().metrics().passed_by_bytes.get();
        eventually("bytes pass by", || passed_by() > 0).await;
        rig.read("more").await; // For what room a smaller index may have left.
        eventually("it says so", || rig.cache.store().state().contains("full")).await;
        remote.clear_requests();
        rig.read("small").await;
        assert_eq!(rig.gets(), 0);
    });
}

/// A small file system to fill. `None` where it cannot be mounted.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(bytes: u64) -> Option<Tmpfs> {
        let dir = temp();
        let options = format!("size={bytes}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(options.as_str()))
            .ok()?;
        Some(Tmpfs(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_disk_that_others_fill_is_streamed_past_and_used_again_later() {
    let Some(disk) = Tmpfs::mount(48 << 20) else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let dir = disk.0.path().to_owned();
    runtime().block_on(async {
        let remote = ScriptedRemote::new();
        for n in 0..40 {
            remote.put(&format!("{n}"), content(n, 3 * MIB));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        assert!(rig.read("0").await == content(0, 3 * MIB));
        // Somebody else takes all that is left, to the last block.
        let filler = std::fs::File::create(dir.join("filler")).unwrap();
        let block = vec![1; 4096];
        while std::io::Write::write_all(&mut &filler, &block).is_ok() {}
        for n in 1..30 {
            assert!(rig.read(&format!("{n}")).await == content(n, 3 * MIB), "{n}");
        }
        assert_ne!(rig.cache.store().state(), "ok");
        // The index may have lost what it could not write, but serves again.
        let sync = || rig.tree.rollup(rig.tree.root()).is_ok();
        eventually("the index answers", sync).await;
        drop(filler);
        std::fs::remove_file(dir.join("filler")).unwrap();
        eventually("the disk is used again", || rig.cache.store().state() == "ok").await;
        assert!(rig.read("35").await == content(35, 3 * MIB));
        let object = rig.object("35").await;
        eventually("it is kept", || object.present_bytes() == 3 * MIB).await;
        drop(object);
        rig.close();
        remote.clear_requests();
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        assert!(rig.read("35").await == content(35, 3 * MIB));
        assert_eq!(rig.gets(), 0);
        rig.close();
    });
}

#[test]
fn a_data_folder_that_cannot_be_written_is_streamed_past() {
    run(async |dir, remote| {
        remote.put("a", content(1, 6 * MIB));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        std::fs::remove_dir_all(dir.join("data")).unwrap();
        std::fs::write(dir.join("data"), b"not a folder").unwrap();
        assert!(rig.read("a").await == content(1, 6 * MIB));
        let fails = || rig.cache.store().state().contains("fails");
        eventually("the state says so", fails).await;
        assert_eq!(rig.cache.figures().objects, 0);
    });
}

#[test]
fn a_listing_is_asked_for_once_within_its_ttl() {
    run(async |dir, remote| {
        remote.put("d/a", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        rig.list(folder).await;
        remote.clear_requests();
        for _ in 0..3 {
            assert_eq!(rig.list(folder).await.len(), 1);
            assert!(rig.lookup(folder, "a").await.attr.is_some());
            assert!(rig.lookup(folder, "b").await.attr.is_none());
        }
        assert!(remote.requests().is_empty());
        rig.close();
        // The listing outlives the mount; attaching asks once.
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        remote.clear_requests();
        rig.list(rig.ino("d").await).await;
        assert!(remote.requests().is_empty());
        rig.close();
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let folder = rig.ino("d").await;
        remote.clear_requests();
        rig.list(folder).await;
        assert_eq!(remote.count(RequestKind::List), 1);
    });
}

#[test]
fn a_listing_that_cannot_be_refreshed_stands() {
    run(async |dir, remote| {
        remote.put("a", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        assert_eq!(rig.list(Ino::ROOT).await.len(), 1);
        remote.put("b", content(1, 5));
        remote.script(|_| Some(Fault::Error(ErrorKind::Transient)));
        assert_eq!(rig.list(Ino::ROOT).await.len(), 1);
        // It is not asked again for each request that would like to know better.
        remote.clear_requests();
        for _ in 0..10 {
            assert!(rig.lookup(Ino::ROOT, "a").await.attr.is_some());
            assert_eq!(rig.list(Ino::ROOT).await.len(), 1);
        }
        assert_eq!(remote.count(RequestKind::List), 0);
        // But soon enough.
        remote.script(|_| Some(Fault::Error(ErrorKind::Denied)));
        let start = std::time::Instant::now();
        while rig.fs.read_dir(Ino::ROOT, 0).get().await != Err(Errno::EACCES) {
            assert!(start.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        remote.script(|_| None);
        assert_eq!(rig.list(Ino::ROOT).await.len(), 2);
    });
}

#[test]
fn a_name_that_was_found_stands_while_nobody_answers() {
    run(async |dir, remote| {
        remote.put("d/a", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let folder = rig.ino("d").await;
        let before = rig.lookup(folder, "a").await.attr.unwrap();
        remote.script(|_| Some(Fault::Error(ErrorKind::Unreachable)));
        assert_eq!(rig.lookup(folder, "a").await.attr.unwrap().ino, before.ino);
        assert!(rig.fs.lookup(folder, "b".as_ref()).get().await.is_err());
        remote.script(|_| Some(Fault::Error(ErrorKind::Denied)));
        assert!(rig.fs.lookup(folder, "a".as_ref()).get().await.is_err());
    });
}

#[test]
fn a_replaced_version_that_is_read_makes_no_newer_one_doubtful() {
    run(async |dir, remote| {
        remote.put("d/a", content(1, 5 * MIB));
        remote.put("d/b", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        rig.list(folder).await;
        let ino = rig.ino("d/a").await;
        let object = rig.object("d/a").await;
        remote.put("d/a", content(2, 5 * MIB));
        let read = async || rig.fs.clone().read(ino, object.clone(), 0, CHUNK).await;
        assert_eq!(read().await, Err(Errno::ESTALE));
        rig.list(folder).await;
        assert_ne!(rig.ino("d/a").await, ino);
        remote.clear_requests();
        assert_eq!(read().await, Err(Errno::ESTALE));
        rig.list(folder).await;
        assert_eq!(remote.count(RequestKind::List), 0);
    });
}

#[test]
fn a_folder_is_listed_behind_those_who_look_up_many_names_in_it() {
    run(async |dir, remote| {
        for n in 0..20 {
            remote.put(&format!("d/{n}"), content(n, 5));
        }
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let folder = rig.ino("d").await;
        for n in 0..3 {
            remote.clear_requests();
            assert!(rig.lookup(folder, &n.to_string()).await.attr.is_some());
            assert_eq!(remote.count(RequestKind::Head), 1);
            assert_eq!(remote.count(RequestKind::List), 1);
        }
        assert!(!rig.tree.is_listed(folder.node(rig.tree.root())).unwrap());
        assert!(rig.lookup(folder, "3").await.attr.is_some());
        let node = folder.node(rig.tree.root());
        eventually("it is listed", || rig.tree.is_listed(node).unwrap()).await;
        remote.clear_requests();
        for n in 0..20 {
            assert!(rig.lookup(folder, &n.to_string()).await.attr.is_some());
        }
        assert!(remote.requests().is_empty());
    });
}

#[test]
fn a_folder_is_not_forgotten_because_a_request_failed() {
    run(async |dir, remote| {
        remote.put("d/a/x", content(1, 5));
        remote.put("d/a", content(2, 6));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let folder = rig.ino("d").await;
        let before = rig.lookup(folder, "a").await.attr.unwrap();
        assert!(before.is_folder);
        remote.script(|request| match request {
            Request::List(list) if list.recursive => Some(Fault::Error(ErrorKind::Denied)),
            _ => None,
        });
        let after = rig.lookup(folder, "a").await.attr.unwrap();
        assert_eq!((after.ino, after.is_folder), (before.ino, true));
    });
}

#[test]
fn an_object_takes_its_name_back_when_the_folder_goes() {
    run(async |dir, remote| {
        remote.put("a", content(1, 5));
        remote.put("a/b", content(2, 6));
        remote.put("x~object", content(3, 7));
        remote.put("x/y", content(4, 8));
        remote.put("x", content(5, 9));
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        let names = async || {
            let entries = rig.list(Ino::ROOT).await;
            entries.into_iter().map(|e| (e.name, e.attr.size)).collect::<Vec<_>>()
        };
        let name = |name: &str, size| (name.to_owned(), size);
        let folder = 4096;
        assert_eq!(
            names().await,
            [name("a", folder), name("a~object", 5), name("x", folder), name("x~object", 7)]
        );
        remote.delete("a/b");
        remote.delete("x~object");
        assert_eq!(names().await, [name("a", 5), name("x", folder), name("x~object", 9)]);
        assert!(rig.read("a").await == content(1, 5));
        assert!(rig.read("x~object").await == content(5, 9));
        let rollup = rig.tree.rollup(rig.tree.root()).unwrap();
        assert_eq!(
            rollup.objects,
            2 + u64::from(rig.tree.is_listed(rig.node("x").await.id).unwrap())
        );
    });
}

#[test]
fn sums_follow_every_change() {
    run(async |dir, remote| {
        let mut rng = fastrand::Rng::with_seed(11);
        let rig = Rig::open(&dir, &remote, None, Duration::ZERO).await;
        for round in 0..12 {
            for n in 0..10 {
                let key = format!("{}/{}/{}", rng.u8(..3), rng.u8(..2), rng.u8(..4));
                match rng.u8(..3) {
                    0 => remote.delete(&key),
                    _ => drop(remote.put(&key, content(n, rng.u64(..3 * CHUNK)))),
                }
            }
            let (mut objects, mut bytes, mut read) = (0, 0, Vec::new());
            let mut folders = vec![Ino::ROOT];
            while let Some(folder) = folders.pop() {
                for entry in rig.list(folder).await {
                    if entry.attr.is_folder {
                        folders.push(entry.attr.ino);
                        continue;
                    }
                    objects += 1;
                    bytes += entry.attr.size;
                    let object = rig.fs.object(entry.attr.ino).unwrap();
                    if rng.bool() {
                        assert_eq!(read_all(&object).await.len() as u64, entry.attr.size);
                    }
                    read.push(object);
                }
            }
            let rollup = rig.tree.rollup(rig.tree.root()).unwrap();
            assert_eq!((rollup.objects, rollup.bytes), (objects, bytes), "round {round}");
            eventually("cached bytes are summed", || {
                let cached: u64 = read.iter().map(|object| object.present_bytes()).sum();
                rig.tree.rollup(rig.tree.root()).unwrap().cached_bytes == cached
            })
            .await;
            let held = read.iter().filter(|object| object.present_bytes() > 0).count() as u64;
            drop(read);
            eventually("objects are counted", || rig.cache.figures().objects == held).await;
            let used = rig.cache.figures().used_bytes;
            let disk = disk_usage(&dir);
            assert!(disk.abs_diff(used) < 1 << 20, "round {round}: {used}, du {disk}");
        }
    });
}

#[test]
fn hits_and_misses_are_told_apart() {
    run(async |dir, remote| {
        remote.put("a", content(1, 3 * CHUNK));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let ino = rig.ino("a").await;
        let object = rig.object("a").await;
        rig.fs.clone().read(ino, object.clone(), 0, CHUNK).await.unwrap();
        assert_eq!(rig.metrics.miss_bytes.get(), CHUNK);
        assert_eq!(rig.metrics.hit_bytes.get(), 0);
        eventually("all is kept", || object.present_bytes() == 3 * CHUNK).await;
        rig.fs.clone().read(ino, object.clone(), 0, 3 * CHUNK).await.unwrap();
        assert_eq!(rig.metrics.hit_bytes.get(), 3 * CHUNK);
        assert_eq!(rig.metrics.miss_bytes.get(), CHUNK);
        assert_eq!(rig.remote_metrics.get.requests.get(), 1);
        assert_eq!(rig.remote_metrics.get.bytes.get(), 3 * CHUNK);
        let mut buf = vec![0; 100];
        let mut at_hand = |offset| match rig.fs.read_at_hand(&object, offset, &mut buf) {
            Some(AtHand::Copied(len)) => len,
            other => panic!("{other:?}: all of it was read, and is on disk only"),
        };
        assert_eq!(at_hand(3 * CHUNK - 50), 50);
        assert_eq!(at_hand(4 * CHUNK), 0);
        assert_eq!(rig.metrics.hit_bytes.get(), 3 * CHUNK + 50);
    });
}

#[test]
fn a_file_that_is_cut_short_while_it_is_read_serves_no_zeros() {
    run(async |dir, remote| {
        let bytes = content(1, 16 * CHUNK);
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let object = rig.object("a").await;
        assert!(read_all(&object).await == bytes);
        eventually("all is kept", || object.present_bytes() == 16 * CHUNK).await;
        open(&data_files(&dir)[0]).set_len(3 * CHUNK).unwrap();
        // The last chunk first: written again, it makes holes of those before.
        let last = object.read(15 * CHUNK, CHUNK).await.unwrap().data;
        assert!(last[..] == bytes[15 * CHUNK as usize..]);
        assert!(read_all(&object).await == bytes);
        assert!(rig.cache.store().metrics().repairs.get() > 0);
    });
}

/// Reads as the driver does: at hand, else from the disk, else wherever it is.
async fn read_as_the_driver_does(
    rig: &Rig,
    object: &Arc<CachedObject>,
    ino: Ino,
    at: u64,
) -> Vec<u8> {
    let mut buffer = vec![0; MIB as usize];
    match rig.fs.read_at_hand(object, at, &mut buffer) {
        Some(AtHand::Copied(len)) => return buffer[..len].to_vec(),
        Some(AtHand::Shared { data, .. }) => return data.to_vec(),
        None => {}
    }
    let read = rig.fs.read_on_disk(object, at, MIB);
    let on_disk = match read {
        Some(read) => tokio::task::spawn_blocking(read).await.unwrap(),
        None => None,
    };
    match on_disk {
        Some(data) => data.to_vec(),
        None => rig.fs.clone().read(ino, object.clone(), at, MIB).await.unwrap().to_vec(),
    }
}

#[test]
fn a_stream_from_the_disk_goes_on_where_the_file_was_cut() {
    run(async |dir, remote| {
        let size = 24 * MIB + 17;
        let bytes = content(1, size);
        remote.put("a", bytes.clone());
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let ino = rig.ino("a").await;
        let object = rig.object("a").await;
        assert!(read_all(&object).await == bytes);
        eventually("all is kept", || object.present_bytes() == size).await;
        remote.clear_requests();
        for cut_at in [u64::MAX, 12 * MIB] {
            let file = &data_files(&dir)[0];
            nix::fcntl::posix_fadvise(
                open(file),
                0,
                0,
                nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED,
            )
            .unwrap();
            for at in (0..size).step_by(MIB as usize) {
                if at == cut_at {
                    assert_eq!(rig.gets(), 0);
                    open(file).set_len(MIB).unwrap();
                }
                let read = read_as_the_driver_does(&rig, &object, ino, at).await;
                let end = size.min(at + MIB);
                assert!(read == bytes[at as usize..end as usize], "{at}");
            }
        }
        assert!(rig.gets() > 0, "what was cut off came from the remote");
        assert!(rig.cache.store().metrics().repairs.get() > 0);
    });
}

#[test]
fn metadata_reaches_the_disk_without_any_chunk() {
    run(async |dir, remote| {
        remote.put("a", content(1, 5));
        let rig = Rig::open(&dir, &remote, None, LONG).await;
        let node = rig.node("a").await;
        // As a crash leaves it: a copy of the directory, made while it is open.
        let copy = temp();
        let start = std::time::Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "the listing never became durable");
            std::fs::copy(dir.join("index.redb"), copy.path().join("index.redb")).unwrap();
            let crashed = ScriptedRemote::new();
            let after = Rig::open(copy.path(), &crashed, None, Duration::from_secs(1)).await;
            let found = after.tree.node(node.id).unwrap().is_some();
            after.close();
            if found {
                break;
            }
        }
        assert!(matches!(rig.tree.child(rig.tree.root(), "a").unwrap(), Child::Known(_)));
    });
}

#[test]
fn readahead_stays_below_the_cap_on_downloads() {
    // Within the largest window, which is planned at once.
    const CAP: u64 = 40 * MIB;
    run(async |dir, remote| {
        remote.put("big", vec![7; 160 * MIB as usize]);
        let metrics = Arc::<RemoteMetrics>::default();
        let endpoint = Endpoints::default().of(remote.id());
        let traffic = TrafficOptions { max_download: Some(CAP), ..TrafficOptions::default() };
        let client =
            RemoteClient::for_mount(Arc::new(remote.clone()), metrics.clone(), endpoint, &traffic);
        let rig = Rig::open_with(&dir, &remote, None, LONG, (Arc::new(client), metrics)).await;
        let object = rig.object("big").await;
        for at in (0..CAP).step_by(CHUNK as usize) {
            assert_eq!(object.read(at, CHUNK).await.unwrap().data.len() as u64, CHUNK);
        }
        assert_eq!(fetched_bytes(&remote, "big"), CAP, "all that may be, and no more");
        // A reader still gets what it asks for.
        assert_eq!(object.read(CAP, CHUNK).await.unwrap().data.len() as u64, CHUNK);
        assert_eq!(fetched_bytes(&remote, "big"), CAP + CHUNK);
    });
}

#[test]
fn what_is_being_listed_ahead_ends_with_the_mount() {
    // Between two folders, and between two pages of one.
    for (page_keys, held) in [(1_000, 8), (10, 1)] {
        run(async |dir, remote| {
            for folder in 0..100 {
                remote.put(&format!("{folder:03}/a"), content(1, 10));
            }
            remote.set_page_keys(page_keys);
            let rig = Rig::open(&dir, &remote, None, LONG).await;
            let before = remote.count(RequestKind::List);
            remote.gate().close();
            rig.tree.start_warming(WarmOption::All);
            remote.gate().wait_for_held(held).await;
            rig.tree.end();
            let tree = Arc::downgrade(&rig.tree);
            drop(rig);
            remote.gate().release_all();
            eventually("nobody holds the tree", || tree.strong_count() == 0).await;
            assert_eq!(remote.count(RequestKind::List), before + held);
            assert_eq!(remote.count(RequestKind::Get), 0);
        });
    }
}
