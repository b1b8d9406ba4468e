//! The vfio-user protocol, both ends, and PCI configuration space.
//!
//! The protocol is the one of QEMU's `docs/interop/vfio-user.rst`: a client (a virtual machine
//! monitor, or a userspace driver) drives a device that a server emulates, by messages over a
//! Unix stream socket whose ancillary data carries file descriptors.
//!
//! The core does no I/O. [`server::Session`] takes one framed message and answers with an
//! [`server::Outcome`]; what the message asks of the device goes through the
//! [`server::Device`] trait. The table of DMA mappings is not here: a server keeps it where its
//! workers can read it.

#![forbid(unsafe_code)]

pub mod client;
pub mod dma;
pub mod errno;
pub mod framing;
pub mod irq;
pub mod message;
pub mod pci;
pub mod region;
pub mod server;
pub mod socket;
pub mod version;

pub use errno::Errno;
pub use message::{Command, Header, HeaderFlags};
