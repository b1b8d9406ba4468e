//! What can go wrong, in three layers: reaching a controller, talking to it, and one request.

use std::path::PathBuf;
use std::time::Duration;

use nvme_spec::{AdminOpcode, Nsid, Status};

use crate::address::{AddressError, PciAddress};
use crate::memory::MemoryError;
use crate::transport::TransportError;

/// Why no controller could be had. Each is one line that ends in what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address names nothing.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// There is no such socket.
    #[error("no vfio-user socket at {}: start the target, or correct the path", path.display())]
    NoSocket {
        /// The socket.
        path: PathBuf,
    },
    /// The file is not a socket that somebody listens on.
    #[error("nobody listens on {}: the target has ended, or this is no socket; start it again", path.display())]
    NotListening {
        /// The socket.
        path: PathBuf,
    },
    /// The socket's permissions.
    #[error("no permission to connect to {}: run as its owner or in its group", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// Nothing came in time.
    #[error("target at {} does not answer within {waited:?}: it hangs, or serves another client; restart it or end that client", path.display())]
    NotAnswering {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The connection ended during the first exchange.
    #[error("target at {} closed the connection: it serves another client, or failed; see its log", path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// Something else than vfio-user came.
    #[error("what listens on {} does not speak vfio-user ({what}): check that it is a target's socket", path.display())]
    NotVfioUser {
        /// The socket.
        path: PathBuf,
        /// What came.
        what: String,
    },
    /// There is a device, and NVMe it is not.
    #[error("{address} has {found}, nvme needs {needed}: check that it is an nvme controller")]
    Unfit {
        /// Where.
        address: String,
        /// What it has.
        found: String,
        /// What is needed.
        needed: &'static str,
    },
    /// No such PCI function.
    #[error("no pci device {address}: `lspci -D` lists those there are")]
    NoDevice {
        /// The address.
        address: PciAddress,
    },
    /// Another driver has it, or none.
    #[error(
        "pci device {address} is bound to {driver}, not to vfio-pci: `echo vfio-pci > /sys/bus/pci/devices/{address}/driver_override`, unbind it, then `echo {address} > /sys/bus/pci/drivers_probe`"
    )]
    NotBound {
        /// The address.
        address: PciAddress,
        /// The driver's name, or "no driver".
        driver: String,
    },
    /// The platform does not isolate it.
    #[error(
        "pci device {address} is in no iommu group: enable the iommu (`intel_iommu=on` or `amd_iommu=on` on the kernel's command line)"
    )]
    NoIommu {
        /// The address.
        address: PciAddress,
    },
    /// The VFIO group cannot be opened.
    #[error("no permission to open {}: give it to your user with `chown $USER {}`, or run as root", path.display(), path.display())]
    GroupPermission {
        /// The group's device node.
        path: PathBuf,
    },
    /// The VFIO group is in use.
    #[error("{} is in use: end the process that drives the device", path.display())]
    GroupBusy {
        /// The group's device node.
        path: PathBuf,
    },
    /// VFIO is not there.
    #[error("{} is missing: load the module with `modprobe vfio-pci`", path.display())]
    NoVfio {
        /// The device node.
        path: PathBuf,
    },
    /// The transport failed in another way.
    #[error("cannot use {address}: {}", chain(source))]
    Transport {
        /// Where.
        address: String,
        /// What happened.
        source: TransportError,
    },
    /// The controller was reached and did not come up.
    #[error("controller at {address} did not come up: {}", chain(source))]
    Start {
        /// Where.
        address: String,
        /// What happened.
        source: Error,
    },
}

/// Why an operation on a controller failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Registers or memory could not be reached.
    #[error("reach the controller")]
    Transport(#[from] TransportError),
    /// Memory could not be had.
    #[error("register memory")]
    Memory(#[from] MemoryError),
    /// The controller refused an admin command.
    #[error("{opcode}: {status}")]
    Command {
        /// The command.
        opcode: AdminOpcode,
        /// Its status.
        status: Status,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {waited:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// CSTS.CFS: the controller is in a fatal state.
    #[error("controller reports a fatal error (CSTS.CFS)")]
    Fatal,
    /// The target ended, or the device was removed.
    #[error("controller is gone")]
    Gone,
    /// No active namespace has this identifier.
    #[error("namespace {} is not there; active: {active}", nsid.0)]
    NoNamespace {
        /// The identifier asked for.
        nsid: Nsid,
        /// Those there are.
        active: String,
    },
    /// The controller or namespace has something that this driver has not.
    #[error("{found} is not supported, only {supported}")]
    Unsupported {
        /// What it has.
        found: String,
        /// What would do.
        supported: &'static str,
    },
    /// Every queue that the controller granted is in use.
    #[error("all {granted} i/o queues that the controller grants are in use")]
    NoQueue {
        /// Their number.
        granted: u16,
    },
    /// As many admin commands are outstanding as the driver keeps.
    #[error("too many admin commands are outstanding")]
    AdminFull,
    /// The controller completed something that was never asked.
    #[error("controller broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: &'static str,
    },
    /// The arguments do not fit the command.
    #[error("{what}")]
    Argument {
        /// What does not fit.
        what: &'static str,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// The controller completed it with this status, and retrying is over.
    #[error("{0}")]
    Status(Status),
    /// It did not complete in time and was aborted.
    #[error("request timed out and was aborted")]
    TimedOut,
    /// The controller was reset while it was outstanding; whether it took effect is unknown.
    #[error("controller was reset while the request was outstanding")]
    Reset,
    /// The target ended, or the device was removed.
    #[error("controller is gone")]
    Gone,
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
