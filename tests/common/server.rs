//! A foreign server on loopback: a store's stand-in that `./check` installs.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that a server may take to listen: some import a lot of Python.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Somebody else may take the port between our look and the server's start.
const START_ATTEMPTS: usize = 3;

/// A process that serves; gone when dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    endpoint: String,
}

impl Server {
    /// Starts `program` and waits until it accepts connections. `arrange` is given the
    /// port to listen on.
    pub fn start(program: &Path, arrange: impl Fn(&mut Command, u16)) -> Server {
        assert!(
            program.is_file(),
            "a server for tests is not installed: run ./check (looked at {})",
            program.display()
        );
        (0..START_ATTEMPTS)
            .find_map(|_| Self::try_start(program, &arrange))
            .unwrap_or_else(|| panic!("{} did not start", program.display()))
    }

    fn try_start(program: &Path, arrange: impl Fn(&mut Command, u16)) -> Option<Server> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        arrange(&mut command, port);
        let process = command.spawn().expect("a server for tests cannot be run");
        let mut server = Server { process, endpoint: format!("http://127.0.0.1:{port}") };
        let start = Instant::now();
        while start.elapsed() < START_LIMIT {
            if server.process.try_wait().unwrap().is_some() {
                return None;
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(server);
            }
            // Another process cannot be waited for otherwise.
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The Python environment that `./check` installs into.
pub fn venv() -> PathBuf {
    test_home().join("venv")
}

/// Where `./check` installs.
pub fn test_home() -> PathBuf {
    std::env::var_os("WARMFS_TEST_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/warmfs-test")
    })
}
