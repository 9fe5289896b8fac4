//! Knowledge flows one way: the arrows of ARCHITECTURE.md, held against the
//! paths that the code names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each layer, and the layers it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["config", "control", "daemon", "embedded_store", "linux", "units"]),
    ("control", &["config"]),
    ("daemon", &["admission", "cache", "config", "control", "fs", "metrics", "remote", "units"]),
    ("fs", &["cache", "config", "linux", "metrics", "remote", "units"]),
    ("cache", &["admission", "config", "linux", "metrics", "remote"]),
    ("remote", &["admission", "config", "metrics"]),
    ("embedded_store", &[]),
    ("admission", &[]),
    ("config", &[]),
    ("linux", &[]),
    ("metrics", &[]),
    ("units", &[]),
];

/// For the unit tests of every layer.
const FOR_TESTS: &str = "fuzz";

/// All that `fs` may name of `remote`: what went wrong, to make an errno of it.
const ERRORS_OF_REMOTE: &[&str] = &["{ErrorKind, RemoteError}", "ErrorKind"];

/// The only files that speak to the kernel.
const FUSER_FILES: &[&str] = &["src/fs/driver.rs", "src/fs/session.rs"];

fn source_files() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pending = vec![root.join("src")];
    let mut files = Vec::new();
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(files.len() > 40, "the sources were not found");
    files
}

/// Code without comments, unit tests left in.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn layer_of(path: &Path) -> String {
    let first = path.components().nth(1).unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// What follows each `crate::`, or `warmfs::` in the binary; elsewhere that is a word of
/// the log.
fn named<'a>(layer: &str, code: &'a str) -> impl Iterator<Item = &'a str> {
    let root = if layer == "main" { "warmfs::" } else { "crate::" };
    code.match_indices(root)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .map(|(at, root)| &code[at + root.len()..])
}

#[test]
fn arrows_point_one_way() {
    let layers: BTreeSet<&str> = LAYERS.iter().map(|(layer, _)| *layer).collect();
    for (path, text) in source_files() {
        let layer = layer_of(&path);
        if layer == "lib" || layer == FOR_TESTS {
            continue;
        }
        let (_, allowed) = LAYERS
            .iter()
            .find(|(name, _)| *name == layer)
            .unwrap_or_else(|| panic!("{} belongs to no layer", path.display()));
        let code = code(&text);
        for target in named(&layer, &code) {
            let name = target.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            if name == FOR_TESTS {
                continue;
            }
            assert!(layers.contains(name), "{}: crate::{name}?", path.display());
            assert!(
                name == layer || allowed.contains(&name),
                "{} names crate::{name}: {layer} may name {allowed:?}",
                path.display()
            );
            if layer == "fs" && name == "remote" {
                let item = &target["remote::".len()..];
                assert!(
                    ERRORS_OF_REMOTE.iter().any(|errors| item.starts_with(errors)),
                    "{} names more of remote than its errors",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn two_files_speak_to_the_kernel() {
    let speaking: BTreeSet<String> = source_files()
        .into_iter()
        .filter(|(_, text)| code(text).contains("fuser::"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert_eq!(speaking, FUSER_FILES.iter().map(|file| (*file).to_owned()).collect());
}
