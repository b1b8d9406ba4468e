//! Metrics, traces and what shows them, and faults that are made on purpose: of running processes, to the programs that
//! people use.

mod api;
mod captures;
mod collector;
mod deployed;
mod faults;
mod metrics;
mod page;
mod pushed;
mod traces;
mod waits;
