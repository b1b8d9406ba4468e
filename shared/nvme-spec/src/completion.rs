//! Completion queue entries. NVMe Base 2.0c 3.3.3.2. On the hot path of a worker.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, transmute};

use crate::ids::{CommandId, QueueId};
use crate::status::Status;

/// Upper half of dword 3: phase tag and status field. NVMe Base 2.0c figure 92.
#[bitfield(u16)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct StatusAndPhase {
    /// Phase Tag (P): inverted with each pass over the queue.
    #[inline]
    pub phase: bool,
    /// Status Field (SF).
    #[inline]
    #[bits(15)]
    pub status: Status,
}

/// Completion queue entry, common layout of 16 bytes. NVMe Base 2.0c 3.3.3.2.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Completion {
    /// Dword 0: command specific.
    pub dw0: u32,
    /// Dword 1: command specific.
    pub dw1: u32,
    /// SQ Head Pointer (SQHD): entries before it are free for the host to reuse.
    pub sqhd: u16,
    /// SQ Identifier (SQID) of the queue that the command came by.
    pub sqid: QueueId,
    /// Command Identifier (CID) of the completed command.
    pub cid: CommandId,
    /// Status and phase tag.
    pub status_phase: StatusAndPhase,
}

impl Completion {
    /// The answer to command `cid` of queue `sqid`, with phase 0 and zero in dwords 0 and 1.
    #[inline]
    pub const fn new(sqid: QueueId, cid: CommandId, sqhd: u16, status: Status) -> Self {
        let status = Status::from_raw(status.into_bits());
        Self {
            dw0: 0,
            dw1: 0,
            sqhd,
            sqid,
            cid,
            status_phase: StatusAndPhase::new().with_status(status),
        }
    }

    /// With the command specific dword 0.
    #[inline]
    #[must_use]
    pub const fn with_dw0(mut self, dw0: u32) -> Self {
        self.dw0 = dw0;
        self
    }

    /// With the command specific dword 1.
    #[inline]
    #[must_use]
    pub const fn with_dw1(mut self, dw1: u32) -> Self {
        self.dw1 = dw1;
        self
    }

    /// With the phase tag.
    #[inline]
    #[must_use]
    pub const fn with_phase(mut self, phase: bool) -> Self {
        self.status_phase.set_phase(phase);
        self
    }

    /// Status Field (SF).
    #[inline]
    pub const fn status(&self) -> Status {
        self.status_phase.status()
    }

    /// Phase Tag (P).
    #[inline]
    pub const fn phase(&self) -> bool {
        self.status_phase.phase()
    }

    /// The entry as it lies in memory, in two halves: dwords 0 and 1, then dwords 2 and 3 with the phase. Whoever
    /// writes an entry stores the low half first, so that the phase never shows before what it vouches for.
    #[inline]
    pub const fn into_halves(self) -> [u64; 2] {
        transmute!(self)
    }

    /// An entry from its two halves, the low one first.
    #[inline]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        transmute!(halves)
    }

    /// Dwords 0 and 1.
    #[inline]
    pub const fn low(self) -> u64 {
        self.into_halves()[0]
    }

    /// Dwords 2 and 3, with the phase tag in bit 48.
    #[inline]
    pub const fn high(self) -> u64 {
        self.into_halves()[1]
    }
}

const _: () = assert!(size_of::<Completion>() == 16);
const _: () = assert!(size_of::<StatusAndPhase>() == 2);
