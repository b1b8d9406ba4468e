//! Logs, metrics and traces of every Vireo process.
//!
//! [`log`] writes events, with a limit for what a guest can trigger ([`limit`]); [`metrics`] makes the page that Prometheus
//! reads; [`spans`] follow a request through processes, [`io_trace`] a command, and both leave by OTLP; [`capture`] hands a
//! controller's commands to whoever asks.

#![forbid(unsafe_code)]

pub mod capture;
pub mod io_trace;
pub mod limit;
pub mod log;
pub mod metrics;
pub mod spans;
