//! A segment: a sealed memfd with a typed layout of atomics, mapped by one or several processes.

use crate::layout::{Layout, SegmentHeader};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::ftruncate;
use std::ffi::CString;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;

/// Why a segment could not be made or mapped.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// A system call failed.
    #[error("{call} of segment {kind}")]
    System {
        /// The call.
        call: &'static str,
        /// The layout's kind.
        kind: String,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// The descriptor is not a segment of this layout.
    #[error("segment {kind}: {field} is {found:#x}, expected {expected:#x}")]
    Mismatch {
        /// The layout's kind.
        kind: String,
        /// The field that differs.
        field: &'static str,
        /// What was found.
        found: u64,
        /// What this version of the program wants.
        expected: u64,
    },
}

/// A mapped segment. Dereferences to its layout; unmapped when dropped.
pub struct Segment<L: Layout> {
    base: NonNull<L>,
    fd: OwnedFd,
    layout: PhantomData<L>,
}

// SAFETY: a layout consists of atomics alone (contract of Layout), the mapping lives as long as the value.
unsafe impl<L: Layout> Send for Segment<L> {}
// SAFETY: as above; every access goes through atomics.
unsafe impl<L: Layout> Sync for Segment<L> {}

impl<L: Layout> Segment<L> {
    /// Makes a zeroed segment for the object `id`, sealed against shrinking and growing.
    pub fn create(name: &str, id: u128) -> Result<Self, SegmentError> {
        let system = |call| move |source| SegmentError::System { call, kind: kind::<L>(), source };
        let name = CString::new(name.replace('\0', "_")).unwrap_or_default();
        let fd = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(system("memfd_create"))?;
        ftruncate(&fd, size_of::<L>() as i64).map_err(system("ftruncate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).map_err(system("seal"))?;
        let segment = Self::map(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let header = segment.header();
        header.kind.store(L::KIND, Ordering::Relaxed);
        header.version.store(L::VERSION, Ordering::Relaxed);
        header.size.store(size_of::<L>() as u64, Ordering::Relaxed);
        header.epoch.store(1, Ordering::Relaxed);
        header.id[0].store(id as u64, Ordering::Relaxed);
        header.id[1].store((id >> 64) as u64, Ordering::Relaxed);
        // Release: pairs with the Acquire in `check`; a reader that sees the magic sees the header.
        header.magic.store(SegmentHeader::MAGIC, Ordering::Release);
        Ok(segment)
    }

    /// Maps a segment that another process handed over, for reading and writing.
    pub fn open(fd: OwnedFd) -> Result<Self, SegmentError> {
        let segment = Self::map_checked(fd, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        segment.check()?;
        Ok(segment)
    }

    /// Maps a segment for reading; a store through it would fault, so callers that hold one only load.
    pub fn open_read_only(fd: OwnedFd) -> Result<Self, SegmentError> {
        let segment = Self::map_checked(fd, ProtFlags::PROT_READ)?;
        segment.check()?;
        Ok(segment)
    }

    /// The descriptor, to hand over for reading and writing.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// A new descriptor of the same memory that can be mapped for reading only.
    pub fn read_only_fd(&self) -> Result<OwnedFd, SegmentError> {
        let path = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|source| SegmentError::System { call: "reopen", kind: kind::<L>(), source })
    }

    /// The object's id.
    pub fn id(&self) -> u128 {
        let header = self.header();
        u128::from(header.id[0].load(Ordering::Relaxed))
            | u128::from(header.id[1].load(Ordering::Relaxed)) << 64
    }

    fn map_checked(fd: OwnedFd, protection: ProtFlags) -> Result<Self, SegmentError> {
        let system = |call| move |source| SegmentError::System { call, kind: kind::<L>(), source };
        let found = fstat(&fd).map_err(system("fstat"))?.st_size as u64;
        if found != size_of::<L>() as u64 {
            return Err(mismatch::<L>("file size", found, size_of::<L>() as u64));
        }
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS).map_err(system("get seals"))? as u32;
        let wanted = (SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW).bits() as u32;
        if seals & wanted != wanted {
            return Err(mismatch::<L>("seals", u64::from(seals), u64::from(wanted)));
        }
        Self::map(fd, protection)
    }

    fn map(fd: OwnedFd, protection: ProtFlags) -> Result<Self, SegmentError> {
        let system = |call| move |source| SegmentError::System { call, kind: kind::<L>(), source };
        const { assert!(size_of::<L>() > 0 && align_of::<L>() <= 4096) };
        let length = NonZeroUsize::new(size_of::<L>()).unwrap_or(NonZeroUsize::MIN);
        // SAFETY: a fresh shared mapping at an address that the kernel chooses; nothing else is affected.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &fd, 0) }
            .map_err(system("mmap"))?;
        // SAFETY: the range was mapped just now; neither advice changes its contents.
        unsafe {
            madvise(base, length.get(), MmapAdvise::MADV_DONTDUMP).ok();
            madvise(base, length.get(), MmapAdvise::MADV_DONTFORK).ok();
        }
        Ok(Self { base: base.cast(), fd, layout: PhantomData })
    }

    fn check(&self) -> Result<(), SegmentError> {
        let header = (**self).header();
        let fields = [
            // Acquire: pairs with the Release in `create`.
            ("magic", header.magic.load(Ordering::Acquire), SegmentHeader::MAGIC),
            ("kind", u64::from(header.kind.load(Ordering::Relaxed)), u64::from(L::KIND)),
            ("version", u64::from(header.version.load(Ordering::Relaxed)), u64::from(L::VERSION)),
            ("size", header.size.load(Ordering::Relaxed), size_of::<L>() as u64),
        ];
        match fields.into_iter().find(|(_, found, expected)| found != expected) {
            Some((field, found, expected)) => Err(mismatch::<L>(field, found, expected)),
            None => Ok(()),
        }
    }
}

impl<L: Layout> Deref for Segment<L> {
    type Target = L;
    fn deref(&self) -> &L {
        // SAFETY: `base` maps size_of::<L>() bytes, sealed against shrinking (create, map_checked), page-aligned, until
        // drop; every bit pattern of a Layout is valid and its fields are atomics.
        unsafe { self.base.as_ref() }
    }
}

impl<L: Layout> Drop for Segment<L> {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no reference outlives self.
        unsafe { munmap(self.base.cast(), size_of::<L>()) }.ok();
    }
}

fn kind<L: Layout>() -> String {
    String::from_utf8_lossy(&L::KIND.to_le_bytes()).into_owned()
}

fn mismatch<L: Layout>(field: &'static str, found: u64, expected: u64) -> SegmentError {
    SegmentError::Mismatch { kind: kind::<L>(), field, found, expected }
}
