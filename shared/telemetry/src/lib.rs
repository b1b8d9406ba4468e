//! Logs and counters of every Vireo process.
//!
//! Today: the log's set-up ([`log`]) and a limit for what a guest can trigger ([`limit`]).

#![forbid(unsafe_code)]

pub mod limit;
pub mod log;
