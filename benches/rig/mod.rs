//! What the benches with real mounts, real peers and a real store share:
//! `benches/peers` and `benches/mounted`.
//!
//! - [`work`] one folder for everything a run makes, removed at its end and on Ctrl-C
//! - [`data`] the datasets, as files and as listings
//! - [`store`] nginx as an object store, and the networks in front of it
//! - [`process`] children with a time limit, their CPU and memory
//! - [`install`] what is not on the machine yet
//! - [`peer`] warmfs and the others: how each is started, tuned
//! - [`read`] the readers
//! - [`stats`] medians

#![allow(dead_code, reason = "each bench uses its part")]

pub(crate) mod data;
pub(crate) mod install;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod read;
pub(crate) mod stats;
pub(crate) mod store;
pub(crate) mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why something could not be measured, in one line.
pub(crate) type Failure = String;

pub(crate) const MIB: f64 = 1048576.0;

/// For `map_err`: what was tried, and what came of it.
pub(crate) fn failed<E: std::fmt::Display>(what: &str) -> impl Fn(E) -> Failure + '_ {
    move |error| format!("{what}: {error}")
}

/// What panics, such as one that the watchdog ended, is a failure.
pub(crate) fn guarded<T>(run: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(text.unwrap_or_else(|| "it panicked".to_owned()))
    })
}
