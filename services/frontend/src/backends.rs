//! The backends that namespaces lie on, and what is asked of them besides I/O.

use nvme::Request;
use nvme_spec::{Nsid, Status};
use service::control::{Client, ControlError};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vireo_proto::handoff::{BdevInfo, DescribeBdev, EraseBdev, FlushBdev, reply, request};

use crate::subsystem::SharedSubsystem;

/// Longest erase of a block device (Format NVM): a large file on a slow disk.
const ERASE_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest flush of a block device.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections to the host's backends, made when first asked for.
pub struct Backends {
    runtime_dir: PathBuf,
    sender: String,
    clients: Mutex<HashMap<String, Arc<Client>>>,
}

impl Backends {
    /// Backends whose sockets lie in `runtime_dir`; `sender` names this process to them.
    pub fn new(runtime_dir: PathBuf, sender: String) -> Self {
        Self { runtime_dir, sender, clients: Mutex::new(HashMap::new()) }
    }

    fn client(&self, backend: &str) -> Arc<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || {
            let path = self.runtime_dir.join(format!("backend-{backend}.sock"));
            Arc::new(Client::new(path, &self.sender))
        };
        Arc::clone(clients.entry(backend.to_owned()).or_insert_with(make))
    }

    /// A bdev's properties.
    ///
    /// # Errors
    /// The backend is away, or does not know the bdev.
    pub async fn describe(&self, backend: &str, bdev: &str) -> Result<BdevInfo, ControlError> {
        let body = request::Body::DescribeBdev(DescribeBdev { bdev: bdev.to_owned() });
        let session = self.client(backend).session(service::control::CALL_TIMEOUT).await?;
        match session.call(body, &[]).await?.body {
            reply::Body::BdevInfo(info) => Ok(info),
            _ => Err(session.unexpected("bdev info")),
        }
    }

    /// Carries out what a controller asks for. The status is what its host is told; why it failed is logged.
    pub async fn carry_out(
        &self,
        subsystem: &SharedSubsystem,
        request: Request,
    ) -> Result<(), Status> {
        match request {
            Request::Flush => self.flush(subsystem).await,
            Request::Format { nsid, backend, bdev, block_shift, erase } => {
                if erase {
                    let body = request::Body::EraseBdev(EraseBdev { bdev: bdev.clone() });
                    self.ask(&backend, &bdev, "erase", body, ERASE_TIMEOUT).await?;
                }
                store(subsystem, nsid, |changes| changes.block_shift = Some(block_shift))
            }
            Request::Protect { nsid, protection } => {
                let kept = match protection {
                    nvme::Protection::Protected => Some(protection as u32),
                    nvme::Protection::None | nvme::Protection::UntilPowerCycle => None,
                };
                store(subsystem, nsid, |changes| changes.protection = kept)
            }
        }
    }

    async fn flush(&self, subsystem: &SharedSubsystem) -> Result<(), Status> {
        let mut bdevs: Vec<(String, String)> = subsystem
            .lock()
            .namespaces()
            .map(|(_, space)| (space.config().backend.clone(), space.config().bdev.clone()))
            .collect();
        bdevs.sort();
        bdevs.dedup();
        for (backend, bdev) in bdevs {
            let body = request::Body::FlushBdev(FlushBdev { bdev: bdev.clone() });
            self.ask(&backend, &bdev, "flush", body, FLUSH_TIMEOUT).await?;
        }
        Ok(())
    }

    async fn ask(
        &self,
        backend: &str,
        bdev: &str,
        act: &str,
        body: request::Body,
        timeout: Duration,
    ) -> Result<(), Status> {
        let answer = async {
            let session = self.client(backend).session(service::control::CALL_TIMEOUT).await?;
            session.call_within(timeout, body, &[]).await
        };
        match answer.await {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(backend, bdev, act, error = error.line(), "backend failed");
                Err(Status::INTERNAL_ERROR)
            }
        }
    }
}

/// Stores a change of one namespace, or of all.
fn store(
    subsystem: &SharedSubsystem,
    nsid: Nsid,
    change: impl Fn(&mut crate::store::Changes),
) -> Result<(), Status> {
    let chosen: Vec<(Nsid, String)> = subsystem
        .lock()
        .namespaces()
        .filter(|(id, _)| nsid == Nsid::BROADCAST || *id == nsid)
        .map(|(id, space)| (id, space.config().bdev.clone()))
        .collect();
    for (id, bdev) in chosen {
        subsystem.change(id.0, &bdev, &change).map_err(|error| {
            tracing::error!(
                subsystem = subsystem.name(),
                nsid = id.0,
                error = crate::line(&error),
                "not stored"
            );
            Status::INTERNAL_ERROR
        })?;
    }
    Ok(())
}
