//! The worker's clock: nanoseconds that never go back. Read once per many polls, never per command.

/// A clock. Its origin does not matter; it never goes back.
pub trait Clock {
    /// Nanoseconds since the origin.
    fn now(&self) -> u64;
}

/// The machine's monotonic clock (CLOCK_MONOTONIC), the same in every process: workers keep to limits that they share by
/// it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Monotonic {
    _by_default: (),
}

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        telemetry::io_trace::monotonic()
    }
}

/// A clock that is set by hand: for tests and simulations.
#[derive(Debug, Default)]
pub struct Manual(std::cell::Cell<u64>);

impl Manual {
    /// Moves the clock on.
    pub fn advance(&self, nanoseconds: u64) {
        self.0.set(self.0.get().saturating_add(nanoseconds));
    }
}

impl Clock for Manual {
    fn now(&self) -> u64 {
        self.0.get()
    }
}

impl<C: Clock> Clock for &C {
    fn now(&self) -> u64 {
        (**self).now()
    }
}
