//! One queue pair under load. Hot path: nothing is allocated, formatted or asked of the system between two completions;
//! the clock is read once for a handful of them.

use nvme_driver::{Completed, DmaBuffer, IoError, Namespace, Next, QueuePair, Reason, Request};
use nvme_spec::Lba;

use super::address::{Access, Addresses};
use super::checking::Checking;
use super::clock::Clock;
use super::pace::Pace;
use super::tally::{Tally, Timeline};

/// Completions taken before the controller is told of what they made room for.
const BATCH: usize = 16;
/// Nanoseconds that a turn does not take.
const HELD_UP: u64 = 2_000;
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

/// An I/O that ended and has a successor in its slot; both are looked at when the controller knows of the successor.
#[derive(Debug, Clone, Copy, Default)]
struct Ended {
    slot: u32,
    write: bool,
    good: bool,
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
    ended: [Ended; BATCH],
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
            ended: [Ended::default(); BATCH],
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

    /// Starts I/Os on idle slots and takes completions, each of which starts the next, after up to `looks` whether there
    /// are some. Returns how many it took.
    #[inline]
    pub fn turn(&mut self, clock: &Clock, looks: u32) -> usize {
        if !self.idle.is_empty() {
            self.start_idle(clock);
        }
        if self.pace.is_some() || self.checking.is_some() || self.stopping {
            return self.take(clock);
        }
        let before = clock.now();
        for _ in 0..looks {
            if self.queue.has_completion() {
                break;
            }
        }
        let (mut taken, mut ended) = (0, 0);
        // To be told of the first comes before thinking of what may follow a second.
        while taken == 0 || (taken < BATCH && self.queue.has_completion()) {
            let Some(next) = self.repeat() else { break };
            taken += 1;
            let (slot, good) = match next {
                Next::Repeated(token) => (token as u32, true),
                Next::Over(Completed { token, buffer, result }) => {
                    self.restart(token as u32, buffer, result)
                }
            };
            let Some(flight) = self.flights.get_mut(slot as usize) else { continue };
            if let Some(last) = self.ended.get_mut(ended) {
                *last = Ended { slot, write: flight.access.write, good };
                ended += 1;
            }
            flight.access = self.upcoming;
            self.upcoming_used = true;
        }
        self.queue.ring();
        if ended > 0 {
            self.count(clock, before, ended);
        }
        taken
    }

    /// The next completion; what succeeded goes on to the next block if that is read or written likewise.
    #[inline(always)]
    fn repeat(&mut self) -> Option<Next> {
        self.think();
        let Self { queue, flights, upcoming, geometry, namespace, .. } = self;
        queue.next_or_repeat(namespace, |token, _| {
            let flight = flights.get(token as usize)?;
            (flight.access.write == upcoming.write).then(|| Lba(geometry.lba(upcoming.block)))
        })
    }

    /// Starts the next I/O in the slot of one that is over; the slot, and whether that one succeeded.
    fn restart(
        &mut self,
        slot: u32,
        buffer: Option<DmaBuffer>,
        result: Result<u32, IoError>,
    ) -> (u32, bool) {
        let Some(&Flight { access, .. }) = self.flights.get(slot as usize) else {
            return (slot, false);
        };
        let good = result.is_ok();
        if let Err(error) = result {
            self.failed(access, error);
        }
        match buffer {
            Some(buffer) => drop(self.start(slot, buffer, self.upcoming)),
            None => self.broken("the driver lost a buffer"),
        }
        (slot, good)
    }

    /// Counts what ended, and thinks of what comes next, while the controller is at work. What was told to the controller
    /// a moment ago begins now, unless that is much later than `before`, when nothing had ended yet: this thread was held
    /// up, and nothing may seem faster than it was.
    #[inline]
    fn count(&mut self, clock: &Clock, before: u64, ended: usize) {
        let now = clock.now();
        let begun = if clock.nanos(before, now) < HELD_UP { now } else { before };
        for &Ended { slot, write, good } in self.ended.iter().take(ended) {
            let Some(flight) = self.flights.get_mut(slot as usize) else { continue };
            let start = std::mem::replace(&mut flight.start, begun);
            if good {
                self.counts.count(write, clock.nanos(start, now));
            }
        }
        self.think();
    }

    /// Takes completions, and starts nothing in their place: that is for `start_idle`.
    fn take(&mut self, clock: &Clock) -> usize {
        let mut taken = 0;
        let mut now = 0;
        while taken < BATCH {
            let Some(Completed { token, buffer, result }) = self.queue.next_completion() else {
                break;
            };
            if taken % CLOCK_EVERY == 0 {
                now = clock.now();
            }
            taken += 1;
            let slot = token as u32;
            let Some(&Flight { start, access }) = self.flights.get(slot as usize) else { continue };
            let Some(buffer) = buffer else {
                self.broken("the driver lost a buffer");
                break;
            };
            let good = result.is_ok();
            match result {
                Ok(_) => self.counts.count(access.write, clock.nanos(start, now)),
                Err(error) => self.failed(access, error),
            }
            self.settle(access, &buffer, good);
            self.idle.push((slot, buffer));
        }
        self.queue.ring();
        taken
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

    /// Submits one I/O.
    #[inline]
    fn start(&mut self, slot: u32, buffer: DmaBuffer, access: Access) -> bool {
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
            if let Some(flight) = self.flights.get_mut(slot as usize) {
                *flight = Flight { start: now, access };
            }
            if !self.start(slot, buffer, access) {
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
                let access = Access { block, write: false };
                if let Some(flight) = self.flights.get_mut(slot as usize) {
                    *flight = Flight { start: 0, access };
                }
                self.start(slot, buffer, access);
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

impl Counts {
    /// An I/O that succeeded took so long.
    #[inline]
    fn count(&mut self, write: bool, nanos: u64) {
        self.kinds[usize::from(write)].record(nanos);
        self.timeline.record(nanos);
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
