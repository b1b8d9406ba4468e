//! An endpoint: a directory whose socket `cntrl` takes one client after the other, one PCI function behind it.

mod socket;

use crate::backends::Backends;
use crate::client;
use crate::closer::Closer;
use crate::function::{Function, FunctionConfig, FunctionError};
use crate::link::{Link, LinkConfig};
use crate::pause::Pause;
use crate::subsystem::SharedSubsystem;
use ipc::layout::latency::{BUCKETS, upper_bound};
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme::{ControllerConfig, WorkerSeat};
use nvme_spec::ControllerId;
use service::observe::SharedQueues;
use socket::Socket;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use telemetry::limit::Limit;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use vireo_proto::handoff::{
    EndpointReport, LatencyBucket, LatencyCounts, LatencyKind, Limits, NamespaceCounters,
    QueuesSegment, WorkerCounters,
};

/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most rows of counters in one answer, each of at most 104 bytes: with the rest they fit into one message. One worker has
/// fewer.
const MAX_REPORT_ROWS: usize = 1024;
/// Rows of latencies of a worker.
const LATENCY_ROWS: usize = 3 * BUCKETS;
const _: () = assert!(ipc::layout::MAX_NAMESPACES + LATENCY_ROWS <= MAX_REPORT_ROWS);
const _: () = assert!(MAX_REPORT_ROWS * 104 < ipc::handoff::MAX_MESSAGE / 2);

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
    /// The client that is connected.
    pub client: watch::Sender<Option<ClientIdentity>>,
    /// Whether its commands are fetched.
    pub pause: Arc<Pause>,
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

/// The process at the other end of the socket, as it was when it connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Process identifier; 0 if it is of another PID namespace.
    pub pid: i32,
    /// User identifier.
    pub uid: u32,
}

impl ClientIdentity {
    fn of(stream: &UnixStream) -> Self {
        // The kernel knows them of every connected socket.
        stream.peer_cred().map_or_else(
            |_| Self::default(),
            |peer| Self { pid: peer.pid().unwrap_or(0), uid: peer.uid() },
        )
    }
}

/// A running endpoint.
pub struct Endpoint {
    /// What it was made with.
    pub config: EndpointConfig,
    id: u128,
    /// The controller, as its subsystem knows it.
    controller: ControllerId,
    /// What each of its workers counts, in the order of [`EndpointConfig::workers`].
    queues: Vec<Arc<Segment<QueuesLayout>>>,
    shared: Arc<Shared>,
    /// Gone once the endpoint is to stop.
    socket: Mutex<Option<Socket>>,
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
        let (listener, socket) = socket::listen(&config.path)?;
        let id = random_id().map_err(EndpointError::Random)?;
        let notify = Arc::new(Notify::new());
        let mut seats = Vec::new();
        let mut counted = Vec::new();
        let mut links = Vec::new();
        for (index, (worker, name)) in workers.into_iter().zip(&config.workers).enumerate() {
            let queues = Arc::new(Segment::<QueuesLayout>::create("vireo-queues", id)?);
            let descriptor = queues.fd().try_clone_to_owned().map_err(EndpointError::Descriptor)?;
            let notify = Arc::clone(&notify);
            let (index, sender) = (index as u32, sender.to_owned());
            links.push(Link::new(LinkConfig {
                worker,
                sender,
                index,
                queues: descriptor,
                notify,
                name: format!("worker-{name}"),
                backends: Arc::clone(&backends),
                subsystem: Arc::clone(&subsystem),
            }));
            counted.push(Arc::clone(&queues));
            seats.push(WorkerSeat::new(queues));
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
            client: watch::Sender::new(None),
            pause: Arc::default(),
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
        let (controller, socket) = (controller_id, Mutex::new(Some(socket)));
        Ok(Self { config, id, controller, queues: counted, shared, socket })
    }

    /// Whether a client is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.client.borrow().is_some()
    }

    /// Who is connected, and what workers from `first_worker` on have counted, as far as it fits into one answer.
    pub fn report(&self, first_worker: usize) -> EndpointReport {
        let client = *self.shared.client.borrow();
        let identity = client.unwrap_or_default();
        let mut report = EndpointReport {
            instance: vireo_proto::id_to_bytes(self.id),
            age_ns: u64::try_from(self.shared.now().as_nanos()).unwrap_or(u64::MAX),
            connected: client.is_some(),
            client_pid: identity.pid,
            client_uid: identity.uid,
            pause_state: self.shared.pause.state().into(),
            ..EndpointReport::default()
        };
        let workers = self.config.workers.iter().zip(&self.queues);
        let (mut rows, mut next) = (0, first_worker);
        for (name, queues) in workers.skip(first_worker) {
            let namespaces = counters(queues);
            rows += namespaces.len() + LATENCY_ROWS;
            if rows > MAX_REPORT_ROWS {
                report.next_worker = u32::try_from(next).unwrap_or(u32::MAX);
                break;
            }
            let latencies = latencies(queues);
            report.workers.push(WorkerCounters { worker: name.clone(), namespaces, latencies });
            next += 1;
        }
        report
    }

    /// Whether its commands are fetched.
    pub fn pause(&self) -> &Arc<Pause> {
        &self.shared.pause
    }

    /// Sets what its controller may do.
    ///
    /// # Errors
    /// One line: it cannot be limited.
    pub fn limit(&self, wanted: Option<&Limits>) -> Result<(), String> {
        self.shared.subsystem.limits().set_controller(self.controller, wanted)
    }

    /// The segments that its workers count in.
    pub fn queues(&self) -> impl Iterator<Item = SharedQueues> {
        self.config.workers.iter().zip(&self.queues).map(|(worker, segment)| SharedQueues {
            of: QueuesSegment {
                endpoint: self.config.name.clone(),
                subsystem: self.config.subsystem.clone(),
                worker: worker.clone(),
                connected: self.is_connected(),
            },
            segment: Arc::clone(segment),
        })
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
        self.shared.stop.send_replace(true);
        drop(self.socket.lock().unwrap_or_else(PoisonError::into_inner).take());
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

/// How long sampled commands took on a worker.
fn latencies(queues: &QueuesLayout) -> Vec<LatencyCounts> {
    let kinds = [LatencyKind::Read, LatencyKind::Write, LatencyKind::Other];
    let counts = kinds.into_iter().zip(&queues.latency).map(|(kind, histogram)| {
        let (counts, sum_ns) = histogram.load();
        let buckets = counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        let bucket = |(bucket, count)| LatencyBucket {
            upper_bound_ns: upper_bound(bucket).unwrap_or(0),
            count,
        };
        LatencyCounts { kind: kind.into(), sum_ns, buckets: buckets.map(bucket).collect() }
    });
    counts.filter(|counts| !counts.buckets.is_empty()).collect()
}

/// What a worker counted, by namespace.
fn counters(queues: &QueuesLayout) -> Vec<NamespaceCounters> {
    // Relaxed: each counter stands for itself.
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let both = queues.counters.iter().zip(&queues.throttled);
    let rows = both.zip(1..).map(|((counters, throttled), nsid)| NamespaceCounters {
        nsid,
        reads: load(&counters.reads),
        writes: load(&counters.writes),
        others: load(&counters.others),
        read_bytes: load(&counters.read_bytes),
        written_bytes: load(&counters.written_bytes),
        errors: load(&counters.errors),
        media_errors: load(&counters.media_errors),
        throttled: load(&throttled.commands),
        throttled_ns: load(&throttled.waited_ns),
    });
    rows.filter(|row| *row != NamespaceCounters { nsid: row.nsid, ..Default::default() }).collect()
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
        let accepted = accepted.and_then(|(stream, _)| {
            let identity = ClientIdentity::of(&stream);
            Ok((identity, stream.into_std()?))
        });
        let (identity, socket) = match accepted {
            Ok((identity, socket)) => (identity, OwnedFd::from(socket)),
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
        shared.client.send_replace(Some(identity));
        // What changes from here on waits for this client.
        shared.settled.send_replace(0);
        shared.pause.tell(false);
        let id = function.controller().id();
        shared.subsystem.pauses().enter(id);
        if let Err(error) = client::serve(&mut function, &shared, socket, generation).await {
            tracing::error!(
                endpoint = shared.name,
                error = crate::line(&error),
                "client not served"
            );
            shared.settled.send_replace(u64::MAX);
        }
        shared.pause.tell(true);
        shared.subsystem.pauses().leave(id);
        shared.client.send_replace(None);
    }
    shared.subsystem.lock().remove_controller(function.controller().id());
    // Connections that nobody took may hold descriptors.
    shared.closer.close(listener.into_std().map(OwnedFd::from).ok());
}

fn random_id() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::layout::latency::LatencyOf;

    #[test]
    fn a_report_has_what_a_worker_counted_and_nothing_else() {
        let queues = Segment::<QueuesLayout>::create("vireo-queues", 7).unwrap();
        assert_eq!((counters(&queues), latencies(&queues)), (Vec::new(), Vec::new()));
        queues.counters[4].writes.store(3, Ordering::Relaxed);
        queues.counters[4].written_bytes.store(12_288, Ordering::Relaxed);
        queues.latency[LatencyOf::Write as usize].record(300);
        queues.latency[LatencyOf::Write as usize].record(u64::MAX / 2);
        let expected =
            NamespaceCounters { nsid: 5, writes: 3, written_bytes: 12_288, ..Default::default() };
        assert_eq!(counters(&queues), [expected]);
        let found = latencies(&queues);
        assert_eq!((found.len(), found[0].kind()), (1, LatencyKind::Write));
        let buckets: Vec<_> =
            found[0].buckets.iter().map(|b| (b.upper_bound_ns, b.count)).collect();
        assert_eq!(buckets, [(320, 1), (0, 1)]);
    }
}
