//! A queue pair, owned by one thread. Hot path: submitting and completing allocates nothing, locks nothing and makes no
//! system call, unless doorbells are messages.
//!
//! Commands are told to the controller in bursts: [`QueuePair::submit`] only writes the entry, [`QueuePair::ring`] and
//! [`QueuePair::poll`] write the doorbell, once for all that is new. The head of the completion queue is told along with
//! it, or when there is nothing else to do.

mod command;
mod complete;
mod recover;
mod slot;
mod submit;

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipc::event::EventFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nvme_spec::QueueId;
use nvme_spec::register::DoorbellKind;

use crate::controller::{Inner, QueueMemory};
use crate::doorbell::Bell;
use crate::error::{Error, IoError};
use crate::memory::DmaBuffer;
use crate::options::QueueOptions;
use crate::prp::Lists;
use crate::request::Request;
use crate::retry::RetryDelays;
use crate::ring::{CompletionRing, SubmissionRing};
use crate::transport::DoorbellCost;

use slot::{NONE, Parent, Slot};

/// Polls between two looks at clocks, time-outs and the target's health.
const HOUSEKEEPING_INTERVAL: u32 = 1024;
/// The head is told at the latest when this part of the completion queue was taken.
const ACK_PART: u32 = 4;
/// The same where the head is told along with every tail.
const EAGER_ACK_PART: u32 = 2;
/// Longest sleep on an interrupt, so that time-outs and a dead target are noticed.
const SLEEP_MAX: Duration = Duration::from_millis(20);

/// A queue pair of one thread. It may move to another thread, but two cannot use it:
///
/// ```compile_fail,E0499
/// # fn example(queue: &mut nvme_driver::QueuePair) {
/// std::thread::scope(|scope| {
///     scope.spawn(|| queue.ring());
///     scope.spawn(|| queue.ring());
/// });
/// # }
/// ```
///
/// ```compile_fail,E0277
/// fn shared_between_threads<T: Sync>() {}
/// shared_between_threads::<nvme_driver::QueuePair>();
/// ```
///
/// Dropping it deletes its queues; outstanding requests end, and their buffers are given back to nobody.
pub struct QueuePair {
    sq: SubmissionRing,
    cq: CompletionRing,
    slots: Box<[Slot]>,
    lists: Lists,
    /// Address of the controller's domain: what its memory is told by.
    domain: usize,
    /// First free slot.
    free: u16,
    qid: u16,
    in_flight: u16,
    sqhd: u16,
    epoch: u32,
    /// Completions whose entries the controller has not been told are free; how many make it worth telling. 0 while a
    /// split request waits for free slots, so that each completion is looked at.
    unacked: u32,
    ack_at: u32,
    /// Whether the head is told along with every tail.
    eager_ack: bool,
    /// Polls until the next housekeeping.
    budget: u32,
    sq_bell: Bell,
    cq_bell: Bell,
    cold: Box<Cold>,
    /// Not shared between threads.
    one_thread: PhantomData<Cell<()>>,
}

/// What the hot path does not touch.
struct Cold {
    inner: Arc<Inner>,
    generation: u32,
    depth: u16,
    vector: Option<nvme_spec::ids::InterruptVector>,
    event: Option<EventFd>,
    delays: RetryDelays,
    parents: Box<[Parent]>,
    free_parents: Vec<u16>,
    /// Split requests with pieces left, in order.
    waiting: VecDeque<u16>,
    /// Slots whose commands are sent again, and when.
    delayed: Vec<(u16, Instant)>,
    failing: Option<recover::Failing>,
    dead: bool,
    epoch_started: Instant,
    looked: Instant,
    counters: QueueCounters,
}

/// What a queue pair did besides plain commands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueCounters {
    /// Times that new entries were told to the controller.
    pub rings: u64,
    /// Requests that became several commands.
    pub split: u64,
    /// Commands that were sent again.
    pub retried: u64,
    /// Commands that timed out and were asked to be aborted.
    pub aborted: u64,
    /// Times that the controller was reset under outstanding requests.
    pub resets: u64,
}

/// A request that is over.
#[derive(Debug)]
pub struct Completed {
    /// The caller's number.
    pub token: u64,
    /// The request's buffer, back again.
    pub buffer: Option<DmaBuffer>,
    /// Dword 0 of the completion (of a command given as it is; otherwise 0), or why the request failed.
    pub result: Result<u32, IoError>,
}

/// What [`QueuePair::next_or_repeat`] found.
#[derive(Debug)]
pub enum Next {
    /// The request of this number succeeded, and is on its way again.
    Repeated(u64),
    /// A request is over.
    Over(Completed),
}

/// A request that was not taken, back again.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// The request, as it was.
    pub request: Request,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// As many commands as the queue holds are outstanding: poll, then try again.
    #[error("queue is full")]
    Full,
    /// The controller is gone, or its queue could not be made again after a reset.
    #[error("controller is gone")]
    Gone,
    /// The buffer is registered with another controller.
    #[error("buffer belongs to another controller")]
    ForeignBuffer,
    /// The buffer's length is no multiple of the block size, or zero.
    #[error("buffer is no whole number of blocks")]
    Length,
    /// The buffer does not begin at a multiple of 4.
    #[error("buffer is not aligned to 4 bytes")]
    Alignment,
    /// The blocks reach past the last address there can be, or there are none.
    #[error("blocks are none or past the last address")]
    Range,
    /// The namespace is write protected.
    #[error("namespace is write protected")]
    WriteProtected,
    /// The request is too large to go as one command, which it has to.
    #[error("request does not fit one command")]
    TooLarge,
}

impl QueuePair {
    pub(crate) fn create(inner: &Arc<Inner>, options: &QueueOptions) -> Result<Self, Error> {
        let generation = inner.generation();
        if inner.is_gone() {
            return Err(Error::Gone);
        }
        let depth = inner.depth(options.depth);
        let QueueMemory { sq, cq, lists } = inner.queue_memory(depth)?;
        let qid = inner.take_queue_id()?;
        let vector = inner.vector(qid).filter(|_| options.interrupt);
        let event = vector.map(|(_, event)| event.try_clone()).transpose();
        let event = event.map_err(|_| Error::Argument { what: "no descriptor for an interrupt" });
        let vector = vector.map(|(vector, _)| vector);
        let mut sq_bell = inner.bell(qid, DoorbellKind::SubmissionTail);
        let mut cq_bell = inner.bell(qid, DoorbellKind::CompletionHead);
        // A queue of this identifier may have been there before: a controller that polls memory would go by its tail.
        let memory = inner.doorbells_are_memory();
        sq_bell.clear(memory);
        cq_bell.clear(memory);
        let created = event.and_then(|event| {
            inner.create_queues(qid, &sq, &cq, vector)?;
            Ok(event)
        });
        let event = match created {
            Ok(event) => event,
            Err(error) => {
                inner.give_queue_id_back(qid);
                return Err(error);
            }
        };
        let cost = inner.transport.doorbell_cost();
        let now = Instant::now();
        let cold = Cold {
            inner: Arc::clone(inner),
            generation,
            depth,
            vector,
            event,
            delays: RetryDelays::of(&inner.identify()),
            parents: (0..depth).map(|_| Parent::default()).collect(),
            free_parents: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(depth.into()),
            delayed: Vec::with_capacity(depth.into()),
            failing: None,
            dead: false,
            epoch_started: now,
            looked: now,
            counters: QueueCounters::default(),
        };
        let eager_ack = cost == DoorbellCost::Memory || inner.shadow.is_some();
        let mut queue = Self {
            ack_at: ack_interval(&cq, eager_ack),
            sq,
            cq,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            lists,
            domain: Arc::as_ptr(&inner.domain) as usize,
            free: NONE,
            qid: qid.0,
            in_flight: 0,
            sqhd: 0,
            epoch: 0,
            unacked: 0,
            eager_ack,
            budget: HOUSEKEEPING_INTERVAL,
            sq_bell,
            cq_bell,
            cold: Box::new(cold),
            one_thread: PhantomData,
        };
        queue.link_free();
        Ok(queue)
    }

    /// Queue Identifier.
    #[must_use]
    pub fn id(&self) -> QueueId {
        QueueId(self.qid)
    }

    /// Commands that can be outstanding at a time.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.cold.depth
    }

    /// Commands that are outstanding.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Head of the submission queue, as the controller last told it (SQHD).
    #[must_use]
    pub fn sq_head(&self) -> u16 {
        self.sqhd
    }

    /// Whether any request is outstanding.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.in_flight > 0 || !self.cold.waiting.is_empty()
    }

    /// What it did besides plain commands.
    #[must_use]
    pub fn counters(&self) -> QueueCounters {
        self.cold.counters
    }

    /// The event that its interrupts signal, if it has any: readable when there may be something to poll for. Drain it
    /// with [`wait`](Self::wait).
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.cold.event.as_ref().map(AsFd::as_fd)
    }

    /// Whether there is a completion to take. It keeps no time: only taking does.
    #[inline(always)]
    #[must_use]
    pub fn has_completion(&self) -> bool {
        self.cq.peek().is_some()
    }

    /// Tells the controller of what was submitted since the last time. Nothing new, nothing told.
    #[inline]
    pub fn ring(&mut self) {
        let tail = self.sq.tail();
        if tail == self.sq_bell.told() {
            return;
        }
        if self.eager_ack && self.unacked > 0 {
            // In the same line as the tail's doorbell, so the line moves once.
            self.ack();
        }
        self.sq_bell.ring(tail);
        self.cold.counters.rings += 1;
        self.budget = self.budget.saturating_sub(1);
    }

    /// Tells the controller which completions were taken.
    #[inline]
    fn ack(&mut self) {
        self.unacked = 0;
        self.cq_bell.ring(self.cq.head());
    }

    /// Rings, takes up to `limit` completions, hands each to `done`, and rings again for what `done` submitted.
    /// Returns their number. It also keeps time: call it as long as anything is outstanding.
    #[inline]
    pub fn poll(&mut self, limit: usize, mut done: impl FnMut(&mut Self, Completed)) -> usize {
        self.ring();
        let mut taken = 0;
        while taken < limit {
            let Some(completed) = self.next_completion() else { break };
            taken += 1;
            done(self, completed);
        }
        self.ring();
        taken
    }

    /// Waits for the next completion, by polling or on the interrupt; `None` if nothing is outstanding. The time-outs
    /// of requests bound it.
    #[must_use]
    pub fn wait_next(&mut self) -> Option<Completed> {
        self.ring();
        loop {
            if let Some(completed) = self.next_completion() {
                return Some(completed);
            }
            if !self.is_busy() {
                return None;
            }
            match self.cold.event {
                Some(_) => self.wait(SLEEP_MAX),
                None => std::hint::spin_loop(),
            }
        }
    }

    /// Submits one request on an otherwise idle queue and waits for it.
    ///
    /// # Errors
    /// [`Rejected`]; the completion holds the error of a request that was taken.
    pub fn run(&mut self, request: Request) -> Result<Completed, Rejected> {
        let token = request.token();
        self.submit(request)?;
        match self.wait_next() {
            Some(completed) => Ok(completed),
            // Not reached: it is outstanding until it completes.
            None => Ok(Completed { token, buffer: None, result: Err(IoError::Gone) }),
        }
    }

    /// Sleeps until an interrupt comes, at most `timeout` and at most some milliseconds; then poll. Without interrupts
    /// it returns at once.
    pub fn wait(&mut self, timeout: Duration) {
        self.ring();
        if self.unacked > 0 {
            self.ack();
        }
        // Whoever sleeps looks at the clock at the next poll.
        self.budget = 0;
        let Some(event) = &self.cold.event else { return };
        if self.cq.peek().is_some() {
            return;
        }
        let timeout = PollTimeout::try_from(timeout.min(SLEEP_MAX)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
        // An interrupted sleep is a short sleep.
        if poll(&mut fds, timeout).is_ok_and(|ready| ready > 0) {
            event.drain().ok();
        }
    }

    fn ack_interval(&self) -> u32 {
        ack_interval(&self.cq, self.eager_ack)
    }

    /// Whether a split request waits for free slots.
    fn set_starved(&mut self, starved: bool) {
        self.ack_at = if starved { 0 } else { self.ack_interval() };
    }

    /// Chains every slot into the list of free ones.
    fn link_free(&mut self) {
        self.free = NONE;
        for (index, slot) in self.slots.iter_mut().enumerate().rev() {
            slot.next = self.free;
            self.free = index as u16;
        }
    }
}

/// How many completions of a queue make it worth telling. Where the head goes along with every tail, only when the
/// controller might run out of room: a head by itself moves the doorbells' line once more than needed.
fn ack_interval(cq: &CompletionRing, eager: bool) -> u32 {
    let part = if eager { EAGER_ACK_PART } else { ACK_PART };
    (cq.size() / part).max(1)
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let inner = &self.cold.inner;
        let qid = QueueId(self.qid);
        if !inner.is_gone()
            && inner.generation() == self.cold.generation
            && !self.cold.dead
            && let Err(error) = inner.delete_queues(qid)
        {
            // Its memory leaves the controller's reach with the last buffer; its identifier is not used again
            // before the next reset.
            tracing::warn!(controller = %inner.address, %qid, %error, "queue pair not deleted");
            return;
        }
        inner.give_queue_id_back(qid);
    }
}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("controller", &self.cold.inner.address)
            .field("qid", &self.qid)
            .field("sq", &self.sq)
            .field("cq", &self.cq)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
