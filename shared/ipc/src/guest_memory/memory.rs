//! From guest addresses to memory. On the hot path.

use super::{Access, HostSlice, MemRange, RegionId, RegionTable};
use crate::dma_table::DmaRow;
use crate::iova::Iova;
use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Entries of each third of the cache.
const ENTRIES: usize = 256;
/// Granules of the thirds, as shifts: a row is cached in the third whose granule it fills at least.
const SHIFTS: [u32; 3] = [30, 12, 21];

/// Why a guest address was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dma to {iova}: {kind}")]
pub struct DmaFault {
    /// The first address that failed.
    pub iova: Iova,
    /// Why.
    pub kind: DmaFaultKind,
}

/// Kinds of [`DmaFault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaFaultKind {
    /// No row covers the address, or the range wraps around.
    #[error("not mapped")]
    Unmapped,
    /// The row, or the descriptor behind it, does not allow the access.
    #[error("access not allowed")]
    Access,
    /// The row has no memory behind it.
    #[error("no memory behind the mapping")]
    NoMemory,
    /// This process has not been given the region (yet), or the row goes past its end.
    #[error("region not at hand")]
    RegionMissing,
    /// The table is being changed ([`crate::dma_table::Busy`]): to be tried again later.
    #[error("table is being changed")]
    Busy,
}

/// Translates a controller's guest addresses in one process.
///
/// It caches whole rows, direct-mapped by page, by 2 MiB and by 1 GiB. Only rows that exist are cached, so a new row
/// is seen at once; [`GuestMemory::refresh`] drops the cache when a row was removed. Whoever owns one of these calls
/// that before each batch of work, and acknowledges the version it returned when what was translated before is done.
pub struct GuestMemory {
    segment: Arc<Segment<ControllerLayout>>,
    regions: RegionTable,
    cache: Box<[[Entry; ENTRIES]; SHIFTS.len()]>,
    dma_version: u64,
}

// SAFETY: the pointers in the cache lead into regions that `regions` holds; nothing in it belongs to a thread. (Not
// Sync: the cache is filled through &self.)
unsafe impl Send for GuestMemory {}

/// A cached row; size 0 for none. A cache line.
#[repr(align(64))]
struct Entry {
    start: Cell<u64>,
    size: Cell<u64>,
    base: Cell<NonNull<u8>>,
    offset: Cell<u64>,
    region: Cell<RegionId>,
    access: Cell<Access>,
}

/// A row, or its rest, that is at hand.
#[derive(Clone, Copy)]
struct Hit {
    base: NonNull<u8>,
    /// Bytes from the address to the end of the row.
    rest: u64,
    region: RegionId,
    offset: u64,
}

impl GuestMemory {
    /// For the controller of `segment`, without any region yet.
    pub fn new(segment: Arc<Segment<ControllerLayout>>) -> Self {
        let dma_version = segment.signals.dma_version.load(Ordering::Acquire);
        let cache = Box::new(std::array::from_fn(|_| std::array::from_fn(|_| Entry::empty())));
        Self { segment, regions: RegionTable::new(), cache, dma_version }
    }

    /// The controller segment.
    pub fn segment(&self) -> &Arc<Segment<ControllerLayout>> {
        &self.segment
    }

    /// The regions.
    pub fn regions(&self) -> &RegionTable {
        &self.regions
    }

    /// The regions, to be changed. Drops the cache.
    pub fn regions_mut(&mut self) -> &mut RegionTable {
        self.flush();
        &mut self.regions
    }

    /// Drops the cache if rows were removed since the last call. Returns the `dma_version` that every translation from
    /// now on heeds. One load if nothing happened.
    #[inline]
    pub fn refresh(&mut self) -> u64 {
        // Acquire: pairs with the Release of `DmaWriter`; rows that were removed are not found any more.
        let version = self.segment.signals.dma_version.load(Ordering::Acquire);
        if version != self.dma_version {
            self.flush();
            self.dma_version = version;
        }
        version
    }

    /// The memory at `iova` if the whole range lies in one row and may be accessed so. The fast path; where it yields
    /// nothing, [`Self::translate`] tells why or finds the pieces.
    #[inline]
    pub fn host(&self, iova: Iova, len: u32, access: Access) -> Option<HostSlice<'_>> {
        let hit = self.find(iova, access).ok()?;
        if u64::from(len) > hit.rest {
            return None;
        }
        // SAFETY: base to base + rest lies within a region that self holds (checked in `fill`), mapped with at least
        // this access; `regions_mut`, the only way to drop one, borrows self exclusively.
        Some(unsafe { HostSlice::new(hit.base, len as usize, access.contains(Access::WRITE)) })
    }

    /// The range at `iova` if all of it lies in one row and may be accessed so: [`Self::translate`] for what is nearly
    /// always the case. A range of no bytes is `None`.
    #[inline(always)]
    pub fn range(&self, iova: Iova, len: u32, access: Access) -> Option<MemRange> {
        for (third, shift) in SHIFTS.into_iter().enumerate() {
            let entry = &self.cache[third][slot(iova, shift)];
            let within = iova.0.wrapping_sub(entry.start.get());
            if within < entry.size.get() && entry.access.get().contains(access) {
                let fits = len > 0 && u64::from(len) <= entry.size.get() - within;
                let (region, offset) = (entry.region.get(), entry.offset.get() + within);
                return fits.then_some(MemRange { region, len, offset });
            }
        }
        None
    }

    /// Translates a range: calls `push` with its pieces in order, neighbours in memory merged into one.
    ///
    /// At most `len` pieces. On an error some pieces may have been pushed already; they are to be dropped.
    ///
    /// # Errors
    /// A [`DmaFault`] at the first address that cannot be accessed so.
    #[inline]
    pub fn translate(
        &self,
        iova: Iova,
        len: u32,
        access: Access,
        push: &mut impl FnMut(MemRange),
    ) -> Result<(), DmaFault> {
        let mut left = len;
        let mut at = iova;
        let mut pending: Option<MemRange> = None;
        while left > 0 {
            let hit = self.find(at, access)?;
            let piece = u64::from(left).min(hit.rest) as u32;
            let range = MemRange { region: hit.region, len: piece, offset: hit.offset };
            pending = match pending {
                Some(before) => before.merged(range).or_else(|| {
                    push(before);
                    Some(range)
                }),
                None => Some(range),
            };
            left -= piece;
            if left > 0 {
                let unmapped = DmaFault { iova: at, kind: DmaFaultKind::Unmapped };
                at = at.checked_add(u64::from(piece)).ok_or(unmapped)?;
            }
        }
        pending.into_iter().for_each(push);
        Ok(())
    }

    /// Copies guest memory into `to`.
    ///
    /// # Errors
    /// As [`Self::translate`]; what was copied before is then in `to`.
    pub fn read(&self, iova: Iova, to: &mut [u8]) -> Result<(), DmaFault> {
        self.pieces(iova, to.len(), Access::READ, |slice, at| {
            slice.copy_to(&mut to[at..]);
        })
    }

    /// Copies `from` into guest memory.
    ///
    /// # Errors
    /// As [`Self::translate`]; what was copied before is then in guest memory.
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaFault> {
        self.pieces(iova, from.len(), Access::WRITE, |slice, at| {
            slice.copy_from(&from[at..]);
        })
    }

    /// Whether a region has faulted; see [`RegionTable::failed`].
    #[inline]
    pub fn failed(&self) -> bool {
        self.regions.failed()
    }

    fn pieces(
        &self,
        iova: Iova,
        len: usize,
        access: Access,
        mut each: impl FnMut(HostSlice<'_>, usize),
    ) -> Result<(), DmaFault> {
        let mut done = 0;
        while done < len {
            let unmapped = DmaFault { iova, kind: DmaFaultKind::Unmapped };
            let at = iova.checked_add(done as u64).ok_or(unmapped)?;
            let hit = self.find(at, access)?;
            let piece = (len - done).min(usize::try_from(hit.rest).unwrap_or(usize::MAX));
            // SAFETY: as in `host`: piece <= rest.
            let slice = unsafe { HostSlice::new(hit.base, piece, access.contains(Access::WRITE)) };
            each(slice, done);
            done += piece;
        }
        Ok(())
    }

    /// The row at `iova`, from the cache or the table.
    #[inline(always)]
    fn find(&self, iova: Iova, access: Access) -> Result<Hit, DmaFault> {
        for (third, shift) in SHIFTS.into_iter().enumerate() {
            let entry = &self.cache[third][slot(iova, shift)];
            let within = iova.0.wrapping_sub(entry.start.get());
            if within < entry.size.get() && entry.access.get().contains(access) {
                // SAFETY: within < size, and base to base + size lies in a mapped region (checked in `fill`).
                let base = unsafe { entry.base.get().add(within as usize) };
                let (region, offset) = (entry.region.get(), entry.offset.get() + within);
                return Ok(Hit { base, rest: entry.size.get() - within, region, offset });
            }
        }
        self.fill(iova, access)
    }

    /// Looks the row up and caches it.
    #[cold]
    #[inline(never)]
    fn fill(&self, iova: Iova, access: Access) -> Result<Hit, DmaFault> {
        let fault = |kind| DmaFault { iova, kind };
        let found = self.segment.dma.lookup(iova).map_err(|_| fault(DmaFaultKind::Busy))?;
        let row: DmaRow = found.ok_or(fault(DmaFaultKind::Unmapped))?;
        if !row.access.contains(access) {
            return Err(fault(DmaFaultKind::Access));
        }
        let id = row.region.ok_or(fault(DmaFaultKind::NoMemory))?;
        let region = self.regions.get(id).ok_or(fault(DmaFaultKind::RegionMissing))?;
        if !region.access().contains(access) {
            return Err(fault(DmaFaultKind::Access));
        }
        let within = iova.0.wrapping_sub(row.iova.0);
        let fits = row.offset <= region.len() && row.size <= region.len() - row.offset;
        if !fits || within >= row.size {
            return Err(fault(DmaFaultKind::RegionMissing));
        }
        // SAFETY: offset + size <= region.len(), checked above; the region stays while the entry does, because
        // `regions_mut` drops the cache.
        let base = unsafe { region.base().add(row.offset as usize) };
        let third = match row.size {
            size if size >= 1 << SHIFTS[0] => 0,
            size if size >= 1 << SHIFTS[2] => 2,
            _ => 1,
        };
        let entry = &self.cache[third][slot(iova, SHIFTS[third])];
        entry.start.set(row.iova.0);
        entry.size.set(row.size);
        entry.base.set(base);
        entry.offset.set(row.offset);
        entry.region.set(id);
        entry.access.set(Access::from_bits(row.access.bits() & region.access().bits()));
        // SAFETY: within < row.size, checked above.
        let base = unsafe { base.add(within as usize) };
        Ok(Hit { base, rest: row.size - within, region: id, offset: row.offset + within })
    }

    fn flush(&mut self) {
        self.cache.iter().flatten().for_each(|entry| entry.size.set(0));
    }
}

impl Entry {
    fn empty() -> Self {
        Self {
            start: Cell::new(0),
            size: Cell::new(0),
            base: Cell::new(NonNull::dangling()),
            offset: Cell::new(0),
            region: Cell::default(),
            access: Cell::default(),
        }
    }
}

/// Where in its third an address is cached. Higher bits are mixed in, so that buffers at equal places of different
/// large areas do not share an entry.
#[inline(always)]
fn slot(iova: Iova, shift: u32) -> usize {
    let granule = iova.0 >> shift;
    (granule ^ granule >> 8) as usize % ENTRIES
}
