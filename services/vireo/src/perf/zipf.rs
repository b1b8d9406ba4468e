//! Zipf's distribution over any number of blocks: rank k comes in proportion to k to the power of -theta.
//!
//! Rejection-inversion after Hörmann and Derflinger ("Rejection-inversion to generate variates from monotone discrete
//! distributions", 1996): nothing to precompute however many blocks there are, and about one try a sample. The ranks are
//! scattered over the blocks, so that the popular ones do not lie side by side.

use rand::Rng;

/// Zipf's distribution over `0..n`, rank 0 the most frequent.
#[derive(Debug, Clone)]
pub struct Zipf {
    n: u64,
    theta: f64,
    /// H(1.5) - 1 and H(n + 0.5): the ends of the area under the hat.
    area_low: f64,
    area_high: f64,
    /// A try at most this far below its integer is taken without looking closer.
    shortcut: f64,
}

/// A bijection of `0..n` that lays neighbours far apart.
#[derive(Debug, Clone)]
pub struct Scatter {
    n: u64,
    mask: u64,
    shift: u32,
    key: u64,
}

impl Zipf {
    /// Over `0..n` with `n > 0` and `theta > 0`.
    #[must_use]
    pub fn new(n: u64, theta: f64) -> Self {
        let n = n.max(1);
        let area_high = area(n as f64 + 0.5, theta);
        let shortcut = 2.0 - inverse_area(area(2.5, theta) - hat(2.0, theta), theta);
        Self { n, theta, area_low: area(1.5, theta) - 1.0, area_high, shortcut }
    }

    /// The next rank.
    #[inline]
    pub fn sample(&self, rng: &mut impl Rng) -> u64 {
        loop {
            let u: f64 = self.area_high + rng.random::<f64>() * (self.area_low - self.area_high);
            let x = inverse_area(u, self.theta);
            let k = x.round().clamp(1.0, self.n as f64);
            if k - x <= self.shortcut || u >= area(k + 0.5, self.theta) - hat(k, self.theta) {
                return k as u64 - 1;
            }
        }
    }
}

/// x to the power of -theta.
#[inline]
fn hat(x: f64, theta: f64) -> f64 {
    (-theta * x.ln()).exp()
}

/// The integral of [`hat`] from 1 to `x`: (x^(1-theta) - 1) / (1 - theta), which is ln x at theta 1.
#[inline]
fn area(x: f64, theta: f64) -> f64 {
    let log = x.ln();
    expm1_over(log * (1.0 - theta)) * log
}

/// Where [`area`] is `y`.
#[inline]
fn inverse_area(y: f64, theta: f64) -> f64 {
    // Rounding may carry it past the pole by a hair.
    let t = (y * (1.0 - theta)).max(-1.0);
    (ln1p_over(t) * y).exp()
}

/// (e^x - 1) / x, also near 0.
#[inline]
fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// ln(1 + x) / x, also near 0.
#[inline]
fn ln1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

impl Scatter {
    /// Over `0..n` with `n > 0`.
    #[must_use]
    pub fn new(n: u64, key: u64) -> Self {
        let n = n.max(1);
        let bits = u64::BITS - (n - 1).leading_zeros();
        let mask = if bits == 0 { 0 } else { u64::MAX >> (u64::BITS - bits) };
        Self { n, mask, shift: bits / 2 + 1, key }
    }

    /// Where `index` goes. Every step is a bijection of the next power of two; what falls beyond `n` goes round again,
    /// which ends because the orbit of an `index < n` comes back below `n`.
    #[inline]
    #[must_use]
    pub fn place(&self, index: u64) -> u64 {
        let mut x = index;
        loop {
            x = x.wrapping_add(self.key) & self.mask;
            x = x.wrapping_mul(0x9E37_79B9_7F4A_7C15) & self.mask;
            x ^= x >> (self.shift & 63);
            x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93) & self.mask;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    /// Frequencies against k^-theta / sum, each within five standard deviations.
    #[test]
    fn ranks_come_as_often_as_zipf_says() {
        const SAMPLES: u32 = 400_000;
        for (n, theta) in
            [(10_u64, 0.5), (1000, 0.9), (1000, 1.0), (1000, 1.2), (50, 2.5), (1, 1.1)]
        {
            let zipf = Zipf::new(n, theta);
            let mut rng = SmallRng::seed_from_u64(7);
            let mut counts = vec![0_u32; n as usize];
            for _ in 0..SAMPLES {
                counts[zipf.sample(&mut rng) as usize] += 1;
            }
            let total: f64 = (1..=n).map(|k| (k as f64).powf(-theta)).sum();
            for (rank, &count) in counts.iter().enumerate() {
                let p = ((rank + 1) as f64).powf(-theta) / total;
                let mean = p * f64::from(SAMPLES);
                let spread = 5.0 * (mean * (1.0 - p)).sqrt() + 1.0;
                let off = (f64::from(count) - mean).abs();
                assert!(off <= spread, "n {n} theta {theta} rank {rank}: {count}, expected {mean}");
            }
        }
    }

    #[test]
    fn a_huge_range_costs_nothing_to_prepare_and_stays_in_range() {
        let n = 1 << 50;
        let zipf = Zipf::new(n, 0.99);
        let mut rng = SmallRng::seed_from_u64(7);
        assert!((0..10_000).all(|_| zipf.sample(&mut rng) < n));
    }

    #[test]
    fn scattering_loses_and_doubles_no_block() {
        for n in [1_u64, 2, 3, 7, 64, 1000, 4097] {
            let scatter = Scatter::new(n, 12345);
            let mut seen = vec![false; n as usize];
            for index in 0..n {
                let place = scatter.place(index) as usize;
                assert!(!std::mem::replace(&mut seen[place], true), "n {n}: {place} twice");
            }
        }
    }

    #[test]
    fn neighbours_are_laid_apart() {
        let scatter = Scatter::new(1 << 20, 99);
        let near =
            (0..1000).filter(|&i| scatter.place(i).abs_diff(scatter.place(i + 1)) < 64).count();
        assert!(near < 10, "{near} of 1000");
    }
}
