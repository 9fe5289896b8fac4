//! Mounts that the system makes: the real mount(8) and umount(8) with fstab, and the
//! service manager. All of it in a mount namespace with an /etc, a /sbin and a /run of its
//! own, so that nothing of the machine changes.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use common::machine::{is_root, skip};
use common::store::Store;
use common::{STEP_TIMEOUT, Warmfs, eventually, is_mounted, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use warmfs::embedded_store::{Access, StoreOptions};

/// What is made of the machine in the namespace. `$1` is the home of its root.
const SET_UP: &str = r#"
set -e
keep=$(mktemp -d)
cp -r /etc/passwd /etc/group /etc/nsswitch.conf /etc/hosts /etc/ld.so.cache "$keep"
cp /usr/sbin/mount.fuse3 "$keep"
mount -t tmpfs none /etc
cp "$keep"/passwd "$keep"/group "$keep"/nsswitch.conf "$keep"/hosts "$keep"/ld.so.cache /etc
sed -i "s,^root:.*,root:x:0:0:root:$1:/bin/sh," /etc/passwd
ln -s /proc/self/mounts /etc/mtab
printf '# ours\n/dev/none /none ext4 noauto 0 0' > /etc/fstab
mount -t tmpfs none /usr/sbin
cp "$keep"/mount.fuse3 /usr/sbin/mount.fuse3
ln -s mount.fuse3 /usr/sbin/mount.fuse
mount -t tmpfs none /run
rm -r "$keep"
echo ready
exec sleep 120
"#;

/// A machine of its own, as far as mounts go.
struct Machine(Child);

impl Machine {
    fn start(warmfs: &Warmfs) -> Option<Machine> {
        if !is_root() || !Path::new("/usr/sbin/mount.fuse3").exists() {
            skip("mount(8) and fstab", "they need root and fuse3");
            return None;
        }
        let mut child = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", SET_UP, "sh"])
            .arg(warmfs.path("home"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        warmfs.watchdog().watch_pid(child.id());
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Some(Machine(child))
    }

    /// A program there, with the variables of a warmfs command.
    fn command(&self, warmfs: &Warmfs, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.0.id())).args(words);
        for (name, value) in warmfs.command(&[]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).current_dir("/");
        command
    }

    fn run(&self, warmfs: &Warmfs, words: &[&str]) -> Output {
        let output = self.command(warmfs, words).output().unwrap();
        warmfs.watch_daemon();
        output
    }

    fn ok(&self, warmfs: &Warmfs, words: &[&str]) -> String {
        let output = self.run(warmfs, words);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{words:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, warmfs: &Warmfs, words: &[&str]) -> (i32, String) {
        let output = self.run(warmfs, words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let code = output.status.code().unwrap();
        assert!(code != 0 && stderr.lines().count() == 1, "{words:?}: {stderr}");
        (code, stderr)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const BINARY: &str = env!("CARGO_BIN_EXE_warmfs");

fn listing(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_line_in_fstab_is_mounted_by_its_folder_alone() {
    let warmfs = Warmfs::new();
    let Some(machine) = Machine::start(&warmfs) else { return };
    let before = (fs::read("/etc/fstab").ok(), listing("/usr/sbin"));
    let fstab = |machine: &Machine| machine.ok(&warmfs, &["cat", "/etc/fstab"]);
    let original = fstab(&machine);
    let dir = warmfs.path("a b/data");
    let dir = dir.to_str().unwrap();
    let hello = format!("{dir}/hello");
    let source = warmfs.source();
    let add = [BINARY, "fstab", "add", &source, dir, "--cache-size", "1G", "-o", "x-note=1,users"];

    let line = machine.ok(&warmfs, &add);
    let folder = dir.replace(' ', "\\040");
    let options = "ro,nofail,cache_size=1G,no_hedge,x-note=1,users";
    assert_eq!(line, format!("{source} {folder} warmfs {options} 0 0\n"));
    assert_eq!(fstab(&machine), format!("{original}\n{line}"));
    let (code, again) = machine.fails(&warmfs, &add);
    assert!(code == 1 && again.contains("line 3") && again.contains("fstab remove"), "{again}");

    assert_eq!(machine.ok(&warmfs, &["mount", dir]), "");
    assert_eq!(machine.ok(&warmfs, &["cat", &hello]), "hello, world");
    machine.ok(&warmfs, &["mount", "-a"]);
    assert!(!is_mounted(Path::new(dir)), "not in this namespace");
    machine.ok(&warmfs, &["umount", dir]);
    eventually("the daemon is gone", || warmfs.daemon().is_none());

    // At boot there is no more than this.
    machine.ok(&warmfs, &["env", "-i", "PATH=/usr/bin", "mount", "-a"]);
    eventually("its cache is root's", || warmfs.daemon().is_some());
    assert_eq!(machine.ok(&warmfs, &["cat", &hello]), "hello, world");
    machine.ok(&warmfs, &["fusermount3", "-u", dir]);
    eventually("the daemon is gone", || warmfs.daemon().is_none());

    // The other type, with its own helper and by mount.fuse3, which has a PATH of its own.
    machine.ok(&warmfs, &["ln", "-s", BINARY, "/sbin/warmfs"]);
    machine.ok(&warmfs, &["sed", "-i", "s/ warmfs / fuse.warmfs /", "/etc/fstab"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/mount_scripts/mount.warmfs");
    for helper in ["a link", "mount.fuse3", "the script"] {
        assert_eq!(machine.ok(&warmfs, &["mount", dir]), "", "{helper}");
        assert_eq!(machine.ok(&warmfs, &["cat", &hello]), "hello, world");
        machine.ok(&warmfs, &["umount", dir]);
        eventually("the daemon is gone", || warmfs.daemon().is_none());
        match helper {
            "a link" => machine.ok(&warmfs, &["rm", "/sbin/mount.fuse.warmfs"]),
            _ => machine.ok(&warmfs, &["cp", script, "/sbin/mount.fuse.warmfs"]),
        };
    }
    // A package's helper stays.
    machine.ok(&warmfs, &[BINARY, "fstab", "add", &source, "/more"]);
    machine.ok(&warmfs, &["cmp", script, "/sbin/mount.fuse.warmfs"]);
    machine.ok(&warmfs, &[BINARY, "fstab", "remove", "/more"]);

    let listed = machine.ok(&warmfs, &[BINARY, "fstab", "list"]);
    assert_eq!(listed, format!("{source} {dir} {options}\n"));
    machine.ok(&warmfs, &[BINARY, "fstab", "remove", dir]);
    assert_eq!(fstab(&machine), format!("{original}\n"));
    let (code, line) = machine.fails(&warmfs, &[BINARY, "fstab", "remove", dir]);
    assert!(code == 1 && line.contains("fstab list"), "{line}");
    let (_, line) = machine.fails(&warmfs, &[BINARY, "fstab", "add", &source, "/none"]);
    assert!(line.contains("line 2") && line.contains("another mount point"), "{line}");
    warmfs.assert_nothing_left(&["a b/data"]);
    assert_eq!(before, (fs::read("/etc/fstab").ok(), listing("/usr/sbin")));
}

#[test]
fn mount_8_reads_a_bucket_with_the_credentials_of_a_profile() {
    let access = Access::Key("key".to_owned());
    let store = Store::with(StoreOptions { access, ..StoreOptions::default() });
    store.put_some();
    let warmfs = Warmfs::new();
    let Some(machine) = Machine::start(&warmfs) else { return };
    fs::create_dir_all(warmfs.path("home/.aws")).unwrap();
    let profile = "[work]\naws_access_key_id = key\naws_secret_access_key = secret\n";
    fs::write(warmfs.path("home/.aws/credentials"), profile).unwrap();
    let dir = warmfs.path("data");
    let dir = dir.to_str().unwrap();
    machine.ok(&warmfs, &[BINARY, "fstab", "add", &warmfs.source(), "/nowhere"]);
    let options = format!("endpoint_url={},profile=work,_netdev,noauto", store.url());
    let mount = ["mount", "-t", "warmfs", "s3://bucket/data", dir, "-o", &options];
    let words = [&["env", "-i", "PATH=/usr/bin"], &mount[..]].concat();
    machine.ok(&warmfs, &words);
    assert_eq!(machine.ok(&warmfs, &["cat", &format!("{dir}/hello")]), "data/hello");
    machine.ok(&warmfs, &["umount", dir]);
    eventually("the daemon is gone", || warmfs.daemon().is_none());

    let wrong = options.replace("work", "play");
    let mount = ["mount", "-t", "warmfs", "s3://bucket/data", dir, "-o", &wrong];
    let (code, line) = machine.fails(&warmfs, &mount);
    assert!(code == 32 && line.contains("no AWS profile"), "{code} {line}");
    let mount = ["mount", "-t", "warmfs", "s3://bucket/data", dir, "-o", "no_such_thing"];
    let (code, line) = machine.fails(&warmfs, &mount);
    assert!(code == 1 && line.starts_with("warmfs: -o no_such_thing"), "{code} {line}");
    let fake = ["mount", "-f", "-v", "-t", "warmfs", "s3://bucket/data", dir];
    machine.ok(&warmfs, &fake);
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    warmfs.assert_nothing_left(&["data"]);
}

#[test]
fn a_line_may_let_other_users_mount() {
    let warmfs = Warmfs::new();
    let Some(machine) = Machine::start(&warmfs) else { return };
    let as_user = |words: &[&str]| {
        let user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        machine.run(&warmfs, &[&user, words].concat())
    };
    if !as_user(&["test", "-x", BINARY]).status.success() {
        skip("mount(8) by other users", "they cannot reach the binary");
        return;
    }
    fs::set_permissions(warmfs.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["home", "run", "data"] {
        fs::create_dir_all(warmfs.path(name)).unwrap();
        chown(warmfs.path(name), Some(65_534), Some(65_534)).unwrap();
    }
    let (dir, cache) = (warmfs.path("data"), warmfs.cache());
    let (dir, cache, source) = (dir.to_str().unwrap(), cache.to_str().unwrap(), warmfs.source());
    let add = [BINARY, "fstab", "add", &source, dir, "--cache-dir", cache, "-o", "users,noauto"];
    machine.ok(&warmfs, &add);
    let output = as_user(&["mount", dir]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(as_user(&["cat", &format!("{dir}/hello")]).stdout, b"hello, world");
    let output = as_user(&["umount", dir]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    eventually("the daemon is gone", || warmfs.daemon().is_none());
    assert!(warmfs.path("data").is_dir() && !is_mounted(Path::new(dir)));
}

#[test]
fn what_fstab_cannot_hold_is_refused() {
    let warmfs = Warmfs::new();
    let (fstab, sbin) = (warmfs.path("fstab"), warmfs.path("sbin"));
    fs::create_dir(&sbin).unwrap();
    let source = warmfs.source();
    let run = |more: &[&str]| {
        let fixed = ["fstab", "add", &source, "/data", "--fstab", fstab.to_str().unwrap()];
        let words = [&fixed[..], &["--sbin", sbin.to_str().unwrap()], more].concat();
        warmfs.run(&words)
    };
    for (more, word) in [
        (&["--credential-command", "printf a,b"][..], "comma"),
        (&["--foreground"], "makes no sense"),
        (&["-o", "no_such_thing"], "unknown"),
        (&["-o", "uid=nobody"], "uid"),
        (&["-o", "cache_size=banana"], "banana"),
        (&["--open-mode", "fast"], "fast"),
        (&["s3://other", "/other"], "one mount"),
    ] {
        let output = run(more);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(word), "{stderr}");
        assert!(!fstab.exists() && listing(sbin.to_str().unwrap()).is_empty(), "{more:?}");
    }
    // What the environment says may be a secret, and everybody can read the file.
    let mut command = warmfs.command(&["fstab", "add", &source, "/data", "--fstab"]);
    command.arg(&fstab).arg("--sbin").arg(&sbin).env("WARMFS_CREDENTIAL_COMMAND", "echo s3cr3t");
    let said = warmfs.fails_as(&mut command);
    assert!(said.contains("everybody can read it") && !said.contains("s3cr3t"), "{said}");
    assert!(!fstab.exists());
    let output = run(&["--cache-dir", "there/cache", "--allow-other"]);
    let line = String::from_utf8(output.stdout).unwrap();
    let here = std::env::current_dir().unwrap().join("there/cache");
    let options = format!("ro,nofail,cache_dir={},no_hedge,allow_other", here.display());
    assert_eq!(line, format!("{source} /data warmfs {options} 0 0\n"));
    assert_eq!(listing(sbin.to_str().unwrap()), ["mount.fuse.warmfs", "mount.warmfs"]);
}

/// Waits for the next thing that the service manager is told.
fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

#[test]
fn the_service_manager_hears_of_the_mount_and_of_its_end() {
    let mut warmfs = Warmfs::new();
    let path = warmfs.path("notify");
    let abstract_name = format!("warmfs-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let sockets = [
        (path.to_str().unwrap().to_owned(), UnixDatagram::bind(&path).unwrap()),
        (format!("@{abstract_name}"), UnixDatagram::bind_addr(&address).unwrap()),
    ];
    let (dir, source) = (warmfs.path("mount"), warmfs.source());
    let mount = ["mount", "--foreground", &source, dir.to_str().unwrap()];
    for (name, socket) in sockets {
        socket.set_read_timeout(Some(STEP_TIMEOUT)).unwrap();
        warmfs.set_env("NOTIFY_SOCKET", &name);
        let mut command = warmfs.command(&mount);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        warmfs.watchdog().watch_pid(child.id());
        assert_eq!(told(&socket), format!("STATUS=mounting {source}"));
        assert!(told(&socket).starts_with(&format!("READY=1\nSTATUS={source} at ")));
        assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(told(&socket), "STOPPING=1\nSTATUS=unmounting");
        assert!(wait(&mut child).success());

        let missing = ["mount", "--foreground", "file:///no/such", dir.to_str().unwrap()];
        let output = warmfs.command(&missing).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(told(&socket), "STATUS=mounting file:///no/such");
        let status = told(&socket);
        assert!(status.starts_with("STATUS=cannot mount file:///no/such"), "{status}");
    }
    // Nobody is there: that is the manager's matter.
    warmfs.set_env("NOTIFY_SOCKET", "/no/such/socket");
    let mut child = warmfs.command(&mount).stderr(Stdio::null()).spawn().unwrap();
    warmfs.watchdog().watch_pid(child.id());
    eventually("it is mounted", || is_mounted(&dir));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(wait(&mut child).success());
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn the_unit_is_as_systemd_wants_it() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount_scripts/warmfs@.service");
    let text = fs::read_to_string(unit).unwrap();
    let verify = |text: &str| {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("warmfs@content-data.service");
        fs::write(&path, text.replace("/usr/local/bin/warmfs", BINARY)).unwrap();
        Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&path).output()
    };
    let Ok(output) = verify(&text) else {
        skip("the systemd unit", "there is no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    for (right, wrong) in [
        ("Type=notify", "Type=notfy"),
        ("ExecStart=/usr/local/bin/", "ExecStart=/no/such/"),
        ("KillMode=mixed", "KillMod=mixed"),
    ] {
        let output = verify(&text.replace(right, wrong)).unwrap();
        assert!(!output.stderr.is_empty(), "{wrong} was accepted");
    }
}
