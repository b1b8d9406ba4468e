//! Who asks.

use super::{Answer, CALL_TIMEOUT, ControlError, name};
use crate::async_fd::register;
use ipc::handoff::{Connection, HandoffError, Message};
use nix::sys::socket::{Shutdown, shutdown};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use telemetry::spans::Span;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tracing::{debug, info, warn};
use vireo_proto::handoff::{Reply, Request, reply, request};
use vireo_proto::{Failure, decode, encode};

/// First pause before connecting again; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(5);
/// Longest pause before connecting again: what a restarted peer waits for us at worst.
const MAX_BACKOFF: Duration = Duration::from_millis(200);
/// Pause after an error that may come again at once, while nothing but the peer's end is waited for.
const DRAIN_PAUSE: Duration = Duration::from_millis(10);

/// One connection. Clones share it; the last one closes it. Calls may overlap.
#[derive(Clone, Debug)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    connection: AsyncFd<Connection>,
    peer: String,
    sender: String,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<(Reply, Message)>>>,
    closed: watch::Sender<bool>,
    gone: watch::Sender<bool>,
}

impl Session {
    /// Connects to the socket at `path`. `sender` names this process in the peer's log, `<kind>-<name>`.
    ///
    /// # Errors
    /// [`ControlError::Closed`] if nobody listens there.
    pub fn connect(path: &Path, sender: &str) -> Result<Self, ControlError> {
        let peer = path.display().to_string();
        match Connection::connect(path) {
            Ok(connection) => Self::new(connection, peer, sender),
            Err(error) if is_absence(&error) => Err(ControlError::Closed { peer }),
            Err(source) => Err(ControlError::Connection { peer, source }),
        }
    }

    /// A session over a connection that stands already. `peer` names it in errors.
    pub fn new(connection: Connection, peer: String, sender: &str) -> Result<Self, ControlError> {
        let connection = match register(connection) {
            Ok(connection) => connection,
            Err(_) => return Err(ControlError::Closed { peer }),
        };
        let shared = Arc::new(Shared {
            connection,
            peer,
            sender: sender.to_owned(),
            next_id: AtomicU64::new(1),
            waiting: Mutex::new(HashMap::new()),
            closed: watch::Sender::new(false),
            gone: watch::Sender::new(false),
        });
        let reader = tokio::spawn(read_replies(Arc::clone(&shared))).abort_handle();
        Ok(Self { inner: Arc::new(Inner { shared, reader }) })
    }

    /// Asks, and waits at most [`CALL_TIMEOUT`] for the answer.
    pub async fn call(
        &self,
        body: request::Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, ControlError> {
        self.call_within(CALL_TIMEOUT, body, fds).await
    }

    /// Asks, and waits at most `timeout` for the answer.
    ///
    /// # Errors
    /// [`ControlError::Refused`] with the peer's reason; anything else if the peer is gone, silent or confused.
    pub async fn call_within(
        &self,
        timeout: Duration,
        body: request::Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, ControlError> {
        let shared = &*self.inner.shared;
        // Relaxed: only uniqueness matters.
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let mut span = name::asked(&body, &shared.peer);
        let context = span.as_ref().and_then(Span::context).or_else(telemetry::spans::current);
        let traceparent = context.map(|context| context.to_string()).unwrap_or_default();
        let request = Request { id, traceparent, sender: shared.sender.clone(), body: Some(body) };
        let (tell, told) = oneshot::channel();
        shared.lock().insert(id, tell);
        // Taken out again however this future ends, also by being dropped.
        let _guard = Waiting { shared, id };
        if *shared.closed.borrow() {
            return Err(self.absent());
        }
        let exchange = async {
            send(&shared.connection, &encode(&request), fds).await.map_err(
                |source| match source {
                    HandoffError::Closed => self.absent(),
                    source => ControlError::Connection { peer: shared.peer.clone(), source },
                },
            )?;
            told.await.map_err(|_| self.absent())
        };
        let result = match tokio::time::timeout(timeout, exchange).await {
            Ok(Ok((reply, message))) => answer(reply, message, &shared.peer),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(ControlError::TimedOut { peer: shared.peer.clone(), after: timeout }),
        };
        if let (Some(span), Err(error)) = (&mut span, &result) {
            span.fail(&error.line());
        }
        result
    }

    /// Asks for something that is answered with `Done`; gives the descriptors beside it.
    pub async fn tell(
        &self,
        body: request::Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<std::os::fd::OwnedFd>, ControlError> {
        let answer = self.call(body, fds).await?;
        match answer.body {
            reply::Body::Done(_) => Ok(answer.fds),
            _ => Err(self.unexpected("done")),
        }
    }

    /// The error for an answer that is not `expected`.
    pub fn unexpected(&self, expected: &'static str) -> ControlError {
        ControlError::Unexpected { peer: self.inner.shared.peer.clone(), expected }
    }

    /// Waits until the peer is gone.
    pub async fn closed(&self) {
        let mut closed = self.inner.shared.closed.subscribe();
        // An error means that the sender is gone: closed as well.
        closed.wait_for(|&closed| closed).await.ok();
    }

    /// Asks for nothing more, and lets the peer know: it closes its end once its handler has let go of what came over
    /// this connection ([`super::Handler::disconnected`]), and then [`Session::gone`] ends.
    pub fn hang_up(&self) {
        // An error means that there is no peer any more.
        shutdown(self.inner.shared.connection.as_raw_fd(), Shutdown::Write).ok();
    }

    /// Waits until the peer has closed its end: its process is gone, or it has let go of all that came over this
    /// connection. [`Session::closed`] may come earlier: when this end can no longer follow what the peer says.
    pub async fn gone(&self) {
        let mut gone = self.inner.shared.gone.subscribe();
        // An error means that the sender is gone, which it is not as long as `self` is there.
        gone.wait_for(|&gone| gone).await.ok();
    }

    /// True once the peer is gone.
    pub fn is_closed(&self) -> bool {
        *self.inner.shared.closed.borrow()
    }

    /// Whether both are the same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The peer's socket, for messages.
    pub fn peer(&self) -> &str {
        &self.inner.shared.peer
    }

    fn absent(&self) -> ControlError {
        ControlError::Closed { peer: self.inner.shared.peer.clone() }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<(Reply, Message)>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Waiting<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().remove(&self.id);
    }
}

/// Keeps a connection to one peer: connects as soon as it is there, and again when it was replaced. Stops when dropped.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    session: watch::Receiver<Option<Session>>,
    task: AbortHandle,
}

impl Client {
    /// Starts connecting to the socket at `path`. `sender` as in [`Session::connect`].
    pub fn new(path: impl Into<PathBuf>, sender: &str) -> Self {
        let path = path.into();
        let (tell, session) = watch::channel(None);
        let task = tokio::spawn(keep_connected(path.clone(), sender.to_owned(), tell));
        Self { path, session, task: task.abort_handle() }
    }

    /// The present session; waits at most `timeout` for one.
    ///
    /// # Errors
    /// [`ControlError::Closed`] if the peer did not come.
    pub async fn session(&self, timeout: Duration) -> Result<Session, ControlError> {
        let mut session = self.session.clone();
        let alive = session.wait_for(|session| session.as_ref().is_some_and(|s| !s.is_closed()));
        match tokio::time::timeout(timeout, alive).await {
            Ok(Ok(session)) => session.clone().ok_or_else(|| self.gone()),
            Ok(Err(_)) | Err(_) => Err(self.gone()),
        }
    }

    /// The present session, if there is one.
    pub fn current(&self) -> Option<Session> {
        self.session.borrow().clone().filter(|session| !session.is_closed())
    }

    /// Sees every change: `Some` when a peer, maybe a new one, is there, `None` when it is gone. A fast restart may
    /// show as `Some` after `Some`.
    pub fn watch(&self) -> watch::Receiver<Option<Session>> {
        self.session.clone()
    }

    /// [`Session::call`] on the present session, waiting for one within the same bound.
    pub async fn call(
        &self,
        body: request::Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, ControlError> {
        self.session(CALL_TIMEOUT).await?.call(body, fds).await
    }

    /// The peer's socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn gone(&self) -> ControlError {
        ControlError::Closed { peer: self.path.display().to_string() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep_connected(path: PathBuf, sender: String, tell: watch::Sender<Option<Session>>) {
    let mut backoff = MIN_BACKOFF;
    loop {
        match Session::connect(&path, &sender) {
            Ok(session) => {
                info!(peer = %path.display(), "connected");
                backoff = MIN_BACKOFF;
                tell.send_replace(Some(session.clone()));
                session.closed().await;
                tell.send_replace(None);
                info!(peer = %path.display(), "disconnected");
            }
            Err(ControlError::Closed { .. }) => {}
            Err(error) => debug!(error = error.line(), "cannot connect"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

fn is_absence(error: &HandoffError) -> bool {
    use nix::errno::Errno;
    matches!(
        error,
        HandoffError::WouldBlock
            | HandoffError::System { source: Errno::ECONNREFUSED | Errno::ENOENT, .. }
    )
}

async fn read_replies(shared: Arc<Shared>) {
    follow_replies(&shared).await;
    shared.closed.send_replace(true);
    // Dropping the senders wakes all who wait.
    shared.lock().clear();
    // Nothing more is asked; what the peer still says is for nobody.
    shutdown(shared.connection.as_raw_fd(), Shutdown::Write).ok();
    loop {
        match receive(&shared.connection).await {
            Ok(_) => {}
            Err(HandoffError::Closed) => break,
            Err(_) => tokio::time::sleep(DRAIN_PAUSE).await,
        }
    }
    shared.gone.send_replace(true);
}

/// Hands answers out until there are no more, or none that can be followed.
async fn follow_replies(shared: &Shared) {
    loop {
        let message = match receive(&shared.connection).await {
            Ok(message) => message,
            Err(HandoffError::Closed) => break,
            Err(error) => {
                // What was lost may have been anybody's answer: only a new connection tells all waiters so.
                warn!(peer = shared.peer, %error, "connection given up");
                break;
            }
        };
        let reply: Reply = match decode(&message.bytes) {
            Ok(reply) => reply,
            Err(error) => {
                warn!(peer = shared.peer, %error, "connection given up");
                break;
            }
        };
        let waiter = shared.lock().remove(&reply.id);
        match waiter {
            // The waiter may have gone away in this moment; the descriptors are closed then.
            Some(waiter) => drop(waiter.send((reply, message))),
            None => debug!(peer = shared.peer, id = reply.id, "answer that nobody waits for"),
        }
    }
}

fn answer(reply: Reply, message: Message, peer: &str) -> Result<Answer, ControlError> {
    if let Some(error) = reply.error {
        return Err(Failure::from(error).into());
    }
    match reply.body {
        Some(body) => Ok(Answer { body, fds: message.fds }),
        None => {
            Err(ControlError::Unexpected { peer: peer.to_owned(), expected: "any known message" })
        }
    }
}

/// Sends one message, waiting for room as long as it takes.
pub(super) async fn send(
    connection: &AsyncFd<Connection>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), HandoffError> {
    ready(connection, Interest::WRITABLE, |connection| connection.try_send(bytes, fds)).await
}

/// Receives one message.
pub(super) async fn receive(connection: &AsyncFd<Connection>) -> Result<Message, HandoffError> {
    ready(connection, Interest::READABLE, Connection::try_recv).await
}

async fn ready<T>(
    connection: &AsyncFd<Connection>,
    interest: Interest,
    mut act: impl FnMut(&Connection) -> Result<T, HandoffError>,
) -> Result<T, HandoffError> {
    loop {
        let Ok(mut guard) = connection.ready(interest).await else {
            return Err(HandoffError::Closed);
        };
        match act(connection.get_ref()) {
            Err(HandoffError::WouldBlock) => guard.clear_ready(),
            other => return other,
        }
    }
}
