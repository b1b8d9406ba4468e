//! Metrics, traces and what shows them: of running processes, to the programs that people use.

mod collector;
mod deployed;
mod metrics;
mod page;
mod traces;
