//! What a server tells of its device.

use bitfield_struct::bitfield;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::irq::{Irq, IrqIndex, IrqInfoFlags, NUM_PCI_IRQS};
use crate::region::{NUM_PCI_REGIONS, Region, RegionIndex};

/// What a device is (`VFIO_DEVICE_FLAGS_*`).
#[bitfield(u32)]
#[derive(PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceFlags {
    /// DEVICE_RESET is served.
    pub reset: bool,
    /// It is a PCI function.
    pub pci: bool,
    #[bits(30)]
    __: u32,
}

/// A PCI function's regions and interrupts.
#[derive(Debug, Clone)]
pub struct DeviceDescription {
    /// What the device is.
    pub flags: DeviceFlags,
    /// Its regions, by index.
    pub regions: Vec<Region>,
    /// Its interrupt types, by index.
    pub irqs: Vec<Irq>,
}

impl DeviceDescription {
    /// A PCI function with configuration space (region 7) of `config_size` bytes, no BAR yet, no
    /// INTx and no MSI; `vectors` MSI-X vectors, set up as one set; one REQ; and ERR answered
    /// with a count of 0, since a client stops its machine when a counted one fires.
    #[must_use]
    pub fn pci(config_size: u64, vectors: u32) -> Self {
        let mut regions = vec![Region::default(); NUM_PCI_REGIONS];
        regions[RegionIndex::CONFIG.position()] = Region::read_write(config_size);
        let eventfd = IrqInfoFlags::new().with_eventfd(true);
        let mut irqs = vec![Irq::default(); NUM_PCI_IRQS];
        irqs[IrqIndex::MSIX.position()] =
            Irq { count: vectors, flags: eventfd.with_noresize(true) };
        irqs[IrqIndex::REQ.position()] = Irq { count: 1, flags: eventfd };
        Self { flags: DeviceFlags::new().with_reset(true).with_pci(true), regions, irqs }
    }

    /// The same device with `region` at `index`.
    ///
    /// # Panics
    /// If the index is not one of a PCI device's nine.
    #[must_use]
    pub fn with_region(mut self, index: RegionIndex, region: Region) -> Self {
        self.regions[index.position()] = region;
        self
    }

    /// The region at `index`; one of size 0 where there is none.
    #[must_use]
    pub fn region(&self, index: RegionIndex) -> Region {
        self.regions.get(index.position()).cloned().unwrap_or_default()
    }
}
