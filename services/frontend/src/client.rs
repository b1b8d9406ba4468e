//! One client of an endpoint, from its connection to the moment when nothing of it is left.

use crate::connection::{Connection, ConnectionError, Incoming};
use crate::endpoint::{MAX_REQUESTS, Shared};
use crate::function::Function;
use crate::link::{Assignment, ClientSeat, Link};
use crate::pause::Wanted;
use crate::signal::Stuck;
use ipc::event::EventFd;
use nvme::Effect;
use nvme_spec::Status;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use vfio_user::server::{Deferred, Outcome, Session};
use vfio_user::version::Limits;

/// How often an act that waits for workers is looked at, besides at every kick.
const WAITING_TICK: Duration = Duration::from_millis(1);
/// How often doorbells that no worker watches are looked at.
const UNWATCHED_TICK: Duration = Duration::from_millis(5);
/// After how long it is said again that a client's last commands have not ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a client could not be served. It is not the client's fault.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The function.
    #[error(transparent)]
    Function(#[from] crate::function::FunctionError),
    /// A segment's descriptor.
    #[error(transparent)]
    Segment(#[from] ipc::segment::SegmentError),
    /// The doorbell page's descriptor.
    #[error(transparent)]
    Doorbells(#[from] ipc::doorbell::DoorbellError),
    /// The kick eventfd.
    #[error(transparent)]
    Event(#[from] ipc::event::EventError),
    /// The runtime.
    #[error("register with the event loop")]
    Runtime(#[source] std::io::Error),
    /// The connection.
    #[error("take a connection over")]
    Connection(#[source] std::io::Error),
}

/// Serves a client until it leaves, or until the endpoint is to stop; then waits until nothing of it is in flight.
///
/// # Errors
/// [`ClientError`]; the function is as it was before the client.
pub async fn serve(
    function: &mut Function,
    shared: &Shared,
    socket: OwnedFd,
    generation: u64,
) -> Result<(), ClientError> {
    let kick = EventFd::create()?;
    let peer_kick = kick.try_clone()?.into_fd();
    let kick = service::async_fd::register(kick).map_err(ClientError::Runtime)?;
    let segment = Arc::clone(function.segment());
    let connection =
        Connection::new(socket, segment, shared.closer.clone()).map_err(ClientError::Connection)?;
    let description = function.connect(shared.now())?;
    let pauses = shared.pause.wanted();
    function.set_paused(pauses.borrow().paused);
    let seat = Arc::new(ClientSeat {
        generation,
        controller_id: function.segment().id(),
        name: function.name().to_owned(),
        segment: function.segment().read_only_fd()?,
        doorbells: function.doorbells().client_fd()?,
        kick: peer_kick,
        limits: shared.subsystem.limits().seat(function.controller().id()),
    });
    let (answer, answers) = mpsc::channel(MAX_REQUESTS);
    let lives = shared.links.iter().map(|link| link.progress().life).collect();
    let mut client = Client {
        function,
        shared,
        session: Session::new(description, Limits::default()),
        connection,
        deferred: None,
        seat: Some(seat),
        handed: 0,
        lives,
        answer,
        answers,
        kick,
        pauses,
    };
    client.assign(true);
    let result = client.run().await;
    if let Some(suppressed) = shared.limit.pass() {
        match result {
            Ok(()) => tracing::info!(endpoint = shared.name, suppressed, "client left"),
            Err(error) => {
                let error = crate::line(&error);
                tracing::warn!(endpoint = shared.name, suppressed, error, "client dropped");
            }
        }
    }
    client.end().await;
    Ok(())
}

struct Client<'a> {
    function: &'a mut Function,
    shared: &'a Shared,
    session: Session,
    connection: Connection,
    deferred: Option<Deferred>,
    seat: Option<Arc<ClientSeat>>,
    /// [`crate::function::Wanted::number`] that the links were given.
    handed: u64,
    /// Lives of the workers that the function knows of, by worker index.
    lives: Vec<u64>,
    answer: mpsc::Sender<(nvme::Ticket, Result<(), Status>)>,
    answers: mpsc::Receiver<(nvme::Ticket, Result<(), Status>)>,
    kick: AsyncFd<EventFd>,
    /// Whether the endpoint is paused.
    pauses: watch::Receiver<Wanted>,
}

/// Why a client's task woke up.
enum Event {
    /// A message, or none because the client left or the endpoint is to stop.
    Message(Option<Incoming>),
    /// A worker kicked or made progress, or it is time to look.
    Look,
    /// Namespaces changed.
    SubsystemChanged,
    /// Another controller reset the subsystem.
    SubsystemReset,
    /// Limits of the subsystem changed.
    LimitsChanged,
    /// The endpoint is to be paused, or to go on.
    Pause,
    /// A backend's answer.
    Answer(nvme::Ticket, Result<(), Status>),
}

impl Client<'_> {
    /// Until the client leaves or the endpoint is to stop.
    async fn run(&mut self) -> Result<(), ConnectionError> {
        let mut changes = self.shared.subsystem.changes();
        // One may have come since the client did.
        changes.mark_changed();
        let mut resets = self.shared.subsystem.resets();
        let mut limits = self.shared.subsystem.limits().changes();
        let mut pauses = self.pauses.clone();
        let mut stop = self.shared.stop.subscribe();
        if *stop.borrow_and_update() {
            return Ok(());
        }
        loop {
            let tick = self.tick();
            let event = tokio::select! {
                message = self.connection.receive() => Event::Message(message?),
                _ = kicked(&self.kick) => Event::Look,
                () = self.shared.notify.notified() => Event::Look,
                _ = changes.changed() => Event::SubsystemChanged,
                _ = resets.changed() => Event::SubsystemReset,
                _ = limits.changed() => Event::LimitsChanged,
                _ = pauses.changed() => Event::Pause,
                Some((ticket, outcome)) = self.answers.recv() => Event::Answer(ticket, outcome),
                () = tokio::time::sleep(tick.unwrap_or_default()), if tick.is_some() => Event::Look,
                _ = stop.changed() => Event::Message(None),
            };
            match event {
                Event::Message(Some(message)) => self.handle(message)?,
                Event::Message(None) => return Ok(()),
                Event::SubsystemChanged => self.function.subsystem_changed(),
                Event::SubsystemReset => self.function.subsystem_reset(),
                Event::LimitsChanged => self.function.limits_changed(),
                Event::Pause => self.function.set_paused(pauses.borrow_and_update().paused),
                Event::Answer(ticket, outcome) => self.function.complete(ticket, outcome),
                Event::Look => {}
            }
            self.advance()?;
            self.shared.pause.tell(self.function.is_still());
            let (function, pauses) = (&*self.function, self.shared.subsystem.pauses());
            pauses.look(function.controller().id(), |nsid| function.is_namespace_still(nsid));
            let change = *changes.borrow();
            if self.function.is_settled() && !changes.has_changed().unwrap_or(false) {
                self.shared.settled.send_replace(change);
            }
        }
    }

    /// How long nothing but an event is waited for; `None` for ever.
    fn tick(&self) -> Option<Duration> {
        if self.function.is_waiting() {
            Some(WAITING_TICK)
        } else if !self.function.is_watched() {
            Some(UNWATCHED_TICK)
        } else {
            None
        }
    }

    fn handle(&mut self, message: Incoming) -> Result<(), ConnectionError> {
        let Incoming { header, body, fds } = message;
        let outcome = self.session.handle(&header, &body, fds, self.function);
        self.conclude(outcome)
    }

    /// Takes the workers' progress over, goes on with what waits, carries effects out.
    fn advance(&mut self) -> Result<(), ConnectionError> {
        let another_life = self.look_at_workers();
        if self.function.is_stuck() {
            return Err(Stuck.into());
        }
        if let Some(result) = self.function.poll(self.shared.now())
            && let Some(deferred) = self.deferred.take()
        {
            let outcome = self.session.finish(deferred, result, self.function);
            self.conclude(outcome)?;
        }
        self.carry_out();
        if another_life || self.handed != self.function.wanted().number {
            self.assign(true);
        }
        Ok(())
    }

    fn conclude(&mut self, outcome: Outcome) -> Result<(), ConnectionError> {
        // Workers are told before the client is: what it is told stands then.
        self.carry_out();
        match outcome {
            Outcome::Reply(reply) => self.connection.answer(Some(reply)),
            Outcome::Silent => self.connection.answer(None),
            Outcome::Deferred(deferred) => {
                self.deferred = Some(deferred);
                Ok(())
            }
        }
    }

    /// True if a worker's life ended since the last look: the next one is to be assigned anew.
    fn look_at_workers(&mut self) -> bool {
        let generation = self.seat.as_ref().map(|seat| seat.generation);
        let mut another_life = false;
        for (index, link) in self.shared.links.iter().enumerate() {
            let progress = link.progress();
            self.function.worker_drains(index, progress.draining);
            if let Some(known) = self.lives.get_mut(index)
                && *known != progress.life
            {
                *known = progress.life;
                another_life = true;
                // Whoever serves there now has none of this controller's queues.
                self.function.worker_changed(index, None);
            }
            let serving = progress.serving.is_some() && progress.serving == generation;
            self.function.worker_changed(index, serving.then_some(progress.handed));
        }
        another_life
    }

    fn carry_out(&mut self) {
        let mut effects = VecDeque::from(self.function.take_effects());
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::KickWorkers => self.shared.links.iter().for_each(kick_worker),
                Effect::SubsystemChanged => {
                    self.shared.subsystem.announce_change();
                }
                Effect::SubsystemReset => self.shared.subsystem.announce_reset(),
                Effect::Request { ticket, request } => {
                    let Ok(permit) = Arc::clone(&self.shared.requests).try_acquire_owned() else {
                        // A host that goes on resetting does not pile requests up: what it abandoned counts.
                        self.function.complete(ticket, Err(Status::INTERNAL_ERROR));
                        effects.extend(self.function.take_effects());
                        continue;
                    };
                    let backends = Arc::clone(&self.shared.backends);
                    let subsystem = Arc::clone(&self.shared.subsystem);
                    let answer = self.answer.clone();
                    tokio::spawn(async move {
                        let outcome = backends.carry_out(&subsystem, request).await;
                        // An error means that the client is gone: nobody wants to know.
                        answer.send((ticket, outcome)).await.ok();
                        drop(permit);
                    });
                }
                // Signalled by the function itself.
                Effect::Signal { .. } => {}
            }
        }
    }

    /// States to every worker what it is to serve.
    fn assign(&mut self, serve: bool) {
        let wanted = self.function.wanted().clone();
        self.handed = wanted.number;
        let client = self.seat.clone().filter(|_| serve);
        for (link, &life) in self.shared.links.iter().zip(&self.lives) {
            link.assign(Assignment { client: client.clone(), wanted: wanted.clone(), life });
        }
    }

    /// The client is gone: waits until nothing of it is in flight, then has the workers let go of it. Its connection is
    /// closed last, so that its other end can tell when its memory is its own again.
    async fn end(mut self) {
        self.function.disconnect(self.shared.now());
        let mut patience = tokio::time::interval_at(Instant::now() + PATIENCE, PATIENCE);
        loop {
            self.look_at_workers();
            self.function.poll(self.shared.now());
            self.carry_out();
            if self.function.is_quiet() {
                break;
            }
            tokio::select! {
                _ = kicked(&self.kick) => {}
                () = self.shared.notify.notified() => {}
                // A format outlives the client that asked for it: until its answer the namespace is closed to all.
                Some((ticket, outcome)) = self.answers.recv() => self.function.complete(ticket, outcome),
                () = tokio::time::sleep(WAITING_TICK) => {}
                _ = patience.tick() => tracing::warn!(
                    endpoint = self.shared.name,
                    "commands of the last client are still in flight"
                ),
            }
        }
        self.assign(false);
        while self.shared.links.iter().any(|link| link.progress().holds.is_some()) {
            tokio::select! {
                () = self.shared.notify.notified() => {}
                () = tokio::time::sleep(UNWATCHED_TICK) => {}
                _ = patience.tick() => tracing::warn!(
                    endpoint = self.shared.name,
                    "workers have not let go of the last client"
                ),
            }
        }
        self.seat = None;
        self.look_at_workers();
        self.function.forget_memory();
        self.connection.close();
        self.shared.settled.send_replace(u64::MAX);
    }
}

fn kick_worker(link: &Link) {
    if let Some(kick) = link.progress().kick
        && let Err(error) = kick.signal()
    {
        tracing::warn!(error = crate::line(&error), "worker not woken");
    }
}

async fn kicked(kick: &AsyncFd<EventFd>) {
    if let Ok(mut guard) = kick.readable().await {
        // An error would show at the next read as well; the counter's value does not matter.
        kick.get_ref().drain().ok();
        guard.clear_ready();
    }
}
