//! A host of processes that only note what they are told, over real handoff sockets.

use service::config::Config;
use service::control::{Answer, Handler, Incoming, Server, Session};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use vireo_manager::manager::Manager;
use vireo_manager::reconcile::Progress;
use vireo_proto::Failure;
use vireo_proto::handoff::{
    ApplyFailure, ApplyResult, ApplyTargets, BdevInfo, GetStatus, HostStatus, ProcessStatus,
    Reload, ReloadResult, StatusItem, reply, request,
};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const TEXT: &str = r#"
[[worker]]
name = "w0"
[[backend]]
name = "b0"
[[backend]]
name = "b1"
[[frontend]]
name = "f0"
[[frontend]]
name = "f1"
[[bdev]]
name = "mem0"
driver = "malloc"
size = "64MiB"
[[bdev]]
name = "mem1"
driver = "malloc"
size = "64MiB"
backend = "b1"
[[subsystem]]
name = "s0"
[[subsystem.namespace]]
nsid = 1
bdev = "mem0"
[[subsystem]]
name = "s1"
frontend = "f1"
[[subsystem.namespace]]
nsid = 1
bdev = "mem1"
[[endpoint]]
name = "vm0"
subsystem = "s0"
[[endpoint]]
name = "vm1"
subsystem = "s1"
"#;

/// What all processes were told, in order: `b0: mem0`, `f0: s0/1 vm0`.
type Log = Arc<Mutex<Vec<String>>>;

/// What a fake process does.
#[derive(Default)]
pub struct Fake {
    kind: String,
    name: String,
    log: Log,
    /// What it answers to the next documents.
    pub failures: Mutex<Vec<ApplyFailure>>,
    /// How long it takes to answer.
    pub delay: Mutex<Duration>,
    /// Sizes of its bdevs as it has them.
    pub sizes: Mutex<BTreeMap<String, u64>>,
    /// The last targets that it was told.
    pub targets: Mutex<ApplyTargets>,
    items: Mutex<Vec<StatusItem>>,
}

impl Fake {
    fn apply(&self, parts: Vec<String>) -> Answer {
        let line = format!("{}: {}", self.name, parts.join(" "));
        self.log.lock().unwrap().push(line);
        *self.items.lock().unwrap() = vec![StatusItem::default(); parts.len()];
        let failures = self.failures.lock().unwrap().clone();
        Answer::new(reply::Body::ApplyResult(ApplyResult { failures }))
    }
}

impl Handler for Fake {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        match request.body {
            request::Body::ApplyBdevs(wanted) if self.kind == "backend" => {
                Ok(self.apply(wanted.bdevs.into_iter().map(|bdev| bdev.name).collect()))
            }
            request::Body::ApplyTargets(wanted) if self.kind == "frontend" => {
                *self.targets.lock().unwrap() = wanted.clone();
                let namespaces = wanted.subsystems.iter().flat_map(|subsystem| {
                    let name = &subsystem.name;
                    subsystem.namespaces.iter().map(move |n| format!("{name}/{}", n.nsid))
                });
                let endpoints = wanted.endpoints.iter().map(|endpoint| endpoint.name.clone());
                Ok(self.apply(namespaces.chain(endpoints).collect()))
            }
            request::Body::DescribeBdev(wanted) => {
                let sizes = self.sizes.lock().unwrap();
                let size_bytes = *sizes.get(&wanted.bdev).ok_or(Failure::not_found("no bdev"))?;
                let info = BdevInfo { size_bytes, ..BdevInfo::default() };
                Ok(Answer::new(reply::Body::BdevInfo(info)))
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(ProcessStatus {
                    kind: self.kind.clone(),
                    name: self.name.clone(),
                    ready: true,
                    pid: 7,
                    items: self.items.lock().unwrap().clone(),
                    ..ProcessStatus::default()
                })))
            }
            _ => Err(Failure::unsupported()),
        }
    }
}

/// A host's processes and its configuration file.
pub struct Host {
    directory: tempfile::TempDir,
    log: Log,
    running: BTreeMap<String, JoinHandle<()>>,
}

impl Host {
    /// All processes of [`TEXT`] run, but for the manager.
    pub fn start() -> (Self, BTreeMap<String, Arc<Fake>>) {
        let directory = tempfile::tempdir().unwrap();
        let mut host = Self { directory, log: Log::default(), running: BTreeMap::new() };
        host.edit(&[]);
        let names = ["b0", "b1", "w0", "f0", "f1"];
        let fakes = names.map(|name| (name.to_owned(), host.run(name)));
        (host, fakes.into())
    }

    /// Starts a process, which knows nothing.
    pub fn run(&mut self, name: &str) -> Arc<Fake> {
        let kind = match &name[..1] {
            "b" => "backend",
            "w" => "worker",
            _ => "frontend",
        };
        let (kind, log) = (kind.to_owned(), Arc::clone(&self.log));
        let fake = Arc::new(Fake { kind, name: name.to_owned(), log, ..Fake::default() });
        self.run_as(name, Arc::clone(&fake));
        fake
    }

    /// Starts a process that behaves as `fake`.
    pub fn run_as(&mut self, name: &str, fake: Arc<Fake>) {
        let path = self.path(&format!("{}-{name}.sock", fake.kind));
        let server = Server::bind(&path).unwrap();
        self.running.insert(name.to_owned(), tokio::spawn(server.serve(fake)));
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

    /// Writes the configuration file: [`TEXT`] with each first part replaced by its second.
    pub fn edit(&self, edits: &[(&str, &str)]) {
        let place = self.directory.path().display();
        let mut text = format!("runtime_dir = \"{place}\"\nstate_dir = \"{place}/state\"\n{TEXT}");
        for (from, to) in edits {
            assert!(text.contains(from), "{from:?} is not in the sample");
            text = text.replacen(from, to, 1);
        }
        std::fs::write(self.path("vireo.toml"), text).unwrap();
    }

    /// Takes what was told since the last time.
    pub fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }

    /// True if somebody was told so since the last time.
    pub fn has_told(&self, line: &str) -> bool {
        self.log.lock().unwrap().iter().any(|told| told == line)
    }

    /// Starts the manager with the file as it is.
    pub async fn manage(&self) -> Managed {
        let file = self.path("vireo.toml");
        let config = Config::load(&file).unwrap();
        let socket = config.socket(service::config::Kind::Manager, "m0");
        let manager = Arc::new(Manager::start("m0", file, config).await.unwrap());
        let server = Server::bind(&socket).unwrap();
        let serve = tokio::spawn(server.serve(Arc::clone(&manager)));
        let own = Arc::clone(&manager);
        let run = tokio::spawn(async move { own.run().await });
        Managed { manager, tasks: [serve, run], socket }
    }
}

/// A manager and its server.
pub struct Managed {
    pub manager: Arc<Manager>,
    tasks: [JoinHandle<()>; 2],
    socket: PathBuf,
}

impl Managed {
    /// Waits until all is served as configured.
    pub async fn reached(&self) {
        self.until("all is served", Progress::reached).await;
    }

    /// Waits until the reconciler is so far, and gives how far.
    pub async fn until(&self, what: &str, so_far: impl Fn(&Progress) -> bool) -> Progress {
        let mut progress = self.manager.progress();
        let waited = tokio::time::timeout(PATIENCE, progress.wait_for(|now| so_far(now))).await;
        match waited {
            Ok(found) => found.unwrap().clone(),
            Err(_) => panic!("waited in vain until {what}: {:?}", self.manager.progress().borrow()),
        }
    }

    pub async fn reload(&self) -> Result<ReloadResult, String> {
        let body = request::Body::Reload(Reload {});
        match ask(&self.socket, body).await? {
            reply::Body::ReloadResult(result) => Ok(result),
            other => panic!("{other:?}"),
        }
    }

    pub async fn status(&self) -> HostStatus {
        match ask(&self.socket, request::Body::GetStatus(GetStatus {})).await.unwrap() {
            reply::Body::HostStatus(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Ends it, as a death would: nothing is told to anybody.
    pub async fn kill(self) {
        for task in self.tasks {
            task.abort();
            task.await.unwrap_err();
        }
        let start = std::time::Instant::now();
        // Connections are tasks of their own, which end with their callers.
        while Arc::strong_count(&self.manager) > 1 {
            assert!(start.elapsed() < PATIENCE, "nobody else holds it and its lock");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn ask(socket: &Path, body: request::Body) -> Result<reply::Body, String> {
    let session = Session::connect(socket, "vireo").unwrap();
    let answer = session.call_within(PATIENCE, body, &[]).await;
    answer.map(|answer| answer.body).map_err(|error| error.line())
}
