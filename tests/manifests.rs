//! The manifests in `mount_scripts/kubernetes`, against the schemas of Kubernetes
//! (which the PyPI package `kubernetes-validate` has with it) and our own options.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::Warmfs;
use common::server::venv;

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount_scripts/kubernetes").join(name)
}

fn validate(file: &Path) -> Output {
    let program = venv().join("bin/kubernetes-validate");
    assert!(program.is_file(), "not installed: run ./check (looked at {})", program.display());
    Command::new(program).arg("--strict").arg(file).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn manifests_are_as_kubernetes_wants_them() {
    let manifests: Vec<_> = fs::read_dir(manifest("")).unwrap().map(Result::unwrap).collect();
    assert_eq!(manifests.len(), 2);
    for file in manifests {
        let output = validate(&file.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_manifest_with_a_slip_is_found_out() {
    let text = fs::read_to_string(manifest("daemonset.yaml")).unwrap();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    for (right, wrong, word) in [
        ("hostPath:", "hostPth:", "hostPth"),
        ("privileged: true", "privileged: 7", "privileged"),
        ("  selector:", "  selectors:", "selector"),
    ] {
        assert!(text.contains(right));
        fs::write(file.path(), text.replace(right, wrong)).unwrap();
        let output = validate(file.path());
        assert!(!output.status.success(), "{wrong} was accepted");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains(word), "{wrong}: {said}");
    }
}

/// The options are ours: nothing is refused before the cluster is asked.
#[test]
fn the_daemons_options_are_understood() {
    let text = fs::read_to_string(manifest("daemonset.yaml")).unwrap();
    let args = text.split("          args:\n").nth(1).unwrap().split("          env:\n").next();
    let mut warmfs = Warmfs::new();
    let dir = warmfs.path("data");
    let args: Vec<String> = args
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- "))
        .map(|arg| arg.replace(['<', '>'], "").replace("/mnt/warmfs/data", dir.to_str().unwrap()))
        .collect();
    assert_eq!((args.len(), args[0].as_str()), (6, "--foreground"), "{args:?}");
    warmfs.set_env("AIS_ENDPOINT", "http://127.0.0.1:9");
    warmfs.set_env("AWS_ENDPOINT_URL", "http://127.0.0.1:9");
    let args: Vec<_> = ["mount"].into_iter().chain(args[1..].iter().map(String::as_str)).collect();
    // Without the first, with which it logs to stderr as well.
    let error = warmfs.fails(&args);
    assert!(error.contains("cannot mount ais://@aws/bucket: --origin: "), "{error}");
}
