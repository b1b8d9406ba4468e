//! The manager: what the host is to serve, and that it does.
//!
//! It reads the configuration file, keeps what it accepted in a file of its own ([`store`]) together with the names
//! that must last ([`identity`]), and tells every backend and every frontend its share ([`desired`]) until all of them
//! serve it ([`reconcile`]). The gRPC API ([`grpc`], which also serves OPI's) makes and deletes
//! objects beside those of the file ([`made`]). A reload compares the file with what is served ([`change`]) and refuses
//! what would disturb running guests. No I/O passes through the manager: while it is away, everything runs on.

#![forbid(unsafe_code)]

pub mod change;
pub mod counters;
pub mod desired;
pub mod event;
mod fault;
pub mod grpc;
pub mod identity;
pub mod made;
pub mod manager;
pub mod metrics;
pub mod object;
mod opi;
mod pause;
mod peer;
pub mod reconcile;
#[cfg(test)]
mod sample;
mod status;
pub mod store;
pub mod view;
