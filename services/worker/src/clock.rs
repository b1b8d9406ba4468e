//! The worker's clock: nanoseconds that never go back. Read once per many polls, never per command.

use std::time::Instant;

/// A clock. Its origin does not matter; it never goes back.
pub trait Clock {
    /// Nanoseconds since the origin.
    fn now(&self) -> u64;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic {
    origin: Instant,
}

impl Default for Monotonic {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        // 584 years fit.
        self.origin.elapsed().as_nanos() as u64
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
