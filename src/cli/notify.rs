//! Tells the service manager how far it is: systemd's notification protocol, lines of
//! `NAME=VALUE` in a datagram to the socket that `NOTIFY_SOCKET` names
//! (<https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>).
//!
//! Nothing is sent where nobody listens, and nothing that cannot be sent is an error of
//! the mount: the manager has a time limit of its own.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Who started this process, if that wants to know.
#[derive(Debug)]
pub(super) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    /// The one that the environment names.
    pub(super) fn from_env() -> Manager {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Manager(None);
        };
        match connect(&name) {
            Ok(there) => Manager(Some(there)),
            Err(error) => {
                tracing::warn!("NOTIFY_SOCKET={} is of no use: {error}", name.display());
                Manager(None)
            }
        }
    }

    /// Something is under way, or went wrong.
    pub(super) fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", one_line(text)));
    }

    /// What was asked for is there.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// The end has begun.
    pub(super) fn stopping(&self) {
        self.send("STOPPING=1\nSTATUS=unmounting");
    }

    fn send(&self, message: &str) {
        let Manager(Some((socket, there))) = self else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), there) {
            tracing::warn!("the service manager is not told {message:?}: {error}");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let there = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract socket")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up a mount.
    socket.set_nonblocking(true)?;
    Ok((socket, there))
}

/// A line ends a variable.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
