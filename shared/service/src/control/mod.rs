//! The handoff protocol as asynchronous calls: who answers ([`Server`], [`Handler`]) and who asks ([`Session`],
//! [`Client`]).
//!
//! A [`Session`] is one connection: once it is closed, every call on it fails, so that a sequence of calls never
//! continues on a successor that knows nothing of the first ones. A [`Client`] keeps connecting and hands out sessions.
//! All of it runs on a current-thread runtime.

mod client;
mod name;
mod server;
#[cfg(test)]
mod tests;

use ipc::handoff::HandoffError;
use std::os::fd::OwnedFd;
use std::time::Duration;
use vireo_proto::handoff::{Done, reply};
use vireo_proto::{ErrorCode, Failure, Malformed};

pub use client::{Client, Session};
pub use server::{CONTROL, ConnectionId, Handler, Incoming, Server};

/// How long a call may take if its caller says nothing else. Far above what any process needs; it bounds what a peer
/// that hangs can hold up.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer answered that it could not.
    #[error("refused")]
    Refused(#[from] Failure),
    /// The connection failed.
    #[error("connection to {peer}")]
    Connection {
        /// The peer's socket.
        peer: String,
        /// How.
        #[source]
        source: HandoffError,
    },
    /// The peer sent something that is no answer.
    #[error("answer from {peer}")]
    Malformed {
        /// The peer's socket.
        peer: String,
        /// How.
        #[source]
        source: Malformed,
    },
    /// The peer answered with another message, or with other descriptors, than the request asks for.
    #[error("{peer} answered something else than {expected}")]
    Unexpected {
        /// The peer's socket.
        peer: String,
        /// What was expected.
        expected: &'static str,
    },
    /// The peer is gone, or was never there.
    #[error("{peer} is not there")]
    Closed {
        /// The peer's socket.
        peer: String,
    },
    /// No answer in time. The peer may still act on the request.
    #[error("no answer from {peer} within {} ms", after.as_millis())]
    TimedOut {
        /// The peer's socket.
        peer: String,
        /// How long was waited.
        after: Duration,
    },
}

impl ControlError {
    /// The peer's own code, if it answered.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(failure) => Some(failure.code()),
            Self::Connection { .. }
            | Self::Malformed { .. }
            | Self::Unexpected { .. }
            | Self::Closed { .. }
            | Self::TimedOut { .. } => None,
        }
    }

    /// The error with its causes in one line.
    pub fn line(&self) -> String {
        Failure::internal(self).message().to_owned()
    }
}

/// An answer: the reply's body and the descriptors beside it.
#[derive(Debug)]
pub struct Answer {
    /// The reply's body.
    pub body: reply::Body,
    /// Descriptors in the order that the message names.
    pub fds: Vec<OwnedFd>,
}

impl Answer {
    /// Success that has nothing to tell.
    pub fn done() -> Self {
        Self::new(reply::Body::Done(Done {}))
    }

    /// An answer without descriptors.
    pub fn new(body: reply::Body) -> Self {
        Self { body, fds: Vec::new() }
    }

    /// An answer with descriptors.
    pub fn with_fds(body: reply::Body, fds: Vec<OwnedFd>) -> Self {
        Self { body, fds }
    }
}
