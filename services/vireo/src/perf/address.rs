//! Which block comes next, and whether it is read or written. On the hot path.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::zipf::{Scatter, Zipf};

/// One I/O: blocks of the load's size, counted from the start of the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Which block.
    pub block: u64,
    /// Whether it is written.
    pub write: bool,
}

/// The blocks of one queue pair, in the order in which it uses them.
#[derive(Debug, Clone)]
pub struct Addresses {
    order: Order,
    rng: SmallRng,
    first: u64,
    blocks: u64,
    /// An access is a read if a random number of 32 bits is below this.
    read_below: u64,
}

#[derive(Debug, Clone)]
enum Order {
    Sequential { next: u64 },
    Even,
    Zipf { zipf: Zipf, scatter: Scatter },
}

impl Addresses {
    /// Blocks `first..first + blocks`; `blocks` is at least 1. Random unless `sequential`; `start` is where a sequence
    /// begins within them.
    #[must_use]
    pub fn new(first: u64, blocks: u64, read_percent: u8, seed: u64, choice: Choice) -> Self {
        let order = match choice {
            Choice::Sequential { start } => Order::Sequential { next: start % blocks.max(1) },
            Choice::Even => Order::Even,
            Choice::Zipf { theta, key } => {
                Order::Zipf { zipf: Zipf::new(blocks, theta), scatter: Scatter::new(blocks, key) }
            }
        };
        Self {
            order,
            rng: SmallRng::seed_from_u64(seed),
            first,
            blocks: blocks.max(1),
            read_below: u64::from(read_percent.min(100)) * (1 << 32) / 100,
        }
    }

    /// The next one.
    #[inline]
    pub fn next_access(&mut self) -> Access {
        let index = match &mut self.order {
            Order::Sequential { next } => {
                let index = *next;
                *next = if index + 1 == self.blocks { 0 } else { index + 1 };
                index
            }
            // The high half of the product: even to within one in 2^64 / blocks.
            Order::Even => {
                ((u128::from(self.rng.random::<u64>()) * u128::from(self.blocks)) >> 64) as u64
            }
            Order::Zipf { zipf, scatter } => scatter.place(zipf.sample(&mut self.rng)),
        };
        let write = match self.read_below {
            0 => true,
            0x1_0000_0000 => false,
            below => u64::from(self.rng.random::<u32>()) >= below,
        };
        Access { block: self.first + index, write }
    }
}

/// How blocks are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Choice {
    /// One after the other from the `start`-th on.
    Sequential {
        /// The first.
        start: u64,
    },
    /// All equally often.
    Even,
    /// By Zipf's law.
    Zipf {
        /// The exponent.
        theta: f64,
        /// What decides which blocks are the popular ones.
        key: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_starts_where_it_should_and_comes_round() {
        let mut addresses = Addresses::new(100, 4, 100, 1, Choice::Sequential { start: 2 });
        let blocks: Vec<_> = (0..6).map(|_| addresses.next_access().block).collect();
        assert_eq!(blocks, [102, 103, 100, 101, 102, 103]);
    }

    #[test]
    fn random_blocks_are_even_and_within_the_range() {
        let mut addresses = Addresses::new(1000, 64, 100, 1, Choice::Even);
        let mut counts = [0_u32; 64];
        for _ in 0..64_000 {
            let Access { block, write } = addresses.next_access();
            assert!(!write);
            counts[(block - 1000) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (840..1160).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_mix_is_as_asked_for() {
        for percent in [0_u8, 1, 30, 70, 100] {
            let mut addresses = Addresses::new(0, 1 << 20, percent, 3, Choice::Even);
            let reads = (0..100_000).filter(|_| !addresses.next_access().write).count();
            assert!(reads.abs_diff(usize::from(percent) * 1000) <= 700, "{percent}: {reads}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_blocks() {
        let run = |seed, choice| {
            let mut addresses = Addresses::new(0, 1 << 20, 50, seed, choice);
            (0..100).map(|_| addresses.next_access()).collect::<Vec<_>>()
        };
        let zipf = Choice::Zipf { theta: 1.1, key: 5 };
        assert_eq!(run(1, zipf), run(1, zipf));
        assert_ne!(run(1, Choice::Even), run(2, Choice::Even));
    }

    #[test]
    fn one_popular_block_is_hit_again_and_again() {
        let mut addresses = Addresses::new(0, 1 << 20, 100, 3, Choice::Zipf { theta: 1.2, key: 5 });
        let mut counts = std::collections::HashMap::new();
        for _ in 0..10_000 {
            *counts.entry(addresses.next_access().block).or_insert(0) += 1;
        }
        assert!(counts.values().copied().max().unwrap_or(0) > 1000);
    }
}
