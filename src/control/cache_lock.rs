//! `<cache>/lock`: held by the one daemon that serves a cache directory, for
//! as long as it lives, and naming its socket.
//!
//! The kernel drops the lock with its holder, whatever ends it, so a lock that
//! can be taken is proof that nobody writes the cache. The record inside may
//! be a dead daemon's; whoever reads it tries the socket.
//!
//! Once written the file keeps its one block, so that a cache on a disk that
//! has filled up since can still be served.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Bytes of a record, spaces at its end included.
const RECORD_BYTES: usize = 4_096;

/// How the command line of a supervisor begins.
const SUPERVISOR_WORDS: &[u8] = b"warmfs\0supervise\0";

/// The exclusive right to serve a cache directory, until dropped.
#[derive(Debug)]
pub struct CacheLock(File);

/// What the holder wrote about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRecord {
    /// The holder's process.
    pub pid: u32,
    /// Where it listens.
    pub socket: PathBuf,
    /// The process that starts another holder if this one dies; 0 for none.
    #[serde(default)]
    pub supervisor: u32,
}

impl LockRecord {
    /// Sends a signal to the holder. One that cannot be handled goes to its supervisor
    /// first, or another holder would come.
    pub fn signal(&self, signal: Signal) {
        let supervisor = (signal == Signal::SIGKILL).then_some(self.supervisor);
        let pids = supervisor.into_iter().chain([self.pid]);
        // 0 and what is negative mean groups to kill(2), and 1 is init.
        for pid in pids.filter_map(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Whether there is a supervisor that starts another holder, should this one be dead.
    pub fn is_supervised(&self) -> bool {
        // Not another process of that number, and not one that is dead and not waited for.
        let words = std::fs::read(format!("/proc/{}/cmdline", self.supervisor));
        words.is_ok_and(|words| words.starts_with(SUPERVISOR_WORDS))
    }
}

impl CacheLock {
    /// Takes the lock of `cache_dir`; `None` while another process holds it.
    ///
    /// # Errors
    /// If the lock file cannot be created or locked.
    pub fn try_take(cache_dir: &Path) -> io::Result<Option<CacheLock>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(cache_dir.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(CacheLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Says who holds the lock.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_record(&mut self, record: &LockRecord) -> io::Result<()> {
        self.overwrite(serde_json::to_vec(record)?)
    }

    /// Says that the holder listens no more.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn clear_record(&mut self) -> io::Result<()> {
        self.overwrite(Vec::new())
    }

    fn overwrite(&mut self, mut text: Vec<u8>) -> io::Result<()> {
        if text.len() > RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        text.resize(RECORD_BYTES, b' ');
        self.0.write_all_at(&text, 0)
    }
}

/// Who served `cache_dir` last; `None` if nobody did, or cannot be told.
pub fn read_record(cache_dir: &Path) -> Option<LockRecord> {
    let file = File::open(cache_dir.join("lock")).ok()?;
    let mut text = Vec::new();
    file.take(RECORD_BYTES as u64).read_to_end(&mut text).ok()?;
    parse_record(&text)
}

pub(super) fn parse_record(text: &[u8]) -> Option<LockRecord> {
    serde_json::from_slice(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(read_record(tmp.path()), None);
        let mut held = CacheLock::try_take(tmp.path()).unwrap().unwrap();
        assert!(CacheLock::try_take(tmp.path()).unwrap().is_none());
        let record = LockRecord { pid: 7, socket: "/run/x.sock".into(), supervisor: 6 };
        held.write_record(&record).unwrap();
        held.write_record(&record).unwrap();
        assert_eq!(read_record(tmp.path()), Some(record));
        held.clear_record().unwrap();
        assert_eq!(read_record(tmp.path()), None);
        drop(held);
        assert!(CacheLock::try_take(tmp.path()).unwrap().is_some());
    }
}
