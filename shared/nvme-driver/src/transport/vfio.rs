//! A controller that is a PCI function bound to vfio-pci: a physical drive, or an emulated one in a virtual machine.
//!
//! Memory is mapped by the IOMMU through `VfioOps`: VFIO's type 1 container today; an iommufd address space is another
//! implementation of the same trait. Each controller has an address space of its own.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipc::event::EventFd;
use ipc::guest_memory::Region;
use nvme_spec::register::offset::{CSTS, DOORBELLS};
use vfio_bindings::bindings::vfio::{
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_BAR0_REGION_INDEX,
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps, VfioRegionInfoCap};

use self::one_vector::{OneVector, set_irqs};
use super::{DoorbellCost, Transport, TransportError};
use crate::address::PciAddress;
use crate::doorbell::{Doorbell, DoorbellArea, DoorbellMemory, Window};
use crate::error::ConnectError;
use crate::memory::PAGE_SIZE;

/// Class code of an NVMe I/O controller, as sysfs writes it.
const CLASS_NVME: &str = "0x010802";
/// Command register, and memory space and bus master enable in it.
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// The container's device node.
const CONTAINER: &str = "/dev/vfio/vfio";
/// Most bytes of doorbells that are mapped: those of 4096 queue pairs at CAP.DSTRD 0.
const DOORBELL_BYTES_MAX: u64 = 32 << 10;

/// A PCI function under VFIO.
pub struct Vfio {
    device: VfioDevice,
    space: Arc<dyn VfioOps>,
    /// What the address space holds: first address and length.
    mapped: Mutex<Vec<(u64, usize)>>,
    doorbells: Option<Arc<Window>>,
    /// Signalled when the kernel wants the device back: it is being removed or unbound.
    removal: Option<EventFd>,
    removed: AtomicBool,
    severed: AtomicBool,
    address: PciAddress,
}

impl Vfio {
    /// Opens the function. The outer error says what to do; the inner one is a failure of VFIO itself.
    ///
    /// # Errors
    /// [`ConnectError`], and [`TransportError`].
    pub fn open(address: PciAddress) -> Result<Result<Self, TransportError>, ConnectError> {
        let sysfs = PathBuf::from(format!("/sys/bus/pci/devices/{address}"));
        check_binding(address, &sysfs)?;
        Ok(Self::open_bound(address, &sysfs))
    }

    fn open_bound(address: PciAddress, sysfs: &Path) -> Result<Self, TransportError> {
        let class = fs::read_to_string(sysfs.join("class")).unwrap_or_default();
        if class.trim() != CLASS_NVME {
            let found = format!("class code {}", class.trim());
            return Err(TransportError::Unfit { found, needed: CLASS_NVME });
        }
        let failed = |call| move |source| TransportError::Vfio { call, source };
        let container = VfioContainer::new(None).map_err(failed("container"))?;
        let space: Arc<dyn VfioOps> = Arc::new(container);
        let device =
            VfioDevice::new(sysfs, Arc::clone(&space), false).map_err(failed("open device"))?;
        let size = device.get_region_size(VFIO_PCI_BAR0_REGION_INDEX);
        if size <= DOORBELLS {
            let found = format!("a BAR0 of {size:#x} bytes");
            return Err(TransportError::Unfit { found, needed: "more than 0x1000" });
        }
        let doorbells = map_doorbells(&device, size).map(Arc::new);
        let mut vfio = Self {
            device,
            space,
            mapped: Mutex::default(),
            doorbells,
            removal: None,
            removed: AtomicBool::new(false),
            severed: AtomicBool::new(false),
            address,
        };
        vfio.set_command(COMMAND_MEMORY | COMMAND_BUS_MASTER, true);
        vfio.removal = vfio.watch_removal();
        Ok(vfio)
    }

    /// Asks the kernel to say when it wants the device back. Kernels that cannot say so are found out by their registers.
    fn watch_removal(&self) -> Option<EventFd> {
        let count = self.device.get_irq_info(VFIO_PCI_REQ_IRQ_INDEX)?.count;
        let event = EventFd::create().ok().filter(|_| count > 0)?;
        let vmm = foreign(&event).ok()?;
        self.device.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&vmm]).ok()?;
        Some(event)
    }

    fn set_command(&self, bits: u16, on: bool) {
        let mut command = [0; 2];
        self.device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut command, COMMAND);
        let old = u16::from_le_bytes(command);
        let new = if on { old | bits } else { old & !bits };
        self.device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &new.to_le_bytes(), COMMAND);
    }

    fn usable(&self) -> Result<(), TransportError> {
        if self.severed.load(Ordering::Acquire) { Err(TransportError::Gone) } else { Ok(()) }
    }

    /// Reads of a device that is gone give ones, and so does a read that fails.
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], TransportError> {
        self.usable()?;
        let mut bytes = [0xFF; N];
        self.device.region_read(VFIO_PCI_BAR0_REGION_INDEX, &mut bytes, offset);
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), TransportError> {
        self.usable()?;
        self.device.region_write(VFIO_PCI_BAR0_REGION_INDEX, bytes, offset);
        Ok(())
    }
}

/// Whether the function is there, bound to vfio-pci, and may be opened.
fn check_binding(address: PciAddress, sysfs: &Path) -> Result<(), ConnectError> {
    if !sysfs.exists() {
        return Err(ConnectError::NoDevice { address });
    }
    let name = |link: &str| {
        let target = fs::read_link(sysfs.join(link)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    let driver = name("driver").unwrap_or_else(|| "no driver".to_owned());
    if !driver.contains("vfio") {
        return Err(ConnectError::NotBound { address, driver });
    }
    let group = name("iommu_group").ok_or(ConnectError::NoIommu { address })?;
    for path in [PathBuf::from(CONTAINER), Path::new("/dev/vfio").join(group)] {
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        match opened.map_err(|error| error.kind()) {
            Ok(_) => {}
            Err(ErrorKind::NotFound) => return Err(ConnectError::NoVfio { path }),
            Err(ErrorKind::ResourceBusy) => return Err(ConnectError::GroupBusy { path }),
            Err(ErrorKind::PermissionDenied) => return Err(ConnectError::GroupPermission { path }),
            // Opening it for use says more.
            Err(_) => {}
        }
    }
    Ok(())
}

/// One vector's event, as the kernel takes it.
mod one_vector {
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

    /// `struct vfio_irq_set` with one descriptor, or -1 for none.
    #[repr(C)]
    pub struct OneVector {
        pub argsz: u32,
        pub flags: u32,
        pub index: u32,
        pub start: u32,
        pub count: u32,
        pub fd: i32,
    }

    // VFIO_DEVICE_SET_IRQS.
    nix::ioctl_write_ptr_bad!(
        set_irqs,
        nix::request_code_none!(VFIO_TYPE, VFIO_BASE + 10),
        OneVector
    );
}

/// Maps the doorbells, if the kernel lets BAR0 be mapped there; else they are written by system calls.
fn map_doorbells(device: &VfioDevice, size: u64) -> Option<Window> {
    if device.get_region_flags(VFIO_PCI_BAR0_REGION_INDEX) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
        return None;
    }
    let mut end = size.min(DOORBELLS + DOORBELL_BYTES_MAX);
    for cap in device.get_region_caps(VFIO_PCI_BAR0_REGION_INDEX) {
        if let VfioRegionInfoCap::SparseMmap(sparse) = cap {
            let holds = |area: &&vfio_ioctls::VfioRegionSparseMmapArea| {
                area.offset <= DOORBELLS && area.offset + area.size > DOORBELLS
            };
            let area = sparse.areas.iter().find(holds)?;
            end = end.min(area.offset + area.size);
        }
    }
    let at = device.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX).checked_add(DOORBELLS)?;
    let area = DoorbellArea { first: DOORBELLS, at, len: end - DOORBELLS, device: true };
    Window::map(device, area).ok()
}

/// A second descriptor of the event, as vfio-ioctls takes it.
fn foreign(event: &EventFd) -> Result<vmm_sys_util::eventfd::EventFd, TransportError> {
    let second = event.try_clone().map_err(|error| TransportError::System {
        call: "dup of an eventfd",
        source: io::Error::other(error),
    })?;
    // SAFETY: the descriptor is an eventfd (EventFd::create made it) and is owned by nobody else from here on.
    Ok(unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(second.into_fd().into_raw_fd()) })
}

impl Transport for Vfio {
    fn read_u32(&self, offset: u64) -> Result<u32, TransportError> {
        self.read(offset).map(u32::from_le_bytes)
    }

    fn read_u64(&self, offset: u64) -> Result<u64, TransportError> {
        self.read(offset).map(u64::from_le_bytes)
    }

    fn write_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn write_u64(&self, offset: u64, value: u64) -> Result<(), TransportError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn post_u32(&self, offset: u64, value: u32) -> Result<(), TransportError> {
        self.write(offset, &value.to_le_bytes())
    }

    fn doorbell(&self, offset: u64) -> Option<Doorbell> {
        self.doorbells.as_ref()?.doorbell(offset)
    }

    fn doorbell_memory(&self) -> Option<DoorbellMemory> {
        let area = self.doorbells.as_ref()?.area();
        // SAFETY: the descriptor is the device's own, open as long as `self` is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        Some(DoorbellMemory { fd: fd.try_clone_to_owned().ok()?, area })
    }

    fn doorbell_cost(&self) -> DoorbellCost {
        if self.doorbells.is_some() { DoorbellCost::Mmio } else { DoorbellCost::Message }
    }

    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError> {
        self.usable()?;
        let whole = memory.whole();
        let len = whole.len().next_multiple_of(PAGE_SIZE);
        // SAFETY: the region is mapped in whole pages and stays so until it was unmapped again: its owner (a
        // Registration, or the caller of this trait) calls `dma_unmap` first; it is reached by raw copies and atomics
        // only (HostSlice).
        let mapped = unsafe { self.space.vfio_dma_map(iova, len, whole.as_ptr()) };
        mapped.map_err(|source| TransportError::Vfio {
            call: "dma map (is `ulimit -l` large enough?)",
            source,
        })?;
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner).push((iova, len));
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, _: u64) -> Result<(), TransportError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = mapped.iter().position(|&(first, _)| first == iova) else {
            return Err(TransportError::Gone);
        };
        let (_, len) = mapped.swap_remove(at);
        let unmapped = self.space.vfio_dma_unmap(iova, len);
        unmapped.map_err(|source: VfioError| TransportError::Vfio { call: "dma unmap", source })
    }

    fn vectors(&self) -> u16 {
        let info = self.device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        info.map_or(0, |info| u16::try_from(info.count).unwrap_or(u16::MAX))
    }

    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError> {
        self.usable()?;
        let events: Vec<_> = events.iter().map(foreign).collect::<Result<_, _>>()?;
        let enabled = self.device.enable_msix(events.iter().collect());
        enabled.map_err(|source| TransportError::Vfio { call: "enable msi-x", source })
    }

    fn set_vector(&self, vector: u16, event: Option<&EventFd>) -> Result<(), TransportError> {
        self.usable()?;
        let set = OneVector {
            argsz: size_of::<OneVector>() as u32,
            flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            index: VFIO_PCI_MSIX_IRQ_INDEX,
            start: vector.into(),
            count: 1,
            fd: event.map_or(-1, AsRawFd::as_raw_fd),
        };
        // SAFETY: the descriptor is the device's own, open as long as `self` is borrowed; the kernel reads `argsz` bytes,
        // which is all of `set`, and takes its own reference to the event.
        let done = unsafe { set_irqs(self.device.as_raw_fd(), &raw const set) };
        let call = "event of an interrupt vector";
        done.map(drop).map_err(|error| TransportError::System { call, source: error.into() })
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.usable()?;
        self.device.reset();
        // The reset cleared it.
        self.set_command(COMMAND_MEMORY | COMMAND_BUS_MASTER, true);
        Ok(())
    }

    fn alive(&self) -> bool {
        if self.severed.load(Ordering::Acquire) || self.removed.load(Ordering::Acquire) {
            return false;
        }
        let asked = self.removal.as_ref().is_some_and(|event| event.drain().is_ok_and(|n| n > 0));
        let absent = self.read_u32(CSTS).is_ok_and(|csts| csts == u32::MAX);
        if asked || absent {
            self.removed.store(true, Ordering::Release);
        }
        !asked && !absent
    }

    fn sever(&self) {
        if self.severed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.set_command(COMMAND_BUS_MASTER, false);
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        for (iova, len) in mapped.drain(..) {
            if let Err(error) = self.space.vfio_dma_unmap(iova, len) {
                tracing::debug!(%error, iova, "dma unmap failed");
            }
        }
    }
}

impl fmt::Debug for Vfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vfio({})", self.address)
    }
}
