//! warmfs and the others: how each is started, tuned for the workload as well
//! as its documentation lets us.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};

use super::data::{BUCKET, Object, Set};
use super::install::Tools;
use super::process::{Ran, Running, Usage, run};
use super::read::Epoch;
use super::store::Store;
use super::work::{self, Work, says};
use super::{Failure, failed};
use crate::common::is_mounted;

/// For a mount to appear.
const MOUNT_MAX: Duration = Duration::from_secs(30);
/// For one measurement of one peer. The slowest seen took 213 s: s3fs, 10,000
/// small files at 47 a second.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// As it is on a notebook VM, whose kernel passes nothing through, and for every user
/// without privilege: what is not asked for otherwise is measured so.
const OPEN_MODE: [&str; 2] = ["--open-mode", "cached"];

const RCLONE: &str = "--s3-provider Other --s3-list-version 2 --s3-force-path-style \
    --s3-no-head-object --use-server-modtime --no-checksum --read-only --vfs-cache-mode full \
    --vfs-fast-fingerprint --vfs-read-chunk-size 4M --vfs-read-chunk-streams 16 \
    --vfs-read-ahead 16M --buffer-size 16M --dir-cache-time 1h --attr-timeout 1h --transfers 64";
const S3FS: &str = "use_path_request_style,public_bucket=1,listobjectsv2,ro,kernel_cache,\
    parallel_count=20,multipart_size=10,multireq_max=64,max_stat_cache_size=200000,\
    complement_stat,enable_noobj_cache,max_background=1000";
const MOUNT_S3: &str = "--force-path-style --no-sign-request --region us-east-1 --read-only \
    --metadata-ttl 3600 --maximum-throughput-gbps 100";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Warmfs,
    S5cmd,
    Rclone,
    S3fs,
    MountS3,
    MountS3Cache,
}

impl Peer {
    pub(crate) const ALL: [Peer; 6] =
        [Peer::Warmfs, Peer::S5cmd, Peer::Rclone, Peer::S3fs, Peer::MountS3, Peer::MountS3Cache];

    /// As options name it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Peer::S5cmd => "s5cmd",
            Peer::Rclone => "rclone",
            Peer::MountS3Cache => "mount-s3-cache",
            Peer::Warmfs | Peer::S3fs | Peer::MountS3 => self.name(),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Warmfs => "warmfs",
            Peer::S5cmd => "s5cmd cp",
            Peer::Rclone => "rclone mount",
            Peer::S3fs => "s3fs",
            Peer::MountS3 => "mount-s3",
            Peer::MountS3Cache => "mount-s3 --cache",
        }
    }

    /// Its program, if it is here.
    pub(crate) fn program(self, tools: &Tools) -> Option<PathBuf> {
        match self {
            Peer::Warmfs => Some(PathBuf::from(env!("CARGO_BIN_EXE_warmfs"))),
            Peer::S5cmd => tools.s5cmd.clone(),
            Peer::Rclone => tools.rclone.clone(),
            Peer::S3fs => tools.s3fs.clone(),
            Peer::MountS3 | Peer::MountS3Cache => tools.mount_s3.clone(),
        }
    }

    pub(crate) fn version(self, program: &Path) -> String {
        let arg = if self == Peer::S5cmd { "version" } else { "--version" };
        says(program, &[arg])
    }

    /// The flags that are not about where things lie.
    pub(crate) fn flags(self) -> String {
        let text = match self {
            Peer::Warmfs => OPEN_MODE.join(" "),
            Peer::S5cmd => {
                "--retry-count 3 --numworkers 64 cp (one object: --concurrency 16 --part-size 8)"
                    .into()
            }
            Peer::Rclone => RCLONE.to_owned(),
            Peer::S3fs => format!("-o use_cache=DIR,{S3FS}"),
            Peer::MountS3 => MOUNT_S3.to_owned(),
            Peer::MountS3Cache => format!("--cache DIR {MOUNT_S3}"),
        };
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Where and with what peers run.
pub(crate) struct Field<'a> {
    pub(crate) work: &'a Work,
    pub(crate) tools: &'a Tools,
    pub(crate) store: &'a Store,
}

/// A peer's mount with an empty cache. Dropping it unmounts and removes the cache.
pub(crate) struct Mount {
    /// The bucket's root.
    pub(crate) dir: PathBuf,
    /// From the start until it could be read.
    pub(crate) ready: Duration,
    home: PathBuf,
    running: Running,
}

/// A set on disk, removed when dropped.
pub(crate) struct Copied {
    /// In place of the set's.
    pub(crate) folder: PathBuf,
    pub(crate) ran: Ran,
    home: PathBuf,
}

impl Copied {
    /// The copy as if it were an epoch: nothing of it can be used before its end.
    pub(crate) fn epoch(&self, objects: &[Object]) -> Epoch {
        let seconds = self.ran.took.as_secs_f64();
        Epoch {
            seconds,
            files: objects.len(),
            bytes: objects.iter().map(|object| object.size).sum(),
            first_batch_s: seconds,
            latencies_ms: Vec::new(),
        }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        work::remove(&self.home);
    }
}

impl Field<'_> {
    /// Mounts the bucket; `more` are further options of the peer's.
    pub(crate) fn mount(&self, peer: Peer, more: &[&str]) -> Result<Mount, Failure> {
        self.mount_in(None, peer, more)
    }

    /// The same with the peer in a cgroup from its first instruction on.
    pub(crate) fn mount_in(
        &self,
        cgroup: Option<&Path>,
        peer: Peer,
        more: &[&str],
    ) -> Result<Mount, Failure> {
        let home = self.work.folder("mount");
        let dir = home.join("mnt");
        let cache = home.join("cache");
        for folder in [&dir, &cache] {
            std::fs::create_dir(folder).map_err(failed("a folder"))?;
        }
        let mut command = self.command(peer, &home)?;
        self.mount_args(peer, &mut command, &dir, &cache);
        if peer == Peer::Warmfs && !more.contains(&OPEN_MODE[0]) {
            command.args(OPEN_MODE);
        }
        command.args(more);
        if let Some(cgroup) = cgroup {
            command = in_cgroup(cgroup, &command);
        }
        let began = Instant::now();
        let mut running = Running::start(&mut command, &home.join("log"), &home, LIMIT)?;
        running.until("the mount", MOUNT_MAX, || is_mounted(&dir))?;
        Ok(Mount { dir, ready: began.elapsed(), home, running })
    }

    /// Copies a set to disk with s5cmd.
    pub(crate) fn copy(&self, set: Set) -> Result<Copied, Failure> {
        let home = self.work.folder("copy");
        let mut command = self.command(Peer::S5cmd, &home)?;
        command.args(["--endpoint-url", self.store.url(), "--no-sign-request"]);
        command.args(["--log", "error", "--retry-count", "3", "--numworkers", "64", "cp"]);
        if matches!(set, Set::One | Set::Giant) {
            command.args(["--concurrency", "16", "--part-size", "8"]);
        }
        let to = home.join("data");
        command.arg(format!("s3://{BUCKET}/{}/*", set.folder())).arg(format!("{}/", to.display()));
        let ran = run(&mut command, &home.join("log"), LIMIT)?;
        Ok(Copied { folder: to, ran, home })
    }

    /// The peer's program in an environment without anything of ours but `home`.
    pub(crate) fn command(&self, peer: Peer, home: &Path) -> Result<Command, Failure> {
        let program = peer.program(self.tools).ok_or("not installed")?;
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", home).env("XDG_RUNTIME_DIR", home).env("TMPDIR", home);
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_REGION", "us-east-1");
        command.env("RCLONE_CONFIG", "/dev/null");
        if let Some(ca) = self.store.ca() {
            // What the peer at hand looks at; rclone has an option.
            let name = match peer {
                Peer::Warmfs | Peer::S5cmd => "AWS_CA_BUNDLE",
                Peer::S3fs => "CURL_CA_BUNDLE",
                Peer::Rclone | Peer::MountS3 | Peer::MountS3Cache => "SSL_CERT_FILE",
            };
            command.env(name, ca);
        }
        Ok(command)
    }

    fn mount_args(&self, peer: Peer, command: &mut Command, dir: &Path, cache: &Path) {
        let url = self.store.url();
        match peer {
            Peer::Warmfs => {
                command.args(["mount", &format!("s3://{BUCKET}")]).arg(dir);
                command.args(["--endpoint-url", url, "--no-sign-request", "--foreground"]);
                command.arg("--cache-dir").arg(cache);
            }
            Peer::Rclone => {
                command.args(["mount", &format!(":s3:{BUCKET}")]).arg(dir);
                command.args(["--s3-endpoint", url, "--cache-dir"]).arg(cache);
                command.args(RCLONE.split_whitespace());
                if let Some(ca) = self.store.ca() {
                    command.arg("--ca-cert").arg(ca);
                }
            }
            Peer::S3fs => {
                command.arg(BUCKET).arg(dir).arg("-f");
                let options: String = S3FS.split_whitespace().collect();
                let cache = cache.display();
                command.arg("-o").arg(format!("url={url},use_cache={cache},{options}"));
            }
            Peer::MountS3 | Peer::MountS3Cache => {
                command.arg(BUCKET).arg(dir).args(["--endpoint-url", url, "--foreground"]);
                command.args(MOUNT_S3.split_whitespace());
                if peer == Peer::MountS3Cache {
                    command.arg("--cache").arg(cache);
                }
            }
            Peer::S5cmd => unreachable!("it copies"),
        }
    }
}

/// The same command by way of a shell that joins `cgroup` first.
fn in_cgroup(cgroup: &Path, command: &Command) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(cgroup);
    shell.arg(command.get_program()).args(command.get_args()).env_clear();
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell
}

impl Mount {
    pub(crate) fn usage(&self) -> Usage {
        self.running.usage()
    }

    /// The folder of a set.
    pub(crate) fn folder(&self, set: Set) -> PathBuf {
        self.dir.join(set.folder())
    }

    /// The cache directory, and what else the peer keeps.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
        self.running.end();
        work::remove(&self.home);
    }
}
