//! The doorbell page: the only memory of ours that a client sees. Its own memfd, sealed against shrink and grow before
//! anybody else has it, so that no client can make an access of ours fault.
//!
//! Hot path: a load is one load.

use crate::sync::{AtomicU32, Ordering};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes of the page: what a client maps at BAR 0 + 1000h (CAP.DSTRD 0, NVMe over PCIe Transport 1.0c 3.1.2).
pub const DOORBELL_PAGE_SIZE: usize = 4096;
/// Where the page lies in its descriptor: clients map at the region's offset plus the area's within BAR 0, so the offset
/// in the descriptor is the one in the BAR. What lies before is nobody's.
pub const DOORBELL_PAGE_OFFSET: usize = 0x1000;
/// Bytes of the descriptor.
const FILE_SIZE: usize = DOORBELL_PAGE_OFFSET + DOORBELL_PAGE_SIZE;
/// Doorbells in the page.
pub const DOORBELLS: usize = DOORBELL_PAGE_SIZE / 4;

/// Why a doorbell page could not be made or mapped.
#[derive(Debug, thiserror::Error)]
pub enum DoorbellError {
    /// A system call failed.
    #[error("{call} of doorbell page")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// The descriptor is not a doorbell page: its size or its seals differ.
    #[error("doorbell page has {field} {found:#x}, expected {expected:#x}")]
    Mismatch {
        /// What differs.
        field: &'static str,
        /// What was found.
        found: u64,
        /// What is wanted.
        expected: u64,
    },
}

/// A mapped doorbell page. Index 2 * QID is the queue's SQ tail, 2 * QID + 1 its CQ head.
pub struct DoorbellPage {
    base: NonNull<[AtomicU32; DOORBELLS]>,
    fd: OwnedFd,
}

// SAFETY: the page consists of atomics alone and stays mapped as long as the value lives.
unsafe impl Send for DoorbellPage {}
// SAFETY: as above; every access is atomic.
unsafe impl Sync for DoorbellPage {}

impl DoorbellPage {
    /// Makes a page of zeroes, sealed.
    pub fn create() -> Result<Self, DoorbellError> {
        let system = |call| move |source| DoorbellError::System { call, source };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"vireo-doorbells", flags).map_err(system("memfd_create"))?;
        ftruncate(&fd, FILE_SIZE as i64).map_err(system("ftruncate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        Self::map(fd)
    }

    /// Maps a page that another process of ours handed over.
    pub fn open(fd: OwnedFd) -> Result<Self, DoorbellError> {
        let system = |call| move |source| DoorbellError::System { call, source };
        let mismatch = |field, found, expected| DoorbellError::Mismatch { field, found, expected };
        let size = fstat(&fd).map_err(system("fstat"))?.st_size as u64;
        if size != FILE_SIZE as u64 {
            return Err(mismatch("size", size, FILE_SIZE as u64));
        }
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(system("get seals"))? as u32;
        let wanted = (SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW).bits() as u32;
        if seals & wanted != wanted {
            return Err(mismatch("seals", u64::from(seals), u64::from(wanted)));
        }
        Self::map(fd)
    }

    /// The value of a doorbell. `index` is taken modulo [`DOORBELLS`].
    #[inline]
    pub fn load(&self, index: usize) -> u32 {
        // Acquire: pairs with the guest's store (a release by its own rules), which follows its writes of the entries.
        self.page()[index % DOORBELLS].load(Ordering::Acquire)
    }

    /// Stores a doorbell, for a client that does not map the page, and to clear it at a reset. `index` is taken modulo
    /// [`DOORBELLS`].
    pub fn store(&self, index: usize, value: u32) {
        // Release: pairs with the Acquire in `load`.
        self.page()[index % DOORBELLS].store(value, Ordering::Release);
    }

    /// Sets every doorbell to 0.
    pub fn clear(&self) {
        self.page().iter().for_each(|doorbell| doorbell.store(0, Ordering::Release));
    }

    /// A second descriptor of the page, to be sent to a client.
    pub fn client_fd(&self) -> Result<OwnedFd, DoorbellError> {
        self.fd.try_clone().map_err(|error| DoorbellError::System {
            call: "dup",
            source: nix::Error::from_raw(error.raw_os_error().unwrap_or(0)),
        })
    }

    /// The address of the page, to prefetch it or to wait on it.
    pub fn as_ptr(&self) -> *const u32 {
        self.base.as_ptr().cast()
    }

    fn page(&self) -> &[AtomicU32; DOORBELLS] {
        // SAFETY: `base` maps DOORBELL_PAGE_SIZE bytes, sealed against shrinking (create, open), until drop; any bit
        // pattern is a valid atomic.
        unsafe { self.base.as_ref() }
    }

    fn map(fd: OwnedFd) -> Result<Self, DoorbellError> {
        const { assert!(DOORBELL_PAGE_SIZE > 0 && size_of::<u32>() * DOORBELLS == 4096) };
        let length = NonZeroUsize::new(DOORBELL_PAGE_SIZE).unwrap_or(NonZeroUsize::MIN);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let at = DOORBELL_PAGE_OFFSET as i64;
        // SAFETY: a fresh shared mapping at an address that the kernel chooses; nothing else is affected.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, at) }
            .map_err(|source| DoorbellError::System { call: "mmap", source })?;
        Ok(Self { base: base.cast(), fd })
    }
}

impl AsFd for DoorbellPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for DoorbellPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference outlives self.
        unsafe { munmap(self.base.cast(), DOORBELL_PAGE_SIZE) }.ok();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_seen_through_another_mapping() {
        let ours = DoorbellPage::create().unwrap();
        let theirs = DoorbellPage::open(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
        theirs.store(5, 42);
        assert_eq!(ours.load(5), 42);
        assert_eq!(ours.load(5 + DOORBELLS), 42, "the index wraps instead of leaving the page");
        ours.clear();
        assert_eq!(theirs.load(5), 0);
    }

    #[test]
    fn the_page_can_be_neither_shrunk_nor_grown() {
        let page = DoorbellPage::create().unwrap();
        assert!(ftruncate(page.as_fd(), 0).is_err());
        assert!(ftruncate(page.as_fd(), 2 * FILE_SIZE as i64).is_err());
    }

    #[test]
    fn other_descriptors_are_refused() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let short = memfd_create(c"short", flags).unwrap();
        assert!(matches!(
            DoorbellPage::open(short),
            Err(DoorbellError::Mismatch { field: "size", .. })
        ));
        let unsealed = memfd_create(c"unsealed", flags).unwrap();
        ftruncate(&unsealed, FILE_SIZE as i64).unwrap();
        assert!(matches!(
            DoorbellPage::open(unsealed),
            Err(DoorbellError::Mismatch { field: "seals", .. })
        ));
    }
}
