//! Two targets compared: A B A B, and the ratios of neighbours, so that what changes slowly on the machine cancels out.

use super::report::RunReport;

/// A ratio from pair to pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The one in the middle; the mean of the two in the middle of an even number.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

/// What a comparison came to: A divided by B.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Pairs of runs.
    pub alternations: usize,
    /// Of completions a second.
    pub iops: Ratio,
    /// Of mean latencies.
    pub latency_mean: Ratio,
    /// Of 99 % quantiles.
    pub latency_p99: Ratio,
}

impl Ratio {
    /// Of these pairs of A and B; those whose B is 0 are left out. `None` if none is left.
    #[must_use]
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let pairs = pairs.into_iter().filter(|&(a, b)| a.is_finite() && b > 0.0);
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        let (&min, &max) = (ratios.first()?, ratios.last()?);
        let middle = ratios.len() / 2;
        let median = match ratios.len() % 2 {
            0 => f64::midpoint(ratios[middle - 1], ratios[middle]),
            _ => ratios[middle],
        };
        Some(Self { median, min, max })
    }
}

impl Comparison {
    /// Of runs in the order A B A B; `None` if a ratio has no pair with a figure of B.
    #[must_use]
    pub fn of(runs: &[RunReport]) -> Option<Self> {
        let ratio = |figure: &dyn Fn(&RunReport) -> f64| {
            Ratio::of(runs.chunks_exact(2).map(|pair| (figure(&pair[0]), figure(&pair[1]))))
        };
        Some(Self {
            alternations: runs.len() / 2,
            iops: ratio(&|run| run.all.iops)?,
            latency_mean: ratio(&|run| run.all.latency_ns.mean)?,
            latency_p99: ratio(&|run| run.all.latency_ns.p99 as f64)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_ratios_not_of_the_figures() {
        // The machine slows down to half in the middle; A is twice B all the time but once.
        let pairs = [(200.0, 100.0), (100.0, 50.0), (90.0, 50.0)];
        let ratio = Ratio::of(pairs).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 1.8, 2.0));
    }

    #[test]
    fn an_even_number_has_its_median_in_between() {
        let ratio = Ratio::of([(1.0, 1.0), (2.0, 1.0), (4.0, 1.0), (3.0, 1.0)]).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.5, 1.0, 4.0));
    }

    #[test]
    fn a_target_that_did_nothing_has_no_ratio() {
        assert_eq!(Ratio::of([(1.0, 0.0)]), None);
        assert_eq!(Ratio::of([(1.0, 0.0), (3.0, 2.0)]).map(|ratio| ratio.median), Some(1.5));
    }
}
