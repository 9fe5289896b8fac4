//! The cache's disk, its daemon, and the mounts that are here.

use std::path::Path;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use super::machine::fs_type_of;
use crate::cache::Disk;
use crate::control::cache_lock::{self, CacheLock};
use crate::control::client::Client;
use crate::daemon::mount_point::clear_stale;
use crate::daemon::mountinfo::MountInfo;
use crate::daemon::{kernel, mountinfo, preflight};
use crate::units::format_bytes;

/// Fewer open files than this are soon short: a descriptor for each that is being read,
/// one for each request, and those of the daemon itself.
const DESCRIPTORS_MIN: u64 = 4_096;

/// In this time a supervisor gives dead mounts back.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(2);

/// Mounts that are asked whether they live: each may take 2 s to.
const MOUNTS_MAX: usize = 64;

/// File systems that are others' machines, by the beginning of their type.
const NETWORK: [&str; 9] =
    ["nfs", "cifs", "smb", "9p", "ceph", "lustre", "beegfs", "fuse", "virtiofs"];

pub(super) fn look(cache_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![place(cache_dir)];
    // Of what will be created only what is there has a disk.
    let there = cache_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match Disk::of(there) {
        Ok(disk) => findings.extend([room(&disk), inodes(&disk)]),
        Err(error) => findings.push(Finding::fail(
            "disk",
            format!("it does not say what is free: {}", preflight::describe(&error)),
            "choose another one with --cache-dir",
        )),
    }
    findings.push(descriptors());
    findings
}

fn place(cache_dir: &Path) -> Finding {
    let check = "cache";
    if let Err(error) = preflight::check_cache_dir(cache_dir) {
        return Finding::refused(check, error);
    }
    let shown = cache_dir.display();
    let fs_type = fs_type_of(cache_dir).unwrap_or_else(|_| "an unknown file system".to_owned());
    let message = format!("{shown} on {fs_type}");
    match fs_type.as_str() {
        "tmpfs" | "ramfs" => Finding::warn(
            check,
            format!("{message}: it is kept in memory, and gone with the next boot"),
            "choose a disk with --cache-dir",
        ),
        "overlay" => Finding::warn(
            check,
            format!("{message}: gone with the container, and slower than a disk"),
            "mount a volume and name it with --cache-dir",
        ),
        other if NETWORK.iter().any(|network| other.starts_with(network)) => Finding::warn(
            check,
            format!("{message}: a cache across a network gains little"),
            "choose a local disk with --cache-dir",
        ),
        _ => Finding::ok(check, message),
    }
}

fn room(disk: &Disk) -> Finding {
    let (free, reserve) = (format_bytes(disk.free), format_bytes(disk.reserve()));
    let message = format!("{free} free of {}", format_bytes(disk.total));
    match disk.free.checked_sub(disk.reserve()) {
        None | Some(0) => Finding::warn(
            "disk",
            format!("{message}, and {reserve} are left to others: nothing is cached"),
            "make room, choose another disk with --cache-dir, or give a --cache-size, which \
             leaves less to others",
        ),
        Some(room) => {
            let room = format_bytes(room);
            Finding::ok("disk", format!("{message}, {reserve} left to others: room for {room}"))
        }
    }
}

fn inodes(disk: &Disk) -> Finding {
    match disk.files {
        0 => Finding::ok("inodes", "as many as there is room for"),
        _ if disk.free_files <= disk.floor_files() => Finding::warn(
            "inodes",
            format!("{} free: nothing is cached, each object takes one", disk.free_files),
            "remove small files, or choose another disk with --cache-dir",
        ),
        _ => Finding::ok("inodes", format!("{} free; each object takes one", disk.free_files)),
    }
}

fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS_MIN => Finding::warn(
            "descriptors",
            format!("{hard} at most: one is needed for each file that is being read"),
            "raise the hard limit: `ulimit -Hn 65536`, or LimitNOFILE= of the service",
        ),
        Ok((_, libc::RLIM_INFINITY)) => Finding::ok("descriptors", "no limit"),
        Ok((_, hard)) => Finding::ok("descriptors", format!("{hard} at most")),
        Err(error) => Finding::warn("descriptors", error.to_string(), "see `ulimit -Hn`"),
    }
}

pub(super) async fn daemon(cache_dir: &Path) -> Finding {
    let check = "daemon";
    let client = match Client::of_cache(cache_dir).await {
        Ok(Some(client)) => client,
        Ok(None) => return without_daemon(cache_dir),
        Err(error) => return Finding::refused(check, error),
    };
    let (pid, version) = (client.daemon().pid, &client.daemon().version);
    let record = cache_lock::read_record(cache_dir);
    let is_supervised = record.is_some_and(|record| record.is_supervised());
    let supervised = if is_supervised { "supervised" } else { "not supervised" };
    let message = format!("process {pid}, version {version}, {supervised}");
    match version == env!("CARGO_PKG_VERSION") {
        true => Finding::ok(check, message),
        false => Finding::warn(
            check,
            format!("{message}; this command is version {}", env!("CARGO_PKG_VERSION")),
            "unmount all of its mounts and mount again to have the newer one",
        ),
    }
}

fn without_daemon(cache_dir: &Path) -> Finding {
    // Without the file nobody holds it, and looking must not make it.
    // What cannot be taken is not known to be free.
    let is_free =
        !cache_dir.join("lock").exists() || matches!(CacheLock::try_take(cache_dir), Ok(Some(_)));
    match is_free {
        true => Finding::ok("daemon", "none runs for this cache directory"),
        false => Finding::warn(
            "daemon",
            "a process holds the cache and does not answer: a command, or a daemon that starts \
             or ends",
            "wait for it; `fuser -v` of the file `lock` in the cache directory names it",
        ),
    }
}

/// The warmfs mounts of this machine. Dead ones are removed.
pub(super) fn mounts() -> Vec<Finding> {
    let check = "mounts";
    let mounts = match mountinfo::read() {
        Ok(mounts) => mounts,
        Err(error) => {
            let why = preflight::describe(&error);
            return vec![Finding::warn(
                check,
                format!("/proc cannot be read: {why}"),
                "mount /proc",
            )];
        }
    };
    let ours: Vec<_> = mounts.into_iter().filter(|mount| mount.is_warmfs()).collect();
    let mut dead: Vec<_> = ours.iter().take(MOUNTS_MAX).filter(|mount| is_dead(mount)).collect();
    if !dead.is_empty() {
        // Its supervisor may be about to give it back.
        std::thread::sleep(GIVEN_BACK_AFTER);
        dead.retain(|mount| is_dead(mount));
    }
    dead.dedup_by(|one, other| one.dir == other.dir);
    let mut findings: Vec<Finding> = dead
        .iter()
        .map(|mount| match clear_stale(&mount.dir) {
            Ok(()) => {
                let (source, dir) = (&mount.source, mount.dir.display());
                Finding::ok("stale", format!("{dir} was dead and is cleaned up; it was {source}"))
            }
            Err(error) => Finding::refused("stale", error),
        })
        .collect();
    let alive = ours.len() - dead.len();
    findings.push(Finding::ok(check, format!("{alive} alive")));
    findings
}

/// Whether a mount is dead, and at the top of its folder: what lies over it is not ours
/// to remove.
fn is_dead(mount: &MountInfo) -> bool {
    let top = mountinfo::topmost_at(&mount.dir).ok().flatten();
    top.is_some_and(|top| top.device == mount.device) && kernel::is_stale(&mount.dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::doctor::Level;

    const GB: u64 = 1_000_000_000;

    #[test]
    fn a_full_disk_is_told() {
        let disk = |free, free_files| Disk { total: 100 * GB, free, files: 1_000, free_files };
        assert_eq!(room(&disk(50 * GB, 0)).level, Level::Ok);
        assert!(room(&disk(50 * GB, 0)).message.contains("room for 37.3 GiB"));
        assert_eq!(room(&disk(10 * GB, 0)).level, Level::Warn);
        assert_eq!(inodes(&disk(0, 50)).level, Level::Warn);
        assert_eq!(inodes(&disk(0, 51)).level, Level::Ok);
        assert_eq!(inodes(&Disk { files: 0, ..disk(0, 0) }).level, Level::Ok);
    }
}
