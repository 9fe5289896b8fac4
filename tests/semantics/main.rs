//! What a mount shows, statement by statement: `docs/semantics.md`, through the real
//! binary and the real kernel. Each test names in its comment the statements it holds;
//! where another file holds one, the statement itself says so.

#[path = "../common/mod.rs"]
mod common;

mod attributes;
mod calls;
mod freshness;
mod names;
mod xattrs;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use common::Warmfs;
use common::store::{BUCKET, Store};

/// Puts objects that hold their own key.
fn put_keys(store: &Store, keys: &[&str]) {
    for key in keys {
        store.put(BUCKET, *key, Bytes::from((*key).to_owned()));
    }
}

/// A mount of `s3://bucket/data` of which nothing is fetched before it is read.
fn mount_data(warmfs: &Warmfs) -> PathBuf {
    mount_data_with(warmfs, &[])
}

fn mount_data_with(warmfs: &Warmfs, options: &[&str]) -> PathBuf {
    // On a disk that is nearly full nothing would be kept without a size.
    let options = [&["--warm", "off", "--cache-size", "1G"], options].concat();
    warmfs.mount_with("s3://bucket/data", "mount", &options)
}

/// The names in a folder, each of them once.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let all: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    let names: BTreeSet<String> = all.iter().cloned().collect();
    assert_eq!(names.len(), all.len(), "a name is listed twice: {all:?}");
    names
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

/// Everything at or below a folder, sorted.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for name in names(dir) {
        let path = dir.join(name);
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => all.extend(walk(&path)),
            false => all.push(path),
        }
    }
    all
}

fn requests(store: &Store) -> u64 {
    let counts = store.counts();
    counts.get.requests + counts.head.requests + counts.list.requests + counts.other.requests
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// The error number of a call that says -1 for one; 0 for success.
fn errno(result: impl Into<i64>) -> i32 {
    match result.into() {
        -1 => io::Error::last_os_error().raw_os_error().unwrap(),
        _ => 0,
    }
}

/// The error number of an operation of the standard library; 0 for success.
fn errno_of<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |_| 0)
}

// ---------------------------------------------------------------------------
// The document and the tests, held against each other
// ---------------------------------------------------------------------------

/// The statements of the document, and the tests that each of them names.
fn statements(root: &Path) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut statements = BTreeMap::new();
    // What is said of a statement ends with the next one, or with its group.
    for part in text.split("\n- **").skip(1) {
        let (id, rest) = part.split_once("**").unwrap();
        let rest = rest.split("\n#").next().unwrap();
        let quoted = rest.split('`').skip(1).step_by(2);
        let named = quoted.filter(|text| text.contains(".rs::")).map(str::to_owned).collect();
        let is_new = statements.insert(id.to_owned(), named).is_none();
        assert!(is_new, "{id} stands twice in docs/semantics.md");
    }
    statements
}

/// The `#[test]` functions of a file, and the statements that their comments name:
/// `/// S1, S2: what it is about`.
fn tests_of(file: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    let (mut tests, mut ids, mut is_test) = (BTreeMap::new(), BTreeSet::new(), false);
    for line in text.lines().map(str::trim) {
        if let Some(list) = line.strip_prefix("/// S").and_then(|rest| rest.split_once(':')) {
            let numbers = list.0.split(',').map(|id| id.trim().trim_start_matches('S'));
            ids.extend(numbers.map(|number| format!("S{number}")));
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| is_test) {
            let name = rest.split('(').next().unwrap().to_owned();
            tests.insert(name, std::mem::take(&mut ids));
            is_test = false;
        }
    }
    tests
}

#[test]
fn every_statement_has_a_test_and_every_test_a_statement() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let statements = statements(root);
    for (n, id) in (1..=statements.len()).map(|n| (n, format!("S{n}"))) {
        assert!(statements.contains_key(&id), "docs/semantics.md has no statement {n}");
    }
    let mut held = BTreeSet::new();
    for file in fs::read_dir(root.join("tests/semantics")).unwrap().map(Result::unwrap) {
        for (test, ids) in tests_of(&file.path()) {
            let is_this = test == "every_statement_has_a_test_and_every_test_a_statement";
            assert!(is_this || !ids.is_empty(), "{test} names no statement");
            for id in &ids {
                assert!(statements.contains_key(id), "{test} names {id}, which is no statement");
            }
            held.extend(ids);
        }
    }
    for (id, named) in &statements {
        for test in named {
            let (file, name) = test.split_once("::").unwrap();
            assert!(tests_of(&root.join(file)).contains_key(name), "{id}: there is no {test}");
        }
        assert!(held.contains(id) || !named.is_empty(), "{id} has no test");
    }
}
