//! The poll thread's loop body: all controllers of a worker, one step at a time. On the hot path.
//!
//! Nothing here blocks. What comes from the control thread arrives in a bounded queue that one relaxed flag announces;
//! what is to be dropped or asked goes back the same way.

use crate::clock::Clock;
use crate::controller::{Change, Controller, Garbage, Request};
use crate::notify::Notifier;
use crate::tracer::Tracer;
use ipc::event::EventFd;
use nix::poll::PollFd;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// Messages that wait in either direction; more wait with their sender.
const QUEUE: usize = 256;
/// Polls between two looks at the clock, while nothing depends on the time.
const CLOCK_POLLS: u32 = 64;
/// Polls without work after which a controller is looked at in turn with others like it.
const COLD_AFTER: u32 = 4096;

/// From the control thread.
pub enum Message {
    /// Serve a controller.
    Attach(Box<Controller>),
    /// Change something of a controller.
    Change(u128, Change),
    /// The tracer's policy is another one.
    Policy,
    /// Record so many of a controller's next commands; 0 ends that.
    Capture(u128, u32),
    /// Let go of a controller; it comes back as [`Notice::Detached`] once nothing of it is in flight.
    Detach(u128),
    /// Answer: the loop turns.
    Ping,
}

/// To the control thread.
pub enum Notice {
    /// A controller asks for something.
    Request(u128, Request),
    /// A change was made; this is to be dropped.
    Changed(u128, Garbage),
    /// A controller that is served no more.
    Detached(Box<Controller>),
    /// The controller of a message is not attached.
    Unknown(u128),
    /// The answer to [`Message::Ping`].
    Pong,
}

/// The control thread's end of the queues.
pub struct ControlEnd {
    messages: SyncSender<Message>,
    notices: Receiver<Notice>,
    flag: Arc<AtomicBool>,
}

/// One worker's controllers.
pub struct Reactor<C, N> {
    clock: C,
    notifier: N,
    now: u64,
    polls: u32,
    controllers: Vec<Served>,
    /// Next one of the cold controllers.
    cold: usize,
    /// A controller is to go when nothing of it is in flight.
    detaching: bool,
    messages: Receiver<Message>,
    notices: SyncSender<Notice>,
    flag: Arc<AtomicBool>,
    outbox: VecDeque<Notice>,
    /// Wakes the control thread, if it sleeps.
    wake: Option<EventFd>,
    tracer: Option<Arc<Tracer>>,
}

struct Served {
    controller: Box<Controller>,
    idle: u32,
    detaching: bool,
}

impl ControlEnd {
    /// Sends a message; the poll thread may have to be woken afterwards.
    ///
    /// # Errors
    /// The message comes back if the queue is full or the reactor is gone.
    pub fn send(&self, message: Message) -> Result<(), Message> {
        let sent = self.messages.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        });
        // Release: pairs with the Acquire in `Reactor::poll`.
        self.flag.store(true, Ordering::Release);
        sent
    }

    /// True once there is no reactor any more.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.flag) == 1
    }

    /// The next notice, if there is one.
    pub fn receive(&self) -> Option<Notice> {
        self.notices.try_recv().ok()
    }
}

impl<C: Clock, N: Notifier> Reactor<C, N> {
    /// A reactor without controllers, and the other end of its queues.
    pub fn new(clock: C, notifier: N) -> (Self, ControlEnd) {
        let (messages, inbox) = sync_channel(QUEUE);
        let (outlet, notices) = sync_channel(QUEUE);
        let flag = Arc::new(AtomicBool::new(false));
        let reactor = Self {
            now: clock.now(),
            clock,
            notifier,
            polls: 0,
            controllers: Vec::new(),
            cold: 0,
            detaching: false,
            messages: inbox,
            notices: outlet,
            flag: flag.clone(),
            outbox: VecDeque::new(),
            wake: None,
            tracer: None,
        };
        (reactor, ControlEnd { messages, notices, flag })
    }

    /// Has `event`, which is ours and does not block, signalled when there is a notice.
    pub fn wake_by(&mut self, event: EventFd) {
        self.wake = Some(event);
    }

    /// Has commands traced by `tracer`. To be called before the first message is sent.
    pub fn trace_by(&mut self, tracer: Arc<Tracer>) {
        tracer.align(self.clock.now());
        self.tracer = Some(tracer);
    }

    /// Does what there is to do, bounded. Returns how much that was; 0 is nothing.
    #[inline]
    pub fn poll(&mut self) -> usize {
        self.polls = self.polls.wrapping_add(1);
        if self.polls.is_multiple_of(CLOCK_POLLS) {
            self.now = self.clock.now();
        }
        let mut work = 0;
        // Relaxed: a hint, read again with Acquire below.
        if self.flag.load(Ordering::Relaxed) || !self.outbox.is_empty() {
            work += self.exchange();
        }
        let (now, count) = (self.now, self.controllers.len());
        let mut coldest = None;
        for index in 0..count {
            let Some(served) = self.controllers.get_mut(index) else { break };
            if served.idle > COLD_AFTER && count > 1 {
                if index == self.cold {
                    coldest = Some(index);
                }
                continue;
            }
            work += served.poll(now, &mut self.notifier, &mut self.outbox);
        }
        if let Some(served) = coldest.and_then(|index| self.controllers.get_mut(index)) {
            work += served.poll(now, &mut self.notifier, &mut self.outbox);
        }
        if count > 1 {
            self.cold = (self.cold + 1) % count;
        }
        if self.detaching && work > 0 {
            self.detach();
        }
        work
    }

    /// Time of the last look at the clock, looked at anew.
    pub fn now(&mut self) -> u64 {
        self.now = self.clock.now();
        self.now
    }

    /// Asks everybody who has work for this thread to wake it. False if there is some already.
    pub fn prepare_sleep(&mut self) -> bool {
        // Acquire: pairs with the Release in `ControlEnd::send`.
        if self.flag.load(Ordering::Acquire) || !self.outbox.is_empty() {
            return false;
        }
        let ready = self.controllers.iter_mut().all(|served| served.controller.prepare_sleep());
        if !ready {
            self.woken();
        }
        ready
    }

    /// After sleep, and after a [`Self::prepare_sleep`] that failed.
    pub fn woken(&mut self) {
        self.now = self.clock.now();
        for served in &mut self.controllers {
            served.controller.woken();
            served.idle = 0;
        }
    }

    /// Adds what wakes this thread besides its kick, after [`Self::prepare_sleep`]: nothing, unless devices do.
    pub fn events<'a>(&'a self, into: &mut Vec<PollFd<'a>>) {
        self.controllers.iter().for_each(|served| served.controller.events(into));
    }

    /// Whether a guest rings where only polling sees it, so that sleep is bounded.
    pub fn must_look(&self) -> bool {
        self.controllers.iter().any(|served| served.controller.is_mapped())
    }

    /// When there will be something to do though nobody says so.
    pub fn deadline(&self) -> Option<u64> {
        self.controllers.iter().filter_map(|served| served.controller.deadline()).min()
    }

    /// Takes messages in, and sends what did not fit the queue before.
    #[cold]
    fn exchange(&mut self) -> usize {
        let mut work = 0;
        // Acquire: pairs with the Release in `ControlEnd::send`; cleared first, so that no message is overlooked.
        self.flag.swap(false, Ordering::AcqRel);
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
            work += 1;
        }
        self.detach();
        let mut told = false;
        while let Some(notice) = self.outbox.pop_front() {
            match self.notices.try_send(notice) {
                Ok(()) => told = true,
                Err(TrySendError::Full(notice)) => {
                    self.outbox.push_front(notice);
                    break;
                }
                // Nobody is left to drop it elsewhere.
                Err(TrySendError::Disconnected(_)) => {}
            }
        }
        if let Some(wake) = self.wake.as_ref().filter(|_| told) {
            self.notifier.signal(wake).ok();
        }
        work + usize::from(told)
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Ping => self.outbox.push_back(Notice::Pong),
            Message::Attach(mut controller) => {
                if let Some(tracer) = &self.tracer {
                    controller.trace_by(Arc::clone(tracer));
                }
                self.controllers.push(Served { controller, idle: 0, detaching: false });
            }
            Message::Policy => {
                for served in &mut self.controllers {
                    if let Some(tracer) = &self.tracer {
                        served.controller.trace_by(Arc::clone(tracer));
                    }
                }
            }
            Message::Capture(id, count) => {
                if let Some(served) = self.controllers.iter_mut().find(|s| s.controller.id() == id)
                {
                    served.controller.capture(count);
                }
            }
            Message::Change(id, change) => {
                match self.controllers.iter_mut().find(|s| s.controller.id() == id) {
                    Some(served) => {
                        served.controller.apply(change, &mut self.notifier);
                        served.idle = 0;
                    }
                    None => self.outbox.push_back(Notice::Unknown(id)),
                }
            }
            Message::Detach(id) => {
                match self.controllers.iter_mut().find(|s| s.controller.id() == id) {
                    Some(served) => {
                        served.controller.stop();
                        served.detaching = true;
                        served.idle = 0;
                    }
                    None => self.outbox.push_back(Notice::Unknown(id)),
                }
            }
        }
    }

    /// Takes out controllers that are detaching and have nothing in flight. What others have in flight ends by a poll,
    /// after which this is done again; until then the thread may sleep, however long a block device takes.
    #[cold]
    fn detach(&mut self) {
        let mut index = 0;
        while let Some(served) = self.controllers.get(index) {
            if served.detaching && !served.controller.is_busy() {
                let served = self.controllers.swap_remove(index);
                self.outbox.push_back(Notice::Detached(served.controller));
            } else {
                index += 1;
            }
        }
        self.detaching = self.controllers.iter().any(|served| served.detaching);
    }
}

impl Served {
    #[inline]
    fn poll(
        &mut self,
        now: u64,
        notifier: &mut impl Notifier,
        outbox: &mut VecDeque<Notice>,
    ) -> usize {
        let work = self.controller.poll(now, notifier);
        self.idle = if work > 0 { 0 } else { self.idle.saturating_add(1) };
        if self.controller.has_errands() {
            self.errands(outbox);
        }
        work
    }

    #[cold]
    fn errands(&mut self, outbox: &mut VecDeque<Notice>) {
        let id = self.controller.id();
        while let Some(request) = self.controller.take_request() {
            outbox.push_back(Notice::Request(id, request));
        }
        while let Some(garbage) = self.controller.take_garbage() {
            outbox.push_back(Notice::Changed(id, garbage));
        }
    }
}
