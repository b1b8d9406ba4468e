//! Pauses. Of the controller: nothing is fetched, and nothing that waits is sent on. Of a namespace: its commands are
//! fetched and held here, those of others go on. What block devices have goes on to its end in either case, and so does a
//! command of several requests that a namespace's pause finds begun; then the frontend is told. Queues are made, deleted
//! and reset as always, and commands aborted.
//!
//! A held command is logged and counts for its queue's share of the slots, as one that waits for a limit. A Flush of all
//! namespaces is held if any of them is paused.

use super::Controller;
use super::waiting::Line;
use crate::slots::{Flight, Kind};
use bdev::channel::Channel;
use ipc::layout::MAX_IN_FLIGHT;
use ipc::layout::controller::ControllerState;
use nvme::nvm::Steps;
use nvme_spec::Status;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

/// A controller's part in pauses.
pub(super) struct Pause {
    /// `ipc::layout::controller::Settings::pause_number` that was taken in.
    number: u64,
    /// Commands whose namespaces are paused, in the order in which they came.
    held: VecDeque<u16>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { number: 0, held: VecDeque::with_capacity(MAX_IN_FLIGHT) }
    }
}

impl Pause {
    /// Whether the controller is paused.
    #[inline]
    pub(super) fn is_paused(&self) -> bool {
        self.number % 2 == 1
    }

    /// The number to acknowledge, if it is in effect once nothing is in flight (`idle`).
    pub(super) fn settled(&self, idle: bool) -> Option<u64> {
        (idle || !self.is_paused()).then_some(self.number)
    }

    /// Whether any command is held.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// The command that was held last.
    pub(super) fn last_held(&self) -> Option<u16> {
        self.held.back().copied()
    }

    /// How many commands are held.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the first held command out.
    pub(super) fn take_held(&mut self) -> Option<u16> {
        self.held.pop_front()
    }

    /// Puts it behind the others.
    pub(super) fn put_held(&mut self, slot: u16) {
        self.held.push_back(slot);
    }
}

impl Controller {
    /// Takes over what is paused, after everything else of a version.
    #[cold]
    pub(super) fn load_pause(&mut self, now: u64) {
        let was_paused = self.pause.is_paused();
        // Relaxed: the version, which was read with Acquire, orders it.
        self.pause.number = self.layout.settings.pause_number.load(Ordering::Relaxed);
        self.let_held_go(now);
        self.hold_waiting();
        if self.state == ControllerState::Stopped {
            // A shutdown is not complete before every command has ended.
            self.end_held();
        }
        if !self.pause.is_paused() {
            if was_paused {
                self.limits.due = 0;
                // They did not wait for their channels.
                for index in 0..self.waiting.len() {
                    if let Some(&slot) = self.waiting.get(index) {
                        self.slots.flight_mut(slot).since = now.max(1);
                    }
                }
            }
            return;
        }
        match self.state {
            ControllerState::Enabled => self.state = ControllerState::Disabled,
            ControllerState::Stopped => self.end_waiting(),
            ControllerState::Disabled => {}
        }
    }

    /// Sets a command aside until its namespace goes on.
    #[cold]
    pub(super) fn hold(&mut self, slot: u16) {
        self.pause.held.push_back(slot);
        self.trace_paused(slot);
        self.occupy(usize::from(self.slots.flight(slot).sqid));
    }

    /// Whether a command waits here until its namespace goes on. One of several requests that has begun does not, unless
    /// the pause came into effect because the controller itself is paused.
    pub(super) fn is_held_up(&self, flight: &Flight) -> bool {
        let row = usize::from(flight.namespace);
        let still = || self.namespaces.get(row).is_some_and(|entry| entry.still);
        let begun = matches!(flight.kind, Kind::Steps(_));
        self.namespaces.paused().has(row) && (!begun || still())
    }

    /// Commands whose namespaces go on wait for their limits, or for their channels.
    fn let_held_go(&mut self, now: u64) {
        if !self.limits.is_idle() {
            self.limits.due = 0;
        }
        for _ in 0..self.pause.held.len() {
            let Some(slot) = self.pause.held.pop_front() else { break };
            let flight = *self.slots.flight(slot);
            if self.is_held_up(&flight) {
                self.pause.held.push_back(slot);
                continue;
            }
            self.unpark(usize::from(flight.sqid));
            // It did not wait for its channel.
            self.slots.flight_mut(slot).since = now.max(1);
            if !self.line_up(slot) {
                self.waiting.push_back(slot);
            }
        }
    }

    /// Commands that wait for the channel of a namespace that is paused wait for the namespace.
    fn hold_waiting(&mut self) {
        if !self.namespaces.paused().any() {
            return;
        }
        for _ in 0..self.waiting.len() {
            let Some(slot) = self.waiting.pop_front() else { break };
            if self.is_held_up(self.slots.flight(slot)) {
                self.hold(slot);
            } else {
                self.waiting.push_back(slot);
            }
        }
    }

    /// Ends what waits and may not go on, since the controller is paused.
    fn end_waiting(&mut self) {
        self.abort_in(Line::Channel, |_| true, Status::ABORT_REQUESTED, usize::MAX);
        self.abort_parked(|_| true, Status::ABORT_REQUESTED, usize::MAX);
    }

    /// Ends what waits and may not go on, since its namespace is paused.
    fn end_held(&mut self) {
        self.abort_in(Line::Pause, |_| true, Status::ABORT_REQUESTED, usize::MAX);
        let paused = self.namespaces.paused();
        let held = |flight: &Flight| paused.has(usize::from(flight.namespace));
        if paused.any() {
            self.abort_parked(held, Status::ABORT_REQUESTED, usize::MAX);
        }
    }

    /// Acknowledges the pauses of namespaces that have nothing in flight. Returns whether there was one, and whether all
    /// are acknowledged now.
    #[cold]
    pub(super) fn acknowledge_pauses(&mut self) -> (bool, bool) {
        let (mut any, mut all) = (false, true);
        for row in self.namespaces.paused().rows() {
            let begun = !self.pause.is_paused() && self.has_begun_in(row);
            let Some(entry) = self.namespaces.get_mut(row).filter(|entry| !entry.still) else {
                continue;
            };
            let busy = entry.channel.as_ref().is_some_and(|channel| channel.outstanding() > 0);
            if busy || begun {
                all = false;
                continue;
            }
            (entry.still, any) = (true, true);
            if let Some(acknowledged) = self.queues.paused.get(row) {
                // Release: what was in flight has ended.
                acknowledged.store(entry.pause, Ordering::Release);
            }
        }
        (any, all)
    }

    /// Whether a command of several requests that has begun will come to this row.
    fn has_begun_in(&self, row: usize) -> bool {
        let begun = |(entry, steps): (usize, &Steps)| {
            !self.free_steps.contains(&(entry as u16)) && steps.is_left_in(row)
        };
        self.steps.iter().enumerate().any(begun)
    }
}
