//! What system calls do: those that write, open, read, map, lock, sync and list.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, renameat2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, mknod, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, access, chown, mkdir, mkfifo, truncate};

use crate::common::dir_stream::DirStream;
use crate::common::store::{BUCKET, Store};
use crate::common::{Warmfs, eventually};
use crate::{errno, errno_of, mount_data, mount_data_with, names, put_keys, set};

/// A mount with a file and a folder.
fn small() -> (Store, Warmfs, PathBuf) {
    let store = Store::start();
    put_keys(&store, &["data/file", "data/folder/x"]);
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    (store, warmfs, mount)
}

/// S31: what `nothing_can_be_written` leaves out.
#[test]
fn whatever_would_change_anything_is_refused() {
    let (_store, warmfs, mount) = small();
    let (file, folder, new) = (mount.join("file"), mount.join("folder"), mount.join("new"));
    let (mode, now) = (Mode::S_IRUSR, TimeSpec::new(1, 2));
    let me = Some(nix::unistd::Uid::from_raw(1));
    let exchange = RenameFlags::RENAME_EXCHANGE;
    let times = |flag| utimensat(AT_FDCWD, &file, &now, &now, flag);
    let unnamed = OFlag::O_TMPFILE | OFlag::O_WRONLY;
    for (what, call) in [
        ("link", &(|| fs::hard_link(&file, &new).map_err(|_| Errno::last())) as &dyn Fn() -> _),
        ("mkfifo", &|| mkfifo(&new, mode)),
        ("mknod", &|| mknod(&new, SFlag::S_IFREG, mode, 0)),
        ("mkdir", &|| mkdir(&new, mode)),
        ("chown", &|| chown(&folder, me, None)),
        ("utimensat", &|| times(UtimensatFlags::FollowSymlink)),
        ("utimensat of itself", &|| times(UtimensatFlags::NoFollowSymlink)),
        ("truncate", &|| truncate(&file, 0)),
        ("O_TMPFILE", &|| open(&folder, unnamed, mode).map(drop)),
        ("O_CREAT", &|| open(&new, OFlag::O_CREAT | OFlag::O_RDONLY, mode).map(drop)),
        ("an exchange", &|| renameat2(AT_FDCWD, &file, AT_FDCWD, &folder, exchange)),
        ("access", &|| access(&file, AccessFlags::W_OK)),
        ("access to a folder", &|| access(&folder, AccessFlags::W_OK)),
    ] {
        assert_eq!(call(), Err(Errno::EROFS), "{what}");
    }
    // What is there already is told first, as everywhere.
    assert_eq!(mkdir(&folder, mode), Err(Errno::EEXIST));
    let exclusive = OFlag::O_CREAT | OFlag::O_EXCL;
    assert_eq!(open(&file, exclusive, mode).map(drop), Err(Errno::EEXIST));
    assert_eq!(names(&mount), set(["file", "folder"]));
    warmfs.unmount("mount");
}

/// S32: how files and folders are opened.
#[test]
fn opening_for_reading_works_in_every_way() {
    let (_store, warmfs, mount) = small();
    for flags in [
        0,
        libc::O_CREAT,
        libc::O_NOFOLLOW,
        libc::O_NOATIME,
        libc::O_NONBLOCK,
        libc::O_SYNC,
        libc::O_DIRECT,
        libc::O_PATH,
    ] {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(flags).open(mount.join("file"));
        assert_eq!(file.unwrap().metadata().unwrap().len(), 9, "{flags:#o}");
    }
    let open = |path: &str, flags: i32| {
        OpenOptions::new().read(true).custom_flags(flags).open(mount.join(path))
    };
    assert_eq!(errno_of(open("file", libc::O_DIRECTORY)), libc::ENOTDIR);
    assert_eq!(errno_of(open("file/below", 0)), libc::ENOTDIR);
    assert_eq!(errno_of(open("none", 0)), libc::ENOENT);
    assert_eq!(errno_of(open("none/below", 0)), libc::ENOENT);
    assert_eq!(errno_of(open(&"x".repeat(256), 0)), libc::ENAMETOOLONG);
    assert_eq!(errno_of(fs::read(mount.join("folder"))), libc::EISDIR);
    assert!(open("folder", libc::O_DIRECTORY).is_ok());
    warmfs.unmount("mount");
}

/// S33: access(2), and programs.
#[test]
fn access_is_what_the_mode_says_and_programs_run_where_it_says_so() {
    let store = Store::start();
    put_keys(&store, &["data/folder/x"]);
    store.put(BUCKET, "data/program", "#!/bin/sh\necho ran \"$@\"\n".into());
    let warmfs = store.warmfs();
    let (may_read, may_run) = (AccessFlags::R_OK, AccessFlags::X_OK);
    let mount = mount_data(&warmfs);
    assert_eq!(access(&mount.join("program"), may_read), Ok(()));
    assert_eq!(access(&mount.join("folder"), may_read | may_run), Ok(()));
    assert_eq!(access(&mount.join("program"), may_run), Err(Errno::EACCES));
    assert_eq!(errno_of(Command::new(mount.join("program")).output()), libc::EACCES);
    warmfs.unmount("mount");
    mount_data_with(&warmfs, &["--file-mode", "0555"]);
    assert_eq!(access(&mount.join("program"), may_read | may_run), Ok(()));
    let output = Command::new(mount.join("program")).arg("it").output().unwrap();
    assert_eq!(output.stdout, b"ran it\n");
    warmfs.unmount("mount");
}

/// S41: nothing to sync is no error.
#[test]
fn syncing_succeeds() {
    let (_store, warmfs, mount) = small();
    for path in [mount.join("file"), mount.join("folder"), mount.clone()] {
        let file = File::open(path).unwrap();
        for _ in 0..2 {
            file.sync_all().unwrap();
            file.sync_data().unwrap();
            // SAFETY: a call on an open descriptor that takes no pointer.
            assert_eq!(errno(unsafe { libc::syncfs(file.as_raw_fd()) }), 0);
        }
    }
    warmfs.unmount("mount");
}

/// S42: locks, of this machine only.
#[test]
fn locks_are_held_against_others_on_this_machine() {
    let (_store, warmfs, mount) = small();
    for path in [mount.join("file"), mount.join("folder")] {
        let (one, other) = (File::open(&path).unwrap(), File::open(&path).unwrap());
        one.lock().unwrap();
        assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
        one.unlock().unwrap();
        other.try_lock_shared().unwrap();
        one.try_lock_shared().unwrap();
        assert!(matches!(one.try_lock(), Err(fs::TryLockError::WouldBlock)));
    }
    let (one, other) = (mount.join("file"), mount.join("file"));
    let (one, other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let lock = |file: &File, command: libc::c_int, kind: libc::c_int| {
        // SAFETY: plain numbers, of which all zeros are some.
        let mut range: libc::flock = unsafe { std::mem::zeroed() };
        range.l_type = kind as libc::c_short;
        // SAFETY: an open descriptor, and a range that outlives the call.
        errno(unsafe { libc::fcntl(file.as_raw_fd(), command, &range) })
    };
    for command in [libc::F_SETLK, libc::F_OFD_SETLK] {
        assert_eq!(lock(&one, command, libc::F_RDLCK), 0);
        assert_eq!(lock(&other, command, libc::F_RDLCK), 0);
        // As everywhere: for this one a file must be open for writing.
        assert_eq!(lock(&one, command, libc::F_WRLCK), libc::EBADF);
        assert_eq!(lock(&one, command, libc::F_UNLCK), 0);
    }
    drop((one, other));
    warmfs.unmount("mount");
}

/// S43: mappings.
#[test]
fn a_mapping_is_shared_for_reading_and_private_for_writing() {
    let (_store, warmfs, mount) = small();
    let file = File::open(mount.join("file")).unwrap();
    let map = |prot, flags| {
        // SAFETY: new mappings wherever the kernel likes, which this test leaves behind.
        unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, file.as_raw_fd(), 0) }
    };
    let bytes = |at: *mut libc::c_void| {
        // SAFETY: mapped for a page until the process ends, and the file has nine bytes.
        unsafe { std::slice::from_raw_parts(at.cast::<u8>(), 9) }.to_vec()
    };
    let shared = map(libc::PROT_READ, libc::MAP_SHARED);
    let refused = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    assert_eq!((refused, Errno::last()), (libc::MAP_FAILED, Errno::EACCES));
    let private = map(libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    assert_eq!([bytes(shared), bytes(private)], [b"data/file"; 2]);
    // SAFETY: a page that may be written to, of this process alone.
    unsafe { private.cast::<u8>().write(b'X') };
    assert_eq!([bytes(shared), bytes(private)], [b"data/file", b"Xata/file"]);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"data/file");
    drop(file);
    for at in [shared, private] {
        // SAFETY: mapped above, once, and nobody looks at it any more.
        unsafe { libc::munmap(at, 4096) };
    }
    warmfs.unmount("mount");
}

/// S45: the order of a folder, and what an entry tells of itself.
#[test]
fn a_folder_is_in_the_order_of_its_names_and_tells_kinds() {
    let store = Store::start();
    let mut expected: Vec<String> = (0..700).map(|n| format!("{n:03}")).collect();
    for name in &expected {
        put_keys(&store, &[&format!("data/{name}")]);
    }
    put_keys(&store, &["data/350/x", "data/B", "data/a", "data/é"]);
    expected.extend(["350~object", "B", "a", "é"].map(str::to_owned));
    expected.sort();
    let dots = [".", ".."].map(str::to_owned);
    let expected: Vec<String> = dots.into_iter().chain(expected).collect();
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    for _ in ["cold", "warm"] {
        let found = DirStream::open(&mount).rest();
        let differs = found.iter().zip(&expected).find(|(found, expected)| found != expected);
        assert_eq!((differs, found.len()), (None, expected.len()));
        for entry in fs::read_dir(&mount).unwrap().map(Result::unwrap) {
            assert_eq!(entry.file_type().unwrap().is_dir(), entry.file_name() == "350");
        }
    }
    warmfs.unmount("mount");
}

/// S46: places in a folder, after entries came and went.
#[test]
fn a_place_in_a_folder_is_good_whatever_comes_and_goes() {
    let store = Store::start();
    let name = |n: usize| format!("entry-{n:04}");
    let put = |n: usize| put_keys(&store, &[&format!("data/{}", name(n))]);
    let delete = |n: usize| store.delete(BUCKET, &format!("data/{}", name(n)));
    let mut there: std::collections::BTreeSet<usize> = (0..1_200).step_by(2).collect();
    there.iter().for_each(|n| put(*n));
    let warmfs = store.warmfs();
    let mount = mount_data(&warmfs);
    let stream = DirStream::open(&mount);
    let start = stream.tell();
    // Behind entry 198: two dots, and a hundred entries.
    let before: Vec<String> = std::iter::from_fn(|| stream.next()).take(102).collect();
    assert_eq!(before.last(), Some(&name(198)));
    let at = stream.tell();
    // Around the place, far from it, and the entry it is told by.
    let rounds: [(&[usize], &[usize]); 3] = [
        (&[1, 197, 199, 601, 1_199], &[0, 196, 198, 200, 600, 1_198]),
        (&[198, 203], &[1, 199, 202]),
        (&[199, 200], &[198]),
    ];
    for (come, go) in rounds {
        come.iter().for_each(|n| put(*n));
        go.iter().for_each(|n| assert!(delete(*n)));
        there.extend(come);
        there.retain(|n| !go.contains(n));
        warmfs.ok(&["refresh", mount.to_str().unwrap()]);
        let rest: Vec<String> = there.range(199..).map(|n| name(*n)).collect();
        eventually("the rest from there", || {
            stream.seek(at);
            stream.rest() == rest
        });
        let all = there.iter().map(|n| name(*n));
        let all: Vec<String> = [".", ".."].map(str::to_owned).into_iter().chain(all).collect();
        stream.seek(start);
        assert_eq!(stream.rest(), all, "from the beginning");
    }
    drop(stream);
    warmfs.unmount("mount");
}

/// S47: names of the kind of file system.
#[test]
fn a_mount_is_told_from_others_by_its_type() {
    let (_store, warmfs, mount) = small();
    let output = Command::new("findmnt").args(["-n", "-o", "FSTYPE,SOURCE"]).arg(&mount).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["fuse.warmfs", "s3://bucket/data"]);
    warmfs.unmount("mount");
}
