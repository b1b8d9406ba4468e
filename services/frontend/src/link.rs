//! The way from one endpoint to one worker: what the worker must have is stated as a whole ([`Assignment`]), and the
//! link brings it about on whatever process is the worker at present.

use crate::function::Wanted;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId};
use service::control::{Client, ControlError, Session};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use vireo_proto::handoff::{
    AddRegion, AttachController, DetachController, RemoveRegion, SetVectors, request,
};

/// How long a link waits for its worker before it looks again; only a matter of log lines.
const WAIT: Duration = Duration::from_secs(30);
/// Vectors of one message: below the kernel's 253 descriptors.
const VECTORS_PER_MESSAGE: usize = 64;

/// What a worker is to serve: at most one client's controller of the endpoint.
#[derive(Clone, Default)]
pub struct Assignment {
    /// The client, if there is one.
    pub client: Option<Arc<ClientSeat>>,
    /// The memory and the interrupts of the client.
    pub wanted: Wanted,
}

/// One client's controller, to be attached.
pub struct ClientSeat {
    /// Counts the endpoint's clients.
    pub generation: u64,
    /// The id in the segments' headers.
    pub controller_id: u128,
    /// The endpoint's name.
    pub name: String,
    /// Controller segment, read-only.
    pub segment: OwnedFd,
    /// Doorbell page.
    pub doorbells: OwnedFd,
    /// The frontend's kick eventfd.
    pub kick: OwnedFd,
}

/// How far a worker is.
#[derive(Clone, Default)]
pub struct Progress {
    /// The generation of the client that is attached.
    pub serving: Option<u64>,
    /// [`Wanted::number`] that the worker has.
    pub handed: u64,
    /// Wakes the worker.
    pub kick: Option<Arc<EventFd>>,
}

/// A link. Its task ends when it is dropped.
pub struct Link {
    assignment: watch::Sender<Assignment>,
    progress: watch::Receiver<Progress>,
}

/// What a link needs to know of its worker.
pub struct LinkConfig {
    /// The worker's process.
    pub worker: Arc<Client>,
    /// The number by which queue rows name the worker.
    pub index: u32,
    /// The queues segment of this endpoint and worker.
    pub queues: OwnedFd,
    /// Told at every progress.
    pub notify: Arc<Notify>,
}

impl Link {
    /// Starts the link's task.
    pub fn new(config: LinkConfig) -> Self {
        let (assignment, assigned) = watch::channel(Assignment::default());
        let (tell, progress) = watch::channel(Progress::default());
        tokio::spawn(run(config, assigned, tell));
        Self { assignment, progress }
    }

    /// States what the worker is to serve.
    pub fn assign(&self, assignment: Assignment) {
        self.assignment.send_replace(assignment);
    }

    /// How far the worker is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }
}

/// What a worker has by way of one session.
#[derive(Default)]
struct Handed {
    generation: Option<u64>,
    controller_id: u128,
    regions: BTreeMap<RegionId, Arc<Region>>,
    vectors: Vec<Option<Arc<OwnedFd>>>,
    kick: Option<Arc<EventFd>>,
}

async fn run(
    config: LinkConfig,
    mut assigned: watch::Receiver<Assignment>,
    tell: watch::Sender<Progress>,
) {
    loop {
        tokio::select! {
            session = config.worker.session(WAIT) => if let Ok(session) = session {
                let ended = serve(&config, &session, &mut assigned, &tell).await;
                tell.send_replace(Progress::default());
                config.notify.notify_one();
                if let Err(error) = ended {
                    tracing::warn!(worker = session.peer(), error = error.line(), "worker lost");
                    // A worker that answers wrongly is asked again, but not in a tight loop.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            // Nobody changes the assignment any more: the endpoint is gone.
            () = gone(&tell) => {}
        }
        if assigned.has_changed().is_err() {
            return;
        }
    }
}

async fn gone(tell: &watch::Sender<Progress>) {
    tell.closed().await;
}

async fn serve(
    config: &LinkConfig,
    session: &Session,
    assigned: &mut watch::Receiver<Assignment>,
    tell: &watch::Sender<Progress>,
) -> Result<(), ControlError> {
    let mut handed = Handed::default();
    loop {
        let target = assigned.borrow_and_update().clone();
        handed.reconcile(config, session, &target).await?;
        tell.send_replace(Progress {
            serving: handed.generation,
            handed: target.wanted.number,
            kick: handed.kick.clone(),
        });
        config.notify.notify_one();
        tokio::select! {
            changed = assigned.changed() => if changed.is_err() {
                return handed.detach(session).await;
            },
            () = session.closed() => {
                return Err(ControlError::Closed { peer: session.peer().to_owned() });
            }
        }
    }
}

impl Handed {
    async fn reconcile(
        &mut self,
        config: &LinkConfig,
        session: &Session,
        target: &Assignment,
    ) -> Result<(), ControlError> {
        if self.generation != target.client.as_ref().map(|client| client.generation) {
            self.detach(session).await?;
            if let Some(client) = &target.client {
                self.attach(config, session, client).await?;
            }
        }
        if self.generation.is_some() {
            self.hand_regions(session, &target.wanted).await?;
            self.hand_vectors(session, &target.wanted.vectors).await?;
        }
        Ok(())
    }

    async fn attach(
        &mut self,
        config: &LinkConfig,
        session: &Session,
        client: &ClientSeat,
    ) -> Result<(), ControlError> {
        let body = request::Body::AttachController(AttachController {
            controller_id: client.controller_id.to_le_bytes().to_vec(),
            name: client.name.clone(),
            worker_index: config.index,
        });
        let fds = [
            client.segment.as_fd(),
            config.queues.as_fd(),
            client.doorbells.as_fd(),
            client.kick.as_fd(),
        ];
        let kick = session.tell(body, &fds).await?.into_iter().next();
        let kick = kick.ok_or_else(|| session.unexpected("done with a kick eventfd"))?;
        let kick = EventFd::from_client(kick).map_err(|_| session.unexpected("an eventfd"))?;
        *self = Self {
            generation: Some(client.generation),
            controller_id: client.controller_id,
            kick: Some(Arc::new(kick)),
            ..Self::default()
        };
        Ok(())
    }

    async fn detach(&mut self, session: &Session) -> Result<(), ControlError> {
        if self.generation.is_some() {
            let controller_id = self.controller_id();
            let body = request::Body::DetachController(DetachController { controller_id });
            session.tell(body, &[]).await?;
        }
        *self = Self::default();
        Ok(())
    }

    async fn hand_regions(
        &mut self,
        session: &Session,
        wanted: &Wanted,
    ) -> Result<(), ControlError> {
        let is_wanted = |id: &RegionId, region: &Arc<Region>| {
            wanted.regions.get(id).is_some_and(|other| Arc::ptr_eq(other, region))
        };
        let surplus: Vec<RegionId> = self
            .regions
            .iter()
            .filter(|(id, region)| !is_wanted(id, region))
            .map(|(&id, _)| id)
            .collect();
        for id in surplus {
            let controller_id = self.controller_id();
            let body = RemoveRegion { controller_id, region_id: id.0 };
            session.tell(request::Body::RemoveRegion(body), &[]).await?;
            self.regions.remove(&id);
        }
        for (&id, region) in &wanted.regions {
            if self.regions.contains_key(&id) {
                continue;
            }
            let controller_id = self.controller_id();
            let body = AddRegion { controller_id, region_id: id.0, size: region.len() };
            session.tell(request::Body::AddRegion(body), &[region.fd()]).await?;
            self.regions.insert(id, Arc::clone(region));
        }
        Ok(())
    }

    async fn hand_vectors(
        &mut self,
        session: &Session,
        wanted: &[Option<Arc<OwnedFd>>],
    ) -> Result<(), ControlError> {
        let count = wanted.len().max(self.vectors.len());
        self.vectors.resize(count, None);
        let at = |index: usize| wanted.get(index).cloned().flatten();
        for start in (0..count).step_by(VECTORS_PER_MESSAGE) {
            let range = start..count.min(start + VECTORS_PER_MESSAGE);
            if range.clone().all(|index| same(&self.vectors[index], &at(index))) {
                continue;
            }
            let eventfds: Vec<_> = range.clone().map(at).collect();
            let fds: Vec<BorrowedFd<'_>> = eventfds.iter().flatten().map(|fd| fd.as_fd()).collect();
            let body = request::Body::SetVectors(SetVectors {
                controller_id: self.controller_id(),
                start: start as u32,
                present: eventfds.iter().map(Option::is_some).collect(),
            });
            session.tell(body, &fds).await?;
            self.vectors[range].clone_from_slice(&eventfds);
        }
        Ok(())
    }

    fn controller_id(&self) -> Vec<u8> {
        self.controller_id.to_le_bytes().to_vec()
    }
}

fn same(left: &Option<Arc<OwnedFd>>, right: &Option<Arc<OwnedFd>>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => Arc::ptr_eq(left, right),
        (None, None) => true,
        _ => false,
    }
}
