//! `/proc/self/mountinfo`: what is mounted where.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{Uid, getpgrp};

/// The file system type the kernel shows for our mounts.
pub const FS_TYPE: &str = "fuse.warmfs";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Major and minor number of its device. The minor number of a FUSE mount
    /// is its name under `/sys/fs/fuse/connections`.
    pub device: (u32, u32),
    /// Where.
    pub dir: PathBuf,
    /// Such as `fuse.warmfs`.
    pub fs_type: String,
    /// What, in the file system's own words.
    pub source: String,
    /// The user whose process serves it, if it is a FUSE mount.
    pub owner: Option<u32>,
    /// If it waits for something to be mounted on it (autofs), the process group that may do
    /// so: everybody else who goes there waits, too.
    pub mounter: Option<i32>,
}

impl MountInfo {
    /// Whether it is one of ours, dead or alive.
    pub fn is_warmfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whether this process is the one that is to mount something on it.
    pub fn waits_for_us(&self) -> bool {
        // 0 is a group that this process cannot see.
        self.mounter.is_some_and(|group| group > 0 && group == getpgrp().as_raw())
    }

    /// Whether it is a FUSE mount of any kind.
    pub fn is_fuse(&self) -> bool {
        self.fs_type == "fuse" || self.fs_type.starts_with("fuse.")
    }
}

/// Everything mounted in this process's namespace, in the kernel's order: of
/// two mounts at one place the later covers the earlier.
///
/// # Errors
/// If /proc cannot be read.
pub fn read() -> io::Result<Vec<MountInfo>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Whose warmfs mount a canonical path lies in, if it is another user's: that user's daemon is
/// out of reach.
pub fn other_owner(path: &Path) -> Option<u32> {
    let mounts = read().ok()?;
    let innermost = mounts.iter().filter(|mount| path.starts_with(&mount.dir));
    // Of two at one place the later.
    let innermost = innermost.max_by_key(|mount| mount.dir.as_os_str().len())?;
    let owner = innermost.owner.filter(|_| innermost.is_warmfs())?;
    (owner != Uid::effective().as_raw()).then_some(owner)
}

/// What a path leads to if it is a mount point; `dir` is canonical.
///
/// # Errors
/// If /proc cannot be read.
pub fn topmost_at(dir: &Path) -> io::Result<Option<MountInfo>> {
    Ok(read()?.into_iter().rfind(|mount| mount.dir == dir))
}

fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /dir rw,noatime shared:1 - ext4 /dev/sda rw`, with any
/// number of fields before the dash.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(MountInfo {
        device: (major.parse().ok()?, minor.parse().ok()?),
        dir: OsString::from_vec(unescape(fields.get(4)?)).into(),
        fs_type: text(fields.get(dash + 1)?),
        source: text(fields.get(dash + 2)?),
        owner: fields.get(dash + 3).and_then(|options| number(&text(options), "user_id=")),
        mounter: fields.get(dash + 3).and_then(|options| number(&text(options), "pgrp=")),
    })
}

/// The number of one of `rw,user_id=0,group_id=0,allow_other`.
fn number<T: FromStr>(options: &str, name: &str) -> Option<T> {
    options.split(',').find_map(|option| option.strip_prefix(name)?.parse().ok())
}

/// The kernel writes space, tab, newline, backslash and hash as `\` and three octal digits.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Whether one of two canonical paths is the other or lies below it.
pub(super) fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 0:20 / / rw,relatime - overlay overlay rw,lowerdir=/a\n\
        40 22 0:44 / /mnt/a\\040b\\134c rw,nosuid shared:7 master:1 - fuse.warmfs s3://bucket/x ro,user_id=7\n\
        41 40 8:1 /sub /mnt/tab\\011x rw - ext4 /dev/sda1 rw\n\
        42 22 0:45 / /mnt/a\\040b\\134c rw - tmpfs  rw\n\
        43 22 0:46 / /mnt/auto rw - autofs systemd-1 rw,fd=29,pgrp=7,timeout=0,direct\n\
        nonsense\n";

    #[test]
    fn fields_and_octal_escapes() {
        let mounts = parse(TEXT);
        assert_eq!(mounts.len(), 5);
        assert_eq!(mounts[1].dir, Path::new("/mnt/a b\\c"));
        assert_eq!(mounts[1].device, (0, 44));
        assert_eq!((mounts[1].source.as_str(), mounts[1].owner), ("s3://bucket/x", Some(7)));
        assert!(mounts[1].is_warmfs() && mounts[1].is_fuse());
        assert_eq!(mounts[2].dir, Path::new("/mnt/tab\tx"));
        assert!(!mounts[2].is_fuse() && mounts[2].owner.is_none());
        assert_eq!(mounts[3].fs_type, "tmpfs");
        assert_eq!((mounts[4].mounter, mounts[4].waits_for_us()), (Some(7), false));
    }

    #[test]
    fn an_escape_cut_short_stays_as_it_is() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
        assert_eq!(unescape(b"\\303\\251"), "é".as_bytes());
    }

    #[test]
    fn this_machine_has_a_root() {
        assert!(topmost_at(Path::new("/")).unwrap().is_some());
        assert_eq!(topmost_at(Path::new("/no/such/place")).unwrap(), None);
    }

    crate::fuzz::fuzz_tests!(lines);

    /// What the kernel writes of any path is read back; anything else is no panic.
    fn lines(effort: crate::fuzz::Effort) {
        let target = crate::fuzz::Target {
            name: "mountinfo",
            corpus: TEXT.split_inclusive(|byte| *byte == b'\n').take(4).map(Vec::from).collect(),
            words: &[" - ", "\\040", "\\", "0:44", "fuse.warmfs"],
            inputs: 20_000,
            memory: (16 << 10, 256),
        };
        target.run(effort, |input| {
            let path: Vec<u8> = input.iter().copied().filter(|byte| *byte != 0).collect();
            let escaped: String = path.iter().map(|byte| format!("\\{byte:03o}")).collect();
            let line = format!("1 2 3:4 / {escaped} rw - fuse.warmfs {escaped} ro");
            let mount = parse_line(line.as_bytes()).unwrap();
            assert_eq!(mount.dir.as_os_str().as_encoded_bytes(), path);
            !parse(input).is_empty()
        });
    }
}
