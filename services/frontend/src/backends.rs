//! The backends that namespaces lie on, and what is asked of them besides I/O.

use nvme::Request;
use nvme_spec::{Nsid, Status};
use service::control::{Client, ControlError, Session};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use vireo_proto::handoff::{
    AwaitDrained, BdevInfo, DescribeBdev, EraseBdev, FlushBdev, reply, request,
};

use crate::subsystem::{Bdevs, SharedSubsystem};

/// Longest erase of a block device (Format NVM): a large file on a slow disk.
const ERASE_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest flush of a block device.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);

/// First pause before a backend is asked again whether requests have ended; doubled up to [`MAX_DRAIN_PAUSE`].
const DRAIN_PAUSE: Duration = Duration::from_millis(5);
/// Longest such pause.
const MAX_DRAIN_PAUSE: Duration = Duration::from_millis(200);
/// After how long it is said again that a backend has not told so.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

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

    fn socket(&self, backend: &str) -> PathBuf {
        self.runtime_dir.join(format!("backend-{backend}.sock"))
    }

    fn client(&self, backend: &str) -> Arc<Client> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let make = || Arc::new(Client::new(self.socket(backend), &self.sender));
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

    /// Waits until no backend has anything under way of what `worker` asked it for a controller, for as long as it takes:
    /// nobody else knows, and a client that is told too early that memory is its own again finds it written later. A
    /// backend that died is waited for, too: its successor has its devices only when the kernel has let go of them.
    pub async fn drained(&self, bdevs: Bdevs, controller: u128, worker: &str) {
        let mut asked = JoinSet::new();
        for (backend, bdevs) in bdevs {
            let body = AwaitDrained {
                controller_id: vireo_proto::id_to_bytes(controller),
                worker: worker.to_owned(),
                bdevs: bdevs.into_iter().collect(),
            };
            asked.spawn(drained(self.socket(&backend), self.sender.clone(), backend, body));
        }
        while asked.join_next().await.is_some() {}
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

/// Asks one backend until it says that nothing is under way. Over a connection of its own, so that nothing else waits
/// behind a question that waits.
async fn drained(socket: PathBuf, sender: String, backend: String, body: AwaitDrained) {
    let mut pause = DRAIN_PAUSE;
    let mut complain_at = Instant::now() + DRAIN_PATIENCE;
    let mut session = None;
    loop {
        let error = match ask_drained(&mut session, &socket, &sender, &body).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if Instant::now() >= complain_at {
            complain_at = Instant::now() + DRAIN_PATIENCE;
            let worker = &body.worker;
            let error = error.line();
            tracing::warn!(backend, worker, error, "requests of a worker have not ended");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_DRAIN_PAUSE);
    }
}

async fn ask_drained(
    session: &mut Option<Session>,
    socket: &Path,
    sender: &str,
    body: &AwaitDrained,
) -> Result<(), ControlError> {
    let session = match session.take().filter(|session| !session.is_closed()) {
        Some(open) => session.insert(open),
        None => session.insert(Session::connect(socket, sender)?),
    };
    session.tell(request::Body::AwaitDrained(body.clone()), &[]).await.map(drop)
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
