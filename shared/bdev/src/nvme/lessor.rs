//! The control thread's part of leases: queue pairs made for workers, taken away when the drive is reset, deleted when a
//! worker lets go or is gone.
//!
//! A queue's identifier is not used again as long as a worker that had it might still ring its doorbell: until it said
//! that it does not, or its process is dead.

mod alarm;
mod holder;
mod quarantine;

use self::alarm::Alarm;
use self::holder::is_dead;
use super::drive::{Drive, refused};
use super::terms::Terms;
use crate::error::{Error, ErrorKind};
use ipc::layout::drive_lease::{DriveLeaseLayout, lease_state};
use ipc::segment::Segment;
use nvme_driver::transport::vfio::Holder;
use nvme_driver::{BareQueue, Controller, QueueOptions};
use nvme_spec::{CommandId, QueueId};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub(super) use quarantine::Quarantine;

/// Commands that a worker has with the drive at a time, if the drive takes so many.
const DEPTH: u16 = 256;
/// Buffers of a lease for data that cannot go as it lies, and the bytes of each.
const BUFFERS: usize = 4;
const BUFFER: usize = 128 << 10;

/// A lease to be handed over: its descriptors, in the order in which [`super::DriveLease::open`] takes them.
#[derive(Debug)]
pub struct LeaseOffer {
    /// The segment, the queues' memory, the doorbells; then, if the segment says so, the shadow doorbells and the event of
    /// its interrupts.
    pub fds: Vec<OwnedFd>,
}

/// All leases of a device.
#[derive(Default)]
pub(super) struct Lessor {
    leases: Vec<Lease>,
    /// Queue pairs that are deleted, and whose identifiers are not free yet.
    graves: Graves,
    /// It was said that there are not vectors enough.
    said: bool,
}

/// Queue pairs that are deleted, and whose identifiers are not free yet.
#[derive(Default)]
pub(super) struct Graves(Vec<Lease>);

struct Lease {
    id: u64,
    queue: BareQueue,
    controller: Controller,
    segment: Arc<Segment<DriveLeaseLayout>>,
    holder: Holder,
    word: u32,
    alarm: Alarm,
}

/// What a look at the leases finds.
#[derive(Default)]
pub(super) struct Found {
    /// A command that is to be aborted.
    pub aborts: Vec<(QueueId, CommandId)>,
    /// Commands are not answered though aborted.
    pub hang: bool,
    /// Queue pairs that others may have now.
    pub freed: bool,
    /// A queue pair could not be made again.
    pub failed: Option<nvme_driver::Error>,
}

impl Lessor {
    /// Makes a queue pair for a worker.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if the drive grants no further one, others as it answers.
    pub fn grant(
        &mut self,
        controller: &Controller,
        drive: &Drive,
        id: u64,
        holder: i32,
    ) -> Result<(Arc<Segment<DriveLeaseLayout>>, LeaseOffer), Error> {
        let failed = |error| refused(controller.address(), error);
        // A multiple of every block; no longer than one command carries.
        let len = usize::try_from(drive.data_max).map_or(BUFFER, |most| most.min(BUFFER));
        let len = len & !(drive.block() as usize - 1);
        let room = drive.page as usize + BUFFERS * len;
        let interrupt = controller.wants_interrupts();
        let options = QueueOptions { depth: DEPTH, interrupt };
        let queue = controller.lendable_queue(&options, room).map_err(failed)?;
        if interrupt && queue.event().is_none() && !std::mem::replace(&mut self.said, true) {
            let (drive, vectors) = (controller.address(), controller.vectors());
            tracing::warn!(
                drive,
                vectors,
                "a worker's queue pair has no interrupt vector to itself: it is polled while commands are outstanding"
            );
        }
        let lease = queue.lease().map_err(failed)?;
        let segment = Segment::<DriveLeaseLayout>::create("drive-lease", u128::from(id));
        let segment = segment.map_err(|source| Error {
            kind: ErrorKind::Internal,
            what: "make a lease segment".to_owned(),
            source: Some(Box::new(source)),
        })?;
        let terms = Terms {
            queue: lease.terms,
            drive: *drive,
            shadow: lease.shadow.is_some(),
            event: lease.event.is_some(),
            buffers: BUFFERS,
            buffer_len: len,
        };
        terms.write(&segment.terms);
        let fd = segment.fd().try_clone_to_owned();
        let fd = fd.map_err(|error| Error::io("dup a lease segment", error))?;
        let always = [fd, lease.memory, lease.doorbells];
        let fds = always.into_iter().chain(lease.shadow).chain(lease.event).collect();
        let holder = holder::holder(holder);
        // Before the worker has it.
        if let Some(keeping) = controller.keeping()
            && let Err(error) = keeping.lend(queue.id(), holder, segment.fd())
        {
            let (drive, qid) = (controller.address(), queue.id());
            tracing::warn!(drive, %qid, %error, "a lease is not kept: a successor uses its queue pair only when the worker has ended");
        }
        let segment = Arc::new(segment);
        let (word, alarm) = (lease_state::UP, Alarm::new(queue.event().is_some()));
        let (ours, controller) = (Arc::clone(&segment), controller.clone());
        self.leases.push(Lease { id, queue, controller, segment: ours, holder, word, alarm });
        Ok((segment, LeaseOffer { fds }))
    }

    /// Ends a lease: when this succeeds, the drive does nothing of it any more.
    ///
    /// # Errors
    /// The drive did not delete the queues; after a reset, this succeeds.
    pub fn revoke(&mut self, id: u64) -> Result<(), nvme_driver::Error> {
        let Some(index) = self.leases.iter().position(|lease| lease.id == id) else {
            return Ok(());
        };
        if let Some(lease) = self.leases.get_mut(index) {
            lease.set(lease_state::DOWN);
            lease.queue.delete()?;
            lease.set(lease_state::OVER);
        }
        let lease = self.leases.swap_remove(index);
        self.graves.0.push(lease);
        self.graves.bury();
        Ok(())
    }

    /// The numbers of all leases.
    pub fn ids(&self) -> Vec<u64> {
        self.leases.iter().map(|lease| lease.id).collect()
    }

    /// The drive is gone, or was shut down: all leases are over.
    pub fn end_all(&mut self) {
        for lease in &mut self.leases {
            lease.set(lease_state::OVER);
        }
        self.graves.0.append(&mut self.leases);
    }

    /// Whether commands of a lease are with the drive.
    pub fn is_busy(&self) -> bool {
        // Relaxed: only decides how often to look.
        self.leases.iter().any(|lease| lease.segment.holder.busy.load(Ordering::Relaxed) != 0)
    }

    /// Sees to what holders say, and to leases that a reset took.
    pub fn look(&mut self) -> Found {
        let mut found = Found::default();
        for lease in &mut self.leases {
            let holder = &lease.segment.holder;
            if let Some(command) = holder.abort.swap(0, Ordering::Relaxed).checked_sub(1) {
                found.aborts.push((lease.queue.id(), CommandId(command as u16)));
            }
            found.hang |= holder.hang.swap(0, Ordering::Relaxed) != 0;
            if !lease.queue.is_stale() {
                lease.alarm.look(&lease.segment, |on| lease.queue.set_interrupting(on));
                continue;
            }
            if lease.word & lease_state::MASK == lease_state::UP {
                lease.set(lease_state::DOWN);
            }
            if lease.is_obeyed() {
                match lease.queue.renew() {
                    Ok(()) => lease.set(lease_state::UP),
                    Err(error) => found.failed = Some(error),
                }
            }
        }
        found.freed = self.graves.bury();
        found
    }

    /// Lets go of queue pairs that nobody can ring for any more; whether there were some.
    pub fn bury(&mut self) -> bool {
        self.graves.bury()
    }

    /// What is left to be buried, when the device goes.
    pub fn take_graves(&mut self) -> Graves {
        std::mem::take(&mut self.graves)
    }
}

impl Graves {
    /// As [`Lessor::bury`].
    pub fn bury(&mut self) -> bool {
        let before = self.0.len();
        self.0.retain(|lease| {
            let held = !(lease.is_obeyed() || is_dead(lease.holder));
            if !held && let Some(keeping) = lease.controller.keeping() {
                // Before anybody else may have its identifier.
                keeping.release(lease.queue.id());
            }
            held
        });
        self.0.len() < before
    }

    /// Those of another device, too.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

impl Lease {
    /// Goes into a state, for the first time or another time.
    fn set(&mut self, state: u32) {
        let times = self.word & !lease_state::MASK;
        let times = match state {
            lease_state::DOWN => times.wrapping_add(lease_state::STEP),
            _ => times,
        };
        self.word = times | state;
        // Release: pairs with the holder's Acquire; what it stands for was done before.
        self.segment.lender.state.store(self.word, Ordering::Release);
    }

    /// Whether the holder touches the queue pair no more, as it was last told.
    fn is_obeyed(&self) -> bool {
        // Acquire: pairs with the holder's Release.
        let obeyed = self.segment.holder.obeyed.load(Ordering::Acquire);
        obeyed == self.word || obeyed == u32::MAX
    }
}
