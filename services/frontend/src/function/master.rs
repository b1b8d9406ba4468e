//! Bus mastering: a client that clears Bus Master Enable stops the function's DMA, its interrupts included, until it sets
//! the bit again. PCI Local Bus 3.0, 6.2.2.
//!
//! A client that never touches the bit is served: it is the step from 1 to 0 that stops DMA. After power on and after a
//! reset the bit is 0, as it has to be, and says nothing yet; a guest that does not want DMA then does not enable the
//! controller.

use super::{Function, Pending, QUIET_TIME};
use std::time::Duration;
use vfio_user::Errno;
use vfio_user::server::Act;

impl Function {
    /// DMA may go on.
    pub(super) fn let_master(&mut self) {
        if self.controller.is_bus_master() {
            return;
        }
        self.with_controller(|controller, cx| controller.set_bus_master(true, cx));
        // A worker that has something to signal does it when it gets the eventfds.
        self.want_vectors();
    }

    /// DMA is to stop: nothing is fetched from here on, and the client is answered when what is in flight has ended.
    pub(super) fn stop_master(&mut self) -> Result<Act, Errno> {
        let version = self.with_controller(|controller, cx| controller.set_bus_master(false, cx));
        self.want_vectors();
        let (number, until) = (self.wanted.number, self.now + QUIET_TIME);
        self.wait(Pending::Quiet { version, number, until })
    }

    /// Whether what is in flight takes longer than the client can be kept waiting.
    pub(super) fn is_late(&self, until: Duration) -> bool {
        let late = self.now >= until;
        if late && let Some(suppressed) = self.limit.pass() {
            tracing::warn!(
                endpoint = self.name,
                suppressed,
                "dma switched off with commands in flight"
            );
        }
        late
    }
}
