//! One packet on a Unix socket: bytes, descriptors, credentials. The system calls behind [`super::Connection`] and the
//! descriptor store.

use nix::errno::Errno;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The kernel's own limit on descriptors in one message (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

// SAFETY: CMSG_SPACE is arithmetic.
const CONTROL_SPACE: usize = unsafe {
    libc::CMSG_SPACE((MAX_DESCRIPTORS * size_of::<RawFd>()) as u32)
        + libc::CMSG_SPACE(size_of::<libc::ucred>() as u32)
} as usize;

/// Space for control messages, aligned as their headers want it.
#[repr(C, align(8))]
struct Control([u8; CONTROL_SPACE]);

/// What came in.
#[derive(Debug, Default)]
pub struct Packet {
    /// Bytes of the packet, even where the buffer was shorter.
    pub length: usize,
    /// The buffer was shorter than the packet.
    pub truncated: bool,
    /// Descriptors got lost on the way in: this process has no room for more of them.
    pub lost_descriptors: bool,
    /// The descriptors; closed when dropped.
    pub fds: Vec<OwnedFd>,
    /// Who sent it, if the socket asks for it (SO_PASSCRED).
    pub credentials: Option<libc::ucred>,
}

/// Sends one packet whole or not at all; never waits.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT | nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
    loop {
        let sent = nix::sys::socket::sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags,
            None,
        );
        match sent {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The length of the next packet, which stays where it is; 0 if the peer closed. Never waits.
pub fn peek_length(socket: BorrowedFd<'_>) -> Result<usize, Errno> {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    loop {
        // SAFETY: a length of 0: nothing is written through the pointer.
        let length = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
        match Errno::result(length) {
            Ok(length) => return Ok(length as usize),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes the next packet; what does not fit into `buffer` is lost and marked. Never waits. Every descriptor that
/// arrived is in the result, whatever else went wrong, so that none leaks.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Packet, Errno> {
    let mut control = Control([0; CONTROL_SPACE]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: an all-zero msghdr is a valid, empty one.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL_SPACE;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | libc::MSG_TRUNC;
    let length = loop {
        // SAFETY: the header's one part and its control space are live, exclusively borrowed and as long as it says.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
        match Errno::result(length) {
            Ok(length) => break length as usize,
            Err(Errno::EINTR) => header.msg_controllen = CONTROL_SPACE,
            Err(error) => return Err(error),
        }
    };
    let mut packet = Packet {
        length,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        lost_descriptors: header.msg_flags & libc::MSG_CTRUNC != 0,
        ..Packet::default()
    };
    take_control(&header, &mut packet);
    Ok(packet)
}

fn take_control(header: &libc::msghdr, packet: &mut Packet) {
    // SAFETY: the kernel filled msg_control with msg_controllen bytes of well-formed control messages.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give null or a header inside the control space.
        let (level, kind, total) =
            unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        // SAFETY: as above; the data follows its header.
        let data = unsafe { libc::CMSG_DATA(message) };
        // SAFETY: CMSG_LEN is arithmetic.
        let bytes = total.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: index counts whole descriptors in the data; the kernel installed each for this process and
                // nobody else owns it.
                let fd = unsafe {
                    let raw = data.cast::<RawFd>().add(index).read_unaligned();
                    OwnedFd::from_raw_fd(raw)
                };
                packet.fds.push(fd);
            }
        } else if level == libc::SOL_SOCKET
            && kind == libc::SCM_CREDENTIALS
            && bytes >= size_of::<libc::ucred>()
        {
            // SAFETY: the data holds a ucred, its length checked.
            packet.credentials = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() });
        }
        // SAFETY: as for CMSG_FIRSTHDR.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
}
