//! The frontend from outside: clients on real sockets, workers that do what a test says.

mod connection;
mod endpoint;
mod link;
mod memory;
mod removal;
mod support;
mod worker;
mod workers;
