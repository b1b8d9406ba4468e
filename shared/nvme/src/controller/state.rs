//! The states of a controller and every transition between them. NVMe Base 2.0c 3.5, 3.6, 3.7.

use crate::controller::Ticket;

/// Where the controller stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// CSTS.RDY 0, nothing in flight anywhere.
    Disabled,
    /// CSTS.RDY 1, commands are served.
    Enabled,
    /// A reset began; workers may still have commands of before in flight. CSTS.RDY stays what it was.
    Resetting {
        /// CSTS.RDY.
        ready: bool,
    },
    /// CSTS.SHST 01b: nothing new is fetched; what is in flight ends, written data becomes durable.
    ShuttingDown {
        /// CSTS.RDY.
        ready: bool,
        /// Version that workers acknowledge when nothing is in flight.
        version: u64,
        /// How far the flush of a normal shutdown is.
        flush: Flush,
    },
    /// CSTS.SHST 10b.
    ShutDown {
        /// CSTS.RDY.
        ready: bool,
    },
    /// CSTS.CFS 1: only a reset leads out.
    Failed {
        /// CSTS.RDY.
        ready: bool,
    },
}

/// The flush that belongs to a normal shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    /// To be asked for when nothing is in flight any more.
    Wanted,
    /// Asked for.
    Asked(Ticket),
    /// Done, or not wanted.
    Done,
}

/// What happens to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// CC.EN went to 1 with everything valid.
    Enable,
    /// A reset of any kind.
    Reset,
    /// Nothing of before the reset is in flight.
    Drained,
    /// CC.SHN asks for a shutdown.
    Shutdown {
        /// Version that says so to the workers.
        version: u64,
        /// Whether a flush belongs to it.
        flush: Flush,
    },
    /// The shutdown's flush went further.
    Flushed(Flush),
    /// The shutdown is complete.
    ShutdownComplete,
    /// The controller cannot go on, or cannot be enabled.
    Fail,
}

impl State {
    /// CSTS.RDY.
    pub(crate) fn is_ready(self) -> bool {
        match self {
            Self::Disabled => false,
            Self::Enabled => true,
            Self::Resetting { ready }
            | Self::ShuttingDown { ready, .. }
            | Self::ShutDown { ready }
            | Self::Failed { ready } => ready,
        }
    }

    /// The state after `event`. An event that means nothing in a state leaves it.
    pub(crate) fn after(self, event: Event) -> Self {
        let ready = self.is_ready();
        match (self, event) {
            (_, Event::Reset) => Self::Resetting { ready },
            (Self::Resetting { .. }, Event::Drained) => Self::Disabled,
            // A reset in progress ends in a state that can be enabled, whatever broke.
            (Self::Resetting { .. }, Event::Fail) => self,
            (_, Event::Fail) => Self::Failed { ready },
            (Self::Disabled | Self::ShutDown { ready: false }, Event::Enable) => Self::Enabled,
            (Self::Disabled | Self::Enabled, Event::Shutdown { version, flush }) => {
                Self::ShuttingDown { ready, version, flush }
            }
            (Self::ShuttingDown { version, .. }, Event::Flushed(flush)) => {
                Self::ShuttingDown { ready, version, flush }
            }
            (Self::ShuttingDown { .. }, Event::ShutdownComplete) => Self::ShutDown { ready },
            (
                _,
                Event::Enable
                | Event::Drained
                | Event::Shutdown { .. }
                | Event::Flushed(_)
                | Event::ShutdownComplete,
            ) => self,
        }
    }
}
