//! io_uring. Holds unsafe code: a submission gives pointers to the kernel, and the memory behind them is kept here until
//! the completion came.
#![allow(unsafe_code)]

use super::buffer::Buffers;
use super::engine::Command;
use super::system::gather_iovecs;
use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A ring of the kernel's for one file. Each key has at most one operation at a time.
pub struct Uring {
    ring: ManuallyDrop<IoUring>,
    file: ManuallyDrop<File>,
    slots: ManuallyDrop<Vec<Slot>>,
    in_flight: usize,
    unsubmitted: bool,
}

#[derive(Default)]
struct Slot {
    busy: bool,
    buffers: Buffers,
    iovecs: Vec<libc::iovec>,
}

// SAFETY: the iovecs point into memory that the slot's buffers own or keep mapped, wherever the value moves.
unsafe impl Send for Uring {}

impl Uring {
    /// A ring for keys below `keys`, over a file that it owns from now on.
    ///
    /// # Errors
    /// What the kernel says; the file comes back.
    pub fn new(file: File, keys: usize) -> Result<Self, (File, std::io::Error)> {
        let entries = (keys.max(2) as u32).next_power_of_two();
        let ring = match IoUring::builder().dontfork().build(entries) {
            Ok(ring) => ring,
            Err(error) => return Err((file, error)),
        };
        let slots = (0..keys).map(|_| Slot::default()).collect();
        Ok(Self {
            ring: ManuallyDrop::new(ring),
            file: ManuallyDrop::new(file),
            slots: ManuallyDrop::new(slots),
            in_flight: 0,
            unsubmitted: false,
        })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Readable when there are completions.
    pub fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as self.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Queues an operation. `false`, and nothing happened, if the key is busy or not there, or the queue is full.
    #[must_use]
    pub fn push(&mut self, key: usize, command: Command, buffers: Buffers) -> bool {
        let Some(slot) = self.slots.get_mut(key).filter(|slot| !slot.busy) else { return false };
        slot.buffers = buffers;
        gather_iovecs(&mut slot.buffers, &mut slot.iovecs);
        let fd = types::Fd(self.file.as_raw_fd());
        let (iovecs, count) = (slot.iovecs.as_ptr(), slot.iovecs.len() as u32);
        let entry = match command {
            Command::Read { offset } => {
                opcode::Readv::new(fd, iovecs, count).offset(offset).build()
            }
            Command::Write { offset, durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                opcode::Writev::new(fd, iovecs, count).offset(offset).rw_flags(flags).build()
            }
            Command::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Command::Allocate { offset, len, mode } => {
                opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build()
            }
        };
        // SAFETY: the file, the iovecs and what they point to are owned by self (pieces keep their regions mapped) and
        // neither moved nor freed before the completion: the slot stays busy until `pop`, and `drop` waits or leaks.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(key as u64)) }.is_ok();
        slot.busy = pushed;
        if pushed {
            self.in_flight += 1;
            self.unsubmitted = true;
        } else {
            slot.buffers = Buffers::None;
        }
        pushed
    }

    /// Hands what is queued to the kernel; what it does not take now (EAGAIN, EBUSY, EINTR) is handed over again by the
    /// next call.
    pub fn submit(&mut self) {
        if self.unsubmitted {
            self.unsubmitted = self.ring.submit().is_err() || !self.ring.submission().is_empty();
        }
    }

    /// A key whose operation ended, with its result (a count or a negated errno) and its buffers.
    pub fn pop(&mut self) -> Option<(usize, i32, Buffers)> {
        let entry = self.ring.completion().next()?;
        let key = entry.user_data() as usize;
        let slot = self.slots.get_mut(key)?;
        slot.busy = false;
        self.in_flight -= 1;
        Some((key, entry.result(), std::mem::take(&mut slot.buffers)))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // The kernel may still write to the buffers: leak them with the ring.
                Err(_) => return,
            }
            while self.pop().is_some() {}
        }
        // SAFETY: nothing is in flight, and none of the three is used again.
        unsafe {
            ManuallyDrop::drop(&mut self.ring);
            ManuallyDrop::drop(&mut self.slots);
            ManuallyDrop::drop(&mut self.file);
        }
    }
}
