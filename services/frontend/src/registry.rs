//! What this frontend serves: subsystems and endpoints as the manager wants them.

mod pauses;

use crate::backends::Backends;
use crate::endpoint::{Endpoint, EndpointConfig};
use crate::store::Store;
use crate::subsystem::SharedSubsystem;
use nvme::{NamespaceConfig, Protection, Subsystem, SubsystemConfig};
use nvme_spec::Nsid;
use service::control::{Answer, Handler, Incoming};
use service::observe::SharedQueues;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use vireo_proto::Failure;
use vireo_proto::handoff::{
    self, ApplyFailure, ApplyResult, ApplyTargets, DoorbellMode, PauseState, ProcessStatus,
    StatusItem, reply, request,
};

/// How long endpoints that are removed may take to end, and then the last commands of namespaces that are, before the
/// manager is told that they go on: together well below the minute for which it waits for the answer.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// The same where the whole process ends, and is not waited for as long.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What the registry needs to know of its process.
pub struct RegistryConfig {
    /// Name of this frontend.
    pub name: String,
    /// Directory of the handoff sockets.
    pub runtime_dir: PathBuf,
    /// Directory of what must outlive restarts.
    pub state_dir: PathBuf,
    /// How long what is removed may take to end: [`PATIENCE`].
    pub patience: Duration,
}

/// Subsystems and endpoints.
pub struct Registry {
    config: RegistryConfig,
    backends: Arc<Backends>,
    /// Held while a wish of the manager's is brought about: one after the other.
    applying: tokio::sync::Mutex<()>,
    /// Never held while anything is waited for.
    targets: Mutex<Targets>,
}

#[derive(Default)]
struct Targets {
    subsystems: BTreeMap<String, Known>,
    endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Endpoints that are removed, as long as something of their last clients is in flight.
    ending: Vec<Arc<Endpoint>>,
}

/// A subsystem and what it was made with.
struct Known {
    names: [String; 3],
    shared: Arc<SharedSubsystem>,
    namespaces: BTreeMap<u32, handoff::Namespace>,
}

impl Registry {
    /// A frontend that serves nothing yet.
    pub fn new(config: RegistryConfig) -> Self {
        let sender = format!("frontend-{}", config.name);
        let backends = Arc::new(Backends::new(config.runtime_dir.clone(), sender));
        Self {
            config,
            backends,
            applying: tokio::sync::Mutex::default(),
            targets: Mutex::default(),
        }
    }

    /// The segments that workers count in, in the order of the endpoints' names.
    pub fn queues(&self) -> Vec<SharedQueues> {
        self.lock().endpoints.values().flat_map(|endpoint| endpoint.queues()).collect()
    }

    /// Ends every endpoint, as far as they end in a few seconds.
    pub async fn stop(&self) {
        self.lock().remove_endpoints(&[]);
        let deadline = Instant::now() + STOP_PATIENCE.min(self.config.patience);
        for endpoint in self.ended_by(deadline).await {
            tracing::warn!(endpoint = endpoint.config.name, "commands are still in flight");
        }
    }

    /// Brings about what the manager wants: what is gone first (endpoints, namespaces, subsystems), then what is new
    /// or changed in the order of dependence. What fails is reported, everything else is done.
    async fn apply(&self, wanted: ApplyTargets) -> ApplyResult {
        let _one_at_a_time = self.applying.lock().await;
        let mut failures = Vec::new();
        let endpoints: Vec<Result<EndpointConfig, ApplyFailure>> =
            wanted.endpoints.iter().map(endpoint_config).collect();
        self.lock().remove_endpoints(&endpoints);
        for endpoint in self.ended_by(Instant::now() + self.config.patience).await {
            let object = format!("endpoint {}", endpoint.config.name);
            let message = "removed, but commands of its last client are still in flight".to_owned();
            failures.push(ApplyFailure { object, message });
        }
        self.remove_namespaces(&wanted, &mut failures).await;
        self.lock().subsystems.retain(|name, _| wanted.subsystems.iter().any(|s| s.name == *name));
        for subsystem in &wanted.subsystems {
            let object = format!("subsystem {}", subsystem.name);
            if let Err(message) = self.apply_subsystem(subsystem, &mut failures).await {
                failures.push(ApplyFailure { object, message });
            }
        }
        for (endpoint, wanted) in endpoints.into_iter().zip(&wanted.endpoints) {
            match endpoint {
                Ok(endpoint) => {
                    let object = format!("endpoint {}", endpoint.name);
                    let limits = wanted.limits.as_ref();
                    if let Err(message) = self.apply_endpoint(endpoint, limits) {
                        failures.push(ApplyFailure { object, message });
                    }
                }
                Err(failure) => failures.push(failure),
            }
        }
        for failure in &failures {
            tracing::error!(object = failure.object, reason = failure.message, "not as wanted");
        }
        ApplyResult { failures }
    }

    /// Waits for endpoints that end, until `deadline`; returns those that have not.
    async fn ended_by(&self, deadline: Instant) -> Vec<Arc<Endpoint>> {
        let ending = self.lock().ending.clone();
        let mut late = Vec::new();
        for endpoint in ending {
            if timeout_at(deadline, endpoint.ended()).await.is_err() {
                late.push(endpoint);
            }
        }
        self.lock().ending.retain(|endpoint| !endpoint.has_ended());
        late
    }

    /// Removes namespaces that are not wanted; returns when nothing of them is in flight, so that their bdevs can go, or
    /// when patience ends.
    async fn remove_namespaces(&self, wanted: &ApplyTargets, failures: &mut Vec<ApplyFailure>) {
        let deadline = Instant::now() + self.config.patience;
        let subsystems: Vec<String> = self.lock().subsystems.keys().cloned().collect();
        for subsystem in subsystems {
            let removed = self.lock().remove_namespaces(&subsystem, wanted, failures);
            let endpoints = self.lock().endpoints_of(&subsystem);
            let mut left = removed.is_empty();
            for (nsid, number) in removed {
                for endpoint in &endpoints {
                    if timeout_at(deadline, endpoint.settled(number)).await.is_err() {
                        left = true;
                        let object = format!("namespace {nsid} of subsystem {subsystem}");
                        let message = format!("still in use by endpoint {}", endpoint.config.name);
                        failures.push(ApplyFailure { object, message });
                    }
                }
            }
            if !left && let Some(known) = self.lock().subsystems.get(&subsystem) {
                known.shared.forget_bdevs();
            }
        }
    }

    fn endpoint(&self, name: &str) -> Result<Arc<Endpoint>, Failure> {
        let endpoint = self.lock().endpoints.get(name).cloned();
        endpoint.ok_or_else(|| Failure::not_found(format!("there is no endpoint {name}")))
    }

    fn lock(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn apply_subsystem(
        &self,
        wanted: &handoff::Subsystem,
        failures: &mut Vec<ApplyFailure>,
    ) -> Result<(), String> {
        let shared = self.subsystem(wanted)?;
        for namespace in &wanted.namespaces {
            let object = format!("namespace {} of subsystem {}", namespace.nsid, wanted.name);
            let applied = self.apply_namespace(&shared, namespace).await;
            let limits = namespace.limits.as_ref();
            let applied =
                applied.and_then(|()| shared.limits().set_namespace(Nsid(namespace.nsid), limits));
            if let Err(message) = applied {
                failures.push(ApplyFailure { object, message });
            }
        }
        Ok(())
    }

    /// The subsystem, made if it is not there.
    fn subsystem(&self, wanted: &handoff::Subsystem) -> Result<Arc<SharedSubsystem>, String> {
        let names = [wanted.nqn.clone(), wanted.serial.clone(), wanted.model.clone()];
        let mut targets = self.lock();
        let Some(known) = targets.subsystems.get(&wanted.name) else {
            let config = SubsystemConfig {
                nqn: wanted.nqn.clone(),
                serial: wanted.serial.clone(),
                model: wanted.model.clone(),
                firmware: env!("CARGO_PKG_VERSION").to_owned(),
                shared: true,
            };
            let subsystem = Subsystem::new(config).map_err(|error| error.to_string())?;
            let store = Store::open(&self.config.state_dir, &wanted.name)
                .map_err(|error| crate::line(&error))?;
            let shared = Arc::new(SharedSubsystem::new(wanted.name.clone(), subsystem, store));
            let known = Known { names, shared: Arc::clone(&shared), namespaces: BTreeMap::new() };
            targets.subsystems.insert(wanted.name.clone(), known);
            return Ok(shared);
        };
        if known.names != names {
            return Err("nqn, serial and model cannot change while it is served: remove its \
                        endpoints first, or restart the frontend"
                .to_owned());
        }
        Ok(Arc::clone(&known.shared))
    }

    async fn apply_namespace(
        &self,
        shared: &SharedSubsystem,
        wanted: &handoff::Namespace,
    ) -> Result<(), String> {
        let known = self.lock().namespace(shared.name(), wanted.nsid).cloned();
        let limits = wanted.limits;
        if known.is_some_and(|known| handoff::Namespace { limits, ..known } == *wanted) {
            return Ok(());
        }
        let info = self
            .backends
            .describe(&wanted.backend, &wanted.bdev)
            .await
            .map_err(|error| error.line())?;
        let nsid = Nsid(wanted.nsid);
        let exists = shared.lock().namespace(nsid).is_some();
        let result = if exists {
            shared.lock().resize_namespace(nsid, info.size_bytes)
        } else {
            let stored = shared.stored(wanted.nsid, &wanted.bdev);
            let size = if wanted.block_size == 0 { info.block_size } else { wanted.block_size };
            let config = NamespaceConfig {
                nsid,
                backend: wanted.backend.clone(),
                bdev: wanted.bdev.clone(),
                size: info.size_bytes,
                block_shift: stored.block_shift.unwrap_or(size.trailing_zeros()),
                read_only: info.read_only,
                deallocated_zeroes: info.deallocate,
                force_ring: false,
                protection: match stored.protection {
                    Some(_) => Protection::Protected,
                    None => Protection::None,
                },
            };
            let mut subsystem = shared.lock();
            let added = subsystem.add_namespace(config);
            let context = telemetry::spans::current().filter(|context| context.is_sampled());
            subsystem.note_trace(nsid, context.map_or([0; 3], |context| context.to_words()));
            added
        };
        result.map_err(|error| error.to_string())?;
        tracing::info!(
            subsystem = shared.name(),
            nsid = wanted.nsid,
            bytes = info.size_bytes,
            "namespace {}",
            if exists { "resized" } else { "added" }
        );
        shared.announce_change();
        if let Some(known) = self.lock().subsystems.get_mut(shared.name()) {
            known.namespaces.insert(wanted.nsid, wanted.clone());
        }
        Ok(())
    }

    fn apply_endpoint(
        &self,
        wanted: EndpointConfig,
        limits: Option<&handoff::Limits>,
    ) -> Result<(), String> {
        let mut targets = self.lock();
        if let Some(endpoint) = targets.endpoints.get(&wanted.name) {
            return endpoint.limit(limits);
        }
        let subsystem = targets
            .subsystems
            .get(&wanted.subsystem)
            .map(|known| Arc::clone(&known.shared))
            .ok_or_else(|| format!("subsystem {} is not there", wanted.subsystem))?;
        let socket = |name: &String| self.config.runtime_dir.join(format!("worker-{name}.sock"));
        let workers = wanted.workers.iter().map(socket).collect();
        let sender = format!("frontend-{}", self.config.name);
        let name = wanted.name.clone();
        let backends = Arc::clone(&self.backends);
        let endpoint = Endpoint::start(wanted, subsystem, backends, workers, &sender)
            .map_err(|error| crate::line(&error))?;
        tracing::info!(endpoint = name, path = %endpoint.config.path.display(), "endpoint ready");
        // Also where there are none: another controller's may have been there before.
        let limited = endpoint.limit(limits);
        targets.endpoints.insert(name, Arc::new(endpoint));
        limited
    }

    fn status(&self) -> ProcessStatus {
        let targets = self.lock();
        let mut items = Vec::new();
        for (name, known) in &targets.subsystems {
            let mut item = |kind: &str, name: String, message: String, paused: bool| {
                let (kind, state) = (kind.to_owned(), "ready".to_owned());
                items.push(StatusItem { kind, name, state, message, paused });
            };
            item("subsystem", name.clone(), known.names[0].clone(), false);
            let paused = known.shared.pauses().paused();
            for (nsid, namespace) in known.shared.lock().namespaces() {
                let config = namespace.config();
                let message = format!(
                    "bdev {}, {} bytes in blocks of {}",
                    config.bdev,
                    config.size,
                    1_u64 << config.block_shift
                );
                item("namespace", format!("{name}/{}", nsid.0), message, paused.contains(&nsid));
            }
        }
        let mut item = |endpoint: &Endpoint, state: &str| {
            items.push(StatusItem {
                kind: "endpoint".to_owned(),
                name: endpoint.config.name.clone(),
                state: state.to_owned(),
                message: endpoint.config.path.display().to_string(),
                paused: endpoint.pause().state() != PauseState::Running,
            });
        };
        for endpoint in targets.endpoints.values() {
            item(endpoint, if endpoint.is_connected() { "connected" } else { "waiting" });
        }
        targets.ending.iter().for_each(|endpoint| item(endpoint, "ending"));
        ProcessStatus {
            kind: "frontend".to_owned(),
            name: self.config.name.clone(),
            pid: std::process::id() as i32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: true,
            message: String::new(),
            items,
        }
    }
}

impl Targets {
    /// Has endpoints end that are not wanted, or wanted differently.
    fn remove_endpoints(&mut self, wanted: &[Result<EndpointConfig, ApplyFailure>]) {
        let stays = |endpoint: &Endpoint| wanted.iter().flatten().any(|w| *w == endpoint.config);
        let (kept, gone) = std::mem::take(&mut self.endpoints)
            .into_iter()
            .partition(|(_, endpoint)| stays(endpoint));
        self.endpoints = kept;
        for (name, endpoint) in gone {
            endpoint.stop();
            tracing::info!(endpoint = name, "endpoint removed");
            self.ending.push(endpoint);
        }
    }

    fn namespace(&self, subsystem: &str, nsid: u32) -> Option<&handoff::Namespace> {
        self.subsystems.get(subsystem)?.namespaces.get(&nsid)
    }

    /// Removes the namespaces of a subsystem that are not wanted, or whose bdev is another one. Returns each with the
    /// number of its change.
    fn remove_namespaces(
        &mut self,
        name: &str,
        wanted: &ApplyTargets,
        failures: &mut Vec<ApplyFailure>,
    ) -> Vec<(u32, u64)> {
        let Some(known) = self.subsystems.get_mut(name) else { return Vec::new() };
        let subsystem = wanted.subsystems.iter().find(|subsystem| subsystem.name == *name);
        let stays = |old: &handoff::Namespace| {
            let namespaces = subsystem.iter().flat_map(|subsystem| &subsystem.namespaces);
            namespaces.into_iter().any(|new| {
                (new.nsid, &new.bdev, &new.backend) == (old.nsid, &old.bdev, &old.backend)
            })
        };
        let surplus: Vec<u32> =
            known.namespaces.values().filter(|old| !stays(old)).map(|old| old.nsid).collect();
        let mut removed = Vec::new();
        for nsid in surplus {
            let result = known.shared.remove_namespace(Nsid(nsid));
            if let Err(error) = result {
                let object = format!("namespace {nsid} of subsystem {name}");
                failures.push(ApplyFailure { object, message: error.to_string() });
                continue;
            }
            known.namespaces.remove(&nsid);
            removed.push((nsid, known.shared.announce_change()));
            tracing::info!(subsystem = name, nsid, "namespace removed");
        }
        removed
    }

    /// Every endpoint of a subsystem, also of those that end.
    fn endpoints_of(&self, subsystem: &str) -> Vec<Arc<Endpoint>> {
        let all = self.endpoints.values().chain(&self.ending);
        all.filter(|endpoint| endpoint.config.subsystem == subsystem).cloned().collect()
    }
}

impl Handler for Registry {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::ApplyTargets(wanted) => {
                Ok(Answer::new(reply::Body::ApplyResult(self.apply(wanted).await)))
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(self.status())))
            }
            request::Body::ReadEndpoint(read) => {
                let endpoint = self.endpoint(&read.endpoint)?;
                let report = endpoint.report(read.first_worker as usize);
                Ok(Answer::new(reply::Body::EndpointReport(report)))
            }
            request::Body::PauseEndpoint(pause) => self.pause_endpoint(&pause),
            request::Body::ResumeEndpoint(resume) => self.resume_endpoint(&resume),
            request::Body::PauseNamespace(pause) => self.pause_namespace(&pause),
            request::Body::ResumeNamespace(resume) => self.resume_namespace(&resume),
            request::Body::ReadNamespace(read) => self.read_namespace(&read),
            _ => Err(Failure::unsupported()),
        }
    }
}

fn endpoint_config(wanted: &handoff::Endpoint) -> Result<EndpointConfig, ApplyFailure> {
    let wrong = |message: String| {
        Err(ApplyFailure { object: format!("endpoint {}", wanted.name), message })
    };
    let (Ok(queues), Ok(vectors)) = (u16::try_from(wanted.queues), u16::try_from(wanted.vectors))
    else {
        return wrong(format!("{} queues, {} vectors are too many", wanted.queues, wanted.vectors));
    };
    if wanted.workers.is_empty() {
        return wrong("no worker".to_owned());
    }
    Ok(EndpointConfig {
        name: wanted.name.clone(),
        subsystem: wanted.subsystem.clone(),
        path: PathBuf::from(&wanted.path),
        workers: wanted.workers.clone(),
        doorbells_mapped: wanted.doorbells() != DoorbellMode::Shadow,
        queues,
        max_transfer: wanted.max_transfer_bytes,
        vectors,
    })
}
