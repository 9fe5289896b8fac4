//! Programs that look for holes, map files, or let the kernel copy: each must
//! get every byte of files that are not in the cache, in it by half, and whole.
//!
//! A file of ours that is not cached takes no blocks and one that is half
//! cached is sparse on disk; a tool that believed either would copy zeros.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::{Bytes, BytesMut};
use common::Warmfs;
use common::store::Store;
use common::tree::{Tree, assert_same, noise};
use warmfs::cache::CHUNK_BYTES;

/// How much of a file the cache holds when a tool begins.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Cached {
    Nothing,
    Half,
    Everything,
}

/// Larger than what is fetched whole at the first touch, with a tail.
const LARGE_BYTES: usize = (9 << 20) + 4_097;

/// What `grep` looks for, and the number of lines that hold it.
const NEEDLE: &str = "needle";
const NEEDLE_LINES: usize = 300;

fn tree() -> Tree {
    let chunk = CHUNK_BYTES as usize;
    let mut files = std::collections::BTreeMap::new();
    for size in [0, 1, chunk, chunk + 1] {
        files.insert(format!("small/of-{size}"), noise(size as u64, size));
    }
    files.insert("noise".to_owned(), noise(77, LARGE_BYTES));
    // Zeros are what a hole reads as: these must come out as sparse or as
    // zeros, and the bytes around them where they were.
    let mut zeros = BytesMut::zeroed(LARGE_BYTES);
    for at in [3 << 20, (6 << 20) + 1_000] {
        zeros[at..at + 5_000].copy_from_slice(&noise(at as u64, 5_000));
    }
    files.insert("zeros".to_owned(), zeros.freeze());
    let mut text = String::new();
    for line in 0.. {
        let word = if line % 800 == 0 && line / 800 < NEEDLE_LINES { NEEDLE } else { "hay" };
        text.push_str(&format!(
            "line {line} holds {word} and {:x}\n",
            line * 2_654_435_761_u64 as usize
        ));
        if text.len() > LARGE_BYTES {
            break;
        }
    }
    files.insert("text".to_owned(), Bytes::from(text));
    Tree { files }
}

/// Runs `tool` on a mounted tree in each state of the cache. It gets the
/// mounted folder and a new one of its own.
fn in_each_state(tool: impl Fn(Cached, &Tree, &Path, &Path)) {
    let store = Store::start();
    let tree = tree();
    let states = [Cached::Nothing, Cached::Half, Cached::Everything];
    for state in states {
        store.put_tree(&format!("{state:?}/"), &tree);
    }
    let warmfs = store.warmfs();
    let mount = warmfs.mount_uri("s3://bucket", "mount");
    for state in states {
        let from = mount.join(format!("{state:?}"));
        prepare(&warmfs, state, &tree, &from);
        let to = warmfs.path(&format!("{state:?}"));
        fs::create_dir(&to).unwrap();
        tool(state, &tree, &from, &to);
    }
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

/// Brings the files below `from` into a state, out of the kernel's page cache
/// but for what cannot be helped.
fn prepare(warmfs: &Warmfs, state: Cached, tree: &Tree, from: &Path) {
    let before = cached_bytes(warmfs);
    for (name, bytes) in &tree.files {
        let file = File::open(from.join(name)).unwrap();
        match state {
            Cached::Nothing => continue,
            Cached::Half => {
                // Reads here and there are no stream: little comes with them.
                for at in [5 << 20, 7 << 20] {
                    let mut buffer = [0; 64 << 10];
                    if at + buffer.len() < bytes.len() {
                        advise(&file, libc::POSIX_FADV_RANDOM);
                        file.read_exact_at(&mut buffer, at as u64).unwrap();
                    }
                }
            }
            Cached::Everything => {
                assert_same(&fs::read(from.join(name)).unwrap(), bytes, "prepared");
            }
        }
        advise(&file, libc::POSIX_FADV_DONTNEED);
    }
    let gained = cached_bytes(warmfs) - before;
    match state {
        Cached::Nothing => assert_eq!(gained, 0),
        Cached::Half => assert!(gained > 0 && gained < tree.bytes() * 3 / 4, "{gained}"),
        Cached::Everything => assert_eq!(gained, tree.bytes()),
    }
}

/// What came from the store so far, which is what the cache got.
fn cached_bytes(warmfs: &Warmfs) -> u64 {
    warmfs.status()["remote"]["get"]["bytes"].as_u64().unwrap()
}

fn advise(file: &File, advice: libc::c_int) {
    // SAFETY: a system call on a descriptor that is open.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) };
    assert_eq!(result, 0);
}

/// Runs a program of the machine to its end; it must succeed and say nothing
/// on stderr. Returns its stdout.
fn run(program: &str, args: &[&dyn AsRef<std::ffi::OsStr>]) -> String {
    let mut command = Command::new(program);
    for arg in args {
        command.arg(arg);
    }
    let output = match command.stdin(Stdio::null()).env("LC_ALL", "C").output() {
        Ok(output) => output,
        Err(error) => panic!("{program} cannot be run ({error}): run ./check, which installs it"),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{program}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn cp_that_looks_for_holes() {
    in_each_state(|state, tree, from, to| {
        run("cp", &[&"-r", &"--sparse=auto", &from.join("."), &to]);
        tree.assert_equals(to, &format!("cp --sparse=auto, {state:?}"));
    });
}

#[test]
fn cp_that_keeps_everything() {
    in_each_state(|state, tree, from, to| {
        run("cp", &[&"-a", &from.join("."), &to]);
        tree.assert_equals(to, &format!("cp -a, {state:?}"));
    });
}

#[test]
fn tar_that_looks_for_holes() {
    in_each_state(|state, tree, from, to| {
        let archive = to.with_extension("tar");
        run("tar", &[&"-S", &"-cf", &archive, &"-C", &from, &"."]);
        run("tar", &[&"-xf", &archive, &"-C", &to, &"--no-same-owner"]);
        tree.assert_equals(to, &format!("tar -S, {state:?}"));
    });
}

#[test]
fn bsdtar_that_looks_for_holes_by_itself() {
    in_each_state(|state, tree, from, to| {
        let archive = to.with_extension("tar");
        run("bsdtar", &[&"-cf", &archive, &"-C", &from, &"."]);
        run("bsdtar", &[&"-xf", &archive, &"-C", &to]);
        tree.assert_equals(to, &format!("bsdtar, {state:?}"));
    });
}

#[test]
fn rsync_that_makes_holes() {
    in_each_state(|state, tree, from, to| {
        run("rsync", &[&"-rS", &from.join(""), &to]);
        tree.assert_equals(to, &format!("rsync -S, {state:?}"));
    });
}

#[test]
fn grep_that_skips_holes() {
    in_each_state(|state, _, from, _| {
        let count = run("grep", &[&"-c", &NEEDLE, &from.join("text")]);
        assert_eq!(count.trim(), NEEDLE_LINES.to_string(), "grep -c, {state:?}");
        let found = run("grep", &[&"-r", &"-l", &NEEDLE, &from]);
        assert_eq!(found.trim(), from.join("text").to_str().unwrap(), "grep -r, {state:?}");
        // "Binary file matches" comes from a hole that grep believes to see.
        let lines = run("grep", &[&"-r", &"--include=text", &NEEDLE, &from]);
        assert_eq!(lines.lines().count(), NEEDLE_LINES, "grep -r, {state:?}");
    });
}

#[test]
fn the_kernel_sends_a_file() {
    in_each_state(|state, tree, from, _| {
        for (name, bytes) in &tree.files {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let file = File::open(from.join(name)).unwrap();
            let size = bytes.len();
            let sent = std::thread::scope(|scope| {
                scope.spawn(move || {
                    let mut left = size;
                    while left > 0 {
                        // SAFETY: both descriptors are open, and no offset is given.
                        let n = unsafe {
                            let none = std::ptr::null_mut();
                            libc::sendfile(writer.as_raw_fd(), file.as_raw_fd(), none, left)
                        };
                        assert!(n > 0, "{}", std::io::Error::last_os_error());
                        left -= n as usize;
                    }
                });
                let mut sent = Vec::new();
                reader.read_to_end(&mut sent).unwrap();
                sent
            });
            assert_same(&sent, bytes, &format!("sendfile, {state:?}, {name}"));
        }
    });
}

#[test]
fn the_kernel_copies_a_range() {
    in_each_state(|state, tree, from, to| {
        for (name, bytes) in &tree.files {
            let mut file = File::open(from.join(name)).unwrap();
            let path = to.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut copy = File::create(path).unwrap();
            let mut left = bytes.len();
            while left > 0 {
                let none = std::ptr::null_mut();
                // SAFETY: both descriptors are open, and no offsets are given.
                let n = unsafe {
                    libc::copy_file_range(file.as_raw_fd(), none, copy.as_raw_fd(), none, left, 0)
                };
                if n < 0 {
                    // Kernels from 5.19 on refuse to copy between two kinds of
                    // file system, and programs then do it by themselves.
                    let error = std::io::Error::last_os_error();
                    assert_eq!(error.raw_os_error(), Some(libc::EXDEV), "{name}");
                    std::io::copy(&mut file, &mut copy).unwrap();
                    break;
                }
                assert!(n > 0, "{name} ends {left} bytes early");
                left -= n as usize;
            }
        }
        tree.assert_equals(to, &format!("copy_file_range, {state:?}"));
    });
}

/// Elements here and there of both files, in an order of its own.
const MEMMAP: &str = "
import sys, numpy
ours, source = (numpy.memmap(path, dtype=numpy.uint8, mode='r') for path in sys.argv[1:3])
assert ours.shape == source.shape, (ours.shape, source.shape)
random = numpy.random.default_rng(7)
for _ in range(400):
    start = int(random.integers(0, len(source)))
    length = int(random.integers(1, 20000))
    if not numpy.array_equal(ours[start:start + length], source[start:start + length]):
        sys.exit(f'differs in {start}..{start + length}')
if not numpy.array_equal(ours, source):
    sys.exit('differs as a whole')
";

#[test]
fn numpy_maps_a_file_and_reads_at_random() {
    in_each_state(|state, tree, from, to| {
        let python = python();
        for name in ["noise", "zeros"] {
            let source = to.join(name);
            fs::write(&source, &tree.files[name]).unwrap();
            let said = run(python.to_str().unwrap(), &[&"-c", &MEMMAP, &from.join(name), &source]);
            assert_eq!(said, "", "numpy.memmap, {state:?}, {name}");
        }
    });
}

fn python() -> PathBuf {
    let home = std::env::var_os("WARMFS_TEST_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/warmfs-test")
    });
    let python = home.join("venv/bin/python");
    assert!(python.is_file(), "{} is missing: run ./check, which installs it", python.display());
    python
}

#[test]
fn a_mapping_outlives_its_file_descriptor() {
    in_each_state(|state, tree, from, _| {
        let names = tree.files.iter().filter(|(_, bytes)| !bytes.is_empty());
        let maps: Vec<_> = names
            .map(|(name, bytes)| {
                let file = File::open(from.join(name)).unwrap();
                (name, bytes, Mapping::new(&file, bytes.len()))
            })
            .collect();
        // Every descriptor is closed by now. From the end, against any readahead.
        for (name, bytes, map) in maps.iter().rev() {
            let mut from_end = Vec::new();
            for page in map.bytes().rchunks(4096) {
                from_end.push(page.to_vec());
            }
            let read = from_end.into_iter().rev().flatten().collect::<Vec<u8>>();
            assert_same(&read, bytes, &format!("mmap, {state:?}, {name}"));
        }
    });
}

/// A file in memory, read-only.
struct Mapping {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapping {
    fn new(file: &File, len: usize) -> Mapping {
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping where the kernel likes it.
        let start = unsafe {
            libc::mmap(null, len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Mapping { start, len }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for as long as self lives; nobody writes to the file.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no slice of it is left.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[test]
fn the_kernel_splices_a_file() {
    in_each_state(|state, tree, from, _| {
        for name in ["noise", "zeros"] {
            let bytes = &tree.files[name];
            let file = OwnedFd::from(File::open(from.join(name)).unwrap());
            let mut copy = Vec::with_capacity(bytes.len());
            while copy.len() < bytes.len() {
                let (mut reader, writer) = std::io::pipe().unwrap();
                let none = std::ptr::null_mut();
                // SAFETY: both descriptors are open, and no offsets are given.
                let n = unsafe {
                    libc::splice(file.as_raw_fd(), none, writer.as_raw_fd(), none, 60_000, 0)
                };
                assert!(n > 0, "{}", std::io::Error::last_os_error());
                drop(writer);
                reader.read_to_end(&mut copy).unwrap();
            }
            assert_same(&copy, bytes, &format!("splice, {state:?}, {name}"));
        }
    });
}
