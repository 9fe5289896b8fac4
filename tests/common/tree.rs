//! Trees of files to mount, and their comparison with what was read.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use warmfs::cache::CHUNK_BYTES;

/// Names that somebody on the way may want to quote, decode or split.
const ODD_NAMES: [&str; 8] = [
    "odd/with space",
    "odd/plus+and%2Bpercent%",
    "odd/Grüße/日本語 🗄",
    "odd/\"double\" and 'single'",
    "odd/#hash?query&amp;=x",
    "odd/back\\slash",
    "odd/-dash",
    "odd/<tag>;semi:colon,comma",
];

/// Names relative to the tree's top, and what they hold.
pub struct Tree {
    pub files: BTreeMap<String, Bytes>,
}

impl Tree {
    /// Sizes around every bound that matters, in nested folders, and `large`
    /// objects of 100 MiB.
    pub fn of_all_sizes(large: usize) -> Tree {
        let chunk = usize::try_from(CHUNK_BYTES).unwrap();
        let mut files = BTreeMap::new();
        let sizes = [0, 1, 2, chunk - 1, chunk, chunk + 1, 3 * chunk, (5 << 20) + 17];
        for (at, folder) in ["", "a/", "a/b/c/d/"].into_iter().enumerate() {
            for size in sizes {
                let seed = (at * sizes.len() + size) as u64;
                files.insert(format!("{folder}of-{size}"), noise(seed, size));
            }
        }
        for n in 0..40 {
            files.insert(format!("many/{n:03}"), noise(1_000 + n, 100 + n as usize));
        }
        for name in ODD_NAMES {
            files.insert(name.to_owned(), Bytes::from(name.to_owned()));
        }
        for n in 0..large {
            files.insert(format!("large/{n}"), noise(2_000 + n as u64, 100 << 20));
        }
        Tree { files }
    }

    /// Writes it below `dir`.
    pub fn write_to(&self, dir: &Path) {
        for (name, bytes) in &self.files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// Bytes in all files.
    pub fn bytes(&self) -> u64 {
        self.files.values().map(|bytes| bytes.len() as u64).sum()
    }

    /// Files that hold at least a byte.
    pub fn filled(&self) -> u64 {
        self.files.values().filter(|bytes| !bytes.is_empty()).count() as u64
    }

    /// Fails unless `dir` holds exactly these files.
    pub fn assert_equals(&self, dir: &Path, what: &str) {
        let mut found = BTreeMap::new();
        collect(dir, "", &mut found);
        let names: Vec<_> = found.keys().collect();
        assert_eq!(names, self.files.keys().collect::<Vec<_>>(), "{what}");
        for (name, bytes) in &self.files {
            assert_same(&found[name], bytes, &format!("{what}: {name}"));
        }
    }
}

/// Fails with the place of the first difference.
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("{what}: byte {at} is {} and should be {}", found[at], expected[at]);
    }
}

fn collect(dir: &Path, above: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{above}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// Bytes that do not repeat; equal seeds give equal bytes.
pub fn noise(seed: u64, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    Bytes::from(bytes)
}
