//! A limit on the I/Os a second. On the hot path.

/// Hands out I/Os at a steady rate. What was missed is made up for, but no more than a short burst of it.
#[derive(Debug, Clone)]
pub struct Pace {
    ticks_per_io: f64,
    /// When the next I/O is due, in ticks.
    due: f64,
    /// Most that may be owed, in ticks.
    burst: f64,
}

/// After a stall at most this much is caught up: the average stays near the limit, and a stall makes no flood.
const BURST_SECONDS: f64 = 0.01;

impl Pace {
    /// `rate` I/Os a second from `now` on, with a clock of `ticks_per_second`.
    #[must_use]
    pub fn new(rate: f64, ticks_per_second: f64, now: u64) -> Self {
        let ticks_per_io = ticks_per_second / rate;
        let burst = (BURST_SECONDS * ticks_per_second).max(ticks_per_io);
        Self { ticks_per_io, due: now as f64, burst }
    }

    /// Takes one I/O if it is due.
    #[inline]
    pub fn take(&mut self, now: u64) -> bool {
        let now = now as f64;
        if now < self.due {
            return false;
        }
        self.due = (self.due + self.ticks_per_io).max(now - self.burst);
        true
    }

    /// Gives back one that could not be sent.
    #[inline]
    pub fn give_back(&mut self) {
        self.due -= self.ticks_per_io;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_second_holds_as_many_as_were_asked_for() {
        for rate in [1.0, 3.0, 1000.0, 123_456.0] {
            let mut pace = Pace::new(rate, SECOND as f64, 0);
            let mut taken = 0_u64;
            // Looks every 2 us, as a busy loop would.
            for now in (0..SECOND).step_by(2000) {
                while pace.take(now) {
                    taken += 1;
                }
            }
            assert!(taken.abs_diff(rate as u64) <= 1 + rate as u64 / 1000, "{rate}: {taken}");
        }
    }

    #[test]
    fn a_stall_is_not_followed_by_a_flood() {
        let mut pace = Pace::new(1000.0, SECOND as f64, 0);
        let late = 10 * SECOND;
        let flood = std::iter::from_fn(|| pace.take(late).then_some(())).take(100_000).count();
        assert!((1..=12).contains(&flood), "{flood}");
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let mut pace = Pace::new(1.0, SECOND as f64, 0);
        assert!(pace.take(0));
        assert!(!pace.take(1));
        pace.give_back();
        assert!(pace.take(1));
    }
}
