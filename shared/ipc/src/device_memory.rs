//! Memory of a memory block device: a memfd that its backend owns and that leased workers map.
//!
//! The first [`DATA_OFFSET`] bytes are a `LeaseHeader`; the device's bytes follow, aligned for huge pages. Sealed
//! against shrinking, so that no access within a mapping can fault for want of a page; growing stays possible, and a
//! holder sees the growth when it opens the memory anew.
//!
//! # The write gate
//! A fused Compare-and-Write, run by the backend, must not interleave with a leased write. A leased writer enters the
//! gate around each write: it raises its own word, and looks at the `exclusive` counter. The backend raises the counter,
//! fences for both sides ([`crate::barrier`]), and waits until no writer's word is raised; a writer that finds the
//! counter raised takes its word down and goes by ring instead. So a leased write costs two plain stores and a load.

use crate::barrier;
use crate::guest_memory::HostSlice;
use crate::layout::{SegmentHeader, SharedText};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Where the device's first byte lies in the memfd: the size of a huge page.
pub const DATA_OFFSET: u64 = 2 << 20;
/// Largest device: far above any machine's memory, small enough that offsets never overflow.
pub const MAX_DEVICE_SIZE: u64 = 1 << 44;
/// Most leases of one device at a time; a further channel is granted as a ring.
pub const MAX_LEASES: usize = 512;

const KIND: u32 = u32::from_le_bytes(*b"DMEM");
const VERSION: u32 = 2;

/// Why device memory could not be made, mapped or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceMemoryError {
    /// A system call failed.
    #[error("{call} of device memory")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The descriptor is not device memory of this version.
    #[error("device memory: {field} is {found:#x}")]
    Mismatch {
        /// What is wrong.
        field: &'static str,
        /// What was found.
        found: u64,
    },
    /// The size is 0 or too large.
    #[error("device memory of {size} bytes, allowed are 1 to {MAX_DEVICE_SIZE}")]
    Size {
        /// The size asked for.
        size: u64,
    },
}

/// What stands before the data.
#[repr(C)]
struct LeaseHeader {
    header: SegmentHeader,
    /// Bytes of the device; stored by the backend alone.
    size: AtomicU64,
    /// The device's name.
    name: SharedText<8>,
    /// 1 if the backend's fence is [`barrier::heavy`]; then registered writers need none.
    asymmetric: AtomicU32,
    /// Process of each lease's holder, 0 for none; written by the backend, for its successor.
    holders: [AtomicU32; MAX_LEASES],
    /// Exclusive operations waiting or running.
    exclusive: Line,
    /// One word per lease: 1 while it writes.
    writers: [Line; MAX_LEASES],
}

const _: () = assert!(size_of::<LeaseHeader>() as u64 <= DATA_OFFSET);

#[repr(C, align(128))]
struct Line(AtomicU32);

/// A mapping of device memory. Unmapped when dropped.
pub struct DeviceMemory {
    base: NonNull<u8>,
    /// Bytes of the device within this mapping.
    size: u64,
    fd: OwnedFd,
}

// SAFETY: the mapping lives as long as the value and is only reached through atomics and HostSlice.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above.
unsafe impl Sync for DeviceMemory {}

impl std::fmt::Debug for DeviceMemory {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DeviceMemory").field("size", &self.size).finish_non_exhaustive()
    }
}

impl DeviceMemory {
    /// Makes memory for a device of `size` bytes, all zeroes, not yet allocated.
    pub fn create(name: &str, size: u64) -> Result<Self, DeviceMemoryError> {
        check_size(size)?;
        let file_name = CString::new(name.replace('\0', "_")).unwrap_or_default();
        let fd =
            memfd_create(file_name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
                .map_err(system("memfd_create"))?;
        ftruncate(&fd, (DATA_OFFSET + size) as i64).map_err(system("ftruncate"))?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).map_err(system("seal"))?;
        let memory = Self::map(fd, size)?;
        let header = &memory.lease().header;
        header.kind.store(KIND, Ordering::Relaxed);
        header.version.store(VERSION, Ordering::Relaxed);
        header.epoch.store(1, Ordering::Relaxed);
        memory.lease().size.store(size, Ordering::Relaxed);
        memory.lease().name.store(name);
        // Release: pairs with the Acquire in `open`.
        header.magic.store(SegmentHeader::MAGIC, Ordering::Release);
        Ok(memory)
    }

    /// Maps memory that was made by [`DeviceMemory::create`], in this process or another, at its present size.
    pub fn open(fd: OwnedFd) -> Result<Self, DeviceMemoryError> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(system("get seals"))? as u32;
        if seals & SealFlag::F_SEAL_SHRINK.bits() as u32 == 0 {
            return Err(DeviceMemoryError::Mismatch { field: "seals", found: u64::from(seals) });
        }
        let file_size = fstat(&fd).map_err(system("fstat"))?.st_size as u64;
        let size = file_size.saturating_sub(DATA_OFFSET);
        check_size(size)?;
        let memory = Self::map(fd, size)?;
        let lease = memory.lease();
        let fields = [
            // Acquire: pairs with the Release in `create`.
            ("magic", lease.header.magic.load(Ordering::Acquire), SegmentHeader::MAGIC),
            ("kind", u64::from(lease.header.kind.load(Ordering::Relaxed)), u64::from(KIND)),
            (
                "version",
                u64::from(lease.header.version.load(Ordering::Relaxed)),
                u64::from(VERSION),
            ),
        ];
        match fields.into_iter().find(|(_, found, wanted)| found != wanted) {
            Some((field, found, _)) => Err(DeviceMemoryError::Mismatch { field, found }),
            None => Ok(memory),
        }
    }

    /// The name that it was made with, at most 64 bytes of it.
    pub fn name(&self) -> String {
        self.lease().name.load()
    }

    /// Bytes of the device, as far as this mapping reaches.
    #[inline]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The descriptor, to hand to a lease's holder or to keep over a restart.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Device bytes; `None` past the end.
    #[inline]
    pub fn slice(&self, offset: u64, length: u64) -> Option<HostSlice<'_>> {
        if length > self.size || offset > self.size - length {
            return None;
        }
        // SAFETY: DATA_OFFSET + size bytes are mapped until drop (map), offset + length <= size was checked just now,
        // and the file cannot shrink (seals, checked in create and open).
        Some(unsafe {
            let start = self.base.add((DATA_OFFSET + offset) as usize);
            HostSlice::new(start, length as usize, true)
        })
    }

    /// Gives a range's memory back; it reads as zeroes afterwards. A system call, and as slow as the range is long.
    pub fn punch(&self, offset: u64, length: u64) -> Result<(), DeviceMemoryError> {
        if length == 0 {
            return Ok(());
        }
        if length > self.size || offset > self.size - length {
            return Err(DeviceMemoryError::Size { size: offset.saturating_add(length) });
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.fd, flags, (DATA_OFFSET + offset) as i64, length as i64)
            .map_err(system("fallocate"))
    }

    /// Lengthens the memory to `size` bytes and returns a mapping of it all. Others go on with theirs.
    pub fn grow(&self, size: u64) -> Result<Self, DeviceMemoryError> {
        check_size(size)?;
        if size < self.size {
            return Err(DeviceMemoryError::Size { size });
        }
        let fd = self.fd.try_clone().map_err(|error| DeviceMemoryError::System {
            call: "dup",
            source: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        })?;
        ftruncate(&fd, (DATA_OFFSET + size) as i64).map_err(system("ftruncate"))?;
        let grown = Self::map(fd, size)?;
        grown.lease().size.store(size, Ordering::Relaxed);
        Ok(grown)
    }

    /// Brings every page into this process's page table, allocating what is missing; for a helper thread. Best effort.
    pub fn prefault(&self) {
        let Some(length) = NonZeroUsize::new(self.size as usize) else { return };
        // SAFETY: DATA_OFFSET + size bytes are mapped; populating changes no content.
        unsafe {
            let start = self.base.add(DATA_OFFSET as usize).cast();
            madvise(start, length.get(), MmapAdvise::MADV_POPULATE_WRITE).ok();
        }
    }

    fn map(fd: OwnedFd, size: u64) -> Result<Self, DeviceMemoryError> {
        let bytes = (DATA_OFFSET + size) as usize;
        let length = NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN);
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, 0) }
            .map_err(system("mmap"))?;
        // SAFETY: the range was mapped just now; no advice changes its contents. Each is best effort.
        unsafe {
            madvise(base, bytes, MmapAdvise::MADV_DONTDUMP).ok();
            madvise(base, bytes, MmapAdvise::MADV_DONTFORK).ok();
            let data = base.add(DATA_OFFSET as usize);
            madvise(data, bytes - DATA_OFFSET as usize, MmapAdvise::MADV_HUGEPAGE).ok();
        }
        Ok(Self { base: base.cast(), size, fd })
    }

    fn lease(&self) -> &LeaseHeader {
        // SAFETY: DATA_OFFSET bytes and more are mapped until drop, page-aligned; LeaseHeader fits (asserted above), is
        // repr(C) and made of atomics, so every bit pattern is valid.
        unsafe { self.base.cast().as_ref() }
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; every HostSlice borrows self.
        unsafe { munmap(self.base.cast(), (DATA_OFFSET + self.size) as usize) }.ok();
    }
}

/// The backend's half of the gate.
impl DeviceMemory {
    /// Forgets what a predecessor left: nothing exclusive is running. Returns whether leased writers may do without a
    /// fence. Call once, before any lease is granted.
    pub fn own_gate(&self) -> bool {
        let asymmetric = barrier::register() && barrier::heavy();
        self.lease().asymmetric.store(u32::from(asymmetric), Ordering::Relaxed);
        self.lease().exclusive.0.store(0, Ordering::Release);
        asymmetric
    }

    /// Asks leased writers to stay out. They may still be inside: see [`DeviceMemory::writers_inside`].
    pub fn begin_exclusive(&self) {
        self.lease().exclusive.0.fetch_add(1, Ordering::Relaxed);
        // Pairs with `light` (or the fence) in `enter`: either the writer sees the counter, or we see its word.
        if !barrier::heavy() {
            fence(Ordering::SeqCst);
        }
    }

    /// Whether one of the first `leases` writers is still writing.
    pub fn writers_inside(&self, leases: usize) -> bool {
        let writers = self.lease().writers.iter().take(leases);
        // Acquire: pairs with the Release in `leave`; its data is ours to see.
        writers.map(|writer| writer.0.load(Ordering::Acquire)).any(|word| word != 0)
    }

    /// Lets leased writers in again.
    pub fn end_exclusive(&self) {
        // Release: pairs with the Acquire in `enter`; what was written under the lock is there.
        self.lease().exclusive.0.fetch_sub(1, Ordering::Release);
    }

    /// The process that a lease was granted to; `None` if it is free.
    pub fn holder(&self, lease: usize) -> Option<i32> {
        let holder = self.lease().holders.get(lease)?.load(Ordering::Relaxed);
        (holder != 0).then_some(holder as i32)
    }

    /// Notes the process that a lease is granted to, or that it is free.
    pub fn set_holder(&self, lease: usize, process: Option<i32>) {
        if let Some(holder) = self.lease().holders.get(lease) {
            holder.store(process.unwrap_or(0) as u32, Ordering::Relaxed);
        }
    }

    /// Takes a dead writer's word down, before its lease is granted again.
    pub fn clear_writer(&self, lease: usize) {
        if let Some(writer) = self.lease().writers.get(lease) {
            writer.0.store(0, Ordering::Release);
        }
    }
}

/// A leased writer's half of the gate.
#[derive(Debug)]
pub struct WriterGate {
    lease: usize,
    light: bool,
}

impl WriterGate {
    /// The gate of lease number `lease`, as granted; `None` if there is no such lease.
    pub fn new(memory: &DeviceMemory, lease: usize) -> Option<Self> {
        let asymmetric = memory.lease().asymmetric.load(Ordering::Relaxed) == 1;
        (lease < MAX_LEASES).then(|| Self { lease, light: asymmetric && barrier::register() })
    }

    /// Enters; `false` if an exclusive operation is waiting or running, and then the writer is not inside.
    #[inline]
    #[must_use]
    pub fn enter(&self, memory: &DeviceMemory) -> bool {
        let lease = memory.lease();
        let Some(word) = lease.writers.get(self.lease) else { return false };
        word.0.store(1, Ordering::Relaxed);
        // Pairs with the heavy fence in `begin_exclusive`.
        if self.light {
            barrier::light();
        } else {
            fence(Ordering::SeqCst);
        }
        // Acquire: pairs with the Release in `end_exclusive`.
        let free = lease.exclusive.0.load(Ordering::Acquire) == 0;
        if !free {
            word.0.store(0, Ordering::Release);
        }
        free
    }

    /// Leaves after the last byte was written.
    #[inline]
    pub fn leave(&self, memory: &DeviceMemory) {
        if let Some(word) = memory.lease().writers.get(self.lease) {
            // Release: pairs with the Acquire in `writers_inside`.
            word.0.store(0, Ordering::Release);
        }
    }
}

fn check_size(size: u64) -> Result<(), DeviceMemoryError> {
    if size == 0 || size > MAX_DEVICE_SIZE {
        return Err(DeviceMemoryError::Size { size });
    }
    Ok(())
}

fn system(call: &'static str) -> impl Fn(Errno) -> DeviceMemoryError {
    move |source| DeviceMemoryError::System { call, source }
}
