//! Requests of a drive under way: each in one part or several, one command of each part at a time, whose identifier is the
//! part's place. On the hot path: nothing here waits, locks or makes a system call; places and their vectors are used
//! again.
//!
//! The same runs in a backend, over its own queue pair, and in a worker, over one that it has leased; see
//! [`super::lease`] for who does there what the control thread does here.

mod age;
mod link;
mod submit;

use super::control::{Ask, Attachment};
use super::drive::Drive;
use super::gate::Gates;
use super::job::{Job, Next, Workshop};
use super::memory::{Memory, Place};
use super::parts::Groups;
use super::places::{Member, PlaceInUse, Reason, State};
use super::status;
use crate::error::ErrorKind;
use crate::request::{Op, Outcome};
use age::AGE_INTERVAL;
use nvme_driver::{BareQueue, DmaBuffer};
use nvme_spec::{CommandId, Completion, Status};
use std::collections::VecDeque;

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
    groups: Groups,
    /// Requests under way.
    requests: usize,
    /// Parts under way that change the device.
    writing: usize,
    /// Fused pairs among the requests.
    fused: usize,
    pub(super) memory: Memory,
    /// Leases of other queue pairs of the same namespace.
    pub(super) gates: Gates,
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
        let place = |_| PlaceInUse { job: Job::new(), state: State::Free, group: None };
        Self {
            pages: Vec::with_capacity(found.queue.pages_max()),
            link: Link::Up(Box::new(found.queue)),
            drive: found.drive,
            places: (0..depth).map(place).collect(),
            free: (0..depth).rev().collect(),
            sent: 0,
            waiting: VecDeque::with_capacity(depth.into()),
            blocked: VecDeque::with_capacity(depth.into()),
            groups: Groups::new(depth),
            requests: 0,
            writing: 0,
            fused: 0,
            memory: Memory::default(),
            gates: Gates::default(),
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
        self.requests
    }

    /// Whether something under way changes the device.
    pub fn is_writing(&self) -> bool {
        self.writing > 0
    }

    /// Whether the drive is lost.
    pub fn is_lost(&self) -> bool {
        matches!(self.link, Link::Lost)
    }

    /// Commands with the drive.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// The earliest time that a request waits for.
    pub fn deadline(&self) -> Option<u64> {
        if self.is_gated() {
            // Nobody signals when the last leased write has ended.
            return Some(0);
        }
        let until = |&place: &u16| match self.places[usize::from(place)].state {
            State::Waiting(Reason::Until(time)) => Some(time),
            _ => None,
        };
        self.waiting.iter().filter_map(until).min()
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
            if completion.sqid != queue.id() {
                self.reset("it completed a command of another queue");
                break;
            }
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
        if (self.free.len() > before || self.is_gated()) && !self.blocked.is_empty() {
            self.unblock(&mut count);
        }
        self.ring();
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
            let PlaceInUse { job, state, .. } = &mut self.places[index];
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
        let Some(PlaceInUse { job, state: State::Sent { aborted, .. }, .. }) = known else {
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
            self.finish(place, outcome, complete);
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

    /// Ends a part that is under way, and its request if it was the last one.
    #[inline]
    fn finish(&mut self, place: u16, outcome: Outcome, complete: &mut impl FnMut(u32, Outcome)) {
        let group = self.places[usize::from(place)].group;
        let tag = self.release(place);
        let ended = match group {
            None => Some((tag, outcome)),
            Some(Member { group, number }) => self.groups.end(group, number, outcome),
        };
        if let Some((tag, outcome)) = ended {
            self.requests -= 1;
            complete(tag, outcome);
        }
    }

    /// Frees a place; its request's tag.
    fn release(&mut self, place: u16) -> u32 {
        let PlaceInUse { job, state, group } = &mut self.places[usize::from(place)];
        *state = State::Free;
        *group = None;
        self.writing -= usize::from(job.op.writes());
        if job.op == Op::CompareAndWrite {
            self.fused -= 1;
            if self.fused == 0 && !self.gates.is_empty() {
                self.gates.set_exclusive(false);
            }
        }
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
                self.finish(place, outcome, complete);
            }
        }
    }
}
