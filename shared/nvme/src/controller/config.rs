//! What a controller is made with.

use ipc::layout::{MAX_QUEUES, MAX_VECTORS};
use nvme_spec::ControllerId;

/// Smallest memory page (CAP.MPSMIN 0).
const PAGE: u32 = 4096;
/// Largest data transfer: with one range list entry per page, 64 KiB of memory a list.
const MAX_TRANSFER: u32 = 16 << 20;

/// A controller's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerConfig {
    /// Controller identifier, from [`crate::Subsystem::add_controller`].
    pub id: ControllerId,
    /// Largest data transfer in bytes: a power of two, 8 KiB (MDTS cannot say one page) to 16 MiB.
    pub max_transfer: u32,
    /// I/O queue pairs, 1 to 127.
    pub io_queues: u16,
    /// MSI-X vectors, 1 to 128.
    pub vectors: u16,
    /// The client maps the doorbell page. If not, Doorbell Buffer Config is offered.
    pub doorbells_mapped: bool,
    /// PCI vendor identifier (VID).
    pub vendor: u16,
    /// PCI subsystem vendor identifier (SSVID).
    pub subsystem_vendor: u16,
}

/// Why no controller can have a configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The largest transfer is no power of two, too small or too large.
    #[error("max_transfer {0} is not a power of two from 8192 to {MAX_TRANSFER}")]
    MaxTransfer(u32),
    /// Too many queues, or none.
    #[error("{0} i/o queues are not 1 to {max}", max = MAX_QUEUES - 1)]
    Queues(u16),
    /// Too many vectors, or none.
    #[error("{0} vectors are not 1 to {MAX_VECTORS}")]
    Vectors(u16),
}

impl ControllerConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let transfer = self.max_transfer;
        if !transfer.is_power_of_two() || !(2 * PAGE..=MAX_TRANSFER).contains(&transfer) {
            return Err(ConfigError::MaxTransfer(transfer));
        }
        if !(1..MAX_QUEUES).contains(&usize::from(self.io_queues)) {
            return Err(ConfigError::Queues(self.io_queues));
        }
        if !(1..=MAX_VECTORS).contains(&usize::from(self.vectors)) {
            return Err(ConfigError::Vectors(self.vectors));
        }
        Ok(())
    }

    /// Maximum Data Transfer Size (MDTS): two to this power in pages of 4 KiB.
    pub(crate) fn mdts(&self) -> u8 {
        (self.max_transfer / PAGE).trailing_zeros() as u8
    }
}
