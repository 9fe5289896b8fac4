//! The lines of fstab(5), and how a file of them is changed: as a whole or not at all,
//! and no byte of what is not ours.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::daemon::mountinfo::unescape;

/// The type of the lines that are written.
pub(super) const FS_TYPE: &str = "warmfs";

/// The types that lead to the helper.
const FS_TYPES: [&str; 2] = [FS_TYPE, "fuse.warmfs"];

/// More is no table of mounts.
const BYTES_MAX: u64 = 1 << 20;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What.
    pub(super) source: String,
    /// Where.
    pub(super) dir: PathBuf,
    pub(super) fs_type: String,
    /// As for `-o`.
    pub(super) options: String,
}

impl Entry {
    /// Whether it is a warmfs mount.
    pub(super) fn is_ours(&self) -> bool {
        FS_TYPES.contains(&self.fs_type.as_str())
    }

    /// As a line, without a newline.
    pub(super) fn to_line(&self) -> String {
        let fields = [&self.source, &self.dir.display().to_string(), &self.fs_type, &self.options];
        format!("{} 0 0", fields.map(|field| escape(field)).join(" "))
    }
}

/// What ends a field, a line, or begins a comment, as `\` and three octal digits.
fn escape(field: &str) -> String {
    let mut escaped = String::with_capacity(field.len());
    for c in field.chars() {
        match c {
            ' ' | '\t' | '\n' | '\\' | '#' => escaped += &format!("\\{:03o}", u32::from(c)),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The mount of a line; `None` for comments and what cannot be understood.
fn parse_line(line: &[u8]) -> Option<Entry> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let mut fields = line.split(is_blank).filter(|field| !field.is_empty());
    let source = fields.next().filter(|source| !source.starts_with(b"#"))?;
    let (dir, fs_type) = (fields.next()?, fields.next()?);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let dir = unescape(dir);
    // A slash at the end says nothing.
    let dir: PathBuf = Path::new(std::ffi::OsStr::from_bytes(&dir)).components().collect();
    let options = fields.next().map(text).unwrap_or_default();
    Some(Entry { source: text(source), dir, fs_type: text(fs_type), options })
}

/// A file of lines, as it was read.
#[derive(Debug)]
pub(super) struct Table {
    /// Where its bytes are: behind links.
    path: PathBuf,
    /// As they were when it was read.
    before: Vec<u8>,
    bytes: Vec<u8>,
}

/// All of a file; nothing where there is none.
fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() || meta.len() > BYTES_MAX => {
            Err(io::Error::other("it is no table of mounts"))
        }
        Ok(_) => fs::read(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl Table {
    /// Reads `path`; one that is not there is empty.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn read(path: &Path) -> io::Result<Table> {
        let path = match path.canonicalize() {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let bytes = read_bytes(&path)?;
        Ok(Table { path, before: bytes.clone(), bytes })
    }

    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.split_inclusive(|byte| *byte == b'\n')
    }

    /// The mounts, each with the number of its line.
    pub(super) fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        self.lines().enumerate().filter_map(|(at, line)| {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            Some((at + 1, parse_line(line)?))
        })
    }

    /// Adds a line at the end.
    pub(super) fn push(&mut self, entry: &Entry) {
        if self.bytes.last().is_some_and(|last| *last != b'\n') {
            self.bytes.push(b'\n');
        }
        self.bytes.extend(entry.to_line().as_bytes());
        self.bytes.push(b'\n');
    }

    /// Removes the lines with these numbers.
    pub(super) fn remove(&mut self, numbers: &[usize]) {
        let kept = self.lines().enumerate().filter(|(at, _)| !numbers.contains(&(at + 1)));
        self.bytes = kept.flat_map(|(_, line)| line).copied().collect();
    }

    /// Puts the file in the place of the one that was read, with its mode and owner.
    /// Whoever reads it, and a power cut, finds the one or the other.
    ///
    /// # Errors
    /// If it cannot be written; then it is as before.
    pub(super) fn write(&self) -> io::Result<()> {
        // What somebody else wrote meanwhile is not undone.
        if read_bytes(&self.path)? != self.before {
            return Err(io::Error::other("somebody changed it in this moment; try again"));
        }
        let dir = match self.path.parent() {
            Some(dir) if dir.as_os_str().is_empty() => Path::new("."),
            dir => dir.unwrap_or(Path::new("/")),
        };
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".warmfs-{}", std::process::id()));
        let draft = dir.join(name);
        let written = self.write_draft(&draft).and_then(|()| fs::rename(&draft, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written?;
        File::open(dir)?.sync_all()
    }

    fn write_draft(&self, draft: &Path) -> io::Result<()> {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(draft)?;
        file.write_all(&self.bytes)?;
        match fs::metadata(&self.path) {
            Ok(meta) => {
                fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
                file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                file.set_permissions(fs::Permissions::from_mode(0o644))?;
            }
            Err(error) => return Err(error),
        }
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(dir: &str) -> Entry {
        Entry {
            source: "s3://bucket/a b#c\\d".to_owned(),
            dir: dir.into(),
            fs_type: FS_TYPE.to_owned(),
            options: "ro,cache_dir=/a b".to_owned(),
        }
    }

    #[test]
    fn only_our_lines_change_and_mode_and_owner_stay() {
        let tmp = tempfile::tempdir().unwrap();
        let (path, link) = (tmp.path().join("real"), tmp.path().join("fstab"));
        let others = "# comment\n\n/dev/sda1\t/ ext4 defaults 0 1\nodd\n/dev/sdb /data\\040x/ xfs";
        fs::write(&path, others).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut table = Table::read(&link).unwrap();
        let dirs: Vec<_> = table.entries().map(|(at, entry)| (at, entry.dir)).collect();
        assert_eq!(dirs, [(3, "/".into()), (5, "/data x".into())]);
        table.push(&entry("/mnt/a b"));
        table.write().unwrap();

        let mut table = Table::read(&link).unwrap();
        let (number, read) = table.entries().last().unwrap();
        assert_eq!((number, read), (6, entry("/mnt/a b")));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.ends_with(
            "\ns3://bucket/a\\040b\\043c\\134d /mnt/a\\040b warmfs ro,cache_dir=/a\\040b 0 0\n"
        ));
        table.remove(&[6]);
        table.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{others}\n"));
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file() && meta.mode() & 0o7777 == 0o640);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 2, "no draft is left");
    }

    #[test]
    fn what_cannot_be_written_stays_as_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        let mut table = Table::read(&tmp.path().join("none/fstab")).unwrap();
        table.push(&entry("/d"));
        assert!(table.write().is_err());
        assert!(Table::read(tmp.path()).is_err(), "a folder");
    }

    crate::fuzz::fuzz_tests!(lines);

    /// What is written is read back; of anything else what is not ours stays.
    fn lines(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "fstab",
            corpus: [&b"s3://b/p /d warmfs ro,_netdev 0 0\n# x\n"[..], b"/dev/a /b\\040c ext4\n\n"]
                .map(Vec::from)
                .to_vec(),
            words: &["\\040", " ", "\t", "#", "\n", "warmfs", "fuse.warmfs", "\\"],
            inputs: 20_000,
            memory: (16 << 10, 64),
        };
        target.run(effort, |input| {
            let mut table =
                Table { path: PathBuf::new(), before: Vec::new(), bytes: input.to_vec() };
            let before = table.entries().count();
            let text: String = String::from_utf8_lossy(input).replace('\0', "");
            let mut new = entry("/d");
            new.source = format!("s3://{text}");
            table.push(&new);
            let (number, read) = table.entries().last().unwrap();
            assert_eq!(read, new);
            table.remove(&[number]);
            assert!(table.bytes.starts_with(input) && table.bytes.len() <= input.len() + 1);
            before > 0
        });
    }
}
