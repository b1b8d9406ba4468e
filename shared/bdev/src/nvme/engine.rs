//! Requests of a drive under way: one command of each at a time, whose identifier is the request's place. On the hot
//! path: nothing here waits, locks or makes a system call; places and their vectors are used again.

use super::control::{Ask, Attachment, Told};
use super::drive::Drive;
use super::job::{Job, Next, Workshop};
use super::memory::{Memory, Place, key};
use super::places::{PlaceInUse, Reason, State, uses};
use super::status;
use crate::channel::Submitted;
use crate::error::ErrorKind;
use crate::request::{Op, Outcome, Request};
use ipc::guest_memory::{Region, RegionTable};
use nvme_driver::{BareQueue, DmaBuffer};
use nvme_spec::{CommandId, Completion, Status};
use std::collections::VecDeque;
use std::sync::Arc;

/// After this long a command is asked to be aborted; nanoseconds. A Linux guest gives its own up after 30 seconds.
const IO_TIMEOUT: u64 = 8_000_000_000;
/// So much later the controller is reset.
const ABORT_TIMEOUT: u64 = 4_000_000_000;
/// Between two looks at the age of commands.
const AGE_INTERVAL: u64 = 250_000_000;
/// How often a request's commands are sent again.
const RETRIES: u8 = 4;

enum Link {
    Up(Box<BareQueue>),
    /// With the control thread, which makes it again.
    Renewing,
    Lost,
}

/// The requests of a drive.
pub(super) struct Engine {
    link: Link,
    pub(super) drive: Drive,
    places: Vec<PlaceInUse>,
    free: Vec<u16>,
    sent: usize,
    waiting: VecDeque<u16>,
    blocked: VecDeque<u16>,
    /// Fused pairs among the requests.
    fused: usize,
    memory: Memory,
    buffers: Vec<DmaBuffer>,
    zeroes: Option<DmaBuffer>,
    pages: Vec<u64>,
    /// What the control thread is to be asked.
    pub(super) outbox: VecDeque<Ask>,
    now: u64,
    aged: u64,
    /// Something came that requests may wait for.
    stirred: bool,
    resetting: bool,
}

impl Engine {
    /// An engine of a drive.
    pub fn new(found: Attachment) -> Self {
        let depth = found.queue.depth();
        let place = |_| PlaceInUse { job: Job::new(), state: State::Free };
        Self {
            pages: Vec::with_capacity(found.queue.pages_max()),
            link: Link::Up(Box::new(found.queue)),
            drive: found.drive,
            places: (0..depth).map(place).collect(),
            free: (0..depth).rev().collect(),
            sent: 0,
            waiting: VecDeque::with_capacity(depth.into()),
            blocked: VecDeque::with_capacity(depth.into()),
            fused: 0,
            memory: Memory::default(),
            buffers: found.buffers,
            zeroes: Some(found.zeroes),
            outbox: VecDeque::new(),
            now: 0,
            aged: 0,
            stirred: false,
            resetting: false,
        }
    }

    /// The queue, if the drive has it.
    pub fn queue(&self) -> Option<&BareQueue> {
        match &self.link {
            Link::Up(queue) => Some(queue),
            Link::Renewing | Link::Lost => None,
        }
    }

    /// Requests that are under way.
    pub fn outstanding(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Commands with the drive.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The earliest time that a request waits for.
    pub fn deadline(&self) -> Option<u64> {
        let until = |&place: &u16| match self.places[usize::from(place)].state {
            State::Waiting(Reason::Until(time)) => Some(time),
            _ => None,
        };
        self.waiting.iter().filter_map(until).min()
    }

    /// Takes a request.
    pub fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        self.now = self.now.max(now);
        if matches!(self.link, Link::Lost) {
            return Submitted::Done(Err(ErrorKind::Gone));
        }
        let Some(&place) = self.free.last() else { return Submitted::Full };
        let Self { places, drive, .. } = self;
        if let Err(kind) = places[usize::from(place)].job.begin(request, memory, drive) {
            places[usize::from(place)].job.finish();
            return Submitted::Done(Err(kind));
        }
        self.free.pop();
        let fused = request.op == Op::CompareAndWrite;
        self.fused += usize::from(fused);
        if self.fused > 0 && self.must_wait(place, self.blocked.len()) {
            self.places[usize::from(place)].state = State::Blocked;
            self.blocked.push_back(place);
            return Submitted::Pending;
        }
        match self.run(place) {
            Some(outcome) => {
                self.release(place);
                Submitted::Done(outcome)
            }
            None => Submitted::Pending,
        }
    }

    /// Tells the drive of what was submitted.
    pub fn ring(&mut self) {
        if let Link::Up(queue) = &mut self.link {
            queue.ring();
        }
    }

    /// Tells the drive which completions were taken, before a pause.
    pub fn acknowledge(&mut self) {
        if let Link::Up(queue) = &mut self.link {
            queue.acknowledge();
        }
    }

    /// Takes what the drive has completed, and starts what waited for that; returns how many requests ended.
    pub fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.now = self.now.max(now);
        let before = self.free.len();
        let mut ended = 0;
        let mut count = |tag, outcome| {
            ended += 1;
            complete(tag, outcome);
        };
        while let Link::Up(queue) = &mut self.link {
            if queue.is_stale() {
                self.renew(&mut count);
                break;
            }
            let Some(completion) = queue.pop() else { break };
            self.take(&completion, &mut count);
        }
        if self.now.saturating_sub(self.aged) >= AGE_INTERVAL {
            self.aged = self.now;
            self.age();
        }
        let due = self.deadline().is_some_and(|time| time <= self.now);
        if (std::mem::take(&mut self.stirred) || due) && !self.waiting.is_empty() {
            self.wake(&mut count);
        }
        if self.free.len() > before && !self.blocked.is_empty() {
            self.unblock(&mut count);
        }
        self.ring();
        ended
    }

    /// Takes what the control thread tells.
    pub fn told(&mut self, told: Told, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        self.stirred = true;
        match told {
            Told::Memory(key, answer) => {
                self.memory.told(key, answer, &mut self.outbox);
                self.settle();
            }
            Told::Renewed(queue) => self.link = Link::Up(queue),
            Told::Changed(drive) => self.drive = drive,
            Told::Lost => return self.lose(complete),
            Told::Found(found) => {
                let Attachment { drive, queue, buffers, zeroes } = *found;
                self.link = Link::Up(Box::new(queue));
                (self.drive, self.buffers, self.zeroes) = (drive, buffers, Some(zeroes));
                self.resetting = false;
            }
        }
        0
    }

    /// Lets go of a region as soon as no request uses it.
    pub fn forget(&mut self, region: &Arc<Region>) {
        let used = uses(&self.places, key(region));
        self.memory.forget(region, used, &mut self.outbox);
    }

    /// The drive is gone: everything ends, and what may take a while to let go of is the control thread's to drop.
    pub fn lose(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        if let Link::Up(queue) = std::mem::replace(&mut self.link, Link::Lost) {
            self.outbox.push_back(Ask::Discard(queue));
        }
        self.waiting.clear();
        self.blocked.clear();
        let mut ended = 0;
        for place in 0..self.places.len() as u16 {
            if self.places[usize::from(place)].state != State::Free {
                let tag = self.release(place);
                complete(tag, Err(ErrorKind::Gone));
                ended += 1;
            }
        }
        self.sent = 0;
        self.memory.clear(&mut self.outbox);
        let buffers = (std::mem::take(&mut self.buffers), self.zeroes.take());
        self.outbox.push_back(Ask::Discard(Box::new(buffers)));
        ended
    }

    /// Runs a request until its next command is with the drive or it waits; its outcome if it is over.
    fn run(&mut self, place: u16) -> Option<Outcome> {
        let index = usize::from(place);
        if let Some(reason) = self.locate(index) {
            self.wait(place, reason);
            return None;
        }
        loop {
            let PlaceInUse { job, state } = &mut self.places[index];
            let Link::Up(queue) = &mut self.link else {
                self.wait(place, Reason::Queue);
                return None;
            };
            let mut shop = Workshop {
                drive: &self.drive,
                pages_max: queue.pages_max(),
                zeroes: self.zeroes.as_ref().map_or(0, |page| page.iova().0),
                pages: &mut self.pages,
            };
            match job.next(&mut shop) {
                Next::End(outcome) => return Some(outcome),
                Next::Buffer => match self.buffers.pop() {
                    Some(buffer) => job.buffer = Some(buffer),
                    None => {
                        self.wait(place, Reason::Buffer);
                        return None;
                    }
                },
                Next::Send(mut command) => {
                    command.cdw0.set_cid(CommandId(place));
                    if !queue.push(command, &self.pages) {
                        // A drive that came back with a shorter queue.
                        return Some(Err(ErrorKind::Busy));
                    }
                    *state = State::Sent { at: self.now, aborted: false };
                    self.sent += 1;
                    return None;
                }
            }
        }
    }

    /// Finds where a request's memory is; what to wait for if that is not known yet.
    #[inline]
    fn locate(&mut self, index: usize) -> Option<Reason> {
        let mut coming = false;
        for piece in self.places[index].job.pieces_mut() {
            if piece.place == Place::Coming {
                piece.place = self.memory.find(&piece.region, &mut self.outbox);
                coming |= piece.place == Place::Coming;
            }
        }
        coming.then_some(Reason::Memory)
    }

    fn wait(&mut self, place: u16, reason: Reason) {
        self.places[usize::from(place)].state = State::Waiting(reason);
        self.waiting.push_back(place);
    }

    /// Takes a completion.
    #[inline]
    fn take(&mut self, completion: &Completion, complete: &mut impl FnMut(u32, Outcome)) {
        let place = completion.cid.0;
        let known = self.places.get_mut(usize::from(place));
        let Some(PlaceInUse { job, state: State::Sent { aborted, .. } }) = known else {
            // Nothing that it says is believed before it is reset.
            return self.reset("it completed a command that was not outstanding");
        };
        let aborted = *aborted;
        self.sent -= 1;
        let status = completion.status();
        let outcome = match status.is_success() {
            true => job.succeeded().err().map(Err),
            false => self.failed(place, status, aborted),
        };
        if matches!(self.places[usize::from(place)].state, State::Waiting(_)) {
            return;
        }
        if let Some(outcome) = outcome.or_else(|| self.run(place)) {
            let tag = self.release(place);
            complete(tag, outcome);
        }
    }

    /// A command failed: its request's outcome, unless it goes on or waits.
    #[cold]
    fn failed(&mut self, place: u16, status: Status, aborted: bool) -> Option<Outcome> {
        let job = &mut self.places[usize::from(place)].job;
        if aborted && status.code() == Status::ABORT_REQUESTED {
            return Some(Err(ErrorKind::Busy));
        }
        if status::is_unknown(status) && job.fall_back(&mut self.drive) {
            return None;
        }
        if !status::may_succeed_later(status) || job.retries >= RETRIES {
            return Some(Err(status::kind(status)));
        }
        job.retries += 1;
        let delay = self.drive.delays[usize::from(status.crd()) & 3];
        if delay > 0 {
            self.wait(place, Reason::Until(self.now.saturating_add(delay)));
        }
        None
    }

    /// Frees a place; its request's tag.
    fn release(&mut self, place: u16) -> u32 {
        let PlaceInUse { job, state } = &mut self.places[usize::from(place)];
        *state = State::Free;
        self.fused -= usize::from(job.op == Op::CompareAndWrite);
        let tag = job.tag;
        job.op = Op::Flush;
        job.finish();
        if let Some(buffer) = job.buffer.take() {
            self.buffers.push(buffer);
            self.stirred = true;
        }
        self.free.push(place);
        self.settle();
        tag
    }

    /// Lets go of memory that waits for its last request to end.
    #[inline]
    fn settle(&mut self) {
        if self.memory.is_leaving() {
            let Self { places, memory, outbox, .. } = self;
            memory.settle(|key| uses(places, key), outbox);
        }
    }

    /// The controller was disabled: what it had is over and is sent again to its successor.
    #[cold]
    fn renew(&mut self, complete: &mut impl FnMut(u32, Outcome)) {
        if let Link::Up(queue) = std::mem::replace(&mut self.link, Link::Renewing) {
            self.outbox.push_back(Ask::Renew(queue));
        }
        self.resetting = false;
        self.sent = 0;
        for place in 0..self.places.len() as u16 {
            let PlaceInUse { job, state } = &mut self.places[usize::from(place)];
            if !matches!(state, State::Sent { .. }) {
                continue;
            }
            job.retries += 1;
            if job.retries > RETRIES {
                let tag = self.release(place);
                complete(tag, Err(ErrorKind::Busy));
            } else {
                self.wait(place, Reason::Queue);
            }
        }
    }

    /// Starts what has waited and need not any more.
    #[cold]
    fn wake(&mut self, complete: &mut impl FnMut(u32, Outcome)) {
        for _ in 0..self.waiting.len() {
            let Some(place) = self.waiting.pop_front() else { break };
            if let State::Waiting(Reason::Until(time)) = self.places[usize::from(place)].state
                && time > self.now
            {
                self.waiting.push_back(place);
            } else if let Some(outcome) = self.run(place) {
                let tag = self.release(place);
                complete(tag, outcome);
            }
        }
    }

    /// Whether a request must wait: one that excludes it is under way, or is among the first `older` that wait.
    fn must_wait(&self, place: u16, older: usize) -> bool {
        let job = &self.places[usize::from(place)].job;
        let excluded =
            |index: usize| index != usize::from(place) && self.places[index].job.excludes(job);
        let under_way = |index: usize| {
            matches!(self.places[index].state, State::Sent { .. } | State::Waiting(_))
        };
        (0..self.places.len()).any(|index| under_way(index) && excluded(index))
            || self.blocked.iter().take(older).any(|&place| excluded(place.into()))
    }

    /// Starts requests that were excluded and are not any more.
    #[cold]
    fn unblock(&mut self, complete: &mut impl FnMut(u32, Outcome)) {
        let mut at = 0;
        while let Some(&place) = self.blocked.get(at) {
            if self.must_wait(place, at) {
                at += 1;
                continue;
            }
            self.blocked.remove(at);
            if let Some(outcome) = self.run(place) {
                let tag = self.release(place);
                complete(tag, outcome);
            }
        }
    }

    /// Aborts what is too old, and has the controller reset if that was in vain.
    #[cold]
    fn age(&mut self) {
        let Some(queue) = self.queue().map(BareQueue::id) else { return };
        let mut hopeless = false;
        for (place, entry) in self.places.iter_mut().enumerate() {
            let State::Sent { at, aborted } = &mut entry.state else { continue };
            let age = self.now.saturating_sub(*at);
            if age >= IO_TIMEOUT && !*aborted {
                *aborted = true;
                tracing::warn!(place, "drive is slow, command is aborted");
                self.outbox.push_back(Ask::Abort(queue, CommandId(place as u16)));
            }
            hopeless |= age >= IO_TIMEOUT + ABORT_TIMEOUT;
        }
        if hopeless {
            self.reset("an aborted command did not complete");
        }
    }

    #[cold]
    fn reset(&mut self, why: &'static str) {
        if !self.resetting {
            tracing::warn!(why, "drive is reset");
            self.resetting = true;
            self.outbox.push_back(Ask::Reset);
        }
    }
}
