//! Pause: nothing is fetched, and nothing that waits is sent on. What block devices have goes on to its end; then the
//! frontend is told. Queues are made, deleted and reset as always, and commands aborted.

use super::Controller;
use ipc::layout::controller::ControllerState;
use nvme_spec::Status;
use std::sync::atomic::Ordering;

/// A controller's part in pauses.
#[derive(Default)]
pub(super) struct Pause {
    /// `ipc::layout::controller::Settings::pause_number` that was taken in.
    number: u64,
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
}

impl Controller {
    /// Takes over whether the controller is paused, after its other settings.
    #[cold]
    pub(super) fn load_pause(&mut self, now: u64) {
        let was_paused = self.pause.is_paused();
        // Relaxed: the version, which was read with Acquire, orders it.
        self.pause.number = self.layout.settings.pause_number.load(Ordering::Relaxed);
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
            // A shutdown is not complete before every command has ended.
            ControllerState::Stopped => self.end_waiting(),
            ControllerState::Disabled => {}
        }
    }

    /// Ends what waits and may not go on.
    fn end_waiting(&mut self) {
        while let Some(slot) = self.waiting.pop_front() {
            self.abort_slot(slot, Status::ABORT_REQUESTED);
        }
        self.abort_parked(|_| true, Status::ABORT_REQUESTED, usize::MAX);
    }
}
