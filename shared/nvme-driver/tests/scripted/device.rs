//! The vfio-user device: configuration space, registers, DMA mappings.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::{Region as MemoryRegion, RegionPolicy};
use vfio_user::Errno;
use vfio_user::dma::{DmaMap, DmaUnmap};
use vfio_user::irq::{IrqIndex, IrqRequest};
use vfio_user::message::SparseMmapArea;
use vfio_user::pci::config::{CLASS_NVME, ConfigSpace, Profile};
use vfio_user::region::{Region, RegionIndex, RegionMapping};
use vfio_user::server::{Act, Device, DeviceDescription};

use super::Engine;
use super::commands::Mapping;

const BAR0_SIZE: u64 = 0x4000;
const VECTORS: u32 = 16;

pub struct ScriptedDevice {
    engine: Arc<Mutex<Engine>>,
    config: ConfigSpace,
}

pub fn description(page: &DoorbellPage, mapped: bool) -> DeviceDescription {
    let mut bar0 = Region::read_write(BAR0_SIZE);
    if mapped {
        let areas = vec![SparseMmapArea { offset: 0x1000, size: 0x1000 }];
        let fd: Arc<OwnedFd> = Arc::new(page.client_fd().unwrap());
        bar0 = bar0.with_mapping(RegionMapping { fd, offset: 0, areas });
    }
    DeviceDescription::pci(4096, VECTORS).with_region(RegionIndex::BAR0, bar0)
}

impl ScriptedDevice {
    pub fn new(engine: Arc<Mutex<Engine>>) -> Self {
        let profile = Profile {
            vendor_id: 0x1b36,
            device_id: 0x0010,
            subsystem_vendor_id: 0x1af4,
            subsystem_id: 0x1100,
            revision_id: 0,
            class_code: CLASS_NVME,
            bar0_size: BAR0_SIZE,
            msix_vectors: VECTORS as u16,
            serial_number: None,
            advanced_error_reporting: false,
        };
        Self { engine, config: ConfigSpace::new(&profile).unwrap() }
    }
}

impl Device for ScriptedDevice {
    fn dma_map(&mut self, map: DmaMap) -> Result<Act, Errno> {
        let fd = map.fd.ok_or(Errno::EINVAL)?;
        let region = MemoryRegion::map(fd, map.offset + map.size, &RegionPolicy::default());
        let region = region.map_err(|_| Errno::EINVAL)?;
        let mapping = Mapping { iova: map.iova.0, size: map.size, offset: map.offset, region };
        self.engine.lock().unwrap().mappings.push(mapping);
        Ok(Act::Completed)
    }

    fn dma_unmap(&mut self, unmap: DmaUnmap) -> Result<Act, Errno> {
        let mut engine = self.engine.lock().unwrap();
        match unmap {
            DmaUnmap::All => engine.mappings.clear(),
            DmaUnmap::Exact { iova, size } => {
                engine.mappings.retain(|mapping| mapping.iova != iova.0 || mapping.size != size)
            }
        }
        Ok(Act::Completed)
    }

    fn region_read(
        &mut self,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        match region {
            RegionIndex::CONFIG => self.config.read(offset, data),
            RegionIndex::BAR0 => {
                let mut engine = self.engine.lock().unwrap();
                // Whoever was held up for long sees what came meanwhile.
                engine.settle();
                engine.read_register(offset, data);
            }
            _ => data.fill(0),
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
            RegionIndex::CONFIG => drop(self.config.write(offset, data)),
            RegionIndex::BAR0 => self.engine.lock().unwrap().write_register(offset, data),
            _ => {}
        }
        Ok(Act::Completed)
    }

    fn set_irqs(&mut self, request: IrqRequest) -> Result<Act, Errno> {
        if request.irq() == IrqIndex::MSIX {
            self.engine.lock().unwrap().vectors.apply(request);
        }
        Ok(Act::Completed)
    }

    fn reset(&mut self) -> Result<Act, Errno> {
        self.engine.lock().unwrap().disable();
        Ok(Act::Completed)
    }
}
