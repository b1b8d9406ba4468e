//! The function as a vfio-user session sees it.

use super::{BAR0_SIZE, DOORBELL_PAGE, DOORBELLS, Function, FunctionError, Pending};
use std::sync::Arc;
use vfio_user::Errno;
use vfio_user::dma::{DmaMap, DmaUnmap};
use vfio_user::irq::IrqRequest;
use vfio_user::message::SparseMmapArea;
use vfio_user::pci::config::{CONFIG_SIZE, ConfigEffect, MSIX_BAR_SIZE};
use vfio_user::region::{Region, RegionIndex, RegionMapping};
use vfio_user::server::{Act, Device, DeviceDescription};

impl Function {
    /// What a client is told of the function. The doorbell page can be mapped, where the configuration says so; its
    /// descriptor is that of the page alone, so a client reaches no other memory of ours.
    pub(super) fn describe(&self) -> Result<DeviceDescription, FunctionError> {
        let mut bar0 = Region::read_write(BAR0_SIZE);
        if self.controller.config().doorbells_mapped {
            bar0 = bar0.with_mapping(RegionMapping {
                fd: Arc::new(self.doorbells.client_fd()?),
                // A client maps at this offset plus the area's: the page is the descriptor's second.
                offset: 0,
                areas: vec![SparseMmapArea { offset: DOORBELLS, size: DOORBELL_PAGE }],
            });
        }
        let vectors = u32::from(self.controller.config().vectors);
        Ok(DeviceDescription::pci(CONFIG_SIZE as u64, vectors)
            .with_region(RegionIndex::BAR0, bar0)
            .with_region(RegionIndex::BAR4, Region::read_write(MSIX_BAR_SIZE))
            .with_region(RegionIndex::BAR5, Region::read_write(MSIX_BAR_SIZE)))
    }

    /// The act is done if what it waits for is, else it is deferred.
    pub(super) fn wait(&mut self, pending: Pending) -> Result<Act, Errno> {
        self.pending = Some(pending);
        match self.poll(self.now) {
            Some(result) => result.map(|()| Act::Completed),
            None => Ok(Act::Deferred),
        }
    }

    fn read_bar0(&mut self, offset: u64, data: &mut [u8]) {
        match offset {
            0..DOORBELLS => {
                self.controller.read_register(offset, data);
            }
            // Doorbells are write only; reads give zeroes, as past the page.
            _ => data.fill(0),
        }
    }

    fn write_bar0(&mut self, offset: u64, data: &[u8]) {
        if offset < DOORBELLS {
            self.with_controller(|controller, cx| controller.write_register(offset, data, cx));
        } else if offset < DOORBELLS + DOORBELL_PAGE {
            self.with_controller(|controller, cx| {
                controller.doorbell_written(offset, data, cx);
                controller.process_admin(cx);
            });
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Result<Act, Errno> {
        let effects = self.config.write(offset, data);
        if effects.contains(ConfigEffect::FunctionLevelReset) {
            self.reset()
        } else if effects.contains(ConfigEffect::BusMaster(true)) {
            self.let_master();
            Ok(Act::Completed)
        } else if effects.contains(ConfigEffect::BusMaster(false)) {
            self.stop_master()
        } else {
            Ok(Act::Completed)
        }
    }
}

impl Device for Function {
    fn dma_map(&mut self, map: DmaMap) -> Result<Act, Errno> {
        self.map(map)
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Act, Errno> {
        self.unmap(unmap)
    }

    fn region_read(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        match region {
            RegionIndex::BAR0 => self.read_bar0(offset, data),
            RegionIndex::BAR4 => self.msix.read_table(offset, data),
            RegionIndex::BAR5 => self.msix.read_pending(offset, data),
            RegionIndex::CONFIG => self.config.read(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<Act, Errno> {
        match region {
            RegionIndex::BAR0 => self.write_bar0(offset, data),
            RegionIndex::BAR4 => drop(self.msix.write_table(offset, data)),
            // Pending bits are read only.
            RegionIndex::BAR5 => {}
            RegionIndex::CONFIG => return self.write_config(offset, data),
            _ => return Err(Errno::EINVAL),
        }
        Ok(Act::Completed)
    }

    fn set_irqs(&mut self, request: IrqRequest) -> Result<Act, Errno> {
        self.set_interrupts(request)
    }

    fn reset(&mut self) -> Result<Act, Errno> {
        self.with_controller(|controller, cx| controller.reset(nvme::ResetKind::Function, cx));
        self.wait(Pending::Reset)
    }
}
