//! What is kept of an outstanding command, one slot for each command identifier. On the hot path.

use nvme_spec::{Lba, Nsid, NvmOpcode};

use crate::error::IoError;
use crate::memory::DmaBuffer;
use crate::request::Shape;
use crate::split::Limits;

/// No slot, no parent.
pub(super) const NONE: u16 = u16::MAX;

/// What a slot is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum State {
    #[default]
    Free,
    /// A command that is a whole request.
    Whole,
    /// A piece of the request in `parent`.
    Piece,
    /// A command that the caller made, or one half of a fused pair: never sent again.
    Raw,
    /// A command, or piece if it has a parent, that waits to be sent again.
    Delayed,
}

/// One outstanding command: what is needed to hand its buffer back, and to send it again.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Slot {
    pub(super) buffer: Option<DmaBuffer>,
    pub(super) token: u64,
    pub(super) slba: Lba,
    pub(super) nsid: Nsid,
    pub(super) cdw12: u32,
    /// When it was submitted, in epochs of the queue pair.
    pub(super) epoch: u32,
    pub(super) parent: u16,
    // What is mostly the same stands together, and is stored together.
    pub(super) state: State,
    pub(super) shape: Shape,
    pub(super) retries: u8,
    /// It timed out, and an Abort was sent.
    pub(super) aborted: bool,
    pub(super) opcode: NvmOpcode,
    pub(super) block_shift: u8,
    /// The next free slot.
    pub(super) next: u16,
}

/// A request that became several commands.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) buffer: Option<DmaBuffer>,
    pub(super) token: u64,
    pub(super) slba: Lba,
    pub(super) blocks: u64,
    /// Blocks of which commands were sent.
    pub(super) sent: u64,
    pub(super) outstanding: u16,
    /// The first error; no more pieces are sent after it.
    pub(super) error: Option<IoError>,
    pub(super) nsid: Nsid,
    pub(super) flags: u32,
    pub(super) limits: Limits,
    pub(super) opcode: NvmOpcode,
    pub(super) shape: Shape,
    pub(super) used: bool,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            buffer: None,
            token: 0,
            slba: Lba(0),
            nsid: Nsid::NONE,
            cdw12: 0,
            epoch: 0,
            parent: NONE,
            next: NONE,
            opcode: NvmOpcode::FLUSH,
            state: State::Free,
            shape: Shape::Argument,
            block_shift: 9,
            retries: 0,
            aborted: false,
        }
    }
}

impl Default for Parent {
    fn default() -> Self {
        Self {
            buffer: None,
            token: 0,
            slba: Lba(0),
            blocks: 0,
            sent: 0,
            outstanding: 0,
            error: None,
            nsid: Nsid::NONE,
            flags: 0,
            limits: Limits { block_shift: 9, data_blocks: 1, boundary: 0 },
            opcode: NvmOpcode::FLUSH,
            shape: Shape::Data,
            used: false,
        }
    }
}

impl Parent {
    /// Whether nothing more is to come of it.
    pub(super) fn is_over(&self) -> bool {
        self.outstanding == 0 && (self.error.is_some() || self.sent == self.blocks)
    }
}

const _: () = assert!(size_of::<Slot>() == 64);
