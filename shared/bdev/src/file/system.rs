//! System calls that nobody wraps, or not for memory that others write to. Holds unsafe code.
#![allow(unsafe_code)]

use super::Alignment;
use super::buffer::Buffers;
use super::engine::Command;
use std::fs::File;
use std::os::fd::AsRawFd;

/// What the kernel takes for `buffers`: addresses that are good for as long as the buffers are neither dropped nor used.
pub fn gather_iovecs(buffers: &mut Buffers, iovecs: &mut Vec<libc::iovec>) {
    iovecs.clear();
    match buffers {
        Buffers::None => {}
        Buffers::Guest(pieces) => {
            iovecs.extend(pieces.iter().filter_map(|piece| piece.slice()).map(|slice| {
                libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() }
            }));
        }
        Buffers::Own(buffer) => {
            let window = buffer.window_mut();
            let (iov_base, iov_len) = (window.as_mut_ptr().cast(), window.len());
            iovecs.push(libc::iovec { iov_base, iov_len });
        }
    }
}

/// Runs an operation on this thread, however long it takes. A count, or a negated errno, as io_uring tells it.
pub fn perform(
    file: &File,
    command: Command,
    buffers: &mut Buffers,
    iovecs: &mut Vec<libc::iovec>,
) -> i32 {
    gather_iovecs(buffers, iovecs);
    let fd = file.as_raw_fd();
    // At most MAX_IOVECS of them.
    let (vectors, count) = (iovecs.as_ptr(), iovecs.len() as i32);
    // Offsets and lengths lie within the file, whose size is below 2^63.
    let result = match command {
        Command::Read { offset } => {
            // SAFETY: `count` vectors point into memory that `buffers` owns or keeps mapped; the kernel checks the rest.
            unsafe { libc::preadv2(fd, vectors, count, offset as i64, 0) }
        }
        Command::Write { offset, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as above; the memory is only read.
            unsafe { libc::pwritev2(fd, vectors, count, offset as i64, flags) }
        }
        // SAFETY: takes no pointers.
        Command::Sync => unsafe { libc::fdatasync(fd) as isize },
        // SAFETY: takes no pointers.
        Command::Allocate { offset, len, mode } => unsafe {
            libc::fallocate(fd, mode, offset as i64, len as i64) as isize
        },
    };
    if result < 0 {
        -nix::errno::Errno::last_raw()
    } else {
        i32::try_from(result).unwrap_or(i32::MAX)
    }
}

/// What the kernel says that direct transfers of this file need (0: it cannot do them); `None` if it does not say, which
/// it does since Linux 6.1.
pub fn direct_alignment(file: &File) -> Option<Alignment> {
    // SAFETY: all zeroes is a statx structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let (flags, mask) = (libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN);
    // SAFETY: the descriptor is open, the path is an empty string, `stat` is as large as the kernel's structure.
    let done = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, mask, &mut stat) };
    let told = done == 0 && stat.stx_mask & libc::STATX_DIOALIGN != 0;
    let (unit, memory) = (stat.stx_dio_offset_align.into(), stat.stx_dio_mem_align.into());
    told.then_some(Alignment { unit, memory })
}
