//! How long sampled commands took: histograms that workers keep by controller.

use std::collections::BTreeMap;
use vireo_proto::handoff::{LatencyCounts, LatencyKind};

/// Which commands a histogram is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// All others.
    Other,
}

impl Operation {
    pub(super) fn of(counts: &LatencyCounts) -> Option<Self> {
        match counts.kind() {
            LatencyKind::Read => Some(Self::Read),
            LatencyKind::Write => Some(Self::Write),
            LatencyKind::Other => Some(Self::Other),
            LatencyKind::Unspecified => None,
        }
    }
}

/// Names a histogram.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HistogramKey {
    /// The endpoint's name.
    pub controller: String,
    /// The worker's name.
    pub worker: String,
    /// Which commands.
    pub operation: Operation,
}

/// Latencies of sampled commands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Sum in nanoseconds.
    pub sum_ns: u64,
    /// Commands by their bucket's inclusive upper bound in nanoseconds; `u64::MAX` for the one without.
    pub buckets: BTreeMap<u64, u64>,
}

impl Histogram {
    pub(super) fn of(counts: &LatencyCounts) -> Self {
        let bound = |bound: u64| if bound == 0 { u64::MAX } else { bound };
        let buckets = counts.buckets.iter().map(|b| (bound(b.upper_bound_ns), b.count));
        Self { sum_ns: counts.sum_ns, buckets: buckets.collect() }
    }

    /// Commands in all buckets.
    pub fn count(&self) -> u64 {
        self.buckets.values().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        for (bound, count) in &other.buckets {
            let sum = self.buckets.entry(*bound).or_default();
            *sum = sum.wrapping_add(*count);
        }
    }

    /// What came since `base`; empty buckets are left out.
    pub(super) fn since(&self, base: &Self) -> Self {
        let count = |(bound, count): (&u64, &u64)| {
            (*bound, count.saturating_sub(base.buckets.get(bound).copied().unwrap_or(0)))
        };
        let buckets = self.buckets.iter().map(count).filter(|(_, count)| *count > 0).collect();
        Self { sum_ns: self.sum_ns.saturating_sub(base.sum_ns), buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(sum_ns: u64, buckets: &[(u64, u64)]) -> Histogram {
        Histogram { sum_ns, buckets: buckets.iter().copied().collect() }
    }

    #[test]
    fn histograms_add_up_and_begin_again() {
        let mut sum = histogram(10, &[(256, 1), (320, 2)]);
        sum.add(&histogram(5, &[(320, 1), (u64::MAX, 4)]));
        assert_eq!(sum, histogram(15, &[(256, 1), (320, 3), (u64::MAX, 4)]));
        assert_eq!(sum.count(), 8);
        let since = sum.since(&histogram(10, &[(256, 1), (320, 2)]));
        assert_eq!(since, histogram(5, &[(320, 1), (u64::MAX, 4)]));
    }
}
