//! A limit on events that a guest or a client can trigger, so that no guest fills the disk with our log.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// At most `burst` events in each period; the rest are counted. One per place in the code, as a `static`:
///
/// ```
/// use telemetry::limit::Limit;
/// static LIMIT: Limit = Limit::per_second(5);
/// if let Some(suppressed) = LIMIT.pass() {
///     tracing::warn!(suppressed, "doorbell out of range");
/// }
/// ```
#[derive(Debug)]
pub struct Limit {
    burst: u64,
    period: u64,
    /// The period's number in the high half, events in it in the low half.
    window: AtomicU64,
    suppressed: AtomicU64,
}

impl Limit {
    /// At most `burst` events a second.
    pub const fn per_second(burst: u32) -> Self {
        Self::new(burst, Duration::from_secs(1))
    }

    /// At most `burst` events in each `period`, which is at least a microsecond.
    pub const fn new(burst: u32, period: Duration) -> Self {
        let period = period.as_micros() as u64;
        Self {
            burst: burst as u64,
            period: if period == 0 { 1 } else { period },
            window: AtomicU64::new(0),
            suppressed: AtomicU64::new(0),
        }
    }

    /// `Some` if the event may be logged, with how many were not since the last one that was.
    pub fn pass(&self) -> Option<u64> {
        static START: OnceLock<Instant> = OnceLock::new();
        let now = START.get_or_init(Instant::now).elapsed().as_micros() as u64;
        self.pass_at(now)
    }

    fn pass_at(&self, microseconds: u64) -> Option<u64> {
        let period = (microseconds / self.period) & u64::from(u32::MAX);
        // Relaxed throughout: the numbers guard nothing but themselves.
        let count = self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |window| {
            let same = window >> 32 == period;
            // The count stops at the burst, so that it never runs into the period's half.
            let count = if same { window & u64::from(u32::MAX) } else { 0 };
            (count < self.burst).then_some(period << 32 | (count + 1))
        });
        match count {
            Ok(_) => Some(self.suppressed.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_the_burst_is_counted_and_told_later() {
        let limit = Limit::per_second(2);
        let second = 1_000_000;
        assert_eq!(limit.pass_at(0), Some(0));
        assert_eq!(limit.pass_at(second - 1), Some(0));
        for _ in 0..1000 {
            assert_eq!(limit.pass_at(second - 1), None);
        }
        assert_eq!(limit.pass_at(second), Some(1000));
        assert_eq!(limit.pass_at(second), Some(0));
        assert_eq!(limit.pass_at(second), None);
        assert_eq!(limit.pass_at(9 * second), Some(1));
    }

    #[test]
    fn nothing_passes_a_limit_of_nothing() {
        assert_eq!(Limit::per_second(0).pass_at(5), None);
        assert_eq!(Limit::new(1, Duration::ZERO).pass_at(5), Some(0));
    }
}
