//! The two sides of every call: what the owner hands in, and what it has to carry out.

use crate::namespace::Protection;
use crate::subsystem::Subsystem;
use ipc::doorbell::DoorbellPage;
use ipc::guest_memory::GuestMemory;
use ipc::layout::queues::QueuesLayout;
use ipc::segment::Segment;
use nvme_spec::Nsid;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What a call may look at and change besides the controller.
pub struct Context<'a> {
    /// Time since an arbitrary start; never goes back.
    pub now: Duration,
    /// The client's memory.
    pub memory: &'a mut GuestMemory,
    /// The controller's doorbells.
    pub doorbells: &'a DoorbellPage,
    /// The workers that may serve the controller, by the index that queue rows name.
    pub workers: &'a [WorkerSeat],
    /// The subsystem that the controller is of.
    pub subsystem: &'a mut Subsystem,
    /// Takes what is to be done, in order. A call adds a bounded number.
    pub effects: &'a mut Vec<Effect>,
}

impl Context<'_> {
    /// Adds an effect. What need not be done twice is there once.
    pub(crate) fn effect(&mut self, effect: Effect) {
        if !self.effects.contains(&effect) {
            self.effects.push(effect);
        }
    }
}

/// One worker, seen by a controller.
#[derive(Clone)]
pub struct WorkerSeat {
    /// What the worker writes about the controller. Stays when the worker dies: counters go on.
    pub queues: Arc<Segment<QueuesLayout>>,
    /// The worker serves the controller. False when it was not told yet or is proven dead: nothing is awaited of it itself
    /// and no queue is placed on it.
    pub attached: bool,
    /// The worker is dead, and backends have not said yet that nothing is under way of what it asked them for: requests of
    /// its may still read and write the host's memory. Nothing is complete that promises otherwise.
    pub draining: bool,
}

impl WorkerSeat {
    /// A seat of a worker that was not told of the controller yet.
    pub fn new(queues: Arc<Segment<QueuesLayout>>) -> Self {
        Self { queues, attached: false, draining: false }
    }

    /// Whether nothing that the worker has in flight, or has left behind, touches what was unmapped up to `version`.
    pub fn has_unmapped(&self, version: u64) -> bool {
        // Acquire: pairs with the worker's Release, after the last access.
        self.is_beyond(|queues| queues.acknowledged.dma_version.load(Ordering::Acquire) >= version)
    }

    /// Whether the worker has taken over, and brought to its end what had to end, everything up to `version`.
    pub fn has_acknowledged(&self, version: u64) -> bool {
        // Acquire: pairs with the worker's Release, after all that the number vouches for.
        self.is_beyond(|queues| queues.acknowledged.version.load(Ordering::Acquire) >= version)
    }

    pub(crate) fn has_reset(&self, generation: u64) -> bool {
        // Acquire: as above.
        self.is_beyond(|queues| {
            queues.acknowledged.reset_generation.load(Ordering::Acquire) >= generation
        })
    }

    /// Whether the worker has said something, or is gone with all that it began.
    fn is_beyond(&self, said: impl FnOnce(&QueuesLayout) -> bool) -> bool {
        !self.draining && (!self.attached || said(&self.queues))
    }
}

/// What the owner has to do after a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Wake every worker of the controller: the segment's version was raised, or a doorbell moved.
    KickWorkers,
    /// Signal an interrupt vector.
    Signal {
        /// The vector.
        vector: u16,
    },
    /// Have a backend do something, and call [`crate::Controller::complete`] with the ticket.
    Request {
        /// Names the request in the answer.
        ticket: Ticket,
        /// What is to be done.
        request: Request,
    },
    /// Call [`crate::Controller::subsystem_changed`] on every other controller of the subsystem.
    SubsystemChanged,
    /// Call [`crate::Controller::reset`] with [`crate::ResetKind::Subsystem`] on every controller of the subsystem, this
    /// one included.
    SubsystemReset,
}

/// Names a request until it is answered. Never used twice by one controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What a backend, or the state on disk, is needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make everything durable that was written to the subsystem's namespaces (a normal shutdown).
    Flush,
    /// Format a namespace. Nobody has a command in flight to it, and none is accepted until the answer.
    Format {
        /// The namespace.
        nsid: Nsid,
        /// The backend that owns the block device.
        backend: String,
        /// The block device.
        bdev: String,
        /// New logical block size as a shift, to be stored before the answer.
        block_shift: u32,
        /// The data must be unreadable afterwards (User Data Erase); if not, it may stay, but need not.
        erase: bool,
    },
    /// Store the write protection of a namespace, or of all ([`Nsid::BROADCAST`]), so that it outlives the processes.
    Protect {
        /// The namespace.
        nsid: Nsid,
        /// The protection.
        protection: Protection,
    },
}
