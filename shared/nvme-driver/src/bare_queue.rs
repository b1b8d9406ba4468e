//! A queue pair without the driver's bookkeeping: for a caller that keeps its own, makes its commands itself and knows
//! where in the controller's address space each page of their data lies. Hot path: pushing and popping allocate nothing,
//! lock nothing and make no system call, unless doorbells are messages.
//!
//! Nothing is split, timed or sent again here, and nothing waits: what a reset takes is the caller's to end
//! ([`BareQueue::is_stale`]), and to make the queues again ([`BareQueue::renew`]) on a thread that may wait.
//!
//! A queue pair can be lent to another process ([`lease`]), which then has a value of this type, too.

mod lease;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ipc::event::{EventError, EventFd};
use ipc::guest_memory::Region;
use nvme_spec::ids::InterruptVector;
use nvme_spec::register::DoorbellKind;
use nvme_spec::{Command, CommandId, Completion, Iova, QueueId};

use crate::controller::{Controller, Inner};
use crate::doorbell::Bell;
use crate::error::Error;
use crate::memory::Registered;
use crate::options::QueueOptions;
use crate::ring::{CompletionRing, SubmissionRing};

pub use lease::{QueueLease, QueueTerms};

/// A queue pair of one thread. Dropping it deletes its queues, which waits for the controller; one that was lent to this
/// process is its lender's to delete.
pub struct BareQueue {
    home: Home,
    qid: QueueId,
    depth: u16,
    vector: Option<InterruptVector>,
    event: Option<EventFd>,
    /// The vector is nobody else's, and signals only while that is asked for.
    own_vector: bool,
    sq: SubmissionRing,
    cq: CompletionRing,
    sq_bell: Bell,
    cq_bell: Bell,
    /// A PRP list for each command identifier, each of one memory page, from `lists_at` on.
    memory: Registered,
    lists_at: usize,
    /// Where what was asked for beside the queues begins.
    room_at: usize,
    page_shift: u32,
    in_flight: u16,
    /// Completions whose entries the controller has not been told are free.
    unacked: u32,
}

/// Whose controller it is.
enum Home {
    /// This process's, and how often it had been reset when the queues were made.
    Own { inner: Arc<Inner>, generation: u32, deleted: bool },
    /// Another's.
    Lent { stale: bool },
}

impl Controller {
    /// A queue pair whose commands the caller makes and keeps itself.
    ///
    /// # Errors
    /// [`Error::NoQueue`] if all that were granted are in use, others as the controller answers.
    pub fn bare_queue(&self, options: &QueueOptions) -> Result<BareQueue, Error> {
        BareQueue::create(&self.inner, options, None)
    }

    /// The same with `room` bytes more in the queues' memory, for whoever it is lent to ([`BareQueue::lease`]). If
    /// interrupts are asked for and there are enough vectors for all queues, it has an event of its own, which is not
    /// signalled until [`BareQueue::set_interrupting`] says so; otherwise it has none.
    ///
    /// # Errors
    /// As [`bare_queue`](Self::bare_queue).
    pub fn lendable_queue(&self, options: &QueueOptions, room: usize) -> Result<BareQueue, Error> {
        BareQueue::create(&self.inner, options, Some(room))
    }

    /// Whether interrupts were asked for when the controller was connected to.
    #[must_use]
    pub fn wants_interrupts(&self) -> bool {
        self.inner.options.interrupts
    }

    /// Registers memory that is mapped already, such as a guest's, whole and in one window of the controller's address
    /// space.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn register_region(&self, region: Arc<Region>) -> Result<Registered, Error> {
        Ok(Registered::register_region(&self.inner.domain, region)?)
    }

    /// Looks whether the target is still there, and gives it up if not. `false`: the controller is gone. Makes system
    /// calls; for whoever is not polled.
    #[must_use]
    pub fn check_alive(&self) -> bool {
        !self.inner.check_alive()
    }

    /// Asks the controller to abort a command, if it takes another Abort now. Nobody waits for the answer: the command
    /// completes, or does not.
    #[must_use]
    pub fn post_abort(&self, queue: QueueId, command: CommandId) -> bool {
        !self.inner.is_gone() && self.inner.admin().post_abort(queue, command)
    }

    /// Bytes of a memory page as PRP entries count them (CC.MPS).
    #[must_use]
    pub fn page_size(&self) -> u64 {
        1 << self.inner.page_shift()
    }
}

impl BareQueue {
    fn create(
        inner: &Arc<Inner>,
        options: &QueueOptions,
        room: Option<usize>,
    ) -> Result<Self, Error> {
        // Before the queues: a reset that comes in between is noticed.
        let generation = inner.generation();
        if inner.is_gone() {
            return Err(Error::Gone);
        }
        let depth = inner.depth(options.depth);
        let page_shift = inner.page_shift();
        let page = 1_usize << page_shift;
        let sq_size = u32::from(depth) + 1;
        // Twice as long, so that its head can be told late.
        let cq_size = (2 * sq_size).min(u32::from(inner.cap.mqes_z()) + 1);
        let cq_at = (sq_size as usize * size_of::<Command>()).next_multiple_of(page);
        let cq_bytes = (cq_size as usize * size_of::<Completion>()).next_multiple_of(page);
        let lists_at = cq_at + cq_bytes;
        let room_at = lists_at + usize::from(depth) * page;
        let memory = Registered::allocate(&inner.domain, room_at + room.unwrap_or(0))?;
        let rings = (
            SubmissionRing::new(&memory, 0, sq_size),
            CompletionRing::new(&memory, cq_at, cq_size),
        );
        let (Some(sq), Some(cq)) = rings else {
            return Err(Error::Argument { what: "the queues do not fit their memory" });
        };
        let qid = inner.take_queue_id()?;
        let interrupts = match (options.interrupt, room) {
            (false, _) => Ok(None),
            (true, None) => shared_vector(inner, qid),
            (true, Some(_)) => quiet_vector(inner, qid),
        };
        let interrupts = interrupts.inspect_err(|_| inner.give_queue_id_back(qid))?;
        let (vector, event) = interrupts.unzip();
        let own_vector = vector.is_some() && room.is_some();
        // Before the queues: they begin at 0.
        let [sq_bell, cq_bell] = [DoorbellKind::SubmissionTail, DoorbellKind::CompletionHead]
            .map(|kind| inner.bell(qid, kind));
        inner.create_queues(qid, &sq, &cq, vector).inspect_err(|_| {
            let vector = vector.filter(|_| own_vector);
            if vector.is_none_or(|vector| inner.restore_vector(vector).is_ok()) {
                inner.give_queue_id_back(qid);
            }
        })?;
        Ok(Self {
            home: Home::Own { inner: Arc::clone(inner), generation, deleted: false },
            qid,
            depth,
            vector,
            event,
            own_vector,
            sq,
            cq,
            sq_bell,
            cq_bell,
            memory,
            lists_at,
            room_at,
            page_shift,
            in_flight: 0,
            unacked: 0,
        })
    }

    /// Whether it is a queue of this controller, as it is connected now.
    #[must_use]
    pub fn is_of(&self, controller: &Controller) -> bool {
        matches!(&self.home, Home::Own { inner, .. } if Arc::ptr_eq(inner, &controller.inner))
    }

    /// Queue Identifier.
    #[must_use]
    pub fn id(&self) -> QueueId {
        self.qid
    }

    /// Commands that can be outstanding at a time; their identifiers are below this.
    #[must_use]
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Most pages of one command's data: PRP1, and a list of one memory page.
    #[must_use]
    pub fn pages_max(&self) -> usize {
        1 + (1 << self.page_shift) / size_of::<u64>()
    }

    /// Commands that are outstanding.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// The event that its interrupts signal, if it has any.
    #[must_use]
    pub fn event(&self) -> Option<&EventFd> {
        self.event.as_ref()
    }

    /// Has completions signal [`event`](Self::event) from now on, or nobody, which costs the controller's side nothing. Of
    /// a queue pair that was made to be lent, by its lender. Waits for the target.
    ///
    /// # Errors
    /// [`Error::Argument`] if it has no event of its own, others as the target answers; nothing has changed then.
    pub fn set_interrupting(&mut self, on: bool) -> Result<(), Error> {
        match (&self.home, self.vector, &self.event) {
            (Home::Own { inner, .. }, Some(vector), Some(event)) if self.own_vector => {
                Ok(inner.transport.set_vector(vector.0, on.then_some(event))?)
            }
            _ => Err(Error::Argument { what: "the queue pair has no vector to itself" }),
        }
    }

    /// Takes a command with its identifier, which no outstanding one has, and the pages of its data as PRP entries: the
    /// first may begin anywhere in its page, the others begin theirs. What lies there is to stay registered until the
    /// command is over. The controller hears of it by [`ring`](Self::ring).
    ///
    /// `false`, and nothing happened: the queue is full, the identifier not below [`depth`](Self::depth), or there are
    /// more than [`pages_max`](Self::pages_max) pages.
    #[inline]
    #[must_use]
    pub fn push(&mut self, command: Command, pages: &[u64]) -> bool {
        let cid = command.cdw0.cid().0;
        if self.in_flight >= self.depth || cid >= self.depth || pages.len() > self.pages_max() {
            return false;
        }
        let (first, second) = match *pages {
            [] => (0, 0),
            [first] => (first, 0),
            [first, second] => (first, second),
            [first, ref list @ ..] => (first, self.list(cid, list)),
        };
        let command = Command { mptr: 0, ..command }.with_prps(Iova(first), Iova(second));
        self.in_flight += 1;
        self.sq.push(command.into_words());
        true
    }

    /// Fills the list of command `cid` and returns where it is.
    fn list(&self, cid: u16, entries: &[u64]) -> u64 {
        let at = self.lists_at + (usize::from(cid) << self.page_shift);
        if let Some(list) = self.memory.host().sub(at, 1 << self.page_shift) {
            for (index, &entry) in entries.iter().enumerate() {
                // Relaxed: the doorbell's Release keeps it before.
                let stored = list.store_u64(index * size_of::<u64>(), entry, Ordering::Relaxed);
                debug_assert!(stored, "more pages than one list holds");
            }
        }
        self.memory.iova() + at as u64
    }

    /// Tells the controller of what was pushed since the last time. Nothing new, nothing told.
    #[inline]
    pub fn ring(&mut self) {
        let tail = self.sq.tail();
        if tail != self.sq_bell.told() {
            self.sq_bell.ring(tail);
        }
    }

    /// Whether there is a completion to take.
    #[inline]
    #[must_use]
    pub fn has_completion(&self) -> bool {
        !self.is_stale() && self.cq.peek().is_some()
    }

    /// The next completion, as the controller wrote it: its identifier may be any. None of a stale queue.
    #[inline]
    pub fn pop(&mut self) -> Option<Completion> {
        let high = self.cq.peek()?;
        // What a controller left behind that was reset, or is gone, is not looked at.
        if self.is_stale() {
            return None;
        }
        let completion = self.cq.entry(high);
        self.cq.advance();
        self.in_flight = self.in_flight.saturating_sub(1);
        self.unacked += 1;
        if self.unacked >= self.cq.size() / 4 {
            self.acknowledge();
        }
        Some(completion)
    }

    /// Tells the controller which completions were taken. Called now and then by [`pop`](Self::pop); to be called
    /// before a pause.
    pub fn acknowledge(&mut self) {
        if self.unacked > 0 && !self.is_stale() {
            self.unacked = 0;
            self.cq_bell.ring(self.cq.head());
        }
    }

    /// Whether the controller was disabled or given up since the queues were made: what was outstanding is over, and
    /// nothing of it takes effect any more as far as the transport can see to that. Of a queue pair that was lent to this
    /// process: whether its lender said so ([`set_stale`](Self::set_stale)).
    #[inline]
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match &self.home {
            Home::Own { inner, generation, .. } => inner.generation() != *generation,
            Home::Lent { stale } => *stale,
        }
    }

    /// Makes the queues again after a reset. Waits for the controller.
    ///
    /// # Errors
    /// [`Error`]; of [`Error::Gone`] nothing can be done but to connect anew.
    pub fn renew(&mut self) -> Result<(), Error> {
        let Home::Own { inner, generation, deleted: false } = &mut self.home else {
            return Err(Error::Argument {
                what: "queues are made again by who has the controller",
            });
        };
        (self.in_flight, self.unacked) = (0, 0);
        let (sq, cq) = ((&mut self.sq, &mut self.sq_bell), (&mut self.cq, &mut self.cq_bell));
        *generation = inner.renew_queues(self.qid, sq, cq, self.vector)?;
        Ok(())
    }

    /// Deletes the queues: when this succeeds, the controller is done with all that was outstanding. Its identifier is
    /// used again when the value is dropped. Waits for the controller.
    ///
    /// # Errors
    /// [`Error`]: the queues may still be in use, until the controller is reset.
    pub fn delete(&mut self) -> Result<(), Error> {
        let stale = self.is_stale();
        match &mut self.home {
            Home::Own { inner, deleted, .. } if !*deleted => {
                if !stale && !inner.is_gone() {
                    inner.delete_queues(self.qid)?;
                }
                *deleted = true;
                Ok(())
            }
            Home::Own { .. } | Home::Lent { .. } => Ok(()),
        }
    }
}

/// The vector of a queue, which may be others', too, and its event.
fn shared_vector(inner: &Inner, qid: QueueId) -> Result<Option<(InterruptVector, EventFd)>, Error> {
    let Some((vector, event)) = inner.vector(qid) else { return Ok(None) };
    Ok(Some((vector, event.try_clone().map_err(no_event)?)))
}

/// A vector of the queue's own, if there is one, and an event that nobody else has or gets; not connected yet.
fn quiet_vector(inner: &Inner, qid: QueueId) -> Result<Option<(InterruptVector, EventFd)>, Error> {
    let Some(vector) = inner.own_vector(qid) else { return Ok(None) };
    let event = EventFd::create().map_err(no_event)?;
    match inner.transport.set_vector(vector.0, None) {
        Ok(()) => Ok(Some((vector, event))),
        Err(error) => {
            tracing::debug!(controller = %inner.address, %qid, %error, "no interrupts to be switched");
            Ok(None)
        }
    }
}

fn no_event(_: EventError) -> Error {
    Error::Argument { what: "no descriptor for an interrupt" }
}

impl Drop for BareQueue {
    fn drop(&mut self) {
        let deleted = self.delete();
        let Home::Own { inner, .. } = &self.home else { return };
        // Whoever has the identifier next may share the event of the controller's.
        let restored = || match self.vector.filter(|_| self.own_vector) {
            Some(vector) => inner.restore_vector(vector),
            None => Ok(()),
        };
        match deleted.and_then(|()| restored()) {
            Ok(()) => inner.give_queue_id_back(self.qid),
            // Its identifier is not used again before the next reset.
            Err(error) => {
                tracing::warn!(controller = %inner.address, qid = %self.qid, %error, "queue pair not deleted");
            }
        }
    }
}

impl fmt::Debug for BareQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BareQueue")
            .field("qid", &self.qid)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
