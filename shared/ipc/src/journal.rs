//! The journal of the vfio-user message in hand: which step of peek, act, reply, consume it has reached.
//!
//! A message stays in the socket until it is dealt with: it is peeked, acted upon, answered, and only then consumed.
//! What the answer and the consumption have reached stands in a page of the controller segment, and the kernel itself
//! writes it there: `sendmmsg` and `recvmmsg` store the number of bytes they moved into an `mmsghdr` that lies in the
//! page, within the call that moves them. So a successor knows exactly what left and what was consumed, at whatever
//! instruction the process died ([`Journal::recover`]). Only the act can run twice.
//!
//! ```text
//! Idle -peek-> Peeked -reply-> Replying -consume-> Consuming -> Idle
//!                     '--------------- consume ---^     (a message that wants no reply)
//! ```
//!
//! Replies of at most [`INLINE_REPLY`] bytes are kept in the page. Longer ones (large region reads) are not: their
//! length and what of it has left are, and a successor computes them again. The addresses in the page are those of the
//! process that wrote them; a successor makes its own and follows none.

mod page;
mod socket;

#[cfg(test)]
mod tests;

pub use page::{INLINE_REPLY, JournalPage, Step};
pub use socket::{MAX_DESCRIPTORS, PeekedHeader};

use crate::layout::controller::ControllerLayout;
use crate::segment::Segment;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Longest message in bytes. A message that is peeked whole must fit into the socket's buffer, of which the client has
/// 208 KiB by default; so a server negotiates at most about half of this for the data of one transfer.
pub const MAX_MESSAGE: usize = 128 << 10;
/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The socket has no (further) bytes, or no room; the same call goes on when it is ready.
    #[error("vfio-user socket is not ready")]
    WouldBlock,
    /// The client closed the connection between two messages, or no longer takes replies.
    #[error("vfio-user client is gone")]
    Closed,
    /// The client closed the connection within a message.
    #[error("vfio-user client is gone within a message")]
    Cut,
    /// The message is longer than [`MAX_MESSAGE`], or the reply than a message can be.
    #[error("vfio-user message of {size} bytes is too long")]
    TooLong {
        /// Bytes.
        size: usize,
    },
    /// The step does not follow the one that the journal is at.
    #[error("{wanted} does not follow {step:?}")]
    OutOfStep {
        /// The step that was asked for.
        wanted: &'static str,
        /// The journal's.
        step: Step,
    },
    /// What stands in the page cannot have been written by a journal.
    #[error("journal is corrupt: {0}")]
    Corrupt(&'static str),
    /// A system call failed.
    #[error("{call} on a vfio-user socket")]
    System {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl From<JournalError> for io::Error {
    fn from(error: JournalError) -> Self {
        let kind = match &error {
            JournalError::WouldBlock => io::ErrorKind::WouldBlock,
            JournalError::Closed | JournalError::Cut => io::ErrorKind::UnexpectedEof,
            JournalError::System { source, .. } => source.kind(),
            JournalError::TooLong { .. } => io::ErrorKind::InvalidData,
            JournalError::OutOfStep { .. } | JournalError::Corrupt(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// What a successor has to do with the message that was in hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing: go on with the next message.
    Idle,
    /// Peek the message (again), act upon it (again), reply, consume.
    Act {
        /// Bytes of the message.
        size: usize,
    },
    /// Go on replying: gather `fds` descriptors as for the first time, call [`Journal::reply`] with them and with
    /// `bytes`, or, where these are `None`, with the reply computed again; then consume.
    Reply {
        /// Bytes of the message, which can be peeked again.
        size: usize,
        /// Bytes of the reply.
        len: usize,
        /// Bytes of it that have left.
        sent: usize,
        /// The reply, if it was short enough to be kept.
        bytes: Option<Vec<u8>>,
        /// Descriptors that are still to be sent: none once anything has left.
        fds: usize,
    },
    /// Call [`Journal::consume`].
    Consume {
        /// Bytes of the message.
        size: usize,
    },
}

/// The steps of one connection. The descriptor, a Unix stream socket, is passed to each call; no call blocks.
pub struct Journal {
    segment: Arc<Segment<ControllerLayout>>,
    scratch: Box<[u8]>,
    unwanted: Vec<OwnedFd>,
}

impl Journal {
    /// The journal in `segment`, wherever it stands. Either [`Self::reset`] or [`Self::recover`] comes next.
    pub fn new(segment: Arc<Segment<ControllerLayout>>) -> Self {
        let scratch = vec![0; MAX_MESSAGE + 1].into_boxed_slice();
        Self { segment, scratch, unwanted: Vec::new() }
    }

    /// For a new connection: no message is in hand.
    pub fn reset(&mut self) {
        self.page().set_step(Step::Idle);
    }

    /// Where the message in hand stands.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`].
    pub fn step(&self) -> Result<Step, JournalError> {
        self.page().step()
    }

    /// Looks at the next message's 16 bytes of header and takes new descriptors of what came with the message; every
    /// call makes new ones, and dropping them closes them. The socket keeps the message.
    ///
    /// A message's descriptors are those that came in a part (one `sendmsg` of the client) that ends within the
    /// message, whose size the header tells in its bytes 4 to 7. Those of a part that also holds bytes of the next
    /// message are dropped when this one is consumed; no known client sends such parts.
    ///
    /// # Errors
    /// [`JournalError::WouldBlock`] until all 16 bytes are there, [`JournalError::Closed`], [`JournalError::Cut`],
    /// [`JournalError::System`].
    pub fn peek_header(&mut self, fd: BorrowedFd<'_>) -> Result<PeekedHeader, JournalError> {
        self.before_consuming("peek")?;
        self.unwanted.clear();
        socket::peek_header(fd, &mut self.scratch, &mut self.unwanted)
    }

    /// Descriptors that the last [`Self::peek_header`] made and that are not this message's, or not yet. The next call
    /// closes those that nobody takes; the file behind one may make that wait.
    pub fn take_unwanted(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.unwanted)
    }

    /// Looks at the whole message, whose size is that of `message`; from then on it is in hand. The descriptors that
    /// came with it are those of [`Self::peek_header`].
    ///
    /// # Errors
    /// [`JournalError::WouldBlock`] until all of it is there, [`JournalError::TooLong`], [`JournalError::Cut`],
    /// [`JournalError::Closed`], [`JournalError::System`].
    pub fn peek_message(
        &mut self,
        fd: BorrowedFd<'_>,
        message: &mut [u8],
    ) -> Result<(), JournalError> {
        let step = self.before_consuming("peek")?;
        let size = message.len();
        if size == 0 || size > MAX_MESSAGE {
            return Err(JournalError::TooLong { size });
        }
        socket::peek(fd, message)?;
        if matches!(step, Step::Idle | Step::Peeked) {
            self.page().set_size(size);
            self.page().set_step(Step::Peeked);
        }
        Ok(())
    }

    /// Sends the reply to the message in hand. After [`JournalError::WouldBlock`] the same call with the same
    /// arguments goes on where it stopped; what was sent is not sent again, descriptors go with the first byte.
    ///
    /// # Errors
    /// [`JournalError::WouldBlock`], [`JournalError::Closed`], [`JournalError::OutOfStep`],
    /// [`JournalError::TooLong`], [`JournalError::System`].
    pub fn reply(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), JournalError> {
        let page = self.page();
        let valid = !bytes.is_empty() && fds.len() <= MAX_DESCRIPTORS;
        if !valid || u32::try_from(bytes.len()).is_err() {
            return Err(JournalError::TooLong { size: bytes.len() });
        }
        match page.step()? {
            Step::Peeked => page.begin_reply(bytes, fds.len()),
            Step::Replying if page.reply_len()? == bytes.len() => {}
            step => return Err(JournalError::OutOfStep { wanted: "this reply", step }),
        }
        loop {
            let sent = page.sent.total();
            if sent == bytes.len() {
                return Ok(());
            }
            let rest = bytes.get(sent..).ok_or(JournalError::Corrupt("bytes sent"))?;
            socket::send(&page.sent, fd, rest, if sent == 0 { fds } else { &[] })?;
        }
    }

    /// Takes the message in hand out of the socket, after its reply has left or if it wants none.
    ///
    /// # Errors
    /// [`JournalError::WouldBlock`], [`JournalError::Cut`], [`JournalError::OutOfStep`], [`JournalError::System`].
    pub fn consume(&mut self, fd: BorrowedFd<'_>) -> Result<(), JournalError> {
        let page = &self.segment.journal;
        match page.step()? {
            Step::Peeked => page.begin_consuming(),
            Step::Replying if page.sent.total() == page.reply_len()? => page.begin_consuming(),
            Step::Consuming => {}
            step => return Err(JournalError::OutOfStep { wanted: "consume", step }),
        }
        let size = page.size()?;
        loop {
            let consumed = page.consumed.total();
            if consumed == size {
                page.set_step(Step::Idle);
                return Ok(());
            }
            let rest = size.checked_sub(consumed).ok_or(JournalError::Corrupt("bytes consumed"))?;
            let into = rest.min(self.scratch.len());
            socket::receive(&page.consumed, fd, &mut self.scratch[..into])?;
        }
    }

    /// What is to be done next, on the connection of a predecessor that is proven dead.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`]: the connection cannot be kept. [`JournalError::System`].
    pub fn recover(&mut self, fd: BorrowedFd<'_>) -> Result<Recovered, JournalError> {
        socket::peek_from_start(fd)?;
        let page = self.page();
        let step = page.step()?;
        if step == Step::Idle {
            return Ok(Recovered::Idle);
        }
        let size = page.size()?;
        match step {
            Step::Idle => Ok(Recovered::Idle),
            Step::Peeked => Ok(Recovered::Act { size }),
            Step::Replying => {
                let (len, sent) = (page.reply_len()?, page.sent.total());
                if sent > len {
                    return Err(JournalError::Corrupt("bytes sent"));
                }
                if sent == len {
                    return Ok(Recovered::Consume { size });
                }
                let fds = if sent == 0 { page.reply_fds()? } else { 0 };
                Ok(Recovered::Reply { size, len, sent, bytes: page.inline_reply(len), fds })
            }
            Step::Consuming => match page.consumed.total() {
                consumed if consumed > size => Err(JournalError::Corrupt("bytes consumed")),
                consumed if consumed == size => {
                    page.set_step(Step::Idle);
                    Ok(Recovered::Idle)
                }
                _ => Ok(Recovered::Consume { size }),
            },
        }
    }

    fn before_consuming(&self, wanted: &'static str) -> Result<Step, JournalError> {
        match self.page().step()? {
            step @ Step::Consuming => Err(JournalError::OutOfStep { wanted, step }),
            step => Ok(step),
        }
    }

    fn page(&self) -> &JournalPage {
        &self.segment.journal
    }
}
