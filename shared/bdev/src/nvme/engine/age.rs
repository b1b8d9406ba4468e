//! Commands that take too long: aborted first, then the controller is reset.

use super::super::control::Ask;
use super::super::places::State;
use super::Engine;
use nvme_driver::BareQueue;
use nvme_spec::CommandId;

/// After this long a command is asked to be aborted; nanoseconds. A Linux guest gives its own up after 30 seconds.
const IO_TIMEOUT: u64 = 8_000_000_000;
/// So much later the controller is reset.
const ABORT_TIMEOUT: u64 = 4_000_000_000;
/// Between two looks at the age of commands.
pub(super) const AGE_INTERVAL: u64 = 250_000_000;

impl Engine {
    /// Aborts what is too old, and has the controller reset if that was in vain.
    #[cold]
    pub(super) fn age(&mut self) {
        let Some(queue) = self.queue().map(BareQueue::id) else { return };
        let mut hopeless = false;
        for (place, entry) in self.places.iter_mut().enumerate() {
            let State::Sent { at, aborted } = &mut entry.state else { continue };
            let age = self.now.saturating_sub(*at);
            if age >= IO_TIMEOUT && !*aborted {
                *aborted = true;
                tracing::warn!(place, "drive is slow, command is aborted");
                self.outbox.push_back(Ask::Abort(queue, CommandId(place as u16)));
            }
            hopeless |= age >= IO_TIMEOUT + ABORT_TIMEOUT;
        }
        if hopeless {
            self.reset("an aborted command did not complete");
        }
    }

    #[cold]
    pub(super) fn reset(&mut self, why: &'static str) {
        if !self.resetting {
            tracing::warn!(why, "drive is reset");
            self.resetting = true;
            self.outbox.push_back(Ask::Reset);
        }
    }
}
