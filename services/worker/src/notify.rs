//! How the poll thread signals an eventfd: interrupts of a guest, kicks of a frontend.

use ipc::event::{EventError, EventFd};
use ipc::watchdog::Guard;

/// The write did not come through: the client made its descriptor blocking and filled it, and the watchdog broke the
/// call off. The controller that it belongs to is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stuck;

/// Signals eventfds.
pub trait Notifier {
    /// Raises the counter by one.
    ///
    /// # Errors
    /// [`Stuck`]; an implementation never blocks for long.
    fn signal(&mut self, event: &EventFd) -> Result<(), Stuck>;
}

/// Writes to the eventfd.
#[derive(Debug, Default)]
pub struct EventNotifier;

impl Notifier for EventNotifier {
    fn signal(&mut self, event: &EventFd) -> Result<(), Stuck> {
        outcome(event.signal())
    }
}

/// Writes to the eventfd under a watchdog's eyes. Stays with the thread that the guard was made on.
#[derive(Debug)]
pub struct WatchedNotifier {
    guard: Guard,
}

impl WatchedNotifier {
    /// With a guard of the calling thread.
    pub fn new(guard: Guard) -> Self {
        Self { guard }
    }
}

impl Notifier for WatchedNotifier {
    fn signal(&mut self, event: &EventFd) -> Result<(), Stuck> {
        outcome(self.guard.signal(event))
    }
}

fn outcome(result: Result<(), EventError>) -> Result<(), Stuck> {
    match result {
        Ok(()) => Ok(()),
        Err(EventError::Interrupted) => Err(Stuck),
        // A descriptor that cannot be written at all was checked when it came (`EventFd::from_client`).
        Err(EventError::NotEventFd { .. } | EventError::System { .. }) => Ok(()),
    }
}
