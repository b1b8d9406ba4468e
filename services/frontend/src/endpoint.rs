//! An endpoint: a directory whose socket `cntrl` takes one client after the other, one PCI function behind it.

use crate::backends::Backends;
use crate::client;
use crate::closer::Closer;
use crate::function::{Function, FunctionConfig, FunctionError};
use crate::link::{Link, LinkConfig};
use crate::subsystem::SharedSubsystem;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme::{ControllerConfig, WorkerSeat};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use telemetry::limit::Limit;
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore, watch};

/// Name of the socket in the endpoint's directory, as every vfio-user client of this kind expects it.
const SOCKET: &str = "cntrl";
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most requests to backends of one endpoint's clients, with those that a reset or a client left behind: twice as many as
/// admin commands can wait.
pub const MAX_REQUESTS: usize = 64;

/// Log lines a second that clients can cause by coming and going.
const LOG_LINES: u32 = 10;

/// What an endpoint is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Its name.
    pub name: String,
    /// The subsystem's name.
    pub subsystem: String,
    /// Directory of the socket.
    pub path: PathBuf,
    /// Workers that may serve it, by name.
    pub workers: Vec<String>,
    /// The client maps the doorbell page.
    pub doorbells_mapped: bool,
    /// I/O queue pairs.
    pub queues: u16,
    /// Largest data transfer in bytes.
    pub max_transfer: u32,
    /// MSI-X vectors.
    pub vectors: u16,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The function.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// A segment.
    #[error(transparent)]
    Segment(#[from] ipc::segment::SegmentError),
    /// The subsystem has as many controllers as it can.
    #[error("subsystem {subsystem} has no controller identifier left")]
    TooManyControllers {
        /// The subsystem.
        subsystem: String,
    },
    /// The socket.
    #[error("{act} {}", path.display())]
    Socket {
        /// What was tried.
        act: &'static str,
        /// The directory or socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else listens there.
    #[error("{} is served by another process", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// No further descriptor can be had.
    #[error("duplicate a descriptor: raise the limit of open files (RLIMIT_NOFILE)")]
    Descriptor(#[source] std::io::Error),
    /// No random number for the controller's id.
    #[error("random id for the controller")]
    Random(#[source] std::io::Error),
}

/// What the tasks of one endpoint share.
pub struct Shared {
    /// The endpoint's name.
    pub name: String,
    /// The subsystem.
    pub subsystem: Arc<SharedSubsystem>,
    /// The backends.
    pub backends: Arc<Backends>,
    /// The way to every worker, by worker index.
    pub links: Vec<Link>,
    /// Told when a link made progress.
    pub notify: Arc<Notify>,
    /// True once the endpoint is to stop.
    pub stop: watch::Sender<bool>,
    /// Number of the subsystem's last change that is in effect everywhere.
    pub settled: watch::Sender<u64>,
    /// Whether a client is connected.
    pub connected: watch::Sender<bool>,
    /// True once nothing of the endpoint is in flight any more.
    pub ended: watch::Sender<bool>,
    /// Closes what clients send and nobody wants.
    pub closer: Closer,
    /// Requests to backends that may be made beside those under way.
    pub requests: Arc<Semaphore>,
    /// For log lines that clients can cause.
    pub limit: Limit,
    start: Instant,
}

impl Shared {
    /// Time since the endpoint was made.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A running endpoint.
pub struct Endpoint {
    /// What it was made with.
    pub config: EndpointConfig,
    shared: Arc<Shared>,
}

impl Endpoint {
    /// Makes the function and listens. `workers` are the sockets of [`EndpointConfig::workers`], in that order; `sender`
    /// names this process to them.
    ///
    /// # Errors
    /// [`EndpointError`]; nothing is left behind.
    pub fn start(
        config: EndpointConfig,
        subsystem: Arc<SharedSubsystem>,
        backends: Arc<Backends>,
        workers: Vec<PathBuf>,
        sender: &str,
    ) -> Result<Self, EndpointError> {
        let listener = listen(&config.path)?;
        let id = random_id().map_err(EndpointError::Random)?;
        let notify = Arc::new(Notify::new());
        let mut seats = Vec::new();
        let mut links = Vec::new();
        for (index, worker) in workers.into_iter().enumerate() {
            let queues = Arc::new(Segment::<QueuesLayout>::create("vireo-queues", id)?);
            let descriptor = queues.fd().try_clone_to_owned().map_err(EndpointError::Descriptor)?;
            let notify = Arc::clone(&notify);
            let (index, sender) = (index as u32, sender.to_owned());
            links.push(Link::new(LinkConfig { worker, sender, index, queues: descriptor, notify }));
            seats.push(WorkerSeat { queues, attached: false });
        }
        let controller_id = subsystem.lock().add_controller().ok_or_else(|| {
            EndpointError::TooManyControllers { subsystem: config.subsystem.clone() }
        })?;
        let controller = ControllerConfig {
            id: controller_id,
            max_transfer: config.max_transfer,
            io_queues: config.queues,
            vectors: config.vectors,
            doorbells_mapped: config.doorbells_mapped,
            vendor: crate::function::VENDOR,
            subsystem_vendor: crate::function::VENDOR,
        };
        let function = FunctionConfig {
            name: config.name.clone(),
            controller,
            subsystem: Arc::clone(subsystem.subsystem()),
            seats,
        };
        let function = Function::new(function, id).inspect_err(|_| {
            subsystem.lock().remove_controller(controller_id);
        })?;
        let shared = Arc::new(Shared {
            name: config.name.clone(),
            subsystem,
            backends,
            links,
            notify,
            stop: watch::Sender::new(false),
            settled: watch::Sender::new(u64::MAX),
            connected: watch::Sender::new(false),
            ended: watch::Sender::new(false),
            closer: Closer::default(),
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            limit: Limit::per_second(LOG_LINES),
            start: Instant::now(),
        });
        let task = tokio::spawn(run(Arc::clone(&shared), function, listener));
        let of_task = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(error) = task.await {
                tracing::error!(endpoint = of_task.name, %error, "endpoint ended badly");
            }
            of_task.ended.send_replace(true);
        });
        Ok(Self { config, shared })
    }

    /// Whether a client is connected.
    pub fn is_connected(&self) -> bool {
        *self.shared.connected.borrow()
    }

    /// Waits until change `number` of the subsystem is in effect: nothing of before is in flight.
    pub async fn settled(&self, number: u64) {
        let mut settled = self.shared.settled.subscribe();
        // An error means that the endpoint is gone: settled for good.
        settled.wait_for(|&settled| settled >= number).await.ok();
    }

    /// Begins to end: the client's connection ends, nobody finds the socket any more, and another endpoint may take its
    /// place.
    pub fn stop(&self) {
        if !self.shared.stop.send_replace(true) {
            std::fs::remove_file(self.config.path.join(SOCKET)).ok();
        }
    }

    /// Waits until nothing of the endpoint is in flight, and its client's connection is closed, after
    /// [`Endpoint::stop`].
    pub async fn ended(&self) {
        let mut ended = self.shared.ended.subscribe();
        // An error cannot be: the sender is here.
        ended.wait_for(|&ended| ended).await.ok();
    }

    /// Whether nothing of the endpoint is in flight any more.
    pub fn has_ended(&self) -> bool {
        *self.shared.ended.borrow()
    }
}

async fn run(shared: Arc<Shared>, mut function: Function, listener: UnixListener) {
    let mut stop = shared.stop.subscribe();
    let mut generation = 0;
    loop {
        let accept = async {
            // Who blocks the closing of descriptors does not get further ones in by connecting again.
            shared.closer.room().await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            _ = stop.wait_for(|&stop| stop) => break,
        };
        let socket = match accepted.and_then(|(stream, _)| stream.into_std()) {
            Ok(socket) => OwnedFd::from(socket),
            Err(error) => {
                tracing::warn!(endpoint = shared.name, %error, "cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        generation += 1;
        if let Some(suppressed) = shared.limit.pass() {
            tracing::info!(endpoint = shared.name, suppressed, "client connected");
        }
        shared.connected.send_replace(true);
        // What changes from here on waits for this client.
        shared.settled.send_replace(0);
        if let Err(error) = client::serve(&mut function, &shared, socket, generation).await {
            tracing::error!(
                endpoint = shared.name,
                error = crate::line(&error),
                "client not served"
            );
            shared.settled.send_replace(u64::MAX);
        }
        shared.connected.send_replace(false);
    }
    shared.subsystem.lock().remove_controller(function.controller().id());
    // Connections that nobody took may hold descriptors.
    shared.closer.close(listener.into_std().map(OwnedFd::from).ok());
}

/// Listens on the socket in `directory`. A socket that nobody answers on is replaced.
fn listen(directory: &Path) -> Result<UnixListener, EndpointError> {
    let socket = |act, path: &Path| {
        let path = path.to_owned();
        move |source| EndpointError::Socket { act, path, source }
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o750);
    builder.create(directory).map_err(socket("create", directory))?;
    let path = directory.join(SOCKET);
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(EndpointError::InUse { path });
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(socket("replace", &path)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(socket("listen on", &path))?;
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(&path, mode).map_err(socket("set the mode of", &path))?;
    Ok(listener)
}

fn random_id() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}
