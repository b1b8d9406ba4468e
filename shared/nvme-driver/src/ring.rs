//! The two rings of a queue pair in registered memory. On the hot path: no call, no lock, no allocation.
//!
//! The submission ring is written here and read by the controller, the completion ring the other way round. Either may
//! be scribbled on by a target that misbehaves: what is read is copied once, then checked.
#![allow(unsafe_code)]

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nvme_spec::{Command, Completion};

use crate::memory::Registered;

/// How many entries ahead of the next one lines are asked for.
const AHEAD: u32 = 4;
/// Bit of the phase tag in the high half of a completion.
const PHASE: u64 = 1 << 48;

/// Submission queue: where the next command goes.
pub(crate) struct SubmissionRing {
    base: NonNull<[u64; 8]>,
    size: u32,
    tail: u32,
    memory: Registered,
    offset: usize,
}

/// Completion queue: where the next completion comes.
pub(crate) struct CompletionRing {
    base: NonNull<[AtomicU64; 2]>,
    size: u32,
    head: u32,
    /// The phase tag of entries that are new in this pass.
    phase: u64,
    memory: Registered,
    offset: usize,
}

// SAFETY: the memory belongs to the value (`memory` keeps it mapped) and is reached through it alone.
unsafe impl Send for SubmissionRing {}
// SAFETY: as above.
unsafe impl Send for CompletionRing {}

impl SubmissionRing {
    /// A ring of `size` entries at `offset` of `memory`; `None` if it does not fit there.
    pub(crate) fn new(memory: &Registered, offset: usize, size: u32) -> Option<Self> {
        let slice = memory.host().sub(offset, size as usize * size_of::<Command>())?;
        let base = NonNull::new(slice.as_ptr())?.cast::<[u64; 8]>();
        let fits = size >= 2 && base.is_aligned() && slice.is_writable();
        fits.then(|| Self { base, size, tail: 0, memory: memory.clone(), offset })
    }

    /// Entries.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Index of the entry that is written next.
    #[inline]
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// First address, as the controller sees it.
    pub(crate) fn iova(&self) -> nvme_spec::Iova {
        nvme_spec::Iova(self.memory.iova() + self.offset as u64)
    }

    /// Empties it, as it is when the queue is created.
    pub(crate) fn clear(&mut self) {
        self.tail = 0;
    }

    /// Writes the next entry. The caller has made sure that there is room; the controller is told by the doorbell.
    #[inline]
    pub(crate) fn push(&mut self, entry: [u64; 8]) {
        let at = self.tail;
        let next = at + 1;
        let next = if next == self.size { 0 } else { next };
        self.tail = next;
        // Past the end of the ring, for its last few, it is of no use and does no harm.
        prefetch(self.base.as_ptr().wrapping_add((at + AHEAD) as usize));
        // SAFETY: at < size (above, `clear`), and `size` entries are mapped and aligned from base (new). No reference to
        // them exists; a target that reads at the same time gets a mix of old and new, which is its loss. The doorbell's
        // Release store keeps this before it.
        unsafe { self.base.add(at as usize).write(entry) };
    }
}

/// Asks for the line of an entry, to be written soon: the controller, which read it, gives it up before it is needed.
#[inline]
fn prefetch(entry: *const [u64; 8]) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults and changes nothing; processors without this one take it for no operation.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) entry, options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = entry;
}

impl CompletionRing {
    /// A ring of `size` entries at `offset` of `memory`; `None` if it does not fit there.
    pub(crate) fn new(memory: &Registered, offset: usize, size: u32) -> Option<Self> {
        let slice = memory.host().sub(offset, size as usize * size_of::<Completion>())?;
        let base = NonNull::new(slice.as_ptr())?.cast::<[AtomicU64; 2]>();
        let fits = size >= 2 && base.is_aligned() && slice.is_writable();
        fits.then(|| Self { base, size, head: 0, phase: PHASE, memory: memory.clone(), offset })
    }

    /// Entries.
    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// Index of the entry that is read next.
    #[inline]
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// First address, as the controller sees it.
    pub(crate) fn iova(&self) -> nvme_spec::Iova {
        nvme_spec::Iova(self.memory.iova() + self.offset as u64)
    }

    /// Empties it, as it is when the queue is created: every phase tag 0.
    pub(crate) fn clear(&mut self) {
        (self.head, self.phase) = (0, PHASE);
        let len = self.size as usize * size_of::<Completion>();
        if let Some(slice) = self.memory.host().sub(self.offset, len) {
            slice.fill(0);
        }
    }

    /// The high half of the next entry (SQHD, SQID, CID, status), if it is new. One load.
    #[inline]
    pub(crate) fn peek(&self) -> Option<u64> {
        // Acquire: pairs with the controller's store of the phase tag, which follows all else it wrote for the command.
        let high = u64::from_le(self.half(1).load(Ordering::Acquire));
        if (high ^ self.phase) & PHASE == 0 { Some(high) } else { None }
    }

    /// The whole entry whose high half [`peek`](Self::peek) returned.
    #[inline]
    pub(crate) fn entry(&self, high: u64) -> Completion {
        // Relaxed: the Acquire of `peek` came before.
        Completion::from_halves([u64::from_le(self.half(0).load(Ordering::Relaxed)), high])
    }

    /// Goes on to the next entry.
    #[inline]
    pub(crate) fn advance(&mut self) {
        let next = self.head + 1;
        if next == self.size {
            self.head = 0;
            self.phase ^= PHASE;
        } else {
            self.head = next;
        }
    }

    #[inline]
    fn half(&self, half: usize) -> &AtomicU64 {
        // SAFETY: head < size (advance, clear), and `size` entries are mapped and aligned from base (new); only atomics
        // are referenced in this memory.
        let entry = unsafe { self.base.add(self.head as usize).as_ref() };
        &entry[half & 1]
    }
}

impl fmt::Debug for SubmissionRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SubmissionRing(tail {} of {})", self.tail, self.size)
    }
}

impl fmt::Debug for CompletionRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompletionRing(head {} of {})", self.head, self.size)
    }
}
