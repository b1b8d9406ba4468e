//! A frontend with one endpoint, a backend that only describes its bdev, a guest.

use crate::worker::FakeWorker;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme_spec::command::{AdminOpcode, Command};
use service::control::{Answer, Handler, Incoming, Server, Session};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::AbortHandle;
use vfio_user::client::{Client, VersionStyle};
use vfio_user::dma::Iova;
use vfio_user::message::DmaAccess;
use vfio_user::region::RegionIndex;
use vireo_frontend::registry::{Registry, RegistryConfig};
use vireo_proto::Failure;
use vireo_proto::handoff::{
    ApplyFailure, ApplyTargets, BdevInfo, DoorbellMode, Endpoint, Namespace, ProcessStatus,
    Subsystem, reply, request,
};

/// Bytes of a guest's memory, at address 0.
pub const MEMORY: u64 = 1 << 20;
/// Controller Configuration.
pub const CC: u64 = 0x14;
/// Controller Status.
pub const CSTS: u64 = 0x1c;
/// How long anything may take that is bound to happen.
pub const BOUND: Duration = Duration::from_secs(60);
/// Patience of the frontend with what is removed.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A backend that describes its bdev, and says what a test wants of a worker's requests.
#[derive(Default)]
pub struct FakeBackend {
    busy: AtomicBool,
    asked: AtomicUsize,
}

impl FakeBackend {
    /// Whether requests of workers are under way, from now on.
    pub fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// How often it was asked that.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Handler for FakeBackend {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::AwaitDrained(asked) => {
                assert_eq!(
                    (&*asked.worker, &*asked.bdevs),
                    ("worker-w0", &["null0".to_owned()][..])
                );
                self.asked.fetch_add(1, Ordering::Relaxed);
                if self.busy.load(Ordering::Relaxed) {
                    return Err(Failure::unavailable("requests have not ended"));
                }
                Ok(Answer::done())
            }
            request::Body::DescribeBdev(describe) => {
                Ok(Answer::new(reply::Body::BdevInfo(BdevInfo {
                    bdev: describe.bdev,
                    size_bytes: 64 << 20,
                    block_size: 512,
                    driver: "null".to_owned(),
                    ..BdevInfo::default()
                })))
            }
            // A disk that never answers.
            request::Body::FlushBdev(_) => std::future::pending().await,
            _ => Err(Failure::unsupported()),
        }
    }
}

/// A frontend in a directory of its own, its backend, and what its manager says to it.
pub struct Target {
    directory: tempfile::TempDir,
    registry: Arc<Registry>,
    /// Its backend.
    pub backend: Arc<FakeBackend>,
    manager: Session,
}

impl Target {
    /// Starts a frontend that serves nothing yet.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let server = Server::bind(&path.join("backend-b0.sock")).unwrap();
        let backend = Arc::new(FakeBackend::default());
        tokio::spawn(server.serve(Arc::clone(&backend)));
        let server = Server::bind(&path.join("frontend-f0.sock")).unwrap();
        let registry = Arc::new(Registry::new(RegistryConfig {
            name: "f0".to_owned(),
            runtime_dir: path.to_owned(),
            state_dir: path.to_owned(),
            patience: PATIENCE,
        }));
        tokio::spawn(server.serve(Arc::clone(&registry)));
        let manager = Session::connect(&path.join("frontend-f0.sock"), "manager-test").unwrap();
        Self { directory, registry, backend, manager }
    }

    /// Starts the worker of every endpoint.
    pub fn start_worker(&self, worker: &Arc<FakeWorker>) -> AbortHandle {
        worker.listen(&self.directory.path().join("worker-w0.sock"))
    }

    /// The endpoint's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("vm0/cntrl")
    }

    /// What is wanted with one endpoint.
    pub fn targets(&self, doorbells: DoorbellMode) -> ApplyTargets {
        targets(self.directory.path(), doorbells)
    }

    /// Has the frontend serve this; returns what it could not do.
    pub async fn apply(&self, targets: ApplyTargets) -> Vec<ApplyFailure> {
        let answer = self.manager.call(request::Body::ApplyTargets(targets), &[]).await.unwrap();
        let reply::Body::ApplyResult(result) = answer.body else { panic!("{answer:?}") };
        result.failures
    }

    /// The frontend's status, over a connection of its own.
    pub async fn status(&self) -> ProcessStatus {
        let socket = self.directory.path().join("frontend-f0.sock");
        let session = Session::connect(&socket, "test").unwrap();
        let body = request::Body::GetStatus(vireo_proto::handoff::GetStatus {});
        let answer = session.call(body, &[]).await.unwrap();
        let reply::Body::ProcessStatus(status) = answer.body else { panic!("{answer:?}") };
        status
    }

    /// Ends every endpoint.
    pub async fn stop(&self) {
        self.registry.stop().await;
    }
}

/// Runs a test on one thread, as the frontend runs.
pub fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// Runs a client in a thread of its own.
pub async fn client<T: Send + 'static>(client: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(client).await.unwrap()
}

/// Serves one endpoint without a worker while `act` runs in a thread of its own.
pub fn with_endpoint(doorbells: DoorbellMode, act: impl FnOnce(&Path) + Send + 'static) {
    run(async {
        let target = Target::start();
        // The second changes nothing.
        for _ in 0..2 {
            assert_eq!(target.apply(target.targets(doorbells)).await, []);
        }
        let socket = target.socket();
        client(move || act(&socket)).await;
        target.stop().await;
        assert!(!target.socket().exists(), "a socket that nobody serves is left");
    });
}

fn targets(directory: &Path, doorbells: DoorbellMode) -> ApplyTargets {
    ApplyTargets {
        subsystems: vec![Subsystem {
            name: "s0".to_owned(),
            nqn: "nqn.2026-11.org.example:s0".to_owned(),
            serial: "SERIAL".to_owned(),
            model: "Model".to_owned(),
            namespaces: vec![Namespace {
                nsid: 1,
                bdev: "null0".to_owned(),
                backend: "b0".to_owned(),
                size_bytes: 64 << 20,
                block_size: 512,
                ..Namespace::default()
            }],
        }],
        endpoints: vec![Endpoint {
            name: "vm0".to_owned(),
            subsystem: "s0".to_owned(),
            path: directory.join("vm0").display().to_string(),
            doorbells: doorbells as i32,
            workers: vec!["w0".to_owned()],
            queues: 4,
            max_transfer_bytes: 1 << 20,
            vectors: 5,
            ..Endpoint::default()
        }],
    }
}

/// What a guest allows the device.
pub fn read_write() -> DmaAccess {
    DmaAccess::new().with_read(true).with_write(true)
}

/// A memory object.
pub fn memory(bytes: u64) -> OwnedFd {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&fd, bytes as i64).unwrap();
    fd
}

/// A client with memory.
pub struct Guest {
    /// Its end of the protocol.
    pub client: Client,
    /// Its memory.
    pub memory: std::fs::File,
}

impl Guest {
    /// Connects and maps its memory.
    pub fn attach(socket: &Path) -> Self {
        let mut client = Client::connect(socket).unwrap();
        client.set_timeout(BOUND);
        client.version(&VersionStyle::Bare { minor: 0 }).unwrap();
        let memory = memory(MEMORY);
        client.dma_map(Iova(0), MEMORY, read_write(), Some((memory.as_fd(), 0))).unwrap();
        Self { client, memory: memory.into() }
    }

    /// Reads a register.
    pub fn register(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(RegionIndex::BAR0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    /// Writes registers.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.client.region_write(RegionIndex::BAR0, offset, bytes).unwrap();
    }

    /// Admin queues of 16 entries at 1000h and 2000h, then CC.EN.
    pub fn enable(&mut self) {
        self.enable_with(16);
    }

    /// The same with so many entries, at most 64.
    pub fn enable_with(&mut self, entries: u32) {
        let last = entries - 1;
        self.write(0x24, &(last << 16 | last).to_le_bytes());
        self.write(0x28, &0x1000_u64.to_le_bytes());
        self.write(0x30, &0x2000_u64.to_le_bytes());
        self.write(CC, &0x0046_0001_u32.to_le_bytes());
        assert_eq!(self.register(CSTS) & 1, 1, "not ready");
    }

    /// Sends the first admin command: Identify Controller into 3000h. Returns its completion.
    pub fn identify(&mut self, ring: impl FnOnce(&mut Self)) -> [u8; 16] {
        let mut command = Command::admin(AdminOpcode::IDENTIFY, nvme_spec::CommandId(7))
            .with_prps(nvme_spec::Iova(0x3000), nvme_spec::Iova(0));
        command.cdw10 = 1;
        let bytes: Vec<u8> =
            command.into_words().iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory.write_all_at(&bytes, 0x1000).unwrap();
        ring(self);
        let until = Instant::now() + BOUND;
        while Instant::now() < until {
            let mut completion = [0; 16];
            self.memory.read_exact_at(&mut completion, 0x2000).unwrap();
            if completion[14] & 1 == 1 {
                return completion;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no completion");
    }
}
