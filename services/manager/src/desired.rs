//! What is to be served, and how it is told to backends and frontends.

use crate::identity::Identities;
use ipc::handoff::MAX_MESSAGE;
use service::config::{self, Channel, Config, Doorbells, Driver};
use vireo_proto::handoff::{
    ApplyBdevs, ApplyTargets, Bdev, ChannelPreference, DoorbellMode, Endpoint, FileDriver, Limits,
    MallocDriver, Namespace, NullDriver, NvmeDriver, Request, Subsystem, bdev, request,
};

/// Bytes of a request beside its body: id, sender, traceparent, tags and lengths.
const ENVELOPE: usize = 512;

/// A configuration with the names that were made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// The configuration.
    pub config: Config,
    /// Names; complete for the configuration.
    pub identities: Identities,
}

impl Desired {
    /// What a backend is to serve: its bdevs, and of `held` those that are its own.
    pub fn bdevs<'a>(
        &'a self,
        backend: &str,
        held: impl IntoIterator<Item = &'a config::Bdev>,
    ) -> ApplyBdevs {
        let all = self.config.bdevs.iter().chain(held);
        ApplyBdevs { bdevs: all.filter(|bdev| bdev.backend == backend).map(bdev_message).collect() }
    }

    /// What a frontend is to serve.
    pub fn targets(&self, frontend: &str) -> ApplyTargets {
        let own = |subsystem: &&config::Subsystem| subsystem.frontend == frontend;
        let subsystems = self.config.subsystems.iter().filter(own);
        let endpoints = self.config.endpoints.iter().filter(|endpoint| {
            self.config.subsystem(&endpoint.subsystem).as_ref().is_some_and(own)
        });
        ApplyTargets {
            subsystems: subsystems.map(|subsystem| self.subsystem(subsystem)).collect(),
            endpoints: endpoints.map(endpoint_message).collect(),
        }
    }

    /// Names the first process whose share does not fit into one message.
    pub fn too_long(&self) -> Option<String> {
        let length = |body| {
            vireo_proto::encode(&Request { body: Some(body), ..Request::default() }).len()
                + ENVELOPE
        };
        let backends = self.config.backends.iter().map(|backend| {
            let body = request::Body::ApplyBdevs(self.bdevs(&backend.name, []));
            (format!("backend {}", backend.name), length(body))
        });
        let frontends = self.config.frontends.iter().map(|frontend| {
            let body = request::Body::ApplyTargets(self.targets(&frontend.name));
            (format!("frontend {}", frontend.name), length(body))
        });
        let (process, length) = backends.chain(frontends).find(|(_, n)| *n > MAX_MESSAGE)?;
        Some(format!(
            "{process} has to serve more than fits into one message ({length} of {MAX_MESSAGE} \
             bytes): spread it over several"
        ))
    }

    fn subsystem(&self, subsystem: &config::Subsystem) -> Subsystem {
        let namespace = |namespace: &config::Namespace| {
            let bdev = self.config.bdev(&namespace.bdev);
            let uuid = self.identities.uuid(subsystem, namespace);
            Namespace {
                nsid: namespace.nsid,
                bdev: namespace.bdev.clone(),
                backend: bdev.map(|bdev| bdev.backend.clone()).unwrap_or_default(),
                uuid: uuid.map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default(),
                size_bytes: bdev.and_then(|bdev| bdev.size).unwrap_or(0),
                block_size: bdev.map_or(0, |bdev| bdev.block_size),
                limits: limits_message(&namespace.limits),
            }
        };
        Subsystem {
            name: subsystem.name.clone(),
            nqn: self.identities.nqn(subsystem).unwrap_or_default().to_owned(),
            serial: subsystem.serial.clone(),
            model: subsystem.model.clone(),
            namespaces: subsystem.namespaces.iter().map(namespace).collect(),
        }
    }
}

fn bdev_message(bdev: &config::Bdev) -> Bdev {
    let driver = match &bdev.driver {
        Driver::Null { latency } => bdev::Driver::Null(NullDriver {
            latency_ns: u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX),
        }),
        Driver::Malloc => bdev::Driver::Malloc(MallocDriver {}),
        Driver::File { path, create, direct, read_only } => bdev::Driver::File(FileDriver {
            // It comes from TOML, which is UTF-8.
            path: path.to_string_lossy().into_owned(),
            create: *create,
            direct: *direct,
            read_only: *read_only,
        }),
        Driver::Nvme { target, nsid, read_only, polled } => bdev::Driver::Nvme(NvmeDriver {
            target: target.clone(),
            nsid: *nsid,
            read_only: *read_only,
            polled: *polled,
        }),
    };
    let channel = match bdev.channel {
        Channel::Lease => ChannelPreference::Lease,
        Channel::Ring => ChannelPreference::Ring,
    };
    Bdev {
        name: bdev.name.clone(),
        size_bytes: bdev.size.unwrap_or(0),
        block_size: bdev.block_size,
        channel: channel.into(),
        driver: Some(driver),
    }
}

fn endpoint_message(endpoint: &config::Endpoint) -> Endpoint {
    let doorbells = match endpoint.doorbells {
        Doorbells::Mapped => DoorbellMode::Mapped,
        Doorbells::Shadow => DoorbellMode::Shadow,
    };
    // A frontend takes another order for another endpoint; the order of the file means nothing.
    let mut workers = endpoint.workers.clone();
    workers.sort();
    Endpoint {
        name: endpoint.name.clone(),
        subsystem: endpoint.subsystem.clone(),
        path: endpoint.path.to_string_lossy().into_owned(),
        doorbells: doorbells.into(),
        workers,
        queues: endpoint.queues,
        max_transfer_bytes: endpoint.max_transfer,
        vectors: endpoint.vectors,
        limits: limits_message(&endpoint.limits),
    }
}

/// None where nothing is limited.
fn limits_message(limits: &config::Limits) -> Option<Limits> {
    let values = limits.values().map(Option::unwrap_or_default);
    let [iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth] = values;
    (!limits.is_none()).then_some(Limits {
        iops,
        read_iops,
        write_iops,
        bandwidth,
        read_bandwidth,
        write_bandwidth,
    })
}

#[cfg(test)]
mod tests;
