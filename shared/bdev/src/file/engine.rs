//! What runs operations on the file: io_uring, or threads where the kernel refuses it.

use super::buffer::Buffers;
use super::threads::Threads;
use super::uring::Uring;
use crate::error::Error;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::BorrowedFd;

/// An operation on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read from this offset into the buffers.
    Read {
        /// Bytes.
        offset: u64,
    },
    /// Write the buffers at this offset.
    Write {
        /// Bytes.
        offset: u64,
        /// The data is durable on completion (RWF_DSYNC).
        durable: bool,
    },
    /// fdatasync.
    Sync,
    /// fallocate; always off this thread.
    Allocate {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
        /// FALLOC_FL_*.
        mode: i32,
    },
}

/// Either. Each key has at most one operation at a time.
pub enum Engine {
    /// io_uring.
    Uring(Uring),
    /// Threads.
    Threads(Threads),
}

impl Engine {
    /// io_uring over a file that it owns from now on; threads if the kernel refuses it to this process (EPERM or ENOSYS:
    /// the seccomp filter of a container, `kernel.io_uring_disabled`, a kernel built without), and why then; threads
    /// also if `threads` are wanted.
    ///
    /// # Errors
    /// Anything else that the kernel says.
    pub fn new(file: File, keys: usize, threads: bool) -> Result<(Self, Option<Errno>), Error> {
        let (file, refusal) = if threads {
            (file, None)
        } else {
            match Uring::new(file, keys) {
                Ok(uring) => return Ok((Self::Uring(uring), None)),
                Err((file, error)) => {
                    let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
                    if !matches!(errno, Errno::EPERM | Errno::ENOSYS) {
                        return Err(Error::io("set up io_uring", error));
                    }
                    (file, Some(errno))
                }
            }
        };
        Ok((Self::Threads(Threads::new(file, keys)?), refusal))
    }

    /// The file.
    pub fn file(&self) -> &File {
        match self {
            Self::Uring(uring) => uring.file(),
            Self::Threads(threads) => threads.file(),
        }
    }

    /// Readable when an operation has ended that was not popped yet.
    pub fn event(&self) -> BorrowedFd<'_> {
        match self {
            Self::Uring(uring) => uring.event(),
            Self::Threads(threads) => threads.event(),
        }
    }

    /// Queues an operation. `false`, and nothing happened, if the key is busy or not there, or the queue is full.
    #[must_use]
    pub fn push(&mut self, key: usize, command: Command, buffers: Buffers) -> bool {
        match self {
            Self::Uring(uring) => uring.push(key, command, buffers),
            Self::Threads(threads) => threads.push(key, command, buffers),
        }
    }

    /// Sees to it that what is queued is begun.
    pub fn submit(&mut self) {
        match self {
            Self::Uring(uring) => uring.submit(),
            Self::Threads(_) => {}
        }
    }

    /// A key whose operation ended, with its result (a count or a negated errno) and its buffers.
    pub fn pop(&mut self) -> Option<(usize, i32, Buffers)> {
        match self {
            Self::Uring(uring) => uring.pop(),
            Self::Threads(threads) => threads.pop(),
        }
    }
}
