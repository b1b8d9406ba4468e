//! The control thread: takes controllers over from frontends, opens channels at backends, and hands both to the poll
//! thread, which never waits for any of it.
//!
//! A frontend's request is answered when the poll thread has made the change. What the poll thread asks for and lets
//! go of comes back as notices ([`Control::pump`]); channels are opened by tasks of their own (`open`), which try for
//! as long as the namespace is there.

mod attached;
mod client;
mod faults;
mod open;
#[cfg(test)]
mod tests;

use crate::controller::{Attachment, BIT_BUCKET_BYTES, Change, Controller, Garbage, Request};
use crate::reactor::{ControlEnd, Message, Notice};
use attached::Attached;
use faults::Faults;
use ipc::doorbell::DoorbellPage;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionPolicy};
use ipc::layout::controller::ControllerLayout;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use nvme::range_list::BIT_BUCKET;
use service::capture::Source;
use service::control::{Answer, Client, ConnectionId, Handler, Incoming};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use telemetry::limit::Limit;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use vireo_proto::handoff::{AttachController, Done, ProcessStatus, StatusItem, reply, request};
use vireo_proto::{Failure, id_from_bytes};

/// Pause before a message to a poll thread whose queue is full is sent again.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Most controllers of one worker: far above what one core can serve.
const MAX_CONTROLLERS: usize = 1024;

/// Controllers that come and go: clients make them do so, as often as they like.
static LIFE: Limit = Limit::per_second(10);

/// What a control thread is made with.
pub struct ControlConfig {
    /// Name of this worker.
    pub name: String,
    /// Directory of the handoff sockets.
    pub runtime_dir: PathBuf,
    /// The poll thread's queues.
    pub end: ControlEnd,
    /// Wakes the poll thread.
    pub kick: EventFd,
    /// Faults may be injected.
    pub faults: bool,
}

/// The control thread's state.
pub struct Control {
    name: String,
    runtime_dir: PathBuf,
    end: Mutex<ControlEnd>,
    kick: EventFd,
    bit_bucket: Arc<Region>,
    controllers: Mutex<HashMap<u128, Attached>>,
    /// Held while a controller is attached or detached: a frontend that connects anew may come before its old connection
    /// is known to be gone.
    lives: Mutex<HashMap<u128, Arc<tokio::sync::Mutex<()>>>>,
    backends: Mutex<HashMap<String, Arc<Client>>>,
    /// The poll thread has answered.
    pong: Notify,
    /// Where they may be injected.
    faults: Option<Faults>,
    this: Weak<Self>,
}

impl Control {
    /// A worker that serves nothing yet.
    ///
    /// # Errors
    /// There is no memory for the bit bucket.
    pub fn new(config: ControlConfig) -> anyhow::Result<Arc<Self>> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let fd = memfd_create(c"vireo-bit-bucket", flags)?;
        ftruncate(&fd, BIT_BUCKET_BYTES as i64)?;
        // Other targets' drives take only memory that nobody takes away.
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
        let bit_bucket = Region::map(fd, BIT_BUCKET_BYTES, &RegionPolicy::default())?;
        let ControlConfig { name, runtime_dir, end, kick, faults } = config;
        Ok(Arc::new_cyclic(|this| Self {
            name,
            runtime_dir,
            end: Mutex::new(end),
            kick,
            bit_bucket,
            controllers: Mutex::default(),
            lives: Mutex::default(),
            backends: Mutex::default(),
            pong: Notify::new(),
            faults: faults.then(Faults::default),
            this: this.clone(),
        }))
    }

    /// Has the poll thread look at the tracer's policy.
    pub fn policy_changed(&self) {
        if let Some(control) = self.this.upgrade() {
            tokio::spawn(async move { control.send(Message::Policy).await });
        }
    }

    /// What is known of a controller, for its traces.
    pub fn describe(&self, id: u128) -> telemetry::io_trace::Controller {
        let controllers = self.controllers();
        let attached = controllers.get(&id);
        telemetry::io_trace::Controller {
            endpoint: attached.map(|attached| attached.name.clone()).unwrap_or_default(),
            attached: attached.and_then(|attached| attached.came_in),
        }
    }

    /// Takes the poll thread's notices, for ever. `wake` is what [`crate::reactor::Reactor::wake_by`] got.
    pub async fn pump(self: Arc<Self>, wake: AsyncFd<EventFd>) {
        while let Ok(mut guard) = wake.readable().await {
            // Cleared before the queue is read, so that nothing is overlooked.
            wake.get_ref().drain().ok();
            guard.clear_ready();
            loop {
                let notice = lock(&self.end).receive();
                match notice {
                    Some(notice) => self.take(notice),
                    None => break,
                }
            }
        }
    }

    fn take(&self, notice: Notice) {
        match notice {
            Notice::Request(id, Request::OpenChannel { namespace, generation, force_ring }) => {
                let Some(control) = self.this.upgrade() else { return };
                if let Some(attached) = self.controllers().get_mut(&id) {
                    let wanted = open::Wanted { id, row: namespace, generation, force_ring };
                    attached.openers.spawn(open::open(control, wanted));
                    // Ended ones are taken out, so that the set does not grow.
                    while attached.openers.try_join_next().is_some() {}
                }
            }
            Notice::Changed(id, garbage) => self.changed(id, garbage),
            Notice::Detached(controller) => {
                let id = controller.id();
                let told = self.controllers().get_mut(&id).and_then(|a| a.detached.take());
                // Unmapped before the frontend is answered.
                drop(controller);
                if let Some(told) = told {
                    told.send(()).ok();
                }
            }
            Notice::Pong => self.pong.notify_waiters(),
            Notice::Unknown(id) => {
                if let Some(attached) = self.controllers().get_mut(&id) {
                    attached.waiting.pop_front();
                }
            }
        }
    }

    fn changed(&self, id: u128, garbage: Garbage) {
        let Garbage { of_change, region, channel, events } = garbage;
        drop((region, events));
        let mut controllers = self.controllers();
        let Some(attached) = controllers.get_mut(&id) else { return };
        if let Some(channel) = channel {
            let closing = attached.channels.remove(&crate::namespaces::address(&channel));
            drop(channel);
            if let Some(opened) = closing {
                tokio::spawn(opened.close());
            }
        }
        if of_change && let Some(told) = attached.waiting.pop_front() {
            told.send(()).ok();
        }
    }

    fn controllers(&self) -> MutexGuard<'_, HashMap<u128, Attached>> {
        lock(&self.controllers)
    }

    /// The connection to a backend, made when first asked for.
    fn backend(&self, name: &str) -> Arc<Client> {
        let make = || {
            let path = self.runtime_dir.join(format!("backend-{name}.sock"));
            Arc::new(Client::new(path, &format!("worker-{}", self.name)))
        };
        Arc::clone(lock(&self.backends).entry(name.to_owned()).or_insert_with(make))
    }

    /// Whether the poll thread takes a message in and answers within `bound`. To be asked while [`Self::pump`] runs.
    pub async fn is_alive(&self, bound: Duration) -> bool {
        let pong = self.pong.notified();
        // A full queue is one that is not taken in.
        let sent = lock(&self.end).send(Message::Ping).is_ok();
        self.wake();
        sent && tokio::time::timeout(bound, pong).await.is_ok()
    }

    /// Sends a message to the poll thread and wakes it. False if there is no such thread any more.
    async fn send(&self, mut message: Message) -> bool {
        loop {
            let (sent, alone) = {
                let end = lock(&self.end);
                (end.send(message), end.is_alone())
            };
            self.wake();
            match sent {
                Ok(()) => return true,
                Err(_) if alone => return false,
                Err(back) => message = back,
            }
            tokio::time::sleep(FULL_PAUSE).await;
        }
    }

    fn wake(&self) {
        // Ours and nonblocking: it cannot fail but by a full counter, which wakes as well.
        self.kick.signal().ok();
    }

    /// Has the poll thread change something, and waits until it has. Changes of one controller are made in the order of
    /// their calls.
    async fn change(&self, id: u128, change: Change) -> Result<(), Failure> {
        let (tell, told) = oneshot::channel();
        {
            let mut controllers = self.controllers();
            let attached = controllers.get_mut(&id).ok_or_else(|| not_attached(id))?;
            attached.waiting.push_back(tell);
            // Sent under the lock: the order of those who wait is that of the messages.
            let mut message = Message::Change(id, change);
            let end = lock(&self.end);
            while let Err(back) = end.send(message) {
                if end.is_alone() {
                    attached.waiting.pop_back();
                    return Err(Failure::unavailable("the worker is ending"));
                }
                // The poll thread takes messages in at every poll: this is short.
                self.wake();
                std::thread::yield_now();
                message = back;
            }
        }
        self.wake();
        // An error means that the controller was detached meanwhile.
        told.await.map_err(|_| not_attached(id))
    }

    async fn attach(
        &self,
        incoming: &mut Incoming,
        attach: AttachController,
    ) -> Result<Answer, Failure> {
        let id = id_from_bytes(&attach.controller_id)?;
        let (limits, [layout, queues, doorbells, frontend]) = match attach.limits_row {
            None => (None, incoming.take_fds()?),
            Some(row) => {
                let [layout, queues, doorbells, frontend, limits] = incoming.take_fds()?;
                (Some((limits, row)), [layout, queues, doorbells, frontend])
            }
        };
        let failed = |error: &(dyn std::error::Error + 'static)| Failure::internal(error);
        let layout: Segment<ControllerLayout> =
            Segment::open_read_only(layout).map_err(|error| failed(&error))?;
        let layout = Arc::new(layout);
        let queues: Segment<QueuesLayout> =
            Segment::open(queues).map_err(|error| failed(&error))?;
        if layout.id() != id || queues.id() != id {
            return Err(Failure::invalid("segments of another controller"));
        }
        let doorbells = DoorbellPage::open(doorbells).map_err(|error| failed(&error))?;
        let frontend = EventFd::from_client(frontend).map_err(|error| failed(&error))?;
        let kick = self.kick.try_clone().map_err(|error| failed(&error))?;
        let limits = limits.map(|(fd, row)| Segment::open(fd).map(|segment| (segment, row)));
        let limits = limits.transpose().map_err(|error| failed(&error))?;
        let life = self.life(id);
        let _held = life.lock().await;
        self.let_go(id).await;
        if self.controllers().len() >= MAX_CONTROLLERS {
            return Err(Failure::exhausted(format!("{MAX_CONTROLLERS} controllers are attached")));
        }
        let mut controller = Controller::new(Attachment {
            layout: Arc::clone(&layout),
            queues,
            doorbells,
            frontend,
            worker: attach.worker_index,
            bit_bucket: Arc::clone(&self.bit_bucket),
        });
        if let Some((limits, row)) = limits {
            controller.limit_by(limits, row);
        }
        let mut attached = Attached::new(incoming.connection, attach.name.clone(), layout);
        attached.regions.insert(BIT_BUCKET, Arc::clone(&self.bit_bucket));
        self.controllers().insert(id, attached);
        self.send(Message::Attach(Box::new(controller))).await;
        if let Some(suppressed) = LIFE.pass() {
            tracing::info!(endpoint = attach.name, suppressed, "controller attached");
        }
        let done = reply::Body::Done(Done {});
        Ok(Answer::with_fds(done, vec![kick.into_fd()]))
    }

    /// Lets go of a controller that came over this connection. None such is well.
    async fn detach(&self, id: u128, connection: ConnectionId) {
        let life = self.life(id);
        let held = life.lock().await;
        let theirs = self.controllers().get(&id).is_some_and(|a| a.connection == connection);
        if theirs {
            self.let_go(id).await;
        }
        drop(held);
        drop(life);
        lock(&self.lives).retain(|_, life| Arc::strong_count(life) > 1);
    }

    fn life(&self, id: u128) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(lock(&self.lives).entry(id).or_default())
    }

    /// Lets go of a controller: returns when nothing of it is in flight or mapped. Its life is held.
    async fn let_go(&self, id: u128) {
        let (tell, told) = oneshot::channel();
        {
            let mut controllers = self.controllers();
            let Some(attached) = controllers.get_mut(&id) else { return };
            attached.openers.abort_all();
            attached.detached = Some(tell);
        }
        if self.send(Message::Detach(id)).await {
            told.await.ok();
        }
        let attached = self.controllers().remove(&id);
        if let Some(attached) = attached {
            if let Some(suppressed) = LIFE.pass() {
                tracing::info!(endpoint = attached.name, suppressed, "controller detached");
            }
            attached.release(id).await;
        }
    }

    fn status(&self) -> ProcessStatus {
        let controllers = self.controllers();
        let items = controllers.values().map(|attached| StatusItem {
            kind: "controller".to_owned(),
            name: attached.name.clone(),
            state: "attached".to_owned(),
            message: format!("{} channels", attached.channels.len()),
            paused: false,
        });
        ProcessStatus {
            kind: "worker".to_owned(),
            name: self.name.clone(),
            pid: std::process::id() as i32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: true,
            message: String::new(),
            items: items.collect(),
        }
    }
}

impl Handler for Control {
    async fn handle(&self, mut request: Incoming) -> Result<Answer, Failure> {
        let none = request::Body::GetStatus(vireo_proto::handoff::GetStatus {});
        match std::mem::replace(&mut request.body, none) {
            request::Body::AttachController(attach) => self.attach(&mut request, attach).await,
            request::Body::DetachController(detach) => {
                self.detach(id_from_bytes(&detach.controller_id)?, request.connection).await;
                Ok(Answer::done())
            }
            request::Body::AddRegion(add) => self.add_region(&mut request, add).await,
            request::Body::RemoveRegion(remove) => {
                let id = id_from_bytes(&remove.controller_id)?;
                self.remove_region(id, RegionId(remove.region_id)).await
            }
            request::Body::SetVectors(set) => self.set_vectors(&mut request, set).await,
            request::Body::SetFaults(set) => {
                let faults = self.faults.as_ref().ok_or_else(|| {
                    Failure::precondition(
                        "faults are off: [api] fault_injection = true allows them",
                    )
                })?;
                faults.set(&mut request, &set)?;
                // What is held back for a fault that is gone ends with the next poll.
                self.wake();
                Ok(Answer::done())
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(self.status())))
            }
            _ => Err(Failure::unsupported()),
        }
    }

    async fn disconnected(&self, connection: ConnectionId) {
        let gone: Vec<u128> = self
            .controllers()
            .iter()
            .filter(|(_, attached)| attached.connection == connection)
            .map(|(&id, _)| id)
            .collect();
        for id in gone {
            self.detach(id, connection).await;
        }
    }
}

impl Source for Control {
    fn capture(&self, controller: u128, count: u32) -> bool {
        let here = self.has(controller);
        if let Some(control) = self.this.upgrade().filter(|_| here) {
            tokio::spawn(async move { control.send(Message::Capture(controller, count)).await });
        }
        here
    }

    fn has(&self, controller: u128) -> bool {
        self.controllers().contains_key(&controller)
    }
}

fn not_attached(id: u128) -> Failure {
    Failure::not_found(format!("controller {id:032x} is not attached"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
