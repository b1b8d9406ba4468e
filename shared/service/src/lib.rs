//! Configuration, start, readiness, shutdown and pinning of every Vireo process.

#![forbid(unsafe_code)]

pub mod async_fd;
pub mod config;
pub mod control;
pub mod cpu;
pub mod ready;
pub mod shutdown;
pub mod start;
pub mod state;
