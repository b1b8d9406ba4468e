//! One mapping of one memory object of a client.

use super::{Access, HostSlice};
use crate::sigbus;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

/// Bytes that the prefault thread touches at a time, between two looks at whether the region is still wanted.
const PREFAULT_STEP: u64 = 16 << 20;

/// What may be mapped.
#[derive(Clone, Copy, Debug)]
pub struct RegionPolicy {
    /// Largest memory object in bytes: bounds the address space that a sparse file costs.
    pub max_size: u64,
    /// Also memory of other file systems than tmpfs and hugetlbfs, where a page fault may block for ever.
    pub any_file_system: bool,
}

impl Default for RegionPolicy {
    /// 16 TiB (an eighth of the address space), tmpfs and hugetlbfs alone.
    fn default() -> Self {
        Self { max_size: 16 << 40, any_file_system: false }
    }
}

/// What makes two descriptors the same memory within one controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionKey {
    /// Device of the file system.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// What the descriptor allows.
    pub access: Access,
}

/// Why a descriptor was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// A system call failed.
    #[error("{call} of a dma descriptor")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// Neither tmpfs nor hugetlbfs.
    #[error("dma descriptor lies neither on tmpfs nor on hugetlbfs")]
    FileSystem,
    /// Not a regular file, or not open for reading.
    #[error("dma descriptor is not a regular file that is open for reading")]
    NotMemory,
    /// Smaller than what is to be mapped from it.
    #[error("dma descriptor has {size:#x} bytes, {needed:#x} are mapped")]
    TooSmall {
        /// Bytes of the file.
        size: u64,
        /// Bytes that the mapping needs.
        needed: u64,
    },
    /// Larger than the policy allows.
    #[error("dma descriptor has {size:#x} bytes, more than {max:#x}")]
    TooLarge {
        /// Bytes of the file.
        size: u64,
        /// The bound.
        max: u64,
    },
    /// The process has as many regions as its fault handler can know.
    #[error("process has {0} regions already")]
    TooMany(usize),
}

/// One memory object of one client, mapped whole. Unmapped when the last `Arc` goes.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    key: RegionKey,
    fd: OwnedFd,
    /// Entry in the fault handler's table; released before the memory is unmapped.
    guard: sigbus::Guard,
}

// SAFETY: the mapping belongs to the value and is only reached by raw copies and atomics, from any thread.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl RegionPolicy {
    /// Whether the descriptor may be looked at: `fstat` and `statfs` of a file whose server does not answer wait as long
    /// as a page fault would, so they come after this. Seals tell: files of tmpfs and hugetlbfs have them, those of no
    /// other file system do, and no file system is asked for them.
    ///
    /// # Errors
    /// [`RegionError::FileSystem`]; [`RegionError::System`] for a descriptor that was opened as a path alone.
    pub fn check(&self, fd: BorrowedFd<'_>) -> Result<(), RegionError> {
        match fcntl(fd, FcntlArg::F_GET_SEALS) {
            Ok(_) => Ok(()),
            Err(nix::Error::EINVAL) if self.any_file_system => Ok(()),
            Err(nix::Error::EINVAL) => Err(RegionError::FileSystem),
            Err(error) => Err(system("fcntl")(error)),
        }
    }
}

impl RegionKey {
    /// The key of a descriptor.
    ///
    /// # Errors
    /// [`RegionError::System`], [`RegionError::NotMemory`].
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, RegionError> {
        let stat = fstat(fd).map_err(system("fstat"))?;
        let mode = fcntl(fd, FcntlArg::F_GETFL).map_err(system("fcntl"))?;
        let mode = OFlag::from_bits_retain(mode);
        let access = match mode & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => Access::READ,
            OFlag::O_RDWR => Access::READ_WRITE,
            // A shared mapping of a descriptor that cannot be read does not exist.
            _ => return Err(RegionError::NotMemory),
        };
        let file_type = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        if mode.contains(OFlag::O_PATH) || file_type != SFlag::S_IFREG {
            return Err(RegionError::NotMemory);
        }
        Ok(Self { device: stat.st_dev, inode: stat.st_ino, access })
    }
}

impl Region {
    /// Maps the whole of a client's memory object, of which at least `needed` bytes are wanted.
    ///
    /// # Errors
    /// A [`RegionError`]; the descriptor is closed then.
    pub fn map(fd: OwnedFd, needed: u64, policy: &RegionPolicy) -> Result<Arc<Self>, RegionError> {
        sigbus::install().map_err(system("sigaction"))?;
        policy.check(fd.as_fd())?;
        let key = RegionKey::of(fd.as_fd())?;
        let file_system = fstatfs(&fd).map_err(system("fstatfs"))?;
        let kind = file_system.filesystem_type();
        let size = fstat(&fd).map_err(system("fstat"))?.st_size.max(0) as u64;
        if size > policy.max_size {
            return Err(RegionError::TooLarge { size, max: policy.max_size });
        }
        let len = usize::try_from(size).ok().and_then(NonZeroUsize::new);
        let Some(len) = len.filter(|_| size >= needed) else {
            return Err(RegionError::TooSmall { size, needed });
        };
        let protection = match key.access.contains(Access::WRITE) {
            true => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            false => ProtFlags::PROT_READ,
        };
        // Whole pages, which on hugetlbfs are its block size: munmap wants that.
        let page =
            if kind == HUGETLBFS_MAGIC { file_system.block_size().max(1) as usize } else { 4096 };
        let mapped = len.get().next_multiple_of(page);
        // SAFETY: a fresh shared mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap(None, len, protection, MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE, &fd, 0)
        }
        .map_err(system("mmap"))?;
        let unmap = || {
            // SAFETY: the range was mapped just now and nobody has its address.
            unsafe { munmap(base, mapped) }.ok();
        };
        // SAFETY: the range was mapped just now; neither advice changes its contents.
        unsafe {
            madvise(base, mapped, MmapAdvise::MADV_DONTDUMP).ok();
            madvise(base, mapped, MmapAdvise::MADV_DONTFORK).ok();
        }
        // SAFETY: base to base + mapped is a mapping of this value's own, and `drop` releases the guard first.
        let Some(guard) = (unsafe { sigbus::Guard::new(base.cast(), mapped) }) else {
            unmap();
            return Err(RegionError::TooMany(sigbus::MAX_GUARDS));
        };
        Ok(Arc::new(Self { base: base.cast(), len: len.get(), key, fd, guard }))
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: an empty object is not mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Device, inode, access.
    pub fn key(&self) -> RegionKey {
        self.key
    }

    /// What the descriptor allows.
    #[inline]
    pub fn access(&self) -> Access {
        self.key.access
    }

    /// The descriptor, to be handed over to other processes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether an access has faulted: the client truncated the object, or a page is poisoned or cannot be had. From
    /// then on this process sees private zeroed memory in its place.
    #[inline]
    pub fn failed(&self) -> bool {
        self.guard.failed()
    }

    /// The whole region, for reading or as its descriptor allows.
    pub fn whole(&self) -> HostSlice<'_> {
        // SAFETY: mapped in `map` with this length and this protection, until drop.
        unsafe { HostSlice::new(self.base, self.len, self.access().contains(Access::WRITE)) }
    }

    /// A part of the region for this access; `None` if it does not lie within or the descriptor does not allow it.
    #[inline]
    pub fn slice(&self, offset: u64, len: usize, access: Access) -> Option<HostSlice<'_>> {
        let size = self.len as u64;
        if offset > size || len as u64 > size - offset || !self.access().contains(access) {
            return None;
        }
        // SAFETY: offset + len <= self.len and the access is within the protection, both checked above; the mapping
        // lives as long as self.
        unsafe {
            let base = self.base.add(offset as usize);
            Some(HostSlice::new(base, len, access.contains(Access::WRITE)))
        }
    }

    #[inline]
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Brings the pages that the object has into this process's page table, from a thread of its own that ends with
    /// the region. Holes stay holes.
    ///
    /// # Errors
    /// If no thread can be had; the region works all the same.
    pub fn prefault(self: &Arc<Self>) -> std::io::Result<()> {
        let region = Arc::downgrade(self);
        std::thread::Builder::new().name("prefault".into()).spawn(move || {
            let mut offset = Some(0);
            while let Some(from) = offset {
                offset = prefault_step(&region, from);
            }
        })?;
        Ok(())
    }
}

/// Populates the next part of the object that has pages, at most [`PREFAULT_STEP`]; returns where to go on.
fn prefault_step(region: &Weak<Region>, from: u64) -> Option<u64> {
    let region = region.upgrade()?;
    // An open of its own: the client's file position is not ours to move.
    let path = format!("/proc/self/fd/{}", region.fd.as_raw_fd());
    let file = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let start = lseek(&file, i64::try_from(from).ok()?, Whence::SeekData).ok()? as u64 & !4095;
    let end = lseek(&file, start as i64, Whence::SeekHole).ok()? as u64;
    let end = end.min(region.len()).min(start + PREFAULT_STEP);
    let len = end.checked_sub(start).filter(|&len| len > 0)? as usize;
    let advice = match region.access().contains(Access::WRITE) {
        true => libc::MADV_POPULATE_WRITE,
        false => libc::MADV_POPULATE_READ,
    };
    // SAFETY: start + len <= region.len() (end above), mapped as long as `region` is held here.
    let done =
        unsafe { libc::madvise(region.base.as_ptr().add(start as usize).cast(), len, advice) };
    // A page that cannot be had is an error here, not a signal; whoever touches it will see.
    (done == 0).then_some(end)
}

impl Drop for Region {
    fn drop(&mut self) {
        let (base, len) = self.guard.release();
        // SAFETY: mapped in `map` with this length; every HostSlice borrows from self, so none is left, and the fault
        // handler no longer knows the range.
        unsafe { munmap(base.cast(), len) }.ok();
    }
}

fn system(call: &'static str) -> impl Fn(nix::Error) -> RegionError {
    move |source| RegionError::System { call, source }
}
