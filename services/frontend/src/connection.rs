//! A client's connection: messages in the order of the journal ([`ipc::journal`]): peeked, acted upon, answered,
//! consumed.
//!
//! How far the message in hand is stands in [`Connection`], not in the futures that move it: one that is dropped half
//! way loses nothing.

use crate::closer::{self, Closer};
use crate::signal::Stuck;
use ipc::journal::{Journal, JournalError, MAX_MESSAGE};
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use vfio_user::framing::{self, FramingError};
use vfio_user::message::{HEADER_SIZE, Header};
use vfio_user::server::Reply;

/// How long a reply may stay unread. One fits into an empty socket at once, so a client, even one that is stopped for
/// long, gets into this only with some 200 KiB of replies before it that it did not read either. There is never more than
/// one reply here, so this also bounds the bytes.
pub const REPLY_TIME: Duration = Duration::from_secs(30);

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
    /// The client does not read what it is told.
    #[error("client has not read a reply of {bytes} bytes within {} s", REPLY_TIME.as_secs())]
    Unread {
        /// Bytes of the reply.
        bytes: usize,
    },
    /// The client sends descriptors that cannot be closed.
    #[error("{count} descriptors of the client's could not be closed in {} s", REPLY_TIME.as_secs())]
    Unclosable {
        /// How many.
        count: usize,
    },
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
    /// What came with it. What is neither memory nor an eventfd is `/dev/null`.
    pub fds: Vec<OwnedFd>,
}

/// A connection.
pub struct Connection {
    /// None once it is closed.
    socket: Option<AsyncFd<OwnedFd>>,
    journal: Journal,
    hand: Hand,
    closer: Closer,
    /// What came with the message in hand and is of no use. Kept until it is consumed, so that the kernel's own reference
    /// is not the last one.
    useless: Vec<OwnedFd>,
    /// Until when descriptors of this client must be closed for it to be served any further.
    room_until: Option<Instant>,
}

/// How far the message in hand is.
enum Hand {
    /// There is none.
    Empty,
    /// Its header is known.
    Begun(Begun),
    /// It is acted upon.
    Acting {
        /// It is consumed already.
        consumed: bool,
    },
    /// It is answered, then consumed.
    Answering(Answering),
}

struct Begun {
    header: Header,
    fds: Vec<OwnedFd>,
    message: Vec<u8>,
    /// Bytes that were consumed: of a message that is too long to be peeked.
    have: usize,
}

struct Answering {
    reply: Option<Reply>,
    consumed: bool,
    /// Bytes that were sent, if the journal does not count them.
    sent: usize,
    until: Instant,
}

impl Connection {
    /// A connection that has just been accepted, with the journal of `segment`.
    ///
    /// # Errors
    /// The event loop's.
    pub fn new(
        socket: OwnedFd,
        segment: Arc<Segment<ControllerLayout>>,
        closer: Closer,
    ) -> std::io::Result<Self> {
        let mut journal = Journal::new(segment);
        journal.reset();
        let socket = Some(service::async_fd::register(socket)?);
        let (hand, useless) = (Hand::Empty, Vec::new());
        Ok(Self { socket, journal, hand, closer, useless, room_until: None })
    }

    /// Waits until the message in hand is answered, then for the next one; `None` if the client left between two. While a
    /// message is in hand that is not answered, waits until the client hangs up. Nothing is lost if this is dropped
    /// while it waits.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is of no more use.
    pub async fn receive(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        let Self { socket, journal, hand, closer, useless, room_until } = self;
        let Some(socket) = socket else { return Ok(None) };
        loop {
            match hand {
                Hand::Empty => {
                    if closer.waiting() >= closer::MAX_WAITING {
                        let until = *room_until.get_or_insert(Instant::now() + REPLY_TIME);
                        if tokio::time::timeout_at(until, closer.room()).await.is_err() {
                            return Err(ConnectionError::Unclosable { count: closer.waiting() });
                        }
                    }
                    *room_until = None;
                    match begin(socket, journal, useless, closer).await {
                        Ok(Some(begun)) => *hand = Hand::Begun(begun),
                        Ok(None) => {}
                        Err(ConnectionError::Journal(JournalError::Closed)) => return Ok(None),
                        Err(error) => return Err(error),
                    }
                }
                Hand::Begun(begun) => {
                    let consumed = begun.message.len() > MAX_MESSAGE;
                    if consumed {
                        // No region takes a write of this length: handling it changes nothing, so it needs no journal.
                        read_rest(socket, begun).await?;
                    } else {
                        let message = &mut begun.message;
                        ready(socket, Interest::READABLE, |fd| journal.peek_message(fd, message))
                            .await?;
                    }
                    let taken = std::mem::replace(hand, Hand::Acting { consumed });
                    if let Hand::Begun(Begun { header, fds, mut message, .. }) = taken {
                        let body = message.split_off(HEADER_SIZE);
                        return Ok(Some(Incoming { header, body, fds }));
                    }
                }
                Hand::Acting { .. } => {
                    hang_up(socket).await;
                    return Ok(None);
                }
                Hand::Answering(answering) => {
                    deliver(socket, journal, answering).await?;
                    *hand = Hand::Empty;
                    closer.close(useless.drain(..));
                }
            }
        }
    }

    /// Answers the message in hand, or not, and is done with it. What does not leave at once leaves while
    /// [`Connection::receive`] waits.
    ///
    /// # Errors
    /// [`ConnectionError`]: the connection is of no more use.
    pub fn answer(&mut self, reply: Option<Reply>) -> Result<(), ConnectionError> {
        let Hand::Acting { consumed } = self.hand else { return Ok(()) };
        let Some(socket) = &self.socket else { return Ok(()) };
        let until = Instant::now() + REPLY_TIME;
        let mut answering = Answering { reply, consumed, sent: 0, until };
        self.hand = match proceed(socket.as_fd(), &mut self.journal, &mut answering)? {
            None => {
                self.closer.close(self.useless.drain(..));
                Hand::Empty
            }
            Some(_) => Hand::Answering(answering),
        };
        Ok(())
    }

    /// Closes the connection.
    pub fn close(&mut self) {
        let begun = match std::mem::replace(&mut self.hand, Hand::Empty) {
            Hand::Begun(begun) => begun.fds,
            Hand::Empty | Hand::Acting { .. } | Hand::Answering(_) => Vec::new(),
        };
        self.closer.close(begun.into_iter().chain(self.useless.drain(..)));
        // Messages that nobody read may hold descriptors, which are closed with it.
        self.closer.close(self.socket.take().map(AsyncFd::into_inner));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

/// Waits for something of the next message, and looks whether its header is complete. What came with it and is neither
/// memory nor an eventfd goes to `useless`.
async fn begin(
    socket: &AsyncFd<OwnedFd>,
    journal: &mut Journal,
    useless: &mut Vec<OwnedFd>,
    closer: &Closer,
) -> Result<Option<Begun>, ConnectionError> {
    let mut guard = socket.readable().await.map_err(ConnectionError::Runtime)?;
    let result = journal.peek_header(socket.as_fd());
    let peeked = match result {
        Ok(peeked) => peeked,
        Err(error) => {
            closer.close(journal.take_unwanted());
            if matches!(error, JournalError::WouldBlock) {
                // Readiness is cleared only now: what arrived since the attempt sets it again.
                guard.clear_ready();
                return Ok(None);
            }
            return Err(error.into());
        }
    };
    useless.extend(journal.take_unwanted());
    let fds = closer::sort(peeked.fds, useless).map_err(|_| ConnectionError::LostDescriptors)?;
    if peeked.fds_cut {
        return Err(ConnectionError::LostDescriptors);
    }
    let header = Header::parse(&peeked.bytes).ok_or(JournalError::Cut)?;
    let size = framing::check(&header)?;
    Ok(Some(Begun { header, fds, message: vec![0; size], have: 0 }))
}

/// Waits until the client hangs up.
async fn hang_up(socket: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut guard) = socket.ready(Interest::READABLE).await else { return };
        if guard.ready().is_read_closed() {
            return;
        }
        // The message in hand makes the socket readable: only a hang-up is news.
        guard.clear_ready();
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

/// Takes the rest of a message; what was taken stands in `begun` at every moment.
async fn read_rest(socket: &AsyncFd<OwnedFd>, begun: &mut Begun) -> Result<(), ConnectionError> {
    while begun.have < begun.message.len() {
        let mut guard = socket.readable().await.map_err(ConnectionError::Runtime)?;
        let rest = &mut begun.message[begun.have..];
        match recv(socket.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Err(JournalError::Cut.into()),
            Ok(count) => begun.have += count,
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(ConnectionError::System { call: "recv", source }),
        }
    }
    Ok(())
}

/// Waits until the answer has left and the message is consumed.
async fn deliver(
    socket: &AsyncFd<OwnedFd>,
    journal: &mut Journal,
    answering: &mut Answering,
) -> Result<(), ConnectionError> {
    while let Some(interest) = proceed(socket.as_fd(), journal, answering)? {
        let ready = tokio::time::timeout_at(answering.until, socket.ready(interest)).await;
        let Ok(guard) = ready else {
            let bytes = answering.reply.as_ref().map_or(0, |reply| reply.bytes.len());
            return Err(ConnectionError::Unread { bytes });
        };
        let mut guard = guard.map_err(ConnectionError::Runtime)?;
        if proceed(socket.as_fd(), journal, answering)?.is_none() {
            return Ok(());
        }
        // Readiness is cleared only now: room that came since the attempt sets it again.
        guard.clear_ready();
    }
    Ok(())
}

/// Sends and consumes as much as can be at once; says what is to be waited for before there is more to do.
fn proceed(
    socket: BorrowedFd<'_>,
    journal: &mut Journal,
    answering: &mut Answering,
) -> Result<Option<Interest>, ConnectionError> {
    let Answering { reply, consumed, sent, .. } = answering;
    if *consumed {
        let bytes = reply.as_ref().map_or(&[][..], |reply| &reply.bytes);
        return send_rest(socket, bytes, sent);
    }
    if let Some(sending) = reply {
        let fds: Vec<BorrowedFd<'_>> = sending.fds.iter().map(|fd| fd.as_fd()).collect();
        match journal.reply(socket, &sending.bytes, &fds) {
            Ok(()) => *reply = None,
            Err(JournalError::WouldBlock) => return Ok(Some(Interest::WRITABLE)),
            Err(error) => return Err(error.into()),
        }
    }
    match journal.consume(socket) {
        Ok(()) => Ok(None),
        Err(JournalError::WouldBlock) => Ok(Some(Interest::READABLE)),
        Err(error) => Err(error.into()),
    }
}

/// Sends what is left of `bytes`, of which `sent` have left.
fn send_rest(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    sent: &mut usize,
) -> Result<Option<Interest>, ConnectionError> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    while *sent < bytes.len() {
        match send(socket.as_raw_fd(), &bytes[*sent..], flags) {
            Ok(count) => *sent += count,
            Err(Errno::EAGAIN) => return Ok(Some(Interest::WRITABLE)),
            Err(Errno::EINTR) => {}
            Err(source) => return Err(ConnectionError::System { call: "send", source }),
        }
    }
    Ok(None)
}
