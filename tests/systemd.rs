//! The service manager itself: our unit with its readiness, and a line of fstab that is
//! mounted at its first use. A systemd runs as the first process of namespaces of its own,
//! with an /etc, /run, /tmp and /usr/sbin of its own, so that nothing of the machine changes.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::Warmfs;
use common::machine::{is_root, skip};

const SYSTEMD: &str = "/lib/systemd/systemd";

/// Goes to a control group of its own, and from there to the namespaces. `$1` is the test's
/// folder. Ends with all that it started once the checks are done.
const OUTSIDE: &str = r#"
group=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)/warmfs-test-$$
test "${group#/warmfs}" = "$group" && mkdir "$group" || exit 77
(
    sh -c 'echo $PPID' > "$group/cgroup.procs"
    exec unshare --fork --kill-child --pid --mount --cgroup --uts --ipc sh -c "$INSIDE" sh "$1"
) &
for _ in $(seq 600); do
    grep -qs '^ended' "$1/said" && break
    kill -0 $! 2>/dev/null || break
    sleep 0.1
done
kill -KILL $! 2>/dev/null
wait
for _ in $(seq 50); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
"#;

/// What is made of the machine. Units that clean up or ask for devices are left out.
const INSIDE: &str = r#"
set -e
mount --make-rprivate /
mount -t proc none /proc
mount -t tmpfs none /run
mkdir -p /run/test /run/systemd/system /run/keep
mount --bind "$1" /run/test
for name in passwd group nsswitch.conf ld.so.cache; do cp "/etc/$name" /run/keep; done
mount -t tmpfs none /etc
cp /run/keep/* /etc
mount -t tmpfs none /usr/sbin
mount -t tmpfs none /tmp
mount -t tmpfs none /var/tmp
mount -t cgroup2 none /sys/fs/cgroup
cp /run/test/units/* /run/systemd/system
for name in tmpfiles-setup tmpfiles-setup-dev tmpfiles-clean remount-fs sysctl udevd udev-trigger \
    journald update-utmp random-seed machine-id-commit sysusers modules-load; do
    ln -s /dev/null "/run/systemd/system/systemd-$name.service"
done
export HOME=/run/test/home container=test
/run/test/warmfs fstab add file:///run/test/source /run/test/auto \
    --cache-dir /run/test/cache-auto -o noauto,x-systemd.automount >/dev/null
exec /lib/systemd/systemd --system --unit=checks.service --log-target=null --show-status=no
"#;

/// `$SERVICE` is an instance of our unit, `$AUTO` the name of the mount of the fstab line.
const CHECKS: &str = r#"
set -ex
show() { systemctl show --property "$1" --value "$2"; }
gone() { if grep " $1 .* fuse.warmfs " /proc/self/mountinfo; then exit 1; fi; }

systemctl start "$SERVICE"
# It was ready, or start would not be over.
cat /run/test/data/hello
test "$(show StatusText "$SERVICE")" = 'file:///run/test/source at /run/test/data'
systemctl reload "$SERVICE"
kill -KILL "$(show MainPID "$SERVICE")"
for _ in $(seq 200); do
    test "$(show NRestarts "$SERVICE")" = 1 && test "$(show ActiveState "$SERVICE")" = active && break
    sleep 0.05
done
cat /run/test/data/hello
systemctl stop "$SERVICE"
test "$(show Result "$SERVICE")" = success
gone /run/test/data

systemctl start "$AUTO.automount"
test "$(show ActiveState "$AUTO.mount")" = inactive
cat /run/test/auto/hello
test "$(show ActiveState "$AUTO.mount")" = active
umount /run/test/auto
cat /run/test/auto/hello
systemctl stop "$AUTO.mount" "$AUTO.automount"
gone /run/test/auto

# A daemon that runs already is not who it waits for.
systemctl start "$AUTO.automount"
/run/test/warmfs mount file:///run/test/source /run/test/other --cache-dir /run/test/cache-auto
if cat /run/test/auto/hello; then exit 1; fi
/run/test/warmfs unmount /run/test/other
systemctl stop "$AUTO.automount"
echo passed
"#;

#[test]
fn a_unit_is_ready_and_an_automount_is_mounted_at_its_first_use() {
    if !is_root() || !Path::new(SYSTEMD).exists() {
        return skip("systemd", "it is not installed, or this is not root");
    }
    let warmfs = Warmfs::new();
    fs::copy(env!("CARGO_BIN_EXE_warmfs"), warmfs.path("warmfs")).unwrap();
    for name in ["units", "data", "auto", "other"] {
        fs::create_dir(warmfs.path(name)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(warmfs.path(name), text).unwrap();
    let unit = include_str!("../mount_scripts/warmfs@.service");
    let unit = unit
        .replace("/usr/local/bin/warmfs", "/run/test/warmfs")
        .replace("/etc/warmfs/%i.env", "/run/test/%i.env")
        // Without what a whole machine is made of.
        .replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
        .replace("Wants=network-online.target\nAfter=network-online.target\n", "");
    write("units/warmfs@.service", &unit);
    write(
        "run-test-data.env",
        "WARMFS_URI=file:///run/test/source\nWARMFS_CACHE_DIR=/run/test/cache\nHOME=/run/test/home\n",
    );
    write("checks", CHECKS);
    let ends = "/bin/sh -c 'sh /run/test/checks; echo ended'";
    write(
        "units/checks.service",
        &format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n\
             StandardOutput=append:/run/test/said\nStandardError=append:/run/test/said\n\
             Environment=SERVICE=warmfs@run-test-data.service AUTO=run-test-auto\n\
             ExecStart={ends}\n"
        ),
    );
    let mut child = Command::new("sh")
        .args(["-c", OUTSIDE, "sh"])
        .arg(warmfs.path(""))
        .env("INSIDE", INSIDE)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    warmfs.watchdog().watch_pid(child.id());
    if child.wait().unwrap().code() == Some(77) {
        return skip("systemd", "no control group can be made");
    }
    let said = fs::read_to_string(warmfs.path("said")).unwrap_or_default();
    assert!(said.contains("\npassed\nended\n"), "{said}");
}
