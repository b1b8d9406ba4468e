//! Configuration, start, readiness, shutdown and pinning of every Vireo process.
//!
//! A service's `main` is: [`start::Arguments::load`] the [`config`], [`start::set_limits`], [`shutdown::Shutdown::listen`],
//! [`control::Server::bind`] its socket, [`ready::ready`], serve until the shutdown is requested.

#![forbid(unsafe_code)]

pub mod async_fd;
pub mod capture;
pub mod config;
pub mod control;
pub mod cpu;
pub mod observe;
pub mod ready;
pub mod shutdown;
pub mod start;
pub mod state;
pub mod watchdog;
