//! Power cuts while the index is written: what lies on the disk then is all
//! that was synced, and any part of what was written after, in any order, some
//! of it torn at a sector. Each such image is opened as a mount opens it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use redb::StorageBackend;

use super::index::{Index, Opened};
use super::lock;
use super::record::{
    ChunkGroupRow, EntryRow, FileId, Fingerprint, Location, NodeId, NodeRow, ObjectRow,
};
use crate::remote::{RemoteId, Version};

/// Disks write sectors whole, and no more than that.
const SECTOR: usize = 512;

/// Transactions of the life that is cut short.
const STEPS: u64 = 18;

/// Power cuts at each sync of it.
const CUTS_PER_SYNC: usize = 5;

/// Objects that change again and again.
const OBJECTS: u64 = 7;

thread_local! {
    static RECORDING: RefCell<Option<Arc<Recording>>> = const { RefCell::new(None) };
}

/// `inner`, recorded, if this thread asked for that.
pub(super) fn recorded(inner: Box<dyn StorageBackend>) -> Box<dyn StorageBackend> {
    match RECORDING.with_borrow(Option::clone) {
        Some(recording) => Box::new(Recorder { inner, recording }),
        None => inner,
    }
}

/// Everything that was done to a file, in order.
#[derive(Debug, Default)]
struct Recording(Mutex<Vec<Change>>);

#[derive(Clone, Debug)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Resize(u64),
    Sync,
}

#[derive(Debug)]
struct Recorder {
    inner: Box<dyn StorageBackend>,
    recording: Arc<Recording>,
}

impl Recorder {
    fn note(&self, change: Change) {
        lock(&self.recording.0).push(change);
    }
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Change::Resize(len));
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        self.note(Change::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(Change::Write { offset, bytes: data.to_vec() });
        self.inner.write(offset, data)
    }
}

/// What the index holds of every node, in words.
type Rows = BTreeMap<u64, String>;

fn rows(index: &Index) -> Rows {
    let row = |node: u64| {
        let id = NodeId(node);
        let object = index.object(id).unwrap();
        let groups = index.chunk_groups(id).unwrap();
        let name = index.node(id).unwrap();
        let entry = index.entry(NodeId(1), &node.to_string()).unwrap();
        (node, format!("{object:?} {groups:?} {name:?} {entry:?}"))
    };
    (1..=OBJECTS).map(row).collect()
}

/// Changes some objects as a flush does, and forgets one now and then.
fn change(index: &Index, step: u64, dice: &mut fastrand::Rng) {
    let change = |write: &mut super::index::Write<'_>| {
        for node in 1..=OBJECTS {
            if dice.bool() {
                continue;
            }
            let id = NodeId(node);
            if dice.u8(..8) == 0 {
                write.remove_object(id)?;
                write.remove_entry(NodeId(1), &node.to_string())?;
                continue;
            }
            let name = node.to_string();
            write.put_node(id, &NodeRow::Current { parent: NodeId(1), name: name.clone() })?;
            let entry = EntryRow { node: id, seen_ms: step, object: None };
            write.put_entry(NodeId(1), &name, &entry)?;
            for group in 0..dice.u32(1..4) {
                let crcs = (0..1024).map(|_| dice.u32(..)).collect();
                write.put_chunk_group(
                    id,
                    group,
                    &ChunkGroupRow { present: vec![0xff; 128], crcs },
                )?;
            }
            write.put_object(id, &object_row(step))?;
        }
        Ok(())
    };
    // Most changes are listings, visible at once; a flush makes them durable.
    if step.is_multiple_of(3) {
        index.write_durably(change).unwrap();
    } else {
        index.write(change).unwrap();
    }
}

fn object_row(step: u64) -> ObjectRow {
    ObjectRow {
        location: Location::OwnFile(FileId { node: NodeId(step), nonce: step }),
        size: step,
        version: Version(format!("v{step}")),
        present_bytes: step,
        fingerprint: Fingerprint { ino: step, size: step, mtime_ns: 0, ctime_ns: 0 },
        verified_boot: Some(7),
        used_ms: step,
    }
}

/// A life of the index: what was done to its file, and its rows at each
/// moment they were durable, with the number of changes that had reached it.
fn live(dir: &Path, dice: &mut fastrand::Rng) -> (Vec<Change>, Vec<(usize, Rows)>) {
    let recording = Arc::<Recording>::default();
    RECORDING.set(Some(recording.clone()));
    let done = || lock(&recording.0).len();
    let Opened { index, .. } =
        Index::open(&dir.join("index.redb"), crate::cache::index::PAGE_CACHE_BYTES).unwrap();
    RECORDING.set(None);
    index.write_durably(|write| write.bucket(&RemoteId("x".into()), 1)).unwrap();
    let mut durable = vec![(done(), rows(&index))];
    for step in 1..=STEPS {
        change(&index, step, dice);
        if step.is_multiple_of(3) {
            durable.push((done(), rows(&index)));
        }
    }
    let changes = lock(&recording.0).clone();
    (changes, durable)
}

/// What a power cut after `done` changes leaves of the file.
fn image(changes: &[Change], done: usize, dice: &mut fastrand::Rng) -> Vec<u8> {
    let synced = changes[..done].iter().rposition(|change| matches!(change, Change::Sync));
    let synced = synced.map_or(0, |at| at + 1);
    let mut image = Vec::new();
    for change in &changes[..synced] {
        apply(&mut image, change, |_| true);
    }
    let mut later: Vec<_> = changes[synced..done].iter().filter(|_| dice.u8(..4) > 0).collect();
    if dice.bool() {
        dice.shuffle(&mut later);
    }
    for change in later {
        let torn = dice.u8(..3) == 0;
        apply(&mut image, change, |_| !torn || dice.bool());
    }
    image
}

/// Does `change` to `image`, in those sectors that `reaches` names.
fn apply(image: &mut Vec<u8>, change: &Change, mut reaches: impl FnMut(usize) -> bool) {
    match change {
        Change::Sync => {}
        Change::Resize(len) => image.resize(*len as usize, 0),
        Change::Write { offset, bytes } => {
            let start = *offset as usize;
            if image.len() < start + bytes.len() {
                image.resize(start + bytes.len(), 0);
            }
            // redb writes whole pages: sectors of the write are sectors of the disk.
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                if reaches(n) {
                    let at = start + n * SECTOR;
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
    }
}

#[test]
fn after_a_power_cut_the_index_is_as_it_was_at_a_flush() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (changes, durable) = live(dir.path(), &mut dice);
    let path = dir.path().join("image.redb");
    let first = durable[0].0;
    let moments = (first..=changes.len()).flat_map(|done| {
        // Between two syncs many moments are alike; at a sync all of them count.
        let near_sync = changes[done.saturating_sub(1)..(done + 1).min(changes.len())]
            .iter()
            .any(|change| matches!(change, Change::Sync));
        std::iter::repeat_n(done, if near_sync { CUTS_PER_SYNC } else { 1 })
    });
    for done in moments {
        fs::write(&path, image(&changes, done, &mut dice)).unwrap();
        let Opened { index, fresh, .. } =
            Index::open(&path, crate::cache::index::PAGE_CACHE_BYTES).unwrap();
        assert!(!fresh, "cut after {done} changes: the index was set aside");
        let found = rows(&index);
        let last = durable.iter().rposition(|(at, _)| *at <= done).unwrap();
        let next = durable.get(last + 1);
        assert!(
            found == durable[last].1 || next.is_some_and(|(_, rows)| *rows == found),
            "cut after {done} changes: rows that were not, or no longer"
        );
        index.close(true).unwrap();
    }
}

#[test]
fn a_power_cut_while_the_index_is_created_costs_nothing() {
    let mut dice = fastrand::Rng::new();
    let dir = tempfile::tempdir().unwrap();
    let (changes, durable) = live(dir.path(), &mut dice);
    let path = dir.path().join("image.redb");
    for done in 0..durable[0].0 {
        for _ in 0..CUTS_PER_SYNC {
            fs::write(&path, image(&changes, done, &mut dice)).unwrap();
            let Opened { index, .. } =
                Index::open(&path, crate::cache::index::PAGE_CACHE_BYTES).unwrap();
            assert!(rows(&index).values().all(|row| row.starts_with("None [] None None")));
            index.close(true).unwrap();
        }
    }
}
