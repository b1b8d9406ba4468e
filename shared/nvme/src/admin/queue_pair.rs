//! The admin queue pair in guest memory: fetches entries, posts completions.

use crate::admin::Outcome;
use crate::admin::event::Event;
use crate::controller::doorbell::Told;
use crate::controller::state::State;
use crate::controller::work::MAX_WORK;
use crate::controller::{Context, Controller, Effect};
use ipc::Iova;
use nvme_spec::command::Command;
use nvme_spec::register::{AdminQueueBase, Aqa};
use nvme_spec::{CommandId, Completion, QueueId, Status};
use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use zerocopy::IntoBytes;

/// Commands handled in one call; the caller looks at its other clients before the next.
const BURST: usize = 16;
/// Doorbell of the admin submission queue's tail.
const TAIL: usize = 0;
/// Doorbell of the admin completion queue's head.
const HEAD: usize = 1;

/// The admin queue pair as long as the controller is enabled.
#[derive(Debug, Default)]
pub(crate) struct AdminQueue {
    sq_entries: u32,
    cq_entries: u32,
    sq: u64,
    cq: u64,
    /// Commands fetched.
    fetched: u64,
    /// Completions posted.
    posted: u64,
    /// Completions that the host took.
    taken: u64,
    /// Completions that wait for room: at most as many as there are commands fetched and not completed, which
    /// [`MAX_WORK`], the held event requests and [`BURST`] bound.
    backlog: VecDeque<Outgoing>,
    /// Invalid values of the two doorbells that the host was told of.
    invalid: [Option<u32>; 2],
    /// What it was told of those that workers report.
    pub(crate) told: Told,
}

/// A completion without its place in the queue.
#[derive(Clone, Copy, Debug)]
struct Outgoing {
    cid: CommandId,
    dw0: u32,
    status: Status,
}

impl AdminQueue {
    pub(crate) fn new(aqa: Aqa, asq: AdminQueueBase, acq: AdminQueueBase) -> Self {
        Self {
            sq_entries: u32::from(aqa.asqs_z()) + 1,
            cq_entries: u32::from(aqa.acqs_z()) + 1,
            sq: asq.into_bits(),
            cq: acq.into_bits(),
            ..Self::default()
        }
    }

    pub(crate) fn sq_entries(&self) -> u32 {
        self.sq_entries
    }

    pub(crate) fn cq_entries(&self) -> u32 {
        self.cq_entries
    }

    pub(crate) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }
}

impl Controller {
    /// Handles the commands in the admin submission queue, a bounded number of them. True if there are more that could
    /// be handled at once.
    pub fn process_admin(&mut self, cx: &mut Context<'_>) -> bool {
        self.poll(cx);
        for _ in 0..BURST {
            if !self.can_fetch(cx) {
                break;
            }
            self.fetch(cx);
        }
        self.poll(cx);
        self.can_fetch(cx)
    }

    /// The command with identifier `cid` is over.
    pub(crate) fn finish(&mut self, cid: CommandId, outcome: Result<u32, Status>) {
        let (dw0, status) = match outcome {
            Ok(dw0) => (dw0, Status::SUCCESS),
            Err(status) => (0, status),
        };
        self.admin.backlog.push_back(Outgoing { cid, dw0, status });
    }

    /// Tells events to requests that are held, and posts completions as far as there is room.
    pub(crate) fn deliver(&mut self, cx: &mut Context<'_>) {
        if self.state != State::Enabled || !self.bus_master {
            return;
        }
        self.take_head(cx);
        self.match_events();
        let mut posted = false;
        while let Some(&outgoing) = self.admin.backlog.front() {
            let used = self.admin.posted.wrapping_sub(self.admin.taken);
            if used + 1 >= u64::from(self.admin.cq_entries) {
                break;
            }
            self.admin.backlog.pop_front();
            if !self.post(outgoing, cx) {
                self.fail(cx);
                return;
            }
            posted = true;
        }
        if posted {
            self.segment.admin.posted.store(self.admin.posted, Ordering::Release);
            cx.effect(Effect::Signal { vector: 0 });
        }
    }

    fn can_fetch(&mut self, cx: &mut Context<'_>) -> bool {
        let idle = self.state == State::Enabled
            && self.bus_master
            && self.work.len() < MAX_WORK
            && self.admin.backlog.len() < BURST;
        idle && self.tail(cx).is_some_and(|tail| {
            u64::from(tail) != self.admin.fetched % u64::from(self.admin.sq_entries.max(1))
        })
    }

    /// The tail that the host wrote, if it is one.
    fn tail(&mut self, cx: &mut Context<'_>) -> Option<u32> {
        let tail = cx.doorbells.load(TAIL);
        if tail < self.admin.sq_entries {
            return Some(tail);
        }
        self.invalid_doorbell(TAIL, tail);
        None
    }

    /// Takes over the head that the host wrote: the completions it took.
    fn take_head(&mut self, cx: &mut Context<'_>) {
        let entries = u64::from(self.admin.cq_entries);
        let value = cx.doorbells.load(HEAD);
        if entries == 0 {
            return;
        }
        let newly = (u64::from(value) + entries - self.admin.taken % entries) % entries;
        let outstanding = self.admin.posted.wrapping_sub(self.admin.taken);
        if u64::from(value) >= entries || newly > outstanding {
            self.invalid_doorbell(HEAD, value);
            return;
        }
        self.admin.taken += newly;
        self.segment.admin.taken.store(self.admin.taken, Ordering::Relaxed);
    }

    fn invalid_doorbell(&mut self, index: usize, value: u32) {
        if let Some(told) = self.admin.invalid.get_mut(index)
            && *told != Some(value)
        {
            *told = Some(value);
            self.raise(Event::InvalidDoorbellValue);
        }
    }

    /// Copies the next entry, once, and runs it.
    fn fetch(&mut self, cx: &mut Context<'_>) {
        let slot = self.admin.fetched % u64::from(self.admin.sq_entries.max(1));
        let mut command = Command::default();
        let at = Iova(self.admin.sq.wrapping_add(slot * size_of::<Command>() as u64));
        if cx.memory.read(at, command.as_mut_bytes()).is_err() {
            self.fail(cx);
            return;
        }
        self.admin.fetched += 1;
        self.segment.admin.fetched.store(self.admin.fetched, Ordering::Relaxed);
        let cid = command.cid();
        match self.execute(&command, cx) {
            Ok(Outcome::Done(dw0)) => self.finish(cid, Ok(dw0)),
            Ok(Outcome::Pending) => {}
            Err(status) => {
                self.errors.record(QueueId::ADMIN, cid, status, command.nsid);
                self.finish(cid, Err(status));
            }
        }
    }

    /// Writes an entry, phase last. False if the queue is not memory any more.
    fn post(&mut self, outgoing: Outgoing, cx: &mut Context<'_>) -> bool {
        let entries = u64::from(self.admin.cq_entries.max(1));
        let slot = self.admin.posted % entries;
        let phase = (self.admin.posted / entries).is_multiple_of(2);
        let head = self.admin.fetched % u64::from(self.admin.sq_entries.max(1));
        let Outgoing { cid, dw0, status } = outgoing;
        let entry = Completion::new(QueueId::ADMIN, cid, head as u16, status)
            .with_dw0(dw0)
            .with_phase(phase);
        let [low, high] = entry.into_halves();
        let at = self.admin.cq.wrapping_add(slot * size_of::<Completion>() as u64);
        if cx.memory.write(Iova(at), low.as_bytes()).is_err() {
            return false;
        }
        // Release: the host that sees the phase sees the rest, and what the command did to its memory.
        fence(Ordering::Release);
        if cx.memory.write(Iova(at.wrapping_add(8)), high.as_bytes()).is_err() {
            return false;
        }
        self.admin.posted += 1;
        true
    }
}
