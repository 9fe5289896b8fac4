//! What each request means. No kernel here: tests call these directly.

use std::ffi::OsStr;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Answer;
use super::errno::Errno;
use super::inode::{Attr, Ino};
use super::open_mode::{MountMode, Obstacle, OpenMode};
use super::trace::Recorder;
use crate::cache::{CacheError, CachedObject, Child, Extent, Node, NodeId, NodeKind, Rollup, Tree};
use crate::config::MountOptions;
use crate::metrics::MountMetrics;

/// Entries of one READDIR answer at most. Newer kernels ask for 32 KiB, which is
/// about 200 entries with attributes; more would be read for nothing.
pub const READDIR_ENTRIES_MAX: usize = 256;

/// Bytes of a name at most, as in every file system.
pub const NAME_BYTES_MAX: usize = 255;

/// Names of a path that are told of. Keys have 1,024 bytes at most where they are bounded.
const PATH_NAMES_MAX: usize = 1_024;

/// Offset after `.`; the one after `..` is 2. Others are node ids, which begin higher.
const OFFSET_DOT: u64 = 1;
const OFFSET_DOT_DOT: u64 = 2;

/// A mounted tree.
#[derive(Debug)]
pub struct FileSystem {
    tree: Arc<Tree>,
    uri: String,
    options: MountOptions,
    metrics: Arc<MountMetrics>,
    mode: MountMode,
    recorder: OnceLock<Recorder>,
}

/// The answer to a LOOKUP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the name is, or `None`: there is nothing of that name.
    pub attr: Option<Attr>,
    /// How long the kernel may keep that.
    pub ttl: Duration,
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: String,
    /// Where to go on after it.
    pub offset: u64,
    /// Its attributes.
    pub attr: Attr,
    /// How long the kernel may keep the name; zero for `.` and `..`.
    pub ttl: Duration,
}

/// What is wanted of the entries of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detail {
    /// Names, kinds and inode numbers.
    Names,
    /// All attributes, which the kernel keeps.
    Attributes,
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statfs {
    /// Bytes of every object known below the mount.
    pub bytes: u64,
    /// Bytes of these that are not cached.
    pub not_cached_bytes: u64,
    /// Objects known below the mount.
    pub objects: u64,
}

impl FileSystem {
    /// A file system over `tree`, which is what `uri` names.
    pub fn new(
        tree: Arc<Tree>,
        uri: String,
        options: MountOptions,
        metrics: Arc<MountMetrics>,
    ) -> Arc<Self> {
        let mode = MountMode::new(options.open_mode);
        let recorder = OnceLock::new();
        Arc::new(FileSystem { tree, uri, options, metrics, mode, recorder })
    }

    /// What is mounted, as users write it.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// How files are opened.
    pub fn mode(&self) -> OpenMode {
        self.mode.mode(|| self.known())
    }

    /// Why they are opened so.
    pub fn mode_reason(&self) -> String {
        self.mode.reason(|| self.known())
    }

    /// What is read without the daemon, and is in none of its figures.
    pub fn not_seen(&self) -> &'static str {
        match self.mode() {
            OpenMode::Passthrough => {
                "reads of complete files, which the kernel passes through to the cache"
            }
            OpenMode::Cached | OpenMode::KeepCache => "reads that the kernel's page cache answers",
        }
    }

    /// How this file is to be opened, and with the first one every other.
    pub(super) fn settle_mode(&self) -> OpenMode {
        let mode = self.mode.settle(|| self.known());
        if mode == OpenMode::Passthrough {
            self.tree.store().pages_are_read();
        }
        mode
    }

    /// Whether the kernel is to be asked for passthrough.
    pub(super) fn may_pass_through(&self) -> bool {
        self.mode.may_pass_through()
    }

    /// Nothing is passed through from now on.
    pub(super) fn stop_passing(&self, why: Obstacle) {
        if self.mode.stop_passing(why) {
            tracing::warn!(%why, "files are not passed through");
        }
    }

    /// The kernel took a complete file to pass it through, or did not.
    pub(super) fn passed(&self, refusal: Option<&io::Error>) {
        if let Some(why) = refusal.and_then(Obstacle::of) {
            self.stop_passing(why);
        } else if let (true, Some(error)) = (self.mode.passed(refusal), refusal) {
            tracing::warn!(%error, "some files are not passed through");
        }
    }

    /// The files of the dataset, as far as they are known.
    fn known(&self) -> Rollup {
        self.tree.rollup(self.tree.root()).unwrap_or_default()
    }

    /// Has every open and read written down from now on.
    pub fn record(&self, recorder: Recorder) {
        // A second one would have nothing to tell that the first does not.
        let _ = self.recorder.set(recorder);
    }

    /// Who writes down what is read, if anybody does.
    pub fn recorder(&self) -> Option<&Recorder> {
        self.recorder.get()
    }

    /// What it was asked for.
    pub fn metrics(&self) -> &Arc<MountMetrics> {
        &self.metrics
    }

    /// A request to change something came, which is refused. `name` is one in the
    /// folder `ino`, or empty for that itself.
    pub(super) fn refused(&self, op: &str, ino: Ino, name: &OsStr) {
        self.metrics.refused.add(|| {
            let name = name.to_string_lossy();
            let names = [self.path(ino), name.into_owned()];
            let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
            format!("{op} {}", names.join("/"))
        });
    }

    /// Where a node stands below the mount point, as far as that is known.
    fn path(&self, ino: Ino) -> String {
        let root = Ino::ROOT.node(self.tree.root());
        let (mut names, mut id) = (Vec::new(), ino.node(self.tree.root()));
        while id != root && names.len() < PATH_NAMES_MAX {
            let Ok(Some(node)) = self.tree.node(id) else { break };
            names.push(node.name);
            id = node.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// What it shows.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    pub(super) fn options(&self) -> &MountOptions {
        &self.options
    }

    /// Finds a name in a folder.
    pub fn lookup(self: &Arc<Self>, parent: Ino, name: &OsStr) -> Answer<Found> {
        if name.len() > NAME_BYTES_MAX {
            return Answer::Now(Err(Errno::ENAMETOOLONG));
        }
        // Names of nodes are UTF-8: keys that are not are hidden.
        let Some(name) = name.to_str() else {
            return Answer::Now(Ok(Found { attr: None, ttl: self.options.metadata_ttl }));
        };
        let parent = parent.node(self.tree.root());
        match self.tree.child(parent, name) {
            Ok(Child::Unknown) => {}
            Ok(known) => return Answer::Now(self.found(known)),
            Err(error) => return Answer::Now(Err(self.failed("lookup", name, &error))),
        }
        let fs = self.clone();
        let name = name.to_owned();
        Answer::Later(Box::pin(async move {
            let child = fs.tree.lookup(parent, &name).await;
            fs.found(child.map_err(|error| fs.failed("lookup", &name, &error))?)
        }))
    }

    fn found(&self, child: Child) -> Result<Found, Errno> {
        Ok(match child {
            Child::Known(node) => {
                // First: the next look into the index may be the one by which it is lost.
                self.give(node.parent, std::iter::once(node.clone()))?;
                Found { attr: Some(self.attr_of(&node)), ttl: node.valid_for }
            }
            Child::Absent(ttl) => Found { attr: None, ttl },
            Child::Unknown => Found { attr: None, ttl: Duration::ZERO },
        })
    }

    /// The attributes of an inode. A file never asks the remote: it is one
    /// version, and that does not change.
    ///
    /// A folder whose listing is too old is listed again behind whoever asks. Without
    /// OPENDIR this is all that comes before the kernel serves its own copy of the
    /// listing, and the mtime is all by which it tells that the copy is old: it asks
    /// again each time until that is done.
    pub fn getattr(self: &Arc<Self>, ino: Ino) -> Answer<Attr> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(errno) => return Answer::Now(Err(errno)),
        };
        let NodeKind::Folder { listed_for: Some(Duration::ZERO), .. } = node.kind else {
            return Answer::Now(Ok(self.attr_of(&node)));
        };
        if self.tree.shows_old(node.id).unwrap_or(false) {
            self.tree.revalidate(node.id);
            return Answer::Now(Ok(self.attr_of(&node)));
        }
        let fs = self.clone();
        Answer::Later(Box::pin(async move {
            if let Err(error) = fs.tree.ensure_listed(node.id).await {
                // The folder is there all the same; reading it says what is wrong.
                fs.failed("getattr", &node.name, &error);
            }
            fs.node(ino).map(|node| fs.attr_of(&node))
        }))
    }

    /// Remembers nodes of `folder` that the kernel is told of. With handles there
    /// is no need: it looks a name up again when it cannot be opened.
    ///
    /// # Errors
    /// ESTALE if the folder is not known by now: the kernel looks the path up again.
    fn give(&self, folder: NodeId, nodes: impl Iterator<Item = Node>) -> Result<(), Errno> {
        if self.mode() == OpenMode::Cached {
            let prefix = self.tree.prefix(folder).map_err(|_| Errno::ESTALE)?;
            self.tree.given().give(&prefix, nodes);
        }
        Ok(())
    }

    pub(super) fn node(&self, ino: Ino) -> Result<Node, Errno> {
        let id = ino.node(self.tree.root());
        match self.tree.node(id) {
            Ok(Some(node)) => Ok(node),
            Ok(None) => self.tree.given().get(id).map(|(node, _)| node).ok_or(Errno::ESTALE),
            Err(error) => Err(self.failed("node", &id.0.to_string(), &error)),
        }
    }

    /// The attributes of an object that is open, whatever became of its name.
    pub(super) fn attr_of_open(&self, ino: Ino, object: &CachedObject) -> Attr {
        let id = ino.node(self.tree.root());
        let kind = NodeKind::Object(object.attr());
        let node = Node {
            id,
            parent: id,
            name: String::new(),
            kind,
            valid_for: self.options.metadata_ttl,
        };
        Attr::new(&node, self.tree.root(), object.present_bytes(), &self.options)
    }

    fn attr_of(&self, node: &Node) -> Attr {
        let present = match &node.kind {
            NodeKind::Object(object) if object.size > 0 => self.tree.store().present_bytes(node.id),
            _ => 0,
        };
        Attr::new(node, self.tree.root(), present, &self.options)
    }

    /// The object of a file's inode.
    pub fn object(&self, ino: Ino) -> Result<Arc<CachedObject>, Errno> {
        if let Some(object) = self.tree.store().unharmed(ino.node(self.tree.root())) {
            return Ok(object);
        }
        let id = ino.node(self.tree.root());
        if let (Ok(None), Some((node, prefix))) = (self.tree.node(id), self.tree.given().get(id)) {
            return self.tree.open_lost(&node, &prefix).ok_or(Errno::ESTALE);
        }
        let node = self.node(ino)?;
        match self.tree.open(&node) {
            Ok(Some(object)) => Ok(object),
            Ok(None) => Err(Errno::EISDIR),
            Err(error) => Err(self.failed("open", &node.name, &error)),
        }
    }

    /// Entries of a folder from `offset` on (0 is its beginning), up to
    /// [`READDIR_ENTRIES_MAX`]. Empty at the end.
    ///
    /// An offset is the node id of the entry before, so it stays valid for as
    /// long as anybody may keep it, whatever comes and goes in the folder.
    pub fn read_dir(self: &Arc<Self>, ino: Ino, offset: u64) -> Answer<Vec<DirEntry>> {
        self.read_dir_with(ino, offset, Detail::Attributes)
    }

    /// As [`FileSystem::read_dir`] for who looks at names, kinds and inode numbers only.
    pub fn read_names(self: &Arc<Self>, ino: Ino, offset: u64) -> Answer<Vec<DirEntry>> {
        self.read_dir_with(ino, offset, Detail::Names)
    }

    fn read_dir_with(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        detail: Detail,
    ) -> Answer<Vec<DirEntry>> {
        let folder = ino.node(self.tree.root());
        if offset == 0 {
            self.tree.walk_to(folder);
        } else {
            self.tree.walk_goes_on();
        }
        // Whoever is past the beginning goes on with what it began.
        let is_known = match offset {
            0 => self.tree.is_listed(folder).and_then(|is_listed| match is_listed {
                true => Ok(true),
                false => self.tree.shows_old(folder),
            }),
            _ => self.tree.was_listed(folder),
        };
        match is_known {
            Ok(true) => {
                if offset == 0 {
                    self.tree.revalidate(folder);
                }
                let after = match self.name_before(folder, offset) {
                    Ok(Some(after)) => after,
                    Ok(None) => return Answer::Now(Ok(Vec::new())),
                    Err(errno) => return Answer::Now(Err(errno)),
                };
                Answer::Now(self.entries(ino, folder, (offset, &after), &Extent::Whole, detail))
            }
            Ok(false) => {
                let fs = self.clone();
                Answer::Later(Box::pin(async move {
                    fs.list_and_read_dir(ino, folder, offset, detail).await
                }))
            }
            Err(error) => Answer::Now(Err(self.failed("readdir", "", &error))),
        }
    }

    /// Reads of a folder what is known of it, and waits for something to be.
    async fn list_and_read_dir(
        &self,
        ino: Ino,
        folder: NodeId,
        offset: u64,
        detail: Detail,
    ) -> Result<Vec<DirEntry>, Errno> {
        let Some(after) = self.name_before(folder, offset)? else { return Ok(Vec::new()) };
        loop {
            let extent = self.tree.extent(folder, &after).await;
            let extent = extent.map_err(|error| self.failed("readdir", "", &error))?;
            let entries = self.entries(ino, folder, (offset, &after), &extent, detail)?;
            // Nothing is the end for who reads: not while more is on its way, and what
            // was there is gone this moment.
            if !entries.is_empty() || extent == Extent::Whole {
                return Ok(entries);
            }
        }
    }

    /// The name that an offset stands behind, empty for the beginning; `None` for one
    /// that was never given out.
    fn name_before(&self, folder: NodeId, offset: u64) -> Result<Option<String>, Errno> {
        if offset <= OFFSET_DOT_DOT {
            return Ok(Some(String::new()));
        }
        match self.tree.node(NodeId(offset)) {
            Ok(Some(node)) => Ok((node.parent == folder).then_some(node.name)),
            Ok(None) => Ok(None),
            Err(error) => Err(self.failed("readdir", "", &error)),
        }
    }

    /// Entries of a folder from an offset on, and after the name that stands for.
    fn entries(
        &self,
        ino: Ino,
        folder: NodeId,
        (offset, after): (u64, &str),
        extent: &Extent,
        detail: Detail,
    ) -> Result<Vec<DirEntry>, Errno> {
        let mut entries = Vec::with_capacity(READDIR_ENTRIES_MAX);
        if offset < OFFSET_DOT_DOT {
            let node = self.node(ino)?;
            let parent =
                if ino == Ino::ROOT { ino } else { Ino::of(node.parent, self.tree.root()) };
            let attr = self.attr_of(&node);
            let above = Attr { ino: parent, ..attr };
            let dots = [(".", OFFSET_DOT, attr), ("..", OFFSET_DOT_DOT, above)];
            entries.extend(dots.into_iter().filter(|(_, at, _)| *at > offset).map(
                |(name, offset, attr)| DirEntry {
                    name: name.to_owned(),
                    offset,
                    attr,
                    ttl: Duration::ZERO,
                },
            ));
        }
        let mut children = self
            .tree
            .children(folder, Some(after), READDIR_ENTRIES_MAX)
            .map_err(|error| self.failed("readdir", "", &error))?;
        if let Extent::Below(below) = extent {
            children.truncate(children.partition_point(|node| node.name < *below));
        }
        let present = match detail {
            // By a name alone the kernel opens nothing: it looks it up first.
            Detail::Names => Vec::new(),
            Detail::Attributes => {
                // As for a lookup; but who reads a folder would not begin anew.
                let _ = self.give(folder, children.iter().cloned());
                let ids: Vec<NodeId> = children.iter().map(|node| node.id).collect();
                self.tree.store().present_bytes_of(&ids)
            }
        };
        let present = present.into_iter().chain(std::iter::repeat(0));
        entries.extend(children.into_iter().zip(present).map(|(node, present)| DirEntry {
            offset: node.id.0,
            attr: Attr::new(&node, self.tree.root(), present, &self.options),
            ttl: node.valid_for,
            name: node.name,
        }));
        Ok(entries)
    }

    /// Sizes of the dataset, as far as it is known.
    pub fn statfs(&self) -> Statfs {
        let rollup = self.known();
        Statfs {
            bytes: rollup.bytes,
            not_cached_bytes: rollup.bytes.saturating_sub(rollup.cached_bytes),
            objects: rollup.objects,
        }
    }

    pub(super) fn failed(&self, what: &str, name: &str, error: &CacheError) -> Errno {
        let errno = Errno::of_lookup(error);
        if errno != Errno::ENOENT {
            tracing::warn!(what, name, %error, "a request failed");
        }
        errno
    }
}
