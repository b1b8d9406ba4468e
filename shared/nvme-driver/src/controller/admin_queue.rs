//! The admin queue: one command at a time for whoever asks, Abort without waiting, event requests that stay outstanding.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvme_spec::command::admin::AbortDword10;
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::register::{Aqa, DoorbellKind, doorbell_offset};
use nvme_spec::{AdminOpcode, Command, CommandId, Completion, Iova, QueueId};

use super::{AdminData, Inner};
use crate::doorbell::Bell;
use crate::error::Error;
use crate::memory::{Domain, Registered};
use crate::ring::{CompletionRing, SubmissionRing};
use crate::transport::Transport;

/// Entries of both rings. Few are ever outstanding: event requests, aborts, and one command that is waited for.
const ENTRIES: u32 = 32;
/// Commands outstanding at a time; a ring of N entries holds N - 1.
const SLOTS: usize = ENTRIES as usize - 1;
/// Most event requests outstanding; more than that many events at once wait in the controller.
const EVENT_REQUESTS_MAX: usize = 4;
/// Events kept for a caller who does not ask; older ones are dropped, since each only says "look again".
const EVENTS_MAX: usize = 64;
/// How often a wait looks at whether the target still lives.
const LIVENESS_INTERVAL: Duration = Duration::from_millis(1);

/// What became of an outstanding command.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Free,
    /// Somebody waits for it.
    Waiting,
    /// It is done, and its caller has not looked yet.
    Done(Completion),
    /// An Asynchronous Event Request.
    Event,
    /// Nobody waits for it (any more); its data page is not used again before it is done.
    Forgotten,
    /// An Abort, which nobody waits for.
    Abort,
}

/// The admin queue pair with the data pages of its commands.
#[derive(Debug)]
pub(crate) struct AdminQueue {
    sq: SubmissionRing,
    cq: CompletionRing,
    sq_bell: Bell,
    cq_bell: Bell,
    slots: [Slot; SLOTS],
    /// A page for each ring, then one for each slot.
    memory: Registered,
    page: usize,
    events: VecDeque<AsyncEvent>,
    /// What the controller takes: event requests, aborts.
    event_requests: usize,
    aborts: usize,
    /// The controller completed what was never asked: nothing that it says is believed until it is reset.
    broken: bool,
}

impl AdminQueue {
    pub(crate) fn new(
        transport: &Arc<dyn Transport>,
        domain: &Arc<Domain>,
        dstrd: u8,
        page_shift: u32,
    ) -> Result<Self, Error> {
        let page = 1_usize << page_shift;
        let memory = Registered::allocate(domain, page * (2 + SLOTS))?;
        let rings =
            (SubmissionRing::new(&memory, 0, ENTRIES), CompletionRing::new(&memory, page, ENTRIES));
        let (Some(sq), Some(cq)) = rings else {
            return Err(Error::Argument { what: "the admin queue does not fit its pages" });
        };
        let bell =
            |kind| Bell::new(transport.any_doorbell(doorbell_offset(dstrd, QueueId::ADMIN, kind)));
        Ok(Self {
            sq,
            cq,
            sq_bell: bell(DoorbellKind::SubmissionTail),
            cq_bell: bell(DoorbellKind::CompletionHead),
            slots: [Slot::Free; SLOTS],
            memory,
            page,
            events: VecDeque::with_capacity(EVENTS_MAX),
            event_requests: 0,
            aborts: 1,
            broken: false,
        })
    }

    /// What registers AQA, ASQ and ACQ are to say.
    pub(super) fn registers(&self) -> (Aqa, Iova, Iova) {
        let size_z = (ENTRIES - 1) as u16;
        (Aqa::new().with_asqs_z(size_z).with_acqs_z(size_z), self.sq.iova(), self.cq.iova())
    }

    /// Empties everything: the controller is disabled. Events that came are kept.
    pub(super) fn clear(&mut self, also_doorbells: bool) {
        self.sq.clear();
        self.cq.clear();
        self.sq_bell.clear(also_doorbells);
        self.cq_bell.clear(also_doorbells);
        self.slots = [Slot::Free; SLOTS];
        self.event_requests = 0;
        self.broken = false;
    }

    /// Sends a command and waits for its completion, whatever its status.
    pub(super) fn run(
        &mut self,
        inner: &Inner,
        command: Command,
        data: AdminData<'_>,
        timeout: Duration,
    ) -> Result<Completion, Error> {
        if inner.is_gone() {
            return Err(Error::Gone);
        }
        self.reap()?;
        let index = self.free_slot().ok_or(Error::AdminFull)?;
        let room = self.page_of(index);
        let command = match &data {
            AdminData::None => command,
            AdminData::In(bytes) if bytes.len() <= self.page => {
                self.host(index, bytes.len(), |page| page.fill(0));
                command.with_prps(room, Iova(0))
            }
            AdminData::Out(bytes) if bytes.len() <= self.page => {
                self.host(index, bytes.len(), |page| _ = page.copy_from(bytes));
                command.with_prps(room, Iova(0))
            }
            AdminData::In(_) | AdminData::Out(_) => {
                return Err(Error::Argument { what: "an admin command carries at most one page" });
            }
        };
        self.send(index, command, Slot::Waiting);
        let completion = self.wait(inner, index, timeout)?;
        if let AdminData::In(bytes) = data {
            self.host(index, bytes.len(), |page| _ = page.copy_to(bytes));
        }
        Ok(completion)
    }

    fn wait(
        &mut self,
        inner: &Inner,
        index: usize,
        timeout: Duration,
    ) -> Result<Completion, Error> {
        let started = Instant::now();
        let mut looked = started;
        for turn in 0_u64.. {
            self.reap()?;
            if let Slot::Done(completion) = self.slots[index] {
                self.slots[index] = Slot::Free;
                return Ok(completion);
            }
            let now = Instant::now();
            if now.duration_since(looked) >= LIVENESS_INTERVAL {
                looked = now;
                if inner.check_alive() {
                    return Err(Error::Gone);
                }
            }
            if now.duration_since(started) >= timeout {
                break;
            }
            pause(turn);
        }
        self.slots[index] = Slot::Forgotten;
        if inner.csts().is_ok_and(|csts| csts.cfs()) {
            return Err(Error::Fatal);
        }
        Err(Error::TimedOut { what: "an admin command", waited: timeout })
    }

    /// Asks to abort a command, if the controller takes another Abort now. Nobody waits for the answer: the command
    /// itself completes, or does not.
    pub(crate) fn post_abort(&mut self, sqid: QueueId, cid: CommandId) -> bool {
        if self.reap().is_err() {
            return false;
        }
        let outstanding = self.slots.iter().filter(|slot| matches!(slot, Slot::Abort)).count();
        let Some(index) = self.free_slot().filter(|_| outstanding < self.aborts) else {
            return false;
        };
        let mut command = Command::admin(AdminOpcode::ABORT, CommandId(0));
        command.cdw10 = AbortDword10::new().with_sqid(sqid).with_cid(cid).into_bits();
        self.send(index, command, Slot::Abort);
        true
    }

    /// Takes over what the controller takes (ACL, AERL; both 0's based), and asks for events.
    pub(super) fn request_events(&mut self, acl_z: u8, aerl_z: u8) {
        self.aborts = usize::from(acl_z) + 1;
        self.event_requests = (usize::from(aerl_z) + 1).min(EVENT_REQUESTS_MAX);
        for _ in 0..self.event_requests {
            self.request_event();
        }
    }

    fn request_event(&mut self) {
        if let Some(index) = self.free_slot() {
            let command = Command::admin(AdminOpcode::ASYNC_EVENT_REQUEST, CommandId(0));
            self.send(index, command, Slot::Event);
        }
    }

    /// The oldest event that nobody has taken.
    pub(super) fn take_event(&mut self) -> Result<Option<AsyncEvent>, Error> {
        self.reap()?;
        Ok(self.events.pop_front())
    }

    /// Takes every completion that has come.
    fn reap(&mut self) -> Result<(), Error> {
        let protocol = |what| Error::Protocol { what };
        if self.broken {
            return Err(protocol("it completed an admin command that was not outstanding"));
        }
        let mut reaped = 0;
        while let Some(high) = self.cq.peek().filter(|_| reaped < ENTRIES) {
            let completion = self.cq.entry(high);
            self.cq.advance();
            reaped += 1;
            let index = usize::from(completion.cid.0);
            let known = self.slots.get(index).copied().filter(|_| completion.sqid.is_admin());
            match known {
                Some(Slot::Waiting) => self.slots[index] = Slot::Done(completion),
                Some(Slot::Forgotten | Slot::Abort) => self.slots[index] = Slot::Free,
                Some(Slot::Event) => {
                    self.slots[index] = Slot::Free;
                    self.event(&completion);
                }
                Some(Slot::Free | Slot::Done(_)) | None => self.broken = true,
            }
        }
        if reaped > 0 {
            self.cq_bell.ring(self.cq.head());
        }
        if self.broken {
            return Err(protocol("it completed an admin command that was not outstanding"));
        }
        Ok(())
    }

    /// Keeps an event and asks for the next. A request that failed is not repeated: the limit is lower than was said.
    fn event(&mut self, completion: &Completion) {
        if !completion.status().is_success() {
            return;
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(AsyncEvent::from_bits(completion.dw0));
        self.request_event();
    }

    fn free_slot(&self) -> Option<usize> {
        self.slots.iter().position(|slot| matches!(slot, Slot::Free))
    }

    fn send(&mut self, index: usize, mut command: Command, slot: Slot) {
        // Below SLOTS, which is 31.
        command.cdw0.set_cid(CommandId(index as u16));
        self.slots[index] = slot;
        self.sq.push(command.into_words());
        self.sq_bell.ring(self.sq.tail());
    }

    fn page_of(&self, index: usize) -> Iova {
        Iova(self.memory.iova() + (self.page * (2 + index)) as u64)
    }

    /// Lets `act` have the first `len` bytes of a slot's page.
    fn host(&self, index: usize, len: usize, act: impl FnOnce(ipc::guest_memory::HostSlice<'_>)) {
        if let Some(page) = self.memory.host().sub(self.page * (2 + index), len) {
            act(page);
        }
    }
}

/// Waits a little, longer the longer one has waited: most admin commands take microseconds.
pub(super) fn pause(turn: u64) {
    match turn {
        0..200 => std::hint::spin_loop(),
        200..2000 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(50)),
    }
}
