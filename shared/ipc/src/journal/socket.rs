//! The system calls on the socket.

use super::JournalError;
use super::page::Calls;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Most descriptors of one message, by the kernel's limit (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;
/// Words of a control buffer for that many.
const CONTROL_WORDS: usize = 3 + MAX_DESCRIPTORS.div_ceil(2);

const _: () = {
    // SAFETY: computes only.
    let space = unsafe { libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32) };
    assert!(space as usize <= CONTROL_WORDS * 8);
};

/// What [`super::Journal::peek_header`] saw.
#[derive(Debug)]
pub struct PeekedHeader {
    /// The 16 bytes.
    pub bytes: [u8; 16],
    /// New descriptors of what came with the message, close-on-exec.
    pub fds: Vec<OwnedFd>,
    /// Further descriptors came that this process had no room for.
    pub fds_cut: bool,
}

/// Looks at the header and takes its descriptors; `scratch` is longer than any message. Descriptors that were made in vain
/// go to `unwanted`: nothing is closed here.
pub(super) fn peek_header(
    fd: BorrowedFd<'_>,
    scratch: &mut [u8],
    unwanted: &mut Vec<OwnedFd>,
) -> Result<PeekedHeader, JournalError> {
    let mut header = PeekedHeader { bytes: [0; 16], fds: Vec::new(), fds_cut: false };
    let mut control = [0u64; CONTROL_WORDS];
    let mut vector =
        libc::iovec { iov_base: header.bytes.as_mut_ptr().cast(), iov_len: header.bytes.len() };
    // SAFETY: all-zero is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message leads to buffers of the lengths it says, all alive here.
    let got =
        checked("recvmsg", || unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    header.fds = descriptors(&message);
    header.fds_cut = message.msg_flags & libc::MSG_CTRUNC != 0;
    if got == 0 {
        return Err(JournalError::Closed);
    }
    if got < header.bytes.len() {
        // The rest will come, or a part with descriptors ended the peek, or the client is gone.
        if let Err(error) = peek(fd, &mut header.bytes) {
            unwanted.append(&mut header.fds);
            return Err(error);
        }
    }
    if !header.fds.is_empty() || header.fds_cut {
        let [_, _, _, _, size @ .., _, _, _, _, _, _, _, _] = header.bytes;
        let size = (u32::from_le_bytes(size) as usize).clamp(header.bytes.len(), scratch.len() - 1);
        // A peek does not stop at its last byte: it walks on until it meets descriptors, be it those of a later
        // message. But it does stop behind the part that brought them, so this one tells where that part ends.
        match peek_part(fd, &mut scratch[..=size]) {
            Ok(part) if part <= size => {}
            Ok(_) => {
                unwanted.append(&mut header.fds);
                header.fds_cut = false;
            }
            Err(error) => {
                unwanted.append(&mut header.fds);
                return Err(error);
            }
        }
    }
    Ok(header)
}

/// Fills `bytes` from the start of what the socket holds, which keeps it.
pub(super) fn peek(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<(), JournalError> {
    let mut last = false;
    loop {
        let mut have = peek_part(fd, bytes)?;
        if have == 0 {
            return Err(JournalError::Closed);
        }
        if have < bytes.len() {
            // A part that carries descriptors ends a peek, again and again: go on behind it.
            let more = peek_behind(fd, &mut bytes[have..], have);
            peek_from_start(fd)?;
            have += more?;
        }
        if have == bytes.len() {
            return Ok(());
        }
        if last {
            return Err(JournalError::Cut);
        }
        // Once the client has hung up nothing more comes, but what came before that is worth another look.
        last = hung_up(fd)?;
        if !last {
            return Err(JournalError::WouldBlock);
        }
    }
}

/// Peeks from `offset` on, part by part, until `bytes` is full or there is no more.
fn peek_behind(fd: BorrowedFd<'_>, bytes: &mut [u8], offset: usize) -> Result<usize, JournalError> {
    let mut have = 0;
    while have < bytes.len() {
        set_peek_offset(fd, (offset + have) as libc::c_int)?;
        match peek_part(fd, &mut bytes[have..]) {
            Ok(0) | Err(JournalError::WouldBlock) => break,
            Ok(got) => have += got,
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

fn peek_part(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<usize, JournalError> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the buffer is alive and as long as said. Without a control buffer no descriptor is made.
    checked("recv", || unsafe {
        libc::recv(fd.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), flags)
    })
}

/// Makes peeks start at the first byte, as they do unless somebody died within `peek_behind`.
pub(super) fn peek_from_start(fd: BorrowedFd<'_>) -> Result<(), JournalError> {
    set_peek_offset(fd, -1)
}

fn set_peek_offset(fd: BorrowedFd<'_>, offset: libc::c_int) -> Result<(), JournalError> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int, alive here.
    checked("setsockopt", || unsafe {
        let option = (&raw const offset).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF, option, size) as isize
    })
    .map(|_| ())
}

fn hung_up(fd: BorrowedFd<'_>) -> Result<bool, JournalError> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one pollfd, alive here; a time-out of 0.
    checked("poll", || unsafe { libc::poll(&raw mut poll, 1, 0) as isize })?;
    Ok(poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0)
}

/// Sends a part of `bytes`, with `fds`; how much says the page.
pub(super) fn send(
    calls: &Calls,
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), JournalError> {
    let mut control = [0u64; CONTROL_WORDS];
    let control_len = put_descriptors(&mut control, fds);
    let before = calls.total();
    let message = calls.next(bytes.as_ptr().cast_mut(), bytes.len(), &mut control, control_len);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `next` made a message that leads to `bytes` and `control`, both alive here; the kernel reads those and
    // writes msg_len in the page.
    checked("sendmmsg", || unsafe {
        libc::sendmmsg(fd.as_raw_fd(), message, 1, flags as _) as isize
    })?;
    if calls.total() == before { Err(JournalError::WouldBlock) } else { Ok(()) }
}

/// Takes at most `scratch.len()` bytes out of the socket; how many says the page. Descriptors among them are dropped
/// by the kernel, for there is no control buffer.
pub(super) fn receive(
    calls: &Calls,
    fd: BorrowedFd<'_>,
    scratch: &mut [u8],
) -> Result<(), JournalError> {
    let before = calls.total();
    let message = calls.next(scratch.as_mut_ptr(), scratch.len(), &mut [], 0);
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: as in `send`; the kernel writes into `scratch`, alive here, and msg_len in the page.
    checked("recvmmsg", || unsafe {
        libc::recvmmsg(fd.as_raw_fd(), message, 1, flags as _, ptr::null_mut()) as isize
    })?;
    if calls.total() == before { Err(JournalError::Cut) } else { Ok(()) }
}

/// Writes one SCM_RIGHTS message; returns its length, 0 for no descriptors.
fn put_descriptors(control: &mut [u64; CONTROL_WORDS], fds: &[BorrowedFd<'_>]) -> usize {
    let fds = &fds[..fds.len().min(MAX_DESCRIPTORS)];
    if fds.is_empty() {
        return 0;
    }
    let bytes = fds.len() * size_of::<RawFd>();
    // SAFETY: CMSG_LEN and CMSG_SPACE compute only.
    let (len, space) =
        unsafe { (libc::CMSG_LEN(bytes as u32), libc::CMSG_SPACE(bytes as u32) as usize) };
    let header = control.as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: CONTROL_WORDS is enough for MAX_DESCRIPTORS (asserted there), aligned to 8.
    unsafe {
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = len as _;
        let data = libc::CMSG_DATA(header).cast::<RawFd>();
        for (at, fd) in fds.iter().enumerate() {
            data.add(at).write_unaligned(fd.as_raw_fd());
        }
    }
    space
}

/// Takes over the descriptors of a received message.
fn descriptors(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer and set its length; the macros stay within it.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(control) = header.as_ref() {
            if (control.cmsg_level, control.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let bytes = control.cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let count = bytes / size_of::<RawFd>();
                // Each is new and nobody else's.
                fds.extend(
                    (0..count).map(|at| OwnedFd::from_raw_fd(data.add(at).read_unaligned())),
                );
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    fds
}

/// Runs a call until no signal interrupts it, and translates its error.
fn checked(call: &'static str, mut run: impl FnMut() -> isize) -> Result<usize, JournalError> {
    loop {
        if let Ok(result) = usize::try_from(run()) {
            return Ok(result);
        }
        let source = io::Error::last_os_error();
        match source.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN) => return Err(JournalError::WouldBlock),
            Some(libc::EPIPE | libc::ECONNRESET) => return Err(JournalError::Closed),
            _ => return Err(JournalError::System { call, source }),
        }
    }
}
