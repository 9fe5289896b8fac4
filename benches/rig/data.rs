//! The datasets: objects as files, with the listings that tell of them.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Failure, failed};

pub(crate) const BUCKET: &str = "bench";

/// Entries in a page of a listing, as S3 has it.
const PAGE_KEYS: usize = 1_000;
/// Folders that the small files are spread over: one page each.
const SMALL_FOLDERS: usize = 10;
/// Each so many files of a set one is compared byte by byte.
const SAMPLED: usize = 16;

/// A folder of the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// 200 x 10 MiB.
    Large,
    /// 10,000 x 110 KiB in ten folders.
    Small,
    /// One object of 512 MiB.
    One,
    /// 4 x 512 MiB. To the store they are [`Set::One`] under four names, or they
    /// would take 2 GiB of memory.
    Big,
    /// One object of 1 GiB, of zeros but for its first MiB.
    Giant,
}

impl Set {
    const ALL: [Set; 5] = [Set::Large, Set::Small, Set::One, Set::Big, Set::Giant];

    /// Its folder below the bucket.
    pub(crate) fn folder(self) -> &'static str {
        match self {
            Set::Large => "large",
            Set::Small => "small",
            Set::One => "one",
            Set::Big => "big",
            Set::Giant => "giant",
        }
    }

    fn count_and_size(self, quick: bool) -> (usize, u64) {
        let tenth = if quick { 10 } else { 1 };
        match self {
            Set::Large => (200 / tenth, 10 << 20),
            Set::Small => (10_000 / tenth, 110 << 10),
            Set::One => (1, (512 << 20) / tenth as u64),
            Set::Big => (4, (512 << 20) / tenth as u64),
            Set::Giant => (1, 1 << 30),
        }
    }
}

/// A file of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    /// Relative to the set's folder.
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// All sets, below `root/bench`, and their listings below `root/.lists`.
pub(crate) struct Data {
    root: PathBuf,
    pub(crate) quick: bool,
}

impl Data {
    /// Writes everything. The bytes are the same in every run.
    pub(crate) fn write(root: &Path, quick: bool) -> Result<Data, Failure> {
        let data = Data { root: root.to_owned(), quick };
        let mut dice = fastrand::Rng::with_seed(4);
        for set in Set::ALL {
            for object in data.objects(set) {
                let path = data.path(set, &object);
                let folder = path.parent().expect("a folder of the bucket");
                fs::create_dir_all(folder).map_err(failed("a folder of the bucket"))?;
                let written = match set {
                    Set::Big => {
                        fs::hard_link(data.path(Set::One, &data.objects(Set::One)[0]), &path)
                    }
                    _ => write_object(&path, object.size, set, &mut dice),
                };
                written.map_err(failed("an object of the store"))?;
            }
        }
        // The store's way to an object after a pause: a location of its own.
        std::os::unix::fs::symlink(".", root.join(".raw")).map_err(failed("a link"))?;
        Listings::of(&data)?.write(&root.join(".lists")).map_err(failed("a listing"))?;
        Ok(data)
    }

    pub(crate) fn objects(&self, set: Set) -> Vec<Object> {
        let (count, size) = set.count_and_size(self.quick);
        let name = |n: usize| match set {
            Set::Small => format!("{:02}/{n:05}.bin", n % SMALL_FOLDERS),
            _ => format!("{n:05}.bin"),
        };
        (0..count).map(|n| Object { name: name(n), size }).collect()
    }

    /// `200 x 10 MiB`.
    pub(crate) fn describe(&self, set: Set) -> String {
        let (count, size) = set.count_and_size(self.quick);
        let size = match size >> 20 {
            0 => format!("{} KiB", size >> 10),
            mib => format!("{mib} MiB"),
        };
        match count {
            1 => size,
            2..1_000 => format!("{count} x {size}"),
            _ => format!("{} x {size}", super::stats::number(count as f64)),
        }
    }

    pub(crate) fn bytes(&self, set: Set) -> u64 {
        let (count, size) = set.count_and_size(self.quick);
        count as u64 * size
    }

    /// The folders of a set, for the map of prefixes.
    pub(crate) fn prefixes(&self) -> Vec<String> {
        let small = (0..SMALL_FOLDERS).map(|n| format!("small/{n:02}/"));
        let sets = Set::ALL.iter().map(|set| format!("{}/", set.folder()));
        std::iter::once(String::new()).chain(sets).chain(small).collect()
    }

    /// Copies a set, file by file, to `folder`.
    pub(crate) fn copy(&self, set: Set, folder: &Path) -> Result<(), Failure> {
        for object in self.objects(set) {
            let to = folder.join(&object.name);
            fs::create_dir_all(to.parent().expect("a folder"))
                .map_err(failed("a copy's folder"))?;
            fs::copy(self.path(set, &object), to).map_err(failed("a copy"))?;
        }
        Ok(())
    }

    /// Compares a sample of a set, below `folder`, with what the store has.
    pub(crate) fn check(&self, set: Set, folder: &Path) -> Result<(), Failure> {
        for object in self.objects(set).iter().step_by(SAMPLED) {
            let path = folder.join(&object.name);
            let read = checksum(&path).map_err(|error| format!("{}: {error}", object.name))?;
            let put = checksum(&self.path(set, object)).map_err(failed("the store's own file"))?;
            if read != put {
                return Err(format!("{}: wrong bytes", object.name));
            }
        }
        Ok(())
    }

    fn path(&self, set: Set, object: &Object) -> PathBuf {
        self.root.join(BUCKET).join(set.folder()).join(&object.name)
    }
}

fn write_object(path: &Path, size: u64, set: Set, dice: &mut fastrand::Rng) -> std::io::Result<()> {
    // A hole costs the giant no memory; nobody reads it for its contents.
    let filled = if set == Set::Giant { 1 << 20 } else { size };
    let mut bytes = vec![0; filled as usize];
    dice.fill(&mut bytes);
    fs::write(path, bytes)?;
    File::options().write(true).open(path)?.set_len(size)
}

/// Size and CRC32C.
fn checksum(path: &Path) -> std::io::Result<(u64, u32)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut size, mut crc) = (0, 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, crc)),
            n => {
                size += n as u64;
                crc = crc32c::crc32c_append(crc, &buffer[..n]);
            }
        }
    }
}

/// The name of a prefix's listings: no slash in it.
pub(crate) fn listing_name(prefix: &str) -> String {
    format!("of-{}", prefix.replace('/', "-"))
}

/// Every answer to a LIST, made beforehand: a store that thinks would be measured too.
struct Listings {
    /// Key, and its entry in a listing; in order.
    contents: Vec<(String, String)>,
    prefixes: Vec<String>,
}

impl Listings {
    fn of(data: &Data) -> Result<Listings, Failure> {
        let mut contents = Vec::new();
        for set in Set::ALL {
            for object in data.objects(set) {
                let file = fs::metadata(data.path(set, &object)).map_err(failed("an object"))?;
                let key = format!("{}/{}", set.folder(), object.name);
                // The etag that nginx makes of time and size.
                let etag = format!("{:x}-{:x}", file.mtime(), file.len());
                let modified = "2026-01-01T00:00:00.000Z";
                let xml = format!(
                    "<Contents><Key>{key}</Key><LastModified>{modified}</LastModified>\
                     <ETag>&quot;{etag}&quot;</ETag><Size>{}</Size>\
                     <StorageClass>STANDARD</StorageClass></Contents>",
                    object.size
                );
                contents.push((key, xml));
            }
        }
        contents.sort();
        Ok(Listings { contents, prefixes: data.prefixes() })
    }

    /// `folder/` has listings with a delimiter, `all/` those without.
    fn write(&self, root: &Path) -> std::io::Result<()> {
        for kind in ["folder", "all"] {
            let folder = root.join(kind);
            fs::create_dir_all(&folder)?;
            fs::write(folder.join("none.0.xml"), page("", &[], 0, None))?;
            for prefix in &self.prefixes {
                let entries = self.entries(prefix, kind == "folder");
                let pages: Vec<_> = entries.chunks(PAGE_KEYS).collect();
                for (n, entries) in pages.iter().enumerate() {
                    let next = (n + 1 < pages.len()).then_some(n + 1);
                    let name = format!("{}.{n}.xml", listing_name(prefix));
                    fs::write(folder.join(name), page(prefix, entries, n, next))?;
                }
            }
        }
        let location = "<LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"/>";
        fs::write(root.join("location.xml"), location)
    }

    fn entries(&self, prefix: &str, delimited: bool) -> Vec<String> {
        let mut entries: Vec<String> = Vec::new();
        for (key, xml) in &self.contents {
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            let entry = match rest.split_once('/') {
                Some((folder, _)) if delimited => {
                    format!("<CommonPrefixes><Prefix>{prefix}{folder}/</Prefix></CommonPrefixes>")
                }
                _ => xml.clone(),
            };
            if entries.last() != Some(&entry) {
                entries.push(entry);
            }
        }
        entries
    }
}

fn page(prefix: &str, entries: &[String], token: usize, next: Option<usize>) -> String {
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
         <Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><MaxKeys>{PAGE_KEYS}</MaxKeys>\
         <KeyCount>{}</KeyCount><IsTruncated>{}</IsTruncated>",
        entries.len(),
        next.is_some(),
    );
    if token > 0 {
        let _ = write!(xml, "<ContinuationToken>{token}</ContinuationToken>");
    }
    if let Some(next) = next {
        let _ = write!(xml, "<NextContinuationToken>{next}</NextContinuationToken>");
    }
    xml.push_str(&entries.concat());
    xml.push_str("</ListBucketResult>");
    xml
}
