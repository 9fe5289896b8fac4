//! From the command line to the plan.

use std::path::PathBuf;

use clap::{Args, FromArgMatches};

use super::plan::{Limit, Means, Preset};
use super::*;

fn args(given: &[&str]) -> Result<BenchArgs, clap::Error> {
    let command = BenchArgs::augment_args(clap::Command::new("bench"));
    let all = ["bench"].iter().chain(given);
    command.try_get_matches_from(all).and_then(|found| BenchArgs::from_arg_matches(&found))
}

pub(super) fn plan(given: &[&str]) -> Plan {
    args(given).unwrap().plan().unwrap()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let plan = plan(&["/data"]);
    assert_eq!(plan.subject, Subject::Folder(PathBuf::from("/data")));
    assert_eq!(plan.series.len(), 1);
    let series = &plan.series[0];
    assert_eq!((series.means, series.readers), (Means::Folder, 8));
    let names: Vec<&str> = series.epochs.iter().map(|epoch| epoch.name.as_str()).collect();
    assert_eq!(names, ["epoch 1", "epoch 2"]);
    let reading = &plan.reading;
    assert!(reading.shuffled && reading.page_cache == PageCache::Keep && reading.random.is_none());
    assert_eq!((reading.block, reading.batch, reading.seed), (1 << 20, 32, 1));
    assert_eq!(reading.limit, Limit { files: u64::MAX, bytes: u64::MAX });
}

#[test]
fn a_sweep_has_a_series_for_each_count_of_readers() {
    let swept = plan(&["s3://bucket", "--sweep"]);
    let readers: Vec<usize> = swept.series.iter().map(|series| series.readers).collect();
    assert_eq!(readers, [1, 2, 4, 8, 16, 32, 64]);
    assert!(swept.series.iter().all(|s| s.means == Means::Mount && s.epochs.len() == 1));
    assert_eq!(swept.series[6].epochs[0].name, "64 readers");
    let longer = plan(&["s3://bucket", "--sweep", "--epochs", "3", "--direct"]);
    assert_eq!(longer.series[6].epochs[2].name, "64 r., 3");
    assert!(longer.series.iter().all(|series| series.means == Means::Direct));
}

#[test]
fn the_preset_is_direct_cold_and_warm() {
    for (given, subject) in [
        (&["--preset", "published"][..], Subject::Generated),
        (&["s3://bucket", "--preset", "published"], Subject::Uri("s3://bucket".to_owned())),
    ] {
        let plan = plan(given);
        assert_eq!((plan.subject, plan.preset), (subject, Some(Preset::Published)));
        let rows = plan.series.iter().flat_map(|series| {
            series.epochs.iter().map(|epoch| (series.means, series.readers, epoch.name.as_str()))
        });
        let expected =
            [(Means::Direct, 20, "direct"), (Means::Mount, 20, "cold"), (Means::Mount, 20, "warm")];
        assert_eq!(rows.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_limit_of_bytes_is_of_the_reads_where_they_are_random() {
    let whole = plan(&["/d", "--max-bytes", "1M", "--files", "3"]).reading;
    assert_eq!(whole.limit, Limit { files: 3, bytes: 1 << 20 });
    let random = plan(&["/d", "--max-bytes", "1M", "--random", "4k"]).reading;
    assert_eq!(random.limit.bytes, u64::MAX);
    assert_eq!((random.random, random.random_bytes_max), (Some(4_096), Some(1 << 20)));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (wrong, word) in [
        (&[][..], "PATH"),
        (&["--direct"], "PATH"),
        (&["/d", "--readers", "0"], "0"),
        (&["/d", "--readers", "4", "--sweep"], "--sweep"),
        (&["/d", "--epochs", "0"], "0"),
        (&["/d", "--block", "1"], "512"),
        (&["/d", "--random", "1G"], "64M"),
        (&["/d", "--order", "sequential", "--random", "4k"], "--order"),
        (&["s3://b", "--direct", "--random", "4k"], "--random"),
        (&["--preset", "published", "--readers", "4"], "--readers"),
        (&["--preset", "other"], "published"),
        (&["/d", "--mmap", "--random", "4k"], "--random"),
        (&["s3://b", "--direct", "--compare-with", "/d"], "--compare-with"),
        (&["--preset", "published", "--mmap"], "--mmap"),
    ] {
        let error = args(wrong).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong:?}");
        assert!(error.to_string().contains(word), "{wrong:?}: {error}");
    }
    for wrong in [&["/d", "--direct"][..], &["/d", "--preset", "published"]] {
        let error = args(wrong).unwrap().plan().unwrap_err();
        assert!(error.to_string().contains("/d is a path: use s3://"), "{error}");
    }
}
