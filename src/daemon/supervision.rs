//! What a daemon and its supervisor tell each other.
//!
//! The supervisor is the process that starts the daemon, and starts another one when it
//! dies. It knows nothing but the mounts there are: the daemon says what becomes of
//! them, and a new daemon is given them all. They speak over a socket that is the
//! daemon's stdin, a line of JSON each: first one [`Resume`], then [`Change`]s. Requests
//! hold credentials, so they are nowhere but in the memory of the two.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::table::MOUNTS_MAX;
use crate::config::{CallerEnv, MountRequest};
use crate::control::BODY_BYTES_MAX;
use crate::remote::later::Known;

/// Longest line, in bytes: as many requests as a daemon has mounts, with what was created
/// for them.
const LINE_BYTES_MAX: u64 = (MOUNTS_MAX as u64 + 1) * 2 * BODY_BYTES_MAX as u64;

/// A supervisor that takes no line for so long is given up: nobody waits for it.
const SEND_LIMIT: Duration = Duration::from_secs(2);

/// How long the first line may take, which is written at once.
pub const RESUME_LIMIT: Duration = Duration::from_secs(10);

/// A mount, as it takes to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// How it was asked for, with the credentials that it has now.
    pub request: MountRequest,
    /// Its remote, which need not be reached to make it again.
    pub remote: Known,
    /// Folders that were created for it, parents first.
    pub created: Vec<PathBuf>,
    /// Bytes that it downloaded, which its cap counts.
    #[serde(default)]
    pub downloaded_bytes: u64,
    /// It was being made again when a daemon died: the dead one need not be there.
    #[serde(default)]
    pub is_restoring: bool,
}

/// The mounts of a daemon, as its supervisor knows them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mounts {
    /// Those there are.
    pub kept: Vec<Kept>,
    /// Those that are being made, and what was created for them: who asked for one asks
    /// again.
    pub pending: Vec<(PathBuf, Vec<PathBuf>)>,
}

/// What a daemon begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The supervisor's process.
    pub supervisor: u32,
    /// Daemons that died before this one.
    pub restarts: u64,
    /// How the last of them died.
    pub reason: Option<String>,
    /// The mounts that it had.
    pub mounts: Mounts,
}

/// What became of a mount.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It is being made.
    Mounting {
        /// Where.
        dir: PathBuf,
        /// Folders that were created for it, parents first.
        created: Vec<PathBuf>,
    },
    /// It is being made again.
    Restoring(PathBuf),
    /// It is there, mounted or as a view.
    Mounted(Box<Kept>),
    /// It has other credentials.
    Renewed {
        /// What it is known by.
        dir: PathBuf,
        /// These.
        env: CallerEnv,
    },
    /// It downloaded so many bytes by now.
    Downloaded {
        /// Where it is mounted.
        dir: PathBuf,
        /// Those before the last death included.
        bytes: u64,
    },
    /// It is gone, and its folders are put back.
    Gone(PathBuf),
}

impl Change {
    /// Notes it.
    pub fn apply(self, mounts: &mut Mounts) {
        match self {
            Change::Mounting { dir, created } => {
                mounts.forget(&dir);
                mounts.pending.push((dir, created));
            }
            Change::Restoring(dir) => {
                if let Some(mount) = mounts.find(&dir) {
                    mount.is_restoring = true;
                }
            }
            Change::Mounted(kept) => {
                mounts.forget(kept.request.place());
                mounts.kept.push(*kept);
            }
            Change::Renewed { dir, env } => {
                if let Some(mount) = mounts.find(&dir) {
                    mount.request.env = env;
                }
            }
            Change::Downloaded { dir, bytes } => {
                if let Some(mount) = mounts.find(&dir) {
                    mount.downloaded_bytes = bytes;
                }
            }
            Change::Gone(dir) => mounts.forget(&dir),
        }
    }
}

impl Mounts {
    /// Whether there is nothing to make again or to clean up.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.pending.is_empty()
    }

    fn find(&mut self, dir: &Path) -> Option<&mut Kept> {
        self.kept.iter_mut().find(|mount| mount.request.place() == dir)
    }

    fn forget(&mut self, dir: &Path) {
        self.kept.retain(|mount| mount.request.place() != dir);
        self.pending.retain(|(pending, _)| pending != dir);
    }
}

/// The daemon's end of the socket; or none, for a daemon that nobody supervises.
#[derive(Debug, Default)]
pub struct Supervisor(Mutex<Option<UnixStream>>);

impl Supervisor {
    /// Takes the socket at stdin, and the line that lies in it.
    ///
    /// # Errors
    /// If there is no supervisor.
    pub fn at_stdin() -> io::Result<(Supervisor, Resume)> {
        // Not for the programs that this one runs.
        let socket = UnixStream::from(nix::unistd::dup(io::stdin()).map_err(io::Error::from)?);
        let flags = nix::fcntl::FdFlag::FD_CLOEXEC;
        nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_SETFD(flags))?;
        nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
        socket.set_read_timeout(Some(RESUME_LIMIT))?;
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        let mut line = Vec::new();
        BufReader::new((&socket).take(LINE_BYTES_MAX)).read_until(b'\n', &mut line)?;
        let resume = serde_json::from_slice(&line)?;
        Ok((Supervisor(Mutex::new(Some(socket))), resume))
    }

    /// Tells what became of a mount.
    pub(super) fn tell(&self, change: &Change) {
        let mut socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = socket.as_mut() else { return };
        let told = serde_json::to_vec(change).map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            open.write_all(&line)
        });
        if let Err(error) = told {
            // Half a line may be there, so that no other would be understood.
            *socket = None;
            tracing::warn!(%error, "the supervisor is gone: who dies now is not started again");
        }
    }

    /// Tells it if nobody has to wait for that; whether it was told.
    pub(super) fn try_tell(&self, change: &Change) -> bool {
        let has_room = {
            let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(open) = socket.as_ref() else { return false };
            // Of a socket's buffer much more than a line is free then.
            let mut fds = [PollFd::new(open.as_fd(), PollFlags::POLLOUT)];
            matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
        };
        if has_room {
            self.tell(change);
        }
        has_room
    }

    /// Tells that a mount is gone.
    pub(super) fn tell_gone(&self, dir: &Path) {
        self.tell(&Change::Gone(dir.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MountOptions;
    use crate::remote::scripted::ScriptedRemote;

    fn request(dir: &str) -> MountRequest {
        let options = MountOptions::default();
        let env = [("AWS_PROFILE", "old")].into_iter().collect();
        MountRequest { uri: "s3://b".to_owned(), dir: Some(dir.into()), index: None, options, env }
    }

    #[test]
    fn mounts_come_change_and_go() {
        let known = Known::of(&ScriptedRemote::new());
        let kept = |dir: &str| {
            let created = vec![dir.into()];
            Box::new(Kept {
                request: request(dir),
                remote: known.clone(),
                created,
                downloaded_bytes: 0,
                is_restoring: false,
            })
        };
        let env: CallerEnv = [("AWS_PROFILE", "new")].into_iter().collect();
        let mut mounts = Mounts::default();
        for change in [
            Change::Mounting { dir: "/a".into(), created: Vec::new() },
            Change::Mounting { dir: "/z".into(), created: Vec::new() },
            Change::Mounted(kept("/a")),
            Change::Restoring("/a".into()),
            Change::Mounted(kept("/b")),
            Change::Mounted(kept("/a")),
            Change::Renewed { dir: "/a".into(), env: env.clone() },
            Change::Renewed { dir: "/c".into(), env: env.clone() },
            Change::Downloaded { dir: "/a".into(), bytes: 7 },
            Change::Downloaded { dir: "/c".into(), bytes: 8 },
            Change::Gone("/b".into()),
            Change::Gone("/b".into()),
        ] {
            let line = serde_json::to_vec(&change).unwrap();
            serde_json::from_slice::<Change>(&line).unwrap().apply(&mut mounts);
        }
        assert_eq!(mounts.kept.len(), 1);
        assert_eq!(mounts.kept[0].request.place(), Path::new("/a"));
        assert_eq!(mounts.kept[0].request.env, env);
        assert_eq!(mounts.kept[0].downloaded_bytes, 7);
        assert!(!mounts.kept[0].is_restoring, "it was mounted since");
        assert_eq!(mounts.pending, [("/z".into(), Vec::new())]);
        Change::Restoring("/a".into()).apply(&mut mounts);
        assert!(mounts.kept[0].is_restoring);
        Change::Gone("/z".into()).apply(&mut mounts);
        Change::Gone("/a".into()).apply(&mut mounts);
        assert!(mounts.is_empty());
    }

    #[test]
    fn a_view_is_known_by_its_uri() {
        let text = serde_json::to_value(request("/a")).unwrap();
        let mut view = text.clone();
        view.as_object_mut().unwrap().remove("dir");
        let request: MountRequest = serde_json::from_value(view).unwrap();
        assert_eq!((request.dir.as_ref(), request.place()), (None, Path::new("s3://b")));
        let remote = Known::of(&ScriptedRemote::new());
        let kept =
            Kept { request, remote, created: Vec::new(), downloaded_bytes: 0, is_restoring: false };
        let mut mounts = Mounts::default();
        Change::Mounted(Box::new(kept)).apply(&mut mounts);
        Change::Gone("/a".into()).apply(&mut mounts);
        assert_eq!(mounts.kept.len(), 1);
        Change::Gone("s3://b".into()).apply(&mut mounts);
        assert!(mounts.is_empty());
    }

    #[test]
    fn a_supervisor_that_is_gone_is_no_matter() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let supervisor = Supervisor(Mutex::new(Some(ours)));
        supervisor.tell_gone(Path::new("/a"));
        let mut line = String::new();
        BufReader::new(&theirs).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"gone\":\"/a\"}\n");
        // One that is stopped is not waited for.
        let downloaded = Change::Downloaded { dir: "/a".into(), bytes: 1 };
        let told = (0..100_000).take_while(|_| supervisor.try_tell(&downloaded)).count();
        assert!((1..100_000).contains(&told), "{told}");
        drop(theirs);
        supervisor.tell_gone(Path::new("/a"));
        supervisor.tell_gone(Path::new("/a"));
        Supervisor::default().tell_gone(Path::new("/a"));
    }
}
