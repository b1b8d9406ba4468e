//! When a service that died is started again: at once, unless it dies again and again as soon as it runs.

use std::time::Duration;

/// A service that lived shorter than this died fast.
const FAST: Duration = Duration::from_secs(2);
/// Fast deaths in a row that are still answered at once: somebody is testing us, or a peer's death took it along.
const FREE: u32 = 3;
/// First pause; doubled with each further fast death.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Counts fast deaths in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    fast: u32,
}

impl Backoff {
    /// The pause after a death.
    pub fn after_death(&mut self, lived: Duration) -> Duration {
        if lived >= FAST {
            self.fast = 0;
            return Duration::ZERO;
        }
        self.fast = self.fast.saturating_add(1);
        match self.fast.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            // 2^10 is past the longest pause.
            Some(further) => (FIRST * (1 << further.min(10))).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_several_fast_deaths_in_a_row_cost_time() {
        let mut backoff = Backoff::default();
        let fast = Duration::from_millis(3);
        let pauses: Vec<u128> = (0..12).map(|_| backoff.after_death(fast).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(backoff.after_death(FAST), Duration::ZERO);
        assert_eq!(backoff.after_death(fast), Duration::ZERO);
        backoff.fast = u32::MAX;
        assert_eq!(backoff.after_death(fast), LONGEST);
    }
}
