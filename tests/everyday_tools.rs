//! Tools of every day, side by side on one mount for a while, without an error: `tar`,
//! `cp`, `rsync`, `diff`, `du`, `ls`, `find`, `git`, and `stress-ng` where it can be
//! pointed at a folder. Meanwhile objects come and go in a folder that none of them
//! looks at, listings are too old every second, and the cache holds less than is read.
//!
//! Of the stressors for files and folders only these read: `--fstat`, `--getdent` and
//! `--sysfs`. `--dir`, `--dentry`, `--dirdeep`, `--dirmany`, `--filename`, `--chdir`,
//! `--access`, `--handle`, `--xattr` and others make their files themselves, and end at
//! once where they cannot.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use common::Warmfs;
use common::epoch::{Objects, drop_pages};
use common::machine::{is_root, skip};
use common::store::{BUCKET, Store};
use common::tree::{Tree, noise};
use nix::mount::{MsFlags, mount};

/// For the last round of each tool, and to set all up.
const SETTLE: Duration = Duration::from_secs(120);

/// Less than the tools read, and than the stream beside them.
const CACHE_SIZE: &str = "40M";

/// Objects of the stream that pushes others out of the cache.
const STREAM_OBJECTS: usize = 48;
const STREAM_BYTES: std::ops::Range<usize> = 900 << 10..1_100 << 10;

/// Objects that come and go.
const CHURN_OBJECTS: usize = 200;

/// How long one run of a stressor takes.
const STRESS: &str = "3";

#[test]
fn tools_side_by_side_meet_no_error() {
    side_by_side(Duration::from_secs(20));
}

#[test]
#[ignore = "takes ten minutes"]
fn tools_side_by_side_meet_no_error_in_ten_minutes() {
    side_by_side(Duration::from_secs(600));
}

/// A tool, and one round of it.
type Tool<'a> = (&'static str, Box<dyn FnMut() + Send + 'a>);

fn side_by_side(duration: Duration) {
    let store = Store::start();
    let mut warmfs = Warmfs::with_limit(duration + SETTLE);
    warmfs.set_env("WARMFS_ENDPOINT_URL", &store.url());
    let source = warmfs.path("as-it-is");
    fs::create_dir(&source).unwrap();
    let all = fill(&source);
    store.put_tree("data/", &all);
    let stream = Objects::put(&store, "stream/", STREAM_OBJECTS, STREAM_BYTES);
    put_churn(&store, 0..CHURN_OBJECTS);
    let options = ["--cache-size", CACHE_SIZE, "--metadata-ttl", "1"];
    let mount = warmfs.mount_with("s3://bucket", "mount", &options);
    let place = Place { source, data: mount.join("data"), all, out: warmfs.path("out") };
    fs::create_dir(&place.out).unwrap();

    let mut tools = place.tools();
    let (rounds, reads) = (AtomicU64::new(0), AtomicU64::new(0));
    let churning = mount.join("churn");
    tools.push(("churn", Box::new(|| churn(&store, rounds.fetch_add(1, Ordering::Relaxed)))));
    tools.push(("walk of the churn", Box::new(move || walk_churn(&churning))));
    tools.push((
        "stream",
        Box::new(|| {
            let order = stream.shuffled(reads.fetch_add(1, Ordering::Relaxed));
            order.read(&mount.join("stream"), "stream/", 1);
        }),
    ));
    let figures = run(tools, Instant::now() + duration);

    let status = warmfs.status();
    let count = |pointer: &str| status.pointer(pointer).and_then(|n| n.as_u64()).unwrap();
    let evicted = count("/evictions/objects");
    let (lists, gets) = (count("/remote/list/requests"), count("/remote/get/requests"));
    let requests = count("/mounts/0/fuse/requests");
    eprintln!(
        "{figures}{requests} requests of the kernel, {lists} LIST, {gets} GET, {evicted} objects \
         evicted, {} bytes not kept",
        status["passed_by_bytes"]
    );
    assert!(evicted > 0 && lists > duration.as_secs(), "{status:#}");
    assert_eq!(count("/repairs"), 0, "{status:#}");
    let is_trouble = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
    let log = warmfs.log();
    // Who reads what is being deleted is told so.
    let trouble: Vec<&str> =
        log.lines().filter(is_trouble).filter(|line| !line.contains("churn/")).collect();
    assert!(trouble.is_empty(), "{trouble:#?}");
    warmfs.unmount("mount");
    warmfs.assert_nothing_left(&["mount"]);
}

/// Runs each tool again and again until a time, all at once; each at least once. Gives
/// how often.
fn run(tools: Vec<Tool<'_>>, until: Instant) -> String {
    /// Ends the others where one has failed.
    struct Alarm<'a>(&'a AtomicBool);
    impl Drop for Alarm<'_> {
        fn drop(&mut self) {
            self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
        }
    }
    let (has_failed, rounds) = (AtomicBool::new(false), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for (name, mut round) in tools {
            let (has_failed, rounds) = (&has_failed, &rounds);
            scope.spawn(move || {
                let _alarm = Alarm(has_failed);
                loop {
                    round();
                    *rounds.lock().unwrap().entry(name).or_insert(0_u64) += 1;
                    if Instant::now() > until || has_failed.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
    });
    let rounds = rounds.into_inner().unwrap();
    rounds.iter().map(|(name, count)| format!("{name}: {count} rounds\n")).collect()
}

// ---------------------------------------------------------------------------
// What is read
// ---------------------------------------------------------------------------

/// Writes what the mount is to show, and returns it.
fn fill(dir: &Path) -> Tree {
    let mut tree = Tree::of_all_sizes(0);
    // Zeros are what a hole reads as.
    let mut zeros = BytesMut::zeroed((9 << 20) + 4_097);
    zeros[5 << 20..(5 << 20) + 5_000].copy_from_slice(&noise(1, 5_000));
    tree.files.insert("zeros".to_owned(), zeros.freeze());
    for n in 0..300 {
        tree.files.insert(format!("stat/{n:03}"), noise(n, n as usize));
    }
    tree.write_to(dir);
    make_repositories(dir);
    let mut files = BTreeMap::new();
    collect(dir, "", &mut files);
    Tree { files }
}

/// A work tree with packed and loose objects, and a bare clone of it.
fn make_repositories(dir: &Path) {
    let work = dir.join("work");
    let git = |args: &[&str]| {
        let who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.invalid"];
        let mut command = git(&[&["-C", work.to_str().unwrap()], &who[..], args].concat());
        command.env("GIT_OPTIONAL_LOCKS", "1");
        quiet(&mut command);
    };
    fs::create_dir(&work).unwrap();
    git(&["init", "-q", "-b", "main", "--template="]);
    for commit in 0..20 {
        for file in 0..5 {
            let path = work.join(format!("folder-{file}/file-{commit}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, noise(commit * 5 + file, 10_000)).unwrap();
        }
        fs::write(work.join("README"), format!("commit {commit}\n")).unwrap();
        git(&["add", "."]);
        git(&["commit", "-q", "-m", &format!("commit {commit}")]);
        if commit == 12 {
            git(&["gc", "-q"]);
        }
    }
    git(&["clone", "-q", "--bare", "--template=", ".", "../bare.git"]);
    // Without `refs/` it is no repository, and what is packed leaves that folder empty.
    git(&["--git-dir", "../bare.git", "update-ref", "refs/heads/loose", "HEAD"]);
}

/// Reads what is below a folder. Empty folders go: a bucket has none.
fn collect(dir: &Path, above: &str, files: &mut BTreeMap<String, Bytes>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = format!("{above}{}", entry.file_name().to_str().unwrap());
        if !entry.file_type().unwrap().is_dir() {
            files.insert(name, fs::read(entry.path()).unwrap().into());
            continue;
        }
        collect(&entry.path(), &format!("{name}/"), files);
        let _ = fs::remove_dir(entry.path()); // If it is empty.
    }
}

// ---------------------------------------------------------------------------
// What comes and goes beside it
// ---------------------------------------------------------------------------

fn put_churn(store: &Store, numbers: std::ops::Range<usize>) {
    for n in numbers {
        store.put(BUCKET, format!("churn/{}/{n}", n % 7), noise(n as u64, 1_000 + n));
    }
}

/// One object goes, one comes, and one is another.
fn churn(store: &Store, round: u64) {
    let mut rng = fastrand::Rng::with_seed(round);
    let mut any = || rng.usize(0..CHURN_OBJECTS);
    let (gone, come, changed) = (any(), any(), any());
    store.delete(BUCKET, &format!("churn/{}/{gone}", gone % 7));
    put_churn(store, come..come + 1);
    let body = noise(round, 1_000);
    store.put(BUCKET, format!("churn/{}/{changed}", changed % 7), body);
    std::thread::sleep(Duration::from_millis(5)); // A few hundred changes a second.
}

/// Sees what is there.
fn walk_churn(dir: &Path) {
    let Some(entries) = unless_gone(fs::read_dir(dir)) else { return };
    for entry in entries {
        let found = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)));
        match unless_gone(found) {
            Some((path, kind)) if kind.is_dir() => walk_churn(&path),
            Some((path, _)) => drop(unless_gone(fs::read(path))),
            None => {}
        }
    }
}

/// What was found, unless it is gone or another by now. No other error is one of motion.
fn unless_gone<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(found) => Some(found),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => None,
        Err(error) => panic!("in a folder in motion: {error}"),
    }
}

// ---------------------------------------------------------------------------
// The tools
// ---------------------------------------------------------------------------

/// Where they read, what they must find, and where they write.
struct Place {
    source: PathBuf,
    data: PathBuf,
    all: Tree,
    out: PathBuf,
}

impl Place {
    fn tools(&self) -> Vec<Tool<'_>> {
        let mut tools: Vec<Tool<'_>> = vec![
            ("tar", Box::new(|| self.tar("tar", &[]))),
            ("tar -S", Box::new(|| self.tar("tar-S", &["-S"]))),
            ("cp -a", Box::new(|| self.cp())),
            ("rsync -nc", Box::new(|| self.rsync())),
            ("diff -r", Box::new(|| self.diff())),
            ("du, ls and find", Box::new(|| self.look())),
            ("git in a bare repository", Box::new(|| self.git_bare())),
            ("git in a work tree", Box::new(|| self.git_work())),
            ("stress-ng --fstat", Box::new(|| self.fstat())),
            ("no pages", Box::new(|| self.drop_pages())),
        ];
        match is_root() {
            true => tools.push(("stress-ng --getdent --sysfs", Box::new(|| self.getdent()))),
            false => skip("stress-ng --getdent and --sysfs", "only root mounts over /sys"),
        }
        tools
    }

    /// A new folder of its own for a tool.
    fn out(&self, name: &str) -> PathBuf {
        let out = self.out.join(name);
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        out
    }

    fn tar(&self, name: &str, args: &[&str]) {
        let (out, archive) = (self.out(name), self.out.join(format!("{name}.archive")));
        quiet(
            Command::new("tar")
                .args(args)
                .arg("-cf")
                .arg(&archive)
                .arg("-C")
                .args([self.data.as_path(), Path::new(".")]),
        );
        let mut unpack = Command::new("tar");
        quiet(unpack.arg("-xf").arg(&archive).arg("--no-same-owner").arg("-C").arg(&out));
        self.all.assert_equals(&out, name);
    }

    fn cp(&self) {
        let out = self.out("cp");
        quiet(Command::new("cp").arg("-a").arg(self.data.join(".")).arg(&out));
        self.all.assert_equals(&out, "cp -a");
        // Not even a folder can be changed otherwise.
        quiet(Command::new("chmod").args(["-R", "u+w"]).arg(&out));
    }

    fn rsync(&self) {
        let mut command = Command::new("rsync");
        let said = quiet(
            command
                .args(["-rnc", "--itemize-changes", "--delete"])
                .args([self.data.join(""), self.source.join("")]),
        );
        assert_eq!(said, "", "rsync finds differences");
    }

    fn diff(&self) {
        let said = quiet(Command::new("diff").arg("-r").args([&self.source, &self.data]));
        assert_eq!(said, "");
    }

    fn look(&self) {
        let du = quiet(Command::new("du").args(["-s", "-B1", "--apparent-size"]).arg(&self.data));
        let bytes: u64 = du.split_whitespace().next().unwrap().parse().unwrap();
        // Some versions count what folders have, too.
        let folders = bytes - self.all.bytes();
        assert!(folders.is_multiple_of(4096) && folders < 1 << 20, "{du}");
        let ls = quiet(Command::new("ls").arg("-lsR").arg(&self.data));
        assert!(ls.lines().count() > self.all.files.len());
        let find = quiet(Command::new("find").arg(&self.data).args(["-type", "f", "-ls"]));
        assert_eq!(find.lines().count(), self.all.files.len());
    }

    fn git_bare(&self) {
        let bare = self.data.join("bare.git");
        let dir = bare.to_str().unwrap();
        let fsck = quiet(&mut git(&["--git-dir", dir, "fsck", "--full", "--strict"]));
        assert_eq!(fsck, "");
        let log = quiet(&mut git(&["--git-dir", dir, "log", "--oneline"]));
        assert_eq!(log.lines().count(), 20);
        let out = self.out("clone");
        quiet(&mut git(&["clone", "-q", dir, out.to_str().unwrap()]));
        let files = Tree { files: self.work_tree() };
        fs::remove_dir_all(out.join(".git")).unwrap();
        files.assert_equals(&out, "a clone");
    }

    fn git_work(&self) {
        let work = self.data.join("work");
        let dir = work.to_str().unwrap();
        for args in [&["fsck", "--full"][..], &["status", "--porcelain"], &["diff", "HEAD"]] {
            let said = quiet(&mut git(&[&["-C", dir], args].concat()));
            assert_eq!(said, "", "git {args:?}");
        }
    }

    /// The files of the repository, without what is git's own.
    fn work_tree(&self) -> BTreeMap<String, Bytes> {
        let files = self.all.files.iter();
        let own = files.filter_map(|(name, bytes)| {
            let name = name.strip_prefix("work/").filter(|name| !name.starts_with(".git/"))?;
            Some((name.to_owned(), bytes.clone()))
        });
        own.collect()
    }

    fn fstat(&self) {
        stress(stress_ng().args(["--fstat", "1", "--fstat-dir"]).arg(self.data.join("stat")));
    }

    /// These stressors have their folders built in: in a mount namespace of its own, the
    /// mount takes their place.
    fn getdent(&self) {
        let (data, scratch) = (self.data.clone(), Path::new("/mnt"));
        let mut command = stress_ng();
        let command = command.args(["--getdent", "1", "--sysfs", "1", "--temp-path"]).arg(scratch);
        let prepare = move || {
            // SAFETY: takes a number only.
            if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            mount(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::empty(), none)?;
            // The mount itself may lie in the last one.
            for dir in ["/sys", "/run", "/tmp"] {
                mount(Some(&data), dir, none, MsFlags::MS_BIND, none)?;
            }
            std::env::set_current_dir(scratch)
        };
        // SAFETY: system calls between fork and exec; the little that they allocate is
        // safe in glibc, whose allocator survives a fork.
        unsafe { command.pre_exec(prepare) };
        stress(command);
    }

    /// Takes what is read out of the page cache, so that the next one comes to the daemon.
    fn drop_pages(&self) {
        for name in self.all.files.keys() {
            drop_pages(&fs::File::open(self.data.join(name)).unwrap()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(300)); // Or it would be all that there is.
    }
}

/// Runs a program of the machine to its end; it must succeed and say nothing on stderr.
/// Returns its stdout.
fn quiet(command: &mut Command) -> String {
    let (status, stdout, stderr) = output(command);
    assert!(status && stderr.is_empty(), "{command:?}: {stderr}{stdout}");
    stdout
}

fn output(command: &mut Command) -> (bool, String, String) {
    let output = match command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8").output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?} cannot be run ({error}): run ./check, which installs it"),
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// git as it reads a repository that it cannot write to, whoever owns it.
fn git(args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*"]).args(args);
    command.env("GIT_OPTIONAL_LOCKS", "0").env("GIT_CONFIG_NOSYSTEM", "1");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

fn stress_ng() -> Command {
    let mut command = Command::new("stress-ng");
    command.args(["--verify", "-t", STRESS]);
    command
}

/// Runs stressors to their end. They say much, also of what they do not find in /sys.
fn stress(command: &mut Command) {
    let (is_ok, stdout, stderr) = output(command);
    let said = stdout + &stderr;
    assert!(is_ok && !said.contains("fail:"), "{command:?}: {said}");
}
