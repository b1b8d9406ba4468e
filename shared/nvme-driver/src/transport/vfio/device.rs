//! A function of a VFIO group: its regions, interrupts and reset (linux/vfio.h, the device's part).

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use ipc::event::EventFd;
use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE, VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    vfio_device_info, vfio_irq_info, vfio_region_info,
};

/// Most bytes of a region's description: far more than its capabilities take.
const DESCRIPTION_MAX: usize = 64 << 10;
/// Bytes of `struct vfio_irq_set` before its descriptors, in words.
const IRQ_SET_WORDS: usize = 5;

/// The kernel's calls, and nothing else.
mod calls {
    use nix::{ioctl_none_bad, ioctl_readwrite_bad, ioctl_write_ptr_bad, request_code_none};
    use vfio_bindings::bindings::vfio::{
        VFIO_BASE, VFIO_TYPE, vfio_device_info, vfio_irq_info, vfio_region_info,
    };

    // VFIO_DEVICE_GET_INFO.
    ioctl_readwrite_bad!(info, request_code_none!(VFIO_TYPE, VFIO_BASE + 7), vfio_device_info);
    // VFIO_DEVICE_GET_REGION_INFO.
    ioctl_readwrite_bad!(region, request_code_none!(VFIO_TYPE, VFIO_BASE + 8), vfio_region_info);
    // VFIO_DEVICE_GET_IRQ_INFO.
    ioctl_readwrite_bad!(irq, request_code_none!(VFIO_TYPE, VFIO_BASE + 9), vfio_irq_info);
    // VFIO_DEVICE_SET_IRQS: a structure of words, descriptors last.
    ioctl_write_ptr_bad!(set_irqs, request_code_none!(VFIO_TYPE, VFIO_BASE + 10), u32);
    // VFIO_DEVICE_RESET.
    ioctl_none_bad!(reset, request_code_none!(VFIO_TYPE, VFIO_BASE + 11));
}

/// A function's descriptor, and where its registers lie in it.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    registers: Space,
    config: Space,
}

/// A region as the kernel describes it; offsets and lengths are bytes.
#[derive(Debug)]
pub(super) struct Space {
    pub size: u64,
    /// Where it begins in the descriptor.
    pub offset: u64,
    /// It may be mapped,
    pub mappable: bool,
    /// and only these parts of it, if that is said.
    pub parts: Option<Vec<Range<u64>>>,
}

impl Device {
    /// The function that a descriptor is of.
    ///
    /// # Errors
    /// If it is none, or not a PCI function.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let mut info =
            vfio_device_info { argsz: bytes_of::<vfio_device_info>(), ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, which is all of `info`, which lives.
        unsafe { calls::info(file.as_raw_fd(), &raw mut info) }?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(io::Error::new(ErrorKind::Unsupported, "not a pci function"));
        }
        let registers = describe(&file, VFIO_PCI_BAR0_REGION_INDEX)?;
        let config = describe(&file, VFIO_PCI_CONFIG_REGION_INDEX)?;
        Ok(Self { file, registers, config })
    }

    /// BAR0.
    pub fn registers(&self) -> &Space {
        &self.registers
    }

    /// Reads of BAR0.
    ///
    /// # Errors
    /// What the kernel says; also beyond the end.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(to, self.registers.at(offset, to.len())?)
    }

    /// Writes to BAR0.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.file.write_all_at(from, self.registers.at(offset, from.len())?)
    }

    /// Reads 16 bits of configuration space.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_config(&self, offset: u64) -> io::Result<u16> {
        let mut bytes = [0; size_of::<u16>()];
        let at = self.config.at(offset, bytes.len())?;
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Writes 16 bits of configuration space.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write_config(&self, offset: u64, value: u16) -> io::Result<()> {
        let bytes = value.to_le_bytes();
        self.file.write_all_at(&bytes, self.config.at(offset, bytes.len())?)
    }

    /// Interrupts of a kind that there are.
    ///
    /// # Errors
    /// What the kernel says: it does not know the kind.
    pub fn interrupts(&self, kind: u32) -> io::Result<u32> {
        let mut info =
            vfio_irq_info { argsz: bytes_of::<vfio_irq_info>(), index: kind, ..Default::default() };
        // SAFETY: the kernel writes at most `argsz` bytes, which is all of `info`, which lives.
        unsafe { calls::irq(self.file.as_raw_fd(), &raw mut info) }?;
        Ok(info.count)
    }

    /// Gives interrupts of a kind, from `first` on, these events, or none. Those of MSI-X are set up by the first call,
    /// all that may ever have one at a time.
    ///
    /// # Errors
    /// What the kernel says; nothing has changed then.
    pub fn set_interrupts(
        &self,
        kind: u32,
        first: u32,
        events: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let fds = events.iter().map(|event| event.map_or(-1, AsRawFd::as_raw_fd));
        self.set(VFIO_IRQ_SET_DATA_EVENTFD, kind, first, fds)
    }

    /// Takes all interrupts of a kind away, whoever gave them events.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear_interrupts(&self, kind: u32) -> io::Result<()> {
        self.set(VFIO_IRQ_SET_DATA_NONE, kind, 0, std::iter::empty())
    }

    fn set(
        &self,
        data: u32,
        kind: u32,
        first: u32,
        fds: impl ExactSizeIterator<Item = RawFd>,
    ) -> io::Result<()> {
        let count = u32::try_from(fds.len()).map_err(io::Error::other)?;
        let argsz = (IRQ_SET_WORDS * size_of::<u32>()) as u32 + count * size_of::<RawFd>() as u32;
        let mut words = vec![argsz, data | VFIO_IRQ_SET_ACTION_TRIGGER, kind, first, count];
        words.extend(fds.map(i32::cast_unsigned));
        // SAFETY: `words` is a `struct vfio_irq_set` (five words, then `count` descriptors) and lives; the kernel reads
        // `argsz` bytes, which is all of it, and takes references of its own to the events.
        unsafe { calls::set_irqs(self.file.as_raw_fd(), words.as_ptr()) }?;
        Ok(())
    }

    /// Resets the function.
    ///
    /// # Errors
    /// What the kernel says: it has no such reset.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: the call takes no memory; the descriptor is open as long as `self` is borrowed.
        unsafe { calls::reset(self.file.as_raw_fd()) }?;
        Ok(())
    }
}

impl Space {
    /// Where in the descriptor `len` bytes from `offset` on lie.
    fn at(&self, offset: u64, len: usize) -> io::Result<u64> {
        let end = offset.checked_add(len as u64).filter(|&end| end <= self.size);
        end.and_then(|_| self.offset.checked_add(offset))
            .ok_or_else(|| ErrorKind::InvalidInput.into())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Asks about a region: once for its size, again for its capabilities if there are some.
fn describe(file: &File, index: u32) -> io::Result<Space> {
    let argsz = bytes_of::<vfio_region_info>();
    let mut info = vfio_region_info { argsz, index, ..Default::default() };
    // SAFETY: the kernel writes at most `argsz` bytes, which is all of `info`, which lives.
    unsafe { calls::region(file.as_raw_fd(), &raw mut info) }?;
    let mut parts = None;
    let whole = info.argsz as usize;
    if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0
        && (size_of_val(&info)..DESCRIPTION_MAX).contains(&whole)
    {
        // Aligned as the structure at its beginning.
        let mut words = vec![0_u64; whole.div_ceil(size_of::<u64>())];
        words[0] = u64::from(info.argsz);
        words[1] = u64::from(index);
        // SAFETY: `words` is aligned for the structure, begins with its `argsz` (and flags 0) and `index`, lives, and has
        // at least `argsz` bytes, which is the most that the kernel writes.
        unsafe { calls::region(file.as_raw_fd(), words.as_mut_ptr().cast()) }?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        parts = sparse_parts(&bytes, info.cap_offset as usize);
    }
    let mappable = info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
    Ok(Space { size: info.size, offset: info.offset, mappable, parts })
}

/// The parts that may be mapped, out of a description with capabilities; `None` if it does not say.
fn sparse_parts(bytes: &[u8], first: usize) -> Option<Vec<Range<u64>>> {
    let u32_at =
        |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let u64_at =
        |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?));
    let mut at = first;
    // Each capability is at least a header of 8 bytes: a chain that is longer goes in circles.
    for _ in 0..bytes.len() / 8 {
        if at == 0 {
            return None;
        }
        let id = u32_at(at)? & 0xFFFF;
        if id == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = u32_at(at.checked_add(8)?)? as usize;
            let areas = at.checked_add(16)?;
            let area = |index: usize| {
                let area = areas.checked_add(index.checked_mul(16)?)?;
                let (start, len) = (u64_at(area)?, u64_at(area.checked_add(8)?)?);
                Some(start..start.checked_add(len)?)
            };
            return (0..count.min(bytes.len() / 16)).map(area).collect();
        }
        at = u32_at(at.checked_add(4)?)? as usize;
    }
    None
}

/// Size of a structure as `argsz` says it.
fn bytes_of<T>() -> u32 {
    size_of::<T>() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_may_be_mapped_are_found_in_a_chain_of_capabilities() {
        let mut bytes = vec![0_u8; 96];
        let mut put = |at: usize, word: &[u8]| bytes[at..at + word.len()].copy_from_slice(word);
        put(32, &2_u16.to_ne_bytes());
        put(36, &48_u32.to_ne_bytes());
        put(48, &(VFIO_REGION_INFO_CAP_SPARSE_MMAP as u16).to_ne_bytes());
        put(56, &2_u32.to_ne_bytes());
        put(64, &0_u64.to_ne_bytes());
        put(72, &0x2000_u64.to_ne_bytes());
        put(80, &0x3000_u64.to_ne_bytes());
        put(88, &0x1000_u64.to_ne_bytes());
        assert_eq!(sparse_parts(&bytes, 32), Some(vec![0..0x2000, 0x3000..0x4000]));
        assert_eq!(sparse_parts(&bytes[..90], 32), None, "cut off");
        assert_eq!(sparse_parts(&bytes, 0), None, "no chain");
        bytes[36..40].copy_from_slice(&32_u32.to_ne_bytes());
        assert_eq!(sparse_parts(&bytes, 32), None, "a chain without an end");
    }

    #[test]
    fn an_access_lies_within_its_region() {
        let space = Space { size: 0x2000, offset: 1 << 40, mappable: false, parts: None };
        assert_eq!(space.at(0x1FFC, 4).unwrap(), (1 << 40) + 0x1FFC);
        for (offset, len) in [(0x1FFD, 4), (0x2000, 1), (u64::MAX, 4)] {
            assert!(space.at(offset, len).is_err());
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert!(Device::new(File::open("/dev/null").unwrap().into()).is_err());
    }
}
