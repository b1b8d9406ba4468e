//! A server on tokio: one connection, one session, one device, until the client goes.
//!
//! It peeks, acts, replies, then consumes, like a server that keeps a journal, but keeps none:
//! it serves tests and simple devices. A process whose successor takes connections over moves
//! messages itself and uses [`Session`] only.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::{Device, Outcome, Reply, Session};
use crate::Errno;
use crate::framing::{self, FramingError, MAX_MSG_FDS};
use crate::message::{HEADER_SIZE, Header};
use crate::socket::{MAX_PEEKED, Received, receive_some, send_some};

/// What deferred acts came to, in the order in which they were deferred.
pub type Completions = mpsc::Receiver<Result<(), Errno>>;

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The stream has no next message boundary.
    #[error("frame a message")]
    Framing(#[from] FramingError),
    /// More descriptors came than one message may carry.
    #[error("more than {MAX_MSG_FDS} file descriptors with one message")]
    TooManyFds,
    /// The connection ended within a message.
    #[error("connection closed within a message")]
    Truncated,
    /// An act was deferred, and nobody is left to complete it.
    #[error("a deferred act was abandoned")]
    Abandoned,
    /// The socket failed.
    #[error("use the socket")]
    Io(#[from] io::Error),
}

/// Serves one client until it closes the connection between two messages.
///
/// # Errors
/// [`ServeError`]; the connection is closed by dropping the stream.
pub async fn serve(
    stream: UnixStream,
    session: &mut Session,
    device: &mut (dyn Device + Send),
    completions: &mut Completions,
) -> Result<(), ServeError> {
    loop {
        let mut head = [0; HEADER_SIZE];
        if fill(&stream, &mut head, true).await?.is_none() {
            return Ok(());
        }
        let header = Header::parse(&head).unwrap_or_default();
        let size = framing::check(&header)?;
        let mut message = vec![0; size];
        let filled = fill(&stream, &mut message, size <= MAX_PEEKED).await?;
        let Filled { fds, peeked } = filled.ok_or(ServeError::Truncated)?;
        let mut outcome = session.handle(&header, &message[HEADER_SIZE..], fds, device);
        let reply = loop {
            match outcome {
                Outcome::Silent => break None,
                Outcome::Reply(reply) => break Some(reply),
                Outcome::Deferred(deferred) => {
                    let result = completions.recv().await.ok_or(ServeError::Abandoned)?;
                    outcome = session.finish(deferred, result, device);
                }
            }
        };
        if let Some(reply) = reply {
            send(&stream, &reply).await?;
        }
        if peeked {
            fill(&stream, &mut message, false).await?;
        }
    }
}

struct Filled {
    fds: Vec<OwnedFd>,
    /// The bytes are still on the socket.
    peeked: bool,
}

/// Fills `buffer`, by peeking if it can be done so; `None` if the client closed before its first
/// byte. A header is never consumed here, as the next peek begins with it again.
async fn fill(
    stream: &UnixStream,
    buffer: &mut [u8],
    mut peek: bool,
) -> Result<Option<Filled>, ServeError> {
    let header_only = buffer.len() == HEADER_SIZE && peek;
    let mut filled = 0;
    let mut fds = Vec::new();
    while filled < buffer.len() {
        let wanted = buffer.len();
        let part = &mut buffer[filled..];
        let ready = stream.ready(Interest::READABLE).await?;
        // A short peek counts as nothing to read: the next readiness comes with the next bytes.
        let received =
            stream.try_io(Interest::READABLE, || match receive_some(stream, part, peek)? {
                Received { bytes, ref fds, .. }
                    if peek && bytes > 0 && bytes < wanted && (fds.is_empty() || header_only) =>
                {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                received => Ok(received),
            });
        let received = match received {
            Ok(received) => received,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) if ready.is_read_closed() => return Err(ServeError::Truncated),
            Err(_) => continue,
        };
        match received {
            received if received.truncated => return Err(ServeError::TooManyFds),
            Received { bytes: 0, .. } if filled == 0 && header_only => return Ok(None),
            Received { bytes: 0, .. } => return Err(ServeError::Truncated),
            received if peek && received.bytes < wanted => peek = false,
            mut received => {
                filled += received.bytes;
                fds.append(&mut received.fds);
            }
        }
        if fds.len() > MAX_MSG_FDS {
            return Err(ServeError::TooManyFds);
        }
    }
    Ok(Some(Filled { fds, peeked: peek }))
}

async fn send(stream: &UnixStream, reply: &Reply) -> Result<(), ServeError> {
    let mut sent = 0;
    while sent < reply.bytes.len() {
        let fds: Vec<_> = match sent {
            0 => reply.fds.iter().map(AsFd::as_fd).collect(),
            _ => Vec::new(),
        };
        let rest = &reply.bytes[sent..];
        sent += stream.async_io(Interest::WRITABLE, || Ok(send_some(stream, rest, &fds)?)).await?;
    }
    Ok(())
}
