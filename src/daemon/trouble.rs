//! What of a daemon's state is not as it should be, and what to do about it. Pure: it
//! looks at the figures that it stands beside.

use crate::control::wire::{MountStatus, StatusReply, TroubleStatus};

/// The log, for whatever it says more of.
const LOG: &str = "`warmfs log` says more";

/// What is wrong, what weighs most first.
pub(super) fn troubles(status: &StatusReply) -> Vec<TroubleStatus> {
    let mut found = Vec::new();
    let mut say = |what: String, next: String| found.push(TroubleStatus { what, next });
    for mount in &status.mounts {
        of_mount(mount, &mut say);
    }
    if let Some(next) = next_for_cache(&status.cache.state) {
        say(status.cache.state.clone(), next.to_owned());
    }
    if let (count @ 1.., Some(reason)) = (status.restarts.count, &status.restarts.reason) {
        let times = if count == 1 { "once".to_owned() } else { format!("{count} times") };
        let what = format!("restarted {times}, last {reason}; figures are since then");
        say(what, LOG.to_owned());
    }
    let minute = &status.rates.minute;
    if minute.errors > 0 {
        let what = format!(
            "{} of {} requests to the remote failed in the last minute",
            minute.errors, minute.requests
        );
        say(what, LOG.to_owned());
    }
    // One that failed yesterday is history.
    if status.rates.hour.failed_reads > 0 {
        let what = format!("{} reads failed in the last hour", status.rates.hour.failed_reads);
        say(what, LOG.to_owned());
    }
    let wrong = status.cache.compared.dropped + status.cache.compared.disputed;
    if wrong > 0 {
        let what = format!("{wrong} objects came otherwise than the store says they are");
        say(what, "`warmfs verify --remote DIR` compares what is cached".to_owned());
    }
    found
}

fn of_mount(mount: &MountStatus, say: &mut impl FnMut(String, String)) {
    let dir = mount.dir.display();
    if let Some(refusal) = &mount.refusal {
        let what = format!("what is not cached is refused: {refusal}");
        say(what, format!("log in, then `warmfs renew {dir}`"));
    }
    if mount.download.reached {
        let what = format!("{dir} reached its --max-download, nothing is fetched ahead any more");
        say(what, "mount it again with a larger one".to_owned());
    }
    if mount.warming.all_is_too_large {
        let what = format!("not all of {dir} fits the cache");
        say(what, "a larger --cache-size keeps more of it".to_owned());
    }
    if mount.refused_writes.requests > 0 {
        let first = mount.refused_writes.first.as_deref().unwrap_or_default();
        let what = format!(
            "{} writes to {dir} were refused, the first was {first}",
            mount.refused_writes.requests
        );
        say(what, "write to another folder, or to the bucket itself".to_owned());
    }
    if mount.detached {
        let what = format!("{dir} is unmounted and still in use");
        say(what, "it ends when its last file is closed".to_owned());
    }
}

/// What to do about a state of the cache; nothing if it is as it should be. The words are
/// those of `Store::state`.
fn next_for_cache(state: &str) -> Option<&'static str> {
    let next = match state {
        "ok" | "" => return None,
        state if state.starts_with("full") => "`warmfs evict` or a larger --cache-size makes room",
        state if state.contains("disk is full") || state.starts_with("no room") => {
            "free some of that disk: it is tried again by itself"
        }
        state if state.contains("disk fails") => {
            "look after that disk, or mount with another --cache-dir"
        }
        state if state.contains("slower than the remote") => {
            "nothing is lost; a faster --cache-dir would keep up"
        }
        _ => LOG,
    };
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_the_cache_has_a_next_step() {
        assert_eq!(next_for_cache("ok"), None);
        for (state, word) in [
            ("full, what is cached stays and the rest streams through", "evict"),
            ("no room on the cache disk, reads stream through", "free"),
            ("cache disk is full, new reads stream through: ENOSPC", "free"),
            ("cache disk fails, reads stream through: EIO", "--cache-dir"),
            ("the disk is slower than the remote, some of what is read is kept later", "faster"),
            ("new reads stream through, a higher `ulimit -n` would let the cache", "log"),
        ] {
            let next = next_for_cache(state).unwrap();
            assert!(next.contains(word), "{state}: {next}");
        }
    }
}
