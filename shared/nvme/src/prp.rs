//! Physical region pages: a command's data pointer as pages of guest memory. NVMe Base 2.0c 4.1.1. On the hot path.
//!
//! Entries are copied out of guest memory once and never looked at again. The number of entries read follows from
//! the length alone, so a list cannot make the walk go on: a chained list needs an entry of the page before, and each
//! page after the first brings all the entries that fit it.

use crate::range_list::{RangeList, fault_status};
use ipc::guest_memory::{Access, GuestMemory};
use nvme_spec::{Iova, Status};
use zerocopy::IntoBytes;

/// Entries of a list that are copied at a time.
const CHUNK: usize = 64;
/// Bytes of an entry.
const ENTRY: u64 = 8;

/// The memory page size as a shift: 12 + CC.MPS. NVMe Base 2.0c 3.1.3.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageShift(u32);

impl PageShift {
    /// 4 KiB.
    pub const MIN: Self = Self(12);
    /// 64 KiB, what CAP.MPSMAX offers.
    pub const MAX: Self = Self(16);

    /// The shift nearest to `shift` that is valid: the value comes out of a segment, which may be corrupt.
    pub fn clamped(shift: u32) -> Self {
        Self(shift.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// Bytes of a page.
    #[inline]
    pub fn bytes(self) -> u64 {
        1 << self.0
    }
}

/// The two PRP entries of a command (PRP1, PRP2).
#[derive(Clone, Copy, Debug)]
pub struct Prps {
    /// First page, with an offset into it.
    pub first: Iova,
    /// Reserved, second page, or a list of all others, as the length says.
    pub second: Iova,
}

/// Appends the `length` bytes that the entries name to `list`; neighbouring pages become one range. `access` is what
/// we do to the memory.
///
/// # Errors
/// All with Do Not Retry. PRP Offset Invalid for a first entry that is not aligned to 4 bytes, a list pointer that is
/// not aligned to 8, and an offset within the page in any other entry, chained list pointers included (4.1.1, figure
/// 87); Data Transfer Error where a page or a list is not memory of the client's.
#[inline(always)]
pub fn walk(
    memory: &GuestMemory,
    prps: Prps,
    length: u32,
    page: PageShift,
    access: Access,
    list: &mut RangeList,
) -> Result<(), Status> {
    let Prps { first: Iova(first), second: Iova(second) } = prps;
    let mask = page.bytes() - 1;
    if first & 3 != 0 {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    let in_first = page.bytes() - (first & mask);
    if u64::from(length) <= in_first {
        return list.append(memory, first, length, access);
    }
    let rest = u64::from(length) - in_first;
    walk_on(memory, second, rest, page, access, Run { start: first, length: in_first }, list)
}

/// Goes on after the first page, for `rest` bytes more.
#[inline(never)]
fn walk_on(
    memory: &GuestMemory,
    second: u64,
    rest: u64,
    page: PageShift,
    access: Access,
    mut run: Run,
    list: &mut RangeList,
) -> Result<(), Status> {
    if rest > page.bytes() {
        return walk_list(memory, second, rest, page, access, run, list);
    }
    if second & (page.bytes() - 1) != 0 {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    run.extend(memory, second, rest, access, list)?;
    run.flush(memory, access, list)
}

/// Walks the list at `at` and those chained to it for `rest` bytes.
fn walk_list(
    memory: &GuestMemory,
    at: u64,
    mut rest: u64,
    page: PageShift,
    access: Access,
    mut run: Run,
    list: &mut RangeList,
) -> Result<(), Status> {
    let mask = page.bytes() - 1;
    let mut entries = [0_u64; CHUNK];
    let mut at = at;
    if at & (ENTRY - 1) != 0 {
        return Err(Status::PRP_OFFSET_INVALID.with_dnr());
    }
    while rest > 0 {
        // The last entry of a list's page points to the next list, unless it is all that is still wanted.
        let fit = (page.bytes() - (at & mask)) / ENTRY;
        let wanted = rest.div_ceil(page.bytes());
        let chained = wanted > fit;
        let mut left = wanted.min(fit);
        let mut next = 0;
        while left > 0 {
            let count = left.min(CHUNK as u64) as usize;
            let chunk = &mut entries[..count];
            memory.read(ipc::iova::Iova(at), chunk.as_mut_bytes()).map_err(fault_status)?;
            at = at.wrapping_add(count as u64 * ENTRY);
            left -= count as u64;
            for (index, &entry) in chunk.iter().enumerate() {
                if entry & mask != 0 {
                    return Err(Status::PRP_OFFSET_INVALID.with_dnr());
                }
                if chained && left == 0 && index + 1 == count {
                    next = entry;
                } else {
                    let bytes = rest.min(page.bytes());
                    run.extend(memory, entry, bytes, access, list)?;
                    rest -= bytes;
                }
            }
        }
        at = next;
    }
    run.flush(memory, access, list)
}

/// Neighbouring pages that are not yet translated.
struct Run {
    start: u64,
    length: u64,
}

impl Run {
    /// Takes in `bytes` more at `page`, and translates what was before if they are no neighbours.
    #[inline]
    fn extend(
        &mut self,
        memory: &GuestMemory,
        page: u64,
        bytes: u64,
        access: Access,
        list: &mut RangeList,
    ) -> Result<(), Status> {
        if self.start.wrapping_add(self.length) == page {
            self.length += bytes;
            return Ok(());
        }
        self.flush(memory, access, list)?;
        *self = Self { start: page, length: bytes };
        Ok(())
    }

    #[inline]
    fn flush(
        &self,
        memory: &GuestMemory,
        access: Access,
        list: &mut RangeList,
    ) -> Result<(), Status> {
        // A run is at most the command's length, which is a u32.
        let length = u32::try_from(self.length).unwrap_or(u32::MAX);
        list.append(memory, self.start, length, access)
    }
}
