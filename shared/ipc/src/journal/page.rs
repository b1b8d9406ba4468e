//! The page itself.

use super::{JournalError, MAX_DESCRIPTORS, MAX_MESSAGE};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest reply that is kept in the page, in bytes.
pub const INLINE_REPLY: usize = 3520;

/// One page of the controller segment.
#[repr(C, align(4096))]
pub struct JournalPage {
    /// A [`Step`], stored after what belongs to it.
    step: AtomicU64,
    /// Bytes of the message in hand.
    size: AtomicU64,
    /// Bytes of its reply.
    reply_len: AtomicU64,
    /// Descriptors that go with the reply.
    reply_fds: AtomicU64,
    reserved: [AtomicU64; 4],
    /// What has left of the reply.
    pub(super) sent: Calls,
    /// What was taken out of the socket of the message.
    pub(super) consumed: Calls,
    reply: [AtomicU64; INLINE_REPLY / 8],
}

const _: () = assert!(size_of::<JournalPage>() == 4096);

/// Where the message in hand stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    /// No message is in hand.
    Idle = 0,
    /// The message was peeked, and is or was acted upon.
    Peeked = 1,
    /// The reply is being sent.
    Replying = 2,
    /// The message is being taken out of the socket.
    Consuming = 3,
}

/// A number of bytes that calls of `sendmmsg` or `recvmmsg` add up to. The newest call's own number is where the
/// kernel put it; that of those before stands beside it. Two of each, used in turn and switched by one store, so that
/// at every instant one is whole.
#[repr(C, align(64))]
pub(super) struct Calls {
    /// The newest call; its lowest bit is its place.
    current: AtomicU64,
    /// Bytes moved by the calls before.
    before: [AtomicU64; 2],
    reserved: [AtomicU64; 5],
    messages: [KernelMessage; 2],
    vectors: [KernelVector; 2],
    reserved_last: [AtomicU64; 4],
}

/// A `struct mmsghdr`, which the kernel writes.
#[repr(C, align(64))]
struct KernelMessage([AtomicU64; 8]);

/// A `struct iovec`.
#[repr(C)]
struct KernelVector([AtomicU64; 2]);

const _: () = assert!(size_of::<Calls>() == 256);
const _: () = assert!(size_of::<libc::mmsghdr>() <= size_of::<KernelMessage>());
const _: () = assert!(size_of::<libc::iovec>() == size_of::<KernelVector>());

impl Calls {
    /// Bytes moved by all calls.
    pub(super) fn total(&self) -> usize {
        let place = self.place();
        let before = self.before[place].load(Ordering::Acquire);
        // SAFETY: the message lies in the mapped page, aligned; volatile, for the kernel wrote it.
        let newest = unsafe { (&raw const (*self.message(place)).msg_len).read_volatile() };
        usize::try_from(before.saturating_add(u64::from(newest))).unwrap_or(usize::MAX)
    }

    /// Counts from 0 again.
    fn restart(&self) {
        self.switch(0, ptr::null_mut(), 0, &mut []);
    }

    /// Prepares the next call, on `len` bytes at `base` and with a control buffer that both outlive it. Until the
    /// kernel says otherwise, the call has moved nothing.
    pub(super) fn next(
        &self,
        base: *mut u8,
        len: usize,
        control: &mut [u64],
        control_len: usize,
    ) -> *mut libc::mmsghdr {
        let control = control.get_mut(..control_len.div_ceil(8)).unwrap_or_default();
        let message = self.switch(self.total() as u64, base, len, control);
        // SAFETY: as in `switch`, which has just written the message.
        unsafe { (&raw mut (*message).msg_hdr.msg_controllen).write_volatile(control_len as _) };
        message
    }

    fn switch(
        &self,
        before: u64,
        base: *mut u8,
        len: usize,
        control: &mut [u64],
    ) -> *mut libc::mmsghdr {
        let next = self.current.load(Ordering::Acquire).wrapping_add(1);
        let place = (next & 1) as usize;
        let (message, vector) = (self.message(place), self.vector(place));
        // SAFETY: both lie in the mapped page, aligned and large enough (assertions above), and consist of atomics, so
        // that a write through a shared reference is allowed; only this process's writer touches them. All-zero is a
        // valid mmsghdr.
        unsafe {
            vector.write_volatile(libc::iovec { iov_base: base.cast(), iov_len: len });
            let mut value: libc::mmsghdr = std::mem::zeroed();
            value.msg_hdr.msg_iov = vector;
            value.msg_hdr.msg_iovlen = 1;
            if !control.is_empty() {
                value.msg_hdr.msg_control = control.as_mut_ptr().cast();
            }
            message.write_volatile(value);
        }
        // Release on both: in this order, and after the message.
        self.before[place].store(before, Ordering::Release);
        self.current.store(next, Ordering::Release);
        message
    }

    fn place(&self) -> usize {
        (self.current.load(Ordering::Acquire) & 1) as usize
    }

    fn message(&self, place: usize) -> *mut libc::mmsghdr {
        self.messages[place & 1].0.as_ptr().cast_mut().cast()
    }

    fn vector(&self, place: usize) -> *mut libc::iovec {
        self.vectors[place & 1].0.as_ptr().cast_mut().cast()
    }
}

impl JournalPage {
    pub(super) fn step(&self) -> Result<Step, JournalError> {
        match self.step.load(Ordering::Acquire) {
            0 => Ok(Step::Idle),
            1 => Ok(Step::Peeked),
            2 => Ok(Step::Replying),
            3 => Ok(Step::Consuming),
            _ => Err(JournalError::Corrupt("step")),
        }
    }

    pub(super) fn set_step(&self, step: Step) {
        // Release: after everything that belongs to the step.
        self.step.store(step as u64, Ordering::Release);
    }

    /// Bytes of the message in hand.
    pub(super) fn size(&self) -> Result<usize, JournalError> {
        let size = self.size.load(Ordering::Acquire);
        let size = usize::try_from(size).ok().filter(|size| (1..=MAX_MESSAGE).contains(size));
        size.ok_or(JournalError::Corrupt("size of the message"))
    }

    pub(super) fn set_size(&self, size: usize) {
        self.size.store(size as u64, Ordering::Release);
    }

    /// Bytes of the reply.
    pub(super) fn reply_len(&self) -> Result<usize, JournalError> {
        let len = u32::try_from(self.reply_len.load(Ordering::Acquire)).ok();
        let len = len.filter(|len| *len > 0).ok_or(JournalError::Corrupt("length of the reply"))?;
        Ok(len as usize)
    }

    /// Descriptors that go with the reply.
    pub(super) fn reply_fds(&self) -> Result<usize, JournalError> {
        let fds = usize::try_from(self.reply_fds.load(Ordering::Acquire)).ok();
        let fds = fds.filter(|fds| *fds <= MAX_DESCRIPTORS);
        fds.ok_or(JournalError::Corrupt("descriptors of the reply"))
    }

    pub(super) fn begin_reply(&self, bytes: &[u8], fds: usize) {
        if bytes.len() <= INLINE_REPLY {
            for (word, chunk) in self.reply.iter().zip(bytes.chunks(8)) {
                let mut value = [0; 8];
                value[..chunk.len()].copy_from_slice(chunk);
                word.store(u64::from_le_bytes(value), Ordering::Release);
            }
        }
        self.reply_len.store(bytes.len() as u64, Ordering::Release);
        self.reply_fds.store(fds as u64, Ordering::Release);
        self.sent.restart();
        self.set_step(Step::Replying);
    }

    pub(super) fn begin_consuming(&self) {
        self.consumed.restart();
        self.set_step(Step::Consuming);
    }

    /// The reply of `len` bytes, if it was kept.
    pub(super) fn inline_reply(&self, len: usize) -> Option<Vec<u8>> {
        if len > INLINE_REPLY {
            return None;
        }
        let words = self.reply.iter().take(len.div_ceil(8));
        let mut bytes: Vec<u8> =
            words.flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
        bytes.truncate(len);
        Some(bytes)
    }
}
