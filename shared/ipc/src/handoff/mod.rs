//! The handoff socket: SOCK_SEQPACKET between our processes. One message is one packet: bytes (a protobuf message of the
//! caller's) and descriptors. This module knows nothing of what the bytes say.
//!
//! Both sides are nonblocking; [`AsFd`] is for tokio's `AsyncFd`, the `*_deadline` calls are for threads without a
//! runtime. A message is bounded, [`MAX_MESSAGE`]; larger states are sent in pieces.

pub mod packet;

use crate::handoff::packet::Packet;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockname,
    getsockopt, listen, setsockopt, socket, socketpair, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use crate::handoff::packet::MAX_DESCRIPTORS;

/// Most bytes of one message. Bounded by the socket buffer that an unprivileged process gets (2 * 208 KiB by default).
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most bytes of a socket's path: `sun_path` without its terminating zero.
pub const MAX_PATH: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why a message was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum HandoffError {
    /// The peer is gone.
    #[error("peer closed the connection")]
    Closed,
    /// Nothing to receive, or no room to send: wait until the socket is ready.
    #[error("not ready")]
    WouldBlock,
    /// The deadline passed.
    #[error("no answer within {} ms", after.as_millis())]
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// More than [`MAX_MESSAGE`] bytes, or none. A received one was consumed.
    #[error("message of {length} bytes, expected 1 to {MAX_MESSAGE}")]
    BadLength {
        /// Its length.
        length: usize,
    },
    /// More than [`MAX_DESCRIPTORS`] descriptors.
    #[error("message with {count} descriptors, at most {MAX_DESCRIPTORS} fit")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// The kernel could not install all descriptors of a message; those that arrived were closed.
    #[error("descriptors of a message were lost: raise the limit of open files (RLIMIT_NOFILE)")]
    LostDescriptors,
    /// Somebody listens on the path already.
    #[error("socket {} is served by another process", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A socket that the keeper passed is no listening handoff socket at this path.
    #[error("the keeper passed no listening handoff socket for {}", path.display())]
    NotOurs {
        /// The path.
        path: PathBuf,
    },
    /// A path that does not fit into a socket address.
    #[error("socket path {} is longer than {MAX_PATH} bytes", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{call} of handoff socket {}", path.display())]
    System {
        /// The call.
        call: &'static str,
        /// The socket's path; empty for an accepted connection.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its descriptors, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end, as of when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// A listening socket. Its path is removed when it is dropped, unless the keeper bound it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// The keeper's: it goes on listening, and whoever connects meanwhile waits for our successor.
    kept: bool,
}

impl Listener {
    /// Listens at `path`, for the owner alone (mode 0600). A socket file that nobody answers on is replaced.
    ///
    /// # Errors
    /// [`HandoffError::InUse`] if somebody answers there.
    pub fn bind(path: impl AsRef<Path>) -> Result<Self, HandoffError> {
        let path = path.as_ref();
        let system = |call| move |source| system(call, path, source);
        let address = address(path)?;
        let fd = new_socket(path)?;
        // The mode of the socket's inode, which bind gives to the file: it is never open to others for a moment.
        fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR).map_err(system("fchmod"))?;
        match bind(fd.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                remove_stale(path)?;
                bind(fd.as_raw_fd(), &address).map_err(system("bind"))?;
            }
            other => other.map_err(system("bind"))?,
        }
        let backlog = Backlog::new(BACKLOG).map_err(system("listen"))?;
        listen(&fd, backlog).map_err(system("listen"))?;
        Ok(Self { fd, path: path.to_owned(), kept: false })
    }

    /// Takes over a socket that the keeper has bound to `path` and listens on (systemd.socket(5)).
    ///
    /// # Errors
    /// [`HandoffError::NotOurs`] if it is another kind of socket, or lies elsewhere; it is closed.
    pub fn adopt(fd: OwnedFd, path: &Path) -> Result<Self, HandoffError> {
        let failed = |source| system("getsockopt", path, source);
        let listens = getsockopt(&fd, sockopt::AcceptConn).map_err(failed)?;
        let kind = getsockopt(&fd, sockopt::SockType).map_err(failed)?;
        let address: UnixAddr =
            getsockname(fd.as_raw_fd()).map_err(|source| system("getsockname", path, source))?;
        if !listens || kind != SockType::SeqPacket || address.path() != Some(path) {
            return Err(HandoffError::NotOurs { path: path.to_owned() });
        }
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .and_then(|_| fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)))
            .map_err(|source| system("fcntl", path, source))?;
        Ok(Self { fd, path: path.to_owned(), kept: true })
    }

    /// Takes the next connection.
    ///
    /// # Errors
    /// [`HandoffError::WouldBlock`] if nobody waits.
    pub fn accept(&self) -> Result<Connection, HandoffError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        loop {
            match accept4(self.fd.as_raw_fd(), flags) {
                // SAFETY: accept4 has just made this descriptor; nobody else owns it.
                Ok(raw) => return Connection::new(unsafe { OwnedFd::from_raw_fd(raw) }),
                Err(Errno::EAGAIN) => return Err(HandoffError::WouldBlock),
                Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(source) => return Err(system("accept4", &self.path, source)),
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.kept {
            std::fs::remove_file(&self.path).ok();
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
}

impl Connection {
    /// Connects to a listener. Does not wait: a full backlog is [`HandoffError::WouldBlock`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, HandoffError> {
        let path = path.as_ref();
        let address = address(path)?;
        let fd = new_socket(path)?;
        match connect(fd.as_raw_fd(), &address) {
            Ok(()) => Self::new(fd),
            Err(Errno::EAGAIN) => Err(HandoffError::WouldBlock),
            Err(source) => Err(system("connect", path, source)),
        }
    }

    /// Two connected ends, for tests and threads.
    pub fn pair() -> Result<(Self, Self), HandoffError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .map_err(|source| system("socketpair", Path::new(""), source))?;
        Ok((Self::new(a)?, Self::new(b)?))
    }

    /// Sends one message, or nothing.
    ///
    /// # Errors
    /// [`HandoffError::WouldBlock`] if the peer has not yet taken earlier ones.
    pub fn try_send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), HandoffError> {
        if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
            return Err(HandoffError::BadLength { length: bytes.len() });
        }
        if fds.len() > MAX_DESCRIPTORS {
            return Err(HandoffError::TooManyDescriptors { count: fds.len() });
        }
        packet::send(self.fd.as_fd(), bytes, fds).map_err(|errno| match errno {
            // ETOOMANYREFS: descriptors in flight over RLIMIT_NOFILE; it passes once the peer takes them.
            Errno::EAGAIN | Errno::ENOBUFS | Errno::ETOOMANYREFS => HandoffError::WouldBlock,
            Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN => HandoffError::Closed,
            source => system("sendmsg", Path::new(""), source),
        })
    }

    /// Takes one message.
    ///
    /// # Errors
    /// [`HandoffError::WouldBlock`] if there is none; [`HandoffError::Closed`] if the peer is gone. A message that is
    /// too long, or whose descriptors got lost, is consumed and reported: the connection stays usable, though what the
    /// peer wanted is not known.
    pub fn try_recv(&self) -> Result<Message, HandoffError> {
        let failed = |errno| match errno {
            Errno::EAGAIN => HandoffError::WouldBlock,
            Errno::ECONNRESET | Errno::ENOTCONN => HandoffError::Closed,
            source => system("recvmsg", Path::new(""), source),
        };
        let length = packet::peek_length(self.fd.as_fd()).map_err(failed)?;
        if length == 0 {
            // End of stream; an empty packet, which nobody of ours sends, ends the conversation as well.
            return Err(HandoffError::Closed);
        }
        let mut bytes = vec![0; length.min(MAX_MESSAGE)];
        let packet: Packet = packet::receive(self.fd.as_fd(), &mut bytes).map_err(failed)?;
        if packet.truncated || packet.length > MAX_MESSAGE {
            return Err(HandoffError::BadLength { length: packet.length });
        }
        if packet.lost_descriptors {
            return Err(HandoffError::LostDescriptors);
        }
        bytes.truncate(packet.length);
        Ok(Message { bytes, fds: packet.fds })
    }

    /// Sends one message, waiting at most `timeout` for room.
    pub fn send_deadline(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), HandoffError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.try_send(bytes, fds) {
                Err(HandoffError::WouldBlock) => {
                    self.wait(PollFlags::POLLOUT, deadline, timeout)?
                }
                other => return other,
            }
        }
    }

    /// Takes one message, waiting at most `timeout` for it.
    pub fn recv_deadline(&self, timeout: Duration) -> Result<Message, HandoffError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.try_recv() {
                Err(HandoffError::WouldBlock) => self.wait(PollFlags::POLLIN, deadline, timeout)?,
                other => return other,
            }
        }
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Result<Peer, HandoffError> {
        let credentials = getsockopt(&self.fd, sockopt::PeerCredentials)
            .map_err(|source| system("getsockopt", Path::new(""), source))?;
        Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() })
    }

    fn new(fd: OwnedFd) -> Result<Self, HandoffError> {
        // The kernel doubles it, and caps it at wmem_max; the default buffer is too small for MAX_MESSAGE.
        setsockopt(&fd, sockopt::SndBuf, &(2 * MAX_MESSAGE))
            .map_err(|source| system("setsockopt", Path::new(""), source))?;
        Ok(Self { fd })
    }

    fn wait(
        &self,
        flags: PollFlags,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), HandoffError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(HandoffError::TimedOut { after: timeout });
        }
        // Rounded up, so that the last wait is not a busy loop.
        let left =
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.fd.as_fd(), flags)], left) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(source) => Err(system("poll", Path::new(""), source)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

/// Removes the socket file at `path` if nobody answers on it.
///
/// # Errors
/// [`HandoffError::InUse`] if somebody does.
pub fn remove_stale(path: &Path) -> Result<(), HandoffError> {
    use std::os::unix::fs::FileTypeExt;
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type().is_socket(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("stat", path, errno(&error))),
    };
    if !is_socket {
        return Err(system("bind", path, Errno::EEXIST));
    }
    match Connection::connect(path) {
        Err(HandoffError::System { source: Errno::ECONNREFUSED | Errno::ENOENT, .. }) => {}
        // EPROTOTYPE: a stream socket answers there, as a vfio-user server's does.
        Ok(_) | Err(HandoffError::WouldBlock) => {
            return Err(HandoffError::InUse { path: path.to_owned() });
        }
        Err(HandoffError::System { source: Errno::EPROTOTYPE, .. }) => {
            return Err(HandoffError::InUse { path: path.to_owned() });
        }
        Err(error) => return Err(error),
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(system("unlink", path, errno(&error)))
        }
        _ => Ok(()),
    }
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn address(path: &Path) -> Result<UnixAddr, HandoffError> {
    if path.as_os_str().len() > MAX_PATH {
        return Err(HandoffError::PathTooLong { path: path.to_owned() });
    }
    UnixAddr::new(path).map_err(|source| system("address", path, source))
}

fn new_socket(path: &Path) -> Result<OwnedFd, HandoffError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|source| system("socket", path, source))
}

fn system(call: &'static str, path: &Path, source: Errno) -> HandoffError {
    HandoffError::System { call, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
