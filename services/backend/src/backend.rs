//! Answers the handoff's requests: devices for the manager and the frontends, channels and guest memory for workers.
//!
//! What is known is looked at and changed under a lock that is never held over a wait. Whatever the serve loop or a
//! device has to do for a request is awaited without it, and not for long: requests of one connection are answered in
//! order, so that one that waited for a stuck device would hold up all controllers of its worker.

mod open;

use crate::apply::Applier;
use crate::registry::{Device, Kind, Maintenance, Registry, failure, unanswered};
use crate::serve::{ChannelKey, Command, DeviceKey, Handle, Owner};
use crate::store::Store;
use bdev::error::Error;
use ipc::guest_memory::{Region, RegionId, RegionPolicy};
use ipc::trace::TraceWriter;
use nix::unistd::Pid;
use service::control::{Answer, ConnectionId, Handler, Incoming};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::info;
use vireo_proto::handoff::{
    AddRegion, ApplyBdevs, AwaitDrained, ChannelGrant, ChannelKind, OpenChannel, ProcessStatus,
    RemoveRegion, StatusItem, reply, request,
};
use vireo_proto::{Failure, id_from_bytes};

/// Requests that a ring holds.
const RING_DEPTH: usize = 256;
/// Most channels of one worker: every namespace of as many controllers as it can hold.
const MAX_CHANNELS: usize = 4096;
/// How long a request of a worker's waits for the serve loop, or for what is under way on a device. A worker asks again.
const WAIT: Duration = Duration::from_secs(2);
/// First pause between two looks whether a worker's process is gone; doubled up to [`MAX_REAP_PAUSE`].
const REAP_PAUSE: Duration = Duration::from_millis(20);
/// Longest such pause.
const MAX_REAP_PAUSE: Duration = Duration::from_secs(1);

/// The backend.
pub struct Backend {
    name: String,
    serve: Handle,
    state: Arc<Mutex<State>>,
    /// One document at a time.
    applier: tokio::sync::Mutex<Applier>,
    /// Where the serve loop writes records of traced requests; it alone locks it.
    tracer: Option<Arc<Mutex<TraceWriter>>>,
}

/// What is looked at and changed at once.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) registry: Registry,
    channels: HashMap<ChannelKey, Granted>,
    last_channel: ChannelKey,
    /// Connections that channels were opened over, until nothing of them is under way; with the names of their workers.
    workers: HashMap<ConnectionId, String>,
    /// Bdevs whose files are locked, or whose drives are held, by somebody who may be of a predecessor's time and have
    /// requests under way.
    locked: BTreeSet<String>,
    /// False until the manager has told what is wanted.
    applied: bool,
    /// A task looks whether workers that left leases behind are dead.
    reaping: bool,
}

/// A channel that a worker has.
struct Granted {
    connection: ConnectionId,
    pid: i32,
    bdev: String,
    device: DeviceKey,
    lease: Option<usize>,
    ring: bool,
    /// It has, or is to get, a queue pair of the drive.
    drive: bool,
}

impl Backend {
    /// A backend of this name over a serve loop, with what a predecessor left in the store.
    pub fn new(name: String, serve: Handle, store: Store) -> Self {
        let applier = tokio::sync::Mutex::new(Applier::new(serve.clone(), store));
        Self { name, serve, state: Arc::default(), applier, tracer: None }
    }

    /// Has its part in commands recorded that workers trace.
    #[must_use]
    pub fn traced_by(self, tracer: TraceWriter) -> Self {
        Self { tracer: Some(Arc::new(Mutex::new(tracer))), ..self }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    async fn add_region(&self, incoming: &mut Incoming, add: AddRegion) -> AnswerResult {
        let controller = id_from_bytes(&add.controller_id)?;
        let [fd] = incoming.take_fds()?;
        let owner = Owner { connection: incoming.connection, controller };
        let region = Region::map(fd, add.size, &RegionPolicy::default());
        let region = region.map_err(|error| Failure::internal(&error))?;
        // Without it the first access to each page is slower, that is all.
        region.prefault().ok();
        let id = RegionId(add.region_id);
        let command = |done| Command::AddRegion { owner, id, region, done };
        let added = self.serve.ask_within(WAIT, command).await;
        match added.map_err(|why| unanswered(why, "the serve loop has not taken it in time"))? {
            true => Ok(Answer::done()),
            false => Err(Failure::invalid(format!(
                "no room for region {} of controller {:032x}",
                add.region_id, owner.controller
            ))),
        }
    }

    async fn remove_region(&self, connection: ConnectionId, remove: RemoveRegion) -> AnswerResult {
        let owner = Owner { connection, controller: id_from_bytes(&remove.controller_id)? };
        let id = RegionId(remove.region_id);
        let command = |done| Command::RemoveRegion { owner, id, done };
        let removed = self.serve.ask_within(WAIT, command).await;
        // Unmapped here, before the answer.
        drop(removed.map_err(|why| unanswered(why, "requests that use it have not ended"))?);
        Ok(Answer::done())
    }

    /// Answers when nothing is under way of what a worker asked for a controller. The worker is dead or has let go of it,
    /// so nothing more is begun; what is under way ends by itself, since a closed connection closes its channels.
    async fn await_drained(&self, asked: AwaitDrained) -> AnswerResult {
        let controller = id_from_bytes(&asked.controller_id)?;
        let connections = self.state().connections_of(&asked)?;
        let command =
            |done| Command::AwaitDrained { connections, controller: Some(controller), done };
        let drained = self.serve.ask_within(WAIT, command).await;
        drained.map_err(|why| unanswered(why, "requests of the controller have not ended"))?;
        Ok(Answer::done())
    }

    fn status(&self) -> ProcessStatus {
        let state = self.state();
        let State { registry, channels, applied, .. } = &*state;
        let bdevs = registry.devices().map(|device| {
            let size = service::config::format_size(device.size);
            item("bdev", &device.wanted.name, format!("{} {size}", device.driver()))
        });
        let mut items: Vec<StatusItem> = bdevs.collect();
        let mut sorted: Vec<_> = channels.iter().collect();
        sorted.sort_by_key(|(key, _)| **key);
        items.extend(sorted.into_iter().map(|(key, channel)| {
            let leased = channel.lease.is_some() || channel.drive || !channel.ring;
            let kind = if leased { "lease" } else { "ring" };
            item(
                "channel",
                &key.to_string(),
                format!("{kind} of {}, pid {}", channel.bdev, channel.pid),
            )
        }));
        ProcessStatus {
            kind: "backend".to_owned(),
            name: self.name.clone(),
            pid: Pid::this().as_raw(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: *applied,
            message: if *applied { String::new() } else { "waiting for the manager".to_owned() },
            items,
        }
    }

    async fn apply(&self, wanted: ApplyBdevs) -> AnswerResult {
        let result = self.applier.lock().await.apply(&self.state, wanted).await?;
        self.state().applied = true;
        // Memory that a predecessor had comes with the leases of its workers.
        self.reap();
        Ok(Answer::new(reply::Body::ApplyResult(result)))
    }

    async fn maintain(&self, name: &str, what: Maintenance) -> AnswerResult {
        let errand = self.state().registry.maintenance(&self.serve, name, what)?;
        errand.run().await?;
        Ok(Answer::done())
    }

    /// Sees to it that the lease numbers of dead workers become free. One task does it for all connections: a worker
    /// that lives on without its channels is looked at for as long as it does.
    fn reap(&self) {
        let state = Arc::clone(&self.state);
        if !lock(&state).reap() || std::mem::replace(&mut lock(&state).reaping, true) {
            return;
        }
        tokio::spawn(async move {
            let mut pause = REAP_PAUSE;
            loop {
                tokio::time::sleep(pause).await;
                if !lock(&state).reap() {
                    return;
                }
                pause = (pause * 2).min(MAX_REAP_PAUSE);
            }
        });
    }
}

impl State {
    /// Only these bdevs are wanted; those that are not are given out for closing.
    pub(crate) fn take_all_but(&mut self, names: &[String]) -> Vec<Device> {
        self.locked.retain(|name| names.contains(name));
        self.registry.take_all_but(names)
    }

    /// A bdev's file or drive was had for this process alone, or is somebody else's.
    pub(crate) fn tried_to_lock(&mut self, bdev: String, succeeded: bool) {
        if succeeded {
            self.locked.remove(&bdev);
        } else {
            self.locked.insert(bdev);
        }
    }

    /// Chooses what kind of channel a worker gets. The channel's key, the answer but for what may change until it is
    /// [taken up](Self::take_up), and the descriptors that come first.
    fn grant(
        &mut self,
        open: &OpenChannel,
        connection: ConnectionId,
        pid: i32,
    ) -> Result<(ChannelKey, ChannelGrant, Granted, Vec<OwnedFd>), Failure> {
        let mine = self.channels.values().filter(|other| other.connection == connection).count();
        if mine >= MAX_CHANNELS {
            return Err(Failure::exhausted(format!("{mine} channels are open already")));
        }
        let device = self.registry.device_mut(&open.bdev)?;
        let (kind, lease, fds) = choose(device, open.force_ring, pid)?;
        let drive = matches!(device.kind, Kind::Nvme { .. }) && device.leased() && !open.force_ring;
        let latency_ns = match device.kind {
            Kind::Null { latency } => latency,
            Kind::Malloc { .. } | Kind::File { .. } | Kind::Nvme { .. } => 0,
        };
        self.last_channel += 1;
        let channel = self.last_channel;
        let ring = kind != ChannelKind::LeaseNull;
        let grant = ChannelGrant {
            kind: kind.into(),
            channel_id: channel,
            size_bytes: device.size,
            block_size: device.wanted.block_size,
            read_only: device.read_only(),
            latency_ns,
            has_ring: ring,
            lease_number: lease.unwrap_or(0) as u32,
            lease_may_follow: false,
        };
        let (bdev, device) = (open.bdev.clone(), device.key);
        Ok((channel, grant, Granted { connection, pid, bdev, device, lease, ring, drive }, fds))
    }

    /// The worker has the channel from now on.
    fn take_up(
        &mut self,
        channel: ChannelKey,
        granted: Granted,
        grant: &mut ChannelGrant,
    ) -> Result<(), Failure> {
        let Some(device) = self.registry.same_device(&granted.bdev, granted.device) else {
            return Err(Failure::not_found(format!("bdev \"{}\" is gone", granted.bdev)));
        };
        // It may have grown meanwhile.
        grant.size_bytes = device.size;
        self.channels.insert(channel, granted);
        Ok(())
    }

    /// Takes a channel of this connection out.
    fn take_channel(
        &mut self,
        connection: ConnectionId,
        channel: ChannelKey,
    ) -> Result<Granted, Failure> {
        match self.channels.entry(channel) {
            Entry::Occupied(entry) if entry.get().connection == connection => Ok(entry.remove()),
            Entry::Occupied(_) | Entry::Vacant(_) => {
                Err(Failure::not_found(format!("there is no channel {channel}")))
            }
        }
    }

    /// Takes all channels of a connection out; how many. Their leases are free once their process is dead.
    fn drop_connection(&mut self, connection: ConnectionId) -> usize {
        let gone = self.channels.extract_if(|_, granted| granted.connection == connection);
        let mut count = 0;
        for (_, granted) in gone {
            count += 1;
            let device = self.registry.same_device(&granted.bdev, granted.device);
            if let Some(Device { kind: Kind::Malloc { leases, .. }, .. }) = device
                && let Some(number) = granted.lease
            {
                leases.set_aside(number, granted.pid);
            }
        }
        count
    }

    /// The connections over which a worker had channels.
    ///
    /// # Errors
    /// A predecessor may have something under way: this process does not have its devices yet.
    fn connections_of(&self, asked: &AwaitDrained) -> Result<Vec<ConnectionId>, Failure> {
        if !self.applied {
            return Err(Failure::unavailable("waiting for the manager"));
        }
        if let Some(bdev) = asked.bdevs.iter().find(|&bdev| self.locked.contains(bdev)) {
            return Err(Failure::unavailable(format!(
                "bdev \"{bdev}\" is locked or held by another process"
            )));
        }
        let of_worker = self.workers.iter().filter(|&(_, worker)| *worker == asked.worker);
        Ok(of_worker.map(|(&connection, _)| connection).collect())
    }

    /// The worker has the channel's lease no more. A device of the same name that came later has numbers of its own.
    fn return_lease(&mut self, granted: &Granted) {
        let device = self.registry.same_device(&granted.bdev, granted.device);
        if let Some(Device { kind: Kind::Malloc { memory, leases }, .. }) = device
            && let Some(number) = granted.lease
        {
            leases.give_back(number, memory);
        }
    }

    /// Frees the lease numbers of dead workers; whether some are left that are not proven dead.
    fn reap(&mut self) -> bool {
        let left = self.registry.reap_leases();
        self.reaping &= left;
        left
    }
}

type AnswerResult = Result<Answer, Failure>;

impl Handler for Backend {
    async fn handle(&self, mut request: Incoming) -> AnswerResult {
        let body = std::mem::replace(
            &mut request.body,
            request::Body::GetStatus(vireo_proto::handoff::GetStatus {}),
        );
        let connection = request.connection;
        match body {
            request::Body::OpenChannel(open) => self.open_channel(&mut request, open).await,
            request::Body::CloseChannel(close) => {
                self.close_channel(connection, close.channel_id).await
            }
            request::Body::AddRegion(add) => self.add_region(&mut request, add).await,
            request::Body::RemoveRegion(remove) => self.remove_region(connection, remove).await,
            request::Body::AwaitDrained(asked) => self.await_drained(asked).await,
            request::Body::DescribeBdev(describe) => {
                let info = self.state().registry.describe(&describe.bdev)?;
                Ok(Answer::new(reply::Body::BdevInfo(info)))
            }
            request::Body::EraseBdev(erase) => self.maintain(&erase.bdev, Maintenance::Erase).await,
            request::Body::FlushBdev(flush) => self.maintain(&flush.bdev, Maintenance::Flush).await,
            request::Body::ApplyBdevs(wanted) => self.apply(wanted).await,
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(self.status())))
            }
            request::Body::AttachController(_)
            | request::Body::SetVectors(_)
            | request::Body::DetachController(_)
            | request::Body::ApplyTargets(_)
            | request::Body::ReadTelemetry(_)
            | request::Body::SetTracePolicy(_)
            | request::Body::ReadEndpoint(_)
            | request::Body::StartCapture(_)
            | request::Body::ReadCapture(_)
            | request::Body::SetFaults(_)
            | request::Body::PauseEndpoint(_)
            | request::Body::ResumeEndpoint(_)
            | request::Body::PauseNamespace(_)
            | request::Body::ResumeNamespace(_)
            | request::Body::ReadNamespace(_)
            | request::Body::Reload(_) => Err(Failure::unsupported()),
        }
    }

    async fn disconnected(&self, connection: ConnectionId) {
        let gone = self.state().drop_connection(connection);
        // The loop's end ends every channel anyway.
        self.serve.send(Command::Disconnect { connection }).await.ok();
        if gone > 0 {
            info!(channels = gone, "a worker's connection closed, its channels end");
            self.reap();
        }
        if self.state().workers.contains_key(&connection) {
            // This end is closed after it: a worker that lives takes that for the end of all that it asked.
            let connections = vec![connection];
            let command = |done| Command::AwaitDrained { connections, controller: None, done };
            self.serve.ask(command).await.ok();
            self.state().workers.remove(&connection);
        }
    }
}

/// What kind of channel a worker gets, with its lease number and the descriptors that come first. Of a drive it is a ring,
/// until there is a queue pair beside it.
fn choose(
    device: &mut Device,
    force_ring: bool,
    process: i32,
) -> Result<(ChannelKind, Option<usize>, Vec<OwnedFd>), Failure> {
    let leased = device.leased() && !force_ring;
    match &mut device.kind {
        Kind::Null { .. } if leased => Ok((ChannelKind::LeaseNull, None, Vec::new())),
        Kind::Malloc { memory, leases } if leased => {
            // With all numbers taken, a ring serves as well.
            let Some(number) = leases.grant(process, memory) else { return Ok(RING) };
            let fd = memory.fd().try_clone_to_owned().map_err(|source| {
                leases.give_back(number, memory);
                failure(&Error::io("dup device memory", source))
            })?;
            Ok((ChannelKind::LeaseMalloc, Some(number), vec![fd]))
        }
        Kind::Null { .. } | Kind::Malloc { .. } | Kind::File { .. } | Kind::Nvme { .. } => Ok(RING),
    }
}

const RING: (ChannelKind, Option<usize>, Vec<OwnedFd>) = (ChannelKind::Ring, None, Vec::new());

fn item(kind: &str, name: &str, message: String) -> StatusItem {
    let state = "ready".to_owned();
    StatusItem { kind: kind.to_owned(), name: name.to_owned(), state, message, paused: false }
}

/// Locks what no panic can leave half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
