//! Faults on memory that a client gave us: its truncation, a full tmpfs, a poisoned page. The kernel raises SIGBUS in
//! the thread that touched the page; the handler puts anonymous memory in place of the whole region and marks it
//! failed, so that the access goes on and only the controllers of that region are lost. (The whole region: a page
//! alone cannot be replaced on hugetlbfs.) A fault anywhere else keeps the default action.
//!
//! The handler takes no lock, allocates nothing and calls nothing but what a signal handler may.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

/// Most regions of one process at a time. The table costs 32 bytes for each, of memory that is never touched before
/// it is needed.
pub const MAX_GUARDS: usize = 16_384;

static SLOTS: [Slot; MAX_GUARDS] = [const { Slot::new() }; MAX_GUARDS];
/// Slots that were ever used; the handler looks no further.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Faults so far.
static FAULTS: AtomicU64 = AtomicU64::new(0);

/// A guarded range. The generation is odd while the slot is taken or given back, and even otherwise.
struct Slot {
    taken: AtomicBool,
    failed: AtomicBool,
    generation: AtomicU64,
    base: AtomicUsize,
    len: AtomicUsize,
}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
        }
    }

    /// Stores a range, so that the handler sees all of it or none.
    fn set(&self, base: usize, len: usize) {
        // Release on every store: pairs with the Acquire loads and fence of `range`.
        self.generation.fetch_add(1, Ordering::Release);
        self.base.store(base, Ordering::Release);
        self.len.store(len, Ordering::Release);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The range, unless it is being changed. (That of a region whose memory is being touched is not.)
    fn range(&self) -> Option<(usize, usize)> {
        let generation = self.generation.load(Ordering::Acquire);
        let range = (self.base.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        // Acquire: whoever read a newer base or length sees its generation below.
        fence(Ordering::Acquire);
        let still = self.generation.load(Ordering::Relaxed) == generation && generation & 1 == 0;
        still.then_some(range)
    }
}

/// Installs the handler; once per process, further calls do nothing.
///
/// # Errors
/// What `sigaction` says.
pub fn install() -> nix::Result<()> {
    static INSTALLED: OnceLock<nix::Result<()>> = OnceLock::new();
    *INSTALLED.get_or_init(|| {
        // SA_NODEFER: the signal that the handler sends itself for a fault it does not know arrives at once.
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER;
        let action = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::empty());
        // SAFETY: the handler calls only what is async-signal-safe (see `handle`).
        unsafe { sigaction(Signal::SIGBUS, &action) }.map(|_| ())
    })
}

/// Faults in guarded memory so far, of the whole process.
#[inline]
pub fn faults() -> u64 {
    // Acquire: pairs with the Release in `handle`; the mark of the region that failed is seen.
    FAULTS.load(Ordering::Acquire)
}

/// A range that the handler knows, until released or dropped.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the pointer is only a number here; what it leads to is the owner's business.
unsafe impl Send for Guard {}
// SAFETY: as above.
unsafe impl Sync for Guard {}

impl Guard {
    /// Guards `base` to `base + len`; `None` if there are [`MAX_GUARDS`] already.
    ///
    /// # Safety
    /// The range consists of whole mappings that belong to the caller, in whole pages of their kind, and is not
    /// unmapped before the guard is released: on a fault the handler replaces all of it.
    pub unsafe fn new(base: NonNull<u8>, len: usize) -> Option<Self> {
        let free = |slot: &Slot| {
            // Acquire: pairs with the Release in `release`, so that the last owner is done with the slot.
            let taken =
                slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            taken.is_ok()
        };
        let slot = SLOTS.iter().position(free)?;
        USED.fetch_max(slot + 1, Ordering::Release);
        SLOTS[slot].failed.store(false, Ordering::Release);
        SLOTS[slot].set(base.as_ptr() as usize, len);
        Some(Self { slot, base, len })
    }

    /// Whether an access in the range has faulted.
    #[inline]
    pub fn failed(&self) -> bool {
        // Acquire: pairs with the Release in `handle`.
        SLOTS[self.slot].failed.load(Ordering::Acquire)
    }

    /// Ends the guard and returns the range, which the caller may unmap now.
    pub fn release(&mut self) -> (NonNull<u8>, usize) {
        let range = (self.base, std::mem::take(&mut self.len));
        if range.1 > 0 {
            SLOTS[self.slot].set(0, 0);
            // Release: pairs with the Acquire in `new`.
            SLOTS[self.slot].taken.store(false, Ordering::Release);
        }
        range
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
    }
}

/// The handler. Async-signal-safe: atomics, mmap, madvise, sigaction, raise.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: errno belongs to this thread; saved because the code that was interrupted may be about to look at it.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // A positive code is a fault; any other was sent by somebody and has no address.
    let replaced = code > 0 && replace(address);
    if !replaced {
        // SAFETY: a zeroed sigaction is SIG_DFL without flags. Returning repeats the faulting instruction, which now
        // ends the process with the right signal; one that was sent is sent again.
        unsafe {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, &default, std::ptr::null_mut());
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts anonymous memory in place of the guarded range that holds `address`.
fn replace(address: usize) -> bool {
    for slot in &SLOTS[..USED.load(Ordering::Acquire).min(MAX_GUARDS)] {
        let Some((base, len)) = slot.range() else { continue };
        if address.wrapping_sub(base) >= len {
            continue;
        }
        // Marked first, so that nobody sees the zeroes unmarked. Release: pairs with `failed` and `faults`.
        slot.failed.store(true, Ordering::Release);
        FAULTS.fetch_add(1, Ordering::Release);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: the range is the owner's whole mapping (contract of `Guard::new`), and it is still there: the
        // thread that faulted has a borrow of it.
        let mapped =
            unsafe { libc::mmap(base as *mut libc::c_void, len, protection, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        // SAFETY: the range was mapped just now; the advice only keeps it out of dumps and children.
        unsafe {
            libc::madvise(mapped, len, libc::MADV_DONTDUMP);
            libc::madvise(mapped, len, libc::MADV_DONTFORK);
        }
        return true;
    }
    false
}
