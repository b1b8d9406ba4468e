//! A worker's own queue pair of a drive, with the ring beside it. On the hot path: nothing here waits, locks or makes a
//! system call.
//!
//! The engine is the one that the backend runs over its own queue pair. What the backend's control thread does for it is
//! done here by words of the lease's segment: the backend takes the queue pair away when the drive is reset, and gives it
//! back (`follow`); where memory is stands in a table; a command that hangs is told of. By the ring go fused
//! pairs, writes while one runs, and requests whose memory the drive is not yet known to reach.
//!
//! When the backend dies, the drive goes on with what it has until a successor resets it. So requests do not end then,
//! but when the drive completes them, or when a successor has the drive and says here that the lease is over. The queue pair
//! is let go of after two seconds: the kernel keeps a device that nobody kept from the successor as long as its doorbells are
//! mapped.
//!
//! A thread that has nothing else to do polls for a while, then sleeps until the drive interrupts it ([`interrupts`]); with
//! a drive that does not, it polls as long as commands are outstanding.

mod interrupts;
#[cfg(test)]
mod tests;

use self::interrupts::Interrupts;
use super::control::{Ask, Attachment, Told};
use super::engine::Engine;
use super::gate;
use super::memory::Place;
use super::terms::Terms;
use crate::channel::{Channel, Geometry, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Op, Outcome, Request};
use crate::ring::client::RingChannel;
use ipc::guest_memory::{Region, RegionTable};
use ipc::layout::drive_lease::{DriveLeaseLayout, lease_state};
use ipc::segment::Segment;
use nvme_driver::{BareQueue, QueueLease};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Nanoseconds that a queue pair whose backend is dead is looked at: longer than a drive that works takes, and shorter than
/// a successor waits for the drive to be let go of.
const LINGER: u64 = 2_000_000_000;
/// Nanoseconds between two looks at a queue pair that was taken away.
const LOOK: u64 = 1_000_000;

/// A lease as it was handed over.
pub struct DriveLease {
    segment: Arc<Segment<DriveLeaseLayout>>,
    found: Attachment,
    interrupts: Option<Interrupts>,
}

/// Looks at a lease from another thread.
#[derive(Clone)]
pub struct LeaseWatch(Arc<Segment<DriveLeaseLayout>>);

/// A leased queue pair as a channel.
pub struct LeasedDrive {
    engine: Engine,
    /// `None`: the drive does not interrupt this one.
    interrupts: Option<Interrupts>,
    ring: RingChannel,
    segment: Arc<Segment<DriveLeaseLayout>>,
    geometry: Geometry,
    /// The lender's word as it was obeyed last.
    word: u32,
    /// The queue pair, while it is taken away.
    stopped: Option<Box<BareQueue>>,
    /// What the holder's words say.
    busy: bool,
    writes: bool,
    now: u64,
    backend: Backend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Alive,
    /// Since then, once that was looked at.
    Dead(Option<u64>),
    /// It has a successor, which has reset the drive.
    Succeeded,
}

impl DriveLease {
    /// Maps what was handed over: the segment, the queues' memory, the doorbells, and if it says so, shadow doorbells and
    /// an event.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if something is missing, contradicts itself or cannot be mapped.
    pub fn open(fds: &mut impl Iterator<Item = OwnedFd>) -> Result<Self, Error> {
        let missing = || Error::new(ErrorKind::Invalid, "a descriptor of a lease is missing");
        let wrong = |what: &str, source: Box<dyn std::error::Error + Send + Sync>| Error {
            kind: ErrorKind::Invalid,
            what: what.to_owned(),
            source: Some(source),
        };
        let segment = Segment::<DriveLeaseLayout>::open(fds.next().ok_or_else(missing)?);
        let segment = segment.map_err(|error| wrong("map a lease", Box::new(error)))?;
        let terms = Terms::read(&segment.terms)?;
        let memory = fds.next().ok_or_else(missing)?;
        let doorbells = fds.next().ok_or_else(missing)?;
        let mut next_if = |there: bool| match there {
            true => fds.next().ok_or_else(missing).map(Some),
            false => Ok(None),
        };
        let (shadow, event) = (next_if(terms.shadow)?, next_if(terms.event)?);
        let lease = QueueLease { terms: terms.queue, memory, doorbells, shadow, event };
        let queue = BareQueue::lent(lease);
        let queue = queue.map_err(|error| wrong("map a leased queue pair", Box::new(error)))?;
        let page = terms.drive.page as usize;
        let room = || {
            let zeroes = queue.room(0, page)?;
            let buffers = queue.room(page, terms.buffers * terms.buffer_len)?;
            Some((zeroes, buffers.into_chunks(terms.buffer_len)))
        };
        let (zeroes, buffers) =
            room().ok_or_else(|| Error::new(ErrorKind::Invalid, "a lease without its room"))?;
        let interrupts = queue.event().map(Interrupts::new).transpose()?;
        let found = Attachment { drive: terms.drive, queue, buffers, zeroes };
        Ok(Self { segment: Arc::new(segment), found, interrupts })
    }
}

impl LeaseWatch {
    /// Whether the drive does nothing of the lease any more.
    pub fn is_over(&self) -> bool {
        // Relaxed: the channel looks again.
        self.0.lender.state.load(Ordering::Relaxed) & lease_state::MASK == lease_state::OVER
    }
}

impl LeasedDrive {
    /// The channel of a lease, with the ring that came with it.
    pub fn new(lease: DriveLease, ring: RingChannel, geometry: Geometry) -> Self {
        let DriveLease { segment, found, interrupts } = lease;
        let geometry = Geometry { size: geometry.size.min(found.drive.size), ..geometry };
        Self {
            engine: Engine::new(found),
            interrupts,
            ring,
            segment,
            geometry,
            word: lease_state::UP,
            stopped: None,
            busy: false,
            writes: false,
            now: 0,
            backend: Backend::Alive,
        }
    }

    /// To look whether the lease is over.
    pub fn watch(&self) -> LeaseWatch {
        LeaseWatch(Arc::clone(&self.segment))
    }

    /// Outstanding requests that went by the ring.
    pub fn with_backend(&self) -> usize {
        self.ring.outstanding()
    }

    /// The backend is dead, or has taken the lease back: nothing more is taken, and what is outstanding may still be under
    /// way.
    pub fn set_lost(&mut self) {
        if self.backend == Backend::Alive {
            self.backend = Backend::Dead(None);
        }
    }

    /// The backend is dead, and nothing of what it or its drive had is under way: everything ends with
    /// [`ErrorKind::Gone`].
    pub fn set_gone(&mut self) {
        self.ring.set_gone();
        self.backend = Backend::Succeeded;
    }

    /// Does what the lender's word says.
    #[cold]
    fn follow(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        // Acquire: pairs with the lender's Release; what it did before is done.
        let word = self.segment.lender.state.load(Ordering::Acquire);
        let mut ended = 0;
        let mut count = |tag, outcome| {
            ended += 1;
            complete(tag, outcome);
        };
        match word & lease_state::MASK {
            lease_state::UP => {
                if let Some(mut queue) = self.stopped.take() {
                    queue.start_over();
                    self.engine.told(Told::Renewed(queue), &mut count);
                }
            }
            lease_state::DOWN => {
                if self.engine.queue().is_some() {
                    self.engine.renew(&mut count);
                }
            }
            // Over, or a word that no lender writes.
            _ => {
                self.stopped = None;
                self.engine.lose(&mut count);
            }
        }
        self.word = word;
        self.run_errands();
        if word & lease_state::MASK != lease_state::UP {
            // Release: the queue pair is not touched after this.
            self.segment.holder.obeyed.store(word, Ordering::Release);
        }
        self.tell();
        ended
    }

    /// Does what the engine asks for.
    fn run_errands(&mut self) {
        while let Some(ask) = self.engine.outbox.pop_front() {
            let holder = &self.segment.holder;
            match ask {
                Ask::Renew(mut queue) => {
                    queue.set_stale();
                    self.stopped = Some(queue);
                }
                Ask::Abort(_, command) => {
                    let word = u32::from(command.0) + 1;
                    // One at a time; if the reset has to come instead, that is as well.
                    let relaxed = Ordering::Relaxed;
                    holder.abort.compare_exchange(0, word, relaxed, relaxed).ok();
                }
                Ask::Reset => holder.hang.store(1, Ordering::Relaxed),
                Ask::Discard(what) => drop(what),
                // Not asked for here: memory is learned of before it is looked for.
                Ask::Register(_) | Ask::Lease(_) | Ask::Revoke(_) | Ask::EndLeases | Ask::Stop => {}
            }
        }
    }

    /// Whether the drive is known to reach all of a request's memory, or not to.
    #[inline]
    fn knows(&mut self, request: &Request<'_>, memory: &RegionTable) -> bool {
        request.ranges.iter().all(|range| match memory.get(range.region) {
            Some(region) if self.engine.memory.knows(region) => true,
            Some(region) => {
                let place = gate::find(&self.segment, range.region, region);
                self.engine.memory.learn(region, place);
                place != Place::Coming
            }
            // Whoever gets it finds that out.
            None => true,
        })
    }

    /// Whether a write may go to the drive now; the lender sees that it does.
    #[inline]
    fn may_write(&mut self) -> bool {
        let Self { segment, writes, .. } = self;
        if !std::mem::replace(writes, true) {
            segment.holder.writes.store(1, Ordering::Relaxed);
            // Pairs with the lender's between `exclusive` and its look at `writes`.
            fence(Ordering::SeqCst);
        }
        // Acquire: pairs with the Release that ends the exclusion.
        segment.lender.exclusive.load(Ordering::Acquire) == 0
    }

    /// Has the holder's words say what is outstanding.
    #[inline]
    fn tell(&mut self) {
        let holder = &self.segment.holder;
        if self.writes && !self.engine.is_writing() {
            self.writes = false;
            // Release: pairs with the lender's Acquire; the writes have ended.
            holder.writes.store(0, Ordering::Release);
        }
        let busy = self.engine.outstanding() > 0;
        if self.busy != busy {
            self.busy = busy;
            // Relaxed: only decides how often the lender looks.
            holder.busy.store(busy.into(), Ordering::Relaxed);
        }
    }

    #[cold]
    fn linger(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut ended = 0;
        let mut count = |tag, outcome| {
            ended += 1;
            complete(tag, outcome);
        };
        match &mut self.backend {
            Backend::Alive => return 0,
            Backend::Dead(since) => {
                let since = *since.get_or_insert(self.now);
                let held = self.engine.queue().is_some() || self.stopped.is_some();
                if !held || self.now.saturating_sub(since) < LINGER {
                    return 0;
                }
                self.engine.renew(&mut count);
            }
            Backend::Succeeded if self.engine.is_lost() => return 0,
            Backend::Succeeded => {
                self.engine.lose(&mut count);
            }
        }
        self.run_errands();
        // Nobody makes it again.
        self.stopped = None;
        ended
    }
}

impl Channel for LeasedDrive {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        self.now = self.now.max(now);
        if self.segment.lender.state.load(Ordering::Relaxed) != self.word {
            if self.engine.outstanding() > 0 {
                // The poll to come does it.
                return Submitted::Full;
            }
            self.follow(&mut |_, _| {});
        }
        if self.is_gone() {
            return Submitted::Done(Err(ErrorKind::Gone));
        }
        if request.check_bounds(self.geometry.size).is_err() {
            // The device may have grown since; the backend knows.
            return self.ring.submit(request, memory, now);
        }
        if self.geometry.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        let direct = request.op != Op::CompareAndWrite
            && self.knows(request, memory)
            && (!request.op.writes() || self.may_write());
        let submitted = match direct {
            true => self.engine.submit(request, memory, now),
            false => self.ring.submit(request, memory, now),
        };
        if submitted == Submitted::Pending
            && let Some(interrupts) = &mut self.interrupts
        {
            interrupts.submitted(self.now);
        }
        self.tell();
        submitted
    }

    #[inline]
    fn publish(&mut self) {
        self.engine.ring();
        self.ring.publish();
    }

    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.now = self.now.max(now);
        let mut ended = 0;
        if self.segment.lender.state.load(Ordering::Relaxed) != self.word {
            ended += self.follow(complete);
        }
        if self.ring.outstanding() > 0 {
            ended += self.ring.poll(now, complete);
        }
        let completed = self.engine.poll(now, complete);
        if completed > 0
            && let Some(interrupts) = &mut self.interrupts
        {
            interrupts.completed(self.now);
        }
        ended += completed;
        if !self.engine.outbox.is_empty() {
            self.run_errands();
        }
        if self.backend != Backend::Alive {
            ended += self.linger(complete);
        }
        self.tell();
        ended
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.engine.outstanding() + self.ring.outstanding()
    }

    fn deadline(&self) -> Option<u64> {
        let look = self.now.saturating_add(LOOK);
        match (&self.interrupts, self.engine.sent()) {
            (_, 0) if self.engine.outstanding() == 0 => None,
            (_, 0) => self.engine.deadline().or(Some(look)),
            (None, _) => Some(0),
            // Whoever would switch them on is dead.
            (Some(_), _) if self.backend != Backend::Alive => Some(look),
            (Some(interrupts), _) => {
                self.engine.deadline().into_iter().chain([interrupts.deadline(self.now)]).min()
            }
        }
    }

    fn park(&mut self) -> bool {
        self.publish();
        self.engine.acknowledge();
        let Self { engine, interrupts, segment, .. } = self;
        let parked = match interrupts {
            Some(interrupts) if engine.sent() > 0 => {
                // Relaxed: a word that comes later is found at the end of the sleep.
                interrupts.park(segment)
                    && segment.lender.state.load(Ordering::Relaxed) == self.word
            }
            _ => true,
        };
        parked && self.ring.park() && !self.engine.queue().is_some_and(BareQueue::has_completion)
    }

    fn unpark(&mut self) {
        if let Some(interrupts) = &mut self.interrupts {
            interrupts.unpark(&self.segment);
        }
        self.ring.unpark();
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.interrupts.as_ref()?.event()
    }

    fn forget(&mut self, region: &Arc<Region>) {
        self.engine.forget(region);
        self.run_errands();
    }

    fn is_gone(&self) -> bool {
        self.backend != Backend::Alive || self.engine.is_lost() || self.ring.is_gone()
    }
}

impl Drop for LeasedDrive {
    /// Nothing of it is outstanding, or its process ends.
    fn drop(&mut self) {
        self.engine.lose(&mut |_, _| {});
        self.run_errands();
        self.stopped = None;
        // Release: the queue pair is not touched after this, nor mapped.
        self.segment.holder.obeyed.store(u32::MAX, Ordering::Release);
    }
}
