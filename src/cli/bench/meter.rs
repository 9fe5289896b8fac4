//! What an epoch cost beside time: requests, bytes from the remote, CPU.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};
use serde_json::Value;
use tokio::runtime::Handle;

use crate::control::client::Client;
use crate::control::wire::{ErrorReply, RemoteStatus};
use crate::daemon::direct::Direct;

/// Who is asked what was asked of the remote.
#[derive(Clone, Debug)]
pub(super) enum Meter {
    /// Nobody: not a mount of ours.
    Nobody,
    /// The daemon, about all of its mounts.
    Daemon(Client),
    /// The client in this process.
    Direct(Arc<Direct>),
}

/// Counters at one time; all only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) remote: Option<RemoteStatus>,
    /// CPU time of this process.
    pub(super) own_cpu: Duration,
    /// CPU time of the daemon.
    pub(super) daemon_cpu: Option<Duration>,
}

impl Meter {
    /// # Errors
    /// If the daemon does not answer any more.
    pub(super) fn read(&self, runtime: &Handle) -> Result<Counters, ErrorReply> {
        let (remote, daemon_cpu) = match self {
            Meter::Nobody => (None, None),
            Meter::Direct(direct) => (Some(direct.traffic()), None),
            Meter::Daemon(client) => {
                let status = runtime.block_on(client.status())?;
                (Some(status.remote), cpu_of(status.pid))
            }
        };
        Ok(Counters { remote, own_cpu: own_cpu(), daemon_cpu })
    }
}

impl Counters {
    /// What was added since `before`.
    pub(super) fn since(&self, before: &Counters) -> Counters {
        let remote = self.remote.zip(before.remote).map(|(now, before)| difference(now, before));
        let cpu = self.daemon_cpu.zip(before.daemon_cpu);
        Counters {
            remote,
            own_cpu: self.own_cpu.saturating_sub(before.own_cpu),
            daemon_cpu: cpu.map(|(now, before)| now.saturating_sub(before)),
        }
    }

    /// CPU time of all that is counted.
    pub(super) fn cpu(&self) -> Duration {
        self.own_cpu + self.daemon_cpu.unwrap_or_default()
    }
}

/// Of every counter there is, now or in a later version: they are told apart by
/// their names only. Saturating, since another daemon may serve the mount by now.
fn difference(now: RemoteStatus, before: RemoteStatus) -> RemoteStatus {
    let subtracted = serde_json::to_value(now).and_then(|mut counters| {
        subtract(&mut counters, &serde_json::to_value(before)?);
        serde_json::from_value(counters)
    });
    subtracted.unwrap_or(now)
}

fn subtract(now: &mut Value, before: &Value) {
    match now {
        Value::Object(counters) => {
            counters.iter_mut().for_each(|(name, counter)| subtract(counter, &before[name]));
        }
        counter => {
            let (Some(now), Some(before)) = (counter.as_u64(), before.as_u64()) else { return };
            *counter = now.saturating_sub(before).into();
        }
    }
}

/// CPU time of this process, to the microsecond.
fn own_cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = |time: nix::sys::time::TimeVal| {
        let micros = time.tv_sec() * 1_000_000 + time.tv_usec();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    };
    micros(usage.user_time()) + micros(usage.system_time())
}

/// CPU time of another process, to the kernel's tick of 10 ms.
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let per_second = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    Some(Duration::from_millis(ticks(&stat)? * 1_000 / per_second.max(1)))
}

/// User and system time in `/proc/PID/stat`: fields 14 and 15, counted from
/// behind the name, which may hold anything.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a ) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 30 5 6 20 0 9 0 100 1 2";
        assert_eq!(ticks(stat), Some(280));
        assert_eq!(ticks("7 (x) S 1"), None);
        assert_eq!(ticks(""), None);
        assert!(cpu_of(std::process::id()).is_some());
        assert_eq!(cpu_of(u32::MAX), None);
    }

    #[test]
    fn counters_are_told_as_what_was_added() {
        let mut remote = RemoteStatus::default();
        remote.get.requests = 5;
        remote.head.requests = 1;
        remote.hedges.sent = 3;
        let seconds = Duration::from_secs;
        let before =
            Counters { remote: Some(remote), own_cpu: seconds(1), daemon_cpu: Some(seconds(2)) };
        remote.get.requests = 12;
        remote.get.bytes = 100;
        remote.hedges.sent = 4;
        let after =
            Counters { remote: Some(remote), own_cpu: seconds(4), daemon_cpu: Some(seconds(9)) };
        let added = after.since(&before);
        let got = added.remote.unwrap();
        assert_eq!((got.get.requests, got.get.bytes, got.head.requests), (7, 100, 0));
        assert_eq!(got.hedges.sent, 1);
        assert_eq!(added.cpu(), seconds(10));
        assert_eq!(after.since(&Counters::default()).remote, None);
    }
}
