//! Where the guest rings: the doorbell page, or the shadow buffer in guest memory once Doorbell Buffer Config succeeded.
//! NVMe Base 2.0c 5.8, annex B.5. On the hot path.

use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::{Access, GuestMemory, HostSlice, MemRange, RegionTable};
use ipc::iova::Iova;
use std::sync::atomic::Ordering;

/// Bytes of the shadow buffer and of the EventIdx buffer: a page of the smallest size holds all doorbells.
const BUFFER: u32 = 4096;

/// The two buffers of Doorbell Buffer Config.
#[derive(Clone, Copy, Debug)]
pub struct Shadow {
    /// Guest address of the shadow doorbells.
    pub doorbells: Iova,
    /// Guest address of the event indexes.
    pub event_indexes: Iova,
    resolved: Option<[MemRange; 2]>,
}

impl Shadow {
    /// Buffers at these guest addresses.
    pub fn new(doorbells: Iova, event_indexes: Iova) -> Self {
        Self { doorbells, event_indexes, resolved: None }
    }

    /// Finds the memory anew before its next use: a range of guest memory was unmapped.
    pub fn forget(&mut self) {
        self.resolved = None;
    }

    /// Finds the memory, if that has not happened. False if it is not there.
    #[inline]
    pub fn resolve(&mut self, memory: &GuestMemory) -> bool {
        if self.resolved.is_none() {
            let find = |iova| {
                let mut found = None;
                let mut count = 0;
                memory
                    .translate(iova, BUFFER, Access::READ_WRITE, &mut |range| {
                        found = Some(range);
                        count += 1;
                    })
                    .ok()?;
                found.filter(|_| count == 1)
            };
            self.resolved = find(self.doorbells).zip(find(self.event_indexes)).map(<[_; 2]>::from);
        }
        self.resolved.is_some()
    }

    fn slice<'a>(&self, regions: &'a RegionTable, buffer: usize) -> Option<HostSlice<'a>> {
        regions.host(self.resolved?[buffer], Access::READ_WRITE)
    }
}

/// Doorbells as they can be read now.
#[derive(Clone, Copy)]
pub struct Doorbells<'a> {
    page: &'a DoorbellPage,
    shadow: Option<HostSlice<'a>>,
}

impl<'a> Doorbells<'a> {
    /// The page, or the shadow buffer if there is one and it was found.
    #[inline]
    pub fn new(page: &'a DoorbellPage, shadow: Option<&Shadow>, regions: &'a RegionTable) -> Self {
        Self { page, shadow: shadow.and_then(|shadow| shadow.slice(regions, 0)) }
    }

    /// Tail of a submission queue.
    #[inline]
    pub fn tail(&self, qid: usize) -> u32 {
        self.load(2 * qid)
    }

    /// Head of a completion queue.
    #[inline]
    pub fn head(&self, qid: usize) -> u32 {
        self.load(2 * qid + 1)
    }

    #[inline]
    fn load(&self, index: usize) -> u32 {
        match &self.shadow {
            None => self.page.load(index),
            // Acquire: pairs with the guest's store, which follows its writes of the entries.
            Some(shadow) => shadow.load_u32(index * 4, Ordering::Acquire).unwrap_or(0),
        }
    }
}

/// Asks the guest to ring when a doorbell passes `value`: stores the event index. A full fence and another look at the
/// doorbell follow before anybody sleeps on it.
pub fn store_event_index(shadow: &Shadow, regions: &RegionTable, index: usize, value: u32) {
    if let Some(buffer) = shadow.slice(regions, 1) {
        // Release: orders nothing by itself; the caller's full fence does.
        buffer.store_u32(index * 4, value, Ordering::Release);
    }
}
