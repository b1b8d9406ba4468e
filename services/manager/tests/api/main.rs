//! The gRPC API by its clients: every method, its errors, its idempotence; who may call; and what stays after a death at
//! any step.

mod callers;
mod crash;
mod failures;
mod faults;
mod foreign;
mod killed;
mod limits;
mod opi_frontend;
mod opi_namespaces;
mod opi_volumes;
mod standard;
mod support;
mod targets;
mod traces;
mod volumes;
mod watch;
