//! Memory that the controller reads and writes: registered once, whole, and counted.
//!
//! A memory object (a memfd) lies in one window of the controller's address space. [`Registered`] counts its users; the
//! last one takes it out of the controller's reach and unmaps it. A [`DmaBuffer`] is a range of it that has one owner:
//! the caller, or the request that is in flight with it.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ipc::guest_memory::{Access, HostSlice, Region, RegionError, RegionPolicy};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_spec::Iova;

use crate::transport::{Transport, TransportError};

/// Granularity of what is registered, in bytes: the page size that every controller offers (CAP.MPSMIN is mostly 0).
pub const PAGE_SIZE: usize = 4096;

/// First address given out: above what real platforms reserve for message-signalled interrupts.
const WINDOW_START: u64 = 4 << 30;
/// End of what is given out: the address width of the narrowest IOMMU in use (39 bits).
const WINDOW_END: u64 = 1 << 39;
/// All that is given out.
pub(crate) const WINDOW: Range<u64> = WINDOW_START..WINDOW_END;
/// Objects at least this large are aligned to it, so that an IOMMU can map them in large pages.
const LARGE: u64 = 2 << 20;

/// Why memory could not be had or registered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Nothing was asked for, or more than an address space holds.
    #[error("{len:#x} bytes cannot be registered")]
    Length {
        /// The length asked for.
        len: usize,
    },
    /// A system call failed.
    #[error("{call} of dma memory")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: nix::Error,
    },
    /// The object could not be mapped.
    #[error("map dma memory")]
    Map(#[from] RegionError),
    /// The controller's address space has no gap of that size.
    #[error("no room for {len:#x} bytes in the controller's address space")]
    Full {
        /// Bytes.
        len: u64,
    },
    /// The target refused it.
    #[error("register {len:#x} bytes with the target")]
    Refused {
        /// Bytes.
        len: u64,
        /// What it said.
        source: TransportError,
    },
}

/// The address space of one controller, and the transport that registers memory in it.
#[derive(Debug)]
pub(crate) struct Domain {
    transport: Arc<dyn Transport>,
    /// Bytes of a memory page of the controller's: objects begin with one.
    page: u64,
    /// Ranges in use, ascending: first address and the one past the last.
    used: Mutex<Vec<(u64, u64)>>,
    /// What is registered, by the object's address: who registers an object again shares its window.
    registered: Mutex<HashMap<usize, Weak<Registration>>>,
}

/// A memory object that is registered with one controller. Clones share it; it stays registered until the last clone
/// and the last [`DmaBuffer`] of it are gone.
#[derive(Clone)]
pub struct Registered {
    inner: Arc<Registration>,
}

struct Registration {
    region: Arc<Region>,
    iova: u64,
    /// `None`: another process registered it.
    domain: Option<Arc<Domain>>,
}

/// A range of registered memory with one owner. It moves into a [`crate::Request`] and comes back with the
/// [`crate::Completed`]; in between nobody can free, read or write it:
///
/// ```compile_fail,E0382
/// # fn example(queue: &mut nvme_driver::QueuePair, ns: &nvme_driver::Namespace, buffer: nvme_driver::DmaBuffer) {
/// queue.submit(nvme_driver::Request::read(ns, nvme_spec::Lba(0), buffer)).unwrap();
/// drop(buffer); // moved: it is in flight
/// # }
/// ```
///
/// Nor does a view of it outlive its being in flight:
///
/// ```compile_fail,E0505
/// # fn example(queue: &mut nvme_driver::QueuePair, ns: &nvme_driver::Namespace, buffer: nvme_driver::DmaBuffer) {
/// let view = buffer.host();
/// queue.submit(nvme_driver::Request::read(ns, nvme_spec::Lba(0), buffer)).unwrap();
/// view.fill(0); // still a borrow of what moved
/// # }
/// ```
///
/// Nor can it be in flight twice: it has no copy, and a request is used up.
///
/// ```compile_fail,E0599
/// # fn example(buffer: nvme_driver::DmaBuffer) {
/// let twin = buffer.clone();
/// # }
/// ```
///
/// ```compile_fail,E0382
/// # fn example(queue: &mut nvme_driver::QueuePair, request: nvme_driver::Request) {
/// queue.submit(request).unwrap();
/// queue.submit(request).unwrap();
/// # }
/// ```
///
/// Dropping it gives its share of the memory back.
pub struct DmaBuffer {
    memory: Registered,
    iova: u64,
    len: usize,
}

impl Domain {
    /// Of a controller with memory pages of `1 << page_shift` bytes.
    pub(crate) fn new(transport: Arc<dyn Transport>, page_shift: u32) -> Arc<Self> {
        let page = 1 << page_shift;
        Arc::new(Self { transport, page, used: Mutex::default(), registered: Mutex::default() })
    }

    fn registered(&self) -> MutexGuard<'_, HashMap<usize, Weak<Registration>>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a gap of `len` bytes.
    fn take(&self, len: u64) -> Option<u64> {
        let align = if len >= LARGE { LARGE.max(self.page) } else { self.page };
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let mut start = WINDOW_START;
        let mut at = used.len();
        for (index, &(first, end)) in used.iter().enumerate() {
            if start.checked_add(len)? <= first {
                at = index;
                break;
            }
            start = end.next_multiple_of(align);
        }
        let end = start.checked_add(len).filter(|&end| end <= WINDOW_END)?;
        used.insert(at, (start, end));
        Some(start)
    }

    fn give_back(&self, start: u64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|&(first, _)| first != start);
    }
}

impl Registered {
    /// New zeroed memory of at least `len` bytes. Its size is sealed, so that no target can take pages away.
    pub(crate) fn allocate(domain: &Arc<Domain>, len: usize) -> Result<Self, MemoryError> {
        let system = |call| move |source| MemoryError::System { call, source };
        let size = len.checked_next_multiple_of(PAGE_SIZE).filter(|&size| size > 0);
        let size =
            size.and_then(|size| i64::try_from(size).ok()).ok_or(MemoryError::Length { len })?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"nvme-driver", flags).map_err(system("memfd_create"))?;
        ftruncate(&fd, size).map_err(system("ftruncate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        let registered = Self::register(domain, fd)?;
        // Brings the pages in, so that the first I/O meets none that is missing.
        registered.inner.region.whole().fill(0);
        Ok(registered)
    }

    /// Registers the whole of a memory object.
    pub(crate) fn register(domain: &Arc<Domain>, fd: OwnedFd) -> Result<Self, MemoryError> {
        Self::register_region(domain, Region::map(fd, 1, &RegionPolicy::default())?)
    }

    /// Registers the whole of a memory object that is mapped already.
    pub(crate) fn register_region(
        domain: &Arc<Domain>,
        region: Arc<Region>,
    ) -> Result<Self, MemoryError> {
        let key = Arc::as_ptr(&region).addr();
        if let Some(inner) = domain.registered().get(&key).and_then(Weak::upgrade) {
            return Ok(Self { inner });
        }
        let len = region.len();
        let iova = domain.take(len).ok_or(MemoryError::Full { len })?;
        if let Err(source) = domain.transport.dma_map(iova, &region) {
            domain.give_back(iova);
            return Err(MemoryError::Refused { len, source });
        }
        let inner = Arc::new(Registration { region, iova, domain: Some(Arc::clone(domain)) });
        domain.registered().insert(key, Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Memory that another process registered, from `iova` on: the controller goes on reaching it for as long as that
    /// process says, whatever becomes of this value.
    #[must_use]
    pub fn lent(region: Arc<Region>, iova: u64) -> Self {
        Self { inner: Arc::new(Registration { region, iova, domain: None }) }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.region.len() as usize
    }

    /// Never: an empty object is not registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range as a buffer; `None` if it does not lie within or is empty. Ranges may overlap: what the memory holds
    /// then is the callers' agreement, as it is with a guest's memory.
    #[must_use]
    pub fn buffer(&self, offset: usize, len: usize) -> Option<DmaBuffer> {
        let end = offset.checked_add(len)?;
        if len == 0 || end > self.len() {
            return None;
        }
        Some(DmaBuffer { memory: self.clone(), iova: self.inner.iova + offset as u64, len })
    }

    /// The whole of it, for reading or as its descriptor allows.
    #[must_use]
    pub fn host(&self) -> HostSlice<'_> {
        self.inner.region.whole()
    }

    /// First address, as the controller sees it.
    pub(crate) fn iova(&self) -> u64 {
        self.inner.iova
    }

    /// The object.
    pub(crate) fn region(&self) -> &Arc<Region> {
        &self.inner.region
    }

    /// What tells one controller's memory from another's.
    #[inline]
    pub(crate) fn domain(&self) -> *const Domain {
        self.inner.domain.as_ref().map_or(ptr::null(), Arc::as_ptr)
    }
}

impl DmaBuffer {
    /// Bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address as the controller sees it.
    #[inline]
    #[must_use]
    pub fn iova(&self) -> Iova {
        Iova(self.iova)
    }

    /// The memory itself. A target that misbehaves may change it at any moment, so it is copied, never referenced.
    #[must_use]
    pub fn host(&self) -> HostSlice<'_> {
        let region = &self.memory.inner.region;
        let offset = self.iova - self.memory.inner.iova;
        let access =
            if region.access().contains(Access::WRITE) { Access::READ_WRITE } else { Access::READ };
        // The range was checked when the buffer was made.
        region.slice(offset, self.len, access).unwrap_or_else(|| region.whole())
    }

    /// Copies out, as many bytes as both have; returns their number.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        self.host().copy_to(to)
    }

    /// Copies in, as many bytes as both have; returns their number.
    pub fn copy_from(&mut self, from: &[u8]) -> usize {
        self.host().copy_from(from)
    }

    /// Its bytes, in memory of their own.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Splits the end from `at` on off; `None`, and no change, if either part would be empty.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Option<Self> {
        if at == 0 || at >= self.len {
            return None;
        }
        let rest =
            Self { memory: self.memory.clone(), iova: self.iova + at as u64, len: self.len - at };
        self.len = at;
        Some(rest)
    }

    /// Cuts it into pieces of `len` bytes; what is left over at the end is given back.
    #[must_use]
    pub fn into_chunks(mut self, len: usize) -> Vec<Self> {
        let mut chunks = Vec::new();
        if len == 0 || self.len < len {
            return chunks;
        }
        while self.len > len {
            let Some(rest) = self.split_off(len) else { break };
            chunks.push(std::mem::replace(&mut self, rest));
        }
        if self.len == len {
            chunks.push(self);
        }
        chunks
    }

    /// The object it is a part of.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &Registered {
        &self.memory
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(domain) = &self.domain else { return };
        // Its successor under the same key, if it has one by now, stays.
        let key = Arc::as_ptr(&self.region).addr();
        let mut registered = domain.registered();
        if registered.get(&key).is_some_and(|present| present.strong_count() == 0) {
            registered.remove(&key);
        }
        drop(registered);
        // A target that refuses, or is gone, cannot be helped; its address is not given out again then.
        match domain.transport.dma_unmap(self.iova, self.region.len()) {
            Ok(()) => domain.give_back(self.iova),
            Err(error) => tracing::debug!(error = %error, iova = self.iova, "dma unmap failed"),
        }
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({:#x}+{:#x})", self.inner.iova, self.len())
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({:#x}+{:#x})", self.iova, self.len)
    }
}

const _: () = assert!(size_of::<DmaBuffer>() == 24);
const _: () = assert!(size_of::<Option<DmaBuffer>>() == 24);
