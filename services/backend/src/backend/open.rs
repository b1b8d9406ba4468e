//! Channels opened and closed for workers: a ring, and what goes beside it.

use super::{AnswerResult, Backend, Granted, RING_DEPTH, WAIT};
use crate::registry::{failure, unanswered};
use crate::serve::{ChannelKey, Command, Owner};
use bdev::error::Error;
use bdev::nvme::{LeaseAnswer, LeaseOffer};
use bdev::ring::create_segment;
use bdev::ring::server::RingServer;
use ipc::event::EventFd;
use service::control::{Answer, ConnectionId, Incoming};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::oneshot;
use tracing::info;
use vireo_proto::handoff::{ChannelKind, OpenChannel, reply};
use vireo_proto::{Failure, id_from_bytes};

impl Backend {
    pub(super) async fn open_channel(
        &self,
        incoming: &mut Incoming,
        open: OpenChannel,
    ) -> AnswerResult {
        let controller = id_from_bytes(&open.controller_id)?;
        let [worker] = incoming.take_fds()?;
        let worker = EventFd::from_client(worker).map_err(|error| Failure::internal(&error))?;
        let owner = Owner { connection: incoming.connection, controller };
        let pid = incoming.peer.pid;
        let (channel, mut grant, mut granted, mut fds) = {
            let mut state = self.state();
            state.workers.insert(incoming.connection, incoming.sender.clone());
            state.grant(&open, incoming.connection, pid)?
        };
        if granted.ring {
            match self.add_ring(channel, owner, &granted, worker).await {
                Ok(ring_fds) => fds.extend(ring_fds),
                Err(failure) => {
                    self.state().return_lease(&granted);
                    return Err(failure);
                }
            }
        }
        if granted.drive {
            match self.add_queue_pair(channel, &granted).await {
                Ok(Some(lease_fds)) => {
                    grant.set_kind(ChannelKind::LeaseDrive);
                    fds.splice(0..0, lease_fds);
                }
                Ok(None) => {
                    granted.drive = false;
                    grant.lease_may_follow = true;
                }
                Err(failure) => {
                    self.withdraw(channel);
                    return Err(failure);
                }
            }
        }
        let taken = self.state().take_up(channel, granted, &mut grant);
        if let Err(failure) = taken {
            self.withdraw(channel);
            return Err(failure);
        }
        let kind = grant.kind();
        info!(bdev = open.bdev, worker = incoming.sender, ?kind, channel, "channel opened");
        Ok(Answer::with_fds(reply::Body::ChannelGrant(grant), fds))
    }

    async fn add_ring(
        &self,
        channel: ChannelKey,
        owner: Owner,
        granted: &Granted,
        worker: EventFd,
    ) -> Result<[OwnedFd; 2], Failure> {
        let name = format!("channel-{}", granted.bdev);
        let segment = create_segment(&name, owner.controller, RING_DEPTH);
        let segment = segment.map_err(|error| failure(&error))?;
        let fd = segment.fd().try_clone_to_owned();
        let fd = fd.map_err(|error| failure(&Error::io("dup channel segment", error)))?;
        let kick = self.serve.kick().map_err(|error| Failure::internal(&error))?;
        let mut server = RingServer::new(segment, worker).map_err(|error| failure(&error))?;
        if let Some(tracer) = &self.tracer {
            server = server.traced_by(Arc::clone(tracer));
        }
        let (server, device) = (Box::new(server), granted.device);
        let command = |done| Command::AddChannel { channel, owner, device, server, done };
        match self.serve.ask_within(WAIT, command).await {
            Ok(()) => Ok([fd, kick.into_fd()]),
            Err(why) => {
                self.withdraw(channel);
                Err(unanswered(why, "requests of the controller's earlier channels have not ended"))
            }
        }
    }

    /// A queue pair of the drive for a channel's worker: its descriptors. `None` if there is none to be had, and the ring
    /// serves alone.
    async fn add_queue_pair(
        &self,
        channel: ChannelKey,
        granted: &Granted,
    ) -> Result<Option<Vec<OwnedFd>>, Failure> {
        let holder = granted.pid;
        let command = |done: oneshot::Sender<Result<LeaseOffer, Error>>| {
            let answer: LeaseAnswer = Box::new(move |offer| done.send(offer).is_ok());
            Command::Lease { channel, holder, answer }
        };
        match self.serve.ask_within(WAIT, command).await {
            Ok(Ok(offer)) => Ok(Some(offer.fds)),
            // Also while the drive is lost: the ring fails requests at once, where without a channel they would wait.
            Ok(Err(error)) => {
                let reason = Failure::internal(&error);
                let (bdev, reason) = (&granted.bdev, reason.message());
                tracing::warn!(bdev, reason, "no queue pair for a worker, a ring serves it");
                Ok(None)
            }
            Err(why) => Err(unanswered(why, "the drive has not made a queue pair in time")),
        }
    }

    /// Has the serve loop forget a channel that no worker got.
    fn withdraw(&self, channel: ChannelKey) {
        let serve = self.serve.clone();
        // Maybe as long as the loop is stuck: nobody waits for it.
        tokio::spawn(async move {
            serve.ask(|done| Command::CloseChannel { channel, done }).await.ok();
        });
    }

    pub(super) async fn close_channel(
        &self,
        connection: ConnectionId,
        channel: ChannelKey,
    ) -> AnswerResult {
        let granted = {
            let mut state = self.state();
            let granted = state.take_channel(connection, channel)?;
            // The worker writes no more. What its ring has under way is the backend's own doing.
            state.return_lease(&granted);
            granted
        };
        if granted.ring {
            let command = |done| Command::CloseChannel { channel, done };
            let closed = self.serve.ask_within(WAIT, command).await;
            closed.map_err(|why| unanswered(why, "requests of the channel have not ended"))?;
        }
        Ok(Answer::done())
    }
}
