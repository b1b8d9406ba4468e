//! One PCI function: configuration space, BARs, DMA table and interrupts around an NVMe controller.
//!
//! It is the device behind a vfio-user session ([`vfio_user::server::Device`]) and does no I/O but signalling
//! eventfds. What other processes must do stands in [`Wanted`] (memory and interrupts that workers need) and in the
//! effects that [`Function::take_effects`] hands out; acts that wait for workers stay pending until
//! [`Function::poll`] finds them done.

mod device;
mod dma;
mod interrupts;
mod master;

use crate::function::interrupts::Interrupts;
use ipc::dma_table::DmaWriter;
use ipc::doorbell::{DoorbellError, DoorbellPage};
use ipc::guest_memory::{GuestMemory, Region, RegionId, RegionPolicy};
use ipc::layout::controller::{ControllerLayout, QueueState};
use ipc::segment::{Segment, SegmentError};
use nvme::{ConfigError, Context, Controller, ControllerConfig, Effect, ResetKind, Subsystem};
use nvme::{Ticket, WorkerSeat};
use nvme_spec::Nsid;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use telemetry::limit::Limit;
use vfio_user::Errno;
use vfio_user::pci::config::{ConfigSpace, Profile, ProfileError};
use vfio_user::pci::msix::Msix;
use vfio_user::server::DeviceDescription;

/// Bytes of BAR0: registers, the doorbell page, and what Windows asks for at least.
const BAR0_SIZE: u64 = 16 * 1024;
/// Offset of the doorbell page in BAR0.
const DOORBELLS: u64 = 0x1000;
/// Bytes of the doorbell page.
const DOORBELL_PAGE: u64 = 0x1000;
/// PCI vendor identifier: that of virtio devices, whose list gives 1af4:10f0 to 1af4:10ff to whoever has no identifier of
/// his own. (1b36:0010, the emulated NVMe of QEMU, would bring Linux's workarounds for that device along: it ignores the
/// identifiers of namespaces.)
pub(crate) const VENDOR: u16 = 0x1af4;
/// PCI device identifier under that vendor.
const DEVICE: u16 = 0x10f0;
/// Log lines a second that one client can cause.
const LOG_LINES: u32 = 5;

/// What a function is made with.
pub struct FunctionConfig {
    /// The endpoint's name.
    pub name: String,
    /// The controller's part.
    pub controller: ControllerConfig,
    /// The subsystem, shared with its other controllers.
    pub subsystem: Arc<Mutex<Subsystem>>,
    /// What every worker that may serve the controller writes about it, in the order of worker indexes.
    pub seats: Vec<WorkerSeat>,
}

/// Why a function could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The doorbell page.
    #[error(transparent)]
    Doorbells(#[from] DoorbellError),
    /// The controller's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The PCI profile.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The DMA table.
    #[error(transparent)]
    Dma(#[from] ipc::dma_table::DmaError),
}

/// What workers must have of one client, beside the segments: kept as a whole, so that a worker that starts anew gets
/// all of it, and one that has some of it the difference.
#[derive(Clone, Default)]
pub struct Wanted {
    /// Raised by every change.
    pub number: u64,
    /// Client memory.
    pub regions: BTreeMap<RegionId, Arc<Region>>,
    /// Interrupt eventfds by vector.
    pub vectors: Vec<Option<Arc<OwnedFd>>>,
}

/// An act of the client's that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    /// Workers must have taken over this number of [`Wanted`].
    Handed(u64),
    /// Workers must have acknowledged this `dma_version`.
    Unmapped(u64),
    /// The controller must have drained.
    Reset,
    /// DMA was switched off: workers must have nothing in flight and no interrupt to signal any more.
    Quiet {
        /// The version that says so.
        version: u64,
        /// The number of [`Wanted`] without interrupts.
        number: u64,
        /// After which the client is answered all the same.
        until: Duration,
    },
}

/// How long a client that switches DMA off waits for what is in flight: well below the 5 s after which QEMU takes its
/// device for gone.
const QUIET_TIME: Duration = Duration::from_secs(3);

/// A PCI function.
pub struct Function {
    name: String,
    controller: Controller,
    subsystem: Arc<Mutex<Subsystem>>,
    config: ConfigSpace,
    msix: Msix,
    interrupts: Interrupts,
    segment: Arc<Segment<ControllerLayout>>,
    dma: DmaWriter,
    memory: GuestMemory,
    policy: RegionPolicy,
    doorbells: Arc<DoorbellPage>,
    seats: Vec<WorkerSeat>,
    /// Number of [`Wanted`] that each worker has, by index.
    handed: Vec<u64>,
    wanted: Wanted,
    effects: Vec<Effect>,
    pending: Option<Pending>,
    now: Duration,
    /// Admin commands are there that the last look left.
    more: bool,
    /// A write to an eventfd of the client's blocked.
    stuck: bool,
    /// For log lines that the client can cause.
    limit: Limit,
}

impl Function {
    /// A function that no client uses yet.
    ///
    /// # Errors
    /// A configuration that no function can have, or a system call that failed.
    pub fn new(config: FunctionConfig, id: u128) -> Result<Self, FunctionError> {
        let segment = Arc::new(Segment::create("vireo-controller", id)?);
        let vectors = config.controller.vectors;
        let profile = Profile {
            vendor_id: VENDOR,
            device_id: DEVICE,
            subsystem_vendor_id: config.controller.subsystem_vendor,
            subsystem_id: DEVICE,
            revision_id: 0,
            class_code: 0x01_08_02,
            bar0_size: BAR0_SIZE,
            msix_vectors: vectors,
            serial_number: Some(id as u64),
            advanced_error_reporting: true,
        };
        let handed = vec![0; config.seats.len()];
        Ok(Self {
            name: config.name,
            controller: Controller::new(config.controller, Arc::clone(&segment))?,
            subsystem: config.subsystem,
            config: ConfigSpace::new(&profile)?,
            msix: Msix::new(vectors),
            interrupts: Interrupts::new(u32::from(vectors)),
            dma: DmaWriter::attach(Arc::clone(&segment))?,
            memory: GuestMemory::new(Arc::clone(&segment)),
            policy: RegionPolicy::default(),
            doorbells: Arc::new(DoorbellPage::create()?),
            segment,
            seats: config.seats,
            handed,
            wanted: Wanted::default(),
            effects: Vec::new(),
            pending: None,
            now: Duration::ZERO,
            more: false,
            stuck: false,
            limit: Limit::per_second(LOG_LINES),
        })
    }

    /// The endpoint's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The controller.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// The controller segment.
    pub fn segment(&self) -> &Arc<Segment<ControllerLayout>> {
        &self.segment
    }

    /// The present client's doorbell page.
    pub fn doorbells(&self) -> &Arc<DoorbellPage> {
        &self.doorbells
    }

    /// What workers must have.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    /// A client came: a doorbell page that no earlier client has mapped, the controller powered on. Returns what the
    /// client is told of the device.
    ///
    /// # Errors
    /// A system call that failed.
    pub fn connect(&mut self, now: Duration) -> Result<DeviceDescription, FunctionError> {
        self.now = now;
        self.doorbells = Arc::new(DoorbellPage::create()?);
        self.wanted = Wanted { number: self.wanted.number + 1, ..Wanted::default() };
        self.config.reset();
        self.msix.reset();
        self.with_controller(|controller, cx| {
            controller.set_bus_master(true, cx);
            controller.power_on(cx);
        });
        self.describe()
    }

    /// The client is gone. Everything of its is let go of once [`Function::is_quiet`].
    pub fn disconnect(&mut self, now: Duration) {
        self.now = now;
        self.pending = None;
        self.stuck = false;
        self.interrupts.clear();
        self.dma.unmap_all();
        self.with_controller(|controller, cx| controller.reset(ResetKind::Disconnect, cx));
        self.effects.push(Effect::KickWorkers);
    }

    /// Whether nothing of a client that is gone is in flight any more, so that its memory can go.
    pub fn is_quiet(&self) -> bool {
        let version = self.memory_version();
        !self.controller.is_draining()
            && !self.controller.has_requests()
            && self.seats.iter().all(|seat| seat.has_unmapped(version))
    }

    /// Lets go of the memory of a client that is gone.
    pub fn forget_memory(&mut self) {
        self.memory.regions_mut().clear();
        self.wanted = Wanted { number: self.wanted.number + 1, ..Wanted::default() };
    }

    /// Goes on with whatever waits: runs the admin queue, looks at what workers acknowledged. To be called after every
    /// message, at every kick, and from time to time while [`Function::is_waiting`]. Returns the result of the act
    /// that was deferred, once it is done.
    pub fn poll(&mut self, now: Duration) -> Option<Result<(), Errno>> {
        self.now = now;
        self.memory.refresh();
        self.more = self.with_controller(|controller, cx| {
            let more = controller.process_admin(cx);
            controller.poll(cx);
            more
        });
        // A controller that is not enabled has nothing to lose; the next client finds it as a reset left it.
        let serves = self.controller.is_ready() && !self.controller.is_draining();
        if self.memory.failed() && serves && !self.controller.is_failed() {
            tracing::error!(endpoint = self.name, "client memory faulted: controller stopped");
            self.with_controller(|controller, cx| controller.fail(cx));
        }
        let done = match self.pending? {
            Pending::Handed(number) => self.have_all(number),
            Pending::Unmapped(version) => self.seats.iter().all(|seat| seat.has_unmapped(version)),
            Pending::Reset => !self.controller.is_draining(),
            Pending::Quiet { version, number, until } => {
                let ended = self.seats.iter().all(|seat| seat.has_acknowledged(version));
                (ended && self.have_all(number)) || self.is_late(until)
            }
        };
        if !done {
            return None;
        }
        match self.pending.take() {
            Some(Pending::Reset) => {
                self.config.reset();
                self.msix.reset();
                self.interrupts.forget_pending();
                self.let_master();
            }
            Some(Pending::Unmapped(_)) => self.drop_unused_regions(),
            Some(Pending::Handed(_) | Pending::Quiet { .. }) | None => {}
        }
        Some(Ok(()))
    }

    /// Whether something waits that only time or a worker's kick moves on.
    pub fn is_waiting(&self) -> bool {
        self.pending.is_some() || self.more || self.controller.is_waiting()
    }

    /// The answer to an [`Effect::Request`].
    pub fn complete(&mut self, ticket: Ticket, outcome: Result<(), nvme_spec::Status>) {
        self.with_controller(|controller, cx| controller.complete(ticket, outcome, cx));
    }

    /// The subsystem's namespaces changed.
    pub fn subsystem_changed(&mut self) {
        self.with_controller(|controller, cx| controller.subsystem_changed(cx));
    }

    /// Limits of the subsystem changed.
    pub fn limits_changed(&mut self) {
        self.with_controller(|controller, cx| controller.limits_changed(cx));
    }

    /// Stops fetching the client's I/O commands, or goes on; also those of later clients.
    pub fn set_paused(&mut self, paused: bool) {
        self.with_controller(|controller, cx| controller.set_paused(paused, cx));
    }

    /// Whether the function is paused, and no block device has anything of it.
    pub fn is_still(&self) -> bool {
        self.controller.is_still(&self.seats)
    }

    /// Whether a namespace is paused, and no block device has anything of it that came by this function.
    pub fn is_namespace_still(&self, nsid: Nsid) -> bool {
        self.controller.is_namespace_still(nsid, &self.seats)
    }

    /// The subsystem was reset by one of its controllers.
    pub fn subsystem_reset(&mut self) {
        self.with_controller(|controller, cx| controller.reset(ResetKind::Subsystem, cx));
    }

    /// Whether every worker has taken over all that was written so far.
    pub fn is_settled(&self) -> bool {
        self.controller.is_settled(&self.seats)
    }

    /// A worker serves the controller now, and has taken over [`Wanted`] up to `number`; or it does no longer. A worker
    /// that goes while it has queues fails the controller: its host resets it, and gets queues on the others or on
    /// the worker's successor. It gets queues only once it has all memory that the client has mapped, since the first
    /// command comes right behind them.
    pub fn worker_changed(&mut self, index: usize, handed: Option<u64>) {
        let (Some(seat), Some(number)) = (self.seats.get_mut(index), self.handed.get_mut(index))
        else {
            return;
        };
        let lost = seat.attached && handed.is_none();
        seat.attached = handed.is_some_and(|handed| seat.attached || handed >= self.wanted.number);
        *number = handed.unwrap_or(0);
        if lost && self.has_queues_on(index) {
            tracing::error!(endpoint = self.name, worker = index, "worker of the controller died");
            self.with_controller(|controller, cx| controller.fail(cx));
        }
    }

    /// A worker is gone and its requests at backends may go on, or they have ended ([`WorkerSeat::draining`]).
    pub fn worker_drains(&mut self, index: usize, draining: bool) {
        if let Some(seat) = self.seats.get_mut(index) {
            seat.draining = draining;
        }
    }

    /// Whether the client is to be dropped, for it tried to block this process.
    pub fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Whether any worker watches the doorbells.
    pub fn is_watched(&self) -> bool {
        self.seats.iter().any(|seat| seat.attached)
    }

    /// What is to be done outside, in order. Interrupts are signalled already.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Logs what the client did wrong, unless it does so all the time.
    fn complain(&self, what: &'static str, error: &dyn std::fmt::Display) {
        if let Some(suppressed) = self.limit.pass() {
            tracing::warn!(endpoint = self.name, %error, suppressed, "{what} refused");
        }
    }

    fn has_queues_on(&self, worker: usize) -> bool {
        self.segment.submission_queues.iter().any(|row| {
            row.state.load(Ordering::Relaxed) != QueueState::Free as u32
                && row.worker.load(Ordering::Relaxed) as usize == worker
        })
    }

    fn memory_version(&self) -> u64 {
        self.segment.signals.dma_version.load(Ordering::Relaxed)
    }

    /// Whether every worker that serves the controller has taken over [`Wanted`] up to `number`.
    fn have_all(&self, number: u64) -> bool {
        let mut seats = self.seats.iter().zip(&self.handed);
        seats.all(|(seat, &handed)| !seat.attached || handed >= number)
    }

    /// Calls the controller with all it may look at, then signals the interrupts that it asked for.
    fn with_controller<T>(
        &mut self,
        act: impl FnOnce(&mut Controller, &mut Context<'_>) -> T,
    ) -> T {
        let mut effects = std::mem::take(&mut self.effects);
        let mut subsystem = lock(&self.subsystem);
        let mut context = Context {
            now: self.now,
            memory: &mut self.memory,
            doorbells: &self.doorbells,
            workers: &self.seats,
            subsystem: &mut subsystem,
            effects: &mut effects,
        };
        let result = act(&mut self.controller, &mut context);
        drop(subsystem);
        effects.retain(|effect| match effect {
            Effect::Signal { vector } => {
                self.stuck |= self.interrupts.fire(u32::from(*vector), &mut self.msix).is_err();
                false
            }
            _ => true,
        });
        self.effects = effects;
        result
    }
}

/// The subsystem, whoever panicked with it in hand.
pub(crate) fn lock(subsystem: &Mutex<Subsystem>) -> MutexGuard<'_, Subsystem> {
    subsystem.lock().unwrap_or_else(PoisonError::into_inner)
}
