//! A manager with its API, and processes that only note what they are told.

use ipc::layout::telemetry::TelemetryLayout;
use ipc::segment::Segment;
use service::config::{Config, Kind};
use service::control::{Answer, Handler, Incoming, Server};
use service::observe::Observed;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use vireo_api::v1::controller_service_client::ControllerServiceClient;
use vireo_api::v1::event_service_client::EventServiceClient;
use vireo_api::v1::namespace_service_client::NamespaceServiceClient;
use vireo_api::v1::stats_service_client::StatsServiceClient;
use vireo_api::v1::subsystem_service_client::SubsystemServiceClient;
use vireo_api::v1::target_service_client::TargetServiceClient;
use vireo_api::v1::trace_service_client::TraceServiceClient;
use vireo_api::v1::volume_service_client::VolumeServiceClient;
use vireo_api::v1::worker_service_client::WorkerServiceClient;
use vireo_manager::grpc;
use vireo_manager::grpc::listen::Listener;
use vireo_manager::manager::Manager;
use vireo_manager::store::file_system::{Disk, FileSystem};
use vireo_proto::Failure;
use vireo_proto::handoff::{
    ApplyFailure, ApplyResult, ApplyTargets, BdevInfo, EndpointReport, Limits, NamespaceReport,
    PauseEndpoint, PauseNamespace, PauseState, ProcessStatus, StatusItem, reply, request,
};

/// How long anything may take that has to happen.
pub const BOUND: Duration = Duration::from_secs(60);

pub const TEXT: &str = r#"
[[worker]]
name = "w0"
core = 0
[[backend]]
name = "b0"
[[frontend]]
name = "f0"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "64MiB"
[[subsystem]]
name = "s0"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[endpoint]]
name = "vm0"
subsystem = "s0"
"#;

/// What a fake process serves and answers.
#[derive(Default)]
pub struct Fake {
    kind: String,
    name: String,
    /// Bdevs with their sizes, or `s0/1` and endpoints, as it was told last.
    pub served: Mutex<Vec<String>>,
    /// Objects that it cannot serve, with the reason.
    pub failures: Mutex<BTreeMap<String, String>>,
    /// What it tells of its endpoints.
    pub reports: Mutex<BTreeMap<String, EndpointReport>>,
    /// How long it takes to apply something.
    pub delay: Mutex<Duration>,
    /// How far endpoints come that are paused.
    pub pauses_to: Mutex<PauseState>,
    /// Pauses that it was asked for.
    pub pauses: Mutex<Vec<PauseEndpoint>>,
    /// How far namespaces are that were paused once, by name (`s0/1`).
    pub namespaces: Mutex<BTreeMap<String, PauseState>>,
    /// Pauses of namespaces that it was asked for.
    pub namespace_pauses: Mutex<Vec<PauseNamespace>>,
    /// Limits that it was told last, by namespace (`s0/1`) and endpoint.
    pub limits: Mutex<BTreeMap<String, Limits>>,
    /// How often it was asked how it is.
    pub asked: AtomicU64,
}

impl Fake {
    /// Takes over what it can serve; gives the rest with its reasons.
    fn apply(&self, wanted: Vec<(String, String)>) -> Answer {
        let failures = self.failures.lock().unwrap();
        let mut failed = Vec::new();
        let mut served = Vec::new();
        for (object, line) in wanted {
            match failures.get(&object) {
                Some(message) => {
                    failed.push(ApplyFailure { object, message: message.clone() });
                }
                None => served.push(line),
            }
        }
        *self.served.lock().unwrap() = served;
        Answer::new(reply::Body::ApplyResult(ApplyResult { failures: failed }))
    }

    fn namespaces(&self) -> Vec<StatusItem> {
        let namespaces = self.namespaces.lock().unwrap();
        let item = |(name, state): (&String, &PauseState)| StatusItem {
            kind: "namespace".into(),
            name: name.clone(),
            state: "ready".into(),
            paused: *state > PauseState::Running,
            message: String::new(),
        };
        namespaces.iter().map(item).collect()
    }

    fn status(&self) -> ProcessStatus {
        let reports = self.reports.lock().unwrap();
        let item = |(name, report): (&String, &EndpointReport)| StatusItem {
            kind: "endpoint".into(),
            name: name.clone(),
            state: if report.connected { "connected" } else { "waiting" }.into(),
            paused: report.pause_state() > PauseState::Running,
            message: String::new(),
        };
        ProcessStatus {
            kind: self.kind.clone(),
            name: self.name.clone(),
            ready: true,
            pid: 7,
            version: "1.2.3".into(),
            items: match self.kind.as_str() {
                "frontend" => reports.iter().map(item).chain(self.namespaces()).collect(),
                "worker" => vec![StatusItem {
                    kind: "controller".into(),
                    name: "vm0".into(),
                    ..StatusItem::default()
                }],
                _ => Vec::new(),
            },
            ..ProcessStatus::default()
        }
    }
}

/// What is limited, by namespace (`s0/1`) and endpoint.
fn limits_of(wanted: &ApplyTargets) -> BTreeMap<String, Limits> {
    let namespaces = wanted.subsystems.iter().flat_map(|subsystem| {
        let name = |nsid: u32| format!("{}/{nsid}", subsystem.name);
        subsystem.namespaces.iter().filter_map(move |n| Some((name(n.nsid), n.limits?)))
    });
    let endpoints = wanted.endpoints.iter().filter_map(|e| Some((e.name.clone(), e.limits?)));
    namespaces.chain(endpoints).collect()
}

impl Handler for Fake {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::ApplyBdevs(wanted) if self.kind == "backend" => {
                let delay = *self.delay.lock().unwrap();
                tokio::time::sleep(delay).await;
                let bdevs = wanted.bdevs.into_iter();
                let line = |b: &vireo_proto::handoff::Bdev| format!("{} {}", b.name, b.size_bytes);
                Ok(self.apply(bdevs.map(|b| (format!("bdev {}", b.name), line(&b))).collect()))
            }
            request::Body::ApplyTargets(wanted) if self.kind == "frontend" => {
                *self.limits.lock().unwrap() = limits_of(&wanted);
                let subsystems = wanted.subsystems.iter();
                let namespaces = subsystems.flat_map(|subsystem| {
                    let name = &subsystem.name;
                    let own = (format!("subsystem {name}"), name.clone());
                    let namespaces = subsystem.namespaces.iter().map(move |n| {
                        let object = format!("namespace {} of subsystem {name}", n.nsid);
                        (object, format!("{name}/{}", n.nsid))
                    });
                    [own].into_iter().chain(namespaces)
                });
                let endpoints = wanted
                    .endpoints
                    .iter()
                    .map(|e| (format!("endpoint {}", e.name), e.name.clone()));
                Ok(self.apply(namespaces.chain(endpoints).collect()))
            }
            request::Body::DescribeBdev(wanted) if self.kind == "backend" => {
                let served = self.served.lock().unwrap();
                let mut sizes = served.iter().filter_map(|line| line.split_once(' '));
                let size = sizes.find(|(name, _)| *name == wanted.bdev).map(|(_, size)| size);
                let size = size.ok_or_else(|| Failure::not_found("no such bdev"))?;
                let size_bytes = size.parse().unwrap();
                Ok(Answer::new(reply::Body::BdevInfo(BdevInfo {
                    size_bytes,
                    ..Default::default()
                })))
            }
            request::Body::GetStatus(_) => {
                // Relaxed: only the number counts.
                self.asked.fetch_add(1, Ordering::Relaxed);
                Ok(Answer::new(reply::Body::ProcessStatus(self.status())))
            }
            request::Body::ReadEndpoint(read) if self.kind == "frontend" => {
                let reports = self.reports.lock().unwrap();
                let mut report = reports.get(&read.endpoint).cloned().unwrap_or_default();
                // In pieces of one worker each.
                let first = read.first_worker as usize;
                let rest = report.workers.split_off(first.min(report.workers.len()));
                report.next_worker = if rest.len() > 1 { read.first_worker + 1 } else { 0 };
                report.workers = rest.into_iter().take(1).collect();
                Ok(Answer::new(reply::Body::EndpointReport(report)))
            }
            request::Body::PauseEndpoint(pause) if self.kind == "frontend" => {
                let state = *self.pauses_to.lock().unwrap();
                let mut reports = self.reports.lock().unwrap();
                reports.entry(pause.endpoint.clone()).or_default().set_pause_state(state);
                self.pauses.lock().unwrap().push(pause);
                Ok(Answer::done())
            }
            request::Body::ResumeEndpoint(resume) if self.kind == "frontend" => {
                let mut reports = self.reports.lock().unwrap();
                let report = reports.entry(resume.endpoint).or_default();
                report.set_pause_state(PauseState::Running);
                Ok(Answer::done())
            }
            request::Body::PauseNamespace(pause) if self.kind == "frontend" => {
                let (name, state) =
                    (named(&pause.subsystem, pause.nsid), *self.pauses_to.lock().unwrap());
                self.namespaces.lock().unwrap().insert(name, state);
                self.namespace_pauses.lock().unwrap().push(pause);
                Ok(Answer::done())
            }
            request::Body::ResumeNamespace(resume) if self.kind == "frontend" => {
                let name = named(&resume.subsystem, resume.nsid);
                self.namespaces.lock().unwrap().insert(name, PauseState::Running);
                Ok(Answer::done())
            }
            request::Body::ReadNamespace(read) if self.kind == "frontend" => {
                let namespaces = self.namespaces.lock().unwrap();
                let state = namespaces.get(&named(&read.subsystem, read.nsid)).copied();
                let pause_state = state.unwrap_or(PauseState::Running).into();
                Ok(Answer::new(reply::Body::NamespaceReport(NamespaceReport { pause_state })))
            }
            _ => Err(Failure::unsupported()),
        }
    }
}

fn named(subsystem: &str, nsid: u32) -> String {
    format!("{subsystem}/{nsid}")
}

/// A host's processes, its configuration file, and its manager.
pub struct Host {
    directory: tempfile::TempDir,
    running: BTreeMap<String, JoinHandle<()>>,
    pub backend: Arc<Fake>,
    pub frontend: Arc<Fake>,
    /// What the worker tells of itself.
    pub telemetry: Arc<Segment<TelemetryLayout>>,
}

impl Host {
    /// All processes of [`TEXT`] but for the manager.
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = |kind: &str, name: &str| {
            Arc::new(Fake { kind: kind.into(), name: name.into(), ..Fake::default() })
        };
        let (backend, frontend) = (fake("backend", "b0"), fake("frontend", "f0"));
        let worker = fake("worker", "w0");
        let mut host = Self {
            directory,
            running: BTreeMap::new(),
            backend: Arc::clone(&backend),
            frontend: Arc::clone(&frontend),
            telemetry: Arc::new(Segment::create("vireo-telemetry", 1).unwrap()),
        };
        host.write(&[]);
        for fake in [backend, frontend] {
            host.run(fake);
        }
        let worker = Observed::new(worker, "worker", "w0")
            .with_segment(Arc::clone(&host.telemetry))
            .with_policy(|_| {});
        let server = Server::bind(&host.path("worker-w0.sock")).unwrap();
        host.running.insert("w0".into(), tokio::spawn(server.serve(Arc::new(worker))));
        host
    }

    pub fn run(&mut self, fake: Arc<Fake>) {
        let path = self.path(&format!("{}-{}.sock", fake.kind, fake.name));
        let name = fake.name.clone();
        let server = Server::bind(&path).unwrap();
        self.running.insert(name, tokio::spawn(server.serve(fake)));
    }

    /// Ends a process; its connections are closed when this returns.
    pub async fn kill(&mut self, name: &str) {
        let task = self.running.remove(name).unwrap();
        task.abort();
        task.await.unwrap_err();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the configuration file: [`TEXT`] with each first part replaced by its second; an empty first part is the
    /// beginning.
    pub fn write(&self, edits: &[(&str, &str)]) {
        let place = self.directory.path().display();
        let mut text = TEXT.to_owned();
        for (from, to) in edits {
            assert!(text.contains(from), "{from:?} is not in the sample");
            text = text.replacen(from, to, 1);
        }
        let head = format!("runtime_dir = \"{place}\"\nstate_dir = \"{place}/state\"\n");
        std::fs::write(self.path("vireo.toml"), head + &text).unwrap();
    }

    pub fn state(&self) -> String {
        std::fs::read_to_string(self.path("state/manager.json")).unwrap()
    }

    pub async fn manage(&self) -> Managed {
        self.manage_with(Box::new(Disk)).await
    }

    /// Starts the manager, which writes by way of `files`, and its API.
    pub async fn manage_with(&self, files: Box<dyn FileSystem>) -> Managed {
        let file = self.path("vireo.toml");
        let config = Config::load(&file).unwrap();
        let manager = Manager::start_with("m0", file, config.clone(), files).await.unwrap();
        let manager = Arc::new(manager);
        let listener = Listener::bind(&manager.config().api).await.unwrap();
        let served = grpc::serve(Arc::clone(&manager), listener);
        let serve = tokio::spawn(async move { served.await.unwrap() });
        let own = Arc::clone(&manager);
        let run = tokio::spawn(async move { own.run().await });
        let handoff = Server::bind(&config.socket(Kind::Manager, "m0")).unwrap();
        let answer = tokio::spawn(handoff.serve(Arc::clone(&manager)));
        Managed { channel: connect(&config.api.socket).await, manager, tasks: [serve, run, answer] }
    }

    /// A manager that serves all of [`TEXT`].
    pub async fn reached(&self) -> Managed {
        let managed = self.manage().await;
        managed.reached().await;
        managed
    }
}

pub async fn connect(socket: &Path) -> Channel {
    vireo_api::connect(socket).await.unwrap()
}

/// A manager, its server and a connection to it.
pub struct Managed {
    pub manager: Arc<Manager>,
    pub channel: Channel,
    tasks: [JoinHandle<()>; 3],
}

impl Managed {
    pub async fn reached(&self) {
        let mut progress = self.manager.progress();
        let reached = progress.wait_for(|progress| progress.reached());
        tokio::time::timeout(BOUND, reached).await.expect("the goal is reached in time").unwrap();
    }

    /// Ends it, as a death would: nothing is told to anybody.
    pub async fn kill(self) {
        drop(self.channel);
        for task in self.tasks {
            task.abort();
            task.await.unwrap_err();
        }
        let start = Instant::now();
        // Connections are tasks of their own, which end with their callers.
        while Arc::strong_count(&self.manager) > 1 {
            assert!(start.elapsed() < BOUND, "nobody else holds it and its lock");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let config = self.manager.config();
        drop(self.manager);
        // A process that another test is just starting has copies of all descriptors until its program is executed.
        let lock = config.state_dir.join("manager.lock");
        let is_free = || {
            let lock = std::fs::File::open(&lock).unwrap();
            lock.try_lock().is_ok() && lock.unlock().is_ok()
        };
        let is_silent = || std::os::unix::net::UnixStream::connect(&config.api.socket).is_err();
        until("lock and socket are let go of", || is_free() && is_silent()).await;
    }

    pub fn target(&self) -> TargetServiceClient<Channel> {
        TargetServiceClient::new(self.channel.clone())
    }

    pub fn volumes(&self) -> VolumeServiceClient<Channel> {
        VolumeServiceClient::new(self.channel.clone())
    }

    pub fn subsystems(&self) -> SubsystemServiceClient<Channel> {
        SubsystemServiceClient::new(self.channel.clone())
    }

    pub fn namespaces(&self) -> NamespaceServiceClient<Channel> {
        NamespaceServiceClient::new(self.channel.clone())
    }

    pub fn controllers(&self) -> ControllerServiceClient<Channel> {
        ControllerServiceClient::new(self.channel.clone())
    }

    pub fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    pub fn stats(&self) -> StatsServiceClient<Channel> {
        StatsServiceClient::new(self.channel.clone())
    }

    pub fn traces(&self) -> TraceServiceClient<Channel> {
        TraceServiceClient::new(self.channel.clone())
    }

    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }
}

/// Waits for something that comes without being asked for.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < BOUND, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What an error says of itself: its code, and the reason in its ErrorInfo.
pub fn told(status: &tonic::Status) -> (tonic::Code, String) {
    let details = tonic_types::StatusExt::get_error_details(status);
    let info = details.error_info().expect("every error has an ErrorInfo");
    assert_eq!(info.domain, "vireo");
    (status.code(), info.reason.clone())
}
