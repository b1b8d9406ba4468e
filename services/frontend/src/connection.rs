//! A client's connection: messages in the order of the journal ([`ipc::journal`]): peeked, acted upon, answered,
//! consumed.

use crate::signal::Stuck;
use ipc::journal::{Journal, JournalError, MAX_MESSAGE};
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use vfio_user::framing::{self, FramingError};
use vfio_user::message::{HEADER_SIZE, Header};
use vfio_user::server::Reply;

/// Why a connection ended otherwise than by the client's leaving.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream cannot be followed any further.
    #[error(transparent)]
    Framing(#[from] FramingError),
    /// A step of the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// More descriptors came than this process may open.
    #[error("descriptors of a message were lost: raise the limit of open files (RLIMIT_NOFILE)")]
    LostDescriptors,
    /// The client tried to block this process.
    #[error(transparent)]
    Stuck(#[from] Stuck),
    /// A system call failed.
    #[error("{call} on a vfio-user socket")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The event loop.
    #[error("wait for a vfio-user socket")]
    Runtime(#[source] std::io::Error),
}

/// A message in hand.
pub struct Incoming {
    /// Its header.
    pub header: Header,
    /// The rest of its bytes.
    pub body: Vec<u8>,
    /// What came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection.
pub struct Connection {
    socket: AsyncFd<OwnedFd>,
    journal: Journal,
    /// The message in hand was too long to be peeked, and is consumed already.
    consumed: bool,
}

impl Connection {
    /// A connection that has just been accepted, with the journal of `segment`.
    ///
    /// # Errors
    /// The event loop's.
    pub fn new(socket: OwnedFd, segment: Arc<Segment<ControllerLayout>>) -> std::io::Result<Self> {
        let mut journal = Journal::new(segment);
        journal.reset();
        Ok(Self { socket: service::async_fd::register(socket)?, journal, consumed: false })
    }

    /// Waits for the next message; `None` if the client left between two. Nothing is lost if this is dropped while it
    /// waits: the message stays in the socket.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is of no more use.
    pub async fn receive(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        let Self { socket, journal, .. } = self;
        let peeked = match ready(socket, Interest::READABLE, |fd| journal.peek_header(fd)).await {
            Err(ConnectionError::Journal(JournalError::Closed)) => return Ok(None),
            other => other?,
        };
        if peeked.fds_cut {
            return Err(ConnectionError::LostDescriptors);
        }
        let header = Header::parse(&peeked.bytes).ok_or(JournalError::Cut)?;
        let size = framing::check(&header)?;
        let mut message = vec![0; size];
        if size > MAX_MESSAGE {
            // No region takes a write of this length: handling it changes nothing, so it needs no journal.
            read_all(socket, &mut message).await?;
            self.consumed = true;
        } else {
            ready(socket, Interest::READABLE, |fd| journal.peek_message(fd, &mut message)).await?;
        }
        let body = message.split_off(HEADER_SIZE);
        Ok(Some(Incoming { header, body, fds: peeked.fds }))
    }

    /// Answers the message in hand, or not, and is done with it.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is of no more use.
    pub async fn answer(&mut self, reply: Option<&Reply>) -> Result<(), ConnectionError> {
        let Self { socket, journal, .. } = self;
        if std::mem::take(&mut self.consumed) {
            return match reply {
                Some(reply) => write_all(socket, &reply.bytes).await,
                None => Ok(()),
            };
        }
        if let Some(reply) = reply {
            let fds: Vec<BorrowedFd<'_>> = reply.fds.iter().map(|fd| fd.as_fd()).collect();
            ready(socket, Interest::WRITABLE, |fd| journal.reply(fd, &reply.bytes, &fds)).await?;
        }
        ready(socket, Interest::READABLE, |fd| journal.consume(fd)).await
    }

    /// [`Connection::receive`], or, while a message is in hand, waits until the client hangs up.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is of no more use.
    pub async fn receive_unless(
        &mut self,
        in_hand: bool,
    ) -> Result<Option<Incoming>, ConnectionError> {
        if in_hand {
            self.closed().await;
            return Ok(None);
        }
        self.receive().await
    }

    async fn closed(&self) {
        loop {
            let Ok(mut guard) = self.socket.ready(Interest::READABLE).await else { return };
            if guard.ready().is_read_closed() {
                return;
            }
            // The message in hand makes the socket readable: only a hang-up is news.
            guard.clear_ready();
        }
    }
}

async fn ready<T>(
    socket: &AsyncFd<OwnedFd>,
    interest: Interest,
    mut act: impl FnMut(BorrowedFd<'_>) -> Result<T, JournalError>,
) -> Result<T, ConnectionError> {
    loop {
        let mut guard = socket.ready(interest).await.map_err(ConnectionError::Runtime)?;
        match act(socket.as_fd()) {
            // Readiness is cleared only now: what arrived since the attempt sets it again.
            Err(JournalError::WouldBlock) => guard.clear_ready(),
            other => return Ok(other?),
        }
    }
}

async fn read_all(socket: &AsyncFd<OwnedFd>, bytes: &mut [u8]) -> Result<(), ConnectionError> {
    let mut have = 0;
    while have < bytes.len() {
        let mut guard = socket.readable().await.map_err(ConnectionError::Runtime)?;
        match recv(socket.as_raw_fd(), &mut bytes[have..], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(JournalError::Cut.into()),
            Ok(count) => have += count,
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(ConnectionError::System { call: "recv", source }),
        }
    }
    Ok(())
}

async fn write_all(socket: &AsyncFd<OwnedFd>, bytes: &[u8]) -> Result<(), ConnectionError> {
    let mut sent = 0;
    while sent < bytes.len() {
        let mut guard = socket.writable().await.map_err(ConnectionError::Runtime)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), &bytes[sent..], flags) {
            Ok(count) => sent += count,
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(ConnectionError::System { call: "send", source }),
        }
    }
    Ok(())
}
