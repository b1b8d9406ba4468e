//! Distributions of latencies, as far as two readings of the manager's histograms tell them.

use std::collections::{BTreeMap, VecDeque};

/// How far back percentiles look: sampled commands are few (one in a thousand), so that one interval alone would show
/// little.
pub const WINDOW_SECONDS: f64 = 10.0;
/// Least distance of two readings that are kept, so that their number is bounded whatever the interval is.
const SPACING_SECONDS: f64 = 0.9;

/// Commands by how long they took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Sum in nanoseconds.
    pub sum_ns: u64,
    /// Commands by the inclusive upper bound of their bucket in nanoseconds; `u64::MAX` for the one without.
    pub buckets: BTreeMap<u64, u64>,
}

/// What is shown of a distribution, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Latency {
    /// Mean.
    pub mean_ns: f64,
    /// Half of the commands took at most this.
    pub p50_ns: f64,
    /// 99 in 100 took at most this.
    pub p99_ns: f64,
    /// Commands that this is of.
    pub samples: u64,
}

impl Histogram {
    /// Adds a bucket's commands.
    pub fn add(&mut self, bound: u64, count: u64) {
        let sum = self.buckets.entry(bound).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Commands in all buckets.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// What came since `base`; all of it if it began anew since.
    pub fn since(&self, base: &Self) -> Self {
        let old = |bound: &u64| base.buckets.get(bound).copied().unwrap_or(0);
        let shrunk = base
            .buckets
            .iter()
            .any(|(bound, count)| self.buckets.get(bound).copied().unwrap_or(0) < *count);
        if shrunk || self.sum_ns < base.sum_ns {
            return self.clone();
        }
        let grown = self.buckets.iter().map(|(bound, count)| (*bound, count - old(bound)));
        Self {
            sum_ns: self.sum_ns - base.sum_ns,
            buckets: grown.filter(|(_, count)| *count > 0).collect(),
        }
    }

    /// What is shown of it; `None` without commands.
    pub fn latency(&self) -> Option<Latency> {
        let samples = self.count();
        let mean_ns = self.sum_ns as f64 / samples as f64;
        (samples > 0).then(|| Latency {
            mean_ns,
            p50_ns: self.percentile(50, samples),
            p99_ns: self.percentile(99, samples),
            samples,
        })
    }

    /// The bound below which so many in a hundred are. Of the bucket without a bound nothing is known but its lower end.
    fn percentile(&self, percent: u64, count: u64) -> f64 {
        let wanted = (u128::from(count) * u128::from(percent)).div_ceil(100);
        let (mut seen, mut before) = (0_u128, 0);
        for (&bound, &count) in &self.buckets {
            seen += u128::from(count);
            if seen >= wanted {
                return if bound == u64::MAX { before as f64 } else { bound as f64 };
            }
            before = bound;
        }
        before as f64
    }
}

/// The readings of the last seconds.
#[derive(Clone, Debug, Default)]
pub struct Window {
    readings: VecDeque<(f64, Histogram)>,
    latest: Histogram,
}

impl Window {
    /// Notes what was read at a time in seconds.
    pub fn push(&mut self, time: f64, histogram: Histogram) {
        self.latest = histogram;
        let spaced = self.readings.back().is_none_or(|(last, _)| time - last >= SPACING_SECONDS);
        if spaced {
            self.readings.push_back((time, self.latest.clone()));
        }
        // The oldest is the newest of those outside.
        while self.readings.get(1).is_some_and(|(next, _)| time - next >= WINDOW_SECONDS) {
            self.readings.pop_front();
        }
    }

    /// Of the commands of the window.
    pub fn latency(&self) -> Option<Latency> {
        let (_, base) = self.readings.front()?;
        self.latest.since(base).latency()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(sum_ns: u64, buckets: &[(u64, u64)]) -> Histogram {
        Histogram { sum_ns, buckets: buckets.iter().copied().collect() }
    }

    #[test]
    fn percentiles_are_bounds_of_buckets() {
        let latency = histogram(1_000, &[(10, 90), (20, 9), (40, 1)]).latency().unwrap();
        assert_eq!((latency.p50_ns, latency.p99_ns), (10.0, 20.0));
        assert_eq!((latency.mean_ns, latency.samples), (10.0, 100));
        assert_eq!(histogram(0, &[]).latency(), None);
        let beyond = histogram(100, &[(10, 1), (u64::MAX, 1)]).latency().unwrap();
        assert_eq!(beyond.p99_ns, 10.0, "longer than the longest bound");
        assert_eq!(histogram(9, &[(u64::MAX, 1)]).latency().unwrap().p50_ns, 0.0);
        let huge = histogram(0, &[(1, u64::MAX), (2, u64::MAX)]);
        assert_eq!(huge.latency().unwrap().p50_ns, 1.0, "no sum overflows");
    }

    #[test]
    fn a_histogram_that_began_anew_counts_from_zero() {
        let old = histogram(100, &[(10, 10)]);
        let new = histogram(30, &[(10, 3)]);
        assert_eq!(new.since(&old), new);
        assert_eq!(histogram(150, &[(10, 10), (20, 2)]).since(&old), histogram(50, &[(20, 2)]));
    }

    #[test]
    fn the_window_forgets_what_is_older() {
        let mut window = Window::default();
        window.push(0.0, histogram(1_000_000, &[(1_000_000, 1)]));
        assert_eq!(window.latency(), None, "what was before the first reading is not known");
        for second in 1..=30 {
            window.push(f64::from(second), histogram(1_000_000 + 10, &[(10, 1), (1_000_000, 1)]));
        }
        assert_eq!(window.latency(), None, "nothing came within the window");
        window.push(31.0, histogram(1_000_030, &[(10, 2), (20, 1), (1_000_000, 1)]));
        assert_eq!(window.latency().map(|latency| latency.samples), Some(2));
        for tenth in 0..10_000 {
            window.push(32.0 + f64::from(tenth) / 10.0, histogram(0, &[]));
        }
        assert!(window.readings.len() <= 13, "{}", window.readings.len());
    }
}
