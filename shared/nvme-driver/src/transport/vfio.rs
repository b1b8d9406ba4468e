//! A controller that is a PCI function bound to vfio-pci: a physical drive, or an emulated one in a virtual machine.
//!
//! Memory is mapped by the IOMMU through `space`: VFIO's type 1 container today; an iommufd address space is another
//! implementation of the same trait. Each controller has an address space of its own. With a [`Keeper`] its descriptors
//! outlive this process (`kept`), and the process's successor goes on with them.
#![allow(unsafe_code)]

mod device;
mod kept;
mod space;
mod table;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ipc::event::EventFd;
use ipc::guest_memory::{Access, Region};
use nvme_spec::register::offset::{CSTS, DOORBELLS};
use vfio_bindings::bindings::vfio::{VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX};

use self::device::Device;
use self::kept::{Found, InheritError, Part};
use self::space::{AddressSpace, CONTAINER, Group, Type1};
use super::{DoorbellCost, Transport, TransportError};
use crate::address::PciAddress;
use crate::doorbell::{Doorbell, DoorbellArea, DoorbellMemory, Window};
use crate::error::ConnectError;
use crate::memory::{PAGE_SIZE, WINDOW};

pub use kept::{InheritedLease, Keeper, Keeping, kept_drive};
pub use table::Holder;

/// Class code of an NVMe I/O controller, as sysfs writes it.
const CLASS_NVME: &str = "0x010802";
/// Vendor and device identifier in configuration space.
const VENDOR: u64 = 0x00;
const DEVICE: u64 = 0x02;
/// Command register, and memory space and bus master enable in it.
const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Most bytes of doorbells that are mapped: those of 4096 queue pairs at CAP.DSTRD 0.
const DOORBELL_BYTES_MAX: u64 = 32 << 10;

/// A PCI function under VFIO.
pub struct Vfio {
    device: Device,
    space: Box<dyn AddressSpace>,
    /// Open as long as the device is.
    _group: Group,
    /// What the address space holds: first address and length.
    mapped: Mutex<Vec<(u64, u64)>>,
    doorbells: Option<Arc<Window>>,
    /// Signalled when the kernel wants the device back: it is being removed or unbound.
    removal: Option<EventFd>,
    removed: AtomicBool,
    severed: AtomicBool,
    address: PciAddress,
    /// `None`: it goes with this process.
    keeping: Option<Keeping>,
    /// A predecessor enabled it, and mapped what is mapped.
    inherited: bool,
}

impl Vfio {
    /// Opens the function; with a keeper, it is kept for this process's successor from now on. The outer error says what to
    /// do; the inner one is a failure of VFIO itself.
    ///
    /// # Errors
    /// [`ConnectError`], and [`TransportError`].
    pub fn open(
        address: PciAddress,
        keeper: Option<&Arc<dyn Keeper>>,
    ) -> Result<Result<Self, TransportError>, ConnectError> {
        let sysfs = sysfs(address);
        let group = bound_group(address, &sysfs)?;
        for path in [Path::new(CONTAINER), &group] {
            may_open(path)?;
        }
        Ok(Self::open_bound(address, &sysfs, &group, keeper))
    }

    fn open_bound(
        address: PciAddress,
        sysfs: &Path,
        group: &Path,
        keeper: Option<&Arc<dyn Keeper>>,
    ) -> Result<Self, TransportError> {
        let class = fs::read_to_string(sysfs.join("class")).unwrap_or_default();
        if class.trim() != CLASS_NVME {
            let found = format!("class code {}", class.trim());
            return Err(TransportError::Unfit { found, needed: CLASS_NVME });
        }
        let space = Type1::open().map_err(failed("open a vfio container"))?;
        let group = Group::open(group).map_err(failed("open a vfio group"))?;
        group.join(&space).map_err(failed("put a vfio group into a container"))?;
        space.enable().map_err(failed("set a container's iommu"))?;
        let device = group.device(&address.to_string()).and_then(Device::new);
        let device = device.map_err(failed("open a vfio device"))?;
        check_registers(&device)?;
        let keeping = keeper.and_then(|keeper| {
            let fds = [space.as_fd(), group.as_fd(), device.as_fd()];
            let kept = Keeping::begin(Arc::clone(keeper), address, WINDOW, fds);
            kept.inspect_err(|error| {
                let error = crate::error::chain(error);
                tracing::warn!(drive = %address, error, "the drive is not kept for a successor, which will have to wait for it");
            })
            .ok()
        });
        let vfio = Self::new(address, device, space, group, keeping, false)?;
        vfio.set_command(COMMAND_BUS_MASTER, true)?;
        Ok(vfio)
    }

    /// Goes on with what a predecessor had kept of the function; `None` if there is nothing. What is of no use is stopped,
    /// and is not kept any more.
    pub(crate) fn inherit(
        address: PciAddress,
        keeper: &Arc<dyn Keeper>,
    ) -> Option<Result<Self, InheritError>> {
        let found = Found::take(&**keeper, address)?;
        let device = found.device.as_ref().and_then(|fd| fd.try_clone().ok());
        let inherited = Self::adopt(address, keeper, found);
        if inherited.is_err() {
            // The kernel resets it when nobody has it open any more; until then it touches no memory.
            if let Some(Ok(device)) = device.map(Device::new) {
                set_command(&device, COMMAND_BUS_MASTER, false).ok();
            }
            kept::discard(&**keeper, address);
        }
        Some(inherited)
    }

    fn adopt(
        address: PciAddress,
        keeper: &Arc<dyn Keeper>,
        found: Found,
    ) -> Result<Self, InheritError> {
        let failed = |call| move |source| InheritError::System { call, source };
        let sysfs = sysfs(address);
        let path = bound_group(address, &sysfs)?;
        let keeping = Keeping::adopt(
            Arc::clone(keeper),
            address,
            found.table.ok_or(InheritError::Missing("drive table"))?,
        )?;
        let space = Type1::adopt(found.container.ok_or(InheritError::Missing("container"))?);
        let space = space.map_err(failed("the container"))?;
        let group = Group::adopt(found.group.ok_or(InheritError::Missing("group"))?, &path);
        let group = group.map_err(failed("the group"))?;
        let device = match found.device {
            Some(device) => Device::new(device),
            // Its predecessor died before it was kept, and so before it was enabled, or after it was disabled.
            None => group.device(&address.to_string()).and_then(Device::new).and_then(|device| {
                keeping.put(Part::Device, device.as_fd()).map_err(io::Error::other)?;
                Ok(device)
            }),
        };
        let device = device.map_err(failed("the device"))?;
        check_same(&device, &sysfs)?;
        let begun = check_registers(&device)
            .and_then(|()| Self::new(address, device, space, group, Some(keeping), true));
        begun.map_err(|error| failed("registers")(io::Error::other(error)))
    }

    fn new(
        address: PciAddress,
        device: Device,
        space: Type1,
        group: Group,
        keeping: Option<Keeping>,
        inherited: bool,
    ) -> Result<Self, TransportError> {
        let doorbells = map_doorbells(&device).map(Arc::new);
        let removal = watch_removal(&device);
        let vfio = Self {
            device,
            space: Box::new(space),
            _group: group,
            mapped: Mutex::default(),
            doorbells,
            removal,
            removed: AtomicBool::new(false),
            severed: AtomicBool::new(false),
            address,
            keeping,
            inherited,
        };
        vfio.set_command(COMMAND_MEMORY, true)?;
        Ok(vfio)
    }

    fn set_command(&self, bits: u16, on: bool) -> Result<(), TransportError> {
        set_command(&self.device, bits, on).map_err(failed("access to configuration space"))
    }

    fn usable(&self) -> Result<(), TransportError> {
        if self.severed.load(Ordering::Acquire) { Err(TransportError::Gone) } else { Ok(()) }
    }

    /// Reads of a device that is gone give ones, or fail.
    fn read<const N: usize>(&self, offset: u64) -> Result<[u8; N], TransportError> {
        self.usable()?;
        let mut bytes = [0xFF; N];
        self.device.read(offset, &mut bytes).map_err(failed("read of a register"))?;
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), TransportError> {
        self.usable()?;
        self.device.write(offset, bytes).map_err(failed("write of a register"))
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        if let Some(keeping) = &self.keeping {
            keeping.table().subtract(len);
        }
        self.space.unmap(iova, len)
    }
}

/// Stops a drive that a predecessor left and that nobody wants any more, and has nothing of it kept. `false`: there is none.
pub fn retire(address: PciAddress, keeper: &Arc<dyn Keeper>) -> bool {
    // What disables the controller is what a successor does; then it goes.
    match Vfio::inherit(address, keeper) {
        None => {
            kept::discard(&**keeper, address);
            return false;
        }
        Some(Ok(drive)) => crate::controller::retire(Arc::new(drive)),
        Some(Err(error)) => {
            let reason = crate::error::chain(&error);
            tracing::debug!(drive = %address, reason, "what was kept of it was of no use");
        }
    }
    tracing::info!(drive = %address, "drive given back to the kernel, nothing serves it any more");
    true
}

fn failed(call: &'static str) -> impl FnOnce(io::Error) -> TransportError {
    move |source| TransportError::System { call, source }
}

fn set_command(device: &Device, bits: u16, on: bool) -> io::Result<()> {
    let old = device.read_config(COMMAND)?;
    device.write_config(COMMAND, if on { old | bits } else { old & !bits })
}

fn sysfs(address: PciAddress) -> PathBuf {
    PathBuf::from(format!("/sys/bus/pci/devices/{address}"))
}

/// The device node of the function's group, if the function is there and bound to vfio-pci.
fn bound_group(address: PciAddress, sysfs: &Path) -> Result<PathBuf, ConnectError> {
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
    Ok(Path::new("/dev/vfio").join(group))
}

/// Whether a device node may be opened now.
fn may_open(path: &Path) -> Result<(), ConnectError> {
    let path = path.to_path_buf();
    match OpenOptions::new().read(true).write(true).open(&path).map_err(|error| error.kind()) {
        Err(ErrorKind::NotFound) => Err(ConnectError::NoVfio { path }),
        Err(ErrorKind::ResourceBusy) => Err(ConnectError::GroupBusy { path }),
        Err(ErrorKind::PermissionDenied) => Err(ConnectError::GroupPermission { path }),
        // Opening it for use says more.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether there are doorbells.
fn check_registers(device: &Device) -> Result<(), TransportError> {
    let size = device.registers().size;
    if size <= DOORBELLS {
        let found = format!("a BAR0 of {size:#x} bytes");
        return Err(TransportError::Unfit { found, needed: "more than 0x1000" });
    }
    Ok(())
}

/// Whether the function is the one that the kernel has at this address.
fn check_same(device: &Device, sysfs: &Path) -> Result<(), InheritError> {
    let read = |offset| {
        let call = "configuration space";
        device.read_config(offset).map_err(|source| InheritError::System { call, source })
    };
    let kept = format!("{:#06x} {:#06x}", read(VENDOR)?, read(DEVICE)?);
    let name = |file: &str| fs::read_to_string(sysfs.join(file)).unwrap_or_default();
    let found = format!("{} {}", name("vendor").trim(), name("device").trim());
    if found == kept { Ok(()) } else { Err(InheritError::Other { found, kept }) }
}

/// Asks the kernel to say when it wants the device back. Kernels that cannot say so are found out by their registers.
fn watch_removal(device: &Device) -> Option<EventFd> {
    let count = device.interrupts(VFIO_PCI_REQ_IRQ_INDEX).ok()?;
    let event = EventFd::create().ok().filter(|_| count > 0)?;
    device.set_interrupts(VFIO_PCI_REQ_IRQ_INDEX, 0, &[Some(&event)]).ok()?;
    Some(event)
}

/// Maps the doorbells, if the kernel lets BAR0 be mapped there; else they are written by system calls.
fn map_doorbells(device: &Device) -> Option<Window> {
    let registers = device.registers();
    if !registers.mappable {
        return None;
    }
    let mut end = registers.size.min(DOORBELLS + DOORBELL_BYTES_MAX);
    if let Some(parts) = &registers.parts {
        let part: &Range<u64> = parts.iter().find(|part| part.contains(&DOORBELLS))?;
        end = end.min(part.end);
    }
    let at = registers.offset.checked_add(DOORBELLS)?;
    let area = DoorbellArea { first: DOORBELLS, at, len: end - DOORBELLS, device: true };
    Window::map(device, area).ok()
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
        Some(DoorbellMemory { fd: self.device.as_fd().try_clone_to_owned().ok()?, area })
    }

    fn doorbell_cost(&self) -> DoorbellCost {
        if self.doorbells.is_some() { DoorbellCost::Mmio } else { DoorbellCost::Message }
    }

    fn dma_map(&self, iova: u64, memory: &Arc<Region>) -> Result<(), TransportError> {
        self.usable()?;
        let whole = memory.whole();
        let len = whole.len().next_multiple_of(PAGE_SIZE) as u64;
        let writable = memory.access().contains(Access::WRITE);
        // SAFETY: the region is mapped in whole pages and stays so until it was unmapped again: its owner (a
        // Registration, or the caller of this trait) calls `dma_unmap` first; it is reached by raw copies and atomics
        // only (HostSlice).
        let mapped = unsafe { self.space.map(iova, whole.as_ptr(), len, writable) };
        mapped.map_err(failed("vfio dma map (is `ulimit -l` large enough?)"))?;
        if let Some(keeping) = &self.keeping {
            keeping.table().add(len);
        }
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner).push((iova, len));
        Ok(())
    }

    fn dma_unmap(&self, iova: u64, _: u64) -> Result<(), TransportError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = mapped.iter().position(|&(first, _)| first == iova) else {
            return Err(TransportError::Gone);
        };
        let (_, len) = mapped.swap_remove(at);
        self.unmap(iova, len).map_err(failed("vfio dma unmap"))
    }

    fn vectors(&self) -> u16 {
        let count = self.device.interrupts(VFIO_PCI_MSIX_IRQ_INDEX).unwrap_or(0);
        u16::try_from(count).unwrap_or(u16::MAX)
    }

    fn set_vectors(&self, events: &[EventFd]) -> Result<(), TransportError> {
        self.usable()?;
        let events: Vec<_> = events.iter().map(Some).collect();
        let set = self.device.set_interrupts(VFIO_PCI_MSIX_IRQ_INDEX, 0, &events);
        set.map_err(failed("set up of msi-x"))
    }

    fn set_vector(&self, vector: u16, event: Option<&EventFd>) -> Result<(), TransportError> {
        self.usable()?;
        let set = self.device.set_interrupts(VFIO_PCI_MSIX_IRQ_INDEX, vector.into(), &[event]);
        set.map_err(failed("event of an interrupt vector"))
    }

    fn reset(&self) -> Result<(), TransportError> {
        self.usable()?;
        self.device.reset().map_err(failed("function level reset"))?;
        // The reset cleared it.
        self.set_command(COMMAND_MEMORY | COMMAND_BUS_MASTER, true)
    }

    fn is_inherited(&self) -> bool {
        self.inherited
    }

    fn clear_inherited(&self) -> Result<(), TransportError> {
        let Some(keeping) = self.keeping.as_ref().filter(|_| self.inherited) else {
            return Ok(());
        };
        let table = keeping.table();
        let unmapped = self.space.unmap_all(table.window());
        let unmapped = unmapped.map_err(failed("vfio dma unmap of all"))?;
        if unmapped < table.mapped() {
            let (mapped, found) = (table.mapped(), "an iommu that gives no successor back");
            let found =
                format!("{found} what a predecessor mapped ({unmapped:#x} of {mapped:#x} bytes)");
            return Err(TransportError::Unfit { found, needed: "linux 6.0 for that" });
        }
        table.clear();
        // That there are none is an error to the kernel; that they stay is one when others are set up.
        if let Err(error) = self.device.clear_interrupts(VFIO_PCI_MSIX_IRQ_INDEX) {
            tracing::debug!(drive = %self.address, %error, "no interrupts of a predecessor's");
        }
        self.set_command(COMMAND_BUS_MASTER, true)
    }

    fn keeping(&self) -> Option<&Keeping> {
        self.keeping.as_ref()
    }

    fn alive(&self) -> bool {
        if self.severed.load(Ordering::Acquire) || self.removed.load(Ordering::Acquire) {
            return false;
        }
        let asked = self.removal.as_ref().is_some_and(|event| event.drain().is_ok_and(|n| n > 0));
        let absent = self.read_u32(CSTS).map_or(true, |csts| csts == u32::MAX);
        if asked || absent {
            self.removed.store(true, Ordering::Release);
        }
        !asked && !absent
    }

    fn sever(&self) {
        if self.severed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.set_command(COMMAND_BUS_MASTER, false) {
            tracing::debug!(drive = %self.address, %error, "bus mastering is not switched off");
        }
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        for (iova, len) in mapped.drain(..) {
            if let Err(error) = self.unmap(iova, len) {
                tracing::debug!(%error, iova, "dma unmap failed");
            }
        }
    }
}

impl Drop for Vfio {
    /// A drive that does no DMA any more need not be kept.
    fn drop(&mut self) {
        self.sever();
        if let Some(keeping) = &self.keeping {
            keeping.forget();
        }
    }
}

impl fmt::Debug for Vfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vfio({})", self.address)
    }
}
