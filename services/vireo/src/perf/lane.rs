//! One queue pair under load. Hot path: nothing is allocated, formatted or asked of the system between two completions;
//! the clock is read once for a handful of them.

use nvme_driver::{Completed, DmaBuffer, IoError, Namespace, QueuePair, Reason, Request};
use nvme_spec::Lba;

use super::address::{Access, Addresses};
use super::checking::Checking;
use super::clock::Clock;
use super::pace::Pace;
use super::tally::{Tally, Timeline};

/// Completions taken before the controller is told of what they made room for.
const BATCH: usize = 16;
/// Completions between two looks at the clock within a batch.
const CLOCK_EVERY: usize = 8;
/// Descriptions of damage or errors that are kept.
pub(super) const NOTES_MAX: usize = 8;

/// An I/O that is outstanding.
#[derive(Debug, Clone, Copy)]
struct Flight {
    start: u64,
    access: Access,
}

/// What a lane counted.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Reads, then writes.
    pub kinds: [Tally; 2],
    /// The time line.
    pub timeline: Timeline,
    /// I/Os that failed.
    pub errors: u64,
    /// What the first of them said.
    pub notes: Vec<String>,
}

/// Where blocks lie in the namespace.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// First logical block of the range.
    pub first_lba: u64,
    /// Logical blocks of one I/O.
    pub lbas: u64,
}

/// One queue pair with its buffers.
#[derive(Debug)]
pub struct Lane {
    queue: QueuePair,
    namespace: Namespace,
    geometry: Geometry,
    addresses: Addresses,
    upcoming: Access,
    /// It was started, and the next one is not thought of yet.
    upcoming_used: bool,
    /// What is to be counted when the controller knows what comes next: ticks that it took, and whether it was a write.
    ended: [(u64, bool); BATCH],
    flights: Box<[Flight]>,
    /// Slots without an I/O, with their buffers.
    idle: Vec<(u32, DmaBuffer)>,
    pace: Option<Pace>,
    /// Checking, if it was asked for.
    pub checking: Option<Box<Checking>>,
    /// What was counted.
    pub counts: Counts,
    /// Why it cannot go on.
    pub fatal: Option<String>,
    stopping: bool,
}

impl Lane {
    /// A lane of as many slots as there are buffers, each of the size of one I/O.
    #[must_use]
    pub fn new(
        queue: QueuePair,
        namespace: Namespace,
        geometry: Geometry,
        mut addresses: Addresses,
        buffers: Vec<DmaBuffer>,
        checking: Option<Checking>,
    ) -> Self {
        let upcoming = addresses.next_access();
        let flights = vec![Flight { start: 0, access: upcoming }; buffers.len()];
        let idle = buffers.into_iter().enumerate();
        Self {
            queue,
            namespace,
            geometry,
            addresses,
            upcoming,
            upcoming_used: false,
            ended: [(0, false); BATCH],
            flights: flights.into_boxed_slice(),
            // The first slot last, as it is taken from the end.
            idle: idle.map(|(slot, buffer)| (slot as u32, buffer)).rev().collect(),
            pace: None,
            checking: checking.map(Box::new),
            counts: Counts {
                kinds: [Tally::new(), Tally::new()],
                timeline: Timeline::new(0, u64::MAX, 0),
                errors: 0,
                notes: Vec::new(),
            },
            fatal: None,
            stopping: false,
        }
    }

    /// The limit on its rate, from its start on.
    pub fn set_pace(&mut self, pace: Option<Pace>) {
        self.pace = pace;
    }

    /// Forgets what was counted: the warm-up is over.
    pub fn start_counting(&mut self, timeline: Timeline) {
        self.counts.kinds.iter_mut().for_each(Tally::clear);
        self.counts.timeline = timeline;
    }

    /// No new I/O is started from now on.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether I/Os are outstanding.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.idle.len() < self.flights.len() && self.fatal.is_none()
    }

    /// The queue pair.
    pub fn queue_mut(&mut self) -> &mut QueuePair {
        &mut self.queue
    }

    /// The queue pair.
    #[must_use]
    pub fn queue(&self) -> &QueuePair {
        &self.queue
    }

    /// Starts I/Os on idle slots and takes completions, each of which starts the next. Returns how many it took.
    #[inline]
    pub fn turn(&mut self, clock: &Clock) -> usize {
        if !self.idle.is_empty() {
            self.start_idle(clock);
        }
        let (mut taken, mut good) = (0, 0);
        let mut now = 0;
        while taken < BATCH {
            // Taken apart at once: a whole one that is copied waits for its parts to be stored.
            let Some(Completed { token, buffer, result }) = self.queue.next_completion() else {
                break;
            };
            if taken % CLOCK_EVERY == 0 {
                now = clock.now();
            }
            taken += 1;
            self.complete(token as u32, buffer, result, now, &mut good);
        }
        self.queue.ring();
        if good > 0 {
            self.count(clock, good);
        }
        taken
    }

    /// Counts what ended, and thinks of what comes next, while the controller is at work.
    #[inline]
    fn count(&mut self, clock: &Clock, good: usize) {
        for &(ticks, write) in self.ended.iter().take(good) {
            let nanos = clock.nanos(0, ticks);
            self.counts.kinds[usize::from(write)].record(nanos);
            self.counts.timeline.record(nanos);
        }
        self.think();
    }

    /// Sees to it that the next I/O is known.
    #[inline(always)]
    fn think(&mut self) {
        if self.upcoming_used {
            self.upcoming_used = false;
            self.upcoming = self.addresses.next_access();
        }
    }

    /// Ends what is over of the time line.
    #[inline]
    pub fn keep_time(&mut self, now: u64) {
        if self.counts.timeline.is_due(now) {
            self.counts.timeline.advance(now);
        }
    }

    #[inline(always)]
    fn complete(
        &mut self,
        slot: u32,
        buffer: Option<DmaBuffer>,
        result: Result<u32, IoError>,
        now: u64,
        counted: &mut usize,
    ) {
        let Some(&Flight { start, access }) = self.flights.get(slot as usize) else { return };
        let Some(buffer) = buffer else {
            return self.broken("the driver lost a buffer");
        };
        let good = result.is_ok();
        if good && let Some(ended) = self.ended.get_mut(*counted) {
            *ended = (now.saturating_sub(start), access.write);
            *counted += 1;
        }
        if let Err(error) = result {
            self.failed(access, error);
        }
        if self.checking.is_some() {
            self.settle(access, &buffer, good);
        }
        if self.pace.is_some() || self.stopping || self.checking.is_some() {
            // The slow way: taken up again by `start_idle`.
            self.idle.push((slot, buffer));
            return;
        }
        self.think();
        self.start(slot, buffer, self.upcoming, now);
        self.upcoming_used = true;
    }

    /// Submits one I/O.
    #[inline]
    fn start(&mut self, slot: u32, buffer: DmaBuffer, access: Access, start: u64) -> bool {
        if let Some(flight) = self.flights.get_mut(slot as usize) {
            *flight = Flight { start, access };
        }
        let lba = Lba(self.geometry.lba(access.block));
        let request = match access.write {
            false => Request::read(&self.namespace, lba, buffer),
            true => Request::write(&self.namespace, lba, buffer),
        };
        match self.queue.submit(request.with_token(slot.into())) {
            Ok(()) => true,
            Err(rejected) => {
                self.rejected(slot, rejected.reason, rejected.request.into_buffer());
                false
            }
        }
    }

    /// A full queue is tried again; anything else ends the run.
    #[cold]
    fn rejected(&mut self, slot: u32, reason: Reason, buffer: Option<DmaBuffer>) {
        if let Some(buffer) = buffer {
            self.idle.push((slot, buffer));
        }
        if reason != Reason::Full {
            self.broken(&reason.to_string());
        }
    }

    #[cold]
    fn broken(&mut self, why: &str) {
        if self.fatal.is_none() {
            self.fatal = Some(why.to_owned());
        }
    }

    #[cold]
    fn failed(&mut self, access: Access, error: IoError) {
        self.counts.errors += 1;
        if error == IoError::Gone {
            self.broken("controller is gone: its target ended, or the device was removed");
        }
        if self.counts.notes.len() < NOTES_MAX {
            let kind = if access.write { "write" } else { "read" };
            let lba = self.geometry.lba(access.block);
            self.counts.notes.push(format!("{kind} of block {lba}: {error}"));
        }
    }

    /// Starts I/Os on idle slots as far as the rate and the ledger allow.
    fn start_idle(&mut self, clock: &Clock) {
        if self.stopping || self.fatal.is_some() {
            return;
        }
        let mut now = clock.now();
        self.think();
        while let Some((slot, buffer)) = self.idle.pop() {
            if let Some(pace) = &mut self.pace
                && !pace.take(now)
            {
                self.idle.push((slot, buffer));
                return;
            }
            let mut access = self.upcoming;
            let mut buffer = buffer;
            if let Some(checking) = &mut self.checking {
                if !checking.prepare(&mut access, &mut buffer, self.geometry) {
                    self.idle.push((slot, buffer));
                    break;
                }
                now = clock.now();
            }
            if !self.start(slot, buffer, access, now) {
                if let Some(checking) = &mut self.checking {
                    checking.unclaim(access);
                }
                break;
            }
            self.upcoming = self.addresses.next_access();
        }
        if let Some(pace) =
            self.pace.as_mut().filter(|_| self.fatal.is_none() && !self.idle.is_empty())
        {
            // Taken for an I/O that was not started.
            pace.give_back();
        }
        self.queue.ring();
    }

    /// After a completion with checking: looks at what was read, writes down what was written.
    fn settle(&mut self, access: Access, buffer: &DmaBuffer, good: bool) {
        let Some(checking) = &mut self.checking else { return };
        if good && !access.write {
            checking.judge(access.block, buffer, self.geometry);
        }
        checking.finish(access, good);
    }

    /// Reads again what was written, one I/O after the other on every slot, and checks it. `go_on` is asked now and
    /// then, and ends it early when it says no.
    pub fn sweep(&mut self, mut go_on: impl FnMut() -> bool) {
        let blocks: Vec<u64> = match self.checking.as_deref() {
            Some(Checking { ledger: Some(ledger), sweep_all, .. }) => {
                ledger.sweep(*sweep_all).collect()
            }
            _ => return,
        };
        let mut blocks = blocks.into_iter();
        let mut more = true;
        while (more || self.is_busy()) && self.fatal.is_none() {
            while more && !self.idle.is_empty() {
                more = go_on();
                let Some(block) = blocks.next().filter(|_| more) else {
                    more = false;
                    break;
                };
                let Some((slot, buffer)) = self.idle.pop() else { break };
                self.start(slot, buffer, Access { block, write: false }, 0);
            }
            self.queue.ring();
            let Some(done) = self.queue.next_completion() else {
                more &= go_on();
                match self.queue.event() {
                    Some(_) => self.queue.wait(std::time::Duration::from_millis(20)),
                    None => std::hint::spin_loop(),
                }
                continue;
            };
            let slot = done.token as u32;
            let access = self.flights.get(slot as usize).map(|flight| flight.access);
            let (Some(access), Some(buffer)) = (access, done.buffer) else {
                return self.broken("the driver lost a buffer");
            };
            match (done.result, &mut self.checking) {
                (Err(error), _) => self.failed(access, error),
                (Ok(_), Some(checking)) => checking.judge(access.block, &buffer, self.geometry),
                (Ok(_), None) => {}
            }
            self.idle.push((slot, buffer));
        }
    }
}

impl Geometry {
    /// First logical block of an I/O.
    #[inline]
    #[must_use]
    pub fn lba(&self, block: u64) -> u64 {
        self.first_lba + block * self.lbas
    }
}
