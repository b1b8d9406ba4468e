//! A controller's regions in one process.

use super::{Access, HostSlice, MemRange, Region, RegionId, RegionKey};
use crate::layout::MAX_REGIONS;
use crate::sigbus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Regions by id. Ids are given out by the frontend and arrive by handoff in the other processes.
#[derive(Debug)]
pub struct RegionTable {
    regions: Box<[Option<Arc<Region>>]>,
    /// Faults of the process that were looked at.
    faults_seen: AtomicU64,
    failed: AtomicBool,
}

impl Default for RegionTable {
    fn default() -> Self {
        Self::new()
    }
}

impl RegionTable {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            regions: (0..MAX_REGIONS).map(|_| None).collect(),
            faults_seen: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }
    }

    /// The region of an id, whatever the number.
    #[inline]
    pub fn get(&self, id: RegionId) -> Option<&Arc<Region>> {
        self.regions.get(id.0 as usize)?.as_ref()
    }

    /// Puts a region under `id`; returns the one that was there, or the new one if there is no such id.
    ///
    /// # Errors
    /// The region comes back if `id` is not below [`MAX_REGIONS`].
    pub fn insert(
        &mut self,
        id: RegionId,
        region: Arc<Region>,
    ) -> Result<Option<Arc<Region>>, Arc<Region>> {
        match self.regions.get_mut(id.0 as usize) {
            Some(place) => {
                self.faults_seen.store(u64::MAX, Ordering::Relaxed);
                Ok(place.replace(region))
            }
            None => Err(region),
        }
    }

    /// Takes a region out.
    pub fn remove(&mut self, id: RegionId) -> Option<Arc<Region>> {
        self.regions.get_mut(id.0 as usize)?.take()
    }

    /// Takes all regions out, and forgets that one failed.
    pub fn clear(&mut self) {
        self.regions.iter_mut().for_each(|region| *region = None);
        self.failed.store(false, Ordering::Relaxed);
    }

    /// The region that maps the same memory with the same access.
    pub fn find(&self, key: &RegionKey) -> Option<RegionId> {
        self.iter().find(|(_, region)| region.key() == *key).map(|(id, _)| id)
    }

    /// The lowest id that is free.
    pub fn free_id(&self) -> Option<RegionId> {
        self.regions.iter().position(Option::is_none).map(|id| RegionId(id as u32))
    }

    /// All regions.
    pub fn iter(&self) -> impl Iterator<Item = (RegionId, &Arc<Region>)> {
        let regions = self.regions.iter().enumerate();
        regions.filter_map(|(id, region)| Some((RegionId(id as u32), region.as_ref()?)))
    }

    /// The memory that `range` names, for this access; `None` if any field of it is wrong or the access not allowed.
    #[inline]
    pub fn host(&self, range: MemRange, access: Access) -> Option<HostSlice<'_>> {
        self.get(range.region)?.slice(range.offset, range.len as usize, access)
    }

    /// Whether a region of this table has faulted since it was put in. One load unless some region of the process has
    /// faulted anew; to be asked after copies and before a completion is posted.
    #[inline]
    pub fn failed(&self) -> bool {
        let faults = sigbus::faults();
        if self.faults_seen.load(Ordering::Relaxed) != faults {
            self.look_for_failed(faults);
        }
        self.failed.load(Ordering::Relaxed)
    }

    #[cold]
    fn look_for_failed(&self, faults: u64) {
        if self.iter().any(|(_, region)| region.failed()) {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.faults_seen.store(faults, Ordering::Relaxed);
    }
}
