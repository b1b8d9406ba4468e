//! Power on, enable, reset, shutdown, failure. NVMe Base 2.0c 3.5 to 3.7.

use crate::admin::feature::Features;
use crate::admin::queue_pair::AdminQueue;
use crate::controller::Controller;
use crate::controller::effect::{Context, Effect, Request, Ticket};
use crate::controller::state::{Event, Flush, State};
use crate::register::{MPS_MAX, Registers};
use ipc::layout::controller::{ControllerState, QueueState};
use nvme_spec::register::{ArbitrationSelected, CommandSetSelected, ShutdownStatus};
use std::sync::atomic::Ordering;

/// What resets a controller. NVMe Base 2.0c 3.7.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetKind {
    /// CC.EN went from 1 to 0: AQA, ASQ and ACQ stay.
    Disable,
    /// PCIe Function Level Reset, or the client's DEVICE_RESET: all registers are at their reset values.
    Function,
    /// NVM Subsystem Reset: as a function level reset, and CSTS.NSSRO is set.
    Subsystem,
    /// The client is gone: as if power were lost.
    Disconnect,
}

impl Controller {
    /// A client came: the namespaces are put into the segment, the controller waits to be enabled.
    pub fn power_on(&mut self, cx: &mut Context<'_>) {
        self.leave(cx);
        self.life.power_cycles += 1;
        self.life.born.get_or_insert(cx.now);
        cx.subsystem.connected(self.config.id);
        self.synchronise(None, cx);
        self.poll(cx);
    }

    /// Resets the controller. Nothing more is fetched at once; CSTS.RDY goes to 0, and the reset is complete
    /// ([`Controller::is_draining`] turns false), when no worker has anything of before in flight.
    pub fn reset(&mut self, kind: ResetKind, cx: &mut Context<'_>) {
        let was_up = matches!(self.state, State::Enabled);
        self.state = self.state.after(Event::Reset);
        let Registers { aqa, asq, acq, .. } = self.registers;
        let kept = self.registers;
        self.registers = match kind {
            ResetKind::Disable => Registers { aqa, asq, acq, ..kept },
            ResetKind::Function => Registers { nssro: kept.nssro, ..Registers::default() },
            ResetKind::Subsystem => Registers { nssro: true, ..Registers::default() },
            ResetKind::Disconnect => Registers::default(),
        };
        if kind == ResetKind::Disconnect {
            self.life.unsafe_shutdowns += u64::from(was_up);
            self.life.leaving = true;
        }
        self.admin = AdminQueue::default();
        self.features = Features::default();
        self.features.timestamp.at = Some(cx.now);
        self.abandon_work(cx);
        self.forget_events();
        self.clear_rows();
        self.store_settings();
        let signals = &self.segment.signals;
        signals.state.store(ControllerState::Disabled as u32, Ordering::Relaxed);
        // Release: pairs with the worker's Acquire; it sees the rows freed.
        signals.reset_generation.fetch_add(1, Ordering::Release);
        self.publish(cx);
        self.store_registers();
        self.poll(cx);
    }

    /// The controller cannot go on: a worker that serves it died, its memory faulted, an interrupt is stuck. CSTS.CFS
    /// is set until the host resets the controller.
    pub fn fail(&mut self, cx: &mut Context<'_>) {
        let state = self.state.after(Event::Fail);
        if state == self.state {
            return;
        }
        self.state = state;
        self.segment.signals.state.store(ControllerState::Stopped as u32, Ordering::Relaxed);
        self.publish(cx);
        self.store_registers();
    }

    /// CC.EN went to 1. While a reset is under way this waits for its end.
    pub(crate) fn enable(&mut self, cx: &mut Context<'_>) {
        if self.state.after(Event::Enable) == self.state {
            return;
        }
        if !self.can_enable() {
            self.state = self.state.after(Event::Fail);
            return;
        }
        self.synchronise(None, cx);
        self.state = self.state.after(Event::Enable);
        let Registers { cc, aqa, asq, acq, .. } = self.registers;
        cx.doorbells.clear();
        self.admin = AdminQueue::new(aqa, asq, acq);
        self.forget_events();
        let record = &self.segment.admin;
        for counter in [&record.fetched, &record.posted, &record.taken] {
            counter.store(0, Ordering::Relaxed);
        }
        self.segment.settings.page_shift.store(cc.page_shift(), Ordering::Relaxed);
        self.tell_enabled();
        self.publish(cx);
    }

    /// Tells workers that the controller is enabled, and whether they may go on. The caller publishes it.
    pub(crate) fn tell_enabled(&self) {
        let state = match self.bus_master {
            true => ControllerState::Enabled,
            false => ControllerState::Stopped,
        };
        self.segment.signals.state.store(state as u32, Ordering::Relaxed);
    }

    /// CC.SHN asks for a shutdown, normal or abrupt.
    pub(crate) fn shutdown(&mut self, normal: bool, cx: &mut Context<'_>) {
        let flush = if normal && self.state.is_ready() { Flush::Wanted } else { Flush::Done };
        let version = self.segment.signals.version.load(Ordering::Relaxed) + 1;
        let state = self.state.after(Event::Shutdown { version, flush });
        if state == self.state {
            return;
        }
        self.state = state;
        self.segment.signals.state.store(ControllerState::Stopped as u32, Ordering::Relaxed);
        self.publish(cx);
    }

    pub(crate) fn shutdown_status(&self) -> ShutdownStatus {
        match self.state {
            State::ShuttingDown { .. } => ShutdownStatus::OCCURRING,
            State::ShutDown { .. } => ShutdownStatus::COMPLETE,
            State::Disabled | State::Enabled | State::Resetting { .. } | State::Failed { .. } => {
                ShutdownStatus::NORMAL_OPERATION
            }
        }
    }

    /// Goes on with a reset or a shutdown as far as the workers have.
    pub(crate) fn advance_state(&mut self, cx: &mut Context<'_>) {
        match self.state {
            State::Resetting { .. } => {
                let generation = self.segment.signals.reset_generation.load(Ordering::Relaxed);
                if !cx.workers.iter().all(|seat| seat.has_reset(generation)) {
                    return;
                }
                cx.doorbells.clear();
                self.state = self.state.after(Event::Drained);
                self.drained_everywhere(cx);
                self.leave(cx);
                if self.registers.cc.en() {
                    self.enable(cx);
                }
                self.store_registers();
            }
            State::ShuttingDown { version, flush, .. } => {
                if !self.acknowledged(cx.workers, version) {
                    return;
                }
                match flush {
                    Flush::Wanted => {
                        let ticket = self.ticket();
                        cx.effect(Effect::Request { ticket, request: Request::Flush });
                        self.state = self.state.after(Event::Flushed(Flush::Asked(ticket)));
                    }
                    Flush::Asked(_) => {}
                    Flush::Done => {
                        self.state = self.state.after(Event::ShutdownComplete);
                        self.store_registers();
                    }
                }
            }
            State::Disabled | State::Enabled | State::ShutDown { .. } | State::Failed { .. } => {}
        }
    }

    /// The flush of a shutdown was answered. Its failure does not keep a host from powering off.
    pub(crate) fn flushed(&mut self, ticket: Ticket) -> bool {
        let asked = matches!(self.state, State::ShuttingDown { flush: Flush::Asked(asked), .. } if asked == ticket);
        if asked {
            self.state = self.state.after(Event::Flushed(Flush::Done));
        }
        asked
    }

    /// Nothing of a client that left is in flight any more. With the last one the subsystem loses power.
    fn leave(&mut self, cx: &mut Context<'_>) {
        if std::mem::take(&mut self.life.leaving) && cx.subsystem.disconnected(self.config.id) {
            cx.effect(Effect::SubsystemChanged);
            self.synchronise(None, cx);
        }
    }

    /// Frees every queue's row.
    pub(crate) fn clear_rows(&self) {
        let segment = &self.segment;
        // Release: pairs with the worker's Acquire of the state.
        for row in &segment.submission_queues {
            row.state.store(QueueState::Free as u32, Ordering::Release);
        }
        for row in &segment.completion_queues {
            row.state.store(QueueState::Free as u32, Ordering::Release);
        }
    }

    /// Writes what registers and features say to the I/O path. The caller publishes it.
    pub(crate) fn store_settings(&self) {
        let (settings, features) = (&self.segment.settings, &self.features);
        let relaxed = Ordering::Relaxed;
        settings
            .page_shift
            .store(self.registers.cc.page_shift().min(12 + u32::from(MPS_MAX)), relaxed);
        settings.max_transfer.store(self.config.max_transfer, relaxed);
        settings.arbitration_burst.store(features.arbitration_burst(), relaxed);
        settings.coalescing_threshold.store(u32::from(features.coalescing.thr_z()), relaxed);
        settings.coalescing_time.store(u32::from(features.coalescing.time()), relaxed);
        for (word, bits) in settings.coalescing_disabled.iter().zip(features.coalescing_disabled) {
            word.store(bits, relaxed);
        }
        settings.write_cache.store(u32::from(features.write_cache), relaxed);
        settings.doorbells_mapped.store(u32::from(self.config.doorbells_mapped), relaxed);
        if !self.state.is_ready() || matches!(self.state, State::Resetting { .. }) {
            settings.shadow_enabled.store(0, relaxed);
        }
    }

    fn can_enable(&self) -> bool {
        let Registers { cc, aqa, asq, acq, .. } = self.registers;
        let page = (1_u64 << cc.page_shift()) - 1;
        cc.mps() <= MPS_MAX
            && cc.ams() == ArbitrationSelected::ROUND_ROBIN
            && matches!(
                cc.css(),
                CommandSetSelected::NVM | CommandSetSelected::ALL | CommandSetSelected::ADMIN_ONLY
            )
            && aqa.asqs_z() > 0
            && aqa.acqs_z() > 0
            && asq.into_bits() & page == 0
            && acq.into_bits() & page == 0
    }
}
