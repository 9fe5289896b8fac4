//! fio reads through the mount what it wrote itself, with a checksum in each
//! block, by every way that Linux has to read a file.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use common::machine::{has_passthrough, skip};
use common::store::{BUCKET, Store};
use common::{Warmfs, eventually};

/// Files, and the bytes of each: with seven ways to read them, a few seconds.
const FILES: usize = 4;
const FILE_BYTES: u64 = 16 << 20;

/// Engines of fio, and whether each is also used with O_DIRECT: a mapping is not.
const ENGINES: [(&str, bool); 4] =
    [("psync", true), ("libaio", true), ("io_uring", true), ("mmap", false)];

/// A checksum for each page: whatever reads less than that, or shifts it, is found.
const VERIFY: [&str; 2] = ["--verify=crc32c", "--verify_interval=4k"];

fn fio(args: &[String]) -> Result<serde_json::Value, String> {
    let mut command = Command::new("fio");
    // It leaves files of its own where it is started, unless told not to.
    command.args(["--output-format=json", "--thread", "--verify_state_save=0"]);
    let output = command.args(VERIFY).args(args).output();
    let output = output.map_err(|error| format!("fio: {error}; ./check installs it"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    // Remarks of fio may stand before it.
    let json = text.find('{').map_or("", |at| &text[at..]);
    serde_json::from_str(json).map_err(|error| format!("{error}: {text}"))
}

fn text(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn name(n: usize) -> String {
    format!("verify{n}")
}

/// Has fio write its files into a folder of its own, and puts them in the store.
fn write(store: &Store, dir: &Path) {
    let mut args = text(&["--rw=write", "--bs=64k", "--do_verify=0", "--ioengine=psync"]);
    args.push(format!("--directory={}", dir.display()));
    args.push(format!("--size={FILE_BYTES}"));
    args.extend(
        (0..FILES).flat_map(|n| [format!("--name={n}"), format!("--filename={}", name(n))]),
    );
    fio(&args).unwrap();
    for n in 0..FILES {
        let bytes = fs::read(dir.join(name(n))).unwrap();
        assert_eq!(bytes.len() as u64, FILE_BYTES);
        store.put(BUCKET, format!("data/{}", name(n)), Bytes::from(bytes));
    }
}

/// Whether this machine lets a program use io_uring; containers often do not.
fn has_io_uring() -> bool {
    let mut params = [0_u64; 15]; // struct io_uring_params: 120 bytes, all zero.
    // SAFETY: the kernel reads and fills the 120 bytes of `params`.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    if fd < 0 {
        skip("fio with io_uring", &std::io::Error::last_os_error().to_string());
        return false;
    }
    // SAFETY: the descriptor was just made, and is nobody else's.
    unsafe { libc::close(fd as libc::c_int) };
    true
}

/// Every way to read, one after the other: pages in random order, and all in order.
fn read_jobs(dir: &Path) -> (Vec<String>, usize) {
    let names: Vec<String> = (0..FILES).map(name).collect();
    let mut args = text(&["--verify_fatal=1", "--bs=4k", "--iodepth=16", "--stonewall"]);
    args.push(format!("--directory={}", dir.display()));
    args.push(format!("--filename={}", names.join(":")));
    args.push(format!("--size={}", FILE_BYTES * FILES as u64));
    let has_io_uring = has_io_uring();
    let mut jobs = 0;
    for (engine, is_also_direct) in ENGINES {
        if engine == "io_uring" && !has_io_uring {
            continue;
        }
        for direct in [0, 1].into_iter().take(1 + usize::from(is_also_direct)) {
            for (rw, bs) in [("randread", "4k"), ("read", "256k")] {
                args.push(format!("--name={engine}-{direct}-{rw}"));
                args.extend([
                    format!("--ioengine={engine}"),
                    format!("--direct={direct}"),
                    format!("--rw={rw}"),
                    format!("--bs={bs}"),
                ]);
                jobs += 1;
            }
        }
    }
    (args, jobs)
}

fn reads_what_it_wrote(option: &str) {
    let store = Store::start();
    let warmfs: Warmfs = store.warmfs();
    let written = warmfs.path("written");
    fs::create_dir(&written).unwrap();
    write(&store, &written);
    let mount = warmfs.mount_with("s3://bucket/data", "mount", &["--open-mode", option]);
    // Cold, while it is fetched; and from the cache.
    for _ in 0..2 {
        let (args, count) = read_jobs(&mount);
        let found =
            fio(&args).unwrap_or_else(|error| panic!("{option}: {error}\n{}", warmfs.log()));
        let jobs = found["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), count, "{found}");
        for job in jobs {
            assert_eq!(job["error"], 0, "{option}: {job}");
            let read = job["read"]["io_bytes"].as_u64().unwrap();
            assert_eq!(read, FILE_BYTES * FILES as u64, "{option}: {}", job["jobname"]);
        }
        eventually("all of it is cached", || {
            let cache = &warmfs.status()["cache"];
            cache["dataset_cached_bytes"] == cache["dataset_bytes"]
        });
    }
    assert_eq!(warmfs.status()["mounts"][0]["mode"], option);
    warmfs.unmount("mount");
}

#[test]
fn fio_reads_what_it_wrote_in_cached_mode() {
    reads_what_it_wrote("cached");
}

#[test]
fn fio_reads_what_it_wrote_with_passthrough() {
    if has_passthrough("fio_reads_what_it_wrote_with_passthrough") {
        reads_what_it_wrote("passthrough");
    }
}
