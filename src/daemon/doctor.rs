//! What a mount needs, looked at piece by piece: `warmfs doctor`.
//!
//! Each check is independent of the others as far as it can be, says one thing, and what
//! to do about it. Without a URI no network is touched. Nothing is changed but mounts
//! whose daemon is dead, which are removed. All of it is bounded in time.

mod local;
mod machine;
mod store;

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use crate::config::{CallerEnv, RemoteOptions};
use crate::control::wire::ErrorReply;

/// Time for the checks of this machine, which take milliseconds; a mount that hangs may
/// take 2 s to be told from a dead one, and one below the cache directory for ever.
const LOCAL_LIMIT: Duration = Duration::from_secs(30);

/// How it is with something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, and could be better or is soon worse.
    Warn,
    /// A mount does not work.
    Fail,
}

/// What was found out of one thing. The names are part of the JSON's schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Such as `clock`.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// How long it took, or for the clock how far it is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How fast bytes came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
}

impl Finding {
    fn new(check: &'static str, level: Level, message: impl Into<String>) -> Finding {
        let message = message.into();
        Finding { check, level, message, hint: None, seconds: None, bytes_per_second: None }
    }

    fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding::new(check, Level::Ok, message)
    }

    fn warn(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { hint: Some(hint.into()), ..Finding::new(check, Level::Warn, message) }
    }

    fn fail(check: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Finding {
        Finding { hint: Some(hint.into()), ..Finding::new(check, Level::Fail, message) }
    }

    /// A refusal in its own words.
    fn refused(check: &'static str, error: ErrorReply) -> Finding {
        Finding { hint: error.hint, ..Finding::new(check, Level::Fail, error.message) }
    }

    fn taking(self, time: Duration) -> Finding {
        Finding { seconds: Some(time.as_secs_f64()), ..self }
    }
}

/// This machine, and the cache directory (canonical). Touches no network.
pub async fn machine(cache_dir: &Path) -> Vec<Finding> {
    let dir = cache_dir.to_owned();
    let mut findings = blocking("machine", move || {
        let mut findings = machine::look(&dir);
        findings.extend(local::look(&dir));
        findings
    })
    .await;
    findings.push(local::daemon(cache_dir).await);
    findings.extend(blocking("mounts", local::mounts).await);
    findings
}

/// What `uri` names, asked as a mount would ask; in the order in which `tell` hears of it.
pub async fn store(
    uri: &str,
    options: &RemoteOptions,
    env: &CallerEnv,
    tell: &mut (dyn FnMut(Finding) + Send),
) {
    store::look(uri, options, env, tell).await;
}

async fn blocking(
    check: &'static str,
    work: impl FnOnce() -> Vec<Finding> + Send + 'static,
) -> Vec<Finding> {
    match tokio::time::timeout(LOCAL_LIMIT, super::blocking(work)).await {
        Ok(Ok(findings)) => findings,
        Ok(Err(error)) => vec![Finding::refused(check, error)],
        Err(_) => {
            let message =
                format!("no answer within {} s: a file system hangs", LOCAL_LIMIT.as_secs());
            vec![Finding::fail(
                check,
                message,
                "look for it in `mount`, and unmount it with `umount -l`",
            )]
        }
    }
}
