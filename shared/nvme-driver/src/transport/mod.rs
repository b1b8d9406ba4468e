//! How a controller is reached: its registers, its doorbells, and what it may do DMA to.

pub mod vfio;
pub mod vfio_user;

use std::fmt;
use std::sync::Arc;

use ipc::event::EventFd;
use ipc::guest_memory::Region;

pub use crate::doorbell::{Doorbell, DoorbellArea, DoorbellMemory};

/// Why a transport failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The vfio-user exchange failed.
    #[error("vfio-user exchange")]
    VfioUser(#[from] ::vfio_user::client::ClientError),
    /// A system call failed.
    #[error("{call}")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The target is gone, or was given up.
    #[error("target is gone")]
    Gone,
    /// The device lacks something that NVMe needs.
    #[error("device has {found}, nvme needs {needed}")]
    Unfit {
        /// What it has.
        found: String,
        /// What is needed.
        needed: &'static str,
    },
}

/// What a doorbell write costs, which decides how eagerly they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorbellCost {
    /// A store into shared memory.
    Memory,
    /// A store across a bus, or an exit of a virtual machine.
    Mmio,
    /// A message.
    Message,
}

/// A way to a controller.
///
/// Contract: offsets are of BAR0 and aligned to the access. Calls may come from any thread at any time and return within
/// seconds whatever the target does; they never panic. After [`sever`](Transport::sever) every call fails or does
/// nothing, and the device does no DMA any more as far as the transport can see to that.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Reads a register of 4 bytes.
    ///
    /// # Errors
    /// [`TransportError`].
    fn read_u32(&self, offset: u64) -> Result<u32, TransportError>;

    /// Reads a register of 8 bytes.
    ///
    /// # Errors
    /// [`TransportError`].
    fn read_u64(&self, offset: u64) -> Result<u64, TransportError>;

    /// Writes a register of 4 bytes and waits until that is done, as far as the transport tells.
    ///
    /// # Errors
    /// [`TransportError`].
    fn write_u32(&self, offset: u64, value: u32) -> Result<(), TransportError>;

    /// Writes a register of 8 bytes, as [`write_u32`](Transport::write_u32) does.
    ///
    /// # Errors
    /// [`TransportError`].
    fn write_u64(&self, offset: u64, value: u64) -> Result<(), TransportError>;

    /// Writes a register of 4 bytes and does not wait.
    ///
    /// # Errors
    /// [`TransportError`].
    fn post_u32(&self, offset: u64, value: u32) -> Result<(), TransportError>;

    /// The doorbell at this offset, if it is mapped.
    fn doorbell(&self, offset: u64) -> Option<Doorbell>;

    /// The memory in which the doorbells lie, for another process to map; `None` if there is none that can be handed
    /// over.
    fn doorbell_memory(&self) -> Option<DoorbellMemory> {
        None
    }

    /// What a doorbell write costs.
    fn doorbell_cost(&self) -> DoorbellCost;

    /// Lets the device read and, where its descriptor allows, write the whole of `memory` from `iova` on.
    ///
    /// # Errors
    /// [`TransportError`]; nothing is mapped then.
    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError>;

    /// Takes the range back. When this succeeds, the device touches it no more.
    ///
    /// # Errors
    /// [`TransportError`].
    fn dma_unmap(&self, iova: u64, len: u64) -> Result<(), TransportError>;

    /// Interrupt vectors there are; 0 if the device has no MSI-X.
    fn vectors(&self) -> u16;

    /// Gives vectors 0 and on these events; those of the vectors beyond are taken away.
    ///
    /// # Errors
    /// [`TransportError`].
    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError>;

    /// Gives one of the vectors that [`set_vectors`](Transport::set_vectors) gave events another one, or none: then it
    /// signals nobody.
    ///
    /// # Errors
    /// [`TransportError`], also if this transport sets vectors only all at a time. The vector is as it was.
    fn set_vector(&self, vector: u16, event: Option<&EventFd>) -> Result<(), TransportError> {
        let what = if event.is_some() { "given" } else { "taken" };
        let found = format!("vectors of which {vector} is not {what} an event by itself");
        Err(TransportError::Unfit { found, needed: "nothing of the kind" })
    }

    /// Resets the device as a function level reset does.
    ///
    /// # Errors
    /// [`TransportError`], also if the device has no such reset.
    fn reset(&self) -> Result<(), TransportError>;

    /// Whether another process brought the target up, was replaced by this one, and the target is as that one left it. Of
    /// a vfio-user target never: its server resets the controller when a connection ends.
    fn is_inherited(&self) -> bool {
        false
    }

    /// Takes back what a predecessor mapped, and its interrupts. The controller is disabled.
    ///
    /// # Errors
    /// [`TransportError`]; the target is to be given up then.
    fn clear_inherited(&self) -> Result<(), TransportError> {
        Ok(())
    }

    /// What is kept of the target for this process's successor.
    fn keeping(&self) -> Option<&vfio::Keeping> {
        None
    }

    /// Whether the target is still there, as far as can be told without asking it.
    fn alive(&self) -> bool;

    /// Gives the target up: keeps it from the memory that it was given, as far as that can be done.
    fn sever(&self);
}

impl dyn Transport {
    /// The doorbell at `offset`: mapped, or by messages.
    pub(crate) fn any_doorbell(self: &Arc<Self>, offset: u64) -> Doorbell {
        self.doorbell(offset).unwrap_or_else(|| Doorbell::message(Arc::clone(self), offset))
    }
}
