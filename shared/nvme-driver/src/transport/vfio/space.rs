//! An address space of an IOMMU, and VFIO's first kind of one: a container of type 1 with a group in it (linux/vfio.h, the
//! container's, the group's and the type 1 IOMMU's part). One of iommufd would be another implementation of [`AddressSpace`].

use std::ffi::CString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL,
    VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL,
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};

/// The container's device node.
pub(super) const CONTAINER: &str = "/dev/vfio/vfio";

/// The kernel's calls, and nothing else.
mod calls {
    use nix::{
        ioctl_none_bad, ioctl_readwrite_bad, ioctl_write_int_bad, ioctl_write_ptr_bad,
        request_code_none,
    };
    use vfio_bindings::bindings::vfio::{
        VFIO_BASE, VFIO_TYPE, vfio_group_status, vfio_iommu_type1_dma_map,
        vfio_iommu_type1_dma_unmap,
    };

    // VFIO_GET_API_VERSION.
    ioctl_none_bad!(version, request_code_none!(VFIO_TYPE, VFIO_BASE));
    // VFIO_CHECK_EXTENSION.
    ioctl_write_int_bad!(has, request_code_none!(VFIO_TYPE, VFIO_BASE + 1));
    // VFIO_SET_IOMMU.
    ioctl_write_int_bad!(set_iommu, request_code_none!(VFIO_TYPE, VFIO_BASE + 2));
    // VFIO_GROUP_GET_STATUS.
    ioctl_readwrite_bad!(status, request_code_none!(VFIO_TYPE, VFIO_BASE + 3), vfio_group_status);
    // VFIO_GROUP_SET_CONTAINER.
    ioctl_write_ptr_bad!(set_container, request_code_none!(VFIO_TYPE, VFIO_BASE + 4), i32);
    // VFIO_GROUP_GET_DEVICE_FD: a string that ends in a zero.
    ioctl_write_ptr_bad!(device, request_code_none!(VFIO_TYPE, VFIO_BASE + 6), std::ffi::c_char);
    // VFIO_IOMMU_MAP_DMA.
    ioctl_write_ptr_bad!(
        map,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 13),
        vfio_iommu_type1_dma_map
    );
    // VFIO_IOMMU_UNMAP_DMA.
    ioctl_readwrite_bad!(
        unmap,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 14),
        vfio_iommu_type1_dma_unmap
    );
}

/// What a device may do DMA to. Addresses and lengths are multiples of a page.
///
/// Contract: what was mapped stays mapped until it is unmapped, and the memory behind it stays where it is, also after the
/// process that mapped it has ended, as long as a descriptor of the address space is open anywhere.
pub(super) trait AddressSpace: fmt::Debug + Send + Sync {
    /// Lets the device read `len` bytes of memory, and write them if `writable`, from `iova` on.
    ///
    /// # Errors
    /// What the kernel says; nothing is mapped then.
    ///
    /// # Safety
    /// The memory from `at` on is mapped for `len` bytes until the range is unmapped again, and is used by raw copies and
    /// atomics only.
    unsafe fn map(&self, iova: u64, at: *mut u8, len: u64, writable: bool) -> io::Result<()>;

    /// Takes back what was mapped by one call: the device reaches it no more.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;

    /// Takes back everything, whoever mapped it; all of it lies within `window`. How many bytes that were.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmap_all(&self, window: Range<u64>) -> io::Result<u64>;
}

/// A container of type 1 (its second version, in which ranges are unmapped as they were mapped).
#[derive(Debug)]
pub(super) struct Type1 {
    file: File,
}

impl Type1 {
    /// A new container without a group.
    ///
    /// # Errors
    /// What the kernel says; [`ErrorKind::Unsupported`] if it has another VFIO.
    pub fn open() -> io::Result<Self> {
        Self::checked(OpenOptions::new().read(true).write(true).open(CONTAINER)?)
    }

    /// The container that a descriptor is of.
    ///
    /// # Errors
    /// If it is none.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        Self::checked(File::from(fd))
    }

    fn checked(file: File) -> io::Result<Self> {
        // SAFETY: the call takes no memory; the descriptor is open.
        let version = unsafe { calls::version(file.as_raw_fd()) }?;
        let space = Self { file };
        if version.cast_unsigned() != VFIO_API_VERSION || !space.has(VFIO_TYPE1v2_IOMMU) {
            let what = format!("vfio api {version} without an iommu of type 1");
            return Err(io::Error::new(ErrorKind::Unsupported, what));
        }
        Ok(space)
    }

    fn has(&self, extension: u32) -> bool {
        // SAFETY: the call takes a number; the descriptor is open.
        let has = unsafe { calls::has(self.file.as_raw_fd(), extension.cast_signed()) };
        has.is_ok_and(|has| has > 0)
    }

    /// Makes it an address space, once a group is in it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn enable(&self) -> io::Result<()> {
        // SAFETY: the call takes a number; the descriptor is open.
        unsafe { calls::set_iommu(self.file.as_raw_fd(), VFIO_TYPE1v2_IOMMU.cast_signed()) }?;
        Ok(())
    }

    /// Unmaps, and says how many bytes the kernel unmapped.
    fn take_back(&self, flags: u32, iova: u64, size: u64) -> io::Result<u64> {
        let argsz = size_of::<vfio_iommu_type1_dma_unmap>() as u32;
        let mut range =
            vfio_iommu_type1_dma_unmap { argsz, flags, iova, size, ..Default::default() };
        // SAFETY: the kernel reads and writes `argsz` bytes, which is all of `range`, which lives.
        unsafe { calls::unmap(self.file.as_raw_fd(), &raw mut range) }?;
        Ok(range.size)
    }
}

impl AddressSpace for Type1 {
    unsafe fn map(&self, iova: u64, at: *mut u8, len: u64, writable: bool) -> io::Result<()> {
        let write = if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
        let range = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | write,
            vaddr: at.addr() as u64,
            iova,
            size: len,
        };
        // SAFETY: the kernel reads `argsz` bytes, which is all of `range`, which lives; what the device does with the memory
        // is the caller's promise.
        unsafe { calls::map(self.file.as_raw_fd(), &raw const range) }?;
        Ok(())
    }

    fn unmap(&self, iova: u64, len: u64) -> io::Result<()> {
        match self.take_back(0, iova, len)? {
            unmapped if unmapped == len => Ok(()),
            unmapped => Err(io::Error::other(format!("{unmapped:#x} bytes unmapped of {len:#x}"))),
        }
    }

    fn unmap_all(&self, window: Range<u64>) -> io::Result<u64> {
        if self.has(VFIO_UNMAP_ALL) {
            return self.take_back(VFIO_DMA_UNMAP_FLAG_ALL, 0, 0);
        }
        self.take_back(0, window.start, window.end.saturating_sub(window.start))
    }
}

impl AsFd for Type1 {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A group of functions that the IOMMU does not tell apart.
#[derive(Debug)]
pub(super) struct Group {
    file: File,
}

impl Group {
    /// Opens a group, which one process can at a time.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: OpenOptions::new().read(true).write(true).open(path)? })
    }

    /// The group that a descriptor is of.
    ///
    /// # Errors
    /// If it is not of the one at `path`, or if that one is not what it was: its functions are gone or have another driver,
    /// or it is in no container.
    pub fn adopt(fd: OwnedFd, path: &Path) -> io::Result<Self> {
        let group = Self { file: File::from(fd) };
        // By its number: its name was that of another process's /dev, which may have been one of its own.
        let (found, wanted) = (group.file.metadata()?.rdev(), std::fs::metadata(path)?.rdev());
        if found != wanted {
            let what = format!("device {found:#x} instead of {wanted:#x}, {}", path.display());
            return Err(io::Error::other(what));
        }
        let needed = VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET;
        match group.status()? {
            flags if flags & needed == needed => Ok(group),
            flags => {
                Err(io::Error::other(format!("group status {flags:#x} instead of {needed:#x}")))
            }
        }
    }

    fn status(&self) -> io::Result<u32> {
        let argsz = size_of::<vfio_group_status>() as u32;
        let mut status = vfio_group_status { argsz, flags: 0 };
        // SAFETY: the kernel writes `argsz` bytes, which is all of `status`, which lives.
        unsafe { calls::status(self.file.as_raw_fd(), &raw mut status) }?;
        Ok(status.flags)
    }

    /// Puts it into a container.
    ///
    /// # Errors
    /// What the kernel says: a function of it has another driver.
    pub fn join(&self, container: &Type1) -> io::Result<()> {
        if self.status()? & VFIO_GROUP_FLAGS_VIABLE == 0 {
            let what = "other functions of its group have drivers that are not vfio's";
            return Err(io::Error::other(what));
        }
        let fd = container.file.as_raw_fd();
        // SAFETY: the kernel reads one descriptor number from `fd`, which lives.
        unsafe { calls::set_container(self.file.as_raw_fd(), &raw const fd) }?;
        Ok(())
    }

    /// A descriptor of one of its functions.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn device(&self, name: &str) -> io::Result<OwnedFd> {
        let name = CString::new(name)?;
        // SAFETY: the kernel reads a string that ends in a zero, as `name` does, which lives.
        let fd = unsafe { calls::device(self.file.as_raw_fd(), name.as_ptr()) }?;
        // SAFETY: the call has just made this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_container_or_group_is_refused() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        assert!(Type1::adopt(null()).is_err());
        let other = Group::adopt(null(), Path::new("/dev/zero")).unwrap_err();
        assert!(other.to_string().contains("/dev/zero"), "{other}");
        assert!(Group::adopt(null(), Path::new("/dev/vfio/none")).is_err());
        assert!(Group::adopt(null(), Path::new("/dev/null")).is_err(), "no group's status");
    }
}
