//! Disks that tests may fill and break: file systems in a file, loop-mounted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::{Statvfs, statvfs};

/// A disk on which nothing can be written.
pub struct Frozen {
    dir: PathBuf,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        must(Command::new("fsfreeze").arg("--unfreeze").arg(&self.dir));
    }
}

/// A file system in a file of its own. Unmounted, and its file removed, when
/// dropped, whatever still uses it. Declare it after the `Warmfs` whose cache
/// it holds, so that it goes last.
pub struct Image {
    tmp: tempfile::TempDir,
}

impl Image {
    /// An ext4 of `bytes`, made with more `mkfs` and mounted with more options.
    /// `None`, and a loud line, where the machine does not let us.
    pub fn ext4(bytes: u64, mkfs: &[&str], options: &str) -> Option<Image> {
        let mut make = Command::new("mkfs.ext4");
        // All of it now: a kernel thread that goes on with it would be seen as
        // somebody else's writes.
        make.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).args(mkfs);
        Image::new(bytes, make, options)
    }

    /// A btrfs of `bytes`. Its quotas need no program to keep them up.
    pub fn btrfs(bytes: u64) -> Option<Image> {
        let mut make = Command::new("mkfs.btrfs");
        make.arg("-q");
        Image::new(bytes, make, "defaults")
    }

    fn new(bytes: u64, mut make: Command, options: &str) -> Option<Image> {
        if !nix::unistd::geteuid().is_root() {
            return missing("root, to mount a disk image");
        }
        let tmp = tempfile::tempdir().unwrap();
        let image = Image { tmp };
        fs::create_dir(image.dir()).unwrap();
        File::create(image.file()).unwrap().set_len(bytes).unwrap();
        let made = make.arg(image.file()).output();
        match made {
            Ok(output) if output.status.success() => {}
            Ok(output) => return missing(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => return missing(&format!("{:?}: {error}", make.get_program())),
        }
        let options = format!("loop,{options}");
        let mut mount = Command::new("mount");
        let output = mount.arg("-o").arg(options).arg(image.file()).arg(image.dir()).output();
        match output {
            Ok(output) if output.status.success() => Some(image),
            Ok(output) => missing(&String::from_utf8_lossy(&output.stderr)),
            Err(error) => missing(&format!("mount: {error}")),
        }
    }

    /// Where it is mounted.
    pub fn dir(&self) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join("disk")
    }

    /// What it lies in.
    fn file(&self) -> PathBuf {
        self.tmp.path().join("image")
    }

    /// What the file system says of itself.
    pub fn stat(&self) -> Statvfs {
        statvfs(&self.dir()).unwrap()
    }

    /// Bytes left for everybody.
    pub fn free_bytes(&self) -> u64 {
        free_bytes(&self.dir())
    }

    /// Cuts its file short: what lay behind is an I/O error from now on.
    pub fn cut_to(&self, bytes: u64) {
        // A write behind the end, before the device knows of it, would make the file
        // long again, and what was lost would read as zeros.
        let frozen = self.freeze();
        File::options().write(true).open(self.file()).unwrap().set_len(bytes).unwrap();
        must(Command::new("losetup").arg("-c").arg(self.device()));
        drop(frozen);
    }

    /// Makes every write to the disk fail, or lets them through again. Reads
    /// go on. `false` where the file system below cannot do it.
    pub fn refuse_writes(&self, refuse: bool) -> bool {
        let flag = if refuse { "+i" } else { "-i" };
        Command::new("chattr").arg(flag).arg(self.file()).status().is_ok_and(|s| s.success())
    }

    /// Makes every write wait, until what is returned is dropped. Declare that
    /// after the daemon: who waits cannot be killed.
    pub fn freeze(&self) -> Frozen {
        must(Command::new("fsfreeze").arg("--freeze").arg(self.dir()));
        Frozen { dir: self.dir() }
    }

    /// Makes an ext4 find an error in itself; what follows is for its `errors=`.
    pub fn trigger_error(&self) {
        let device = self.device();
        let name = device.strip_prefix("/dev/").unwrap();
        fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").unwrap();
    }

    fn device(&self) -> String {
        warmfs::daemon::mountinfo::topmost_at(&self.dir()).unwrap().unwrap().source
    }

    /// Takes all that is left but `leave` bytes, until dropped.
    pub fn fill(&self, leave: u64) -> Ballast {
        let path = (0..).map(|n| self.dir().join(format!("ballast-{n}")));
        let path = path.into_iter().find(|path| !path.exists()).unwrap();
        let file = File::create(&path).unwrap();
        let mut size = 0;
        // Not in one go: what is asked for must be there, metadata besides.
        for step in [8 << 20, 1 << 20, 64 << 10, 4 << 10] {
            while self.free_bytes() >= leave + step && allocate(&file, size, step) {
                size += step;
            }
        }
        Ballast { path }
    }
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Bytes left to others than root on the file system of `dir`.
pub fn free_bytes(dir: &Path) -> u64 {
    let stat = statvfs(dir).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

fn allocate(file: &File, offset: u64, bytes: u64) -> bool {
    use nix::fcntl::{FallocateFlags, fallocate};
    fallocate(file, FallocateFlags::empty(), offset as i64, bytes as i64).is_ok()
}

fn missing<T>(what: &str) -> Option<T> {
    eprintln!("SKIPPED, missing: {}", what.trim());
    None
}

impl Drop for Image {
    fn drop(&mut self) {
        // An immutable file could not be removed.
        self.refuse_writes(false);
        // Lazily: who still holds a file there must not keep the mount.
        let _ = umount2(&self.dir(), MntFlags::MNT_DETACH);
    }
}

/// Another program's file that takes space.
pub struct Ballast {
    path: PathBuf,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
