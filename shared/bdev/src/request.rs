//! One request to a block device, in bytes. On the hot path: `Copy` data and borrowed ranges, nothing allocated.

pub use crate::error::{ErrorKind, Outcome, outcome_code, outcome_from_code};
use ipc::guest_memory::MemRange;

/// What a request asks for. The discriminants travel in ring entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Device to memory.
    Read = 1,
    /// Memory to device.
    Write = 2,
    /// Everything completed before this is durable when it completes.
    Flush = 3,
    /// Memory is compared with the device; [`ErrorKind::CompareFailed`] if they differ.
    Compare = 4,
    /// A fused pair in one request: the ranges hold `length` bytes to compare, then `length` bytes to write. Atomic
    /// against every other write to the device.
    CompareAndWrite = 5,
    /// The device range reads as zeroes afterwards.
    WriteZeroes = 6,
    /// The device range's content is of no more use; it reads as zeroes afterwards on every device of this crate.
    Deallocate = 7,
    /// The device range is read, and the data dropped.
    Verify = 8,
    /// `length` bytes from device offset `source` to `offset`.
    Copy = 9,
}

impl Op {
    /// The operation of a ring entry's byte; `None` for one that does not exist.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Flush,
            4 => Self::Compare,
            5 => Self::CompareAndWrite,
            6 => Self::WriteZeroes,
            7 => Self::Deallocate,
            8 => Self::Verify,
            9 => Self::Copy,
            _ => return None,
        })
    }

    /// Whether the operation changes what the device holds.
    #[inline]
    pub fn writes(self) -> bool {
        match self {
            Self::Write
            | Self::CompareAndWrite
            | Self::WriteZeroes
            | Self::Deallocate
            | Self::Copy => true,
            Self::Read | Self::Flush | Self::Compare | Self::Verify => false,
        }
    }

    /// How many times the request's length its memory ranges hold.
    #[inline]
    pub fn memory_factor(self) -> u64 {
        match self {
            Self::Read | Self::Write | Self::Compare => 1,
            Self::CompareAndWrite => 2,
            Self::Flush | Self::WriteZeroes | Self::Deallocate | Self::Verify | Self::Copy => 0,
        }
    }
}

/// One request. All offsets and lengths are bytes; [`Op::Flush`] ignores them.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// What to do.
    pub op: Op,
    /// Force unit access: a write is durable when it completes.
    pub fua: bool,
    /// With [`Op::WriteZeroes`]: the space may be given back (DEAC).
    pub deallocate: bool,
    /// First byte on the device.
    pub offset: u64,
    /// Bytes on the device.
    pub length: u64,
    /// With [`Op::Copy`]: first byte of the source on the device.
    pub source: u64,
    /// Memory, in order; the lengths add up to `length` (twice that for [`Op::CompareAndWrite`]; the list is empty for
    /// operations without data).
    pub ranges: &'a [MemRange],
    /// The caller's name for the request, unique among those outstanding on the channel.
    pub tag: u32,
    /// Low half of the W3C trace id if the request is sampled, else 0.
    pub trace: u64,
}

impl<'a> Request<'a> {
    /// A request with data.
    pub fn new(op: Op, offset: u64, length: u64, ranges: &'a [MemRange], tag: u32) -> Self {
        let (fua, deallocate, source, trace) = (false, false, 0, 0);
        Self { op, fua, deallocate, offset, length, source, ranges, tag, trace }
    }

    /// Checks the device ranges against the device's size. Ranges of length 0 are in order up to the end.
    #[inline]
    pub fn check_bounds(&self, size: u64) -> Outcome {
        let fits = |offset: u64| self.length <= size && offset <= size - self.length;
        match self.op {
            Op::Flush => Ok(()),
            Op::Copy if !fits(self.source) => Err(ErrorKind::OutOfRange),
            _ if !fits(self.offset) => Err(ErrorKind::OutOfRange),
            _ => Ok(()),
        }
    }

    /// Checks that the memory ranges add up to what the operation moves. For requests of another process; a worker's
    /// own walk has counted already.
    pub fn check_memory(&self) -> Outcome {
        let held: u64 = self.ranges.iter().map(|range| u64::from(range.len)).sum();
        match self.length.checked_mul(self.op.memory_factor()) {
            Some(wanted) if wanted == held => Ok(()),
            _ => Err(ErrorKind::Invalid),
        }
    }
}
