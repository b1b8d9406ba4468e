//! The fuzz targets in short: bytes from seeds, the same in every run. `make fuzz` runs them for long, on bytes that a
//! fuzzer evolves. `VIREO_SEED=N` runs one seed, `VIREO_SEEDS=N` so many.

use vireo_tests::fuzz;
use vireo_tests::random::Random;

/// Longest input.
const LONGEST: u64 = 2048;

/// Names the seed of a run that fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it failed with VIREO_SEED={}", self.0);
        }
    }
}

fn run(target: fn(&[u8]), count: u64) {
    let variable =
        |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seeds = match variable("VIREO_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("VIREO_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        let named = Seed(seed);
        let mut random = Random::new(seed);
        let len = random.in_range(1..LONGEST) as usize;
        target(&random.bytes(len));
        drop(named);
    }
}

#[test]
fn any_message_leaves_a_controller_that_works() {
    run(fuzz::frames, 1000);
}

#[test]
fn any_command_leaves_a_controller_that_works() {
    run(fuzz::commands, 1000);
}

#[test]
fn driver_and_controller_keep_their_promises_whatever_is_asked() {
    run(fuzz::driver, 300);
}

#[test]
fn any_list_is_walked_to_an_end_within_its_memory() {
    run(fuzz::walks, 50_000);
}

#[test]
fn any_segment_is_read_without_harm() {
    run(fuzz::segments, 1000);
}
