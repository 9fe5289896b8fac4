//! warmfs: a cloud bucket prefix as a read-only folder, with a local
//! read-through cache.
//!
//! Knowledge flows one way; `tests/architecture.rs` holds the code to it:
//!
//! ```text
//! main -> cli -> (daemon | control client)
//! daemon -> fs -> cache -> remote
//! daemon -> control server
//! admission, config, linux, units, metrics: leaves
//! ```
//!
//! `remote` knows objects and byte ranges, `cache` knows objects and chunks,
//! `fs` knows inodes and file handles. See `ARCHITECTURE.md` for the map.

pub mod admission;
pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod embedded_store;
pub mod fs;
#[cfg(test)]
mod fuzz;
mod linux;
pub mod metrics;
pub mod remote;
pub mod units;
