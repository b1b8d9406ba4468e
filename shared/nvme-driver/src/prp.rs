//! Data pointers: PRP entries and lists, or one SGL data block. NVMe Base 2.0c 4.1. On the hot path.
//!
//! A buffer is contiguous as the controller sees it, so a list is arithmetic. Lists lie in pages of the queue pair's
//! own, one for each command.

use std::sync::atomic::Ordering;

use nvme_spec::Iova;
use nvme_spec::command::Psdt;
use nvme_spec::sgl::SglDescriptor;
use zerocopy::transmute;

use crate::memory::Registered;

/// The pages that hold PRP lists: one for each command of a queue pair, each one memory page of the controller's.
#[derive(Debug)]
pub(crate) struct Lists {
    memory: Registered,
    offset: usize,
    page_shift: u32,
    pointer: Pointer,
    /// What goes as one PRP entry lies within so many bytes from a multiple of it: a memory page, or nothing at all.
    near: u64,
}

/// A data pointer: its kind, and the two words of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DataPointer {
    /// An SGL descriptor instead of two PRP entries.
    pub(crate) sgl: bool,
    pub(crate) words: [u64; 2],
}

impl DataPointer {
    /// PRP or SGL for Data Transfer (PSDT).
    #[inline]
    pub(crate) fn psdt(&self) -> Psdt {
        if self.sgl { Psdt::SGL_METADATA_BUFFER } else { Psdt::PRP }
    }
}

/// What a command's data pointer may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pointer {
    /// PRPs only.
    Prp,
    /// One SGL data block where PRPs would need a list.
    SglForLists,
    /// One SGL data block always.
    Sgl,
}

impl Lists {
    /// Bytes that `count` lists take.
    pub(crate) fn size(count: usize, page_shift: u32) -> usize {
        count << page_shift
    }

    /// Lists from `offset` of `memory` on; its owner made it large enough, at a page boundary.
    pub(crate) fn new(
        memory: &Registered,
        offset: usize,
        page_shift: u32,
        pointer: Pointer,
    ) -> Self {
        let near = if pointer == Pointer::Sgl { 0 } else { 1 << page_shift };
        Self { memory: memory.clone(), offset, page_shift, pointer, near }
    }

    /// What a data pointer may be.
    pub(crate) fn pointer(&self) -> Pointer {
        self.pointer
    }

    /// Most bytes of a command whose list is one page: PRP1 may begin anywhere in its page.
    pub(crate) const fn reach(page_shift: u32) -> u64 {
        1 << (page_shift - 3 + page_shift)
    }

    /// The data pointer of command `index`, whose data is `len` bytes (not 0) from `iova`, at most
    /// [`reach`](Self::reach).
    #[inline]
    pub(crate) fn point(&self, index: usize, iova: u64, len: usize) -> DataPointer {
        if (iova & self.near.wrapping_sub(1)).wrapping_add(len as u64) <= self.near {
            return DataPointer { sgl: false, words: [iova, 0] };
        }
        self.point_far(index, iova, len)
    }

    /// The same for what does not go as one PRP entry.
    fn point_far(&self, index: usize, iova: u64, len: usize) -> DataPointer {
        let page = 1_u64 << self.page_shift;
        let end = (iova & (page - 1)) + len as u64;
        let sgl = match self.pointer {
            Pointer::Prp => false,
            Pointer::SglForLists => end > 2 * page,
            Pointer::Sgl => true,
        };
        if sgl {
            let sgl = SglDescriptor::data_block(Iova(iova), len as u32);
            return DataPointer { sgl: true, words: transmute!(sgl) };
        }
        let second = (iova & !(page - 1)) + page;
        let second = if end <= 2 * page { second } else { self.list(index, second, end - page).0 };
        DataPointer { sgl: false, words: [iova, second] }
    }

    /// Fills the list of command `index` with the pages of `len` bytes from `first`, and returns where it is.
    fn list(&self, index: usize, first: u64, len: u64) -> Iova {
        let at = self.offset + (index << self.page_shift);
        let entries = len.div_ceil(1 << self.page_shift);
        if let Some(list) = self.memory.host().sub(at, 1 << self.page_shift) {
            for entry in 0..entries {
                // Relaxed: the doorbell's Release keeps it before.
                let stored = list.store_u64(
                    entry as usize * size_of::<u64>(),
                    first + (entry << self.page_shift),
                    Ordering::Relaxed,
                );
                debug_assert!(stored, "a transfer beyond the reach of one list");
            }
        }
        Iova(self.memory.iova() + at as u64)
    }
}
