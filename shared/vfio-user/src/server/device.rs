//! What a session asks of the device behind it.

use crate::Errno;
use crate::dma::{DmaMap, DmaUnmap};
use crate::irq::IrqRequest;
use crate::region::RegionIndex;

/// How far an act has come when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Act {
    /// It is done; the reply may go out.
    Completed,
    /// It is begun. The device's owner calls [`super::Session::finish`] when it is done.
    Deferred,
}

/// The device that a session serves. A session's contract with it:
///
/// - Calls come in the order of the client's commands, one at a time. After [`Act::Deferred`]
///   there is no further call until the act was finished.
/// - Arguments are checked: a region access lies within the described region and is at most the
///   transfer limit long, a DMA range does not overflow, interrupts lie within their type. What
///   a descriptor is, nobody has checked.
/// - Every act may come twice for one message: a process may die after the act and before the
///   message is consumed, and its successor handles the message again. The second must leave what
///   the first left, and succeed where the first did: mapping what is mapped exactly so already
///   is success, unmapping what is gone is success or [`Errno::ENOENT`].
/// - An error is a value; nothing that a client sends may make an implementation panic.
pub trait Device {
    /// Client memory becomes usable for DMA. A range without a descriptor is accepted.
    ///
    /// # Errors
    /// [`Errno::EEXIST`] if it overlaps a mapping that is not exactly this one, [`Errno::ENOSPC`]
    /// if the table is full, others as the descriptor deserves. The client is told.
    fn dma_map(&mut self, map: DmaMap) -> Result<Act, Errno>;

    /// Client memory must not be touched once this is complete.
    ///
    /// # Errors
    /// Any; a client is not told, since none of them can tell an error from a range.
    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Act, Errno>;

    /// Fills `data` from `offset` within the region.
    ///
    /// # Errors
    /// Any; the client reads ones instead.
    fn region_read(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno>;

    /// Writes `data` at `offset` within the region.
    ///
    /// # Errors
    /// Any; the client is not told, the write is as if dropped.
    fn region_write(&mut self, region: RegionIndex, offset: u64, data: &[u8])
    -> Result<Act, Errno>;

    /// Configures, masks or fires interrupts.
    ///
    /// # Errors
    /// As the eventfds deserve; the client is told.
    fn set_irqs(&mut self, request: IrqRequest) -> Result<Act, Errno>;

    /// Resets the device as a function level reset does. DMA mappings and eventfds stay.
    ///
    /// # Errors
    /// Any; the client is told.
    fn reset(&mut self) -> Result<Act, Errno>;
}
