//! The kernel, FUSE, what this user may do with them, and how files will be opened.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::unistd::Uid;

use super::Finding;
use crate::cache::Rollup;
use crate::config::OpenModeOption;
use crate::daemon::kernel::find_program;
use crate::daemon::{mountinfo, preflight};
use crate::fs::open_mode::{LARGE_FILE_BYTES, Obstacle, choose};
use crate::fs::session::may_administer;
use crate::units::format_bytes;

/// Older kernels lack what every mode relies on, such as an OPEN that is answered once
/// and never comes again for folders (5.1).
const KERNEL_MIN: (u32, u32) = (5, 1);

/// The first with passthrough.
const KERNEL_PASSTHROUGH: (u32, u32) = (6, 9);

/// Where containers leave a trace, and whose it is.
const TRACES: [(&str, &str); 3] = [
    ("/run/.containerenv", "podman"),
    ("/.dockerenv", "docker"),
    ("/run/systemd/container", "a container of systemd"),
];

/// What the control group of the first process is called in containers.
const GROUPS: [(&str, &str); 4] = [
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("lxc", "lxc"),
    ("containerd", "containerd"),
];

pub(super) fn look(cache_dir: &Path) -> Vec<Finding> {
    let release = release();
    vec![
        kernel(&release),
        device(),
        fusermount(),
        privilege(),
        container(),
        open_mode(&release, cache_dir),
    ]
}

fn release() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map(|uname| uname.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// `6.18.44-generic` as numbers; 0 for what is none.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    (next(), next())
}

fn kernel(release: &str) -> Finding {
    match version(release) < KERNEL_MIN {
        false => Finding::ok("kernel", release),
        true => Finding::warn(
            "kernel",
            format!("{release} is older than any that was tried"),
            "use Linux 5.10 or later; 6.9 and later can pass files through",
        ),
    }
}

fn device() -> Finding {
    if let Err(error) = preflight::check_fuse() {
        return Finding::refused("fuse", error);
    }
    // A container's rules on devices show when it is opened, and not before.
    match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Finding::ok("fuse", "/dev/fuse can be opened"),
        Err(error) => Finding::fail(
            "fuse",
            format!("/dev/fuse cannot be opened: {}", preflight::describe(&error)),
            "run `modprobe fuse`, or start the container with `--device /dev/fuse --cap-add SYS_ADMIN`",
        ),
    }
}

fn fusermount() -> Finding {
    let check = "fusermount3";
    if !find_program(check) {
        let message = "it is not installed";
        return match Uid::effective().is_root() {
            true => Finding::ok(check, format!("{message}; root needs it to unmount by it only")),
            false => Finding::fail(check, message, "run `apt-get install fuse3` as root"),
        };
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let allows = conf.lines().any(|line| line.trim() == "user_allow_other");
    match (allows, Uid::effective().is_root()) {
        (true, _) => Finding::ok(check, "installed; users may give --allow-other"),
        (false, true) => Finding::ok(check, "installed"),
        (false, false) => Finding::ok(
            check,
            "installed; --allow-other is for root only: /etc/fuse.conf lacks `user_allow_other`",
        ),
    }
}

fn privilege() -> Finding {
    let user = if Uid::effective().is_root() { "root" } else { "not root" };
    Finding::ok(
        "privilege",
        match may_administer() {
            true => format!("{user}, CAP_SYS_ADMIN"),
            false => format!("{user}, no CAP_SYS_ADMIN"),
        },
    )
}

fn container() -> Finding {
    let group = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    let by_trace = TRACES.iter().find(|(path, _)| Path::new(path).exists());
    let by_group = GROUPS.iter().find(|(part, _)| group.contains(part));
    let kubernetes = std::env::var_os("KUBERNETES_SERVICE_HOST").map(|_| "kubernetes");
    let found = kubernetes.or(by_trace.or(by_group).map(|(_, name)| *name));
    match found {
        None => Finding::ok("container", "none"),
        Some(name) if may_administer() => Finding::ok("container", name),
        Some(name) => Finding::warn(
            "container",
            format!("{name}, without CAP_SYS_ADMIN: mount(2) is refused in most of them"),
            "start it with `--device /dev/fuse --cap-add SYS_ADMIN`",
        ),
    }
}

/// What `--open-mode auto` will come to, by the rules of the mount.
fn open_mode(release: &str, cache_dir: &Path) -> Finding {
    let obstacle = match (version(release) < KERNEL_PASSTHROUGH, may_administer()) {
        (true, _) => Some(Obstacle::Kernel),
        (false, false) => Some(Obstacle::Privilege),
        (false, true) => None,
    };
    let large = Rollup { objects: 1, bytes: LARGE_FILE_BYTES, ..Rollup::default() };
    let choice = choose(OpenModeOption::Auto, obstacle, large);
    if obstacle.is_some() {
        return Finding::ok(
            "open-mode",
            format!("auto will be {}: {}", choice.mode, choice.reason),
        );
    }
    let stacked = match fs_type_of(cache_dir) {
        Ok(fs_type) if fs_type == "overlay" => {
            "; the cache lies on overlayfs, so nothing can be stacked on the mount"
        }
        _ => "",
    };
    let size = format_bytes(LARGE_FILE_BYTES);
    let message =
        format!("auto will be {} from files of {size} on, else cached{stacked}", choice.mode);
    Finding::ok("open-mode", message)
}

/// The type of the file system that a path, or what of it exists, lies on.
pub(super) fn fs_type_of(path: &Path) -> io::Result<String> {
    let mounts = mountinfo::read()?;
    let depth = |mount: &&mountinfo::MountInfo| mount.dir.components().count();
    // Of equals the last, which covers the others.
    let found = mounts.iter().filter(|mount| path.starts_with(&mount.dir)).max_by_key(depth);
    found.map(|mount| mount.fs_type.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::doctor::Level;

    #[test]
    fn kernels_are_told_apart() {
        assert_eq!(version("6.18.44-generic"), (6, 18));
        assert_eq!(version("odd"), (0, 0));
        assert_eq!(kernel("6.1.0").level, Level::Ok);
        assert_eq!(kernel("4.19.1").level, Level::Warn);
        assert!(open_mode("6.8.1", Path::new("/")).message.contains("no passthrough"));
    }
}
