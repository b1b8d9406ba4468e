//! The client's memory: rows of the DMA table, and the regions behind them.

use super::{Function, Pending};
use ipc::dma_table::{Access, DmaError, DmaRow, Mapped};
use ipc::guest_memory::{Region, RegionId, RegionKey, RegionPolicy};
use nvme::range_list::BIT_BUCKET;
use std::os::fd::{AsFd, OwnedFd};
use vfio_user::Errno;
use vfio_user::dma::{DmaMap, DmaUnmap};
use vfio_user::server::Act;

/// Most bytes of one client's memory objects. Each is mapped whole, sparse or not, by every process that serves the
/// client, beside those of all its other clients, in an address space of 128 TiB: 4 TiB is more memory than a machine of
/// today gets, and leaves room for 31 more clients that all ask for as much as they can.
pub const MAX_MEMORY: u64 = 4 << 40;

impl Function {
    /// Takes over a mapping. A client that maps memory anew waits until the workers have it, so that the first command
    /// that names it finds it.
    pub(super) fn map(&mut self, map: DmaMap) -> Result<Act, Errno> {
        let DmaMap { iova, size, offset, access, fd } = map;
        // What may be written may be read: memory has no other kind of page.
        let wanted = match (access.read(), access.write()) {
            (_, true) => Access::READ_WRITE,
            (true, false) => Access::READ,
            (false, false) => Access::NONE,
        };
        let (region, access) = match fd {
            Some(fd) => {
                let id = self.region(fd, offset + size)?;
                let allowed = self.memory.regions().get(id).map_or(Access::NONE, |r| r.access());
                (Some(id), Access::from_bits(wanted.bits() & allowed.bits()))
            }
            None => (None, Access::NONE),
        };
        let row = DmaRow { iova: ipc::Iova(iova.0), size, region, offset, access };
        match self.dma.map(row) {
            Ok(Mapped::New | Mapped::Already) => {}
            Err(error) => {
                self.complain("dma map", &error);
                self.drop_unused_regions();
                return Err(errno(&error));
            }
        }
        self.wait(Pending::Handed(self.wanted.number))
    }

    /// Clears rows; complete when no worker touches them any more.
    pub(super) fn unmap(&mut self, unmap: DmaUnmap) -> Result<Act, Errno> {
        let version = match unmap {
            DmaUnmap::All => self.dma.unmap_all(),
            DmaUnmap::Exact { iova, size } => {
                let iova = ipc::Iova(iova.0);
                self.dma.unmap(iova, size).or_else(|_| self.dma.unmap_range(iova, size)).map_err(
                    |error| {
                        self.complain("dma unmap", &error);
                        errno(&error)
                    },
                )?
            }
        };
        self.effects.push(nvme::Effect::KickWorkers);
        self.wait(Pending::Unmapped(version))
    }

    /// After an unmap is complete: regions without a row go, here and in the workers.
    pub(super) fn drop_unused_regions(&mut self) {
        let unused: Vec<RegionId> = self
            .wanted
            .regions
            .keys()
            .copied()
            .filter(|&region| self.dma.rows_in(region) == 0)
            .collect();
        for region in &unused {
            self.memory.regions_mut().remove(*region);
            self.wanted.regions.remove(region);
        }
        if !unused.is_empty() {
            self.wanted.number += 1;
        }
    }

    /// The region of a descriptor: the one that maps the same memory already, or a new one.
    fn region(&mut self, fd: OwnedFd, needed: u64) -> Result<RegionId, Errno> {
        let refused = |error: &dyn std::fmt::Display| {
            self.complain("dma map", error);
            Errno::EINVAL
        };
        self.policy.check(fd.as_fd()).map_err(|error| refused(&error))?;
        let key = RegionKey::of(fd.as_fd()).map_err(|error| refused(&error))?;
        let regions = self.memory.regions();
        // An object that has grown since it was mapped is there a second time.
        let fits = |region: &Region| region.key() == key && region.len() >= needed;
        if let Some((id, _)) = regions.iter().find(|(_, region)| fits(region)) {
            return Ok(id);
        }
        // The last id is the workers' bit bucket, which they would not give up.
        let id = regions.free_id().filter(|&id| id != BIT_BUCKET).ok_or(Errno::ENOSPC)?;
        let held: u64 = regions.iter().map(|(_, region)| region.len()).sum();
        let policy = RegionPolicy { max_size: MAX_MEMORY.saturating_sub(held), ..self.policy };
        let region = Region::map(fd, needed, &policy).map_err(|error| refused(&error))?;
        if let Err(error) = region.prefault() {
            tracing::debug!(endpoint = self.name, %error, "client memory not prefaulted");
        }
        self.memory
            .regions_mut()
            .insert(id, std::sync::Arc::clone(&region))
            .map_err(|_| Errno::ENOSPC)?;
        self.wanted.regions.insert(id, region);
        self.wanted.number += 1;
        Ok(id)
    }
}

fn errno(error: &DmaError) -> Errno {
    match error {
        DmaError::Overlap { .. } => Errno::EEXIST,
        DmaError::NotMapped { .. } => Errno::ENOENT,
        DmaError::Full => Errno::ENOSPC,
        DmaError::Invalid { .. } | DmaError::Partial { .. } | DmaError::Corrupt { .. } => {
            Errno::EINVAL
        }
    }
}
