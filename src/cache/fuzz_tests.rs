//! Fuzz targets for what is read from the index.

use std::fmt::Debug;

use serde::de::DeserializeOwned;
use serde::ser::SerializeTuple;
use serde::{Serialize, Serializer};

use super::chunk_map::{CHUNK_BYTES, ChunkMap, Presence, chunk_count};
use super::record::*;
use crate::fuzz::{Effort, Target, fuzz_tests};
use crate::remote::Version;

/// serde sets aside up to 1 MiB for a sequence whose length is claimed, and a
/// row has two. An element in memory has at most 4 times its bytes on disk,
/// and a row is decoded, encoded and decoded again.
const MEMORY: (usize, usize) = (5 << 20, 64);

fuzz_tests!(rows, chunk_rows);

/// Any bytes as a row under a checksum that is right: what a checksum cannot
/// keep out is a row of another schema, or one that was written to be there.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        for byte in self.0 {
            tuple.serialize_element(byte)?;
        }
        tuple.end()
    }
}

const KEY: RowKey<'_> = RowKey(1, 2, b"name");

/// The bytes of a row without their checksum.
fn body(row: &impl Serialize) -> Vec<u8> {
    let mut bytes = encode(&KEY, row);
    bytes.truncate(bytes.len() - 4);
    bytes
}

fn attr() -> ObjectAttr {
    ObjectAttr {
        size: 1 << 40,
        mtime_ns: 1_700_000_000_000_000_000,
        version: Version("0123456789abcdef-7".into()),
        key_name: Some("Grüße".into()),
    }
}

fn valid_rows() -> Vec<Vec<u8>> {
    let parent = NodeId(77);
    let name = "shard-000017.tar".to_owned();
    let fingerprint = Fingerprint { ino: 1 << 33, size: 99, mtime_ns: -1, ctime_ns: i64::MAX };
    let object = ObjectRow {
        location: Location::OwnFile(FileId { node: NodeId(7), nonce: 7 }),
        size: 1 << 40,
        version: attr().version,
        present_bytes: 1 << 30,
        fingerprint,
        verified_boot: Some(u128::MAX / 3),
        used_ms: 1 << 41,
    };
    vec![
        body(&NodeRow::Current { parent, name: name.clone() }),
        body(&NodeRow::Superseded { parent, name, attr: Some(attr()) }),
        body(&EntryRow { node: NodeId(300), seen_ms: 1 << 41, object: Some(attr()) }),
        body(&EntryRow { node: NodeId(3), seen_ms: 0, object: None }),
        body(&FolderRow { listed_ms: Some(7), hidden: 3, ..FolderRow::default() }),
        body(&ObjectRow { verified_boot: None, ..object.clone() }),
        body(&object),
        body(&ChunkGroupRow { present: vec![0xff; 128], crcs: vec![u32::MAX; 1024] }),
        body(&ChunkGroupRow { present: vec![5], crcs: vec![1, 2] }),
    ]
}

/// Whether `input` is a row of this type; if so, it comes back from the disk.
fn decodes<T: Serialize + DeserializeOwned + PartialEq + Debug>(stored: &[u8]) -> bool {
    let Some(row) = decode::<T>(&KEY, stored) else { return false };
    let again = encode(&KEY, &row);
    assert_eq!(decode::<T>(&KEY, &again).as_ref(), Some(&row));
    true
}

fn rows(effort: Effort) {
    let target = Target {
        name: "index rows",
        corpus: valid_rows(),
        words: &["name", "\u{0}", "~object"],
        inputs: 20_000,
        memory: MEMORY,
    };
    target.run(effort, |input| {
        let stored = encode(&KEY, &Raw(input));
        let accepted = [
            decodes::<NodeRow>(&stored),
            decodes::<EntryRow>(&stored),
            decodes::<FolderRow>(&stored),
            decodes::<ObjectRow>(&stored),
            decodes::<ChunkGroupRow>(&stored),
            decodes::<NodeId>(&stored),
        ];
        // Under another key, and as it is, it is no row.
        assert_eq!(decode::<NodeId>(&RowKey(1, 3, b"name"), &stored), None);
        decode::<EntryRow>(&KEY, input);
        accepted.contains(&true)
    });
}

/// A group's number and its row, after the object's size.
fn chunk_rows(effort: Effort) {
    let with = |size: u64, group: u32, row: Vec<u8>| {
        [&size.to_le_bytes()[..], &group.to_le_bytes(), &row].concat()
    };
    let full = ChunkGroupRow { present: vec![0xff; 128], crcs: (0..1024).collect() };
    let corpus = vec![
        with(CHUNK_BYTES * 2500 + 7, 2, body(&full)),
        with(1, 0, body(&ChunkGroupRow { present: vec![1], crcs: vec![9] })),
        with(1 << 46, 524_287, body(&full)),
    ];
    let target = Target {
        name: "chunk rows",
        corpus,
        words: &["\u{7f}\u{7f}\u{7f}\u{7f}"],
        inputs: 20_000,
        memory: MEMORY,
    };
    target.run(effort, |input| {
        let Some((size, rest)) = input.split_first_chunk() else { return false };
        let Some((group, row)) = rest.split_first_chunk() else { return false };
        let (size, group) = (u64::from_le_bytes(*size), u32::from_le_bytes(*group));
        let Some(row) = decode::<ChunkGroupRow>(&KEY, &encode(&KEY, &Raw(row))) else {
            return false;
        };
        check_map(size, group, row);
        true
    });
}

fn check_map(size: u64, group: u32, row: ChunkGroupRow) {
    let mut map = ChunkMap::load(size, &[(group, row)], false);
    assert!(map.present_bytes() <= size);
    assert_eq!(map.presence(chunk_count(size)), Presence::Absent);
    let Some(first) = group.checked_mul(GROUP_CHUNKS).filter(|first| *first < chunk_count(size))
    else {
        return assert_eq!(map.present_bytes(), 0);
    };
    let kept = map.group_row(group);
    let again = ChunkMap::load(size, &[(group, kept.clone())], true);
    assert_eq!(again.present_bytes(), map.present_bytes());
    assert_eq!(again.group_row(group), kept);
    assert!(again.is_all_verified());
    for bit in 0..GROUP_CHUNKS {
        if let Some(chunk) = first.checked_add(bit) {
            map.mark_verified(chunk);
            map.remove(chunk);
        }
    }
    assert_eq!(map.present_bytes(), 0);
}
