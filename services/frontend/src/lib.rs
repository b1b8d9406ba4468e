//! The frontend: vfio-user sockets, PCI configuration space, registers and the admin queue of virtual NVMe controllers.
//!
//! The manager says what is to be served ([`registry`]). An [`endpoint`] listens and takes one client after the other
//! ([`client`]); behind it stands a [`function`], the PCI device without any waiting. I/O queues are served by
//! workers, which learn of a controller by its segment and by what a [`link`] hands them.

#![forbid(unsafe_code)]

pub mod backends;
pub mod client;
pub mod closer;
pub mod connection;
pub mod endpoint;
pub mod function;
pub mod limits;
pub mod link;
pub mod pause;
pub mod registry;
pub mod signal;
pub mod store;
pub mod subsystem;

/// An error with its causes in one line.
pub(crate) fn line(error: &(dyn std::error::Error + 'static)) -> String {
    vireo_proto::Failure::internal(error).message().to_owned()
}
