//! Memory at hand, that others change at will. On the hot path.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of a cache line.
const LINE: usize = 64;

/// What a line is copied by.
#[cfg(target_arch = "x86_64")]
type Part = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Part = [u64; 2];

/// A copy of 64 bytes, as a queue entry has. It is handed on by whole vectors: taking it apart word by word and putting
/// it together again costs more than all else that is done to an entry.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Line {
    parts: [Part; LINE / size_of::<Part>()],
}

impl Line {
    /// The bytes as 64-bit words.
    #[inline(always)]
    pub fn words(&self) -> &[u64; LINE / 8] {
        // SAFETY: the same bytes, any of which are valid, aligned to 16.
        unsafe { &*(&raw const self.parts).cast() }
    }

    /// The first word.
    #[inline(always)]
    pub fn first(&self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        {
            // SAFETY: SSE2 is part of x86-64.
            unsafe { std::arch::x86_64::_mm_cvtsi128_si64(self.parts[0]).cast_unsigned() }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self.parts[0][0]
        }
    }

    /// Stores the words, in no particular order.
    #[inline(always)]
    pub fn store(&self, to: &[AtomicU64; LINE / 8]) {
        // SAFETY: as many bytes; atomics may be written through a shared reference, and have no padding. Whoever reads
        // them has to be told by a later store with Release, as with relaxed stores.
        unsafe {
            to.as_ptr().cast::<Self>().cast_mut().cast::<[Part; 4]>().write_unaligned(self.parts)
        };
    }
}

/// Where 64 bytes lie that others change at will.
#[derive(Clone, Copy, Debug)]
pub struct LineAt<'a> {
    at: NonNull<Part>,
    memory: PhantomData<&'a ()>,
}

impl LineAt<'_> {
    /// Copies them, each once. How a submission queue entry is taken in.
    #[inline(always)]
    pub fn load(self) -> Line {
        let at = self.at.as_ptr();
        // SAFETY: within a slice and aligned, both checked in `line`. Volatile: read once, whatever is done with the
        // copy; each half of a part is read whole, as an aligned 64-bit load is.
        let parts = std::array::from_fn(|part| unsafe { at.add(part).read_volatile() });
        Line { parts }
    }
}

/// Where memory was when it was last looked at, for asking for its lines ahead of time. It promises nothing: the memory
/// may be gone, then nothing happens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint(usize);

impl Hint {
    /// Asks for the line at `offset` to be brought into the first-level cache.
    #[inline(always)]
    pub fn prefetch(self, offset: usize) {
        prefetch::<FIRST_LEVEL>(std::ptr::without_provenance(self.0.wrapping_add(offset)));
    }
}

#[cfg(target_arch = "x86_64")]
const FIRST_LEVEL: i32 = std::arch::x86_64::_MM_HINT_T0;
#[cfg(target_arch = "x86_64")]
const SECOND_LEVEL: i32 = std::arch::x86_64::_MM_HINT_T1;
#[cfg(not(target_arch = "x86_64"))]
const FIRST_LEVEL: i32 = 0;
#[cfg(not(target_arch = "x86_64"))]
const SECOND_LEVEL: i32 = 1;

/// A hint: it changes nothing and cannot fault.
#[inline(always)]
fn prefetch<const LEVEL: i32>(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults, wherever it points.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<LEVEL>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A range of mapped memory that the guest, or another process, may change at any moment. It stays mapped for `'a`.
///
/// Bulk operations are one memcpy each; what they copy while another writes is any mix of old and new bytes. If the
/// memory is gone (its client truncated it), they see zeroes and the region is marked failed
/// ([`crate::sigbus`]).
#[derive(Clone, Copy, Debug)]
pub struct HostSlice<'a> {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    memory: PhantomData<&'a ()>,
}

impl<'a> HostSlice<'a> {
    /// A slice of mapped memory.
    ///
    /// # Safety
    /// `base` to `base + len` is mapped readable, and writable if so said, for all of `'a`; no Rust reference to
    /// anything but atomics in it exists.
    #[inline]
    pub unsafe fn new(base: NonNull<u8>, len: usize, writable: bool) -> Self {
        Self { base, len, writable, memory: PhantomData }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the slice was asked for to be written.
    #[inline]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The address, for system calls (an iovec, a submission to io_uring) that end before the region is unmapped.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// A part, or `None` if it does not lie within.
    #[inline]
    pub fn sub(&self, offset: usize, len: usize) -> Option<Self> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: offset <= self.len, checked above, so the pointer stays within (or at the end of) the mapping.
        let base = unsafe { self.base.add(offset) };
        Some(Self { base, len, ..*self })
    }

    /// Copies to `to`; as many bytes as both have. Returns their number.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        // SAFETY: len bytes are mapped (new) and len <= to.len(); `to` is exclusive, so they do not overlap.
        unsafe { self.base.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), len) };
        len
    }

    /// Copies from `from`; as many bytes as both have, none into a slice that was not asked for to be written.
    /// Returns their number.
    #[inline]
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let len = self.writable_len().min(from.len());
        // SAFETY: len bytes are mapped writable (new) and len <= from.len(); private and mapped memory are apart.
        unsafe { self.base.as_ptr().copy_from_nonoverlapping(from.as_ptr(), len) };
        len
    }

    /// Copies from another slice, which may overlap; as many bytes as both have. Returns their number.
    #[inline]
    pub fn copy_from_slice(&self, from: &HostSlice<'_>) -> usize {
        let len = self.writable_len().min(from.len);
        // SAFETY: len bytes of both are mapped (new); copy_from allows overlap.
        unsafe { self.base.as_ptr().copy_from(from.base.as_ptr(), len) };
        len
    }

    /// Sets every byte.
    #[inline]
    pub fn fill(&self, byte: u8) {
        // SAFETY: that many bytes are mapped writable (new).
        unsafe { self.base.as_ptr().write_bytes(byte, self.writable_len()) };
    }

    /// Asks for the lines of the slice to be brought into the second-level cache, the last one first: the copy that
    /// follows at once starts at the other end. A hint: it changes nothing and cannot fault.
    #[inline]
    pub fn prefetch(&self) {
        for offset in (0..self.len).step_by(LINE).rev() {
            self.prefetch_line(offset);
        }
    }

    /// The same in order, for what is needed later.
    #[inline]
    pub fn prefetch_ahead(&self) {
        for offset in (0..self.len).step_by(LINE) {
            self.prefetch_line(offset);
        }
    }

    /// The first line only, which brings in the translation of its address as well.
    #[inline]
    pub fn prefetch_first(&self) {
        self.prefetch_line(0);
    }

    /// To ask for lines of it without looking where it is again.
    #[must_use]
    pub fn hint(&self) -> Hint {
        Hint(self.base.as_ptr() as usize)
    }

    #[inline]
    fn prefetch_line(&self, offset: usize) {
        prefetch::<SECOND_LEVEL>(self.base.as_ptr().wrapping_add(offset));
    }

    /// Whether the bytes equal `bytes`, which is as long.
    #[inline]
    pub fn compare(&self, bytes: &[u8]) -> bool {
        // SAFETY: both are len bytes; memcmp reads each some number of times and decides nothing but its own result.
        self.len == bytes.len() && unsafe { equal(self.base.as_ptr(), bytes.as_ptr(), self.len) }
    }

    /// Whether the bytes equal those of `other`, which is as long.
    #[inline]
    pub fn compare_slice(&self, other: &HostSlice<'_>) -> bool {
        // SAFETY: as in `compare`; both are mapped.
        self.len == other.len && unsafe { equal(self.base.as_ptr(), other.as_ptr(), self.len) }
    }

    /// Loads the 32-bit word at `offset`; `None` if it does not lie within or is not aligned.
    #[inline]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> Option<u32> {
        let word = self.word::<AtomicU32>(offset)?;
        // SAFETY: checked in `word`; only atomics are referenced in this memory.
        Some(u32::from_le(unsafe { word.as_ref() }.load(order)))
    }

    /// Loads the 64-bit word at `offset`; `None` if it does not lie within or is not aligned.
    #[inline]
    pub fn load_u64(&self, offset: usize, order: Ordering) -> Option<u64> {
        let word = self.word::<AtomicU64>(offset)?;
        // SAFETY: as in `load_u32`.
        Some(u64::from_le(unsafe { word.as_ref() }.load(order)))
    }

    /// Loads `N` 64-bit words from `offset`, each once, in no particular order; `None` if they do not lie within or are
    /// not aligned. How a queue entry is copied: the size is known, so this is a handful of moves.
    #[inline]
    pub fn load_words<const N: usize>(&self, offset: usize) -> Option<[u64; N]> {
        let words = self.sub(offset, N * size_of::<u64>())?.base.cast::<[AtomicU64; N]>();
        if !words.cast::<AtomicU64>().is_aligned() {
            return None;
        }
        // SAFETY: within the slice and aligned, both checked above; only atomics are referenced in this memory.
        let words = unsafe { words.as_ref() };
        Some(std::array::from_fn(|index| u64::from_le(words[index].load(Ordering::Relaxed))))
    }

    /// The 64 bytes at `offset`; `None` if they do not lie within or are not aligned to 16.
    #[inline(always)]
    pub fn line(&self, offset: usize) -> Option<LineAt<'a>> {
        let at = self.sub(offset, LINE)?.base;
        let aligned = at.cast::<u128>().is_aligned();
        aligned.then_some(LineAt { at: at.cast(), memory: PhantomData })
    }

    /// Stores a 32-bit word; `false` if it does not lie within, is not aligned or may not be written.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) -> bool {
        let Some(word) = self.word::<AtomicU32>(offset).filter(|_| self.writable) else {
            return false;
        };
        // SAFETY: as in `load_u32`; writable, checked above.
        unsafe { word.as_ref() }.store(value.to_le(), order);
        true
    }

    /// Stores `N` 64-bit words from `offset` on, in ascending order, the last one with Release: whoever sees the last
    /// (Acquire) sees the others. `false` if they do not lie within, are not aligned or may not be written.
    #[inline]
    pub fn store_words<const N: usize>(&self, offset: usize, words: [u64; N]) -> bool {
        let Some(part) = self.sub(offset, N * size_of::<u64>()).filter(|_| self.writable) else {
            return false;
        };
        let to = part.base.cast::<[AtomicU64; N]>();
        if !to.cast::<AtomicU64>().is_aligned() {
            return false;
        }
        // SAFETY: within the slice, aligned and writable, all checked above; only atomics are referenced in this memory.
        let to = unsafe { to.as_ref() };
        for (index, (to, word)) in to.iter().zip(words).enumerate() {
            let order = if index + 1 == N { Ordering::Release } else { Ordering::Relaxed };
            to.store(word.to_le(), order);
        }
        true
    }

    /// Stores a 64-bit word; `false` if it does not lie within, is not aligned or may not be written.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) -> bool {
        let Some(word) = self.word::<AtomicU64>(offset).filter(|_| self.writable) else {
            return false;
        };
        // SAFETY: as in `store_u32`.
        unsafe { word.as_ref() }.store(value.to_le(), order);
        true
    }

    /// The aligned atomic at `offset`, within the slice.
    #[inline]
    fn word<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let word = self.sub(offset, size_of::<T>())?.base.cast::<T>();
        word.is_aligned().then_some(word)
    }

    #[inline]
    fn writable_len(&self) -> usize {
        debug_assert!(self.writable, "a slice is written that was asked for to be read");
        if self.writable { self.len } else { 0 }
    }
}

/// # Safety
/// Both are mapped for `len` bytes.
#[inline]
unsafe fn equal(left: *const u8, right: *const u8, len: usize) -> bool {
    // SAFETY: contract of this function.
    unsafe { libc::memcmp(left.cast(), right.cast(), len) == 0 }
}
