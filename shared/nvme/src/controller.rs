//! A controller without its I/O: registers, admin queue, what the workers are told, what the host is told.
//!
//! Nothing here waits, reads a clock or touches a descriptor. Whoever owns the controller calls it with a [`Context`]
//! and carries out the [`Effect`]s. What a worker has to know is written into the controller segment, its version is
//! raised, and whatever must not be seen before the workers took it over (CSTS.RDY going to 0, the completion of a
//! queue's creation, a namespace's format) stays pending until [`Controller::poll`] finds their acknowledgement in
//! the queues segments. So the owner calls `poll` whenever a worker kicked it, and from time to time while
//! [`Controller::is_waiting`].

mod config;
pub(crate) mod doorbell;
mod effect;
mod lifecycle;
mod namespaces;
pub(crate) mod state;
pub(crate) mod work;

pub use config::{ConfigError, ControllerConfig};
pub use effect::{Context, Effect, Request, Ticket, WorkerSeat};
pub use lifecycle::ResetKind;

use crate::admin::feature::Features;
use crate::admin::queue_pair::AdminQueue;
use crate::error::ErrorLog;
use crate::range_list::{RangeList, ranges_for};
use crate::register::Registers;
use ipc::layout::controller::ControllerLayout;
use ipc::segment::Segment;
use namespaces::Seen;
use nvme_spec::{ControllerId, Nsid};
use state::State;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use work::Work;

/// A controller.
pub struct Controller {
    pub(crate) config: ControllerConfig,
    pub(crate) segment: Arc<Segment<ControllerLayout>>,
    pub(crate) state: State,
    pub(crate) registers: Registers,
    pub(crate) admin: AdminQueue,
    pub(crate) features: Features,
    pub(crate) errors: ErrorLog,
    pub(crate) work: Vec<Work>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) life: Life,
    pub(crate) ranges: RangeList,
    /// The function may do DMA ([`Controller::set_bus_master`]).
    pub(crate) bus_master: bool,
    /// CAP.NSSRS: the controller is the subsystem's only one, as of the last look.
    pub(crate) alone: bool,
    next_ticket: u64,
}

/// What SMART / Health tells of the controller's life.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    /// Clients that came.
    pub power_cycles: u64,
    /// Clients that went without a shutdown.
    pub unsafe_shutdowns: u64,
    /// When the first client came.
    pub born: Option<Duration>,
    /// The client is gone, but may have commands in flight.
    pub leaving: bool,
}

impl Controller {
    /// A controller that is powered off, in a segment that no worker serves yet. The segment's rows are written here,
    /// for the namespaces once [`Controller::power_on`] is called.
    ///
    /// # Errors
    /// A configuration that no controller can have.
    pub fn new(
        config: ControllerConfig,
        segment: Arc<Segment<ControllerLayout>>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let ranges = RangeList::with_capacity(ranges_for(config.max_transfer));
        let controller = Self {
            config,
            segment,
            state: State::Disabled,
            registers: Registers::default(),
            admin: AdminQueue::default(),
            features: Features::default(),
            errors: ErrorLog::default(),
            work: Vec::new(),
            seen: namespaces::nothing_seen(),
            life: Life::default(),
            ranges,
            bus_master: true,
            alone: true,
            next_ticket: 1,
        };
        controller.clear_rows();
        controller.store_settings();
        controller.store_registers();
        Ok(controller)
    }

    /// The configuration.
    pub fn config(&self) -> &ControllerConfig {
        &self.config
    }

    /// Controller identifier (CNTLID).
    pub fn id(&self) -> ControllerId {
        self.config.id
    }

    /// The segment that workers map.
    pub fn segment(&self) -> &Arc<Segment<ControllerLayout>> {
        &self.segment
    }

    /// Whether CSTS.RDY is 1.
    pub fn is_ready(&self) -> bool {
        self.state.is_ready()
    }

    /// Whether CSTS.CFS is 1.
    pub fn is_failed(&self) -> bool {
        matches!(self.state, State::Failed { .. })
    }

    /// Whether a reset or a shutdown is under way: workers may still have commands in flight. An FLR, DEVICE_RESET or
    /// disconnect is complete when this is false.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, State::Resetting { .. } | State::ShuttingDown { .. })
    }

    /// Whether something waits that no message of the client's will move on: workers' acknowledgements, a request to
    /// the backend, a completion queue that is full. Call [`Controller::poll`] at every kick, and every millisecond or
    /// so while this is true.
    pub fn is_waiting(&self) -> bool {
        let backlog = self.bus_master && self.admin.has_backlog();
        self.is_draining() || !self.work.is_empty() || backlog
    }

    /// Whether the function may do DMA.
    pub fn is_bus_master(&self) -> bool {
        self.bus_master
    }

    /// The function may do DMA from now on, or no more (PCI Command register, Bus Master Enable). Without it no command is
    /// fetched and no completion posted; what is in flight with workers ends, and has ended when each of them has
    /// acknowledged the version that is returned ([`WorkerSeat::has_acknowledged`]).
    pub fn set_bus_master(&mut self, on: bool, cx: &mut Context<'_>) -> u64 {
        if self.bus_master != on {
            self.bus_master = on;
            if self.state == State::Enabled {
                self.tell_enabled();
                self.publish(cx);
            }
        }
        self.poll(cx);
        self.segment.signals.version.load(Ordering::Relaxed)
    }

    /// Whether requests to backends are unanswered. They outlive a reset and the client: a namespace stays closed until
    /// its format is answered, so the owner calls [`Controller::complete`] also after the client left.
    pub fn has_requests(&self) -> bool {
        self.work.iter().any(Work::awaits_backend)
    }

    /// Whether every attached worker has taken over everything that was written so far: what was removed before has
    /// nothing in flight any more.
    pub fn is_settled(&self, workers: &[WorkerSeat]) -> bool {
        let version = self.segment.signals.version.load(Ordering::Relaxed);
        !self.is_draining() && self.acknowledged(workers, version)
    }

    /// Looks at what workers acknowledged and reported, and goes on with whatever waited for it. Cheap; to be called
    /// at every kick, after a worker's seat changed, and while [`Controller::is_waiting`].
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        self.alone = cx.subsystem.is_alone();
        self.collect_reports(cx);
        self.advance_state(cx);
        self.advance_work(cx);
        self.deliver(cx);
    }

    /// Stops fetching I/O commands, or goes on. It outlasts resets and clients. Registers and the admin queue go on.
    pub fn set_paused(&mut self, paused: bool, cx: &mut Context<'_>) {
        if paused != self.is_paused() {
            // Relaxed: the version, raised by `publish`, orders it.
            self.segment.settings.pause_number.fetch_add(1, Ordering::Relaxed);
            self.publish(cx);
        }
    }

    /// Whether no I/O command is to be fetched.
    pub fn is_paused(&self) -> bool {
        self.segment.settings.pause_number.load(Ordering::Relaxed) % 2 == 1
    }

    /// Whether the controller is paused, and no block device has anything of it.
    pub fn is_still(&self, workers: &[WorkerSeat]) -> bool {
        let number = self.segment.settings.pause_number.load(Ordering::Relaxed);
        let still = |seat: &WorkerSeat| {
            // Acquire: pairs with the worker's Release; what it had in flight has ended.
            let seen = seat.queues.acknowledged.pause_number.load(Ordering::Acquire);
            !seat.draining && (!seat.attached || seen >= number)
        };
        number % 2 == 1 && workers.iter().all(still)
    }

    /// Whether a namespace is paused, no block device has anything of it that came by this controller, and no backend
    /// formats it at the controller's request.
    pub fn is_namespace_still(&self, nsid: Nsid, workers: &[WorkerSeat]) -> bool {
        let Some(index) = crate::namespace::index_of(nsid) else { return false };
        let Some(row) = self.segment.namespaces.get(index) else { return false };
        let number = row.pause_number.load(Ordering::Relaxed);
        let still = |seat: &WorkerSeat| {
            // Acquire: pairs with the worker's Release; what it had in flight has ended.
            let seen = seat.queues.paused.get(index).map(|seen| seen.load(Ordering::Acquire));
            !seat.draining && (!seat.attached || seen == Some(number))
        };
        let formats = self.work.iter().any(|work| work.formats(nsid));
        number != 0 && !formats && workers.iter().all(still)
    }

    /// Has the workers look at the limits.
    pub fn limits_changed(&mut self, cx: &mut Context<'_>) {
        self.publish(cx);
    }

    /// The answer to an [`Effect::Request`]. A failure is what the host is told.
    pub fn complete(
        &mut self,
        ticket: Ticket,
        outcome: Result<(), nvme_spec::Status>,
        cx: &mut Context<'_>,
    ) {
        self.answer(ticket, outcome, cx);
        self.poll(cx);
    }

    /// Raises the version after rows or settings changed, and has the workers look.
    pub(crate) fn publish(&mut self, cx: &mut Context<'_>) -> u64 {
        cx.effect(Effect::KickWorkers);
        // Release: pairs with the worker's Acquire of the version.
        self.segment.signals.version.fetch_add(1, Ordering::Release) + 1
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Whether every attached worker acknowledged `version`.
    pub(crate) fn acknowledged(&self, workers: &[WorkerSeat], version: u64) -> bool {
        workers.iter().all(|seat| seat.has_acknowledged(version))
    }
}
