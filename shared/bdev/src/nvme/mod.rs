//! An NVMe drive as a block device: a physical one under VFIO, or another vfio-user target's controller.
//!
//! Data goes between guest memory and the drive without a copy: the client's memory objects are registered with the
//! drive's address space, whole, and PRP lists are built in memory of ours. What the drive cannot reach as it lies
//! (not aligned to 4 bytes, scattered in pieces that no PRP list can name, or memory that may not be registered) goes
//! through buffers. What the drive does not offer (Compare, Verify, Write Zeroes; Copy and fused pairs always) is done
//! by reads and writes; fused pairs under a lock over their blocks, as far as it is written through this device.
//!
//! Nothing on the path of a request waits. A thread of the device's own does what may: it registers memory, resets a
//! drive that hangs (requests go on after it), ends them all when the drive is gone, and connects to it anew when it is
//! back. Devices that are namespaces of one drive share the connection to it.
//!
//! Workers get queue pairs of their own ([`NvmeDevice::lease`]) and have a [`LeasedDrive`] each.

mod control;
mod drive;
mod engine;
mod gate;
mod job;
mod lease;
mod lessor;
mod memory;
mod parts;
mod places;
mod plan;
mod shared;
mod status;
mod terms;

use crate::channel::{Channel, Geometry, Submitted};
use crate::error::Error;
use crate::request::{ErrorKind, Outcome, Request};
use control::{Ask, Attachment, Control, Flags, Leased, Told, Wish};
use engine::Engine;
use ipc::event::EventFd;
use ipc::guest_memory::{Region, RegionId, RegionTable};
use lessor::Lessor;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use shared::Shared;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Instant;

pub use drive::is_held;
pub use lease::{DriveLease, LeaseWatch, LeasedDrive};
pub use lessor::LeaseOffer;
pub use nvme_driver::transport::vfio::{Keeper, kept_drive, retire};
pub use nvme_driver::{Address, PciAddress};

/// Gets the lease that was asked for, or why there is none. Says whether somebody took it.
pub type LeaseAnswer = Box<dyn FnOnce(Result<LeaseOffer, Error>) -> bool + Send>;

/// Commands that a drive has at a time, if it takes so many.
const QUEUE_DEPTH: u16 = 256;

/// How to open a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NvmeOptions {
    /// `vfio-user:PATH` or `pcie:DDDD:BB:DD.F`.
    pub target: String,
    /// The namespace's identifier (NSID).
    pub nsid: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Completions are polled for as long as requests are outstanding; otherwise the drive interrupts.
    pub polled: bool,
}

/// What a drive offers, as far as a namespace on it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NvmeFeatures {
    /// Bytes of a logical block.
    pub block_size: u32,
    /// Writes are durable only after a flush.
    pub volatile_cache: bool,
    /// Write Zeroes gives space back.
    pub deallocate: bool,
}

/// A namespace of a drive.
pub struct NvmeDevice {
    engine: Box<Engine>,
    read_only: bool,
    polled: bool,
    /// The drive was found again, or a queue pair came free.
    openings: bool,
    asks: Sender<Ask>,
    told: Receiver<Told>,
    flags: Flags,
    wake: EventFd,
    events: Epoll,
    thread: Option<JoinHandle<()>>,
}

impl NvmeDevice {
    /// Connects to a drive, resets it and brings it up.
    ///
    /// # Errors
    /// [`ErrorKind::Gone`] if it is not there, [`ErrorKind::Busy`] if another process has it,
    /// [`ErrorKind::Invalid`] for a namespace that is not there or not of a kind that is served, and others as it
    /// answers. One line that says what to do, where that is known.
    pub fn open(options: &NvmeOptions) -> Result<Self, Error> {
        Self::open_kept(options, None)
    }

    /// As [`open`](Self::open), of a drive that is kept for this process's successor, and taken over from a predecessor if that
    /// had it kept: then nobody is waited for. Of a vfio-user target nothing is kept, since its server resets the controller
    /// when the connection ends.
    ///
    /// # Errors
    /// As there.
    pub fn open_kept(
        options: &NvmeOptions,
        keeper: Option<&Arc<dyn Keeper>>,
    ) -> Result<Self, Error> {
        let shared = Shared::of(&options.target, keeper);
        // Before the namespace is asked about: what changes from here on is seen.
        let (changes, openings) = (shared.changes(), shared.openings());
        let (controller, found) = Attachment::connect_patiently(&shared, options)?;
        let system = |what: &str| {
            let what = what.to_owned();
            move |error: nix::errno::Errno| Error::system(what, error)
        };
        let event = |error: ipc::event::EventError| Error {
            kind: ErrorKind::Busy,
            what: "make an event".to_owned(),
            source: Some(Box::new(error)),
        };
        let wake = EventFd::create().map_err(event)?;
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("epoll_create"))?;
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        events.add(&wake, readable()).map_err(system("epoll_ctl"))?;
        if let Some(interrupt) = found.queue.event() {
            events.add(interrupt, edges()).map_err(system("epoll_ctl"))?;
        }
        let flags = Flags {
            news: Arc::new(AtomicBool::new(false)),
            busy: Arc::new(AtomicBool::new(false)),
        };
        let (asks, asked) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let control = Control {
            options: options.clone(),
            asks: asked,
            tell,
            flags: flags.clone(),
            wake: wake.try_clone().map_err(event)?,
            controller: Some(controller),
            drive: found.drive,
            next_try: Instant::now(),
            shared,
            lessor: Lessor::default(),
            changes,
            openings,
        };
        let thread = std::thread::Builder::new().name("drive".to_owned());
        let thread = thread
            .spawn(move || control.run())
            .map_err(|error| Error::io("start the drive's thread", error))?;
        Ok(Self {
            engine: Box::new(Engine::new(found)),
            read_only: options.read_only,
            polled: options.polled,
            openings: false,
            asks,
            told,
            flags,
            wake,
            events,
            thread: Some(thread),
        })
    }

    /// What the drive offers.
    pub fn features(&self) -> NvmeFeatures {
        let drive = &self.engine.drive;
        NvmeFeatures {
            // At most 4096.
            block_size: drive.block() as u32,
            volatile_cache: drive.volatile_cache,
            deallocate: drive.zeroes_max > 0 && drive.zeroes_deallocate,
        }
    }

    /// Makes a queue pair for the worker whose process `holder` is; `answer` gets it. From now on `id` names the lease,
    /// also before it is there. Neither waits nor blocks.
    pub fn lease(&mut self, id: u64, holder: i32, answer: LeaseAnswer) {
        if self.engine.is_lost() {
            answer(Err(Error::new(ErrorKind::Gone, "the drive is lost")));
            return;
        }
        self.engine.gates.expect(id);
        self.engine.outbox.push_back(Ask::Lease(Box::new(Wish { id, holder, answer })));
        self.send();
    }

    /// Whether leases that were refused might be granted since this was asked last.
    pub fn take_openings(&mut self) -> bool {
        std::mem::take(&mut self.openings)
    }

    /// Ends a lease; none of this name is well. What was outstanding of it is over before memory that is forgotten
    /// hereafter is taken out of the drive's reach.
    pub fn end_lease(&mut self, id: u64) {
        self.engine.gates.close(id);
        self.engine.outbox.push_back(Ask::Revoke(id));
        self.send();
    }

    /// Whether the drive may still do something of a lease of this name.
    pub fn has_lease(&self, id: u64) -> bool {
        self.engine.gates.has(id)
    }

    /// Has the drive reach a region for the holder of a lease, who learns where.
    pub fn share(&mut self, lease: u64, id: RegionId, region: &Arc<Region>) {
        let Engine { gates, memory, outbox, .. } = &mut *self.engine;
        gates.share(lease, (id, region), memory, outbox);
        self.send();
    }

    /// The holder of a lease has nothing outstanding in a region and names it no more.
    pub fn take_back(&mut self, lease: u64, id: RegionId) {
        self.engine.gates.take_back(lease, id);
    }

    /// A lease that was asked for, or why there is none.
    fn hand_over(&mut self, leased: Leased) {
        let Leased { id, result, answer } = leased;
        let Engine { gates, memory, outbox, .. } = &mut *self.engine;
        let offer = match result {
            Ok((segment, offer)) if gates.add(id, Arc::clone(&segment), memory, outbox) => {
                Ok(offer)
            }
            Ok(_) => Err(Error::new(ErrorKind::Gone, "the drive was lost meanwhile")),
            Err(error) => {
                gates.remove(id);
                Err(error)
            }
        };
        let granted = offer.is_ok();
        if !answer(offer) && granted {
            self.end_lease(id);
        }
    }

    /// Hands the control thread what it is asked.
    fn send(&mut self) {
        while let Some(ask) = self.engine.outbox.pop_front() {
            // The thread ends only after this value.
            self.asks.send(ask).ok();
        }
    }

    /// Takes what the control thread told.
    #[cold]
    fn hear(&mut self, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut ended = 0;
        while let Ok(told) = self.told.try_recv() {
            let told = match told {
                Told::Leased(leased) => {
                    self.hand_over(*leased);
                    continue;
                }
                told => told,
            };
            self.openings |= matches!(told, Told::Found(_) | Told::Unleased(_) | Told::Freed);
            if let Told::Found(found) = &told
                && let Some(interrupt) = found.queue.event()
                && let Err(error) = self.events.add(interrupt, edges())
            {
                tracing::warn!(%error, "interrupts of the drive are not heard");
            }
            ended += self.engine.told(told, complete);
        }
        ended
    }
}

/// Waits for the next signal of a drive, whether earlier ones were read or not.
fn edges() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0)
}

impl Channel for NvmeDevice {
    fn geometry(&self) -> Geometry {
        let drive = &self.engine.drive;
        Geometry { size: drive.size, read_only: self.read_only || !drive.writable }
    }

    fn submit(&mut self, request: &Request<'_>, memory: &RegionTable, now: u64) -> Submitted {
        let geometry = self.geometry();
        if let Err(kind) = request.check_bounds(geometry.size) {
            return Submitted::Done(Err(kind));
        }
        if geometry.read_only && request.op.writes() {
            return Submitted::Done(Err(ErrorKind::ReadOnly));
        }
        self.engine.submit(request, memory, now)
    }

    fn publish(&mut self) {
        self.engine.ring();
        self.send();
    }

    fn poll(&mut self, now: u64, complete: &mut impl FnMut(u32, Outcome)) -> usize {
        let mut ended = 0;
        // Relaxed: only whether to look. AcqRel: pairs with the control thread's Release; what was told is there.
        let news = &self.flags.news;
        if news.load(Ordering::Relaxed) && news.swap(false, Ordering::AcqRel) {
            ended += self.hear(complete);
        }
        ended += self.engine.poll(now, complete);
        let busy = self.engine.outstanding() > 0;
        // Relaxed: only decides how often the control thread looks.
        if self.flags.busy.load(Ordering::Relaxed) != busy {
            self.flags.busy.store(busy, Ordering::Relaxed);
        }
        if !self.engine.outbox.is_empty() {
            self.send();
        }
        ended
    }

    fn outstanding(&self) -> usize {
        self.engine.outstanding()
    }

    fn deadline(&self) -> Option<u64> {
        let interrupts = self.engine.queue().is_some_and(|queue| queue.event().is_some());
        match self.engine.sent() > 0 && (self.polled || !interrupts) {
            true => Some(0),
            false => self.engine.deadline(),
        }
    }

    fn park(&mut self) -> bool {
        self.publish();
        self.engine.acknowledge();
        // What is signalled from here on ends the sleep; what came before is seen here.
        self.wake.drain().ok();
        // Edges of the interrupt are taken, it is never read: a foreign target has it, too, and could make that block.
        self.events.wait(&mut [EpollEvent::empty(); 2], EpollTimeout::ZERO).ok();
        let completed = self.engine.queue().is_some_and(|queue| queue.has_completion());
        !completed && !self.flags.news.load(Ordering::Acquire)
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.0.as_fd())
    }

    fn forget(&mut self, region: &Arc<Region>) {
        self.engine.forget(region);
        self.send();
    }
}

impl Drop for NvmeDevice {
    /// Shuts the drive down, and waits for that.
    fn drop(&mut self) {
        // Before memory is taken out of its reach.
        self.asks.send(Ask::EndLeases).ok();
        self.engine.lose(&mut |_, _| {});
        self.send();
        self.asks.send(Ask::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        // What it told last holds parts of the drive, too.
        while self.told.try_recv().is_ok() {}
    }
}
