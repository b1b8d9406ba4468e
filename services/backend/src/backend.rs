//! Answers the handoff's requests: devices for the manager and the frontends, channels and guest memory for workers.

use crate::registry::{Device, Kind, Maintenance, Registry, failure, stopped};
use crate::serve::{ChannelKey, Command, Handle, Owner};
use bdev::error::Error;
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionPolicy};
use nix::unistd::Pid;
use service::control::{Answer, ConnectionId, Handler, Incoming};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::Mutex;
use tracing::info;
use vireo_proto::handoff::{
    AddRegion, ChannelGrant, ChannelKind, OpenChannel, ProcessStatus, RemoveRegion, StatusItem,
    reply, request,
};
use vireo_proto::{Failure, id_from_bytes};

/// Requests that a ring holds.
const RING_DEPTH: usize = 256;
/// Most channels of one worker: every namespace of as many controllers as it can hold.
const MAX_CHANNELS: usize = 4096;
/// Pause between two looks whether a worker's process is gone.
const REAP_PAUSE: Duration = Duration::from_millis(20);

/// The backend.
pub struct Backend {
    name: String,
    serve: Handle,
    state: Mutex<State>,
}

struct State {
    registry: Registry,
    channels: HashMap<ChannelKey, Granted>,
    next_channel: ChannelKey,
    /// False until the manager has told what is wanted.
    applied: bool,
}

/// A channel that a worker has.
struct Granted {
    connection: ConnectionId,
    pid: i32,
    bdev: String,
    lease: Option<usize>,
    ring: bool,
}

impl Backend {
    /// A backend of this name over a running serve loop.
    pub fn new(name: String, serve: Handle, registry: Registry) -> Self {
        let (channels, next_channel, applied) = (HashMap::new(), 1, false);
        let state = Mutex::new(State { registry, channels, next_channel, applied });
        Self { name, serve, state }
    }

    async fn open_channel(&self, incoming: &mut Incoming, open: OpenChannel) -> AnswerResult {
        let controller = id_from_bytes(&open.controller_id)?;
        let [worker] = incoming.take_fds()?;
        let worker = EventFd::from_client(worker).map_err(|error| Failure::internal(&error))?;
        let owner = Owner { connection: incoming.connection, controller };
        let mut state = self.state.lock().await;
        let State { registry, channels, next_channel, .. } = &mut *state;
        let mine = channels.values().filter(|other| other.connection == owner.connection).count();
        if mine >= MAX_CHANNELS {
            return Err(Failure::exhausted(format!("{mine} channels are open already")));
        }
        let device = registry.device_mut(&open.bdev)?;
        let channel = *next_channel;
        *next_channel += 1;
        let (kind, lease, mut fds) = choose(device, open.force_ring, incoming.peer.pid)?;
        let has_ring = kind != ChannelKind::LeaseNull;
        if has_ring {
            match self.add_ring(channel, owner, device, worker).await {
                Ok(ring_fds) => fds.extend(ring_fds),
                Err(failure) => {
                    return_lease(device, lease);
                    return Err(failure);
                }
            }
        }
        let latency_ns = match device.kind {
            Kind::Null { latency } => latency,
            Kind::Malloc { .. } | Kind::File { .. } => 0,
        };
        let grant = ChannelGrant {
            kind: kind.into(),
            channel_id: channel,
            size_bytes: device.size,
            block_size: device.wanted.block_size,
            read_only: device.read_only(),
            latency_ns,
            has_ring,
            lease_number: lease.unwrap_or(0) as u32,
        };
        let entry = Granted {
            connection: incoming.connection,
            pid: incoming.peer.pid,
            bdev: open.bdev.clone(),
            lease,
            ring: has_ring,
        };
        channels.insert(channel, entry);
        info!(bdev = open.bdev, worker = incoming.sender, ?kind, channel, "channel opened");
        Ok(Answer::with_fds(reply::Body::ChannelGrant(grant), fds))
    }

    async fn add_ring(
        &self,
        channel: ChannelKey,
        owner: Owner,
        device: &Device,
        worker: EventFd,
    ) -> Result<[OwnedFd; 2], Failure> {
        let name = format!("channel-{}", device.wanted.name);
        let segment = create_segment(&name, owner.controller, RING_DEPTH);
        let segment = segment.map_err(|error| failure(&error))?;
        let fd = segment.fd().try_clone_to_owned();
        let fd = fd.map_err(|error| failure(&Error::io("dup channel segment", error)))?;
        let kick = self.serve.kick().map_err(|error| Failure::internal(&error))?;
        let server = RingServer::new(segment, worker).map_err(|error| failure(&error))?;
        let (server, device) = (Box::new(server), device.key);
        let added =
            self.serve.ask(|done| Command::AddChannel { channel, owner, device, server, done });
        added.await.map_err(stopped)?;
        Ok([fd, kick.into_fd()])
    }

    async fn close_channel(&self, connection: ConnectionId, channel: ChannelKey) -> AnswerResult {
        let mut state = self.state.lock().await;
        let State { registry, channels, .. } = &mut *state;
        let known = channels.get(&channel).is_some_and(|entry| entry.connection == connection);
        let granted = match channels.remove(&channel) {
            Some(granted) if known => granted,
            other => {
                channels.extend(other.map(|entry| (channel, entry)));
                return Err(Failure::not_found(format!("there is no channel {channel}")));
            }
        };
        if granted.ring {
            let closed = self.serve.ask(|done| Command::CloseChannel { channel, done });
            closed.await.map_err(stopped)?;
        }
        if let Ok(device) = registry.device_mut(&granted.bdev) {
            return_lease(device, granted.lease);
        }
        Ok(Answer::done())
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
        let added = self.serve.ask(|done| Command::AddRegion { owner, id, region, done }).await;
        match added.map_err(stopped)? {
            true => Ok(Answer::done()),
            false => Err(Failure::invalid(format!("there is no region id {}", add.region_id))),
        }
    }

    async fn remove_region(&self, connection: ConnectionId, remove: RemoveRegion) -> AnswerResult {
        let owner = Owner { connection, controller: id_from_bytes(&remove.controller_id)? };
        let id = RegionId(remove.region_id);
        let removed = self.serve.ask(|done| Command::RemoveRegion { owner, id, done }).await;
        // Unmapped here, before the answer.
        drop(removed.map_err(stopped)?);
        Ok(Answer::done())
    }

    async fn status(&self) -> ProcessStatus {
        let mut state = self.state.lock().await;
        let State { registry, channels, applied, .. } = &mut *state;
        let bdevs = registry.devices().map(|device| {
            let size = service::config::format_size(device.size);
            item("bdev", &device.wanted.name, format!("{} {size}", device.driver()))
        });
        let mut items: Vec<StatusItem> = bdevs.collect();
        let mut sorted: Vec<_> = channels.iter().collect();
        sorted.sort_by_key(|(key, _)| **key);
        items.extend(sorted.into_iter().map(|(key, channel)| {
            let kind = if channel.lease.is_some() || !channel.ring { "lease" } else { "ring" };
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

    async fn maintain(&self, name: &str, what: Maintenance) -> AnswerResult {
        let errand = self.state.lock().await.registry.maintenance(name, what)?;
        errand.run().await?;
        Ok(Answer::done())
    }

    /// Frees the lease numbers of dead workers; whether some are left that are not proven dead.
    async fn reap(&self) -> bool {
        self.state.lock().await.registry.reap_leases()
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
            request::Body::DescribeBdev(describe) => {
                let info = self.state.lock().await.registry.describe(&describe.bdev)?;
                Ok(Answer::new(reply::Body::BdevInfo(info)))
            }
            request::Body::EraseBdev(erase) => self.maintain(&erase.bdev, Maintenance::Erase).await,
            request::Body::FlushBdev(flush) => self.maintain(&flush.bdev, Maintenance::Flush).await,
            request::Body::ApplyBdevs(wanted) => {
                let mut state = self.state.lock().await;
                let result = state.registry.apply(wanted).await?;
                state.applied = true;
                Ok(Answer::new(reply::Body::ApplyResult(result)))
            }
            request::Body::GetStatus(_) => {
                Ok(Answer::new(reply::Body::ProcessStatus(self.status().await)))
            }
            request::Body::AttachController(_)
            | request::Body::SetVectors(_)
            | request::Body::DetachController(_)
            | request::Body::ApplyTargets(_)
            | request::Body::Reload(_) => Err(Failure::unsupported()),
        }
    }

    async fn disconnected(&self, connection: ConnectionId) {
        let mut state = self.state.lock().await;
        let State { registry, channels, .. } = &mut *state;
        let gone: Vec<ChannelKey> = channels
            .iter()
            .filter(|(_, granted)| granted.connection == connection)
            .map(|(&key, _)| key)
            .collect();
        for granted in gone.iter().filter_map(|key| channels.remove(key)) {
            let Ok(device) = registry.device_mut(&granted.bdev) else { continue };
            if let (Kind::Malloc { leases, .. }, Some(number)) = (&mut device.kind, granted.lease) {
                leases.set_aside(number, granted.pid);
            }
        }
        drop(state);
        // The loop's end ends every channel anyway.
        self.serve.send(Command::Disconnect { connection }).await.ok();
        if !gone.is_empty() {
            info!(channels = gone.len(), "a worker's connection closed, its channels end");
            while self.reap().await {
                tokio::time::sleep(REAP_PAUSE).await;
            }
        }
    }
}

/// What kind of channel a worker gets, with its lease number and the descriptors that come first.
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
        Kind::Null { .. } | Kind::Malloc { .. } | Kind::File { .. } => Ok(RING),
    }
}

const RING: (ChannelKind, Option<usize>, Vec<OwnedFd>) = (ChannelKind::Ring, None, Vec::new());

fn return_lease(device: &mut Device, lease: Option<usize>) {
    if let (Kind::Malloc { memory, leases }, Some(number)) = (&mut device.kind, lease) {
        leases.give_back(number, memory);
    }
}

fn item(kind: &str, name: &str, message: String) -> StatusItem {
    let state = "ready".to_owned();
    StatusItem { kind: kind.to_owned(), name: name.to_owned(), state, message }
}
