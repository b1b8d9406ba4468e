//! Memory of the test-side host, shared with the target as a guest's is.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ipc::guest_memory::{HostSlice, Region, RegionPolicy};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_spec::Iova;

/// Bytes of a memory page unless a test wants others (CC.MPS 0).
pub const PAGE: u64 = 4096;

/// One memfd, mapped here, and offered to the device at an address of its own.
pub struct HostMemory {
    region: Arc<Region>,
    base: Iova,
    next: u64,
    page: u64,
}

/// Memory at an address that the device knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// The address as the device sees it.
    pub iova: Iova,
    /// Bytes.
    pub len: u64,
}

impl HostMemory {
    /// Fresh zeroed memory that the device is to see at `base`.
    pub fn new(base: Iova, bytes: u64) -> Self {
        Self::over(memfd(bytes), base, bytes)
    }

    /// The same over an object of the test's own.
    pub fn over(fd: OwnedFd, base: Iova, bytes: u64) -> Self {
        let region =
            Region::map(fd, bytes, &RegionPolicy::default()).expect("map memory of our own");
        Self { region, base, next: 0, page: PAGE }
    }

    /// Bytes of a memory page.
    pub fn page(&self) -> u64 {
        self.page
    }

    /// Memory pages are of so many bytes from now on.
    pub fn set_page(&mut self, bytes: u64) {
        self.page = bytes;
    }

    /// The descriptor, to be sent to the device.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.region.fd()
    }

    /// Where the device sees its first byte.
    pub fn base(&self) -> Iova {
        self.base
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }

    /// All of it.
    pub fn whole(&self) -> Buffer {
        Buffer { iova: self.base, len: self.len() }
    }

    /// Memory that nobody else uses, from a page's start.
    ///
    /// # Panics
    /// If there is none left.
    #[track_caller]
    pub fn allocate(&mut self, bytes: u64) -> Buffer {
        let start = self.next.next_multiple_of(self.page);
        self.next = start + bytes.next_multiple_of(self.page);
        assert!(self.next <= self.len(), "the test uses more memory than it made");
        Buffer { iova: Iova(self.base.0 + start), len: bytes }
    }

    /// How much is allocated now, for [`HostMemory::release`].
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// Gives back all that was allocated since the mark.
    pub fn release(&mut self, mark: u64) {
        self.next = mark;
    }

    /// Copies bytes to an address.
    #[track_caller]
    pub fn write(&self, at: Iova, bytes: &[u8]) {
        self.slice(at, bytes.len()).copy_from(bytes);
    }

    /// Copies bytes from an address.
    #[track_caller]
    pub fn read(&self, at: Iova, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.slice(at, len).copy_to(&mut bytes);
        bytes
    }

    /// Sets every byte of a buffer.
    #[track_caller]
    pub fn fill(&self, buffer: Buffer, byte: u8) {
        self.slice(buffer.iova, buffer.len as usize).fill(byte);
    }

    /// The memory itself at an address.
    ///
    /// # Panics
    /// If it is not this memory's.
    #[track_caller]
    pub fn slice(&self, at: Iova, len: usize) -> HostSlice<'_> {
        let offset = at.0.checked_sub(self.base.0).and_then(|offset| usize::try_from(offset).ok());
        let slice = offset.and_then(|offset| self.region.whole().sub(offset, len));
        slice.unwrap_or_else(|| panic!("{len} bytes at {:#x} are not the test's memory", at.0))
    }
}

impl Buffer {
    /// The part of `len` bytes from `offset`.
    ///
    /// # Panics
    /// If it does not lie within.
    #[track_caller]
    pub fn part(self, offset: u64, len: u64) -> Self {
        assert!(offset + len <= self.len, "a part lies within its buffer");
        Self { iova: Iova(self.iova.0 + offset), len }
    }
}

/// A memfd of that many zero bytes, without seals.
pub fn memfd(bytes: u64) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"vireo-test", flags).expect("memfd_create");
    ftruncate(fd.as_fd(), bytes as i64).expect("ftruncate");
    fd
}
