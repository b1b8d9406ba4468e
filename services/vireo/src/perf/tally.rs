//! What a thread counts while it runs, and what that comes to. Recording is on the hot path.

use hdrhistogram::Histogram;

/// Longest latency told apart, in nanoseconds; longer ones count as this.
const LATENCY_MAX: u64 = 60_000_000_000;
/// Significant decimal digits of a latency.
const DIGITS: u8 = 3;

/// Completions of one kind, reads or writes.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Latencies in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Their sum, exact.
    pub nanos: u64,
    /// Completions that succeeded.
    pub ios: u64,
}

/// One interval of the time line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Interval {
    /// Completions.
    pub ios: u64,
    /// Sum of their latencies in nanoseconds.
    pub nanos: u64,
    /// The longest of them.
    pub max_nanos: u64,
}

/// The time line of one thread.
#[derive(Debug, Clone)]
pub struct Timeline {
    intervals: Vec<Interval>,
    current: Interval,
    /// Ticks of an interval, and when the current one ends.
    length: u64,
    end: u64,
}

impl Tally {
    /// Nothing was counted yet.
    #[must_use]
    pub fn new() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX, DIGITS);
        // The bounds are right, so the other arm is not reached.
        let latencies =
            latencies.unwrap_or_else(|_| Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!()));
        Self { latencies, nanos: 0, ios: 0 }
    }

    /// One completion.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.latencies.saturating_record(nanos);
        self.nanos += nanos;
        self.ios += 1;
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.latencies.reset();
        (self.nanos, self.ios) = (0, 0);
    }

    /// Adds what another one counted.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        self.latencies.add(&other.latencies).ok();
        self.nanos += other.nanos;
        self.ios += other.ios;
    }

    /// Mean latency in nanoseconds; 0 of nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.ios == 0 { 0.0 } else { self.nanos as f64 / self.ios as f64 }
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Timeline {
    /// Intervals of `length` ticks from `start` on, room for `count` of them.
    #[must_use]
    pub fn new(start: u64, length: u64, count: usize) -> Self {
        let length = length.max(1);
        Self {
            intervals: Vec::with_capacity(count + 1),
            current: Interval::default(),
            length,
            end: start.saturating_add(length),
        }
    }

    /// One completion.
    #[inline]
    pub fn record(&mut self, nanos: u64) {
        self.current.ios += 1;
        self.current.nanos += nanos;
        self.current.max_nanos = self.current.max_nanos.max(nanos);
    }

    /// Whether the current interval is over.
    #[inline]
    #[must_use]
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.end
    }

    /// Ends every interval that is over. More than there was room for are not kept.
    pub fn advance(&mut self, now: u64) {
        while now >= self.end {
            if self.intervals.len() == self.intervals.capacity() {
                self.end = u64::MAX;
                return;
            }
            self.intervals.push(std::mem::take(&mut self.current));
            self.end = self.end.saturating_add(self.length);
        }
    }

    /// The intervals that are over.
    #[must_use]
    pub fn into_intervals(self) -> Vec<Interval> {
        self.intervals
    }
}

impl Interval {
    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.ios += other.ios;
        self.nanos += other.nanos;
        self.max_nanos = self.max_nanos.max(other.max_nanos);
    }

    /// Mean latency in nanoseconds; 0 of nothing.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.ios == 0 { 0.0 } else { self.nanos as f64 / self.ios as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_mean_are_those_of_what_was_recorded() {
        let mut tally = Tally::new();
        for nanos in 1..=10_000 {
            tally.record(nanos);
        }
        assert_eq!(tally.ios, 10_000);
        assert!((tally.mean() - 5000.5).abs() < 1e-9);
        let p99 = tally.latencies.value_at_quantile(0.99);
        assert!((9900..=9910).contains(&p99), "{p99}");
        tally.record(u64::MAX / 2);
        assert!(tally.latencies.max() <= 2 * LATENCY_MAX, "longer than is told apart");
    }

    #[test]
    fn two_threads_add_up() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        a.record(100);
        b.record(300);
        a.add(&b);
        assert_eq!((a.ios, a.mean()), (2, 200.0));
        assert_eq!(a.latencies.len(), 2);
    }

    #[test]
    fn intervals_hold_what_fell_into_them() {
        let mut timeline = Timeline::new(1000, 100, 3);
        timeline.record(5);
        assert!(!timeline.is_due(1099));
        assert!(timeline.is_due(1100));
        timeline.advance(1100);
        timeline.record(7);
        timeline.record(9);
        timeline.advance(1350);
        let intervals = timeline.into_intervals();
        let ios: Vec<_> = intervals.iter().map(|interval| interval.ios).collect();
        assert_eq!(ios, [1, 2, 0]);
        assert_eq!((intervals[1].mean(), intervals[1].max_nanos), (8.0, 9));
    }

    #[test]
    fn a_time_line_does_not_grow_without_end() {
        let mut timeline = Timeline::new(0, 1, 10);
        timeline.advance(1_000_000);
        assert!(timeline.into_intervals().len() < 100);
    }
}
