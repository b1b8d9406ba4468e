//! The clock of the hot loop: the processor's time stamp counter where it is steady, else the monotonic clock. On the
//! hot path.

use std::time::Duration;

/// Reads ticks without a system call, and turns them into nanoseconds.
#[derive(Debug, Clone)]
pub struct Clock {
    inner: quanta::Clock,
    ticks_per_second: f64,
}

/// Ticks over which the scale is taken: enough that rounding to whole nanoseconds does not show.
const SCALE_TICKS: u64 = 1 << 40;

impl Clock {
    /// Calibrates the counter on first use, which takes up to 200 ms.
    #[must_use]
    pub fn new() -> Self {
        let inner = quanta::Clock::new();
        let nanos = inner.delta_as_nanos(0, SCALE_TICKS).max(1);
        Self { inner, ticks_per_second: SCALE_TICKS as f64 * 1e9 / nanos as f64 }
    }

    /// Now, in ticks.
    #[inline]
    #[must_use]
    pub fn now(&self) -> u64 {
        self.inner.raw()
    }

    /// Nanoseconds between two ticks; 0 if they are the wrong way round.
    #[inline]
    #[must_use]
    pub fn nanos(&self, from: u64, to: u64) -> u64 {
        self.inner.delta_as_nanos(from, to)
    }

    /// A duration in ticks.
    #[must_use]
    pub fn ticks(&self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * self.ticks_per_second) as u64
    }

    /// Ticks in seconds.
    #[must_use]
    pub fn seconds(&self, ticks: u64) -> f64 {
        ticks as f64 / self.ticks_per_second
    }

    /// How many ticks a second has.
    #[must_use]
    pub fn ticks_per_second(&self) -> f64 {
        self.ticks_per_second
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_agrees_with_the_system_clock() {
        let clock = Clock::new();
        let (start, ticks) = (Instant::now(), clock.now());
        std::thread::sleep(Duration::from_millis(200));
        let (elapsed, nanos) = (start.elapsed(), clock.nanos(ticks, clock.now()));
        let ratio = nanos as f64 / elapsed.as_nanos() as f64;
        assert!((0.99..1.01).contains(&ratio), "{ratio}");
        let there_and_back = clock.seconds(clock.ticks(Duration::from_secs(100)));
        assert!((99.99..100.01).contains(&there_and_back), "{there_and_back}");
    }
}
