//! Where callers come in: a Unix socket, whose peers the kernel names, and TCP with mutual TLS.

use super::caller::{Caller, Roles};
use service::config::{Api, Tls};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use telemetry::limit::Limit;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tonic::codegen::tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Connections of callers with a role.
const MAX_CONNECTIONS: usize = 256;
/// Connections of callers without one: enough to be told so.
const MAX_STRANGERS: usize = 16;
/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be served.
const WAITING: usize = 16;
/// Lines a second that callers can cause by connecting.
static LIMIT: Limit = Limit::per_second(20);

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The Unix socket.
    #[error("{act} {}", path.display())]
    Unix {
        /// What was tried.
        act: &'static str,
        /// The socket or its directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Somebody else listens there.
    #[error("{} is served by another process: name another api.socket, or stop it", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// TCP.
    #[error("listen on {address} (api.listen)")]
    Tcp {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A certificate or key.
    #[error("{} ({key}) cannot be used: {reason}", path.display())]
    Certificate {
        /// Which of them, by its key in the configuration.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ListenError {
    /// True if another start without a change by a person ends the same way.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Certificate { .. } => true,
            // What is in the way may be gone by then.
            Self::Unix { .. } | Self::InUse { .. } | Self::Tcp { .. } => false,
        }
    }
}

/// All connections as they come; stops listening when it is dropped.
#[derive(Debug)]
pub struct Listener {
    connections: mpsc::Receiver<Connection>,
    _tasks: JoinSet<()>,
}

impl Listener {
    /// Listens where `api` says. In a runtime only.
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn bind(api: &Api) -> Result<Self, ListenError> {
        let roles = Arc::new(Roles::new(api));
        let unix = listen_unix(&api.socket, roles.name_users())?;
        let tcp = match &api.tls {
            Some(tls) => Some((bind_tcp(tls).await?, acceptor(tls)?)),
            None => None,
        };
        let (give, connections) = mpsc::channel(WAITING);
        let doors = Arc::new(Door {
            roles,
            give,
            known: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            strangers: Arc::new(Semaphore::new(MAX_STRANGERS)),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&doors).accept_unix(unix));
        if let Some((listener, acceptor)) = tcp {
            tasks.spawn(doors.accept_tls(listener, acceptor));
        }
        Ok(Self { connections, _tasks: tasks })
    }
}

impl Stream for Listener {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

/// A caller's connection.
#[derive(Debug)]
pub struct Connection {
    stream: Socket,
    caller: Caller,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

/// What the accepting tasks share.
struct Door {
    roles: Arc<Roles>,
    give: mpsc::Sender<Connection>,
    known: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Door {
    async fn accept_unix(self: Arc<Self>, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.enter_unix(stream).await,
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn enter_unix(&self, stream: UnixStream) {
        let Ok(peer) = stream.peer_cred() else { return };
        let roles = Arc::clone(&self.roles);
        // It may ask the user database, which may be a network away.
        let caller = tokio::task::spawn_blocking(move || roles.of_process(&peer)).await;
        if let Ok(caller) = caller {
            self.enter(Socket::Unix(stream), caller).await;
        }
    }

    async fn accept_tls(self: Arc<Self>, listener: TcpListener, acceptor: TlsAcceptor) {
        // Handshakes of strangers; one that is too many waits, and is dropped with this.
        let mut handshakes = JoinSet::new();
        loop {
            while handshakes.try_join_next().is_some() {}
            if handshakes.len() >= MAX_STRANGERS {
                handshakes.join_next().await;
            }
            match listener.accept().await {
                Ok((stream, address)) => {
                    let (door, acceptor) = (Arc::clone(&self), acceptor.clone());
                    handshakes.spawn(async move {
                        let handshake = acceptor.accept(stream);
                        match tokio::time::timeout(HANDSHAKE, handshake).await {
                            Ok(Ok(stream)) => door.enter_tls(stream).await,
                            Ok(Err(error)) => refused(&address.to_string(), &error.to_string()),
                            Err(_) => refused(&address.to_string(), "no TLS handshake in time"),
                        }
                    });
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn enter_tls(&self, stream: TlsStream<TcpStream>) {
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(<[_]>::first);
        // The verifier asks for one; nobody gets here without.
        let Some(caller) = certificate.map(|c| self.roles.of_certificate(c)) else { return };
        self.enter(Socket::Tls(Box::new(stream)), caller).await;
    }

    async fn enter(&self, stream: Socket, caller: Caller) {
        let room = if caller.role.is_some() { &self.known } else { &self.strangers };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            return refused(&caller.name, "too many connections");
        };
        let connection = Connection { stream, caller, _permit: permit };
        // Nobody takes it: the server has ended, and this task is about to.
        self.give.send(connection).await.ok();
    }
}

fn refused(caller: &str, reason: &str) {
    if let Some(suppressed) = LIMIT.pass() {
        tracing::warn!(target: "audit", caller, reason, suppressed, "connection refused");
    }
}

async fn pause(error: &io::Error) {
    if LIMIT.pass().is_some() {
        tracing::warn!(%error, "cannot accept");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Listens on the socket at `path`. One that nobody answers on is replaced. With `open` every user may connect, to be
/// told by the role of his process what he may; otherwise this user and group alone.
fn listen_unix(path: &Path, open: bool) -> Result<UnixListener, ListenError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| ListenError::Unix { act, path, source }
    };
    if let Some(directory) = path.parent() {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder.create(directory).map_err(failed("create", directory))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ListenError::InUse { path: path.to_owned() });
    }
    // Only ever a socket: a mistake in the configuration costs nobody his file.
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        std::fs::remove_file(path).map_err(failed("replace", path))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on", path))?;
    let mode = std::fs::Permissions::from_mode(if open { 0o666 } else { 0o660 });
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of", path))?;
    Ok(listener)
}

async fn bind_tcp(tls: &Tls) -> Result<TcpListener, ListenError> {
    let failed = |source| ListenError::Tcp { address: tls.listen, source };
    TcpListener::bind(tls.listen).await.map_err(failed)
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ListenError> {
    let wrong = |key, path: &Path, reason: String| ListenError::Certificate {
        key,
        path: path.to_owned(),
        reason,
    };
    let certificates = |key, path: &Path| -> Result<Vec<CertificateDer<'static>>, ListenError> {
        let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
        let found: Vec<_> = found.map_err(|error| wrong(key, path, error.to_string()))?;
        if found.is_empty() {
            return Err(wrong(key, path, "it holds no certificate".to_owned()));
        }
        Ok(found)
    };
    let mut authorities = RootCertStore::empty();
    for authority in certificates("api.client_ca", &tls.client_ca)? {
        let added = authorities.add(authority);
        added.map_err(|error| wrong("api.client_ca", &tls.client_ca, error.to_string()))?;
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider));
    let verifier = verifier
        .build()
        .map_err(|error| wrong("api.client_ca", &tls.client_ca, error.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| wrong("api.key", &tls.key, error.to_string()))?;
    let chain = certificates("api.certificate", &tls.certificate)?;
    let unusable = |error: tokio_rustls::rustls::Error| {
        wrong("api.certificate", &tls.certificate, error.to_string())
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
