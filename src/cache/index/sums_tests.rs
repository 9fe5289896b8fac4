//! What becomes of an index whose pages, or whose sums, are damaged.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use tempfile::TempDir;

use super::checked_file::CheckedFile;
use super::sums::{Left, PAGE, Sums, copy_path};
use super::{Index, Opened};
use crate::cache::record::{EntryRow, NodeId};
use crate::remote::RemoteId;

const BOOT: u128 = 77;

/// Changes of a file whose content is compared to a model.
const STEPS: usize = 2_000;

/// The longest file of these.
const LEN_MAX: u64 = 12 * PAGE;

/// Names in the index, enough for pages that lead to pages.
const NAMES: u64 = 400;

struct Rig {
    dir: TempDir,
    sums: Arc<Sums>,
    file: CheckedFile,
    left: Left,
}

impl Rig {
    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn open(dir: TempDir) -> Self {
        let path = dir.path().join("index.redb");
        let (sums, left) = Sums::load(&path, BOOT);
        let sums = Arc::new(sums);
        let file = CheckedFile::open(&path, sums.clone()).unwrap();
        sums.keep();
        Rig { dir, sums, file, left }
    }

    /// As after a SIGKILL, or closed in order.
    fn again(self, clean: bool) -> Self {
        if clean {
            self.sums.close(true);
        }
        let Rig { dir, sums, file, .. } = self;
        drop((sums, file));
        Self::open(dir)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("index.redb")
    }

    /// A file with something in each of `pages`.
    fn filled(pages: u64) -> Self {
        let rig = Self::new();
        rig.file.set_len(pages * PAGE).unwrap();
        for page in 0..pages {
            rig.file.write(page * PAGE, &[page as u8 + 1; PAGE as usize]).unwrap();
        }
        rig
    }

    fn page(&self, page: u64) -> io::Result<Vec<u8>> {
        let mut out = vec![0; PAGE as usize];
        self.file.read(page * PAGE, &mut out).map(|()| out)
    }
}

fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << (bit % 8)], bit / 8).unwrap();
}

fn is_damage(result: &io::Result<Vec<u8>>) -> bool {
    result
        .as_ref()
        .is_err_and(|e| e.kind() == io::ErrorKind::InvalidData && e.raw_os_error().is_none())
}

#[test]
fn a_flipped_bit_is_found_when_its_page_is_read() {
    let mut rig = Rig::filled(5);
    for clean in [None, Some(false), Some(true)] {
        for page in 0..5 {
            let bit = (page * PAGE + fastrand::u64(..PAGE)) * 8 + 3;
            if let Some(clean) = clean {
                rig = rig.again(clean);
                assert_eq!(rig.left, if clean { Left::Closed } else { Left::Open });
            }
            flip(&rig.path(), bit);
            assert!(is_damage(&rig.page(page)), "{clean:?}, page {page}");
            let mut part = [0; 9];
            assert!(rig.file.read(page * PAGE + 70, &mut part).is_err(), "a part of it, too");
            assert!(rig.page((page + 1) % 5).is_ok());
            flip(&rig.path(), bit);
            assert!(rig.page(page).is_ok());
        }
    }
}

#[test]
fn whatever_is_written_in_parts_is_read_back_after_a_kill_and_a_close() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut rig = Rig::new();
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..STEPS {
        let len = model.len() as u64;
        let range = |dice: &mut fastrand::Rng| {
            let start = dice.u64(..len);
            (start, dice.usize(..=((len - start) as usize).min(3 * PAGE as usize)))
        };
        match dice.u8(..10) {
            0 => {
                let page = if dice.bool() { PAGE } else { 1 };
                let to = dice.u64(..=LEN_MAX / page) * page;
                rig.file.set_len(to).unwrap();
                model.resize(to as usize, 0);
            }
            1 => rig = rig.again(dice.bool()),
            2 => rig.file.sync_data().unwrap(),
            3..=6 if len > 0 => {
                let (start, size) = range(&mut dice);
                let data: Vec<u8> = (0..size).map(|_| dice.u8(..)).collect();
                rig.file.write(start, &data).unwrap();
                model[start as usize..][..size].copy_from_slice(&data);
            }
            _ if len > 0 => {
                let (start, size) = range(&mut dice);
                let mut out = vec![0; size];
                rig.file.read(start, &mut out).unwrap();
                assert!(out == model[start as usize..][..size]);
            }
            _ => {}
        }
    }
    rig.file.set_len(LEN_MAX).unwrap();
    rig = rig.again(true);
    assert_eq!(rig.left, Left::Closed);
    for page in 0..LEN_MAX / PAGE {
        rig.page(page).unwrap();
        flip(&rig.path(), page * PAGE * 8);
        assert!(is_damage(&rig.page(page)));
    }
}

#[test]
fn a_header_written_over_a_flipped_bit_hides_none_beside_it() {
    let rig = Rig::filled(2);
    rig.file.write(0, &[7; 320]).unwrap();
    flip(&rig.path(), 9 * 8);
    rig.file.write(0, &[8; 320]).unwrap();
    assert_eq!(rig.page(0).unwrap()[..320], [8; 320], "what was written is right");
    flip(&rig.path(), 2_000 * 8);
    rig.file.write(0, &[9; 320]).unwrap();
    assert!(is_damage(&rig.page(0)));
}

#[test]
fn sums_that_are_not_true_are_not_believed() {
    let rig = Rig::filled(9);
    rig.sums.close(true);
    let (index, copy) = (rig.path(), copy_path(&rig.path()));
    let left = |boot| Sums::load(&index, boot).1;
    assert_eq!((left(BOOT), left(BOOT + 1)), (Left::Closed, Left::Closed));
    assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let whole = fs::read(&copy).unwrap();
    let head_bytes = usize::from(whole[0]) + 1;
    for bit in 0..whole.len() as u64 * 8 {
        flip(&copy, bit);
        let counts = (head_bytes..128).contains(&((bit / 8) as usize));
        assert_eq!(left(BOOT) == Left::Closed, counts, "bit {bit}");
        flip(&copy, bit);
    }
    for len in 0..whole.len() {
        fs::write(&copy, &whole[..len]).unwrap();
        assert_eq!(left(BOOT), Left::Nothing, "cut to {len}");
    }
    fs::write(&copy, [&whole[..], &[1]].concat()).unwrap();
    assert_eq!(left(BOOT), Left::Nothing);
    fs::write(&copy, &whole).unwrap();
    File::options().append(true).open(&index).unwrap().set_len(8 * PAGE).unwrap();
    assert_eq!(left(BOOT), Left::Nothing, "somebody wrote to the index");
    let rig = rig.again(false);
    assert_eq!(rig.left, Left::Nothing);
    assert_eq!(Sums::load(&index, BOOT).1, Left::Open);
    assert_eq!(Sums::load(&index, BOOT + 1).1, Left::Nothing, "a power cut may have come");
    fs::remove_file(&copy).unwrap();
    assert_eq!(left(BOOT), Left::Nothing);
}

/// A disk that fails when it is told to.
#[derive(Debug)]
struct Failing {
    file: File,
    fails: Arc<AtomicBool>,
}

impl Failing {
    fn result(&self) -> io::Result<()> {
        match self.fails.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.result()?;
        self.file.read_exact_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.result()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.result()
    }
    /// Half of it, before it fails.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(&data[..data.len() / 2], offset)?;
        self.result()?;
        self.file.write_all_at(data, offset)
    }
}

#[test]
fn what_a_failing_disk_leaves_is_no_damage() {
    let mut rig = Rig::filled(6);
    let fails = Arc::<AtomicBool>::default();
    let file = File::options().read(true).write(true).open(rig.path()).unwrap();
    rig.file.replace_inner(Box::new(Failing { file, fails: fails.clone() }));
    rig.file.sync_data().unwrap();
    rig.file.write(2 * PAGE, &[0x22; PAGE as usize]).unwrap();
    fails.store(true, Ordering::Relaxed);
    let number = |error: io::Error| error.raw_os_error();
    assert_eq!(number(rig.page(1).unwrap_err()), Some(libc::EIO));
    assert!(rig.file.write(PAGE, &[0x11; PAGE as usize]).is_err());
    fails.store(false, Ordering::Relaxed);
    rig.page(1).unwrap();
    fails.store(true, Ordering::Relaxed);
    assert!(rig.file.sync_data().is_err());
    assert!(rig.file.set_len(3 * PAGE).is_err());
    fails.store(false, Ordering::Relaxed);
    // The kernel dropped what it could not write.
    File::options().write(true).open(rig.path()).unwrap().write_all_at(&[3], 2 * PAGE).unwrap();
    for page in 0..6 {
        rig.page(page).unwrap();
    }
    flip(&rig.path(), 5);
    assert!(is_damage(&rig.page(0)), "what was synced before is known as ever");
}

fn fill_index(path: &Path) -> NodeId {
    let index = Index::open(path, crate::cache::index::PAGE_CACHE_BYTES).unwrap().index;
    let root = index.write_durably(|write| {
        let root = write.bucket(&RemoteId("x".into()), 1)?;
        for n in 0..NAMES {
            let row = EntryRow { node: NodeId(1_000 + n), seen_ms: n, object: None };
            write.put_entry(root, &name(n), &row)?;
        }
        Ok(root)
    });
    index.close(true).unwrap();
    root.unwrap()
}

fn name(n: u64) -> String {
    format!("{n:032}")
}

/// Opens an index and reads every name. One that lost everything says so.
fn read_names(path: &Path, root: NodeId, closed: bool) -> bool {
    let Opened { index, mut fresh, .. } =
        Index::open(path, crate::cache::index::PAGE_CACHE_BYTES).unwrap();
    for n in 0..NAMES {
        let found = index.entry(root, &name(n)).unwrap();
        fresh |= index.losses() > 0;
        assert!(found.is_some() || fresh, "{n} is hidden, and nobody says so");
    }
    if closed {
        index.close(true).unwrap();
    }
    fresh
}

#[test]
fn a_flipped_bit_hides_no_row_in_silence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let root = fill_index(&path);
    // Opened and not closed: its sums are those of a process that was killed.
    assert!(!read_names(&path, root, false));
    let (whole, sums) = (fs::read(&path).unwrap(), fs::read(copy_path(&path)).unwrap());
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut set_aside = 0;
    for _ in 0..60 {
        // In place: another file's sums would not be believed.
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&whole, 0).unwrap();
        file.set_len(whole.len() as u64).unwrap();
        fs::write(copy_path(&path), &sums).unwrap();
        let bit = used[fastrand::usize(..used.len())] as u64 * 8 + fastrand::u64(..8);
        println!("bit {bit}");
        flip(&path, bit);
        if read_names(&path, root, fastrand::bool()) {
            set_aside += 1;
            fs::rename(path.with_extension("redb.damaged"), &path).unwrap();
        }
    }
    assert!(set_aside > 0);
}

#[test]
fn a_damaged_sum_costs_a_check_and_no_row() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index.redb");
    let root = fill_index(&path);
    for _ in 0..20 {
        assert!(!read_names(&path, root, false));
        let copy = copy_path(&path);
        flip(&copy, fastrand::u64(..copy.metadata().unwrap().len() * 8));
        assert!(!read_names(&path, root, true));
    }
    let mode = path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}
