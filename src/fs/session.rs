//! A mount in the kernel: begun, told of changes, ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use fuser::{BackgroundSession, BackingId, INodeNo, MountOption, Notifier, Session, SessionACL};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::driver::Driver;
use super::inode::Ino;
use super::open_mode::{Obstacle, OpenMode};
use super::ops::FileSystem;
use crate::cache::{Event, NodeId};
use crate::linux;

/// Threads that take requests from the kernel. Two cores are kept busy by
/// two; two more take lookups while those copy a large read.
const FUSE_THREADS: usize = 4;

/// After the last block count that changed, the next ones are waited for so long: they are
/// told in one go, and who counts them wakes nobody for each small file.
const BLOCKS_REST: Duration = Duration::from_millis(2);

/// What the kernel reads ahead of a reader, as root may set it. First touch of
/// 110 KiB files: 3,155 files/s with the kernel's own 128 KiB, 5,744 with this.
const READ_AHEAD_KIB: u32 = 1024;

/// Makes a descriptor of `/dev/fuse` another one of a mount: `_IOR(229, 0, u32)`.
const FUSE_DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// Gives a file that is passed through back: `_IOW(229, 2, u32)`.
const FUSE_DEV_IOC_BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// Flags of INIT that [`MountSession::start`] uses where the kernel offers them.
const EVERY_INIT_FLAG: u64 = u64::MAX;

/// What the mount counts as on top of the cache's file system: a plain one, and
/// overlayfs, which is one on top of others itself. The kernel allows no more.
const STACK_DEPTH: u32 = 1;
const STACK_DEPTH_ON_OVERLAY: u32 = 2;

/// A mounted file system.
#[derive(Debug)]
pub struct MountSession {
    dir: PathBuf,
    device: u64,
    fs: Arc<FileSystem>,
    ended: watch::Receiver<bool>,
}

impl MountSession {
    /// Mounts `fs` at `dir`, an existing empty folder. Returns once requests
    /// are served. Blocks.
    ///
    /// # Errors
    /// The kernel or fusermount refuse; nothing is left mounted.
    pub fn start(fs: Arc<FileSystem>, dir: &Path, runtime: Handle) -> io::Result<MountSession> {
        Self::start_with(fs, dir, runtime, EVERY_INIT_FLAG)
    }

    /// As [`MountSession::start`], on a kernel that offers of its INIT flags
    /// those in `init_flags` only, as an older one does.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        fs: Arc<FileSystem>,
        dir: &Path,
        runtime: Handle,
        init_flags: u64,
    ) -> io::Result<MountSession> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            // Read-only in the superblock, or each read would invalidate the atime.
            MountOption::RO,
            MountOption::NoAtime,
            MountOption::DefaultPermissions,
            MountOption::FSName(shown(fs.uri())),
            // Not `Subtype`, which is lost where root mounts without fusermount.
            MountOption::CUSTOM("subtype=warmfs".to_owned()),
        ];
        if fs.options().noexec {
            config.mount_options.push(MountOption::NoExec);
        }
        if fs.options().allow_other {
            config.acl = SessionACL::All;
        }
        config.n_threads = Some(FUSE_THREADS);
        config.clone_fd = true;
        let (subscription, events) = fs.tree().store().subscribe();
        let sample = sample(&fs);
        let stack_depth = sample.as_ref().map_or(STACK_DEPTH, stack_depth);
        let driver = Driver::new(fs.clone(), runtime, stack_depth, init_flags);
        // Made now: at the end there may be no descriptor left to make it with.
        let (hung_up, _) = std::io::pipe()?;
        let session = Session::new(driver, dir, &config)?;
        if let Some(sample) = sample.filter(|_| fs.may_pass_through())
            && let Err(error) = try_passthrough(&session, &sample)
        {
            tracing::debug!(%error, "the kernel passes nothing through");
            fs.stop_passing(Obstacle::of(&error).unwrap_or(Obstacle::Refused));
        }
        let fuse = session.as_fd().as_raw_fd();
        let session = session.spawn()?;
        // Asks the mount itself: from here on it must answer. Without this
        // number nobody could tell it from another mount, to unmount it.
        let device = std::fs::metadata(dir)?.dev();
        tune(device);
        let notifier = session.notifier();
        let root = fs.tree().root();
        let notifying = std::thread::Builder::new().name("notify".to_owned()).spawn(move || {
            let device = own_descriptors(fuse);
            notify(&events, &notifier, root);
            drop(device);
            notifier
        })?;
        let (ended_sender, ended) = watch::channel(false);
        std::thread::Builder::new().name("session".to_owned()).spawn(move || {
            end(session, fuse, &hung_up);
            drop(subscription); // Ends the notifier, and with it the last descriptor,
            drop(notifying.join()); // which only threads with that descriptor may close.
            ended_sender.send_replace(true);
        })?;
        Ok(MountSession { dir: dir.to_owned(), device, fs, ended })
    }

    /// Where it was mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device number of the mount, as `stat` and mountinfo show it.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// What is mounted.
    pub fn file_system(&self) -> &Arc<FileSystem> {
        &self.fs
    }

    /// How files are opened.
    pub fn mode(&self) -> OpenMode {
        self.fs.mode()
    }

    /// Returns once the kernel has ended the session, whoever unmounted it.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the thread is gone, and the session with it.
        let _ = ended.wait_for(|ended| *ended).await;
    }
}

/// A file of the cache to try passthrough with, if it may be used.
fn sample(fs: &FileSystem) -> Option<File> {
    if !fs.may_pass_through() {
        return None;
    }
    if !may_administer() {
        fs.stop_passing(Obstacle::Privilege);
        return None;
    }
    let sample = fs.tree().store().sample_file();
    sample.inspect_err(|_| fs.stop_passing(Obstacle::Disk)).ok()
}

/// Whether this process has CAP_SYS_ADMIN, perhaps in a user namespace only:
/// what it is good for shows when it is used.
pub fn may_administer() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    effective.is_some_and(|bits| bits & 1 << CAP_SYS_ADMIN != 0)
}

fn stack_depth(sample: &File) -> u32 {
    match nix::sys::statfs::fstatfs(sample) {
        Ok(fs) if fs.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC => {
            STACK_DEPTH_ON_OVERLAY
        }
        _ => STACK_DEPTH,
    }
}

/// Has the kernel take a file, as it will take those that are passed through,
/// and give it back: a kernel may offer what it then refuses.
fn try_passthrough(session: &impl AsFd, sample: &File) -> io::Result<()> {
    let id = BackingId::create_raw(session, sample)?;
    let fuse = session.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open, and the argument an id that it gave out.
    match unsafe { libc::ioctl(fuse, FUSE_DEV_IOC_BACKING_CLOSE, &raw const id) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tells the kernel what changed. The only thread that does, and it holds no
/// lock: the kernel may have to wait for one of our answers first. Ends with
/// the session.
fn notify(events: &Receiver<Event>, notifier: &Notifier, root: NodeId) {
    let ino = |node| INodeNo(Ino::of(node, root).0);
    let mut was_of_blocks = false;
    while let Some(event) = next_event(events, was_of_blocks) {
        was_of_blocks = matches!(event, Event::Blocks(_));
        let told = match &event {
            Event::Entry(parent, name) => notifier.inval_entry(ino(*parent), OsStr::new(name)),
            // The copy of the listing goes, not the mtime alone: the kernel drops
            // the answer to a GETATTR that this overtakes, and with it the mtime.
            Event::Folder(node) => notifier.inval_inode(ino(*node), 0, 0),
            // What a compare with the store found wrong must not be read again.
            Event::Contents(node) => notifier.inval_inode(ino(*node), 0, 0),
            // A negative offset drops attributes and keeps pages.
            Event::Blocks(node) => notifier.inval_inode(ino(*node), -1, 0),
        };
        match told {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EBADF)) => {
                return;
            }
            Err(error) => tracing::debug!(%error, ?event, "the kernel was not told of a change"),
        }
    }
}

/// What changed next; `None` at the end of the session.
fn next_event(events: &Receiver<Event>, may_rest: bool) -> Option<Event> {
    if let Ok(event) = events.try_recv() {
        return Some(event);
    }
    if may_rest {
        std::thread::sleep(BLOCKS_REST);
    }
    events.recv().ok()
}

/// Gives the calling thread descriptors of its own: one to the mount under
/// the number `fuse`, as long as the result is held, and those of messages.
///
/// The kernel keeps a notification until no lookup in that folder is under
/// way, and keeps its thread over a SIGKILL, with all that the thread has
/// open. With the descriptors that lookups came through, these would never
/// end: the process could not die, and its lock and mount would hang for ever.
fn own_descriptors(fuse: RawFd) -> Option<OwnedFd> {
    let own = || {
        // Before there is a table of copies, which nothing else would close
        // while the mount lives: what is evicted would keep its disk.
        close_range(libc::c_uint::MAX, libc::c_uint::MAX)?;
        // SAFETY: a plain system call; what is open stays open.
        if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut number = fuse.cast_unsigned();
        close_range(3, number - 1)?;
        close_range(number + 1, libc::c_uint::MAX)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        // SAFETY: plain system calls. The number that is written over is this
        // thread's alone since it has its own table, and nothing on it uses it.
        unsafe {
            if libc::ioctl(device.as_raw_fd(), FUSE_DEV_IOC_CLONE, &raw mut number) != 0
                || libc::dup3(device.as_raw_fd(), fuse, libc::O_CLOEXEC) != fuse
            {
                return Err(io::Error::last_os_error());
            }
            Ok(OwnedFd::from_raw_fd(fuse))
        }
    };
    own().inspect_err(|error| tracing::warn!(%error, "a kill may leave the mount hanging")).ok()
}

/// Closes what the calling thread's table has from `first` to `last`, if it has
/// any. Only for a table that no other thread uses, or a range without any.
/// Kernels before 5.9 cannot.
fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: the caller sees to it that nobody uses these.
    unsafe { linux::close_range(first, last, 0) }
}

/// Waits for the end of a session, which closes its last descriptor.
///
/// Its drop unmounts the folder once more, by path, where something else may
/// be mounted by now. It leaves out what its descriptor says is no mount: not
/// the error of an ended one, as it should, but a pipe's hang-up.
fn end(session: BackgroundSession, fuse: RawFd, hung_up: &PipeReader) {
    match session.guard.join() {
        // SAFETY: plain descriptors. `fuse` is still open, for the session is
        // not dropped yet, and who uses it gets an error from a pipe as from a
        // connection that has ended.
        Ok(Ok(())) => unsafe {
            libc::dup3(hung_up.as_raw_fd(), fuse, libc::O_CLOEXEC);
        },
        // Perhaps still mounted: then it is well unmounted.
        Ok(Err(error)) => tracing::warn!(%error, "a mount ended with an error"),
        Err(_) => tracing::error!("a mount ended with a panic"),
    }
}

/// Sets what only root may, and only after mounting; the mount works without.
fn tune(device: u64) {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, "the kernel's readahead stays as it is");
    }
}

/// What mountinfo is to show. Root's goes to mount(2) as it is; fusermount
/// gets a list of options, where a value must not end at a comma of its own.
fn shown(source: &str) -> String {
    if nix::unistd::Uid::effective().is_root() {
        return source.to_owned();
    }
    source.replace('\\', "\\\\").replace(',', "\\,")
}
