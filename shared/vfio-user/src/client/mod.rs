//! The client's end: a blocking client whose every wait is bounded.
//!
//! It is a driver's transport and a test's scripted peer. Beside the calls that send a command
//! and wait for its reply, [`Client::post`] pipelines, and [`Client::send_raw`] sends whatever
//! bytes it is given. Commands that the server sends while a reply is awaited (DMA_READ and
//! DMA_WRITE) are answered from the memory given to [`Client::serve_dma`].

mod request;

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::dma::DmaRequest;
use crate::message::{Command, Header};
use crate::socket::{Connection, Message, SocketError};
use crate::version::Proposal;
use crate::{Errno, HeaderFlags};

pub use request::RegionDetails;

/// How long a reply is awaited unless [`Client::set_timeout`] says otherwise. QEMU waits as long.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Replies to pipelined commands that may be outstanding; more is the caller's mistake.
const MAX_OUTSTANDING: usize = 4096;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No server at this path.
    #[error("connect to {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The message did not leave, or no reply came. The connection is of no use after it.
    #[error("exchange command {command}", command = .command.0)]
    Exchange {
        /// The command.
        command: Command,
        /// What happened.
        source: SocketError,
    },
    /// The server answered with an error.
    #[error("command {command} refused by the server", command = .command.0)]
    Refused {
        /// The command.
        command: Command,
        /// The server's error number.
        source: Errno,
    },
    /// The server answered something else than was asked.
    #[error("reply to command {command} does not fit: {what}", command = .command.0)]
    BadReply {
        /// The command.
        command: Command,
        /// What does not fit.
        what: &'static str,
    },
    /// The call's own arguments do not fit a message.
    #[error("command {command} cannot carry {what}", command = .command.0)]
    BadRequest {
        /// The command.
        command: Command,
        /// What does not fit.
        what: &'static str,
    },
}

/// A command that was sent and not waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "its reply must be taken before that of a later command"]
pub struct Posted {
    id: u16,
    command: Command,
}

/// How the VERSION message looks: clients differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionStyle {
    /// Minor version and capabilities as JSON, as QEMU and cloud-hypervisor do.
    Json(Proposal),
    /// Four bytes, as SPDK's client does.
    Bare {
        /// Minor version.
        minor: u16,
    },
}

/// Answers DMA_READ with the bytes and DMA_WRITE with nothing, or either with an error.
pub type DmaHandler = Box<dyn FnMut(&DmaRequest) -> Result<Vec<u8>, Errno> + Send>;

/// A connection to a server.
pub struct Client {
    connection: Connection,
    timeout: Duration,
    next_id: u16,
    /// Commands whose replies have not come, oldest first.
    outstanding: VecDeque<Posted>,
    dma: Option<DmaHandler>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("connection", &self.connection)
            .field("timeout", &self.timeout)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Client {
    /// Connects to the server's socket. Nothing is sent yet: [`Client::version`] comes first.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ClientError> {
        let path = path.as_ref();
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Self::new(stream)),
            Err(source) => Err(ClientError::Connect { path: path.to_path_buf(), source }),
        }
    }

    /// A client over a connected stream.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self {
            connection: Connection::new(stream),
            timeout: DEFAULT_TIMEOUT,
            next_id: 0,
            outstanding: VecDeque::new(),
            dma: None,
        }
    }

    /// Waits for each reply, and for room to send, at most this long.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Answers the server's DMA_READ and DMA_WRITE by `handler` from now on. Without one they
    /// are refused with [`Errno::ENOTSUP`], as cloud-hypervisor does.
    pub fn serve_dma(&mut self, handler: DmaHandler) {
        self.dma = Some(handler);
    }

    /// Sends bytes as they are: nothing is added, and no reply is expected by this client. Read
    /// what comes with [`Client::receive_raw`].
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn send_raw(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.connection.send(bytes, fds, self.timeout)
    }

    /// The next message, whatever it is.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn receive_raw(&mut self) -> Result<Message, SocketError> {
        self.connection.receive(self.timeout)
    }

    /// Sends a command and waits for its successful reply: its body and descriptors.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn call(
        &mut self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), ClientError> {
        let posted = self.post(command, body, fds)?;
        self.wait(posted)
    }

    /// Sends a command and does not wait. Its reply is taken by [`Client::wait`], in order.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post(
        &mut self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Posted, ClientError> {
        if self.outstanding.len() >= MAX_OUTSTANDING {
            return Err(ClientError::BadRequest { command, what: "more outstanding replies" });
        }
        let posted = Posted { id: self.next_id, command };
        self.send(command, HeaderFlags::new(), body, fds)?;
        self.outstanding.push_back(posted);
        Ok(posted)
    }

    /// Sends a command that the server does not answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn post_no_reply(
        &mut self,
        command: Command,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        self.send(command, HeaderFlags::new().with_no_reply(true), body, fds)
    }

    /// The reply to a posted command. Replies to earlier ones, which nobody took, are dropped
    /// with their descriptors.
    ///
    /// # Errors
    /// [`ClientError::BadReply`] if its reply was dropped so, others as they say.
    pub fn wait(&mut self, posted: Posted) -> Result<(Vec<u8>, Vec<OwnedFd>), ClientError> {
        let command = posted.command;
        let deadline = Instant::now() + self.timeout;
        while self.outstanding.contains(&posted) {
            let left = deadline.saturating_duration_since(Instant::now());
            let message = self
                .connection
                .receive(left)
                .map_err(|source| ClientError::Exchange { command, source })?;
            if message.header.is_command() {
                self.answer(&message)?;
                // A server that never stops asking does not keep the caller for ever.
                if Instant::now() >= deadline {
                    let source = SocketError::TimedOut { waited: self.timeout };
                    return Err(ClientError::Exchange { command, source });
                }
                continue;
            }
            let Some(oldest) = self.outstanding.pop_front() else { break };
            let (header, body) = (message.header, message.body);
            if !header.is_reply() || header.id != oldest.id || header.command != oldest.command {
                return Err(ClientError::BadReply { command, what: "id, command or type" });
            }
            if oldest == posted {
                return match header.flags.error() {
                    true => Err(ClientError::Refused { command, source: Errno(header.error) }),
                    false => Ok((body, message.fds)),
                };
            }
        }
        Err(ClientError::BadReply { command, what: "its place in the order" })
    }

    fn send(
        &mut self,
        command: Command,
        flags: HeaderFlags,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        if body.len() > crate::framing::MAX_MESSAGE_SIZE - crate::message::HEADER_SIZE {
            return Err(ClientError::BadRequest { command, what: "so many bytes" });
        }
        let header = Header { flags, ..Header::command(self.next_id, command, body.len()) };
        self.connection
            .send(&header.with_body(body), fds, self.timeout)
            .map_err(|source| ClientError::Exchange { command, source })?;
        self.next_id = self.next_id.wrapping_add(1);
        Ok(())
    }

    /// Answers a command of the server's.
    fn answer(&mut self, message: &Message) -> Result<(), ClientError> {
        let header = message.header;
        let answer = DmaRequest::parse(header.command, &message.body).and_then(|request| {
            let handler = self.dma.as_mut().ok_or(Errno::ENOTSUP)?;
            handler(&request).map(|data| request.reply_body(&data))
        });
        let bytes = match answer {
            _ if header.flags.no_reply() => return Ok(()),
            Ok(body) => header.reply(body.len()).with_body(&body),
            Err(errno) => header.error_reply(errno).with_body(&[]),
        };
        self.connection
            .send(&bytes, &[], self.timeout)
            .map_err(|source| ClientError::Exchange { command: header.command, source })
    }
}
