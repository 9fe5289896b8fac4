//! From FUSE messages to [`FileSystem`] and back. A translator, no more.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackingId, BsdFileFlags, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::Answer;
use super::errno::Errno;
use super::inode::{Attr, Ino};
use super::open_mode::{Obstacle, OpenMode, OpenNodes};
use super::ops::{DirEntry, FileSystem, NAME_BYTES_MAX};
use crate::cache::{AtHand, CachedObject};
use crate::metrics::Counter;

/// Requests the kernel may have waiting in the background (readahead), and
/// where it begins to hold back. Its own 12 leave 20 readers waiting in turn.
const MAX_BACKGROUND: u16 = 64;
const CONGESTION_THRESHOLD: u16 = 48;

/// Block size shown by `stat`: what `cp` and `cat` read at a time.
const BLOCK_SIZE: u32 = 128 << 10;

/// Generation of every inode: ids are never used twice.
const GENERATION: Generation = Generation(0);

thread_local! {
    /// Bytes of a read that is answered at once; one buffer a FUSE thread.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The FUSE side of a mount.
pub(super) struct Driver {
    fs: Arc<FileSystem>,
    runtime: Handle,
    open: OpenNodes<BackingId>,
    stack_depth: u32,
    /// Flags that the kernel may be taken to offer.
    init_flags: InitFlags,
    /// Whether the kernel can be told once that there is no OPEN and no OPENDIR.
    goes_without_open: bool,
}

impl Driver {
    /// `stack_depth` is what passthrough of the cache's files takes; `init_flags`
    /// are those of INIT that may be used where the kernel offers them.
    pub(super) fn new(
        fs: Arc<FileSystem>,
        runtime: Handle,
        stack_depth: u32,
        init_flags: u64,
    ) -> Self {
        let init_flags = InitFlags::from_bits_retain(init_flags);
        let open = OpenNodes::new();
        Driver { fs, runtime, open, stack_depth, init_flags, goes_without_open: false }
    }

    /// What a request to change something is answered with.
    fn refuse(&self, op: &str, ino: INodeNo, name: &OsStr) -> fuser::Errno {
        self.fs.metrics().fuse_requests.add(1);
        self.fs.refused(op, Ino(ino.0), name);
        Errno::EROFS.into()
    }

    fn count(&self, op: &Counter) {
        op.add(1);
        self.fs.metrics().fuse_requests.add(1);
    }

    /// Replies now, or from a task: a FUSE thread does not wait.
    fn answer<T: Send + 'static>(
        &self,
        answer: Answer<T>,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        match answer {
            Answer::Now(result) => reply(result),
            Answer::Later(later) => {
                self.runtime.spawn(async move { reply(later.await) });
            }
        }
    }

    /// Hands a complete file to the kernel, if it takes it.
    fn register(&self, reply: &ReplyOpen, object: &CachedObject) -> Option<BackingId> {
        let backing = reply.open_backing(object.complete_file()?);
        self.fs.passed(backing.as_ref().err());
        backing.ok()
    }

    /// Asks for passthrough where it may be used. It costs whoever stacks a file
    /// system on this one a level, or two.
    fn ask_for_passthrough(&self, offered: InitFlags, config: &mut KernelConfig) {
        if !self.fs.may_pass_through() {
            return;
        }
        let asked = offered.contains(InitFlags::FUSE_PASSTHROUGH)
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(self.stack_depth).is_ok();
        if !asked {
            self.fs.stop_passing(Obstacle::Kernel);
        }
    }
}

impl Filesystem for Driver {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities() & self.init_flags;
        for flag in [
            // Without it lookups and readdirs of one folder come one by one.
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_ASYNC_DIO,
            // A folder's cached entries go when its mtime changes. Files are
            // not touched by it: an inode's mtime never changes.
            InitFlags::FUSE_AUTO_INVAL_DATA,
        ] {
            if !offered.contains(flag) || config.add_capabilities(flag).is_err() {
                tracing::debug!(?flag, "an older kernel: done without");
            }
        }
        // A kernel that does not know them takes ENOSYS for an error.
        let without = InitFlags::FUSE_NO_OPEN_SUPPORT | InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        self.goes_without_open = offered.contains(without);
        self.ask_for_passthrough(offered, config);
        // Both are plain preferences; a kernel that bounds them lower does so silently.
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(CONGESTION_THRESHOLD);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count(&self.fs.metrics().fuse_ops.lookup);
        self.answer(self.fs.lookup(Ino(parent.0), name), move |result| match result {
            Ok(found) => match found.attr {
                Some(attr) => {
                    // In this order: the attributes' TTL comes first.
                    reply.entry_with_ttls(&attr.ttl, &found.ttl, &file_attr(&attr), GENERATION);
                }
                None => reply.entry(&found.ttl, &NO_ENTRY, GENERATION),
            },
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.count(&self.fs.metrics().fuse_ops.forget);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.count(&self.fs.metrics().fuse_ops.getattr);
        let ino = Ino(ino.0);
        let answer = match self.fs.getattr(ino) {
            // The index that knew it is lost. Who has it open reads on, and the
            // kernel asks for attributes before it lets them.
            Answer::Now(Err(Errno::ESTALE)) => {
                let open = self.open.object(ino.node(self.fs.tree().root()));
                Answer::Now(
                    open.map(|object| self.fs.attr_of_open(ino, &object)).ok_or(Errno::ESTALE),
                )
            }
            answer => answer,
        };
        self.answer(answer, move |result| match result {
            Ok(attr) => reply.attr(&attr.ttl, &file_attr(&attr)),
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count(&self.fs.metrics().fuse_ops.open);
        let mode = self.fs.settle_mode();
        if mode == OpenMode::Cached && self.goes_without_open {
            return reply.error(fuser::Errno::ENOSYS);
        }
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            self.fs.refused("open", Ino(ino.0), OsStr::new(""));
            return reply.error(Errno::EROFS.into());
        }
        let object = match self.fs.object(Ino(ino.0)) {
            Ok(object) => object,
            Err(errno) => return reply.error(errno.into()),
        };
        object.opened();
        let node = Ino(ino.0).node(self.fs.tree().root());
        if let Some(recorder) = self.fs.recorder() {
            recorder.open(node);
        }
        let backing = self.open.open(node, &object, |object| match mode {
            OpenMode::Passthrough => self.register(&reply, object),
            OpenMode::Cached | OpenMode::KeepCache => None,
        });
        match backing {
            Some(backing) => {
                // No READ will tell.
                self.fs.tree().was_read(&object, object.size(), false);
                reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &backing);
            }
            None => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(&self.fs.metrics().fuse_ops.read);
        let ino = Ino(ino.0);
        let node = ino.node(self.fs.tree().root());
        let open = self.open.object(node);
        let object = match open.map_or_else(|| self.fs.object(ino), Ok) {
            Ok(object) => object,
            Err(errno) => {
                self.fs.metrics().failed_reads.add(1);
                return reply.error(errno.into());
            }
        };
        let is_unopened = self.fs.mode() == OpenMode::Cached;
        self.fs.will_read(&object, offset, u64::from(size), is_unopened);
        let reply = READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match self.fs.read_at_hand(&object, offset, &mut buffer[..size as usize]) {
                Some(AtHand::Copied(len)) => reply.data(&buffer[..len]),
                Some(AtHand::Shared { data, .. }) => reply.data(&data),
                None => return Some(reply),
            }
            None
        });
        let Some(reply) = reply else { return };
        let fs = self.fs.clone();
        let on_disk = fs.read_on_disk(&object, offset, u64::from(size));
        let elsewhere = move |reply: ReplyData| async move {
            match fs.read(ino, object, offset, u64::from(size)).await {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno.into()),
            }
        };
        let runtime = self.runtime.clone();
        match on_disk {
            Some(read) => drop(self.runtime.spawn_blocking(move || match read() {
                Some(data) => reply.data(&data),
                None => drop(runtime.spawn(elsewhere(reply))),
            })),
            None => drop(self.runtime.spawn(elsewhere(reply))),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.count(&self.fs.metrics().fuse_ops.flush);
        // Nothing is ever written; after this answer the kernel stops asking.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.count(&self.fs.metrics().fuse_ops.release);
        self.open.release(Ino(ino.0).node(self.fs.tree().root()));
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.count(&self.fs.metrics().fuse_ops.opendir);
        // In every mode: nothing is kept for a folder that is open.
        if self.goes_without_open {
            return reply.error(fuser::Errno::ENOSYS);
        }
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.count(&self.fs.metrics().fuse_ops.readdir);
        self.answer(self.fs.read_names(Ino(ino.0), offset), move |result| match result {
            Ok(entries) => {
                for entry in &entries {
                    let ino = INodeNo(entry.attr.ino.0);
                    if reply.add(ino, entry.offset, kind(&entry.attr), &entry.name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count(&self.fs.metrics().fuse_ops.readdirplus);
        self.answer(self.fs.read_dir(Ino(ino.0), offset), move |result| match result {
            Ok(entries) => {
                for DirEntry { name, offset, attr, ttl } in &entries {
                    let ino = INodeNo(attr.ino.0);
                    // One TTL for name and attributes: the shorter one.
                    let ttl = attr.ttl.min(*ttl);
                    if reply.add(ino, *offset, name, &ttl, &file_attr(attr), GENERATION) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(errno) => reply.error(errno.into()),
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, _: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.count(&self.fs.metrics().fuse_ops.releasedir);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.count(&self.fs.metrics().fuse_ops.statfs);
        const BLOCK: u32 = 4096;
        let stat = self.fs.statfs();
        // Size: the dataset. Used: what of it is cached.
        let blocks = stat.bytes.div_ceil(u64::from(BLOCK));
        let free = stat.not_cached_bytes / u64::from(BLOCK);
        reply.statfs(blocks, free, free, stat.objects, 0, BLOCK, NAME_BYTES_MAX as u32, BLOCK);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        self.count(&self.fs.metrics().fuse_ops.lseek);
        // The kernel then takes every file for all data: no holes to skip.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(&self.fs.metrics().fuse_ops.getxattr);
        match self.fs.xattr(Ino(ino.0), name) {
            // Asked for its length only.
            Ok(value) if size == 0 => reply.size(value.len() as u32),
            Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
            Ok(value) => reply.data(&value),
            Err(errno) => reply.error(errno.into()),
        }
    }

    // The kernel sends none of these while the mount is read-only. Whoever makes it
    // writable (`mount -o remount,rw`) is told EROFS by us, and it is counted.

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(self.refuse("setattr", ino, OsStr::new("")));
    }

    fn mknod(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.refuse("mknod", parent, name));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refuse("mkdir", parent, name));
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse("unlink", parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse("rmdir", parent, name));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, name: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.refuse("symlink", parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refuse("rename", parent, name));
    }

    fn link(&self, _: &Request, _: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply.error(self.refuse("link", parent, name));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(self.refuse("create", parent, name));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(self.refuse("write", ino, OsStr::new("")));
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refuse("setxattr", ino, OsStr::new("")));
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(self.refuse("removexattr", ino, OsStr::new("")));
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(self.refuse("fallocate", ino, OsStr::new("")));
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.count(&self.fs.metrics().fuse_ops.listxattr);
        // After this answer the kernel says by itself that there are none to list.
        reply.error(fuser::Errno::ENOSYS);
    }
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> Self {
        fuser::Errno::from_i32(errno.0)
    }
}

fn kind(attr: &Attr) -> FileType {
    if attr.is_folder { FileType::Directory } else { FileType::RegularFile }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = UNIX_EPOCH + Duration::from_nanos(attr.mtime_ns);
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(attr),
        perm: attr.mode,
        nlink: if attr.is_folder { 2 } else { 1 },
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// Inode 0 in the answer to a LOOKUP: there is no such name, and that may be kept.
const NO_ENTRY: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};
