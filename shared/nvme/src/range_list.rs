//! The memory of one command: host ranges in order, in a list that its owner reuses. On the hot path: nothing here
//! allocates after [`RangeList::with_capacity`].

use ipc::guest_memory::{Access, DmaFault, DmaFaultKind, GuestMemory, MemRange, RegionId};
use ipc::iova::Iova;
use ipc::layout::MAX_REGIONS;
use nvme_spec::Status;

/// The region that bit buckets name: memory of ours, at least as long as the largest transfer, that whoever serves I/O
/// puts into the table under this id. What is read into it is lost.
pub const BIT_BUCKET: RegionId = RegionId(MAX_REGIONS as u32 - 1);

/// The status of a command that needs more ranges than the list holds.
const TOO_MANY: Status = Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS.with_dnr();

/// Ranges of the list that serves commands of `max_transfer` bytes at the smallest page size, whatever their
/// alignment: every page on its own, and one more for a first page that is entered in its middle.
pub const fn ranges_for(max_transfer: u32) -> usize {
    (max_transfer >> 12) as usize + 2
}

/// The status of a command whose memory was not reached: Data Transfer Error; Command Interrupted, without Do Not Retry,
/// where the table was just being changed.
#[cold]
pub(crate) fn fault_status(fault: DmaFault) -> Status {
    match fault.kind {
        DmaFaultKind::Busy => Status::COMMAND_INTERRUPTED,
        DmaFaultKind::Unmapped
        | DmaFaultKind::Access
        | DmaFaultKind::NoMemory
        | DmaFaultKind::RegionMissing => Status::DATA_TRANSFER_ERROR.with_dnr(),
    }
}

/// Host ranges of a command's data, in order, with the guest address of each. Its capacity is fixed.
pub struct RangeList {
    ranges: Box<[MemRange]>,
    iovas: Box<[u64]>,
    used: usize,
}

impl RangeList {
    /// An empty list of at most `capacity` ranges. Allocates; everything after does not.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            ranges: vec![MemRange::default(); capacity].into_boxed_slice(),
            iovas: vec![0; capacity].into_boxed_slice(),
            used: 0,
        }
    }

    /// Forgets all ranges.
    #[inline]
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// Most ranges that the list holds.
    pub fn capacity(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, in the order of the data.
    #[inline]
    pub fn ranges(&self) -> &[MemRange] {
        &self.ranges[..self.used]
    }

    /// The guest addresses that the ranges stand for: first byte and length. Bit buckets have none and are left out.
    pub fn guest_ranges(&self) -> impl Iterator<Item = (Iova, u32)> + '_ {
        self.ranges()
            .iter()
            .zip(&self.iovas)
            .filter(|(range, _)| range.region != BIT_BUCKET)
            .map(|(range, &iova)| (Iova(iova), range.len))
    }

    /// Translates `length` bytes at `iova` and appends them.
    ///
    /// # Errors
    /// [`fault_status`] if some of it is not memory of the client's or must not be accessed so; Invalid Number of SGL
    /// Descriptors if the list is full.
    #[inline(always)]
    pub(crate) fn append(
        &mut self,
        memory: &GuestMemory,
        iova: u64,
        length: u32,
        access: Access,
    ) -> Result<(), Status> {
        if let Some(range) = memory.range(Iova(iova), length, access) {
            return self.push(iova, range).then_some(()).ok_or(TOO_MANY);
        }
        self.append_pieces(memory, iova, length, access)
    }

    /// What is not in one row, or not in the cache.
    #[cold]
    fn append_pieces(
        &mut self,
        memory: &GuestMemory,
        iova: u64,
        length: u32,
        access: Access,
    ) -> Result<(), Status> {
        let mut at = iova;
        let mut fits = true;
        let translated = memory.translate(Iova(iova), length, access, &mut |range| {
            fits &= self.push(at, range);
            at = at.wrapping_add(u64::from(range.len));
        });
        match translated {
            Err(fault) => Err(fault_status(fault)),
            Ok(()) if !fits => Err(TOO_MANY),
            Ok(()) => Ok(()),
        }
    }

    /// Appends `length` bytes that go nowhere.
    pub(crate) fn append_bit_bucket(&mut self, length: u32) -> Result<(), Status> {
        let range = MemRange { region: BIT_BUCKET, len: length, offset: 0 };
        match self.push(0, range) {
            true => Ok(()),
            false => Err(TOO_MANY),
        }
    }

    /// Appends a range, to the last one if it goes on from there in both address spaces. False if the list is full.
    #[inline]
    fn push(&mut self, iova: u64, range: MemRange) -> bool {
        if self.used > 0 && self.extend_last(iova, &range) {
            return true;
        }
        match (self.ranges.get_mut(self.used), self.iovas.get_mut(self.used)) {
            (Some(free), Some(free_iova)) => {
                *free = range;
                *free_iova = iova;
                self.used += 1;
                true
            }
            _ => false,
        }
    }

    fn extend_last(&mut self, iova: u64, range: &MemRange) -> bool {
        let Some(index) = self.used.checked_sub(1) else { return false };
        let (Some(last), Some(&last_iova)) = (self.ranges.get_mut(index), self.iovas.get(index))
        else {
            return false;
        };
        let goes_on = last_iova.wrapping_add(u64::from(last.len)) == iova;
        match last.merged(*range).filter(|_| goes_on) {
            Some(merged) => {
                *last = merged;
                true
            }
            None => false,
        }
    }
}
