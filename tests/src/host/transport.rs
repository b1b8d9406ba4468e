//! How a driver reaches its controller.

use ipc::event::EventFd;

/// A way to registers and doorbells. An implementation panics when the way is gone, unless its method says otherwise;
/// a driver calls `relax` whenever it waits.
pub trait Transport {
    /// Reads a register of 4 or 8 bytes in BAR0.
    fn read_register(&mut self, offset: u64, data: &mut [u8]);

    /// Writes a register of 4 or 8 bytes in BAR0.
    fn write_register(&mut self, offset: u64, data: &[u8]);

    /// Stores a doorbell by its index (2 * QID for an SQ's tail, one more for a CQ's head): in the mapped page, or by
    /// message.
    fn ring(&mut self, index: usize, value: u32);

    /// Lets the target go on, where it does not by itself, and other threads otherwise.
    fn relax(&mut self);

    /// The eventfd of an interrupt vector.
    fn vector(&self, vector: u16) -> Option<&EventFd>;
}
