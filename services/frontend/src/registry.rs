//! What this frontend serves: subsystems and endpoints as the manager wants them.

use crate::backends::Backends;
use crate::endpoint::{Endpoint, EndpointConfig};
use crate::store::Store;
use crate::subsystem::SharedSubsystem;
use nvme::{NamespaceConfig, Protection, Subsystem, SubsystemConfig};
use nvme_spec::Nsid;
use service::control::{Answer, Client, Handler, Incoming};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use vireo_proto::Failure;
use vireo_proto::handoff::{
    self, ApplyFailure, ApplyResult, ApplyTargets, DoorbellMode, ProcessStatus, StatusItem, reply,
    request,
};

/// How long a removed namespace's last commands may take before the manager is told.
const SETTLE: Duration = Duration::from_secs(30);

/// What the registry needs to know of its process.
pub struct RegistryConfig {
    /// Name of this frontend.
    pub name: String,
    /// Directory of the handoff sockets.
    pub runtime_dir: PathBuf,
    /// Directory of what must outlive restarts.
    pub state_dir: PathBuf,
}

/// Subsystems and endpoints.
pub struct Registry {
    config: RegistryConfig,
    backends: Arc<Backends>,
    targets: Mutex<Targets>,
}

#[derive(Default)]
struct Targets {
    subsystems: BTreeMap<String, Known>,
    endpoints: BTreeMap<String, Endpoint>,
    workers: BTreeMap<String, Arc<Client>>,
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
        Self { config, backends, targets: Mutex::default() }
    }

    /// Ends every endpoint.
    pub async fn stop(&self) {
        let endpoints = std::mem::take(&mut self.targets.lock().await.endpoints);
        for endpoint in endpoints.into_values() {
            endpoint.stop().await;
        }
    }

    /// Brings about what the manager wants: what is gone first (endpoints, namespaces, subsystems), then what is new
    /// or changed in the order of dependence. What fails is reported, everything else is done.
    async fn apply(&self, wanted: ApplyTargets) -> ApplyResult {
        let mut targets = self.targets.lock().await;
        let mut failures = Vec::new();
        let endpoints: Vec<Result<EndpointConfig, ApplyFailure>> =
            wanted.endpoints.iter().map(endpoint_config).collect();
        targets.remove_endpoints(&endpoints).await;
        targets.remove_subsystems(&wanted, &mut failures).await;
        for subsystem in &wanted.subsystems {
            let object = format!("subsystem {}", subsystem.name);
            if let Err(message) = self.apply_subsystem(&mut targets, subsystem, &mut failures).await
            {
                failures.push(ApplyFailure { object, message });
            }
        }
        for endpoint in endpoints {
            match endpoint {
                Ok(endpoint) => {
                    let object = format!("endpoint {}", endpoint.name);
                    if let Err(message) = self.apply_endpoint(&mut targets, endpoint) {
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

    async fn apply_subsystem(
        &self,
        targets: &mut Targets,
        wanted: &handoff::Subsystem,
        failures: &mut Vec<ApplyFailure>,
    ) -> Result<(), String> {
        let names = [wanted.nqn.clone(), wanted.serial.clone(), wanted.model.clone()];
        if !targets.subsystems.contains_key(&wanted.name) {
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
            let known = Known { names: names.clone(), shared, namespaces: BTreeMap::new() };
            targets.subsystems.insert(wanted.name.clone(), known);
        }
        let Some(known) = targets.subsystems.get_mut(&wanted.name) else {
            return Ok(());
        };
        if known.names != names {
            return Err("nqn, serial and model cannot change while it is served: remove its \
                        endpoints first, or restart the frontend"
                .to_owned());
        }
        for namespace in &wanted.namespaces {
            let object = format!("namespace {} of subsystem {}", namespace.nsid, wanted.name);
            if let Err(message) = self.apply_namespace(known, namespace).await {
                failures.push(ApplyFailure { object, message });
            }
        }
        Ok(())
    }

    async fn apply_namespace(
        &self,
        known: &mut Known,
        wanted: &handoff::Namespace,
    ) -> Result<(), String> {
        if known.namespaces.get(&wanted.nsid) == Some(wanted) {
            return Ok(());
        }
        let info = self
            .backends
            .describe(&wanted.backend, &wanted.bdev)
            .await
            .map_err(|error| error.line())?;
        let nsid = Nsid(wanted.nsid);
        let exists = known.shared.lock().namespace(nsid).is_some();
        let result = if exists {
            known.shared.lock().resize_namespace(nsid, info.size_bytes)
        } else {
            let stored = known.shared.stored(wanted.nsid, &wanted.bdev);
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
            known.shared.lock().add_namespace(config)
        };
        result.map_err(|error| error.to_string())?;
        tracing::info!(
            subsystem = known.shared.name(),
            nsid = wanted.nsid,
            bytes = info.size_bytes,
            "namespace {}",
            if exists { "resized" } else { "added" }
        );
        known.shared.announce_change();
        known.namespaces.insert(wanted.nsid, wanted.clone());
        Ok(())
    }

    fn apply_endpoint(&self, targets: &mut Targets, wanted: EndpointConfig) -> Result<(), String> {
        if targets.endpoints.contains_key(&wanted.name) {
            return Ok(());
        }
        let subsystem = targets
            .subsystems
            .get(&wanted.subsystem)
            .map(|known| Arc::clone(&known.shared))
            .ok_or_else(|| format!("subsystem {} is not there", wanted.subsystem))?;
        let workers = wanted
            .workers
            .iter()
            .map(|name| {
                let make = || {
                    let path = self.config.runtime_dir.join(format!("worker-{name}.sock"));
                    Arc::new(Client::new(path, &format!("frontend-{}", self.config.name)))
                };
                Arc::clone(targets.workers.entry(name.clone()).or_insert_with(make))
            })
            .collect();
        let name = wanted.name.clone();
        let endpoint = Endpoint::start(wanted, subsystem, Arc::clone(&self.backends), workers)
            .map_err(|error| crate::line(&error))?;
        tracing::info!(endpoint = name, path = %endpoint.config.path.display(), "endpoint ready");
        targets.endpoints.insert(name, endpoint);
        Ok(())
    }

    async fn status(&self) -> ProcessStatus {
        let targets = self.targets.lock().await;
        let mut items = Vec::new();
        for (name, known) in &targets.subsystems {
            let mut item = |kind: &str, name: String, message: String| {
                let (kind, state) = (kind.to_owned(), "ready".to_owned());
                items.push(StatusItem { kind, name, state, message });
            };
            item("subsystem", name.clone(), known.names[0].clone());
            for (nsid, namespace) in known.shared.lock().namespaces() {
                let config = namespace.config();
                let message = format!(
                    "bdev {}, {} bytes in blocks of {}",
                    config.bdev,
                    config.size,
                    1_u64 << config.block_shift
                );
                item("namespace", format!("{name}/{}", nsid.0), message);
            }
        }
        for (name, endpoint) in &targets.endpoints {
            let state = if endpoint.is_connected() { "connected" } else { "waiting" };
            items.push(StatusItem {
                kind: "endpoint".to_owned(),
                name: name.clone(),
                state: state.to_owned(),
                message: endpoint.config.path.display().to_string(),
            });
        }
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
    /// Ends endpoints that are not wanted, or wanted differently.
    async fn remove_endpoints(&mut self, wanted: &[Result<EndpointConfig, ApplyFailure>]) {
        let stays = |endpoint: &Endpoint| wanted.iter().flatten().any(|w| *w == endpoint.config);
        let gone: Vec<String> = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| !stays(endpoint))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(endpoint) = self.endpoints.remove(&name) {
                endpoint.stop().await;
                tracing::info!(endpoint = name, "endpoint removed");
            }
        }
    }

    /// Removes namespaces and subsystems that are not wanted, or whose bdev is another one; returns when nothing of
    /// them is in flight, so that their bdevs can go.
    async fn remove_subsystems(&mut self, wanted: &ApplyTargets, failures: &mut Vec<ApplyFailure>) {
        let mut gone = Vec::new();
        for (name, known) in &mut self.subsystems {
            let subsystem = wanted.subsystems.iter().find(|subsystem| subsystem.name == *name);
            let stays = |old: &handoff::Namespace| {
                let namespaces = subsystem.iter().flat_map(|subsystem| &subsystem.namespaces);
                namespaces.into_iter().any(|new| {
                    (new.nsid, &new.bdev, &new.backend) == (old.nsid, &old.bdev, &old.backend)
                })
            };
            let surplus: Vec<u32> =
                known.namespaces.values().filter(|old| !stays(old)).map(|old| old.nsid).collect();
            for nsid in surplus {
                let removed = known.shared.lock().remove_namespace(Nsid(nsid));
                if let Err(error) = removed {
                    let object = format!("namespace {nsid} of subsystem {name}");
                    failures.push(ApplyFailure { object, message: error.to_string() });
                    continue;
                }
                known.namespaces.remove(&nsid);
                let number = known.shared.announce_change();
                tracing::info!(subsystem = name, nsid, "namespace removed");
                for endpoint in self.endpoints.values().filter(|e| e.config.subsystem == *name) {
                    if tokio::time::timeout(SETTLE, endpoint.settled(number)).await.is_err() {
                        let object = format!("namespace {nsid} of subsystem {name}");
                        let message = format!("still in use by endpoint {}", endpoint.config.name);
                        failures.push(ApplyFailure { object, message });
                    }
                }
            }
            if subsystem.is_none() {
                gone.push(name.clone());
            }
        }
        for name in gone {
            self.subsystems.remove(&name);
        }
    }
}

impl Handler for Registry {
    async fn handle(&self, request: Incoming) -> Result<Answer, Failure> {
        match request.body {
            request::Body::ApplyTargets(wanted) => {
                Ok(Answer::new(reply::Body::ApplyResult(self.apply(wanted).await)))
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(self.status().await)))
            }
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
