//! The whole demo, with a script in the place of `warmfs` that copies instead
//! of mounting: all but the mount itself is the real thing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn args(dir: &Path) -> DemoArgs {
    DemoArgs {
        readers: 4,
        ttfb_ms: 1,
        rate: 1_000_000_000,
        small_files: 40,
        large_files: 1,
        dir: Some(dir.to_owned()),
        keep: false,
    }
}

/// A program that answers `mount DIR`, `status` and `unmount DIR`; `mounting`
/// is what it does with `$dir`, having `$copy` to serve from.
fn script(dir: &Path, mounting: &str) -> PathBuf {
    let path = dir.join("warmfs");
    let text = format!(
        "#!/bin/sh\nset -e\ncase $1 in\n\
         mount) dir=$3; copy=$dir/../copy; {mounting};;\n\
         unmount) rm -rf \"${{2:?}}\"/*;;\nstatus) echo '{{}}';;\nesac\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn demonstrated(mounting: &str) -> (Result<Vec<Row>, Failure>, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let means = Means { program: script(dir.path(), mounting), whole_machine: false };
    let rows = demonstrate(&args(dir.path()), means, &Arc::new(Stop::default()));
    let entries = fs::read_dir(dir.path()).unwrap();
    let left = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    (rows, left.filter(|name| name != "warmfs").collect())
}

#[test]
fn six_rows_and_nothing_left_behind() {
    let (rows, left) = demonstrated("cp -r \"$copy\"/* \"$dir\"");
    let rows = rows.unwrap();
    assert_eq!(left, Vec::<String>::new());
    let gets: Vec<_> = rows.iter().map(|row| row.gets).collect();
    assert_eq!(gets, [41, 0, 0, 0, 0, 0]);
    assert!(rows.iter().all(|row| row.result.files == 41), "{rows:?}");
    assert_eq!(report::failures(&rows), Vec::<String>::new());
}

#[test]
fn a_wrong_byte_in_the_mount_is_a_failure() {
    let spoil = "cp -r \"$copy\"/* \"$dir\"; printf x >> \"$dir\"/small/000/file-00007.bin";
    let failures = report::failures(&demonstrated(spoil).0.unwrap());
    assert_eq!(failures.len(), 3, "{failures:?}");
    assert!(failures[0].ends_with("file-00007.bin: is longer than 112640 bytes"), "{failures:?}");
}

#[test]
fn a_mount_that_fails_says_why_and_leaves_nothing() {
    let (rows, left) = demonstrated("echo no such luck >&2; exit 3");
    assert_eq!(rows.unwrap_err().0, "warmfs mount: no such luck");
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_stop_ends_it_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Arc::new(Stop::default());
    stop.set("enough", 130);
    let means = Means { program: script(dir.path(), "true"), whole_machine: false };
    assert!(demonstrate(&args(dir.path()), means, &stop).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn too_large_for_the_disk_is_told_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let created = WorkDir::create(dir.path(), u64::MAX / 2, false);
    assert!(created.unwrap_err().0.contains("use --dir"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn rates_are_decimal() {
    assert_eq!(parse_rate("50M"), Ok(50_000_000));
    assert_eq!(parse_rate("1gb"), Ok(1_000_000_000));
    for wrong in ["", "0", "M", "1x", "-5M", "99k", "99999999999999999999"] {
        assert!(parse_rate(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    use clap::{Args as _, FromArgMatches as _};
    let command = DemoArgs::augment_args(clap::Command::new("demo"));
    let defaults = DemoArgs::from_arg_matches(&command.get_matches_from(["demo"])).unwrap();
    assert_eq!((defaults.readers, defaults.ttfb_ms, defaults.rate), (8, 30, 50_000_000));
    assert_eq!((defaults.small_files, defaults.large_files), (2_000, 20));
}
