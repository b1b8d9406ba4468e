//! Who answers.

use super::client::{receive, send};
use super::{Answer, name};
use crate::async_fd::register;
use ipc::handoff::{Connection, HandoffError, Listener, MAX_MESSAGE, Message, Peer};
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};
use vireo_proto::handoff::{Reply, Request, request};
use vireo_proto::{Failure, decode, encode};

/// Most connections at a time: one for each controller that a worker can have (1024), every process of a large host, and
/// a few command lines. An idle one costs a descriptor and a task.
const MAX_CONNECTIONS: usize = 1024 + 256;
/// How long a peer may leave an answer unread before it is given up.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Name under which a keeper passes the socket to listen on (FileDescriptorName of a socket unit).
pub const CONTROL: &str = "control";

/// Names a connection for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// A request as its handler gets it.
#[derive(Debug)]
pub struct Incoming {
    /// Over which connection; what it set up goes when [`Handler::disconnected`] names it.
    pub connection: ConnectionId,
    /// The process at the other end.
    pub peer: Peer,
    /// Who that process says it is, `<kind>-<name>`.
    pub sender: String,
    /// What it wants.
    pub body: request::Body,
    /// The descriptors beside it, closed if not taken.
    pub fds: Vec<OwnedFd>,
}

impl Incoming {
    /// The descriptors, exactly `N` of them.
    ///
    /// # Errors
    /// [`vireo_proto::ErrorCode::InvalidArgument`] if there are more or fewer; they are closed.
    pub fn take_fds<const N: usize>(&mut self) -> Result<[OwnedFd; N], Failure> {
        let fds = std::mem::take(&mut self.fds);
        let count = fds.len();
        fds.try_into().map_err(|_| Failure::invalid(format!("{count} descriptors, expected {N}")))
    }
}

/// What a process does with requests.
///
/// The server calls [`Handler::handle`] for one request of a connection after the other, and for several connections at
/// the same time. It calls [`Handler::disconnected`] exactly once per connection that asked something, after its last
/// request was handled (so a request that takes long delays it; bound what you wait for), but not when the server itself
/// is dropped. Neither may panic on anything a peer sends.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. A request that this process does not serve is [`Failure::unsupported`].
    fn handle(&self, request: Incoming) -> impl Future<Output = Result<Answer, Failure>> + Send;

    /// The peer is gone (which is no proof of its death).
    fn disconnected(&self, connection: ConnectionId) -> impl Future<Output = ()> + Send {
        let _ = connection;
        async {}
    }
}

/// A listening handoff socket.
#[derive(Debug)]
pub struct Server {
    listener: AsyncFd<Listener>,
    next_id: u64,
}

impl Server {
    /// Listens at `path`; replaces a socket on which nobody answers.
    pub fn bind(path: &Path) -> Result<Self, HandoffError> {
        Self::over(Listener::bind(path)?)
    }

    fn over(listener: Listener) -> Result<Self, HandoffError> {
        let path = listener.path().to_owned();
        register(listener).map(|listener| Self { listener, next_id: 1 }).map_err(|error| {
            HandoffError::System {
                call: "epoll_ctl",
                path,
                source: nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            }
        })
    }

    /// Listens at `path`: on the socket [`CONTROL`] among what the keeper passed, if it lies there, else on one of its
    /// own, as [`Server::bind`] does.
    pub fn adopt_or_bind(
        path: &Path,
        passed: Vec<(String, OwnedFd)>,
    ) -> Result<Self, HandoffError> {
        for (_, fd) in passed.into_iter().filter(|(name, _)| name == CONTROL) {
            match Listener::adopt(fd, path) {
                Ok(listener) => return Self::over(listener),
                // The runtime directory is another one than the keeper's unit says.
                Err(error) => warn!(error = Failure::internal(&error).message(), "socket not used"),
            }
        }
        Self::bind(path)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.listener.get_ref().path()
    }

    /// Accepts and serves until dropped; dropping it ends every connection. Only processes of the same user, or root's,
    /// are served.
    pub async fn serve<H: Handler>(mut self, handler: Arc<H>) {
        let mut connections = JoinSet::new();
        let count = Arc::new(AtomicUsize::new(0));
        loop {
            // Takes finished ones out, so that the set does not grow.
            while connections.try_join_next().is_some() {}
            let Some((connection, peer)) = self.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let us = nix::unistd::geteuid().as_raw();
            if peer.uid != us && peer.uid != 0 {
                warn!(pid = peer.pid, uid = peer.uid, "connection of another user refused");
                continue;
            }
            // Relaxed: one task counts up; a late decrement only refuses one connection more.
            if count.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
                warn!(pid = peer.pid, limit = MAX_CONNECTIONS, "too many connections");
                continue;
            }
            let Ok(connection) = register(connection) else { continue };
            count.fetch_add(1, Ordering::Relaxed);
            let id = ConnectionId(self.next_id);
            self.next_id += 1;
            let (handler, count) = (Arc::clone(&handler), Arc::clone(&count));
            connections.spawn(async move {
                serve_connection(&connection, id, peer, &*handler).await;
                // Closed only after the handler has let go of what came over it, which is what a peer's `Session::gone`
                // waits for; and before it is uncounted.
                drop(connection);
                count.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    async fn accept(&self) -> Option<(Connection, Peer)> {
        loop {
            let mut guard = self.listener.readable().await.ok()?;
            let accepted = self.listener.get_ref().accept();
            match accepted.and_then(|connection| Ok((connection.peer()?, connection))) {
                Ok((peer, connection)) => return Some((connection, peer)),
                Err(HandoffError::WouldBlock) => guard.clear_ready(),
                Err(error) => {
                    warn!(error = Failure::internal(&error).message(), "cannot accept");
                    return None;
                }
            }
        }
    }
}

async fn serve_connection<H: Handler>(
    connection: &AsyncFd<Connection>,
    id: ConnectionId,
    peer: Peer,
    handler: &H,
) {
    let mut asked = false;
    loop {
        let message = match receive(connection).await {
            Ok(message) => message,
            Err(HandoffError::Closed) => break,
            Err(error) => {
                warn!(pid = peer.pid, %error, "connection given up");
                break;
            }
        };
        let Ok(request) = decode::<Request>(&message.bytes) else {
            warn!(pid = peer.pid, "malformed request, connection given up");
            break;
        };
        if !asked {
            debug!(pid = peer.pid, sender = request.sender, "connected");
        }
        asked = true;
        let reply_id = request.id;
        let result = handle(request, message, id, peer, handler).await;
        if let Err(error) = answer(connection, reply_id, result).await {
            info!(pid = peer.pid, %error, "answer not delivered, connection given up");
            break;
        }
    }
    if asked {
        handler.disconnected(id).await;
    }
}

async fn handle<H: Handler>(
    request: Request,
    message: Message,
    connection: ConnectionId,
    peer: Peer,
    handler: &H,
) -> Result<Answer, Failure> {
    // A body of a newer version decodes as none.
    let body = request.body.ok_or_else(Failure::unsupported)?;
    let sender = request.sender;
    let mut span = name::answered(&body, &sender, &request.traceparent);
    let incoming = Incoming { connection, peer, sender, body, fds: message.fds };
    let context = span.as_ref().and_then(telemetry::spans::Span::context);
    let result = telemetry::spans::within(context, handler.handle(incoming)).await;
    if let (Some(span), Err(failure)) = (&mut span, &result) {
        span.fail(failure.message());
    }
    result
}

async fn answer(
    connection: &AsyncFd<Connection>,
    id: u64,
    result: Result<Answer, Failure>,
) -> Result<(), HandoffError> {
    let (mut reply, mut fds) = match result {
        Ok(answer) => (Reply { id, error: None, body: Some(answer.body) }, answer.fds),
        Err(failure) => (Reply { id, error: Some(failure.into()), body: None }, Vec::new()),
    };
    let mut bytes = encode(&reply);
    if bytes.len() > MAX_MESSAGE {
        let failure = Failure::exhausted(format!("answer of {} bytes is too long", bytes.len()));
        reply = Reply { id, error: Some(failure.into()), body: None };
        bytes = encode(&reply);
        fds.clear();
    }
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let sent = tokio::time::timeout(SEND_TIMEOUT, send(connection, &bytes, &borrowed)).await;
    sent.unwrap_or(Err(HandoffError::TimedOut { after: SEND_TIMEOUT }))
}
