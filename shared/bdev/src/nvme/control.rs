//! The thread of a drive that may wait: connects, registers memory, resets, makes queues again, grants leases, hears the
//! drive's events, and looks whether it is still there. The engine asks and is told; neither waits for the other.

use super::drive::{Drive, refused};
use super::lessor::{LeaseOffer, Lessor};
use super::shared::Shared;
use super::{LeaseAnswer, NvmeOptions, QUEUE_DEPTH};
use crate::error::{Error, ErrorKind};
use ipc::event::EventFd;
use ipc::guest_memory::Region;
use ipc::layout::drive_lease::DriveLeaseLayout;
use ipc::segment::Segment;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nvme_driver::{BareQueue, Controller, DmaBuffer, QueueOptions, Registered, chain};
use nvme_spec::feature::event::AsyncEvent;
use nvme_spec::{CommandId, Nsid, QueueId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// Between two looks at the drive while requests are outstanding, and while none are.
const LOOK_BUSY: Duration = Duration::from_millis(50);
const LOOK_IDLE: Duration = Duration::from_millis(500);
/// Between two attempts to connect to a drive that was lost.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long a first connection waits for a predecessor's to end that was not kept.
const BUSY_WAIT: Duration = Duration::from_secs(3);
/// Longest wait for the first answers of a drive, and for those to admin commands.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Buffers for data that cannot go as it lies, and the bytes of each.
const BUFFERS: usize = 16;
const BUFFER: usize = 128 << 10;
/// Most events that are taken at a time.
const EVENTS_MAX: usize = 16;

/// What the engine asks for.
pub(super) enum Ask {
    /// Register this memory.
    Register(Arc<Region>),
    /// Let go of what may take a while to let go of.
    Discard(Box<dyn Send>),
    /// Make a stale queue again.
    Renew(Box<BareQueue>),
    /// Abort a command.
    Abort(QueueId, CommandId),
    /// Reset the controller.
    Reset,
    /// Make a queue pair for a worker.
    Lease(Box<Wish>),
    /// End a lease.
    Revoke(u64),
    /// End all leases.
    EndLeases,
    /// End.
    Stop,
}

/// What the engine is told.
pub(super) enum Told {
    /// Memory, by its key: where it is, or that the drive does not reach it.
    Memory(usize, Option<(Registered, u64)>),
    /// The queue was made again.
    Renewed(Box<BareQueue>),
    /// The namespace has changed.
    Changed(Drive),
    /// The drive is gone; whatever was outstanding is over.
    Lost,
    /// The drive is there again.
    Found(Box<Attachment>),
    /// A worker's queue pair, or why there is none.
    Leased(Box<Leased>),
    /// The drive does nothing of a lease any more.
    Unleased(u64),
    /// The queue pair of one that is over may be another's now.
    Freed,
}

/// A lease that is wanted.
pub(super) struct Wish {
    pub id: u64,
    /// The worker's process.
    pub holder: i32,
    pub answer: LeaseAnswer,
}

/// What became of the wish.
pub(super) struct Leased {
    pub id: u64,
    pub result: Result<(Arc<Segment<DriveLeaseLayout>>, LeaseOffer), Error>,
    pub answer: LeaseAnswer,
}

/// What the engine needs of a drive.
pub(super) struct Attachment {
    pub drive: Drive,
    pub queue: BareQueue,
    pub buffers: Vec<DmaBuffer>,
    /// A page of zeroes.
    pub zeroes: DmaBuffer,
}

/// The engine's side of what both share.
#[derive(Clone)]
pub(super) struct Flags {
    /// Something was told and not taken.
    pub news: Arc<AtomicBool>,
    /// Requests are outstanding.
    pub busy: Arc<AtomicBool>,
}

/// The thread's state.
pub(super) struct Control {
    pub options: NvmeOptions,
    pub asks: Receiver<Ask>,
    pub tell: Sender<Told>,
    pub flags: Flags,
    /// Wakes whoever drives the engine.
    pub wake: EventFd,
    pub controller: Option<Controller>,
    pub drive: Drive,
    /// When to try next to reach a drive that was lost.
    pub next_try: Instant,
    /// The drive, whose other namespaces may be other devices'.
    pub shared: Arc<Shared>,
    pub lessor: Lessor,
    /// How often the drive's namespaces had changed when they were last looked at.
    pub changes: u64,
    /// How often its queue pairs had come free then.
    pub openings: u64,
}

impl Attachment {
    /// Connects to a drive, if no other device has, and prepares a queue.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another process may still have it, others as it answers.
    pub fn connect(shared: &Shared, options: &NvmeOptions) -> Result<(Controller, Self), Error> {
        let controller = shared.connect(options)?;
        let failed = |error| refused(controller.address(), error);
        let drive = Drive::ask(&controller, Nsid(options.nsid))?;
        let queue = QueueOptions { depth: QUEUE_DEPTH, interrupt: !options.polled };
        let queue = controller.bare_queue(&queue).map_err(failed)?;
        // A multiple of every block; no longer than one command carries.
        let len = usize::try_from(drive.data_max).map_or(BUFFER, |most| most.min(BUFFER));
        let len = len & !(drive.block() as usize - 1);
        let buffers = controller.allocate(len * BUFFERS).map_err(failed)?.into_chunks(len);
        let zeroes = controller.allocate(drive.page as usize).map_err(failed)?;
        Ok((controller, Self { drive, queue, buffers, zeroes }))
    }

    /// As [`connect`](Self::connect), waiting for a predecessor to let go of the drive.
    ///
    /// # Errors
    /// As there.
    pub fn connect_patiently(
        shared: &Shared,
        options: &NvmeOptions,
    ) -> Result<(Controller, Self), Error> {
        let started = Instant::now();
        loop {
            match Self::connect(shared, options) {
                Err(error) if error.kind == ErrorKind::Busy && started.elapsed() < BUSY_WAIT => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                result => return result,
            }
        }
    }
}

impl Control {
    /// Serves until told to stop; then shuts the drive down.
    pub fn run(mut self) {
        let mut looked = Instant::now();
        loop {
            // Relaxed: only decides how soon is soon.
            let busy = self.flags.busy.load(Ordering::Relaxed) || self.lessor.is_busy();
            let interval = if busy { LOOK_BUSY } else { LOOK_IDLE };
            let wait = interval.saturating_sub(looked.elapsed());
            match self.asks.recv_timeout(wait) {
                Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    self.shared.leave_graves(self.lessor.take_graves());
                    return;
                }
                Ok(ask) => self.take(ask),
                Err(RecvTimeoutError::Timeout) => {
                    looked = Instant::now();
                    self.look(busy);
                }
            }
        }
    }

    fn tell(&self, told: Told) {
        // An engine that is gone needs no word.
        self.tell.send(told).ok();
        // Release: pairs with the engine's swap; what was told is there when this is seen.
        self.flags.news.store(true, Ordering::Release);
        self.wake.signal().ok();
    }

    fn take(&mut self, ask: Ask) {
        match ask {
            Ask::Register(region) => {
                let key = super::memory::key(&region);
                let registered = self.register(region);
                self.tell(Told::Memory(key, registered));
            }
            Ask::Discard(what) => {
                drop(what);
                // Somebody may wait for the memory that went with it.
                self.wake.signal().ok();
            }
            Ask::Renew(mut queue) => match queue.renew() {
                Ok(()) => self.tell(Told::Renewed(queue)),
                Err(error) => {
                    // It may be the queue of a drive that was lost and has a successor since.
                    let present = self.controller.as_ref().is_some_and(|c| queue.is_of(c));
                    drop(queue);
                    if present {
                        self.lose(&error);
                    }
                }
            },
            Ask::Abort(queue, command) => self.abort(queue, command),
            Ask::Reset => self.reset(),
            Ask::Lease(wish) => {
                let Wish { id, holder, answer } = *wish;
                let result = match &self.controller {
                    Some(controller) => self.lessor.grant(controller, &self.drive, id, holder),
                    None => Err(Error::new(ErrorKind::Gone, "the drive is lost")),
                };
                self.tell(Told::Leased(Box::new(Leased { id, result, answer })));
            }
            Ask::Revoke(id) => {
                self.revoke(id);
                self.tell(Told::Unleased(id));
            }
            Ask::EndLeases => self.end_leases(),
            // Not here: `run` ends with it.
            Ask::Stop => {}
        }
    }

    fn abort(&self, queue: QueueId, command: CommandId) {
        if let Some(controller) = &self.controller
            && !controller.post_abort(queue, command)
        {
            tracing::debug!(target = self.options.target, "no abort could be sent");
        }
    }

    fn reset(&mut self) {
        let reset = self.controller.as_ref().map(Controller::reset);
        match reset {
            Some(Err(error)) => self.lose(&error),
            // The engine sees that its queue is stale, and leases are looked at.
            Some(Ok(())) => {
                self.wake.signal().ok();
                self.see_to_leases();
            }
            None => {}
        }
    }

    /// Ends a lease, by a reset if need be.
    fn revoke(&mut self, id: u64) {
        if let Err(error) = self.lessor.revoke(id) {
            tracing::warn!(target = self.options.target, %error, "a leased queue pair is not deleted, drive is reset");
            self.reset();
            if let Err(error) = self.lessor.revoke(id) {
                self.lose(&error);
            }
        }
    }

    fn end_leases(&mut self) {
        for id in self.lessor.ids() {
            self.revoke(id);
        }
    }

    fn see_to_leases(&mut self) {
        let found = self.lessor.look();
        for (queue, command) in found.aborts {
            self.abort(queue, command);
        }
        if found.freed {
            self.shared.opened();
        }
        if let Some(error) = found.failed {
            self.lose(&error);
        } else if found.hang {
            self.reset();
        }
    }

    fn register(&self, region: Arc<Region>) -> Option<(Registered, u64)> {
        let controller = self.controller.as_ref()?;
        let target = &self.options.target;
        if target.starts_with("vfio-user:") && !is_sealed(&region) {
            // Another process would fault in memory that its owner takes away, and fail for everybody who shares it.
            tracing::warn!(
                target,
                bytes = region.len(),
                "client memory is not sealed against shrinking: data goes through buffers"
            );
            return None;
        }
        let registered = controller.register_region(region).and_then(|memory| {
            let first = memory.buffer(0, 1).map(|buffer| buffer.iova().0);
            Ok((memory, first.ok_or(nvme_driver::Error::Argument { what: "empty memory" })?))
        });
        match registered {
            Ok(registered) => Some(registered),
            Err(error) => {
                let error = refused(controller.address(), error);
                tracing::warn!(target, reason = %chain(&error), "client memory cannot be registered: data goes through buffers");
                None
            }
        }
    }

    /// Looks whether the drive is there and what it has to say; tries to reach one that is lost.
    fn look(&mut self, busy: bool) {
        match &self.controller {
            Some(controller) if !controller.check_alive() => {
                self.lose(&nvme_driver::Error::Gone);
            }
            Some(controller) if busy && controller.status().is_ok_and(|csts| csts.cfs()) => {
                tracing::warn!(target = self.options.target, "drive reports a fatal error");
                self.reset();
            }
            Some(_) => {
                self.hear();
                self.follow_changes();
                self.see_to_leases();
                self.follow_openings();
            }
            None => {
                self.lessor.bury();
                self.shared.bury();
                self.reconnect();
            }
        }
    }

    fn hear(&mut self) {
        for _ in 0..EVENTS_MAX {
            let Some(controller) = &self.controller else { return };
            let event = match controller.next_event(Duration::ZERO) {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(target = self.options.target, %error, "events");
                    return;
                }
            };
            tracing::info!(target = self.options.target, event = ?event.event, "drive reports");
            if event.event == AsyncEvent::NAMESPACE_ATTRIBUTE_CHANGED {
                // For all devices of this drive.
                self.shared.changed();
            }
        }
    }

    /// Asks about the namespace anew if the drive said that some have changed.
    fn follow_changes(&mut self) {
        let changes = self.shared.changes();
        if changes != self.changes {
            self.changes = changes;
            self.ask_again();
        }
    }

    /// Tells of queue pairs that came free, whoever of this drive's devices had them.
    fn follow_openings(&mut self) {
        if let Some(controller) = &self.controller {
            self.shared.sift(controller);
        }
        let openings = self.shared.openings();
        if openings != self.openings {
            self.openings = openings;
            self.tell(Told::Freed);
        }
    }

    /// Takes over what the namespace has become.
    fn ask_again(&mut self) {
        let Some(controller) = &self.controller else { return };
        match Drive::ask(controller, Nsid(self.options.nsid)) {
            Ok(drive) if drive.block_shift == self.drive.block_shift => {
                self.drive = drive;
                self.tell(Told::Changed(drive));
            }
            Ok(drive) => {
                tracing::error!(
                    target = self.options.target,
                    before = self.drive.block(),
                    now = drive.block(),
                    "the drive was formatted with another block size"
                );
                self.leave();
            }
            Err(error) => {
                tracing::error!(target = self.options.target, reason = %chain(&error), "namespace lost");
                self.leave();
            }
        }
    }

    /// Gives the drive up, for all devices that have namespaces of it.
    fn lose(&mut self, why: &nvme_driver::Error) {
        if let Some(controller) = self.controller.take() {
            tracing::error!(target = self.options.target, reason = %why, "drive lost");
            // Nothing of what was outstanding takes effect after it has ended.
            if controller.is_alive() {
                controller.shutdown().ok();
            }
            drop(controller);
            self.shared.let_go();
            self.lessor.end_all();
            self.tell(Told::Lost);
        }
    }

    /// Gives the namespace up; others of the drive are left alone.
    fn leave(&mut self) {
        self.end_leases();
        if self.controller.take().is_some() {
            self.tell(Told::Lost);
        }
    }

    fn reconnect(&mut self) {
        let now = Instant::now();
        if now < self.next_try {
            return;
        }
        self.next_try = now + RECONNECT;
        match Attachment::connect(&self.shared, &self.options) {
            Ok((controller, found)) if found.drive.block_shift == self.drive.block_shift => {
                tracing::info!(target = self.options.target, "drive is there again");
                self.controller = Some(controller);
                self.drive = found.drive;
                self.tell(Told::Found(Box::new(found)));
            }
            Ok((_, found)) => {
                let now = found.drive.block();
                tracing::warn!(target = self.options.target, now, "drive has another block size");
            }
            Err(error) => {
                tracing::debug!(target = self.options.target, reason = %chain(&error), "not there");
            }
        }
    }
}

/// Whether nobody can take pages of this memory away.
fn is_sealed(region: &Region) -> bool {
    let seals = fcntl(region.fd(), FcntlArg::F_GET_SEALS).unwrap_or(0);
    SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK)
}
