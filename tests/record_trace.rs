//! `--record-trace`: what a mount writes is what the simulator reads.

mod common;
#[path = "../benches/sim/trace.rs"]
mod trace;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use common::Warmfs;
use trace::Step;

#[test]
fn a_mount_records_what_is_read() {
    let warmfs = Warmfs::new();
    let (dir, file) = (warmfs.path("mount"), warmfs.path("trace"));
    let record = |file: &std::path::Path| {
        let (dir, file) = (dir.to_str().unwrap(), file.to_str().unwrap());
        ["mount", &warmfs.source(), dir, "--record-trace", file].map(str::to_owned)
    };
    let arguments = record(&file);
    warmfs.ok(&arguments.each_ref().map(String::as_str));
    assert_eq!(fs::read_to_string(dir.join("hello")).unwrap(), "hello, world");
    let node = fs::metadata(dir.join("hello")).unwrap().ino();
    warmfs.unmount("mount");

    let text = fs::read_to_string(&file).unwrap();
    let (steps, dropped) = trace::parse(&text).unwrap();
    assert_eq!(dropped, Some(0), "{text}");
    assert_eq!(steps[0], Step::Open { node }, "{text}");
    let read = |step: &Step| matches!(step, Step::Read { node: n, size: 12, offset: 0, len: 12.. } if *n == node);
    assert!(read(&steps[1]), "{text}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let folder = record(&warmfs.path("source"));
    let line = warmfs.fails(&folder.each_ref().map(String::as_str));
    assert!(line.contains("cannot record a trace in") && line.contains("--record-trace"), "{line}");
    let line = warmfs.fails(&record("/dev/null".as_ref()).each_ref().map(String::as_str));
    assert!(line.contains("not a regular file"), "{line}");
    warmfs.assert_nothing_left(&["mount"]);
}

#[test]
fn what_is_no_trace_is_refused() {
    for wrong in
        ["", "warmfs-trace 2\n", "warmfs-trace 1\nread 1 2\n", "warmfs-trace 1\nopen x 1\n"]
    {
        assert!(trace::parse(wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(
        trace::parse("warmfs-trace 1\nopen 0 7\n"),
        Ok((vec![Step::Open { node: 7 }], None))
    );
}
