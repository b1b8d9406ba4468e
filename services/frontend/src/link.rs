//! The way from one endpoint to one worker: what the worker must have is stated as a whole ([`Assignment`]), and the
//! link brings it about on whatever process is the worker at present.
//!
//! Each link has a connection of its own. A worker handles what comes over one connection in order, so a controller's
//! requests keep theirs, and a detach that waits for a slow device holds up no other controller. Requests that overtake
//! each other on one connection for all would need an order of their own at the other end, to save a descriptor.
//!
//! A worker may touch a client's memory until it says that it let go, or until its end of the connection is closed: then
//! its process is gone, or has let go of all that came over the connection. A call that fails proves neither, so the
//! controller's seat at the worker stands until then ([`Progress`]).
//!
//! What a worker asked of backends by ring outlives it: a dead one's requests are carried out to their end. So the seat
//! stands until the backends have said, too, that nothing of it is under way.

use crate::backends::Backends;
use crate::function::Wanted;
use crate::subsystem::SharedSubsystem;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId};
use service::control::{ControlError, Session};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use telemetry::limit::Limit;
use tokio::sync::{Notify, watch};
use vireo_proto::ErrorCode;
use vireo_proto::handoff::{
    AddRegion, AttachController, DetachController, RemoveRegion, SetVectors, reply, request,
};

/// After how long it is said again that a worker has not answered. Nothing else follows from its silence.
const PATIENCE: Duration = Duration::from_secs(10);
/// As long as it takes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);
/// First pause before connecting again; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause before connecting again: what a restarted worker waits for us at worst.
const MAX_PAUSE: Duration = Duration::from_millis(200);
/// Vectors of one message: below the kernel's 253 descriptors.
const VECTORS_PER_MESSAGE: usize = 64;

/// What a worker is to serve: at most one client's controller of the endpoint.
#[derive(Clone, Default)]
pub struct Assignment {
    /// The client, if there is one.
    pub client: Option<Arc<ClientSeat>>,
    /// The memory and the interrupts of the client.
    pub wanted: Wanted,
    /// The life of the worker that may have the client ([`Progress::life`]). The next one gets it when the controller
    /// knows that its queues went with this one: or it would run commands from the start of queues that are still there.
    pub life: u64,
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
    /// The subsystem's limits segment, and the controller's row in it.
    pub limits: Option<(OwnedFd, u32)>,
}

/// How far a worker is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Lives of the worker that ended while they had, or may have had, a client: whoever looks twice and finds another
    /// number knows that what it saw the first time is lost.
    pub life: u64,
    /// The generation of the client that the worker has, or may have, or of which a backend may have a request of the
    /// worker's under way. None: nothing of any is touched.
    pub holds: Option<u64>,
    /// The worker is gone, and what is held is only what backends may have under way.
    pub draining: bool,
    /// The generation of the client that is attached for certain.
    pub serving: Option<u64>,
    /// [`Wanted::number`] that the worker has.
    pub handed: u64,
    /// Wakes the worker.
    pub kick: Option<Arc<EventFd>>,
}

/// A link. Its task ends when it is dropped, and the worker lets go of what it has.
pub struct Link {
    assignment: watch::Sender<Assignment>,
    progress: watch::Receiver<Progress>,
}

/// What a link needs to know of its worker.
pub struct LinkConfig {
    /// The worker's socket.
    pub worker: PathBuf,
    /// This process in the worker's log, `frontend-<name>`.
    pub sender: String,
    /// The number by which queue rows name the worker.
    pub index: u32,
    /// The queues segment of this endpoint and worker.
    pub queues: OwnedFd,
    /// Told at every progress.
    pub notify: Arc<Notify>,
    /// The worker as it names itself to backends, `worker-<name>`.
    pub name: String,
    /// Whom the worker asks.
    pub backends: Arc<Backends>,
    /// What it asks them for.
    pub subsystem: Arc<SharedSubsystem>,
}

impl LinkConfig {
    /// Waits until nothing of a controller is under way at backends that the worker asked for.
    async fn drained(&self, controller: u128) {
        let bdevs = self.subsystem.bdevs();
        self.backends.drained(bdevs, controller, &self.name).await;
    }
}

impl Link {
    /// Starts the link's task.
    pub fn new(config: LinkConfig) -> Self {
        let (assignment, assigned) = watch::channel(Assignment::default());
        let (tell, progress) = watch::channel(Progress::default());
        tokio::spawn(async move {
            let gone = tell.clone();
            tokio::select! {
                () = run(config, assigned, tell) => {}
                // Nobody looks any more: the endpoint is gone.
                () = gone.closed() => {}
            }
        });
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

/// One life of the worker after the other.
async fn run(
    config: LinkConfig,
    mut assigned: watch::Receiver<Assignment>,
    tell: watch::Sender<Progress>,
) {
    let limit = Limit::per_second(1);
    let mut pause = MIN_PAUSE;
    loop {
        let Ok(session) = Session::connect(&config.worker, &config.sender) else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            continue;
        };
        let mut life = Life { config: &config, session, tell: &tell, handed: Handed::default() };
        let error = life.serve(&mut assigned).await;
        let died = life.session.is_closed();
        life.end().await;
        let progress = tell.borrow().clone();
        if progress.holds.is_some()
            && let Some(suppressed) = limit.pass()
        {
            let worker = config.worker.display();
            let error = error.line();
            tracing::warn!(%worker, suppressed, error, "controller lost with its worker");
        }
        // A worker that served is looked for at once; one that answers wrongly is not asked in a tight loop.
        if died && progress.serving.is_some() {
            pause = MIN_PAUSE;
        }
        let number = progress.life + u64::from(progress.holds.is_some());
        if progress.holds.is_some() {
            let (holds, draining) = (progress.holds, true);
            tell.send_replace(Progress { life: number, holds, draining, ..Progress::default() });
            config.notify.notify_one();
            config.drained(life.handed.controller_id).await;
        }
        tell.send_replace(Progress { life: number, ..Progress::default() });
        config.notify.notify_one();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// One connection to the worker.
struct Life<'a> {
    config: &'a LinkConfig,
    session: Session,
    tell: &'a watch::Sender<Progress>,
    handed: Handed,
}

/// What the worker has by way of one connection, or may have.
#[derive(Default)]
struct Handed {
    generation: Option<u64>,
    controller_id: u128,
    regions: BTreeMap<RegionId, Arc<Region>>,
    vectors: Vec<Option<Arc<OwnedFd>>>,
    kick: Option<Arc<EventFd>>,
}

impl Life<'_> {
    /// Brings about what is assigned until the connection is of no more use; says why it is not.
    async fn serve(&mut self, assigned: &mut watch::Receiver<Assignment>) -> ControlError {
        loop {
            let target = assigned.borrow_and_update().clone();
            if let Err(error) = self.reconcile(&target).await {
                return error;
            }
            let handed = &self.handed;
            self.tell.send_modify(|progress| {
                progress.serving = handed.generation;
                progress.handed = target.wanted.number;
                progress.kick.clone_from(&handed.kick);
            });
            self.config.notify.notify_one();
            tokio::select! {
                Ok(()) = assigned.changed() => {}
                () = self.session.closed() => {
                    return ControlError::Closed { peer: self.session.peer().to_owned() };
                }
            }
        }
    }

    /// Waits until the worker has let go of all that it had.
    async fn end(&self) {
        self.session.hang_up();
        while tokio::time::timeout(PATIENCE, self.session.gone()).await.is_err() {
            tracing::warn!(worker = self.session.peer(), "worker has not let go of a controller");
        }
    }

    async fn reconcile(&mut self, target: &Assignment) -> Result<(), ControlError> {
        // Nothing is said to a later life than the controller knows of.
        let client = target.client.as_ref().filter(|_| target.life == self.tell.borrow().life);
        if self.handed.generation != client.map(|client| client.generation) {
            self.detach().await?;
            if let Some(client) = client {
                self.attach(client).await?;
            }
        }
        if self.handed.generation.is_some() {
            self.hand_regions(&target.wanted).await?;
            self.hand_vectors(&target.wanted.vectors).await?;
        }
        Ok(())
    }

    async fn attach(&mut self, client: &ClientSeat) -> Result<(), ControlError> {
        let body = request::Body::AttachController(AttachController {
            controller_id: client.controller_id.to_le_bytes().to_vec(),
            name: client.name.clone(),
            worker_index: self.config.index,
            limits_row: client.limits.as_ref().map(|(_, row)| *row),
        });
        let mut fds = vec![
            client.segment.as_fd(),
            self.config.queues.as_fd(),
            client.doorbells.as_fd(),
            client.kick.as_fd(),
        ];
        fds.extend(client.limits.as_ref().map(|(segment, _)| segment.as_fd()));
        // From here on it may have the client, whatever becomes of the call.
        self.handed.controller_id = client.controller_id;
        self.tell.send_modify(|progress| progress.holds = Some(client.generation));
        let kick = self.ask(body, &fds).await?.into_iter().next();
        let kick = kick.ok_or_else(|| self.session.unexpected("done with a kick eventfd"))?;
        let kick = EventFd::from_client(kick).map_err(|_| self.session.unexpected("an eventfd"))?;
        self.handed = Handed {
            generation: Some(client.generation),
            controller_id: client.controller_id,
            kick: Some(Arc::new(kick)),
            ..Handed::default()
        };
        Ok(())
    }

    async fn detach(&mut self) -> Result<(), ControlError> {
        if self.handed.generation.is_some() {
            let controller_id = self.controller_id();
            let body = request::Body::DetachController(DetachController { controller_id });
            self.ask(body, &[]).await?;
            self.config.drained(self.handed.controller_id).await;
            let life = self.tell.borrow().life;
            self.tell.send_replace(Progress { life, ..Progress::default() });
        }
        self.handed = Handed::default();
        Ok(())
    }

    async fn hand_regions(&mut self, wanted: &Wanted) -> Result<(), ControlError> {
        let is_wanted = |id: &RegionId, region: &Arc<Region>| {
            wanted.regions.get(id).is_some_and(|other| Arc::ptr_eq(other, region))
        };
        let regions = self.handed.regions.iter();
        let surplus: Vec<RegionId> =
            regions.filter(|(id, region)| !is_wanted(id, region)).map(|(&id, _)| id).collect();
        for id in surplus {
            let controller_id = self.controller_id();
            let body = RemoveRegion { controller_id, region_id: id.0 };
            self.ask(request::Body::RemoveRegion(body), &[]).await?;
            self.handed.regions.remove(&id);
        }
        for (&id, region) in &wanted.regions {
            if self.handed.regions.contains_key(&id) {
                continue;
            }
            // It may have the region even if it refuses it, and is told to remove it like any other.
            self.handed.regions.insert(id, Arc::clone(region));
            let controller_id = self.controller_id();
            let body = AddRegion { controller_id, region_id: id.0, size: region.len() };
            match self.ask(request::Body::AddRegion(body), &[region.fd()]).await {
                Ok(_) => {}
                Err(ControlError::Refused(failure)) if failure.code() != ErrorCode::NotFound => {
                    let (worker, error) = (self.session.peer(), failure.message());
                    tracing::error!(worker, error, "client memory refused: DMA to it fails");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn hand_vectors(&mut self, wanted: &[Option<Arc<OwnedFd>>]) -> Result<(), ControlError> {
        let count = wanted.len().max(self.handed.vectors.len());
        self.handed.vectors.resize(count, None);
        let at = |index: usize| wanted.get(index).cloned().flatten();
        for start in (0..count).step_by(VECTORS_PER_MESSAGE) {
            let range = start..count.min(start + VECTORS_PER_MESSAGE);
            if range.clone().all(|index| same(&self.handed.vectors[index], &at(index))) {
                continue;
            }
            let eventfds: Vec<_> = range.clone().map(at).collect();
            let fds: Vec<BorrowedFd<'_>> = eventfds.iter().flatten().map(|fd| fd.as_fd()).collect();
            let body = request::Body::SetVectors(SetVectors {
                controller_id: self.controller_id(),
                start: start as u32,
                present: eventfds.iter().map(Option::is_some).collect(),
            });
            self.ask(body, &fds).await?;
            self.handed.vectors[range].clone_from_slice(&eventfds);
        }
        Ok(())
    }

    /// Asks for something that is answered with `Done`, and waits for the answer as long as the worker is there: what is
    /// asked next must not overtake it.
    async fn ask(
        &self,
        body: request::Body,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, ControlError> {
        let mut call = pin!(self.session.call_within(FOREVER, body, fds));
        let answer = loop {
            match tokio::time::timeout(PATIENCE, &mut call).await {
                Ok(answer) => break answer?,
                Err(_) => tracing::warn!(worker = self.session.peer(), "worker does not answer"),
            }
        };
        match answer.body {
            reply::Body::Done(_) => Ok(answer.fds),
            _ => Err(self.session.unexpected("done")),
        }
    }

    fn controller_id(&self) -> Vec<u8> {
        self.handed.controller_id.to_le_bytes().to_vec()
    }
}

fn same(left: &Option<Arc<OwnedFd>>, right: &Option<Arc<OwnedFd>>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => Arc::ptr_eq(left, right),
        (None, None) => true,
        _ => false,
    }
}
