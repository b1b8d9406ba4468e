//! A target whose devices spoil what they are asked: manager, frontend and worker are the real processes, the backend runs
//! in this one, so that a device with faults can be put into it.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use bdev::channel::AnyChannel;
use bdev::fault::{FaultChannel, Plan};
use bdev::malloc::MallocChannel;
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use service::config::{Config, Kind};
use service::control::Server;
use tokio::sync::oneshot;
use vireo_backend::backend::Backend;
use vireo_backend::serve::{self, Command as ServeCommand, DeviceKey, Handle};
use vireo_backend::store::Store;

use crate::log::Log;
use crate::target::{Site, program};
use crate::wait::{PATIENCE, within};

/// Key of the first device that a backend opens.
const FIRST_DEVICE: DeviceKey = 1;
/// The backend's name in every configuration of these.
const BACKEND: &str = "b0";
/// Longest that a process takes to stop before it is killed.
const STOP: std::time::Duration = std::time::Duration::from_secs(5);

/// A running target with faults.
pub struct FaultyTarget {
    site: Site,
    processes: Vec<(Child, Log)>,
    worker: Option<(Child, Log)>,
    stop: Option<oneshot::Sender<()>>,
    backend: Option<JoinHandle<()>>,
}

impl FaultyTarget {
    /// Starts a target of one process of each kind, and waits until all is served. The configuration's first device is a
    /// malloc one with `channel = "ring"`; another of `bytes` bytes that has the faults of `plan` stands in for it.
    ///
    /// # Panics
    /// If it is not ready within [`PATIENCE`], with all that its processes printed.
    #[track_caller]
    pub fn start(configuration: &str, bytes: u64, plan: Plan) -> Self {
        let memory = Arc::new(DeviceMemory::create("faulty", bytes).expect("device memory"));
        let owner = MallocChannel::owner(memory, false, Arc::default());
        let faulty = AnyChannel::Fault(FaultChannel::new(AnyChannel::Malloc(owner), plan));
        Self::start_with(configuration, |_| faulty)
    }

    /// The same with any device, which gets what wakes its backend.
    ///
    /// # Panics
    /// As [`FaultyTarget::start`].
    #[track_caller]
    pub fn start_with(configuration: &str, device: impl FnOnce(EventFd) -> AnyChannel) -> Self {
        let site = Site::new(configuration);
        let (stop, backend, serve) = start_backend(&site);
        let (stop, backend) = (Some(stop), Some(backend));
        let mut target = Self { site, processes: Vec::new(), worker: None, stop, backend };
        for (kind, name) in [("manager", "m0"), ("frontend", "f0")] {
            let process = target.spawn(kind, name);
            target.processes.push(process);
        }
        target.start_worker();
        let ready = within(PATIENCE, || {
            let output = target.site.vireo(&["status", "-o", "json"]);
            output.status.success().then_some(())
        });
        assert!(ready.is_some(), "not ready within {PATIENCE:?}:\n{}", target.log());
        let channel = Box::new(device(serve.kick().expect("an eventfd")));
        // Rings find their device by its key at each turn: from now on they find this one.
        let command = ServeCommand::AddDevice { device: FIRST_DEVICE, channel };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(serve.send(command)).expect("the serve loop runs");
        target
    }

    /// The directory of an endpoint that has no path of its own.
    pub fn endpoint(&self, name: &str) -> std::path::PathBuf {
        self.site.run_dir().join(name)
    }

    /// The socket of such an endpoint.
    pub fn socket(&self, name: &str) -> std::path::PathBuf {
        self.endpoint(name).join("cntrl")
    }

    /// Kills the worker as a crash would. Nobody starts it again.
    pub fn kill_worker(&mut self) {
        if let Some((mut child, log)) = self.worker.take() {
            child.kill().expect("kill a process of our own");
            child.wait().expect("wait for it");
            eprintln!("--- what the killed worker printed ---\n{}---", log.text());
        }
    }

    /// Starts a worker after [`FaultyTarget::kill_worker`].
    pub fn start_worker(&mut self) {
        self.worker = Some(self.spawn("worker", "w0"));
    }

    /// What its processes printed so far.
    pub fn log(&self) -> String {
        self.processes.iter().chain(&self.worker).map(|(_, log)| log.text()).collect()
    }

    fn spawn(&self, kind: &str, name: &str) -> (Child, Log) {
        let mut command = Command::new(program(&format!("vireo-{kind}")));
        command.arg("--config").arg(self.site.file()).args(["--name", name]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("spawn a service");
        let log = Log::of(&mut child);
        (child, log)
    }
}

impl Drop for FaultyTarget {
    fn drop(&mut self) {
        self.processes.extend(self.worker.take());
        for (child, _) in &self.processes {
            kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).ok();
        }
        for (child, _) in &mut self.processes {
            if within(STOP, || child.try_wait().ok().flatten()).is_none() {
                child.kill().ok();
                child.wait().ok();
            }
        }
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(backend) = self.backend.take() {
            backend.join().ok();
        }
        if std::thread::panicking() {
            eprintln!("--- what the target printed ---\n{}---", self.log());
        }
    }
}

/// The backend on a thread of its own; it serves when this returns, until it is told to stop.
fn start_backend(site: &Site) -> (oneshot::Sender<()>, JoinHandle<()>, Handle) {
    let config = Config::read(&site.file()).expect("a configuration without mistakes");
    ipc::sigbus::install().expect("handle faults of guest memory");
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            let socket = config.socket(Kind::Backend, BACKEND);
            let server = Server::bind(&socket).expect("listen");
            let (loop_, handle) = serve::new().expect("serve loop");
            let serving = std::thread::spawn(move || loop_.run());
            let store = Store::from_environment().expect("a store, or none");
            let backend = Arc::new(Backend::new(BACKEND.into(), handle.clone(), store));
            ready.send(handle.clone()).ok();
            tokio::select! {
                () = server.serve(backend) => {}
                // Its sender is dropped with the target at the latest.
                _ = stopped => {}
            }
            handle.send(ServeCommand::Stop).await.ok();
            serving.join().ok();
        });
    });
    let serve = is_ready.recv_timeout(PATIENCE).expect("the backend serves");
    (stop, thread, serve)
}
