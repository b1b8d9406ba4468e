//! Framed messages over a Unix stream socket, with their descriptors and a deadline.
//!
//! A message is peeked, exactly 16 bytes and then exactly its size, handed out, and consumed only
//! when its owner says so: until then a successor on the same socket would find it again. A
//! message larger than what the kernel queues cannot be peeked whole, nor can one whose
//! descriptors came with a first part of it (a peek ends behind the part that carries them);
//! those are consumed as they come.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno as Io;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::framing::{self, FramingError, MAX_MSG_FDS};
use crate::message::{HEADER_SIZE, Header};

/// Largest message that is peeked whole, in bytes: well below the 212,992 that Linux queues on a
/// socket by default, bookkeeping included. Above it a message is consumed as it comes.
pub const MAX_PEEKED: usize = 64 * 1024;

/// How long to wait for the rest of a message that has begun: polling tells nothing then, since
/// the socket is readable all the time.
const REST_INTERVAL: Duration = Duration::from_millis(1);

/// One message off a socket.
#[derive(Debug)]
pub struct Message {
    /// Its header, whose size passed [`framing::check`].
    pub header: Header,
    /// The rest of its bytes.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
    /// Bytes that are still on the socket.
    unconsumed: usize,
}

/// Why a message could not be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The peer closed the connection.
    #[error("connection closed by the peer")]
    Closed,
    /// The deadline passed.
    #[error("no message within {waited:?}")]
    TimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// The stream has no next message boundary.
    #[error("frame a message")]
    Framing(#[from] FramingError),
    /// More descriptors came than one message may carry; the kernel dropped some.
    #[error("more than {MAX_MSG_FDS} file descriptors with one message")]
    TooManyFds,
    /// The system call failed.
    #[error("{action} on the socket")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// A connection that carries framed messages. Calls block up to a deadline.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// A connection over this stream, which may or may not block: deadlines do not depend on it.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// The next message, left on the socket.
    ///
    /// # Errors
    /// [`SocketError`]; after any but [`SocketError::TimedOut`] the connection is of no use.
    pub fn peek(&self, timeout: Duration) -> Result<Message, SocketError> {
        let deadline = Deadline::after(timeout);
        let mut head = [0; HEADER_SIZE];
        let begun = self.fill(&mut head, true, deadline)?;
        // The buffer is as long as a header, so that parsing cannot fail.
        let header = Header::parse(&head).unwrap_or_default();
        let size = framing::check(&header)?;
        let mut bytes = vec![0; size];
        let whole = if begun.peeked {
            self.fill(&mut bytes, size <= MAX_PEEKED, deadline)?
        } else {
            // The header's own bytes were consumed, and its descriptors came with them.
            bytes[..HEADER_SIZE].copy_from_slice(&head);
            let rest = self.fill(&mut bytes[HEADER_SIZE..], false, deadline)?;
            Filled { fds: begun.fds.into_iter().chain(rest.fds).collect(), peeked: false }
        };
        let body = bytes.split_off(HEADER_SIZE);
        let unconsumed = if whole.peeked { size } else { 0 };
        Ok(Message { header, body, fds: whole.fds, unconsumed })
    }

    /// Takes a peeked message off the socket.
    ///
    /// # Errors
    /// [`SocketError`], if the socket does not hold what was peeked.
    pub fn consume(&self, message: &mut Message) -> Result<(), SocketError> {
        let mut rest = vec![0; std::mem::take(&mut message.unconsumed)];
        self.fill(&mut rest, false, Deadline::after(Duration::ZERO)).map(drop)
    }

    /// The next message, taken off the socket.
    ///
    /// # Errors
    /// As [`Connection::peek`].
    pub fn receive(&self, timeout: Duration) -> Result<Message, SocketError> {
        let mut message = self.peek(timeout)?;
        self.consume(&mut message)?;
        Ok(message)
    }

    /// Sends `bytes`, which need not be a whole message, and `fds` with the first of them.
    ///
    /// # Errors
    /// [`SocketError`]; part of the bytes may have left.
    pub fn send(
        &self,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<(), SocketError> {
        let deadline = Deadline::after(timeout);
        let mut sent = 0;
        while sent < bytes.len() {
            let with = if sent == 0 { fds } else { &[] };
            match send_some(&self.stream, &bytes[sent..], with) {
                Ok(count) => sent += count,
                Err(Io::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Io::INTR) => {}
                Err(Io::PIPE | Io::CONNRESET) => return Err(SocketError::Closed),
                Err(errno) => return Err(failed("send", errno)),
            }
        }
        Ok(())
    }

    /// Fills `buffer` from the socket, by peeking if it can be done so, or for good.
    fn fill(
        &self,
        buffer: &mut [u8],
        mut peek: bool,
        deadline: Deadline,
    ) -> Result<Filled, SocketError> {
        let mut filled = 0;
        let mut fds = Vec::new();
        while filled < buffer.len() {
            // Only the last, complete peek counts: each gives the descriptors anew.
            if peek {
                filled = 0;
                fds.clear();
            }
            match receive_some(&self.stream, &mut buffer[filled..], peek) {
                Ok(Received { bytes: 0, .. }) => return Err(SocketError::Closed),
                Ok(received) if received.truncated => return Err(SocketError::TooManyFds),
                Ok(mut received) if !peek || received.bytes == buffer.len() => {
                    filled += received.bytes;
                    fds.append(&mut received.fds);
                    if fds.len() > MAX_MSG_FDS {
                        return Err(SocketError::TooManyFds);
                    }
                }
                Ok(received) if received.fds.is_empty() => {
                    deadline.check()?;
                    std::thread::sleep(REST_INTERVAL);
                }
                Ok(_) => peek = false,
                Err(Io::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(Io::INTR) => {}
                Err(Io::CONNRESET) => return Err(SocketError::Closed),
                Err(errno) => return Err(failed("receive", errno)),
            }
        }
        Ok(Filled { fds, peeked: peek })
    }

    fn wait(&self, flags: PollFlags, deadline: Deadline) -> Result<(), SocketError> {
        let left = deadline.check()?;
        let timeout = Timespec::try_from(left).map_err(|_| failed("wait", Io::INVAL))?;
        let mut fds = [PollFd::new(&self.stream, flags)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Io::INTR) => Ok(()),
            Err(errno) => Err(failed("wait", errno)),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// How a buffer was filled.
struct Filled {
    fds: Vec<OwnedFd>,
    /// The bytes are still on the socket.
    peeked: bool,
}

/// What one `recvmsg` brought.
pub(crate) struct Received {
    pub bytes: usize,
    pub fds: Vec<OwnedFd>,
    /// The kernel dropped descriptors.
    pub truncated: bool,
}

/// One `recvmsg` that does not block; descriptors are closed on exec. Peeking less than a whole
/// message takes none.
pub(crate) fn receive_some(
    socket: impl AsFd,
    buffer: &mut [u8],
    peek: bool,
) -> Result<Received, Io> {
    let mut flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    flags.set(RecvFlags::PEEK, peek);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fds = Vec::new();
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = ancillary {
            fds.extend(rights);
        }
    }
    let truncated = message.flags.contains(ReturnFlags::CTRUNC);
    Ok(Received { bytes: message.bytes, fds, truncated })
}

/// One `sendmsg` that neither blocks nor raises SIGPIPE.
pub(crate) fn send_some(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, Io> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_MSG_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Io::INVAL);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)
}

fn failed(action: &'static str, errno: Io) -> SocketError {
    SocketError::Io { action, source: errno.into() }
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    timeout: Duration,
    at: Instant,
}

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self { timeout, at: Instant::now() + timeout }
    }

    /// The time that is left, or the error if there is none.
    fn check(self) -> Result<Duration, SocketError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(SocketError::TimedOut { waited: self.timeout });
        }
        Ok(left)
    }
}
