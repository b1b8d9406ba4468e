//! Opens a channel to a namespace's block device, and watches over the backend that it leads to.

#[cfg(test)]
mod tests;

use super::attached::{Opened, Unclaimed, asked_in};
use super::{Control, not_attached};
use crate::controller::Change;
use crate::namespaces::address;
use bdev::channel::{AnyChannel, Geometry};
use bdev::malloc::MallocChannel;
use bdev::null::NullChannel;
use bdev::nvme::{DriveLease, LeaseWatch, LeasedDrive};
use bdev::ring::client::{RingChannel, RingWatch};
use ipc::device_memory::DeviceMemory;
use ipc::event::EventFd;
use ipc::segment::Segment;
use service::control::{Answer, Session};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use telemetry::limit::Limit;
use telemetry::spans::{self, Context};
use vireo_proto::handoff::{AwaitDrained, ChannelGrant, ChannelKind, OpenChannel, reply, request};
use vireo_proto::{Failure, id_to_bytes};

/// First pause before another attempt; doubled up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause before another attempt.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long an attempt waits for the backend to be there, and after how long it says that there is no answer yet.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks whether a lease was taken back, or may be had: a poll thread that uses it sees that at once, this is for
/// one that does not, and whose mapping of the doorbells keeps a drive from being removed.
const LEASE_LOOK: Duration = Duration::from_millis(200);
/// As long as it takes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The channel that is wanted.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    /// The controller.
    pub id: u128,
    /// The namespace's row.
    pub row: usize,
    /// The row's generation.
    pub generation: u32,
    /// Not a lease.
    pub force_ring: bool,
}

/// Opens the channel, however often it takes, unless the namespace goes.
pub(super) async fn open(control: Arc<Control>, wanted: Wanted) {
    let mut pause = MIN_PAUSE;
    while let Some((backend, bdev)) = names(&control, &wanted) {
        // The first attempt is a part of what had the namespace made; later ones have other causes.
        let asked_in = control.first_of(&wanted);
        let attempt = attempt(&control, &wanted, &backend, &bdev);
        match spans::within(asked_in, attempt).await {
            Ok(open) => {
                let task = watch(Arc::clone(&control), wanted, open, (backend, bdev));
                // On its own: it goes on while the controller is let go of, which waits for what is in flight.
                if let Some(attached) = control.controllers().get_mut(&wanted.id) {
                    while attached.watchers.try_join_next().is_some() {}
                    attached.watchers.spawn(task);
                }
                return;
            }
            Err(failure) => {
                static LIMIT: Limit = Limit::per_second(5);
                if let Some(suppressed) = LIMIT.pass() {
                    let reason = failure.message();
                    tracing::warn!(bdev, backend, reason, suppressed, "no channel yet");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Backend and bdev of the namespace, if it is still the one.
fn names(control: &Control, wanted: &Wanted) -> Option<(String, String)> {
    let controllers = control.controllers();
    let row = controllers.get(&wanted.id)?.layout.namespaces.get(wanted.row)?;
    // Acquire: pairs with the frontend's Release; the row's other fields are written.
    let there = row.state.load(Ordering::Acquire) == 1;
    let same = row.generation.load(Ordering::Relaxed) == wanted.generation;
    (there && same).then(|| (row.backend.load(), row.bdev.load()))
}

impl Control {
    /// Where in which trace the namespace was asked for, when this is asked for the first time.
    fn first_of(&self, wanted: &Wanted) -> Option<Context> {
        let mut controllers = self.controllers();
        let attached = controllers.get_mut(&wanted.id)?;
        let context = asked_in(&attached.layout, wanted.row)?;
        let before = attached.asked_in.insert(wanted.row, context);
        (before != Some(context)).then_some(context)
    }
}

/// An open channel.
struct Open {
    /// What it hangs on.
    session: Session,
    channel: usize,
    /// The backend's number for it.
    number: u64,
    lease: Lease,
}

/// Whether a drive's queue pair goes with a channel.
enum Lease {
    None,
    Held(LeaseWatch),
    /// There was none to be had.
    Awaited(RingWatch),
}

impl Lease {
    /// Returns when another channel is to be asked for.
    async fn changed(self) {
        let changed = || match &self {
            Lease::None => false,
            Lease::Held(lease) => lease.is_over(),
            Lease::Awaited(ring) => ring.is_superseded(),
        };
        if matches!(self, Lease::None) {
            std::future::pending::<()>().await;
        }
        while !changed() {
            tokio::time::sleep(LEASE_LOOK).await;
        }
    }
}

/// One attempt.
async fn attempt(
    control: &Control,
    wanted: &Wanted,
    backend: &str,
    bdev: &str,
) -> Result<Open, Failure> {
    let internal = |error: service::control::ControlError| Failure::unavailable(error.line());
    let session = control.backend(backend).session(PATIENCE).await.map_err(internal)?;
    let (grant, fds, unclaimed) = ask(control, wanted, bdev, &session, PATIENCE).await?;
    let channel = channel(&grant, fds)?;
    let lease = match &channel {
        AnyChannel::Drive(drive) => Lease::Held(drive.watch()),
        AnyChannel::Ring(ring) if grant.lease_may_follow => {
            Lease::Awaited(ring.watch().map_err(|error| Failure::internal(&error))?)
        }
        _ => Lease::None,
    };
    let channel = Box::new(match &control.faults {
        Some(faults) => faults.before(bdev, channel),
        None => channel,
    });
    if grant.has_ring {
        let share = {
            let mut controllers = control.controllers();
            controllers.get_mut(&wanted.id).map(|attached| attached.share(backend))
        };
        let shared = match share {
            Some(share) => share.connect(control, wanted.id, &session).await,
            None => false,
        };
        if !shared {
            return Err(Failure::unavailable("the backend did not take the client's memory"));
        }
    }
    let address = address(&channel);
    {
        let mut controllers = control.controllers();
        let attached = controllers.get_mut(&wanted.id).ok_or_else(|| not_attached(wanted.id))?;
        attached.channels.extend(unclaimed.claim().map(|opened| (address, opened)));
    }
    control.change(wanted.id, Change::Channel(wanted.row, wanted.generation, channel)).await?;
    Ok(Open { session, channel: address, number: grant.channel_id, lease })
}

/// Asks for the channel in a task of its own: clients come and go as they like, and an answer that nobody waits for any
/// more would leave the channel, and the lease that goes with it, granted for as long as this process lives. For the same
/// reason the answer is waited for however long it takes, as long as the namespace is there: to ask again would only
/// put a second question behind the first.
async fn ask(
    control: &Control,
    wanted: &Wanted,
    bdev: &str,
    session: &Session,
    patience: Duration,
) -> Result<(ChannelGrant, Vec<OwnedFd>, Unclaimed), Failure> {
    let body = request::Body::OpenChannel(OpenChannel {
        controller_id: id_to_bytes(wanted.id),
        bdev: bdev.to_owned(),
        force_ring: wanted.force_ring,
    });
    let kick = control.kick.try_clone().map_err(|error| Failure::internal(&error))?;
    let session = session.clone();
    let mut task = tokio::spawn(spans::within(spans::current(), async move {
        let answer = session.call_within(FOREVER, body, &[kick.as_fd()]).await;
        match answer.map_err(|error| Failure::unavailable(error.line()))? {
            Answer { body: reply::Body::ChannelGrant(grant), fds } => {
                let opened = Opened { channel_id: grant.channel_id, session };
                Ok((grant, fds, Unclaimed::new(opened)))
            }
            _ => Err(Failure::unavailable("the backend answered something else than a channel")),
        }
    }));
    loop {
        match tokio::time::timeout(patience, &mut task).await {
            Ok(ended) => return ended.unwrap_or_else(|error| Err(Failure::internal(&error))),
            Err(_) if names(control, wanted).is_none() => {
                return Err(Failure::not_found("the namespace is gone"));
            }
            Err(_) => {
                static LIMIT: Limit = Limit::per_second(5);
                if let Some(suppressed) = LIMIT.pass() {
                    tracing::warn!(bdev, suppressed, "the backend has not answered yet");
                }
            }
        }
    }
}

/// The channel that was granted. Descriptors come in the order of [`ChannelGrant`].
fn channel(grant: &ChannelGrant, fds: Vec<OwnedFd>) -> Result<AnyChannel, Failure> {
    let geometry = Geometry { size: grant.size_bytes, read_only: grant.read_only };
    let mut fds = fds.into_iter();
    let drive = match grant.kind() {
        ChannelKind::LeaseDrive => {
            Some(DriveLease::open(&mut fds).map_err(|error| Failure::internal(&error))?)
        }
        _ => None,
    };
    let mut next = || fds.next().ok_or_else(|| Failure::unavailable("a descriptor is missing"));
    let memory = match grant.kind() {
        ChannelKind::LeaseMalloc => Some(next()?),
        ChannelKind::LeaseNull
        | ChannelKind::LeaseDrive
        | ChannelKind::Ring
        | ChannelKind::Unspecified => None,
    };
    let ring = match grant.has_ring {
        true => Some(ring(next()?, next()?, geometry)?),
        false => None,
    };
    match (grant.kind(), memory, ring) {
        (ChannelKind::LeaseNull, _, _) => {
            Ok(AnyChannel::Null(NullChannel::new(geometry, grant.latency_ns)))
        }
        (ChannelKind::LeaseMalloc, Some(memory), ring) => {
            let memory = DeviceMemory::open(memory).map_err(|error| Failure::internal(&error))?;
            let number = grant.lease_number as usize;
            MallocChannel::lease(Arc::new(memory), grant.read_only, number, ring)
                .map(AnyChannel::Malloc)
                .map_err(|error| Failure::internal(&error))
        }
        (ChannelKind::Ring, _, Some(ring)) => Ok(AnyChannel::Ring(ring)),
        (ChannelKind::LeaseDrive, _, Some(ring)) => match drive {
            Some(drive) => Ok(AnyChannel::Drive(Box::new(LeasedDrive::new(drive, ring, geometry)))),
            None => Err(Failure::unavailable("a descriptor is missing")),
        },
        (
            ChannelKind::LeaseMalloc
            | ChannelKind::LeaseDrive
            | ChannelKind::Ring
            | ChannelKind::Unspecified,
            ..,
        ) => Err(Failure::unavailable("the backend granted a channel of an unknown kind")),
    }
}

fn ring(segment: OwnedFd, kick: OwnedFd, geometry: Geometry) -> Result<RingChannel, Failure> {
    let segment = Segment::open(segment).map_err(|error| Failure::internal(&error))?;
    let kick = EventFd::from_client(kick).map_err(|error| Failure::internal(&error))?;
    RingChannel::new(segment, kick, geometry).map_err(|error| Failure::internal(&error))
}

/// Waits until the backend is gone, has taken the lease back or may grant the one it refused, then tells the poll thread, which
/// asks for another channel; and of a backend that is gone once more, when nothing of what the channel had outstanding is under way.
async fn watch(
    control: Arc<Control>,
    wanted: Wanted,
    open: Open,
    (backend, bdev): (String, String),
) {
    let Open { session, channel, number, lease } = open;
    tokio::select! {
        () = session.closed() => {
            static LIMIT: Limit = Limit::per_second(5);
            if names(&control, &wanted).is_some()
                && let Some(suppressed) = LIMIT.pass()
            {
                tracing::warn!(backend = session.peer(), suppressed, "backend gone");
            }
        }
        () = lease.changed() => {}
    }
    // A channel that was closed since is nobody's any more, and its address may be another's, of which anything may be under
    // way.
    let ours = |opened: &Opened| opened.session.is(&session) && opened.channel_id == number;
    let is_open = || {
        let controllers = control.controllers();
        let attached = controllers.get(&wanted.id);
        attached.is_some_and(|attached| attached.channels.get(&channel).is_some_and(ours))
    };
    if !is_open() {
        return;
    }
    control.change(wanted.id, Change::BackendGone(wanted.row, channel)).await.ok();
    if session.is_closed() {
        ended(&control, wanted.id, &session, &backend, bdev).await;
        if is_open() {
            control.change(wanted.id, Change::BackendEnded(wanted.row, channel)).await.ok();
        }
    }
}

/// Waits until nothing is under way of what came over a closed connection to a backend: a process that lives closes its
/// end of it then, and the successor of a dead one has its devices when the kernel has let go of them.
async fn ended(control: &Control, id: u128, session: &Session, backend: &str, bdev: String) {
    session.gone().await;
    let (controller_id, worker) = (id_to_bytes(id), String::new());
    let asked = AwaitDrained { controller_id, worker, bdevs: vec![bdev] };
    let mut pause = MIN_PAUSE;
    loop {
        let answer = async {
            let session = control.backend(backend).session(PATIENCE).await?;
            session.tell(request::Body::AwaitDrained(asked.clone()), &[]).await
        };
        match answer.await {
            Ok(_) => return,
            Err(error) => {
                static LIMIT: Limit = Limit::per_second(1);
                if let Some(suppressed) = LIMIT.pass() {
                    let error = error.line();
                    tracing::warn!(backend, error, suppressed, "requests may still be under way");
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
