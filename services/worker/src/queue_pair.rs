//! Queues as a worker holds them: position, memory, state. On the hot path.

use ipc::guest_memory::{
    Access, DmaFaultKind, GuestMemory, Hint, HostSlice, MemRange, RegionTable,
};
use ipc::iova::Iova;
use nvme::queue::completion::CompletionQueue;
use nvme::queue::submission::SubmissionQueue;

/// Pieces of a queue whose memory is not contiguous here are whole pages of this size.
const PIECE: u64 = 4096;

/// Looks at a DMA table that is being changed, before the queue is taken to be gone.
const BUSY_TRIES: usize = 1000;

/// Bytes of a submission queue entry (CC.IOSQES 6).
pub const SQE: u64 = 64;
/// Bytes of a completion queue entry (CC.IOCQES 4).
pub const CQE: u64 = 16;

/// A queue's memory is not, or not wholly, memory of the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotThere;

/// Whether a queue is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Commands are fetched.
    Active,
    /// Enough of its commands wait for a limit: nothing more is fetched until some of them have gone.
    Held,
    /// Being deleted: nothing more is fetched.
    Deleting,
    /// The host rang a doorbell value that cannot be; nothing more is fetched until the queue is made anew.
    Invalid,
}

/// A submission queue.
pub struct Sq {
    /// How far it was fetched.
    pub position: SubmissionQueue,
    /// Where it lies.
    pub memory: QueueMemory,
    /// Its completion queue.
    pub cqid: usize,
    /// Tells it from an earlier one with the same identifier.
    pub generation: u32,
    /// Commands fetched and not yet completed.
    pub in_flight: u32,
    /// Whether it is served.
    pub state: State,
    /// Fetch counter at which its event index was last moved.
    pub event_index_at: u64,
}

/// A completion queue.
pub struct Cq {
    /// How far it was filled.
    pub position: CompletionQueue,
    /// Where it lies.
    pub memory: QueueMemory,
    /// Tells it from an earlier one with the same identifier.
    pub generation: u32,
    /// False once the host rang a head that cannot be: nothing more is fetched for it.
    pub valid: bool,
    /// Interrupt vector, if interrupts are enabled.
    pub vector: Option<usize>,
    /// Head that was seen when the interrupt was last put off.
    pub head_seen: u64,
    /// Entries were posted and neither reaped nor signalled.
    pub owed: bool,
    /// The next look may signal at once: the host had reaped everything when entries were posted.
    pub was_empty: bool,
}

/// Memory of one queue: contiguous for the guest, not necessarily so here. Found when first needed, and again after an
/// unmap that touches it.
pub struct QueueMemory {
    base: Iova,
    bytes: u64,
    access: Access,
    /// The whole queue as one range, or one range for each page of it; empty if not found yet.
    ranges: Vec<MemRange>,
    /// Where the whole of it was found, if it is contiguous here.
    hint: Hint,
}

impl QueueMemory {
    /// Memory of `bytes` at `base`, which is not looked for yet. Allocates.
    pub fn new(base: Iova, bytes: u64, access: Access) -> Self {
        let ranges = Vec::with_capacity(bytes.div_ceil(PIECE) as usize);
        Self { base, bytes, access, ranges, hint: Hint::default() }
    }

    /// Whether the memory is at hand.
    #[inline]
    pub fn is_resolved(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether any of the `size` bytes at `iova` belong to the queue.
    pub fn touches(&self, iova: Iova, size: u64) -> bool {
        let (last, end) = (
            self.base.0.saturating_add(self.bytes - 1),
            iova.0.saturating_add(size.saturating_sub(1)),
        );
        size > 0 && self.bytes > 0 && iova.0 <= last && self.base.0 <= end
    }

    /// Asks for the line at `offset`, if the queue is contiguous here.
    #[inline(always)]
    pub fn prefetch(&self, offset: u64) {
        self.hint.prefetch(offset as usize);
    }

    /// Finds the memory anew before its next use.
    pub fn forget(&mut self) {
        self.ranges.clear();
    }

    /// Finds the memory.
    ///
    /// # Errors
    /// If some of it is not there, or is cut elsewhere than between pages.
    pub fn resolve(&mut self, memory: &GuestMemory) -> Result<(), NotThere> {
        for _ in 0..BUSY_TRIES {
            match self.try_resolve(memory) {
                // The table is just being changed, by a writer that is about to be done.
                Err(DmaFaultKind::Busy) => std::hint::spin_loop(),
                Err(_) => break,
                Ok(()) => {
                    let whole = self.contiguous(memory.regions()).map(|whole| whole.hint());
                    self.hint = whole.unwrap_or_default();
                    return Ok(());
                }
            }
        }
        self.ranges.clear();
        Err(NotThere)
    }

    fn try_resolve(&mut self, memory: &GuestMemory) -> Result<(), DmaFaultKind> {
        let bytes = u32::try_from(self.bytes).map_err(|_| DmaFaultKind::Unmapped)?;
        let capacity = self.bytes.div_ceil(PIECE) as usize;
        let ranges = &mut self.ranges;
        ranges.clear();
        let mut fits = true;
        let found = memory.translate(self.base, bytes, self.access, &mut |range| {
            fits &= ranges.len() < capacity;
            if fits {
                ranges.push(range);
            }
        });
        found.map_err(|fault| fault.kind)?;
        if fits && (self.ranges.len() == 1 || self.split()) {
            Ok(())
        } else {
            Err(DmaFaultKind::Unmapped)
        }
    }

    /// The entry of `SIZE` bytes at `index`; `None` if the memory is not at hand.
    #[inline]
    pub fn entry<'a>(
        &self,
        regions: &'a RegionTable,
        index: u32,
        size: u64,
    ) -> Option<HostSlice<'a>> {
        let offset = u64::from(index) * size;
        let (range, within) = match self.ranges.as_slice() {
            [whole] => (whole, offset),
            pages => (pages.get((offset / PIECE) as usize)?, offset % PIECE),
        };
        if within + size > u64::from(range.len) {
            return None;
        }
        let range = MemRange { offset: range.offset + within, len: size as u32, ..*range };
        regions.host(range, self.access)
    }

    /// The whole queue if it is contiguous here.
    #[inline]
    pub fn contiguous<'a>(&self, regions: &'a RegionTable) -> Option<HostSlice<'a>> {
        match self.ranges.as_slice() {
            [whole] => regions.host(*whole, self.access),
            _ => None,
        }
    }

    /// Cuts the ranges into pages. False if one is no whole number of pages.
    fn split(&mut self) -> bool {
        let found = std::mem::take(&mut self.ranges);
        let last = found.len().saturating_sub(1);
        let mut pages = Vec::with_capacity(found.capacity());
        for (index, range) in found.iter().enumerate() {
            if index < last && !u64::from(range.len).is_multiple_of(PIECE) {
                return false;
            }
            let mut done = 0;
            while done < range.len {
                let len = (range.len - done).min(PIECE as u32);
                let offset = range.offset + u64::from(done);
                pages.push(MemRange { region: range.region, len, offset });
                done += len;
            }
        }
        self.ranges = pages;
        true
    }
}
