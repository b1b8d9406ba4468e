//! The latency histogram of sampled commands, part of the queues segment.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a latency histogram is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatencyOf {
    /// Reads.
    Read = 0,
    /// Writes.
    Write = 1,
    /// All other commands.
    Other = 2,
}

/// Powers of two that are told apart: from 256 ns to 17 s.
pub const OCTAVES: usize = 26;
/// Buckets of a power of two.
pub const BUCKETS_PER_OCTAVE: usize = 4;
/// Exponent of the first bucket's upper bound.
const FIRST_EXPONENT: u32 = 8;
/// Buckets: one for all below the first octave, and the last also for all above the last one.
pub const BUCKETS: usize = 1 + OCTAVES * BUCKETS_PER_OCTAVE;

/// Latencies of sampled commands, log-linear: a bucket is a quarter of a power of two wide, so that a quantile is off by
/// an eighth at most.
#[repr(C, align(64))]
pub struct LatencyHistogram {
    /// Sum in nanoseconds.
    pub sum: AtomicU64,
    /// Commands by [`bucket_of`].
    pub buckets: [AtomicU64; BUCKETS],
    /// The last traced command of each octave, the first one's before it.
    pub exemplars: [Exemplar; OCTAVES + 1],
}

/// A traced command that shows what a bucket is made of.
#[repr(C)]
pub struct Exemplar {
    /// Low half of its trace id, stored last (Release); 0 while there is none.
    pub trace: AtomicU64,
    /// Its latency in nanoseconds.
    pub value: AtomicU64,
    /// Wall clock in nanoseconds since 1970.
    pub time: AtomicU64,
}

/// The bucket of a latency in nanoseconds. Bounds belong to the bucket below them.
#[inline]
pub fn bucket_of(nanoseconds: u64) -> usize {
    let value = nanoseconds.saturating_sub(1);
    let exponent = 63 - (value | 1).leading_zeros();
    if exponent < FIRST_EXPONENT {
        return 0;
    }
    let quarter = (value >> (exponent - 2)) as usize & (BUCKETS_PER_OCTAVE - 1);
    let bucket = 1 + (exponent - FIRST_EXPONENT) as usize * BUCKETS_PER_OCTAVE + quarter;
    bucket.min(BUCKETS - 1)
}

/// Upper bound of a bucket in nanoseconds, inclusive; the last one has none.
pub fn upper_bound(bucket: usize) -> Option<u64> {
    match bucket.checked_sub(1) {
        None => Some(1 << FIRST_EXPONENT),
        Some(_) if bucket >= BUCKETS - 1 => None,
        Some(index) => {
            let exponent = FIRST_EXPONENT + (index / BUCKETS_PER_OCTAVE) as u32;
            let quarter = (index % BUCKETS_PER_OCTAVE) as u64;
            Some((BUCKETS_PER_OCTAVE as u64 + quarter + 1) << (exponent - 2))
        }
    }
}

impl LatencyHistogram {
    /// Adds a latency in nanoseconds. By its one writer.
    pub fn record(&self, nanoseconds: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(nanoseconds)) {
            add(bucket, 1);
        }
        add(&self.sum, nanoseconds);
    }

    /// Shows `trace`, whose latency was added, as an example of its octave; `time` in nanoseconds since 1970. By its one
    /// writer.
    pub fn show(&self, nanoseconds: u64, trace: u64, time: u64) {
        let octave = bucket_of(nanoseconds).div_ceil(BUCKETS_PER_OCTAVE);
        let Some(exemplar) = self.exemplars.get(octave) else { return };
        // A reader that finds another trace after than before takes neither.
        exemplar.trace.store(0, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::Release);
        exemplar.value.store(nanoseconds, Ordering::Relaxed);
        exemplar.time.store(time, Ordering::Relaxed);
        // Release: pairs with the Acquire in `exemplar`.
        exemplar.trace.store(trace, Ordering::Release);
    }

    /// The example of an octave: trace, latency, time.
    pub fn exemplar(&self, octave: usize) -> Option<(u64, u64, u64)> {
        let exemplar = self.exemplars.get(octave)?;
        // Acquire: pairs with the Release in `show`.
        let trace = exemplar.trace.load(Ordering::Acquire);
        let (value, time) =
            (exemplar.value.load(Ordering::Relaxed), exemplar.time.load(Ordering::Relaxed));
        // Acquire, then the trace again: a value of a later trace comes with that trace, or with 0.
        std::sync::atomic::fence(Ordering::Acquire);
        let same = exemplar.trace.load(Ordering::Relaxed) == trace;
        (trace != 0 && same).then_some((trace, value, time))
    }

    /// Copies the buckets and the sum. The sum may be a command ahead or behind.
    pub fn load(&self) -> ([u64; BUCKETS], u64) {
        let buckets = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        (buckets, self.sum.load(Ordering::Relaxed))
    }
}

/// Adds to a counter with one writer: a load and a store do.
#[inline(always)]
fn add(counter: &AtomicU64, value: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(value), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_in_the_bucket_whose_bounds_it_lies_between() {
        let mut bounds: Vec<u64> = (0..BUCKETS - 1).filter_map(upper_bound).collect();
        assert_eq!(bounds.len(), BUCKETS - 1);
        assert!(bounds.is_sorted_by(|a, b| a < b));
        assert_eq!((bounds[0], bounds[1]), (256, 320));
        bounds.push(u64::MAX);
        for (bucket, &bound) in bounds.iter().enumerate() {
            assert_eq!(bucket_of(bound), bucket, "{bound} is the last of its bucket");
            let next = bound.saturating_add(1);
            assert_eq!(bucket_of(next), (bucket + 1).min(BUCKETS - 1), "{next}");
        }
        assert_eq!(bucket_of(0), 0);
    }

    #[test]
    fn octaves_end_at_powers_of_two() {
        for octave in 0..OCTAVES {
            let bound = upper_bound(octave * BUCKETS_PER_OCTAVE);
            assert_eq!(bound, Some(1 << (FIRST_EXPONENT as usize + octave)));
        }
    }

    #[test]
    fn a_histogram_counts_sums_and_shows_its_last_example() {
        let segment =
            crate::segment::Segment::<crate::layout::queues::QueuesLayout>::create("queues", 1)
                .unwrap();
        let histogram = &segment.latency[LatencyOf::Write as usize];
        histogram.record(300);
        histogram.record(5_000);
        histogram.show(5_000, 7, 9);
        histogram.show(5_001, 8, 10);
        let (buckets, sum) = histogram.load();
        assert_eq!((buckets.iter().sum::<u64>(), sum), (2, 5_300));
        assert_eq!(buckets[bucket_of(300)], 1);
        let octave = bucket_of(5_000).div_ceil(BUCKETS_PER_OCTAVE);
        assert_eq!(histogram.exemplar(octave), Some((8, 5_001, 10)));
        assert_eq!(histogram.exemplar(octave + 1), None);
        assert_eq!(histogram.exemplar(usize::MAX), None);
    }
}
