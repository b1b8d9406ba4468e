//! Configuration, start, readiness, shutdown and pinning of every Vireo process.

#![forbid(unsafe_code)]

pub mod async_fd;
pub mod control;
